"""A likelihood's own parameters: Pyro sites, factors of q, and as nodes and rows see them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator, Tensor

from pyro_tbr.heads.hyper.base import Described, HyperFactor, HyperFactors, by_name


class Parameters(Described):
    """What has parameters of its own (*nuisance*), some of which may differ between nodes.

    Attributes:
        by_node: Some of its parameters are a node's own.
        by_weights: What rows see depends on the weights of their node, beyond the predictor.
    """

    by_node: bool = False
    by_weights: bool = False

    @property
    def moves_at_nodes(self) -> bool:
        """Something of it is a node's own, to be moved with its weights whatever is held."""
        return self.by_node or self.by_weights

    def factors(self) -> dict[str, HyperFactor]:
        """A new factor of q for each of its parameters, by site name."""
        return {hyper.name: hyper.factor() for hyper in self.hyperparameters()}

    def sample_nuisance(self) -> dict[str, Tensor]:
        """Pyro sites of its parameters, by name."""
        return {hyper.name: hyper() for hyper in self.hyperparameters()}

    def guide_sites(self, nuisance: HyperFactors) -> None:
        """Pyro sites of the factors of its parameters."""
        for factor in nuisance.values():
            factor()

    def draw_nuisance(
        self, nuisance: HyperFactors, num_draws: int, generator: Generator
    ) -> dict[str, Tensor]:
        """Draws (S, ...) of its parameters from their factors, by site name."""
        factors = by_name(nuisance)
        return {name: factor.sample(num_draws, generator) for name, factor in factors.items()}

    def know_nodes(self, nuisance: HyperFactors, nodes: Tensor, *, only: bool = False) -> None:
        """Says which nodes have rows too, (V,) bool; for parameters that differ between nodes."""

    def forget_nodes(self, nuisance: HyperFactors) -> None:
        """Takes back what was learnt of single nodes, for parameters that differ between them."""

    def at_nodes(self, nuisance: HyperFactors, index: Tensor) -> HyperFactors:
        """The factors as rows at some nodes (n,) see them; the same where nodes share them.

        A node V is one that the tree has not.
        """
        del index
        return nuisance

    def with_new_node(
        self, values: Mapping[str, Tensor], generator: Generator
    ) -> dict[str, Tensor]:
        """Draws (S, ...) that have one more node, number V, if nodes have values of their own."""
        del generator
        return dict(values)

    def values_at_nodes(self, values: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """Values (*B, ...) of its parameters as rows at nodes (N,) see them, for ``forward``."""
        del index
        return dict(values)
