"""How many environments and outcomes do the latents need, and does a fit say when it had too few?

Simulates trees of several sizes with several numbers of latents and outcomes, fits each, and prints
how often the latents were found (MCC above 0.95), how often the fit warned that they are not
determined, and from both the rate of false alarms (warned, though found) and of misses (not warned,
though not found).

    python examples/how_many_environments.py --seeds 5
"""

import argparse
import itertools
import warnings

import pandas as pd

import pyro_tbr as tbr
from pyro_tbr.evaluation import linear_r2, mcc

FOUND = 0.95  # MCC above which the latents count as found


def one_fit(leaves, latents, outcomes, seed, args):
    """MCC, linear R2 and whether the fit warned."""
    data = tbr.simulate(
        num_leaves=leaves,
        shape="random",
        latent_dim=latents,
        num_outcomes=outcomes,
        rows_per_leaf=args.rows_per_leaf,
        noise_scale=args.noise,
        changes="bernoulli",
        change_prob=args.change_prob,
        seed=seed,
    )
    options = tbr.FitOptions(restarts=args.restarts, rotation_steps=args.rotation_steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", tbr.IdentificationWarning)
        posterior = tbr.fit(
            tbr.TreeModel(data.tree, latents, "linear"),
            data.x,
            data.y,
            data.env,
            seed=seed,
            progress=False,
            options=options,
        )
    z, report = posterior.encode(data.x), posterior.identification()
    return {
        "leaves": leaves,
        "K": latents,
        "Q": outcomes,
        "seed": seed,
        "mcc": mcc(data.z, z),
        "r2": linear_r2(data.z, z),
        "warned": bool(caught),
        "gap": report.gap,
        "agreement": report.agreement,
    }


def rates(fits):
    """False alarms among fits whose latents were found, misses among the others."""
    found = fits["mcc"] > FOUND
    return {
        "found": int(found.sum()),
        "false_alarms": float(fits["warned"][found].mean()) if found.any() else float("nan"),
        "not_found": int((~found).sum()),
        "misses": float((~fits["warned"][~found]).mean()) if (~found).any() else float("nan"),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--leaves", type=int, nargs="*", default=[8, 16, 32])
    parser.add_argument("--latents", type=int, nargs="*", default=[2, 3, 5])
    parser.add_argument("--outcomes", type=int, nargs="*", default=[1, 3])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows-per-leaf", type=int, default=60)
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--change-prob", type=float, default=0.2)
    parser.add_argument("--restarts", type=int, default=64)
    parser.add_argument("--rotation-steps", type=int, default=1500)
    parser.add_argument("--csv", help="file for the fits, one a row")
    args = parser.parse_args(argv)
    rows = []
    for leaves, latents, outcomes in itertools.product(args.leaves, args.latents, args.outcomes):
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            rows.append(one_fit(leaves, latents, outcomes, seed, args))
        last = pd.DataFrame(rows[-args.seeds :])
        print(
            f"{leaves} leaves, K={latents}, Q={outcomes}: MCC median {last['mcc'].median():.3f}, "
            f"worst {last['mcc'].min():.3f}, warned {last['warned'].sum()} of {len(last)}",
            flush=True,
        )
    fits = pd.DataFrame(rows)
    if args.csv:
        fits.to_csv(args.csv, index=False)
    table = fits.assign(found=fits["mcc"] > FOUND).groupby(["leaves", "K", "Q"])
    table = table.agg(
        median_mcc=("mcc", "median"), found=("found", "mean"), warned=("warned", "mean")
    )
    print("\n" + table.round(3).to_string())
    found = rates(fits)
    print(
        f"\nLatents found in {found['found']} fits, of which {found['false_alarms']:.2f} warned "
        f"(false alarms); not found in {found['not_found']}, of which {found['misses']:.2f} did "
        "not warn (misses)."
    )
    return {"table": table, **found}


if __name__ == "__main__":
    main()
