"""Are inclusion probabilities truer when averaged over bases that the ELBO cannot tell apart?

Fits of the hard world (``hard_world.py``) where the latents are hard to determine, each asked as it
is (``fit``) and averaged over bases (``average_bases``). A row a setting and answer:

- how many bases the average has, and the weight of that of the fit; MCC of the latents of the fit;
- log loss and Brier score of the inclusion probabilities (nats and squares an entry), AUROC, power
  and share of false ones of changes selected at FDR 0.05, of arcs with data below;
- log score of new rows at leaves with data and without, and how often 90 % intervals hold these.

    python examples/experiments/averaged_bases.py --fits 8
"""

import argparse
import warnings

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from hard_world import SETTINGS, simulated
from parts.bins import BINS
from parts.run_tables import markdown
from parts.runs import paired_differences, summarise_runs
from pyro_tbr.evaluation import match_latents, pip_auroc, reliability, selection_score, true_changes

HARD = ("few leaves", "small changes", "equal sizes")  # of the hard world's settings
NEW_ROWS, LEAST = 200, 1e-6  # the least PIP that is scored


def one_fit(setting, seed, rows, max_bases):
    """Rows of the table, and the PIPs with their truth, of the fit and of its average."""
    data, held_out = simulated(setting, seed, rows)
    keep = ~np.isin(data.env, np.array(held_out, dtype=object))
    x, y, env = data.x[keep], data.y[keep], data.env[keep]
    model = tbr.TreeModel(data.tree, data.z.shape[1], "linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = tbr.fit(model, x, y, env, seed=seed, progress=False)
    return compared(setting, seed, max_bases, data, posterior, env, held_out)


def compared(setting, seed, max_bases, data, posterior, env, held_out):
    """The same of a fit that is there."""
    averaged = tbr.average_bases(posterior, max_bases=max_bases)
    bases = averaged.bases()
    known = {
        "bases": len(bases), "weight of the fit's": bases["weight"][0],
        "MCC": match_latents(data.z, posterior.encode(data.x)).correlations.mean(),
        "unsure": float(not posterior.identification().determined),
    }  # fmt: skip
    found, pips = [], []
    for name, one in (("fit", posterior), ("averaged", averaged)):
        truth = true_changes(data, one)
        truth = truth[truth["latent"] != "intercept"]
        chosen = one.select(fdr=0.05)
        picked = selection_score(chosen[chosen["latent"] != "intercept"], truth)
        truth = truth[truth["informed"]]
        pip, change = one.deltas()["pip"].loc[truth.index].to_numpy(), truth["change"].to_numpy()
        leaves = {"seen": list(dict.fromkeys(env)), "new": held_out}
        found.append({"setting": setting, "method": name, "seed": seed} | known | {
            "log loss": log_loss(pip, change), "Brier": float(np.mean((pip - change) ** 2)),
            "AUROC": pip_auroc(pip, change), "power": picked.power,
            "selected": picked.num_selected, "false": picked.fdr * picked.num_selected,
        } | predicted(one, data, leaves, seed))  # fmt: skip
        pips.append(
            pd.DataFrame({"method": name, "setting": setting, "pip": pip, "change": change})
        )
    return found, pips


def log_loss(pip, change):
    """Mean, in nats; probabilities no nearer to 0 and 1 than what numbers say of them."""
    pip = np.clip(pip, LEAST, 1 - LEAST)
    return float(-np.mean(np.where(change, np.log(pip), np.log1p(-pip))))


def predicted(posterior, data, leaves, seed):
    """Log scores of new rows, and the share of these in 90 % intervals."""
    found = {}
    for kind, some in leaves.items():
        scores, inside = [], []
        for leaf in some:
            x, y, _ = data.rows(leaf, NEW_ROWS, seed=seed)
            one = posterior.predict(x, leaf, level=0.9)
            scores.append(one.log_score(y))
            inside.append(np.mean((one.lower <= y) & (y <= one.upper)))
        found |= {f"log score, {kind}": np.mean(scores), f"in 90 %, {kind}": np.mean(inside)}
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="*", default=HARD, choices=SETTINGS)
    parser.add_argument("--fits", type=int, default=8, help="of each setting")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=50, help="a leaf")
    parser.add_argument("--max-bases", type=int, default=6)
    args = parser.parse_args(argv)
    results, pips = [], []
    for setting in args.settings:
        for seed in range(args.first_seed, args.first_seed + args.fits):
            rows, some = one_fit(setting, seed, args.rows, args.max_bases)
            results += rows
            pips += some
            fit, averaged = (f"{row['log loss']:.3f}" for row in rows)
            print(
                f"{setting}, {seed}: {rows[0]['bases']} bases, log loss {fit}, {averaged}",
                flush=True,
            )
    return show(pd.DataFrame(results), pd.concat(pips))


def show(results, pips):
    """Prints the tables."""
    summary = summarise_runs(results)
    means = summary["mean"].unstack("metric")
    print("\nMeans over fits:\n\n" + markdown(means.drop(columns=["selected", "false"]), 3))
    names = ["log loss", "Brier", "AUROC", "power", "log score, seen", "log score, new"]
    differences = paired_differences(results, "fit", names)
    print("\nAveraged less the fit, fit by fit:\n\n" + markdown(differences, 4))
    several = results[results["bases"] > 1]
    for name, some in (("all fits", results), ("with several bases", several)):
        total = some.groupby("method", sort=False)[["selected", "false"]].sum()
        mean = some.groupby("method", sort=False)[["log loss", "Brier", "AUROC"]].mean()
        print(f"\n{name}: {len(some) // 2}\n\n" + markdown(mean.join(total), 4))
    for name, some in pips.groupby("method", sort=False):
        print(
            f"\nBins of PIPs, {name}:\n\n"
            + markdown(reliability(some["pip"], some["change"], BINS), 3)
        )
    return {"fits": results, "pips": pips, "differences": differences}


if __name__ == "__main__":
    main()
