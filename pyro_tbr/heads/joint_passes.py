r"""Weights that change normally along a tree, all of a node jointly: messages up and back.

Rows of a node say :math:`\exp(b_v' u_v - u_v' P_v u_v / 2)` of its weights :math:`u_v`. From the
leaves to the root, with :math:`d` the precision of a change (diagonal) and :math:`\Lambda, \eta`
what is known below an arc,

.. math::
    S = (\Lambda + d)^{-1}, \quad \text{message } (d S \Lambda, \; d S \eta),

and back, with mean m and covariance C of the parent, :math:`S (\eta + d m)` and
:math:`S + S d C d S`. It takes ``V G P^3`` operations for G groups of P weights that are judged
together (see ``NodeRows``), and memory for ``V G P^2`` numbers.

Source:
    Rauch, Tung & Striebel, AIAA Journal 3 (1965) 1445, along a tree in place of a line.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.errors import TrainingError
from pyro_tbr.heads.coupling import NodeRows
from pyro_tbr.tree import Tree


class Passes(NamedTuple):
    """What messages up and down the tree leave, double precision.

    Attributes:
        mean: Of the weights, (V, G, P).
        cov: Their covariances, (V, G, P, P).
        change_mean: Of the changes, (A, G, P).
        change_var: Their variances, likewise.
        inner: S of every arc, (A, G, P, P), at the root its covariance first: (V, G, P, P).
        linear: Eta of every node, with the prior's part at the root, (V, G, P).
        log_evidence: Of the rows' potentials, ().
        fitted: E[b'u - u'Pu / 2], over all nodes with rows, ().
    """

    mean: Tensor
    cov: Tensor
    change_mean: Tensor
    change_var: Tensor
    inner: Tensor
    linear: Tensor
    log_evidence: Tensor
    fitted: Tensor


def joint_passes(
    tree: Tree,
    loc: Tensor,
    scale: Tensor,
    precision: Tensor,
    known: tuple[Tensor, NodeRows] | None,
) -> Passes:
    """Messages from the leaves to the root and back.

    Args:
        tree: The tree.
        loc: Prior means of the root's weights, (G, P).
        scale: Prior standard deviations, (G, P).
        precision: Of every change, (A, G, P).
        known: Nodes with rows (E,), and what these say; ``None``: nothing.

    Raises:
        TrainingError: A matrix cannot be inverted.
    """
    parent = tree.arc_parent.to(precision.device)
    size = (tree.num_nodes, *loc.shape)
    below, linear = loc.new_zeros(*size, size[-1]), loc.new_zeros(size)
    if known is not None:
        nodes, rows = known
        below[nodes], linear[nodes] = rows.precision, rows.linear
    inner = torch.empty_like(below)
    log_evidence = loc.new_zeros(())
    for level in reversed(tree.levels[1:]):
        arcs = slice(level.start - 1, level.stop - 1)
        above, d = parent[arcs], precision[arcs]
        inner[level], log_det = _inverse(below[level] + torch.diag_embed(d))
        pulled = (inner[level] @ linear[level].unsqueeze(-1)).squeeze(-1)
        passed = d.unsqueeze(-1) * (inner[level] @ below[level])
        below.index_add_(0, above, 0.5 * (passed + passed.mT))
        linear.index_add_(0, above, d * pulled)
        height = (linear[level] * pulled).sum() + d.log().sum() - log_det
        log_evidence = log_evidence + 0.5 * height
    d = scale**-2
    inner[0], log_det = _inverse(below[0] + torch.diag_embed(d))
    linear[0] += d * loc
    mean, cov = torch.empty_like(linear), torch.empty_like(inner)
    mean[0], cov[0] = (inner[0] @ linear[0].unsqueeze(-1)).squeeze(-1), inner[0]
    height = (linear[0] * mean[0]).sum() - (d * loc.square()).sum() + d.log().sum() - log_det
    change_mean, change_var = torch.empty_like(mean[1:]), torch.empty_like(mean[1:])
    for level in tree.levels[1:]:
        arcs = slice(level.start - 1, level.stop - 1)
        above, d = parent[arcs], precision[arcs]
        from_above = inner[level] * d.unsqueeze(-2)  # S d
        pulled = linear[level] + d * mean[above]
        mean[level] = (inner[level] @ pulled.unsqueeze(-1)).squeeze(-1)
        cov[level] = inner[level] + from_above @ cov[above] @ from_above.mT
        change_mean[arcs] = mean[level] - mean[above]
        rest = from_above - torch.eye(size[-1]).to(from_above)
        change_var[arcs] = _diagonal(inner[level]) + ((rest @ cov[above]) * rest).sum(-1)
    fitted = log_evidence.new_zeros(())
    if known is not None:
        second = cov[nodes] + mean[nodes].unsqueeze(-1) * mean[nodes].unsqueeze(-2)
        fitted = (rows.linear * mean[nodes]).sum() - 0.5 * (rows.precision * second).sum()
    log_evidence = log_evidence + 0.5 * height
    return Passes(mean, cov, change_mean, change_var, inner, linear, log_evidence, fitted)


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def _inverse(precision: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses of (..., W, W) positive definite matrices, and the sum of their log determinants."""
    factor, failed = torch.linalg.cholesky_ex(precision)
    if failed.any():
        raise TrainingError(
            f"what the rows say of the weights is not finite, or too uneven to be inverted, in "
            f"{int((failed > 0).sum())} of {failed.numel()} places: look for outliers in the "
            "features, scale the data, or lower options.encoder_lr"
        )
    return torch.cholesky_inverse(factor), 2 * _diagonal(factor).log().sum()
