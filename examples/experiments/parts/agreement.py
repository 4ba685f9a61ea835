"""Tables and the figure of ``replication.py``, from its rows: a row a change.

Standard errors: splits reuse the same rows, so shares of two splits are not independent, and the
changes of one split are not either. The unit is the split, both its directions together, and the
variance over splits is taken times 1/n + 1 rather than 1/n (Nadeau & Bengio, Machine Learning 52
(2003) 239: 1/n and rows that are tested over rows that are learnt from), so more splits make it
hardly smaller. It is never taken to be below that of as many independent changes as one split has,
which matters where all signs of all splits agree.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from parts.bins import BINS
from pyro_tbr.plotting.canvas import ALARM, GREY, INK, KEY, new_figure, open_frame

KEYS = ["parent", "child", "latent", "outcome"]
KINDS = ("intercepts", "slopes")
COLOURS = (INK, ALARM)
SELECTIONS = {
    "FDR 0.05": lambda table: table["selected"].astype(bool),
    "PIP above 0.5": lambda table: table["pip"] > 0.5,
    "PIP above 0.2": lambda table: table["pip"] > 0.2,
}


def error_over_splits(residual: pd.Series, split: pd.Series, number: int, share: float) -> float:
    """Standard error of a mean over changes, as said above.

    Args:
        residual: What is averaged, less its mean, (n,).
        split: Split of each, (n,).
        number: Of splits, those without such a change included.
        share: Probability whose variance is the least one of a change.
    """
    sums = residual.groupby(split.to_numpy()).sum()
    each = len(residual) / number  # changes of a split
    over = 0.0
    if number > 1:
        over = sums.pow(2).sum() / (number - 1) / each**2 * (1 / number + 1)
    share = (share * each + 1) / (each + 2)  # neither 0 nor 1
    return float(np.sqrt(max(over, share * (1 - share) / each)))


def by_pip(changes: pd.DataFrame, bins: np.ndarray = BINS) -> pd.DataFrame:
    """Observed and expected shares by data set, method, kind and bin of PIPs.

    Columns: ``a fit``, changes of one fit; ``mean PIP``; ``agree``, the observed share, with
    ``se``; ``expected`` by the posterior and ``difference``, observed less expected, with
    ``difference se``; ``r``, the share expected of those with the gate on; ``size``, the estimates
    towards the sign, their sum over that expected; ``covered``, by intervals of level 0.9; ``or
    1/2``, the share expected if those with the gate off have either sign.
    """
    ours = changes[changes["pip"].notna()]
    place = np.searchsorted(bins[1:-1], ours["pip"], side="right")
    tables = {}
    order = ["data", "method", "kind"]
    runs = number_of_runs(changes)
    for key, part in ours.groupby([*order, place], sort=True):
        observed, expected = part["agrees"].astype(float), part["expected"]
        share, gap = observed.mean(), observed - expected
        opened = part["gate"].sum()
        fits, splits = runs.loc[key[:2]]
        tables[(*key[:-1], f"{bins[key[-1]]:g} to {bins[key[-1] + 1]:g}")] = {
            "a fit": len(part) / fits,
            "mean PIP": part["pip"].mean(),
            "agree": share,
            "se": error_over_splits(observed - share, part["split"], splits, share),
            "expected": expected.mean(),
            "difference": gap.mean(),
            "difference se": error_over_splits(
                gap - gap.mean(), part["split"], splits, expected.mean()
            ),
            "r": part["gate_agrees"].sum() / opened if opened else np.nan,
            "size": part["size"].sum() / part["expected_size"].sum(),
            "covered": part["covered"].mean(),
            "or 1/2": (part["gate_agrees"] + (1 - part["gate"]) / 2).mean(),
        }
    table = pd.DataFrame(tables).T
    table.index.names = [*order, "PIP"]
    return table


def number_of_runs(changes: pd.DataFrame) -> pd.DataFrame:
    """``fits`` and ``splits`` of each data set and method."""
    groups = changes.groupby(["data", "method"])
    fits = groups[["split", "direction"]].apply(lambda table: len(table.drop_duplicates()))
    return pd.DataFrame({"fits": fits, "splits": groups["split"].nunique()})


def largest(changes: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Another method's largest changes of each kind, as many as :func:`compared` asks for.

    Columns named as the selections say whether ours has at least as many selected changes.
    """
    size = changes["change"].abs()
    rank = size.groupby(changes["kind"]).rank(method="first", ascending=False)
    columns = {}
    for name, chosen in SELECTIONS.items():
        number = ours[chosen(ours)]["kind"].value_counts()
        columns[name] = rank <= changes["kind"].map(number).fillna(0)
    kept = changes.assign(**columns)
    return kept[kept[list(columns)].any(axis=1)]


def with_all_methods(changes: pd.DataFrame) -> pd.DataFrame:
    """The splits of each data set in which all of its methods were fitted."""
    fitted = changes.groupby(["data", "split"])["method"].transform("nunique")
    return changes[fitted == changes.groupby("data")["method"].transform("nunique")]


def compared(changes: pd.DataFrame) -> pd.DataFrame:
    """Shares that agree among the surest changes of ours and as many of the others' largest ones.

    Columns: ``a fit``, changes of one fit; ``agree`` and its ``se``; ``expected`` by the posterior.
    """
    rows = {}
    runs = number_of_runs(changes)
    for selection, chosen in SELECTIONS.items():
        has_pip = changes["pip"].notna()
        mine = changes[has_pip][chosen(changes[has_pip])]
        parts = [mine]
        if selection in changes:
            parts.append(changes[~has_pip & changes[selection].eq(True)])
        every = pd.concat(parts)
        for key, part in every.groupby(["data", "kind", "method"], sort=False):
            observed = part["agrees"].astype(float)
            share = observed.mean()
            fits, splits = runs.loc[(key[0], key[2])]
            rows[(key[0], key[1], selection, key[2])] = {
                "a fit": len(part) / fits,
                "agree": share,
                "se": error_over_splits(observed - share, part["split"], splits, share),
                "expected": part["expected"].mean(),
            }
    table = pd.DataFrame(rows).T
    table.index.names = ["data", "kind", "selected", "method"]
    return table.sort_index(level=["data", "kind", "selected"], sort_remaining=False)


def figure(table: pd.DataFrame, methods: dict[str, str], path: Path) -> None:
    """Shares that agree against PIPs, a panel a data set; lines: what the posterior expects.

    Args:
        table: Of :func:`by_pip`.
        methods: The method to draw by data set.
        path: File for the figure.
    """
    from matplotlib.lines import Line2D

    names = [name for name in methods if name in table.index.get_level_values("data")]
    drawn = new_figure(3.9 * len(names), 3.7)
    panels = drawn.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for name, ax in zip(names, panels, strict=True):
        ax.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
        for kind, colour, shift in zip(KINDS, COLOURS, (-0.006, 0.006), strict=True):
            own = table.loc[(name, methods[name], kind)]
            at = own["mean PIP"]
            style = {"color": colour, "elinewidth": 1, "fmt": "o", "markersize": 4.5}
            ax.errorbar(at + shift, own["agree"], own["se"], **style)
            ax.plot(at, own["expected"], color=colour, linewidth=1.4)
            ax.plot(at, own["or 1/2"], color=colour, linewidth=0.8, linestyle="--")
        ax.set(title=name, xlabel="PIP in one half", xlim=(-0.03, 1.03), ylim=(0.4, 1.03))
        open_frame(ax)
    panels[0].set_ylabel("same sign in the other half")
    key = [
        Line2D([], [], color=colour, marker="o", linestyle="", markersize=4.5, label=kind)
        for colour, kind in zip(COLOURS, KINDS, strict=True)
    ]
    for style, text in (
        ("-", "expected by the posterior"),
        ("--", "if either sign were as likely where gates are off"),
        (":", "chance"),
    ):
        key.append(Line2D([], [], color=GREY, linestyle=style, label=text))
    drawn.legend(handles=key, loc="outside lower center", ncols=5, **KEY)
    drawn.savefig(path, dpi=110)
