import copy
import math

import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.inference.elbo import TreeELBO, expected_log_lik
from pyro_tbr.inference.encoder.training import Schedule, train
from tests.inference.problems import standard_rows


@pytest.fixture
def problem():
    data = tbr.simulate(num_leaves=4, latent_dim=2, num_features=4, rows_per_leaf=25, seed=0)
    rows = standard_rows(data)
    model = tbr.TreeModel(data.tree, 2, "linear").build(4, 1)
    model.encoder.fit_preparation(rows.x)
    model.encoder.reset(torch.Generator().manual_seed(0))
    model.num_rows = len(rows)
    return model, MeanFieldGuide(model), rows


def elbo_a_row(model, guide, rows, batch=None):
    """Of all rows, estimated from some."""
    batch = torch.arange(len(rows)) if batch is None else batch
    found = rows.prepared(model.encoder).encoded(model, batch)
    return TreeELBO().of_rows(model.head, guide, found) / len(rows)


SCHEDULE = Schedule(steps=60, batch_size=32, encoder_lr=0.01, guide_lr=0.05, check_every=20)


@pytest.mark.parametrize("batch_size", [100, 25, 20])
def test_batches_of_an_epoch_average_to_the_whole(problem, batch_size):
    model, guide, rows = problem
    whole = elbo_a_row(model, guide, rows)
    parts = [elbo_a_row(model, guide, rows, batch) for batch in torch.arange(100).split(batch_size)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-4, atol=0)


def test_training_raises_the_elbo_and_moves_every_parameter(problem):
    model, guide, rows = problem
    before = {n: p.detach().clone() for n, p in guide.named_parameters()}
    start = elbo_a_row(model, guide, rows).item()
    trace = train(
        model, guide, rows.prepared(model.encoder), SCHEDULE, torch.Generator().manual_seed(1)
    )
    assert elbo_a_row(model, guide, rows).item() > start + 0.1
    assert trace.steps == [20, 40, 60]
    assert trace.best_step == 60
    assert all((p != before[n]).any() for n, p in guide.named_parameters())


def test_best_state_on_held_out_rows_is_kept(problem):
    model, guide, rows = problem
    held_out = rows.select(torch.arange(0, 100, 5)).prepared(model.encoder)
    rows = rows.prepared(model.encoder)
    schedule = SCHEDULE._replace(encoder_lr=0.5, guide_lr=0.5, patience=2, steps=400)
    trace = train(model, guide, rows, schedule, torch.Generator().manual_seed(1), held_out=held_out)
    assert trace.best_held_out == min(trace.held_out)
    assert trace.steps[trace.held_out.index(trace.best_held_out)] == trace.best_step
    block = next(held_out.encoded_blocks(model))
    again = expected_log_lik(model.head, guide, block).mean()
    assert -again.item() == pytest.approx(trace.best_held_out, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_state(problem):
    model, guide, rows = problem
    rows.y[3] = math.inf
    with pytest.raises(tbr.errors.TrainingError, match=r"stopped at step \d+.*Lower options"):
        train(
            model, guide, rows.prepared(model.encoder), SCHEDULE, torch.Generator().manual_seed(1)
        )
    assert all(torch.isfinite(p).all() for p in [*guide.parameters(), *model.parameters()])


def test_the_same_generator_gives_the_same_parameters(problem):
    model, guide, rows = problem
    runs = []
    for _ in range(2):
        pair = copy.deepcopy((model, guide))
        train(*pair, rows.prepared(model.encoder), SCHEDULE, torch.Generator().manual_seed(2))
        runs.append([p.detach() for p in pair[1].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
