"""Which cell type uses the latents differently, and what will a cell type without data do?

Twelve types of blood cells are the leaves of a known tree. Cells have 20 measured features, which
three hidden latents drive, and one outcome. How a latent acts on the outcome is inherited down the
tree, and changes on some of its arcs. Data are simulated, so the truth can stand beside the answer.

Prints the tree, what the fit found, how well the latents were recovered, every true change of a
latent's effect beside its posterior inclusion probability (PIP) and the prior one, predictions with
90 % intervals for cells of a type that had no data, and for a type that is not in the tree at all.

    python examples/quickstart.py
"""

from __future__ import annotations

import argparse

import numpy as np

import pyro_tbr as tbr
from pyro_tbr.evaluation import interval_coverage, match_latents, pip_auroc

PARENTS = {
    "lymphoid": "blood",
    "myeloid": "blood",
    "T cell": "lymphoid",
    "B lineage": "lymphoid",
    "innate": "lymphoid",
    "CD4 naive": "T cell",
    "CD4 memory": "T cell",
    "CD8": "T cell",
    "B naive": "B lineage",
    "B memory": "B lineage",
    "plasma cell": "B lineage",
    "NK": "innate",
    "ILC": "innate",
    "monocyte": "myeloid",
    "dendritic cell": "myeloid",
    "classical": "monocyte",
    "non-classical": "monocyte",
    "cDC": "dendritic cell",
    "pDC": "dendritic cell",
}
HELD_OUT = "CD8"
NUM_LATENTS = 3


def show_tree(tree: tbr.Tree, node: str, indent: str = "  ") -> None:
    """One line a node, children below their parent."""
    mark = "   <- held out: no data" if node == HELD_OUT else ""
    print(f"{indent}{node}{mark}")
    for child in tree.children(node):
        show_tree(tree, child, indent + "    ")


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the example; returns its numbers by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows-per-leaf", type=int, default=100, help="cells of each type")
    # Seed 0 draws a latent whose effect changes nowhere: it cannot be told from a blend (MCC 0.98).
    parser.add_argument("--seed", type=int, default=3, help="of the simulated data")
    parser.add_argument("--restarts", type=int, default=64, help="starts of the rotation search")
    args = parser.parse_args(argv)

    # 1. The tree, and data at its leaves: x (features), y (outcome), env (cell type of each row).
    tree = tbr.Tree.from_parents(PARENTS)
    sim = tbr.simulate(
        tree,
        latent_dim=NUM_LATENTS,
        rows_per_leaf=args.rows_per_leaf,
        changes="half_the_arcs",
        seed=args.seed,
    )
    x, y, env = sim.without(HELD_OUT)
    print("The tree of cell types:\n")
    show_tree(tree, tree.root)

    # 2. The model and its posterior.
    model = tbr.TreeModel(tree, latent_dim=NUM_LATENTS, encoder="linear")
    options = tbr.FitOptions(restarts=args.restarts)
    posterior = tbr.fit(model, x, y, env, options=options, progress=False)
    print(f"\nThe fit: {posterior.summary()}")

    # 3. The latents. They come back in any order and with any sign, so match them with the truth.
    z = posterior.encode(sim.x)
    match, mcc = match_latents(sim.z, z), tbr.mcc(sim.z, z)
    print(f"\nLatents: mean correlation with the true ones (MCC) {mcc:.3f}; true -> estimated:")
    for true, (found, sign) in enumerate(zip(match.permutation, match.sign, strict=True)):
        print(f"  latent {true} -> {'-' if sign < 0 else ' '}z{found}")

    # 4. The changes: the true ones beside what the posterior says, then its false alarms.
    table = posterior.deltas()
    table = table[table["latent"] != "intercept"].set_index(["parent", "child", "latent"])
    arcs = [(parent, child) for parent, child in tree.arcs if child != HELD_OUT]
    rows = {arc: row for row, arc in enumerate(tree.arcs)}
    truth, pips, lines = [], [], []
    for arc in arcs:
        for true in range(NUM_LATENTS):
            found = table.loc[(*arc, f"z{match.permutation[true]}")]
            delta = sim.deltas[rows[arc], true, 0] + 0.0  # no -0.00 in the table
            truth.append(delta != 0)
            pips.append(found["pip"])
            if delta or found["pip"] > 0.5:
                mean = found["mean"] * match.sign[true]
                numbers = f"{delta:8.2f} {mean:10.2f} {found['pip']:6.3f} {found['prior_pip']:9.3f}"
                lines.append(f"  {arc[0]:>14} -> {arc[1]:<14} {true:^6} {numbers}")
    truth, pips = np.array(truth), np.array(pips)
    auroc = pip_auroc(pips, truth)
    print("\nTrue changes of a latent's effect, and those believed in (PIP above 1/2):")
    print(f"  {'arc':>14}    {'':<14} latent    true  estimated    PIP prior PIP")
    print("\n".join(lines))
    print(
        f"  {truth.sum()} of {truth.size} places changed; mean PIP there {pips[truth].mean():.3f}, "
        f"elsewhere {pips[~truth].mean():.3f}; AUROC {auroc:.3f}"
    )
    print("  Arcs that share their evidence share a PIP: the two below the root say the same, and")
    print("  like changes on all arcs below a node look like one change above it.")

    # 5. A cell type without data: predicted from its place in the tree, with honest intervals.
    x_new, y_new, _ = sim.rows(HELD_OUT, 200, seed=1)
    at_leaf = posterior.predict(x_new, HELD_OUT, level=0.9)
    coverage = interval_coverage(y_new, at_leaf.lower, at_leaf.upper)
    print(f"\n{HELD_OUT}, a leaf without data, 90 % intervals (first 5 of 200 cells):")
    print("   truth   mean     interval")
    for i in range(5):
        interval = f"[{at_leaf.lower[i]:6.2f}, {at_leaf.upper[i]:6.2f}]"
        print(f"  {y_new[i]:6.2f} {at_leaf.mean[i]:6.2f}  {interval}")
    print(f"  coverage of the 200 intervals {coverage:.2f}; rows of one leaf share its weights, so")
    print("  they are right or wrong together: over many held-out leaves the mean is what counts")

    # 6. A cell type that is not in the tree: say where it would hang.
    grafted = tbr.NewLeaf("gamma-delta T", parent="T cell")
    at_new = posterior.predict(x_new[:1], grafted, level=0.9)
    at_known = posterior.predict(x_new[:1], "CD4 naive", level=0.9)
    print("\nThe first of these cells, if it were of another type:")
    for name, where in (("gamma-delta T, new under T cell", at_new), ("CD4 naive", at_known)):
        print(f"  {name:<32} {where.mean[0]:6.2f} [{where.lower[0]:6.2f}, {where.upper[0]:6.2f}]")

    return {
        "mcc": mcc,
        "auroc": auroc,
        "mean_pip_changed": float(pips[truth].mean()),
        "mean_pip_unchanged": float(pips[~truth].mean()),
        "coverage": coverage,
        "width_new_leaf": float(at_new.upper[0] - at_new.lower[0]),
        "width_known_leaf": float(at_known.upper[0] - at_known.lower[0]),
    }


if __name__ == "__main__":
    main()
