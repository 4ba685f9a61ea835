"""Newick text: names letter for letter, lengths that are there, errors with their place."""

import pathlib

import newick
import numpy as np
import pandas as pd
import pytest

from pyro_tbr.errors import DataWarning, TreeError
from pyro_tbr.tree import Tree
from tests.tree.small_trees import SMALL_TREES


def lengths_by_child(tree):
    return dict(zip(tree.nodes[1:], tree.lengths, strict=True))


def test_quoted_names():
    text = "(('p__A; c__B (class)':0.11,'it''s_me':0.2)'100.0:g__C':0.3,plain:0.4)root;"
    tree = Tree.from_newick(text)
    assert set(tree.leaves) == {"p__A; c__B (class)", "it's_me", "plain"}
    assert lengths_by_child(tree) == {
        "100.0:g__C": 0.3, "plain": 0.4, "p__A; c__B (class)": 0.11, "it's_me": 0.2
    }  # fmt: skip
    assert tree.to_newick() == text


def test_names_are_kept_letter_for_letter():
    tree = Tree.from_newick("((E_coli,e_coli),'E coli');")
    assert set(tree.leaves) == {"E_coli", "e_coli", "E coli"}


def test_comments_and_awkward_lengths():
    text = "[&R] ((A:1e-1[&&NHX:S=x],B:0)u:-3e-13,[marker](C:2,D)v:0.5)r:0.0;"
    with pytest.warns(DataWarning, match=r"1 of 6 arc .*'r' -> 'u' \(-3e-13\)") as caught:
        tree = Tree.from_newick(text)
    assert caught[0].filename == __file__
    assert tree.leaves == ("A", "B", "C", "D")
    assert lengths_by_child(tree) == {"u": 0, "v": 0.5, "A": 0.1, "B": 0, "C": 2, "D": None}


def test_negative_lengths_are_an_error_where_lengths_are_used():
    tree = Tree.from_newick("((A:1,B:1)u:-2,C:1)r;")
    assert lengths_by_child(tree)["u"] == -2
    with pytest.raises(TreeError, match=r"1 of 4 arcs.*'r' -> 'u' \(length -2\)"):
        tree.require_lengths()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(P,Q,R),S);", r"outside of all brackets.*at character 8 of 11: '\(P,Q,R\)' <here> ',S"),
        ("(P,Q));", r"outside of all brackets.*at character 6 of 7"),
        ("((P,Q)(R,S));", r"a comma is missing \(at character 7 of 13: '\(\(P,Q\)' <here> '\(R,S"),
        ("((P,Q),(R,S)", "ends with 1 bracket still open .at the end, character 12: .*<here> ''"),
        ("((P,Q),(R,S);", "ends with 1 bracket still open .at character 13 of 13"),
        ("", "at least one arc, received no node"),
        (";", "at least one arc, received no node"),
        ("P;", "at least one arc, received one node, 'P'"),
        ("(P,);", "leaf without a name before this.*character 4"),
        ("(,P);", "leaf without a name before this.*character 2"),
        ("();", "leaf without a name"),
        ("(P,'');", "leaf without a name"),
        ("(P:1:2,Q);", "second length .at character 5"),
        ("(P:,Q);", "no length after the colon .at character 4"),
        ("(P,Q):", "ends after a colon"),
        ("(P:1e,Q);", "'1e' is no number"),
        ("(E coli,Q);", "quotes around a name that holds blanks.*character 4"),
        ("(O'Brien',Q);", "quotes around a name.*character 3"),
        ("(P,'Q);", "a quote that has no partner .at character 4"),
        ("(P,Q[x);", "a square bracket that has no partner .at character 5"),
        ("(P,Q]);", "a square bracket that has no partner .at character 5"),
        ("(P,Q);(R,S);", "one tree at a time .at character 7"),
        ("#NEXUS\nbegin trees; tree t = (P,Q); end;", "NEXUS"),
        ("no/such/file.nwk", "no file and no Newick text"),
        ("((m,n),(o,m));", r"1 leaf names occur more than once: 'm' \(2 times\)"),
        (["(P,Q);"], "received list"),
    ],
)
def test_broken_text(text, message):
    with pytest.raises(TreeError, match=message) as error:
        Tree.from_newick(text)
    assert str(error.value).startswith("newick: ")


def test_inner_names_are_made_unique():
    text = "((a,b)G,((c,d)G,(e,f)a)G,((g,h),inner1));"
    tree = Tree.from_newick(text)
    inner = [node for node in tree.nodes if node not in tree.leaves]
    assert inner == ["root", "G", "G#2", "inner2", "G#3", "a#2", "inner3"]
    assert [tree.labels[node] for node in inner] == [
        "root",
        "G",
        "G",
        "inner2",
        "G",
        "a",
        "inner3",
    ]
    assert tree.to_newick() == text
    assert Tree.from_newick(text) == tree


def test_numbers_inside_are_support():
    text = "((a,b)95:1.5,((c,d)95,e)0.8,(f,g)'95')100;"
    tree = Tree.from_newick(text)
    assert tree.support == {"root": 100, "inner1": 95, "inner2": 0.8, "inner3": 95}
    assert tree.nodes[:4] == ("root", "inner1", "inner2", "95")  # in quotes it is a name
    assert tree.labels["inner1"] == "95"
    assert tree.to_newick() == text
    assert Tree.from_newick("(1,2);").leaves == ("1", "2")


@pytest.mark.parametrize("tree", SMALL_TREES.values(), ids=SMALL_TREES.keys())
def test_there_and_back(tree):
    assert Tree.from_newick(tree.to_newick()) == tree


def test_awkward_labels_there_and_back():
    names = ["it's", "a b", "[x]", "(", ";", "1e5", "back\\slash", "''", "é", "nan", "line\nbreak"]
    parents = dict.fromkeys(names, "7") | {"leaf": names[0]}
    lengths = {names[0]: 1e-300, names[1]: 1 / 3, names[2]: 123456789.125}
    tree = Tree.from_parents(parents, lengths=lengths)
    assert Tree.from_newick(tree.to_newick()) == tree


def test_other_labels_become_text():
    assert Tree.from_parents({("a", 1): 10, 11: 10}).to_newick() == "('(''a'', 1)',11)'10';"
    with pytest.raises(TreeError, match="2 nodes would be written alike: 10, '10'"):
        Tree.from_parents({"10": 10, 11: 10}).to_newick()


def test_files(tmp_path, monkeypatch):
    path = tmp_path / "birds.nwk"
    path.write_text("\ufeff(a:1,\n b:2)r;\n\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for given in (path, str(path), "birds.nwk", pathlib.Path("birds.nwk")):
        assert lengths_by_child(Tree.from_newick(given)) == {"a": 1, "b": 2}
    with pytest.raises(FileNotFoundError):
        Tree.from_newick(tmp_path / "fish.nwk")


def test_deep_text():
    text = "(" * 5000 + "a" + "".join(f":1,b{i})" for i in range(5000)) + "r;"
    tree = Tree.from_newick(text)
    assert (tree.depth, tree.num_leaves) == (5000, 5001)
    assert Tree.from_newick(tree.to_newick()) == tree


@pytest.mark.parametrize("text", [
    "((a:1,b:2)u:3,(c:4,d:5,e:6)v:7,f:8)r;",
    "(((((x:1)w:2)v:3)u:4,'y z':5)t:6)s;",
])  # fmt: skip
def test_agrees_with_the_newick_package_where_that_is_right(text):
    expected = {
        node.unquoted_name: (node.ancestor.unquoted_name, node.length)
        for node in newick.loads(text)[0].walk()
        if node.ancestor
    }
    tree = Tree.from_newick(text)
    arcs = zip(tree.arcs, tree.lengths, strict=True)
    assert {child: (parent, length) for (parent, child), length in arcs} == expected


PIPS = pd.DataFrame(
    {("y0", "z0"): [0.98765, 0.0, np.nan], ("y0", "z1"): [1, 1e-9, np.nan]},
    index=pd.MultiIndex.from_tuples([("r", "u"), ("r", "c"), ("u", "a")]),
)


def test_comments_are_written_and_read_over():
    tree = Tree.from_newick("((a:1,b)u:2,c:3)r;")
    nhx = tree.to_newick(comments=PIPS)
    assert nhx == (
        "((a:1.0,b)u:2.0[&&NHX:y0_z0=0.9877:y0_z1=1],c:3.0[&&NHX:y0_z0=0:y0_z1=1e-09])r;"
    )
    beast = tree.to_newick(comments=PIPS, style="beast")
    assert "u[&y0_z0=0.9877,y0_z1=1]:2.0," in beast
    assert Tree.from_newick(nhx) == Tree.from_newick(beast) == tree


def test_comments_by_node_with_awkward_keys_and_values():
    tree = Tree.from_parents({("p", "q"): "r", "q": "p", "p": "r"})
    comments = {("p", "q"): {"a:b]": "x [y], z"}, "q": {"ok": True}, "r": {"n": 3.0, "none": None}}
    text = tree.to_newick(comments=comments)
    assert "[&&NHX:a_b_=x_y_z]" in text
    assert "q[&&NHX:ok=true]" in text
    assert text.endswith("r[&&NHX:n=3];")
    assert "[&&NHX:pip=0.5]" in tree.to_newick(pd.Series({"q": 0.5}, name="pip"))
    assert Tree.from_newick(text).to_newick() == tree.to_newick()


@pytest.mark.parametrize(("comments", "style", "message"), [
    ({"zz": 1}, "nhx", "comments: 1 keys are no node and no .parent, child. of the tree: 'zz'"),
    ({("c", "a"): 1}, "nhx", r"1 keys .*\('c', 'a'\)"),
    ([1, 2], "nhx", "comments: expected a table.*received list"),
    ({"a": 1}, "nexus", "style: 'nexus' is none of 'nhx', 'beast'"),
])  # fmt: skip
def test_comments_that_fit_no_node(comments, style, message):
    with pytest.raises(TreeError, match=message):
        Tree.from_newick("((a:1,b)u:2,c:3)r;").to_newick(comments, style=style)


def test_comments_by_arc_of_a_large_tree(monkeypatch):
    """Found on 5,000 genomes: no nearest node is looked for on the way (70 s for 10,000 arcs)."""
    monkeypatch.setattr("pyro_tbr.tree.tree.unknown_label", None)
    tree = Tree.from_newick("((a:1,b:2)100.0:3,'95.0:g__C; s__D':4)d__Bacteria;")
    text = tree.to_newick({arc: {"z0": 0.5} for arc in tree.arcs})
    assert text.count("z0=0.5") == tree.num_arcs
    assert Tree.from_newick(text) == tree
    assert Tree.from_newick(text).support == {tree.parent("a"): 100.0}
