"""Outcomes with heavy tails."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper import HyperFactors, PositiveScale, ScaleFactor, as_fixed, spread_fixed
from pyro_tbr.heads.hyper.base import by_name
from pyro_tbr.heads.likelihoods.base import SeenRows
from pyro_tbr.heads.likelihoods.distributions import StudentT
from pyro_tbr.heads.likelihoods.expectations import Nuisance, as_dict
from pyro_tbr.heads.likelihoods.noise import NoiseLikelihood, noise_of

_TAIL = "tail_df"
_LEAST_DF = 2.0  # so that outcomes have a variance
_MEDIAN, _SPREAD = 6.0, 1.5  # of what is beyond: from heavy tails to hardly any
_TURNS, _STEPS = 30, 3  # of noise and degrees of freedom, and of noise in each
_SETTLED = 1e-3  # moves of logarithms that end them
_POINTS = 5  # of a sum over degrees of freedom


class StudentTLikelihood(NoiseLikelihood):
    r"""Outcomes with Student-t noise: rows far from their predictor count less.

    The scale is a noise's as of ``GaussianLikelihood``, by environment where not given; degrees of
    freedom :math:`\nu` are 2 more than the site ``tail_df`` (Q,), so that there is a variance.
    A row is normal given a precision u of its own, :math:`u \sim \Gamma(\nu/2, \nu/2)`. With u at
    its best factor of q, the expected log density at predictor moments (m, v) is the Student-t's
    own with :math:`(y - m)^2 + v` for the squared distance: a lower bound that is tight where v is
    small beside the noise. Its precision is never negative.

    Args:
        df: Degrees of freedom, above 2, a number or (Q,); ``None``: learnt.
        scale: Scale of the noise in the outcome's unit; ``None``: learnt.
        noise: ``"common"`` or ``"by_environment"``, see ``GaussianLikelihood``.

    Source:
        Scale mixtures: Lange, Little & Taylor, JASA 84 (1989) 881.
    """

    def __init__(
        self,
        df: float | Tensor | None = None,
        scale: float | Tensor | None = None,
        noise: str | None = None,
    ) -> None:
        super().__init__(scale=scale, noise=noise, df=df)
        fixed = as_fixed(df, "df")
        if fixed is not None and bool((fixed <= _LEAST_DF).any()):
            raise DataError(
                f"df={df!r} must be above 2, as outcomes have no variance below; None: learnt"
            )
        self.df_value = fixed

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        super()._build(num_outcomes, unit)
        fixed = self.df_value
        if fixed is not None:
            fixed = spread_fixed(fixed, (num_outcomes,), "df").to(unit) - _LEAST_DF
        self.tail_df = PositiveScale(_TAIL, (num_outcomes,), fixed, median=_MEDIAN, spread=_SPREAD)

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """StudentT(2 + tail_df, predictor, noise_scale)."""
        return StudentT(_LEAST_DF + nuisance[_TAIL], predictor, nuisance["noise_scale"])

    def expected_log_prob(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """The lower bound of the class; closed form but for a sum over degrees of freedom."""
        ratio = self._ratio(y, mean, var, nuisance)
        tail, weights = _tail(nuisance)
        half = 0.5 * (tail + _LEAST_DF).unsqueeze(1)  # (T, 1, Q)
        norm = torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * (2 * math.pi * half).log()
        each = norm - (half + 0.5) * torch.log1p(0.5 * ratio / half)
        return torch.einsum("t,tnq->nq", weights.to(each), each) - noise_of(nuisance).mean_log()

    def _learn(self, nuisance: HyperFactors, rows: SeenRows, *, common: bool) -> None:
        """See :meth:`Likelihood.learn`: noise given the rows' own precisions, in turns with these.

        And in turns with the degrees of freedom, which climb the bound.
        """
        square, nodes = rows.square(), self.nodes_of(rows)
        tail = by_name(nuisance)[_TAIL]

        def place() -> Tensor:
            noise = noise_of(self.at_nodes(nuisance, nodes)).mean_log()
            return torch.cat([noise.expand_as(square), tail.state().loc.expand(1, square.shape[1])])

        for _ in range(_TURNS):
            before = place().clone()
            for _ in range(_STEPS):
                each = self.row_precision(
                    rows.y, rows.mean, rows.var, self.at_nodes(nuisance, nodes)
                )
                self.learn_noise(nuisance, rows, each * square, common=common)
            if tail.learnt and common:
                now = as_dict(self.at_nodes(nuisance, nodes))
                self._climb({_TAIL: tail}, now, rows)
            if (place() - before).abs().max() < _SETTLED:
                break

    def row_precision(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """Expected precision of each row over that of the noise, (N, Q); small for an outlier."""
        ratio = self._ratio(y, mean, var, nuisance)
        tail, weights = _tail(nuisance)
        df = (tail + _LEAST_DF).unsqueeze(1)
        return torch.einsum("t,tnq->nq", weights.to(ratio), (df + 1) / (df + ratio))

    def _ratio(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """Expected squared distance over the noise variance, (N, Q)."""
        square = (self.filled(y) - mean).square() + var
        return square * noise_of(nuisance).mean_power(-2.0)

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: Nuisance
    ) -> tuple[Tensor, Tensor]:
        """Closed form; a Student-t has df / (df - 2) times the variance of its scale."""
        tail = nuisance[_TAIL]
        assert isinstance(tail, ScaleFactor)
        wider = 1 + _LEAST_DF * tail.mean_power(-1.0)
        return mean, var + wider * noise_of(nuisance).mean_power(2.0)


def _tail(nuisance: Nuisance) -> tuple[Tensor, Tensor]:
    """Values (T, Q) of what degrees of freedom are beyond 2, and weights (T,)."""
    tail = nuisance[_TAIL]
    assert isinstance(tail, ScaleFactor)
    return tail.points(_POINTS)
