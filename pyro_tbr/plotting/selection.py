"""Which latent and which outcome of a posterior a plot shows, by the user's names."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.arcs import ANY, ANY_SLOPE
from pyro_tbr.tree.readers.naming import listed

CHANGED_FROM = 0.5  # arcs with this PIP or more count as changed where names have to be chosen


def latent_place(posterior: Posterior, latent: str | int) -> int:
    """Place of a latent, by name or number."""
    return _place(posterior.latent_names, latent, "latent")


def slope_places(posterior: Posterior, latents: Iterable[str | int]) -> list[int]:
    """Places of latents, by name or number; the intercept is none."""
    places = [latent_place(posterior, latent) for latent in latents]
    names = posterior.latent_names[: posterior.model.latent_dim]
    if any(place >= len(names) for place in places):
        raise DataError(
            f"latent={posterior.latent_names[-1]!r}: the intercept is the same in every row; use "
            f"one of {listed(names)}"
        )
    return places


def outcome_place(posterior: Posterior, outcome: str | int | None) -> int:
    """Place of an outcome; ``None`` stands for the only one."""
    names = posterior.outcome_names
    if outcome is None and len(names) > 1:
        raise DataError(
            f"outcome=None, but the posterior has {len(names)}: name one of {listed(names)}"
        )
    return 0 if outcome is None else _place(names, outcome, "outcome")


def _place(names: tuple[Hashable, ...], wanted: Hashable, argument: str) -> int:
    if wanted in names and not isinstance(wanted, bool):  # a name may be a number: it goes first
        return names.index(wanted)
    if isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted < len(names):
        return wanted
    raise DataError(f"{argument}={wanted!r} is not in the posterior: use one of {listed(names)}")


@torch.no_grad()
def inclusion(posterior: Posterior) -> NDArray[np.float64]:
    """PIPs (A, G, Q) of a prior that has gates, a latent's curves with the latent.

    Raises:
        DataError: It has none, so every PIP is 1 and a plot of them would say nothing.
    """
    if not posterior.guide.has_gates:
        raise DataError(
            f"{type(posterior.model.prior).__name__} has no inclusion probabilities: give "
            "values=, one number from 0 to 1 an arc, such as those of "
            "posterior.exceedance(threshold) for one latent"
        )
    pips = posterior.guide.delta_moments().inclusion[:, posterior.gate_places]
    return pips.cpu().double().numpy()


def pick_outcome(
    posterior: Posterior, values: NDArray[np.float64], outcome: str | int | None
) -> tuple[NDArray[np.float64], str]:
    """Values (A, W) of one outcome, or the largest over all, with words for it."""
    names = posterior.outcome_names
    picked, words = pick(names, values, outcome, "outcome")
    return picked, words if len(names) > 1 else ""


def pick(
    names: tuple[Hashable, ...], values: NDArray[np.float64], wanted: Hashable, argument: str
) -> tuple[NDArray[np.float64], str]:
    """Values of one name along the last dimension, or the largest over all, with words for it."""
    if wanted is None and len(names) > 1:
        return values.max(-1), f"largest of {len(names)} {argument}s"
    place = 0 if wanted is None else _place(names, wanted, argument)
    return values[..., place], str(names[place])


def arc_pips(
    posterior: Posterior, latent: str | int | None, outcome: str | int | None
) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """A PIP for every arc, (A,), of what a user asks for, with words for latent and outcome."""
    names = posterior.outcome_names
    if latent in (ANY, ANY_SLOPE) and latent not in posterior.gate_names:
        inclusion(posterior)  # refuses priors without
        which = None if outcome is None else names[outcome_place(posterior, outcome)]
        some = "any outcome" if which is None else str(which)
        what = "any latent" if latent == ANY_SLOPE else "any latent or intercept"
        found = posterior.arc_pips(which)[latent].to_numpy()
        return found, (what, some if len(names) > 1 else "")
    pips, of_outcome = pick_outcome(posterior, inclusion(posterior), outcome)
    found, of_latent = pick(posterior.gate_names, pips, latent, "latent")
    return found, (of_latent, of_outcome)


def arc_values(posterior: Posterior, values: Any) -> NDArray[np.float64]:
    """A number from 0 to 1 for every arc in the tree's order, (A,), from what a user gives.

    Args:
        posterior: Whose arcs.
        values: Array (A,), or a Series with index (parent, child), in any order.
    """
    tree = posterior.tree
    if isinstance(values, pd.Series):
        by_arc = dict(zip(values.index, values, strict=True))
        missing = [arc for arc in tree.arcs if arc not in by_arc]
        if missing or len(by_arc) != len(values):
            raise DataError(
                f"values must have each arc (parent, child) once as index; it lacks {len(missing)} "
                f"of {tree.num_arcs}: {listed(missing)}; set_index(['parent', 'child'])"
            )
        values = [by_arc[arc] for arc in tree.arcs]
    array = np.asarray(torch.as_tensor(values).cpu() if torch.is_tensor(values) else values, float)
    if array.shape != (tree.num_arcs,):
        raise ShapeError(
            f"values has shape {array.shape}: give one number an arc, ({tree.num_arcs},)"
        )
    bad = ~((array >= 0) & (array <= 1))
    if bad.any():
        raise DataError(
            f"values has {bad.sum()} number(s) outside 0 to 1, first {array[bad][0]!r} at arc "
            f"{int(bad.argmax())}: the colours go from 0 to 1"
        )
    return array
