"""Rows as normal sites."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SiteTerms(NamedTuple):
    """What rows say of their linear predictor, as normal sites; (N, Q) each, double precision.

    At the moments (m, v) they were made at, value and first derivatives in m and v of

    ``log_norm - site_scale * precision * E[(f - response)^2] / 2,   f ~ N(m, v)``

    are those of the expected log density.

    Attributes:
        precision: Above 0; in units of ``Likelihood.site_scale``.
        response: In the predictor's unit.
        log_norm: Log density.
    """

    precision: Tensor
    response: Tensor
    log_norm: Tensor


def touching(
    each: Tensor, mean: Tensor, var: Tensor, precision: Tensor, slope: Tensor
) -> SiteTerms:
    """Sites of these precisions that have value ``each`` and slope in the mean; (N, Q) all."""
    step = slope / precision
    return SiteTerms(precision, mean + step, each + 0.5 * precision * (step.square() + var))
