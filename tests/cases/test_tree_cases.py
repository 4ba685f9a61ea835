"""Cases O-01 to O-08 and O-12: trees in, each by every reader that can meet it.

A case came from public bug reports of other libraries; its test keeps the case's number.
"""

import ast
import copy
import pickle
import re
import sys
import time

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy.cluster.hierarchy import linkage

import pyro_tbr as tbr
from pyro_tbr.errors import DataWarning, TreeError
from pyro_tbr.tree import Tree
from tests.brief import sweeps
from tests.cases.toy import identity_fit, known_fit, toy


def lengths_by_child(tree):
    return dict(zip(tree.nodes[1:], tree.lengths, strict=True))


@pytest.mark.parametrize("name", [
    "p__A; c__B (class)", "it's_me", "a(b", "a)b", "a:b", "a,b", "a[b]", "''", "a'", " lead", "µ-☃",
])  # fmt: skip
def test_o01_quoted_labels(name):
    """Quotes are looked at before punctuation, and doubled again on the way out."""
    quoted = "'" + name.replace("'", "''") + "'"
    tree = Tree.from_newick(f"(({quoted}:0.11,b:0.2)'100.0:g__C':0.3,plain:0.4)root;")
    assert set(tree.leaves) == {name, "b", "plain"}
    assert lengths_by_child(tree) == {name: 0.11, "b": 0.2, "100.0:g__C": 0.3, "plain": 0.4}
    assert Tree.from_newick(tree.to_newick()) == tree
    x, y, env = toy([name, "plain"], n=10, d=2)
    pips = identity_fit(tree, x, y, env).pips()
    assert ("100.0:g__C", name) in pips.index


def test_o01_labels_of_releases():
    """Support and rank list in one label, as GTDB and Greengenes write them, are a name."""
    text = "((GB_1.1:0.1,RS_2.1:0.2)'100.0:d__Bacteria; p__Firmicutes':0.3,(x:1,y:1)100.0:0.2)r;"
    tree = Tree.from_newick(text.replace(",", ",\r\n\t").replace("(", "( "))
    assert tree.children("r") == ("100.0:d__Bacteria; p__Firmicutes", "inner1")
    assert tree.support == {"inner1": 100.0}
    assert tree.leaves == ("GB_1.1", "RS_2.1", "x", "y")
    assert Tree.from_newick(tree.to_newick()) == tree


def test_o02_underscores_and_case():
    """Three different leaves; a label that nearly matches is refused, with the pair."""
    tree = Tree.from_newick("((E_coli,e_coli),'E coli');")
    assert set(tree.leaves) == {"E_coli", "e_coli", "E coli"}
    one = Tree.from_newick("(E_coli,other);")
    for label in ("E coli", "e_coli", "E. coli"):
        with pytest.raises(TreeError, match=f"'{label}'.*nearest node 'E_coli'"):
            tbr.fit(tbr.TreeModel(one, 1), np.eye(2), [0.0, 1.0], [label, "other"])


def test_o03_comments_and_awkward_lengths():
    """Comments are dropped; a missing length is None; where lengths are used, they must be good."""
    text = "[&R] ((A:1e-1[&&NHX:S=x],B:0)u:-3e-13,[marker](C:2,D)v:0.5)r:0.0;"
    with pytest.warns(DataWarning, match="'r' -> 'u'"):
        tree = Tree.from_newick(text)
    assert lengths_by_child(tree) == {"u": 0, "v": 0.5, "A": 0.1, "B": 0, "C": 2, "D": None}
    x, y, env = toy(["A", "B", "C"], n=20, d=1)
    bad = Tree.from_newick("((A:1,B:1)u:-2,C:1);")
    identity_fit(bad, x, y, env)  # lengths are not used
    prior = tbr.SpikeSlabPrior(inclusion_prob=0.2, use_lengths=True)
    for wrong, arc in ((bad, "'u'"), (Tree.from_newick("((A:1,B)u:2,C:1);"), "'B'")):
        with pytest.raises(TreeError, match=f"-> {arc}"):
            tbr.fit(tbr.TreeModel(wrong, 1, prior=prior, encoder="identity"), x, y, env)
    zero = Tree.from_newick("((A:1,B:0)u:1,C:1)r;")
    model = tbr.TreeModel(zero, 1, prior=prior, encoder="identity")
    pips = tbr.fit(model, x, y, env, progress=False).pips()
    assert pips.notna().all(axis=None)
    assert (pips.loc[("u", "B")] == 0).all()


@pytest.mark.parametrize(
    "text",
    [
        "(P,Q,R),S);", "((P,Q)(R,S));", "((P,Q),(R,S)", "", ";", "P;", "((P,Q),(R,S)));", "(P",
        "(P,", "(P,Q):", "(P,Q)\n:\n", "(P,,Q);", "(,P);", "()", "(P,Q);(R,S);", "(P:x,Q);",
        "(P:1:2,Q);", "(P,'Q);", "(P,Q[c;", "P,Q;", ")P(;", '("a b",c);', "(P,Q))", "(P:1,5e,Q);(",
    ],
)  # fmt: skip
def test_o04_broken_newick(text):
    """The place is named, with what stands around it; it lies in the text or at its end."""
    with pytest.raises(ValueError, match="<here>") as caught:
        Tree.from_newick(text)
    found = re.search(r"at character (\d+) of (\d+): (.*) <here> (.*)\)$", str(caught.value))
    if found:
        place, length = int(found[1]), int(found[2])
        assert 1 <= place <= length == len(text)
        assert text.startswith(ast.literal_eval(found[4]), place - 1)
    else:
        assert f"at the end, character {len(text)}: " in str(caught.value)
        assert str(caught.value).endswith("<here> '')")
    if text == "P;":
        assert "at least one arc" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"\x1f\x8b\x08\x00", "(é,b);".encode("latin1"), b"\xff\xfe(\0"]
)
def test_o04_files_that_are_no_text(content, tmp_path):
    """Compressed files and other encodings are told from broken trees."""
    path = tmp_path / "tree.nwk"
    path.write_bytes(content)
    with pytest.raises(TreeError, match=r"tree.nwk' is no text in UTF-8, as byte \d shows"):
        Tree.from_newick(path)


@pytest.mark.parametrize("make", [
    lambda: Tree.from_newick("((m,n),(o,m));"),
    lambda: Tree.from_parents([("m", "u"), ("n", "u"), ("m", "v"), ("u", "r"), ("v", "r")]),
    lambda: Tree.from_networkx(nx.DiGraph([("u", "m"), ("v", "m"), ("r", "u"), ("r", "v")])),
    lambda: Tree.from_taxonomy(pd.DataFrame({"g": ["u", "v"], "s": ["m", "m"]}), ["g", "s"]),
    lambda: Tree.from_linkage([[0, 1, 1, 2], [2, 3, 2, 3]], ["m", "n", "m"]),
], ids=["newick", "parents", "networkx", "taxonomy", "linkage"])  # fmt: skip
def test_o04_duplicate_leaves(make):
    """No way of giving a tree renames or joins them."""
    with pytest.raises(TreeError, match="'m'.*2|2.*'m'"):
        make()


def test_o05_single_children():
    """Chains stay; the arcs in series share what the data say (numbers: by enumeration)."""
    tree = Tree.from_networkx(nx.DiGraph([("r", "u"), ("u", "v"), ("v", "a"), ("r", "b")]))
    assert tree.leaves == ("b", "a")
    # Statistics as in the case: leaf weights 2 and 0, with variance 0.0025 each.
    x = np.tile([[1.0], [-1.0]], (100, 1))
    noise = 0.5
    y = np.r_[np.full(100, 2.0), np.zeros(100)] * x[:, 0]
    posterior = known_fit(tree, x, y, ["a"] * 100 + ["b"] * 100, noise)
    pips = posterior.pips()["z0"]
    np.testing.assert_allclose(pips[[("r", "u"), ("u", "v"), ("v", "a")]], 0.441, atol=0.02)
    assert pips[("r", "b")] == pytest.approx(0.219, abs=0.02)
    # Some arc of the chain is on in nearly all patterns: 0.977.
    assert posterior.path_pips("a")["z0"] == pytest.approx(0.977, abs=0.02)


O06 = {
    "two parents": (nx.DiGraph([("r", "a"), ("r", "b"), ("x", "b")]), "'b' has 2: 'r', 'x'"),
    "cycle": (nx.DiGraph([("x", "y"), ("y", "z"), ("z", "x")]), "cycle"),
    "reversed": (nx.DiGraph([("a", "u"), ("b", "u"), ("u", "r"), ("c", "r")]), "child to parent"),
    "undirected": (nx.Graph([("r", "a"), ("r", "b")]), "undirected"),
    "self loop": (nx.DiGraph([("r", "a"), ("r", "r")]), "self loop.*'r'"),
    "parallel": (nx.MultiDiGraph([("r", "a"), ("r", "a")]), "parallel.*'r' -> 'a'"),
}


@pytest.mark.parametrize(("graph", "message"), O06.values(), ids=O06.keys())
def test_o06_no_rooted_trees(graph, message):
    """One error each, which names the culprit."""
    with pytest.raises(TreeError, match=message):
        Tree.from_networkx(graph)


def test_o06_roots_in_parent_tables():
    """Ways to write the root make one tree; two roots are named; text of a gap is told."""
    ways = (None, np.nan, "", "r", pd.NA, pd.NaT)
    trees = {Tree.from_parents({"a": "r", "b": "r", "r": way}) for way in ways}
    nullable = pd.Series(["r", "r", None], index=["a", "b", "r"], dtype="string")
    trees |= {Tree.from_parents(nullable), Tree.from_parents(nullable.astype("category"))}
    assert len(trees) == 1
    with pytest.warns(DataWarning, match="'nan' is taken as the name of a node"):
        tree = Tree.from_parents(pd.Series({"a": "r", "r": np.nan}).map(str))
    assert tree.root == "nan"
    with pytest.raises(TreeError, match="'r1', 'r2'"):
        Tree.from_parents({"a": "r1", "b": "r2", "r1": None, "r2": None})


def test_o07_taxonomy():
    """Identity is the path; a gap hangs what is below from the nearest known rank."""
    table = pd.DataFrame(
        {
            "phylum": ["P1", "P1", "P2", "P2"],
            "genus": ["G", None, "G", "unclassified"],
            "species": ["s1", "s2", "s3", "unclassified"],
        },
        index=["g1", "g2", "g3", "g4"],
    )
    ranks = ["phylum", "genus", "species"]
    tree = Tree.from_taxonomy(table, ranks, leaves="index")
    assert {"P1/G", "P2/G"} <= set(tree.nodes)
    assert tree.parent("s2") == "P1"
    assert not {"nan", "None", None, np.nan, "unclassified"} & set(tree.nodes)
    named = Tree.from_taxonomy(table, ranks, leaves="index", gaps=())
    assert len([node for node in named.nodes if "unclassified" in str(node)]) == 2
    shuffled = Tree.from_taxonomy(table.iloc[[2, 0, 3, 1]], ranks, leaves="index")
    assert set(shuffled.arcs) == set(tree.arcs)
    x, y, env = toy(table.index, n=10, d=2)
    assert ("P2", "g4") in identity_fit(tree, x, y, env).pips().index


def test_o08_deep_trees():
    """Thousands of levels: no recursion, and the interpreter's limit stays what it is."""
    limit = sys.getrecursionlimit()
    chain = Tree.from_networkx(nx.path_graph(1500, create_using=nx.DiGraph))
    merges = linkage(np.cumsum(np.arange(1, 1501.0))[:, None], "single")
    labels = [f"g{i:04d}" for i in range(1500)]
    start = time.perf_counter()
    tree = Tree.from_linkage(merges, labels)
    for deep in (chain, tree):
        assert copy.deepcopy(deep) == pickle.loads(pickle.dumps(deep)) == deep
        assert Tree.from_parents(deep.to_frame()) == deep
        assert len(repr(deep)) < 200
    assert Tree.from_newick(tree.to_newick()) == tree
    assert time.perf_counter() - start < 20
    chain = Tree.from_networkx(nx.path_graph(1050, create_using=nx.DiGraph))
    model = tbr.TreeModel(chain, 1, "identity", tbr.GaussianPrior(scale=0.1), intercept=False)
    x, y, env = toy([1049, 550], n=3, d=2)
    with sweeps(1):
        posterior = tbr.fit(model, x[:, :1], y, env, progress=False)
    assert len(posterior.pips()) == chain.num_arcs
    assert sys.getrecursionlimit() == limit


def test_o08_a_cluster_used_twice():
    merges = linkage(np.cumsum(np.arange(1, 3001.0))[:, None], "single")[:5].copy()
    merges[4, :2] = merges[3, :2]
    with pytest.raises(TreeError, match=r"3002 \(rows 3, 4\)"):
        Tree.from_linkage(merges, list("abcdef"))


def test_o12_rows_at_inner_nodes():
    """Supported: they use the weights at that node and inform the arcs above it alone."""
    tree = Tree.from_networkx(nx.DiGraph([("r", "u"), ("r", "c"), ("u", "a"), ("u", "b")]))
    x, y, env = toy(["a", "b", "c", "u"], n=50, d=2)
    posterior = identity_fit(tree, x, y, env)
    assert posterior.row_counts[tree.index("u")] == 50
    weights = posterior.node_weights().query("node == 'u' and latent == 'z0'")
    single = posterior.predict(np.array([[1.0, 0.0]]), "u").mean
    offset = posterior.node_weights().query("node == 'u' and latent == 'intercept'")
    assert single[0] == pytest.approx(weights["mean"].item() + offset["mean"].item(), abs=0.05)
    alone = known_fit(tree, x[150:], y[150:], env[150:], 0.3)
    below = alone.deltas().query("child in ['a', 'b', 'c']")
    np.testing.assert_allclose(below["pip"], below["prior_pip"], atol=1e-6)
