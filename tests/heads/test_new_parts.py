"""A prior and a likelihood of the user's own, one class each, do all that ours do."""

import functools
import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import pyro_tbr as tbr
from pyro_tbr.heads import DesignRows, GaussianPrior, condition
from pyro_tbr.heads.priors import ArcPrior
from pyro_tbr.heads.registry import registered
from pyro_tbr.inference.elbo import expected_log_lik
from tests.brief import mostly_slow
from tests.heads import cases
from tests.heads import test_contract as contract
from tests.heads.cases import (
    GUIDES,
    TREE,
    Q,
    W,
    assert_mean,
    draws_of,
    informed_nodes,
    make_model,
    make_pair,
    particles,
)
from tests.heads.new_parts import LaplaceOutcomes, SmallOrLarge

NEW = {
    "two normals": (SmallOrLarge, lambda: SmallOrLarge(1.0, 0.3, 2.0)),
    "two normals, gated": (
        lambda: SmallOrLarge(gated=True),
        lambda: SmallOrLarge(1.0, 0.3, 2.0, gated=True),
    ),
}
PAIRS = [(guide, prior) for guide in GUIDES for prior in NEW]
pairs = pytest.mark.parametrize(("guide", "prior"), PAIRS)
gated_pairs = pytest.mark.parametrize(
    ("guide", "prior"),
    mostly_slow(
        {"-".join(pair): pair for pair in PAIRS},
        "mean field-two normals, gated",
        "tree-two normals, gated",
    ),
)
guides = pytest.mark.parametrize("guide", GUIDES)
tree_first = pytest.mark.parametrize("guide", mostly_slow({name: name for name in GUIDES}, "tree"))
hyper = pytest.mark.parametrize("learnt", [False, True], ids=["fixed", "learnt"])


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    """The contract's cases know the new priors by name."""
    for name, makers in NEW.items():
        monkeypatch.setitem(cases.PRIORS, name, makers)
    monkeypatch.setattr(contract, "SPIKES", contract.SPIKES | {"two normals, gated"})


# --- a prior ----------------------------------------------------------------------------------


@hyper
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pairs
def test_sites_are_the_models_latent_sites(guide, prior, likelihood, learnt):
    contract.test_sites_are_the_models_latent_sites(guide, prior, likelihood, learnt)


@hyper
@gated_pairs
def test_elbo_is_that_of_pyro(guide, prior, learnt):
    """Below it where one normal stands for several classes whose law is learnt.

    There the logarithm of their sum is taken of expected logarithms, which by Jensen is less than
    its expectation.
    """
    if (guide, prior, learnt) != ("mean field", "two normals", True):
        contract.test_elbo_is_that_of_pyro(guide, prior, learnt)
        return
    model, made, data, stats = make_pair(guide, prior, learnt=learnt, updated=True)
    draws = particles(model, made, data, 5_000, True)
    gap, error = draws.mean() - made.elbo(stats).item(), draws.std() / len(draws) ** 0.5
    assert -4.5 * error < gap < 0.5 * W * Q + 4.5 * error


@hyper
@pairs
def test_moments_are_those_of_draws(guide, prior, learnt):
    contract.test_moments_are_those_of_draws(guide, prior, learnt)


@hyper
@pairs
def test_draws_of_hyperparameters(guide, prior, learnt):
    contract.test_draws_of_hyperparameters(guide, prior, learnt)


@gated_pairs
def test_updates_raise_the_elbo(guide, prior):
    contract.test_updates_raise_the_elbo(guide, prior)


@pytest.mark.parametrize(
    "test",
    [
        contract.test_fixed_parts_stay_in_an_update,
        contract.test_update_is_deterministic_and_leaves_no_trace,
        contract.test_state_dict_round_trip,
        contract.test_single_precision_agrees,
        contract.test_starts_at_point_estimates,
    ],
)
@gated_pairs
def test_the_rest_of_the_contract(guide, prior, test):
    test(guide, prior)


@pytest.mark.parametrize("prior", NEW)
def test_gradients_reach_every_parameter(prior):
    contract.test_gradients_reach_every_parameter(prior, "gaussian")


@hyper
@pairs
def test_arcs_without_rows_keep_the_prior(guide, prior, learnt):
    model, made, _, _ = make_pair(guide, prior, learnt=learnt, updated=True)
    silent, deltas = contract.SILENT_ARCS, made.delta_moments()
    assert (deltas.mean[silent].abs() < 1e-9).all()
    assert_close(deltas.inclusion[silent], deltas.prior_inclusion[silent])
    draws = draws_of(guide, prior, learnt)
    values = {part.name: draws[part.name] for part in model.prior.hyperparameters()}
    fresh = model.prior.draw_changes(values, torch.Generator().manual_seed(5))["deltas"]
    found, expected = ((d.abs() / 3).tanh()[:, silent] for d in (draws["deltas"], fresh))
    assert_mean(found - expected, torch.zeros(found.shape[1:]))


@functools.cache
def rows_of_a_change(num=40):
    """Two latents; the first one's weight changes by 2 at one leaf of a tree."""
    tree = tbr.simulate(num_leaves=8, latent_dim=2, rows_per_leaf=1, seed=0).tree
    rng = np.random.default_rng(0)
    env = np.repeat(np.asarray(tree.leaves, dtype=object), num)
    x = rng.standard_normal((len(env), 2))
    weights = np.tile([1.0, -0.5], (len(env), 1))
    weights[env == tree.leaves[3], 0] += 2.0
    return tree, x, (weights * x).sum(1), env, rng


@pytest.mark.parametrize(
    ("kind", "gated"),
    mostly_slow(
        {
            "tree": ("tree", False),
            "tree, gated": ("tree", True),
            "mean field": ("mean_field", False),
            "mean field, gated": ("mean_field", True),
        },
        "tree, gated",
    ),
)
def test_a_fit_with_the_prior_is_saved_and_comes_back(kind, gated, tmp_path):
    tree, x, y, env, rng = rows_of_a_change()
    y = y + 0.3 * np.random.default_rng(1).standard_normal(len(y))
    model = tbr.TreeModel(tree, 2, "identity", prior=SmallOrLarge(gated=gated))
    posterior = tbr.fit(model, x, y, env, guide=kind, progress=False)
    table = posterior.deltas().query("latent == 'z0'").set_index("child")
    assert table["mean"].abs().idxmax() == tree.leaves[3]
    if kind == "tree":  # mean field splits a change over arcs that share its evidence
        assert table.loc[tree.leaves[3], "mean"] == pytest.approx(2.0, abs=0.3)
    if gated:
        assert table.loc[tree.leaves[3], "pip"] > 0.9
        assert (table.drop(tree.leaves[3])["pip"] < 0.5).all()
    posterior.save(tmp_path / "fit.tbr")
    again = tbr.load(tmp_path / "fit.tbr")
    assert type(again.model.prior) is registered(ArcPrior)["SmallOrLarge"] is SmallOrLarge
    assert again.model.prior.gated is gated
    np.testing.assert_array_equal(again.deltas()["mean"], posterior.deltas()["mean"])
    first, second = (one.predict(x[:5], env[:5]) for one in (posterior, again))
    np.testing.assert_array_equal(first.lower, second.lower)
    new = again.predict(x[:5], tbr.NewLeaf("new", parent=tree.nodes[0]))
    assert (new.sd > second.sd.min()).all()


# --- a likelihood -----------------------------------------------------------------------------


def laplace_rows(num=80):
    """Rows of the contract's model with Laplace noise: design, outcomes, nodes."""
    x, env, y = cases.rows(num)
    generator = torch.Generator().manual_seed(7)
    wide = -torch.log(torch.rand(2, *y.shape, generator=generator, dtype=torch.float64))
    y = y + 0.3 * (wide[0] - wide[1])
    y[3, 0] = torch.nan
    return x, env, y


def conditioned(guide, prior, likelihood):
    x, env, y = laplace_rows()
    model = make_model(prior, likelihood)
    made = GUIDES[guide](model, informed_nodes(env)).double()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    rows = DesignRows(design, y, env)
    stats = condition(made, rows)
    return model, made, (x, env, y), rows, stats


@tree_first
def test_condition_ends_where_the_elbo_is_the_rows_own(guide):
    """Its statistics hold the rows' expected log densities at the end, and a step gains nothing."""
    _, made, _, rows, stats = conditioned(guide, GaussianPrior(), LaplaceOutcomes())
    own = expected_log_lik(made.head, made, rows).sum() - made.kl()
    assert_close(made.elbo(stats), own, rtol=1e-6, atol=1e-4)
    before = own.item()
    again = condition(made, rows)
    assert made.elbo(again) > before - 0.1
    assert made.elbo(again) < before + 1.0


@guides
def test_the_elbo_is_a_bound(guide):
    """That of Pyro up to what a corner costs, and below the log evidence by the same draws."""
    model, made, data, rows, stats = conditioned(guide, GaussianPrior(0.7, 2.0), LaplaceOutcomes())
    vectorised = guide == "mean field"
    draws = particles(model, made, data, 5_000 if vectorised else 300, vectorised)
    spread = made.nuisance["spread"].mean_log().exp()
    moments = made.node_moments()
    sd = torch.einsum("nw,nwq->nq", rows.design.square(), moments.var[rows.env_index]).sqrt()
    corner = 0.02 * (sd / spread).sum()
    gap, error = made.elbo(stats) - draws.mean(), draws.std() / len(draws) ** 0.5
    # Independent latents: the tree guide's own draws carry what its moments leave out.
    assert abs(gap) < 4.5 * error + corner
    log_evidence = draws.logsumexp(0) - np.log(len(draws))
    assert made.elbo(stats) < log_evidence + corner


@tree_first
def test_changes_and_spread_are_found_with_sparse_changes(guide):
    _, made, _, _, _ = conditioned(guide, tbr.SpikeSlabPrior(), LaplaceOutcomes())
    pips = made.delta_moments().inclusion
    # Few rows: of two outcomes with the same change it is sure in one at least.
    assert pips[TREE.nodes.index("a") - 1, 0].max() > 0.9
    draws = made.sample(200, torch.Generator().manual_seed(0))
    assert draws["spread"].shape == (200, Q)
    assert made.node_moments().mean.shape == (TREE.num_nodes, W, Q)


def heavy(num=40):
    tree, x, y, env, _ = rows_of_a_change(num)
    return tree, x, y + 0.3 * np.random.default_rng(2).laplace(size=len(y)), env


@functools.cache
def fitted(encoder, kind="tree"):
    tree, x, y, env = heavy()
    if encoder == "linear":
        x = x @ np.array([[1.0, 0.5, -0.3, 0.2], [0.2, -1.0, 0.4, 0.6]])
    model = tbr.TreeModel(tree, 2, encoder, likelihood=LaplaceOutcomes())
    options = tbr.FitOptions(restarts=4, sparse_steps=20, mixture_components=8)
    with warnings.catch_warnings():  # one outcome in 8 environments
        warnings.simplefilter("ignore", tbr.IdentificationWarning)
        posterior = tbr.fit(model, x, y, env, guide=kind, progress=False, options=options)
    return posterior, x, y, env


@pytest.mark.parametrize(
    ("encoder", "kind"),
    mostly_slow(
        {
            "known": ("identity", "tree"),
            "known, mean field": ("identity", "mean_field"),
            "linear": ("linear", "tree"),
        },
        "linear",
    ),
)
def test_a_fit_predicts(encoder, kind):
    posterior, x, y, env = fitted(encoder, kind)
    _, _, true, _, _ = rows_of_a_change()
    found = posterior.predict(x, env, level=0.9)
    assert np.mean((found.mean - true) ** 2) < 0.05
    covered = ((y >= found.lower) & (y <= found.upper)).mean()
    assert abs(covered - 0.9) < 4 * (0.09 / len(y)) ** 0.5
    spread = np.asarray(posterior.sample(500)["spread"])
    assert abs(np.log(spread.mean() / 0.3)) < 0.25  # in the user's unit
    # Its sd is that of a Laplace, and its density beats the normal's of the same moments.
    assert found.sd.mean() == pytest.approx(2**0.5 * 0.3, rel=0.25)
    normal = tbr.evaluation.log_score(y, found.mean, found.sd)
    assert normal < found.log_score(y) < -np.log(2 * 0.3) - 1 + 0.15


@pytest.mark.parametrize("encoder", ["identity", "linear"])
def test_a_fit_is_saved_and_updated(encoder, tmp_path):
    posterior, x, y, env = fitted(encoder)
    posterior.save(tmp_path / "fit.tbr")
    again = tbr.load(tmp_path / "fit.tbr")
    assert type(again.model.likelihood) is LaplaceOutcomes
    np.testing.assert_array_equal(again.deltas()["mean"], posterior.deltas()["mean"])
    leaf = posterior.tree.leaves[0]
    own = env == leaf
    more = again.update(x[own], y[own], env[own])
    before, after = (one.node_weights().set_index("node").loc[leaf, "sd"] for one in (again, more))
    assert (after.to_numpy() < before.to_numpy()).all()
    gap = more.predict(x, env).mean - posterior.predict(x, env).mean
    assert np.abs(gap).max() < 0.3


def test_fixed_parameters_are_in_the_users_unit():
    tree, x, y, env = heavy()
    model = tbr.TreeModel(tree, 2, "identity", likelihood=LaplaceOutcomes(3.0))
    posterior = tbr.fit(model, x, 10 * y, env, progress=False)
    np.testing.assert_allclose(posterior.sample(5)["spread"], 3.0, rtol=1e-5)
