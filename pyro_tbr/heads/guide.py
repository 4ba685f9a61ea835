"""What every guide offers, whatever it factorises."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.hyper.factors import HyperFactor, ScaleFactor
from pyro_tbr.heads.likelihoods import NoiseMoments
from pyro_tbr.heads.local_params import LocalParamsModule
from pyro_tbr.heads.priors.delta_factors import DeltaMoments
from pyro_tbr.heads.priors.prior_factors import PriorFactors, hyper_factor
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.models.tree_model import TreeModel
from pyro_tbr.tree import Tree, descendant_sum


class NodeMoments(NamedTuple):
    """Means and variances of the weights at every node, each (V, W, Q)."""

    mean: Tensor
    var: Tensor


def predictor_moments(design: Tensor, env_index: Tensor, moments: NodeMoments) -> NodeMoments:
    """Mean and variance of the linear predictor of each row, each (N, Q).

    Args:
        design: Latents and intercept, (N, W).
        env_index: Node of each row, (N,).
        moments: Of the weights at every node.
    """
    mean = torch.einsum("nw,nwq->nq", design, moments.mean[env_index])
    var = torch.einsum("nw,nwq->nq", design.square(), moments.var[env_index])
    return NodeMoments(mean, var)


@torch.no_grad()
def expansion_point(guide: Guide, design: Tensor, env_index: Tensor) -> Tensor:
    """Root mean square of each row's predictor, (N, Q): there a binary likelihood's bound is best.

    Args:
        guide: Of the weights.
        design: Latents and intercept, (N, W).
        env_index: Node of each row, (N,).
    """
    moments = guide.node_moments()
    mean, var = predictor_moments(design.to(moments.mean), env_index, moments)
    return (mean.square() + var).sqrt()


class Guide(LocalParamsModule):
    """An approximate posterior of everything but the encoder; abstract.

    A guide holds hyperparameter factors of its own; what it says of root weights and deltas is the
    business of its class. All parameters exist after construction.

    Args:
        model: A built model.
        informed_nodes: (V,) bool, nodes that have rows; ``None``: all.

    Attributes:
        informed_arcs: (A,) bool, arcs with rows below them. The others keep their prior, exactly.
        joint_hyper: Sites of hyperparameters that are held jointly with the weights; what their
            factors say is matched to that, for reports.
    """

    joint_hyper: frozenset[str] = frozenset()

    def __init__(self, model: TreeModel, informed_nodes: Tensor | None = None) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: a guide does not own its model
        nodes = torch.ones(model.tree.num_nodes, dtype=torch.bool)
        nodes = nodes if informed_nodes is None else informed_nodes.cpu()
        self.register_buffer("informed_arcs", informed_arcs(model.tree, nodes))
        self.hyper = PriorFactors(model.prior)
        noise = model.likelihood.noise_scale
        self.noise = None if noise is None else hyper_factor(noise)

    @property
    def model(self) -> TreeModel:
        """The model this is a guide of."""
        return self._model[0]

    @property
    def has_gates(self) -> bool:
        """Changes have gates, so that inclusion probabilities mean something."""
        return hasattr(self.model.prior, "inclusion_rate")

    def _match_dtype(self) -> None:
        """Parameters in the model's dtype; potentials along the tree stay in double precision."""
        dtype = self.model.prior.root_loc.dtype
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def noise_moments(self) -> NoiseMoments | None:
        """Moments of the noise scale, or ``None`` where the likelihood has none."""
        if self.noise is None:
            return None
        assert isinstance(self.noise, ScaleFactor)
        return NoiseMoments(self.noise.mean_power(-2.0), self.noise.mean_log())

    def noise_precision(self) -> Tensor:
        """E[1 / noise variance] of each outcome, (Q,); 1 where the likelihood has no noise."""
        noise, prior = self.noise_moments(), self.model.prior
        return (
            prior.root_loc.new_ones(prior.num_outcomes) if noise is None else noise.inverse_square
        )

    def hyper_kl(self) -> Tensor:
        """KL of the hyperparameters that have factors of their own to their hyperpriors."""
        factors = [*self._own_factors().values(), *([] if self.noise is None else [self.noise])]
        return sum((factor.kl().sum() for factor in factors), start=torch.zeros(()))

    def _own_factors(self) -> dict[str, HyperFactor]:
        return {
            name: factor  # type: ignore[misc]
            for name, factor in self.hyper.items()
            if name not in self.joint_hyper
        }

    def node_moments(self) -> NodeMoments:
        """Means and variances of the weights at every node, differentiable."""
        raise NotImplementedError

    def delta_moments(self) -> DeltaMoments:
        """Inclusion probabilities and moments of the deltas."""
        raise NotImplementedError

    def kl(self) -> Tensor:
        """KL of q to the prior, all sites but the rows' own, differentiable."""
        raise NotImplementedError

    def start(self, root: Tensor, deltas: Tensor, *, sparse: bool = True) -> None:
        """Starts at point estimates.

        Args:
            root: Root weights, (W, Q).
            deltas: (A, W, Q).
            sparse: The deltas are sparse, so hyperparameters start from them too.
        """
        raise NotImplementedError

    def update(
        self,
        stats: Statistics,
        *,
        sweeps: int,
        learn_hyper: bool = True,
        learn_noise: bool = True,
        rough: bool = False,
    ) -> int:
        """Moves q to its optimum given the rows' statistics, the encoder held fixed.

        Args:
            stats: Of all rows.
            sweeps: At most this many rounds.
            learn_hyper: Update the hyperparameters too.
            learn_noise: Update the noise scale too.
            rough: Statistics will change again, so leave out what only the last update needs.

        Returns:
            Rounds it took.
        """
        raise NotImplementedError

    def elbo(self, stats: Statistics) -> Tensor:
        """ELBO of all rows, from their statistics."""
        moments = self.node_moments()
        lik = stats.expected_log_lik(moments.mean, moments.var, self.noise_moments())
        return lik - self.kl()

    def sample(self, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Joint draws by site name, draws first; needs no Pyro and no global generator."""
        raise NotImplementedError

    def with_prior_changes(
        self, draws: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The draws, with changes on arcs without rows below drawn from the prior.

        There the spread of the hyperparameters is much of the uncertainty, so it goes in.
        """
        prior = self.model.prior.draw_changes(draws, generator)
        known = self.informed_arcs.reshape(-1, 1, 1)
        return draws | {name: torch.where(known, draws[name], new) for name, new in prior.items()}

    def sample_hyper(self, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws of the hyperparameters that have factors of their own, noise included."""
        draws = {
            name: factor.sample(num_samples, generator)
            for name, factor in self._own_factors().items()
        }
        if self.noise is not None:
            draws["noise_scale"] = self.noise.sample(num_samples, generator)
        return draws


def informed_arcs(tree: Tree, informed_nodes: Tensor) -> Tensor:
    """(A,) bool: arcs whose child, or a node below it, is informed (V,)."""
    below = descendant_sum(tree, informed_nodes.double()[:, None])
    return below[1:, 0] > 0
