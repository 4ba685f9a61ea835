"""Comparison with averages over draws, in their standard errors."""

import torch


def assert_mean(draws, expected, num_sigma=4.5, atol=1e-9):
    """The mean over the first dimension is as expected, within its standard error."""
    draws, expected = draws.detach(), torch.as_tensor(expected).detach()
    gap = (draws.mean(0) - expected).abs()
    error = draws.std(0) / len(draws) ** 0.5
    worst = (gap / error.clamp(min=1e-30)).max()
    assert (gap <= num_sigma * error + atol).all(), f"off by {worst:.1f} standard errors"
