"""Should the gates of several outcomes be separate, grouped or shared?

Known latents on random trees, four outcomes whose changes are on arcs of their own (``own``), on
the same arcs (``shared``), or half the arcs so and half so (``mixed``). For each kind of gates a
row of one table, means over data sets with their standard errors: AUROC of the inclusion
probabilities (PIPs), their mean log loss (times 1000), power and share of false ones of changes
selected at FDR 0.05, the largest distance of a bin's mean PIP from the share of true changes in it
(bins of 100 entries and more, all fits), the same of ``arc_pips``, the sharing that was learnt, and
seconds.

With ``--neurons`` instead the real outcomes of 1190 neurons: log evidence of the fit, log score of
held-out mice (one fold of five), and how many changes are selected.

    python examples/experiments/gates.py --sets 20
    python examples/experiments/gates.py --neurons
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts import real_data
from parts.bins import BINS
from parts.run_tables import markdown
from parts.runs import summarise_runs
from pyro_tbr.evaluation import pip_auroc, reliability, selection_score, true_changes

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
GATES = ("separate", "grouped", "shared")
SETTINGS = {"own": 0.0, "mixed": 0.5, "shared": 1.0}  # share of arcs that change all outcomes
WORLD = {
    "num_leaves": 14, "shape": "random", "latent_dim": 2, "num_features": 2, "num_outcomes": 4,
    "changes": "bernoulli", "change_prob": 0.15, "intercept_scale": 1.0,
}  # fmt: skip
LEAST_BIN = 100


def one_fit(kind, setting, seed, rows, noise):
    """Metrics of one fit, PIPs of its changes with their truth, and those of its arcs."""
    data = tbr.simulate(
        **WORLD, rows_per_leaf=rows, noise_scale=noise, shared_changes=SETTINGS[setting], seed=seed
    )
    data = replace(data, x=data.z, mixing=lambda z: z)  # features are the latents themselves
    prior = tbr.SpikeSlabPrior(gates=kind)
    model = tbr.TreeModel(data.tree, WORLD["latent_dim"], "identity", prior)
    start = time.perf_counter()
    posterior = tbr.fit(model, data.x, data.y, data.env, seed=seed, progress=False)
    row = {"seconds": time.perf_counter() - start}
    table = posterior.deltas()
    slopes = (table["latent"] != "intercept").to_numpy()
    truth = true_changes(data, posterior)[slopes]
    pips, gates = table["pip"].to_numpy()[slopes], truth["change"].to_numpy()
    chosen = posterior.select(fdr=0.05)
    picked = selection_score(chosen[chosen["latent"] != "intercept"], truth)
    row |= {"AUROC": pip_auroc(pips, gates), "log loss": 1000 * log_loss(pips, gates)}
    row |= {"power": picked.power, "selected": picked.num_selected}
    row |= {"false": picked.fdr * picked.num_selected}
    if "sharing" in posterior.guide.hyper:
        mean = posterior.sample(500, seed=0)["sharing"].mean(0)[: WORLD["latent_dim"]]
        row["sharing"] = float(mean.mean())
    arcs = posterior.arc_pips().iloc[:, : WORLD["latent_dim"]].to_numpy().ravel()
    changed = truth.groupby(["parent", "child", "latent"], sort=False)["change"].any().to_numpy()
    return row, (pips, gates), (arcs, changed)


def log_loss(pips, gates):
    """Mean negative log probability that PIPs give to what is true."""
    pips = np.clip(pips, 1e-4, 1 - 1e-4)
    return float(-np.where(gates, np.log(pips), np.log1p(-pips)).mean())


def bins_off(pairs):
    """Largest distance of a bin's mean PIP from the share of true changes in it."""
    pips, gates = (np.concatenate(part) for part in zip(*pairs, strict=True))
    bins = reliability(pips, gates, BINS)
    full = bins[bins["count"] >= LEAST_BIN]
    return float((full["mean_pip"] - full["true_share"]).abs().max())


def simulated(args):
    """The table of simulated outcomes."""
    fits, shown = [], []
    for setting in args.settings:
        for kind in args.gates:
            pairs, arcs = [], []
            for seed in range(args.first_seed, args.first_seed + args.sets):
                row, pair, arc = one_fit(kind, setting, seed, args.rows, args.noise)
                fits.append({"setting": setting, "gates": kind, "seed": seed} | row)
                pairs.append(pair)
                arcs.append(arc)
            own = pd.DataFrame(fits[-args.sets :])
            runs = summarise_runs(own, by=["setting", "gates"])
            line = {"changes": setting, "gates": kind}
            for name in own.columns.drop(["setting", "gates", "seed", "selected", "false"]):
                mean, error, _ = runs.loc[(setting, kind, name)]
                line[name] = f"{mean:.3f} ({error:.3f})"
            selected, false = own["selected"].sum(), own["false"].sum()
            line["FDR"] = f"{false / max(1, selected):.3f} of {selected:.0f}"
            line |= {"bins off": f"{bins_off(pairs):.3f}", "of arcs": f"{bins_off(arcs):.3f}"}
            shown.append(line)
    table = pd.DataFrame(shown).set_index(["changes", "gates"]).fillna("-")
    return {"fits": pd.DataFrame(fits), "table": table}


def neurons(args):
    """The table of the neurons' outcomes."""
    rows = real_data.neurons(args.data / "neurons_m1", args.max_outcomes, args.components)
    train, test = next(iter(real_data.whole_groups(rows, seed=0)))
    x = rows.features(train)
    options = tbr.FitOptions(restarts=args.restarts, max_steps=1, sparse_steps=0)
    shown = []
    for kind in args.gates:
        model = tbr.TreeModel(rows.tree, args.latent_dim, prior=tbr.SpikeSlabPrior(gates=kind))
        start = time.perf_counter()
        posterior = tbr.fit(
            model, x.iloc[train], rows.y.iloc[train], rows.env[train], options=options,
            progress=False,
        )  # fmt: skip
        line = {"gates": kind, "seconds": time.perf_counter() - start}
        line["ELBO"] = posterior.guide.elbo(posterior.stats).item()
        found = posterior.predict(x.iloc[test], rows.env[test])
        line["log score"] = found.log_score(rows.y.iloc[test])
        chosen = posterior.select(fdr=0.05)
        intercepts = chosen["latent"] == "intercept"
        line |= {"intercepts": int(intercepts.sum()), "slopes": int((~intercepts).sum())}
        shown.append(line)
    return {"table": pd.DataFrame(shown).set_index("gates")}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--gates", nargs="*", default=list(GATES), choices=GATES)
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=15, help="of each leaf")
    parser.add_argument("--noise", type=float, default=0.5, help="standard deviation of outcomes")
    parser.add_argument("--neurons", action="store_true", help="real outcomes instead")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--latent-dim", type=int, default=5)
    parser.add_argument("--components", type=int, default=30)
    parser.add_argument("--max-outcomes", type=int)
    parser.add_argument("--restarts", type=int, default=16)
    parser.add_argument("--csv", type=Path, help="file for the single fits")
    args = parser.parse_args(argv)
    found = neurons(args) if args.neurons else simulated(args)
    if args.csv is not None and "fits" in found:
        found["fits"].to_csv(args.csv, index=False)
    print(markdown(found["table"]))
    return found


if __name__ == "__main__":
    main()
