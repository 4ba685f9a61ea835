"""``TreeELBO``: Pyro's ``SVI`` with it ends where ``fit`` does, and leaves the store as it was."""

import functools
import itertools

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.testing import assert_close

import pyro_tbr as tbr
from pyro_tbr.errors import DataError, ShapeError, TrainingError
from pyro_tbr.heads import GaussianPrior
from tests.heads.new_parts import LaplaceOutcomes, SmallOrLarge

PRIORS = {
    "dense": GaussianPrior,
    "spike and slab": tbr.SpikeSlabPrior,
    "horseshoe": tbr.HorseshoePrior,
    "a user's own": SmallOrLarge,
}
LIKELIHOODS = {
    "gaussian": lambda: "gaussian", "bernoulli": lambda: "bernoulli", "own": LaplaceOutcomes,
}  # fmt: skip
GUIDES = {"tree": tbr.TreeGuide, "mean_field": tbr.MeanFieldGuide}
TREE = tbr.Tree.from_newick("((a,b)u,((c,d)v,e)w)r;")


@functools.cache
def table(likelihood="gaussian", num_rows=60):
    """Two latents; the first one's effect changes towards v."""
    rng = np.random.default_rng(0)
    env = np.repeat(np.array(TREE.leaves, dtype=object), num_rows)
    x = rng.standard_normal((len(env), 2))
    slope = np.where(np.isin(env, ["c", "d"]), 2.5, 1.0)
    predictor = slope * x[:, 0] - 0.5 * x[:, 1]
    if likelihood == "bernoulli":
        return x, (rng.random(len(env)) < 1 / (1 + np.exp(-predictor))).astype(float), env
    return x, predictor + 0.5 * rng.standard_normal(len(env)), env


@functools.cache
def fitted(prior, likelihood, kind):
    x, y, env = table(likelihood)
    model = tbr.TreeModel(
        TREE, 2, "identity", prior=PRIORS[prior](), likelihood=LIKELIHOODS[likelihood]()
    )
    return tbr.fit(model, x, y, env, guide=kind, progress=False)


def rows_of(posterior, likelihood):
    """A fit's rows in the units of its training."""
    x, y, env = table(likelihood)
    y = (torch.as_tensor(y)[:, None] - posterior.scaling.loc) / posterior.scaling.scale
    nodes = torch.tensor([TREE.index(label) for label in env])
    return torch.as_tensor(x).float(), nodes, y.float()


def trained(posterior, rows, num_steps, share=1.0):
    """Loss of a new guide of the fit's model after steps of SVI, and of the fit's guide."""
    model, num = posterior.model, len(rows[0])
    guide = type(posterior.guide)(model)
    # Rates fall to a hundredth, as Pyro's users do it where batches are small.
    optimizer = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.01 ** (1 / num_steps)})
    svi = SVI(model, guide, optimizer, tbr.TreeELBO())
    generator = torch.Generator().manual_seed(0)
    model.num_rows = num
    for _ in range(num_steps):
        some = torch.randperm(num, generator=generator)[: round(share * num)]
        svi.step(*(part[some] for part in rows))
    return [tbr.TreeELBO().loss(model, g, *rows) for g in (guide, posterior.guide)]


QUICK = {("dense", "gaussian", "mean_field"), ("dense", "bernoulli", "tree"),
         ("dense", "own", "tree"), ("spike and slab", "gaussian", "tree")}  # fmt: skip
cases = pytest.mark.parametrize(
    ("prior", "likelihood", "kind"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
        for case in itertools.product(PRIORS, LIKELIHOODS, GUIDES)
    ],
)


def steps_of(case, with_tree):
    """Adam takes hundreds of steps to where closed forms get in a few, more if sparse."""
    if case[-1] == "tree":
        return with_tree
    return 500 if case in QUICK else 1200


@cases
def test_svi_from_a_fresh_build_is_as_good_as_a_fit(prior, likelihood, kind, users_store):
    """Within 1 % on full batches.

    A mean-field normal that stands for a mixture of two has several optima: there within 1.5 %.
    """
    room = 0.015 if (prior, kind) == ("a user's own", "mean_field") else 0.01
    posterior = fitted(prior, likelihood, kind)
    steps = steps_of((prior, likelihood, kind), 15)
    found, best = trained(posterior, rows_of(posterior, likelihood), steps)
    assert found < best + room * abs(best)


@cases
def test_minibatches_of_a_tenth(prior, likelihood, kind):
    """Within 0.03 nats a row; a row's entropy is about one."""
    posterior = fitted(prior, likelihood, kind)
    steps = steps_of((prior, likelihood, kind), 60)
    rows = rows_of(posterior, likelihood)
    found, best = trained(posterior, rows, steps, share=0.1)
    assert found < best + 0.03 * len(rows[0])


def test_encoder_and_guide_are_trained_together(users_store):
    """From a fresh build with a linear encoder: a regression a leaf is no better."""
    x, y, env = table()
    mixed = torch.as_tensor(x @ np.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.4]])).float()
    nodes = torch.tensor([TREE.index(label) for label in env])
    outcomes = torch.as_tensor(y).float()[:, None]
    model = tbr.TreeModel(TREE, 2, "linear", num_features=3, num_outcomes=1)
    guide = tbr.TreeGuide(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), tbr.TreeELBO())
    losses = [svi.step(mixed, nodes, outcomes) for _ in range(40)]
    assert losses[-1] < losses[0]
    noise = guide.nuisance["noise_scale"].mean_log().exp().item()
    assert noise == pytest.approx(0.5, rel=0.15)
    weights = guide.node_moments().mean.detach()
    predicted = (model.design(model.encoder(mixed))[..., None] * weights[nodes]).sum(1)
    assert (predicted - outcomes).square().mean() < 0.3


def test_on_all_rows_it_is_the_guides_elbo():
    posterior = fitted("spike and slab", "gaussian", "tree")
    rows = rows_of(posterior, "gaussian")
    loss = tbr.TreeELBO().loss(posterior.model, posterior.guide, *rows)
    assert_close(loss, -posterior.guide.elbo(posterior.stats).item(), rtol=1e-4, atol=0.01)


@pytest.mark.own_random_state
def test_autoguides_of_pyro_work_outside_any_context(users_store):
    """At the first step too, and nothing of the model's is in the store."""
    x, y, env = table()
    nodes = torch.tensor([TREE.index(label) for label in env])
    rows = torch.as_tensor(x).float(), nodes, torch.as_tensor(y).float()
    prior = GaussianPrior()
    model = tbr.TreeModel(TREE, 2, "linear", prior, num_features=2, num_outcomes=1)
    torch.manual_seed(0)
    with pyro.get_param_store().scope():  # the autoguide's own go there, as Pyro's do
        guide = AutoNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        losses = [svi.step(*rows) for _ in range(80)]
        assert all(name.startswith("AutoNormal") for name in pyro.get_param_store())
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


@pytest.mark.own_random_state
def test_the_tree_guide_is_not_trained_by_draws(users_store):
    x, y, env = table()
    nodes = torch.tensor([TREE.index(label) for label in env])
    rows = torch.as_tensor(x).float(), nodes, torch.as_tensor(y).float()
    model = tbr.TreeModel(TREE, 2, "linear", num_features=2, num_outcomes=1)
    svi = SVI(model, tbr.TreeGuide(model), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    with pytest.raises(TrainingError, match=r"TreeGuide .*TreeELBO\(\)"):
        svi.step(*rows)


def test_what_does_not_fit_is_refused():
    posterior = fitted("dense", "gaussian", "tree")
    x, nodes, y = rows_of(posterior, "gaussian")
    model, guide, loss = posterior.model, posterior.guide, tbr.TreeELBO().loss
    with pytest.raises(ShapeError, match="have 300, 300 and 299 rows"):
        loss(model, guide, x, nodes, y[1:])
    with pytest.raises(ShapeError, match="y has 2 columns, the model was built for 1"):
        loss(model, guide, x, nodes, y.expand(-1, 2))
    with pytest.raises(DataError, match="this guide is a AutoNormal.*Trace_ELBO"):
        loss(model, AutoNormal(model), x, nodes, y)
