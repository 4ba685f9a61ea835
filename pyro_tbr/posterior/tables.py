"""Tables of the posterior, in the user's labels and units."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_tbr.heads.moments import DeltaMoments, NodeMoments
from pyro_tbr.tree import Tree

Names = Sequence[Hashable]
_STANDARD = Normal(0.0, 1.0)


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


def delta_table(
    tree: Tree,
    moments: DeltaMoments,
    scale: Tensor,
    latents: Names,
    outcomes: Names,
    level: float,
    log_odds: Tensor | None = None,
    draws: Tensor | None = None,
) -> pd.DataFrame:
    """One row an arc, latent and outcome; see ``Posterior.deltas``.

    Args:
        tree: The environments.
        moments: In the model's units, (A, W, Q).
        scale: The user's units in one of the model's, (Q,) or (W, Q).
        latents: W names.
        outcomes: Q names.
        level: Probability of the interval.
        log_odds: Log odds of inclusion, (A, W, Q); ``None``: no such column.
        draws: Of the changes in the model's units, (S, A, W, Q), for intervals and sign rates of
            changes that are no mixture of a point and a normal; ``None``: they are.
    """
    m = DeltaMoments(*(part.cpu().double() for part in moments))
    slab_sd = m.slab_var.clamp(min=1e-300).sqrt()
    tail = (1 - level) / 2
    if draws is None:
        below = m.inclusion * _STANDARD.cdf(-m.slab_mean / slab_sd)
        above = m.inclusion - below
        lower, upper = (
            _spike_slab_quantile(m, slab_sd, below, probability) for probability in (tail, 1 - tail)
        )
    else:
        below, above = ((draws * sign > 0).double().mean(0) for sign in (-1, 1))
        lower, upper = torch.from_numpy(np.quantile(draws.cpu().numpy(), [tail, 1 - tail], axis=0))
    columns = {
        "pip": m.inclusion,
        "prior_pip": m.prior_inclusion,
        "mean": m.mean * scale,
        "sd": m.var.sqrt() * scale,
        "lower": lower * scale,
        "upper": upper * scale,
        "lfsr": 1 - torch.maximum(below, above),
    }
    if log_odds is not None:
        columns["log_odds"] = log_odds
    return long_table(tree, columns, latents, outcomes)


def long_table(
    tree: Tree, columns: dict[str, Tensor], latents: Names, outcomes: Names
) -> pd.DataFrame:
    """One row an arc, latent and outcome; columns (A, W, Q) by name behind those of labels."""
    parents, children = zip(*tree.arcs, strict=True)
    num_arcs, repeat = len(parents), len(latents) * len(outcomes)
    frame = pd.DataFrame(
        {
            "parent": np.repeat(_objects(parents), repeat),
            "child": np.repeat(_objects(children), repeat),
            **_name_columns(latents, outcomes, num_arcs),
        }
    )
    for name, value in columns.items():
        frame[name] = value.reshape(-1).cpu().numpy()
    return frame


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
    num_nodes, num_weights, num_outcomes = moments.mean.shape
    return pd.DataFrame(
        {
            "node": np.repeat(_objects(tree.nodes), num_weights * num_outcomes),
            **_name_columns(latents, outcomes, num_nodes),
            "mean": moments.mean.reshape(-1).cpu().double().numpy(),
            "sd": moments.var.clamp(min=0).sqrt().reshape(-1).cpu().double().numpy(),
        }
    )


def _objects(labels: tuple) -> np.ndarray:
    """Labels as an object array; tuples stay labels and do not become a second dimension."""
    return np.fromiter(labels, dtype=object, count=len(labels))


def names_index(names: Names, name: str) -> pd.Index:
    """Names of latents or outcomes as an index; tuples stay names and do not become levels."""
    return pd.Index(list(names), name=name, tupleize_cols=False)


def _name_columns(latents: Names, outcomes: Names, repeat: int) -> dict[str, pd.Index]:
    """Columns latent and outcome of a long table, so often; names keep their types."""
    num_weights, num_outcomes = len(latents), len(outcomes)
    latent = np.tile(np.repeat(np.arange(num_weights), num_outcomes), repeat)
    outcome = np.tile(np.arange(num_outcomes), repeat * num_weights)
    return {
        "latent": names_index(latents, "latent").take(latent),
        "outcome": names_index(outcomes, "outcome").take(outcome),
    }
