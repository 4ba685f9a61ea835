"""The posterior as an average over bases of the latents that the ELBO cannot tell apart."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads import Guide, Statistics, TreeGuide
from pyro_tbr.heads.averaging import AveragedGuide
from pyro_tbr.heads.conditioning import SWEEPS
from pyro_tbr.heads.likelihoods.noisy_latents import LATENT_NOISE_SITE
from pyro_tbr.inference.rotation.choice import intercept_offset
from pyro_tbr.inference.rotation.judging import basis_elbo, judging_head
from pyro_tbr.inference.rotation.search import (
    BLUNT_CURVATURE,
    Candidates,
    RotationProblem,
    capped,
    expand_basis,
    rotation_problem,
    sparse_weights,
)
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.rivals import SAME_BASIS, aligned, distinct
from pyro_tbr.posterior.view import check_number, check_posterior
from pyro_tbr.progress import stage, step, working

_STEPS = 500  # of Adam for the sparse weights that a basis starts from
# Stages, and about which share of the time each takes; sweeps that a basis mostly takes.
_PLAN = {"latents in use": 5, "weights of bases": 10, "bases compared": 30, "weights of each": 55}
_MOSTLY = 25
_FAR = 20.0  # search's evidence behind the best up to which a basis is looked at: it is rough


@torch.inference_mode(False)
@torch.no_grad()
def average_bases(
    posterior: Posterior, *, max_bases: int = 6, max_gap: float = 7.0, progress: bool = True
) -> Posterior:
    r"""The same fit averaged over the bases of the latents that explain the data nearly as well.

    What the rows say of the latents is up to their basis, and a fit answers for the best basis its
    search found. Where others are close behind (``identification()`` says so), its inclusion
    probabilities are surer than the data are. Here each such basis gets weights and
    hyperparameters of its own, from the rows' statistics and without training, and counts by
    :math:`\exp(\mathrm{ELBO})`, as of equal prior probability. Outcomes whose residuals correlate
    count for what they are worth, as in ``identification()``. Latents of each basis stand in the
    order and with the signs of those of the fit that they correlate with most.

    In the posterior that comes back

    - inclusion, changes, credible sets, selections, path PIPs, exceedance and shrinkage are of
      each basis's own latent that goes with ``z0``, ``z1``, ...: "the latent that is, or stands in
      for, z0 changes here";
    - ``encode`` gives the latents of the fit, and ``node_weights`` what acts on these, whatever
      basis it comes from: so ``encode(x) @ weights`` is the mean that ``predict`` gives, and
      predictions hold how far bases differ;
    - ``sample`` gives root weights and changes that act on the latents of the fit, gates of each
      basis's own latents, and ``basis``, the row of :meth:`Posterior.bases` that a draw is of.

    It takes no further rows: update the fitted posterior and average again.

    Args:
        posterior: A fit, or one from a file, with learnt latents and ``guide="tree"``; not changed.
        max_bases: Bases at most, that of the fit among them.
        max_gap: Those whose ELBO is further behind that of the best are left out, in nats.
        progress: As in ``fit``.

    Returns:
        The averaged posterior; :meth:`Posterior.bases` says which bases, and how alike. Where no
        other basis is close its answers are those of the fit.

    Raises:
        DataError: Latents that were given, a guide of another kind, or numbers out of range.

    Example:
        >>> import pyro_tbr as tbr
        >>> sim = tbr.simulate(num_leaves=8, latent_dim=2, num_outcomes=2, rows_per_leaf=30, seed=1)
        >>> options = tbr.FitOptions(restarts=8, mixture_components=8)
        >>> model = tbr.TreeModel(sim.tree, 2, encoder="linear")
        >>> posterior = tbr.fit(model, sim.x, sim.y, sim.env, progress=False, options=options)
        >>> averaged = tbr.average_bases(posterior, max_bases=3, progress=False)
        >>> list(averaged.bases().columns)
        ['gap', 'weight', 'z0', 'z1']
        >>> bool(abs(averaged.bases()["weight"].sum() - 1) < 1e-9)
        True

    Source:
        Hoeting, Madigan, Raftery & Volinsky, Statistical Science 14 (1999) 382.
    """
    _check(posterior, max_bases, max_gap)
    with working("average_bases", show=progress, plan=_PLAN):
        return _averaged(posterior, max_bases, max_gap)


def _averaged(posterior: Posterior, max_bases: int, max_gap: float) -> Posterior:
    """See :func:`average_bases`."""
    own = copy.deepcopy(posterior)
    guide = own.guide
    assert isinstance(guide, TreeGuide)
    with stage("latents in use"):
        found = own.identification()
    used = torch.from_numpy(found.latents["used"].to_numpy().copy())
    stats = own.stats.flattened()
    share = found.worth / found.num_outcomes
    nodes = torch.zeros(own.tree.num_nodes, dtype=torch.bool)
    nodes[own.stats.nodes.cpu()] = True

    turns = _other_bases(own, used, share, max_bases)
    bases = _candidates(own, stats, guide, turns)
    gap = torch.zeros(1, dtype=torch.float64)
    if len(turns.basis) > 1:
        head = judging_head(own.model.head)
        each = [bases.take(torch.tensor(c)) for c in range(len(turns.basis))]
        scores = torch.zeros(len(each), dtype=torch.float64)
        with stage("bases compared", total=len(each), unit="basis"):
            for place, one in enumerate(each):
                scores[place] = basis_elbo(head, nodes, stats, one)
                step(unit="basis")
        gap = share * (scores[0] - scores)
    kept = torch.nonzero((gap <= gap.min() + max_gap) | (torch.arange(len(gap)) == 0))[:, 0]
    guides: list[Guide] = [guide]
    maps = expand_basis(bases.basis, bases.offset, stats.gram.shape[-1])[kept]
    with stage("weights of each", total=len(kept) - 1):
        for number, (c, turn) in enumerate(zip(kept[1:], maps[1:], strict=True), start=1):
            with stage(f"basis {number} of {len(kept) - 1}", about=_MOSTLY, unit="sweep"):
                guides.append(_settled(guide, nodes, stats.transform(turn), bases.take(c)))
    averaged = AveragedGuide(
        own.model.head,
        nodes,
        kind=type(guide).__name__,
        arguments=guide.settings(),
        num_bases=len(guides),
    ).to(stats.cross.device)
    weight = (-gap[kept]).softmax(0)
    averaged.hold(guides, weight, gap[kept], turns.agreement[kept], maps)
    return replace(own, guide=averaged)


class _Turns(NamedTuple):
    """Bases relative to the latents of the fit, its own first.

    Attributes:
        basis: Their latents are ``z @ basis`` up to an offset, (C, K, K).
        agreement: Absolute correlations with those of the fit, (C, K).
    """

    basis: Tensor
    agreement: Tensor


def _other_bases(posterior: Posterior, used: Tensor, share: float, most: int) -> _Turns:
    """The best bases that the search found, at most so many, those in use aligned with the fit's.

    They are taken relative to the fit's latents as they are now: an encoder that was trained on
    after the search has moved these a little. Latents that do not exist stay what they are.
    """
    report, latent_dim = posterior.report, posterior.model.latent_dim
    ours, used = report.basis.double(), used[: report.rank]
    own = torch.eye(latent_dim, dtype=torch.float64)
    basis, agreement = [own], [own.new_ones(latent_dim)]
    behind = share * (report.evidence - report.alternative_evidence)
    near = report.alternatives[behind < _FAR].double()
    counts = used if bool(used.any()) else ~used
    for place in distinct(ours[:, counts], near, SAME_BASIS)[: most - 1]:
        other, correlation = aligned(ours, near[place], counts)
        turn, alike = own.clone(), own.new_ones(latent_dim)
        turn[: report.rank, : report.rank] = torch.linalg.solve(ours, other)
        alike[: report.rank] = correlation
        basis.append(turn)
        agreement.append(alike)
    device = posterior.stats.cross.device
    return _Turns(torch.stack(basis).to(device), torch.stack(agreement).to(device))


def _candidates(
    posterior: Posterior, stats: Statistics, guide: TreeGuide, turns: _Turns
) -> Candidates:
    """The bases with the sparse weights to start from, in the model's units, and with offsets.

    The latents of the fit have none; those of the others are counted from where the intercept
    changes most sparsely, as in the fit.
    """
    root, deltas = guide.node_moments().mean[0], guide.delta_moments().mean
    num_rows = int(posterior.row_counts.sum())
    problem = rotation_problem(
        posterior.tree,
        stats,
        guide.site_scale(stats.nodes),
        root,
        deltas,
        posterior.model.latent_dim,
        num_rows,
    )
    with torch.enable_grad():
        found = sparse_weights(capped(problem, BLUNT_CURVATURE), turns.basis, _STEPS)
    offsets = [_offset(problem, turn, first=not c) for c, turn in enumerate(turns.basis)]
    return found._replace(
        offset=torch.stack(offsets),
        root=found.root * problem.unit,
        deltas=found.deltas * problem.unit,
    )


def _offset(problem: RotationProblem, turn: Tensor, *, first: bool) -> Tensor:
    """Where a basis's latents are counted from, (K,); zero for the first one and where none is."""
    if first or problem.root.shape[0] == problem.latent_dim:
        return turn.new_zeros(problem.latent_dim)
    return intercept_offset(problem, turn)


def _settled(guide: TreeGuide, nodes: Tensor, stats: Statistics, start: Candidates) -> TreeGuide:
    """A guide like another one at its optimum in another basis, from sparse weights."""
    like = guide.head.prior.root_loc
    made = type(guide)(guide.head, nodes, **guide.settings()).to(like.device)
    made.start(start.root.to(like), start.deltas.to(like))
    made.update(stats, sweeps=SWEEPS)
    return made


def _check(posterior: Posterior, max_bases: int, max_gap: float) -> None:
    """Refuses what cannot be averaged, before any work."""
    check_posterior(posterior)
    check_number(max_bases, "max_bases")
    number = isinstance(max_gap, Real) and not isinstance(max_gap, bool)
    if not number or not 0 <= max_gap < math.inf:
        raise DataError(f"max_gap={max_gap!r} must be a finite number, 0 or more")
    guide, report = posterior.guide, posterior.report
    if isinstance(guide, AveragedGuide):
        raise DataError(
            "this posterior is an average over bases already: give the one that fit() returned"
        )
    if posterior.model.basis is not None:
        raise DataError(
            "average_bases: curves of a latent are those of one basis of the latents; use the "
            "posterior itself, or fit a model without basis="
        )
    if LATENT_NOISE_SITE in guide.nuisance:
        raise DataError(
            "average_bases: with latent_noise the noise of the latents is that of one basis; use "
            "the posterior itself, or fit without latent_noise"
        )
    if not posterior.model.encoder.trainable:
        raise DataError(
            "average_bases is for latents that were learnt; with encoder='identity' they are the "
            "features, and there is no other basis: use the posterior itself"
        )
    if type(guide) is not TreeGuide:
        raise DataError(
            f"average_bases compares bases by the ELBO of guide='tree', and this posterior has a "
            f"{type(guide).__name__}: fit with guide='tree', and give what fit() returned"
        )
    if not len(report.basis):
        raise DataError(
            "the report of this posterior holds no bases of the latents, as no search has found "
            "them: fit afresh, without start="
        )
