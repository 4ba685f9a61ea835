"""Are inclusion probabilities, credible sets, selections and intervals as often right as they say?

Simulates data with a known truth on random trees, fits them with default options, and prints for
each setting: the share of true changes by inclusion probability (PIP), AUROC, how often 95 %
credible sets hold a true change, the share of false ones among changes selected at FDR 0.05, and
at leaves without data the coverage of 90 % intervals and the log score beside those of other
methods.

    python examples/experiments/calibration.py --fits 25
    python examples/experiments/calibration.py --settings mlp --fits 20 --compare
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts.bins import BINS
from parts.runs import paired_differences
from pyro_tbr.evaluation import (
    credible_set_coverage,
    match_latents,
    pip_auroc,
    reliability,
    selection_score,
    true_changes,
)
from pyro_tbr.evaluation.baselines import DenseTree, LeafRegression, Pooled

SETTINGS = {  # name -> encoder, arguments of simulate
    "half": ("linear", {"changes": "half_the_arcs", "rows_per_leaf": 80}),
    "bernoulli": ("linear", {"changes": "bernoulli", "change_prob": 0.15, "rows_per_leaf": 80}),
    "mlp": (
        "mlp",
        {"changes": "half_the_arcs", "rows_per_leaf": 200, "mixing": "mlp", "num_features": 10},
    ),
    "mlp bernoulli": (
        "mlp",
        {
            "changes": "bernoulli",
            "change_prob": 0.15,
            "rows_per_leaf": 200,
            "mixing": "mlp",
            "num_features": 10,
        },
    ),
}
BASELINES = {"pooled": Pooled, "per leaf": LeafRegression, "dense tree": DenseTree}


def one_fit(setting, seed, options, prior, args):
    """What one simulated data set shows: PIPs and their truth, sets, selection, held-out leaves."""
    encoder, arguments = SETTINGS[setting]
    rng = np.random.default_rng([seed, 1])
    data = tbr.simulate(
        **arguments,
        num_leaves=int(rng.integers(args.leaves[0], args.leaves[1] + 1)),
        shape="random",
        latent_dim=args.latent_dim,
        noise_scale=0.3,
        delta_min=args.delta_min,
        seed=seed,
    )
    places = rng.choice(len(data.tree.leaves), args.held_out, replace=False)
    leaves = [data.tree.leaves[place] for place in places]
    x, y, env = data.without(leaves)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", tbr.IdentificationWarning)
        model = tbr.TreeModel(data.tree, args.latent_dim, encoder, prior)
        posterior = tbr.fit(model, x, y, env, seed=seed, progress=False, options=options)
    seconds = time.perf_counter() - start
    truth, found = true_changes(data, posterior), posterior.deltas()
    usable = (truth["informed"] & (truth["latent"] != "intercept")).to_numpy()
    sets, chosen = posterior.credible_sets(), posterior.select(fdr=0.05)
    fitted = {"tree of sparse changes": posterior}
    if args.compare:
        options_of = {"latent_dim": args.latent_dim, "encoder": encoder, "seed": seed}
        for name, baseline in BASELINES.items():
            fitted[name] = baseline().fit(data.tree, x, y, env, **options_of)
    scores = []
    for leaf in leaves:
        new_x, new_y, _ = data.rows(leaf, 100, seed=seed)
        for name, method in fitted.items():
            prediction = method.predict(new_x, leaf, level=0.9)
            inside = (new_y >= prediction.lower) & (new_y <= prediction.upper)
            scores.append(
                {
                    "setting": setting,
                    "method": name,
                    "leaf": (seed, leaf),
                    "coverage": float(np.mean(inside)),
                    "log_score": prediction.log_score(new_y),
                }
            )
    held, picked = credible_set_coverage(sets, truth), selection_score(chosen, truth)
    return {
        "mcc": float(match_latents(data.z, posterior.encode(data.x)).correlations.mean()),
        "seconds": seconds,
        "warned": bool(caught),
        "pips": found["pip"].to_numpy()[usable],
        "gates": truth["change"].to_numpy()[usable],
        "sets": held.num_sets,
        "sets_right": held.num_sets * (held.covered if held.num_sets else 0.0),
        "selected": picked.num_selected,
        "selected_wrong": picked.num_selected * picked.fdr,
        "scores": scores,
    }


def summary(setting, fits):
    """One row of the table of settings."""
    pips = np.concatenate([fit["pips"] for fit in fits])
    gates = np.concatenate([fit["gates"] for fit in fits])

    def total(name):
        return sum(fit[name] for fit in fits)

    return {
        "setting": setting,
        "fits": len(fits),
        "worst MCC": min(fit["mcc"] for fit in fits),
        "median MCC": np.median([fit["mcc"] for fit in fits]),
        "AUROC": pip_auroc(pips, gates),
        "95 % sets right": total("sets_right") / max(1, total("sets")),
        "sets": total("sets"),
        "false at FDR 0.05": total("selected_wrong") / max(1, total("selected")),
        "selected": total("selected"),
        "warned": total("warned"),
        "seconds": np.median([fit["seconds"] for fit in fits]),
    }, reliability(pips, gates, BINS)


def held_out_table(scores):
    """Coverage and log score by setting and method, with standard errors over leaves."""
    leaves = scores.groupby(["setting", "method"], sort=False)
    table = leaves[["coverage", "log_score"]].agg(["mean", "sem"])
    table.columns = ["coverage", "s.e.", "log score", "s.e. "]
    table["leaves"] = leaves.size()
    return table


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="*", default=["half", "bernoulli"], choices=SETTINGS)
    parser.add_argument("--fits", type=int, default=25, help="of each setting")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--leaves", type=int, nargs=2, default=[18, 32], help="fewest and most")
    parser.add_argument("--latent-dim", type=int, default=4)
    parser.add_argument("--delta-min", type=float, default=0.5, help="smallest size of a change")
    parser.add_argument("--held-out", type=int, default=2, help="leaves without data in each fit")
    parser.add_argument("--compare", action="store_true", help="other methods, held-out leaves")
    parser.add_argument("--restarts", type=int, default=64)
    parser.add_argument("--max-steps", type=int, default=None)
    parser.add_argument(
        "--exact-zeros", action="store_true", help="no small changes where gates are off"
    )
    parser.add_argument("--csv", type=Path, help="file for all PIPs and whether there was a change")
    parser.add_argument("--figure", type=Path, help="file for a figure")
    args = parser.parse_args(argv)
    options = tbr.FitOptions(restarts=args.restarts, max_steps=args.max_steps)
    prior = tbr.SpikeSlabPrior(spike_scale=0.0 if args.exact_zeros else None)
    rows, tables, scores, pips = [], {}, [], []
    for setting in args.settings:
        fits = []
        for seed in range(args.first_seed, args.first_seed + args.fits):
            last = one_fit(setting, seed, options, prior, args)
            fits.append(last)
            print(
                f"{setting}, seed {seed}: MCC {last['mcc']:.4f}, {last['seconds']:.0f} s",
                flush=True,
            )
        row, tables[setting] = summary(setting, fits)
        rows.append(row)
        scores += [score for fit in fits for score in fit["scores"]]
        for seed, fit in enumerate(fits, start=args.first_seed):
            found = {"setting": setting, "seed": seed, "pip": fit["pips"], "change": fit["gates"]}
            pips.append(pd.DataFrame(found))
    table, scores, pips = pd.DataFrame(rows), pd.DataFrame(scores), pd.concat(pips)
    print("\n" + table.round(4).to_string(index=False))
    for setting, bins in tables.items():
        print(f"\nHow often a change was true, by its PIP ({setting}):")
        print(bins.round(3).to_string(index=False))
    print("\n90 % intervals and log score at leaves without data:")
    held_out = held_out_table(scores)
    print(held_out.round(3).to_string())
    if args.compare:
        differences = paired_differences(
            scores, "tree of sparse changes", ["log_score"], seed="leaf"
        )
        print("\nLog score less ours, leaf by leaf:\n" + differences.round(3).to_string())
    if args.csv:
        pips.to_csv(args.csv, index=False)
    if args.figure:
        draw(pips, args.figure)
    return {"table": table, "reliability": tables, "held_out": held_out}


def draw(pips, path):
    """Writes a figure: true shares against PIPs, a panel a setting."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from pyro_tbr.plotting import plot_reliability

    settings = pips["setting"].unique()
    figure, panels = plt.subplots(
        1, len(settings), figsize=(4.2 * len(settings), 4.2), squeeze=False, layout="constrained"
    )
    for setting, ax in zip(settings, panels[0], strict=True):
        own = pips[pips["setting"] == setting]
        plot_reliability(own["pip"], own["change"], BINS, ax=ax)
        ax.set_title(setting, loc="left", fontsize=10)
    figure.savefig(path, dpi=140, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
