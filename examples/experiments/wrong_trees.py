"""What if the tree is wrong, or only partly known?

Simulates data on a random tree and fits them with the right tree, with trees of which subtrees were
moved or clades collapsed, with a tree learnt by clustering regressions of the leaves, and with a
star; beside them a pooled regression, which looks at no tree. Prints and draws how well the latents
were found (MCC), the log score and the coverage of 90 % intervals at leaves without data, the AUROC
of inclusion probabilities and the share of true changes by PIP, over the arcs between clades that
the true tree has too. (Mean features would not do for clustering: here they are alike everywhere.)

    python examples/experiments/wrong_trees.py --seeds 6 --csv runs.csv --figure wrong_trees.png
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts.comparison import plot_methods
from parts.rearrange import (
    clades_collapsed,
    leaves_clustered,
    shared_changes,
    star,
    subtrees_moved,
)
from parts.run_tables import show
from pyro_tbr.evaluation import (
    linear_r2,
    match_latents,
    mcc,
    pip_auroc,
    reliability,
)
from pyro_tbr.evaluation.baselines import Pooled

TREES = ("right", "1 moved", "4 moved", "half collapsed", "clustered", "star")
LEVEL = 0.9
BINS = np.array([0, 0.05, 0.2, 0.8, 0.95, 1.0])
PANELS = {
    "mcc": "MCC of the latents",
    "held_out_log_score": "log score, left-out leaves",
    "held_out_coverage": "coverage of 90 % intervals",
    "auroc": "AUROC of PIPs",
}


def changed(name, data, x, y, env, seed):
    """The tree that a fit is given."""
    if name == "right":
        return data.tree
    if name == "star":
        return star(data.tree)
    if name == "half collapsed":
        return clades_collapsed(data.tree, 0.5, seed=seed)
    if name == "clustered":
        profiles, known = coefficients(data, x, y, env)
        return leaves_clustered(data.tree, profiles, known=known)
    return subtrees_moved(data.tree, int(name.split()[0]), seed=seed)


def coefficients(data, x, y, env):
    """Regressions of the leaves on the leading components of x, and which leaves have one."""
    size = data.z.shape[1]
    centre = x.mean(0)
    axes = np.linalg.svd(x - centre, full_matrices=False)[2][:size].T
    parts = (x - centre) @ axes
    parts /= parts.std(0)
    found, known = np.zeros((len(data.tree.leaves), size)), []
    for place, leaf in enumerate(data.tree.leaves):
        rows = np.array([label == leaf for label in env])
        known.append(rows.any())
        if rows.any():
            design = np.column_stack([parts[rows], np.ones(rows.sum())])
            found[place] = np.linalg.lstsq(design, y[rows], rcond=None)[0][:size]
    return found, known


def one_fit(data, name, seed, leaves, options):
    """Numbers of a fit with one tree, and its PIPs with their truth where that is defined."""
    x, y, env = data.without(leaves)
    tree = changed(name, data, x, y, env, seed)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", tbr.IdentificationWarning)
        model = tbr.TreeModel(tree, data.z.shape[1], "linear")
        posterior = tbr.fit(model, x, y, env, seed=seed, progress=False, options=options)
    seconds = time.perf_counter() - start
    z = posterior.encode(data.x)
    match = match_latents(data.z, z)
    truth = shared_changes(data, tree)
    usable = truth.shared & posterior.guide.informed_arcs.numpy()
    pips = posterior.guide.delta_moments().inclusion.detach().numpy()
    pips = pips[usable][:, match.permutation].ravel()
    gates = truth.gates[usable].ravel()
    both = 0 < gates.sum() < gates.size
    return {
        "mcc": mcc(data.z, z),
        "r2": linear_r2(data.z, z),
        **scored(posterior, data, leaves, seed),
        "auroc": pip_auroc(pips, gates) if both else np.nan,
        "expected_changes": float(posterior.guide.delta_moments().inclusion.sum()),
        "elbo": posterior.guide.elbo(posterior.stats).item(),
        "warned": float(bool(caught)),
        "seconds": seconds,
    }, pd.DataFrame({"method": name, "pip": pips, "gate": gates})


def scored(method, data, leaves, seed):
    """Mean log score, coverage and squared error at leaves without data."""
    rows = []
    for leaf in leaves:
        x, y, _ = data.rows(leaf, 100, seed=seed)
        found = method.predict(x, leaf, level=LEVEL)
        rows.append(
            {
                "held_out_log_score": found.log_score(y),
                "held_out_coverage": np.mean((y >= found.lower) & (y <= found.upper)),
                "held_out_mse": np.mean((y - found.mean) ** 2),
            }
        )
    return pd.DataFrame(rows).mean().to_dict()


def by_pip(pips):
    """Share of true changes by PIP, tree by tree."""
    parts = {}
    for name, part in pips.groupby("method", sort=False):
        table = reliability(part["pip"], part["gate"].astype(float), BINS)
        parts[name] = table[table["count"] > 0].set_index("lower")
    return pd.concat(parts, names=["tree"])[["mean_pip", "true_share", "count"]]


def figure(table, path):
    """Draws the means of the table and writes them to a file."""
    axes = plot_methods(table, PANELS)
    axes[2].axhline(LEVEL, color="#9a9a9a", linewidth=0.8, linestyle="--", zorder=0)
    for ax in axes:
        ax.set_xticks([])
    axes[0].figure.savefig(path, dpi=150)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trees", nargs="*", default=list(TREES), choices=TREES)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--leaves", type=int, default=24)
    parser.add_argument("--latent-dim", type=int, default=3)
    parser.add_argument("--rows-per-leaf", type=int, default=80)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--held-out", type=int, default=3, help="leaves without data in each fit")
    parser.add_argument("--restarts", type=int, default=64)
    parser.add_argument("--csv", type=Path, help="file for the fits, one a row")
    parser.add_argument("--figure", type=Path, help="file for a figure")
    args = parser.parse_args(argv)
    options = tbr.FitOptions(restarts=args.restarts)
    runs, pips = [], []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        data = tbr.simulate(
            num_leaves=args.leaves,
            shape="random",
            latent_dim=args.latent_dim,
            rows_per_leaf=args.rows_per_leaf,
            noise_scale=args.noise,
            changes="half_the_arcs",
            seed=seed,
        )
        places = np.random.default_rng([seed, 3]).permutation(len(data.tree.leaves))
        leaves = [data.tree.leaves[place] for place in places[: args.held_out]]
        for name in args.trees:
            numbers, found = one_fit(data, name, seed, leaves, options)
            runs.append({"setting": "trees", "method": name, "seed": seed, **numbers})
            pips.append(found)
        pooled = Pooled().fit(data.tree, *data.without(leaves), seed=seed)
        numbers = scored(pooled, data, leaves, seed)
        runs.append({"setting": "trees", "method": "pooled", "seed": seed, **numbers})
        if args.csv:
            pd.DataFrame(runs).to_csv(args.csv, index=False)
            pd.concat(pips).to_csv(args.csv.with_suffix(".pips.csv"), index=False)
        print(f"seed {seed} done", flush=True)
    runs, pips = pd.DataFrame(runs), pd.concat(pips)
    found = show(runs, "right", ["mcc", "held_out_log_score", "held_out_mse", "elbo"])
    bins = by_pip(pips)
    print("\nHow often a change was true, by its PIP:\n" + bins.round(3).to_string())
    if args.figure:
        figure(found["summary"], args.figure)
    return found | {"means": found["means"].droplevel("setting"), "reliability": bins}


if __name__ == "__main__":
    main()
