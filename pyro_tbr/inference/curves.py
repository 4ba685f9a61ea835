"""Outcomes that are curves of the latents: weights of a basis, after a fit without one.

Latents, the basis in which changes are sparse and where they are counted from are found by slopes
alone, as turning latents is a thing of linear effects. Then curves are placed on these latents, the
weights of all functions go to their optimum together, and an encoder is trained on through them.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from pyro_tbr.heads import Guide
from pyro_tbr.heads.moments import NodeMoments
from pyro_tbr.inference.encoder.dense_stage import Recipe
from pyro_tbr.inference.encoder.latents import as_kept
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.sparse_stage import (
    Task,
    make_guide,
    moved_along,
    settle,
    train_encoder,
)
from pyro_tbr.inference.stages import Fitted
from pyro_tbr.models import TreeModel
from pyro_tbr.progress import detail, stage, step

_MOST_ROUNDS, _FEWER = 12, 4  # of weights and encoder in turns; the latter by slow steps of SVI
_SETTLED = 1e-4  # fall of a latent's correlation with itself, in a round that is the last


def curved(task: Task, linear: Fitted, rows: StandardRows) -> Fitted:
    """The fit of a model with a basis, from one of the same model without.

    Args:
        task: Of the model with a basis.
        linear: The fit without; its latents and its report are taken over.
        rows: The rows.
    """
    model = copy.deepcopy(task.model)
    assert model.basis is not None
    model.encoder = linear.model.encoder
    model.basis.use_units(model.encoder.latent_units)
    z = linear.design[:, : model.latent_dim]
    model.basis.place(z)
    guide = make_guide(task.guide_kind, model, rows, task.options)
    slopes = NodeMoments(linear.guide.node_moments().mean[0], linear.guide.delta_moments().mean)
    root, deltas = (_widened(part.detach(), model.num_weights, len(z[0])) for part in slopes)
    guide.start(root.to(rows.y), deltas.to(rows.y), sparse=False)
    with stage("curves", about=2):
        z = _followed(task, model, guide, rows, z, linear.recipe)
        design = model.design(z)
        stats = settle(task, guide, design, rows, last=True)
        step()
    # Whether changes may be small was asked of slopes alone; curves have the prior as it was given.
    report = replace(linear.report, small_changes=None)
    return Fitted(model, guide, stats, design, report)


def _followed(
    task: Task, model: TreeModel, guide: Guide, rows: StandardRows, z: Tensor, recipe: Recipe | None
) -> Tensor:
    """Latents (N, K) as the curves want them: the encoder's training goes on through these.

    Weights, and an encoder given these, in turns until the latents stay; then curves are placed
    anew. Latents that are given stay as they are.
    """
    assert model.basis is not None
    learns = model.encoder.trainable and any(p.requires_grad for p in model.encoder.parameters())
    if recipe is None or not (learns and task.options.sparse_steps):
        return z
    moved, most = 1.0, _MOST_ROUNDS if model.likelihood.exact else _FEWER
    for number in range(1, most + 1):
        settle(task, guide, model.design(z), rows, rough=True)
        with torch.no_grad():
            before = as_kept(model.encoder(rows.x))
        train_encoder(task, model, guide, rows, recipe)
        new = moved_along(model, rows, before, z)
        moved, z = _turned(z, new), new
        model.basis.place(z)
        step()
        if moved < _SETTLED:
            detail("latents at rest after %d rounds of curves and encoder", number)
            break
    else:
        detail("latents still moved by %.2g after %d rounds of curves", moved, most)
    return z


def _turned(before: Tensor, after: Tensor) -> float:
    """The most by which a latent's correlation with what it was before is below 1."""
    one, two = (part.double() - part.double().mean(0) for part in (before, after))
    length = (one.square().sum(0) * two.square().sum(0)).sqrt()
    found = torch.where(length > 0, (one * two).sum(0) / length.clamp(min=1e-300), 1.0)
    return 1 - found.min().item()


def _widened(weights: Tensor, width: int, num_latents: int) -> Tensor:
    """Of slopes and intercept (..., W, Q) with zeros for the curves between them."""
    wide = weights.new_zeros(*weights.shape[:-2], width, weights.shape[-1])
    wide[..., :num_latents, :] = weights[..., :num_latents, :]
    behind = weights.shape[-2] - num_latents
    if behind:
        wide[..., -behind:, :] = weights[..., num_latents:, :]
    return wide
