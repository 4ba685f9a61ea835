"""Does the model fit? What rows say against it, by environment, latent and outcome.

All parts look at standardised residuals u: outcome less its predicted mean, over the standard
deviation the model gives it. If the model is right they have variance 1 in every environment, no
heavy tails, and nothing explains them: no square of a latent, no other direction of the features,
no other outcome. How large a statistic is by chance comes from the same residuals with signs turned
at random, row by row, which keeps uneven noise, tails and the correlation of outcomes as they are.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.data import align_features
from pyro_tbr.errors import DataError
from pyro_tbr.heads import DesignRows, Guide, Statistics
from pyro_tbr.heads.likelihoods import Likelihood
from pyro_tbr.heads.moments import NodeMoments, predictor_moments
from pyro_tbr.posterior.chance import ByEnvironment, Reference, Residuals, leading
from pyro_tbr.posterior.model_check import TAIL, ModelCheck, reasons_of
from pyro_tbr.posterior.tables import names_index
from pyro_tbr.posterior.view import PosteriorView

MOST_ROWS = 10_000  # drawn evenly where there are more
_LEAST_NOISE = 1e-6  # in units where outcomes have variance 1: below it residuals are rounding
_LEAST_SHARE = 0.05  # of the variance a row's residual has by the model: weights may take the rest


@torch.no_grad()
def checked(
    guide: Guide,
    rows: DesignRows,
    features: Tensor | None,
    unit: Tensor,
    names: tuple[tuple[str, ...], tuple[Hashable, ...]],
    stats: Statistics,
    *,
    seen: bool,
) -> ModelCheck:
    """See ``Posterior.check``.

    Args:
        guide: At its optimum.
        rows: Not more than ``MOST_ROWS``, in the units of training.
        features: Of the rows, standardised, (N, D); ``None`` where they are the latents.
        unit: The user's units in one unit of the outcomes the model sees, (Q,).
        names: Of weights and outcomes.
        stats: Of all rows that the guide has seen.
        seen: The rows are among those, so they fit a little better than others.
    """
    weights, outcomes = names
    num_latents = guide.head.num_latents
    residuals = _residuals(guide, rows, stats, seen=seen)
    reference = Reference(rows, residuals)
    environments = _environments(guide, reference, unit, outcomes)
    squares = rows.design[:, :num_latents].double().square()
    curved = reference.explained(squares)
    amount, sd = _curvature(guide, rows, reference, squares)
    latents = pd.DataFrame({
        "latent": list(weights[:num_latents]), "curvature": amount, "sd": sd,
        "share": curved.share, "z": curved.z, "correlation": largest_correlation(rows, num_latents),
    })  # fmt: skip
    missing = (np.nan, np.nan)
    if features is not None:
        missing = reference.one_more(leading(features.double()))
    correlations, worth = _together(residuals.u, outcomes)
    # By the noise alone: a row that its environment's weights follow has a small residual.
    tails = _tails(residuals.raw if guide.head.likelihood.exact else None, outcomes)
    found = ModelCheck(environments, latents, *missing, correlations, worth, tails, ())
    likelihood = guide.head.likelihood
    reasons = reasons_of(found, remedy=_remedy(likelihood), together=_told_together(likelihood))
    return ModelCheck(**(vars(found) | {"reasons": reasons}))


@torch.no_grad()
def check_of(view: PosteriorView, x: Any, y: Any, env: Any, known: Mapping[str, Any]) -> ModelCheck:
    """See ``Posterior.check``."""
    given = {"x": x, "y": y, "env": env}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3:
        if view.report.check is None:
            raise DataError("check(): the fit left no check, so give it rows: check(x, y, env)")
        return view.report.check
    if missing:
        raise DataError(f"{' and '.join(missing)} missing: give x, y and env, or none of them")
    rows, _ = view.align_rows(x, y, env, known)
    picked = some_rows(len(rows)).to(rows.y.device)
    shown, encoder = None, view.model.encoder
    if encoder.trainable:
        features, _ = align_features(view.schema, x, keep=True)
        shown = encoder.prepare(features[picked.cpu()].to(rows.y.device))
    names = view.latent_names, view.outcome_names
    unit = view.scaling.outcome_scale()
    return checked(view.guide, rows.select(picked), shown, unit, names, view.stats, seen=False)


def _remedy(likelihood: Likelihood) -> str:
    """What to do where the noise of environments is not the model's; none where it is learnt."""
    if not likelihood.exact:
        return ""
    if any(hyper.fixed is not None for hyper in likelihood.hyperparameters()):
        return f"the noise was given, {likelihood!r}: leave it out, so that it is learnt"
    return "" if likelihood.by_node else 'give GaussianLikelihood(noise="by_environment")'


def _told_together(likelihood: Likelihood) -> str | None:
    """What to do where residuals of outcomes correlate; ``None``: the model knows it."""
    if likelihood.correlated:
        return None
    return "; give GaussianLikelihood(covariance='full')" if likelihood.exact else ""


def some_rows(number: int) -> Tensor:
    """Which of so many rows are looked at: all, or as many as ``MOST_ROWS``, evenly."""
    if number <= MOST_ROWS:
        return torch.arange(number)
    return torch.linspace(0, number - 1, MOST_ROWS, dtype=torch.float64).round().long()


def _residuals(guide: Guide, rows: DesignRows, stats: Statistics, *, seen: bool) -> Residuals:
    """See :class:`Residuals`; rows that the weights have moved towards have smaller ones."""
    mean, var = _predictor(guide, rows, stats)
    nuisance = guide.nuisance_of(rows)
    likelihood = guide.head.likelihood
    centre, noise = likelihood.predictive_moments(mean, torch.zeros_like(mean), nuisance)
    noise = noise.double().clamp(min=_LEAST_NOISE**2)
    noise_sd = noise.sqrt()
    if likelihood.exact and seen:
        noise = torch.maximum(noise - var, _LEAST_SHARE * noise)
    elif likelihood.exact:
        noise = noise + var
    far = rows.y.double() - centre
    return Residuals(far / noise.sqrt(), noise.sqrt(), far / noise_sd, noise_sd)


def _predictor(guide: Guide, rows: DesignRows, stats: Statistics) -> NodeMoments:
    """Means and variances of the rows' predictors, (N, Q) double, weights of a node jointly.

    Of weights that rows hardly tell apart, variances as if they were independent would be far too
    large.
    """
    nodes, at = rows.env_index.unique(return_inverse=True)
    mean, var = (part[nodes].double() for part in guide.node_moments())
    cov = torch.diag_embed(var.mT)  # (E, Q, W, W)
    place = torch.searchsorted(stats.nodes, nodes).clamp(max=len(stats.nodes) - 1)
    known = stats.nodes[place] == nodes
    # As the rows are, whatever their weights' variances are multiplied by.
    joint = guide.joint_cov(stats._replace(inflation=None))
    cov[known] = joint[place[known]].to(cov)
    return predictor_moments(rows.design.double(), at, NodeMoments(mean, var), cov)


def _environments(
    guide: Guide, reference: Reference, unit: Tensor, outcomes: tuple[Hashable, ...]
) -> pd.DataFrame:
    """See :class:`ModelCheck`."""
    environments, (u, sd, _, _) = reference.environments, reference.residuals
    seen = ~torch.isnan(u)
    parts = (seen.double(), u.nan_to_num().square(), torch.where(seen, sd, 0.0).square())
    count, square, noise = (environments.sums(part).cpu().numpy() for part in parts)
    safe = np.maximum(count, 1)
    ratio = np.maximum(square / safe, 1e-12)
    error = np.sqrt(np.maximum(_kurtosis(u) - 1, 0.5) / safe)
    model = np.sqrt(noise / safe) * unit.cpu().numpy()
    labels = np.empty(len(count), dtype=object)
    labels[:] = [guide.head.tree.nodes[node] for node in environments.nodes.tolist()]
    place, q = (part.ravel() for part in np.indices(count.shape))
    table = {
        "node": labels[place],
        "outcome": names_index(outcomes, "outcome").take(q),
        "rows": count.ravel().astype(int),
        "residual_sd": (model * np.sqrt(ratio)).ravel(),
        "model_sd": model.ravel(),
        "ratio": ratio.ravel(),
        "z": (np.log(ratio) / error).ravel(),
    }
    return pd.DataFrame(table)[count.ravel() > 0].reset_index(drop=True)


def _kurtosis(u: Tensor) -> np.ndarray:
    """Of each column (N, Q), about zero, NaN left out, (Q,); 3 for a normal."""
    square, seen = u.nan_to_num().square(), (~torch.isnan(u)).sum(0).clamp(min=1)
    fourth, second = (part.sum(0) / seen for part in (square.square(), square))
    return (fourth / second.square().clamp(min=1e-300)).cpu().numpy()


def _curvature(
    guide: Guide, rows: DesignRows, reference: Reference, squares: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """How much of its square a latent acts by, and the standard deviation of that, (K,) each."""
    weights = guide.node_moments().mean[rows.env_index].double()  # (N, W, Q)
    top, bottom = squares.new_zeros(squares.shape[1]), squares.new_zeros(squares.shape[1])
    each = squares.new_zeros(squares.shape)
    for q, (raw, _, own) in enumerate(reference.outcomes(squares)):
        effect = weights[:, : squares.shape[1], q] * own
        top += (effect * raw.unsqueeze(-1)).sum(0)
        bottom += effect.square().sum(0)
        each += effect * raw.unsqueeze(-1)
    bottom = bottom.clamp(min=1e-300)
    return (top / bottom).cpu().numpy(), (each.square().sum(0).sqrt() / bottom).cpu().numpy()


def largest_correlation(rows: DesignRows, num_latents: int) -> np.ndarray:
    """Largest size of the correlation within environments with another latent, (K,)."""
    z = rows.design[:, :num_latents].double()
    environments = ByEnvironment(rows.env_index)
    centred = z - environments.means(z)[environments.at]
    product = centred.T @ centred
    length = product.diagonal().clamp(min=1e-300).sqrt()
    found = (product / length / length[:, None]).abs()
    found.fill_diagonal_(0)
    return found.amax(1).cpu().numpy()


def _together(u: Tensor, outcomes: tuple[Hashable, ...]) -> tuple[pd.DataFrame, float]:
    """Correlations of the residuals of outcomes, and how many these are worth."""
    names = names_index(outcomes, "outcome")
    table = pd.DataFrame(u.cpu().numpy()).corr(min_periods=20).fillna(0.0).to_numpy().copy()
    np.fill_diagonal(table, 1.0)
    size, rows = len(table), len(u)
    chance = size * (size - 1) / max(rows, 1)  # of the sum of squares off the diagonal
    square = max((table**2).sum() - chance, float(size))
    return pd.DataFrame(table, index=names, columns=list(outcomes)), size**2 / square


def _tails(u: Tensor | None, outcomes: tuple[Hashable, ...]) -> pd.DataFrame:
    """See :class:`ModelCheck`."""
    if u is None:
        return pd.DataFrame({"outcome": [], "beyond": [], "kurtosis": []})
    observed = (~torch.isnan(u)).sum(0).clamp(min=1)
    beyond = ((u.abs() > TAIL).sum(0).double() / observed).cpu().numpy()
    names = names_index(outcomes, "outcome")
    return pd.DataFrame({"outcome": names, "beyond": beyond, "kurtosis": _kurtosis(u)})
