"""Names of the methods that scripts compare, and what they print of repeated runs of them."""

import pandas as pd

from pyro_tbr.evaluation import baselines, paired_differences, summarise_runs

METHODS = {
    "ours": baselines.SparseTree,
    "l1_tbr": baselines.L1TBR,
    "dense_tree": baselines.DenseTree,
    "tree_intercepts": baselines.TreeIntercepts,
    "dendronet": baselines.DendroNet,
    "per_leaf": baselines.LeafRegression,
    "one_hot": baselines.PooledOneHot,
    "pooled": baselines.Pooled,
    "autoencoder": baselines.AutoencoderLeafRegression,
    "group_dro": baselines.GroupDRO,
    "irm": baselines.IRM,
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
    means, errors = (summary[what].unstack("metric") for what in ("mean", "se"))
    metrics = [name for name in runs.columns if name in means]
    print("\nMeans over seeds:\n" + means[metrics].round(3).to_string())
    print("\nStandard errors:\n" + errors[metrics].round(3).to_string())
    found = {"summary": summary, "means": means}
    if reference in set(runs["method"]) and runs["method"].nunique() > 1:
        names = [name for name in compared if name in metrics]
        found["differences"] = paired_differences(runs, reference, names)
        print(f"\nLess {reference!r}, run by run:")
        print(found["differences"].round(3).to_string())
    return found
