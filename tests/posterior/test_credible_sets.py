"""Credible sets: what they are on small cases, and that they hold a change as often as they say."""

import math

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.posterior.credible_sets import find_credible_sets
from tests.posterior.small_fits import BALANCED, CHAIN, CHERRY, known_fit, toy

COLUMNS = ["latent", "outcome", "set", "arcs", "coverage", "purity"]


def one_of(shares, rng, num=4000):
    """Draws in which one of some arcs changed, or none where shares sum to less than 1."""
    pick = rng.choice(len(shares) + 1, size=num, p=[*shares, 1 - sum(shares)])
    return pick[:, None] == np.arange(len(shares))


def independent(pips, rng, num=4000):
    return rng.random((num, len(pips))) < np.array(pips)


def sets_of(*blocks, **kwargs):
    return find_credible_sets(np.concatenate(blocks, axis=1), **kwargs)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_sure_change_is_a_set_of_one_arc(rng):
    (found,) = sets_of(independent([0.1, 0.98, 0.3], rng))
    assert found.arcs == (1,)
    assert found.coverage == pytest.approx(0.98, abs=0.01)
    assert found.purity == 1.0


def test_alternatives_are_one_set_and_the_likeliest_comes_first(rng):
    (found,) = sets_of(independent([0.5, 0.3], rng), one_of([0.2, 0.5, 0.29], rng))
    assert found.arcs == (3, 4, 2)
    assert found.purity == 1.0


def test_only_arcs_that_are_needed_are_in_a_set(rng):
    (found,) = sets_of(one_of([0.5, 0.3, 0.17, 0.02], rng))
    assert found.arcs == (0, 1, 2)
    (found,) = sets_of(one_of([0.5, 0.3, 0.17, 0.02], rng), coverage=0.75)
    assert found.arcs == (0, 1)


def test_several_changes_are_several_sets(rng):
    found = sets_of(one_of([0.55, 0.44], rng), independent([0.999], rng), one_of([0.6, 0.4], rng))
    assert [one.arcs for one in found] == [(2,), (3, 4), (0, 1)]


@pytest.mark.parametrize(
    "pips", [[0.8, 0.8], [0.94, 0.2], [0.9, 0.5, 0.5], [0.15] * 20, [0.94, 0.5, 0.5]]
)
def test_independent_arcs_are_no_set_however_many(pips, rng):
    gates = independent(pips, rng)
    assert gates.any(1).mean() > 0.95
    assert find_credible_sets(gates) == []


def test_purity_is_the_least_share_of_changes_alone(rng):
    gates = one_of([0.6, 0.4], rng) | independent([0.3, 0.2], rng)  # one, often both
    (found,) = find_credible_sets(gates)
    alone = [(gates[:, a] & ~gates[:, 1 - a]).sum() / gates[:, a].sum() for a in (0, 1)]
    assert found.purity == pytest.approx(min(alone))


def test_a_set_less_pure_than_asked_for_is_not_given(rng):
    gates = one_of([0.6, 0.4], rng) | independent([0.3, 0.2], rng)
    (found,) = find_credible_sets(gates)
    assert find_credible_sets(gates, min_purity=found.purity - 0.01) == [found]
    assert find_credible_sets(gates, min_purity=found.purity + 0.01) == []


def test_no_arcs_no_sets():
    assert find_credible_sets(np.zeros((100, 3), dtype=bool)) == []
    assert find_credible_sets(np.zeros((100, 0), dtype=bool)) == []


def test_the_two_arcs_under_a_root_are_one_set():
    table = known_fit(CHERRY, *toy("ab", shift={"a": 2.0})).credible_sets()
    assert list(table.columns) == COLUMNS
    assert table[["latent", "outcome", "set"]].to_numpy().tolist() == [["z0", "y0", 1]]
    assert set(table["arcs"][0]) == {("r", "a"), ("r", "b")}
    assert table["coverage"][0] > 0.99


def test_arcs_in_series_are_one_set():
    """Case O-05: 0.977 together."""
    table = known_fit(CHAIN, *toy("ab", shift={"a": 2.0})).credible_sets()
    assert [set(arcs) for arcs in table["arcs"]] == [{("r", "u"), ("u", "v"), ("v", "a")}]
    assert table["coverage"][0] == pytest.approx(0.977, abs=0.015)


def test_two_changes_of_one_latent_are_two_sets():
    x, y, env = toy("abcd", shift={"d": 3.0, "a": -2.0})
    posterior = known_fit(BALANCED, x, y, env, rate=0.1, slab=2.0)
    table = posterior.credible_sets()
    assert sorted(table["arcs"]) == [(("u", "a"),), (("v", "d"),)]
    assert table["set"].tolist() == [1, 2]
    assert table.equals(posterior.credible_sets())  # a seed of its own


def test_nothing_sure_is_an_empty_table_with_its_columns():
    data = toy("abcd", num_rows=50, noise=1.0)
    table = known_fit(BALANCED, *data, noise=1.0, rate=0.1).credible_sets()
    assert table.empty
    assert list(table.columns) == COLUMNS


def test_arcs_without_data_are_in_no_set():
    x, y, env = toy("abc", shift={"a": 3.0})
    table = known_fit(BALANCED, x, y, env, rate=0.97).credible_sets()
    assert not any(("v", "d") in arcs for arcs in table["arcs"])


@pytest.mark.parametrize(
    "kwargs", [{"coverage": 0}, {"coverage": 1}, {"coverage": math.nan}, {"min_purity": 1.1}]
)
def test_shares_that_are_none_are_refused(held_out, kwargs):
    with pytest.raises(tbr.DataError, match=next(iter(kwargs))):
        held_out.credible_sets(**kwargs)


LAW = {"rate": 0.15, "slab": 1.5, "root": 2.0, "noise": 0.5}
NUM_TREES, NUM_OUTCOMES = 10, 16  # an outcome is a data set of its own: nothing is shared


def from_prior(seed):
    """A random tree of 8 leaves, true gates (A, Q), and 20 rows a leaf drawn from the prior."""
    rng = np.random.default_rng(seed)
    tree = tbr.simulate(
        num_leaves=8, shape="random", latent_dim=1, num_features=1, rows_per_leaf=1, seed=seed
    ).tree
    gates = rng.random((tree.num_arcs, NUM_OUTCOMES)) < LAW["rate"]
    deltas = gates * LAW["slab"] * rng.standard_normal(gates.shape)
    weights = np.zeros((tree.num_nodes, NUM_OUTCOMES))
    weights[0] = LAW["root"] * rng.standard_normal(NUM_OUTCOMES)
    for arc, parent in enumerate(tree.arc_parent.tolist()):
        weights[arc + 1] = weights[parent] + deltas[arc]
    nodes = np.repeat([tree.index(leaf) for leaf in tree.leaves], 20)
    x = rng.standard_normal((len(nodes), 1))
    y = x * weights[nodes]
    y = y + LAW["noise"] * rng.standard_normal(y.shape)
    return tree, gates, x, y, [tree.nodes[node] for node in nodes]


@pytest.fixture(scope="module")
def simulated():
    """For every set of 160 data sets: coverage, size, whether it holds a change, its first arc."""
    rows = []
    for seed in range(NUM_TREES):
        tree, gates, x, y, env = from_prior(seed)
        table = known_fit(tree, x, y, env, **LAW).credible_sets(num_draws=2000)
        place = {arc: a for a, arc in enumerate(tree.arcs)}
        for row in table.itertuples():
            truth = gates[[place[arc] for arc in row.arcs], int(row.outcome[1:])]
            rows.append((row.coverage, len(truth), truth.any(), truth[0]))
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def in_standard_errors(hits, coverage):
    """How far the number of hits is from what was said, in its binomial standard errors."""
    return (hits.sum() - coverage.sum()) / np.sqrt((coverage * (1 - coverage)).sum())


def test_sets_hold_a_change_as_often_as_they_say(simulated):
    coverage, size, hits, first = simulated
    assert len(hits) > 150
    assert (size > 1).sum() > 40
    assert (coverage >= 0.95).all()
    error = math.sqrt(0.95 * 0.05 / len(hits))
    assert hits.mean() > 0.95 - 4 * error
    assert hits.mean() >= 0.93
    assert abs(in_standard_errors(hits, coverage)) < 4
    several = size > 1
    assert abs(in_standard_errors(hits[several], coverage[several])) < 4
    # And it can fail: the likeliest arc of a set alone is not as sure as the set.
    assert in_standard_errors(first[several], coverage[several]) < -8


def plain_sets(gates, coverage=0.95, least=0.253):
    """The search as it is told in the module's docstring, every share counted from the draws."""
    num = len(gates)
    order = sorted(range(gates.shape[1]), key=lambda arc: -gates[:, arc].sum())
    free = [arc for arc in order if gates[:, arc].mean() > 0.002]
    found = []

    def alone(arcs):
        single = gates[:, arcs].sum(1) == 1
        return min((gates[:, arc] & single).sum() / max(gates[:, arc].sum(), 1) for arc in arcs)

    def grown(start):
        arcs, rest = [start], [arc for arc in free if arc != start]
        while True:
            off = ~gates[:, arcs].any(1)
            if 1 - off.mean() >= coverage:
                return arcs
            ranked = []
            for arc in rest:
                pip, gain = gates[:, arc].mean(), (off & gates[:, arc]).mean()
                spread = math.sqrt(pip * (1 - pip) * off.mean() * (1 - off.mean()))
                correlation = (gain - pip * off.mean()) / max(spread, 1e-150)
                if gain >= least * pip and correlation > 2 / math.sqrt(num):
                    ranked.append((-correlation, arc))
            rest = [arc for _, arc in sorted(ranked, key=lambda pair: pair[0])]
            pure = [arc for arc in rest if alone([*arcs, arc]) >= least]
            if not pure:
                return []
            rest = rest[rest.index(pure[0]) + 1 :]
            arcs.append(pure[0])

    for start in list(free):
        if start in free and gates[:, start].mean() >= 0.04:
            if gates[:, free].any(1).mean() < coverage:
                break
            kept = sorted(grown(start), key=lambda arc: -gates[:, arc].mean())
            for arc in reversed(kept[1:]):
                if gates[:, [a for a in kept if a != arc]].any(1).mean() >= coverage:
                    kept.remove(arc)
            if kept:
                found.append((tuple(kept), gates[:, kept].any(1).mean(), alone(kept)))
                free = [arc for arc in free if arc not in kept]
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_search_finds_the_sets_of_the_plain_version(seed):
    rng = np.random.default_rng(seed)
    blocks = [one_of(rng.dirichlet(np.ones(size)) * 0.99, rng, 1000) for size in (2, 3, 5)]
    blocks += [independent(rng.random(6) * 0.5, rng, 1000), independent([0.97], rng, 1000)]
    gates = np.concatenate(blocks, axis=1)[:, rng.permutation(17)]
    found = find_credible_sets(gates)
    assert len(found) >= 3
    assert [(one.arcs, one.coverage, one.purity) for one in found] == plain_sets(gates)
