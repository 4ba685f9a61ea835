"""The rotation: the reference encoder's output turned to the basis in which changes are sparse."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.errors import TrainingError
from pyro_tbr.heads import GaussianPrior, Head, Statistics, TreeGuide
from pyro_tbr.inference.checkpoint import Part, part
from pyro_tbr.inference.encoder.dense_stage import DenseFit
from pyro_tbr.inference.encoder.latents import mapped, moments_of
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.rotation.choice import (
    RotationResult,
    arranged,
    decided,
    rotate_to_sparsity,
    widened,
)
from pyro_tbr.inference.rotation.judging import basis_elbo, judging_head
from pyro_tbr.inference.rotation.needed import needed_axes
from pyro_tbr.inference.rotation.search import Candidates, expand_basis, rotation_problem
from pyro_tbr.inference.sparse_stage import Task, settle
from pyro_tbr.progress import detail, stage

# Directions of the latents with less than this share of the largest variance do not exist.
_LEAST_VARIANCE_SHARE = 1e-7
# Of the ELBO by each latent that is left out. One that nothing hangs on costs 2 to 40.
_LEAST_GAIN = 2.0
# By which each of them has to lower it, taken along unturned, for the rotation of all not to be
# made, times the root of the number of outcomes. One that is needed lowers it by 4 to 6 with one
# outcome, one too many by 7.5 and more; with 16 outcomes by 25 and more.
_CLEAR_GAIN = 6.0
SEARCH_STEPS = 1500  # of Adam in the rotation search, over which its penalty sharpens
# Parts of the rotation, and about which share of its time each takes.
ROTATION = {
    "dense weights": 5, "search": 45, "directions": 3, "climb": 27, "weights of bases": 6,
    "reference points": 4, "bases that are close": 10,
}  # fmt: skip


def rotated(
    task: Task, reference: DenseFit, honest: Tensor, rows: StandardRows
) -> tuple[Tensor, RotationResult]:
    """Turns the reference encoder's output to the sparse basis.

    Returns:
        Honest latents in the new basis (N, K), and the rotation of those that exist.
    """
    encoder, device = reference.model.encoder, rows.y.device

    def described(found: tuple[Tensor, RotationResult]) -> Part:
        z, one = found
        rotation = (*one[:4], one.evidence, tuple(one.others), one.other_evidence)
        return {"latents": z, "rotation": rotation, "encoder": dict(encoder.state_dict())}

    def restored(left: Part) -> tuple[Tensor, RotationResult]:
        encoder.load_state_dict(left["encoder"], assign=True)  # dtypes included
        encoder.to(device)
        *best, evidence, others, other_evidence = left["rotation"]
        basis, offset, root, deltas = (value.to(device) for value in best)
        candidates = Candidates(*(value.to(device) for value in others))
        found = RotationResult(
            basis, offset, root, deltas, evidence, candidates, other_evidence.to(device)
        )
        return left["latents"].to(device), found

    return part(
        task.checkpoint, "rotation", lambda: _rotated(task, reference, honest, rows), described,
        restored,
    )  # fmt: skip


@torch.no_grad()
def _rotated(
    task: Task, reference: DenseFit, honest: Tensor, rows: StandardRows
) -> tuple[Tensor, RotationResult]:
    """See :func:`rotated`."""
    centre, cov = moments_of(reference.latents(rows.x))
    variance, axes = torch.linalg.eigh(cov)
    keep = variance > _LEAST_VARIANCE_SHARE * variance.max()
    if not keep.any():
        raise TrainingError(
            f"the encoder gives all {len(rows)} rows the same latents: a network of your own is "
            "constant, or its training has run away; lower options.encoder_lr, or look for "
            "outliers and scale the data"
        )
    white = axes[:, keep] / variance[keep].sqrt()
    if keep.all():
        # The axes of latents that are white already are any; turned back nothing hangs on them.
        white = white @ axes.T
    turned = _turned(task, mapped(honest, centre, white), rows)
    found, latent_dim, rank = turned.rotation, len(centre), turned.axes.shape[1]
    linear = centre.new_zeros(latent_dim, latent_dim)
    linear[:, :rank] = white @ turned.axes.to(white) @ found.basis
    offset = centre.new_zeros(latent_dim)
    offset[:rank] = found.offset
    reference.model.encoder.set_output(centre, linear, offset)
    rows.holding.agree(reference.model.encoder)
    return mapped(honest, centre, linear, offset), found


class _Turned(NamedTuple):
    """The rotation of some directions of white latents, (K, r).

    ``elbo`` is that of the weights under the user's prior; NaN where it was not taken, as where
    that takes long.
    """

    axes: Tensor
    rotation: RotationResult
    elbo: float


def _turned(task: Task, z: Tensor, rows: StandardRows) -> _Turned:
    """The rotation of white latents (N, K), of those alone that are needed if that is better.

    Weights that may change on every arc tell which are not needed. A latent whose effect changes
    once by a little may be among these. So where taking the others along does not clearly lower the
    ELBO both rotations are made and their ELBOs compared: in doubt all latents stay, as those too
    many are named afterwards and do little harm.
    """
    with stage("dense weights", total=1):
        guide, stats = _dense_weights(task, z, rows)
        weights = guide.node_moments().mean[stats.nodes]
        needed = needed_axes(guide.head, rows.nodes(guide.head.tree.num_nodes), stats, weights)
    every, rank = torch.eye(z.shape[1]).to(needed), needed.shape[1]
    if rank == z.shape[1]:
        return _rotation(task, every, guide, stats, rows, judged=False)
    fewer = _rotation(task, needed, *_dense_weights(task, z @ needed.to(z), rows), rows)
    best, left_out = fewer, z.shape[1] - rank
    judge = None if math.isnan(fewer.elbo) else _judge(task, z.shape[1])
    if judge is not None:
        along = basis_elbo(judge, rows.nodes(guide.head.tree.num_nodes), stats, _unturned(fewer))
        if fewer.elbo < along + _CLEAR_GAIN * left_out * math.sqrt(judge.num_outcomes):
            whole = _rotation(task, every, guide, stats, rows)
            best = whole if fewer.elbo < whole.elbo + _LEAST_GAIN * left_out else fewer
    detail("%d of %d latents are needed", best.axes.shape[1], z.shape[1])
    return best


def _unturned(fewer: _Turned) -> Candidates:
    """All white latents: those of a rotation, and the directions it leaves out as they are."""
    axes, found = fewer.axes, fewer.rotation
    num_latents, rank = axes.shape
    both = torch.cat([axes, torch.eye(num_latents).to(axes)], 1)
    rest = torch.linalg.qr(both)[0][:, rank:]  # the axes come first, so these are at right angles
    wide = widened(found, num_latents)
    basis = torch.cat([axes @ found.basis, rest], 1)
    return Candidates(basis, wide.offset, wide.root, wide.deltas, wide.root.new_zeros(()))


def _rotation(
    task: Task,
    axes: Tensor,
    guide: TreeGuide,
    stats: Statistics,
    rows: StandardRows,
    *,
    judged: bool = True,
) -> _Turned:
    """The rotation of latents along some axes (K, r), given their dense weights.

    Its ELBO is only taken if it is to be ``judged``.
    """
    tree, rank = guide.head.tree, axes.shape[1]
    problem = rotation_problem(
        tree,
        stats,
        guide.site_scale(stats.nodes),
        guide.node_moments().mean[0],
        guide.delta_moments().mean,
        rank,
        len(rows),
    )
    with torch.enable_grad():
        found = rotate_to_sparsity(problem, task.options.restarts, SEARCH_STEPS, task.generator)
    judge, elbo, nodes = _judge(task, rank), math.nan, rows.nodes(tree.num_nodes)
    if judge is not None:

        def elbo_of(one: Candidates) -> float:
            return basis_elbo(judge, nodes, stats, one)

        if task.guide_kind == "tree":  # mean field has bad optima
            with stage("bases that are close", total=1):
                found = decided(found, elbo_of)
        if judged:
            elbo = elbo_of(found.everything()[0].take(torch.tensor(0)))
    turned = stats.transform(expand_basis(found.basis, found.offset, stats.gram.shape[-1]))
    return _Turned(axes, arranged(tree, found, turned), elbo)


def _judge(task: Task, rank: int) -> Head | None:
    """The head by whose ELBO rotations of so many latents are compared, if it has one.

    Where scales are held jointly with the weights an update takes as long as all the search. And a
    prior of the user's own may be made for K latents alone.
    """
    head = task.model.head
    if rank < head.num_latents:
        try:
            head = head.with_prior(task.model.prior_spec, rank)
        except (ValueError, TypeError, RuntimeError, IndexError):
            return None
    judge = judging_head(head)
    return None if judge.prior.tree_factor().joint else judge


def _dense_weights(task: Task, z: Tensor, rows: StandardRows) -> tuple[TreeGuide, Statistics]:
    """Weights of white latents (N, r) that may change on every arc; statistics flattened."""
    head = task.model.head.apart().with_prior(GaussianPrior(), z.shape[1])
    guide = TreeGuide(head, rows.nodes(head.tree.num_nodes)).to(rows.y.device)
    return guide, settle(task, guide, task.model.design(z), rows).flattened()
