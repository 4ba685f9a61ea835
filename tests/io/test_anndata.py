"""AnnData in and out, through a file too."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import pyro_tbr as tbr
from pyro_tbr.errors import DataError
from tests.cases.toy import identity_fit, linear_fit, same_fit, star, toy

anndata = pytest.importorskip("anndata", reason="needs anndata: pip install pyro-tbr[anndata]")

LEAVES = ["a", "b/c", "d e"]
TREE = star(LEAVES)
X, Y, ENV = toy(LEAVES, n=20, d=4)
X = np.where(np.abs(X) < 0.3, 0, X).astype(np.float32)


def cells(x=X):
    obs = pd.DataFrame(
        {"type": pd.Categorical(ENV, categories=[*LEAVES, "zz"]), "score": Y, "other": -Y},
        index=[f"cell{i}" for i in range(len(Y))],
    )
    var = pd.DataFrame(index=[f"gene{j}" for j in range(4)])
    adata = anndata.AnnData(x, obs=obs, var=var)
    adata.layers["half"] = x / 2
    raw = np.concatenate([2 * X, X[:, :1] + 1], axis=1)
    names = pd.DataFrame(index=[*var.index, "CD3D"])
    adata.raw = anndata.AnnData(raw if isinstance(x, np.ndarray) else type(x)(raw), obs, names)
    adata.obsm["X_pca"] = X[:, :2]
    adata.obsm["targets"] = pd.DataFrame({"p": Y, "q": Y}, index=obs.index)
    return adata


def fit(adata, **keys):
    return linear_fit(TREE, *tbr.from_anndata(adata, **keys))


@pytest.fixture(scope="module")
def posterior():
    return fit(cells(), env="type", y="score")


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_every_kind_of_x_gives_the_same_fit(form, posterior):
    adata = cells(form(X))
    x, y, env = tbr.from_anndata(adata, env="type", y="score")
    assert isinstance(x.dtypes.iloc[0], pd.SparseDtype) == sp.issparse(adata.X)
    assert list(x.columns) == list(adata.var_names)
    assert x.index.equals(adata.obs_names)
    same_fit(linear_fit(TREE, x, y, env), posterior)
    pd.testing.assert_frame_equal(posterior.encode(x), posterior.encode(pd.DataFrame(
        X, index=adata.obs_names, columns=adata.var_names)))  # fmt: skip


def test_layers_obsm_and_several_outcomes():
    adata = cells()
    x, y, env = tbr.from_anndata(adata, env=None, y=["score", "other"], layer="half")
    np.testing.assert_allclose(x, X / 2)
    assert list(y.columns) == ["score", "other"]
    assert env is None
    x, y, _ = tbr.from_anndata(adata, env="type", obsm="X_pca")
    assert (list(x.columns), y) == (["X_pca_0", "X_pca_1"], None)
    assert list(tbr.from_anndata(adata, env="type", y="targets")[1].columns) == ["p", "q"]


def test_genes_are_matched_by_name(posterior):
    adata = cells()[::-1, ["gene3", "gene1", "gene0", "gene2"]]
    x, _, env = tbr.from_anndata(adata, env="type")
    expected = posterior.predict(tbr.from_anndata(cells(), env=None)[0], ENV).mean
    pd.testing.assert_series_equal(posterior.predict(x, env).mean, expected[::-1])
    with pytest.raises(DataError, match="'gene2'"):
        posterior.predict(tbr.from_anndata(adata[:, :3], env=None)[0], "a")


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("labels", ["text", "mixed"])
def test_results_go_through_a_file(form, labels, tmp_path, posterior):
    if labels == "mixed":
        tree = tbr.Tree.from_parents({"a": 0, "b/c": 0, "d e": 0, ("t", 1): 0})
        posterior = linear_fit(tree, *tbr.from_anndata(cells(), env="type", y="score"))
    adata = cells(form(X))
    written = tbr.to_anndata(posterior, adata, copy=True)
    assert "tbr" not in adata.uns
    written.write_h5ad(tmp_path / "cells.h5ad")
    x, y, env = tbr.from_anndata(tmp_path / "cells.h5ad", env="type", y="score")
    same_fit(linear_fit(posterior.tree, x, y, env), posterior)
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_allclose(back.obsm["X_tbr"], posterior.encode(x))
    results = back.uns["tbr"]
    assert set(tbr.Tree.from_newick(results["tree"]).leaves) == {
        str(n) for n in posterior.tree.leaves
    }
    assert "[&&NHX:z0=" in results["tree"]
    table = posterior.deltas()
    np.testing.assert_allclose(results["deltas"]["pip"], table["pip"])
    assert list(results["deltas"]["child"]) == [str(child) for child in table["child"]]
    assert list(results["latents"]) == ["z0", "z1"]
    assert list(results["outcomes"]) == ["score"]


def test_results_of_a_fit_to_arrays_and_to_a_key(posterior):
    plain = linear_fit(TREE, X, Y, ENV)
    adata = tbr.to_anndata(plain, cells(sp.csr_matrix(X)), key="plain")
    np.testing.assert_allclose(adata.obsm["X_plain"], plain.encode(X), rtol=1e-6)
    reduced = fit(adata, env="type", y="score", obsm="X_pca")
    tbr.to_anndata(reduced, adata, key="pca", obsm="X_pca")
    assert set(adata.uns) == {"plain", "pca"}
    with pytest.raises(DataError, match="lacks 2 column"):
        tbr.to_anndata(reduced, adata)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_genes_are_outcomes_and_then_no_features(form):
    adata = cells(form(X))
    x, y, _ = tbr.from_anndata(adata, env="type", y="gene1")
    assert list(x.columns) == ["gene0", "gene2", "gene3"]
    assert (y.name, y.index.equals(adata.obs_names)) == ("gene1", True)
    np.testing.assert_array_equal(y, X[:, 1])
    np.testing.assert_array_equal(x, X[:, [0, 2, 3]])
    x, y, _ = tbr.from_anndata(adata, env="type", y=["gene3", "score"], layer="half")
    assert (list(x.columns), list(y.columns)) == (["gene0", "gene1", "gene2"], ["gene3", "score"])
    np.testing.assert_array_equal(y["gene3"], X[:, 3] / 2)
    x, y, _ = tbr.from_anndata(adata, env="type", y="CD3D", obsm="X_pca", use_raw=True)
    assert list(x.columns) == ["X_pca_0", "X_pca_1"]
    np.testing.assert_array_equal(y, X[:, 0] + 1)


def test_raw_has_genes_of_its_own(tmp_path):
    adata = cells(sp.csr_matrix(X))
    x, y, env = tbr.from_anndata(adata, env="type", y="CD3D", layer="raw")
    assert list(x.columns) == ["gene0", "gene1", "gene2", "gene3"]
    np.testing.assert_array_equal(x, 2 * X)
    posterior = identity_fit(TREE, x, y, env, mixture_components=2)
    written = tbr.to_anndata(posterior, adata, use_raw=True, copy=True)
    np.testing.assert_array_equal(written.obsm["X_tbr"], posterior.encode(x))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    for key in ({"use_raw": True}, {"layer": "half"}, {}):
        memory = tbr.from_anndata(adata, env="type", y="gene2", **key)
        for one, other in zip(tbr.from_anndata(backed, env="type", y="gene2", **key), memory,
                              strict=True):  # fmt: skip
            np.testing.assert_array_equal(one, other)
    backed.file.close()
    adata.layers["raw"] = X / 4  # a layer of that name goes first
    np.testing.assert_array_equal(tbr.from_anndata(adata, env=None, layer="raw")[0], X / 4)
    assert len(tbr.from_anndata(adata, env=None, use_raw=True)[0].columns) == 5


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_features_stay_in_the_file(kind, tmp_path):
    """In backed mode, dense or sparse, a gene left out; nothing of it is read whole."""
    memory = cells(kind(X))
    memory.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    for adata in (backed, tmp_path / "cells.h5ad"):
        x, y, env = tbr.from_anndata(adata, env="type", y="gene1", in_memory=False)
        expected, *_ = tbr.from_anndata(memory, env="type", y="gene1")
        assert isinstance(x, tbr.FeatureStream)
        assert x.names == tuple(expected.columns)
        assert list(x.index) == list(expected.index)
        np.testing.assert_allclose(x.dense(), expected.to_numpy())
    rows = torch.tensor([5, 2, 2, 59])
    np.testing.assert_allclose(x[rows].dense(), expected.to_numpy()[rows])
    ours, theirs = linear_fit(TREE, x, y, env), linear_fit(TREE, expected, y, env)
    np.testing.assert_allclose(ours.pips(), theirs.pips(), atol=1e-5)
    assert list(ours.encode(x).index) == list(expected.index)
    latents = tbr.to_anndata(ours, backed).obsm["X_tbr"]
    np.testing.assert_allclose(latents, theirs.encode(expected), atol=1e-5)
    direct = linear_fit(TREE, backed.X, y, env)
    np.testing.assert_allclose(direct.encode(backed.X[:9]), direct.encode(kind(X)[:9]), atol=1e-6)
    backed.file.close()


def both_ways(adata):
    adata.obs["gene0"] = 1.0
    return adata


def doubled(adata):
    adata.var_names = ["gene0", "gene1", "gene1", "gene3"]
    return adata


def without_raw(adata):
    del adata.raw
    return adata


ERRORS = {
    "gene and column": (
        lambda a: tbr.from_anndata(both_ways(a), env="type", y=["score", "gene0"]),
        r"y: 'gene0' is an obs column and a gene, so say which: .*rename.*'gene0': 'gene0_obs'",
    ),
    "two genes of a name": (
        lambda a: tbr.from_anndata(doubled(a), env="type", y="gene1"),
        "y: 2 genes are called 'gene1': adata.var_names_make_unique",
    ),
    "a gene of raw alone": (
        lambda a: tbr.from_anndata(a, env="type", y="CD3D"), "y: 'CD3D'.*7 obs columns and genes"
    ),
    "no raw": (
        lambda a: tbr.from_anndata(without_raw(a), env="type", layer="raw"),
        "layer='raw': adata.raw is empty; layers are 'half'",
    ),
    "raw and a layer": (
        lambda a: tbr.from_anndata(a, env="type", layer="half", use_raw=True),
        "layer='half' and use_raw=True: genes come from one of them",
    ),
    "raw and obsm": (
        lambda a: tbr.from_anndata(a, env="type", y="score", obsm="X_pca", use_raw=True),
        "use_raw=True and obsm='X_pca'",
    ),
    "env": (lambda a: tbr.from_anndata(a, env="typ"), "env: 'typ'.*3 obs columns; nearest: 'type'"),
    "y": (lambda a: tbr.from_anndata(a, env="type", y=["score", "x"]), "y: 'x'"),
    "layer": (lambda a: tbr.from_anndata(a, env="type", layer="Half"), "layer: 'Half'.*'half'"),
    "obsm": (lambda a: tbr.from_anndata(a, env="type", obsm="pca"), "obsm: 'pca'.*'X_pca'"),
    "both": (lambda a: tbr.from_anndata(a, env="type", obsm="X_pca", layer="half"), "one of them"),
    "kind": (lambda a: tbr.from_anndata(a.obs, env="type"), "received DataFrame"),
    "empty": (
        lambda a: tbr.from_anndata(anndata.AnnData(obs=a.obs), env="type"), "adata.X is empty"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_the_key(call, message):
    with pytest.raises(DataError, match=message):
        call(cells())


def test_slashes_in_the_key(posterior):
    with pytest.raises(DataError, match="slash"):
        tbr.to_anndata(posterior, cells(), key="a/b")
