"""What each mechanism of the default prior is worth, on data other than it was tuned on.

Known latents on random trees, changes on a fifth of the arcs whose sizes follow |N(0, 1)|, a
Laplace law or are all equal; features as they come, shifted leaf by leaf, or correlated within
leaves. Prints, for each mechanism taken out, how much the mean log loss of the inclusion
probabilities (times 1000; positive: worse without) differs from that of the default, with its
standard error over the data sets.

    python examples/experiments/what_pays.py --sets 4
"""

import argparse
import math
import warnings

import numpy as np

import pyro_tbr as tbr

SIZES = {
    "half-normal": lambda rng, num: np.abs(rng.standard_normal(num)),
    "Laplace": lambda rng, num: rng.exponential(1.0, num),
    "equal": lambda rng, num: np.ones(num),
}
FEATURES = ("independent", "shifted", "correlated")
WITHOUT = {
    "halves of the slab": {"slab_separation": 0.0},
    "spike of learnt width": {"spike_scale": 0.0},
    "halves and spike": {"slab_separation": 0.0, "spike_scale": 0.0},
}
K, ROWS, NOISE = 3, 60, 0.5


def data_set(sizes, features, seed):
    """Tree, latents, outcomes, environments, and which arcs changed, (A, K)."""
    rng = np.random.default_rng(seed)
    tree = tbr.simulate(num_leaves=20, shape="random", rows_per_leaf=1, seed=seed).tree
    changed = rng.random((tree.num_arcs, K)) < 0.2
    deltas = changed * SIZES[sizes](rng, changed.shape) * rng.choice([-1.0, 1.0], changed.shape)
    weights = rng.standard_normal((tree.num_nodes, K))
    for arc, parent in enumerate(tree.arc_parent.tolist()):
        weights[arc + 1] = weights[parent] + deltas[arc]
    env = np.repeat(np.array(tree.leaves, dtype=object), ROWS)
    nodes = np.array([tree.index(label) for label in env])
    z = rng.standard_normal((len(env), K))
    if features == "correlated":
        z = z @ np.linalg.cholesky(0.5 * np.eye(K) + 0.5).T
    if features == "shifted":
        z = z + rng.standard_normal((tree.num_nodes, K))[nodes]
    y = (z * weights[nodes]).sum(1) + NOISE * rng.standard_normal(len(env))
    return tree, z, y, env, changed


def log_loss(prior, tree, z, y, env, changed):
    """Mean negative log probability that the inclusion probabilities give to what is true."""
    with warnings.catch_warnings():
        # Where latents do not come to rest together the answer is that of each alone: it counts.
        warnings.simplefilter("ignore", tbr.ConvergenceWarning)
        posterior = tbr.fit(tbr.TreeModel(tree, K, "identity", prior), z, y, env, progress=False)
    pips = posterior.pips().to_numpy()[:, :K].clip(1e-4, 1 - 1e-4)
    return -np.where(changed, np.log(pips), np.log1p(-pips)).mean()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=4, help="of each of nine kinds")
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args(argv)
    found = {}
    for sizes in SIZES:
        differences = {name: [] for name in WITHOUT}
        for features in FEATURES:
            for seed in range(args.first_seed, args.first_seed + args.sets):
                data = data_set(sizes, features, seed)
                default = log_loss(tbr.SpikeSlabPrior(), *data)
                for name, changes in WITHOUT.items():
                    differences[name].append(log_loss(tbr.SpikeSlabPrior(**changes), *data))
                    differences[name][-1] -= default
        for name, values in differences.items():
            mean, error = np.mean(values), np.std(values) / math.sqrt(max(1, len(values) - 1))
            print(f"{sizes:12} without {name:22} {1e3 * mean:7.1f} ({1e3 * error:.1f})", flush=True)
            found[f"{sizes}, {name}"] = 1e3 * mean
    return found


if __name__ == "__main__":
    main()
