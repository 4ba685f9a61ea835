"""A guide that is a set of draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.guide import logit
from pyro_tbr.heads.held_guide import HeldGuide
from pyro_tbr.heads.hyper.base import by_name
from pyro_tbr.heads.moments import DeltaMoments, NodeMoments
from pyro_tbr.tree import path_sum

_BLOCK = 5_000_000  # numbers of one block of draws
_LEAST_SPREAD = 1e-3  # of a hyperparameter on the real line


class SampledGuide(HeldGuide):
    """Draws from the posterior by several chains; every answer is an average over them.

    Factors of hyperparameters have mean and spread of the draws, for what asks for these alone. It
    holds what it was given: rows cannot move it, and it has no density, so no ELBO.

    Args:
        head: A head, or a built model that has one.
        informed_nodes: (V,) bool, nodes that have rows; ``None``: all.
        num_chains: C.
        num_draws: Of each chain, n.
    """

    held = "holds draws"
    remade = "sample_posterior()"
    inclusion: Tensor

    def __init__(
        self,
        head: Any,
        informed_nodes: Tensor | None = None,
        *,
        num_chains: int = 1,
        num_draws: int = 1,
    ) -> None:
        super().__init__(head, informed_nodes)
        self.num_chains, self.num_draws = num_chains, num_draws
        prior, shape = self.head.prior, (num_chains, num_draws)
        self._sites = {"root_weights": prior.delta_shape[1:], "deltas": prior.delta_shape}
        if prior.gated:
            self._sites["gates"] = prior.delta_shape
        factors = by_name(self.hyper) | by_name(self.nuisance)
        self._sites |= {name: factor.hyper.shape for name, factor in factors.items()}
        for name, event in self._sites.items():
            dtype = torch.bool if name == "gates" else prior.root_loc.dtype
            self.register_buffer(f"draws_{name}", torch.zeros(*shape, *event, dtype=dtype))
        self.register_buffer("inclusion", torch.ones(prior.delta_shape, dtype=torch.float64))
        self._match_dtype()

    def settings(self) -> dict[str, Any]:
        """See :meth:`Guide.settings`."""
        return {"num_chains": self.num_chains, "num_draws": self.num_draws}

    def chains(self, site: str) -> Tensor:
        """Draws of a site, chains first, (C, n, *shape)."""
        return getattr(self, f"draws_{site}")

    @torch.no_grad()
    def hold(
        self, draws: dict[str, Tensor], inclusion: Tensor | None, generator: Generator
    ) -> None:
        """Takes draws (C, n, *shape) by site; on arcs without rows below new ones of the prior.

        Inclusion probabilities (A, W, Q) are averages of those that gates were drawn from; ``None``
        where there are no gates.
        """
        dtype, size = self.head.prior.root_loc.dtype, (self.num_chains, self.num_draws)
        flat = {name: part.flatten(0, 1).to(dtype) for name, part in draws.items()}
        for name, part in self.with_prior_changes(flat, generator).items():
            held = self.chains(name)
            held.copy_(part.reshape(*size, *part.shape[1:]).to(held.dtype))
        for name, factor in (by_name(self.hyper) | by_name(self.nuisance)).items():
            if factor.learnt:
                real = factor.to_real(draws[name].flatten(0, 1).double())
                factor.match(real.mean(0), real.std(0).clamp(min=_LEAST_SPREAD))
        if inclusion is not None:
            known = self.informed_arcs.reshape(-1, 1, 1)
            self.inclusion.copy_(torch.where(known, inclusion, self._prior_inclusion()))

    # ---- what draws say

    @property
    def closed_form(self) -> bool:
        """Quantiles are those of the draws."""
        return False

    def _all(self, site: str) -> Tensor:
        """All draws of a site, (S, *shape)."""
        return self.chains(site).flatten(0, 1)

    def _values(self, rows: Tensor) -> dict[str, Tensor]:
        """Some draws of the hyperparameters of the prior."""
        return {name: self._all(name)[rows] for name in by_name(self.hyper)}

    def _every(self) -> tuple[Tensor, ...]:
        """Numbers of all draws, in blocks."""
        return self._blocks(self.num_chains * self.num_draws, _BLOCK)

    def _prior_inclusion(self) -> Tensor:
        """Mean prior inclusion probability, (A, W, Q) double."""
        total = torch.zeros(self.head.prior.delta_shape, dtype=torch.float64)
        for rows in self._every():
            prob = self.head.prior.classes(self._values(rows)).prob.double()
            total = total.to(prob) + prob[..., 1:].sum(-1).sum(0)
        return total / (self.num_chains * self.num_draws)

    def _node_blocks(self) -> Iterator[Tensor]:
        """Weights at all nodes in blocks of draws, (s, V, W, Q) double."""
        for rows in self._every():
            root, deltas = (self._all(name)[rows].double() for name in ("root_weights", "deltas"))
            yield path_sum(self.head.tree, root, deltas, event_dim=2)

    @torch.no_grad()
    def node_moments(self) -> NodeMoments:
        """See :meth:`Guide.node_moments`; for how weights go together see :meth:`node_cov`."""
        total = sum(part.sum(0) for part in self._node_blocks())
        mean = torch.as_tensor(total) / (self.num_chains * self.num_draws)
        square = sum((part - mean).square().sum(0) for part in self._node_blocks())
        var = torch.as_tensor(square) / (self.num_chains * self.num_draws - 1)
        dtype = self.head.prior.root_loc.dtype
        return NodeMoments(mean.to(dtype), var.to(dtype))

    @torch.no_grad()
    def node_cov(self, nodes: Tensor) -> Tensor:
        """See :meth:`Guide.node_cov`."""
        parts = [block[:, nodes].transpose(-1, -2) for block in self._node_blocks()]
        return _cov(torch.cat(parts))

    @torch.no_grad()
    def delta_cov(self) -> Tensor:
        """See :meth:`Guide.delta_cov`."""
        return _cov(self._all("deltas").double().transpose(-1, -2))

    @torch.no_grad()
    def delta_moments(self) -> DeltaMoments:
        """See :meth:`Guide.delta_moments`."""
        deltas = self._all("deltas").double()
        mean, var = deltas.mean(0), deltas.var(0)
        if not self.has_gates:
            one = torch.ones_like(mean)
            return self._moments(mean, var, one, one, mean, var)
        gates = self._all("gates").double()
        count = gates.sum(0).clamp(min=1)
        slab_mean = (gates * deltas).sum(0) / count
        slab_var = (gates * (deltas - slab_mean).square()).sum(0) / count
        prior = self._prior_inclusion()
        return self._moments(mean, var, self.inclusion, prior, slab_mean, slab_var)

    def _moments(self, *parts: Tensor) -> DeltaMoments:
        dtype = self.head.prior.root_loc.dtype
        return DeltaMoments(*(part.to(dtype) for part in parts))

    def log_odds(self) -> Tensor:
        """See :meth:`Guide.log_odds`."""
        return logit(self.inclusion) if self.has_gates else super().log_odds()

    @torch.no_grad()
    def change_var(self, relative_length: Tensor) -> Tensor:
        """See :meth:`Guide.change_var`."""
        parts = []
        for rows in self._every():
            prob, mean, var = self.head.prior.classes(self._values(rows), relative_length)
            parts.append((prob * (var + mean.square())).double().sum(-1))
        square = torch.cat(parts).mean(0)
        return square.expand(len(relative_length), *self.head.prior.delta_shape[1:])

    @torch.no_grad()
    def path_inclusion(self, arcs: Tensor) -> Tensor:
        """See :meth:`Guide.path_inclusion`."""
        share = self._all("gates")[:, arcs].any(1).double().mean(0)
        single = self.inclusion[arcs]
        if not len(arcs):
            return share
        return torch.minimum(torch.maximum(share, single.amax(0)), single.sum(0))

    def sample(self, num_samples: int, generator: Generator) -> dict[str, Tensor]:
        """See :meth:`Guide.sample`; in random order, none again before all were there."""
        rows = self._pick(num_samples, generator)
        draws = {name: self._all(name)[rows] for name in self._sites}
        if "gates" in draws:
            draws["gates"] = draws["gates"].to(draws["deltas"])
        return draws

    def sample_arcs(self, site: str, num_samples: int, generator: Generator) -> Iterator[Tensor]:
        """See :meth:`Guide.sample_arcs`."""
        whole = self._all(site)
        for rows in self._pick(num_samples, generator).split(len(self._blocks(1)[0]) * 256):
            yield whole[rows].to(self.head.prior.root_loc)

    def _pick(self, num_samples: int, generator: Generator) -> Tensor:
        """Numbers of so many draws, (num_samples,)."""
        size = self.num_chains * self.num_draws
        rounds = -(-num_samples // size)
        order = [torch.randperm(size, generator=generator) for _ in range(rounds)]
        return torch.cat(order)[:num_samples].to(self.informed_arcs.device)


def _cov(draws: Tensor) -> Tensor:
    """Covariances over the first dimension of draws (S, n, Q, W), (n, Q, W, W)."""
    draws = draws - draws.mean(0)
    return torch.einsum("snqv,snqw->nqvw", draws, draws) / (len(draws) - 1)
