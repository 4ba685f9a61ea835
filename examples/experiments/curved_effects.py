"""Are inclusion probabilities true where latents act by curves?

Two known latents act on two outcomes by a line and a bowl each, on random trees of 20 leaves with
50 rows. Along an arc a latent's effect changes with probability 0.15, line and bowl together: by
normal draws of their own (``own``), or by one draw of a least size, so that a curve keeps its shape
(``in step``). Fits with ``basis="polynomial"``, which is the truth, with ``"spline"``, and without
a basis. A row a kind of data and basis: R2 of new rows, their coverage by 90 % intervals, AUROC of
the PIPs, power and share of false ones of those selected at FDR 0.05, the share that changed among
PIPs of 0.2 to 0.8 beside their mean, and seconds.

    python examples/experiments/curved_effects.py --sets 10
"""

import argparse
import time
import warnings

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts.run_tables import markdown
from pyro_tbr.evaluation import pip_auroc

LATENTS, OUTCOMES, LEAVES, ROWS, NOISE = 2, 2, 20, 50, 0.3
BOWL = {"own": 0.6, "in step": 0.7}  # size of the bowl's weights over the line's
BASES = {"none": None, "polynomial": "polynomial", "spline": "spline"}


def drawn(kind, seed):
    """A tree, gates (A, K, Q), and a function that makes rows (z, y, env), so many a leaf."""
    rng = np.random.default_rng([seed, 3])
    tree = tbr.simulate(num_leaves=LEAVES, shape="random", rows_per_leaf=1, seed=seed).tree
    shape = tree.num_arcs, LATENTS, OUTCOMES
    gates = rng.random(shape) < 0.15
    sizes = np.array([1.0, BOWL[kind]])
    if kind == "own":
        changes, root = rng.normal(size=(*shape, 2)) * sizes, rng.normal(size=(*shape[1:], 2))
        root = root * sizes
    else:
        size = rng.choice([-1, 1], size=shape) * (0.5 + 0.5 * np.abs(rng.normal(size=shape)))
        changes, root = size[..., None] * sizes, rng.normal(size=shape[1:])[..., None] * sizes
    weights = {tree.root: root}
    for arc, (parent, child) in enumerate(tree.arcs):
        weights[child] = weights[parent] + gates[arc, ..., None] * changes[arc]

    def rows(number):
        env = np.repeat(np.array(tree.leaves, dtype=object), number)
        z = rng.normal(size=(len(env), LATENTS))
        functions = np.stack([z, (z**2 - 1) / 2**0.5], -1)
        y = np.einsum("nkb,nkqb->nq", functions, np.stack([weights[leaf] for leaf in env]))
        return z, y + NOISE * rng.normal(size=y.shape), env

    return tree, gates, rows


def one_fit(kind, basis, seed):
    """Metrics of one fit, PIPs of slopes (A K Q,) and whether they changed."""
    tree, gates, rows = drawn(kind, seed)
    given, new = rows(ROWS), rows(100)
    model = tbr.TreeModel(tree, LATENTS, "identity", basis=BASES[basis])
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = tbr.fit(model, *given, progress=False)
    row = {"CPU s": time.process_time() - start}
    score = posterior.predict(new[0], new[2]).score(new[1])
    row |= {"R2": score["r2"].mean(), "coverage": score["coverage"].mean()}
    names = [f"z{k}" for k in range(LATENTS)]
    pips = np.stack([posterior.pips()[f"y{q}"][names] for q in range(OUTCOMES)], -1).ravel()
    row["AUROC"] = pip_auroc(pips, gates.ravel())
    chosen = posterior.select(fdr=0.05)
    chosen = chosen[chosen["latent"].isin(names)]
    arcs = {child: arc for arc, (_, child) in enumerate(tree.arcs)}
    places = zip(chosen["child"], chosen["latent"], chosen["outcome"], strict=True)
    true = sum(bool(gates[arcs[c], names.index(k), int(q[1:])]) for c, k, q in places)
    row |= {"selected": len(chosen), "false": len(chosen) - true, "true": gates.sum()}
    return row, pips, gates.ravel()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(BOWL), choices=BOWL)
    parser.add_argument("--bases", nargs="*", default=list(BASES), choices=BASES)
    args = parser.parse_args(argv)
    shown = []
    for kind in args.kinds:
        for basis in args.bases:
            seeds = range(args.first_seed, args.first_seed + args.sets)
            fits, pips, gates = zip(*(one_fit(kind, basis, s) for s in seeds), strict=True)
            fits, pips, gates = pd.DataFrame(fits), np.concatenate(pips), np.concatenate(gates)
            row = {"changes": kind, "basis": basis}
            row |= {name: f"{fits[name].mean():.3f}" for name in ("R2", "coverage", "AUROC")}
            total = fits[["selected", "false", "true"]].sum()
            row["power"] = f"{(total['selected'] - total['false']) / total['true']:.2f}"
            row["FDR"] = f"{total['false'] / max(1, total['selected']):.3f} of {total['selected']}"
            middle = (pips > 0.2) & (pips < 0.8)
            row["PIPs 0.2 to 0.8"] = f"{pips[middle].mean():.2f}, {gates[middle].mean():.2f}"
            row["CPU s"] = f"{fits['CPU s'].mean():.1f}"
            shown.append(row)
            print(row, flush=True)
    table = pd.DataFrame(shown).set_index(["changes", "basis"])
    print("\n" + markdown(table))
    return table


if __name__ == "__main__":
    main()
