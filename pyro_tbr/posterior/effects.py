"""Effects of the features themselves, which do not depend on the basis of the latents.

A latent is a means: which features make it (loadings B, how a latent moves with a feature), and so
what a feature does to an outcome at a node (B w) and how that changes along an arc (B delta). Turn
the latents, and B and w turn with them; their product stays, so it can be read where latents are
not determined. The encoder counts as known in all of this.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.data import Features, align_features
from pyro_tbr.errors import DataError
from pyro_tbr.posterior.arcs import slope_inclusion
from pyro_tbr.posterior.places import kept_draws
from pyro_tbr.posterior.tables import long_form, names_index
from pyro_tbr.posterior.view import PosteriorView, check_level, weights_at
from pyro_tbr.tree.readers.naming import listed, unknown_label

_NUM_DRAWS, _SEED = 400, 0  # behind intervals: those behind predictions, so they are there already
_BLOCK_ELEMENTS = 4_000_000  # draws of effects at once
_BLOCK_ROWS = 1_000  # rows whose gradients are taken at once
_MOST_ROWS = 5_000_000  # of a table
_PER = ("unit", "sd")


def loading_table(view: PosteriorView, x: Any, per: str) -> pd.DataFrame:
    """See ``Posterior.loadings``."""
    values = _loadings(view, x, per) * view.latent_units.scale
    index = names_index(feature_names(view), "feature")
    columns = names_index(view.latent_names[: view.model.latent_dim], "latent")
    return pd.DataFrame(values.numpy(), index=index, columns=columns)


@torch.no_grad()
def effect_table(
    view: PosteriorView, features: Any, nodes: Any, x: Any, per: str, level: float
) -> pd.DataFrame:
    """See ``Posterior.effects``."""
    check_level(level)
    places, names = features_asked(view, features)
    at = nodes_asked(view, nodes)
    _check_size(len(at), len(names), view, "nodes=")
    loadings = _loadings(view, x, per)[places]
    moments = []
    for part in view.guide.parts():
        mean, var = (one[at].cpu().double() for one in part.guide.node_moments())
        moments.append((part, mean, var, part.guide.node_cov(at)))
    draws = weights_at(view.tree, at, kept_draws(view, _NUM_DRAWS, _SEED))
    columns = _columns(view, loadings, moments, draws, level)
    labels = {"node": tuple(view.tree.nodes[i] for i in at.tolist())}
    return long_form(labels, columns, names, view.outcome_names, "feature")


@torch.no_grad()
def effect_change_table(
    view: PosteriorView, features: Any, x: Any, per: str, level: float
) -> pd.DataFrame:
    """See ``Posterior.effect_changes``."""
    check_level(level)
    places, names = features_asked(view, features)
    _check_size(view.tree.num_arcs, len(names), view)
    loadings = _loadings(view, x, per)[places]
    moments = []
    for part in view.guide.parts():
        found = part.guide.delta_moments()
        mean, var = (one.cpu().double() for one in (found.mean, found.var))
        moments.append((part, mean, var, part.guide.delta_cov()))
    draws = kept_draws(view, _NUM_DRAWS, _SEED)["deltas"]
    columns = _columns(view, loadings, moments, draws, level)
    parents, children = zip(*view.tree.arcs, strict=True)
    if view.guide.has_gates:
        pips = slope_inclusion(view).unsqueeze(1).expand_as(columns["mean"])
        columns = {"pip": pips} | columns
    labels = {"parent": parents, "child": children}
    return long_form(labels, columns, names, view.outcome_names, "feature")


def _columns(
    view: PosteriorView,
    loadings: Tensor,
    moments: list[tuple[Any, Tensor, Tensor, Tensor | None]],
    draws: Tensor,
    level: float,
) -> dict[str, Tensor]:
    """Mean, sd, lower and upper of what weights or changes make of features, (n, f, Q) each.

    Args:
        view: The posterior.
        loadings: Of the model's latents, (f, K).
        moments: By component of the guide: it, means and variances (n, W, Q) of its own weights,
            and their covariances (n, Q, W, W), ``None`` where they are independent.
        draws: Of the weights of the design, (S, n, W, Q).
        level: Of the interval.
    """
    wide = loadings.new_zeros(len(loadings), view.model.num_weights)
    wide[:, : loadings.shape[1]] = loadings
    each = [_moments(wide, *component) for component in moments]
    share = torch.tensor([part.weight for part, *_ in moments], dtype=torch.float64)
    share = share.reshape(-1, 1, 1, 1)
    means, variances = (torch.stack(column) for column in zip(*each, strict=True))
    mean = (share * means).sum(0)
    var = (share * (variances + (means - mean).square())).sum(0).clamp(min=0)
    ends = _quantiles(wide, draws, [(1 - level) / 2, (1 + level) / 2])
    unit = view.scaling.scale
    values = {"mean": mean, "sd": var.sqrt(), "lower": ends[0], "upper": ends[1]}
    return {name: value * unit for name, value in values.items()}


def _moments(
    wide: Tensor, part: Any, mean: Tensor, var: Tensor, cov: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean and variance by one component, (n, f, Q), for loadings (f, W) of the design."""
    own = wide if part.turn is None else wide @ part.turn.cpu().double()
    effect = torch.einsum("fw,nwq->nfq", own, mean)
    if cov is None:
        return effect, torch.einsum("fw,nwq->nfq", own.square(), var)
    return effect, torch.einsum("fv,nqvw,fw->nfq", own, cov.cpu().double(), own)


def _quantiles(wide: Tensor, draws: Tensor, tails: list[float]) -> Tensor:
    """Quantiles (P, n, f, Q) of effects by draws of the weights (S, n, W, Q), in blocks."""
    a_feature = len(draws) * draws.shape[-1]
    num_features = max(1, min(len(wide), _BLOCK_ELEMENTS // a_feature))
    num_nodes = max(1, _BLOCK_ELEMENTS // (a_feature * num_features))
    probabilities = torch.tensor(tails, dtype=torch.float64)
    columns = []
    for some in wide.split(num_features):
        parts = [
            torch.quantile(torch.einsum("fw,snwq->snfq", some, block), probabilities, dim=0)
            for block in draws.split(num_nodes, dim=1)
        ]
        columns.append(torch.cat(parts, dim=1))
    return torch.cat(columns, dim=2)


# ---- loadings


def feature_names(view: PosteriorView) -> tuple[Hashable, ...]:
    """The user's column names, else ``x0``, ``x1``, ..."""
    names, number = view.schema.feature_names, view.schema.num_features
    return tuple(f"x{d}" for d in range(number)) if names is None else names


def _loadings(view: PosteriorView, x: Any, per: str) -> Tensor:
    """How the model's latents move with the features, (D, K), double precision, on the CPU."""
    if per not in _PER:
        raise DataError(f"per={per!r} is not known: use one of {listed(_PER)}")
    exact = view.model.encoder.linear_map()
    if exact is None and x is None:
        kind = type(view.model.encoder).__name__
        raise DataError(
            f"x: latents of {kind} are not linear in the features, so their slopes differ from row "
            "to row: give x=, rows over which to average them"
        )
    values = _average_gradient(view, x) if exact is None else exact.detach()
    values = values.cpu().double()
    return values if per == "unit" else values * _feature_sd(view).unsqueeze(-1)


def _feature_sd(view: PosteriorView) -> Tensor:
    """Standard deviation of each feature over the rows of the fit, (D,)."""
    scale = view.report.feature_scale
    if scale is None:
        raise DataError(
            "per='sd': this posterior does not know the standard deviations of its features, as "
            "the fit was by an earlier version: use per='unit' and multiply by them"
        )
    return scale.cpu().double()


@torch.inference_mode(False)
@torch.enable_grad()
def _average_gradient(view: PosteriorView, x: Any) -> Tensor:
    """Mean over rows of the latents' slopes in each feature, (D, K)."""
    features, _ = align_features(view.schema, x, keep=True)
    if not len(features):
        raise DataError("x has no rows to average slopes over")
    by_blocks = isinstance(features, Features)
    blocks = features.blocks() if by_blocks else features.split(_BLOCK_ROWS)
    device = view.model.prior.root_loc.device
    total = torch.zeros(view.model.latent_dim, features.shape[1], dtype=torch.float64)
    for block in blocks:
        rows = block.detach().clone().to(device).requires_grad_()
        z = view.model.encoder(rows)
        for k in range(view.model.latent_dim):  # rows do not meet, so a sum has all their slopes
            (slopes,) = torch.autograd.grad(z[:, k].sum(), rows, retain_graph=True)
            total[k] += slopes.sum(0).cpu().double()
    return total.T / len(features)


# ---- what is asked for


def features_asked(view: PosteriorView, features: Any) -> tuple[list[int], tuple[Hashable, ...]]:
    """Places and names of the features asked for; ``None``: all."""
    names = feature_names(view)
    if features is None:
        return list(range(len(names))), names
    one = isinstance(features, str) or not isinstance(features, Iterable) or features in names
    wanted = [features] if one else list(features)
    place = {name: d for d, name in enumerate(names)}
    for name in wanted:
        if name not in place:
            raise DataError(f"features: {unknown_label(name, names, 'features of the fit')}")
    return [place[name] for name in wanted], tuple(wanted)


def nodes_asked(view: PosteriorView, nodes: Any) -> Tensor:
    """Places of the nodes asked for, (n,); ``None``: all."""
    if nodes is None:
        return torch.arange(view.tree.num_nodes)
    wanted = [nodes] if isinstance(nodes, str) or view.tree.find(nodes) is not None else nodes
    return torch.tensor([view.tree.index(node) for node in wanted], dtype=torch.int64)


def _check_size(
    num_places: int, num_features: int, view: PosteriorView, also: str | None = None
) -> None:
    """Refuses a table of more rows than anyone reads."""
    number = num_places * num_features * len(view.outcome_names)
    if number > _MOST_ROWS:
        ways = "features=" if also is None else f"features= or {also}"
        raise DataError(
            f"features: {num_features} features at {num_places} places make a table of {number:,} "
            f"rows, and at most {_MOST_ROWS:,} are made at once: ask for some by {ways}"
        )
