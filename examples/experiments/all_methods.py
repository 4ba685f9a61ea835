r"""All methods on the same simulated data: latents found, predictions at leaves without data.

The settings are those of the paper of tree-based regularization (arXiv 2405.20482), as far as it
tells them, on our own simulator: one change an arc, changes at random, two changes an arc (which
its theory excludes), and changes at random from rare to dense. All methods see the same rows, the
same number of latents and the same kind of encoder; those that choose something choose on the same
held-out rows. L1-TBR is the paper's objective, as good as we can make it. Runs are written one by
one, so that what was done is there if it is stopped; tables and figure can be made of several
files.

    python examples/experiments/all_methods.py --seeds 3 --csv rivals.csv
    python examples/experiments/all_methods.py --settings 0.05 0.1 0.3 0.4 0.6 \
        --methods ours l1_tbr --seeds 2 --csv rates.csv
    python examples/experiments/all_methods.py --settings mlp --methods ours l1_tbr pooled \
        --seeds 2 --csv mlp.csv
    python examples/experiments/all_methods.py --settings \
        --read rivals.csv rates.csv mlp.csv --figure rivals.png
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts.comparison import plot_methods
from parts.run_tables import METHODS, show
from pyro_tbr.evaluation import LinearMixing, linear_r2, mcc

SETTINGS = {  # besides these a number: changes at random with this probability
    "one": {"changes": "one_per_arc"},
    "random": {"changes": "bernoulli", "change_prob": 0.2},
    "two": {"changes": "two_per_arc"},
    "mlp": {"changes": "one_per_arc", "mixing": "mlp"},
}
LEVEL = 0.9
FLOOR = -6.0  # of the log scores that are drawn
PANELS = {
    "mcc": "MCC of the latents",
    "held_out_log_score": "log score, left-out leaves",
    "held_out_coverage": "coverage of 90 % intervals",
}


def simulated(setting, seed, args):
    """Data of a setting."""
    changes = SETTINGS.get(setting)
    if changes is None:
        changes = {"changes": "bernoulli", "change_prob": float(setting)}
    return tbr.simulate(
        **{"mixing": args.mixing} | changes,
        num_leaves=args.leaves,
        latent_dim=args.latent_dim,
        rows_per_leaf=args.rows_per_leaf,
        noise_scale=args.noise,
        shape=args.shape,
        num_features=args.features,
        seed=seed,
    )


def one_run(data, setting, name, seed, leaves, args):
    """Numbers of one method on one data set, a dict."""
    x, y, env = data.without(leaves)
    start = time.perf_counter()
    encoder = "linear" if isinstance(data.mixing, LinearMixing) else "mlp"
    fitted = METHODS[name]().fit(
        data.tree, x, y, env, latent_dim=args.latent_dim, encoder=encoder, seed=seed
    )
    row = {"setting": setting, "method": name, "seed": seed}
    row["seconds"] = time.perf_counter() - start
    if METHODS[name].has_latents:
        z = fitted.encode(data.x)
        row |= {"mcc": mcc(data.z, z), "r2": linear_r2(data.z, z)}
    held_out = []
    for leaf in leaves:
        new_x, new_y, _ = data.rows(leaf, 100, seed=seed)
        prediction = fitted.predict(new_x, leaf, level=LEVEL)
        numbers = {"held_out_mse": np.mean((new_y - prediction.mean) ** 2)}
        if METHODS[name].distribution:
            inside = (new_y >= prediction.lower) & (new_y <= prediction.upper)
            numbers["held_out_coverage"] = np.mean(inside)
            numbers["held_out_log_score"] = prediction.log_score(new_y)
        held_out.append(numbers)
    return row | pd.DataFrame(held_out).mean().to_dict()


def figure(table, path):
    """Draws the panels from the means and standard errors and writes them to a file."""
    axes = plot_methods(table, PANELS)
    if axes[1].get_ylim()[0] < FLOOR:  # methods that are sure and wrong fall far below
        axes[1].set_ylim(bottom=FLOOR)
        axes[1].set_ylabel(f"{PANELS['held_out_log_score']} (cut at {FLOOR:g})")
    for ax, line in ((axes[0], 1.0), (axes[2], LEVEL)):
        ax.axhline(line, color="#9a9a9a", linewidth=0.8, linestyle="--", zorder=0)
    axes[0].figure.savefig(path, dpi=150)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="*", default=["one", "random", "two"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--leaves", type=int, default=32)
    parser.add_argument("--shape", default="balanced", choices=["balanced", "random"])
    parser.add_argument("--latent-dim", type=int, default=5)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--rows-per-leaf", type=int, default=200)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--mixing", default="linear", choices=["linear", "mlp"])
    parser.add_argument("--held-out", type=int, default=3, help="leaves without data")
    parser.add_argument("--csv", type=Path, help="file for the runs, one a row")
    parser.add_argument("--read", type=Path, nargs="*", default=[], help="runs made before")
    parser.add_argument("--figure", type=Path, help="file for a figure")
    args = parser.parse_args(argv)
    runs = [row for path in args.read for row in pd.read_csv(path).to_dict("records")]
    new = []
    for setting in args.settings:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            data = simulated(setting, seed, args)
            rng = np.random.default_rng([seed, 2])
            places = rng.choice(len(data.tree.leaves), args.held_out, replace=False)
            leaves = [data.tree.leaves[place] for place in places]
            for name in args.methods:
                new.append(one_run(data, setting, name, seed, leaves, args))
            if args.csv:
                pd.DataFrame(new).to_csv(args.csv, index=False)
            print(f"setting {setting}, seed {seed} done", flush=True)
    runs = pd.DataFrame(runs + new).astype({"setting": str})
    found = show(runs, "ours", [name for name in runs.columns if name.startswith("held_out")])
    if "mcc" in found["means"]:
        worst = runs.groupby(["setting", "method"], sort=False)["mcc"].min().dropna()
        print("\nWorst MCC:\n" + worst.round(3).to_string())
    if args.figure:
        figure(found["summary"], args.figure)
    return found


if __name__ == "__main__":
    main()
