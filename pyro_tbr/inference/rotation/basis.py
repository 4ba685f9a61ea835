"""Assembles a basis of latents from directions, each judged by its evidence along the tree.

A new latent's weights at the leaves are ``v @ w`` with v a row of the basis's inverse, so they can
be judged without knowing the other latents: the log evidence that the estimates ``v @ w_leaf``,
with their standard errors, come from sparse changes on the tree. For a whole basis V the evidence
of the leaves' estimates is the sum over its rows plus ``E Q log|det V|``, the Jacobian, up to the
correlation of the errors. So the best basis out of a pool of rows is found by exchanging rows, at
the cost of a small matrix product a move.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.inference.rotation.search import RotationProblem
from pyro_tbr.tree import Tree, messages
from pyro_tbr.tree.messages import ArcLaw

RATES = (0.05, 0.15, 0.4)  # inclusion rates tried for a direction; its best counts
_NUM_COMPONENTS = 8  # a ranking, not a posterior
_MOST_POTENTIALS = 1 << 19  # in one pass: of all directions at once a large tree takes many GB


class Estimates(NamedTuple):
    """Estimates of the weights at nodes with rows, each node by itself.

    Attributes:
        tree: The environments.
        nodes: Nodes with rows, (E,).
        mean: (E, Q, W), or the latents' alone, (E, Q, K).
        cov: Covariances of their errors, (E, Q, W, W), or (E, Q, K, K).
    """

    tree: Tree
    nodes: Tensor
    mean: Tensor
    cov: Tensor

    @property
    def number(self) -> int:
        """E Q, the power of a basis's Jacobian."""
        return self.mean.shape[0] * self.mean.shape[1]

    def along(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates along directions (*P, K) and their variances, each (*P, Q, E)."""
        value = torch.einsum("...k,eqk->...qe", rows, self.mean)
        var = torch.einsum("...k,eqkl,...l->...qe", rows, self.cov, rows)
        return value, var

    def jacobian(self, rows: Tensor) -> Tensor:
        """What the evidence of bases (S, K, K) has beyond that of their rows, (S,)."""
        return self.number * torch.linalg.slogdet(rows)[1]

    def parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Directions (P, K), or bases (S, K, K), in parts that memory has room for in a pass."""
        each = self.tree.num_nodes * math.prod(rows.shape[1:-1]) * self.mean.shape[1]
        return rows.split(max(1, _MOST_POTENTIALS // each))


def rows_of(basis: Tensor) -> Tensor:
    """Rows of the inverses, unit length, (S, K, K)."""
    rows = torch.linalg.inv(basis.double())
    return rows / rows.norm(dim=-1, keepdim=True)


def leaf_estimates(problem: RotationProblem) -> Estimates:
    """Those of the latents' weights; the intercept is integrated out."""
    found, k = node_estimates(problem), problem.latent_dim
    return found._replace(mean=found.mean[..., :k], cov=found.cov[..., :k, :k])


def node_estimates(problem: RotationProblem) -> Estimates:
    """Those of all weights, in units of the typical difference."""
    linear = (problem.precision @ problem.target.unsqueeze(-1)).squeeze(-1)
    return estimated(problem.tree, problem.nodes, problem.precision, linear)


def estimated(tree: Tree, nodes: Tensor, precision: Tensor, linear: Tensor) -> Estimates:
    """Estimates under a prior ten units wide: nodes with few rows have wide but finite ones.

    Args:
        tree: The environments.
        nodes: Nodes with rows, (E,).
        precision: Curvature of each node's log likelihood, (E, Q or 1, W, W), double precision.
        linear: Its slope at zero, (E, Q, W).
    """
    width = precision.shape[-1]
    cov = torch.linalg.inv(precision + 1e-2 * torch.eye(width).to(precision))
    mean = (cov @ linear.unsqueeze(-1)).squeeze(-1)
    return Estimates(tree, nodes, mean, cov.expand(*mean.shape, width))


def evidence(estimates: Estimates, rows: Tensor, rates: tuple[float, ...] = RATES) -> Tensor:
    """Log evidence of the estimates along each direction (P, K), summed over outcomes, (P,).

    The best of the inclusion rates counts.
    """
    if not len(rows):
        return rows.new_zeros(0)
    found = []
    for some in estimates.parts(rows):
        value, var = estimates.along(some)
        spread = spread_of(value)
        tried = [log_evidence(estimates, value, var, torch.tensor(rate), spread) for rate in rates]
        found.append(torch.stack(tried).amax(0).sum(-1))
    return torch.cat(found)


def spread_of(value: Tensor) -> Tensor:
    """Standard deviation over the nodes, (*P, Q)."""
    return (value - value.mean(-1, keepdim=True)).square().mean(-1).sqrt().clamp(min=1e-6)


def log_evidence(
    where: Estimates, value: Tensor, var: Tensor, rate: Tensor, slab_scale: Tensor
) -> Tensor:
    """Log density of values (*P, Q, E) at the nodes under sparse changes, (*P, Q); differentiable.

    Values and variances as :meth:`Estimates.along` gives them; rates (*P, Q, A or 1), slab scales
    (*P, Q).
    """
    index = where.nodes.expand_as(value)
    empty = value.new_zeros(*value.shape[:-1], where.tree.num_nodes)
    found = messages.log_evidence(
        where.tree,
        empty.scatter(-1, index, value / var),
        empty.scatter(-1, index, 1 / var),
        ArcLaw.spike_slab(rate.to(value), slab_scale.unsqueeze(-1)),
        root_loc=0.0,
        root_scale=3 * slab_scale + value.detach().abs().mean(-1),
        num_components=_NUM_COMPONENTS,
    )
    at_peak = -0.5 * (value.square() / var + torch.log(2 * math.pi * var)).sum(-1)
    return found + at_peak


def null_directions(estimates: Estimates, num: int, generator: torch.Generator) -> Tensor:
    """Directions along which K - 1 random contrasts of related nodes all vanish, (P, K).

    If none of the K - 1 contrasts moved a latent, that latent's row is the one direction that is
    orthogonal to all of them; with sparse changes this is often so. Contrasts are between nodes
    under one parent where there are such, else between any two. ``num`` are drawn, P is less where
    some are drawn twice.
    """
    mean = estimates.mean
    num_nodes, num_outcomes, k = mean.shape
    if k == 1 or num_nodes < 2:
        return mean.new_ones(num, k) if k == 1 else mean.new_zeros(0, k)
    place, other = related_nodes(estimates, (num, k - 1), generator)
    outcome = torch.randint(num_outcomes, place.shape, generator=generator)
    contrast = mean.cpu()[place, outcome] - mean.cpu()[other, outcome]
    # The same contrasts in another order are the same direction: one sum of random marks each.
    mark = torch.rand(num_nodes, num_nodes, num_outcomes, generator=generator, dtype=torch.float64)
    mark = (mark + mark.transpose(0, 1))[place, other, outcome].sum(1)
    first = (mark[:, None] == mark).double().argmax(1).unique()
    return torch.linalg.svd(contrast[first]).Vh[:, -1].to(mean.device)


def related_nodes(
    where: Estimates, shape: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random pairs of nodes with rows, by their places among these, each of a shape.

    Pairs are under one parent where a node shares its parent with others, else of any two. There
    have to be two nodes at least.
    """
    num_nodes, nodes = len(where.nodes), where.nodes.cpu()
    parent = torch.where(nodes > 0, where.tree.arc_parent[(nodes - 1).clamp(min=0)], -1)
    order = parent.argsort(stable=True)  # families next to each other
    _, family, size = parent[order].unique_consecutive(return_inverse=True, return_counts=True)
    begin = size.cumsum(0) - size
    place = torch.randint(num_nodes, shape, generator=generator)
    mine, uniform = family[place], torch.rand(shape, generator=generator)
    among = 1 + (uniform * (size[mine] - 1)).long()
    sibling = begin[mine] + (place - begin[mine] + among) % size[mine]
    anyone = (place + 1 + (uniform * (num_nodes - 1)).long()) % num_nodes
    other = torch.where(size[mine] > 1, sibling, anyone)
    return order[place], order[other]


def best_basis(
    pool: Tensor, scores: Tensor, start: Tensor, start_scores: Tensor, num_estimates: int
) -> tuple[Tensor, float]:
    """Exchanges rows of a basis (K, K) for rows of a pool (P, K) while the evidence grows.

    Rows are of unit length, scores their log evidence; ``num_estimates`` is the Jacobian's power.
    Returned are rows (K, K), and their evidence with the Jacobian's.
    """
    rows, held = start.clone(), start_scores.clone()
    for _ in range(20 * len(rows)):  # each exchange gains, so this is a guard, not a limit
        gain = exchange_gains(rows, held, pool, scores, num_estimates)
        best = int(gain.argmax())
        if gain.flatten()[best] < 1e-6:
            break
        new, old = divmod(best, len(rows))
        rows[old], held[old] = pool[new], scores[new]
    total = held.sum() + num_estimates * torch.linalg.slogdet(rows)[1]
    return rows, total.item()


def exchange_gains(
    rows: Tensor, held: Tensor, pool: Tensor, scores: Tensor, num_estimates: int
) -> Tensor:
    """Gain in evidence from every row of a pool (P, K) in place of every row of a basis, (P, K)."""
    cofactor = (pool @ torch.linalg.inv(rows)).abs().clamp(min=1e-12).log()
    return scores[:, None] - held[None, :] + num_estimates * cofactor
