"""The regularised incomplete beta function, which torch has not."""

import torch
from torch import Tensor

_TOLERANCE = 1e-13  # relative, of the continued fraction
_MOST_TERMS = 100_000  # it takes some sqrt(max(a, b))
_TINY = 1e-300


def incomplete_beta(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """I_x(a, b), the distribution function of Beta(a, b) at x; double precision, no gradient.

    Args:
        a: Above 0.
        b: Above 0; all three broadcast.
        x: From 0 to 1.

    Raises:
        ArithmeticError: The continued fraction did not settle.

    Source:
        Press et al., Numerical Recipes, 3rd ed., section 6.4, by the modified Lentz method.
    """
    a, b, x = torch.broadcast_tensors(*(part.detach().double() for part in (a, b, x)))
    # The fraction converges fast below the mean; above it the other tail is taken.
    turned = x > (a + 1) / (a + b + 2)
    first, second = torch.where(turned, b, a), torch.where(turned, a, b)
    at = torch.where(turned, 1 - x, x)
    log_front = (
        torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
        + torch.xlogy(first, at) + torch.special.xlog1py(second, -at)
    )  # fmt: skip
    tail = log_front.exp() * _fraction(first, second, at) / first
    return torch.where(turned, 1 - tail, tail).clamp(0, 1)


def _fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """The continued fraction; elements that have settled are left behind from time to time."""
    shape = x.shape
    a, b, x = (part.reshape(-1) for part in (a, b, x))
    result, index = torch.ones_like(x), torch.arange(len(x), device=x.device)
    c = torch.ones_like(x)
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d.clone()
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / _away_from_zero(1 + even * d), _away_from_zero(1 + even / c)
        value = value * d * c
        d, c = 1 / _away_from_zero(1 + odd * d), _away_from_zero(1 + odd / c)
        step = d * c
        value = value * step
        going = ~((step - 1).abs() <= _TOLERANCE)  # NaN goes on, and is said
        if m % 16 == 0 or not bool(going.any()):
            result[index] = value
            if not bool(going.any()):
                return result.reshape(shape)
            index = index[going]
            a, b, x, c, d, value = (part[going] for part in (a, b, x, c, d, value))
    raise ArithmeticError(
        f"the incomplete beta function of {len(x)} of {result.numel()} values did not settle in "
        f"{_MOST_TERMS} terms, first a={a[0]:.4g}, b={b[0]:.4g}, x={x[0]:.4g}"
    )


def _away_from_zero(value: Tensor) -> Tensor:
    return torch.where(value.abs() < _TINY, _TINY, value)
