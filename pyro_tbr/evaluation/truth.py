"""Truth in a posterior's own terms: its latents, its order, its labels; and what to make of it.

A posterior's latents come in an order of their own, so true changes have to be brought into it
before anything is compared: :func:`true_changes` gives them as a table in the rows of
``Posterior.deltas()``. :func:`credible_set_coverage` and :func:`selection_score` read that table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.evaluation.checks import Array, as_float
from pyro_tbr.evaluation.latents import LatentMatch, match_latents
from pyro_tbr.evaluation.simulation import Simulation
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.tables import long_table

_PLACE = ["parent", "child", "latent", "outcome"]


class CredibleSetCoverage(NamedTuple):
    """How often credible sets hold what they say.

    Attributes:
        num_sets: Number of sets.
        covered: Share of them that hold a true change; NaN without sets.
        se: Standard error of that share, sets taken as independent.
        stated: Mean of the coverage they state.
        mean_size: Mean number of arcs in a set.
        found: Share of the true changes that are in a set of their latent and outcome.
    """

    num_sets: int
    covered: float
    se: float
    stated: float
    mean_size: float
    found: float


class SelectionScore(NamedTuple):
    """How true a list of changes is.

    Attributes:
        num_selected: Length of the list.
        fdr: Share of it that is no true change: the false discovery proportion; 0 where nothing
            was selected, as in its expectation, the false discovery rate.
        stated: Mean of 1 - PIP over the list, what the posterior expects it to be.
        power: Share of the true changes that are in the list; NaN where there are none.
    """

    num_selected: int
    fdr: float
    stated: float
    power: float


def match_gates(
    gates: Any, match: LatentMatch, num_latents: int, intercept_gates: Any = None
) -> Array:
    """True gates in the order of estimated latents.

    Args:
        gates: True gates, (A, K, Q) of 0 and 1.
        match: Of the K true latents with the estimated ones.
        num_latents: K', estimated latents; those without a partner have no true change.
        intercept_gates: True gates of the intercept, (A, Q), put behind the latents; ``None``: the
            estimates have no intercept.

    Returns:
        (A, K' or K' + 1, Q) bool.

    Raises:
        ShapeError: ``gates`` has not the latents of ``match``, or the two do not fit.

    Example:
        >>> match = LatentMatch(np.array([1, 0]), np.array([1, -1]), np.array([1.0, 0.9]))
        >>> match_gates([[[1], [0]]], match, num_latents=2)[0, :, 0]
        array([False,  True])
    """
    true = as_float(gates) != 0
    if true.ndim != 3 or true.shape[1] != len(match.permutation):
        raise ShapeError(
            f"gates has shape {true.shape}: give (A, K, Q) with the {len(match.permutation)} "
            "latents that were matched"
        )
    num_arcs, _, num_outcomes = true.shape
    matched = np.zeros((num_arcs, num_latents, num_outcomes), dtype=bool)
    has_partner = match.permutation >= 0
    matched[:, match.permutation[has_partner]] = true[:, has_partner]
    if intercept_gates is None:
        return matched
    intercept = as_float(intercept_gates) != 0
    if intercept.shape != (num_arcs, num_outcomes):
        raise ShapeError(
            f"intercept_gates has shape {intercept.shape}, gates {true.shape}: give (A, Q)"
        )
    return np.concatenate([matched, intercept[:, None]], axis=1)


def true_changes(simulation: Simulation, posterior: Posterior) -> pd.DataFrame:
    """The true changes in the order and with the labels of a posterior.

    Latents are matched by their correlation over the rows of the simulation.

    Args:
        simulation: The truth.
        posterior: A fit to some of its rows, on its tree.

    Returns:
        The rows of ``posterior.deltas()`` (of latents alone, where a basis has curves of them):
        parent, child, latent, outcome, change (bool), and
        informed (bool): whether there are data below the arc and the latent is not constant,
        without which no fit can know.

    Raises:
        DataError: The posterior is on another tree.
    """
    if posterior.tree != simulation.tree:
        raise DataError("the posterior is on another tree than the simulation: arcs differ")
    match = match_latents(simulation.z, posterior.encode(simulation.x))
    intercept = simulation.intercept_deltas if posterior.model.intercept else None
    gates = match_gates(simulation.gates, match, posterior.model.latent_dim, intercept)
    known = posterior.informed_changes[:, posterior.gate_places]
    informed = torch.from_numpy(known)[..., None].expand(gates.shape)
    columns = {"change": torch.from_numpy(gates), "informed": informed}
    return long_table(posterior.tree, columns, posterior.gate_names, posterior.outcome_names)


def credible_set_coverage(sets: pd.DataFrame, truth: pd.DataFrame) -> CredibleSetCoverage:
    """Whether credible sets hold a true change as often as they say.

    Args:
        sets: ``Posterior.credible_sets()``: latent, outcome, arcs, coverage.
        truth: See :func:`true_changes`; true changes without data below are left out.

    Raises:
        DataError: A column is missing, or an arc is not in ``truth``.
    """
    _require_columns(sets, "sets", ["latent", "outcome", "arcs", "coverage"])
    change, findable = _truth(truth)
    columns = zip(sets["latent"], sets["outcome"], sets["arcs"], strict=True)
    places = [[(*arc, latent, outcome) for arc in arcs] for latent, outcome, arcs in columns]
    covered = _mean([any(_look_up(change, place) for place in one) for one in places])
    inside = {place for one in places for place in one}
    return CredibleSetCoverage(
        num_sets=len(sets),
        covered=covered,
        se=float(np.sqrt(covered * (1 - covered) / max(1, len(sets)))),
        stated=float(sets["coverage"].mean()),
        mean_size=_mean([len(one) for one in places]),
        found=_mean([place in inside for place in findable]),
    )


def selection_score(selected: pd.DataFrame, truth: pd.DataFrame) -> SelectionScore:
    """The realised false discovery proportion and power of a list of changes.

    Args:
        selected: ``Posterior.select()``, or any table with parent, child, latent and outcome; its
            ``pip``, where it has one, gives ``stated``.
        truth: See :func:`true_changes`; true changes without data below are left out.

    Raises:
        DataError: A column is missing, or a row is not in ``truth``.
    """
    _require_columns(selected, "selected", _PLACE)
    change, findable = _truth(truth)
    places = list(zip(*(selected[name] for name in _PLACE), strict=True))
    wrong = [not _look_up(change, place) for place in places]
    listed, stated = set(places), float("nan")
    if "pip" in selected:
        stated = float((1 - selected["pip"]).mean()) if places else 0.0
    return SelectionScore(
        num_selected=len(places),
        fdr=_mean(wrong) if wrong else 0.0,
        stated=stated,
        power=_mean([place in listed for place in findable]),
    )


def _mean(values: list[Any]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _truth(truth: pd.DataFrame) -> tuple[dict[tuple[Any, ...], bool], list[tuple[Any, ...]]]:
    """Whether there is a change, by place, and the places of changes that have data below."""
    _require_columns(truth, "truth", [*_PLACE, "change"])
    places = list(zip(*(truth[name] for name in _PLACE), strict=True))
    change = truth["change"].astype(bool)
    known = change & truth["informed"].astype(bool) if "informed" in truth else change
    findable = [place for place, one in zip(places, known, strict=True) if one]
    return dict(zip(places, change, strict=True)), findable


def _look_up(change: dict[tuple[Any, ...], bool], place: tuple[Any, ...]) -> bool:
    if place not in change:
        raise DataError(
            f"truth has no row (parent, child, latent, outcome) = {place!r}: is it of this fit?"
        )
    return change[place]


def _require_columns(table: pd.DataFrame, name: str, columns: list[str]) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(f"{name} lacks the column(s) {missing}; it has {list(table.columns)}")
