"""Which changes to call changes: a list with a bounded Bayesian false discovery rate."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyro_tbr.errors import DataError
from pyro_tbr.posterior.identification import identify
from pyro_tbr.posterior.tables import changes, long_table
from pyro_tbr.posterior.view import PosteriorView, is_real, require_gates
from pyro_tbr.progress import stage, step

_NUM_DRAWS = 4000
_SEED = 314_159


class Selection(NamedTuple):
    """What :func:`select_at_fdr` chose.

    Attributes:
        chosen: Positions in the array, from the top of the ranking, int64.
        fdr: The realised level: mean of 1 - PIP over the chosen; 0 where nothing is chosen.
        running: The same for every list from the top down to each of the chosen.
    """

    chosen: NDArray[np.int64]
    fdr: float
    running: NDArray[np.float64]


def select_at_fdr(pips: Any, fdr: float, order_by: Any = None) -> Selection:
    r"""The largest set from the top of the ranking with a Bayesian FDR of at most ``fdr``.

    One minus a PIP is the posterior probability that calling the arc a change is wrong, so the
    expected share of wrong calls in a set :math:`C` is
    :math:`\frac{1}{|C|} \sum_{a \in C} (1 - \mathrm{PIP}_a)`. It grows down the ranking.

    Args:
        pips: Posterior inclusion probabilities, of one dimension.
        fdr: Level, from 0 to below 1.
        order_by: What ranks them, higher first, such as their log odds, which still differ where
            PIPs round to 1; ``None``: the PIPs. Ties stay in the order given.

    Raises:
        DataError: A level outside [0, 1), or PIPs outside [0, 1] or of several dimensions.

    Example:
        >>> select_at_fdr([0.80, 0.99, 0.30, 0.97, 0.02], fdr=0.1)[:2]
        (array([1, 3, 0]), 0.08)

    Source:
        Newton, Noueiry, Sarkar & Ahlquist, Biostatistics 5 (2004) 155; Mueller, Parmigiani, Robert
        & Rousseau, JASA 99 (2004) 990.
    """
    if not (is_real(fdr) and 0 <= fdr < 1):
        raise DataError(f"fdr={fdr!r} must be a number from 0 to below 1, such as 0.05")
    values = np.asarray(pips, dtype=np.float64)
    if values.ndim != 1:
        raise DataError(f"pips: one dimension expected, received {values.shape}; give pips.ravel()")
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError("pips must be probabilities, from 0 to 1, without NaN")
    key = values if order_by is None else np.asarray(order_by, dtype=np.float64)
    # By PIP first, so the running mean can only grow; the key decides among equal PIPs.
    order = np.lexsort((-key, -values))
    running = np.cumsum(1 - values[order]) / np.arange(1, len(order) + 1)
    num = int((running <= fdr + 1e-12).sum())  # 1 - 0.9 is a little more than 0.1
    level = float(round(running[num - 1], 12)) if num else 0.0
    return Selection(order[:num], level, running[:num])


@torch.no_grad()
def chosen_changes(view: PosteriorView, fdr: float) -> tuple[Selection, NDArray[np.float64]]:
    """Which changes ``Posterior.select`` takes, as rows of ``Posterior.deltas``; their log odds."""
    require_gates(view, "select()")
    pips, log_odds = (
        part.cpu().double().flatten(1).numpy()
        for part in (view.guide.delta_moments().inclusion, view.guide.log_odds())
    )
    informed = np.repeat(view.informed_changes, len(view.outcome_names), axis=1)
    rows = np.flatnonzero(informed)
    found = select_at_fdr(pips.ravel()[rows], fdr, order_by=log_odds.ravel()[rows])
    rows = rows[found.chosen]
    return found._replace(chosen=rows), log_odds.ravel()[rows]


@torch.no_grad()
def selected(view: PosteriorView, fdr: float) -> pd.DataFrame:
    """See ``Posterior.select``."""
    found, log_odds = chosen_changes(view, fdr)
    table = changes(view, 0.9, found.chosen)
    table["log_odds"] = log_odds
    table["fdr"] = found.running
    identified = identify(view)
    sure = identified.latents["determined"]
    determined = [bool(sure.get(latent, True)) for latent in table["latent"]]  # intercepts are
    table["determined"] = np.array(determined, dtype=bool)
    if view.model.latent_of is not None:
        table["size"] = _sizes(view, found.chosen)
    table.attrs |= {"fdr": found.fdr, "verdict": identified.verdict}
    return table


def _sizes(view: PosteriorView, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Root mean square changes of curves, of some rows of ``Posterior.deltas``.

    Over the rows of the fit: functions of a latent are orthogonal, and of variance 1.
    """
    moments, latent_of = view.guide.delta_moments(), view.model.latent_of
    assert latent_of is not None
    second = (moments.var + moments.mean.square()).cpu().double()  # (A, W, Q)
    zero = second.new_zeros(len(second), max(latent_of) + 1, second.shape[-1])
    whole = zero.index_add(1, torch.tensor(latent_of), second)[:, list(latent_of)]
    size = whole.sqrt() * view.scaling.scale
    return np.asarray(size.flatten().numpy()[rows])


@torch.no_grad()
def exceedances(view: PosteriorView, threshold: float) -> pd.DataFrame:
    """See ``Posterior.exceedance``."""
    if not (is_real(threshold) and 0 <= threshold < float("inf")):
        raise DataError(f"threshold={threshold!r} must be a finite number, 0 or more")
    limit = threshold / view.weight_unit
    # By draws: given inclusion a change can have several modes, and without data heavy tails.
    above = torch.zeros(view.model.prior.delta_shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed(_SEED)
    with stage("draws", total=_NUM_DRAWS, unit="draw"):
        for block in view.guide.sample_arcs("deltas", _NUM_DRAWS, generator):
            above += (block.cpu().abs() > limit).sum(0)
            step(len(block), unit="draw")
    value = above / _NUM_DRAWS
    parts = {"exceedance": value, "threshold": torch.full_like(value, threshold)}
    return long_table(view.tree, parts, view.latent_names, view.outcome_names)
