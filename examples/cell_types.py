"""Which branches of the cell-type taxonomy change how genes relate to electrophysiology?

1190 neurons of mouse motor cortex (Patch-seq, Scala et al. 2021): 1000 genes and 16 features of the
voltage traces measured in the same cell; the 23 leaves of the cell-type taxonomy are the
environments. All cells are fitted once. Genes come as their leading principal components, outcomes
as normal scores (rank -> Gaussian over all cells), so a change of 1 is one standard deviation.

Prints for the intercept and for every latent the arcs of the taxonomy that most likely change its
effects (PIP: posterior inclusion probability, beside the prior one that the fit has learnt) and the
genes the latent goes with; whether the data determine the latents; and which changes are selected
at a false discovery rate. How well such a fit predicts, beside other methods: ``real_outcomes.py``.

    python examples/cell_types.py                                      # three minutes
    python examples/cell_types.py --latent-dim 2 --max-outcomes 4      # one minute
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import real_data

import pyro_tbr as tbr

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "neurons_m1"
FDR = 0.05
NUM_ARCS = 4  # shown for each latent, those with the most changes
NUM_OUTCOMES = 3  # shown for each arc, the surest ones
NUM_GENES = 6


def fit(rows: real_data.Rows, x: pd.DataFrame, args: argparse.Namespace) -> tbr.Posterior:
    """The posterior of all cells."""
    # With 1190 cells the linear encoder in closed form predicts as well as one trained by SVI (mean
    # R2 0.493 and 0.492 over folds of whole mice), in less time: so one step, and none later.
    options = tbr.FitOptions(restarts=args.restarts, max_steps=1, sparse_steps=0)
    model = tbr.TreeModel(rows.tree, args.latent_dim, encoder="linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tbr.IdentificationWarning)  # printed in full below
        return tbr.fit(model, x, rows.y, rows.env, options=options, progress=False)


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
    parser.add_argument("--latent-dim", type=int, default=5)
    parser.add_argument("--components", type=int, default=30, help="principal components of genes")
    parser.add_argument("--max-outcomes", type=int, help="use only the first outcomes")
    parser.add_argument("--restarts", type=int, default=64, help="starts of the rotation search")
    args = parser.parse_args(argv)
    rows = real_data.neurons(args.data, args.max_outcomes, args.components)
    start = time.perf_counter()
    x = rows.features(np.arange(len(rows.env)))
    posterior = fit(rows, x, args)
    print(
        f"{len(rows.env)} cells, {rows.x.shape[1]} genes in {x.shape[1]} components, "
        f"{rows.y.shape[1]} outcomes, {rows.tree.num_leaves} cell types; "
        f"fit in {time.perf_counter() - start:.0f} s.\n"
        f"Any of {rows.tree.num_arcs} arcs may change any outcome; PIPs add up to an expected "
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
            genes = leading_genes(rows.x, z[latent])
            result[f"gene_correlation_{latent}"] = float(genes.abs().max())
            print("  genes: " + ", ".join(f"{gene} {r:+.2f}" for gene, r in genes.items()))
        show_arcs(own)
    report = posterior.identification()
    print(f"\n{report}")
    selected = posterior.select(fdr=FDR)
    show_selected(selected)
    return result | {
        "selected": len(selected),
        "selected_fdr": float(selected.attrs["fdr"]),
        "determined": float(report.determined),
    }


if __name__ == "__main__":
    main()
