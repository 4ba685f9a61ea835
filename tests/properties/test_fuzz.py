"""Readers and files that are given anything: an answer or an error of ours, and no crash."""

import random
import string
import warnings

import pytest
from pandas.testing import assert_frame_equal

import pyro_tbr as tbr
from pyro_tbr.errors import TbrError

NEWICK = "()[],:;'\"_ \t\n0123456789.eE+-" + string.ascii_letters
SEEDS = ["((a:1,b:2)x:0.5,(c,d)y)r;", "(a,(b,(c,(d,e))));", "('a b':1,b[note]:2e-3)'it''s';"]


def mutated(text, rng):
    """A few letters put in, left out, exchanged or doubled."""
    letters = list(text)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(letters) + 1)
        what = rng.random()
        if what < 0.4:
            letters.insert(place, rng.choice(NEWICK))
        elif letters and what < 0.7:
            del letters[min(place, len(letters) - 1)]
        elif letters and what < 0.9:
            letters[min(place, len(letters) - 1)] = rng.choice(NEWICK)
        else:
            part = letters[place : place + rng.randint(1, 8)]
            letters[place:place] = part
    return "".join(letters)


@pytest.mark.parametrize("number", [2_000, pytest.param(60_000, marks=pytest.mark.slow)])
def test_newick_is_read_or_refused(number):
    """What is read is a tree, every name in it one of the text's or made up."""
    rng, read = random.Random(0), 0
    for _ in range(number):
        text = mutated(rng.choice(SEEDS), rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tree = tbr.Tree.from_newick(text)
            except TbrError:
                continue
        read += 1
        assert tree.num_nodes == len(set(tree.nodes)) == tree.num_arcs + 1, text
        assert set(tree.leaves) == set(tree.nodes) - {parent for parent, _ in tree.arcs}, text
    assert read > number / 50  # it is no test of refusals alone


@pytest.mark.parametrize("number", [1_000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_tables_of_parents_are_read_or_refused(number):
    rng, read = random.Random(1), 0
    names = [*"abcdef", 1, 2.5, None, float("nan"), ("a",), "", "a ", True]
    for _ in range(number):
        size = rng.randint(1, 7)
        parents = {rng.choice(names): rng.choice(names) for _ in range(size)}
        try:
            tree = tbr.Tree.from_parents(parents)
        except TbrError:
            continue
        read += 1
        assert tree.num_nodes == len(set(tree.nodes)) == tree.num_arcs + 1
    assert read > number / 200


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    data = tbr.simulate(num_leaves=4, latent_dim=1, num_features=2, rows_per_leaf=10, seed=0)
    model = tbr.TreeModel(data.tree, 2, "identity")
    path = tmp_path_factory.mktemp("fuzz") / "posterior.tbr"
    tbr.fit(model, data.x, data.y, data.env, progress=False).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("number", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_whole(saved, number, tmp_path):
    """A damaged file is an error of ours, or what was damaged is nothing that is read."""
    rng, path = random.Random(2), tmp_path / "damaged.tbr"
    path.write_bytes(saved)
    whole = tbr.load(path).deltas()
    for _ in range(number):
        content = bytearray(saved)
        for _ in range(rng.randint(1, 4)):
            what, place = rng.random(), rng.randrange(len(content))
            if what < 0.5:
                content[place] ^= 1 << rng.randrange(8)
            elif what < 0.75:
                del content[place : place + rng.randint(1, 2000)]
            else:
                content[place:place] = rng.randbytes(rng.randint(1, 50))
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                posterior = tbr.load(path)
            except TbrError:
                continue
        assert_frame_equal(posterior.deltas(), whole)
