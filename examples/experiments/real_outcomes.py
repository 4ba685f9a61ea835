"""Real outcomes, nothing simulated: our fit and other methods on the same folds.

Three data sets: neurons (genes to electrophysiology on a taxonomy of cell types), birds (niche to
body shape on a tree of families) and erythromycin (gene counts of bacteria to resistance, binary).
Protocols: ``groups`` (whole mice or genera held out, every leaf seen), ``leaves`` (leaves without
any row), ``cells5`` and the like (so many training rows a leaf), ``shuffled`` (groups, the leaves
dealt anew over the tree: a control), ``subclass`` (groups, the neurons' 12 subclasses as leaves),
and a genus left out for the bacteria. All methods see the same features.

Our prior has small changes where gates are off, of a size that is learnt (``ours``), as everything
differs a little in real data; beside it stand that of no change there (``ours_zero``) and that of
normal changes everywhere (``ours_dense``). ``ours_groups`` and ``dense_tree_groups``, if asked for,
are told which rows are of one mouse or genus and so are no independent draws of their leaf.

Prints R2, coverage of 90 % intervals and log score of every method, differences to ours by pairs
of held-out leaves with their standard errors, and which changes are selected at a false discovery
rate of 0.05, and in how many of the fits; for the bacteria the scores of probabilities by genus and
the share that is resistant among genomes with like probabilities. There is no true answer for the
latents; what one fit to all neurons says of them: ``examples/cells.py``.

    python examples/experiments/real_outcomes.py neurons
    python examples/experiments/real_outcomes.py birds --protocols groups leaves
    python examples/experiments/real_outcomes.py erythromycin
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts import real_data
from parts.real_tables import by_leaf, figure, stability, summary
from parts.run_tables import METHODS, markdown
from parts.runs import paired_differences
from parts.splits import leave_leaves_out
from pyro_tbr.evaluation import baselines as methods

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDERS = {
    "neurons": "neurons_m1",
    "birds": "birds_niche",
    "erythromycin": "erythromycin_firmicutes",
}
PROTOCOLS = {
    "neurons": ("groups", "leaves", "cells5", "cells10", "cells20", "shuffled", "subclass"),
    "birds": ("groups", "leaves"),
}
LATENTS = {"neurons": 5, "birds": 8}
AT_ONCE = {"neurons": 1, "birds": 7}  # leaves left out together: 23 and 9 folds
LEVEL = 0.9
FDR = 0.05
# In closed form the linear encoder predicts as well as after training, on tables of this size.
CLOSED_FORM = {"max_steps": 1, "sparse_steps": 0}


def all_methods(args: argparse.Namespace) -> dict[str, methods.Baseline]:
    options = tbr.FitOptions(restarts=args.restarts, **CLOSED_FORM)
    special = {
        "ours": methods.SparseTree(options=options),
        "ours_zero": methods.SparseTree(prior=tbr.SpikeSlabPrior(spike_scale=0), options=options),
        "ours_dense": methods.SparseTree(prior=tbr.GaussianPrior(), options=options),
        "ours_groups": methods.SparseTree(options=options),
        "dense_tree_groups": methods.DenseTree(),
        "l1_tbr": methods.L1TBR(restarts=args.l1_restarts),
    }
    return special | {name: make() for name, make in METHODS.items() if name not in special}


Fold = tuple[real_data.Rows, np.ndarray, np.ndarray]


def folds(
    rows: real_data.Rows, protocol: str, seed: int, folder: Path, args: argparse.Namespace
) -> Iterator[Fold]:
    """Rows, training rows and test rows of each fold of a protocol."""
    if protocol == "leaves":
        for split in leave_leaves_out(rows.tree, rows.env, args.leaves_at_once, seed=seed):
            yield rows, np.flatnonzero(split.train), np.flatnonzero(split.test)
    elif protocol.startswith("cells"):
        yield rows, *real_data.few_rows(rows, int(protocol.removeprefix("cells")), seed)
    else:
        if protocol == "shuffled":
            rows = real_data.shuffled(rows, seed)
        elif protocol == "subclass":
            rows = real_data.by_subclass(rows, folder)
        for train, test in real_data.whole_groups(rows, seed):
            yield rows, train, test


def scored(fitted: methods.FittedBaseline, x: pd.DataFrame, y: pd.DataFrame, leaf: str) -> dict:
    """Numbers of one leaf's test rows: sums over rows, so that folds can be added."""
    at = fitted.predict(x, leaf, level=LEVEL)
    error = ((y - at.mean) ** 2).to_numpy()
    numbers = {"rows": len(y)} | dict(zip(y.columns, error.sum(0), strict=True))
    if type(fitted.baseline).distribution:
        inside = ((y >= at.lower) & (y <= at.upper)).to_numpy()
        numbers |= {"covered": inside.mean(1).sum(), "log_score": at.log_score(y) * len(y)}
    return numbers


def run_protocol(
    rows: real_data.Rows,
    protocol: str,
    seed: int,
    folder: Path,
    args: argparse.Namespace,
    found: list[dict],
    selections: list[pd.DataFrame],
) -> None:
    """Adds scores of every method by held-out rows of a leaf, and each fit's selected changes."""
    chosen = {name: method for name, method in all_methods(args).items() if name in args.methods}
    for number, (data, train, test) in enumerate(folds(rows, protocol, seed, folder, args)):
        if args.max_folds is not None and number >= args.max_folds:
            break
        x, key = data.features(train), {"protocol": protocol, "seed": seed, "fold": number}
        base = data.y.iloc[train].mean()
        for name, method in {"mean": None, **chosen}.items():
            start = time.perf_counter()
            if method is not None:
                fitted = method.fit(
                    data.tree,
                    x.iloc[train],
                    data.y.iloc[train],
                    data.env[train],
                    latent_dim=x.shape[1] if args.encoder == "identity" else args.latent_dim,
                    encoder=args.encoder,
                    seed=seed,
                    groups=data.group[train] if name.endswith("_groups") else None,
                )
            seconds = time.perf_counter() - start
            for leaf in pd.unique(data.env[test]):
                own = test[data.env[test] == leaf]
                y = data.y.iloc[own]
                if method is None:
                    numbers = {"rows": len(own)} | ((y - base) ** 2).sum().to_dict()
                else:
                    numbers = scored(fitted, x.iloc[own], y, leaf)
                row = key | {"method": name, "leaf": leaf, "seconds": seconds}
                found.append(row | numbers)
            if name == args.reference and protocol == "groups":
                changes = fitted.rule.posterior.select(fdr=FDR)
                changes["outcome"] = _outcome_names(changes["outcome"], data.y.columns)
                selections.append(changes.assign(**key))
        print(f"  {protocol}, seed {seed}, fold {number} done", flush=True)
        if args.csv:  # what is done is kept
            pd.DataFrame(found).to_csv(args.csv, index=False)
            if selections:
                pd.concat(selections).to_csv(args.csv.with_suffix(".selected.csv"), index=False)


def _outcome_names(labels: pd.Series, names: pd.Index) -> list[str]:
    """Outcomes by their own names; inside a baseline they are y0, y1, ..."""
    return [str(names[int(str(label).removeprefix("y"))]) for label in labels]


def numeric(name: str, folder: Path, args: argparse.Namespace) -> dict:
    """Neurons or birds: all protocols, tables and figure."""
    if name == "neurons":
        rows = real_data.neurons(folder, args.max_outcomes, args.components or 30)
    else:
        rows = real_data.birds(folder, args.max_outcomes)
    outcomes = list(rows.y.columns)
    found: list[dict] = []
    selections: list[pd.DataFrame] = []
    for protocol in args.protocols or PROTOCOLS[name]:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            run_protocol(rows, protocol, seed, folder, args, found, selections)
    return report(pd.DataFrame(found), outcomes, selections, args)


def report(
    runs: pd.DataFrame,
    outcomes: list[str],
    selections: list[pd.DataFrame],
    args: argparse.Namespace,
) -> dict:
    """Prints the tables and draws the figure."""
    for column in ("covered", "log_score"):
        if column not in runs:
            runs[column] = np.nan
    result = {"summary": summary(runs, outcomes)}
    print("\nMeans over seeds:\n\n" + markdown(result["summary"]))
    leaves = by_leaf(runs, outcomes)
    if args.reference in args.methods and len(args.methods) > 1:
        pairs = leaves[leaves["method"] != "mean"]
        table = paired_differences(pairs, args.reference, by=("protocol",), seed="leaf")
        result["differences"] = table
        print(f"\nLess {args.reference}, by pairs of leaves:\n\n" + markdown(table))
        if args.figure:
            figure(leaves, args.figure, args.reference)
    if selections:
        result["selected"] = stability(pd.concat(selections))
        each = len(pd.concat(selections)) / len(selections)
        print(f"\nSelected at FDR {FDR}: {each:.0f} changes a fit, {len(selections)} fits.")
        often = result["selected"][result["selected"]["share of fits"] > 0.5]
        arcs = often.groupby(["parent", "child", "kind"])
        table = arcs["share of fits"].agg(["size", "mean"])
        table["outcomes"] = arcs["outcome"].agg(", ".join)
        table = table.sort_values(["size", "mean"], ascending=False)
        table.columns = ["outcomes in over half of the fits", "their mean share", "which"]
        print("By arc:\n\n" + markdown(table.head(20), 2))
    return result


def binary(folder: Path, args: argparse.Namespace) -> dict:
    """Erythromycin: every genus left out, and what all genomes say together."""
    from parts import real_binary

    rows = real_data.genomes(folder)
    share = rows.y["resistant"].mean()
    print(f"{len(rows.y)} genomes, {rows.x.shape[1]} counts, {share:.3f} resistant")
    found = real_binary.predictions(rows, args)
    runs = real_binary.runs(found)
    if args.csv:
        runs.to_csv(args.csv, index=False)
    print("\nA genus left out at a time:\n\n" + markdown(runs.set_index(["genus", "method"]), 3))
    reliability = real_binary.reliability(found)
    print("\nShare resistant among genomes with like probabilities, all genera left out:\n")
    print(markdown(reliability, 3))
    result = {"runs": runs, "reliability": reliability}
    if "ours" not in args.methods:
        return result
    pairs = runs[runs["genus"] != "all"].assign(setting="genera")
    table = paired_differences(
        pairs, "ours", ["AUROC", "log score", "Brier"], by=("setting",), seed="genus"
    )
    print("\nLess ours, by pairs of genera:\n\n" + markdown(table, 3))
    return result | {"differences": table}


def main(argv: list[str] | None = None) -> dict:
    """Runs the example; returns its tables by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=FOLDERS)
    parser.add_argument("--data", type=Path, help="folder of the data set")
    parser.add_argument("--protocols", nargs="*", help="of these only (all of the data set)")
    parser.add_argument("--methods", nargs="*", help="of these only (all without groups)")
    parser.add_argument(
        "--reference", default="ours",
        help="method that others are compared with, and whose selected changes are listed",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--latent-dim", type=int, help=f"by default {LATENTS}")
    parser.add_argument(
        "--encoder", default="linear", choices=["linear", "identity"],
        help="identity: features are the latents, so changes are of their own effects",
    )  # fmt: skip
    parser.add_argument(
        "--components", type=int,
        help="of the neurons' genes (30); of the counts of bacteria, for ours (by held-out rows)",
    )  # fmt: skip
    parser.add_argument("--restarts", type=int, default=16, help="of the rotation search")
    parser.add_argument("--l1-restarts", type=int, default=8, help="of L1-TBR")
    parser.add_argument("--leaves-at-once", type=int, help=f"left out together ({AT_ONCE})")
    parser.add_argument("--max-folds", type=int, help="only the first folds")
    parser.add_argument("--max-outcomes", type=int, help="only the first outcomes")
    parser.add_argument("--csv", type=Path, help="file for the numbers, a row a fold and leaf")
    parser.add_argument("--figure", type=Path, help="file for the figure")
    args = parser.parse_args(argv)
    folder = args.data or DATA / FOLDERS[args.name]
    if args.name == "erythromycin":
        args.methods = args.methods or [
            "ours",
            "dense_tree",
            "pooled",
            "arc_intercepts",
            "per_leaf",
        ]
        return binary(folder, args)
    args.methods = args.methods or [
        name for name in all_methods(args) if not name.endswith("_groups")
    ]
    args.latent_dim = args.latent_dim or LATENTS[args.name]
    args.leaves_at_once = args.leaves_at_once or AT_ONCE[args.name]
    return numeric(args.name, folder, args)


if __name__ == "__main__":
    main()
