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

import pandas as pd

from parts.spawned import spawned
from parts.streamed import NAMES, measure_stream


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--encoder", default="linear")
    args = parser.parse_args(argv)
    table = []
    for num_rows in args.rows:
        for seed in args.seeds:
            found = spawned(measure_stream, num_rows, seed, args.encoder)
            found = dict(zip(NAMES, found, strict=True))
            table.append({"rows": num_rows, "seed": seed, **found})
            text = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            print(f"{num_rows} rows, seed {seed}: {text}", flush=True)
    table = pd.DataFrame(table)
    mean, first = table.groupby("rows")[list(NAMES)].mean(), args.rows[0]
    for num_rows in args.rows[1:]:
        ratio = mean.loc[num_rows] / mean.loc[first] / (num_rows / first)
        text = ", ".join(f"{name} {ratio[name]:.2f}" for name in NAMES[:3])
        print(f"{num_rows} rows to {first}, by the ratio of rows: {text}")
    worst = table.groupby("rows")["MCC"].min().round(5).to_dict()
    print(f"worst MCC by rows: {worst}")
    return mean


if __name__ == "__main__":
    main()
