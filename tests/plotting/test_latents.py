"""Latents by environment: a colour each, or one for each of some even clades."""

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import DataError
from pyro_tbr.plotting import canvas, latents, plot_latents
from pyro_tbr.plotting.layout import even_clades, lowest_common, tree_layout


def _cuts(tree, node, asked):
    """Sizes of the parts of every way to cut the clade of a node, in brief: (parts, largest)."""
    own = node in asked
    below = [_cuts(tree, child, asked) for child in tree.children(node)]
    number = own + sum(max(size for _, size in one) for one in below)
    found = {(0, 0)} if not number else {(1, number)}
    apart = {(int(own), int(own))}
    for one in below:
        apart = {(a + b, max(m, n)) for a, m in apart for b, n in one}
    return found | apart if number > 1 else found


@pytest.mark.parametrize(
    "newick",
    [
        "(((a,b)u,(c,d,e)v)w,((f,g)x,h)y,(i,(j,(k,l)z)m)n)r;",
        "((((((a,b)u,c)v,d)w,e)x,f)y,g)r;",
        "((a,b,c,d,e,f)u,(g,h)v)r;",
    ],
)
@pytest.mark.parametrize("most", [2, 4, 6])
@pytest.mark.parametrize("inner", [False, True])
def test_clades_are_as_even_as_any_cut(newick, most, inner):
    tree = tbr.Tree.from_newick(newick)
    asked = [*tree.leaves, "u"] if inner else list(tree.leaves)
    nodes = np.array([tree.index(node) for node in asked])
    parts = even_clades(tree, nodes, most)
    best = min(size for number, size in _cuts(tree, "r", asked) if number <= most)
    assert len(parts) <= most
    assert max(map(len, parts)) == best
    place = np.argsort(tree_layout(tree).order)
    walk = [place[node] for part in parts for node in part]
    assert sorted(walk) == sorted(place[nodes])
    for part in parts:
        top = tree.nodes[lowest_common(tree, part)]
        below = {top, *(child for _, child in tree.arcs_below(top))}
        inside = {tree.nodes[node] for node in part}
        assert inside == below & set(asked) or len(part) == 1


def _key(ax):
    legend = ax.get_legend()
    colours = [handle.get_color() for handle in legend.legend_handles]
    return legend.get_title().get_text(), colours, [t.get_text() for t in legend.get_texts()]


def test_few_environments_have_a_colour_each(awkward):
    x, _, env, posterior = awkward
    title, colours, names = _key(plot_latents(posterior, x, env))
    assert title == "environment"
    assert len(names) == len(set(colours)) == 3
    assert names[::2] == ["_under", "it's_me $x^2$ $"]


def test_many_environments_are_coloured_by_clade(crowded):
    x, _, env, posterior = crowded
    ax = plot_latents(posterior, x, env)
    title, colours, names = _key(ax)
    assert title.startswith("clade")
    assert 5 <= len(names) == len(set(colours)) <= len(canvas.CATEGORIES)
    sizes = [int(name.rsplit(": ", 1)[1]) for name in names]
    assert sum(sizes) == len(set(env))
    assert max(sizes) < 0.4 * sum(sizes)
    (points,) = ax.collections
    shown = {tuple(colour[:3]) for colour in points.get_facecolors()}
    assert len(shown) == len(names)
    # The greys, hard to tell apart, are of the smallest.
    by_size = [colour for _, colour in sorted(zip(sizes, colours, strict=True))][::-1]
    assert set(by_size[:7]) == set(canvas.CATEGORIES[:7])


def test_a_star_has_no_clades_and_is_cut_in_its_order():
    leaves = [f"leaf{i}" for i in range(25)]
    tree = tbr.Tree.from_parents(dict.fromkeys(leaves, "root"))
    nodes = np.array([tree.index(leaf) for leaf in leaves])
    assert [len(part) for part in even_clades(tree, nodes, 10)] == [25]
    colours, keys, title = latents._coloured(tree, np.concatenate([nodes, nodes[:1]]))
    assert title.startswith("in tree order")
    assert len({colour for colour, _ in keys}) == 10
    assert keys[0][1] == "leaf0 to leaf2: 3"
    assert colours[0] == colours[1] == colours[-1] == keys[0][0]
    assert sum(int(words.rsplit(": ", 1)[1]) for _, words in keys) == 25


def test_the_intercept_is_no_latent(learnt):
    sim, posterior = learnt
    with pytest.raises(DataError, match="latent='intercept': the intercept is the same in every r"):
        plot_latents(posterior, sim.x, sim.env, ("z0", "intercept"))
