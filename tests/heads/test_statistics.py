"""Sufficient statistics against plain loops over the rows."""

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.heads.likelihoods import BernoulliLikelihood, GaussianLikelihood, NoiseMoments
from pyro_tbr.heads.statistics import Statistics, statistics
from pyro_tbr.heads.statistics import statistics as statistics_function

N, W, Q, V = 50, 3, 2, 7


def rows(seed=0, missing=0.0, binary=False, num_rows=N):
    generator = torch.Generator().manual_seed(seed)
    design, y, predictor = (
        torch.randn(num_rows, width, generator=generator, dtype=torch.float64)
        for width in (W, Q, Q)
    )
    env = torch.randint(V, (num_rows,), generator=generator)
    env[env == 3] = 2  # a node without rows
    y = (y > 0).double() if binary else y
    y[torch.rand(num_rows, Q, generator=generator) < missing] = torch.nan
    return design, y, env, predictor


def by_loop(design, y, env, likelihood, predictor):
    """Dictionaries by node, one row after the other."""
    gram, cross, square, count = {}, {}, {}, {}
    for n in range(len(y)):
        node = env[n].item()
        for part, shape in ((gram, (Q, W, W)), (cross, (Q, W)), (square, (Q,)), (count, (Q,))):
            part.setdefault(node, torch.zeros(shape, dtype=torch.float64))
        for q in range(Q):
            if torch.isnan(y[n, q]):
                continue
            w, r = likelihood.working_response(y[n, q], predictor[n, q])
            gram[node][q] += w * torch.outer(design[n], design[n])
            cross[node][q] += w * r * design[n]
            square[node][q] += w * r**2
            count[node][q] += 1
    return gram, cross, square, count


def assert_is(found, expected):
    for e, node in enumerate(found.nodes.tolist()):
        assert_close(found.gram[e].expand(Q, W, W), expected[0][node])
        assert_close(found.cross[e], expected[1][node])
        assert_close(found.square[e], expected[2][node])
        assert_close(found.count[e], expected[3][node])
    assert found.nodes.tolist() == sorted(expected[0])


CASES = {
    "gaussian": (GaussianLikelihood(), {}),
    "gaussian, missing": (GaussianLikelihood(), {"missing": 0.4}),
    "bernoulli": (BernoulliLikelihood(), {"binary": True}),
    "bernoulli, missing": (BernoulliLikelihood(), {"binary": True, "missing": 0.4}),
}
cases = pytest.mark.parametrize(("likelihood", "kind"), CASES.values(), ids=CASES.keys())


@cases
def test_statistics_are_those_of_a_loop(likelihood, kind):
    data = rows(**kind)
    found = statistics(*data[:3], likelihood, data[3])
    assert_is(found, by_loop(*data[:3], likelihood, data[3]))
    assert all(part.dtype == torch.float64 for part in found[1:])
    shared = likelihood is CASES["gaussian"][0] and not kind
    assert found.gram.shape[1] == (1 if shared else Q)


@cases
def test_chunks_do_not_matter(likelihood, kind, monkeypatch):
    data = rows(**kind)
    whole = statistics(*data[:3], likelihood, data[3])
    module = statistics_function.__globals__
    monkeypatch.setitem(module, "_CHUNK_ELEMENTS", 7 * W * W)
    parts = statistics(*data[:3], likelihood, data[3])
    for one, two in zip(whole, parts, strict=True):
        assert_close(one, two)


@cases
def test_sums_are_statistics_of_all_rows(likelihood, kind):
    one, two = rows(0, num_rows=12, **kind), rows(1, num_rows=20)
    if kind.get("binary"):
        two = rows(1, num_rows=20, binary=True)
    together = [torch.cat(parts) for parts in zip(one, two, strict=True)]
    total = statistics(*one[:3], likelihood, one[3]) + statistics(*two[:3], likelihood, two[3])
    assert_is(total, by_loop(*together[:3], likelihood, together[3]))


@cases
def test_transform_is_that_of_the_design(likelihood, kind):
    design, y, env, predictor = rows(**kind)
    linear = torch.randn(4, W, W, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moved = statistics(design, y, env, likelihood, predictor).transform(linear)
    for b in range(4):
        expected = statistics(design @ linear[b], y, env, likelihood, predictor)
        assert_close(moved.gram[b], expected.gram)
        assert_close(moved.cross[b], expected.cross)
    single = statistics(design, y, env, likelihood, predictor).transform(linear[0])
    assert_close(single.gram, moved.gram[0])
    assert single.cross.shape == (len(single.nodes), Q, W)


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_expected_log_lik_is_that_of_the_rows(missing):
    design, y, env, _ = rows(missing=missing)
    likelihood = GaussianLikelihood().build(Q)
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(V, W, Q, generator=generator, dtype=torch.float64)
    var = torch.rand(V, W, Q, generator=generator, dtype=torch.float64)
    noise = NoiseMoments(torch.tensor([2.0, 9.0]).double(), torch.tensor([-0.2, -1.0]).double())
    total, residual = 0.0, torch.zeros(V, Q, dtype=torch.float64)
    for n in range(N):
        f = design[n] @ mean[env[n]]
        spread = design[n].square() @ var[env[n]]
        each = likelihood.expected_log_prob(y[n], f, spread, noise)
        total += each[~torch.isnan(y[n])].sum()
        residual[env[n]] += torch.nan_to_num((y[n] - f) ** 2 + spread)
    stats = statistics(design, y, env, likelihood)
    assert_close(stats.expected_log_lik(mean, var, noise), total)
    assert_close(stats.residual(mean, var), residual[stats.nodes])
    assert_close(stats.expected_log_lik(mean, var, None), -0.5 * residual.sum())


def test_expected_log_lik_of_the_bernoulli_bound():
    """Without its constant it differs from the Polya-Gamma bound of each row by no weights."""
    design, y, env, predictor = rows(binary=True)
    likelihood = BernoulliLikelihood()
    stats = statistics(design, y, env, likelihood, predictor)
    generator = torch.Generator().manual_seed(3)
    gaps = []
    for _ in range(2):
        mean = torch.randn(V, W, Q, generator=generator, dtype=torch.float64)
        var = torch.rand(V, W, Q, generator=generator, dtype=torch.float64)
        precision, response = likelihood.working_response(y, predictor)
        f = torch.einsum("nw,nwq->nq", design, mean[env])
        spread = torch.einsum("nw,nwq->nq", design**2, var[env])
        bound = -0.5 * (precision * ((f - response) ** 2 + spread)).sum()
        gaps.append(stats.expected_log_lik(mean, var, None) - bound)
    assert_close(gaps[0], gaps[1], rtol=0, atol=1e-8)


def test_statistics_have_no_gradient_and_leave_rows_alone():
    design, y, env, _ = rows(missing=0.3)
    before = [part.clone() for part in (design, y, env)]
    stats = statistics(design.requires_grad_(), y, env, GaussianLikelihood())
    assert not stats.gram.requires_grad
    for part, was in zip((design.detach(), y, env), before, strict=True):
        assert torch.equal(part.nan_to_num(7.0), was.nan_to_num(7.0))
    single = statistics(design.float(), y.float(), env, GaussianLikelihood())
    assert single.gram.dtype == torch.float64
    assert_close(single.gram, stats.gram, rtol=1e-5, atol=1e-5)


def test_no_rows_for_an_outcome():
    design, y, env, _ = rows()
    y[:, 1] = torch.nan
    stats = statistics(design, y, env, GaussianLikelihood())
    assert (stats.count[:, 1] == 0).all()
    assert (stats.gram[:, 1] == 0).all()
    mean, var = torch.ones(V, W, Q).double(), torch.ones(V, W, Q).double()
    noise = NoiseMoments(torch.ones(Q).double(), torch.full((Q,), -math.log(2)).double())
    assert stats.expected_log_lik(mean, var, noise).isfinite()
    assert isinstance(stats + stats, Statistics)
