"""The guide that is exact along the tree, and mean field across weights (latents) and outcomes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.guides.base import Guide, NodeMoments
from pyro_tbr.guides.delta_factors import DeltaMoments, NormalDeltas, SpikeSlabDeltas, delta_factor
from pyro_tbr.guides.hyper_factors import ScaleFactor
from pyro_tbr.guides.statistics import Statistics
from pyro_tbr.models.priors import SpikeSlabPrior
from pyro_tbr.models.tree_model import TreeModel
from pyro_tbr.tree import path_sum
from pyro_tbr.tree.sum_product import (
    InsideMessages,
    TreePosterior,
    gaussian_smoothing,
    inside_pass,
    outside_pass,
    sample,
)

# A sweep that moves no leaf's weight by more than this share of its standard deviation is the last.
_SETTLED = 0.05
# Sweeps run with few components and are polished with all: the passes take most of a fit's time.
_ROUGH_COMPONENTS = 4
_POLISHING_SWEEPS = 2
_FINAL_PASSES = 2  # sweeps of messages behind what is reported


class TreeGuide(Guide):
    r"""Each latent's weights and gates jointly exact along the tree; latents independent.

    The rows of a node enter as a Gaussian potential :math:`\exp(\eta u - \lambda u^2 / 2)` on the
    node's weight u, one a weight and outcome; inside and outside messages along the tree then give
    everything else, in closed form. For normal priors (dense, horseshoe given its scales) the
    same holds with one component a message.

    Args:
        model: A built model.
        informed_nodes: (V,) bool, nodes that have rows; ``None``: all.
        num_components: Cap on the components of a message.

    Attributes:
        eta: Linear terms of the potentials, (W, Q, V), zero where a node has no rows.
        lam: Precisions of the potentials, likewise.
    """

    eta: Tensor
    lam: Tensor

    def __init__(
        self,
        model: TreeModel,
        informed_nodes: Tensor | None = None,
        num_components: int = 32,
    ) -> None:
        super().__init__(model, informed_nodes)
        prior = model.prior
        if getattr(prior, "shared_gates", False):
            raise DataError(
                "guide='tree' keeps outcomes apart and cannot share their gates: use "
                "guide='mean_field', or SpikeSlabPrior(shared_gates=False)"
            )
        self.num_components = num_components
        # Moments of the prior's scales and rates; the factor's own parameters stay unused.
        self._law = (delta_factor(prior, self.informed_arcs),)
        shape = (prior.num_weights, prior.num_outcomes, model.tree.num_nodes)
        self.register_buffer("eta", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("lam", torch.zeros(shape, dtype=torch.float64))
        self._match_dtype()
        self._current: TreePosterior | None = None
        self._start: Tensor | None = None

    def law(self, weights: slice | int = slice(None)) -> dict[str, Tensor]:
        """Arguments of the passes for some weights, (w, Q) or (w, Q, A) each, at q's centre."""
        prior = self.model.prior
        shape = (prior.num_weights, prior.num_outcomes)
        root = self.hyper["root_scale"]
        assert isinstance(root, ScaleFactor)
        law = {
            "root_scale": root.mean_power(-2.0).rsqrt().expand(shape),
            "root_loc": prior.root_loc,
        }
        if isinstance(prior, SpikeSlabPrior):
            slab = self.hyper["slab_scale"]
            assert isinstance(slab, ScaleFactor)
            factor = self._law[0]
            assert isinstance(factor, SpikeSlabDeltas)
            prob = factor._rate_moments(self.hyper)[2].expand(prior.delta_shape)
            law["inclusion_prob"] = prob.permute(1, 2, 0)
            law["slab_scale"] = slab.mean_power(-2.0).rsqrt().expand(shape)
        else:
            factor = self._law[0]
            assert isinstance(factor, NormalDeltas)
            inverse = factor._prior_scale_moments(self.hyper)[0]
            law["delta_var"] = inverse.reciprocal().expand(prior.delta_shape).permute(1, 2, 0)
        return {name: value.detach().double()[weights] for name, value in law.items()}

    @torch.no_grad()
    def passes(
        self, weights: slice = slice(None), num_components: int | None = None, sweeps: int = 1
    ) -> TreePosterior:
        """Inside and outside pass for some weights at the current potentials.

        Args:
            weights: Which of the W.
            num_components: Cap on the components of a message; default the guide's own.
            sweeps: Of messages; the second ranks components by what the first has found.
        """
        law = self.law(weights)
        eta, lam = self.eta[weights], self.lam[weights]
        if "delta_var" in law:
            return gaussian_smoothing(self.model.tree, eta, lam, **law)
        return outside_pass(self.model.tree, self._inside(law, eta, lam, num_components, sweeps))

    def _inside(
        self,
        law: dict[str, Tensor],
        eta: Tensor,
        lam: Tensor,
        num_components: int | None,
        sweeps: int,
    ) -> InsideMessages:
        return inside_pass(
            self.model.tree,
            eta,
            lam,
            inclusion_prob=law["inclusion_prob"],
            slab_scale=law["slab_scale"],
            root_scale=law["root_scale"],
            root_loc=law["root_loc"],
            num_components=num_components or self.num_components,
            sweeps=sweeps,
        )

    @property
    def current(self) -> TreePosterior:
        """The passes for all weights at once, kept until potentials or hyperparameters change."""
        if self._current is None:
            self._current = self.passes(sweeps=_FINAL_PASSES)
        return self._current

    def refresh(self) -> None:
        """Forgets the passes, after a change of potentials or hyperparameters."""
        self._current = None

    def load_state_dict(self, *args: object, **kwargs: object) -> object:
        """Also forgets the passes of the state before."""
        self.refresh()
        return super().load_state_dict(*args, **kwargs)

    def node_moments(self) -> NodeMoments:
        """See :meth:`Guide.node_moments`; without gradient: the potentials are not trained."""
        dtype = self.model.prior.root_loc.dtype
        mean = self.current.node_mean.permute(2, 0, 1)
        var = self.current.node_var.permute(2, 0, 1)
        if not bool(self.informed_arcs.all()):
            # Below the last data the passes add the spread at q's centre; q's own goes in instead.
            excess = self._silent_var() - self.current.delta_second.permute(2, 0, 1)
            excess = torch.where(self.informed_arcs.reshape(-1, 1, 1), 0.0, excess)
            var = var + path_sum(self.model.tree, torch.zeros_like(var[0]), excess, event_dim=2)
        return NodeMoments(mean.to(dtype), var.to(dtype))

    @torch.no_grad()
    def _silent_var(self) -> Tensor:
        """Variance of a change where there are no data, hyperparameters integrated, (A, W, Q)."""
        return self._law[0].moments(self.hyper).var.double()

    def delta_moments(self) -> DeltaMoments:
        """See :meth:`Guide.delta_moments`."""
        dtype = self.model.prior.root_loc.dtype
        now = self.current
        mean = now.delta_mean.permute(2, 0, 1)
        second = now.delta_second.permute(2, 0, 1)
        if now.pips is None:
            prob = prior_prob = torch.ones_like(mean)
        else:
            prob = now.pips.permute(2, 0, 1)
            prior_prob = self.law()["inclusion_prob"].permute(2, 0, 1)
        known = self.informed_arcs.reshape(-1, 1, 1)
        second = torch.where(known, second, self._silent_var())
        safe = prob.clamp(min=1e-300)
        slab_mean = mean / safe
        slab_var = (second / safe - slab_mean.square()).clamp(min=0)
        var = (second - mean.square()).clamp(min=0)
        parts = (mean, var, prob, prior_prob, slab_mean, slab_var)
        return DeltaMoments(*(part.to(dtype) for part in parts))

    @torch.no_grad()
    def kl(self) -> Tensor:
        """See :meth:`Guide.kl`; hyperparameters at q's centre in the weights' part."""
        now = self.current
        second = now.node_var + now.node_mean.square()
        potential = (self.eta * now.node_mean - 0.5 * self.lam * second).sum()
        return potential - now.log_evidence.sum() + self.hyper_kl()

    @torch.no_grad()
    def start(self, root: Tensor, deltas: Tensor, *, sparse: bool = True) -> None:
        """See :meth:`Guide.start`."""
        self._start = path_sum(self.model.tree, root, deltas, event_dim=2).double()
        if sparse:
            self.hyper.start_from(root, deltas, self.informed_arcs)
        self.refresh()

    @torch.no_grad()
    def update(
        self, stats: Statistics, *, sweeps: int, learn_hyper: bool = True, learn_noise: bool = True
    ) -> int:
        """See :meth:`Guide.update`: coordinate ascent, one latent's tree after the other."""
        mean = self._start if self._start is not None else self.node_moments().mean.double()
        self._start = None
        mean = mean[stats.nodes].transpose(1, 2).clone()  # (E, Q, W)
        gram = stats.gram.expand(*stats.cross.shape, -1)
        self.eta.zero_()
        self.lam.zero_()
        rough = min(_ROUGH_COMPONENTS, self.num_components)
        done = 0
        for components, limit in ((rough, sweeps), (self.num_components, _POLISHING_SWEEPS)):
            for _ in range(limit):
                done += 1
                moved = self._sweep(stats, gram, mean, components)
                self._current = self.passes(num_components=components)
                if learn_hyper:
                    self._update_hyper()
                if learn_noise and self.noise is not None:
                    self._update_noise(stats)
                if moved < _SETTLED:
                    break
        self.refresh()
        return done

    def _sweep(self, stats: Statistics, gram: Tensor, mean: Tensor, components: int) -> float:
        """One latent's potentials and passes after the other; ``mean`` (E, Q, W) in place.

        Returns:
            The largest move of a node's weight, in its standard deviations.
        """
        precision, moved = self._precision(stats), 0.0
        for k in range(mean.shape[-1]):
            diagonal = gram[:, :, k, k]
            rest = (gram[:, :, k] * mean).sum(-1) - diagonal * mean[:, :, k]
            self.lam[k][:, stats.nodes] = (precision * diagonal).T.to(self.lam)
            eta = precision * (stats.cross[:, :, k] - rest)
            self.eta[k][:, stats.nodes] = eta.T.to(self.eta)
            now = self.passes(slice(k, k + 1), components)
            new = now.node_mean[0][:, stats.nodes].T
            spread = now.node_var[0][:, stats.nodes].T.clamp(min=1e-300).sqrt()
            moved = max(moved, ((new - mean[:, :, k]).abs() / spread).max().item())
            mean[:, :, k] = new
        return moved

    def _precision(self, stats: Statistics) -> Tensor:
        """E[1 / noise variance], (Q,); 1 where the likelihood has no noise of its own."""
        noise = self.noise_moments()
        if noise is None:
            return stats.cross.new_ones(stats.cross.shape[1])
        return noise.inverse_square.detach().double()

    def _update_noise(self, stats: Statistics) -> None:
        assert isinstance(self.noise, ScaleFactor)
        now = self.current
        residual = stats.residual(now.node_mean.permute(2, 0, 1), now.node_var.permute(2, 0, 1))
        self.noise.update(residual.sum(0), stats.count.sum(0))

    def _update_hyper(self) -> None:
        """Hyperparameters given the expected statistics of the informed arcs."""
        now, informed = self.current, self.informed_arcs.reshape(-1, 1, 1)
        square = torch.where(informed, now.delta_second.permute(2, 0, 1), 0.0)
        root = now.node_var[..., 0] + (now.node_mean[..., 0] - self.model.prior.root_loc).square()
        gates = None if now.pips is None else now.pips.permute(2, 0, 1)
        self.hyper.learn(root, square, gates, informed)

    @torch.no_grad()
    def draw(self, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Joint draws of root weights, gates and deltas, hyperparameters at q's centre."""
        law = self.law()
        tree = self.model.tree
        if "delta_var" in law:
            # Rate 1 and a scale an arc: every arc changes.
            scale = law.pop("delta_var").sqrt()
            law |= {"inclusion_prob": torch.ones_like(scale), "slab_scale": scale}
        inside = self._inside(law, self.eta, self.lam, None, _FINAL_PASSES)
        root, gates, deltas = sample(tree, inside, num_samples, generator)
        dtype = self.model.prior.root_loc.dtype
        draws = {"root_weights": root.to(dtype), "deltas": deltas.permute(0, 3, 1, 2).to(dtype)}
        if isinstance(self.model.prior, SpikeSlabPrior):
            draws["gates"] = gates.permute(0, 3, 1, 2).to(dtype)
        return draws

    def sample(self, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        """See :meth:`Guide.sample`; arcs without rows below are drawn anew from the prior.

        There the spread of the hyperparameters is the whole uncertainty, so it goes in.
        """
        hyper = self.sample_hyper(num_samples, generator)
        draws = hyper | self.draw(num_samples, generator)
        return self.with_prior_changes(draws, generator)

    @torch.no_grad()
    def log_prob(self, draws: dict[str, Tensor]) -> Tensor:
        """Log q of joint draws (S,) of root weights, gates and deltas, as the passes have it.

        Relative to a point mass at zero for gates that are off, as ``SpikeSlab`` has it.
        """
        law, now = self.law(), self.current
        root, deltas = draws["root_weights"].double(), draws["deltas"].double()
        nodes = _node_weights(self.model, root, deltas)
        log_q = (self.eta * nodes - 0.5 * self.lam * nodes.square()).sum((1, 2, 3))
        log_q = log_q - now.log_evidence.sum()
        log_q = log_q + dist.Normal(law["root_loc"], law["root_scale"]).log_prob(root).sum((1, 2))
        if "delta_var" in law:
            scale = law["delta_var"].sqrt().permute(2, 0, 1)
            return log_q + dist.Normal(0.0, scale).log_prob(deltas).sum((1, 2, 3))
        gates = draws["gates"].double()
        prob = law["inclusion_prob"].permute(2, 0, 1)
        scale = law["slab_scale"]
        log_q = log_q + dist.Bernoulli(prob).log_prob(gates).sum((1, 2, 3))
        return log_q + (gates * dist.Normal(0.0, scale).log_prob(deltas)).sum((1, 2, 3))

    def forward(self, x: Tensor, env_index: Tensor, y: Tensor | None = None) -> None:
        """Pyro sites of q: one joint draw along the tree, its log density on ``root_weights``."""
        del x, env_index, y
        values = {name: factor() for name, factor in self.hyper.items()}
        if self.noise is not None:
            self.noise()
        seed = int(torch.randint(2**62, ()).item())
        generator = torch.Generator().manual_seed(seed)
        draws = self.draw(1, generator)
        log_q = self.log_prob(draws)[0].to(draws["root_weights"].dtype)
        root, deltas = draws["root_weights"][0], draws["deltas"][0]
        pyro.sample("root_weights", dist.Delta(root, log_density=log_q, event_dim=2))
        if "gates" not in draws:
            pyro.sample("deltas", dist.Delta(deltas, event_dim=3))
            return
        gates = draws["gates"][0]
        pyro.sample("gates", dist.Delta(gates, event_dim=3))
        # Where the gate is off the slab is free: from the prior, whose density cancels.
        scale = values["slab_scale"].unsqueeze(-3).expand_as(deltas)
        off = torch.where(gates > 0, deltas, torch.normal(0.0, scale.detach()))
        density = (1 - gates) * dist.Normal(0.0, scale).log_prob(off)
        pyro.sample("slab", dist.Delta(off, log_density=density.sum(), event_dim=3))


def _node_weights(model: TreeModel, root: Tensor, deltas: Tensor) -> Tensor:
    """(S, W, Q, V) from root weights (S, W, Q) and deltas (S, A, W, Q)."""
    return path_sum(model.tree, root, deltas, event_dim=2).permute(0, 2, 3, 1)
