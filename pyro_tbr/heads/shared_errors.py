"""Errors that weights share: what the tree of one hears of another's is no news of its own.

By expectation propagation the tree of a latent hears, at every node, of the other latents' weights,
and where the noise of outcomes goes together of the other outcomes' too. Cavities are what is known
of these without the rows of a node. Those of different nodes are no independent news: the same
weight that is unsure at one node is unsure at the next, so a tree that hears of it at both takes
one error for two that average out. Weights that change normally, each change with the second moment
it has under q, have a joint posterior in closed form. It says

- how errors of outcomes' cavities go together (:func:`shared_errors`): the same rows elsewhere in
  the tree tell of several outcomes, so near copies of an outcome err alike, and eight of them are
  hardly more than one. What a tree does not know because of its gates is its own;
- how much wider weights are jointly than each is with what its tree was told
  (:func:`widening`), which is left where trees have heard of each other over several nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tbr.heads.coupling import NodeRows, Potential
from pyro_tbr.heads.joint_passes import joint_passes
from pyro_tbr.tree import Tree

_LEAST_SHARE = 1e-9  # of what is known in a direction, that is not the rows' own
_ROUNDING = 1e-6  # share of a variance by which it may seem to be less without the rows
_ELEMENTS = 4_000_000  # of the covariances of all nodes that are worked out together
_STEADY = 1e-10  # of what rows say of a weight alone, that they say of it in every direction
_LEAST_VAR = 1e-10  # of a change, in units where outcomes and latents have variance 1


@torch.no_grad()
def shared_errors(
    tree: Tree, nodes: Tensor, rows: NodeRows, root_scale: Tensor, change_var: Tensor
) -> Tensor:
    """Covariances of what is known of the weights at nodes without their rows, (E, 1, QW, QW).

    Those between different latents are left out: what these share is within a node's rows.

    Args:
        tree: The tree.
        nodes: Those with rows, (E,).
        rows: What these say of all weights together.
        root_scale: Prior standard deviations of the root's weights, (Q, W).
        change_var: Variances of the changes, (A, Q, W).
    """
    whole = _node_cov(tree, nodes, rows, root_scale, change_var)
    cov = without_rows(whole, rows.precision)
    latent = torch.arange(root_scale.shape[1], device=cov.device).repeat(root_scale.shape[0])
    alike = latent.unsqueeze(0) == latent.unsqueeze(1)
    return torch.where(alike, 0.5 * (cov + cov.mT), 0.0)


@torch.no_grad()
def widening(
    tree: Tree,
    nodes: Tensor,
    rows: NodeRows,
    told: Potential,
    root_scale: Tensor,
    change_var: Tensor,
    *,
    of_latents: bool,
) -> Tensor:
    """Variances of weights jointly over those of each alone, (Q, W): geometric means over nodes.

    Args:
        tree: The tree.
        nodes: Those with rows, (E,).
        rows: What these say of weights that are taken jointly: of an outcome's, or of a latent's
            for all outcomes, with the other latents integrated over what is known of them, as they
            are in what each tree was told.
        told: What each weight's tree was told, (E, Q, W).
        root_scale: As of :func:`shared_errors`.
        change_var: Likewise.
        of_latents: It is a latent's, (E, W, Q, Q), and not an outcome's, (E, Q, W, W).
    """
    spreads = (root_scale.mT, change_var.mT) if of_latents else (root_scale, change_var)
    together = _node_var(tree, nodes, rows, *spreads)
    alone = _node_var(tree, nodes, NodeRows.apart(told), root_scale, change_var)
    ratio = (together.mT if of_latents else together) / alone.reshape(told.lam.shape)
    return ratio.log().mean(0).exp()


def without_rows(cov: Tensor, precision: Tensor) -> Tensor:
    """Covariances (E, G, P, P) of what is known without rows of these precisions.

    Without a difference of precisions, which may be larger than it by more digits than there are,
    as where an outcome has next to no noise.
    """
    one = torch.eye(cov.shape[-1]).to(cov)
    found, singular = torch.linalg.solve_ex(one - cov @ precision, cov)
    found = 0.5 * (found + found.mT)
    less = (found - cov).diagonal(dim1=-2, dim2=-1) < -_ROUNDING * cov.diagonal(dim1=-2, dim2=-1)
    failed = (singular > 0) | (torch.linalg.cholesky_ex(found)[1] > 0) | less.any(-1)
    failed |= ~torch.isfinite(found).all(-1).all(-1)
    if failed.any():
        found[failed] = _without_most(cov[failed], precision[failed])
    return found


def _without_most(cov: Tensor, precision: Tensor) -> Tensor:
    """The same where rows say nearly all that is known: by their share in each direction."""
    scale = cov.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).sqrt()
    unit = cov / scale.unsqueeze(-1) / scale.unsqueeze(-2)
    values, axes = torch.linalg.eigh(0.5 * (unit + unit.mT))
    root = scale.unsqueeze(-1) * axes * values.clamp(min=_LEAST_SHARE).sqrt().unsqueeze(-2)
    share, turned = torch.linalg.eigh(root.mT @ precision @ root)
    root = root @ turned / (1 - share).clamp(min=_LEAST_SHARE).sqrt().unsqueeze(-2)
    return root @ root.mT


def _node_cov(
    tree: Tree, nodes: Tensor, rows: NodeRows, root_scale: Tensor, change_var: Tensor
) -> Tensor:
    """Covariances (E, G, P, P) of weights that change normally."""
    shape = rows.linear.shape[1:]
    scale, precision = root_scale.reshape(shape), 1 / change_var.clamp(min=_LEAST_VAR)
    loc, precision = torch.zeros_like(scale), precision.reshape(-1, *shape)
    return joint_passes(tree, loc, scale, precision, (nodes, rows)).cov[nodes]


def _node_var(
    tree: Tree, nodes: Tensor, rows: NodeRows, root_scale: Tensor, change_var: Tensor
) -> Tensor:
    """Their variances alone, (E, G, P), some groups at a time."""
    _, num_groups, size = rows.linear.shape
    few = max(1, _ELEMENTS // (tree.num_nodes * size * size))
    root_scale, change_var = (part.flatten(-2) for part in (root_scale, change_var))
    found = []
    for start in range(0, num_groups, few):
        some = slice(start, min(start + few, num_groups))
        weights = slice(some.start * size, some.stop * size)
        part = rows.groups(some).steadied(_STEADY)
        cov = _node_cov(tree, nodes, part, root_scale[weights], change_var[:, weights])
        found.append(cov.diagonal(dim1=-2, dim2=-1))
    return torch.cat(found, 1)
