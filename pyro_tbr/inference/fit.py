"""``fit``: from data to a posterior.

1. *Dense stage*: the encoder, with weights that may change on every arc (``dense_stage``); then the
   latents of each row by an encoder that has not seen it (``cross_fit``).
2. *Rotation*: the basis of the latents in which changes are sparse (``identify``).
3. *Sparse stage*: the posterior under the sparse prior, starting there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pyro_tbr.data import Schema, as_given, check_ranks, of_all_ranks
from pyro_tbr.errors import IdentificationWarning, ModelWarning, warn_user
from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.inference.checkpoint import (
    Checkpoint,
    digest,
    file_of_rank,
    opened,
    part,
    seed_in,
)
from pyro_tbr.inference.choosing import chosen_latent_dim
from pyro_tbr.inference.curves import curved
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.options import FitOptions
from pyro_tbr.inference.preparing import Prepared, prepare, torch_settings
from pyro_tbr.inference.resuming import go_on
from pyro_tbr.inference.sparse_stage import Task, make_guide
from pyro_tbr.inference.stages import Fitted, run
from pyro_tbr.models import TreeModel
from pyro_tbr.models.principal_axes import column_moments
from pyro_tbr.posterior import LatentDimChoice, ModelCheck, Posterior
from pyro_tbr.posterior.checking import checked, some_rows
from pyro_tbr.progress import aside, stage, step, working

_CURVES = 50.0  # time of the weights of curves, where a fit without takes 100
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
    exposure: Any = None,
    trials: Any = None,
    y_se: Any = None,
    row_weights: Any = None,
    guide: str | type[Guide] = "tree",
    start: Posterior | None = None,
    seed: int | None = 0,
    progress: bool = True,
    options: FitOptions | None = None,
    ranks: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Posterior:
    """Fits the model to rows of data.

    Args:
        model: What is believed; left untouched, a copy is trained.
        x: Features, (N, D): array, tensor, DataFrame, scipy sparse; or what is read by blocks of
            rows, a memory map, a dataset of h5py or zarr, a map-style torch ``Dataset``, a
            :class:`FeatureStream`. Sparse and large ones are never made dense, or copied, as a
            whole. Beside them a fit keeps some hundred bytes a row.
        y: Outcomes, (N,) or (N, Q), NaN where not observed.
        env: Node of each row, (N,): labels of leaves or inner nodes.
        groups: A label for each row, (N,), where rows are no independent draws of their
            environment: mouse, genus, batch. How alike the rows are that share label and
            environment is learnt (``posterior.report.group_correlation``, an outcome each), and
            they count as so many fewer rows; predictions are for a row of a new group. Numeric
            outcomes only. Rows of one label stay together where an encoder is tried on rows held
            out from its training.
        exposure: Of counts: time watched, area, size of the library; above 0, a number a row (N,)
            or for each outcome (N, Q).
        trials: Of ``"binomial"`` outcomes: of how many each is the successes, likewise.
        y_se: Of ``"gaussian"`` outcomes: known standard errors, likewise, in the unit of y. Beside
            them the noise is common to all environments.
        row_weights: By how much of a row each counts, likewise: a row of weight 2 says as much as
            two rows.
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
        progress: Show on a terminal and in notebooks a bar, elsewhere a line a stage, on stderr.
            The logger ``pyro_tbr`` has records in any case.
        options: See :class:`FitOptions`.
        ranks: Only where several processes run under ``torch.distributed`` (``torchrun``), and
            must be said there. ``"together"``: each has a part of the rows of one data set. Its
            features stay with it, sums over rows and gradients are added up, and every process
            ends with the same posterior, that of one process with the rows in the order of the
            ranks. ``"apart"``: each fits what it has for itself, such as other seeds or folds.
        checkpoint: A file to write what is done to, after each part of the fit: an encoder trained,
            the rotation, the first weights. However the fit ends (Ctrl-C, SIGTERM, a crash), the
            file is whole and holds the parts done by then. One that is there already is refused
            unless it is gone on from. With ``ranks="together"`` each process has a file of its own,
            this name with its rank behind: ``fit.part.0``.
        resume: Such a file, to go on from: the same call ends with the very same posterior as if it
            had never been cut short. With the same file for both, which need not be there the first
            time, one call serves until it is done.

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
    given = as_given(exposure, trials, y_se, row_weights)
    kept_in_file, together = checkpoint is not None or resume is not None, check_ranks(ranks)
    if together and kept_in_file:
        checkpoint, resume = file_of_rank(checkpoint), file_of_rank(resume)
    if seed is None and resume is not None:
        found = partial(seed_in, resume)
        seed = of_all_ranks(found)[0] if together else found()
    prepared = prepare(
        model, x, y, env, given, groups=groups, start=start, seed=seed, options=options,
        ranks=ranks,
    )  # fmt: skip
    generator, kept = torch.Generator().manual_seed(prepared.seed), None
    if kept_in_file:
        draws = not isinstance(prepared.model.encoder_spec, str)  # a user's own module may
        identity = _identity(prepared, guide, start)
        files = {"path": checkpoint, "resume": resume}
        make = partial(Checkpoint, identity, generator, global_draws=draws, **files)
        kept = opened(make, together=together)
    try:
        with working("fit", show=progress, plan=_plan(prepared.model, start)):
            return _fitted(prepared, guide, start, generator, kept)
    except KeyboardInterrupt as error:
        if checkpoint is not None:
            error.add_note(f"what is done is in {os.fspath(checkpoint)!r}: fit(..., resume=) of it")
        raise


def _identity(
    prepared: Prepared, guide: str | type[Guide], start: Posterior | None
) -> dict[str, str]:
    """Which fit it is, in words that differ where the fits do."""
    model, rows = prepared.model, prepared.standard
    name = guide if isinstance(guide, str) else guide.__qualname__
    encoder, known = model.encoder_spec, rows.terms
    groups = None if rows.groups is None else rows.groups.index
    options = {f"options.{name}": repr(value) for name, value in vars(prepared.options).items()}
    begun = None if start is None else [start.model.encoder, start.guide, start.stats]
    chosen = "to be chosen" if model.chooses_latent_dim else str(model.latent_dim)
    return {
        "tree": digest(model.tree.__reduce__()[1]),
        "latent_dim": chosen,
        "encoder": encoder if isinstance(encoder, str) else type(encoder).__name__,
        "intercept": str(model.intercept),
        "basis": repr(model.basis_spec),
        "likelihood": repr(model.likelihood),
        "prior": repr(model.prior_spec),
        "values of the prior": digest(model.prior_spec.description),
        "state of the encoder": digest(None if isinstance(encoder, str) else encoder),
        "rows": digest(rows.x, rows.y, rows.env_index, groups, known.values, known.weights),
        "guide": name,
        "start": digest(begun),
        "seed": str(prepared.seed),
    } | options


def _fitted(
    prepared: Prepared,
    guide: str | type[Guide],
    start: Posterior | None,
    generator: torch.Generator,
    checkpoint: Checkpoint | None,
) -> Posterior:
    """The posterior of a task, the number of latents chosen first where that is left open."""
    model, rows, standard, schema, scaling, options, seed, _ = prepared
    choice = None
    if model.chooses_latent_dim:
        with stage("number of latents", total=1):
            choice = part(
                checkpoint,
                "number of latents",
                lambda: chosen_latent_dim(prepared, None, progress=False, patience=_PATIENCE),
                lambda found: dict(vars(found)),
                lambda left: LatentDimChoice(**left),
            )
        model = model.with_latent_dim(choice.best)
    built = prepared.built(model, start)
    make_guide(guide, built, standard, options)  # refuses early
    with torch_settings(built, seed, options.num_threads):
        task = Task(built, guide, options, generator, schema.outcome_names, checkpoint)
        if model.basis_spec is not None:
            linear = replace(task, model=prepared.built(model.without_basis()))
            fitted = curved(task, run(linear, standard), standard)
        else:
            fitted = run(task, standard) if start is None else go_on(task, standard, start)
    counts = torch.bincount(rows.env_index, minlength=model.tree.num_nodes)
    fitted.model.num_rows = len(standard)
    report = replace(fitted.report, seed=seed, options=dict(vars(options)))
    report = replace(report, feature_scale=column_moments(rows.x)[1].cpu())
    if standard.groups is not None:
        report = replace(report, group_correlation=standard.groups.correlation.cpu())
    with stage("checks", total=2):
        check = _check(fitted, standard, scaling, schema)
        step()
        report = replace(report, check=check, latent_choice=choice)
        parts = fitted.model, fitted.guide, fitted.stats, schema, scaling, counts
        posterior = Posterior(*parts, report)
        found = posterior.identification()
        step()
    with aside():
        if not found.determined:
            warn_user(str(found), IdentificationWarning)
        if check.reasons:
            warn_user(str(check), ModelWarning)
    return posterior


def _plan(model: TreeModel, start: Posterior | None) -> Mapping[str, float]:
    """The stages, and about which share of the time each takes.

    Measured on fits of 8, 20, 40 and 300 leaves with linear, neural and no encoders; from one to
    another they differ by half of themselves.
    """
    if start is not None:
        return {"dense stage": 10, "honest latents": 20, "sparse stage": 65, "checks": 5}
    if model.encoder_spec == "identity":
        found = {"dense stage": 5.0, "reference point": 7.0, "sparse stage": 83.0, "checks": 5.0}
        return found if model.basis_spec is None else found | {"curves": 3 * _CURVES}
    found = {"number of latents": 25.0} if model.chooses_latent_dim else {}
    shares = (12, 12, 52, 22, 2) if model.encoder_spec == "linear" else (38, 46, 8, 6, 2)
    names = "dense stage", "honest latents", "rotation", "sparse stage", "checks"
    found |= dict(zip(names, shares, strict=True))
    return found if model.basis_spec is None else found | {"curves": _CURVES}


@torch.no_grad()
def _check(fitted: Fitted, rows: StandardRows, scaling: Scaling, schema: Schema) -> ModelCheck:
    """What the rows of the fit say against the model."""
    model, picked = fitted.model, some_rows(len(rows)).to(rows.y.device)
    some = rows.select(picked)
    features = model.encoder.prepare(some.x) if model.encoder.trainable else None
    names = model.weight_names, schema.outcome_names
    design = some.with_design(fitted.design[picked])
    unit = scaling.outcome_scale()
    return checked(fitted.guide, design, features, unit, names, fitted.stats, seen=True)
