"""Finds the latents: the basis of the encoder's output in which the arcs' changes are sparse.

1. ``search``: a penalised fit proposes bases, on a likelihood that is blunted so that starts move.
2. ``basis``: contrasts between nodes propose single rows of bases; all rows are judged by their
   evidence along the tree, and bases put together from them.
3. ``climb`` and ``polish``: all these climb their evidence, from the blunt likelihood to that of
   the rows, so that the best and its rivals are compared at their tops.
4. ``reference``: each basis's latents are counted from where the intercept changes most sparsely.
5. :func:`decided`: where several are close, their ELBO decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.inference.rotation.basis import (
    leaf_estimates,
    node_estimates,
    null_directions,
    rows_of,
)
from pyro_tbr.inference.rotation.climb import climb, promising, telling_curvature
from pyro_tbr.inference.rotation.reference import reference_point
from pyro_tbr.inference.rotation.search import (
    BLUNT_CURVATURE,
    Candidates,
    RotationProblem,
    capped,
    expand_basis,
    search,
    sparse_weights,
    with_rows_below,
)
from pyro_tbr.posterior.rivals import SAME_BASIS, latent_match
from pyro_tbr.progress import detail, stage, step
from pyro_tbr.tree import Tree, path_sum

_NUM_CLIMBING = 24  # of the search's bases climb their evidence
_SHARE_FOR_WEIGHTS = 3  # one in so many steps goes to the weights of the bases found
_NUM_DIRECTIONS = 1500  # directions proposed by contrasts, fewer where outcomes are many
_CLOSE = 20.0  # log evidence behind the best up to which a candidate may still be chosen
_MOST_CLOSE = 6  # candidates of which that is taken into account


class RotationResult(NamedTuple):
    """The chosen basis, its fields as in :class:`Candidates`, and the others, best first.

    The latents before are white; weights are in the model's units, log evidence, that of the others
    (T,), is up to a constant of the problem.
    """

    basis: Tensor
    offset: Tensor
    root: Tensor
    deltas: Tensor
    evidence: float
    others: Candidates
    other_evidence: Tensor

    def everything(self) -> tuple[Candidates, Tensor]:
        """All candidates, best first, and their evidence."""
        best = Candidates(self.basis, self.offset, self.root, self.deltas, self.root.new_zeros(()))
        parts = zip(best, self.others, strict=True)
        evidence = torch.cat([self.other_evidence.new_tensor([self.evidence]), self.other_evidence])
        return Candidates(*(torch.cat([one[None], rest]) for one, rest in parts)), evidence


def rotate_to_sparsity(
    problem: RotationProblem, restarts: int, steps: int, generator: torch.Generator
) -> RotationResult:
    """The basis in which changes are sparse, and its rivals: steps 1 to 4 above.

    ``steps`` are those of Adam in all: of the search from its random ``restarts``, and of the
    weights of the bases found. Arcs without rows below say nothing, and cost nothing either.
    """
    small, arcs = with_rows_below(problem)
    found = _rotated(small, restarts, steps, generator)
    if len(arcs) == len(problem.deltas):
        return found
    everywhere = found.deltas.new_zeros(problem.deltas.shape)
    of_others = everywhere.expand(len(found.others.deltas), *everywhere.shape)
    others = found.others._replace(deltas=of_others.index_copy(1, arcs, found.others.deltas))
    return found._replace(deltas=everywhere.index_copy(0, arcs, found.deltas), others=others)


def _rotated(
    problem: RotationProblem, restarts: int, steps: int, generator: torch.Generator
) -> RotationResult:
    """The same on a tree all of whose arcs have rows below."""
    blunt = capped(problem, BLUNT_CURVATURE)
    for_weights = max(1, steps // _SHARE_FOR_WEIGHTS)
    found = search(blunt, restarts, max(1, steps - for_weights), generator)
    rows = rows_of(found.take(torch.isfinite(found.loss)).basis)
    with stage("directions"):
        directions = _directions(problem, rows.flatten(0, 1), generator)
    arrived = climb(problem, rows[:_NUM_CLIMBING], directions)
    detail("%d bases, the best with log evidence %.5g", len(arrived.rows), arrived.evidence.max())

    inverse = torch.linalg.inv(arrived.rows)
    basis = inverse / inverse.norm(dim=1, keepdim=True)
    weights = sparse_weights(blunt, basis, for_weights)
    close = torch.nonzero(arrived.evidence > arrived.evidence.max() - _CLOSE)[:_MOST_CLOSE, 0]
    offset = weights.offset * problem.offset_scale
    if problem.root.shape[0] > problem.latent_dim:  # an intercept takes up the offset
        with stage("reference points", total=len(close), unit="basis"):
            offset[close] = torch.stack([intercept_offset(problem, one) for one in basis[close]])
    # Each start counts where it has arrived; bases that none of them reached count once.
    every = torch.arange(len(basis), device=basis.device)
    place = torch.cat([arrived.place, every[~torch.isin(every, arrived.place)]])
    root, deltas = weights.root * problem.unit, weights.deltas * problem.unit
    everything = weights._replace(offset=offset, root=root, deltas=deltas)
    return ranked(everything.take(place), arrived.evidence[place])


def _directions(problem: RotationProblem, found: Tensor, generator: torch.Generator) -> Tensor:
    """Rows that bases may take up: the search's (R, K) and the most promising ones, (P, K)."""
    judged = leaf_estimates(capped(problem, telling_curvature(problem)))
    num = max(200, _NUM_DIRECTIONS // judged.mean.shape[1])
    contrasts = null_directions(judged, num, generator)
    return torch.cat([found, promising(judged, torch.cat([found, contrasts]))])


def intercept_offset(problem: RotationProblem, basis: Tensor) -> Tensor:
    """Offset (K,) of the latents ``z @ basis`` at which the intercept changes most sparsely."""
    found, zero = node_estimates(problem), basis.new_zeros(problem.latent_dim)
    step(unit="basis")
    turn = torch.linalg.inv(expand_basis(basis, zero, found.mean.shape[-1]))
    mean, cov = (turn @ found.mean.unsqueeze(-1)).squeeze(-1), turn @ found.cov @ turn.mT
    return reference_point(found._replace(mean=mean, cov=cov), problem.offset_scale).offset


def ranked(candidates: Candidates, evidence: Tensor) -> RotationResult:
    """The candidate of the largest evidence (S,), and the others in order."""
    order = evidence.argsort(descending=True)
    first, rest = order[0], order[1:]
    best = candidates.take(first)[:4]
    return RotationResult(*best, evidence[first].item(), candidates.take(rest), evidence[rest])


def decided(found: RotationResult, elbo: Callable[[Candidates], float]) -> RotationResult:
    """The candidates ranked anew, those close to the best by their ELBO.

    The search judges a basis row by row: its estimates as independent, their likelihood as normal,
    a few inclusion rates. Where several bases are close by that, the sparse stage itself decides:
    each one's weights are brought to their optimum and the ELBOs of the rows compared. ELBOs within
    a unit of each other are ties, so the bases behind stay in the report as alternatives.

    Args:
        found: What the search found.
        elbo: Of a single candidate, without the first dimension.

    Returns:
        The same candidates. The evidence of a finalist is its ELBO, up to a constant that leaves
        the evidence of the best as it was; one with the latents of a finalist moves as that one
        does, all others as the finalists do on average.
    """
    everything, evidence = found.everything()
    finalists: list[int] = []
    double_of = torch.full(evidence.shape, -1, device=evidence.device)
    for place in torch.nonzero(evidence > found.evidence - _CLOSE)[:, 0].tolist():
        matches = [latent_match(everything.basis[place], everything.basis[i]) for i in finalists]
        if matches and max(matches) > SAME_BASIS:
            double_of[place] = matches.index(max(matches))
        elif len(finalists) < _MOST_CLOSE:
            double_of[place] = len(finalists)
            finalists.append(place)
    if len(finalists) < 2:
        return found

    scores = []
    with stage("", total=len(finalists), unit="basis"):
        for place in finalists:
            scores.append(elbo(everything.take(torch.tensor(place))))
            step(unit="basis")
    shift = torch.tensor(scores).to(evidence) - evidence[finalists]
    evidence = evidence + torch.where(double_of < 0, shift.mean(), shift[double_of])
    return ranked(everything, evidence - evidence.max() + found.evidence)


def arranged(tree: Tree, found: RotationResult, stats: Statistics) -> RotationResult:
    """The rotation with latents by share of outcome variance, largest first, signs fixed.

    A latent's largest root weight, over outcomes, is positive. So equal solutions print equal.
    Statistics are of the design in the rotated basis.
    """
    latent_dim = found.basis.shape[0]
    weights = path_sum(tree, found.root, found.deltas, event_dim=2)[stats.nodes]  # (E, W, Q)
    power = stats.gram.diagonal(dim1=-2, dim2=-1).transpose(-1, -2) * weights.square()
    order = power.sum((0, 2))[:latent_dim].argsort(descending=True)
    root = found.root[:latent_dim][order]
    sign = root.gather(1, root.abs().argmax(1, keepdim=True))[:, 0].sign()
    sign = torch.where(sign == 0, 1.0, sign)
    index = torch.cat([order, torch.arange(latent_dim, len(found.root), device=order.device)])
    full_sign = torch.cat([sign, sign.new_ones(len(found.root) - latent_dim)])[:, None]
    return found._replace(
        basis=found.basis[:, order] * sign,
        offset=found.offset[order] * sign,
        root=found.root[index] * full_sign,
        deltas=found.deltas[:, index] * full_sign,
    )


def widened(found: RotationResult, latent_dim: int) -> RotationResult:
    """The rotation with weights of zero for latents that do not exist, up to K of them."""
    rank = found.basis.shape[0]
    missing = latent_dim - rank

    def wide(value: Tensor, dim: int) -> Tensor:
        shape = list(value.shape)
        shape[dim] = missing
        before, behind = value.split([rank, value.shape[dim] - rank], dim)
        return torch.cat([before, value.new_zeros(shape), behind], dim)

    return found._replace(
        offset=wide(found.offset, 0), root=wide(found.root, 0), deltas=wide(found.deltas, 1)
    )
