"""Chains of a blocked Gibbs sampler of everything but the encoder, all as one batch.

A sweep draws gates and weights along the tree (``tree_step``), then each hyperparameter given these
(``hyper_steps``), then the noise. Arcs without rows below take no part; at the end they have draws
from the prior, given the hyperparameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.hyper.base import HyperFactor, by_name
from pyro_tbr.heads.sampling.hyper_steps import (
    ChainState,
    draw_real,
    per_weight,
    rate_log_lik,
    rescale,
    scale_log_lik,
    separation_log_lik,
)
from pyro_tbr.heads.sampling.row_sums import RowSums
from pyro_tbr.heads.sampling.normal_messages import Arcs
from pyro_tbr.heads.sampling.tree_step import tree_step
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.tree.walks import WalkStep, walk_from

_SPREAD = 2.0  # of starts on the real line, over that of the guide's factor
_ANEW = 0.25  # share of the classes that start from the prior, not from the guide's draws
_MOST_WALKS = 64  # that are remembered


class Chains:
    """Chains from a guide's draws, wider than these; iterating gives them after every sweep.

    Args:
        guide: A fitted guide; not changed. Its prior is spike and slab or Gaussian, its likelihood
            Gaussian.
        stats: Statistics of the rows.
        num_chains: C.
        generator: Of all draws, on the CPU.
    """

    def __init__(
        self, guide: Guide, stats: Statistics, num_chains: int, generator: Generator
    ) -> None:
        guide = copy.deepcopy(guide).cpu()
        guide.head.cpu()
        head = guide.head
        self.tree, self.prior, self.generator = head.tree, head.prior, generator
        self.rows = RowSums.of(stats)
        self.informed = guide.informed_arcs
        self.factors: dict[str, HyperFactor] = by_name(guide.hyper) | by_name(guide.nuisance)
        self.root_loc = self.prior.root_loc.double().T
        nodes = torch.cat([torch.ones(1, dtype=torch.bool), self.informed])
        self._starts = nodes.nonzero()[:, 0].tolist()
        self._walks: dict[int, list[WalkStep]] = {}
        self.state = self._first_state(guide, num_chains)

    def __iter__(self) -> Iterator[ChainState]:
        while True:
            self.sweep()
            yield self.state

    # ---- starts

    def _first_state(self, guide: Guide, num_chains: int) -> ChainState:
        """Values further out than the guide has them; classes of its draws, some of the prior."""
        draws = guide.sample(num_chains, self.generator)
        values = {}
        for name, factor in self.factors.items():
            noise = torch.randn(
                (num_chains, *factor.hyper.shape), generator=self.generator, dtype=torch.float64
            )
            values[name] = factor.at(_SPREAD * noise).double()
        law = self._law(values)
        deltas = draws["deltas"].double().permute(0, 3, 1, 2)
        classes = torch.zeros(deltas.shape, dtype=torch.int64)
        if self.prior.gated:
            classes = draws["gates"].permute(0, 3, 1, 2).long()
            if law.mean.shape[-1] > 2:  # halves: above zero, below
                classes = torch.where(deltas < 0, 2 * classes, classes)
            uniform = torch.rand(
                (2, *classes.shape), generator=self.generator, dtype=torch.float64
            )
            upto = law.log_prob.exp().cumsum(-1)[..., :-1]
            new = (uniform[0].unsqueeze(-1) >= upto).sum(-1)
            never = law.log_prob.gather(-1, classes.unsqueeze(-1))[..., 0] == -torch.inf
            classes = torch.where((uniform[1] < _ANEW) | never, new, classes)
        nodes = torch.zeros(*classes.shape[:2], self.tree.num_nodes, classes.shape[-1]).double()
        return ChainState(values, classes, nodes, torch.zeros_like(deltas), torch.ones_like(deltas))

    def _law(self, values: dict[str, Tensor]) -> Arcs:
        """The law of changes of every chain."""
        parts = torch.broadcast_tensors(*self.prior.classes(values))
        shape = (len(next(iter(values.values()))), *self.prior.delta_shape)
        prob, mean, var = (
            part.double().expand(*shape, part.shape[-1]).permute(0, 3, 1, 2, 4) for part in parts
        )
        return Arcs(prob.log(), mean, var.sqrt())

    # ---- one sweep

    @torch.no_grad()
    def sweep(self) -> None:
        """Everything once."""
        state = self.state
        noise, root = state.values["noise_scale"], state.values["root_scale"]
        shape = self.prior.delta_shape[1:]
        root = root.expand(len(root), *shape).transpose(1, 2)
        rows = self.rows.potentials(noise, self.root_loc, root, self.tree.num_nodes)
        pick = int(torch.randint(len(self._starts), (), generator=self.generator))
        start = self._starts[pick]
        law = self._law(state.values)
        drawn = tree_step(start, self._walk(start), rows, law, state.classes, self.generator)
        state.nodes, state.deltas, state.classes, state.inclusion = drawn
        self._draw_root_scale()
        (self._draw_gates if self.prior.gated else self._draw_dense)()
        square = self.rows.squares(state.nodes)
        self._draw("noise_scale", scale_log_lik(square, self.rows.count.expand_as(square)))

    def _walk(self, start: int) -> list[WalkStep]:
        if start not in self._walks:
            if len(self._walks) >= _MOST_WALKS:
                del self._walks[next(iter(self._walks))]
            self._walks[start] = walk_from(self.tree, start, self.informed)
        return self._walks[start]

    def _draw(self, name: str, log_lik: Any) -> None:
        values = self.state.values
        values[name] = draw_real(self.factors[name], values[name], log_lik, self.generator)

    def _draw_scale(self, name: str, mask: Tensor, factor: Tensor | float = 1.0,
                    size: Tensor | float = 0.0) -> None:  # fmt: skip
        """A scale of some changes (C, Q, A, W) bool, given these, then given them in its units."""
        hyper = self.factors[name]
        if not hyper.learnt:
            return
        shape, deltas = hyper.hyper.shape, self.state.deltas
        square = per_weight(torch.where(mask, deltas.square(), 0.0), shape)
        self._draw(name, scale_log_lik(factor * square, per_weight(mask.double(), shape), size))
        noise = self.state.values["noise_scale"]
        rescale(self.state, hyper, mask, self.tree, self.rows, noise, self.generator)

    def _draw_root_scale(self) -> None:
        deviation = (self.state.nodes[:, :, :1] - self.root_loc.unsqueeze(1)).square()
        shape = self.factors["root_scale"].hyper.shape
        square, count = (per_weight(p, shape) for p in (deviation, torch.ones_like(deviation)))
        self._draw("root_scale", scale_log_lik(square, count))

    def _draw_dense(self) -> None:
        """Of a Gaussian prior."""
        known = self.informed[:, None].expand_as(self.state.deltas)
        self._draw_scale("slab_scale", known)

    def _draw_gates(self) -> None:
        """Of spike and slab."""
        state, prior = self.state, self.prior
        known = self.informed[:, None].expand_as(state.deltas)
        on, off = known & (state.classes > 0), known & (state.classes == 0)
        rate = self.factors["inclusion_rate"]
        if rate.learnt:
            parts = [part.double().permute(0, 2, 3, 1) for part in (on, off)]
            if rate.hyper.shape[-1] == 1:
                parts = [part.sum(-1, keepdim=True) for part in parts]
            length = prior.relative_length.flatten()
            self._draw("inclusion_rate", rate_log_lik(*parts, length))
        if prior.has_spike:
            still = ~prior.may_change()[:, :, 0]
            self._draw_scale("spike_scale", off & ~still)
        if not prior.halves:
            self._draw_scale("slab_scale", on)
            return
        sign = 3.0 - 2.0 * state.classes  # of class 1 above zero, of class 2 below
        shape = self.factors["slab_scale"].hyper.shape
        c2 = state.values["slab_separation"].square()  # (C, 1, 1)
        size = per_weight(torch.where(on, sign * state.deltas, 0.0), shape)
        self._draw_scale("slab_scale", on, 1 + c2, size * (c2 * (1 + c2)).sqrt())
        tau = state.values["slab_scale"]
        total = {
            "square": per_weight(torch.where(on, state.deltas.square(), 0.0), shape) / tau.square(),
            "size": per_weight(torch.where(on, sign * state.deltas, 0.0), shape) / tau,
            "count": per_weight(on.double(), shape),
        }
        sums = {name: part.sum((1, 2), keepdim=True) for name, part in total.items()}
        self._draw("slab_separation", separation_log_lik(**sums))


