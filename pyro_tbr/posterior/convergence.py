"""Have the chains behind a sampled posterior converged? A small table, and a warning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr.errors import ConvergenceWarning, DataError, warn_user
from pyro_tbr.heads.hyper.base import by_name
from pyro_tbr.heads.sampling import SampledGuide
from pyro_tbr.heads.sampling.diagnostics import bulk_ess, rhat
from pyro_tbr.posterior.view import PosteriorView, weights_at
from pyro_tbr.progress import beat
from pyro_tbr.tree.readers.naming import arc_text

MOST_RHAT = 1.01  # above it chains have not found one distribution
LEAST_ESS = 400  # below it an R-hat says little, and a PIP has a standard error above 0.025
_BLOCK = 4_000_000  # numbers at once


class _Quantity(NamedTuple):
    """Draws (C, n, M) of one kind, and where each of the M is."""

    name: str
    draws: NDArray[np.float64]
    places: list[str]


@torch.no_grad()
def convergence_table(view: PosteriorView) -> pd.DataFrame:
    """See ``Posterior.convergence``."""
    guide = view.guide
    if not isinstance(guide, SampledGuide):
        raise DataError(
            "convergence() is of chains, and this posterior holds none, but an approximation that "
            "fit() has moved to its optimum: use sample_posterior(posterior).convergence()"
        )
    worst: dict[str, list[tuple[float, float, str, str, int]]] = {}
    for part in _quantities(view, guide):
        one, two = rhat(part.draws), bulk_ess(part.draws)
        beat()
        moving = np.isfinite(one) & np.isfinite(two)
        if moving.any():
            high, low = int(np.nanargmax(one)), int(np.nanargmin(two))
            row = one[high], two[low], part.places[high], part.places[low], int(moving.sum())
            worst.setdefault(part.name, []).append(row)
    rows = {}
    for name, found in worst.items():
        first, last = max(found), min(found, key=lambda row: row[1])
        number = sum(row[4] for row in found)
        rows[name] = (number, first[0], first[2], last[1], last[3])
    columns = ["number", "max_rhat", "where_rhat", "min_ess", "where_ess"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.rename_axis("quantity")


def warn_unconverged(table: pd.DataFrame, num_sweeps: int) -> None:
    """Warns where weights at nodes or hyperparameters have not settled; gates alone do not."""
    table = table.drop(index="gates", errors="ignore")
    bad = table[(table["max_rhat"] > MOST_RHAT) | (table["min_ess"] < LEAST_ESS)]
    if bad.empty:
        return
    parts = []
    for name, row in bad.iterrows():
        text = f"{name}: R-hat up to {row['max_rhat']:.3f} ({row['where_rhat']})"
        parts.append(f"{text}, effective draws down to {row['min_ess']:.0f} ({row['where_ess']})")
    warn_user(
        f"the chains have not settled in {num_sweeps} sweeps: {'; '.join(parts)}. R-hat should be "
        f"{MOST_RHAT} or less and effective draws {LEAST_ESS} or more: give more sweeps, such as "
        f"sample_posterior(posterior, num_sweeps={4 * num_sweeps})",
        ConvergenceWarning,
    )


def _quantities(view: PosteriorView, guide: SampledGuide) -> Iterator[_Quantity]:
    """All that is drawn where rows say something, by kind; large kinds in parts."""
    known = guide.informed_arcs.cpu().nonzero()[:, 0]
    tree, names = view.tree, (list(view.latent_names), list(view.outcome_names))
    shape = guide.num_chains, guide.num_draws
    each = shape[0] * shape[1] * len(names[0]) * len(names[1])
    size = max(1, _BLOCK // each)
    if guide.has_gates and len(known):
        gates = guide.chains("gates")
        for arcs in known.split(size):
            labels = [arc_text(*tree.arcs[arc]) for arc in arcs.tolist()]
            yield _of("gates", gates[:, :, arcs], labels, *names)
    draws = {name: guide.chains(name).flatten(0, 1) for name in ("root_weights", "deltas")}
    for nodes in torch.cat([torch.zeros(1, dtype=torch.int64), known + 1]).split(size):
        weights = weights_at(tree, nodes, draws)
        labels = [str(tree.nodes[node]) for node in nodes.tolist()]
        yield _of("node weights", weights.reshape(*shape, *weights.shape[1:]), labels, *names)
    for name, factor in (by_name(guide.hyper) | by_name(guide.nuisance)).items():
        if factor.learnt:
            values, labels = guide.chains(name), [""]
            if name.startswith("node_"):  # at others draws are those of the prior
                nodes = view.stats.nodes.cpu()
                values = values[:, :, nodes].unsqueeze(-2)
                labels = [str(tree.nodes[node]) for node in nodes.tolist()]
            yield _of(name, values, labels, *names)


def _of(
    name: str, draws: Tensor, labels: list[str], latents: list[str], outcomes: list[object]
) -> _Quantity:
    """Draws (C, n, labels, W, Q) with text for every place; of a hyperparameter less of these."""
    event = draws.shape[2:]
    if name in ("noise_scale", "noise_spread"):
        places = [str(outcome) for outcome in outcomes]
    else:
        wide = list(latents) if event[-2] == len(latents) else [""]
        wide = wide if event[-2] > 1 or len(latents) == 1 else [""]
        across = [str(outcome) for outcome in outcomes] if event[-1] > 1 else [""]
        places = [
            ", ".join(filter(None, (label, latent, outcome)))
            for label in labels for latent in wide for outcome in across
        ]  # fmt: skip
        places = [place or "all latents" for place in places]
    flat = draws.reshape(*draws.shape[:2], -1).cpu().double().numpy()
    return _Quantity(name, flat, places)
