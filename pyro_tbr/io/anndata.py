"""AnnData: features, outcomes and environments out of one, results into one.

Nothing here needs the package but reading a file: whoever has an AnnData object has it. Install it
with ``pip install pyro-tbr[anndata]``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_tbr.data.outcomes import names_as_text
from pyro_tbr.data.sparse import sparse_of_frame
from pyro_tbr.errors import DataError
from pyro_tbr.posterior import Posterior
from pyro_tbr.tree.readers.naming import unknown_label

_PARTS = ("obs", "obsm", "uns", "var_names", "obs_names")


def from_anndata(
    adata: Any,
    *,
    env: str | None,
    y: str | Sequence[str] | None = None,
    layer: str | None = None,
    obsm: str | None = None,
) -> tuple[pd.DataFrame, pd.Series | pd.DataFrame | None, pd.Series | None]:
    """Features, outcomes and environments of the cells, as ``fit`` and ``predict`` take them.

    Args:
        adata: An AnnData object, in memory or backed, or the path of an h5ad file.
        env: Column of ``obs`` with each cell's node; None where it is not known.
        y: Column or columns of ``obs`` with the outcomes, NaN where not observed; or a key of
            ``obsm``. None: no outcomes, as in a prediction.
        layer: Take features from this layer rather than from ``X``.
        obsm: Take features from this key of ``obsm``, such as ``"X_pca"``.

    Returns:
        x, y, env with ``obs_names`` as index. x has columns ``var_names``, so that genes are
        matched by name at prediction, and for an ``obsm`` key ``X_pca_0``, ``X_pca_1``, ...;
        sparse counts stay sparse. y is (N,) for one column, else (N, Q).

    Raises:
        DataError: A key that is not there, with the nearest; a layer and an obsm key at a time.
        ImportError: A path was given and anndata is not installed.
    """
    if isinstance(adata, str | os.PathLike):
        try:
            import anndata
        except ImportError as error:
            raise ImportError(
                "reading h5ad files needs anndata: pip install pyro-tbr[anndata]"
            ) from error
        adata = anndata.read_h5ad(Path(adata))
    _check_kind(adata)
    x = _features(adata, layer, obsm)
    outcomes = None if y is None else _outcomes(adata, y)
    labels = None if env is None else adata.obs[_key(env, adata.obs.columns, "env", "obs columns")]
    return x, outcomes, labels


def to_anndata(
    posterior: Posterior,
    adata: Any,
    *,
    key: str = "tbr",
    layer: str | None = None,
    obsm: str | None = None,
    copy: bool = False,
) -> Any:
    """Writes latents of the cells, the table of changes and the tree into an AnnData object.

    What is written can be saved as h5ad: labels become text, and the tree is Newick text, which
    ``Tree.from_newick(adata.uns["tbr"]["tree"])`` reads.

    Args:
        posterior: From ``fit``.
        adata: Cells with the features of training, these or others.
        key: Under what name: ``obsm["X_tbr"]``, (N, K), and ``uns["tbr"]``, a dict with ``deltas``
            (see ``Posterior.deltas``; the parent's and child's labels as text), ``node_weights``,
            ``latents`` and ``outcomes`` (their names) and ``tree``, whose comments are the PIPs.
        layer: Where features come from, as in :func:`from_anndata`.
        obsm: Likewise.
        copy: Write into a copy, which is returned.

    Raises:
        DataError: No AnnData object, a key that is not there, or features of another kind.
        TreeError: Nodes whose labels are alike as text.
    """
    _check_kind(adata)
    if not key or "/" in key:
        raise DataError(f"key={key!r}: give a word without a slash, which h5ad takes for a group")
    x: Any = _features(adata, layer, obsm)
    if posterior.schema.feature_names is None:  # by position, for a fit to an array
        stored = sparse_of_frame(x)
        x = x.to_numpy() if stored is None else stored
    latents = np.asarray(posterior.encode(x))
    tree = posterior.tree.to_newick(comments=posterior.pips())
    adata = adata.copy() if copy else adata
    adata.obsm[f"X_{key}"] = latents
    adata.uns[key] = {
        "deltas": _writable(posterior.deltas(), ("parent", "child", "outcome")),
        "node_weights": _writable(posterior.node_weights(), ("node", "outcome")),
        "latents": np.array([n for n in posterior.latent_names if n != "intercept"], dtype=object),
        "outcomes": np.array(names_as_text(posterior.outcome_names), dtype=object),
        "tree": tree,
    }
    return adata


def _check_kind(adata: Any) -> None:
    if not all(hasattr(adata, part) for part in _PARTS):
        raise DataError(f"adata: expected an AnnData object, received {type(adata).__name__}")


def _features(adata: Any, layer: str | None, obsm: str | None) -> pd.DataFrame:
    """A DataFrame, sparse where the features are."""
    if layer is not None and obsm is not None:
        raise DataError(f"layer={layer!r} and obsm={obsm!r}: features come from one of them")
    if obsm is not None:
        return _obsm_table(adata, _key(obsm, adata.obsm, "obsm", "obsm keys"))
    known = None if layer is None else _key(layer, adata.layers, "layer", "layers")
    values = adata.X if known is None else adata.layers[known]
    if values is None:
        raise DataError("adata.X is empty: name the layer or the obsm key that features come from")
    return _table(values, adata.obs_names, adata.var_names)


def _outcomes(adata: Any, y: str | Sequence[str]) -> pd.Series | pd.DataFrame:
    if isinstance(y, str) and y not in adata.obs.columns and y in adata.obsm:
        return _obsm_table(adata, y)
    for name in [y] if isinstance(y, str) else y:
        _key(name, adata.obs.columns, "y", "obs columns")
    return adata.obs[y if isinstance(y, str) else list(y)]


def _obsm_table(adata: Any, key: str) -> pd.DataFrame:
    values = adata.obsm[key]
    if isinstance(values, pd.DataFrame):
        return values
    return _table(values, adata.obs_names, [f"{key}_{j}" for j in range(values.shape[1])])


def _table(values: Any, index: pd.Index, columns: Any) -> pd.DataFrame:
    if hasattr(values, "to_memory"):  # sparse, in a file
        values = values.to_memory()
    if hasattr(values, "tocsc"):
        accessor: Any = pd.DataFrame.sparse
        return accessor.from_spmatrix(values, index=index, columns=columns)
    return pd.DataFrame(np.asarray(values), index=index, columns=columns)


def _key(key: str, known: Any, argument: str, kind: str) -> str:
    if key not in known:
        raise DataError(f"{argument}: {unknown_label(key, list(known), kind)}")
    return key


def _writable(table: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Labels as text, since a column of an h5ad file has one type."""
    text = {name: table[name].map(str).astype(object) for name in labels}
    table = table.assign(**text)
    return table.set_axis(table.index.map(str), axis=0)
