"""The first hour: three starts, each from raw files to a page, and how long each step takes.

- *cells*: an AnnData file of 700 blood cells and 765 genes (scanpy's ``pbmc68k_reduced``), a tree
  of ten cell types as a table, four columns of ``obs`` as outcomes; ``examples/cells.py`` does it.
- *species*: 300 species in a Newick file, a csv table with gaps; ``examples/from_a_table.py``.
- *encoder*: an encoder of one's own, a torch module, first in a loop of one's own in Pyro, then by
  ``fit``.

    python examples/experiments/first_hour.py --out first_hour
    python examples/experiments/first_hour.py --starts species
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import pyro_tbr as tbr

EXAMPLES = Path(__file__).resolve().parents[1]
BLOOD = {
    "CD4+/CD25 T Reg": "CD4 T",
    "CD4+/CD45RA+/CD25- Naive T": "CD4 T",
    "CD4+/CD45RO+ Memory": "CD4 T",
    "CD8+ Cytotoxic T": "CD8 T",
    "CD8+/CD45RA+ Naive Cytotoxic": "CD8 T",
    "CD4 T": "T",
    "CD8 T": "T",
    "T": "lymphoid",
    "CD56+ NK": "lymphoid",
    "CD19+ B": "lymphoid",
    "CD14+ Monocyte": "myeloid",
    "Dendritic": "myeloid",
    "lymphoid": "blood",
    "myeloid": "blood",
    "CD34+": "blood",
}
OUTCOMES = ("n_genes", "percent_mito", "S_score", "G2M_score")


def example(name: str):
    """The ``main`` of an example."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def cells(folder: Path, restarts: int) -> None:
    """From an h5ad file to a page."""
    import scanpy

    scanpy.datasets.pbmc68k_reduced().write_h5ad(folder / "cells.h5ad")
    pairs = pd.DataFrame(BLOOD.items(), columns=["child", "parent"])
    pairs.to_csv(folder / "blood.csv", index=False)
    example("cells")(
        ["--h5ad", str(folder / "cells.h5ad"), "--env", "bulk_labels", "--tree",
         str(folder / "blood.csv"), "--outcomes", *OUTCOMES, "--latent-dim", "3",
         "--restarts", str(restarts), "--page", str(folder / "cells.html")]
    )  # fmt: skip


def species(folder: Path, restarts: int) -> None:
    """From a Newick file and a table with gaps to a page."""
    data = tbr.simulate(
        num_leaves=300, latent_dim=2, num_features=10, num_outcomes=3, rows_per_leaf=5,
        missing=0.2, intercept_scale=0.5, noise_scale=0.5, seed=0,
    )  # fmt: skip
    (folder / "species.nwk").write_text(data.tree.to_newick())
    table = pd.DataFrame(data.x, columns=[f"trait{i}" for i in range(data.x.shape[1])])
    table[["mass", "wing", "clutch"]] = data.y
    table["species"] = data.env
    table.to_csv(folder / "species.csv", index_label="id")
    example("from_a_table")(
        [str(folder / "species.csv"), "--tree", str(folder / "species.nwk"), "--outcomes", "mass",
         "wing", "clutch", "--out", str(folder / "species"), "--restarts", str(restarts)]
    )  # fmt: skip


def encoder(folder: Path, restarts: int) -> None:
    """From a torch module to a loop of one's own, and to a page."""
    import pyro
    import torch
    from pyro.infer import SVI

    data = tbr.simulate(num_leaves=12, latent_dim=2, num_features=6, num_outcomes=2, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(6, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)
        )
    x, y = (torch.as_tensor(part, dtype=torch.float32) for part in (data.x, data.y))
    nodes = torch.tensor([data.tree.index(label) for label in data.env])
    model = tbr.TreeModel(data.tree, 2, module, num_features=6, num_outcomes=2)
    svi = SVI(model, tbr.TreeGuide(model), pyro.optim.Adam({"lr": 0.01}), tbr.TreeELBO())
    losses = [svi.step(x, nodes, y) / len(x) for _ in range(50)]
    print(f"loss a row in a loop of one's own: {losses[0]:.2f} to {losses[-1]:.2f}")
    posterior = tbr.fit(
        tbr.TreeModel(data.tree, 2, module), data.x, data.y, data.env,
        options=tbr.FitOptions(restarts=restarts),
    )  # fmt: skip
    print(posterior.summary())
    posterior.to_html(folder / "encoder.html", data.x, data.y, data.env)


STARTS = {"cells": cells, "species": species, "encoder": encoder}


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the starts; returns the seconds of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--out", type=Path, default="first_hour")
    parser.add_argument("--restarts", type=int, default=64, help="starts of the rotation search")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for name in args.starts:
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # what a user would see, on stderr
            STARTS[name](args.out, args.restarts)
        seconds[name] = time.perf_counter() - begin
    print("\nSeconds from raw file to page:")
    print(pd.Series(seconds).round(0).astype(np.int64).to_string())
    return seconds


if __name__ == "__main__":
    main()
