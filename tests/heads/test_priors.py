"""Priors: their sites, units, and draws without Pyro against draws through it."""

import copy

import pyro
import pyro.poutine as poutine
import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.errors import DataError, ShapeError, TreeError
from pyro_tbr.heads.priors import GaussianPrior, HorseshoePrior, SpikeSlabPrior
from pyro_tbr.tree import Tree
from tests.tree.small_trees import SMALL_TREES

TREE = SMALL_TREES["with lengths"]
A, W, Q = TREE.num_arcs, 3, 2
UNIT = torch.tensor([2.0, 0.5])
PRIORS = {
    "gaussian": lambda: GaussianPrior(),
    "gaussian, fixed": lambda: GaussianPrior(0.7, 2.0),
    "gaussian, pooled": lambda: GaussianPrior(pooled=True),
    "spike and slab": lambda: SpikeSlabPrior(spike_scale=0),
    "spike and slab, fixed": lambda: SpikeSlabPrior(None, 0.3, 0.7, 2.0),
    "spike and slab, expected": lambda: SpikeSlabPrior(1.5),
    "lengths": lambda: SpikeSlabPrior(use_lengths=True),
    "lengths, expected": lambda: SpikeSlabPrior(1.5, use_lengths=True, slab_scale=1.0),
    "wide spike": lambda: SpikeSlabPrior(),
    "wide spike, fixed": lambda: SpikeSlabPrior(None, 0.3, 0.7, 2.0, spike_scale=0.1),
    "grouped": lambda: SpikeSlabPrior(gates="grouped"),
    "shared": lambda: SpikeSlabPrior(gates="shared"),
    "a rate each": lambda: SpikeSlabPrior(inclusion_prob=torch.rand(W, Q)),
    "horseshoe": lambda: HorseshoePrior(),
    "horseshoe, fixed": lambda: HorseshoePrior(global_scale=0.2, slab_scale=1.5, root_scale=2.0),
}
priors = pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS.keys())


@pytest.fixture(autouse=True)
def _seed():
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


def built(make, **kwargs):
    return make().build(TREE, W, Q, **kwargs)


def expected_sites(prior):
    scale = (W, 1)
    sites = {"root_scale": scale, "root_weights": (W, Q), "slab_scale": scale}
    if isinstance(prior, SpikeSlabPrior):
        sites |= {"inclusion_rate": scale, "gates": (A, W, Q), "slab": (A, W, Q)}
        if prior.has_levels:
            sites["sharing"] = scale
        if prior.halves:
            sites["slab_separation"] = (1, 1)
        if prior.has_spike:
            fixed = prior.spike_scale.fixed is not None
            sites |= {"spike_scale": (W, Q) if fixed else scale, "spike": (A, W, Q)}
    if isinstance(prior, HorseshoePrior):
        sites |= {"global_scale": (W, Q), "local_scale": (A, W, Q), "slab_scale": (W, Q)}
    return sites | {"deltas": (A, W, Q)}


@priors
def test_sites_and_shapes(make):
    prior = built(make)
    trace = poutine.trace(prior).get_trace()
    found = {name: tuple(trace.nodes[name]["value"].shape) for name in trace.nodes
             if trace.nodes[name]["type"] == "sample"}  # fmt: skip
    expected = expected_sites(prior)
    for name, value in (("root_scale", "root_scale_value"), ("slab_scale", "slab_scale_value"),
                        ("slab_scale", "scale_value")):  # fmt: skip
        if getattr(prior, value, None) is not None:
            expected[name] = (W, Q)
    if "inclusion_rate" in expected and prior.inclusion_rate.fixed is not None:
        expected["inclusion_rate"] = tuple(prior.inclusion_rate.fixed.shape)
    assert found == expected
    trace.compute_log_prob()
    assert all(trace.nodes[name]["log_prob"].shape == () for name in found)
    root_weights, deltas = prior()
    assert root_weights.shape == (W, Q)
    assert deltas.shape == (A, W, Q)
    for hyper in prior.hyperparameters():
        assert hyper.name in found
        assert trace.nodes[hyper.name]["value"].shape == hyper.shape


@priors
def test_the_description_is_left_alone_and_moves_go_everywhere(make):
    description = make()
    before = repr(description)
    one = description.build(TREE, W, Q)
    other_tree = Tree.from_newick("(a:1,b:2)r;")
    two = description.build(other_tree, W, Q)
    assert repr(description) == before == repr(one)
    assert not description.state_dict()
    assert one.delta_shape == (A, W, Q)
    assert two.delta_shape == (2, W, Q)
    assert not list(one.parameters())
    moved = copy.deepcopy(one).double()
    assert all(buffer.dtype == torch.float64 for buffer in moved.buffers())
    assert moved()[1].dtype == torch.float64
    moved.load_state_dict(one.double().state_dict())


@pytest.mark.parametrize("make", [
    lambda: GaussianPrior(0.7, 2.0),
    lambda: SpikeSlabPrior(inclusion_prob=0.3, slab_scale=0.7, root_scale=2.0),
    lambda: HorseshoePrior(global_scale=0.7, slab_scale=0.7, root_scale=2.0),
])  # fmt: skip
def test_fixed_values_are_in_the_users_unit(make):
    prior = built(make, outcome_scale=UNIT)
    values = {hyper.name: hyper for hyper in prior.hyperparameters()}
    assert_close(values["root_scale"].fixed, (2.0 / UNIT).expand(W, Q))
    if isinstance(prior, HorseshoePrior):
        assert_close(values["global_scale"].fixed, (0.7 / UNIT).expand(W, Q))
        assert_close(values["slab_scale"].prior_scale, (0.7 / UNIT).expand(W, Q))
    else:
        assert_close(values["slab_scale"].fixed, (0.7 / UNIT).expand(W, Q))
    if "inclusion_rate" in values:  # a probability has no unit
        assert_close(values["inclusion_rate"].fixed, torch.full((W, 1), 0.3))


@pytest.mark.parametrize("use_lengths", [False, True])
@pytest.mark.parametrize("expected", [0.01, 1.0, 2.5, 4.5])
def test_expected_number_of_changes_is_kept(expected, use_lengths):
    prior = SpikeSlabPrior(expected, use_lengths=use_lengths).build(TREE, W, Q).double()
    prob = prior.arc_inclusion_prob(prior.inclusion_rate.fixed)
    assert_close(prob.sum(0), torch.full((W, 1), expected).double(), rtol=1e-5, atol=0)


def test_rates_follow_lengths():
    prior = SpikeSlabPrior(use_lengths=True).build(TREE, W, Q).double()
    rate = torch.full((W, 1), 0.3, dtype=torch.float64)
    lengths = torch.tensor(TREE.lengths, dtype=torch.float64)
    expected = 1 - 0.7 ** (lengths / lengths.mean())
    assert_close(prior.arc_inclusion_prob(rate)[:, 0, 0], expected)
    assert (prior.arc_inclusion_prob(rate)[lengths == 0] == 0).all()
    new = prior.arc_inclusion_prob(rate, torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
    assert_close(new[:, 0, 0], torch.tensor([0.3, 0.0, 1 - 0.49], dtype=torch.float64))


def test_an_arc_of_length_zero_never_changes():
    prior = SpikeSlabPrior(4.0, use_lengths=True, slab_scale=1.0).build(TREE, W, Q)
    still = torch.tensor(TREE.lengths) == 0
    assert still.any()
    draws = [prior()[1] for _ in range(200)]
    assert all((deltas[still] == 0).all() for deltas in draws)
    values = {"inclusion_rate": prior.inclusion_rate.fixed.expand(500, W, 1),
              "sharing": torch.full((500, W, 1), 0.5),
              "slab_scale": prior.slab_scale.fixed.expand(500, W, Q)}  # fmt: skip
    changes = prior.draw_changes(values, torch.Generator().manual_seed(0))
    assert (changes["gates"][:, still] == 0).all()
    assert (changes["deltas"][:, still] == 0).all()
    assert (changes["gates"][:, ~still] == 1).any()


def through_pyro(prior, num_samples):
    """Draws of all sites, through a vectorised trace."""
    with pyro.plate("draws", num_samples, dim=-1):
        trace = poutine.trace(prior).get_trace()
    return {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "sample"
            and name != "draws"}  # fmt: skip


def assert_same_mean(one, two, num_sigma=4.5):
    """Means over the first dimension agree within their standard errors."""
    error = ((one.var(0) + two.var(0)) / len(one)).sqrt()
    gap = (one.mean(0) - two.mean(0)).abs()
    assert (gap <= num_sigma * error + 1e-12).all(), (gap / error).max()


@priors
def test_draws_without_pyro_agree_with_draws_through_it(make):
    prior, num = built(make), 20_000
    pyro_draws = through_pyro(prior, num)
    hyper = {h.name: pyro_draws[h.name] for h in prior.hyperparameters()}
    hyper = {name: value if value.shape[0] == num else value.expand(num, *value.shape[-2:])
             for name, value in hyper.items()}  # fmt: skip
    other = through_pyro(prior, num)  # the same hyperparameters for both would tie the draws
    draws = prior.draw_changes(hyper, torch.Generator().manual_seed(1))
    assert draws["deltas"].shape == (num, A, W, Q)
    if "gates" in draws:
        assert draws["gates"].shape == (num, A, W, Q)
        assert ((draws["gates"] == 0) | (draws["gates"] == 1)).all()
        assert_same_mean(draws["gates"], other["gates"].expand(num, A, W, Q))
        assert prior.has_spike or ((draws["deltas"] != 0) <= (draws["gates"] == 1)).all()
    found, expected = draws["deltas"], other["deltas"]
    assert_same_mean(found.tanh(), expected.tanh())
    assert_same_mean(found.tanh().square(), expected.tanh().square())
    if prior.root_scale.fixed is not None:  # light tails: plain moments too
        assert_same_mean(found, expected)
        assert_same_mean(found.square(), expected.square())


def test_draws_for_a_new_arc_have_its_rate():
    prior = SpikeSlabPrior(None, 0.3, 1.0, use_lengths=True).build(TREE, 1, 1)
    values = {"inclusion_rate": torch.full((20_000, 1, 1), 0.3),
              "slab_scale": torch.ones(20_000, 1, 1)}  # fmt: skip
    gates = prior.draw_changes(values, torch.Generator().manual_seed(0), torch.tensor([2.0, 0.0]))
    mean = gates["gates"].mean(0).flatten()
    assert abs(mean[0] - 0.51) < 4.5 * (0.51 * 0.49 / 20_000) ** 0.5
    assert mean[1] == 0


def test_the_horseshoe_stays_below_its_slab():
    prior = HorseshoePrior(global_scale=1e4, slab_scale=0.3).build(TREE, 1, 1)
    for _ in range(20):
        trace = poutine.trace(prior).get_trace()
        values = {name: node.get("value") for name, node in trace.nodes.items()}
        law = trace.nodes["deltas"]["fn"].base_dist
        wide = values["global_scale"] * values["local_scale"]
        expected = (wide**-2 + values["slab_scale"] ** -2) ** -0.5
        assert_close(law.scale, expected.expand(law.scale.shape))
        assert (law.scale <= values["slab_scale"] * (1 + 1e-6)).all()


def test_the_horseshoes_global_scale_follows_the_expected_number():
    prior = HorseshoePrior(2.0).build(TREE, W, Q, standard_error=0.05)
    # Piironen & Vehtari (2017): m / (A - m) times the standard error of one weight
    assert_close(prior.global_scale.prior_scale, torch.full((W, Q), 2 / (A - 2) * 0.05))


def test_root_weights_have_their_mean():
    loc = torch.arange(6.0).reshape(W, Q)
    prior = GaussianPrior(0.1, 1e-4).build(TREE, W, Q, root_loc=loc)
    assert_close(prior()[0], loc, rtol=0, atol=1e-2)


ERRORS = {
    "both": (lambda: SpikeSlabPrior(2, 0.3), DataError, "say the same thing twice"),
    "rate 1": (lambda: SpikeSlabPrior(inclusion_prob=1.0), DataError, "and below 1"),
    "rate 0": (lambda: SpikeSlabPrior(inclusion_prob=0.0), DataError, "inclusion_prob must be pos"),
    "slab": (lambda: SpikeSlabPrior(slab_scale=-1), DataError, "slab_scale must be positive"),
    "root": (lambda: GaussianPrior(root_scale=0), DataError, "root_scale must be positive"),
    "scale": (lambda: GaussianPrior(float("nan")), DataError, "scale must be positive"),
    "global": (lambda: HorseshoePrior(global_scale=0.0), DataError, "global_scale must be"),
    "df": (lambda: HorseshoePrior(slab_df=0.0), DataError, "slab_df must be positive"),
    "expected": (lambda: HorseshoePrior(-1), DataError, "expected_num_nonzero must be positive"),
    "too many": (lambda: SpikeSlabPrior(A).build(TREE, 1, 1), DataError, "below the number of arc"),
    "too many usable": (
        lambda: SpikeSlabPrior(A - 1, use_lengths=True).build(TREE, 1, 1), DataError,
        f"number of arcs, {A - 1}",
    ),
    "too many, horseshoe": (
        lambda: HorseshoePrior(A + 1).build(TREE, 1, 1), DataError, "below the number of arcs"
    ),
    "rates of other shape": (
        lambda: SpikeSlabPrior(inclusion_prob=torch.full((4,), 0.3)).build(TREE, W, Q),
        ShapeError, r"inclusion_prob has shape \(4,\): give a number, or .* \(3, 1\)",
    ),
    "scales of other shape": (
        lambda: GaussianPrior(torch.ones(5)).build(TREE, W, Q),
        ShapeError, r"slab_scale has shape \(5,\)",
    ),
    "horseshoe of other shape": (
        lambda: HorseshoePrior(global_scale=torch.ones(5)).build(TREE, W, Q),
        ShapeError, "global_scale has shape",
    ),
    "no lengths": (
        lambda: SpikeSlabPrior(use_lengths=True).build(Tree.from_parents({"a": "r"}), 1, 1),
        TreeError, "length",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
