"""How often is the right number of latents chosen, and by what rule?

Simulates data with 2 to 6 latents, mixed with factors that outcomes do not depend on, on random
trees, and asks ``choose_latent_dim``. Prints how often each rule takes the true number K: the
largest evidence, the largest held-out log score, and the fewest latents whose score is within one
standard error (of the difference, by pairs of rows) of the largest. Where the evidence takes K + 1,
a fit tells whether one of these is named as unused.

    python examples/experiments/number_of_latents.py --seeds 10
"""

import argparse
import time
import warnings

import numpy as np
import pandas as pd

import pyro_tbr as tbr

SETTINGS = {  # name -> arguments of simulate
    "plain": {"rows_per_leaf": 60, "noise_scale": 0.5},
    "hard": {"rows_per_leaf": 25, "noise_scale": 1.5},
    "missing": {"rows_per_leaf": 40, "noise_scale": 1.0, "missing": 0.3},
    "binary": {"rows_per_leaf": 100, "likelihood": "bernoulli"},
    "weak": {"rows_per_leaf": 12, "noise_scale": 2.5},
    "weak binary": {"rows_per_leaf": 40, "likelihood": "bernoulli"},
}
RULES = ("evidence", "score", "one_se")


def drawn(setting, seed, leaves):
    """A data set with its number of latents, features and outcomes by the seed."""
    rng = np.random.default_rng([seed, 5])
    latent_dim = 2 + seed % 5
    num_features = int(rng.integers(10, 21))
    return tbr.simulate(
        num_leaves=leaves,
        shape="random",
        latent_dim=latent_dim,
        num_features=num_features,
        num_outcomes=max(3, latent_dim + int(rng.integers(-1, 2))),
        nuisance_dim=min(num_features - latent_dim, int(rng.integers(4, 9))),
        feature_noise=0.1,
        changes="half_the_arcs",
        seed=seed,
        **SETTINGS[setting],
    )


def by_rule(table):
    """The number of latents that each rule takes."""
    fine = table["difference"] >= -table["difference_se"].fillna(0)
    dims = table["latent_dim"].to_numpy()
    return {
        "evidence": dims[table["evidence"].argmax()],
        "score": dims[table["log_score"].argmax()],
        "one_se": dims[fine.to_numpy().argmax()],
    }


def one_run(setting, seed, args):
    """What each rule takes for one data set, and how long choosing takes."""
    data = drawn(setting, seed, args.leaves)
    model = tbr.TreeModel(data.tree, None, "linear", likelihood=data.likelihood)
    start = time.process_time()
    rows = data.x, data.y, data.env
    choice = tbr.choose_latent_dim(model, *rows, range(1, 9), seed=seed, progress=False)
    seconds = time.process_time() - start
    true, found = data.z.shape[1], by_rule(choice.table)
    unused = np.nan
    if found["evidence"] == true + 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            posterior = tbr.fit(model.with_latent_dim(true + 1), *rows, seed=seed, progress=False)
        unused = len(posterior.identification().unused)
    second = np.sort(choice.table["evidence"])[-2]
    return {"setting": setting, "seed": seed, "true": true, "outcomes": data.y.shape[1],
            **found, "lead": -second, "unused": unused, "seconds": seconds}  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--leaves", type=int, default=16)
    args = parser.parse_args(argv)
    runs = []
    for setting in args.settings:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            runs.append(one_run(setting, seed, args))
            print(pd.DataFrame(runs[-1:]).round(1).to_string(index=False, header=len(runs) == 1),
                  flush=True)  # fmt: skip
    runs = pd.DataFrame(runs)
    table = {}
    for setting, part in runs.groupby("setting", sort=False):
        right = {f"{rule}: K": (part[rule] == part["true"]).mean() for rule in RULES}
        less = {f"{rule}: fewer": (part[rule] < part["true"]).mean() for rule in RULES}
        good = (part["evidence"] == part["true"]) | (part["unused"] == 1)
        table[setting] = {**right, **less, "K, or K + 1 with one unused": good.mean(),
                          "seconds": part["seconds"].mean()}  # fmt: skip
    table = pd.DataFrame(table).T
    print("\nShare of data sets:\n" + table.round(2).to_string())
    return {"runs": runs, "table": table}


if __name__ == "__main__":
    main()
