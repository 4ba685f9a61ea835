"""What every guide offers, whatever it factorises."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper.factors import HyperFactor, RateFactor, ScaleFactor, quadrature
from pyro_tbr.heads.likelihoods import NoiseMoments
from pyro_tbr.heads.local_params import LocalParamsModule
from pyro_tbr.heads.priors import HorseshoePrior, SpikeSlabPrior
from pyro_tbr.heads.priors.delta_factors import DeltaMoments
from pyro_tbr.heads.priors.prior_factors import PriorFactors, hyper_factor
from pyro_tbr.heads.priors.prior_moments import scale_factor
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.models.tree_model import TreeModel
from pyro_tbr.tree import Tree, descendant_sum

_SITE_ELEMENTS = 500_000  # draws of arcs are made in blocks of about this size
_PATH_DRAWS, _PATH_SEED = 4000, 141_421  # behind a path's inclusion where there is no closed form
_INFORMED = ("informed", "informed_arcs")  # buffers that say where rows are


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
    def head(self) -> TreeModel:
        """What this is a guide of."""
        return self._model[0]

    @property
    def nuisance(self) -> Mapping[str, HyperFactor]:
        """Factors of the likelihood's own parameters by site name."""
        return {} if self.noise is None else {"noise_scale": self.noise}

    @property
    def has_gates(self) -> bool:
        """Deltas have gates, so that they are included or not."""
        return isinstance(self.head.prior, SpikeSlabPrior)

    @property
    def closed_form(self) -> bool:
        """A change is a point at zero and a normal, so its quantiles have a closed form."""
        prior = self.head.prior
        return not isinstance(prior, HorseshoePrior) and not prior.wide_spike

    def settings(self) -> dict[str, Any]:
        """Constructor arguments but the first two, for files and copies."""
        return {}

    @torch.no_grad()
    def knowing(self, informed_nodes: Tensor) -> Self:
        """A copy in the same state that knows which nodes have rows now, (V,) bool."""
        new = type(self)(self.head, informed_nodes, **self.settings())
        new = new.to(self.informed_arcs.device)
        new.copy_state(self)
        return new

    def copy_state(self, other: Guide) -> None:
        """Goes into the state of another guide of this class, but for where rows are."""
        own = self.state_dict()
        state = {
            name: own[name] if name.split(".")[-1] in _INFORMED else value.clone()
            for name, value in other.state_dict().items()
        }
        self.load_state_dict(state, assign=True)  # dtypes included

    @torch.no_grad()
    def log_odds(self) -> Tensor:
        """Posterior log odds of inclusion, (A, W, Q), double precision and finite.

        They are in the order of the PIPs, and differ where these round to 1. NaN without gates.
        """
        inclusion = self.delta_moments().inclusion.double()
        return logit(inclusion) if self.has_gates else torch.full_like(inclusion, torch.nan)

    @torch.no_grad()
    def path_inclusion(self, arcs: Tensor) -> Tensor:
        """Probability that some of these arcs (n,) changed, (W, Q): here a share of draws."""
        generator = torch.Generator().manual_seed(_PATH_SEED)
        blocks = self.sample_arcs("gates", _PATH_DRAWS, generator)
        return torch.cat([block[:, arcs].any(1) for block in blocks]).double().mean(0)

    def shrinkage(self) -> Tensor:
        """Share of each change that a horseshoe prior takes away, posterior mean, (A, W, Q).

        Raises:
            DataError: The prior is no horseshoe, or this guide does not hold its scales.
        """
        prior = self.head.prior
        if isinstance(prior, HorseshoePrior):
            raise DataError("shrinkage() needs the scales along the tree: fit with guide='tree'")
        raise DataError(
            f"shrinkage() is a horseshoe's, {type(prior).__name__} has none: use pips() or deltas()"
        )

    @torch.no_grad()
    def sample_arcs(
        self, site: str, num_samples: int, generator: torch.Generator
    ) -> Iterator[Tensor]:
        """Draws of a site of the arcs in blocks (s, A, W, Q), so that memory stays bounded.

        Args:
            site: ``gates`` or ``deltas``.
            num_samples: Over all blocks.
            generator: Randomness.
        """
        size = max(1, _SITE_ELEMENTS // math.prod(self.head.prior.delta_shape))
        for block in torch.arange(num_samples).split(size):
            yield self.sample(len(block), generator)[site]

    @torch.no_grad()
    def change_var(self, relative_length: Tensor) -> Tensor:
        """Variance of a change along new arcs, hyperparameters integrated, (A', W, Q), double.

        Args:
            relative_length: Lengths of the arcs over the mean of the tree's, (A',).
        """
        prior, hyper = self.head.prior, self.hyper
        shape = (len(relative_length), prior.num_weights, prior.num_outcomes)
        slab = scale_factor(hyper, "slab_scale")
        if isinstance(prior, HorseshoePrior):
            whole, weights = quadrature(*_log_normal(scale_factor(hyper, "global_scale")))
            other, _ = quadrature(*_log_normal(slab))
            whole, other = whole.exp().unsqueeze(1), other.exp().unsqueeze(0)
            # E[t^2 c^2 / (t^2 + c^2)] for t half-Cauchy.
            square = whole * other.square() / (whole + other)
            both = weights.unsqueeze(1) * weights
            return torch.einsum("ab,abwq->wq", both, square).expand(shape).double()
        square = slab.mean_power(2.0)
        if isinstance(prior, SpikeSlabPrior):
            rate = hyper["inclusion_rate"]
            assert isinstance(rate, RateFactor)
            rates, weights = rate.grid()
            each = prior.arc_inclusion_prob(rates, relative_length)
            prob = torch.einsum("t,tawq->awq", weights, each)
            square = prob * square
            if prior.wide_spike:
                spike = scale_factor(hyper, "spike_scale").mean_power(2.0)
                square = square + (1 - prob) * prior.changing(relative_length) * spike
        return square.expand(shape).double()

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


def logit(prob: Tensor) -> Tensor:
    """Finite also at 0 and 1; double precision."""
    prob = prob.double()
    return prob.clamp(min=1e-300).log() - (1 - prob).clamp(min=1e-16).log()


def _log_normal(factor: ScaleFactor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the logarithm."""
    loc, var = factor.log_moments()
    return loc, var.sqrt()
