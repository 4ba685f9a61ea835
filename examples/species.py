"""Species: in which families does a way of life shape the body otherwise than in the rest?

6266 bird species in 63 families: 29 features of diet, foraging, climate and behaviour, and
logarithms of body measures (AVONET, EltonTraits, Sheard et al. 2020). The folder holds
``features.csv.gz`` and ``outcomes.csv.gz`` (species by columns), ``rows.csv.gz`` (family and genus
of each species) and ``tree.csv`` (child, parent). One family is left out, to see what is known
where there are no data.

    python examples/species.py --data birds_niche
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import pyro_tbr as tbr

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "birds_niche"
OUTCOMES = ["log_beak_length_culmen", "log_tarsus_length", "log_wing_length", "log_mass"]


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the example; returns its numbers by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the birds")
    parser.add_argument("--outcomes", nargs="+", default=OUTCOMES)
    parser.add_argument("--left-out", default="Picidae", help="family without data")
    parser.add_argument("--latent-dim", type=int, default=4)
    parser.add_argument("--species", type=int, help="at most this many of each family")
    parser.add_argument("--restarts", type=int, default=64, help="starts of the rotation search")
    parser.add_argument("--page", type=Path, default="species.html")
    args = parser.parse_args(argv)

    # 1. The data: one row a species; those of a genus are alike, so they count as fewer.
    x, y, rows = (
        pd.read_csv(args.data / f"{name}.csv.gz", index_col=0)
        for name in ("features", "outcomes", "rows")
    )
    tree = tbr.Tree.from_parents(pd.read_csv(args.data / "tree.csv"))
    rows = rows.groupby("leaf").head(args.species) if args.species else rows
    known, new = rows[rows["leaf"] != args.left_out], rows[rows["leaf"] == args.left_out]

    # 2. The fit. Tables are matched by the names of the species.
    model = tbr.TreeModel(tree, args.latent_dim, encoder="linear")
    posterior = tbr.fit(
        model,
        x.loc[known.index],
        y.loc[known.index, args.outcomes],
        known["leaf"],
        groups=known["genus"],
        options=tbr.FitOptions(restarts=args.restarts),
    )
    print(posterior.summary())

    # 3. What features do does not depend on which latents were found.
    changes = posterior.effect_changes(per="sd")
    changes = changes[changes["sd"] > 0].assign(size=changes["mean"].abs() / changes["sd"])
    changes = changes.sort_values("size", ascending=False, kind="stable")
    within = {
        child: x.loc[known.index[known["leaf"].isin(tree.descendant_leaves(child))]].std()
        for child in changes["child"].head(200).unique()
    }
    spread = x.loc[known.index].std()
    varies = [  # what a feature does where it hardly varies is not worth a sentence
        row.child in within and within[row.child][row.feature] > 0.5 * spread[row.feature]
        for row in changes.itertuples()
    ]
    changes = changes[varies]
    print("\nEffects of features that change most for their standard deviation:")
    print(changes.head(12).to_string(index=False, float_format="{:.3f}".format))

    # 4. The family without data, and the page.
    x_new, y_new = x.loc[new.index], y.loc[new.index, args.outcomes]
    prediction = posterior.predict(x_new, args.left_out, level=0.9)
    inside = (prediction.lower <= y_new) & (y_new <= prediction.upper)
    print(f"\n{args.left_out}, without data: 90 % intervals hold {inside.mean().mean():.0%}")
    posterior.to_html(args.page, x_new, y_new, args.left_out, title="Ways of life and bodies")

    # 5. In words.
    first = changes.iloc[0]
    effects = posterior.effects(first["feature"], per="sd").set_index(["node", "outcome"])["mean"]
    before, after = (10 ** effects[first[end], first["outcome"]] for end in ("parent", "child"))
    print(
        f"\nOne standard deviation more of {first['feature']} goes with {before - 1:+.0%} of "
        f"{first['outcome'].removeprefix('log_')} in {tree.describe(first['parent'])}, but with "
        f"{after - 1:+.0%} in {tree.describe(first['child'])} (probability that an effect changed "
        f"there: {first['pip']:.2f}). The page is {args.page}."
    )
    return {
        "covered": float(np.asarray(inside).mean()),
        "largest_pip": float(changes["pip"].max()),
        "before": float(before),
        "after": float(after),
    }


if __name__ == "__main__":
    main()
