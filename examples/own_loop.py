"""A training loop of one's own: Pyro's SVI on minibatches, encoder and guide together.

What ``pyro_tbr.fit`` adds to such a loop is a start, a rotation of the latents to the basis in
which changes are sparse, and held-out rows that say when to stop. Where latents are known, as
here, the loop alone finds the changes: it prints every true change beside its posterior inclusion
probability (PIP) and its estimate.

    python examples/own_loop.py
"""

from __future__ import annotations

import argparse

import pyro
import torch
from pyro.infer import SVI

import pyro_tbr as tbr
from pyro_tbr.evaluation import pip_auroc


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the example; returns its numbers by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves", type=int, default=12)
    parser.add_argument("--rows-per-leaf", type=int, default=200)
    parser.add_argument("--batch", type=int, default=240, help="rows of a minibatch")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    data = tbr.simulate(
        num_leaves=args.leaves, latent_dim=2, rows_per_leaf=args.rows_per_leaf, seed=args.seed
    )
    x, y = (torch.as_tensor(part, dtype=torch.float32) for part in (data.z, data.y))
    nodes = torch.tensor([data.tree.index(label) for label in data.env])

    num_outcomes = 1 if y.dim() == 1 else y.shape[1]
    model = tbr.TreeModel(data.tree, 2, "identity", num_features=2, num_outcomes=num_outcomes)
    model.num_rows = len(x)  # what a minibatch stands for
    guide = tbr.TreeGuide(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), tbr.TreeELBO())
    generator = torch.Generator().manual_seed(args.seed)
    for epoch in range(args.epochs):
        order = torch.randperm(len(x), generator=generator)
        losses = [svi.step(x[some], nodes[some], y[some]) for some in order.split(args.batch)]
        print(f"epoch {epoch + 1}: loss a row {sum(losses) / len(losses) / len(x):.3f}")

    found = guide.delta_moments()
    inclusion, mean = found.inclusion[:, :2, 0], found.mean[:, :2, 0]
    truth = torch.as_tensor(data.deltas).reshape(len(data.tree.arcs), -1, num_outcomes)[:, :2, 0]
    print("\narc, latent: true change, PIP, estimate")
    for arc, latent in (truth != 0).nonzero().tolist():
        parent, child = data.tree.arcs[arc]
        print(
            f"{parent} -> {child}, z{latent}: {truth[arc, latent]:5.2f}, "
            f"{inclusion[arc, latent]:.2f}, {mean[arc, latent]:5.2f}"
        )
    auroc = pip_auroc(inclusion.numpy(), (truth != 0).numpy())
    print(f"\nAUROC of the PIPs: {auroc:.3f}")
    return {"loss": losses[-1] / len(x), "auroc": float(auroc)}


if __name__ == "__main__":
    main()
