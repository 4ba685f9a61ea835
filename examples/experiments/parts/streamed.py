"""Rows of a simulation in a file, and the memory of its own that a process takes."""

import threading
from pathlib import Path

import numpy as np
import pandas as pd

import pyro_tbr as tbr

LEAVES, FEATURES, LATENTS, NUISANCE, NOISE = 32, 50, 4, 8, 0.3
_BLOCK = 3200  # rows of each leaf that are drawn at a time


class Memory:
    """The most memory of its own that the process has beyond what it had, in MB.

    Pages of a file that is mapped are not its own: the system takes them back as it needs.
    """

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
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def simulation(seed):
    """Of 32 leaves, 50 features of 12 factors, on 4 of which the outcome depends."""
    return tbr.simulate(
        num_leaves=LEAVES, latent_dim=LATENTS, num_features=FEATURES, rows_per_leaf=1,
        nuisance_dim=NUISANCE, feature_noise=0.1, noise_scale=NOISE, seed=seed,
    )  # fmt: skip


def write_rows(folder, num_rows, seed):
    """Writes x.npy (N, 50), in single precision, y.npy (N,) and leaf.npy, places of leaves (N,)."""
    sim, folder = simulation(seed), Path(folder)
    x = np.lib.format.open_memmap(
        folder / "x.npy", mode="w+", dtype=np.float32, shape=(num_rows, FEATURES)
    )
    y, leaf = np.empty(num_rows), np.empty(num_rows, dtype=np.int8)
    start, block, generator = 0, 0, np.random.default_rng(seed)
    while start < num_rows:
        each = min(_BLOCK, -(-(num_rows - start) // LEAVES))
        drawn = [sim.rows(one, each, seed=100 * block + i) for i, one in enumerate(sim.tree.leaves)]
        order = generator.permutation(LEAVES * each)[: num_rows - start]
        here = slice(start, start + len(order))
        x[here], y[here] = (np.concatenate([d[i] for d in drawn])[order] for i in (0, 1))
        leaf[here] = np.repeat(np.arange(LEAVES), each)[order]
        start, block = here.stop, block + 1
    x.flush()
    np.save(folder / "y.npy", y)
    np.save(folder / "leaf.npy", leaf)


def read_rows(folder, rows=slice(None)):
    """Some of them, the features left in the file: x, y and labels."""
    parts = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ("x", "y", "leaf"))
    x, y, leaf = (part[rows] for part in parts)
    leaves = [f"leaf{i}" for i in range(LEAVES)]
    return x, np.array(y), pd.Categorical.from_codes(np.array(leaf), leaves)
