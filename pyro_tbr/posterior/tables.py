"""Tables of the posterior, in the user's labels and units."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper import LatentNoiseFactor, ScaleFactor
from pyro_tbr.heads.hyper.base import by_name
from pyro_tbr.heads.likelihoods.noisy_latents import LATENT_NOISE_SITE
from pyro_tbr.heads.moments import DeltaMoments, NodeMoments
from pyro_tbr.posterior.view import PosteriorView, check_level
from pyro_tbr.progress import querying, stage, step
from pyro_tbr.tree import Tree

Names = Sequence[Hashable]
_STANDARD = Normal(0.0, 1.0)
_MOST_ELEMENTS = 20_000_000  # draws of all changes at once
_NUM_DRAWS, _LEAST_DRAWS, _SEED = 4000, 200, 173_205  # behind intervals


def arc_index(tree: Tree) -> pd.MultiIndex:
    """Arcs as rows (parent, child), the tree's own labels and order."""
    # As objects: pandas would turn the label 1 to 1.0 beside 1.5, and tuples to levels.
    levels = [
        pd.Index(_objects(labels), dtype=object, tupleize_cols=False)
        for labels in zip(*tree.arcs, strict=True)
    ]
    return pd.MultiIndex.from_arrays(levels, names=["parent", "child"])


def pip_table(tree: Tree, inclusion: Tensor, latents: Names, outcomes: Names) -> pd.DataFrame:
    """Arcs by latents, or by (outcome, latent) where there are several outcomes.

    Args:
        tree: The environments.
        inclusion: (A, W, Q).
        latents: W names.
        outcomes: Q names.
    """
    values = inclusion.cpu().double().numpy()
    own = names_index(latents, "latent")
    if len(outcomes) == 1:
        return pd.DataFrame(values[:, :, 0], index=arc_index(tree), columns=own)
    columns = pd.MultiIndex.from_product([names_index(outcomes, "outcome"), own])
    flat = values.transpose(0, 2, 1).reshape(len(values), -1)
    return pd.DataFrame(flat, index=arc_index(tree), columns=columns)


@torch.no_grad()
def deltas(view: PosteriorView, level: float) -> pd.DataFrame:
    """See ``Posterior.deltas``."""
    check_level(level)
    with querying("deltas"):
        return view.tables_kept.get(("deltas", float(level)), lambda: _deltas(view, level)).copy()


def _deltas(view: PosteriorView, level: float) -> pd.DataFrame:
    table = changes(view, level)
    table["log_odds"] = view.guide.log_odds().reshape(-1).cpu().numpy()
    return table


@torch.no_grad()
def changes(view: PosteriorView, level: float, rows: np.ndarray | None = None) -> pd.DataFrame:
    """``Posterior.deltas`` without log odds, of some rows of it: draws are made of these alone."""
    moments, names = view.guide.delta_moments(), (view.latent_names, view.outcome_names)
    unit = view.weight_unit
    if rows is None:
        every = np.arange(moments.mean.numel())
        draws = _draws(view, every)
        draws = None if draws is None else draws.reshape(len(draws), *moments.mean.shape)
        return delta_table(view.tree, moments, unit, *names, level, draws)
    place = torch.from_numpy(rows)
    some = DeltaMoments(*(part.cpu().flatten()[place] for part in moments))
    unit = unit.expand_as(moments.mean).flatten()[place]
    columns = _change_columns(some, unit, level, _draws(view, rows))
    found = long_table(view.tree, {}, *names).iloc[rows].reset_index(drop=True)
    return found.assign(**{name: value.numpy() for name, value in columns.items()})


def _draws(view: PosteriorView, rows: np.ndarray) -> Tensor | None:
    """Draws of some changes (S, n), model's units.

    Changes are numbered as the rows of ``Posterior.deltas``. Draws are 4,000, so the standard error
    of the end of a 90 % interval is some 0.03 posterior standard deviations; fewer on large trees,
    200 at least. ``None`` where there is a closed form, or nothing to draw.
    """
    if view.guide.closed_form or not len(rows):
        return None
    num_trees = math.prod(view.model.prior.delta_shape[1:])
    most = _MOST_ELEMENTS // (num_trees * view.tree.num_arcs)
    generator = torch.Generator().manual_seed(_SEED)
    num_draws = min(_NUM_DRAWS, max(_LEAST_DRAWS, most))
    arcs, at_arc = np.unique(rows // num_trees, return_inverse=True)
    trees, at_tree = np.unique(rows % num_trees, return_inverse=True)
    which = torch.from_numpy(arcs), torch.from_numpy(trees)
    whole = len(rows) == len(arcs) * len(trees) and bool((np.diff(rows) > 0).all())
    parts = []
    with stage("draws", total=num_draws, unit="draw"):
        for block in view.guide.sample_some("deltas", *which, num_draws, generator):
            parts.append(block.cpu().flatten(1) if whole else block.cpu()[:, at_arc, at_tree])
            step(len(block), unit="draw")
    return torch.cat(parts)


def delta_table(
    tree: Tree,
    moments: DeltaMoments,
    scale: Tensor,
    latents: Names,
    outcomes: Names,
    level: float,
    draws: Tensor | None = None,
) -> pd.DataFrame:
    """``Posterior.deltas`` without log odds.

    Args:
        tree: The environments.
        moments: In the model's units, (A, W, Q).
        scale: The user's units in one of the model's, (Q,) or (W, Q).
        latents: W names.
        outcomes: Q names.
        level: Probability of the interval.
        draws: Of the changes in the model's units, (S, A, W, Q), where they are no mixture of a
            point and a normal.
    """
    moments = DeltaMoments(*(part.cpu() for part in moments))
    return long_table(tree, _change_columns(moments, scale, level, draws), latents, outcomes)


def _change_columns(
    moments: DeltaMoments, scale: Tensor, level: float, draws: Tensor | None
) -> dict[str, Tensor]:
    """Columns of changes of any shape (*N), from draws (S, *N) of them; see :func:`delta_table`."""
    m = DeltaMoments(*(part.double() for part in moments))
    slab_sd = m.slab_var.clamp(min=1e-300).sqrt()
    tail = (1 - level) / 2
    if draws is None:
        below = m.inclusion * _STANDARD.cdf(-m.slab_mean / slab_sd)
        above = m.inclusion - below
        lower, upper = (_spike_slab_quantile(m, slab_sd, below, p) for p in (tail, 1 - tail))
    else:
        each = np.ascontiguousarray(draws.reshape(len(draws), -1).numpy().T)  # (N, S)
        shares = (np.count_nonzero(side, axis=1) / len(draws) for side in (each < 0, each > 0))
        below, above = (torch.from_numpy(share).reshape(m.mean.shape) for share in shares)
        ends = np.quantile(each, [tail, 1 - tail], axis=1, overwrite_input=True)
        lower, upper = torch.from_numpy(ends).reshape(2, *m.mean.shape)
    return {
        "pip": m.inclusion,
        "prior_pip": m.prior_inclusion,
        "mean": m.mean * scale,
        "sd": m.var.sqrt() * scale,
        "lower": lower * scale,
        "upper": upper * scale,
        "lfsr": 1 - torch.maximum(below, above),
    }


def long_table(
    tree: Tree, columns: dict[str, Tensor], latents: Names, outcomes: Names
) -> pd.DataFrame:
    """One row an arc, latent and outcome; columns (A, W, Q) by name behind those of labels."""
    parents, children = zip(*tree.arcs, strict=True)
    return long_form({"parent": parents, "child": children}, columns, latents, outcomes)


def _spike_slab_quantile(
    m: DeltaMoments, slab_sd: Tensor, below: Tensor, probability: float
) -> Tensor:
    """Quantile of a point mass at 0 and a normal slab, exact."""
    inclusion = m.inclusion.clamp(min=1e-300)
    off = 1 - m.inclusion
    negative = probability < below
    positive = probability > below + off
    share = torch.where(negative, probability / inclusion, (probability - off) / inclusion)
    value = m.slab_mean + slab_sd * _STANDARD.icdf(share.clamp(1e-12, 1 - 1e-12))
    return torch.where(negative | positive, value, 0.0)


def node_table(tree: Tree, moments: NodeMoments, latents: Names, outcomes: Names) -> pd.DataFrame:
    """One row a node, latent and outcome; moments (V, W, Q) in the user's units."""
    mean, sd = moments.mean.double(), moments.var.clamp(min=0).sqrt().double()
    return long_form({"node": tree.nodes}, {"mean": mean, "sd": sd}, latents, outcomes)


def noise_correlation(view: PosteriorView) -> pd.DataFrame:
    """See ``Posterior.noise_correlation``."""
    found = view.model.likelihood.noise_correlation(view.guide.nuisance).cpu().numpy()
    names = list(view.outcome_names)
    return pd.DataFrame(found, index=names_index(names, "outcome"), columns=names)


def latent_noise_table(view: PosteriorView, level: float) -> pd.DataFrame:
    """See ``Posterior.latent_noise``."""
    check_level(level)
    nuisance = by_name(view.guide.nuisance)
    if LATENT_NOISE_SITE not in nuisance:
        raise DataError(
            "latent_noise(): the latents of this model have none: fit with "
            "likelihood=GaussianLikelihood(latent_noise=True)"
        )
    factor = cast(LatentNoiseFactor, nuisance[LATENT_NOISE_SITE])
    loc, var = (part.detach().double().cpu() for part in factor.log_moments())
    unit = torch.where(factor.exists.cpu(), view.latent_units.scale.double(), 0.0)
    reach = _STANDARD.icdf(torch.tensor((1 + level) / 2)) * var.sqrt()
    columns = {"mean": loc + 0.5 * var, "lower": loc - reach, "upper": loc + reach}
    names = names_index(view.latent_names[: len(loc)], "latent")
    values = {name: (torch.exp(value) * unit).numpy() for name, value in columns.items()}
    return pd.DataFrame(values, index=names)


def noise_table(view: PosteriorView, level: float) -> pd.DataFrame:
    """See ``Posterior.noise``."""
    check_level(level)
    tree, likelihood = view.tree, view.model.likelihood
    every = torch.arange(tree.num_nodes, device=view.guide.informed_arcs.device)
    found = likelihood.noises(view.guide.nuisance_at(every))
    if not found:
        raise DataError(
            f"noise(): {likelihood!r} has no noise scale; its outcomes' spread is that "
            "of the predictions: predict(x, env).sd"
        )
    which = torch.cat([columns for _, columns in found]).cpu()
    order, parts = which.argsort(), []
    for factor, its in found:
        wide = tree.num_nodes, len(its)
        moments = cast(ScaleFactor, factor).log_moments()
        parts.append([part.detach().double().cpu().expand(wide) for part in moments])
    loc, var = (torch.cat(part, -1)[:, order] for part in zip(*parts, strict=True))
    which = which[order]
    unit = view.scaling.outcome_scale()[which]
    shape = tree.num_nodes, 1, len(which)
    reach = _STANDARD.icdf(torch.tensor((1 + level) / 2)) * var.sqrt()
    columns = {
        "mean": torch.exp(loc + 0.5 * var) * unit,
        "lower": torch.exp(loc - reach) * unit,
        "upper": torch.exp(loc + reach) * unit,
    }
    columns = {name: value.reshape(shape) for name, value in columns.items()}
    names = tuple(view.outcome_names[q] for q in which.tolist())
    table = long_form({"node": tree.nodes}, columns, ("",), names)
    return table.drop(columns="latent")


def long_form(
    labels: dict[str, tuple],
    values: dict[str, Tensor],
    latents: Names,
    outcomes: Names,
    name: str = "latent",
) -> pd.DataFrame:
    """Labels (n,), names of latents and outcomes, and values (n, W, Q), by column.

    ``name`` is the column of the latents, or of what stands in their place.
    """
    shape = len(next(iter(labels.values()))), len(latents), len(outcomes)
    place, k, q = (part.ravel() for part in np.indices(shape))
    columns: dict[str, Any] = {label: _objects(part)[place] for label, part in labels.items()}
    columns[name] = names_index(latents, name).take(k)
    columns["outcome"] = names_index(outcomes, "outcome").take(q)
    columns |= {column: value.reshape(-1).cpu().numpy() for column, value in values.items()}
    return pd.DataFrame(columns)


def _objects(labels: tuple) -> np.ndarray:
    """Labels as an object array; tuples stay labels and do not become a second dimension."""
    return np.fromiter(labels, dtype=object, count=len(labels))


def names_index(names: Names, name: str | None) -> pd.Index:
    """Names of latents or outcomes as an index; tuples stay names and do not become levels."""
    return pd.Index(list(names), name=name, tupleize_cols=False)
