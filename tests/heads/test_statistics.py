"""Sufficient statistics against plain loops over the rows."""

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.heads import (
    BernoulliLikelihood,
    DesignRows,
    GaussianLikelihood,
    GaussianPrior,
    Head,
    MeanFieldGuide,
    NodeMoments,
)
from pyro_tbr.heads import statistics as module
from pyro_tbr.heads.statistics import Sites, Statistics, statistics
from tests.tree.small_trees import SMALL_TREES

N, W, Q = 50, 3, 2
TREE = SMALL_TREES["balanced"]
V = TREE.num_nodes


def rows(seed=0, missing=0.0, binary=False, num_rows=N):
    """Rows, and the moments of predictors that their sites are made at."""
    generator = torch.Generator().manual_seed(seed)
    design, y, mean = (
        torch.randn(num_rows, width, generator=generator, dtype=torch.float64)
        for width in (W, Q, Q)
    )
    env = torch.randint(V, (num_rows,), generator=generator)
    env[env == 3] = 2  # a node without rows
    y = (y > 0).double() if binary else y
    y[torch.rand(num_rows, Q, generator=generator) < missing] = torch.nan
    return DesignRows(design, y, env), (mean, mean.square() + 0.1)


def sites_of(likelihood, data, moments, weights=None):
    terms = likelihood.site_terms(data.y, *moments, likelihood.factors())
    norm = torch.zeros_like(terms.log_norm) if likelihood.exact else terms.log_norm
    return Sites(terms.precision, terms.response, norm, data.shares(weights))


def found_of(likelihood, data, moments, weights=None):
    return statistics(data, sites_of(likelihood, data, moments, weights))


def by_loop(likelihood, data, moments, weights=None):
    """Dictionaries by node, one row after the other."""
    sums = tuple({} for _ in range(5))
    shapes = ((Q, W, W), (Q, W), (Q,), (Q,), (Q,))
    sites = sites_of(likelihood, data, moments)
    for n in range(len(data)):
        node, z = data.env_index[n].item(), data.design[n]
        for part, shape in zip(sums, shapes, strict=True):
            part.setdefault(node, torch.zeros(shape, dtype=torch.float64))
        for q in range(Q):
            if torch.isnan(data.y[n, q]):
                continue
            share = 1.0 if weights is None else weights[n, q]
            w, r = share * sites.precision[n, q], sites.response[n, q]
            values = (w * torch.outer(z, z), w * r * z, w * r**2, share,
                      share * sites.log_norm[n, q])  # fmt: skip
            for part, value in zip(sums, values, strict=True):
                part[node][q] += value
    return sums


def assert_is(found, expected):
    for e, node in enumerate(found.nodes.tolist()):
        assert_close(found.gram[e].expand(Q, W, W), expected[0][node])
        for part, sums in zip(found[2:6], expected[1:], strict=True):
            assert_close(part[e], sums[node])
    assert found.nodes.tolist() == sorted(expected[0])
    assert found.inflation is None


CASES = {
    "gaussian": (GaussianLikelihood(noise="common").build(Q), {}),
    "gaussian, missing": (GaussianLikelihood(noise="common").build(Q), {"missing": 0.4}),
    "bernoulli": (BernoulliLikelihood().build(Q), {"binary": True}),
    "bernoulli, missing": (BernoulliLikelihood().build(Q), {"binary": True, "missing": 0.4}),
}
cases = pytest.mark.parametrize(("likelihood", "kind"), CASES.values(), ids=CASES.keys())


@cases
def test_statistics_are_those_of_a_loop(likelihood, kind):
    data = rows(**kind)
    found = found_of(likelihood, *data)
    assert_is(found, by_loop(likelihood, *data))
    assert all(part.dtype == torch.float64 for part in found[1:6])
    assert found.gram.shape[1] == (1 if likelihood.exact and not kind else Q)


@cases
def test_rows_that_count_by_a_share(likelihood, kind):
    data = rows(**kind)
    weights = torch.rand(N, Q, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = found_of(likelihood, *data, weights)
    assert_is(found, by_loop(likelihood, *data, weights))


@cases
def test_chunks_do_not_matter(likelihood, kind, monkeypatch):
    data = rows(**kind)
    whole = found_of(likelihood, *data)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 7 * W * W)
    parts = found_of(likelihood, *data)
    for one, two in zip(whole[:6], parts[:6], strict=True):
        assert_close(one, two)


@cases
@pytest.mark.parametrize("num_rows", [0, 1, N, 400])
def test_products_of_many_rows_are_those_of_single_ones(likelihood, kind, num_rows, monkeypatch):
    data = rows(num_rows=num_rows, **kind)
    by_row = found_of(likelihood, *data)
    monkeypatch.setattr(module, "_WIDE", 1)
    for size in (module._CHUNK_ELEMENTS, 40 * W):
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", size)
        for one, two in zip(by_row[:6], found_of(likelihood, *data)[:6], strict=True):
            assert_close(one, two)


@cases
def test_sums_are_statistics_of_all_rows(likelihood, kind):
    one, two = rows(0, num_rows=12, **kind), rows(1, num_rows=20, binary=kind.get("binary", False))
    pairs = zip((one[0].design, one[0].y, one[0].env_index, *one[1]),
                (two[0].design, two[0].y, two[0].env_index, *two[1]), strict=True)  # fmt: skip
    design, y, env, *moments = (torch.cat(pair) for pair in pairs)
    total = found_of(likelihood, *one) + found_of(likelihood, *two)
    assert_is(total, by_loop(likelihood, DesignRows(design, y, env), moments))


@cases
def test_transform_is_that_of_the_design(likelihood, kind):
    data, moments = rows(**kind)
    linear = torch.randn(4, W, W, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sites = sites_of(likelihood, data, moments)
    moved = statistics(data, sites).transform(linear)
    for b in range(4):
        turned = DesignRows(data.design @ linear[b], data.y, data.env_index)
        expected = statistics(turned, sites)
        assert_close(moved.gram[b], expected.gram)
        assert_close(moved.cross[b], expected.cross)
    single = statistics(data, sites).transform(linear[0])
    assert_close(single.gram, moved.gram[0])
    assert single.cross.shape == (len(single.nodes), Q, W)


def node_moments(seed=3):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(V, W, Q, generator=generator, dtype=torch.float64)
    return NodeMoments(mean, torch.rand(V, W, Q, generator=generator, dtype=torch.float64))


def guide_of(likelihood):
    """A guide whose noise is not at its start."""
    head = Head(TREE, GaussianPrior().build(TREE, W, Q), likelihood.build(Q)).double()
    guide = MeanFieldGuide(head).double()
    for factor in guide.nuisance.values():
        factor.loc.data += torch.tensor([0.3, -0.4])
    return guide


def predictor(data, moments):
    mean = torch.einsum("nw,nwq->nq", data.design, moments.mean[data.env_index])
    return mean, torch.einsum("nw,nwq->nq", data.design.square(), moments.var[data.env_index])


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_expected_log_lik_is_that_of_the_rows(missing):
    data, _ = rows(missing=missing)
    guide, moments = guide_of(GaussianLikelihood(noise="common")), node_moments()
    likelihood, nuisance = guide.head.likelihood, guide.nuisance
    total, residual = 0.0, torch.zeros(V, Q, dtype=torch.float64)
    for n in range(N):
        node = data.env_index[n]
        f = data.design[n] @ moments.mean[node]
        spread = data.design[n].square() @ moments.var[node]
        each = likelihood.expected_log_prob(data.y[n], f, spread, nuisance)
        total += each[~torch.isnan(data.y[n])].sum()
        residual[node] += torch.nan_to_num((data.y[n] - f) ** 2 + spread)
    stats = found_of(likelihood, data, (data.y, data.y))
    assert_close(guide.expected_log_lik(stats, moments), total)
    assert_close(stats.residual(*moments), residual[stats.nodes])


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_expected_log_lik_of_sites(missing):
    """At the moments they were made at it is the rows' own; elsewhere that of the sites."""
    data, _ = rows(binary=True, missing=missing)
    guide, here, elsewhere = guide_of(BernoulliLikelihood()), node_moments(3), node_moments(4)
    likelihood, seen = guide.head.likelihood, ~torch.isnan(data.y)
    sites = sites_of(likelihood, data, predictor(data, here))
    stats = statistics(data, sites)
    expected = likelihood.expected_log_prob(data.y, *predictor(data, here), guide.nuisance)
    assert_close(guide.expected_log_lik(stats, here), expected[seen].sum())
    mean, var = predictor(data, elsewhere)
    each = sites.log_norm - 0.5 * sites.precision * ((mean - sites.response) ** 2 + var)
    assert_close(guide.expected_log_lik(stats, elsewhere), each[seen].sum())


def test_statistics_have_no_gradient_and_leave_rows_alone():
    data, moments = rows(missing=0.3)
    parts = (data.design, data.y, data.env_index)
    before = [part.clone() for part in parts]
    sites = sites_of(CASES["gaussian"][0], data, moments)
    stats = statistics(DesignRows(data.design.requires_grad_(), *parts[1:]), sites)
    assert not stats.gram.requires_grad
    for part, was in zip((data.design.detach(), *parts[1:]), before, strict=True):
        assert torch.equal(part.nan_to_num(7.0), was.nan_to_num(7.0))
    single = statistics(DesignRows(data.design.float(), data.y.float(), data.env_index), sites)
    assert single.gram.dtype == torch.float64
    assert_close(single.gram, stats.gram, rtol=1e-5, atol=1e-5)


def test_no_rows_for_an_outcome():
    data, moments = rows()
    data.y[:, 1] = torch.nan
    stats = found_of(CASES["gaussian"][0], data, moments)
    assert (stats.count[:, 1] == 0).all()
    assert (stats.gram[:, 1] == 0).all()
    guide = guide_of(GaussianLikelihood(noise="common"))
    assert guide.expected_log_lik(stats, node_moments()).isfinite()
    assert isinstance(stats + stats, Statistics)


def with_inflation(stats, seed):
    ratio = torch.rand(stats.cross.shape, generator=torch.Generator().manual_seed(seed)) + 0.5
    return stats._replace(inflation=ratio.double())


def test_inflation_of_sums_is_the_rows_mean_in_logs():
    likelihood, kind = CASES["gaussian, missing"]
    one, two = (
        with_inflation(found_of(likelihood, *rows(seed, num_rows=num, **kind)), seed)
        for seed, num in ((0, 8), (1, 20))
    )
    total = one + two
    assert total.nodes.tolist() == sorted({*one.nodes.tolist(), *two.nodes.tolist()})
    assert one.nodes.tolist() != total.nodes.tolist()
    for e, node in enumerate(total.nodes.tolist()):
        for q in range(Q):
            logs, count = torch.zeros(W, dtype=torch.float64), 0.0
            for part in (one, two):
                here = (part.nodes == node).nonzero().flatten()
                for place in here.tolist():
                    logs += part.count[place, q] * part.inflation[place, q].log()
                    count += part.count[place, q]
            if count:
                assert_close(total.inflation[e, q], (logs / count).exp())
    assert total.inflation.isfinite().all()
    for name in ("gram", "cross", "square", "count", "constant"):  # applied when used, not before
        plain = one._replace(inflation=None) + two._replace(inflation=None)
        assert torch.equal(getattr(total, name), getattr(plain, name))


def test_rows_of_unknown_inflation_have_the_average():
    likelihood, kind = CASES["gaussian"]
    known = with_inflation(found_of(likelihood, *rows(0, num_rows=30, **kind)), 0)
    unknown = found_of(likelihood, *rows(1, num_rows=12, **kind))
    rates = known.count.unsqueeze(-1)
    usual = (rates * known.inflation.log()).sum(0) / rates.sum(0)
    given = unknown._replace(inflation=usual.exp().expand_as(unknown.cross))
    for pair in ((known, unknown), (unknown, known)):
        assert_close((pair[0] + pair[1]).inflation, (known + given).inflation)
    assert (unknown + unknown).inflation is None


def test_sums_of_inflated_statistics_do_not_depend_on_order():
    parts = [found_of(CASES["gaussian"][0], *rows(seed, num_rows=10)) for seed in range(3)]
    one, two, three = (with_inflation(part, seed) for seed, part in enumerate(parts))
    for found, expected in zip((one + two) + three, one + (two + three), strict=True):
        assert_close(found, expected)


def test_scaled_statistics_are_those_of_as_many_rows():
    for likelihood, kind in CASES.values():
        stats = with_inflation(found_of(likelihood, *rows(**kind)), 0)
        for found, expected in zip(stats.scaled(2.0), stats + stats, strict=True):
            assert_close(found, expected)
        thrice = stats.scaled(0.25) + stats.scaled(2.75)
        for found, expected in zip(thrice, stats + stats + stats, strict=True):
            assert_close(found, expected)
