"""Baselines that are a ``fit`` of ours without the parts that make it ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_tbr.errors import IdentificationWarning
from pyro_tbr.evaluation.baselines.base import (
    Baseline,
    Problem,
    Rule,
    leading_components,
    with_intercept,
)
from pyro_tbr.heads.priors import ArcPrior, GaussianPrior
from pyro_tbr.inference import FitOptions, fit
from pyro_tbr.models import TreeModel
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.prediction import linear_predictor
from pyro_tbr.posterior.view import weights_at

_NUM_DRAWS = 2000


@dataclass(frozen=True)
class DenseTree(Baseline):
    """Random slopes along the tree: every weight of the features changes on every arc.

    The changes are normal, with one scale for all slopes and one for the intercept, learnt: the
    mixed model of comparative biology, fitted by ``TreeModel(encoder="identity",
    prior=GaussianPrior(pooled=True))`` to the whitened leading components of the features (at most
    50), which are a basis of the features where these are no more. A scale for each slope predicts
    worse (``examples/experiments/RESULTS.md``, baselines).

    A held-out leaf keeps its ancestor's weights plus changes as the prior expects them.

    Attributes:
        options: Of the fit.
    """

    options: FitOptions | None = None

    def _learn(self, problem: Problem) -> Rule:
        to_design = leading_components(problem)
        return identity_rule(problem, to_design, GaussianPrior(pooled=True), "tree", self.options)


@dataclass(frozen=True)
class SparseTree(Baseline):
    """:func:`pyro_tbr.fit` itself, in the face of the baselines, so one loop compares all.

    Features and outcomes are standardised before; log scores are of the mixture over 2,000 draws.

    Attributes:
        prior: Of the changes; ``None``: spike and slab, all learnt.
        guide: As in ``fit``.
        options: Of the fit.
    """

    has_latents: ClassVar[bool] = True

    prior: ArcPrior | None = None
    guide: str = "tree"
    options: FitOptions | None = None

    def _learn(self, problem: Problem) -> Rule:
        model = TreeModel(problem.tree, problem.latent_dim, problem.encoder, prior=self.prior)
        posterior = _fitted(problem, model, problem.x, self.guide, self.options)
        return PosteriorRule(posterior, posterior.latents, problem.seed, learnt=True)


class PosteriorRule(Rule):
    """Draws of a posterior's weights at the nodes.

    Args:
        posterior: Fitted to standardised outcomes.
        to_latents: From standardised features to its latents.
        seed: Of the draws.
        learnt: The latents were learnt.
    """

    def __init__(
        self,
        posterior: Posterior,
        to_latents: Callable[[Tensor], Tensor],
        seed: int,
        *,
        learnt: bool = False,
    ) -> None:
        self.posterior, self.to_latents = posterior, to_latents
        self.latents = to_latents if learnt else None
        draws = posterior.draws(_NUM_DRAWS, torch.Generator().manual_seed(seed))
        every = torch.arange(posterior.tree.num_nodes)
        weights = weights_at(posterior.tree, every, draws)
        self.node_weights = posterior.user_weight_draws(weights)  # (S, V, W, Q)
        own = posterior.nuisance_at(posterior.user_draws(draws), every, weights)
        self.noise = own["noise_scale"]
        self.notes = {"noise_var": self.noise.square().mean((0, 1)).tolist()}
        # In the unit of standardised outcomes; exact means rather than those of the draws.
        self.deltas = posterior.user_deltas().mean
        self.latent_names = posterior.latent_names

    @torch.no_grad()
    def components(self, x: Tensor, env_index: Tensor) -> tuple[Tensor, Tensor]:
        """A normal for each draw."""
        mean = linear_predictor(with_intercept(self.to_latents(x)), self.node_weights, env_index)
        noise = self.noise if self.noise.shape[1] == 1 else self.noise[:, env_index]
        return mean, noise.expand_as(mean)


def identity_rule(
    problem: Problem,
    to_latents: Callable[[Tensor], Tensor],
    prior: ArcPrior,
    guide: str,
    options: FitOptions | None,
) -> PosteriorRule:
    """A fit to latents that are given by a fixed map of the features."""
    z = to_latents(problem.x)
    model = TreeModel(problem.tree, z.shape[1], "identity", prior=prior)
    return PosteriorRule(_fitted(problem, model, z, guide, options), to_latents, problem.seed)


def _fitted(
    problem: Problem, model: TreeModel, x: Tensor, guide: str, options: FitOptions | None
) -> Posterior:
    labels = [problem.tree.nodes[i] for i in problem.env_index.tolist()]
    with warnings.catch_warnings():
        # A prediction is the same in any basis of the latents.
        warnings.simplefilter("ignore", IdentificationWarning)
        how: dict[str, Any] = {"guide": guide, "groups": problem.groups, "options": options}
        return fit(model, x, problem.y, labels, seed=problem.seed, progress=False, **how)
