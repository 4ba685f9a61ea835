"""Does a fit find the true latents, and are its inclusion probabilities and intervals true?

Simulates data whose truth is known, fits them with default options and prints, setting by setting,
the correlation of true and estimated latents (MCC: worst and median seed), the seconds of a fit and
the AUROC of the inclusion probabilities (PIPs); then, over all fits, the share of true changes by
PIP, and the coverage of 90 % intervals at leaves without data.

    python examples/experiments/recovery.py --seeds 10
"""

import argparse
import time
import warnings

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts.bins import BINS
from pyro_tbr.evaluation import match_latents, pip_auroc, reliability

SETTINGS = {  # name -> encoder, arguments of simulate
    "32 leaves, K=5, 200 rows a leaf": ("linear", {}),
    "32 leaves, K=5, 20 rows a leaf": ("linear", {"rows_per_leaf": 20}),
    "8 leaves, K=3, 4 outcomes": (
        "linear",
        {
            "num_leaves": 8,
            "latent_dim": 3,
            "num_outcomes": 4,
            "noise_scale": 0.3,
            "changes": "half_the_arcs",
        },
    ),
    "the same, 20 % of outcomes missing": (
        "linear",
        {
            "num_leaves": 8,
            "latent_dim": 3,
            "num_outcomes": 4,
            "noise_scale": 0.3,
            "changes": "half_the_arcs",
            "missing": 0.2,
        },
    ),
    "64 leaves, K=5, dense changes (0.4)": (
        "linear",
        {"num_leaves": 64, "changes": "bernoulli", "change_prob": 0.4, "rows_per_leaf": 100},
    ),
    "random trees, K=4, noise sd 0.3": (
        "linear",
        {
            "num_leaves": 24,
            "shape": "random",
            "latent_dim": 4,
            "changes": "half_the_arcs",
            "rows_per_leaf": 80,
            "noise_scale": 0.3,
        },
    ),
    "MLP mixing, MLP encoder, 300 rows a leaf": (
        "mlp",
        {"rows_per_leaf": 300, "num_features": 10, "mixing": "mlp"},
    ),
    "binary outcome, 1000 rows a leaf": (
        "linear",
        {"rows_per_leaf": 1000, "likelihood": "bernoulli"},
    ),
}


def one_fit(encoder, arguments, seed, options, num_held_out):
    """MCC, seconds, PIPs and true gates, coverage at held-out leaves of one simulated data set."""
    data = tbr.simulate(**arguments, seed=seed)
    rng = np.random.default_rng(seed)
    leaves = np.empty(len(data.tree.leaves), dtype=object)
    leaves[:] = data.tree.leaves
    held_out = list(rng.choice(leaves, num_held_out, replace=False))
    x, y, env = data.without(held_out)
    binary = data.likelihood == "bernoulli"
    model = tbr.TreeModel(data.tree, data.z.shape[1], encoder, likelihood=data.likelihood)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tbr.IdentificationWarning)
        posterior = tbr.fit(model, x, y, env, seed=seed, progress=False, options=options)
    seconds = time.perf_counter() - start
    z = posterior.encode(data.x)
    order = match_latents(data.z, z).permutation
    pips = posterior.guide.delta_moments().inclusion[:, list(order)].numpy()
    informed = posterior.guide.informed_arcs.numpy()
    covered = []
    for leaf in [] if binary else held_out:  # intervals of binary outcomes hold a probability
        new_x, new_y, _ = data.rows(leaf, 50, seed=seed)
        prediction = posterior.predict(new_x, leaf, level=0.9)
        covered.append(np.mean((new_y >= prediction.lower) & (new_y <= prediction.upper)))
    return tbr.mcc(data.z, z), seconds, pips[informed], data.gates[informed], covered


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--settings", type=int, nargs="*", help="numbers of settings, from 0")
    parser.add_argument("--held-out", type=int, default=1, help="leaves without data in each fit")
    parser.add_argument("--restarts", type=int, default=64)
    parser.add_argument("--max-steps", type=int, default=None)
    args = parser.parse_args(argv)
    options = tbr.FitOptions(restarts=args.restarts, max_steps=args.max_steps)
    chosen = list(SETTINGS) if args.settings is None else [list(SETTINGS)[i] for i in args.settings]
    rows, all_pips, all_gates, coverage = [], [], [], []
    for name in chosen:
        encoder, arguments = SETTINGS[name]
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        fits = [one_fit(encoder, arguments, seed, options, args.held_out) for seed in seeds]
        mcc, seconds, pips, gates, covered = zip(*fits, strict=True)
        pips, gates = (np.concatenate([v.ravel() for v in part]) for part in (pips, gates))
        rows.append(
            {
                "setting": name,
                "worst MCC": min(mcc),
                "median MCC": np.median(mcc),
                "seconds": np.median(seconds),
                "AUROC of PIPs": pip_auroc(pips, gates),
                "held-out coverage": np.mean(covered) if np.size(covered) else np.nan,
            }
        )
        print(pd.DataFrame(rows[-1:]).round(4).to_string(index=False, header=False), flush=True)
        all_pips.append(pips)
        all_gates.append(gates)
        coverage += [c for part in covered for c in part]
    table = pd.DataFrame(rows)
    print("\n" + table.round(4).to_string(index=False))
    bins = reliability(np.concatenate(all_pips), np.concatenate(all_gates), BINS)
    print("\nHow often a change was true, by its PIP:\n" + bins.round(3).to_string(index=False))
    if not coverage:
        return {"table": table, "reliability": bins, "coverage": float("nan")}
    error = np.std(coverage) / len(coverage) ** 0.5
    print(
        f"\n90 % intervals at {len(coverage)} leaves without data cover {np.mean(coverage):.3f} "
        f"(s.e. {error:.3f})"
    )
    return {"table": table, "reliability": bins, "coverage": float(np.mean(coverage))}


if __name__ == "__main__":
    main()
