"""What a residual covariance between outcomes is worth, and what it costs.

``--copies``: eight near copies of one outcome (residual correlation 0.96), which should change
nothing. A row a way of fitting: one of the copies alone, all eight with outcomes taken alone, all
eight with ``covariance="full"``, and that with grouped gates; MCC of the latents, share of fits
that call the latents determined, arcs and latents selected at FDR 0.05 and the share of false ones
among them (each counted once, whatever number of copies it was selected for), coverage of 90 %
intervals of leaf weights (known latents), and seconds.

``--data birds`` or ``neurons``: five folds of whole genera or mice, linear encoder, with and
without the covariance, or what else ``--ways`` names (latents that are noisy, curves of them): R2
and log score of each outcome, coverage of 90 % intervals of each outcome and of the mean of a row's
outcomes, changes selected at FDR 0.05, CPU seconds; and differences by pairs of folds with their
standard errors.

    python examples/experiments/correlated_outcomes.py --copies --fits 10
    python examples/experiments/correlated_outcomes.py --data birds
    python examples/experiments/correlated_outcomes.py --data neurons
"""

import argparse
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from hard_world import weights_covered
from parts import real_data
from parts.run_tables import markdown
from parts.runs import summarise_runs
from pyro_tbr.evaluation import match_latents, true_changes

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDERS = {"neurons": "neurons_m1", "birds": "birds_niche"}
LATENTS = {"neurons": 5, "birds": 8}
WORLD = {
    "num_leaves": 20, "shape": "random", "latent_dim": 3, "num_features": 12, "rows_per_leaf": 50,
    "changes": "bernoulli", "change_prob": 0.15, "noise_scale": 0.3, "intercept_scale": 1.0,
}  # fmt: skip
NUM_COPIES, OWN_NOISE = 8, 0.2  # of the noise that copies share
CLOSED_FORM = {"max_steps": 1, "sparse_steps": 0}  # as in real_outcomes.py
# Name -> arguments of the likelihood, and basis.
WAYS = {
    "diagonal": ({}, None),
    "full": ({"covariance": "full"}, None),
    "latent noise": ({"latent_noise": True}, None),
    "spline": ({}, "spline"),
}
LEVEL, NUM_DRAWS = 0.9, 400


def copies(latents, seed):
    """A row for each way of fitting copies of one outcome."""
    data = tbr.simulate(**WORLD, seed=seed)
    y, rng = data.y.reshape(-1, 1), np.random.default_rng([seed, 1])
    own = OWN_NOISE * WORLD["noise_scale"] * rng.normal(size=(len(y), NUM_COPIES))
    y = y + own
    ways = {
        "one of them": (y[:, :1], "diagonal", "separate"),
        "all, each alone": (y, "diagonal", "separate"),
        "all, full": (y, "full", "separate"),
        "all, full, grouped gates": (y, "full", "grouped"),
    }
    known, rows = latents == "known", []
    for way, (outcomes, covariance, gates) in ways.items():
        model = tbr.TreeModel(
            data.tree,
            WORLD["latent_dim"],
            "identity" if known else "linear",
            prior=tbr.SpikeSlabPrior(gates=gates),
            likelihood=tbr.GaussianLikelihood(covariance=covariance),
        )
        x = data.z if known else data.x
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            posterior = tbr.fit(model, x, outcomes, data.env, seed=seed, progress=False)
        row = {"way": way, "seed": seed, "seconds": time.perf_counter() - start}
        found = posterior.identification()
        row |= {"determined": float(found.determined), "worth": found.worth}
        row["MCC"] = float(match_latents(data.z, posterior.encode(x)).correlations.mean())
        if known:
            row["weights"] = float(np.mean(weights_covered(posterior, data, data.env)))
        rows.append(row | selected(posterior, data))
    return rows


def selected(posterior, data):
    """Arcs and latents that were selected for some outcome, and false ones among them."""
    chosen = posterior.select(fdr=0.05)
    chosen = chosen[chosen["latent"] != "intercept"]
    chosen = chosen[["parent", "child", "latent"]].drop_duplicates()
    number = len(posterior.outcome_names)
    gates, intercept = data.gates.repeat(number, -1), data.intercept_deltas.repeat(number, -1)
    if posterior.model.encoder_spec == "identity":
        data = replace(data, x=data.z)
    truth = true_changes(replace(data, gates=gates, intercept_deltas=intercept), posterior)
    truth = truth[truth["change"]][["parent", "child", "latent"]].drop_duplicates()
    true = len(chosen.merge(truth))
    return {"selected": len(chosen), "false": len(chosen) - true}


def real(name, ways):
    """A row for each fold (its number is the seed) and way of fitting."""
    options = tbr.FitOptions(**CLOSED_FORM)
    rows = getattr(real_data, name)(DATA / FOLDERS[name])
    for number, (train, test) in enumerate(real_data.whole_groups(rows, 0)):
        x, y = rows.features(train), rows.y.iloc[test]
        for way in ways:
            noise, basis = WAYS[way]
            model = tbr.TreeModel(
                rows.tree,
                LATENTS[name],
                "linear",
                likelihood=tbr.GaussianLikelihood(**noise),
                basis=basis,
            )
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                known = x.iloc[train], rows.y.iloc[train], rows.env[train]
                posterior = tbr.fit(model, *known, progress=False, options=options)
            row = {"way": way, "seed": number, "CPU s": time.process_time() - start}
            found = posterior.predict(x.iloc[test], rows.env[test], level=LEVEL)
            scores = found.score(y)
            row |= {"R2": scores["r2"].mean(), "log score": scores["log_score"].mean()}
            row |= {"coverage": scores["coverage"].mean(), "joint": means_covered(found, y)}
            chosen = posterior.select(fdr=0.05)
            slopes = chosen["latent"] != "intercept"
            row |= {"intercepts": int((~slopes).sum()), "slopes": int(slopes.sum())}
            print(row, flush=True)
            yield row


def means_covered(found, y):
    """Share of rows whose mean over observed outcomes is in its 90 % interval."""
    y = y.to_numpy()
    seen = ~np.isnan(y)
    rows = seen.any(1)
    number = np.maximum(seen.sum(1), 1)
    draws = (np.asarray(found.sample(NUM_DRAWS, seed=0)) * seen).sum(-1) / number
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    mean = np.nansum(y, 1) / number
    return np.mean(((low <= mean) & (mean <= high))[rows])


def shown(results, by, sums=()):
    """Means with standard errors; of some columns sums."""
    runs = summarise_runs(results, by=[by])
    rows = []
    for key, own in results.groupby(by, sort=False):
        row = {by: key}
        for name in results.columns.drop([by, "seed"]):
            if name in sums:
                row[name] = f"{own[name].sum():.0f}"
            else:
                mean, error, _ = runs.loc[(key, name)]
                row[name] = f"{mean:.3f} ({error:.3f})"
        rows.append(row)
    return pd.DataFrame(rows).set_index(by)


def differences(results):
    """Of each way less the first, by pairs of folds: means with standard errors."""
    wide = results.pivot(index="seed", columns="way").drop(columns="CPU s")
    first, *others = results["way"].unique()
    found = {}
    for way in others:
        each = wide.xs(way, axis=1, level=1) - wide.xs(first, axis=1, level=1)
        found |= {f"{way} - {first}": each.mean(), f"{way}: se": each.std() / len(each) ** 0.5}
    return pd.DataFrame(found)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--copies", action="store_true")
    parser.add_argument("--latents", choices=("known", "learnt"), default="learnt")
    parser.add_argument("--fits", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--data", choices=tuple(FOLDERS))
    parser.add_argument("--ways", nargs="*", default=["diagonal", "full"], choices=tuple(WAYS))
    args = parser.parse_args(argv)
    if args.copies:
        seeds = range(args.first_seed, args.first_seed + args.fits)
        results = pd.DataFrame([row for seed in seeds for row in copies(args.latents, seed)])
        print(markdown(shown(results, "way", ("selected", "false"))))
        return results
    if args.data is None:
        parser.error("give --copies, or --data")
    results = pd.DataFrame(list(real(args.data, args.ways)))
    print(markdown(shown(results, "way")))
    print(differences(results).round(4).to_string())
    return results


if __name__ == "__main__":
    main()
