r"""From a table and a tree to tables of results: no programming but this file.

The table has a row a measurement: a column that names the leaf of the tree, columns of outcomes,
and features in all other numeric columns. Empty cells of outcomes are taken as missing. The tree is
a Newick file (``.nwk``, ``.tree``, ``.newick``), or a table with the columns child and parent.
Rows that belong together, such as those of one animal, are named by ``--groups``.

Writes into a folder: ``changes.csv`` (how likely and how large every change along the tree is),
``selected.csv`` (those that are taken for true at a false discovery rate of 0.05), ``latents.csv``,
``tree_with_pips.nwk`` (for FigTree and ggtree), ``posterior.tbr`` (for ``tbr.load``),
``page.html`` (all of it with plots, to look at), and ``predictions.csv`` where new rows are given:
leaves without any measurement may be among them.

    python examples/from_a_table.py rows.csv --tree tree.nwk --env species --outcomes mass \
        --latent-dim 2 --new new_rows.csv --out results
    python examples/from_a_table.py --demo                             # makes files of its own
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import pyro_tbr as tbr

NEWICK = {".nwk", ".newick", ".tree", ".tre"}


def write_demo(folder: Path) -> None:
    """Three small files as the script takes them: six species, one of them without rows."""
    tree = tbr.Tree.from_newick(
        "(((swift,martin)hirundo,(wren,tit)parus)passerine,(owl,hawk)raptor)bird;"
    )
    data = tbr.simulate(
        tree, latent_dim=2, num_features=4, num_outcomes=2, rows_per_leaf=80, noise_scale=0.3,
        changes="half_the_arcs", seed=4,
    )  # fmt: skip
    x, y, env = data.without("hawk")
    features = [f"trait{i}" for i in range(x.shape[1])]
    rows = pd.DataFrame(x, columns=features).assign(mass=y[:, 0], wing=y[:, 1], species=env)
    rows.to_csv(folder / "rows.csv", index_label="id")
    new = pd.DataFrame(data.rows("hawk", 5)[0], columns=features).assign(species="hawk")
    new.to_csv(folder / "new_rows.csv", index_label="id")
    (folder / "tree.nwk").write_text(tree.to_newick())


def read_tree(path: Path) -> tbr.Tree:
    """The tree of a file, by its ending."""
    if path.suffix in NEWICK:
        return tbr.Tree.from_newick(path)
    return tbr.Tree.from_parents(pd.read_csv(path))


def main(argv: list[str] | None = None) -> dict[str, pd.DataFrame]:
    """Runs the example; returns its tables by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, nargs="?", help="csv, the first column names the rows")
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--env", default="species", help="column with the leaf of each row")
    parser.add_argument("--outcomes", nargs="+", default=["mass", "wing"])
    parser.add_argument("--groups", help="column with what rows belong together")
    parser.add_argument("--latent-dim", type=int, default=2)
    parser.add_argument("--new", type=Path, help="csv of rows to predict, without outcomes")
    parser.add_argument("--out", type=Path, default="results")
    parser.add_argument("--restarts", type=int, default=64, help="starts of the rotation search")
    parser.add_argument("--demo", action="store_true", help="make the files, then use them")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.demo:
        write_demo(args.out)
        args.table, args.tree = args.out / "rows.csv", args.out / "tree.nwk"
        args.new = args.out / "new_rows.csv"

    # 1. The tables: features, outcomes, and the leaf of each row.
    rows = pd.read_csv(args.table, index_col=0)
    apart = [args.env, *args.outcomes, *([args.groups] if args.groups else [])]
    x = rows.drop(columns=apart).select_dtypes("number")
    tree = read_tree(args.tree)

    # 2. The fit, and whether these data determine the latents.
    model = tbr.TreeModel(tree, args.latent_dim, encoder="linear")
    posterior = tbr.fit(
        model,
        x,
        rows[args.outcomes],
        rows[args.env],
        groups=rows[args.groups] if args.groups else None,
        options=tbr.FitOptions(restarts=args.restarts),
    )
    print(posterior.summary())

    # 3. The results.
    tables = {
        "changes": posterior.deltas(),
        "selected": posterior.select(fdr=0.05),
        "latents": posterior.encode(x),
    }
    if args.new:
        new = pd.read_csv(args.new, index_col=0)
        found = posterior.predict(new[x.columns], new[args.env], level=0.9)
        tables["predictions"] = found.to_frame()
    for name, table in tables.items():
        table.to_csv(args.out / f"{name}.csv")
    (args.out / "tree_with_pips.nwk").write_text(
        posterior.tree.to_newick(posterior.pips(), style="beast")
    )
    posterior.save(args.out / "posterior.tbr")
    posterior.to_html(args.out / "page.html", title=f"{', '.join(args.outcomes)} by {args.env}")
    print(f"\nAll results are in {args.out}.")
    return tables


if __name__ == "__main__":
    main()
