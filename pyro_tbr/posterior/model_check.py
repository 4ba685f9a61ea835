"""What rows say against a model, as a value: tables, and what is clearly wrong in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

TAIL = 5.0  # standard deviations; a normal has 6e-7 beyond
_SURE = 5.0  # standard deviations of chance beyond which something is said, where it
_CURVED, _MISSING = 0.03, 0.08  # explains these shares of the residual variance too
_UNEVEN, _UNEVEN_SD = 1.5, 5.0  # ratio of noise of environments, and how sure
_HEAVY = 2e-3  # share of outcomes beyond, from which tails are heavy
_WORTH = 0.6  # outcomes are worth less than this share of their number
_COPIES = 0.95  # correlation of residuals of outcomes that are nearly the same
_ALIKE = 0.9  # correlation of latents from which expectation propagation errs
_SHOWN = 5


@dataclass(frozen=True)
class ModelCheck:
    """What ``Posterior.check`` gives; ``str`` of it reads well.

    Attributes:
        environments: node, outcome, rows, residual_sd, model_sd (root mean squares, in the
            outcome's unit), ratio (of the two variances) and z (its logarithm in standard errors).
        latents: latent, curvature c (it acts as ``z + c (z^2 - 1)``, z in the model's units), its
            sd, share (of residual variance that squares of it explain, environment by environment),
            z (beyond chance, in standard deviations of chance) and correlation (largest one within
            environments with another latent, in size).
        missing_share: Share of residual variance that one more latent would explain; NaN where
            latents are known.
        missing_z: The same beyond chance, in standard deviations of chance.
        correlations: Of the residuals of the outcomes, (Q, Q).
        worth: How many independent outcomes they are worth.
        tails: outcome, beyond (share of residuals beyond 5 standard deviations), kurtosis (3 for a
            normal); empty for outcomes that are not normal around their predictor.
        reasons: What is clearly wrong, where, and what to do; empty if nothing is.
    """

    environments: pd.DataFrame
    latents: pd.DataFrame
    missing_share: float
    missing_z: float
    correlations: pd.DataFrame
    worth: float
    tails: pd.DataFrame
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        head = (
            "Nothing speaks against the model." if not self.reasons else "The model does not fit:"
        )
        lines = [head, *(f"  - {reason}" for reason in self.reasons)]
        if len(self.environments):
            ratio = self.environments["ratio"]
            lines.append(
                f"  Residual variance over the model's, by environment: {ratio.min():.2f} to "
                f"{ratio.max():.2f}."
            )
        if not np.isnan(self.missing_share):
            lines.append(
                f"  One more latent would explain {max(0.0, self.missing_share):.1%} of the "
                "residual variance."
            )
        pairs = zip(self.latents["latent"], self.latents["share"], strict=True)
        shares = ", ".join(f"{name} {max(0.0, share):.1%}" for name, share in pairs)
        lines.append(f"  Squares of the latents explain: {shares}.")
        if len(self.correlations) > 1:
            lines.append(
                f"  {len(self.correlations)} outcomes are worth {self.worth:.1f} independent ones."
            )
        return "\n".join(lines)


def reasons_of(found: ModelCheck, *, remedy: str, together: str | None = "") -> tuple[str, ...]:
    """What is clearly wrong, where, and what to do.

    Of uneven noise the ``remedy``, or nothing; of outcomes that go ``together`` likewise, ``None``
    where the model knows it.
    """
    reasons = []
    if found.missing_z > _SURE and found.missing_share > _MISSING:
        reasons.append(
            f"one more latent would explain {found.missing_share:.0%} of the residual variance: "
            "give a larger latent_dim"
        )
    curved = found.latents[(found.latents["z"] > _SURE) & (found.latents["share"] > _CURVED)]
    if len(curved):
        reasons.append(
            "outcomes curve in latents (share of the residual variance that squares explain): "
            f"{_listed(curved['latent'], curved['share'], '.0%')}; fit with "
            "TreeModel(basis='spline'), or one of more functions, transform the outcomes, or read "
            "changes with care where environments differ in the means of these latents"
        )
    table = found.environments
    far = np.abs(np.log(table["ratio"])) > np.log(_UNEVEN)
    uneven = table[far & (np.abs(table["z"]) > _UNEVEN_SD)]
    if len(uneven) and remedy:
        worst = uneven.reindex(uneven["z"].abs().sort_values(ascending=False).index)
        worst = worst.drop_duplicates("node")
        reasons.append(
            "environments' residual variances over the model's are far from 1: "
            f"{_listed(worst['node'], worst['ratio'], '.2f')}; {remedy}"
        )
    heavy = found.tails[found.tails["beyond"] > _HEAVY]
    if len(heavy):
        reasons.append(
            f"outcomes have outliers beyond {TAIL:g} standard deviations: "
            f"{_listed(heavy['outcome'], heavy['beyond'], '.1%')}; look at these rows, "
            "as they widen all intervals and hide small changes: leave out what is an error, or "
            "fit with likelihood='student_t'"
        )
    alike = found.latents[found.latents["correlation"] > _ALIKE]
    if len(alike):
        reasons.append(
            "latents correlate within environments with another one: "
            f"{_listed(alike['latent'], alike['correlation'], '.2f')}; which of them changes is "
            "hard to say, and the fit's PIPs of these may be off by 0.1 and more: "
            "sample_posterior(posterior) says it right where outcomes are normal"
        )
    near = _copies(found.correlations) if together is None else []
    if near:
        reasons.append(
            f"residuals of outcomes are nearly the same: {', '.join(near)}; what is known of their "
            "weights is known once, and the model takes their changes for separate, so intervals "
            "of these weights are too narrow: leave out what is a copy of another outcome"
        )
    if together is not None and found.worth < _WORTH * len(found.correlations):
        reasons.append(
            f"residuals of the {len(found.correlations)} outcomes correlate, so they are worth "
            f"{found.worth:.1f} independent ones: a change seen in several is no more evidence, "
            f"and an interval of their sum or mean is too narrow{together}"
        )
    return tuple(reasons)


def _copies(correlations: pd.DataFrame) -> list[str]:
    """Pairs of outcomes whose residuals are nearly the same, the first few in words."""
    names, values = list(correlations.columns), correlations.to_numpy()
    first, second = np.nonzero(np.triu(np.abs(values) > _COPIES, 1))
    shown = [
        f"{names[q]!s} and {names[r]!s} ({values[q, r]:.3f})"
        for q, r in zip(first[:_SHOWN], second[:_SHOWN], strict=True)
    ]
    more = len(first) - _SHOWN
    return shown + ([f"{more} pairs more"] if more > 0 else [])


def _listed(labels: pd.Series, values: pd.Series, form: str) -> str:
    """The first few labels with their values."""
    parts = [f"{label} ({value:{form}})" for label, value in zip(labels, values, strict=True)]
    more = len(parts) - _SHOWN
    return ", ".join(parts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
