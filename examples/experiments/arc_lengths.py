"""What is it worth to say that longer arcs are likelier to change?

Known latents on random trees whose changes really follow lengths: an arc l times as long as the
mean changes a latent with probability 1 - (1 - p)^l. Each data set is fitted without lengths, with
them, and with lengths that are wrong (the same ones in another order). Prints the share of true
changes by inclusion probability (PIP), and by fit AUROC, mean log loss, and the power and false
discovery proportion of what is selected at FDR 0.05; differences to the fit without lengths are by
pairs, with their standard errors.

    python examples/experiments/arc_lengths.py --fits 20
"""

import argparse
import warnings

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts.bins import BINS
from parts.runs import paired_differences, summarise_runs
from pyro_tbr.evaluation import pip_auroc, reliability

METHODS = ("without", "with", "wrong")


def lengths_shuffled(tree, seed):
    """The same tree, its lengths in another order."""
    lengths = np.random.default_rng([seed, 7]).permutation(np.array(tree.lengths))
    return tbr.Tree(tree.nodes, tree.arc_parent.tolist(), lengths.tolist())


def one_fit(method, data, seed):
    """Numbers of a fit, and its PIPs with their truth."""
    tree = lengths_shuffled(data.tree, seed) if method == "wrong" else data.tree
    prior = tbr.SpikeSlabPrior(use_lengths=method != "without")
    model = tbr.TreeModel(tree, data.z.shape[1], "identity", prior)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tbr.ModelWarning)
        posterior = tbr.fit(model, data.z, data.y, data.env, seed=seed, progress=False)
    moments = posterior.guide.delta_moments()
    pips = moments.inclusion[:, : data.z.shape[1]].double().numpy().ravel()
    gates = data.gates.ravel()
    inside = pips.clip(1e-4, 1 - 1e-4)
    loss = -np.where(gates, np.log(inside), np.log1p(-inside)).mean()
    order = np.sort(1 - pips)
    number = int((order.cumsum() / np.arange(1, len(order) + 1) <= 0.05).sum())
    chosen = np.argsort(-pips)[:number]
    return {
        "auroc": pip_auroc(pips, gates.astype(float)),
        "log_loss": loss,
        "power": gates[chosen].sum() / gates.sum(),
        "false": 1 - gates[chosen].mean() if number else 0.0,
        "elbo": posterior.guide.elbo(posterior.stats).item(),
    }, pd.DataFrame({"method": method, "pip": pips, "gate": gates})


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fits", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--leaves", type=int, nargs=2, default=(16, 28), help="least and most")
    parser.add_argument("--latent-dim", type=int, default=3)
    parser.add_argument("--rows-per-leaf", type=int, default=30)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--change-prob", type=float, default=0.2)
    args = parser.parse_args(argv)
    runs, pips = [], []
    for seed in range(args.first_seed, args.first_seed + args.fits):
        low, high = args.leaves
        data = tbr.simulate(
            num_leaves=int(np.random.default_rng([seed, 1]).integers(low, high + 1)),
            shape="random",
            latent_dim=args.latent_dim,
            num_features=args.latent_dim,
            rows_per_leaf=args.rows_per_leaf,
            noise_scale=args.noise,
            changes="bernoulli",
            change_prob=args.change_prob,
            use_lengths=True,
            delta_min=0.0,
            seed=seed,
        )
        for method in METHODS:
            numbers, found = one_fit(method, data, seed)
            runs.append({"setting": "lengths", "method": method, "seed": seed, **numbers})
            pips.append(found)
    runs, pips = pd.DataFrame(runs), pd.concat(pips)
    bins = {
        method: reliability(part["pip"], part["gate"].astype(float), BINS)
        for method, part in pips.groupby("method", sort=False)
    }
    bins = pd.concat(bins, names=["method"])[["count", "mean_pip", "true_share"]]
    means = summarise_runs(runs)["mean"].unstack("metric").droplevel("setting")
    metrics = ["auroc", "log_loss", "power", "false", "elbo"]
    differences = paired_differences(runs, "without", metrics).droplevel("setting")
    print("Share of true changes by PIP:\n" + bins.round(3).to_string())
    print("\nMeans:\n" + means.round(4).to_string())
    print("\nDifferences to the fit without lengths:\n" + differences.round(4).to_string())
    return {"bins": bins, "means": means, "differences": differences}


if __name__ == "__main__":
    main()
