"""Counts of genes in real neurons as outcomes: negative binomial, Poisson, or normal logarithms?

1190 mouse neurons of 23 types on their taxonomy. Outcomes are read counts of ten genes (ion
channels, receptors, peptides and their like, of the highest variance), with the cell's summed
counts as exposure; features are the leading principal components of the other 990 genes. A fifth of
the mice is left out. The log score is that of counts for all: a normal density of log(1 + count per
median cell) becomes one of counts by its slope. Coverage is of 90 % intervals, and a discrete one
may hold more.

    python examples/experiments/count_outcomes.py --data ../shared/data/neurons_m1
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts.real_data import principal_components
from parts.run_tables import markdown

FAMILIES = ("Kcn", "Scn", "Cacn", "Hcn", "Grin", "Gria", "Grik", "Gabr", "Chr", "Htr")
LATENTS, COMPONENTS = 3, 20


def cells(folder, num_genes):
    """Counts (N, Q), summed counts, other genes, leaf and mouse of each cell, and the tree."""
    rows = pd.read_csv(folder / "rows.csv.gz", index_col=0)
    genes = pd.read_csv(folder / "features.csv.gz", index_col=0)
    total = rows["counts"].to_numpy(float)
    share = 2.0**genes - 1  # counts over the cell's sum, times the median sum
    median = np.median(total)
    counts = (share.mul(total / median, axis=0)).round()
    chosen = [gene for gene in genes if gene.startswith(FAMILIES)]
    chosen = genes[chosen].var().nlargest(num_genes).index
    tree = tbr.Tree.from_parents(pd.read_csv(folder / "tree.csv"))
    return counts[chosen], total / median, genes.drop(columns=chosen), rows, tree


def compare(folder, num_genes, kinds, seed):
    """A row a likelihood: log score in counts, coverage, changes selected."""
    counts, exposure, genes, rows, tree = cells(folder, num_genes)
    mice = rows["mouse"].unique()
    out = np.random.default_rng(seed).permutation(mice)[: len(mice) // 5]
    train = ~rows["mouse"].isin(out).to_numpy()
    x, env = principal_components(genes, train, COMPONENTS), rows["leaf"].to_numpy()
    table, posteriors = {}, {}
    for kind in kinds:
        logs = kind in ("gaussian", "student_t")
        y = np.log1p(counts.div(exposure, axis=0)) if logs else counts
        given, new = (
            ({}, {}) if logs else ({"exposure": exposure[train]}, {"exposure": exposure[~train]})
        )
        model = tbr.TreeModel(tree, LATENTS, "linear", likelihood=kind)
        start = time.perf_counter()
        posterior = tbr.fit(model, x[train], y[train], env[train], progress=False, **given)
        seconds = time.perf_counter() - start
        found = posterior.predict(x[~train], env[~train], **new)
        score = found.log_score(y[~train])
        if logs:  # a density of logarithms times their slope, 1 / (exposure + count)
            slope = np.log(counts[~train].add(exposure[~train], axis=0)).to_numpy().mean()
            score = score - slope
        inside = (found.lower <= y[~train]) & (y[~train] <= found.upper)
        chosen = posterior.select(0.05)
        table[kind] = {
            "log score": score, "coverage": inside.to_numpy().mean(),
            "intercepts selected": (chosen["latent"] == "intercept").sum(),
            "slopes selected": (chosen["latent"] != "intercept").sum(), "seconds": seconds,
        }  # fmt: skip
        posteriors[kind] = posterior
        print(
            kind, {name: round(float(value), 3) for name, value in table[kind].items()}, flush=True
        )
    return pd.DataFrame(table).T, posteriors


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/neurons_m1"))
    parser.add_argument("--genes", type=int, default=10)
    kinds = ["negative_binomial", "gaussian", "student_t", "poisson"]
    parser.add_argument("--likelihoods", nargs="*", default=kinds, choices=kinds)
    parser.add_argument("--seed", type=int, default=0, help="of the mice left out")
    args = parser.parse_args(argv)
    table, posteriors = compare(args.data, args.genes, args.likelihoods, args.seed)
    print("\n" + markdown(table.round(3)))
    first = posteriors[args.likelihoods[0]]
    print("\n" + first.select(0.05).head(8).to_string(index=False))
    return table


if __name__ == "__main__":
    main()
