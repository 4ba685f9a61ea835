"""Training of an encoder while the weights follow, against the rows' own expected likelihood."""

import math

import pytest
import torch
from torch.testing import assert_close

import pyro_tbr as tbr
from pyro_tbr.errors import TrainingError
from pyro_tbr.heads import GaussianPrior, RowTerms, TreeGuide, condition
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.heads.joint_guide import JointGuide
from pyro_tbr.heads.moments import predictor_moments
from pyro_tbr.inference.encoder import following
from pyro_tbr.inference.encoder.dense_stage import DenseStage
from pyro_tbr.inference.encoder.following import Targets, Weights, follow
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.encoder.training import Schedule
from tests.inference.problems import standard_rows

K, Q, D = 2, 3, 6
CASES = ("plain", "missing", "row weights", "groups", "no intercept", "noise by environment")
SCHEDULE = Schedule(steps=200, batch_size=50, encoder_lr=0.01, guide_lr=0.0, patience=4)


def problem(case="plain", prior=None, noise=0.5):
    """A built model with a fresh network, and rows."""
    data = tbr.simulate(
        num_leaves=5, latent_dim=K, num_features=D, num_outcomes=Q, mixing="mlp",
        rows_per_leaf=40, missing=0.2 if case == "missing" else 0.0, noise_scale=noise, seed=0,
    )  # fmt: skip
    given = standard_rows(data)
    generator = torch.Generator().manual_seed(0)
    groups, terms = None, RowTerms()
    if case == "groups":
        index = torch.arange(len(given)) // 4
        groups = RowGroups(index, torch.tensor([0.0, 0.3, 0.6], dtype=torch.float64))
    if case == "row weights":
        terms = RowTerms(weights=0.5 + torch.rand(len(given), Q, generator=generator))
    rows = StandardRows(given.x, given.y, given.env_index, groups, terms)
    by_node = "by_environment" if case == "noise by environment" else "common"
    model = tbr.TreeModel(
        data.tree, K, "mlp", prior or GaussianPrior(), tbr.GaussianLikelihood(noise=by_node),
        intercept=case != "no intercept",
    ).build(D, Q)  # fmt: skip
    model.encoder.fit_preparation(rows.x)
    model.encoder.reset(generator)
    return model, rows


def guide_of(model, rows, kind=JointGuide):
    guide = kind(model, rows.nodes(model.tree.num_nodes))
    with torch.no_grad():
        condition(guide, rows.with_design(model.design(model.encoder(rows.x))), sweeps=5)
    return guide


@pytest.mark.parametrize("kind", [JointGuide, TreeGuide])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_the_rows_expected_log_likelihood(case, kind):
    """But for a constant of the encoder, row by row."""
    model, rows = problem(case)
    guide, prepared = guide_of(model, rows, kind), rows.prepared(model.encoder)
    weights = Weights.of(guide, rows.env_index.unique(), rows.y)
    block = prepared.encoded(model, torch.arange(len(rows)))
    mine = weights.loss(block, Targets.of(guide, prepared)).detach()
    cov = guide.node_cov(torch.arange(model.tree.num_nodes)) if kind is JointGuide else None
    cov = None if cov is None else cov.float()
    mean, var = predictor_moments(block.design, rows.env_index, guide.node_moments(), cov)
    lik = model.likelihood.expected_log_prob(rows.y, mean, var, guide.nuisance_of(block))
    at_best = model.likelihood.site_norm(guide.nuisance_at(rows.env_index)).expand_as(lik)
    shares = block.shares(prepared.weights()).to(lik)
    theirs = torch.where(shares > 0, shares * (at_best - lik), 0.0).sum(-1)
    assert_close(mine, theirs.detach(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("case", CASES)
def test_training_raises_the_elbo(case):
    model, rows = problem(case)
    guide = guide_of(model, rows)
    stats = following._statistics(
        model, guide, rows.prepared(model.encoder), torch.arange(len(rows))
    )
    before = guide.elbo(stats).item() / len(rows)
    generator = torch.Generator().manual_seed(1)
    trace = follow(model, guide, rows.prepared(model.encoder), SCHEDULE, generator)
    assert trace.steps == [50, 100, 150, 200]
    assert trace.best_step == 200
    assert math.isnan(trace.best_held_out)
    assert -trace.loss[-1] > before + 0.3
    assert not model.encoder.training


def test_the_state_of_least_squared_error_is_kept():
    model, rows = problem(noise=2.0)
    fold = torch.arange(len(rows)) % 4
    held_out, rows = rows.select(fold == 0), rows.select(fold > 0)
    guide, schedule = guide_of(model, rows), SCHEDULE._replace(steps=2000)
    prepared, tried = rows.prepared(model.encoder), held_out.prepared(model.encoder)
    trace = follow(
        model, guide, prepared, schedule, torch.Generator().manual_seed(1), held_out=tried
    )
    assert trace.steps[-1] < 2000  # it overfits, so it ends early
    assert trace.best_held_out == min(trace.held_out)
    assert trace.steps[trace.held_out.index(trace.best_held_out)] == trace.best_step
    stage = DenseStage(model, tbr.FitOptions(), torch.Generator())
    found = stage.resumed(model.encoder, rows, stage.recipes(len(rows))[0])
    assert found.loss(held_out, seen=False).mean() == pytest.approx(trace.best_held_out, rel=0.1)


def test_held_out_rows_of_a_leaf_without_others_meet_its_own_weights():
    """Those that the tree gives it, not those of another leaf."""
    model, rows = problem()
    last = rows.env_index == rows.env_index.max()
    held_out, rows = rows.select(last), rows.select(~last)
    guide = guide_of(model, rows)
    prepared, tried = rows.prepared(model.encoder), held_out.prepared(model.encoder)
    trace = follow(
        model, guide, prepared, SCHEDULE._replace(steps=50), torch.Generator().manual_seed(1),
        held_out=tried,
    )  # fmt: skip
    block = tried.encoded(model, torch.arange(len(held_out)))
    cov = guide.node_cov(torch.arange(model.tree.num_nodes)).float()
    mean, var = predictor_moments(block.design, held_out.env_index, guide.node_moments(), cov)
    expected = ((held_out.y - mean).square() - var).mean().item()
    assert trace.best_held_out == pytest.approx(expected, rel=1e-3)


def test_it_ends_on_the_way_where_that_is_asked():
    """As the same run does at that step."""
    states = []
    for schedule in (SCHEDULE._replace(stop=50), SCHEDULE):
        model, rows = problem()
        guide = guide_of(model, rows)
        generator = torch.Generator().manual_seed(1)
        trace = follow(model, guide, rows.prepared(model.encoder), schedule, generator)
        states.append(trace.loss[0])
    assert trace.steps[0] == 50
    assert states[0] == pytest.approx(states[1], abs=1e-6)


def test_weights_that_do_not_move_stay():
    model, rows = problem(prior=tbr.SpikeSlabPrior())
    guide = guide_of(model, rows, TreeGuide)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    start = [p.detach().clone() for p in model.encoder.parameters()]
    generator = torch.Generator().manual_seed(1)
    prepared = rows.prepared(model.encoder)
    trace = follow(model, guide, prepared, SCHEDULE, generator, moves_weights=False)
    assert trace.loss[-1] < trace.loss[0]
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert any((p != q).any() for p, q in zip(model.encoder.parameters(), start, strict=True))


def test_of_many_rows_some_are_asked(monkeypatch):
    """Their sums stand for all; it ends near where all lead."""
    losses = []
    for most in (50_000, 100):
        monkeypatch.setattr(following, "_ROWS_ASKED", most)
        model, rows = problem()
        guide = guide_of(model, rows)
        generator = torch.Generator().manual_seed(1)
        follow(model, guide, rows.prepared(model.encoder), SCHEDULE, generator)
        guide = guide_of(model, rows)
        whole = torch.arange(len(rows))
        stats = following._statistics(model, guide, rows.prepared(model.encoder), whole)
        losses.append(-guide.elbo(stats).item() / len(rows))
    assert losses[1] == pytest.approx(losses[0], abs=0.3)


def test_a_loss_that_is_not_finite_is_said():
    model, rows = problem()
    guide = guide_of(model, rows)
    rows.x[3] = torch.inf
    with pytest.raises(TrainingError, match="not finite"):
        follow(
            model, guide, rows.prepared(model.encoder), SCHEDULE, torch.Generator().manual_seed(1)
        )


def test_an_encoder_that_is_held_back_less_is_not_tried_after_an_early_end():
    data = tbr.simulate(
        num_leaves=5, latent_dim=2, num_features=8, rows_per_leaf=20, noise_scale=2.0,
        mixing="mlp", seed=1,
    )  # fmt: skip
    model = tbr.TreeModel(data.tree, 2)
    posterior = tbr.fit(model, data.x, data.y, data.env, progress=False)
    history = posterior.report.history
    chosen = history[history["stage"] == "choosing"]
    best = chosen["step"].iloc[chosen["held_out"].argmin()]
    assert chosen["step"].max() < 1000
    assert posterior.report.decay == 0.3
    assert history[history["stage"] == "dense"]["step"].max() == best
