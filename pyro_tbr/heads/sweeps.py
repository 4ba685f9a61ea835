"""Moves a tree guide to its optimum: sweeps over the latents, one tree after the other.

Mean field first, which always converges. Then, where the guide is coupled, expectation propagation
between the latents (``node_rows``), in steps a little shorter than whole. Hyperparameters and noise
are moved after every sweep.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_tbr.heads.coupling import NodeRows, Potential, Tilted
from pyro_tbr.heads.hyper.factors import ScaleFactor
from pyro_tbr.heads.priors.hyper_starts import choose_start
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.tree.messages.sum_product import TreePosterior

if TYPE_CHECKING:
    from pyro_tbr.heads.tree_guide import TreeGuide

# A sweep that moves no leaf's weight by more than this share of its standard deviation is the last.
_SETTLED = 0.05
_COUPLED_SETTLED = 0.01  # and nor the standard deviation itself, when coupled
_BEFORE_COUPLED = 0.2  # mean field that is only on the way to coupled sweeps
# Sweeps run with few components and are polished with all: the passes take most of a fit's time.
_POLISHING_SWEEPS = 2
_STEP = 0.8  # of a potential towards its new value, when coupled;
_SHRINK = 0.5  # shorter by this factor after a sweep that moved more than the one before,
_DRIFT = 0.1  # and more than this, which other components that are kept can do


class TreeSweeps:
    """Sweeps of a guide over rows.

    Args:
        guide: Its potentials, passes, hyperparameters and noise are changed.
        stats: Of the rows.
        learn_hyper: Move hyperparameters too.
        learn_noise: Move the noise too.
    """

    def __init__(
        self, guide: TreeGuide, stats: Statistics, *, learn_hyper: bool, learn_noise: bool
    ) -> None:
        self.guide, self.stats = guide, stats
        self.learn_hyper = learn_hyper
        self.learn_noise = learn_noise and guide.noise is not None
        self._step = _STEP

    def settle(self, start: Tensor | None, sweeps: int, *, rough: bool) -> int:
        """Sweeps until weights no longer move; returns how many.

        Args:
            start: Means of the weights to start from, (E, Q, W); ``None``: the guide's own.
            sweeps: At most this many, and two or so to polish.
            rough: No second start of the hyperparameters and no polish.
        """
        guide = self.guide
        mean = self._moments()[0] if start is None else start.clone()
        guide.eta.zero_()
        guide.lam.zero_()
        full = guide.num_components
        few = guide.tree_law.rough_components
        few = few if full is None else min(full, few)
        coupled = guide.coupled and mean.shape[-1] > 1
        limit = (sweeps + 1) // 2 if coupled else sweeps
        settled = _BEFORE_COUPLED if coupled else _SETTLED
        done = self._run(False, few, limit, settled, mean)
        if self.learn_hyper and not rough and choose_start(guide, few):
            done += self._run(False, few, limit, settled)
        if coupled:
            settled = _COUPLED_SETTLED
            done += self._run(True, few, limit, settled)
        return done if rough else done + self._run(coupled, full, _POLISHING_SWEEPS, settled)

    def _run(
        self,
        coupled: bool,
        components: int | None,
        limit: int,
        settled: float,
        mean: Tensor | None = None,
    ) -> int:
        """Sweeps of one kind until one moves less than ``settled``, the first from given means."""
        guide, done, last = self.guide, 0, math.inf
        for _ in range(limit):
            done += 1
            moved = self._sweep(coupled, components, mean)
            mean = None
            guide.refresh(self._passes(slice(None), components))
            if self.learn_hyper:
                guide.tree_law.learn(guide.current, guide.informed_arcs)
            if self.learn_noise:
                self._move_noise(coupled)
            if moved < settled:
                break
            if coupled and moved > max(last, _DRIFT):
                self._step *= _SHRINK
            last = moved
        return done

    def _sweep(self, coupled: bool, components: int | None, mean: Tensor | None) -> float:
        """Every weight once; returns the largest move at a node, see ``_SETTLED``."""
        guide, nodes, moved = self.guide, self.stats.nodes, 0.0
        rows, own = self._rows(), self._potentials()
        if mean is None:
            mean, var = self._moments()
        else:
            var = torch.ones_like(mean)  # of no use to mean field
        tilted = Tilted(rows, rows.cavity(mean, var, own)) if coupled else None
        for k in range(mean.shape[-1]):
            if tilted is not None:
                aim = tilted.without(k)
                pairs = zip(own, aim, strict=True)
                new = Potential(
                    *(torch.lerp(old[:, :, k], value, self._step) for old, value in pairs)
                )
            else:
                new = rows.given_others(k, mean)
            for everywhere, here, value in zip((guide.eta, guide.lam), own, new, strict=True):
                everywhere[k][:, nodes] = value.T.to(everywhere)
                here[:, :, k] = value
            now = self._passes(slice(k, k + 1), components)
            before, sd_before = mean[:, :, k].clone(), var[:, :, k].sqrt()
            mean[:, :, k] = now.node_mean[0][:, nodes].T
            var[:, :, k] = now.node_var[0][:, nodes].T.clamp(min=1e-300)
            sd = var[:, :, k].sqrt()
            moved = max(moved, ((mean[:, :, k] - before).abs() / sd).max().item())
            if tilted is not None:
                tilted.move(k, Potential(*(p[..., k] for p in rows.cavity(mean, var, own))))
                moved = max(moved, (sd_before / sd - 1).abs().max().item())
        return moved

    def _passes(self, weights: slice, components: int | None) -> TreePosterior:
        return self.guide.passes(weights, components, refit=self.learn_hyper)

    def _rows(self) -> NodeRows:
        return NodeRows.of(self.stats, self.guide.noise_precision().double())

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Means and variances of the weights at the nodes with rows, (E, Q, W) each."""
        now = self.guide.current
        mean, var = (self._here(part) for part in (now.node_mean, now.node_var))
        return mean, var.clamp(min=1e-300)

    def _potentials(self) -> Potential:
        """Potentials at the nodes with rows, (E, Q, W) each."""
        return Potential(*(self._here(part) for part in (self.guide.eta, self.guide.lam)))

    def _here(self, values: Tensor) -> Tensor:
        """Of (W, Q, V) the nodes with rows, (E, Q, W), as a copy in double precision."""
        return values[:, :, self.stats.nodes].permute(2, 1, 0).double().clone()

    def _move_noise(self, coupled: bool) -> None:
        guide, cov = self.guide, None
        assert isinstance(guide.noise, ScaleFactor)
        if coupled:
            rows = self._rows()
            cov = rows.joint_cov(rows.cavity(*self._moments(), self._potentials()))
        mean, var = (
            part.permute(2, 0, 1) for part in (guide.current.node_mean, guide.current.node_var)
        )
        residual = self.stats.residual(mean, var, cov)
        guide.noise.update(residual.sum(0), self.stats.count.sum(0))
