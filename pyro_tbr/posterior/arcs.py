"""Whether anything changed along an arc: inclusion of several outcomes and latents together."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.moments import ArcInclusion
from pyro_tbr.posterior.tables import arc_index, names_index
from pyro_tbr.posterior.view import PosteriorView, require_gates

ANY_SLOPE, ANY = "any_slope", "any"


@torch.no_grad()
def arc_pip_table(view: PosteriorView, outcome: Hashable) -> pd.DataFrame:
    """See ``Posterior.arc_pips``."""
    require_gates(view, "arc_pips()")
    names = list(view.outcome_names)
    if outcome is None:
        chosen = list(range(len(names)))
    elif outcome in names:
        chosen = [names.index(outcome)]
    else:
        raise DataError(
            f"outcome={outcome!r} is none of the outcomes {names}: give one of them, or None for "
            "whichever"
        )
    found = _inclusion(view, chosen)
    columns = names_index([*view.gate_names, ANY_SLOPE, ANY], "latent")
    parts = [found.each[:, view.gate_places], found.slopes.unsqueeze(-1), found.every.unsqueeze(-1)]
    values = torch.cat(parts, -1).cpu().double().clamp(0, 1).numpy()
    return pd.DataFrame(values, index=arc_index(view.tree), columns=columns)


@torch.no_grad()
def slope_inclusion(view: PosteriorView) -> Tensor:
    """Probability that some latent's effect on an outcome changed along an arc, (A, Q)."""
    found = [_inclusion(view, [q]).slopes for q in range(len(view.outcome_names))]
    return torch.stack(found, -1).cpu().double().clamp(0, 1)


def _inclusion(view: PosteriorView, outcomes: list[int]) -> ArcInclusion:
    """See ``Guide.arc_inclusion``."""
    where = view.guide.informed_arcs.device
    real = np.zeros_like(view.weights_that_exist)
    real[view.gate_places] = view.weights_that_exist[view.gate_places]
    exists = torch.from_numpy(real).to(where)
    return view.guide.arc_inclusion(torch.tensor(outcomes, device=where), exists)
