"""What every prior on changes has: root weights, a scale in two units, how it is built."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper.hyperparameters import (
    Hyperparameter,
    PositiveScale,
    as_fixed,
    spread_fixed,
)
from pyro_tbr.heads.local_params import LocalParamsModule
from pyro_tbr.tree import Tree


class ArcPrior(LocalParamsModule):
    """A prior on root weights (W, Q) and arc deltas (A, W, Q); abstract.

    ``W`` counts the weights of one outcome: the latents, then the intercept if there is one.
    """

    halves = False  # whether changes come from a slab in two halves
    wide_spike = False  # whether there are small changes where gates are off
    use_lengths = False  # whether the law of a change depends on the arc's length

    def __init__(self, **description: Any) -> None:
        super().__init__()
        self.description = description
        self.root_scale_value = as_fixed(description["root_scale"], "root_scale")

    def build(
        self,
        tree: Tree,
        num_weights: int,
        num_outcomes: int,
        *,
        num_latents: int | None = None,
        outcome_scale: Tensor | None = None,
        root_loc: Tensor | None = None,
        standard_error: float = 0.1,
    ) -> ArcPrior:
        """This prior for a tree and sizes, as a new module that has all its buffers.

        Args:
            tree: The environments.
            num_weights: W.
            num_outcomes: Q.
            num_latents: K; W where absent. What comes behind is the intercept.
            outcome_scale: (Q,), the user's units in one unit of the outcomes the model sees.
            root_loc: (W, Q), prior mean of the root weights in the model's units; zero if absent.
            standard_error: Typical standard error of one leaf's weight in the model's units; sets
                the horseshoe's global scale.
        """
        built = copy.deepcopy(self)
        unit = torch.ones(num_outcomes) if outcome_scale is None else outcome_scale
        built.unit = unit.to(torch.get_default_dtype())
        built.num_arcs, built.num_weights, built.num_outcomes = (
            tree.num_arcs,
            num_weights,
            num_outcomes,
        )
        built.num_latents = num_weights if num_latents is None else num_latents
        loc = torch.zeros(num_weights, num_outcomes) if root_loc is None else root_loc
        built.register_buffer("root_loc", loc.to(torch.get_default_dtype()))
        built.root_scale = built._scale("root_scale", built.root_scale_value, median=1.0)
        built._build_deltas(tree, standard_error)
        return built

    def _scale(self, name: str, fixed: Tensor | None, *, median: float) -> PositiveScale:
        """A scale of shape (W, 1) where learnt, (W, Q) where the user fixed it."""
        if fixed is None:
            return PositiveScale(name, (self.num_weights, 1), None, median=median)
        shape = (self.num_weights, self.num_outcomes)
        return PositiveScale(name, shape, spread_fixed(fixed, shape, name) / self.unit)

    def _build_deltas(self, tree: Tree, standard_error: float) -> None:
        raise NotImplementedError

    @property
    def delta_shape(self) -> tuple[int, int, int]:
        """(A, W, Q)."""
        return (self.num_arcs, self.num_weights, self.num_outcomes)

    def hyperparameters(self) -> list[Hyperparameter]:
        """Hyperparameters in the order of their sites."""
        return [module for module in self.children() if isinstance(module, Hyperparameter)]

    def forward(self) -> tuple[Tensor, Tensor]:
        """Pyro sites; returns root weights (W, Q) and deltas (A, W, Q)."""
        root = dist.Normal(self.root_loc, self.root_scale()).to_event(2)
        return pyro.sample("root_weights", root), self._sample_deltas()

    def _sample_deltas(self) -> Tensor:
        raise NotImplementedError

    def draw_changes(
        self,
        values: dict[str, Tensor],
        generator: torch.Generator,
        relative_length: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Changes along arcs nothing is known of, given draws of the hyperparameters.

        Args:
            values: Hyperparameters by site name, draws first.
            generator: Randomness.
            relative_length: Lengths of the arcs over the mean of the tree's, (A',); the tree's own
                arcs where absent.

        Returns:
            ``deltas`` and, where the prior has them, ``gates``, each (S, A', W, Q).
        """
        raise NotImplementedError

    def _noise(self, num_samples: int, num_arcs: int, generator: torch.Generator) -> Tensor:
        shape = (num_samples, num_arcs, self.num_weights, self.num_outcomes)
        noise = torch.randn(shape, generator=generator, dtype=self.root_loc.dtype)
        return noise.to(self.root_loc.device)

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self.description.items() if v is not None)
        return f"{type(self).__name__}({given})"


def share_of(expected: float, num_arcs: int) -> float:
    """Expected share of changed arcs, refused where it is no probability."""
    if not 0 < expected < num_arcs:
        raise DataError(
            f"expected_num_nonzero={expected:g} must be above 0 and below the number of arcs, "
            f"{num_arcs}: it counts changed arcs per latent and outcome"
        )
    return expected / num_arcs
