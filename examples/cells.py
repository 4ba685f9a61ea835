"""Cells: where in a taxonomy of cell types does the meaning of gene programmes change?

By default 1190 neurons of mouse motor cortex, each with its genes and its electrophysiology (Scala
et al., Nature 2021): the folder holds ``features.csv.gz`` (cells by 1000 genes, log counts),
``outcomes.csv.gz`` (cells by features of the voltage traces), ``rows.csv.gz`` (each cell's type and
mouse) and ``tree.csv`` (child, parent). Cells of your own come from an h5ad file.

    python examples/cells.py --data neurons_m1
    python examples/cells.py --h5ad cells.h5ad --env cell_type --outcomes rheobase sag \
        --tree taxonomy.csv --groups donor
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import pyro_tbr as tbr

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "neurons_m1"
OUTCOMES = ["AP_width", "AHP", "Max_AP_num", "Rheobase"]


def neurons(folder: Path, outcomes: list[str]) -> tuple[Any, ...]:
    """Genes (N, D), outcomes (N, Q), cell types, mice, and the tree of the types."""
    genes, traces, cells = (
        pd.read_csv(folder / f"{name}.csv.gz", index_col=0)
        for name in ("features", "outcomes", "rows")
    )
    tree = tbr.Tree.from_parents(pd.read_csv(folder / "tree.csv"))
    return genes, traces[outcomes], cells["leaf"], cells["mouse"], tree


def own_cells(args: argparse.Namespace) -> tuple[Any, ...]:
    """The same of an h5ad file and a table of children and parents."""
    import anndata

    adata = anndata.read_h5ad(args.h5ad)
    genes, outcomes, types = tbr.from_anndata(adata, env=args.env, y=args.outcomes)
    groups = adata.obs[args.groups] if args.groups else None
    return genes, outcomes, types, groups, tbr.Tree.from_parents(pd.read_csv(args.tree))


def normal_scores(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Ranks as quantiles of a normal, of variance 1, as several outcomes have heavy tails."""
    from scipy.stats import norm

    shares = (outcomes.rank().to_numpy() - 0.5) / outcomes.notna().sum().to_numpy()
    scores = norm.ppf(shares)
    return pd.DataFrame(scores / np.nanstd(scores, 0), outcomes.index, outcomes.columns)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the example; returns its numbers by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the neurons")
    parser.add_argument("--h5ad", type=Path, help="cells of your own")
    parser.add_argument("--env", default="cell_type", help="column of obs with the cell types")
    parser.add_argument("--groups", help="column of obs with the donors")
    parser.add_argument("--tree", type=Path, help="table with the columns child and parent")
    parser.add_argument("--outcomes", nargs="+", default=OUTCOMES)
    parser.add_argument("--latent-dim", type=int, default=4)
    parser.add_argument("--components", type=int, default=30, help="principal components of genes")
    parser.add_argument("--restarts", type=int, default=64, help="starts of the rotation search")
    parser.add_argument("--page", type=Path, default="cells.html")
    parser.add_argument("--figure", type=Path, help="also draw the tree for the first outcome")
    args = parser.parse_args(argv)

    # 1. The data: genes as they are; the latents' loadings are then by gene.
    source = own_cells(args) if args.h5ad else neurons(args.data, args.outcomes)
    genes, outcomes, types, groups, tree = source

    # 2. The fit. Cells of one mouse are alike, so they count as fewer. With a thousand cells the
    # closed form of the encoder predicts as well as training it further does, in less time.
    model = tbr.TreeModel(tree, args.latent_dim, encoder="linear")
    options = tbr.FitOptions(
        num_components=(args.components,), max_steps=1, sparse_steps=0, restarts=args.restarts
    )
    y = normal_scores(outcomes)
    posterior = tbr.fit(model, genes, y, types, groups=groups, options=options)

    # 3. The answers: are latents determined, which genes make them, what changes where.
    print(posterior.summary())
    loadings = posterior.loadings(per="sd")
    for latent in loadings:
        top = loadings[latent].sort_values(key=abs, ascending=False).head(6)
        print(f"{latent}: " + ", ".join(f"{gene} {value:+.2f}" for gene, value in top.items()))
    selected = posterior.select(fdr=0.05)
    print(selected.to_string(max_rows=20, float_format="{:.2f}".format))
    posterior.to_html(args.page, title="Genes and outcomes along a tree of cell types")

    if args.figure:
        from pyro_tbr.plotting import plot_tree

        plot_tree(posterior, outcome=args.outcomes[0]).figure.savefig(args.figure, dpi=110)

    # 4. In words.
    changes = posterior.deltas()
    first = selected.iloc[0] if len(selected) else changes.sort_values("pip").iloc[-1]
    what = "level" if first["latent"] == "intercept" else f"dependence on {first['latent']}"
    print(
        f"\nThe surest change: on the way from {tree.describe(first['parent'])} to "
        f"{tree.describe(first['child'])} the {what} of {first['outcome']} changes by "
        f"{first['mean']:+.2f} standard deviations (probability {first['pip']:.2f}). The page is "
        f"{args.page}."
    )
    return {
        "selected": len(selected),
        "selected_fdr": float(selected.attrs["fdr"]),
        "largest_pip": float(changes["pip"].max()),
        "largest_loading": float(loadings.abs().max().max()),
    }


if __name__ == "__main__":
    main()
