"""Honest latents: each row encoded by an encoder that was not fitted to it.

A flexible encoder overfits, and statistics of the rows it was trained on make every inclusion
probability too sure. So the rows are split into folds; an encoder per fold is trained on the other
folds and aligned to the reference encoder by a linear map; each row's latents come from the encoder
that has not seen it, nor any row of its group. Where the optimism cannot be measured the reference
encoder serves all rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.inference.encoder.dense_stage import DenseFit, DenseStage
from pyro_tbr.inference.encoder.directions import spans_all
from pyro_tbr.inference.encoder.latents import align
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.progress import stage

_DEFAULT_FOLDS = 4
# Optimism below this share of the noise changes a standard error by less than 2.5 %.
_TOLERATED_OPTIMISM = 0.05


class HonestLatents(NamedTuple):
    """Latents (N, K) in the reference encoder's coordinates; the rest as in the report."""

    z: Tensor
    folds: int
    optimism: float


def optimism(fit: DenseFit, rows: StandardRows, held_out: StandardRows) -> tuple[float, float]:
    """Relative excess of the loss on held-out rows, and its standard error."""
    inside, outside = fit.loss(rows, seen=True), fit.loss(held_out, seen=False)
    base = inside.mean().clamp(min=1e-12)
    spread = (inside.mean_var() + outside.mean_var()).sqrt()
    return ((outside.mean() - base) / base).item(), (spread / base).item()


def stratified_folds(
    env_index: Tensor,
    num_folds: int,
    generator: torch.Generator,
    groups: RowGroups | None = None,
) -> Tensor:
    """Fold of each row (N,), each environment spread evenly over the folds.

    The last folds are empty where there is less to spread. Rows of a group are alike and so stay
    together, but where they are all of an environment: then other rows would say nothing of it.
    """
    env = env_index.cpu()
    unit = torch.arange(len(env))
    if groups is not None:
        together = groups.index.cpu()
        home = env.new_zeros(int(together.max()) + 1).scatter(0, together, env)
        alone = torch.bincount(home, minlength=int(env.max()) + 1)[env] == 1
        unit = torch.where(alone, len(home) + unit, together).unique(return_inverse=True)[1]
        env = env.new_zeros(int(unit.max()) + 1).scatter(0, unit, env)
    order = torch.randperm(len(env), generator=generator)
    order = order[env[order].argsort(stable=True)]
    folds = torch.empty(len(env), dtype=torch.int64)
    shift = int(torch.randint(num_folds, (), generator=generator))
    folds[order] = (torch.arange(len(env)) + shift) % min(num_folds, len(env))
    return folds[unit]


def honest_latents(
    maker: DenseStage,
    reference: DenseFit,
    rows: StandardRows,
    folds: int | None,
    measured: tuple[float, float],
) -> HonestLatents:
    """Latents of all rows, cross-fitted where the encoder is optimistic.

    The reference is the fit to all rows, whose encoder stays. ``folds`` is their number; 0: none;
    ``None``: as what was ``measured`` by :func:`optimism` asks.
    """
    excess, error = measured
    own = reference.latents(rows.x)
    if folds is None:
        negligible = excess + error < _TOLERATED_OPTIMISM or not is_trained(reference)
        folds = 0 if negligible else _DEFAULT_FOLDS
    if not folds:
        return HonestLatents(own, 0, excess)
    fold = stratified_folds(rows.env_index, folds, maker.generator, rows.groups).to(own.device)
    z = torch.empty_like(own)
    with stage("", total=folds):
        for f in range(folds):
            inside, outside = fold != f, fold == f
            with stage(f"fold {f + 1} of {folds}", total=1):
                fit = maker.fit(rows.select(inside), reference.recipe)
            theirs = fit.latents(rows.x)
            z[outside] = align(theirs[inside], own[inside], theirs[outside])
    return HonestLatents(z, folds, excess)


def is_trained(fit: DenseFit) -> bool:
    """The encoder depends on the outcomes at all: not where it is given, or frozen."""
    encoder = fit.model.encoder
    learns = encoder.trainable and any(p.requires_grad for p in encoder.parameters())
    return learns and not spans_all(encoder)
