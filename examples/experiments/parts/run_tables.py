"""Names of the methods that scripts compare, and what they print of repeated runs of them."""

from math import isnan

import pandas as pd

import rivals
from parts.runs import paired_differences, summarise_runs
from pyro_tbr.evaluation import baselines

METHODS = {
    "ours": baselines.SparseTree,
    "l1_tbr": baselines.L1TBR,
    "dense_tree": baselines.DenseTree,
    "tree_intercepts": baselines.TreeIntercepts,
    "dendronet": rivals.DendroNet,
    "per_leaf": baselines.LeafRegression,
    "one_hot": baselines.PooledOneHot,
    "pooled": baselines.Pooled,
    "autoencoder": rivals.AutoencoderLeafRegression,
    "group_dro": rivals.GroupDRO,
    "irm": rivals.IRM,
}


def show(runs: pd.DataFrame, reference: str, compared: list[str]) -> dict[str, pd.DataFrame]:
    """Prints the tables and returns them by name.

    Args:
        runs: A row a run: ``setting``, ``method``, ``seed`` and a column a metric.
        reference: The method that others are compared with, where it is there beside them.
        compared: The metrics to compare; those that no run has are left out.

    Returns:
        ``summary`` (as ``summarise_runs`` has it), ``means`` (a column a metric) and, where there
        is something to compare, ``differences``.
    """
    summary = summarise_runs(runs)
    order = summary.index.droplevel("metric").unique()
    means, errors = (summary[what].unstack("metric").loc[order] for what in ("mean", "se"))
    metrics = [name for name in runs.columns if name in means]
    both = pd.DataFrame(index=means.index)
    for name in metrics:
        pairs = zip(means[name], errors[name], strict=True)
        both[name] = ["-" if isnan(m) else f"{m:.3f} ({e:.3f})" for m, e in pairs]
    print("\nMeans over seeds (standard errors):\n\n" + markdown(both))
    found = {"summary": summary, "means": means}
    if reference in set(runs["method"]) and runs["method"].nunique() > 1:
        names = [name for name in compared if name in metrics]
        found["differences"] = paired_differences(runs, reference, names)
        print(f"\nLess {reference!r}, run by run:\n\n" + markdown(found["differences"], 3))
    return found


def markdown(table: pd.DataFrame, digits: int = 4) -> str:
    """A table as README files have it."""
    flat = table.reset_index()
    lines = [list(map(str, flat.columns)), ["---"] * flat.shape[1]]
    for row in flat.itertuples(index=False):
        shown = [f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in row]
        lines.append(["-" if cell == "nan" else cell for cell in shown])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
