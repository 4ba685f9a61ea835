"""Where rows to predict are: at nodes of the tree, at a new leaf, or nobody knows where."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tbr.data import RowOrder, align_env
from pyro_tbr.errors import DataError, TreeError
from pyro_tbr.heads.moments import NodeMoments
from pyro_tbr.posterior.view import PosteriorView, weights_at

_DRAW_SEED = 20_405_20482  # their own, so the same call gives the same numbers
_CHANGE_SEED = 66_260_70150


@dataclass(frozen=True)
class NewLeaf:
    """A leaf that is not in the tree: one new arc under a node.

    Attributes:
        name: What it is called.
        parent: Node of the tree it hangs from.
        length: Length of its arc, where the prior uses lengths; ``None``: the tree's mean.
    """

    name: Hashable
    parent: Hashable
    length: float | None = None


@dataclass(frozen=True, eq=False)
class Places:
    """Where rows are.

    Attributes:
        nodes: Nodes of the tree that rows are at, or may be at, (n,).
        position: Which of these each row is at, (N,); ``None``: each row may be at any.
        share: With what probability, (n,), where that is not known; else (1,), 1.
        relative_length: Length of one more arc behind the nodes, over the mean of the tree's, (1,);
            ``None``: there is none.
    """

    nodes: Tensor
    position: Tensor | None
    share: Tensor
    relative_length: Tensor | None = None

    def moments(self, view: PosteriorView) -> NodeMoments:
        """Mean and variance of the weights at the nodes in the model's units, (n, W, Q) each."""
        mean, var = (part[self.nodes].cpu().double() for part in view.guide.node_moments())
        if self.relative_length is not None:
            # Changes go both ways alike, so their mean is zero.
            var = var + view.guide.change_var(self.relative_length).cpu()
        # What is known exactly has a variance of rounding errors.
        return NodeMoments(mean, var.clamp(min=0))

    def cov(self, view: PosteriorView) -> Tensor | None:
        """Covariances of the weights at the nodes, (n, Q, W, W); ``None``: they are independent."""
        cov = view.guide.node_cov(self.nodes)
        if cov is None:
            return None
        cov = cov.cpu().double()
        if self.relative_length is not None:
            cov = cov + view.guide.change_cov(self.relative_length).cpu().double()
        return cov

    def draws(
        self, view: PosteriorView, num_draws: int, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weights behind quantiles and samples, and the likelihood's own parameters, model's units.

        Weights are those at the nodes, (S, n, W, Q), or at the one node that each draw picks where
        it is not known, (S, 1, W, Q); parameters likewise, or (S, 1, ...) where nodes share them.
        """
        draws = kept_draws(view, num_draws, seed)
        weights = weights_at(view.tree, self.nodes, draws)
        generator = torch.Generator().manual_seed(_CHANGE_SEED + seed)
        if self.relative_length is not None:
            prior = view.model.prior
            values = {name: value.to(prior.root_loc) for name, value in draws.items()}
            change = prior.draw_changes(values, generator, self.relative_length)["deltas"]
            weights = weights + view.guide.in_design(change, draws).cpu().double()
            draws = view.model.likelihood.with_new_node(draws, generator)
        nuisance = view.nuisance_at(draws, self.noise_nodes(view), weights)
        if self.position is not None:
            return weights, nuisance
        pick = torch.multinomial(self.share, num_draws, replacement=True, generator=generator)
        each = torch.arange(num_draws)
        nuisance = {
            name: v[each, pick].unsqueeze(1) if v.shape[1] > 1 else v
            for name, v in nuisance.items()
        }
        return weights[each, pick].unsqueeze(1), nuisance

    def noise_nodes(self, view: PosteriorView) -> Tensor:
        """The nodes (n,) as the likelihood counts them: V is one that the tree has not."""
        known = self.relative_length is None
        return self.nodes if known else torch.full_like(self.nodes, view.tree.num_nodes)


def kept_draws(view: PosteriorView, num_draws: int, seed: int) -> dict[str, Tensor]:
    """Draws without gates in the model's units that are kept, as many calls ask for the same."""

    def make() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(_DRAW_SEED + seed)
        draws = view.draws(num_draws, generator)
        draws.pop("gates", None)  # large, and not asked for
        return draws

    return view.draws_kept.get((num_draws, seed), make)


def places_of(view: PosteriorView, env: Any, order: RowOrder) -> Places:
    """Where rows are by what the user says of them; ``None``: where the rows of the fit were.

    Raises:
        TreeError: A label that the tree has not.
        DataError: A new leaf that is none, or of no length.
    """
    tree = view.tree
    if env is None:
        nodes = view.row_counts.cpu().nonzero()[:, 0]
        share = view.row_counts.cpu()[nodes].double()
        return Places(nodes, None, share / share.sum())
    if isinstance(env, NewLeaf):
        length, one = _relative_length(view, env), torch.zeros(order.size, dtype=torch.int64)
        return Places(torch.tensor([tree.index(env.parent)]), one, torch.ones(1).double(), length)
    try:
        nodes, position = align_env(tree, env, order).unique(return_inverse=True)
    except TreeError as error:
        if not isinstance(env, str):
            raise
        raise TreeError(
            f"{error}; for a leaf that the tree has not: NewLeaf({env!r}, parent=...)"
        ) from error
    return Places(nodes, position, torch.ones(1).double())


def _relative_length(view: PosteriorView, leaf: NewLeaf) -> Tensor:
    """Length of a new leaf's arc over the mean of the tree's, (1,)."""
    tree = view.tree
    if leaf.name in tree.nodes:
        raise DataError(
            f"NewLeaf: {leaf.name!r} is a node of the tree already: predict(x, {leaf.name!r}), or "
            "another name"
        )
    if leaf.length is not None and not leaf.length >= 0:
        raise DataError(f"NewLeaf: length={leaf.length!r} must be 0 or more")
    if leaf.length is None or not view.model.prior.use_lengths:
        return torch.ones(1)
    known = torch.tensor(tree.require_lengths(), dtype=torch.float64)
    return torch.tensor([leaf.length / known.mean().item()])
