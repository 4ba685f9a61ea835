"""``fit``: from data to a posterior.

1. *Dense stage*: the encoder, with weights that may change on every arc (``dense_stage``); then the
   latents of each row by an encoder that has not seen it (``cross_fit``).
2. *Rotation*: the basis of the latents in which changes are sparse (``identify``).
3. *Sparse stage*: the posterior under the sparse prior, starting there.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from pyro_tbr.data import (
    Rows,
    Schema,
    align_groups,
    align_ranks,
    align_training,
    check_ranks,
)
from pyro_tbr.data.columns import varying_columns
from pyro_tbr.errors import DataError, IdentificationWarning, ModelWarning, warn_user
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.latent_dims import NUM_FOLDS, Judge
from pyro_tbr.inference.options import FitOptions
from pyro_tbr.inference.resuming import check_start, go_on
from pyro_tbr.inference.stages import Fitted, Stages, make_guide
from pyro_tbr.models import ModuleEncoder, TreeModel
from pyro_tbr.models.encoders import LatentUnits, PreparedEncoder
from pyro_tbr.models.principal_axes import column_moments
from pyro_tbr.posterior import LatentDimChoice, ModelCheck, Posterior
from pyro_tbr.posterior.checking import checked, some_rows

_MOST_LATENTS = 8  # that are tried where the number is left open
_PATIENCE = 2  # numbers no better than the best before, after which no more are tried


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    model: TreeModel,
    x: Any,
    y: Any,
    env: Any,
    *,
    groups: Any = None,
    guide: str | type[Guide] = "tree",
    start: Posterior | None = None,
    seed: int | None = 0,
    progress: bool = True,
    options: FitOptions | None = None,
    ranks: str | None = None,
) -> Posterior:
    """Fits the model to rows of data.

    Args:
        model: What is believed; left untouched, a copy is trained.
        x: Features, (N, D): array, tensor, DataFrame or scipy sparse, which stays sparse but for
            blocks of rows.
        y: Outcomes, (N,) or (N, Q), NaN where not observed.
        env: Node of each row, (N,): labels of leaves or inner nodes.
        groups: A label for each row, (N,), where rows are no independent draws of their
            environment: mouse, genus, batch. How alike the rows are that share label and
            environment is learnt (``posterior.report.group_correlation``, an outcome each), and
            they count as so many fewer rows; predictions are for a row of a new group. Numeric
            outcomes only. Rows of one label stay together where an encoder is tried on rows held
            out from its training.
        guide: ``"tree"``: exact along the tree; ``"mean_field"``: fully factorised, for comparison;
            or a :class:`Guide` class.
        start: Go on from this posterior rather than afresh, with the same rows, more, or others: of
            the same tree, latents, likelihood, features and outcomes; the prior may differ. Its
            latents keep their meaning, order and sign; its encoder is trained on for
            ``options.sparse_steps`` steps, and weights go to their optimum for these rows alone.
            ``posterior.update`` adds rows without training. It is left untouched. What the rows
            say of which latents there are is not asked again: for that, fit afresh.
        seed: Of all randomness of the fit; ``None``: another one each time. No global random state
            is read or changed.
        progress: Show a bar.
        options: See :class:`FitOptions`.
        ranks: Only where several processes run under ``torch.distributed`` (``torchrun``), and
            must be said there. ``"together"``: each has a part of the rows of one data set; rows
            are gathered and every process ends with the same posterior, that of one process with
            all rows, which is no faster and takes no less memory than there. ``"apart"``: each
            fits what it has for itself, such as other seeds or folds.

    Returns:
        The posterior, which holds the trained copy of the model.

    Raises:
        DataError: Values that cannot be used; before any training.
        ShapeError: Arrays that do not fit together.
        TreeError: Labels that are not in the tree, or a ``start`` on another tree.
        TrainingError: The loss is not finite.

    Warns:
        IdentificationWarning: The latents are not determined by these environments and outcomes.
        ModelWarning: The model does not fit: see ``Posterior.check``.
    """
    prepared = prepare(
        model, x, y, env, groups=groups, start=start, seed=seed, options=options, ranks=ranks
    )
    return _fitted(prepared, guide, start, progress)


class Prepared(NamedTuple):
    """A task that has been checked; rows as they were aligned, and in the units of training."""

    model: TreeModel
    rows: Rows
    standard: StandardRows
    schema: Schema
    scaling: Scaling
    options: FitOptions
    seed: int


def prepare(
    model: TreeModel,
    x: Any,
    y: Any,
    env: Any,
    *,
    groups: Any = None,
    start: Posterior | None = None,
    seed: int | None = 0,
    options: FitOptions | None = None,
    ranks: str | None = None,
) -> Prepared:
    """Checks and aligns what :func:`fit` is given; refuses as it says there."""
    if not isinstance(model, TreeModel):
        raise DataError(
            f"model must be a pyro_tbr.TreeModel, got {type(model).__name__}: fit(model, x, y, env)"
        )
    options = FitOptions() if options is None else options
    if model.chooses_latent_dim and isinstance(start, Posterior):
        model = model.with_latent_dim(start.model.latent_dim)
    if not isinstance(options, FitOptions):
        raise DataError(
            f"options must be a pyro_tbr.FitOptions, got {type(options).__name__}: "
            "FitOptions(restarts=16), say"
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
        raise DataError(f"seed={seed!r} must be a whole number, or None for another one each time")
    given = seed is not None
    seed = int.from_bytes(os.urandom(7), "big") if seed is None else seed
    likelihood, known = model.likelihood, model.encoder_spec == "identity"
    as_they_are = known or not isinstance(model.encoder_spec, str | PreparedEncoder)
    kind: dict[str, Any] = {
        "learns": not known,
        "precision": options.torch_dtype if as_they_are else None,
        "check": likelihood.check,
        "check_informative": likelihood.check_informative,
    }
    if check_ranks(ranks):
        if groups is not None:
            raise DataError(
                "groups cannot be given with ranks='together': gather the rows in one process and "
                "fit there"
            )
        rows, schema, seed = align_ranks(model.tree, x, y, env, seed=seed, same_seed=given, **kind)
    else:
        rows, schema = align_training(model.tree, x, y, env, keep_sparse=True, **kind)
    assert rows.y is not None  # both ask for it
    if start is None:
        scaling = likelihood.standardise(rows.y, intercept=model.intercept)
    else:
        check_start(start, model, schema, options.dtype)
        scaling = start.scaling
    standard = StandardRows(
        rows.x.to(options.device),
        ((rows.y - scaling.loc) / scaling.scale).to(options.torch_dtype).to(options.device),
        rows.env_index.to(options.device),
        _groups(groups, rows, model, options),
    )
    return Prepared(model, rows, standard, schema, scaling, options, seed)


def _fitted(
    prepared: Prepared, guide: str | type[Guide], start: Posterior | None, progress: bool
) -> Posterior:
    """The posterior of a task, the number of latents chosen first where that is left open."""
    model, rows, standard, schema, scaling, options, seed = prepared
    choice = None
    if model.chooses_latent_dim:
        choice = chosen_latent_dim(prepared, None, progress, patience=_PATIENCE)
        model = model.with_latent_dim(choice.best)
    built = _built(model, standard, schema, scaling, options, start)
    make_guide(guide, built, standard, options)  # refuses early
    generator = torch.Generator().manual_seed(seed)
    with (
        tqdm(disable=not progress, unit=" steps", leave=False) as bar,
        _torch_settings(built, seed, options.num_threads),
    ):
        stages = Stages(built, guide, options, generator, bar, schema.outcome_names)
        fitted = stages.run(standard) if start is None else go_on(stages, standard, start)
    counts = torch.bincount(rows.env_index, minlength=model.tree.num_nodes)
    fitted.model.num_rows = len(standard)
    report = replace(fitted.report, seed=seed, options=dict(vars(options)))
    if standard.groups is not None:
        report = replace(report, group_correlation=standard.groups.correlation.cpu())
    check = _check(fitted, standard, scaling, schema)
    report = replace(report, check=check, latent_choice=choice)
    posterior = Posterior(fitted.model, fitted.guide, fitted.stats, schema, scaling, counts, report)
    found = posterior.identification()
    if not found.determined:
        warn_user(str(found), IdentificationWarning)
    if check.reasons:
        warn_user(str(check), ModelWarning)
    return posterior


def chosen_latent_dim(
    prepared: Prepared,
    latent_dims: Sequence[int] | None,
    progress: bool,
    *,
    num_folds: int = NUM_FOLDS,
    patience: int | None = None,
) -> LatentDimChoice:
    """See :func:`~pyro_tbr.choose_latent_dim`; ``None``: up to 8, or to the number of features."""
    model, _, standard, schema, scaling, options, seed = prepared
    if latent_dims is None:
        latent_dims = range(1, min(_MOST_LATENTS, schema.num_features) + 1)
    largest = model.with_latent_dim(max(latent_dims))
    built = _built(largest, standard, schema, scaling, options, None)
    generator = torch.Generator().manual_seed(seed)
    with (
        tqdm(disable=not progress, unit=" steps", leave=False) as bar,
        _torch_settings(built, seed, options.num_threads),
    ):
        judge = Judge(built, standard, options, generator, bar, num_folds)
        return judge.choose(latent_dims, patience)


@torch.no_grad()
def _check(fitted: Fitted, rows: StandardRows, scaling: Scaling, schema: Schema) -> ModelCheck:
    """What the rows of the fit say against the model."""
    model, picked = fitted.model, some_rows(len(rows)).to(rows.y.device)
    some = rows.select(picked)
    features = model.encoder.prepare(some.x) if model.encoder.trainable else None
    names = model.weight_names, schema.outcome_names
    design = some.with_design(fitted.design[picked])
    return checked(fitted.guide, design, features, scaling.scale, names, seen=True)


def _groups(groups: Any, rows: Rows, model: TreeModel, options: FitOptions) -> RowGroups | None:
    """The rows' groups, their correlation at a start of none."""
    if groups is None:
        return None
    if not model.likelihood.exact:
        raise DataError(
            f"groups need numeric outcomes with normal noise, and {model.likelihood!r} has others: "
            "leave groups out, or make each group a leaf of the tree"
        )
    assert rows.y is not None
    index = align_groups(groups, rows.env_index, rows.order)
    correlation = torch.zeros(rows.y.shape[1], dtype=torch.float64)
    return RowGroups(index.to(options.device), correlation.to(options.device))


def _built(
    model: TreeModel,
    rows: StandardRows,
    schema: Schema,
    scaling: Scaling,
    options: FitOptions,
    start: Posterior | None,
) -> TreeModel:
    """A copy of the user's model, built for the units of training."""
    built = copy.deepcopy(model)
    root_loc = torch.zeros(built.num_weights, len(schema.outcome_names))
    if built.intercept and built.prior_spec.root_scale_value is not None:
        # A fixed prior on the intercept is around 0 in the user's units, wherever y lies.
        root_loc[-1] = (-scaling.loc / scaling.scale).to(root_loc)
    units = None
    if model.encoder_spec == "identity":
        units = _feature_units(model, rows) if start is None else start.latent_units
    rows_a_node = len(rows) / len(rows.env_index.unique())
    built.build(
        schema.num_features,
        len(schema.outcome_names),
        outcome_scale=scaling.scale,
        latent_units=units,
        root_loc=root_loc,
        standard_error=0.5 * rows_a_node**-0.5,
    )
    built.eval()  # dropout in a user's encoder works while it is trained, and only then
    if options.torch_dtype != torch.get_default_dtype():
        built.to(dtype=options.torch_dtype)
    return built.to(device=options.device)


def _feature_units(model: TreeModel, rows: StandardRows) -> LatentUnits:
    """Mean and spread of the features; without an intercept, which takes up a shift, no mean."""
    loc, scale = column_moments(rows.x)
    loc = loc if model.intercept else torch.zeros_like(loc)
    return LatentUnits(loc.cpu(), torch.where(varying_columns(rows.x), scale, 1.0).cpu())


@contextmanager
def _torch_settings(model: TreeModel, seed: int, num_threads: int | None) -> Iterator[None]:
    """Torch's number of threads, and its generator where a user's encoder draws; put back after."""
    before, draws = torch.get_num_threads(), isinstance(model.encoder, ModuleEncoder)
    try:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        with torch.random.fork_rng(devices=[], enabled=draws):
            if draws:  # our own encoders never do
                torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)
