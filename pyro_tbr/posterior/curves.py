"""What a latent does to outcomes along its values, node by node, where there is a basis."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.data.numbers import to_float64
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.posterior.effects import nodes_asked
from pyro_tbr.posterior.places import kept_draws
from pyro_tbr.posterior.tables import names_index
from pyro_tbr.posterior.view import PosteriorView, check_level, check_number, weights_at
from pyro_tbr.tree.readers.naming import listed

_NUM_DRAWS, _SEED = 400, 0  # those behind predictions, so they are there already


@torch.no_grad()
def curve_table(
    view: PosteriorView,
    latent: Hashable | None,
    nodes: Any,
    at: Any,
    num_points: int,
    level: float,
) -> pd.DataFrame:
    """See ``Posterior.curves``."""
    check_level(level)
    check_number(num_points, "num_points", 2)
    basis = _basis_of(view)
    names = view.latent_names[: view.model.latent_dim]
    if latent is not None and latent not in names:
        raise DataError(f"latent={latent!r} is no latent: give one of {listed(names)}, or None")
    places = range(len(names)) if latent is None else [names.index(str(latent))]
    where = nodes_asked(view, nodes)
    weights = weights_at(view.tree, where, kept_draws(view, _NUM_DRAWS, _SEED))
    mean, var = (part[where].cpu().double() for part in view.guide.node_moments())
    cov = view.guide.node_cov(where)
    tables = []
    for k in places:
        z, shown = _points(view, basis, k, at, num_points)
        own = _functions(view, basis, k, z)  # (P, W)
        centre = torch.einsum("pw,nwq->npq", own, mean)
        if cov is None:
            spread = torch.einsum("pw,nwq->npq", own.square(), var)
        else:
            spread = torch.einsum("pv,nqvw,pw->npq", own, cov.cpu().double(), own)
        drawn = torch.einsum("pw,snwq->snpq", own, weights)
        ends = torch.quantile(drawn, drawn.new_tensor([(1 - level) / 2, (1 + level) / 2]), dim=0)
        unit = view.scaling.scale
        parts = {"mean": centre, "sd": spread.clamp(min=0).sqrt(), "lower": ends[0],
                 "upper": ends[1]}  # fmt: skip
        columns = {name: (value * unit).numpy() for name, value in parts.items()}
        tables.append(_long(view, where, names[k], shown, columns))
    return pd.concat(tables, ignore_index=True)


def _basis_of(view: PosteriorView) -> Any:
    if view.model.basis is None:
        raise DataError(
            "curves(): outcomes of this model are linear in the latents, so node_weights() has all "
            "there is: fit with TreeModel(basis='spline')"
        )
    return view.model.basis


def _points(
    view: PosteriorView, basis: Any, k: int, at: Any, num_points: int
) -> tuple[Tensor, np.ndarray]:
    """Values of a latent as the model sees them and as the user does, (P,) each."""
    shift, scale = (float(part[k]) for part in view.latent_units)
    if at is None:
        low, high = basis.spread[k].cpu()
        z = torch.linspace(float(low), float(high), num_points, dtype=torch.float64)
        return z, shift + scale * z.numpy()
    shown = to_float64(at, "at", None, None)
    if shown.ndim != 1:
        raise ShapeError(f"at has shape {shown.shape}: give the values of the latent, (P,)")
    if not np.isfinite(shown).all():
        raise DataError(f"at has {int((~np.isfinite(shown)).sum())} value(s) that are not finite")
    return torch.from_numpy((shown - shift) / scale), shown


def _functions(view: PosteriorView, basis: Any, k: int, z: Tensor) -> Tensor:
    """What the weights of one latent are multiplied by at its values, (P, W)."""
    num_latents, num_curves = view.model.latent_dim, basis.num_curves
    wide = z.new_zeros(len(z), view.model.num_weights)
    wide[:, k] = z - basis.centre[k].cpu()
    every = basis.centre.cpu().repeat(len(z), 1)
    every[:, k] = z
    curves = basis(every.to(basis.centre.device)).cpu()
    own = slice(k * num_curves, (k + 1) * num_curves)
    wide[:, num_latents + own.start : num_latents + own.stop] = curves[:, own]
    return wide


def _long(
    view: PosteriorView,
    where: Tensor,
    latent: str,
    shown: np.ndarray,
    columns: dict[str, np.ndarray],
) -> pd.DataFrame:
    """A row a node, value and outcome."""
    node, point, outcome = (part.ravel() for part in np.indices(columns["mean"].shape))
    labels = np.empty(len(where), dtype=object)
    labels[:] = [view.tree.nodes[place] for place in where.tolist()]
    found: dict[str, Any] = {
        "node": labels[node],
        "latent": np.full(len(node), latent, dtype=object),
        "outcome": names_index(view.outcome_names, "outcome").take(outcome),
        "value": shown[point],
    }
    return pd.DataFrame(found | {name: value.ravel() for name, value in columns.items()})
