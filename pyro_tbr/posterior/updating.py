"""A few more rows: statistics are added, the encoder and all scales stay.

For Gaussian outcomes the tree guide then stands where a fit to all rows with these scales does.
Mean field goes to the nearest optimum, which need not be the one of such a fit. For binary outcomes
the rows of before keep the quadratic expansion they had, so weights that move far end a little off:
half as many rows again at each leaf moved weights by up to 2.5 standard deviations, and they ended
up to 0.4 standard deviations from a fit to all rows (PIPs 0.05).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_tbr.data import align_env, align_groups
from pyro_tbr.errors import DataError
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.heads.guide import Guide, expansion_point
from pyro_tbr.heads.statistics import Statistics, statistics
from pyro_tbr.posterior.places import NewLeaf
from pyro_tbr.posterior.view import Own

_SWEEPS = 60  # at most, where the fit's options do not say
_EXPANSIONS = 12  # at most this many quadratic expansions of the new rows
_SETTLED = 0.01  # mean change of their predictor, in its standard deviations, that ends them


def updated(view: Own, x: Any, y: Any, env: Any, groups: Any = None) -> Own:
    """See ``Posterior.update``."""
    if isinstance(env, NewLeaf):
        raise DataError(
            f"update: {env.name!r} is not in the tree; add the leaf under {env.parent!r} before "
            "fitting (it needs no rows there), then update with rows at it"
        )
    correlation = view.report.group_correlation
    if groups is not None and correlation is None:
        raise DataError(
            "update: groups were given, but the fit had none, so how alike the rows of a group are "
            "is not known: leave groups out, or fit anew with groups"
        )
    with torch.no_grad():
        design, index = view.align_design(x)
    num_rows = len(design)
    outcomes = view.align_outcomes(y, index, num_rows)
    env_index = align_env(view.tree, env, index, num_rows)
    row_groups = None
    if groups is not None:
        assert correlation is not None
        row_groups = RowGroups(align_groups(groups, env_index, index, learns=False), correlation)
    own = copy.deepcopy(view)
    if not num_rows:
        return own
    if own.model.num_rows is not None:
        own.model.num_rows += num_rows
    counts = torch.bincount(env_index, minlength=own.tree.num_nodes)
    counts = own.row_counts + counts.to(own.row_counts)
    nodes = counts.cpu() > 0
    nodes[1:] |= own.guide.informed_arcs.cpu()
    guide = own.guide.knowing(nodes)
    y_model = ((outcomes - own.scaling.loc) / own.scaling.scale).to(design)
    sweeps = int(own.report.options.get("sweeps", _SWEEPS))
    env_index = env_index.to(design.device)
    stats = _condition(guide, own.stats, design, y_model, env_index, sweeps, row_groups)
    return replace(own, guide=guide, stats=stats, row_counts=counts)


def _condition(
    guide: Guide,
    old: Statistics,
    design: Tensor,
    y: Tensor,
    env_index: Tensor,
    sweeps: int,
    groups: RowGroups | None,
) -> Statistics:
    """Moves a guide, in place, to its optimum for old and new rows; returns their statistics.

    Args:
        guide: At its optimum for the old rows.
        old: Statistics of the old rows.
        design: Latents and intercept of the new rows, (N, W).
        y: Their outcomes in the model's units, (N, Q).
        env_index: Their nodes, (N,).
        sweeps: At most this many sweeps of the guide's update a round.
        groups: New rows that are alike; earlier fits learnt how alike.
    """
    likelihood = guide.head.likelihood
    if not likelihood.binary:
        weights = None if groups is None else groups.weights(y.cpu()).to(design.device)
        total = old + statistics(design, y, env_index, likelihood, weights=weights)
        guide.update(total, sweeps=sweeps, learn_hyper=False, learn_noise=False)
        return total
    point = expansion_point(guide, design, env_index)
    for _ in range(_EXPANSIONS):
        total = old + statistics(design, y, env_index, likelihood, point)
        guide.update(total, sweeps=max(2, sweeps // 8), learn_hyper=False, learn_noise=False)
        before, point = point, expansion_point(guide, design, env_index)
        if (point - before).abs().mean() / point.std(correction=0).clamp(min=1e-6) < _SETTLED:
            break
    return total
