"""The changes: their table, and inclusion of whole paths."""

from __future__ import annotations

import math
from collections.abc import Hashable

import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.posterior.tables import delta_table, names_index
from pyro_tbr.posterior.view import PosteriorView, check_level, require_gates
from pyro_tbr.tree import Tree

_MOST_ELEMENTS = 20_000_000  # draws of all changes at once
_NUM_DRAWS, _LEAST_DRAWS, _SEED = 4000, 200, 173_205  # behind intervals


@torch.no_grad()
def deltas(view: PosteriorView, level: float) -> pd.DataFrame:
    """See ``Posterior.deltas``."""
    check_level(level)
    return view.tables_kept.get(float(level), lambda: _deltas(view, level)).copy()


def _deltas(view: PosteriorView, level: float) -> pd.DataFrame:
    moments = view.guide.delta_moments()
    log_odds, draws = view.guide.log_odds(), _draws(view)
    names = view.latent_names, view.outcome_names
    return delta_table(view.tree, moments, view.weight_unit, *names, level, log_odds, draws)


def _draws(view: PosteriorView) -> Tensor | None:
    """Draws of the changes (S, A, W, Q), model's units, where quantiles have no closed form.

    They are 4,000, so the standard error of the end of a 90 % interval is some 0.03 posterior
    standard deviations; fewer on large trees, 200 at least.
    """
    if view.guide.closed_form:
        return None
    most = _MOST_ELEMENTS // math.prod(view.model.prior.delta_shape)
    generator = torch.Generator().manual_seed(_SEED)
    num_draws = min(_NUM_DRAWS, max(_LEAST_DRAWS, most))
    return torch.cat([b.cpu() for b in view.guide.sample_arcs("deltas", num_draws, generator)])


@torch.no_grad()
def path_pips(view: PosteriorView, node: Hashable) -> pd.Series | pd.DataFrame:
    """See ``Posterior.path_pips``."""
    require_gates(view, "path_pips()", "exceedance(threshold)")
    value = view.guide.path_inclusion(path_arcs(view.tree, view.tree.index(node)))
    index = names_index(view.latent_names, "latent")
    outcomes = names_index(view.outcome_names, "outcome")
    table = pd.DataFrame(value.cpu().numpy(), index=index, columns=outcomes)
    return table.iloc[:, 0].rename("path_pip") if len(outcomes) == 1 else table


def path_arcs(tree: Tree, node: int) -> Tensor:
    """Arcs from the root to a node, (n,) int64; an arc's position is its child's minus one."""
    arcs = []
    while node > 0:
        arcs.append(node - 1)
        node = int(tree.arc_parent[node - 1])
    return torch.tensor(arcs[::-1], dtype=torch.int64)
