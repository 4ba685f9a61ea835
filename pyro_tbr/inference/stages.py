"""The stages of a fit in order, for rows in the units of training."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads import Guide, Statistics
from pyro_tbr.inference.encoder.cross_fit import honest_latents, optimism, stratified_folds
from pyro_tbr.inference.encoder.dense_stage import DenseFit, DenseStage, Recipe
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.encoder.training import FitTrace, trace_table
from pyro_tbr.inference.rotating import ROTATION, rotated
from pyro_tbr.inference.rotation.basis import estimated
from pyro_tbr.inference.rotation.choice import widened
from pyro_tbr.inference.rotation.reference import ReferencePoint, reference_point
from pyro_tbr.inference.small_changes import weighed
from pyro_tbr.inference.sparse_stage import Task, make_guide, sparse_stage
from pyro_tbr.models import LinearEncoder, TreeModel
from pyro_tbr.posterior import FitReport
from pyro_tbr.progress import detail, stage

# Below this many rows nothing is held out: the choice would be noise.
_LEAST_ROWS_TO_HOLD_OUT = 40


class Fitted(NamedTuple):
    """What the stages leave: a guide at its optimum, statistics and rows in the final latents."""

    model: TreeModel
    guide: Guide
    stats: Statistics
    design: Tensor
    report: FitReport
    recipe: Recipe | None = None  # of an encoder that was trained


def run(task: Task, rows: StandardRows) -> Fitted:
    """Dense stage, honest latents, rotation, sparse stage."""
    maker = DenseStage(task.model, task.options, task.generator, task.checkpoint)
    model = copy.deepcopy(task.model)
    if not model.encoder.trainable:
        with stage("dense stage", total=1):
            dense = maker.fit(rows, maker.recipes(len(rows))[0])
        root, deltas = dense.guide.node_moments().mean[0], dense.guide.delta_moments().mean
        with stage("reference point"):
            offset, cov = _reference_point(dense)
        model.encoder.set_output(offset, torch.eye(len(offset)).to(offset))
        if model.intercept:  # seen from the reference point
            root[-1] += torch.einsum("k,kq->q", offset.to(root), root[:-1])
            deltas[:, -1] += torch.einsum("k,akq->aq", offset.to(root), deltas[:, :-1])

        def begun(model: TreeModel) -> Guide:
            guide = make_guide(task.guide_kind, model, rows, task.options)
            guide.start(root.to(rows.y), deltas.to(rows.y), sparse=False)
            return guide

        design = model.design(model.encoder(rows.x))
        with stage("sparse stage", total=1):
            model, guide, stats, small = weighed(task, model, begun, design, rows)
        scale = model.encoder.latent_units.scale
        cov = (scale.unsqueeze(1) * cov * scale).cpu()
        report = FitReport(rank=model.latent_dim, small_changes=small, reference_cov=cov)
        return Fitted(model, guide, stats, design, report)
    with stage("dense stage", plan={"choice": 60, "all rows": 40}):
        reference, measured, choosing = _dense(task, maker, rows)
    with stage("honest latents", total=1):
        honest = honest_latents(maker, reference, rows, task.options.cross_fit, measured)
    with stage("rotation", plan=ROTATION):
        z, found = rotated(task, reference, honest.z, rows)
    model.encoder = reference.model.encoder
    wide = widened(found, model.latent_dim)
    guide = make_guide(task.guide_kind, model, rows, task.options)
    guide.start(wide.root.to(rows.y), wide.deltas.to(rows.y))
    stats, design, sparse = sparse_stage(task, model, guide, rows, z, reference)
    traces = {"choosing": choosing, "dense": reference.trace, "sparse": sparse}
    report = FitReport(
        rank=found.basis.shape[0],
        history=trace_table(traces),
        decay=reference.recipe.decay,
        num_components=reference.recipe.num_components,
        folds=honest.folds,
        optimism=honest.optimism,
        evidence=found.evidence,
        basis=found.basis,
        alternatives=found.others.basis,
        alternative_evidence=found.other_evidence,
    )
    return Fitted(model, guide, stats, design, report, reference.recipe)


@torch.no_grad()
def _reference_point(dense: DenseFit) -> ReferencePoint:
    """Where the intercept of known latents is judged: where it changes least.

    An arc that changes a latent's effect changes the intercept too, unless that is measured
    where the effect is nothing. The mean of the rows is as good as any other place, and off by
    its error, which many rows tell from zero.
    """
    head, stats = dense.model.head, dense.stats.flattened()
    if not dense.model.intercept:
        none = torch.zeros(head.num_latents).to(stats.cross)
        return ReferencePoint(none, torch.diag(none))
    scale = dense.guide.site_scale(stats.nodes).unsqueeze(-1)
    precision = scale[..., None] * stats.gram.expand(*stats.cross.shape, -1)
    estimates = estimated(head.tree, stats.nodes, precision, scale * stats.cross)
    # Means of environments scatter, and that of all rows with them.
    return reference_point(estimates, len(stats.nodes) ** -0.5)


def _dense(
    task: Task, maker: DenseStage, rows: StandardRows
) -> tuple[DenseFit, tuple[float, float], FitTrace | None]:
    """The reference encoder, fitted to all rows, the optimism of its kind, how that went."""
    if len(rows) < _LEAST_ROWS_TO_HOLD_OUT:
        with stage("all rows", total=1):
            return maker.fit(rows, maker.recipes(len(rows))[0]), (0.0, 0.0), None
    num_folds = max(2, round(1 / task.options.validation_share))
    fold = stratified_folds(rows.env_index, num_folds, task.generator, rows.groups)
    fold = fold.to(rows.y.device)
    training, held_out = rows.select(fold != 0), rows.select(fold == 0)
    with stage("choice", total=1):
        chosen = maker.choose(training, held_out)
    measured = optimism(chosen, training, held_out)
    detail("rows held out fit %+.1f %% worse than rows of training", 100 * measured[0])
    if rows.groups is not None and training.groups is not None:
        rows.groups.correlation = training.groups.correlation  # training weighs rows by it
    with stage("all rows", total=1):
        if isinstance(chosen.model.encoder, LinearEncoder):
            # Its closed form starts afresh on all rows; then as many steps as were good.
            steps = 0 if chosen.trace is None else chosen.trace.best_step
            recipe = chosen.recipe._replace(steps=steps)
            return maker.fit(rows, recipe), measured, chosen.trace
        if maker.follows and chosen.trace is not None:  # afresh too, to the step that was best
            recipe = chosen.recipe._replace(stop=chosen.trace.best_step)
            return maker.fit(rows, recipe), measured, chosen.trace
        return maker.fit(rows, chosen.recipe, start=chosen), measured, chosen.trace
