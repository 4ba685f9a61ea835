"""The one loop that moves a guide to its optimum for rows, later rows, and what goes wrong."""

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr import ConvergenceWarning
from pyro_tbr.errors import TrainingError
from pyro_tbr.heads import (
    BernoulliLikelihood,
    DesignRows,
    GaussianLikelihood,
    GaussianPrior,
    MeanFieldGuide,
    SpikeSlabPrior,
    TreeGuide,
    condition,
    mean_field,
)
from pyro_tbr.heads.sweeps import Sweeps
from tests.heads.cases import GUIDES, TREE, informed_nodes, make_model, rows

KEPT = {"learn_hyper": False, "learn_nuisance": False}
FIXED = {
    "gaussian": lambda: GaussianPrior(0.7, 2.0),
    "spike and slab": lambda: SpikeSlabPrior(None, 0.3, 1.0, 2.0),
}


def data(num_rows=60, seed=0, **kwargs):
    x, env, y = rows(num_rows, seed=seed, **kwargs)
    return DesignRows(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1), y, env)


def some(whole, index):
    return DesignRows(whole.design[index], whole.y[index], whole.env_index[index])


def guide_of(prior, whole, kind=TreeGuide, likelihood=None, **kwargs):
    likelihood = GaussianLikelihood(0.5) if likelihood is None else likelihood
    model = make_model(prior, likelihood)
    return kind(model, informed_nodes(whole.env_index), **kwargs).double()


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("prior", FIXED)
def test_rows_that_come_later_are_as_good_as_all_at_once(prior, coupled):
    """With hyperparameters fixed; sweeps stop at moves of a few hundredths of an sd."""
    whole = data()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    once = guide_of(FIXED[prior](), whole, coupled=coupled)
    all_stats = condition(once, whole)
    later, stats = guide_of(FIXED[prior](), whole, coupled=coupled), None
    for part in order.split(20):
        stats = condition(later, some(whole, part), before=stats, **KEPT)
    for found, expected in zip(stats[:6], all_stats[:6], strict=True):
        assert_close(found, expected)
    one, two = once.node_moments(), later.node_moments()
    assert ((one.mean - two.mean).abs() < 0.1 * one.var.sqrt()).all()
    assert_close(one.var, two.var, rtol=0.05, atol=1e-4)
    assert_close(once.elbo(all_stats), later.elbo(stats), rtol=0, atol=0.1)


def test_inflation_stays_with_the_rows_it_was_found_for():
    """Rows that come later without one have the average; both are applied when used."""
    whole = data(120)
    guide = guide_of(FIXED["gaussian"](), whole)
    first = condition(guide, some(whole, torch.arange(80)), sandwich=True)
    assert first.inflation is not None
    plain = condition(guide_of(FIXED["gaussian"](), whole), some(whole, torch.arange(80)))
    assert plain.inflation is None
    assert_close(first.gram, plain.gram)
    wide = first._replace(inflation=torch.full_like(first.cross, 4.0))
    both = condition(guide, some(whole, torch.arange(80, 120)), before=wide, **KEPT)
    assert_close(both.inflation, torch.full_like(both.cross, 4.0))
    unsure = guide.node_moments().var
    sure = guide_of(FIXED["gaussian"](), whole)
    condition(sure, whole)
    leaves = torch.tensor([TREE.index(label) for label in "abc"])
    ratio = (unsure / sure.node_moments().var)[leaves]
    assert ((ratio > 1.5) & (ratio < 4.0)).all()  # the prior takes its part


@pytest.mark.parametrize("kind", GUIDES)
def test_hyperparameters_and_noise_stay_where_they_are_told_to(kind):
    whole = data()
    guide = guide_of(SpikeSlabPrior(), whole, GUIDES[kind], GaussianLikelihood())
    stats = condition(guide, some(whole, torch.arange(30)), sweeps=5)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    condition(guide, some(whole, torch.arange(30, 60)), sweeps=5, before=stats, **KEPT)
    after = guide.state_dict()
    kept = [name for name in before if name.startswith(("factor", "nuisance"))]
    own = ("node_noise_scale", "log_bayes")  # each node's, and what gates of outcomes tell
    kept = [name for name in kept if not any(part in name for part in own)]
    assert len(kept) > 4
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert any(not torch.equal(before[name], after[name]) for name in after)


@pytest.mark.parametrize("binary", [False, True], ids=["numeric", "binary"])
@pytest.mark.parametrize("kind", GUIDES)
def test_numbers_that_are_not_finite_end_an_update(kind, binary):
    whole = data(binary=binary)
    whole.design[5, 1] = torch.inf
    likelihood = "bernoulli" if binary else GaussianLikelihood()
    guide = guide_of(SpikeSlabPrior(), whole, GUIDES[kind], likelihood)
    with pytest.raises(TrainingError, match=r"not finite|cannot be learnt"):
        condition(guide, whole)


@pytest.mark.parametrize("kind", GUIDES)
def test_an_outcome_of_no_finite_square_ends_an_update(kind):
    whole = data()
    whole.y[5, 1] = 1e200
    guide = guide_of(GaussianPrior(), whole, GUIDES[kind], GaussianLikelihood())
    with pytest.raises(TrainingError, match=r"not finite|cannot be learnt"):
        condition(guide, whole)


NAMES = (("depth", "copy", "intercept"), ("mass", "height"))


def equal_columns():
    whole = data()
    whole.design[:, 1] = whole.design[:, 0]
    return whole


def test_latents_that_never_rest_are_warned_of_by_name(monkeypatch):
    """Equal columns do come to rest, see the next test; here they are made to look as if not."""
    whole, done, run = equal_columns(), [], Sweeps._run

    def restless(sweeps, coupled, *args, **how):
        moves = run(sweeps, coupled, *args, **how)
        done.append(sweeps._done)
        if coupled:
            moves[:, 0, :2] = 1.0
        return moves

    monkeypatch.setattr(Sweeps, "_run", restless)
    guide = guide_of(GaussianPrior(1.0, 1.0), whole)
    with pytest.warns(ConvergenceWarning, match="did not come to rest") as caught:
        condition(guide, whole, names=NAMES)
    message = str(caught[0].message)
    for part in ("'depth', 'copy' for", "'mass' at", "'a'", "Drop a latent that repeats"):
        assert part in message, message
    assert f"in {max(done)} sweeps" in message
    assert "'intercept'" not in message
    assert guide.node_moments().mean.isfinite().all()
    condition(guide_of(GaussianPrior(1.0, 1.0), whole), whole)  # an update in between is not
    monkeypatch.undo()
    condition(guide_of(GaussianPrior(1.0, 1.0), whole), whole, names=NAMES)


@pytest.mark.parametrize("prior", [GaussianPrior(1.0, 3.0), GaussianPrior()], ids=repr)
def test_equal_columns_share_what_the_rows_say(prior):
    """Their sum is that of the rows: least squares of a leaf with the column once."""
    whole = equal_columns()
    guide = guide_of(prior, whole)
    condition(guide, whole, names=NAMES)
    total = guide.node_moments().mean[:, :2].sum(1)
    for leaf in "ab":
        own = whole.env_index == TREE.index(leaf)
        fitted = torch.linalg.lstsq(whole.design[own][:, 1:], whole.y[own]).solution
        error = 0.5 / whole.design[own, 0].square().sum().sqrt()
        assert ((total[TREE.index(leaf)] - fitted[0]).abs() < 2 * error).all()


@pytest.mark.parametrize("kind", GUIDES)
def test_rows_that_say_enough_are_not_warned_of(kind):
    whole = data()
    condition(guide_of(GaussianPrior(), whole, GUIDES[kind]), whole, names=NAMES)


def test_mean_field_that_still_climbs_is_warned_of(monkeypatch):
    """Its start is so good that a sweep settles it; so any gain is taken for a climb."""
    monkeypatch.setattr(mean_field, "_SETTLED", -1.0)
    monkeypatch.setattr(mean_field, "_SETTLED_SHARE", -1.0)
    whole = data()
    guide = guide_of(GaussianPrior(), whole, MeanFieldGuide, GaussianLikelihood())
    with pytest.warns(ConvergenceWarning, match="did not come to rest"):
        condition(guide, whole, sweeps=1, names=NAMES)


def binary():
    """Rows of which the larger half are ones."""
    whole = data(120)
    return DesignRows(whole.design, (whole.y > whole.y.mean()).to(whole.y), whole.env_index)


def test_where_scales_run_away_all_begins_anew_with_them_held(monkeypatch):
    """As with separable outcomes: a first update that sends the weights' scale to e^12."""
    whole = binary()
    usual = guide_of(GaussianPrior(), whole, likelihood=BernoulliLikelihood())
    bound = usual.elbo(condition(usual, whole)).item()
    update, ran = TreeGuide.update, []

    def runs_away(self, stats, **how):
        if how["learn_hyper"] and not ran:
            ran.append(0)
            settled = update(self, stats, **how | {"learn_hyper": False})
            self.hyper["slab_scale"].loc.data.fill_(12.0)
            self.eta *= 1e6
            self.refresh()
            return settled
        return update(self, stats, **how)

    monkeypatch.setattr(TreeGuide, "update", runs_away)
    guide = guide_of(GaussianPrior(), whole, likelihood=BernoulliLikelihood())
    found = guide.elbo(condition(guide, whole)).item()
    assert ran
    assert found == pytest.approx(bound, abs=1.0)
    loc = [one.hyper["slab_scale"].loc for one in (guide, usual)]
    assert_close(*loc, atol=0.1, rtol=0)  # learnt again in the end
