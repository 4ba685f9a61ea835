"""The tree of environments as TreeData: out, through a file, and in again."""

import subprocess
import sys

import networkx as nx
import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import TreeError
from tests.cases.toy import identity_fit, toy


class OnlyTrees:
    """What ``Tree.from_treedata`` needs of one."""

    def __init__(self, **graphs):
        self.obst = graphs


GRAPH = nx.DiGraph([("r", "u"), ("r", "c"), ("u", "a"), ("u", "b")])


def test_a_tree_comes_out_by_its_name():
    expected = tbr.Tree.from_networkx(GRAPH)
    assert tbr.Tree.from_treedata(OnlyTrees(only=GRAPH)) == expected
    two = OnlyTrees(first=nx.DiGraph([("r", "a"), ("r", "b")]), second=GRAPH)
    assert tbr.Tree.from_treedata(two, "second") == expected
    with pytest.raises(TreeError, match="2 trees: 'first', 'second'; name one"):
        tbr.Tree.from_treedata(two)
    with pytest.raises(TreeError, match="key.*'secnd'.*'second'"):
        tbr.Tree.from_treedata(two, "secnd")
    with pytest.raises(TreeError, match="TreeData object, received DiGraph"):
        tbr.Tree.from_treedata(GRAPH)


def test_one_line_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['treedata'] = None\n"
        "import pyro_tbr as tbr\n"
        "try:\n"
        "    tbr.to_treedata(None)\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "to_treedata needs treedata: pip install pyro-tbr[treedata]"


@pytest.mark.parametrize("num_outcomes", [1, 2])
@pytest.mark.parametrize("lengths", [None, {"u": 0.5, "c": 2.0, 1: 1.0, "b": 1.0}])
def test_edges_carry_what_changed(num_outcomes, lengths, tmp_path):
    treedata = pytest.importorskip(
        "treedata", reason="needs treedata: pip install pyro-tbr[treedata]"
    )
    tree = tbr.Tree.from_parents({"u": "r", "c": "r", 1: "u", "b": "u"}, lengths=lengths)
    x, y, env = toy([1, "b", "c"], n=20, d=2, shift=[("b", 0, 3.0)])
    y = y if num_outcomes == 1 else np.column_stack([y, -y])
    posterior = identity_fit(tree, x, y, env)
    tdata = tbr.to_treedata(posterior, key="cells")
    path = tmp_path / "tree.h5td"
    tdata.write_h5td(path)
    pips = posterior.pips()
    for found in (tdata, treedata.read_h5td(path)):
        assert list(found.obs_names) == [str(leaf) for leaf in tree.leaves]
        assert found.obs["rows"].tolist() == [20, 20, 20]
        graph = found.obst["cells"]
        name, column = ("z0", "z0") if num_outcomes == 1 else ("y1_z0", ("y1", "z0"))
        for parent, child in tree.arcs:
            edge = graph.edges[str(parent), str(child)]
            assert edge[f"pip_{name}"] == pytest.approx(pips.loc[(parent, child), column])
        assert graph.nodes["1"]["depth"] == pytest.approx(2.0 if lengths is None else 1.5)
        back = tbr.Tree.from_treedata(found)
        assert set(back.leaves) == {"1", "b", "c"}
        assert sorted(back.lengths, key=str) == sorted(tree.lengths, key=str)
        weight = found.obsm["weights"].loc["b", name]
        table = posterior.node_weights().query("node == 'b' and latent == 'z0'")
        assert weight == pytest.approx(table["mean"].iloc[-1])
