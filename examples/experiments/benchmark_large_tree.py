"""Memory and time of a whole fit on a large tree, most of whose leaves have no rows.

Each size runs in a process of its own. Prints seconds, the peak memory of the process and that of
the process before the fit, and the ratio of the seconds to those of the size before: linear means
about the ratio of the sizes.

    python examples/experiments/benchmark_large_tree.py --leaves 5000 20000
"""

import argparse
import time
import warnings

import numpy as np
import torch

import pyro_tbr as tbr
from parts.spawned import peak, spawned

K, ROWS, SHARE = 5, 10, 0.2


def measure(num_leaves, encoder):
    """Seconds, MB at the peak and MB before the fit."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", tbr.IdentificationWarning)
    parents = {i: (i - 1) // 2 for i in range(1, 2 * num_leaves - 1)}
    tree = tbr.Tree.from_parents(parents)
    rng = np.random.default_rng(0)
    leaves = rng.choice(np.array(tree.leaves), int(SHARE * num_leaves), replace=False)
    env = np.repeat(leaves, ROWS)
    x = rng.standard_normal((len(env), K if encoder == "identity" else 2 * K))
    slope = np.where(env % 2 == 0, 1.0, 2.0)
    y = slope * x[:, 0] + x[:, 1] + 0.3 * rng.standard_normal(len(env))
    before, start = peak(), time.perf_counter()
    tbr.fit(tbr.TreeModel(tree, K, encoder), x, y, env, progress=False)
    return time.perf_counter() - start, peak(), before


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves", type=int, nargs="+", default=[5000, 20000])
    parser.add_argument("--encoder", default="identity")
    args = parser.parse_args(argv)
    found, last = {}, None
    for num_leaves in args.leaves:
        seconds, most, before = spawned(measure, num_leaves, args.encoder)
        ratio = "" if last is None else f", {seconds / last:.1f} times the size before"
        print(
            f"{num_leaves} leaves: {seconds:.0f} s{ratio}, peak {most:.0f} MB, {before:.0f} MB "
            "before the fit",
            flush=True,
        )
        found[f"MB at {num_leaves}"], last = most, seconds
    return found


if __name__ == "__main__":
    main()
