"""When does ``compare_trees`` say that a tree is worth it?

Known latents on random trees; changes fall on all arcs alike, so some move whole clades. Compares
the tree that the data come from with a star, no sharing, one environment, and a tree of which four
subtrees were moved, by evidence and by the log score of held-out rows and of held-out leaves. Two
kinds of data: made on the tree, and made on a star and fitted with a tree that means nothing.
Prints means over data sets with standard errors, and how often the given tree is ahead of others.

    python examples/experiments/tree_worth.py --seeds 6
"""

import argparse
import warnings

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts.rearrange import star, subtrees_moved
from parts.runs import summarise_runs


def drawn(world, seed, args):
    """A data set, and the tree it is fitted with."""
    tree = tbr.simulate(num_leaves=args.leaves, shape="random", rows_per_leaf=1, seed=seed).tree
    data = tbr.simulate(
        tree if world == "tree" else star(tree),
        latent_dim=args.latent_dim,
        num_features=args.latent_dim,
        num_outcomes=args.outcomes,
        rows_per_leaf=args.rows_per_leaf,
        noise_scale=1.0,
        changes="bernoulli",
        change_prob=0.3,
        seed=seed,
    )
    return data, tree


def compared(world, hold_out, seed, args):
    """A row a tree."""
    data, tree = drawn(world, seed, args)
    model = tbr.TreeModel(tree, args.latent_dim, "identity")
    moved = {"4 moved": subtrees_moved(tree, 4, seed=seed)}
    how = {"hold_out": hold_out, "num_folds": args.folds, "seed": seed, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tbr.ConvergenceWarning)
        found = tbr.compare_trees(model, data.z, data.y, data.env, moved, **how)
    rows = found.table.reset_index(names="method")
    return rows.assign(setting=f"made on a {world}, {hold_out}", seed=seed)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", nargs="*", default=["tree", "star"], choices=["tree", "star"])
    parser.add_argument("--hold-out", nargs="*", default=["rows", "leaves"])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--leaves", type=int, default=16)
    parser.add_argument("--latent-dim", type=int, default=2)
    parser.add_argument("--outcomes", type=int, default=2)
    parser.add_argument("--rows-per-leaf", type=int, default=12)
    parser.add_argument("--folds", type=int, default=3)
    args = parser.parse_args(argv)
    runs = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for world in args.worlds:
            runs += [compared(world, hold_out, seed, args) for hold_out in args.hold_out]
        print(f"seed {seed} done", flush=True)
    runs = pd.concat(runs, ignore_index=True)
    runs["ahead"] = (runs["difference"] < 0).astype(float)
    runs["ahead_by_evidence"] = (runs["evidence"] < 0).astype(float)
    metrics = ["evidence", "log_score", "difference", "ahead", "ahead_by_evidence"]
    table = summarise_runs(runs[["setting", "method", "seed", *metrics]])
    shown = table["mean"].unstack("metric")[metrics]
    shown["se"] = table["se"].unstack("metric")["difference"]
    print(shown.round(3).to_string())
    return {"runs": runs, "table": shown, "finite": bool(np.isfinite(runs["difference"]).all())}


if __name__ == "__main__":
    main()
