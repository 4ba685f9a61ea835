"""Are intervals of the features' effects true? Known encoders, learnt ones, few rows and many.

Simulated rows whose features are an invertible linear map of latents and of factors that outcomes
do not depend on, so every feature has one true effect at every node. The fit learns the encoder;
intervals of ``posterior.effects()`` are for the weights alone, so what they lack is its error.

    python examples/experiments/feature_effects.py --fits 8
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd

import pyro_tbr as tbr

SETTINGS = {  # factors beside two latents, rows a leaf, encoder
    "known latents, 50 rows": (0, 50, "identity"),
    "2 features, 50 rows": (0, 50, "linear"),
    "8 features, 50 rows": (6, 50, "linear"),
    "8 features, 200 rows": (6, 200, "linear"),
}


def one_fit(nuisance: int, rows: int, encoder: str, seed: int, restarts: int) -> dict[str, float]:
    """Shares of true effects that 90 % intervals hold, at leaves with and without data."""
    sim = tbr.simulate(
        num_leaves=16, latent_dim=2, num_features=2 + nuisance, nuisance_dim=nuisance,
        num_outcomes=2, rows_per_leaf=rows, noise_scale=0.5, changes="half_the_arcs", seed=seed,
    )  # fmt: skip
    left_out = sim.tree.leaves[:2]
    x, y, env = sim.without(left_out)
    if encoder == "identity":
        x, slopes = sim.z[~np.isin(sim.env, left_out)], np.eye(2)
    else:
        unit = np.eye(2 + nuisance)
        origin = sim.mixing(np.zeros((1, 2 + nuisance)))
        slopes = np.linalg.inv(sim.mixing(unit) - origin)[:, :2]
    model = tbr.TreeModel(sim.tree, 2, encoder=encoder)
    with warnings.catch_warnings(action="ignore"):
        posterior = tbr.fit(
            model, x, y, env, progress=False, options=tbr.FitOptions(restarts=restarts)
        )
    found = posterior.effects(nodes=sim.tree.leaves)
    places = [sim.tree.index(leaf) for leaf in sim.tree.leaves]
    truth = np.einsum("dk,vkq->vdq", slopes, sim.node_weights[places]).ravel()
    inside = (found["lower"] <= truth) & (truth <= found["upper"])
    seen = ~found["node"].isin(left_out)
    error = (found["mean"] - truth)[seen]
    return {
        "covered": inside[seen].mean(),
        "covered, no data": inside[~seen].mean(),
        "error in sd": float(np.sqrt((error**2 / found["sd"][seen] ** 2).mean())),
    }


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Runs the fits; returns means by setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--restarts", type=int, default=64, help="starts of the rotation search")
    args = parser.parse_args(argv)
    seeds = range(args.first_seed, args.first_seed + args.fits)
    runs = pd.DataFrame(
        [
            {"setting": name, **one_fit(*SETTINGS[name], seed, args.restarts)}
            for name in args.settings
            for seed in seeds
        ]
    )
    groups = runs.groupby("setting", sort=False)
    table = pd.concat([groups.mean(), groups.sem().add_suffix(", se")], axis=1)
    print(table.to_string(float_format="{:.3f}".format))
    return table


if __name__ == "__main__":
    main()
