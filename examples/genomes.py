"""Genomes: is a resistance gene worth as much in every species, and in one never tested?

607 genomes of Firmicutes, counts of 186 classes of genes, and whether each is resistant to
erythromycin (PATRIC, by way of DendroNet). The folder holds ``features.csv.gz``, ``phenotype.csv``
(by genome) and ``tree.csv`` (child, parent, level: a taxonomy with the genomes at its tips). A
genus is left out: random halves of this table hold near copies of the same genomes.

    python examples/genomes.py --data erythromycin_firmicutes
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import pyro_tbr as tbr

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "erythromycin_firmicutes"
TIPS = "genome_id"  # the level of the taxonomy below the environments


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the example; returns its numbers by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the genomes")
    parser.add_argument("--left-out", default="Clostridioides", help="genus without data")
    parser.add_argument("--components", type=int, default=20, help="principal components")
    parser.add_argument("--restarts", type=int, default=64, help="starts of the rotation search")
    parser.add_argument("--page", type=Path, default="genomes.html")
    args = parser.parse_args(argv)

    # 1. The data. Ids are text: as a number 1280.10 would become 1280.1.
    text = {"genome_id": str}
    counts = pd.read_csv(args.data / "features.csv.gz", dtype=text).set_index("genome_id")
    x = np.log1p(counts)
    y = pd.read_csv(args.data / "phenotype.csv", dtype=text).set_index("genome_id")["resistant"]
    taxonomy = pd.read_csv(args.data / "tree.csv", dtype=str)
    species = taxonomy[taxonomy["level"] == TIPS].set_index("child")["parent"].loc[x.index]
    tree = tbr.Tree.from_parents(taxonomy[taxonomy["level"] != TIPS][["child", "parent"]])
    left_out = species.isin(tree.descendant_leaves(args.left_out))

    # 2. The fit: one latent, as one outcome at a few species determines no more.
    model = tbr.TreeModel(tree, 1, encoder="linear", likelihood="bernoulli")
    options = tbr.FitOptions(num_components=(args.components,), restarts=args.restarts)
    alive = x.columns[x[~left_out].std() > 0]
    x, known = x[alive], ~left_out
    posterior = tbr.fit(model, x[known], y[known], species[known], options=options)
    print(posterior.summary())

    # 3. Which genes speak for resistance, on the scale of the logit, where most genomes are.
    common = species[known].value_counts().index[0]
    effects = posterior.effects(nodes=common, per="sd")
    effects = effects.sort_values("mean", key=abs, ascending=False, kind="stable")
    print(f"\n{common}: odds of resistance for one standard deviation more of a class of genes")
    for row in effects.head(5).itertuples():
        ends = " to ".join(f"{np.exp(end):.2f}" for end in (row.lower, row.upper))
        print(f"  {row.feature}: times {np.exp(row.mean):.2f} (90 %: {ends})")

    # 4. The genus without data, and the page.
    prediction = posterior.predict(x[left_out], species[left_out])
    score = prediction.log_score(y[left_out])
    share = float(y[left_out].mean())
    print(
        f"\n{args.left_out}, without data: {share:.0%} resistant, {prediction.mean.mean():.0%} "
        f"predicted; log score {score:.2f}, of always saying 1/2 {np.log(0.5):.2f}"
    )
    posterior.to_html(
        args.page, x[left_out], y[left_out], species[left_out], title="Resistance to erythromycin"
    )

    # 5. In words.
    surest = posterior.deltas().sort_values("pip").iloc[-1]
    width = float((prediction.upper - prediction.lower).mean())
    what = "level of resistance" if surest["latent"] == "intercept" else "worth of the genes"
    enough = "can be told" if width < 0.5 else "cannot be told"
    print(
        f"\nThe {what} changes most surely on the way from {tree.describe(surest['parent'])} to "
        f"{tree.describe(surest['child'])} (probability {surest['pip']:.2f}, prior "
        f"{surest['prior_pip']:.2f}), and so the resistance of a {args.left_out} {enough} from "
        f"that of its relatives. The page is {args.page}."
    )
    return {"log_score": score, "largest_pip": float(surest["pip"]), "width": width}


if __name__ == "__main__":
    main()
