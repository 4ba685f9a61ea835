"""How many latents: the choice, its table, ``latent_dim=None`` in fit, and what is refused."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch import nn

import pyro_tbr as tbr
from pyro_tbr.errors import DataError
from pyro_tbr.inference.paired import mean_and_error
from tests.brief import mostly_slow, search_steps, sweeps

FEW = tbr.FitOptions(restarts=2, cross_fit=0, sparse_steps=0, max_steps=20)


@pytest.fixture(autouse=True, scope="module")
def _few_rounds():
    """Fits end soon; what is asked here does not hang on how well they end."""
    with search_steps(40), sweeps(4):
        yield


SETTINGS = {
    "gaussian": {},
    "missing": {"missing": 0.3},
    "bernoulli": {"likelihood": "bernoulli", "rows_per_leaf": 120},
}


@functools.cache
def data(**changes):
    usual = {"num_leaves": 4, "latent_dim": 2, "num_features": 6, "num_outcomes": 3,
             "nuisance_dim": 3, "rows_per_leaf": 40, "noise_scale": 0.5, "seed": 1}  # fmt: skip
    return tbr.simulate(**(usual | changes))


def model(sim, latent_dim=None, **how):
    return tbr.TreeModel(sim.tree, latent_dim, "linear", likelihood=sim.likelihood, **how)


def choice_of(sim, dims=None, **how):
    return tbr.choose_latent_dim(model(sim), sim.x, sim.y, sim.env, dims, progress=False, **how)


@pytest.mark.parametrize("changes", mostly_slow(SETTINGS, "missing", "bernoulli"))
def test_the_true_number_is_found(changes):
    sim = data(**changes)
    true = sim.z.shape[1]
    found = choice_of(sim, range(1, true + 2), num_folds=2)
    assert found.best == true, found
    assert found.tried == tuple(range(1, true + 2))
    table = found.table.set_index("latent_dim")
    assert table["evidence"].idxmax() == true
    assert table["evidence"].max() == table["difference"].max() == 0
    assert table["difference"][1] < -4 * table["difference_se"][1]
    assert (table["se"] > 0).all()
    assert found.num_rows == (~np.isnan(sim.y)).any(1).sum()


def test_scores_are_log_densities():
    """With one latent that is all there is, scores are near those of the true law."""
    sim = data(latent_dim=1, num_outcomes=1, rows_per_leaf=150)
    score = choice_of(sim, [1]).table["log_score"][0]
    spread = sim.y.std()
    exact = -0.5 * np.log(2 * np.pi * np.e * 0.5**2) + np.log(spread)
    assert abs(score - exact) < 4 * (0.5 / len(sim.y)) ** 0.5 + 0.03


def test_fit_chooses_and_says_so(tmp_path):
    sim = data()
    how = {"progress": False, "options": FEW, "seed": 0}
    open_model = model(sim)
    found = tbr.fit(open_model, sim.x, sim.y, sim.env, **how)
    assert found.model.latent_dim == 2
    assert open_model.chooses_latent_dim
    assert "2 latents (chosen)" in repr(found)
    assert "2 latents, chosen of 1 to 4" in str(found.summary())
    choice = found.report.latent_choice
    assert choice.best == 2
    assert choice.tried == (1, 2, 3, 4)  # two that are no better, then none
    found.save(tmp_path / "fit.pt")
    loaded = tbr.load(tmp_path / "fit.pt")
    assert loaded.report.latent_choice.table.equals(choice.table)
    assert dataclasses.replace(loaded.report.latent_choice, table=choice.table) == choice


@pytest.mark.slow
def test_a_fit_that_chooses_is_the_fit_with_that_number():
    sim = data()
    how = {"progress": False, "options": FEW, "seed": 0}
    found = tbr.fit(model(sim), sim.x, sim.y, sim.env, **how)
    given = tbr.fit(model(sim, 2), sim.x, sim.y, sim.env, **how)
    assert given.pips().equals(found.pips())
    assert given.report.latent_choice is None
    again = tbr.fit(model(sim), sim.x, sim.y, sim.env, start=found, **how)
    assert again.model.latent_dim == 2


def test_groups_stay_together_and_count_as_one():
    sim = data(missing=0.3)
    groups = [f"{label}{i // 8}" for i, label in enumerate(sim.env)]
    alone, together = (choice_of(sim, [1, 2], groups=g, num_folds=2) for g in (None, groups))
    assert together.best == 2
    assert not together.table.equals(alone.table)


def test_the_same_seed_gives_the_same_table_and_nothing_global_moves():
    sim, state = data(), torch.random.get_rng_state()
    first, again = (choice_of(sim, dims, seed=5, num_folds=2) for dims in ([1, 2], [2, 1]))
    assert first.table.equals(again.table)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.slow
def test_a_perceptron_is_judged_too():
    sim = data(num_leaves=6, num_features=8, num_outcomes=4, nuisance_dim=4, rows_per_leaf=60)
    options = tbr.FitOptions(max_steps=300, encoder_decays=(0.3,))
    net = tbr.TreeModel(sim.tree, None, "mlp")
    rows = sim.x, sim.y, sim.env, range(1, 5)
    found = tbr.choose_latent_dim(net, *rows, progress=False, options=options)
    assert found.best == 2, found


def test_not_chosen_yet():
    open_model = model(data())
    for ask in ("latent_dim", "num_weights", "weight_names"):
        with pytest.raises(DataError, match="latent_dim=None is not chosen yet"):
            getattr(open_model, ask)
    with pytest.raises(DataError, match="not chosen yet"):
        open_model.build(8, 4)
    assert "TreeModel" in repr(open_model)
    assert copy.deepcopy(open_model).chooses_latent_dim
    assert open_model.with_latent_dim(2).build(8, 4).latent_dim == 2


SIM = tbr.simulate(num_leaves=3, latent_dim=1, num_features=3, rows_per_leaf=5)
REFUSED = {
    "identity": (lambda: tbr.TreeModel(SIM.tree, None, "identity"), "as many latents as features"),
    "own": (lambda: tbr.TreeModel(SIM.tree, None, nn.Tanh()), "Tanh has a number of"),
    "sizes": (lambda: model(SIM, num_features=3, num_outcomes=1), "builds the model at once"),
    "zero": (lambda: choice_of(SIM, [0, 1]), r"latent_dims=\[0, 1\] must be whole .* got 0"),
    "none": (lambda: choice_of(SIM, []), "got none"),
    "a number": (lambda: choice_of(SIM, 3), "latent_dims=3 is no list"),
    "too many": (lambda: choice_of(SIM, range(1, 9)), "goes to 8, but 3 features"),
    "one fold": (lambda: choice_of(SIM, [1], num_folds=1), "num_folds=1 must be"),
    "known": (
        lambda: tbr.choose_latent_dim(
            tbr.TreeModel(SIM.tree, 3, "identity"), SIM.x, SIM.y, SIM.env, [1]
        ),
        "needs encoder='linear' or 'mlp'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_errors_of_means_against_the_spread_of_means():
    generator = torch.Generator().manual_seed(0)
    unit = torch.arange(40).repeat_interleave(5)
    draws = torch.randn(2000, 40, generator=generator).repeat_interleave(5, 1)
    draws = draws + torch.randn(2000, 200, generator=generator)
    errors = torch.tensor([mean_and_error(row, unit)[1] for row in draws])
    assert abs(errors.square().mean().sqrt() / draws.mean(1).std() - 1) < 0.06
    alone = torch.tensor([mean_and_error(row)[1] for row in draws])
    assert alone.mean() < 0.7 * errors.mean()
    assert mean_and_error(torch.ones(3), torch.zeros(3, dtype=torch.int64))[0] == 1
    assert np.isnan(mean_and_error(torch.ones(3), torch.zeros(3, dtype=torch.int64))[1])
