r"""How many environments and outcomes do the latents need, and does a fit say when it had too few?

Simulates trees of several sizes with several numbers of latents and outcomes, fits each, and prints
how often the latents were found (MCC above 0.95), how often the fit warned that they are not
determined, and from both the rate of false alarms (warned, though found) and of misses (not warned,
though not found). Beside it what sparsity could do at best, for up to 3 latents: the share of draws
in which the true latents are the one basis with the fewest changes, by exact parsimony, without
noise. More leaves than ``--oracle-leaves`` with 3 latents are left out there: the candidates grow
with the fourth power of the leaves.

    python examples/experiments/how_many_environments.py --seeds 5
    python examples/experiments/how_many_environments.py --seeds 0 --draws 200 \
        --latents 2 3 --leaves 4 8 16
"""

import argparse
import itertools
import warnings

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts.parsimony import latents_are_sparsest
from pyro_tbr.evaluation import linear_r2, mcc

FOUND = 0.95  # MCC above which the latents count as found


def simulated(leaves, latents, outcomes, seed, args, rows_per_leaf):
    """A data set; the tree and its weights do not depend on the rows."""
    return tbr.simulate(
        num_leaves=leaves,
        shape="random",
        latent_dim=latents,
        num_outcomes=outcomes,
        rows_per_leaf=rows_per_leaf,
        noise_scale=args.noise,
        changes="bernoulli",
        change_prob=args.change_prob,
        seed=seed,
    )


def determined(leaves, latents, outcomes, seed, args):
    """Whether sparsity determines the latents, without noise; NaN where that is not known."""
    if latents > 3 or (latents == 3 and leaves > args.oracle_leaves):
        return np.nan
    data = simulated(leaves, latents, outcomes, seed, args, 1)
    weights = data.node_weights[data.tree.leaf_index.numpy()]
    return float(latents_are_sparsest(data.tree, weights))


def one_fit(leaves, latents, outcomes, seed, args):
    """MCC, linear R2 and whether the fit warned."""
    data = simulated(leaves, latents, outcomes, seed, args, args.rows_per_leaf)
    options = tbr.FitOptions(restarts=args.restarts)
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
        "determined": determined(leaves, latents, outcomes, seed, args),
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


def oracle(args):
    """Share of draws whose latents sparsity determines, with standard errors."""
    rows = []
    for leaves, latents, outcomes in itertools.product(args.leaves, args.latents, args.outcomes):
        seeds = range(args.first_seed, args.first_seed + args.draws)
        found = np.array([determined(leaves, latents, outcomes, seed, args) for seed in seeds])
        share = found.mean()
        error = (share * (1 - share) / len(found)) ** 0.5
        rows.append(
            {"leaves": leaves, "K": latents, "Q": outcomes, "determined": share, "se": error}
        )
    return pd.DataFrame(rows).set_index(["leaves", "K", "Q"])


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
    parser.add_argument("--draws", type=int, default=100, help="draws for the exact shares")
    parser.add_argument("--oracle-leaves", type=int, default=16, help="most leaves with 3 latents")
    parser.add_argument("--csv", help="file for the fits, one a row")
    parser.add_argument("--oracle-csv", help="file for the exact shares")
    args = parser.parse_args(argv)
    exact = oracle(args)
    if args.oracle_csv:
        exact.to_csv(args.oracle_csv)
    print("Share of draws in which the latents are the one sparsest basis, without noise:\n")
    print(exact.round(3).to_string(na_rep="-") + "\n", flush=True)
    if not args.seeds:
        return {"oracle": exact}
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
        median_mcc=("mcc", "median"),
        found=("found", "mean"),
        warned=("warned", "mean"),
        determined=("determined", "mean"),
    )
    print("\n" + table.round(3).to_string(na_rep="-"))
    found = rates(fits)
    print(
        f"\nLatents found in {found['found']} fits, of which {found['false_alarms']:.2f} warned "
        f"(false alarms); not found in {found['not_found']}, of which {found['misses']:.2f} did "
        "not warn (misses)."
    )
    return {"table": table, "oracle": exact, **found}


if __name__ == "__main__":
    main()
