"""Time and memory of a whole fit whose features stay in a file, by the number of rows.

Rows of a simulation (32 leaves, 50 features, 4 latents among 12 factors, noise 0.3) are written to
a memory map in single precision, fitted, by a linear encoder, and predicted block by block. Each
size runs in a process of its own. Prints seconds of the fit and of the prediction, the memory that
both take beyond what the process had before (of its own: pages of the file are the system's, which
takes them back as it needs), and the mean correlation coefficient (MCC) of the latents of 20,000
new rows; then seconds and memory as ratios to those of the first size, by the ratio of rows: at
most 1 is linear or better.

    python examples/experiments/benchmark_stream.py --rows 100000 1000000 10000000
    python examples/experiments/benchmark_stream.py --rows 10000 100000 1000000 --seeds 0 1 2 3 4
"""

import argparse
import multiprocessing
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import pyro_tbr as tbr

LEAVES, D, K, NUISANCE, NOISE = 32, 50, 4, 8, 0.3
BLOCK = 3200  # rows of each leaf that are drawn at a time


class Memory:
    """The most memory of its own that the process has beyond what it had, in MB."""

    def __init__(self, before=None):
        self.most, self.before = 0.0, self._now() if before is None else before

    def __enter__(self):
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ends.set()
        self._thread.join()

    def _watch(self):
        while not self._ends.wait(0.02):  # seconds
            self.most = max(self.most, self._now() - self.before)

    @staticmethod
    def _now():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def write(folder, num_rows, seed):
    """Features in a file; outcomes and labels; the simulation they are of."""
    law = {"nuisance_dim": NUISANCE, "feature_noise": 0.1, "noise_scale": NOISE}
    sim = tbr.simulate(
        num_leaves=LEAVES, latent_dim=K, num_features=D, rows_per_leaf=1, seed=seed, **law
    )
    path = Path(folder) / "x.npy"
    x = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(num_rows, D))
    y, leaf = np.empty(num_rows), np.empty(num_rows, dtype=np.int8)
    start, block, generator = 0, 0, np.random.default_rng(seed)
    while start < num_rows:
        each = min(BLOCK, -(-(num_rows - start) // LEAVES))
        drawn = [sim.rows(one, each, seed=100 * block + i) for i, one in enumerate(sim.tree.leaves)]
        order = generator.permutation(LEAVES * each)[: num_rows - start]
        here = slice(start, start + len(order))
        x[here], y[here] = (np.concatenate([d[i] for d in drawn])[order] for i in (0, 1))
        leaf[here] = np.repeat(np.arange(LEAVES), each)[order]
        start, block = here.stop, block + 1
    x.flush()
    return sim, path, y, pd.Categorical.from_codes(leaf, list(sim.tree.leaves))


def measure(num_rows, seed, encoder, connection):
    """Sends seconds of fit and prediction, MB of both, and the MCC."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", tbr.IdentificationWarning)
    with tempfile.TemporaryDirectory() as folder:
        sim, path, y, env = write(folder, num_rows, seed)
        x = np.load(path, mmap_mode="r")
        model = tbr.TreeModel(sim.tree, K, encoder)
        with Memory() as of_fit:
            start = time.perf_counter()
            posterior = tbr.fit(model, x, y, env, progress=False)
            fitted = time.perf_counter() - start
        mean = np.empty(num_rows)
        with Memory(of_fit.before) as of_prediction:
            start = time.perf_counter()
            for rows, part in posterior.predict_blocks(x, env):
                mean[rows] = part.mean
            predicted = time.perf_counter() - start
        new, _, z = sim.rows(sim.tree.leaves[0], 20_000, seed=99)
        found = tbr.mcc(z, posterior.encode(new))
        r2 = 1 - np.square(y - mean).mean() / y.var()
        connection.send((fitted, predicted, of_fit.most, of_prediction.most, found, r2))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--encoder", default="linear")
    args = parser.parse_args(argv)
    context, table = multiprocessing.get_context("spawn"), []
    names = "fit s", "predict s", "fit MB", "predict MB", "MCC", "R2"
    for num_rows in args.rows:
        for seed in args.seeds:
            ours, theirs = context.Pipe()
            process = context.Process(target=measure, args=(num_rows, seed, args.encoder, theirs))
            process.start()
            theirs.close()  # so that a process that dies is an error here rather than a wait
            found = dict(zip(names, ours.recv(), strict=True))
            process.join()
            table.append({"rows": num_rows, "seed": seed, **found})
            text = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            print(f"{num_rows} rows, seed {seed}: {text}", flush=True)
    mean = pd.DataFrame(table).groupby("rows").mean()
    first = args.rows[0]
    for num_rows in args.rows[1:]:
        ratio = mean.loc[num_rows] / mean.loc[first] / (num_rows / first)
        text = ", ".join(f"{name} {ratio[name]:.2f}" for name in names[:4])
        print(f"{num_rows} rows to {first}, by the ratio of rows: {text}")
    worst = pd.DataFrame(table).groupby("rows")["MCC"].min().round(5).to_dict()
    print(f"worst MCC by rows: {worst}")
    return mean


if __name__ == "__main__":
    main()
