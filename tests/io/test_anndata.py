"""AnnData in and out, through a file too."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import pyro_tbr as tbr
from pyro_tbr.errors import DataError
from tests.cases.toy import linear_fit, same_fit, star, toy

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


ERRORS = {
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
