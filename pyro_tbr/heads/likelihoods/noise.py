"""Noise around a predictor: common to all nodes, or each node's own around a common one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.errors import DataError, warn_user
from pyro_tbr.heads.hyper import (
    HyperFactor,
    HyperFactors,
    LogNormalMoments,
    NodeScale,
    NodeScaleFactor,
    PositiveScale,
    ScaleFactor,
    as_fixed,
    spread_fixed,
)
from pyro_tbr.heads.hyper.base import by_name
from pyro_tbr.heads.likelihoods.base import Likelihood, SeenRows
from pyro_tbr.heads.likelihoods.expectations import Nuisance
from pyro_tbr.heads.likelihoods.scaling import Scaling, standardised
from pyro_tbr.tree.readers.naming import listed

# Wide: a noise of a hundredth of the outcome's spread costs it only some 8 nats.
_MEDIAN, _SPREAD = 0.5, 1.5
# Of the logarithms of environments' noise around the common one: mostly from 0.02 to 1.
_MEDIAN_RATIO, _SPREAD_RATIO = 0.15, 1.0
_NOISES = ("common", "by_environment")
_BY_NODE = "node_noise_scale"
_NOISE_SITES = ("noise_scale", "noise_spread", _BY_NODE)


class NoiseLikelihood(Likelihood):
    r"""Outcomes around their predictor by a noise scale, site ``noise_scale`` (Q,); abstract.

    By default every node v has its own, site ``node_noise_scale`` (V, Q),

    .. math::
        \log s_v \sim N(\log s, c^2)

    around the common s, c the site ``noise_spread`` (Q,). Both are learnt, so where environments
    differ little, or have few rows, their noise is drawn to the common one; the noise of a leaf
    without data is a draw.

    Args:
        scale: Noise scale in the outcome's unit, a number or (Q,); ``None``: learnt.
        noise: ``"by_environment"``, or ``"common"`` to all; ``None``: common where ``scale`` is
            given, else by environment.
        more: Further arguments that a class was described by.
    """

    abstract = True

    def __init__(
        self, scale: float | Tensor | None = None, noise: str | None = None, **more: object
    ) -> None:
        super().__init__(scale=scale, noise=noise, **more)
        if noise not in (None, *_NOISES):
            raise DataError(f"noise={noise!r} is not known: give one of {listed(_NOISES)}")
        self.scale_value = as_fixed(scale, "scale")
        self.by_node = (noise or ("by_environment" if scale is None else "common")) != "common"

    def check_informative(self, y: Outcomes) -> None:
        """Refuses constant outcomes, whose noise would be none; warns of those of 0 and 1 alone.

        Intervals around a number suit these badly.
        """
        if self.scale_value is None:
            y.refuse_constant()
        seen = ~np.isnan(y.values)
        only = ((y.values == 0) | (y.values == 1) | ~seen).all(0)
        both = (y.values == 0).any(0) & (y.values == 1).any(0)
        names = [name for name, binary in zip(y.names, only & both, strict=True) if binary]
        if names:
            which = "y holds" if len(y.names) == 1 else f"y: {listed(names)} hold(s)"
            warn_user(f"{which} 0 and 1 alone: likelihood='bernoulli' gives probabilities of 1")

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        fixed = self.scale_value
        if fixed is not None:
            fixed = spread_fixed(fixed, (num_outcomes,), "scale").to(unit) / unit
        self.noise_scale = PositiveScale(
            "noise_scale", (num_outcomes,), fixed, median=_MEDIAN, spread=_SPREAD, unit="outcome"
        )
        if self.by_node:
            self.noise_spread = PositiveScale(
                "noise_spread", (num_outcomes,), None, median=_MEDIAN_RATIO, spread=_SPREAD_RATIO
            )
            self.node_noise_scale = NodeScale(
                _BY_NODE, self.num_nodes, self.noise_scale, self.noise_spread
            )

    def factors(self) -> dict[str, HyperFactor]:
        """See :meth:`Likelihood.factors`; that of the nodes knows those of its parents."""
        found = super().factors()
        if self.by_node:
            _nodes(found).linked(*_parents(found))
        return found

    def sample_nuisance(self) -> dict[str, Tensor]:
        """See :meth:`Likelihood.sample_nuisance`."""
        shared = [hyper for hyper in self.hyperparameters() if hyper.name != _BY_NODE]
        values = {hyper.name: hyper() for hyper in shared}
        if self.by_node:
            common, spread = values["noise_scale"], values["noise_spread"]
            values[_BY_NODE] = self.node_noise_scale(common, spread)
        return values

    def guide_sites(self, nuisance: HyperFactors) -> None:
        """See :meth:`Likelihood.guide_sites`."""
        values = {name: factor() for name, factor in nuisance.items() if name != _BY_NODE}
        if self.by_node:
            _nodes(nuisance)(values["noise_scale"], values["noise_spread"])

    def draw_nuisance(
        self, nuisance: HyperFactors, num_draws: int, generator: Generator
    ) -> dict[str, Tensor]:
        """See :meth:`Likelihood.draw_nuisance`; of nodes without rows given the parents' draws."""
        shared = {name: f for name, f in by_name(nuisance).items() if name != _BY_NODE}
        values = super().draw_nuisance(shared, num_draws, generator)
        if self.by_node:
            common, spread = values["noise_scale"], values["noise_spread"]
            values[_BY_NODE] = _nodes(nuisance).draw(common, spread, generator)
        return values

    def know_nodes(self, nuisance: HyperFactors, nodes: Tensor, *, only: bool = False) -> None:
        """See :meth:`Likelihood.know_nodes`."""
        if self.by_node:
            _nodes(nuisance).see(nodes, only=only)

    def forget_nodes(self, nuisance: HyperFactors) -> None:
        """See :meth:`Likelihood.forget_nodes`."""
        if self.by_node:
            _nodes(nuisance).forget()

    def at_nodes(self, nuisance: HyperFactors, index: Tensor) -> HyperFactors:
        """See :meth:`Likelihood.at_nodes`: expectations of each node's noise scale, (n, Q)."""
        if not self.by_node:
            return nuisance
        shared = {name: factor for name, factor in nuisance.items() if name not in _NOISE_SITES}
        return cast(HyperFactors, {"noise_scale": _nodes(nuisance).at_nodes(index), **shared})

    def with_new_node(
        self, values: Mapping[str, Tensor], generator: Generator
    ) -> dict[str, Tensor]:
        """See :meth:`Likelihood.with_new_node`."""
        if not self.by_node:
            return dict(values)
        common, spread = values["noise_scale"], values["noise_spread"]
        noise = torch.randn(common.shape, generator=generator, dtype=common.dtype)
        new = torch.exp(common.log() + spread * noise.to(common.device)).unsqueeze(1)
        return dict(values) | {_BY_NODE: torch.cat([values[_BY_NODE], new], 1)}

    def values_at_nodes(self, values: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """See :meth:`Likelihood.values_at_nodes`."""
        if not self.by_node:
            return dict(values)
        shared = {name: value for name, value in values.items() if name not in _NOISE_SITES}
        shared = {name: value.unsqueeze(-2) for name, value in shared.items()}
        return {"noise_scale": values[_BY_NODE].index_select(-2, index), **shared}

    def noises(self, nuisance: HyperFactors) -> list[tuple[HyperFactor, Tensor]]:
        """See :meth:`Likelihood.noises`."""
        every = torch.arange(len(self.unit), device=self.unit.device)
        return [(cast(HyperFactor, nuisance["noise_scale"]), every)]

    def standardise(self, y: Tensor, *, intercept: bool) -> Scaling:
        """Mean 0 and standard deviation 1, see :func:`standardised`."""
        return standardised(y, intercept=intercept)

    def learn_noise(
        self,
        nuisance: HyperFactors,
        rows: SeenRows,
        square: Tensor,
        *,
        common: bool,
    ) -> None:
        """Noise at its optimum given expected squares (N, Q) of what it draws, as ``learn``."""
        nodes, at = self.nodes_of(rows).unique(return_inverse=True)
        zero = square.new_zeros(len(nodes), square.shape[1])
        weights, known = rows.weights, rows.weights > 0
        parts = (
            torch.where(known, weights * square, 0.0),
            weights,
            torch.where(known, weights * rows.y.square(), 0.0),
        )
        square, count, total = (zero.index_add(0, at, part) for part in parts)
        self.learn_from_residuals(nuisance, square, count, nodes, total, common=common)

    def nodes_of(self, rows: SeenRows) -> Tensor:
        """Node of each row, (N,); any one where noise is common and nobody said."""
        if rows.env_index is not None:
            return rows.env_index
        assert not self.by_node, "which node a row is at is not said"
        return torch.zeros(len(rows.y), dtype=torch.int64, device=rows.y.device)

    def learn_from_residuals(
        self,
        nuisance: HyperFactors,
        square: Tensor,
        count: Tensor,
        nodes: Tensor,
        total: Tensor | None = None,
        *,
        common: bool = True,
    ) -> None:
        """See :meth:`Likelihood.learn_from_residuals`.

        An outcome that the predictor fits exactly, constant in every environment say, leaves no
        residual but rounding: of squares of outcomes in the precision the model works in. That
        share of them is the least noise variance; the noise is then some thousandth of the
        outcome's spread or less in single precision, and finite.
        """
        noise = cast(ScaleFactor, nuisance["noise_scale"])
        least = torch.finfo(noise.scale.dtype).eps * (count if total is None else total)
        if self.by_node:
            square = torch.maximum(square.double(), least.double())
            _nodes(nuisance).learn(square, count, nodes, common=common)
        elif common:
            square = torch.maximum(square.double().sum(0), least.double().sum(0))
            noise.update(square, count.sum(0))


def noise_of(nuisance: Nuisance) -> ScaleFactor | LogNormalMoments:
    """Expectations of the rows' noise scale, of factors as rows see them."""
    assert _BY_NODE not in nuisance, "say at which nodes: Likelihood.at_nodes"
    return cast(ScaleFactor, nuisance["noise_scale"])


def _nodes(nuisance: HyperFactors) -> NodeScaleFactor:
    return cast(NodeScaleFactor, nuisance[_BY_NODE])


def _parents(nuisance: HyperFactors) -> tuple[ScaleFactor, ScaleFactor]:
    """Factors of the common noise scale, and of the spread of the nodes' around it."""
    return cast(ScaleFactor, nuisance["noise_scale"]), cast(ScaleFactor, nuisance["noise_spread"])
