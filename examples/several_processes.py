"""One fit by several processes or machines, each with its own rows.

Each process makes its own rows here; yours would read its own files. Features never leave it: sums
over rows and gradients are added up, and every process ends with the same posterior, that of one
process with all rows. The first one prints the surest changes and saves the posterior.

On one machine with two processes:

    torchrun --standalone --nproc-per-node 2 examples/several_processes.py

On two machines, the first of which is called node0 (the second says --node-rank 1):

    torchrun --nnodes 2 --nproc-per-node 1 --node-rank 0 --master-addr node0 --master-port 29500 \
        examples/several_processes.py
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
import torch.distributed as dist

import pyro_tbr as tbr


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the example; returns its numbers by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves", type=int, default=12)
    parser.add_argument("--rows-per-leaf", type=int, default=200)
    parser.add_argument("--encoder", default="linear")
    parser.add_argument("--out", help="file to save the posterior in")
    args = parser.parse_args(argv)

    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:  # torchrun has started this process
        dist.init_process_group("gloo")
    rank, number = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    data = tbr.simulate(
        num_leaves=args.leaves, latent_dim=2, num_features=10, rows_per_leaf=args.rows_per_leaf,
        feature_noise=0.2,
    )  # fmt: skip
    own = np.arange(len(data.y)) % number == rank
    model = tbr.TreeModel(data.tree, latent_dim=2, encoder=args.encoder)
    posterior = tbr.fit(
        model, data.x[own], data.y[own], data.env[own], ranks="together", progress=rank == 0
    )

    mcc = tbr.mcc(data.z, posterior.encode(data.x))
    found = {"rows": float(posterior.row_counts.sum()), "mcc": mcc}
    if rank == 0:
        print(f"{number} process(es), {found['rows']:.0f} rows, MCC of the latents {mcc:.3f}")
        print(posterior.deltas().sort_values("pip", ascending=False).head(8).to_string(index=False))
        if args.out:
            posterior.save(args.out)
    if dist.is_initialized():
        dist.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
