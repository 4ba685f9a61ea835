"""``compare_trees``: is the tree worth it?

The same model on other trees over the same environments. The baselines of
:mod:`pyro_tbr.evaluation.baselines` are other methods, regressions of the features; here encoder,
likelihood and prior stay, so that what differs is the tree.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.data import Known, align_groups, align_known, align_training, as_given
from pyro_tbr.data.matching import Rows
from pyro_tbr.errors import DataError, IdentificationWarning, ModelWarning, TreeError
from pyro_tbr.evaluation.tree_comparison import TreeComparison
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.heads.priors import GaussianPrior
from pyro_tbr.inference import FitOptions, choose_latent_dim, fit
from pyro_tbr.inference.encoder.cross_fit import stratified_folds
from pyro_tbr.inference.paired import mean_and_error
from pyro_tbr.models import TreeModel
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.view import check_number
from pyro_tbr.progress import stage, working
from pyro_tbr.tree import Tree
from pyro_tbr.tree.readers.naming import listed

GIVEN, STAR, NO_SHARING, POOLED = "given", "star", "no sharing", "one environment"
_OWN = (GIVEN, STAR, NO_SHARING, POOLED)
_NOTHING, _WIDE = 1e-3, 10.0  # of the root weights without sharing, in standard deviations


@dataclass(frozen=True)
class _Task:
    """Rows, and how they are fitted."""

    rows: Rows
    labels: list[Hashable]
    groups: Tensor | None
    known: Known
    names: tuple[Hashable, ...]
    seed: int | None
    guide: Any
    options: FitOptions | None

    def fitted(self, candidate: _Candidate, inside: Tensor) -> Posterior:
        """A fit of one candidate to some rows."""
        env = candidate.labels(self.labels, inside)
        groups = None if self.groups is None else self.groups[inside].numpy()
        with warnings.catch_warnings():
            # Predictions are the same in any basis, and how well a tree fits is what is asked.
            warnings.simplefilter("ignore", IdentificationWarning)
            warnings.simplefilter("ignore", ModelWarning)
            return fit(
                candidate.model,
                self.rows.x[inside],
                self.outcomes(inside),
                env,
                groups=groups,
                **self.known.given(inside),
                guide=self.guide,
                seed=self.seed,
                progress=False,
                options=self.options,
            )

    def scores(self, candidate: _Candidate, inside: Tensor) -> Tensor:
        """Log scores of the rows left out of a fit, NaN without outcomes, (n,)."""
        posterior, outside = self.fitted(candidate, inside), ~inside
        given = self.known.given(outside)
        weights = given.pop("row_weights", None)
        prediction = posterior.predict(
            self.rows.x[outside], candidate.labels(self.labels, outside), seed=0, **given
        )
        found = np.asarray(prediction.log_scores(self.outcomes(outside)))
        each = torch.from_numpy(found.reshape(len(found), -1))
        if weights is not None:
            each = torch.where(
                torch.from_numpy(weights) > 0, each * torch.from_numpy(weights), torch.nan
            )
        nothing = torch.isnan(each).all(-1)
        return torch.where(nothing, torch.nan, each.nansum(-1))

    def outcomes(self, picked: Tensor) -> pd.DataFrame:
        """Outcomes of the rows picked, by the user's names."""
        assert self.rows.y is not None  # training has outcomes
        return pd.DataFrame(self.rows.y[picked].numpy(), columns=list(self.names))


@dataclass(frozen=True)
class _Candidate:
    """A model on a tree, and whether it knows of environments at all."""

    model: TreeModel
    pooled: bool = False

    def labels(self, labels: list[Hashable], picked: Tensor) -> Any:
        """Labels of the rows picked, as this model knows them."""
        if self.pooled:
            return [self.model.tree.root] * int(picked.sum())
        return [label for label, keep in zip(labels, picked.tolist(), strict=True) if keep]


def compare_trees(
    model: TreeModel,
    x: Any,
    y: Any,
    env: Any,
    trees: Mapping[str, Tree] | None = None,
    *,
    groups: Any = None,
    exposure: Any = None,
    trials: Any = None,
    y_se: Any = None,
    row_weights: Any = None,
    hold_out: str = "rows",
    num_folds: int = 4,
    guide: Any = "tree",
    seed: int | None = 0,
    progress: bool = True,
    options: FitOptions | None = None,
) -> TreeComparison:
    """Whether the tree is worth it: the model on it, and on other trees, for the same rows.

    Beside the tree that is ``"given"`` (the model's own) there are always a ``"star"``, whose
    environments all hang from the root (their weights are alike in so far as they are near those of
    the root); ``"no sharing"``, each environment on its own (normal weights around zero, intercepts
    around a common mean, of variances that are learnt; the encoder is still shared); and ``"one
    environment"``, all rows pooled. Each is fitted afresh to all rows, for its evidence, and once
    for every fold: so it takes (number of trees) x (number of folds + 1) fits.

    Args:
        model: What is believed, on the given tree; where its ``latent_dim`` is ``None`` that is
            chosen once, for all trees. What its prior says of single arcs holds for the given tree
            alone; arcs of the star are as long as the ways they stand for.
        x: Features, as in :func:`~pyro_tbr.fit`.
        y: Outcomes, likewise.
        env: Node of each row, likewise.
        trees: Other trees to compare with by name, over the same leaves.
        groups: A label for each row, as in ``fit``; rows of a group are held out together.
        exposure: As in ``fit``, and so the other three.
        trials: Likewise.
        y_se: Likewise.
        row_weights: Likewise.
        hold_out: ``"rows"``: some of every environment, which asks how much environments lend each
            other. ``"leaves"``: some leaves with all their rows, which asks what the tree says of
            leaves without data; rows at inner nodes are never held out.
        num_folds: Folds; each row (or leaf) is held out once.
        guide: As in ``fit``.
        seed: Of folds and fits.
        progress: As in ``fit``.
        options: As in ``fit``.

    Returns:
        Evidence, log scores and their differences to the given tree.

    Raises:
        DataError: An unknown ``hold_out``, too few leaves for the folds, or what ``fit`` refuses.
        TreeError: A tree of ``trees`` has other leaves.

    Example::

        found = tbr.compare_trees(model, x, y, env, {"by markers": other}, hold_out="leaves")
        print(found.best, found.table.loc["star", ["evidence", "difference", "difference_se"]])
    """
    if not isinstance(model, TreeModel):
        raise DataError(
            f"model must be a pyro_tbr.TreeModel, got {type(model).__name__}: "
            "compare_trees(model, x, y, env)"
        )
    if hold_out not in ("rows", "leaves"):
        raise DataError(f"hold_out={hold_out!r} is not known: use 'rows' or 'leaves'")
    check_number(num_folds, "num_folds", 2)
    others = _checked(trees, model.tree)
    check = model.likelihood.check
    rows, schema = align_training(model.tree, x, y, env, check=check, learns=False)
    given = as_given(exposure, trials, y_se, row_weights)
    known = align_known(schema, given, model.likelihood.takes, rows.order)
    if model.chooses_latent_dim:
        how: dict[str, Any] = {"groups": groups, "seed": seed, "options": options, **given}
        choice = choose_latent_dim(model, x, y, env, progress=progress, **how)
        model = model.with_latent_dim(choice.best)
    labels = [model.tree.nodes[place] for place in rows.env_index.tolist()]
    index = None if groups is None else align_groups(groups, rows.env_index, rows.order)
    fold, unit = _folds(model.tree, rows.env_index, index, hold_out, num_folds, seed or 0)
    task = _Task(rows, labels, index, known, schema.outcome_names, seed, guide, options)
    candidates = _candidates(model, rows, others)
    every = torch.ones_like(fold, dtype=torch.bool)
    scores, evidence = {}, {}
    with working("compare_trees", show=progress, plan=dict.fromkeys(candidates, 1.0)):
        for name, candidate in candidates.items():
            with stage(name, total=num_folds + 1):
                with stage(f"fit 1 of {num_folds + 1}", total=1):
                    posterior = task.fitted(candidate, every)
                    evidence[name] = posterior.guide.elbo(posterior.stats).item()
                score = torch.full((len(fold),), torch.nan, dtype=torch.float64)
                for f in range(num_folds):
                    with stage(f"fit {f + 2} of {num_folds + 1}", total=1):
                        if bool((fold == f).any()):
                            score[fold == f] = task.scores(candidate, fold != f)
            scores[name] = score
    arcs = {n: 0 if one.pooled else one.model.tree.num_arcs for n, one in candidates.items()}
    table = _table(scores, evidence, arcs, unit)
    frame = pd.DataFrame({name: score.numpy() for name, score in scores.items()}, rows.order.index)
    return TreeComparison(table, frame, hold_out, int(num_folds))


def _checked(trees: Mapping[str, Tree] | None, tree: Tree) -> dict[str, Tree]:
    """The user's trees, over the same leaves."""
    if trees is None:
        return {}
    if not isinstance(trees, Mapping):
        raise DataError(f"trees={trees!r} is no dict from names to trees: {{'by markers': tree}}")
    for name, other in trees.items():
        if name in _OWN or not isinstance(name, str):
            raise DataError(
                f"trees: the name {name!r} cannot be used: give a text other than {listed(_OWN)}"
            )
        if not isinstance(other, Tree):
            raise DataError(f"trees[{name!r}] is a {type(other).__name__}, no pyro_tbr.Tree")
        missing = [leaf for leaf in tree.leaves if other.find(leaf) is None]
        more = [leaf for leaf in other.leaves if leaf not in set(tree.leaves)]
        if missing or more:
            raise TreeError(
                f"trees[{name!r}] has other leaves than the model's tree: it lacks "
                f"{listed(missing) or 'none'}, and has besides {listed(more) or 'none'}"
            )
    return dict(trees)


def _candidates(model: TreeModel, rows: Rows, others: dict[str, Tree]) -> dict[str, _Candidate]:
    """Models by the name of their tree, the given one first."""
    plain, star = model.prior_spec.without_arcs(), _star(model.tree, rows.env_index)
    found = {
        GIVEN: _Candidate(model),
        STAR: _Candidate(model.with_tree(star, plain)),
        NO_SHARING: _Candidate(model.with_tree(star, _alone(model, rows))),
        POOLED: _Candidate(model.with_tree(model.tree, plain), pooled=True),
    }
    used = [model.tree.nodes[place] for place in rows.env_index.unique().tolist()]
    for name, tree in others.items():
        missing = [label for label in used if tree.find(label) is None]
        if missing:
            raise TreeError(
                f"trees[{name!r}] lacks inner nodes that rows are at: {listed(missing)}; label "
                "these rows by leaves, or add the nodes"
            )
        found[name] = _Candidate(model.with_tree(tree, plain))
    return found


def _star(tree: Tree, env_index: Tensor) -> Tree:
    """Every leaf, and every inner node with rows, right below the root."""
    inner = (tree.nodes[place] for place in env_index.unique().tolist() if place)
    nodes = list(dict.fromkeys([*tree.leaves, *inner]))
    lengths = None
    if tree.has_lengths:
        own = [float(length or 0.0) for length in tree.lengths]
        lengths = [math.fsum(own[arc] for arc in tree.path(node)) for node in nodes]
    return Tree([tree.root, *nodes], [0] * len(nodes), lengths)


def _alone(model: TreeModel, rows: Rows) -> GaussianPrior:
    """Weights of environments around zero, intercepts around any mean, of learnt variances."""
    y = rows.y
    assert y is not None
    centre, spread = torch.ones(y.shape[1]).double(), torch.ones(y.shape[1]).double()
    if model.likelihood.exact:
        centre = y.nanmean(0).abs()
        square = (y - y.nanmean(0)).square().nanmean(0).sqrt()
        spread = torch.where(square > 0, square, 1.0)
    latents = torch.ones(model.latent_dim).double()
    if model.encoder_spec == "identity":
        scale = torch.as_tensor(rows.x).std(0)
        latents = torch.where(scale > 0, scale, 1.0)
    root = _NOTHING * spread / latents[:, None]
    if model.intercept:
        root = torch.cat([root, _WIDE * (centre + spread)[None]])
    return GaussianPrior(root_scale=root)


def _folds(
    tree: Tree,
    env_index: Tensor,
    groups: Tensor | None,
    hold_out: str,
    num_folds: int,
    seed: int,
) -> tuple[Tensor, Tensor | None]:
    """Fold of each row, -1 where it is never held out, and which rows count as one; (N,) each."""
    generator = torch.Generator().manual_seed(seed)
    if hold_out == "rows":
        alike = None if groups is None else RowGroups(groups, torch.zeros(1))
        return stratified_folds(env_index, num_folds, generator, alike), groups
    leaves = torch.tensor(sorted(set(tree.leaf_index.tolist()) & set(env_index.tolist())))
    if len(leaves) < num_folds:
        raise DataError(
            f"hold_out='leaves' in {num_folds} folds, but {len(leaves)} leaves have rows: give "
            "num_folds no more than that"
        )
    of_node = torch.full((tree.num_nodes,), -1)
    order = leaves[torch.randperm(len(leaves), generator=generator)]
    of_node[order] = torch.arange(len(leaves)) % num_folds
    return of_node[env_index], env_index


def _table(
    scores: dict[str, Tensor], evidence: dict[str, float], arcs: dict[str, int], unit: Tensor | None
) -> pd.DataFrame:
    """A row a tree; see :class:`TreeComparison`."""
    held = ~torch.isnan(torch.stack(list(scores.values()))).any(0)
    unit = None if unit is None else unit[held]
    rows = {}
    for name, score in scores.items():
        mean, error = mean_and_error(score[held], unit)
        difference, of_difference = mean_and_error((score - scores[GIVEN])[held], unit)
        rows[name] = {
            "arcs": arcs[name],
            "evidence": evidence[name] - evidence[GIVEN],
            "log_score": mean,
            "se": error,
            "difference": difference,
            "difference_se": of_difference,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("tree")
