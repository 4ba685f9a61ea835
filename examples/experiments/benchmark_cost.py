"""Time and memory of a whole fit by the number of arcs, latents and outcomes.

One number grows at a time, the others stay as they are in ``BASE``: known latents (or, with
``--encoder linear``, twice as many features), a binary tree, ten rows at each of a fifth of its
leaves (at all where only latents or outcomes grow). Each fit runs in a process of its own, a small
fit before it, with one thread. Prints CPU seconds and the memory beyond what the process had
before; then both as ratios to the first size, by the ratio of sizes: at most 1 is linear or better.

    python examples/experiments/benchmark_cost.py
    python examples/experiments/benchmark_cost.py --vary arcs --sizes 1000 10000 100000
"""

import argparse
import time
import warnings

import numpy as np
import pandas as pd

from parts.spawned import peak, spawned

BASE = {"arcs": 100, "latents": 2, "outcomes": 1}
SIZES = {"arcs": (1_000, 10_000, 100_000), "latents": (2, 4, 8, 16), "outcomes": (1, 4, 16, 64)}
ROWS, SHARE = 10, 0.2
NAMES = ("CPU s", "MB")


def measure(arcs, latents, outcomes, share, encoder, seed):
    """CPU seconds of a fit and the memory that it takes."""
    import torch

    import pyro_tbr as tbr

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    small = tbr.simulate(num_leaves=4, latent_dim=2, num_features=4, rows_per_leaf=20, seed=0)
    tbr.fit(tbr.TreeModel(small.tree, 2, "identity"), small.z, small.y, small.env, progress=False)
    tree = tbr.Tree.from_parents({i: (i - 1) // 2 for i in range(1, arcs + 1)})
    rng = np.random.default_rng(seed)
    with_rows = rng.choice(np.array(tree.leaves), max(2, int(share * tree.num_leaves)), False)
    env = np.repeat(with_rows, ROWS)
    z = rng.standard_normal((len(env), latents))
    x = z
    if encoder != "identity":
        x = z @ rng.standard_normal((latents, 2 * latents))
        x += 0.1 * rng.standard_normal(x.shape)
    # Weights of the root, and a change of every latent on one arc in ten.
    weights = np.zeros((tree.num_nodes, latents, outcomes))
    weights[0] = rng.standard_normal((latents, outcomes))
    for arc, (parent, child) in enumerate(tree.arcs):
        changed = rng.random((latents, outcomes)) < 0.1
        step = rng.choice([-1.0, 1.0], changed.shape) * rng.uniform(0.5, 1.5, changed.shape)
        weights[arc + 1] = weights[tree.index(parent)] + changed * step
        assert tree.index(child) == arc + 1
    at = np.array([tree.index(leaf) for leaf in with_rows]).repeat(ROWS)
    y = np.einsum("nk,nkq->nq", z, weights[at]) + 0.3 * rng.standard_normal((len(env), outcomes))
    before, start = peak(), time.process_time()
    tbr.fit(tbr.TreeModel(tree, latents, encoder), x, y, env, progress=False)
    return time.process_time() - start, peak() - before


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vary", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--sizes", type=int, nargs="+", help="of the one that varies")
    parser.add_argument("--encoder", default="identity")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args(argv)
    if args.sizes and len(args.vary) > 1:
        parser.error("--sizes are of one number: give it with --vary")
    table = []
    for name in args.vary:
        for size in args.sizes or SIZES[name]:
            share = SHARE if name == "arcs" else 1.0
            for seed in range(args.repeats):
                found = spawned(measure, *(BASE | {name: size}).values(), share, args.encoder, seed)
                table.append({"vary": name, "size": size, **dict(zip(NAMES, found, strict=True))})
                print(f"{size} {name}: {found[0]:.1f} CPU s, {found[1]:.0f} MB", flush=True)
    table = pd.DataFrame(table).groupby(["vary", "size"], sort=False).mean()
    print("\n| | CPU s | MB | to the first size, by the ratio of sizes: CPU s | MB |")
    print("|---|---|---|---|---|")
    for (name, size), row in table.iterrows():
        first = table.loc[name].iloc[0]
        grown = size / table.loc[name].index[0]
        ratio = " | ".join(f"{row[column] / first[column] / grown:.2f}" for column in NAMES)
        print(f"| {size} {name} | {row['CPU s']:.1f} | {row['MB']:.0f} | {ratio} |")
    return table


if __name__ == "__main__":
    main()
