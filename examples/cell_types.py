"""Which branches of the cell-type taxonomy change how genes relate to electrophysiology?

By default 1190 neurons of mouse motor cortex (Patch-seq, Scala et al. 2021), read from plain files:
1000 genes and 16 features of the voltage traces measured in the same cell; the 23 leaves of the
cell-type taxonomy are the environments. Your own cells come from an h5ad file: genes in ``X``, cell
types and outcomes as columns of ``obs``, the taxonomy as a table of children and parents; latents
and changes are written back into a copy of the file.

All cells are fitted once. Genes come as their leading principal components, outcomes as normal
scores (rank -> Gaussian over all cells), so a change of 1 is one standard deviation.

Prints for the intercept and for every latent the arcs of the taxonomy that most likely change its
effects (PIP: posterior inclusion probability, beside the prior one that the fit has learnt) and the
genes the latent goes with; whether the data determine the latents; and which changes are selected
at a false discovery rate.

    python examples/cell_types.py                                      # three minutes
    python examples/cell_types.py --latent-dim 2 --max-outcomes 4      # one minute
    python examples/cell_types.py --h5ad cells.h5ad --env cell_type --outcomes rheobase sag \
        --tree taxonomy.csv
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import pyro_tbr as tbr

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "neurons_m1"
FDR = 0.05
NUM_ARCS = 4  # shown for each latent, those with the most changes
NUM_OUTCOMES = 3  # shown for each arc, the surest ones
NUM_GENES = 6


class Cells(NamedTuple):
    """What is fitted: genes (N, D), outcomes (N, Q) as normal scores, types (N,), and their tree.

    ``adata`` is the object they come from, if they do.
    """

    genes: pd.DataFrame
    outcomes: pd.DataFrame
    types: pd.Series
    tree: tbr.Tree
    adata: Any = None


def neurons(folder: Path, max_outcomes: int | None) -> Cells:
    """The neurons, from the files of their folder."""
    genes, outcomes, rows = (
        pd.read_csv(folder / f"{name}.csv.gz", index_col=0)
        for name in ("features", "outcomes", "rows")
    )
    tree = tbr.Tree.from_parents(pd.read_csv(folder / "tree.csv"))
    return Cells(genes, normal_scores(outcomes.iloc[:, :max_outcomes]), rows["leaf"], tree)


def own_cells(args: argparse.Namespace) -> Cells:
    """Cells of an h5ad file, and the tree of a table of children and parents."""
    import anndata

    adata = anndata.read_h5ad(args.h5ad)
    genes, outcomes, types = tbr.from_anndata(adata, env=args.env, y=args.outcomes)
    tree = tbr.Tree.from_parents(pd.read_csv(args.tree))
    return Cells(genes, normal_scores(outcomes), types, tree, adata)


def normal_scores(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Ranks as quantiles of a Gaussian, of variance 1; several outcomes have heavy tails."""
    from scipy.stats import norm

    scores = norm.ppf((outcomes.rank().to_numpy() - 0.5) / outcomes.notna().sum().to_numpy())
    return pd.DataFrame(scores / np.nanstd(scores, 0), outcomes.index, outcomes.columns)


def leading_components(genes: pd.DataFrame, number: int) -> pd.DataFrame:
    """Scores of the cells on the principal axes of the genes, (N, number)."""
    centred = genes.to_numpy() - genes.to_numpy().mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :number]
    return pd.DataFrame(centred @ axes, genes.index, [f"component {i}" for i in range(number)])


def fit(cells: Cells, x: pd.DataFrame, args: argparse.Namespace) -> tbr.Posterior:
    """The posterior of all cells."""
    # With a thousand cells the linear encoder in closed form predicts as well as one trained by
    # SVI, in less time: so one step, and none later.
    options = tbr.FitOptions(restarts=args.restarts, max_steps=1, sparse_steps=0)
    model = tbr.TreeModel(cells.tree, args.latent_dim, encoder="linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tbr.IdentificationWarning)  # printed in full below
        return tbr.fit(model, x, cells.outcomes, cells.types, options=options, progress=False)


def leading_genes(genes: pd.DataFrame, latent: pd.Series) -> pd.Series:
    """Correlations of the genes that go most with a latent, largest first."""
    spread = (genes.std(ddof=0) * latent.std(ddof=0)).clip(lower=1e-9)  # a gene may be silent
    together = (genes - genes.mean()).T @ (latent - latent.mean()) / len(latent)
    return (together / spread).sort_values(key=abs, ascending=False).head(NUM_GENES)


def effects(changes: pd.DataFrame, with_pip: bool = True) -> str:
    """The outcomes that an arc changes: name, mean change and PIP of each."""
    pip = " (PIP {:.2f})" if with_pip else ""
    return ", ".join(f"{c.outcome} {c.mean:+.2f}" + pip.format(c.pip) for c in changes.itertuples())


def show_arcs(changes: pd.DataFrame) -> None:
    """The arcs that change a latent's effects on the most outcomes, by sums of PIPs."""
    of_arc = changes.groupby(["parent", "child"], sort=False)
    for (parent, child), expected in of_arc["pip"].sum().nlargest(NUM_ARCS).items():
        surest = of_arc.get_group((parent, child)).nlargest(NUM_OUTCOMES, "pip")
        print(f"  {parent} -> {child}, {expected:.1f} outcomes: {effects(surest)}")


def show_selected(selected: pd.DataFrame) -> None:
    """The selected changes by latent and arc, most outcomes first."""
    wrong = selected.attrs["fdr"] * len(selected)
    print(
        f"\nSelected at a false discovery rate of {FDR}: {len(selected)} changes, of which "
        f"{wrong:.1f} are expected to be wrong."
    )
    for latent, own in selected.groupby("latent", sort=False):
        print(f"{latent}:")
        arcs = sorted(own.groupby(["parent", "child"], sort=False), key=lambda arc: -len(arc[1]))
        for (parent, child), changes in arcs:
            print(f"  {parent} -> {child}: {effects(changes, with_pip=False)}")


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the example; returns its numbers by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder neurons_m1")
    parser.add_argument("--h5ad", type=Path, help="cells of your own")
    parser.add_argument("--env", default="cell_type", help="column of obs with the cell types")
    parser.add_argument("--outcomes", nargs="+", help="columns of obs with the outcomes")
    parser.add_argument("--tree", type=Path, help="their tree: a table with child and parent")
    parser.add_argument("--out", type=Path, default="with_latents.h5ad", help="file to write")
    parser.add_argument("--latent-dim", type=int, default=5)
    parser.add_argument("--components", type=int, default=30, help="principal components of genes")
    parser.add_argument("--max-outcomes", type=int, help="use only the first outcomes")
    parser.add_argument("--restarts", type=int, default=64, help="starts of the rotation search")
    args = parser.parse_args(argv)
    cells = own_cells(args) if args.h5ad else neurons(args.data, args.max_outcomes)
    start = time.perf_counter()
    x = leading_components(cells.genes, args.components)
    posterior = fit(cells, x, args)
    print(
        f"{len(x)} cells, {cells.genes.shape[1]} genes in {x.shape[1]} components, "
        f"{cells.outcomes.shape[1]} outcomes, {cells.tree.num_leaves} cell types; "
        f"fit in {time.perf_counter() - start:.0f} s.\n"
        f"Any of {cells.tree.num_arcs} arcs may change any outcome; PIPs add up to an expected "
        "number of changes.\nA change is in standard deviations of the outcome, that of a latent's "
        "effect per standard\ndeviation of the latent."
    )
    deltas, z = posterior.deltas(), posterior.encode(x)
    result = {"largest_pip": float(deltas["pip"].max())}
    for latent in ("intercept", *z.columns):
        own = deltas[deltas["latent"] == latent]
        result[f"expected_changes_{latent}"] = float(own["pip"].sum())
        print(
            f"\n{latent}: {own['pip'].sum():.1f} of {len(own)} possible changes expected, "
            f"prior PIP {own['prior_pip'].mean():.3f}"
        )
        if latent in z:
            genes = leading_genes(cells.genes, z[latent])
            result[f"gene_correlation_{latent}"] = float(genes.abs().max())
            print("  genes: " + ", ".join(f"{gene} {r:+.2f}" for gene, r in genes.items()))
        show_arcs(own)
    report = posterior.identification()
    print(f"\n{report}")
    selected = posterior.select(fdr=FDR)
    show_selected(selected)
    if cells.adata is not None:
        cells.adata.obsm["components"] = x
        tbr.to_anndata(posterior, cells.adata, obsm="components")  # obsm["X_tbr"], uns["tbr"]
        cells.adata.write_h5ad(args.out)
    return result | {
        "selected": len(selected),
        "selected_fdr": float(selected.attrs["fdr"]),
        "determined": float(report.determined),
    }


if __name__ == "__main__":
    main()
