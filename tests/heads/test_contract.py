"""What every guide must do, over guides x priors x likelihoods."""

import copy

import pyro.poutine as poutine
import pytest
import torch
from torch.testing import assert_close

from tests.heads.cases import (
    PAIRS,
    SILENT,
    TREE,
    Q,
    W,
    assert_mean,
    draws_of,
    make_pair,
    particles,
)
from tests.tree.small_trees import dense_paths

pairs = pytest.mark.parametrize(("guide", "prior"), PAIRS)
hyper = pytest.mark.parametrize("learnt", [False, True], ids=["fixed", "learnt"])
SPIKES = {"spike and slab", "lengths", "wide spike", "grouped", "grouped, lengths"}
SILENT_ARCS = torch.tensor(SILENT[1:])
STILL = torch.tensor(TREE.lengths) == 0


def latent_sites(trace):
    return {name: tuple(node["value"].shape) for name, node in trace.nodes.items()
            if node["type"] == "sample" and not node["is_observed"] and name != "rows"}  # fmt: skip


@hyper
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pairs
def test_sites_are_the_models_latent_sites(guide, prior, likelihood, learnt):
    model, made, data, _ = make_pair(guide, prior, likelihood, learnt=learnt)
    of_guide = latent_sites(poutine.trace(made).get_trace(*data))
    of_model = latent_sites(poutine.trace(model).get_trace(*data))
    assert of_guide == of_model
    assert set(poutine.trace(made).get_trace(*data).nodes) >= set(of_model)


@hyper
@pairs
def test_elbo_is_that_of_pyro(guide, prior, learnt):
    model, made, data, stats = make_pair(guide, prior, learnt=learnt, updated=True)
    vectorised = guide == "mean field"
    draws = particles(model, made, data, 5_000 if vectorised else 60, vectorised)
    if (guide, prior) == ("tree", "horseshoe"):
        # Its scales are uniform within cells of a grid: a little below, for each pair of them.
        gap, error = made.elbo(stats).item() - draws.mean(), draws.std() / len(draws) ** 0.5
        assert -4.5 * error < gap < 0.5 * W * Q + 4.5 * error
        return
    assert_mean(draws, made.elbo(stats).item())


def test_the_elbo_test_can_fail():
    model, made, data, stats = make_pair("mean field", "spike and slab", updated=True)
    draws = particles(model, made, data, 5_000, True)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(draws, made.elbo(stats).item() + 3.0)


@hyper
@pairs
def test_moments_are_those_of_draws(guide, prior, learnt):
    model, made, _, _ = make_pair(guide, prior, learnt=learnt, updated=True)
    draws = draws_of(guide, prior, learnt)
    nodes, deltas = made.node_moments(), made.delta_moments()
    # Where nothing is known, draws carry the spread of the hyperparameters: see the next test.
    arcs = ~SILENT_ARCS if learnt or prior == "horseshoe" else torch.ones(TREE.num_arcs) > 0
    known = torch.cat([torch.tensor([True]), arcs])
    delta = draws["deltas"]
    assert delta.shape == (8_000, TREE.num_arcs, W, Q)
    assert draws["root_weights"].shape == (8_000, W, Q)
    weights = draws["root_weights"][:, None] + torch.einsum(
        "va,sawq->svwq", dense_paths(TREE), delta
    )
    for found, mean, var in (
        (weights[:, known], nodes.mean[known], nodes.var[known]),
        (delta[:, arcs], deltas.mean[arcs], deltas.var[arcs]),
    ):
        # A gate that is on with a chance of 1e-4 may be so in none of the draws.
        rare = 1e-3 if (guide, prior in SPIKES) == ("mean field", True) else 1e-9
        assert_mean(found, mean, atol=rare)
        assert_mean((found - mean).square(), var, atol=max(rare, 1e-7))
    if prior in SPIKES:
        gates = draws["gates"]
        assert model.prior.has_spike or ((delta != 0) <= (gates == 1)).all()
        # Some gates are off with a chance below 1e-6: never, in so many draws.
        assert_mean(gates[:, arcs], deltas.inclusion[arcs], atol=max(rare, 1e-6))
        on = gates[:, arcs].sum(0) > 800
        for found, expected in (
            (delta, deltas.slab_mean),
            ((delta - deltas.slab_mean).square(), deltas.slab_var),
        ):
            found, gate = found[:, arcs].detach(), gates[:, arcs]
            centred = gate * (found - expected[arcs].detach())
            assert_mean(centred[:, on], torch.zeros(int(on.sum())), atol=1e-7)
    else:
        assert "gates" not in draws
        assert (deltas.inclusion == 1).all()


@hyper
@pairs
def test_draws_of_hyperparameters(guide, prior, learnt):
    model, made, _, _ = make_pair(guide, prior, learnt=learnt, updated=True)
    draws = made.sample(10, torch.Generator().manual_seed(0))
    again = made.sample(10, torch.Generator().manual_seed(0))
    for name, value in draws.items():
        assert torch.equal(value, again[name]), name
        assert value.dtype == torch.float64, name
        assert value.shape[0] == 10, name
    for part in (*model.prior.hyperparameters(), model.likelihood.noise_scale):
        assert draws[part.name].shape == (10, *part.shape)
        if part.fixed is not None:
            assert (draws[part.name] == part.fixed).all()


@hyper
@pytest.mark.parametrize(("guide", "prior"), [pair for pair in PAIRS if pair[1] in SPIKES])
def test_arcs_without_rows_keep_the_prior(guide, prior, learnt):
    model, made, _, _ = make_pair(guide, prior, learnt=learnt, updated=True)
    assert made.informed_arcs.tolist() == (~SILENT_ARCS).tolist()
    deltas = made.delta_moments()
    rates, weights = made.hyper["inclusion_rate"].points()
    mean_rate = torch.einsum("t,tawq->awq", weights, model.prior.arc_inclusion_prob(rates))
    for found in (deltas.inclusion, deltas.prior_inclusion):
        assert_close(found[SILENT_ARCS], mean_rate.expand(found.shape)[SILENT_ARCS])
    assert (deltas.mean[SILENT_ARCS].abs() < 1e-9).all()
    assert (deltas.slab_mean[SILENT_ARCS].abs() < 1e-9).all()
    slab = made.hyper["slab_scale"]
    expected = slab.mean_power(2.0).expand(W, Q).expand_as(deltas.slab_var[SILENT_ARCS])
    assert_close(deltas.slab_var[SILENT_ARCS], expected)
    if "lengths" in prior:
        assert (deltas.inclusion[STILL] == 0).all()
        assert (deltas.var[STILL] == 0).all()
    draws = draws_of(guide, prior, learnt)
    assert_mean(draws["gates"][:, SILENT_ARCS], deltas.inclusion[SILENT_ARCS])
    hyper = {part.name: draws[part.name] for part in model.prior.hyperparameters()}
    fresh = model.prior.draw_changes(hyper, torch.Generator().manual_seed(5))["deltas"]
    found, expected = ((d.abs() / 3).tanh()[:, SILENT_ARCS] for d in (draws["deltas"], fresh))
    assert_mean(found - expected, torch.zeros(found.shape[1:]))


@pytest.mark.parametrize("guide", ["mean field", "tree"])
def test_silent_arcs_of_the_horseshoe_are_drawn_from_the_prior(guide):
    model, _, _, _ = make_pair(guide, "horseshoe", updated=True)
    draws = draws_of(guide, "horseshoe", True)
    hyper = {name: draws[name] for name in ("global_scale", "slab_scale")}
    prior = model.prior.draw_changes(hyper, torch.Generator().manual_seed(5))["deltas"]
    for function in (torch.tanh, lambda d: (d.abs() / 0.1).tanh()):
        found, expected = (function(d)[:, SILENT_ARCS] for d in (draws["deltas"], prior))
        assert_mean(found - expected, torch.zeros(found.shape[1:]))


@pairs
def test_updates_raise_the_elbo(guide, prior):
    _, made, _, stats = make_pair(guide, prior)
    elbos = [made.elbo(stats).item()]
    for _ in range(3):
        made.update(stats, sweeps=2 if guide == "tree" else 5)
        elbos.append(made.elbo(stats).item())
    gains = torch.tensor(elbos).diff()
    assert gains[0] > 100
    assert (gains > -0.5).all(), elbos  # Adam's last steps, hyperparameters at their centre


@pairs
def test_fixed_parts_stay_in_an_update(guide, prior):
    _, made, _, stats = make_pair(guide, prior)
    before = copy.deepcopy(made.state_dict())
    made.update(stats, sweeps=2, learn_hyper=False, learn_nuisance=False)
    changed = {name for name, value in made.state_dict().items()
               if not torch.equal(value, before[name])}  # fmt: skip
    assert changed
    # The noise of single nodes is theirs, as their weights are; what outcomes tell each other too.
    moving = ("node_noise_scale", "log_bayes")
    changed = {name for name in changed if not any(part in name for part in moving)}
    assert not any(name.startswith(("factor", "nuisance", "informed")) for name in changed)
    made.update(stats, sweeps=2)
    assert any(name.startswith("nuisance") for name, value in made.state_dict().items()
               if not torch.equal(value, before[name]))  # fmt: skip


@pairs
def test_update_is_deterministic_and_leaves_no_trace(guide, prior):
    one = make_pair(guide, prior, updated=True)[1]
    _, two, _, stats = make_pair(guide, prior)
    two.update(stats, sweeps=3 if guide == "tree" else 5)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("prior", [prior for guide, prior in PAIRS if guide == "mean field"])
def test_gradients_reach_every_parameter(prior, likelihood):
    model, made, _, stats = make_pair("mean field", prior, likelihood)
    with torch.no_grad():  # gates at their start have a gradient; locations at zero may not
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    (-made.elbo(stats)).backward()
    silent = {"loc", "log_scale", "logits", "spike_loc", "spike_log_scale"}
    for name, parameter in made.named_parameters():
        assert parameter.grad.isfinite().all(), name
        gradient = parameter.grad
        if name in silent:  # nothing is optimised where there are no rows, or no length
            assert (gradient[SILENT_ARCS] == 0).all()
            gradient = gradient[~SILENT_ARCS & (~STILL if "lengths" in prior else True)]
        elif name.startswith("factor.hyper.local_scale"):
            gradient = gradient[~SILENT_ARCS]
        elif "node_noise_scale" in name:
            gradient = gradient[made.nuisance["node_noise_scale"].seen]
        assert (gradient != 0).all(), name


@pairs
def test_state_dict_round_trip(guide, prior):
    _, made, _, stats = make_pair(guide, prior, updated=True)
    model, other, _, _ = make_pair(guide, prior)
    other.node_moments()  # passes that a load must forget
    other.load_state_dict(made.state_dict())
    assert other.head is model.head
    for one, two in zip(made.delta_moments(), other.delta_moments(), strict=True):
        assert torch.equal(one, two)
    assert_close(other.elbo(stats), made.elbo(stats))
    one, two = (g.sample(3, torch.Generator().manual_seed(0)) for g in (made, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pairs
def test_single_precision_agrees(guide, prior):
    _, made, _, stats = make_pair(guide, prior, updated=True)
    single = copy.deepcopy(made)
    single.float()
    single.head.float()
    assert made.head.prior.root_loc.dtype == torch.float64
    if guide == "tree":
        single.refresh()
    for one, two in zip(single.node_moments(), made.node_moments(), strict=True):
        assert one.dtype == torch.float32
        assert_close(one.double(), two, rtol=1e-3, atol=1e-4)
    assert_close(single.elbo(stats).double(), made.elbo(stats), rtol=1e-4, atol=1e-2)
    draws = single.sample(5, torch.Generator().manual_seed(0))
    assert all(value.dtype == torch.float32 for value in draws.values())
    single.update(stats, sweeps=1)
    assert all(p.dtype == torch.float32 for p in single.parameters())


@pairs
def test_starts_at_point_estimates(guide, prior):
    model, made, _, stats = make_pair(guide, prior)
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(W, Q, generator=generator, dtype=torch.float64)
    deltas = torch.zeros(TREE.num_arcs, W, Q, dtype=torch.float64)
    deltas[0, 0], deltas[2, 1] = 1.0, -2.0
    made.start(root, deltas)
    if guide == "mean field":
        assert_close(made.root_loc.detach(), root)
        moments = made.delta_moments()
        known = ~SILENT_ARCS
        assert (moments.mean[known & STILL].abs() <= deltas[known & STILL].abs()).all()
        big = deltas[known].abs() > 0.5
        assert_close(moments.slab_mean[known][big].detach(), deltas[known][big])
        assert (moments.inclusion[known][big] > 0.9).all()
    made.update(stats, sweeps=2)
    assert made.elbo(stats).isfinite()
    if "inclusion_rate" in made.hyper:
        assert (made.hyper["inclusion_rate"].scale < 2).all()
    del model


@pytest.mark.parametrize(("prior", "tolerance"), [("gaussian", 0.0), ("spike and slab", 0.02)])
def test_expected_log_lik_of_binary_outcomes(prior, tolerance):
    """Exact under normal weights; under gates the predictor is a mixture, taken as normal."""
    _, made, (x, env, y), _ = make_pair("mean field", prior, "bernoulli", updated=True)
    model, moments = made.head, made.node_moments()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    mean = torch.einsum("nw,nwq->nq", design, moments.mean[env])
    var = torch.einsum("nw,nwq->nq", design.square(), moments.var[env])
    found = model.likelihood.expected_log_prob(y, mean, var, made.nuisance).sum().item()
    draws = made.sample(4000, torch.Generator().manual_seed(0))
    weights = draws["root_weights"][:, None] + torch.einsum(
        "va,sawq->svwq", dense_paths(TREE), draws["deltas"]
    )
    predictor = torch.einsum("nw,snwq->snq", design, weights[:, env])
    log_lik = model.likelihood(predictor, {}).log_prob(y).sum((1, 2)).detach()
    slack = tolerance * abs(found)
    assert abs(log_lik.mean() - found) < 4.5 * log_lik.std() / 4000**0.5 + slack
