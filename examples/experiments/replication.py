"""Real outcomes: does one half of the mice, or genera, find what the other half says has changed?

Groups (mice, genera) are split at random into two halves, leaf by leaf alike, many times. A fit to
one half gives latents, changes and their inclusion probabilities (PIPs). The other half is then
asked for the sign of every change: its rows get the first half's latents, and a regression along
the tree with normal changes everywhere (``parts/other_half.py``) is fitted to its outcomes, the
same for all methods. The sign of an estimate there is that of the unbiased one. Both directions.

What is independent of what: encoder, changes, signs and PIPs come from the first half's rows alone;
the estimates from the other half's outcomes alone, of other mice or genera, given the encoder. All
rows together decide only how the birds' features and all outcomes are scaled (normal scores of the
neurons), and, before us, the tree, the genes and which type a neuron is.

A sign agrees by chance in half of the cases, and not always where a change is real, as half of the
rows do not show every one. So for each draw from the first half's posterior outcomes of the other
half's rows are drawn (with the noise of a group in common), and estimated as the real ones are: the
share of draws in which the sign agrees is what the posterior expects, and a true posterior's
expectation is what is observed. ``PIP r + (1 - PIP) / 2``, r being the share among draws with the
gate on, is a simpler one: where the gate is off either sign is as likely. It is too low, since
then too the arc changes a little, or one nearby has changed, which the estimate cannot tell from
it, and both have the sign that the first half saw.

Beside ours (``ours_groups`` is told which rows are of one mouse or genus) stand as many of L1-TBR's
changes and of the dense tree's, the largest. Standard errors: see ``parts/agreement.py``.

    python examples/experiments/replication.py neurons --splits 10 --csv neurons.csv
    python examples/experiments/replication.py birds --splits 4 --csv birds.csv
    python examples/experiments/replication.py --read neurons.csv birds.csv --figure both.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import pyro_tbr as tbr
from parts import real_data
from parts.agreement import KEYS, by_pip, compared, figure, largest, with_all_methods
from parts.other_half import OtherHalf, Rows, learn_scales
from parts.run_tables import markdown
from pyro_tbr.evaluation import baselines
from pyro_tbr.evaluation.baselines.base import with_intercept
from pyro_tbr.heads.guide import informed_arcs
from pyro_tbr.tree import path_sum
from real_outcomes import CLOSED_FORM, DATA, FDR, FOLDERS, LATENTS

# As the tables of real outcomes have them; the first is drawn.
METHODS = {
    "neurons": ("ours", "l1_tbr", "dense_tree"),
    "birds": ("ours_groups", "l1_tbr", "dense_tree_groups"),
}
READ = {"neurons": real_data.neurons, "birds": real_data.birds}


def method(name: str, args: argparse.Namespace) -> baselines.Baseline:
    """As ``real_outcomes.py`` has them."""
    if name == "l1_tbr":
        return baselines.L1TBR(restarts=args.l1_restarts)
    if name.startswith("dense_tree"):
        return baselines.DenseTree()
    options = tbr.FitOptions(restarts=args.restarts, **CLOSED_FORM)
    return baselines.SparseTree(prior=tbr.SpikeSlabPrior(gates=args.gates), options=options)


def other_half(
    data: real_data.Rows, fitted: baselines.FittedBaseline, x: pd.DataFrame, rows: np.ndarray
) -> OtherHalf:
    """The estimates of some rows, in the latents of a fit to others."""
    features = torch.tensor(x.iloc[rows].to_numpy(), dtype=torch.get_default_dtype())
    with torch.no_grad():
        latents = fitted.rule.to_latents(fitted.features(features)).double()
    labels = pd.DataFrame({"leaf": data.env[rows], "group": data.group[rows]})
    own = Rows(
        with_intercept(latents),
        torch.tensor(data.y.iloc[rows].to_numpy()),
        torch.tensor([data.tree.index(leaf) for leaf in data.env[rows]]),
        torch.tensor(labels.groupby(["leaf", "group"]).ngroup().to_numpy()),
    )
    return OtherHalf(data.tree, own, learn_scales(data.tree, own))


def expectations(
    fitted: baselines.FittedBaseline,
    half: OtherHalf,
    estimate: torch.Tensor,
    sign: torch.Tensor,
    draws: int,
    seed: int,
) -> dict[str, torch.Tensor]:
    """What the posterior says of the other half's estimates, (A, W, Q) each.

    ``expected``: probability that the sign agrees. ``gate``: that the gate is on, and
    ``gate_agrees`` that both are so. ``expected_size``: mean of the estimate towards the sign.
    ``covered``: whether the real estimate is in the interval of level 0.9.
    """
    posterior = fitted.rule.posterior
    drawn = {name: torch.as_tensor(v) for name, v in posterior.sample(draws, seed=seed).items()}
    weights = path_sum(posterior.tree, drawn["root_weights"], drawn["deltas"], event_dim=2)
    weights = weights * fitted.scaling.scale
    weights[..., -1, :] += fitted.scaling.loc
    correlation = posterior.report.group_correlation
    if correlation is None:
        correlation = torch.zeros(weights.shape[-1])
    noise = drawn["noise_scale"] * fitted.scaling.scale
    estimates = half.changes(half.replicate(weights, noise, correlation.double(), seed))
    agrees, gates = (estimates.sign() == sign).double(), drawn["gates"].double()
    low, high = (estimates.quantile(end, dim=0) for end in (0.05, 0.95))
    return {
        "expected": agrees.mean(0),
        "gate": gates.mean(0),
        "gate_agrees": (gates * agrees).mean(0),
        "expected_size": estimates.mean(0) * sign,
        "covered": ((estimate >= low) & (estimate <= high)).double(),
    }


def one_direction(
    data: real_data.Rows,
    name: str,
    first: np.ndarray,
    second: np.ndarray,
    seed: int,
    args: argparse.Namespace,
) -> pd.DataFrame:
    """The changes that the first rows find, and whether the second rows' estimates agree."""
    x = data.features(first)
    fitted = method(name, args).fit(
        data.tree,
        x.iloc[first],
        data.y.iloc[first],
        data.env[first],
        latent_dim=args.latent_dim or LATENTS[args.name],
        seed=seed,
        groups=data.group[first] if name.endswith("_groups") else None,
    )
    half = other_half(data, fitted, x, second)
    found = fitted.deltas().rename(columns={"mean": "change"})
    shape = (data.tree.num_arcs, half.rows.design.shape[1], data.y.shape[1])
    sign = torch.tensor(found["change"].to_numpy()).reshape(shape).sign()
    estimate = half.changes(half.rows.y[None])[0]
    found["agrees"] = (estimate.sign() == sign).flatten().numpy()
    found["size"] = (estimate * sign).flatten().numpy()
    if isinstance(fitted.baseline, baselines.SparseTree):
        posterior = fitted.rule.posterior
        found["pip"] = posterior.deltas()["pip"].to_numpy()
        chosen = posterior.select(fdr=FDR)
        chosen["outcome"] = chosen["outcome"].map(
            dict(zip(posterior.outcome_names, data.y.columns, strict=True))
        )
        index = pd.MultiIndex.from_frame(found[KEYS])
        found["selected"] = index.isin(pd.MultiIndex.from_frame(chosen[KEYS]))
        of_posterior = expectations(fitted, half, estimate, sign, args.draws, seed)
        for column, value in of_posterior.items():
            found[column] = value.flatten().numpy()
    # A change below which one of the halves has no rows is not estimated.
    nodes = torch.tensor([data.tree.index(leaf) for leaf in data.env[first]]), half.rows.node
    counts = [torch.bincount(at, minlength=data.tree.num_nodes) for at in nodes]
    informed = torch.stack([informed_arcs(data.tree, count) for count in counts]).all(0)
    kept = informed[:, None, None].expand(shape).flatten().numpy()
    found["kind"] = np.where(found["latent"] == "intercept", "intercepts", "slopes")
    return found[kept & (found["change"] != 0).to_numpy()]


def replicate(args: argparse.Namespace) -> pd.DataFrame:
    """All splits of a data set: a row a change."""
    data = READ[args.name](args.data or DATA / FOLDERS[args.name], args.max_outcomes)
    if args.components:
        data = data._replace(components=args.components)
    found: list[pd.DataFrame] = []
    for seed in range(args.first_seed, args.first_seed + args.splits):
        for direction, (first, second) in enumerate(real_data.whole_groups(data, seed, folds=2)):
            ours = None
            for name in args.methods or METHODS[args.name]:
                start = time.perf_counter()
                changes = one_direction(data, name, first, second, seed, args)
                if "pip" in changes and ours is None:
                    ours = changes
                if "pip" not in changes:
                    changes = largest(changes, ours)
                key = {"data": args.name, "split": seed, "direction": direction, "method": name}
                found.append(changes.assign(**key))
                seconds = time.perf_counter() - start
                print(f"  split {seed}, {direction}, {name}: {seconds:.0f} s", flush=True)
            if args.csv:  # what is done is kept
                pd.concat(found).to_csv(args.csv, index=False)
    return pd.concat(found, ignore_index=True)


def main(argv: list[str] | None = None) -> dict:
    """Runs the example; returns its tables by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=READ, nargs="?", help="with --read: none")
    parser.add_argument("--data", type=Path, help="folder of the data set")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*", help=f"ours first; by default {METHODS}")
    parser.add_argument("--latent-dim", type=int, help=f"by default {LATENTS}")
    parser.add_argument("--components", type=int, help="of the neurons' genes (30)")
    parser.add_argument("--max-outcomes", type=int, help="only the first outcomes")
    parser.add_argument("--restarts", type=int, default=16, help="of the rotation search")
    parser.add_argument("--gates", default="separate", help="of ours, see SpikeSlabPrior")
    parser.add_argument("--l1-restarts", type=int, default=8, help="of L1-TBR")
    parser.add_argument("--draws", type=int, default=200, help="of outcomes of the other half")
    parser.add_argument("--csv", type=Path, help="file for the changes")
    parser.add_argument("--read", type=Path, nargs="*", help="files of --csv in place of fits")
    parser.add_argument("--figure", type=Path, help="file for the figure, a panel a data set")
    args = parser.parse_args(argv)
    if (args.name is None) == (args.read is None):
        parser.error("give the name of a data set, or --read")
    changes = pd.concat(map(pd.read_csv, args.read)) if args.read else replicate(args)
    result = {
        "changes": changes,
        "by_pip": by_pip(changes),
        "selected": compared(changes[changes["pip"].notna()]),
        "compared": compared(with_all_methods(changes)),
    }
    print("\nSigns that agree, by PIP:\n\n" + markdown(result["by_pip"], 3))
    print("\nThe surest changes of ours:\n\n" + markdown(result["selected"], 3))
    print("\nAs many of others, the largest:\n\n" + markdown(result["compared"], 3))
    if args.figure:
        drawn = {name: methods[0] for name, methods in METHODS.items()}
        figure(result["by_pip"], drawn, args.figure)
    return result


if __name__ == "__main__":
    main()
