"""Tables and the figure of ``real_outcomes.py``, from its rows: a row a method, fold and leaf."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


def summary(runs: pd.DataFrame, outcomes: list[str]) -> pd.DataFrame:
    """Mean over seeds by protocol and method: R2, coverage, log score; s.e. of R2 over seeds.

    R2 is against the mean of the training rows, mean over the outcomes.
    """
    sums = runs.groupby(["protocol", "method", "seed"], sort=False)[
        ["rows", *outcomes, "covered", "log_score"]
    ].sum(min_count=1)
    base = sums.xs("mean", level="method")[outcomes]
    tables = {}
    for (protocol, method), part in sums.groupby(level=[0, 1], sort=False):
        if method == "mean":
            continue
        part = part.droplevel([0, 1])
        r2 = (1 - part[outcomes] / base.loc[protocol]).mean(axis=1)
        fits = runs[(runs.protocol == protocol) & (runs.method == method)]
        tables[protocol, method] = {
            "R2": r2.mean(),
            "se": r2.std() / len(r2) ** 0.5,
            "coverage": (part["covered"] / part["rows"]).mean(),
            "log score": (part["log_score"] / part["rows"]).mean(),
            "seconds": fits.groupby(["seed", "fold"])["seconds"].first().mean(),
        }
    table = pd.DataFrame(tables).T
    table.index.names = ["protocol", "method"]
    return table


def by_leaf(runs: pd.DataFrame, outcomes: list[str]) -> pd.DataFrame:
    """A row a protocol, method and leaf: mean squared error and log score over folds and seeds."""
    keys = ["protocol", "method", "leaf"]
    sums = runs.groupby(keys, sort=False)[["rows", *outcomes, "log_score"]].sum(min_count=1)
    mse = sums[outcomes].sum(axis=1) / (sums["rows"] * len(outcomes))
    score = sums["log_score"] / sums["rows"]
    return pd.DataFrame({"mse": mse, "log_score": score}).reset_index()


def stability(selections: pd.DataFrame) -> pd.DataFrame:
    """Selected changes by arc, kind of effect and outcome: the share of fits that select them.

    Latents of two fits need not be the same, so changes of slopes count for any latent.
    """
    kind = np.where(selections["latent"] == "intercept", "intercept", "slope")
    table = selections.assign(kind=kind)
    fits = len(table[["seed", "fold"]].drop_duplicates())
    keys = ["parent", "child", "kind", "outcome"]
    once = table.drop_duplicates([*keys, "seed", "fold"])
    return (once.groupby(keys).size() / fits).rename("share of fits").reset_index()


def figure(leaves: pd.DataFrame, path: Path, reference: str) -> None:
    """How much lower a method's error is than others' at each leaf, a panel a protocol."""
    import matplotlib.pyplot as plt

    wide = leaves.pivot_table("mse", ["protocol", "leaf"], "method", sort=False)
    protocols = list(dict.fromkeys(wide.index.get_level_values(0)))
    fig, axes = plt.subplots(
        1, len(protocols), figsize=(3.2 * len(protocols) + 1, 3.6), squeeze=False, sharey=True
    )
    for ax, protocol in zip(axes[0], protocols, strict=True):
        part = wide.loc[protocol].dropna(axis=1, how="all").drop(columns="mean")
        gain = part.drop(columns=reference).sub(part[reference], axis=0)
        for place, name in enumerate(gain):
            spread = np.linspace(-0.2, 0.2, len(gain))
            # Far points would hide all others: they stand at the edge.
            shown = gain[name].sort_values().clip(-0.15, 0.3)
            ax.plot(shown, place + spread, ".", ms=4, alpha=0.5, color="C0")
            ax.plot(gain[name].mean().clip(-0.15, 0.3), place, "D", ms=5, color="C3")
        ax.axvline(0, color="0.4", lw=0.8)
        ax.set_xlim(-0.16, 0.31)
        ax.set_yticks(range(gain.shape[1]), list(gain))
        ax.set_title(protocol, fontsize=10)
        ax.set_xlabel(f"error less that of {reference}")
    axes[0, 0].invert_yaxis()
    fig.suptitle(f"A point a leaf, diamonds: mean\nright: {reference} is better", fontsize=9)
    fig.tight_layout()
    fig.savefig(path, dpi=150)
    plt.close(fig)
