"""Equal mixtures of distributions over draws, whatever their kind, and draws by a generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from pyro_tbr.heads.likelihoods.base import Kind
from pyro_tbr.heads.likelihoods.distributions import Columns

_TOLERANCE = 1e-5  # of a quantile, in standard deviations of the mixture
_MOST_ROUNDS = 200  # of the search for a quantile; a smooth mixture takes five
_LEAST_TAIL = 1e-16
_LARGEST_COUNT = 2.0**53  # whole numbers are all there up to it
_RANDOM = {
    *("normal", "bernoulli", "poisson", "binomial", "multinomial", "rand", "randn", "randint"),
    *("_standard_gamma", "_sample_dirichlet", "uniform_", "normal_", "exponential_", "cauchy_"),
    *("geometric_", "log_normal_", "bernoulli_", "random_"),
}


class Mixture:
    """An equal mixture of distributions; the first dimension of their batch is mixed over.

    Args:
        each: Batch shape (S, *B). What is asked decides what it has to offer: mean and variance,
            ``cdf``, ``log_prob``.
    """

    def __init__(self, each: Distribution) -> None:
        self.each = each

    def mean(self) -> Tensor:
        """(*B)."""
        return self.each.mean.mean(0)

    def sd(self) -> Tensor:
        """Standard deviation, (*B)."""
        mean = self.each.mean
        return ((mean - mean.mean(0)).square() + self.each.variance).mean(0).sqrt()

    def quantile(self, probability: float) -> Tensor:
        """Where the mixture's distribution function reaches a probability, (*B).

        Steps of the secant on the scale of normal quantiles, where a mixture's function is nearly
        straight, kept inside a bracket; its middle where a step does not halve the one before the
        last. There may be no variance: the bracket opens until it holds the value.
        """
        target = _normal_quantile(torch.tensor(probability, dtype=torch.float64)).item()
        sd, mean = self.sd(), self.mean()
        scale = torch.where(torch.isfinite(sd) & (sd > 0), sd, 1.0)
        value = torch.where(torch.isfinite(mean), mean, 0.0) + target * scale
        low, high = torch.full_like(value, -torch.inf), torch.full_like(value, torch.inf)
        last = before_last = torch.full_like(value, torch.inf)
        value_before, gap_before = value - scale, torch.full_like(value, torch.nan)
        done = torch.zeros_like(value, dtype=torch.bool)
        for number in range(_MOST_ROUNDS):
            reached = self.each.cdf(value).mean(0)
            low = torch.where(reached < probability, value, low)
            high = torch.where(reached < probability, high, value)
            gap = _normal_quantile(reached) - target
            slope = (gap - gap_before) / (value - value_before) if number else 1 / scale
            step = -gap / slope
            new = value + step
            straight = (new > low) & (new < high) & (2 * step.abs() < before_last)
            reach = scale * 2.0 ** (number + 1)
            bottom = torch.where(torch.isinf(low), high - reach, low)
            top = torch.where(torch.isinf(high), low + reach, high)
            new = torch.where(straight, new, 0.5 * (bottom + top))
            new = torch.where(gap == 0, value, new)
            moved = (new - value).abs()
            before_last, last = last, moved
            value_before, gap_before = value, gap
            # A row that has settled stays, whatever rows are beside it.
            value = torch.where(done, value, new)
            done = done | (moved <= _TOLERANCE * scale)
            if bool(done.all()):
                break
        return value

    def whole_quantile(self, probability: float) -> Tensor:
        """The smallest whole number whose distribution function reaches a probability, (*B).

        For counts: by doubling a bracket and halving it. Infinite where counts are beyond what
        double precision holds.
        """
        mean, sd = self.mean(), self.sd()
        reach = torch.where(torch.isfinite(sd), sd, 1.0).clamp(min=1.0)
        top = torch.where(torch.isfinite(mean), mean, 1.0).clamp(min=0).floor()
        low = torch.full_like(top, -1.0)  # the function is 0 there

        def reached(value: Tensor) -> Tensor:
            return self.each.cdf(value).mean(0) >= probability

        for _ in range(_MOST_ROUNDS):
            enough = reached(top) | ~(top < _LARGEST_COUNT)
            if bool(enough.all()):
                break
            low = torch.where(enough, low, top)
            top = torch.where(enough, top, (top + reach).floor())
            reach = 2 * reach
        for _ in range(_MOST_ROUNDS):
            middle = ((low + top) / 2).floor()
            if bool(((top - low) <= 1).all()) or bool((middle == top).all()):
                break
            enough = reached(middle)
            low, top = torch.where(enough, low, middle), torch.where(enough, middle, top)
        return torch.where(top < _LARGEST_COUNT, top, torch.inf)

    def log_prob_by_component(self, y: Tensor) -> Tensor:
        """Log density (or log probability) of values (*B) under each, (S, *B); NaN where y is."""
        seen = ~torch.isnan(y)
        if not bool(seen.any()):
            return y.expand(self.each.batch_shape)
        # Something in the support stands for what was not observed.
        value = self.each.log_prob(torch.where(seen, y, y[seen][0]))
        return torch.where(seen, value, torch.nan)

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density (or log probability) of values, (*B); NaN where y is."""
        return self.log_prob_by_component(y).logsumexp(0) - math.log(self.each.batch_shape[0])


def quantiles(each: Distribution, kinds: Sequence[Kind], probability: float) -> Tensor:
    """Quantiles (N, Q) of the outcomes of distributions (S, N, Q), one a draw.

    Args:
        each: Columns of several distributions where there are several kinds.
        kinds: What the outcomes are like, see :class:`Kind`.
        probability: Of the quantile.
    """
    parts = each.parts if isinstance(each, Columns) else [each]
    found, columns = [], []
    for part, kind in zip(parts, kinds, strict=True):
        if kind.interval == "mean":
            found.append(quantile_of_draws(part.mean, probability))
        elif kind.discrete:
            found.append(Mixture(part).whole_quantile(probability))
        else:
            found.append(Mixture(part).quantile(probability))
        columns.append(kind.columns)
    if len(parts) == 1:
        return found[0]
    return torch.cat(found, -1)[..., torch.cat([c for c in columns if c is not None]).argsort()]


def quantile_of_draws(draws: Tensor, probability: float) -> Tensor:
    """Quantiles over the first dimension; torch's own refuses tensors without elements."""
    return torch.quantile(draws, probability, dim=0) if draws.numel() else draws.sum(0)


def drawn(distribution: Distribution, generator: torch.Generator) -> Tensor:
    """A draw of a distribution by a generator, which torch's distributions do not take.

    Torch's global generator is neither read nor moved, in this thread or any other.
    """
    with _From(generator):
        return distribution.sample()


class _From(TorchFunctionMode):
    """Random numbers that this thread asks torch for come from a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in _RANDOM:
            kwargs.setdefault("generator", self.generator)
        return func(*args, **kwargs)


def _normal_quantile(probability: Tensor) -> Tensor:
    """Of the standard normal, finite at 0 and 1."""
    return torch.special.ndtri(probability.clamp(_LEAST_TAIL, 1 - _LEAST_TAIL))
