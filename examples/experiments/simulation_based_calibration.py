r"""Simulation-based calibration: do true values rank uniformly among draws from their posteriors?

Parameters are drawn from the model's own prior (inclusion rate, scales, noise, root weights, gates,
changes), data from the model; each data set is fitted with default options, and each true value is
ranked among draws from its posterior. Over many data sets the ranks are uniform if the whole
procedure is right, and of changes with a PIP of p a share of p is true.

``fit`` learns scales in standard deviations of the outcome. So only data sets whose outcomes have a
mean near 0 and a standard deviation near 1 are kept: as that is seen from the data alone, it leaves
posteriors as they are, and prior of the draw and prior of the fit are the same (to the tolerance).
In some draws small changes (gate off) are as wide as large ones (gate on), where nothing can tell
them apart; so PIPs above 0.6 are shown by the true ratio of the two widths as well.
For the same reason results may be split by whether the fit warned that latents are not determined.
With ``encoder="linear"`` features are a random mixture of the latents, and estimated latents are
matched to the true ones before anything is ranked.
With ``--sample`` ranks are among the draws of ``sample_posterior`` from each fit.

    python examples/experiments/simulation_based_calibration.py --fits 100 \
        --csv ranks.csv --figure sbc.png
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import torch

import pyro_tbr as tbr
from parts.bins import BINS
from parts.ranks import ecdf, ecdf_band, rank_among, uniformity
from pyro_tbr.evaluation import (
    match_latents,
    reliability,
)
from pyro_tbr.tree import path_sum

NUM_DRAWS = 99
TOLERANCE = 0.1  # of the outcome's mean and standard deviation, in the unit of the draw
MAX_TRIES = 20_000
SCALES = ("inclusion_rate", "slab_scale", "noise_scale")
RATIOS = [0, 0.1, 0.3, 1, np.inf]  # of the width of small changes to that of large ones


def drawn(tree, args, held_out, seed):
    """True values by site, latents, outcomes and nodes of the rows of one data set.

    Latents have mean 0 and variance 1 over the rows to fit, as learnt ones have: else weights that
    are known to a hundredth would be in another unit than the truth.
    """
    model = tbr.TreeModel(tree, args.latent_dim, "identity", num_features=args.latent_dim,
                          num_outcomes=args.outcomes)  # fmt: skip
    rng = np.random.default_rng([seed, 4])
    nodes = tree.leaf_index.repeat_interleave(args.rows_per_leaf)
    z = rng.standard_normal((len(nodes), args.latent_dim))
    keep = (nodes != tree.index(held_out)).numpy()
    z = (z - z[keep].mean(0)) / z[keep].std(0)
    x = torch.from_numpy(z).to(torch.get_default_dtype())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for _ in range(MAX_TRIES):
            sites = pyro.poutine.trace(model).get_trace(x, nodes).nodes
            y = sites["y"]["value"].double()
            seen = y[keep]
            near = (seen.mean(0).abs() < TOLERANCE) & (seen.std(0).log().abs() < TOLERANCE)
            if near.all():
                values = {
                    name: site["value"].double().numpy()
                    for name, site in sites.items()
                    if site["type"] == "sample" and torch.is_tensor(site["value"])
                }
                return values, z, y.numpy(), nodes
    raise RuntimeError(f"no data set of {MAX_TRIES} had a mean of 0 and a deviation of 1")


def one_fit(encoder, seed, args, options):
    """Ranks of one data set, a row a quantity; PIPs and true gates."""
    shape = tbr.simulate(num_leaves=args.leaves, shape="random", rows_per_leaf=1, seed=seed)
    tree = shape.tree
    rng = np.random.default_rng([seed, 5])
    held_out = tree.leaves[rng.integers(len(tree.leaves))]
    truth, z, y, nodes = drawn(tree, args, held_out, seed)
    x = z
    if encoder == "linear":
        x = z @ rng.standard_normal((args.latent_dim, 2 * args.latent_dim))
    env = np.array([tree.nodes[i] for i in nodes.tolist()], dtype=object)
    keep = env != held_out
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", tbr.IdentificationWarning)
        model = tbr.TreeModel(tree, args.latent_dim, encoder)
        posterior = tbr.fit(
            model, x[keep], y[keep], env[keep], seed=seed, progress=False, options=options
        )
        about = {"encoder": encoder, "seed": seed, "warned": bool(caught)}
        if args.sample:
            before = len(caught)
            warnings.simplefilter("always", tbr.ConvergenceWarning)
            posterior = tbr.sample_posterior(posterior, num_sweeps=args.sweeps, seed=seed)
            about["unsettled"] = len(caught) > before
    about["seconds"] = time.perf_counter() - start
    match = match_latents(z, posterior.encode(x))
    about["mcc"] = float(match.correlations.mean())
    draws = matched(posterior.sample(NUM_DRAWS, seed=seed), match)
    # One latent and outcome a fit, so that the ranks of a quantity are independent.
    k, q = int(rng.integers(args.latent_dim)), int(rng.integers(args.outcomes))
    leaf = int(rng.choice(nodes.numpy()[keep]))
    pairs = {"root weight": (truth["root_weights"][k, q], draws["root_weights"][:, k, q])}
    true_weights, weights = (at_nodes(tree, part) for part in (truth, draws))
    for name, place in (("leaf weight", leaf), ("left-out leaf", tree.index(held_out))):
        pairs[name] = (true_weights[place, k, q], weights[:, place, k, q])
    arc = int(rng.integers(tree.num_arcs))
    pairs["change"] = (truth["deltas"][arc, k, q], draws["deltas"][:, arc, k, q])
    unit = posterior.scaling.scale.numpy()
    for name in SCALES:
        if name in truth and name in draws:
            place = (q,) if name == "noise_scale" else (k, 0)
            scale = float(np.mean(unit)) if name == "slab_scale" else 1.0
            pairs[name.replace("_", " ")] = (
                truth[name][place], draws[name][(slice(None), *place)] * scale
            )  # fmt: skip
    rows = [
        about | {"quantity": name, "rank": int(rank_among(one, many, rng))}
        for name, (one, many) in pairs.items()
    ]
    informed = posterior.guide.informed_arcs.numpy()
    pips = posterior.guide.delta_moments().inclusion.detach().numpy()
    pips = pips[informed][:, match.permutation]
    gates = truth["gates"][informed][:, : args.latent_dim] > 0  # others change a little too
    ratio = (truth["spike_scale"] / truth["slab_scale"])[: args.latent_dim] + np.zeros(pips.shape)
    found = {"pip": pips, "gate": gates, "ratio": ratio}
    found = pd.DataFrame({name: values.ravel() for name, values in found.items()})
    return rows, found.assign(encoder=encoder, warned=about["warned"])


def matched(draws, match):
    """Draws in the order and with the signs of the true latents, the intercept last."""
    found = dict(draws)
    size = len(match.permutation)
    for name in ("root_weights", "deltas", *SCALES[:2]):
        if name not in draws:
            continue
        axis = 2 if name == "deltas" else 1
        order = [*match.permutation, *range(size, draws[name].shape[axis])]
        found[name] = np.take(draws[name], order, axis=axis)
        if name not in SCALES:
            sign = np.append(match.sign, np.ones(len(order) - size))
            found[name] = found[name] * sign[:, None]
    return found


def at_nodes(tree, values):
    """Weights at all nodes from those of the root and the changes."""
    root, deltas = (torch.from_numpy(np.ascontiguousarray(values[name])).double()
                    for name in ("root_weights", "deltas"))  # fmt: skip
    return path_sum(tree, root, deltas, event_dim=2).numpy()


def tests(ranks):
    """P-values and mean ranks by encoder and quantity, for all fits and those without a warning."""
    rows = []
    for (encoder, quantity), part in ranks.groupby(["encoder", "quantity"], sort=False):
        row = {"encoder": encoder, "quantity": quantity}
        for name, some in (("all", part), ("not warned", part[~part["warned"]])):
            bins = 10 if len(some) >= 50 else 5
            row[f"fits, {name}"] = len(some)
            row[f"mean rank, {name}"] = some["rank"].mean() / NUM_DRAWS
            enough = len(some) >= 5 * bins
            row[f"p, {name}"] = uniformity(some["rank"], NUM_DRAWS, bins=bins) if enough else np.nan
        rows.append(row)
    return pd.DataFrame(rows).set_index(["encoder", "quantity"])


def figure(ranks, path):
    """ECDF less the diagonal, with the 95 % band of uniform ranks, a panel a quantity.

    The band is that of the first encoder's number of fits.
    """
    from pyro_tbr.plotting import canvas

    names = list(ranks["quantity"].unique())
    columns = min(4, len(names))
    drawing = canvas.new_figure(2.4 * columns, 2.3 * -(-len(names) // columns) + 0.3)
    axes = np.ravel(drawing.subplots(-(-len(names) // columns), columns, sharex=True, sharey=True))
    for ax, name in zip(axes, names, strict=False):
        for colour, encoder in zip(canvas.CATEGORIES, ranks["encoder"].unique(), strict=False):
            part = ranks[(ranks["quantity"] == name) & (ranks["encoder"] == encoder)]
            band = ecdf_band(len(part), NUM_DRAWS)
            found = ecdf(part["rank"], NUM_DRAWS, band.points) - band.points
            x = np.append(0, band.points)
            if colour == canvas.CATEGORIES[0]:
                low, high = (np.append(0, b - band.points) for b in (band.lower, band.upper))
                ax.fill_between(x, low, high, color="#e4e4e4", linewidth=0)
            ax.plot(x, np.append(0, found), color=colour, linewidth=1.4, label=encoder)
        ax.axhline(0, color=canvas.GREY, linewidth=0.8, linestyle="--")
        ax.set_title(name, fontsize=9)
        ax.set_xticks([0, 0.5, 1])
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    for ax in axes[max(0, len(names) - columns) : len(names)]:
        ax.tick_params(labelbottom=True)
    drawing.supxlabel("rank of the true value, as a share", fontsize=9)
    drawing.supylabel("ECDF less uniform", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    drawing.savefig(path, dpi=150)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoders", nargs="*", default=["identity", "linear"])
    parser.add_argument("--fits", type=int, default=100, help="of each encoder")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--leaves", type=int, default=16)
    parser.add_argument("--latent-dim", type=int, default=2)
    parser.add_argument("--outcomes", type=int, default=1)
    parser.add_argument("--rows-per-leaf", type=int, default=30)
    parser.add_argument("--restarts", type=int, default=64)
    parser.add_argument("--sample", action="store_true", help="rank among draws by sampling")
    parser.add_argument("--sweeps", type=int, default=1000, help="of each chain, with --sample")
    parser.add_argument("--csv", type=Path, help="file for the ranks")
    parser.add_argument("--figure", type=Path, help="file for a figure")
    args = parser.parse_args(argv)
    options = tbr.FitOptions(restarts=args.restarts)
    ranks, pips = [], []
    for seed in range(args.first_seed, args.first_seed + args.fits):
        for encoder in args.encoders:
            rows, found = one_fit(encoder, seed, args, options)
            ranks += rows
            pips.append(found)
        if args.csv:
            pd.DataFrame(ranks).to_csv(args.csv, index=False)
            pd.concat(pips).to_csv(args.csv.with_suffix(".pips.csv"), index=False)
    ranks, pips = pd.DataFrame(ranks), pd.concat(pips)
    table = tests(ranks)
    print("Ranks, as a share (0.5 is right), and chi-square p-values of their uniformity:\n")
    print(table.round(3).to_string())
    bins = {}
    for encoder, part in pips.groupby("encoder", sort=False):
        for name, some in ((encoder, part), (f"{encoder}, not warned", part[~part["warned"]])):
            if len(some):
                bins[name] = reliability(some["pip"], some["gate"].astype(float), BINS)
                print(f"\nHow often a change was true, by its PIP ({name}):")
                print(bins[name].round(3).to_string(index=False))
        large = part[part["pip"] > 0.6]
        by_ratio = large.groupby(pd.cut(large["ratio"], RATIOS), observed=True)
        print("\nPIPs above 0.6, by small changes' width over that of large ones:")
        print(by_ratio.agg(mean_pip=("pip", "mean"), true_share=("gate", "mean"),
                           count=("gate", "size")).round(3).to_string())  # fmt: skip
    if args.figure:
        figure(ranks, args.figure)
    fits = ranks.drop_duplicates(["encoder", "seed"]).groupby("encoder", sort=False)
    shown = ["mcc", "warned", *(["unsettled"] if args.sample else []), "seconds"]
    print("\n" + fits[shown].mean().round(3).to_string())
    return {"table": table, "reliability": bins}


if __name__ == "__main__":
    main()
