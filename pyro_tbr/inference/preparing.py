"""A task that is checked before any training: rows in its units, a model built for them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any, NamedTuple

import torch

from pyro_tbr.data import (
    Outcomes,
    Rows,
    Schema,
    align_groups,
    align_known,
    align_ranks,
    align_training,
    check_ranks,
)
from pyro_tbr.data.columns import varying_columns
from pyro_tbr.errors import DataError
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.heads.likelihoods import Likelihood
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.options import FitOptions
from pyro_tbr.inference.resuming import check_start
from pyro_tbr.models import ModuleEncoder, TreeModel
from pyro_tbr.models.encoders import LatentUnits, PreparedEncoder
from pyro_tbr.models.principal_axes import column_moments
from pyro_tbr.posterior import Posterior

_TRIED_OUT = 100  # rows that a user's encoder is tried out on


class Prepared(NamedTuple):
    """A task that has been checked; rows as they were aligned, and in the units of training.

    ``known`` are the names of what is known of each row.
    """

    model: TreeModel
    rows: Rows
    standard: StandardRows
    schema: Schema
    scaling: Scaling
    options: FitOptions
    seed: int
    known: tuple[str, ...]

    def built(self, model: TreeModel, start: Posterior | None = None) -> TreeModel:
        """A copy of a model, built for the units of training."""
        schema, scaling, options, rows = self.schema, self.scaling, self.options, self.standard
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
            outcome_scale=scaling.outcome_scale(),
            latent_units=units,
            root_loc=root_loc,
            standard_error=0.5 * rows_a_node**-0.5,
            outcome_names=schema.outcome_names,
            known=self.known,
            feature_names=schema.feature_names,
        )
        built.eval()  # dropout in a user's encoder works while it is trained, and only then
        if options.torch_dtype != torch.get_default_dtype():
            built.to(dtype=options.torch_dtype)
        built.to(device=options.device)
        if not isinstance(model.encoder_spec, str):  # before any training
            with torch_settings(built, self.seed, None):
                built.encoder.try_out(rows.x[torch.arange(min(len(rows), _TRIED_OUT))])
        return built


def prepare(
    model: TreeModel,
    x: Any,
    y: Any,
    env: Any,
    given: Mapping[str, Any],
    *,
    groups: Any = None,
    start: Posterior | None = None,
    seed: int | None = 0,
    options: FitOptions | None = None,
    ranks: str | None = None,
) -> Prepared:
    """Checks and aligns what :func:`fit` is given; refuses as it says there."""
    if not isinstance(model, TreeModel):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise DataError(
            f"model must be a pyro_tbr.TreeModel, got {got}: fit(model, x, y, env) with model = "
            "TreeModel(tree, latent_dim)"
        )
    options = FitOptions() if options is None else options
    if model.chooses_latent_dim and isinstance(start, Posterior):
        model = model.with_latent_dim(start.model.latent_dim)
    if not isinstance(options, FitOptions):
        got = "the class" if isinstance(options, type) else type(options).__name__
        raise DataError(
            f"options must be a pyro_tbr.FitOptions, got {got}: FitOptions(restarts=16), say"
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
        raise DataError(f"seed={seed!r} must be a whole number, or None for another one each time")
    seed_given = seed is not None
    seed = int.from_bytes(os.urandom(7), "big") if seed is None else seed
    likelihood, identity = model.likelihood, model.encoder_spec == "identity"
    as_they_are = identity or not isinstance(model.encoder_spec, str | PreparedEncoder)
    kind: dict[str, Any] = {
        "learns": not identity,
        "precision": options.torch_dtype if as_they_are else None,
        "check": likelihood.check,
        "check_informative": likelihood.check_informative,
    }
    if check_ranks(ranks):
        how = {"takes": likelihood.takes, "seed": seed, "same_seed": seed_given, **kind}
        rows, schema, known, groups, seed = align_ranks(model.tree, x, y, env, given, groups, **how)
    else:
        rows, schema = align_training(model.tree, x, y, env, keep=True, **kind)
        known = align_known(schema, given, likelihood.takes, rows.order)
    assert rows.y is not None  # both ask for it
    likelihood = likelihood.resolved(schema.outcome_names, known.values)
    y = likelihood.observed(Outcomes(rows.y.numpy(), schema.outcome_names, rows.order.index), known)
    if start is None:
        scaling = likelihood.units(y, known.values, intercept=model.intercept)
    else:
        check_start(start, model, likelihood, schema, options.dtype)
        scaling = start.scaling
    terms = likelihood.row_terms(known, scaling, len(y))
    y = scaling.to_model(y).to(options.torch_dtype).to(options.device)
    standard = StandardRows(
        rows.x.to(options.device),
        y,
        rows.env_index.to(options.device),
        _groups(groups, rows, likelihood, options),
        terms.to(y),
    )
    return Prepared(model, rows, standard, schema, scaling, options, seed, tuple(known.values))


def _groups(
    groups: Any, rows: Rows, likelihood: Likelihood, options: FitOptions
) -> RowGroups | None:
    """The rows' groups, their correlation at a start of none."""
    if groups is None:
        return None
    if not likelihood.exact:
        raise DataError(
            f"groups need numeric outcomes with normal noise, and {likelihood!r} has others: "
            "leave groups out, or make each group a leaf of the tree"
        )
    if likelihood.correlated:
        raise DataError(
            f"groups together with {likelihood.because}: rows of a group are known to go together "
            f"in each outcome alone; leave groups out, or {likelihood.instead}"
        )
    assert rows.y is not None
    index = align_groups(groups, rows.env_index, rows.order)
    correlation = torch.zeros(rows.y.shape[1], dtype=torch.float64)
    return RowGroups(index.to(options.device), correlation.to(options.device))


def _feature_units(model: TreeModel, rows: StandardRows) -> LatentUnits:
    """Mean and spread of the features; without an intercept, which takes up a shift, no mean."""
    loc, scale = column_moments(rows.x)
    loc = loc if model.intercept else torch.zeros_like(loc)
    return LatentUnits(loc.cpu(), torch.where(varying_columns(rows.x), scale, 1.0).cpu())


@contextmanager
def torch_settings(model: TreeModel, seed: int, num_threads: int | None) -> Iterator[None]:
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
