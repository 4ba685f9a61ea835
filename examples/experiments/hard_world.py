"""Are inclusion probabilities, selections and intervals true on data unlike our own simulator's?

Every setting differs from the plain one in one respect: features that shift along the tree, uneven
rows or noise, heavy tails, curves, other laws of sizes, correlated latents or outcomes, another
number of latents than the truth has. For each, with known latents and with learnt ones, a row of
one table, means over fits with their standard errors:

- MCC of the latents; AUROC of the inclusion probabilities (PIPs); the largest distance of a bin's
  mean PIP from the share of true changes in it, over bins of 100 entries and more (all fits);
- power, and the share of false ones, of changes selected at FDR 0.05, in all fits and in those
  that warned of nothing;
- coverage of 90 % intervals: of leaf weights and intercepts (of learnt latents: those by which they
  give the true predictor), of new rows at leaves with data, with the share of these leaves below
  0.8 and above 0.97, at leaves without data, and of the mean of the outcomes (joint, where there
  are several);
- the share of fits that warned that the latents are not determined (unsure), of those that warned
  that the model does not fit (misfit), of those that warned of either (warned), and how many
  latents a fit named as unused.

    python examples/experiments/hard_world.py --fits 20
    python examples/experiments/hard_world.py --settings binary --latents known --rows 50 --fits 20
"""

import argparse
import time
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts.bins import BINS
from parts.run_tables import markdown
from parts.runs import summarise_runs
from pyro_tbr.evaluation import (
    match_latents,
    pip_auroc,
    reliability,
    selection_score,
    true_changes,
)

PLAIN = {
    "num_leaves": 20,
    "shape": "random",
    "latent_dim": 3,
    "num_features": 12,
    "changes": "bernoulli",
    "change_prob": 0.15,
    "noise_scale": 0.3,
    "intercept_scale": 1.0,
}
# A log link: effects of some tenths, rates of about 5, exposures that differ, rows too.
COUNTS = {
    "weight_scale": 0.5, "delta_min": 0.2, "delta_scale": 0.4, "intercept_mean": 1.5,
    "intercept_scale": 0.5, "exposure_ratio": 5.0, "latent_shift": 0.3, "uneven_rows": True,
}  # fmt: skip
LEARNT, BOTH = ("learnt",), ("known", "learnt")
SETTINGS = {  # name -> what differs in simulate; which latents; latents fitted, if not the true K
    "plain": ({}, BOTH, None),
    "few leaves": ({"num_leaves": 12}, LEARNT, None),
    "shifted features": ({"latent_shift": 1.0, "latent_stretch": 0.2}, BOTH, None),
    "nuisance factors": ({"nuisance_dim": 5, "feature_noise": 0.3}, LEARNT, None),
    "wide features": ({"num_features": 300, "feature_noise": 0.5}, LEARNT, None),
    "uneven rows": ({"uneven_rows": True}, BOTH, None),
    "noise by leaf": ({"noise_ratio": 4.0}, BOTH, None),
    "t noise": ({"noise": "t"}, BOTH, None),
    "outliers": ({"noise": "outliers"}, BOTH, None),
    "latent noise": ({"latent_noise": 0.5}, BOTH, None),
    "curved": ({"curvature": 0.2}, BOTH, None),
    "half-normal sizes": ({"delta_min": 0.0}, BOTH, None),
    "exponential sizes": ({"delta_min": 0.0, "sizes": "exponential"}, BOTH, None),
    "equal sizes": ({"delta_min": 1.0, "delta_scale": 0.0}, BOTH, None),
    "small changes": ({"small_changes": 0.1}, BOTH, None),
    "shared changes": ({"num_outcomes": 4, "shared_changes": 1.0}, BOTH, None),
    "correlated outcomes": ({"num_outcomes": 4, "noise_correlation": 0.7}, BOTH, None),
    "correlated latents": ({"latent_correlation": 0.8}, BOTH, None),
    "binary": ({"likelihood": "bernoulli"}, BOTH, None),
    "successes": ({"likelihood": "binomial", "latent_shift": 0.5}, BOTH, None),
    "grades": ({"likelihood": "ordinal", "latent_shift": 0.5}, BOTH, None),
    "counts": (COUNTS | {"likelihood": "negative_binomial"}, BOTH, None),
    "Poisson counts": (COUNTS | {"likelihood": "poisson"}, BOTH, None),
    "too few latents": ({"latent_dim": 4}, LEARNT, 2),
    "too many latents": ({"latent_dim": 2, "nuisance_dim": 5, "feature_noise": 0.3}, LEARNT, 5),
}
FEW, MANY = 0.8, 0.97  # coverage of a leaf's 90 % intervals below and above which it misleads
LINEAR = 0.01  # standard deviations by which true latents are a linear function of others
NEW_ROWS, NUM_HELD_OUT, NEW_TRIALS = 200, 2, 20


def simulated(setting, seed, rows, more=None):
    """One data set, and the leaves of it that are held out."""
    more = SETTINGS[setting][0] | (more or {})
    rng = np.random.default_rng([seed, 7])
    sizes = {"num_leaves": more.get("num_leaves", PLAIN["num_leaves"])}
    tree = tbr.simulate(**PLAIN | sizes, rows_per_leaf=1, seed=seed).tree
    counts = np.full(tree.num_leaves, rows)
    if more.pop("uneven_rows", False):
        counts = np.round(rows * 5.0 ** rng.uniform(-1, 1, tree.num_leaves)).astype(int)
    data = tbr.simulate(tree, **PLAIN | more, rows_per_leaf=counts, seed=seed)
    places = rng.choice(tree.num_leaves, NUM_HELD_OUT, replace=False)
    return data, [tree.leaves[place] for place in places]


def one_fit(
    setting, latents, seed, rows, noise,
    likelihood=None, covariance=None, more=None, noisy=False, basis=None, zero=0.0,
):  # fmt: skip
    """Metrics of one fit, its PIPs with their truth, and the coverage of each leaf."""
    data, held_out = simulated(setting, seed, rows, more)
    known = latents == "known"
    keep = ~np.isin(data.env, np.array(held_out, dtype=object))
    if known:  # features are the latents themselves
        size = data.z.shape[1]
        data = replace(data, x=data.z + zero, mixing=lambda z: z[:, :size] + zero)
    x, y, env = data.x[keep], data.y[keep], data.env[keep]
    if likelihood is None:
        gaussian = data.likelihood == "gaussian"
        likelihood = data.likelihood
        if gaussian:
            likelihood = tbr.GaussianLikelihood(
                noise=noise, covariance=covariance, latent_noise=noisy
            )
        elif data.likelihood == "ordinal":
            likelihood = tbr.OrdinalLikelihood(len(data.law.thresholds) + 1)
    given = {"exposure": data.exposure, "trials": data.trials}
    given = {name: value[keep] for name, value in given.items() if value is not None}
    if likelihood == "log1p":  # counts a unit of exposure, as numbers
        y, likelihood, given = np.log1p(y / given["exposure"]), "gaussian", {}
    num_latents = data.z.shape[1] if known else SETTINGS[setting][2] or data.z.shape[1]
    model = tbr.TreeModel(
        data.tree, num_latents, "identity" if known else "linear", likelihood=likelihood,
        basis=basis,
    )  # fmt: skip
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = tbr.fit(model, x, y, env, seed=seed, progress=False, **given)
    row = {"seconds": time.perf_counter() - start}
    kinds = {warning.category for warning in caught}
    found, check = posterior.identification(), posterior.check()
    row |= {"unsure": float(tbr.IdentificationWarning in kinds)}
    row |= {"misfit": float(tbr.ModelWarning in kinds), "unused": len(found.unused)}
    row["warned"] = max(row["unsure"], row["misfit"])
    row |= {f"_{name}": value for name, value in why(found, check).items()}

    match = match_latents(data.z, posterior.encode(data.x))
    row["MCC"] = float(match.correlations.mean())
    if noisy:
        row |= noises(posterior, data, match)
    truth = true_changes(data, posterior)
    truth = truth[truth["latent"] != "intercept"]
    chosen = posterior.select(fdr=0.05)
    picked = selection_score(chosen[chosen["latent"] != "intercept"], truth)
    row |= {"selected": picked.num_selected, "false": picked.fdr * picked.num_selected}
    row["power"] = picked.power
    truth = truth[truth["informed"]]
    place = ["parent", "child", "latent", "outcome"]
    found_at = posterior.deltas().set_index(place)["pip"]
    pips = found_at.loc[pd.MultiIndex.from_frame(truth[place])].to_numpy()
    gates = truth["change"].to_numpy()
    row["AUROC"] = pip_auroc(pips, gates)
    # Slopes through curves are others.
    covered = weights_covered(posterior, data, env) if basis is None else None
    if covered is not None:
        row |= {"weights": covered[:, :-1].mean(), "intercepts": covered[:, -1].mean()}
    seen, unseen = (
        np.array([rows_covered(posterior, data, leaf, seed) for leaf in leaves])
        for leaves in (dict.fromkeys(env), held_out)
    )
    row |= {"no data": unseen[:, 0].mean(), "log score": seen[:, 2].mean()}
    row["log score no data"] = unseen[:, 2].mean()
    if data.likelihood == "bernoulli":
        row["probability"] = seen[:, 0].mean()
        return row, pips, gates
    row["R2"] = r2(posterior, data, dict.fromkeys(env), seed)
    row |= {"new rows": seen[:, 0].mean(), "leaves < 0.8": (seen[:, 0] < FEW).mean()}
    row |= {"leaves > 0.97": (seen[:, 0] > MANY).mean(), "joint": seen[:, 1].mean()}
    return row, pips, gates


def why(found, check):
    """Numbers behind the warnings, for the file."""
    own = found.latents[found.latents["used"]]
    least = own[["gap", "agreement", "separation", "evidence"]].min().to_dict()
    squares = check.latents[["share", "z"]].max().add_prefix("curved_").to_dict()
    missing = {"missing_share": check.missing_share, "missing_z": check.missing_z}
    return least | squares | missing | {"worth": check.worth, "others_gap": found.gap}


def noises(posterior, data, match):
    """Noise of latents and of outcomes over the true ones, and how many are within 20 %."""
    omega = posterior.latent_noise()["mean"].to_numpy()[match.permutation] / data.latent_noise
    leaves = posterior.noise()["node"].isin(data.tree.leaves)
    own = posterior.noise()[leaves].groupby("outcome")["mean"].mean().to_numpy() / data.noise_scale
    found = {"omega": omega.mean(), "omega within 20 %": (np.abs(omega - 1) < 0.2).mean()}
    return found | {"noise": own.mean(), "noise within 20 %": (np.abs(own - 1) < 0.2).mean()}


def weights_covered(posterior, data, env):
    """Whether 90 % intervals hold the weights of the leaves with data; intercepts last.

    True weights of learnt latents are those by which these give the true predictor. ``None`` where
    true latents are no linear function of them.
    """
    nodes = [data.tree.index(leaf) for leaf in dict.fromkeys(env)]
    z = posterior.encode(data.x)
    design = np.concatenate([z, np.ones((len(z), 1))], 1)
    back = np.linalg.lstsq(design, data.z, rcond=None)[0]
    if np.abs(data.z - design @ back).max() > LINEAR * data.z.std():
        return None
    true = np.einsum("jk,ekq->ejq", back, data.node_weights[nodes])
    true[:, -1] += data.node_intercepts[nodes]
    mean, var = (part[nodes].numpy() for part in posterior.user_moments())
    return np.abs(mean - true) < NormalDist().inv_cdf(0.95) * var**0.5


def rows_covered(posterior, data, leaf, seed):
    """Share of a leaf's new outcomes (or probabilities) in 90 % intervals, and of their means."""
    x, y, z = data.rows(leaf, NEW_ROWS, seed=seed)
    given = {}
    if data.likelihood == "binomial":  # of one trial an interval says nothing
        given, chance = {"trials": NEW_TRIALS}, chances(data, leaf, z)
        y = np.random.default_rng(seed).binomial(NEW_TRIALS, chance).astype(float).reshape(y.shape)
    found = posterior.predict(x, leaf, level=0.9, **given)
    logged = data.exposure is not None and posterior.scaling.of_outcome is None
    score = found.log_score(np.log1p(y) if logged else y)
    if logged:  # density of the logarithm, per count
        score, y = score - float(np.mean(np.log1p(y))), np.log1p(y)
    if data.likelihood == "bernoulli":
        y = chances(data, leaf, z).reshape(y.shape)
    inside = float(np.mean((found.lower <= y) & (y <= found.upper)))
    if y.ndim == 1:
        return inside, np.nan, score
    means = found.sample(400, seed=seed).mean(-1)
    low, high = np.quantile(means, [0.05, 0.95], axis=0)
    return inside, float(np.mean((low <= y.mean(-1)) & (y.mean(-1) <= high))), score


def r2(posterior, data, leaves, seed):
    """Of means at new rows of leaves with data, all outcomes together."""
    parts = []
    for leaf in leaves:
        x, y, _ = data.rows(leaf, NEW_ROWS, seed=seed)
        given = {"trials": np.ones(len(x))} if data.trials is not None else {}
        parts.append((y, np.asarray(posterior.predict(x, leaf, **given).mean)))
    true, mean = (np.concatenate(part) for part in zip(*parts, strict=True))
    return 1 - np.square(true - mean).sum() / np.square(true - true.mean(0)).sum()


def chances(data, leaf, z):
    """True probabilities (n, Q) of binary outcomes at a leaf, by latents (n, K)."""
    node = data.tree.index(leaf)
    return 1 / (1 + np.exp(-(z @ data.node_weights[node] + data.node_intercepts[node])))


def summary(results, pips):
    """The table: a row a setting, means with standard errors over fits."""
    results = results[[name for name in results if not name.startswith("_")]]
    runs = summarise_runs(results, by=["setting", "latents"])
    names = [name for name in results if name not in ("setting", "latents", "seed")]
    shown = []
    for key, own in results.groupby(["setting", "latents"], sort=False):
        row = {"setting": key[0], "latents": key[1]}
        for name in names:
            mean, error, number = runs.loc[(*key, name)]
            if name not in ("selected", "false") and number:
                row[name] = f"{mean:.3f} ({error:.3f})" if number > 1 else f"{mean:.3f}"
        row |= {"FDR": false_share(own), "FDR unwarned": false_share(own[own["warned"] == 0])}
        here = pips[(pips["setting"] == key[0]) & (pips["latents"] == key[1])]
        bins = reliability(here["pip"], here["change"], BINS)
        full = bins[bins["count"] >= 100]
        row["bins off"] = f"{(full['mean_pip'] - full['true_share']).abs().max():.3f}"
        shown.append(row)
    return pd.DataFrame(shown).set_index(["setting", "latents"]).fillna("-")


def false_share(fits):
    """Of the changes selected in some fits, and how many these are."""
    selected, false = fits["selected"].sum(), fits["false"].sum()
    return f"{false / max(1, selected):.3f} of {selected:.0f}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--latents", nargs="*", default=["known", "learnt"], choices=BOTH)
    parser.add_argument("--fits", type=int, default=20, help="of each setting")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=None, help="a leaf; 50, or 200 if binary")
    parser.add_argument("--noise", choices=["common", "by_environment"])
    parser.add_argument("--more", nargs="*", default=[], help="of simulate: noise_correlation=0.9")
    parser.add_argument("--covariance", choices=["diagonal", "full"])
    parser.add_argument("--basis", choices=["spline", "polynomial"])
    parser.add_argument("--zero", type=float, default=0.0, help="of known latents, off the truth's")
    parser.add_argument("--latent-noise", action="store_true", help="learn it")
    parser.add_argument("--likelihood", help="another than the data's; log1p: of counts, normal")
    parser.add_argument("--csv", type=Path, help="file for a row a fit")
    args = parser.parse_args(argv)
    results, pips = [], []
    more = {name: float(value) for name, value in (pair.split("=") for pair in args.more)}
    more = {name: int(value) if name.startswith("num_") else value for name, value in more.items()}
    for setting in args.settings:
        binary = SETTINGS[setting][0].get("likelihood") == "bernoulli"
        for latents in SETTINGS[setting][1]:
            if latents not in args.latents:
                continue
            for seed in range(args.first_seed, args.first_seed + args.fits):
                rows = args.rows or (200 if binary else 50)
                row, pip, change = one_fit(
                    setting, latents, seed, rows, args.noise, args.likelihood, args.covariance,
                    more, args.latent_noise, args.basis, args.zero,
                )  # fmt: skip
                key = {"setting": setting, "latents": latents, "seed": seed}
                results.append(key | row)
                pips.append(pd.DataFrame(key | {"pip": pip, "change": change}))
            done = pd.DataFrame(results[-args.fits :])
            print(f"{setting}, {latents}: MCC {done['MCC'].mean():.3f}", flush=True)
    results, pips = pd.DataFrame(results), pd.concat(pips)
    table = summary(results, pips)
    print("\n" + markdown(table))
    if args.csv:
        results.to_csv(args.csv, index=False)
    return {"table": table, "fits": results, "pips": pips}


if __name__ == "__main__":
    main()
