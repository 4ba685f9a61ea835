"""A few more rows: statistics are added, the encoder and all scales that environments share stay.

For outcomes with normal noise the tree guide then stands where a fit to all rows with these scales
does. Mean field goes to the nearest optimum, which need not be the one of such a fit. For other
outcomes the rows of before keep the sites they had, so weights that move far end a little off.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pyro_tbr.data import align_groups
from pyro_tbr.errors import DataError
from pyro_tbr.heads import condition
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.posterior.places import NewLeaf
from pyro_tbr.posterior.view import Own


def updated(view: Own, x: Any, y: Any, env: Any, groups: Any, given: Mapping[str, Any]) -> Own:
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
    rows, order = view.align_rows(x, y, env, given, groups=groups)
    if groups is not None:
        assert correlation is not None
        index = align_groups(groups, rows.env_index, order, learns=False)
        rows = replace(rows, groups=RowGroups(index, correlation))
    own = copy.deepcopy(view)
    if not len(rows):
        return own
    if own.model.num_rows is not None:
        own.model.num_rows += len(rows)
    counts = torch.bincount(rows.env_index, minlength=own.tree.num_nodes)
    counts = own.row_counts + counts.to(own.row_counts)
    nodes = counts.cpu() > 0
    nodes[1:] |= own.guide.informed_arcs.cpu()
    guide = own.guide.knowing(nodes)
    stats = condition(
        guide,
        rows,
        before=own.stats,
        learn_hyper=False,
        learn_nuisance=False,
        learn_groups=False,
        names=(view.latent_names, view.outcome_names),
    )
    return replace(own, guide=guide, stats=stats, row_counts=counts)
