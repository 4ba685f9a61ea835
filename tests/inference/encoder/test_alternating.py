"""Training of linear encoders in closed forms, against rows and a plain optimizer."""

import math

import pytest
import torch
from torch.testing import assert_close

import pyro_tbr as tbr
from pyro_tbr.heads import GaussianPrior, RowTerms, TreeGuide
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.heads.joint_guide import JointGuide
from pyro_tbr.heads.moments import NodeMoments, predictor_moments
from pyro_tbr.inference.encoder import alternating, dense_stage
from pyro_tbr.inference.encoder.alternating import (
    affine_map,
    alternate,
    feature_statistics,
    has_closed_form,
    moved,
)
from pyro_tbr.inference.encoder.dense_stage import DenseStage
from pyro_tbr.inference.encoder.rows import StandardRows
from tests.inference.problems import standard_rows

K, Q, D = 2, 3, 6
CASES = ("plain", "missing", "row weights", "groups", "no intercept", "noise by environment")


def problem(case="plain", prior=None, num_components=None):
    """Built model with a rough encoder, and rows, in double precision."""
    missing = 0.2 if case == "missing" else 0.0
    data = tbr.simulate(
        num_leaves=5, latent_dim=K, num_features=D, num_outcomes=Q, nuisance_dim=2,
        feature_noise=0.3, rows_per_leaf=20, missing=missing, noise_scale=0.5, seed=0,
    )  # fmt: skip
    given = standard_rows(data)
    generator = torch.Generator().manual_seed(0)
    groups, terms = None, RowTerms()
    if case == "groups":
        index = torch.arange(len(given)) // 4
        groups = RowGroups(index, torch.tensor([0.0, 0.3, 0.6], dtype=torch.float64))
    if case == "row weights":
        weights = 0.5 + torch.rand(len(given), Q, generator=generator, dtype=torch.float64)
        terms = RowTerms(weights=weights)
    rows = StandardRows(given.x, given.y.double(), given.env_index, groups, terms)
    noise = "by_environment" if case == "noise by environment" else "common"
    model = tbr.TreeModel(
        data.tree, K, "linear", prior or GaussianPrior(), tbr.GaussianLikelihood(noise=noise),
        intercept=case != "no intercept",
    ).build(D, Q)  # fmt: skip
    model.double()
    model.encoder.num_components = num_components
    model.encoder.fit_preparation(rows.x)
    model.encoder.reset(generator)
    model.encoder.double()
    turn = torch.tensor([[0.8, 0.3], [-0.2, 1.1]], dtype=torch.float64)
    model.encoder.set_output(torch.tensor([0.1, -0.2]), turn)
    return model, rows


def guide_of(model, rows, kind=JointGuide, sweeps=5):
    guide = kind(model, rows.nodes(model.tree.num_nodes)).double()
    guide.update(latent_statistics(model, guide, rows), sweeps=sweeps, rough=True)
    return guide


def latent_statistics(model, guide, rows):
    features = feature_statistics(guide, rows.prepared(model.encoder))
    return features.transform(affine_map(model))


def expected_loss(directions, model, guide, rows, cov):
    """Negative expected log likelihood of the rows, but for a constant; differentiable."""
    prepared = rows.prepared(model.encoder)
    z = prepared.features @ directions - model.encoder.output_shift
    moments = NodeMoments(*(part.detach() for part in guide.node_moments()))
    y = torch.nan_to_num(rows.y)
    whole = torch.zeros(model.tree.num_nodes, *cov.shape[1:], dtype=torch.float64)
    whole[rows.env_index.unique()] = cov
    mean, var = predictor_moments(model.design(z), rows.env_index, moments, whole)
    each = 0.5 * guide.site_scale(rows.env_index).detach() * ((y - mean).square() + var)
    return (rows.with_design(z).shares(prepared.weights()) * each).sum()


@pytest.mark.parametrize("kind", [JointGuide, TreeGuide])
@pytest.mark.parametrize("case", CASES)
def test_the_encoder_goes_to_the_minimum_of_the_rows_expected_loss(case, kind):
    model, rows = problem(case)
    guide = guide_of(model, rows, kind)
    nodes = rows.env_index.unique()
    stats = feature_statistics(guide, rows.prepared(model.encoder))
    found = moved(model, guide, stats, 1.0)
    if kind is JointGuide:
        cov = guide.node_cov(nodes)
    else:
        cov = guide.joint_cov(latent_statistics(model, guide, rows)).detach()
    best = model.encoder.latent_directions().detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [best], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = expected_loss(best, model, guide, rows, cov)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert_close(found, best.detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["plain", "missing"])
def test_conjugate_gradients_solve_the_same_equations(case, monkeypatch):
    model, rows = problem(case)
    guide = guide_of(model, rows)
    stats = feature_statistics(guide, rows.prepared(model.encoder))
    dense = moved(model, guide, stats, 0.5)
    monkeypatch.setattr(alternating, "_MOST_DENSE", 0)
    assert_close(moved(model, guide, stats, 0.5), dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("part", [0.1, 0.5])
def test_a_part_of_the_way_lowers_the_loss_by_less(part):
    model, rows = problem()
    guide = guide_of(model, rows)
    stats = feature_statistics(guide, rows.prepared(model.encoder))
    cov, start = guide.node_cov(stats.nodes), model.encoder.latent_directions().detach()

    def loss(directions):
        return expected_loss(directions, model, guide, rows, cov).item()

    some, whole = moved(model, guide, stats, part), moved(model, guide, stats, 1.0)
    assert loss(whole) < loss(some) < loss(start)
    assert (some - start).norm() < 1.5 * part * (whole - start).norm()


@pytest.mark.parametrize("case", CASES)
def test_the_elbo_never_falls(case):
    model, rows = problem(case)
    guide = JointGuide(model, rows.nodes(model.tree.num_nodes)).double()
    trace = alternate(model, guide, rows.prepared(model.encoder), 400, part=1.0)
    assert trace.steps == [20 * i for i in range(1, 21)]
    assert trace.loss[-1] < trace.loss[0] - 1e-3
    assert max(b - a for a, b in zip(trace.loss, trace.loss[1:], strict=False)) < 1e-8
    assert math.isnan(trace.best_held_out)
    assert trace.best_step == 400


def test_statistics_of_folds_add_up_to_those_of_all_rows():
    model, rows = problem("missing")
    guide = JointGuide(model, rows.nodes(model.tree.num_nodes)).double()
    fold = torch.arange(len(rows)) % 3
    parts = [
        feature_statistics(guide, rows.select(fold == f).prepared(model.encoder)) for f in range(3)
    ]
    whole = feature_statistics(guide, rows.prepared(model.encoder))
    for one, other in zip(parts[0] + parts[1] + parts[2], whole, strict=True):
        if one is not None:
            assert_close(one, other)


def test_the_best_encoder_on_held_out_rows_is_kept():
    model, rows = problem()
    held = torch.arange(len(rows)) % 4 == 0
    training, held_out = rows.select(~held), rows.select(held)
    guide = JointGuide(model, training.nodes(model.tree.num_nodes)).double()
    parts = training.prepared(model.encoder), held_out.prepared(model.encoder)
    trace = alternate(model, guide, parts[0], 10_000, part=0.5, held_out=parts[1], patience=3)
    assert trace.best_held_out == min(trace.held_out)
    assert trace.steps[trace.held_out.index(trace.best_held_out)] == trace.best_step
    assert trace.steps[-1] == trace.best_step + 20 * 4 < 10_000


def test_a_number_of_steps_is_that_of_svi_and_one_is_one():
    model, rows = problem()
    guide = JointGuide(model, rows.nodes(model.tree.num_nodes)).double()
    prepared, before = rows.prepared(model.encoder), model.encoder.latent_directions().detach()
    trace = alternate(model, guide, prepared, 1, part=0.25)
    assert trace.steps == [1]
    once = model.encoder.latent_directions().detach()
    assert 0 < (once - before).norm() < before.norm()
    assert alternate(model, guide, prepared, 45, part=0.25).steps == [20, 40, 45]


def test_weights_may_stay_and_latents_that_are_not_used_stay_so():
    model, rows = problem(prior=tbr.SpikeSlabPrior())
    with torch.no_grad():
        model.encoder.output_map[:, 1] = 0
        model.encoder.output_shift[1] = 0
    guide = guide_of(model, rows, TreeGuide)
    state = guide.state_copy()
    alternate(model, guide, rows.prepared(model.encoder), 60, part=0.5, moves_weights=False)
    assert all(torch.equal(value, state[name]) for name, value in guide.state_dict().items())
    z = model.encoder(rows.x)
    assert (z[:, 1] == 0).all()
    assert z[:, 0].std() > 0.1


def test_latents_are_trained_by_rows_where_sums_would_be_too_large(monkeypatch):
    data = tbr.simulate(
        num_leaves=4, latent_dim=2, num_features=5, rows_per_leaf=20, nuisance_dim=3
    )
    rows = standard_rows(data)
    model = tbr.TreeModel(data.tree, 2, "linear").build(5, 1)
    stage = DenseStage(model, tbr.FitOptions(max_steps=5), torch.Generator().manual_seed(0))
    recipe, calls = stage.recipes(len(rows))[0], []
    in_closed_form = dense_stage.alternate
    monkeypatch.setattr(
        dense_stage,
        "alternate",
        lambda model, *a, **k: calls.append(model.latent_dim) or in_closed_form(model, *a, **k),
    )
    assert stage.fit(rows, recipe).trace.steps == [5]
    assert calls == [model.latent_dim]
    assert calls == [model.latent_dim]
    monkeypatch.setattr(alternating, "_MOST_BYTES", 0)
    assert stage.fit(rows, recipe).trace.steps == [5]
    assert calls == [model.latent_dim]


@pytest.mark.parametrize(("encoder", "likelihood", "has"), [
    ("linear", "gaussian", True), ("mlp", "gaussian", False), ("linear", "bernoulli", False),
    ("linear", "student_t", False),
])  # fmt: skip
def test_linear_encoders_of_normal_outcomes_have_a_closed_form(encoder, likelihood, has):
    data = tbr.simulate(num_leaves=4, latent_dim=2, num_features=5, rows_per_leaf=20, seed=0)
    rows = standard_rows(data)
    model = tbr.TreeModel(data.tree, 2, encoder, likelihood=likelihood).build(5, 1)
    model.encoder.fit_preparation(rows.x)
    assert has_closed_form(model, rows.prepared(model.encoder)) is has
