"""The activity of arcs in chains, where an arc may change several outcomes together.

Given the activity outcomes are independent, as where gates are separate, so all other steps are the
same; values of the hyperparameters then hold ``active``, (C, A, W, 1) of zeros and ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.hyper import HyperFactor
from pyro_tbr.heads.priors.gate_levels import level_logs
from pyro_tbr.heads.sampling.hyper_steps import ChainState

Values = dict[str, Tensor]
LEVELS = ("inclusion_rate", "sharing")  # hyperparameters that the activity depends on


class Activity:
    """Steps of the activity.

    Args:
        prior: A built spike-and-slab prior whose gates are at two levels.
        informed: Arcs with rows below, (A,) bool.
        generator: On the CPU.
    """

    def __init__(self, prior: Any, informed: Tensor, generator: Generator) -> None:
        self.prior, self.generator = prior, generator
        self.known = informed.reshape(-1, 1, 1) & prior.may_change()  # (A, 1, 1)

    def draw(self, values: Values, classes: Tensor) -> None:
        """Puts the activity given the gates, from classes (C, Q, A, W), into the values."""
        active, within = self.prior.levels(values)
        closed = (1 - within).expand(*within.shape[:-1], classes.shape[1])
        follow = active * closed.prod(-1, keepdim=True)
        silent = follow / (1 - active + follow)
        open_ = (classes > 0).any(1).unsqueeze(-1)
        shape = torch.broadcast_shapes(silent.shape, open_.shape)
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        values["active"] = (open_ | (uniform < silent)).double()

    def log_prior(self, values: Values) -> Tensor:
        """Log prior probability of the activity, (..., W), from values (..., C, *shape)."""
        prob = self.prior.arc_inclusion_prob(values["inclusion_rate"])
        logs = level_logs(prob, values["sharing"].unsqueeze(-3))
        each = torch.where(values["active"] > 0, logs.active, logs.inactive)
        return torch.where(self.known, each, 0.0).sum((-1, -3))

    def with_prior(
        self, log_lik: Callable[[Tensor], Tensor], values: Values, factor: HyperFactor
    ) -> Callable[[Tensor], Tensor]:
        """Log likelihood of rate or sharing, of their real values, with the activity's prior."""

        def whole(real: Tensor) -> Tensor:
            now = {**values, factor.hyper.name: factor.to_support(real)}
            return log_lik(real) + self.log_prior(now).unsqueeze(-1)

        return whole

    def gates_log_lik(self, state: ChainState, factor: HyperFactor) -> Callable[[Tensor], Tensor]:
        """Log likelihood of rate or sharing given the gates, the activity summed out."""
        values, gates = state.values, (state.classes > 0).permute(0, 2, 3, 1)

        def log_lik(real: Tensor) -> Tensor:
            now = {**values, factor.hyper.name: factor.to_support(real)}
            prob = self.prior.arc_inclusion_prob(now["inclusion_rate"])
            logs = level_logs(prob, now["sharing"].unsqueeze(-3))
            each = torch.where(gates, logs.open, logs.closed).sum(-1, keepdim=True)
            each = logs.active + each
            none = torch.logaddexp(logs.inactive, each)
            each = torch.where(gates.any(-1, keepdim=True), each, none)
            return torch.where(self.known, each, 0.0).sum((-1, -3)).unsqueeze(-1)

        return log_lik

    def moved(self, active: Tensor, latent: int) -> Tensor:
        """Places (G, ...) of one latent's activity, around a centre next to the first of them."""
        rate = min(0.5, 1 / max(1, int(self.known.sum())))
        own = active[..., latent, 0] > 0

        def flipped(places: Tensor) -> Tensor:
            uniform = torch.rand(places.shape, generator=self.generator, dtype=torch.float64)
            return places ^ (uniform < rate)

        centre = flipped(own[0])
        new = active.clone()
        new[1:, ..., latent, 0] = flipped(centre.expand_as(own[1:])).double()
        return new
