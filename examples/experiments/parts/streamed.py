"""Rows of a simulation in a file, fits of them, and the memory of its own that a process takes."""

import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

import pyro_tbr as tbr

LEAVES, FEATURES, LATENTS, NUISANCE, NOISE = 32, 50, 4, 8, 0.3
NAMES = "fit s", "predict s", "fit MB", "predict MB", "MCC", "R2"
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


def measure_stream(num_rows, seed, encoder):
    """What :data:`NAMES` says."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", tbr.IdentificationWarning)
    with tempfile.TemporaryDirectory() as folder:
        write_rows(folder, num_rows, seed)
        x, y, env = read_rows(folder)
        sim = simulation(seed)
        with Memory() as of_fit:
            start = time.perf_counter()
            model = tbr.TreeModel(sim.tree, LATENTS, encoder)
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
        return fitted, predicted, of_fit.most, of_prediction.most, found, r2


def measure_rank(rank, ranks, options, folder, connection):
    """Sends seconds, MB, PIPs and predictions of the first 1,000 rows."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", tbr.IdentificationWarning)
    store = f"file://{folder}/store{ranks}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    ends = np.linspace(0, options["rows"], ranks + 1).round().astype(int)
    sim = simulation(0)
    dist.barrier()
    with Memory() as memory:
        start = time.perf_counter()
        x, y, env = read_rows(folder, slice(ends[rank], ends[rank + 1]))
        model = tbr.TreeModel(sim.tree, LATENTS, options["encoder"])
        how = {"progress": False, "options": tbr.FitOptions(dtype=options["dtype"])}
        posterior = tbr.fit(model, np.array(x), y, env, ranks="together", **how)
        seconds = time.perf_counter() - start
    x, y, env = read_rows(folder, slice(1000))
    mean = posterior.predict(x, env).mean / y.std()
    connection.send((seconds, memory.most, posterior.pips().to_numpy(), mean))
    dist.destroy_process_group()
