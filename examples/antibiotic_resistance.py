"""Is a genome of a genus without data resistant to erythromycin, and how sure can one be?

607 genomes of Firmicutes with 186 counts of resistance-related gene classes, resistant or not
(PATRIC); the environments are species on the NCBI taxonomy. All real, nothing simulated. Each genus
in turn is left out and predicted from the others, by the tree model and by pooled logistic
regression on the same splits. Random splits show nothing on this table (pooled regression has an
AUROC of 0.98 there, since near-identical genomes land on both sides), so none are reported.

Prints a table by genus, a reliability table, and in words who wins, and why.

    python examples/antibiotic_resistance.py --data ../shared/data/erythromycin_firmicutes
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import pyro_tbr as tbr

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "erythromycin_firmicutes"
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of the logistic regression, by inner folds
BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


class Genomes(NamedTuple):
    """The table: log counts, resistance, environment and genus of each genome."""

    counts: pd.DataFrame
    resistant: pd.Series
    env: pd.Series
    genus: pd.Series
    tree: tbr.Tree


def read(folder: Path) -> Genomes:
    """Reads features, phenotype and taxonomy.

    Genomes are leaves of the source's tree, one row each; the environments are their species. Five
    species have a single genome. These keep leaves of their own too: a row labelled by an inner
    node counts there, above all its descendants, and one odd genome (Listeria's) at the root of a
    clade would move them all, while on a leaf it costs one change. Ranks in which nothing
    branches are left out, since arcs in series say the same.
    """
    as_text = {"genome_id": str}  # as a number 1280.10 would become 1280.1
    counts = pd.read_csv(folder / "features.csv.gz", dtype=as_text, index_col="genome_id")
    phenotype = pd.read_csv(folder / "phenotype.csv", dtype=as_text, index_col="genome_id")
    taxonomy = pd.read_csv(folder / "tree.csv", dtype=str, keep_default_na=False)
    parent = dict(zip(taxonomy["child"], taxonomy["parent"], strict=True))
    rank = dict(zip(taxonomy["child"], taxonomy["level"], strict=True))

    def above(node: str, level: str) -> str:
        while rank[node] != level:
            node = parent[node]
        return node

    species = pd.Series([above(g, "species") for g in counts.index], counts.index)
    genus = pd.Series([above(g, "genus") for g in counts.index], counts.index)
    arcs = _without_single_children({s: parent[s] for s in _with_ancestors(species, parent)})
    resistant = phenotype["resistant"].loc[counts.index].astype(float)
    return Genomes(np.log1p(counts), resistant, species, genus, tbr.Tree.from_parents(arcs))


def _with_ancestors(nodes: pd.Series, parent: dict[str, str]) -> list[str]:
    """The nodes and all above them but the root."""
    found: dict[str, None] = {}
    for node in nodes.unique():
        while parent[node]:
            found[node] = None
            node = parent[node]
    return list(found)


def _without_single_children(parent: dict[str, str]) -> dict[str, str]:
    """Parents of a tree in which every inner node branches."""
    while True:
        children = pd.Series(list(parent.values())).value_counts()
        single = [c for c, p in parent.items() if children[p] == 1]
        if not single:
            return parent
        # The child takes its parent's place, or the parent is the root and the child is dropped.
        child, node = single[0], parent[single[0]]
        if node in parent:
            parent[child] = parent[node]
            del parent[node]
        else:
            del parent[child]


def standardised(train: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both, by mean and standard deviation of the training rows."""
    loc, scale = train.mean(), train.std().replace(0.0, 1.0)
    return (train - loc) / scale, (test - loc) / scale


def pooled_regression(x: pd.DataFrame, y: pd.Series, x_new: pd.DataFrame) -> np.ndarray:
    """Probabilities by L2 logistic regression blind to species, C by inner 5-fold AUROC."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    search = GridSearchCV(
        LogisticRegression(max_iter=5000),
        {"C": STRENGTHS},
        scoring="roc_auc",
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
    )
    return search.fit(x.to_numpy(), y.to_numpy()).predict_proba(x_new.to_numpy())[:, 1]


def scores(y: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Discrimination, accuracy and calibration of probabilities."""
    from sklearn.metrics import roc_auc_score

    p = probability.clip(1e-6, 1 - 1e-6)
    both = 0 < y.mean() < 1
    return {
        "AUROC": float(roc_auc_score(y, p)) if both else float("nan"),
        "accuracy": float(((p > 0.5) == (y > 0.5)).mean()),
        "log score": float((y * np.log(p) + (1 - y) * np.log1p(-p)).mean()),
        "Brier": float(((p - y) ** 2).mean()),
        "mean p": float(p.mean()),
    }


def reliability(y: np.ndarray, probability: np.ndarray) -> pd.DataFrame:
    """Share that is resistant among genomes with like probabilities."""
    bins = pd.cut(probability, BINS, include_lowest=True)
    frame = pd.DataFrame({"p": probability, "y": y})
    grouped = frame.groupby(bins, observed=False)
    return pd.DataFrame(
        {"genomes": grouped.size(), "mean p": grouped["p"].mean(), "resistant": grouped["y"].mean()}
    )


def calibration_error(y: np.ndarray, probability: np.ndarray) -> float:
    """Mean gap between probability and share, over the bins of ``reliability``."""
    table = reliability(y, probability).dropna()
    gap = (table["mean p"] - table["resistant"]).abs()
    return float((gap * table["genomes"]).sum() / table["genomes"].sum())


def tree_model(
    x: pd.DataFrame,
    y: pd.Series,
    env: pd.Series,
    x_new: pd.DataFrame,
    env_new: pd.Series,
    tree: tbr.Tree,
    args: argparse.Namespace,
) -> np.ndarray:
    """Probabilities by the tree model; the genus left out is in the tree, but has no rows."""
    model = tbr.TreeModel(tree, args.latent_dim, encoder="linear", likelihood="bernoulli")
    options = tbr.FitOptions(
        restarts=args.restarts,
        num_components=tuple(args.components) if args.components else None,
        max_steps=args.max_steps,
    )
    alive = x.columns[x.std() > 0]
    posterior = tbr.fit(model, x[alive], y, env, options=options, progress=False)
    return posterior.predict(x_new[alive], env_new).mean.to_numpy()


def level_gap(y: np.ndarray, genus: np.ndarray, probability: np.ndarray) -> float:
    """Mean over genomes of the gap between their genus' mean probability and resistant share."""
    frame = pd.DataFrame({"y": y, "p": probability, "genus": genus})
    means = frame.groupby("genus")[["y", "p"]].transform("mean")
    return float((means["p"] - means["y"]).abs().mean())


def _by_genus(table: pd.DataFrame) -> str:
    """Where the sum comes from: genera by which model has the better log score there."""
    gain = table["log score"].unstack().drop("all")
    gain = gain["tree model"] - gain["pooled"]
    better = ", ".join(f"{genus} ({value:+.2f})" for genus, value in gain.items() if value > 0)
    worse = ", ".join(f"{genus} ({value:+.2f})" for genus, value in gain.items() if value <= 0)
    return (
        f"Log score a genome, tree model less pooled: better at {better or 'none'}; not better at "
        f"{worse or 'none'}.\n  With {len(gain)} genera the sum is decided by the largest of them."
    )


def words(table: pd.DataFrame, gaps: dict[str, float]) -> str:
    """Who wins at genera without data, and why, from the numbers."""
    tree, pooled = table.loc[("all", "tree model")], table.loc[("all", "pooled")]
    won: dict[str, list[str]] = {"The tree model": [], "Pooled regression": [], "Neither": []}
    for score, better in (("AUROC", 1), ("accuracy", 1), ("log score", 1), ("Brier", -1)):
        gain = better * (tree[score] - pooled[score])
        name = "The tree model" if gain > 0.005 else "Pooled regression"
        name = "Neither" if abs(gain) <= 0.005 or np.isnan(gain) else name
        won[name].append(f"{score} ({tree[score]:.3f} against {pooled[score]:.3f})")
    lines = [f"{name} wins on {', '.join(scores)}." for name, scores in won.items() if scores]
    within = table["AUROC"].unstack().drop("all").mean()
    ranks = "The tree model" if within["tree model"] > within["pooled"] else "Pooled regression"
    nearer = "the tree model" if gaps["tree model"] < gaps["pooled"] else "pooled regression"
    lines += [
        f"{ranks} ranks better within a genus (mean AUROC {within['tree model']:.3f}, tree model, "
        f"and {within['pooled']:.3f}, pooled).",
        f"The level of a genus, which no count tells, is off by {gaps['tree model']:.3f} (tree "
        f"model) and {gaps['pooled']:.3f} (pooled), so {nearer} is nearer to the share.",
        _by_genus(table),
    ]
    return "\n".join(f"  {line}" for line in lines)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the example; returns its numbers by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder erythromycin_firmicutes")
    # One outcome in three informative environments cannot determine more than one latent.
    parser.add_argument("--latent-dim", type=int, default=1)
    parser.add_argument("--components", type=int, nargs="*", help="numbers of components to try")
    parser.add_argument("--genera", nargs="*", help="leave out only these (all)")
    parser.add_argument("--restarts", type=int, default=64, help="starts of the rotation search")
    parser.add_argument("--max-steps", type=int, help="steps of the dense stage")
    args = parser.parse_args(argv)
    genomes = read(args.data)
    y = genomes.resistant.to_numpy()
    print(
        f"{len(y)} genomes, {genomes.counts.shape[1]} counts, {y.mean():.3f} resistant; "
        f"environments and their genomes:\n  "
        + ", ".join(f"{env} {n}" for env, n in genomes.env.value_counts().items())
    )
    found = {name: np.full(len(y), np.nan) for name in ("tree model", "pooled")}
    start = time.perf_counter()
    lines = {}
    for genus in args.genera or list(genomes.genus.unique()):
        test = (genomes.genus == genus).to_numpy()
        x, x_new = standardised(genomes.counts[~test], genomes.counts[test])
        rows = (genomes.resistant[~test], genomes.env[~test])
        found["tree model"][test] = tree_model(
            x, *rows, x_new, genomes.env[test], genomes.tree, args
        )
        found["pooled"][test] = pooled_regression(x, rows[0], x_new)
        for name, p in found.items():
            lines[genus, name] = {
                "genomes": int(test.sum()),
                "resistant": y[test].mean(),
                **scores(y[test], p[test]),
            }
    seconds = time.perf_counter() - start
    seen = ~np.isnan(found["pooled"])
    genus = genomes.genus.to_numpy()[seen]
    found = {name: p[seen] for name, p in found.items()}
    y = y[seen]
    for name, p in found.items():
        lines["all", name] = {"genomes": len(y), "resistant": y.mean(), **scores(y, p)}
    table = pd.DataFrame(lines).T.rename_axis(["genus left out", "model"])
    table["genomes"] = table["genomes"].astype(int)
    print("\nEach genus predicted from the other genera ('mean p' beside the share 'resistant'):\n")
    print(table.to_string(float_format=lambda v: f"{v:.3f}", na_rep="-"))
    print("\nReliability over all genomes: share resistant among those with like probabilities")
    errors = {name: calibration_error(y, p) for name, p in found.items()}
    for name, p in found.items():
        print(f"\n{name} (mean gap {errors[name]:.3f}):")
        print(reliability(y, p).to_string(float_format=lambda v: f"{v:.3f}", na_rep="-"))
    print("\nWho wins at a genus without data:")
    gaps = {name: level_gap(y, genus, p) for name, p in found.items()}
    print(words(table, gaps))
    print(f"\n{seconds:.0f} s")
    result = {"seconds": seconds}
    for key, name in (("", "tree model"), ("_pooled", "pooled")):
        row = table.loc[("all", name)]
        result |= {
            f"{score.replace(' ', '_').lower()}{key}": float(row[score])
            for score in ("AUROC", "accuracy", "log score", "Brier")
        }
        result[f"calibration_error{key}"] = errors[name]
    return result


if __name__ == "__main__":
    main()
