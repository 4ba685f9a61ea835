"""Time and memory of a whole fit whose features stay in a file, by the number of rows.

Rows of a simulation (32 leaves, 50 features, 4 latents among 12 factors, noise 0.3) are written to
a memory map in single precision, fitted, by a linear encoder, and predicted block by block. Each
size runs in a process of its own. Prints seconds of the fit and of the prediction, the memory that
both take beyond what the process had before, and the mean correlation coefficient (MCC) of the
latents of 20,000 new rows; then seconds and memory as ratios to those of the first size, by the
ratio of rows: at most 1 is linear or better.

    python examples/experiments/benchmark_stream.py --rows 100000 1000000 10000000
    python examples/experiments/benchmark_stream.py --rows 10000 100000 1000000 --seeds 0 1 2 3 4
"""

import argparse
import multiprocessing
import tempfile
import time
import warnings

import numpy as np
import pandas as pd
import torch

import pyro_tbr as tbr
from parts.streamed import (
    LATENTS,
    Memory,
    read_rows,
    simulation,
    write_rows,
)

NAMES = "fit s", "predict s", "fit MB", "predict MB", "MCC", "R2"


def measure(num_rows, seed, encoder, connection):
    """Sends what :data:`NAMES` says."""
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
        connection.send((fitted, predicted, of_fit.most, of_prediction.most, found, r2))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--encoder", default="linear")
    args = parser.parse_args(argv)
    context, table = multiprocessing.get_context("spawn"), []
    for num_rows in args.rows:
        for seed in args.seeds:
            ours, theirs = context.Pipe()
            process = context.Process(target=measure, args=(num_rows, seed, args.encoder, theirs))
            process.start()
            theirs.close()  # so that a process that dies is an error here rather than a wait
            found = dict(zip(NAMES, ours.recv(), strict=True))
            process.join()
            table.append({"rows": num_rows, "seed": seed, **found})
            text = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            print(f"{num_rows} rows, seed {seed}: {text}", flush=True)
    table = pd.DataFrame(table)
    mean, first = table.groupby("rows")[list(NAMES)].mean(), args.rows[0]
    for num_rows in args.rows[1:]:
        ratio = mean.loc[num_rows] / mean.loc[first] / (num_rows / first)
        text = ", ".join(f"{name} {ratio[name]:.2f}" for name in NAMES[:4])
        print(f"{num_rows} rows to {first}, by the ratio of rows: {text}")
    worst = table.groupby("rows")["MCC"].min().round(5).to_dict()
    print(f"worst MCC by rows: {worst}")
    return mean


if __name__ == "__main__":
    main()
