"""Chains of a blocked Gibbs sampler of everything but the encoder, all as one batch.

A sweep draws gates and weights along the tree (``tree_step``), then each hyperparameter given these
(``hyper_steps``), then the noise. Arcs without rows below take no part; at the end they have draws
from the prior, given the hyperparameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.hyper.base import HyperFactor, by_name
from pyro_tbr.heads.sampling.active_step import LEVELS, Activity
from pyro_tbr.heads.sampling.hyper_steps import (
    ChainState,
    draw_gates,
    draw_real,
    gates_out_log_lik,
    per_weight,
    rate_log_lik,
    rescale,
    scale_log_lik,
    separation_log_lik,
)
from pyro_tbr.heads.sampling.latent_step import LatentMoves
from pyro_tbr.heads.sampling.noise_step import NoiseStep
from pyro_tbr.heads.sampling.normal_messages import Arcs
from pyro_tbr.heads.sampling.row_sums import RowSums
from pyro_tbr.heads.sampling.tree_step import tree_step
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.progress import beat
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

    Attributes:
        state: Where they stand.
        moves: Steps of single latents, which count how many were taken.
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
        self.apart = {"root_scale", *by_name(guide.nuisance)}  # no parts of the changes' law
        self.noise = NoiseStep(self.factors, self.rows, generator)
        self.root_loc = self.prior.root_loc.double().T
        nodes = torch.cat([torch.ones(1, dtype=torch.bool), self.informed])
        self._starts = nodes.nonzero()[:, 0].tolist()
        self._walks: dict[int, list[WalkStep]] = {}
        self.activity = None
        if self.prior.has_levels:
            self.activity = Activity(self.prior, self.informed, generator)
        self.state = self._first_state(guide, num_chains)
        parts = (self.tree, self.informed, self.factors, self._law, generator)
        self.moves = LatentMoves(*parts, self.activity)

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
            uniform = torch.rand((2, *classes.shape), generator=self.generator, dtype=torch.float64)
            upto = law.log_prob.exp().cumsum(-1)[..., :-1]
            new = (uniform[0].unsqueeze(-1) >= upto).sum(-1)
            never = law.log_prob.gather(-1, classes.unsqueeze(-1))[..., 0] == -torch.inf
            classes = torch.where((uniform[1] < _ANEW) | never, new, classes)
        if self.activity is not None:
            self.activity.draw(values, classes)
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
        """Everything once; classes and weights of all latents together, and of each by itself."""
        state = self.state
        noise, root = self.noise.at_rows(state.values), state.values["root_scale"]
        root = root.expand(len(root), *self.prior.delta_shape[1:]).transpose(1, 2)
        rows = self.rows.potentials(noise, self.root_loc, root, self.tree.num_nodes)
        law = self._law(state.values)
        start = self._starts[self._any_of(len(self._starts))]
        drawn = tree_step(start, self._walk(start), rows, law, state.classes, self.generator)
        state.nodes, state.deltas, state.classes, state.inclusion = drawn
        if self.prior.gated:
            order = torch.randperm(state.nodes.shape[-1], generator=self.generator)
            for latent in order.tolist():
                self._draw_latent(latent, root)
                beat()
        self._draw_root_scale()
        (self._draw_sparse if self.prior.gated else self._draw_dense)()
        self.noise.draw(state.values, state.nodes)

    def _any_of(self, number: int) -> int:
        return int(torch.randint(number, (), generator=self.generator))

    def _walk(self, start: int) -> list[WalkStep]:
        if start not in self._walks:
            if len(self._walks) >= _MOST_WALKS:
                del self._walks[next(iter(self._walks))]
            self._walks[start] = walk_from(self.tree, start, self.informed)
        return self._walks[start]

    def _draw_latent(self, latent: int, root_scale: Tensor) -> None:
        """One latent along its whole tree given the others' weights."""
        noise, scale = self.noise.at_rows(self.state.values), root_scale[..., latent]
        root = (self.root_loc[:, latent].expand_as(scale), scale)
        potentials = self.rows.given_others(self.state.nodes, latent, noise)
        self.moves.draw(self.state, latent, potentials, root)

    # ---- hyperparameters

    def _draw(self, name: str, log_lik: Callable[[Tensor], Tensor]) -> None:
        values = self.state.values
        values[name] = draw_real(self.factors[name], values[name], log_lik, self.generator)

    def _draw_root_scale(self) -> None:
        deviation = (self.state.nodes[:, :, :1] - self.root_loc.unsqueeze(1)).square()
        shape = self.factors["root_scale"].hyper.shape
        square, count = (per_weight(p, shape) for p in (deviation, torch.ones_like(deviation)))
        self._draw("root_scale", scale_log_lik(square, count))

    def _draw_scale(self, name: str, mask: Tensor, factor: Tensor | float = 1.0,
                    size: Tensor | float = 0.0) -> None:  # fmt: skip
        """A scale of some changes (C, Q, A, W) bool, given these and their classes."""
        shape, deltas = self.factors[name].hyper.shape, self.state.deltas
        square = per_weight(torch.where(mask, deltas.square(), 0.0), shape)
        self._draw(name, scale_log_lik(factor * square, per_weight(mask.double(), shape), size))

    def _rescale(self, name: str, mask: Tensor) -> None:
        """The same given the changes in its units."""
        if self.factors[name].learnt:
            noise = self.noise.at_rows(self.state.values)
            parts = (self.tree, self.rows, noise, self.generator)
            rescale(self.state, self.factors[name], mask, *parts)

    def _draw_dense(self) -> None:
        """Of a Gaussian prior."""
        known = self.informed[:, None].expand_as(self.state.deltas)
        self._draw_scale("slab_scale", known)
        self._rescale("slab_scale", known)

    def _draw_sparse(self) -> None:
        """Of spike and slab; where no class is a point, with gates summed out."""
        state, prior = self.state, self.prior
        if prior.has_spike:
            for name, factor in self.factors.items():
                if name not in self.apart:
                    log_lik = gates_out_log_lik(
                        prior, state.values, factor, state.deltas, self.informed
                    )
                    if self.activity is not None and name in LEVELS:
                        log_lik = self.activity.with_prior(log_lik, state.values, factor)
                    self._draw(name, log_lik)
            draw_gates(prior, state, self.generator)
        else:
            self._draw_given_gates()
        known = self.informed[:, None].expand_as(state.deltas)
        on, off = known & (state.classes > 0), known & (state.classes == 0)
        if self.activity is not None:
            for name in LEVELS:
                self._draw(name, self.activity.gates_log_lik(state, self.factors[name]))
            self.activity.draw(state.values, state.classes)
        self._rescale("slab_scale", on)
        if prior.has_spike:
            self._rescale("spike_scale", off & prior.may_change()[:, :, 0])

    def _draw_given_gates(self) -> None:
        """Rate, slab and its separation."""
        state, prior = self.state, self.prior
        known = self.informed[:, None].expand_as(state.deltas)
        on, off = known & (state.classes > 0), known & (state.classes == 0)
        if self.activity is None:
            rate = self.factors["inclusion_rate"].hyper.shape
            gates = [part.double().permute(0, 2, 3, 1) for part in (on, off)]
            gates = [part.sum(-1, keepdim=True) if rate[-1] == 1 else part for part in gates]
            length = prior.relative_length.flatten()
            self._draw("inclusion_rate", rate_log_lik(gates[0], gates[1], length))
        if not prior.halves:
            self._draw_scale("slab_scale", on)
            return
        sign = 3.0 - 2.0 * state.classes  # of class 1 above zero, of class 2 below
        shape = self.factors["slab_scale"].hyper.shape
        c2 = state.values["slab_separation"].square()  # (C, 1, 1)
        size = per_weight(torch.where(on, sign * state.deltas, 0.0), shape)
        self._draw_scale("slab_scale", on, 1 + c2, size * (c2 * (1 + c2)).sqrt())
        scale = state.values["slab_scale"]
        square = per_weight(torch.where(on, state.deltas.square(), 0.0), shape)
        parts = (square / scale.square(), size / scale, per_weight(on.double(), shape))
        sums = (part.sum((1, 2), keepdim=True) for part in parts)
        self._draw("slab_separation", separation_log_lik(*sums))
