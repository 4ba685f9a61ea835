"""The model in Pyro: sites, plates, masks, and parameters that stay its own."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.testing import assert_close

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.heads.likelihoods import BernoulliLikelihood, GaussianLikelihood
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.heads.priors import GaussianPrior, HorseshoePrior, SpikeSlabPrior
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.models import LinearEncoder, TreeModel
from tests.tree.small_trees import SMALL_TREES, dense_paths

TREE = SMALL_TREES["balanced"]
N, D, K, Q = 30, 4, 2, 3
SITES = {
    "spike and slab": (SpikeSlabPrior, ["root_scale", "root_weights", "inclusion_rate",
                                        "slab_scale", "gates", "slab_separation", "slab",
                                        "spike_scale", "spike", "deltas"]),
    "horseshoe": (HorseshoePrior, ["root_scale", "root_weights", "global_scale", "local_scale",
                                   "slab_scale", "deltas"]),
    "gaussian": (GaussianPrior, ["root_scale", "root_weights", "slab_scale", "deltas"]),
}  # fmt: skip
LIKELIHOODS = {"gaussian": ["noise_scale", "noise_spread", "node_noise_scale"], "bernoulli": []}


@pytest.fixture(autouse=True)
def _seed():
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


def rows(num_rows=N, num_outcomes=Q, binary=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, D, generator=generator)
    y = torch.randn(num_rows, num_outcomes, generator=generator)
    env = torch.randint(TREE.num_nodes, (num_rows,), generator=generator)  # inner nodes too
    return x, env, (y > 0).float() if binary else y


def make_model(prior=None, likelihood="gaussian", encoder="linear", num_outcomes=Q, **kwargs):
    kwargs = {"num_features": D, "num_outcomes": num_outcomes} | kwargs
    return TreeModel(TREE, K, encoder, prior or GaussianPrior(), likelihood, **kwargs)


def sample_sites(trace):
    return [name for name, node in trace.nodes.items()
            if node["type"] == "sample" and name not in ("_INPUT", "_RETURN", "rows")]  # fmt: skip


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", SITES)
def test_sites(prior, likelihood):
    make_prior, names = SITES[prior]
    model = make_model(make_prior(), likelihood)
    x, env, y = rows(binary=likelihood == "bernoulli")
    trace = poutine.trace(model).get_trace(x, env, y)
    assert sorted(sample_sites(trace)) == sorted(["z", *names, *LIKELIHOODS[likelihood], "y"])
    assert sample_sites(trace)[-1] == "y"
    shapes = {name: tuple(trace.nodes[name]["value"].shape) for name in sample_sites(trace)}
    assert shapes["root_weights"] == (K + 1, Q)
    assert shapes["deltas"] == (TREE.num_arcs, K + 1, Q)
    assert shapes["z"] == (N, K)
    assert shapes["y"] == (N, Q)
    assert torch.equal(trace.nodes["y"]["value"], y)
    trace.compute_log_prob()
    assert trace.nodes["y"]["log_prob"].shape == (N,)
    drawn = model(x, env)
    assert drawn.shape == (N, Q)
    if likelihood == "bernoulli":
        assert ((drawn == 0) | (drawn == 1)).all()


@pytest.mark.parametrize("intercept", [True, False])
def test_the_predictor_is_the_design_times_the_nodes_weights(intercept):
    model = make_model(likelihood=GaussianLikelihood(0.3), intercept=intercept)
    x, env, _ = rows()
    trace = poutine.trace(model).get_trace(x, env)
    root, deltas = (trace.nodes[name]["value"] for name in ("root_weights", "deltas"))
    weights = root + torch.einsum("va,awq->vwq", dense_paths(TREE).float(), deltas)
    design = model.encoder(x)
    if intercept:
        design = torch.cat([design, torch.ones(N, 1)], 1)
    expected = torch.stack([design[n] @ weights[env[n]] for n in range(N)])
    law = trace.nodes["y"]["fn"]
    while not hasattr(law, "loc"):
        law = law.base_dist
    assert_close(law.loc, expected, rtol=1e-4, atol=1e-5)
    assert_close(law.scale.expand(N, Q), torch.full((N, Q), 0.3))
    assert model.weight_names == (("z0", "z1", "intercept") if intercept else ("z0", "z1"))


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("num_outcomes", [1, Q])
@pytest.mark.parametrize("prior", SITES)
def test_predictive(prior, num_outcomes, parallel):
    model = make_model(SITES[prior][0](), num_outcomes=num_outcomes)
    x, env, _ = rows(num_outcomes=num_outcomes)
    draws = Predictive(model, num_samples=5, parallel=parallel)(x, env)
    assert draws["y"].shape == (5, N, num_outcomes)
    assert draws["deltas"].reshape(5, TREE.num_arcs, K + 1, num_outcomes).isfinite().all()
    assert draws["root_weights"].reshape(5, K + 1, num_outcomes).std(0).min() > 0


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_with_given_draws(parallel):
    """From draws of weights: the mean of y is the predictor, draw by draw."""
    model = make_model(likelihood=GaussianLikelihood(1e-4))
    x, env, _ = rows()
    given = {"root_weights": torch.randn(5, K + 1, Q),
             "deltas": torch.randn(5, TREE.num_arcs, K + 1, Q)}  # fmt: skip
    if parallel:  # Pyro's own rule: draws carry the plate's dimension
        given = {name: value.unsqueeze(1) for name, value in given.items()}
    draws = Predictive(model, posterior_samples=given, parallel=parallel)(x, env)["y"]
    weights = given["root_weights"].reshape(5, 1, K + 1, Q) + torch.einsum(
        "va,sawq->svwq", dense_paths(TREE).float(), given["deltas"].reshape(5, -1, K + 1, Q)
    )
    expected = torch.einsum("nw,snwq->snq", model.design(model.encoder(x)), weights[:, env])
    assert_close(draws, expected, rtol=0, atol=1e-2)


def log_prob_of_y(model, x, env, y):
    """log p(y | weights of one prior draw), summed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return poutine.trace(model).get_trace(x, env, y).nodes["y"]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_missing_outcomes_are_masked(likelihood):
    model = make_model(likelihood=likelihood)
    x, env, y = rows(binary=likelihood == "bernoulli")
    missing = torch.rand(N, Q, generator=torch.Generator().manual_seed(1)) < 0.4
    missing[3] = True  # a row without any outcome
    holed = torch.where(missing, torch.nan, y)
    node = log_prob_of_y(model, x, env, holed)
    log_prob = node["fn"].log_prob(node["value"])
    law = log_prob_of_y(model, x, env, y)["fn"]
    while isinstance(law, (dist.Independent, dist.MaskedDistribution)):
        law = law.base_dist
    by_hand = (law.log_prob(y) * ~missing).sum(-1)
    assert_close(log_prob, by_hand, rtol=1e-4, atol=1e-5)
    assert log_prob[3] == 0
    assert torch.isnan(holed).equal(missing)  # the caller's outcomes are left alone


def test_missing_outcomes_leave_finite_gradients():
    model = make_model()
    x, env, y = rows()
    y[::2] = torch.nan
    poutine.trace(model).get_trace(x, env, y).log_prob_sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_minibatches_are_scaled_to_all_rows():
    model = make_model()
    x, env, y = rows(36)
    data = {"root_weights": torch.randn(K + 1, Q), "noise_scale": torch.ones(Q),
            "node_noise_scale": torch.ones(TREE.num_nodes, Q),
            "deltas": torch.randn(TREE.num_arcs, K + 1, Q)}  # fmt: skip
    conditioned = poutine.condition(model, data)

    def log_prob(index):
        trace = poutine.trace(conditioned).get_trace(x[index], env[index], y[index])
        trace.compute_log_prob()
        return trace.nodes["y"]["log_prob_sum"]

    whole = log_prob(torch.arange(36))
    model.num_rows = 36
    batches = torch.randperm(36, generator=torch.Generator().manual_seed(0)).split(9)
    scaled = torch.stack([log_prob(batch) for batch in batches])
    assert_close(scaled.mean(), whole, rtol=1e-4, atol=1e-4)
    assert scaled.std() > 0


def test_one_outcome_may_be_a_vector():
    model = make_model(num_outcomes=1)
    x, env, y = rows(num_outcomes=1)
    one, two = log_prob_of_y(model, x, env, y), log_prob_of_y(model, x, env, y[:, 0])
    assert torch.equal(one["fn"].log_prob(one["value"]), two["fn"].log_prob(two["value"]))


def test_nothing_is_lazy():
    model = make_model(SpikeSlabPrior(), encoder="mlp")
    names = set(model.state_dict())
    x, env, y = rows()
    model(x, env, y)
    poutine.trace(model).get_trace(x, env)
    assert set(model.state_dict()) == names
    late = TreeModel(TREE, K, "mlp", SpikeSlabPrior())
    assert late.build(D, Q) is late
    assert set(late.state_dict()) == names
    late.load_state_dict(model.state_dict())
    assert_close(late.encoder(x), model.encoder(x))
    double = copy.deepcopy(model).double()
    assert all(value.dtype == torch.float64 for value in double.state_dict().values())
    assert double(x.double(), env).dtype == torch.float64


def test_the_users_objects_are_copied():
    prior, likelihood = SpikeSlabPrior(), GaussianLikelihood()
    encoder = LinearEncoder(D, K)
    one, two = (make_model(prior, likelihood, encoder) for _ in range(2))
    for mine, theirs in ((one.encoder, encoder), (one.prior, prior), (one.likelihood, likelihood),
                         (one.encoder, two.encoder), (one.prior, two.prior)):  # fmt: skip
        assert mine is not theirs
    assert one.encoder.layer.weight is not encoder.layer.weight


@pytest.mark.parametrize("make", [lambda m: MeanFieldGuide(m), lambda m: TreeGuide(m)])
def test_models_and_guides_pickle_after_use(make):
    model = make_model()
    guide = make(model)
    x, env, y = rows()
    Trace_ELBO().loss(model, guide, x, env, y)
    other_guide = pickle.loads(pickle.dumps(guide))
    assert_close(other_guide.head.prior.root_loc, model.prior.root_loc)
    copied = copy.deepcopy(model)
    assert_close(copied.encoder(x), model.encoder(x))


ERRORS = {
    "tree": (lambda: TreeModel({"a": "b"}, 2), DataError, "tree must be a pyro_tbr.Tree, got dict"),
    "latent_dim 0": (lambda: TreeModel(TREE, 0), DataError, "latent_dim=0 must be a whole"),
    "latent_dim float": (lambda: TreeModel(TREE, 2.0), DataError, "latent_dim=2.0"),
    "encoder": (lambda: TreeModel(TREE, 2, "cnn"), DataError, "encoder='cnn' is not known"),
    "prior": (lambda: TreeModel(TREE, 2, prior="ss"), DataError, "prior='ss' is not known"),
    "likelihood": (lambda: TreeModel(TREE, 2, likelihood=3), DataError, "likelihood=3"),
    "not built": (
        lambda: TreeModel(TREE, 2)(*rows()), ShapeError, "does not know its sizes yet",
    ),
    "identity": (
        lambda: make_model(encoder="identity"), ShapeError, "make them equal",
    ),
    "y columns": (
        lambda: make_model()(*rows(num_outcomes=2)), ShapeError, r"\(30, 2\), expected \(30, 3\)",
    ),
    "y vector": (
        lambda: make_model()(*rows()[:2], torch.zeros(N)), ShapeError, r"expected \(30, 3\)",
    ),
    "x columns": (
        lambda: make_model()(torch.zeros(N, D + 1), *rows()[1:]), ShapeError, "5 columns",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Parameters are a model's own


def test_calls_leave_the_store_alone(users_store):
    model = make_model(SpikeSlabPrior(), encoder="mlp")
    x, env, y = rows()
    model(x, env, y)
    model.encoder(x)
    poutine.trace(model).get_trace(x, env, y)
    Predictive(model, num_samples=2)(x, env)
    for make in (MeanFieldGuide, TreeGuide):
        guide = make(model)
        guide(x, env)
        poutine.trace(guide).get_trace(x, env)
        Trace_ELBO().loss(model, guide, x, env, y)
    model.build(D, Q)  # Pyro would delete parameters of like names
    del model.encoder


def test_svi_trains_two_models_apart(users_store):
    x, env, y = rows()
    pairs = []
    for seed in (0, 1):
        model = make_model(GaussianPrior(), encoder="mlp")
        model.encoder.reset(torch.Generator().manual_seed(seed))
        guide = MeanFieldGuide(model)
        pairs.append((model, guide))
    svis = [SVI(*pair, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()) for pair in pairs]
    state = [[copy.deepcopy(part.state_dict()) for part in pair] for pair in pairs]
    svis[0].step(x, env, y)
    for part, before in zip(pairs[0], state[0], strict=True):
        for name, parameter in part.named_parameters():
            assert not torch.equal(parameter, before[name]), f"{name} was not trained"
    for part, before in zip(pairs[1], state[1], strict=True):
        assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())


def test_alternating_steps_equal_separate_training(users_store):
    x, env, y = rows()

    def make():
        model = make_model()
        guide = MeanFieldGuide(model)
        return SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())

    def step(svi, seed):
        torch.manual_seed(seed)
        return svi.step(x, env, y)

    apart = [[step(svi, seed) for seed in range(3)] for svi in (make(), make())]
    one, two = make(), make()
    in_turn = [(step(one, seed), step(two, seed)) for seed in range(3)]
    assert [list(losses) for losses in zip(*in_turn, strict=True)] == apart


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("name", ["mean field", "auto"])
def test_a_users_own_loop_trains(name, local):
    """In both of Pyro's modes; an autoguide's own parameters then go where the user says."""
    store = pyro.get_param_store()
    x, env, _ = rows()
    y = (x[:, :1] + 0.1 * torch.randn(N, 1)).expand(N, Q)
    with pyro.settings.context(module_local_params=local), store.scope():
        model = make_model()
        guide = MeanFieldGuide(model) if name == "mean field" else AutoNormal(model)
        elbo = Trace_ELBO()(model, guide)
        elbo(x, env, y)
        assert {id(p) for p in model.encoder.parameters()} <= {id(p) for p in elbo.parameters()}
        optimizer = torch.optim.Adam(elbo.parameters(), lr=0.05)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = elbo(x, env, y)
            loss.backward()
            assert all(p.grad is not None for p in elbo.parameters())
            optimizer.step()
            losses.append(loss.item())
        ours = [key for key in store.keys() if not key.startswith("AutoNormal")]
        assert not ours
        draws = Predictive(model, guide=guide, num_samples=3)(x, env)
        assert draws["y"].shape == (3, N, Q)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_nuts_runs_on_the_model(users_store):
    tree = SMALL_TREES["cherry"]
    model = TreeModel(tree, 1, "identity", GaussianPrior(0.5, 1.0), GaussianLikelihood(0.5),
                      intercept=False, num_features=1, num_outcomes=1)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 1, generator=generator)
    env = torch.randint(1, 3, (40,), generator=generator)
    y = 0.8 * x + 0.5 * torch.randn(40, 1, generator=generator)
    mcmc = MCMC(
        NUTS(model, max_tree_depth=4), num_samples=60, warmup_steps=40, disable_progbar=True
    )
    mcmc.run(x, env, y)
    draws = mcmc.get_samples()
    root = draws["root_weights"].flatten()
    # closed form: y is Gaussian given the weights, and these are jointly Gaussian
    design = torch.cat([torch.ones(40, 1), dense_paths(tree).float()[env]], 1) * x
    precision = design.T @ design / 0.25 + torch.diag(torch.tensor([1.0, 4.0, 4.0]))
    cov = torch.linalg.inv(precision)
    mean = cov @ design.T @ y.flatten() / 0.25
    error = cov[0, 0].sqrt() / 12**0.5  # some 12 independent draws at the least
    assert abs(root.mean() - mean[0]) < 4.5 * error


def test_a_model_inside_a_users_pyro_module(users_store):
    class Outer(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.inner = make_model()

        def forward(self, x, env, y=None):
            return self.inner(x, env, y)

    outer, (x, env, y) = Outer(), rows()
    outer(x, env, y)
    with pyro.get_param_store().scope():  # the outer module is the user's: its habits are Pyro's
        trace = poutine.trace(outer).get_trace(x, env, y)
    assert "deltas" in trace.nodes


def test_bernoulli_has_no_noise_and_the_class_is_known_early():
    model = TreeModel(TREE, K, likelihood="bernoulli")
    assert type(model.likelihood) is BernoulliLikelihood
    own = GaussianLikelihood()
    assert TreeModel(TREE, K, likelihood=own).likelihood is own
    assert make_model(likelihood="bernoulli").likelihood.hyperparameters() == []


def test_an_encoder_module_is_trained_too():
    model = make_model(encoder=nn.Linear(D, K))
    x, env, y = rows()
    svi = SVI(model, MeanFieldGuide(model), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = model.encoder.module.weight.clone()
    svi.step(x, env, y)
    assert not torch.equal(model.encoder.module.weight, before)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("gates", ["separate", "grouped"])
@pytest.mark.parametrize("spike_scale", [0.0, None])
def test_gates_are_refused_where_numbers_are_moved(gates, spike_scale, users_store):
    """By NUTS and autoguides; what a gate is drawn from stays a distribution like any other."""
    prior = SpikeSlabPrior(gates=gates, spike_scale=spike_scale)
    model = TreeModel(SMALL_TREES["cherry"], 1, "identity", prior, num_features=1, num_outcomes=2)
    data = torch.zeros(4, 1), torch.tensor([1, 1, 2, 2]), torch.zeros(4, 2)
    words = "NUTS, HMC .* prior=HorseshoePrior.. or GaussianPrior.*sample_posterior"
    with pytest.raises(DataError, match=words):
        MCMC(NUTS(model), num_samples=1, warmup_steps=1, disable_progbar=True).run(*data)
    with pytest.raises(DataError, match=words):
        SVI(model, AutoNormal(model), pyro.optim.Adam({}), Trace_ELBO()).step(*data)
    gates = Predictive(model, num_samples=5)(*data[:2])["gates"]
    assert set(gates.unique().tolist()) <= {0.0, 1.0}
