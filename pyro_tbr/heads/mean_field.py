"""The fully factorised guide: every arc, latent and outcome on its own."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_tbr.heads.guide import Guide, NodeMoments, logit
from pyro_tbr.heads.hyper.factors import ScaleFactor
from pyro_tbr.heads.priors.delta_factors import DeltaMoments, SpikeSlabDeltas, delta_factor
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.models.tree_model import TreeModel
from pyro_tbr.tree import path_sum


class MeanFieldGuide(Guide):
    """Independent factors for root weights, every arc's delta, and every hyperparameter.

    Arcs in series and arcs under one root carry the same information, so the truth there is a
    split probability; this guide picks one of them with too much confidence.

    Args:
        model: A built model.
        informed_nodes: (V,) bool, nodes that have rows; ``None``: all.
    """

    def __init__(self, model: TreeModel, informed_nodes: Tensor | None = None) -> None:
        super().__init__(model, informed_nodes)
        self.deltas = delta_factor(model.prior, self.informed_arcs)
        self.root_loc = nn.Parameter(model.prior.root_loc.clone())
        self.root_log_scale = nn.Parameter(torch.full_like(self.root_loc, math.log(0.05)))
        self._match_dtype()

    @torch.no_grad()
    def start(self, root: Tensor, deltas: Tensor, *, sparse: bool = True) -> None:
        """See :meth:`Guide.start`."""
        typical = deltas.square().mean((0, 2), keepdim=True).sqrt().clamp(min=1e-3)
        self.root_loc.copy_(root)
        self.root_log_scale.copy_((0.05 * typical[0]).log().expand_as(root))
        self.deltas.initialise(deltas, 0.05 * typical)
        if sparse:
            self.hyper.start_from(root, deltas, self.informed_arcs)

    def update(
        self,
        stats: Statistics,
        *,
        sweeps: int,
        learn_hyper: bool = True,
        learn_noise: bool = True,
        rough: bool = False,
    ) -> int:
        """See :meth:`Guide.update`: ten Adam steps on the ELBO of the statistics a sweep."""
        kept = set()
        if not learn_hyper:
            kept |= {id(p) for p in self.hyper.parameters()}
        if not learn_noise and self.noise is not None:
            kept |= {id(p) for p in self.noise.parameters()}
        params = [p for p in self.parameters() if id(p) not in kept]
        optimizer = torch.optim.Adam(params, lr=0.03, betas=(0.9, 0.99))
        scale = 1 / stats.count.sum()
        for sweep in range(sweeps):
            for _ in range(10):
                for group in optimizer.param_groups:
                    group["lr"] = 0.03 * min(1.0, 2 * (1 - sweep / sweeps) + 0.02)
                optimizer.zero_grad()
                (-scale * self.elbo(stats)).backward()
                optimizer.step()
        return sweeps

    def node_moments(self) -> NodeMoments:
        """See :meth:`Guide.node_moments`."""
        deltas = self.deltas.moments(self.hyper)
        root = torch.stack([self.root_loc, (2 * self.root_log_scale).exp()], dim=-1)
        both = torch.stack([deltas.mean, deltas.var], dim=-1)
        mean, var = path_sum(self.model.tree, root, both, event_dim=3).unbind(-1)
        return NodeMoments(mean, var)

    def delta_moments(self) -> DeltaMoments:
        """See :meth:`Guide.delta_moments`."""
        return self.deltas.moments(self.hyper)

    @torch.no_grad()
    def log_odds(self) -> Tensor:
        """See :meth:`Guide.log_odds`: the factors' own logits."""
        factor = self.deltas
        if not isinstance(factor, SpikeSlabDeltas):
            return super().log_odds()
        free = self.informed_arcs.reshape(-1, 1, 1) & self.head.prior.changing()
        prior_odds = logit(self.delta_moments().prior_inclusion)
        return torch.where(free, factor.logits.double(), prior_odds)

    @torch.no_grad()
    def path_inclusion(self, arcs: Tensor) -> Tensor:
        """See :meth:`Guide.path_inclusion`: arcs are independent."""
        return 1 - (1 - self.delta_moments().inclusion[arcs].double()).prod(0)

    def kl(self) -> Tensor:
        """See :meth:`Guide.kl`."""
        scale = self.hyper["root_scale"]
        assert isinstance(scale, ScaleFactor)
        square = (self.root_loc - self.model.prior.root_loc).square()
        square = square + (2 * self.root_log_scale).exp()
        root = 0.5 * (square * scale.mean_power(-2.0) - 1) - self.root_log_scale + scale.mean_log()
        return root.sum() + self.deltas.kl(self.hyper) + self.hyper_kl()

    def forward(self, x: Tensor, env_index: Tensor, y: Tensor | None = None) -> None:
        """Pyro sites of q; the arguments are the model's and not used."""
        values = {name: factor() for name, factor in self.hyper.items()}
        if self.noise is not None:
            self.noise()
        root = dist.Normal(self.root_loc, self.root_log_scale.exp())
        pyro.sample("root_weights", root.to_event(2))
        self.deltas(values)

    def sample(self, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        """See :meth:`Guide.sample`."""
        draws = self.sample_hyper(num_samples, generator)
        noise = torch.randn(
            num_samples, *self.root_loc.shape, generator=generator, dtype=self.root_loc.dtype
        ).to(self.root_loc.device)
        draws["root_weights"] = self.root_loc + self.root_log_scale.exp() * noise
        return self.with_prior_changes(draws | self.deltas.sample(draws, generator), generator)
