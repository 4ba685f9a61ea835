"""AnnData: features, outcomes and environments out of one, results into one.

Nothing here needs the package but reading a file: whoever has an AnnData object has it. Install it
with ``pip install pyro-tbr[anndata]``.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_tbr.data import FeatureStream
from pyro_tbr.data.outcomes import names_as_text
from pyro_tbr.data.sparse import sparse_of_frame
from pyro_tbr.errors import DataError
from pyro_tbr.posterior import Posterior
from pyro_tbr.tree.readers.naming import listed, unknown_label

_PARTS = ("obs", "obsm", "uns", "var_names", "obs_names")


def from_anndata(
    adata: Any,
    *,
    env: str | None,
    y: str | Sequence[str] | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    obsm: str | None = None,
    in_memory: bool = True,
) -> tuple[pd.DataFrame | FeatureStream, pd.Series | pd.DataFrame | None, pd.Series | None]:
    """Features, outcomes and environments of the cells, as ``fit`` and ``predict`` take them.

    Genes may be outcomes, ``y="CD3D"``. Then they are not among the features, so that no gene is
    predicted from itself. Features from ``obsm`` are left as they are: what was made from all
    genes, such as ``X_pca``, has seen the outcome too, and predicts it better than it should; make
    it anew without these genes where that matters.

    Args:
        adata: An AnnData object, in memory or backed, or the path of an h5ad file.
        env: Column of ``obs`` with each cell's node; None where it is not known.
        y: Column or columns of ``obs`` with the outcomes, NaN where not observed, and genes, by
            their ``var_names``; or a key of ``obsm``. None: no outcomes, as in a prediction.
        layer: Take genes, features and outcomes both, from this layer rather than from ``X``.
            ``"raw"`` means ``use_raw=True``, unless a layer has that name.
        use_raw: Take them from ``adata.raw``, and its ``var_names``.
        obsm: Take features from this key of ``obsm``, such as ``"X_pca"``; ``layer`` and
            ``use_raw`` then say where genes among the outcomes come from.
        in_memory: Read the features. False leaves them where they are: a file that is opened in
            backed mode is read block by block as ``fit`` and ``predict`` ask for rows. A path is
            opened so.

    Returns:
        x, y, env with ``obs_names`` as index; x a :class:`FeatureStream` if not ``in_memory``. x
        has columns ``var_names``, so that genes are matched by name at prediction, and for an
        ``obsm`` key ``X_pca_0``, ``X_pca_1``, ...; sparse counts stay sparse. y is (N,) for one
        column, else (N, Q).

    Raises:
        DataError: A key that is not there, with the nearest; a name that means two things; a layer
            and an obsm key at a time, where no outcome is a gene.
        ImportError: A path was given and anndata is not installed.
    """
    if isinstance(adata, str | os.PathLike):
        try:
            import anndata
        except ImportError as error:
            raise ImportError(
                "reading h5ad files needs anndata: pip install pyro-tbr[anndata]"
            ) from error
        adata = anndata.read_h5ad(Path(adata), backed=None if in_memory else "r")
    _check_kind(adata)
    genes = _Genes.of(adata, layer, use_raw)
    outcomes, used = (None, []) if y is None else _outcomes(adata, y, genes)
    if obsm is not None and genes.chosen and not used:
        raise DataError(f"{genes.chosen} and obsm={obsm!r}: features come from one of them")
    x = _features(adata, genes, obsm, without=used, in_memory=in_memory)
    labels = None if env is None else adata.obs[_key(env, adata.obs.columns, "env", "obs columns")]
    return x, outcomes, labels


def to_anndata(
    posterior: Posterior,
    adata: Any,
    *,
    key: str = "tbr",
    layer: str | None = None,
    use_raw: bool = False,
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
        use_raw: Likewise.
        obsm: Likewise.
        copy: Write into a copy, which is returned.

    Raises:
        DataError: No AnnData object, a key that is not there, or features of another kind.
        TreeError: Nodes whose labels are alike as text.
    """
    _check_kind(adata)
    if not key or "/" in key:
        raise DataError(f"key={key!r}: give a word without a slash, which h5ad takes for a group")
    genes = _Genes.of(adata, layer, use_raw)
    if obsm is not None and genes.chosen:
        raise DataError(f"{genes.chosen} and obsm={obsm!r}: features come from one of them")
    known = posterior.schema.feature_names
    # Genes that were outcomes of the fit were none of its features.
    outcomes = [] if known is None else [n for n in posterior.outcome_names if n not in known]
    in_memory = not getattr(adata, "isbacked", False)
    x: Any = _features(adata, genes, obsm, without=outcomes, in_memory=in_memory)
    if known is None and in_memory:  # by position, for a fit to an array
        stored = sparse_of_frame(x)
        x = x.to_numpy() if stored is None else stored
    latents = np.asarray(posterior.encode(x))
    tree = posterior.tree.to_newick(comments=posterior.pips())
    adata = adata.copy() if copy else adata
    adata.obsm[f"X_{key}"] = latents
    adata.uns[key] = {
        "deltas": _writable(posterior.deltas(), ("parent", "child", "outcome")),
        "node_weights": _writable(posterior.node_weights(), ("node", "outcome")),
        "latents": np.array(posterior.latent_names[: latents.shape[1]], dtype=object),
        "outcomes": np.array(names_as_text(posterior.outcome_names), dtype=object),
        "tree": tree,
    }
    return adata


class _Genes(NamedTuple):
    """Where a user has genes from."""

    source: Any  # the AnnData object or its raw
    layer: str | None
    chosen: str  # the argument that says so, for messages; empty for X

    @classmethod
    def of(cls, adata: Any, layer: str | None, use_raw: bool) -> _Genes:
        """As ``from_anndata`` says."""
        known = list(adata.layers)
        chosen = "" if layer is None else f"layer={layer!r}"
        if layer == "raw" and "raw" not in known:
            layer, use_raw = None, True
        elif use_raw:
            chosen = f"{chosen} and use_raw=True".removeprefix(" and ")
        if layer is not None and use_raw:
            raise DataError(f"{chosen}: genes come from one of them")
        if use_raw:
            if adata.raw is None:
                what = f"; layers are {listed(known)}" if known else ""
                raise DataError(f"{chosen}: adata.raw is empty{what}")
            return cls(adata.raw, None, chosen)
        layer = None if layer is None else _key(layer, known, "layer", "layers")
        return cls(adata, layer, chosen)

    @property
    def names(self) -> pd.Index:
        """``var_names``."""
        return self.source.var_names

    def matrix(self) -> Any:
        """Values of all genes, in memory or in a file, sparse where they are."""
        values = self.source.X if self.layer is None else self.source.layers[self.layer]
        if values is None:
            raise DataError(
                "adata.X is empty: name the layer or the obsm key that features come from"
            )
        return values

    def column(self, name: str) -> NDArray[Any]:
        """Values of one gene, dense, (N,); by its place, as raw in a file gives all for a name."""
        values = self.matrix()[:, [self.names.get_loc(name)]]
        return np.asarray(values.toarray() if hasattr(values, "toarray") else values)[:, 0]


def _check_kind(adata: Any) -> None:
    if not all(hasattr(adata, part) for part in _PARTS):
        raise DataError(f"adata: expected an AnnData object, received {type(adata).__name__}")


def _features(
    adata: Any, genes: _Genes, obsm: str | None, without: Sequence[Hashable], in_memory: bool
) -> pd.DataFrame | FeatureStream:
    """All genes but some, as a DataFrame, sparse where the features are, or left where they are."""
    if obsm is not None:
        table = _obsm_table(adata, _key(obsm, adata.obsm, "obsm", "obsm keys"))
        if in_memory:
            return table
        return FeatureStream(table.to_numpy(), table.columns, table.index)  # in memory in any case
    kept = ~genes.names.isin(list(without))
    values = genes.matrix()
    if not in_memory:
        places = None if kept.all() else np.flatnonzero(kept).astype(np.int64)
        return FeatureStream(values, genes.names[kept], adata.obs_names, places)
    if not kept.all():
        values = values[:, np.flatnonzero(kept)]
    return _table(values, adata.obs_names, genes.names[kept])


def _outcomes(
    adata: Any, y: str | Sequence[str], genes: _Genes
) -> tuple[pd.Series | pd.DataFrame, list[str]]:
    """Outcomes, and which of them are genes."""
    columns = adata.obs.columns
    if isinstance(y, str) and y in adata.obsm and y not in columns and y not in genes.names:
        return _obsm_table(adata, y), []
    found: dict[str, pd.Series] = {}
    for name in [y] if isinstance(y, str) else y:
        places = {
            "an obs column": name in columns,
            "a gene": name in genes.names,
            "a key of obsm": isinstance(y, str) and name in adata.obsm,
        }
        kinds = [kind for kind, there in places.items() if there]
        if len(kinds) > 1:
            renamed = f"adata.obs = adata.obs.rename(columns={{{name!r}: {name + '_obs'!r}}})"
            remedy = renamed if name in columns else "rename the key of obsm"
            raise DataError(f"y: {name!r} is {' and '.join(kinds)}, so say which: {remedy}")
        if name in columns:
            found[name] = adata.obs[name]
            continue
        _key(name, [*columns, *genes.names], "y", "obs columns and genes")
        times = int((genes.names == name).sum())
        if times > 1:
            raise DataError(
                f"y: {times} genes are called {name!r}: adata.var_names_make_unique() first"
            )
        found[name] = pd.Series(genes.column(name), index=adata.obs_names, name=name)
    used = [name for name in found if name not in columns]
    if isinstance(y, str):
        return found[y], used
    return pd.DataFrame(found, index=adata.obs_names, columns=list(y)), used


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
