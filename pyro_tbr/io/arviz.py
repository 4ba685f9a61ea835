"""Posteriors for ArviZ: draws, log likelihood and predictive draws with the user's labels.

Install what is needed with ``pip install pyro-tbr[arviz]``.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr import __version__
from pyro_tbr.data.known import as_given
from pyro_tbr.data.matching import read_table
from pyro_tbr.data.outcomes import names_as_text
from pyro_tbr.errors import DataError
from pyro_tbr.heads import DesignRows
from pyro_tbr.heads.likelihoods.noisy_latents import LATENT_NOISE_SITE
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.mixture import Mixture
from pyro_tbr.posterior.mixture import drawn as draw_of
from pyro_tbr.posterior.prediction import linear_predictor
from pyro_tbr.posterior.view import weights_at
from pyro_tbr.tree.readers.naming import arc_text

if TYPE_CHECKING:
    import xarray as xr


class _Data(NamedTuple):
    """What is observed, and where."""

    given: DesignRows  # as the model sees them
    y: Tensor  # as the user gave it, (N, Q), NaN where not observed
    rows: NDArray[Any]  # a label for each, (N,)


def to_datatree(
    posterior: Posterior,
    x: Any = None,
    y: Any = None,
    env: Any = None,
    *,
    num_draws: int = 1000,
    seed: int = 0,
    exposure: Any = None,
    trials: Any = None,
    y_se: Any = None,
) -> xr.DataTree:
    """Joint draws of a posterior as ArviZ reads them; with rows of data also what loo and ppc need.

    Draws are independent, so they stand as one chain and effective sample sizes are about
    ``num_draws``. Dimensions are ``arc`` (``"parent -> child"``), ``latent``, ``outcome`` and
    ``row`` (the index of ``x`` where it is a DataFrame). Numbers are in the user's units, but for
    scales of the prior, which are in those of training, where outcomes have variance 1.

    A log likelihood is that of a row given weights, noise and the row's latents as the fitted
    encoder has them: ``loo`` leaves a row out of the weights, not out of the encoder, so with a
    learnt encoder it is too good.

    Args:
        posterior: Whose draws.
        x: Features, (N, D), as in ``posterior.predict``; ``None``: the group ``posterior`` only.
        y: Outcomes, as in ``fit``. Where some are missing, those observed are listed: along ``row``
            for one outcome, along ``observation`` (``"row, outcome"``) for several.
        env: Node labels (N,), or one for all rows.
        num_draws: Draws, S.
        seed: Of these draws.
        exposure: Of the rows, as in ``posterior.predict``.
        trials: Likewise.
        y_se: Likewise.

    Returns:
        A tree with the group ``posterior``; with data also ``log_likelihood`` and
        ``posterior_predictive``, S x N x Q numbers each, ``observed_data`` (variable ``y`` in each)
        and ``constant_data`` (``env``, as text).

    Raises:
        ImportError: ArviZ is not installed.
        DataError: Some of ``x``, ``y``, ``env`` are missing, or nothing is observed.
        ShapeError: Arrays do not fit together.
        TreeError: A label is not in the tree.
    """
    try:
        with warnings.catch_warnings():  # ArviZ announces its next version
            warnings.simplefilter("ignore", FutureWarning)
            from arviz_base import from_dict
    except ImportError as error:
        raise ImportError("to_datatree needs arviz-base: pip install pyro-tbr[arviz]") from error
    if num_draws < 1:
        raise DataError(f"num_draws={num_draws!r} must be at least 1")
    given = {"x": x, "y": y, "env": env}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        raise DataError(f"{' and '.join(missing)} missing: give x, y and env, or none of them")
    known = as_given(exposure, trials, y_se)
    data = None if missing else _data(posterior, x, y, env, known)  # before any drawing
    draws = posterior.draws(num_draws, torch.Generator().manual_seed(seed))
    in_units = {name: value.numpy() for name, value in posterior.user_draws(draws).items()}
    groups, dims = _posterior_group(posterior, in_units)
    tree = posterior.tree
    arcs = [f"{tree.labels[parent]} -> {tree.labels[child]}" for parent, child in tree.arcs]
    if len(set(arcs)) < len(arcs):  # inner nodes may share a label, not a name
        arcs = [arc_text(*arc) for arc in tree.arcs]
    coords: dict[str, Any] = {
        "arc": arcs,
        "latent": list(posterior.latent_names),
        "outcome": names_as_text(posterior.outcome_names),
    }
    if LATENT_NOISE_SITE in draws:
        coords["noisy_latent"] = list(posterior.latent_names[: posterior.model.latent_dim])
    if posterior.model.likelihood.by_node:
        nodes = [tree.labels[node] for node in tree.nodes]
        unique = len(set(nodes)) == len(nodes)
        coords["node"] = nodes if unique else [str(node) for node in tree.nodes]
    if data is not None:
        more, where, labels = _data_groups(posterior, data, draws, seed)
        groups, dims, coords = groups | more, dims | where, coords | labels
    about = {"inference_library": "pyro_tbr", "inference_library_version": __version__}
    return from_dict(groups, dims=dims, coords=coords, attrs={"posterior": about})


def _posterior_group(
    posterior: Posterior, draws: dict[str, NDArray[Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """The draws by site, one chain before them, and the dimensions of each."""
    sizes = {
        "arc": posterior.tree.num_arcs,
        "latent": len(posterior.latent_names),
        "outcome": len(posterior.outcome_names),
    }
    sites, dims = {}, {}
    for name, value in draws.items():
        named = list(sizes)[len(sizes) + 1 - value.ndim :]
        if name.startswith("node_"):  # of every node, as ``node_noise_scale``
            named = ["node", *named[1:]]
        if name.endswith("_cholesky"):  # of outcomes by outcomes
            named = ["outcome", "other_outcome"]
        if name == LATENT_NOISE_SITE:  # of latents alone, no intercept
            named = ["noisy_latent"]
        # A dimension of one where there are several latents or outcomes is shared by them.
        shared = [
            i for i, dim in enumerate(named, 1) if value.shape[i] == 1 and sizes.get(dim, 1) > 1
        ]
        value = value.squeeze(tuple(shared))
        sites[name] = (value.astype(np.int8) if name == "gates" else value)[None]
        dims[name] = [dim for i, dim in enumerate(named, 1) if i not in shared]
    return {"posterior": sites}, dims


@torch.no_grad()
def _data(posterior: Posterior, x: Any, y: Any, env: Any, known: dict[str, Any]) -> _Data:
    given, order = posterior.align_rows(x, y, env, known)
    if torch.isnan(given.y).all():
        raise DataError("y has no observed value; without data give no x, y and env")
    rows, index = np.arange(len(given)), read_table(x, "x")[1]
    if index is not None:  # whole numbers as they are, everything else as text
        whole = pd.api.types.is_integer_dtype(index.dtype) and not index.hasnans
        rows = index.to_numpy(dtype=np.int64) if whole else np.array([str(row) for row in index])
    return _Data(given, posterior.align_outcomes(y, order), rows)


def _data_groups(
    posterior: Posterior, data: _Data, draws: dict[str, torch.Tensor], seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]], dict[str, Any]]:
    """Groups of the rows, their dimensions, and labels along these."""
    where_at, scaling = data.given.env_index.cpu(), posterior.scaling
    nodes, position = where_at.unique(return_inverse=True)
    weights = weights_at(posterior.tree, nodes, draws)
    predictor = linear_predictor(data.given.design.cpu(), weights, position)
    nuisance = posterior.nuisance_at(draws, where_at, weights[:, position])
    terms = {name: value.cpu() for name, value in data.given.terms.values.items()}
    each = posterior.model.likelihood(predictor, {**nuisance, **terms})
    made = scaling.to_user(draw_of(each, torch.Generator().manual_seed(seed)))
    log_lik = Mixture(each).log_prob_by_component(scaling.to_model(data.y))
    log_lik = log_lik - scaling.outcome_scale().log()
    texts = [posterior.tree.labels[posterior.tree.nodes[node]] for node in where_at.tolist()]
    env, seen = np.array(texts), ~torch.isnan(data.y)
    flat = posterior.schema.outcome_ndim == 1
    if flat or seen.all():
        kept = seen[:, 0] if flat else torch.ones(len(data.y), dtype=torch.bool)
        picked: Any = (kept, 0) if flat else (kept, slice(None))
        dims = ["row", "outcome"][: 1 if flat else 2]
        where = kept.numpy()
        labels = data.rows[where]
    else:
        picked, dims = (seen,), ["observation"]
        where, columns = (place.numpy() for place in seen.nonzero(as_tuple=True))
        outcomes = names_as_text(posterior.outcome_names)
        pairs = zip(data.rows[where], columns, strict=True)
        labels = np.array([f"{row}, {outcomes[q]}" for row, q in pairs])
    by_draw, drawn, observed = (value[(..., *picked)].numpy() for value in (log_lik, made, data.y))
    groups: dict[str, dict[str, Any]] = {
        "posterior_predictive": {"y": drawn[None]},
        "log_likelihood": {"y": by_draw[None]},
        "observed_data": {"y": observed},
        "constant_data": {"env": env[where]},
    }
    return groups, {"y": dims, "env": dims[:1]}, {dims[0]: labels}
