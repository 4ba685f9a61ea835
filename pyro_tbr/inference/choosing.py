"""``choose_latent_dim``: how many latents the outcomes need, before any full fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch

from pyro_tbr.data import as_given
from pyro_tbr.errors import DataError
from pyro_tbr.inference.latent_dims import NUM_FOLDS, Judge
from pyro_tbr.inference.options import FitOptions
from pyro_tbr.inference.preparing import Prepared, prepare, torch_settings
from pyro_tbr.models import TreeModel
from pyro_tbr.posterior import LatentDimChoice
from pyro_tbr.posterior.view import check_number
from pyro_tbr.progress import working

_MOST_LATENTS = 8  # that are tried where the number is left open


@torch.inference_mode(False)
@torch.enable_grad()
def choose_latent_dim(
    model: TreeModel,
    x: Any,
    y: Any,
    env: Any,
    latent_dims: Iterable[int] | None = None,
    *,
    groups: Any = None,
    exposure: Any = None,
    trials: Any = None,
    y_se: Any = None,
    row_weights: Any = None,
    num_folds: int = NUM_FOLDS,
    seed: int | None = 0,
    progress: bool = True,
    options: FitOptions | None = None,
) -> LatentDimChoice:
    """How many latents the outcomes need, by evidence, with the log score of held-out rows.

    Every number is judged by weights that may change on every arc, as that decides which latents
    span the outcomes; sparse changes and the basis of the latents come after, in ``fit``. An
    encoder is trained once a fold and once for all rows, whatever the numbers, so it costs about as
    much as one fit. The number of the largest evidence is taken: latents of each row come from
    encoders that have not seen it, so one that is not needed gains nothing and costs its prior.

    Args:
        model: What is believed; its own ``latent_dim`` does not matter, and may be ``None``. The
            encoder has to be ``"linear"`` or ``"mlp"``. Left untouched.
        x: Features, as in :func:`~pyro_tbr.fit`.
        y: Outcomes, likewise.
        env: Node of each row, likewise.
        latent_dims: Numbers to try; ``None``: 1 to 8, or to the number of features.
        groups: A label for each row, as in ``fit``. Rows of one label are held out together, and
            standard errors count groups rather than rows.
        exposure: As in ``fit``, and so the other three.
        trials: Likewise.
        y_se: Likewise.
        row_weights: Likewise.
        num_folds: Folds of the rows, 2 or more.
        seed: Of folds and encoders.
        progress: As in ``fit``.
        options: As in ``fit``.

    Returns:
        Its ``best`` is for ``TreeModel(latent_dim=)``; ``table`` has a row for each number tried.

    Raises:
        DataError: Numbers that cannot be tried, or what ``fit`` refuses.

    Example:
        >>> import pyro_tbr as tbr
        >>> sim = tbr.simulate(num_leaves=6, latent_dim=2, num_features=6, num_outcomes=3,
        ...                    nuisance_dim=3, rows_per_leaf=30)
        >>> model = tbr.TreeModel(sim.tree, None, encoder="linear")
        >>> choice = tbr.choose_latent_dim(model, sim.x, sim.y, sim.env, [1, 2, 3], progress=False)
        >>> choice
        LatentDimChoice(best=2, of 1 to 3, 180 rows in 4 folds)
    """
    check_number(num_folds, "num_folds", 2)
    given = as_given(exposure, trials, y_se, row_weights)
    prepared = prepare(model, x, y, env, given, groups=groups, seed=seed, options=options)
    if model.encoder_spec not in ("linear", "mlp"):
        raise DataError(
            f"choose_latent_dim needs encoder='linear' or 'mlp', got {model.encoder_spec!r}: the "
            "latents of other encoders have a number of their own"
        )
    dims = None if latent_dims is None else _numbers(latent_dims, model, prepared.schema)
    return chosen_latent_dim(prepared, dims, progress, num_folds=num_folds)


def chosen_latent_dim(
    prepared: Prepared,
    latent_dims: Sequence[int] | None,
    progress: bool,
    *,
    num_folds: int = NUM_FOLDS,
    patience: int | None = None,
) -> LatentDimChoice:
    """See :func:`~pyro_tbr.choose_latent_dim`; ``None``: up to 8, or to the number of features."""
    model, standard, options, seed = (
        prepared.model, prepared.standard, prepared.options, prepared.seed,
    )  # fmt: skip
    if latent_dims is None:
        latent_dims = range(1, min(_MOST_LATENTS, prepared.schema.num_features) + 1)
    # By outcomes that are linear in the latents: curves are of latents that were found so.
    largest = model.without_basis().with_latent_dim(max(latent_dims))
    built = prepared.built(largest)
    generator = torch.Generator().manual_seed(seed)
    with (
        working("choose_latent_dim", show=progress, plan={"encoders": 50, "numbers": 50}),
        torch_settings(built, seed, options.num_threads),
    ):
        judge = Judge(built, standard, options, generator, num_folds)
        return judge.choose(latent_dims, patience)


def _numbers(latent_dims: Any, model: TreeModel, schema: Any) -> list[int]:
    """Numbers of latents in rising order, checked."""
    if isinstance(latent_dims, str) or not isinstance(latent_dims, Iterable):
        raise DataError(
            f"latent_dims={latent_dims!r} is no list of numbers: range(1, 9), or [2, 3, 4]"
        )
    dims = list(latent_dims)
    bad = [n for n in dims if not isinstance(n, Integral) or isinstance(n, bool) or n < 1]
    if bad or not dims:
        raise DataError(
            f"latent_dims={latent_dims!r} must be whole numbers, 1 or more"
            + (f", got {bad[0]!r}" if bad else ", got none")
        )
    most = schema.num_features
    if model.encoder_spec == "linear" and max(dims) > most:
        raise DataError(
            f"latent_dims goes to {max(dims)}, but {most} features have at most {most} linear "
            f"latents: end at {most}"
        )
    return sorted({int(number) for number in dims})
