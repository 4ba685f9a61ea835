"""Time and memory of a fit by several processes, each with its own rows, and whether it is one fit.

The rows of ``benchmark_stream`` are shared out evenly; each process reads its part into memory and
all fit together (``ranks="together"``). Prints for every number of processes the seconds, the most
memory of its own that a process takes beyond what it had before, ratios of both to one process, and
how far inclusion probabilities (PIPs) and predictions (in standard deviations of the outcome) are
from those of one process.

    python examples/experiments/benchmark_ranks.py --rows 1000000 --ranks 1 2 4
    python examples/experiments/benchmark_ranks.py --rows 100000 --ranks 1 2 --encoder mlp
"""

import argparse
import multiprocessing
import tempfile
from pathlib import Path

import numpy as np

from parts.streamed import measure_rank, write_rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--encoder", default="linear")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    context, found = multiprocessing.get_context("spawn"), {}
    with tempfile.TemporaryDirectory() as folder:
        write_rows(folder, args.rows, 0)
        for ranks in args.ranks:
            pipes = [context.Pipe() for _ in range(ranks)]
            processes = [
                context.Process(target=measure_rank, args=(rank, ranks, vars(args), folder, theirs))
                for rank, (_, theirs) in enumerate(pipes)
            ]
            for process, (_, theirs) in zip(processes, pipes, strict=True):
                process.start()
                theirs.close()  # so that a process that dies is an error here rather than a wait
            results = [ours.recv() for ours, _ in pipes]
            for process in processes:
                process.join()
            Path(folder, f"store{ranks}").unlink(missing_ok=True)
            seconds, memory = (max(result[i] for result in results) for i in (0, 1))
            found[ranks] = (seconds, memory, *results[0][2:])
            one = found[args.ranks[0]]
            pairs = zip(found[ranks][2:], one[2:], strict=True)
            apart = [np.abs(ours - theirs).max() for ours, theirs in pairs]
            print(
                f"{ranks} process(es): {seconds:.1f} s ({seconds / one[0]:.2f}), {memory:.0f} MB "
                f"({memory / one[1]:.2f}), PIPs {apart[0]:.2g} and predictions {apart[1]:.2g} "
                "apart",
                flush=True,
            )
    return {ranks: numbers[:2] for ranks, numbers in found.items()} | {"apart": apart}


if __name__ == "__main__":
    main()
