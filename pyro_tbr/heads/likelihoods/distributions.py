"""Pyro's distributions of outcomes with what they lack: distribution functions, and weights."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.heads.likelihoods.incomplete_beta import incomplete_beta


class Poisson(dist.Poisson):
    """Counts with a distribution function."""

    def cdf(self, value: Tensor) -> Tensor:
        """P(count <= value)."""
        number = value.floor()
        found = torch.special.gammaincc(number.clamp(min=0) + 1, self.rate.clamp(max=1e300))
        return torch.where(number < 0, 0.0, found)


class NegativeBinomial(dist.NegativeBinomial):
    """Overdispersed counts with a distribution function."""

    def cdf(self, value: Tensor) -> Tensor:
        """P(count <= value)."""
        number = value.floor()
        found = incomplete_beta(
            self.total_count, number.clamp(min=0) + 1, torch.sigmoid(-self.logits)
        )
        return torch.where(number < 0, 0.0, found)


class Binomial(dist.Binomial):
    """Successes among trials with a distribution function."""

    def cdf(self, value: Tensor) -> Tensor:
        """P(count <= value)."""
        number = value.floor()
        left = (self.total_count - number).clamp(min=1)
        found = incomplete_beta(left, number.clamp(min=0) + 1, torch.sigmoid(-self.logits))
        found = torch.where(number >= self.total_count, 1.0, found)
        return torch.where(number < 0, 0.0, found)


class StudentT(dist.StudentT):
    """Student's t with a distribution function."""

    def cdf(self, value: Tensor) -> Tensor:
        """P(outcome <= value)."""
        standard = (value - self.loc) / self.scale
        half = torch.as_tensor(0.5, dtype=standard.dtype, device=standard.device)
        # Far out the square is all there is, and its reciprocal keeps the digits of the tail.
        tail = 0.5 * incomplete_beta(0.5 * self.df, half, self.df / (self.df + standard.square()))
        return torch.where(standard < 0, tail, 1 - tail)


class Columns(dist.TorchDistribution):
    """Outcomes in columns (*B, Q), groups of which have distributions of their own.

    Args:
        parts: Distributions of batch shape (*B, Qg).
        columns: Which columns each is of, (Qg,) int64.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(self, parts: list[dist.TorchDistribution], columns: list[Tensor]) -> None:
        self.parts, self.columns = parts, columns
        rows = torch.broadcast_shapes(*(part.batch_shape[:-1] for part in parts))
        self._back = torch.cat(columns).argsort()
        super().__init__(torch.Size([*rows, len(self._back)]), validate_args=False)

    @property
    def support(self) -> Any:
        """Real numbers; each part checks its own."""
        return dist.constraints.real

    @property
    def mean(self) -> Tensor:
        """(*B, Q)."""
        return self._joined([part.mean for part in self.parts])

    @property
    def variance(self) -> Tensor:
        """(*B, Q)."""
        return self._joined([part.variance for part in self.parts])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """(*sample_shape, *B, Q)."""
        return self._joined([part.sample(sample_shape) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """(*B, Q)."""
        return self._each("log_prob", value)

    def cdf(self, value: Tensor) -> Tensor:
        """(*B, Q)."""
        return self._each("cdf", value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Columns":
        """The same with more dimensions to the left."""
        rows = torch.Size(batch_shape)[:-1]
        parts = [part.expand([*rows, part.batch_shape[-1]]) for part in self.parts]
        return Columns(parts, self.columns)

    def _each(self, name: str, value: Tensor) -> Tensor:
        pairs = zip(self.parts, self.columns, strict=True)
        return self._joined([getattr(part, name)(value[..., at]) for part, at in pairs])

    def _joined(self, values: list[Tensor]) -> Tensor:
        rows = torch.broadcast_shapes(*(value.shape[:-1] for value in values))
        wide = [value.expand(*rows, value.shape[-1]) for value in values]
        return torch.cat(wide, -1)[..., self._back]


class Weighted(dist.TorchDistribution):
    """A distribution whose log density counts by weights.

    Args:
        base: The distribution.
        weights: Broadcast to its batch shape.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, base: dist.TorchDistribution, weights: Tensor) -> None:
        self.base, self.weights = base, weights
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """That of the distribution."""
        return self.base.has_rsample

    @property
    def support(self) -> Any:
        """That of the distribution."""
        return self.base.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of the distribution."""
        return self.base.sample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of the distribution."""
        return self.base.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Weights times the log density."""
        return self.weights * self.base.log_prob(value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Weighted":
        """The same with more dimensions to the left."""
        return Weighted(self.base.expand(batch_shape), self.weights)
