"""Going on from an earlier posterior: ``fit(..., start=posterior)``.

Dense stage and rotation are skipped. The encoder is taken over, so latents keep their meaning,
order and sign, and is trained on under the sparse prior (``options.sparse_steps``); weights and
hyperparameters go on from where they stood to the optimum for the rows given. Where the earlier fit
needed a cross-fit, so does this one: the folds' encoders are trained afresh by its recipe.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pandas as pd

from pyro_tbr.data import Schema
from pyro_tbr.errors import DataError, TreeError
from pyro_tbr.heads.likelihoods import Likelihood, MixedLikelihood
from pyro_tbr.inference.encoder.cross_fit import honest_latents, is_trained
from pyro_tbr.inference.encoder.dense_stage import DenseStage, Recipe
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.encoder.training import trace_table
from pyro_tbr.inference.sparse_stage import Task, make_guide, sparse_stage
from pyro_tbr.inference.stages import Fitted
from pyro_tbr.models import TreeModel
from pyro_tbr.posterior import Posterior
from pyro_tbr.progress import stage
from pyro_tbr.tree.readers.naming import listed


def check_start(
    start: Posterior, model: TreeModel, likelihood: Likelihood, schema: Schema, dtype: str
) -> None:
    """Refuses a start whose latents or weights have no place in this fit; says all that differs.

    Raises:
        DataError: No posterior, or other latents, likelihood, encoder, features or outcomes.
        TreeError: Another tree.
    """
    if not isinstance(start, Posterior):
        raise DataError(f"start must be a pyro_tbr.Posterior, got {type(start).__name__}")
    theirs = start.model
    if theirs.basis is not None or model.basis_spec is not None:
        raise DataError(
            "start together with a basis: curves are placed by the latents of their own fit; leave "
            "start out, or give models without a basis"
        )
    if start.tree != model.tree:
        own = set(model.tree.nodes)
        other = tuple(node for node in start.tree.nodes if node not in own)
        other += tuple(node for node in model.tree.nodes if node not in set(start.tree.nodes))
        where = f"nodes of one of them only: {listed(other)}" if other else "arcs or lengths differ"
        raise TreeError(
            f"start was fitted to {start.tree!r}, the model has {model.tree!r} ({where}): give "
            "the same tree, or leave start out"
        )
    pairs = {
        "options.dtype": (start.report.options.get("dtype", dtype), dtype),
        "latent_dim": (theirs.latent_dim, model.latent_dim),
        "intercept": (theirs.intercept, model.intercept),
        "likelihood": tuple(_shape(one) for one in (theirs.likelihood, likelihood)),
        "noise": tuple(_noise(one) for one in (theirs.likelihood, likelihood)),
        "encoder": (_kind(theirs), _kind(model)),
        "number of features": (start.schema.num_features, schema.num_features),
        "features": (start.schema.feature_names, schema.feature_names),
        "outcomes": (start.schema.outcome_names, schema.outcome_names),
    }
    for name, (before, now) in pairs.items():
        if before != now:
            raise DataError(
                f"start has another {name} than this fit: {_shown(before, now)}, here "
                f"{_shown(now, before)}; make them the same, or leave start out"
            )


def _kind(model: TreeModel) -> str:
    spec = model.encoder_spec
    return spec if isinstance(spec, str) else type(spec).__name__


def _shape(likelihood: Likelihood) -> str:
    """Its class; of one for each column those of all, whatever they are given."""
    return (
        repr(likelihood) if isinstance(likelihood, MixedLikelihood) else type(likelihood).__name__
    )


def _noise(likelihood: Likelihood) -> str:
    return "by_environment" if likelihood.by_node else "common"


def _shown(value: object, other: object) -> str:
    """A value; of names only those that the other has not, if there are any."""
    if not isinstance(value, tuple):
        return "without names" if value is None else repr(value)
    own = [name for name in value if not isinstance(other, tuple) or name not in other]
    return listed(tuple(own) or value)


def go_on(task: Task, rows: StandardRows, start: Posterior) -> Fitted:
    """The stages after the rotation, from where another fit ended, which is left untouched.

    Model and rows are in the units of that fit.
    """
    options, report = task.options, start.report
    maker = DenseStage(task.model, options, task.generator, task.checkpoint)
    model = copy.deepcopy(task.model)
    if report.small_changes is False:
        model = model.without_small_changes()
    model.encoder = copy.deepcopy(start.model.encoder).to(rows.y.device)
    recipe = maker.recipes(len(rows))[0]
    recipe = Recipe(report.decay, report.num_components, recipe.steps, recipe.lr)
    with stage("dense stage", total=1):
        reference = maker.resumed(model.encoder, rows, recipe)
    folds = report.folds if options.cross_fit is None else options.cross_fit
    folds = folds if is_trained(reference) else 0
    with stage("honest latents", total=1):
        honest = honest_latents(maker, reference, rows, folds, (report.optimism, 0.0))
    guide = make_guide(task.guide_kind, model, rows, options)
    mine, theirs = model.prior_spec, start.model.prior_spec
    same_prior = type(mine) is type(theirs) and mine.description == theirs.description
    if type(guide) is type(start.guide) and same_prior:
        guide.copy_state(start.guide)
    else:  # another prior or guide: from the means alone
        root, deltas = start.guide.node_moments().mean[0], start.guide.delta_moments().mean
        guide.start(root.detach().to(rows.y), deltas.detach().to(rows.y))
    guide.to(rows.y.device)
    stats, design, trace = sparse_stage(task, model, guide, rows, honest.z, reference)
    history = report.history
    if trace is not None:  # its steps count on from those before
        new, last = trace_table({"sparse": trace}), history["step"][history["stage"] == "sparse"]
        new = new.assign(step=new["step"] + (int(last.iloc[-1]) if len(last) else 0))
        history = new if history.empty else pd.concat([history, new], ignore_index=True)
    report = replace(report, history=history, folds=honest.folds)
    return Fitted(model, guide, stats, design, report)
