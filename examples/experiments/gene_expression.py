"""Real gene expression, simulated outcomes: are modules found, and cell types without data met?

700 blood cells (scanpy's bundled ``pbmc68k_reduced``) with ten cell types on the immune hierarchy.
Latents are scores of gene modules (mean standardised expression of their marker genes), so cells,
their latents and what cell types have in common are real; the outcomes are simulated from the
latents, with effects that change on few arcs, because only then is the truth known. Methods see the
leading principal components of all genes and must find the modules. The oracle is our model given
the true latents: cell types with 8 to 240 cells limit it too.

Prints, with one outcome and with several: the correlation of found and true latents (MCC), and at
cell types left out the mean squared error (less the noise), coverage of 90 % intervals, log score.

    pip install 'pyro-tbr[examples]'
    python examples/experiments/gene_expression.py --seeds 5
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import pyro_tbr as tbr
from parts.run_tables import METHODS, show
from pyro_tbr.evaluation import linear_r2, mcc, simulate

HIERARCHY = {  # child: parent; the leaves are the data set's ``bulk_labels``
    "CD34+": "blood",
    "myeloid": "blood",
    "lymphoid": "blood",
    "CD14+ Monocyte": "myeloid",
    "Dendritic": "myeloid",
    "CD19+ B": "lymphoid",
    "CD56+ NK": "lymphoid",
    "T": "lymphoid",
    "CD4 T": "T",
    "CD8 T": "T",
    "CD4+/CD25 T Reg": "CD4 T",
    "CD4+/CD45RA+/CD25- Naive T": "CD4 T",
    "CD4+/CD45RO+ Memory": "CD4 T",
    "CD8+ Cytotoxic T": "CD8 T",
    "CD8+/CD45RA+ Naive Cytotoxic": "CD8 T",
}
MODULES = {  # marker genes; those the data set lacks are left out
    "cytotoxic": ("NKG7", "GNLY", "GZMA", "GZMB", "GZMK", "PRF1", "CCL5", "CST7", "FGFBP2"),
    "antigen presentation": ("HLA-DRA", "HLA-DRB1", "HLA-DPA1", "HLA-DPB1", "HLA-DQA1", "CD74"),
    "inflammatory": ("S100A8", "S100A9", "S100A12", "LYZ", "FCN1", "VCAN", "CST3", "TYROBP"),
    "B cell": ("CD79A", "CD79B", "MS4A1", "TCL1A", "LINC00926", "BANK1"),
}
LEVEL = 0.9


class Cells(NamedTuple):
    """Components (N, R) that methods see, module scores (N, K), leaf of each cell, hierarchy."""

    x: pd.DataFrame
    z: pd.DataFrame
    env: np.ndarray
    tree: tbr.Tree


def read(components: int, modules: int) -> Cells:
    """The data set as methods see it.

    Raises:
        SystemExit: scanpy, which brings the data set, is not installed.
    """
    try:
        import scanpy
    except ImportError as error:
        raise SystemExit("scanpy brings the data: pip install 'pyro-tbr[examples]'") from error
    cells = scanpy.datasets.pbmc68k_reduced()
    genes = cells.raw.to_adata().to_df() if cells.raw is not None else cells.to_df()
    genes = (genes - genes.mean()) / genes.std()
    genes = genes.loc[:, genes.notna().all()]
    scores = {}
    for name, markers in list(MODULES.items())[:modules]:
        known = [gene for gene in markers if gene in genes]
        scores[name] = genes[known].mean(axis=1)
    z = pd.DataFrame(scores)
    left, size, _ = np.linalg.svd(genes.to_numpy(), full_matrices=False)
    x = pd.DataFrame(left[:, :components] * size[:components], genes.index)
    x.columns = [f"component {i}" for i in range(components)]
    z = (z - z.mean()) / z.std(ddof=0)
    env = cells.obs["bulk_labels"].astype(str).to_numpy()
    return Cells(x, z, env, tbr.Tree.from_parents(HIERARCHY))


def outcomes(cells: Cells, number: int, seed: int, noise: float) -> np.ndarray:
    """Outcomes (N, Q): effects that change on half the arcs, one latent each, and noise."""
    law = simulate(
        cells.tree,
        latent_dim=cells.z.shape[1],
        num_outcomes=number,
        changes="half_the_arcs",
        rows_per_leaf=1,
        seed=seed,
    )
    weights = law.node_weights[[cells.tree.index(leaf) for leaf in cells.env]]  # (N, K, Q)
    mean = np.einsum("nk,nkq->nq", cells.z.to_numpy(), weights)
    return mean + noise * np.random.default_rng([seed, 7]).standard_normal(mean.shape)


def one_run(cells: Cells, y: np.ndarray, name: str, leaves: list, seed: int, args) -> dict:
    """Numbers of one method on one draw of the outcomes."""
    train = ~np.isin(cells.env, leaves)
    x = cells.z if name == "oracle" else cells.x
    start = time.perf_counter()
    latent_dim = cells.z.shape[1]
    if name in ("ours", "oracle"):
        options = tbr.FitOptions(
            restarts=args.restarts, max_steps=args.max_steps, sparse_steps=args.sparse_steps
        )
        method = METHODS["ours"](options=options)
    else:
        method = METHODS[name]()
    fitted = method.fit(
        cells.tree,
        x[train],
        y[train],
        cells.env[train],
        latent_dim=latent_dim,
        encoder="identity" if name == "oracle" else "linear",
        seed=seed,
    )
    setting = "1 outcome" if y.shape[1] == 1 else f"{y.shape[1]} outcomes"
    row = {"setting": setting, "method": name, "seed": seed}
    row["seconds"] = time.perf_counter() - start
    if type(method).has_latents:
        z = np.asarray(fitted.encode(x))
        row |= {"mcc": mcc(cells.z.to_numpy(), z), "r2": linear_r2(cells.z.to_numpy(), z)}
    held_out = []
    for leaf in leaves:
        own = cells.env == leaf
        at = fitted.predict(x[own], leaf, level=LEVEL)
        numbers = {"held_out_mse": ((y[own] - np.asarray(at.mean)) ** 2).mean() - args.noise**2}
        if type(method).distribution:
            inside = (y[own] >= np.asarray(at.lower)) & (y[own] <= np.asarray(at.upper))
            numbers["held_out_coverage"] = inside.mean()
            table = pd.DataFrame(y[own], index=x[own].index)
            numbers["held_out_log_score"] = at.log_score(table)
        held_out.append(numbers)
    return row | pd.DataFrame(held_out).mean().to_dict()


def figure(runs: pd.DataFrame, path: Path) -> None:
    """MCC and held-out error by method, a point a seed."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for ax, metric in zip(axes, ("mcc", "held_out_mse"), strict=True):
        shown = runs.dropna(subset=[metric])
        names = list(dict.fromkeys(shown["method"]))
        for shift, (setting, part) in enumerate(shown.groupby("setting", sort=False)):
            place = [names.index(name) + 0.2 * shift for name in part["method"]]
            ax.plot(place, part[metric], "o", ms=4, alpha=0.6, label=setting)
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right")
        ax.set_xlim(-0.5, len(names) - 0.3)
        ax.set_ylabel({"mcc": "MCC", "held_out_mse": "held-out error less noise"}[metric])
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False)
    fig.tight_layout()
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(argv: list[str] | None = None) -> dict:
    """Runs the example; returns its tables by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outcomes", type=int, nargs="*", default=[1, 6])
    parser.add_argument("--methods", nargs="*", default=["oracle", *METHODS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--modules", type=int, default=3, help="number of latents")
    parser.add_argument("--components", type=int, default=20, help="of the genes")
    parser.add_argument("--held-out", type=int, default=2, help="cell types without data")
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--restarts", type=int, default=64)
    parser.add_argument("--max-steps", type=int, help="SVI steps of the dense stage")
    parser.add_argument("--sparse-steps", type=int, default=300, help="and of the sparse stage")
    parser.add_argument("--csv", type=Path, help="file for the runs, one a row")
    parser.add_argument("--figure", type=Path, help="file for the figure")
    args = parser.parse_args(argv)
    cells = read(args.components, args.modules)
    best = linear_r2(cells.z.to_numpy(), cells.x.to_numpy())
    print(f"{len(cells.env)} cells; {args.components} components hold {best:.3f} of the modules")
    runs = []
    for number in args.outcomes:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            y = outcomes(cells, number, seed, args.noise)
            order = np.random.default_rng([seed, 2]).permutation(len(cells.tree.leaves))
            leaves = [cells.tree.leaves[place] for place in order[: args.held_out]]
            runs += [one_run(cells, y, name, leaves, seed, args) for name in args.methods]
            print(f"{number} outcomes, seed {seed} done", flush=True)
    runs = pd.DataFrame(runs)
    if args.csv:
        runs.to_csv(args.csv, index=False)
    if args.figure:
        figure(runs, args.figure)
    held_out = [name for name in runs if name.startswith("held_out")]
    return show(runs, "ours", held_out) | {"runs": runs, "components_r2": best}


if __name__ == "__main__":
    main()
