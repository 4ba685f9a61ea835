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

import pandas as pd

from parts.costs import measure
from parts.spawned import spawned

BASE = {"arcs": 100, "latents": 2, "outcomes": 1}
SIZES = {"arcs": (1_000, 10_000, 100_000), "latents": (2, 4, 8, 16), "outcomes": (1, 4, 16, 64)}
SHARE = 0.2  # of the leaves that have rows, where arcs grow
NAMES = ("CPU s", "MB")


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
        first = table.loc[name].iloc[0] * size / table.loc[name].index[0]
        ratios = (row[of] / first[of] if first[of] > 0 else float("nan") for of in NAMES)
        shown = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {size} {name} | {row['CPU s']:.1f} | {row['MB']:.0f} | {shown} |")
    return table


if __name__ == "__main__":
    main()
