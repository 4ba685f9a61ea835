"""The simulator: its draws have the laws it states, and its truth explains its data."""

import dataclasses

import numpy as np
import pytest

from pyro_tbr.errors import DataError, ShapeError, TreeError
from pyro_tbr.evaluation import Simulation, simulate
from pyro_tbr.tree import Tree

SMALL = {"num_leaves": 6, "latent_dim": 3, "num_features": 8, "rows_per_leaf": 20}
KINDS = {
    "default": {},
    "random": {"shape": "random", "changes": "half_the_arcs"},
    "outcomes": {"num_outcomes": 3, "changes": "bernoulli", "latent_noise": 0.2},
    "mlp": {"mixing": "mlp", "latent_correlation": 0.5},
    "binary": {"likelihood": "bernoulli", "changes": "two_per_arc", "missing": 0.2},
    "intercept": {"intercept_scale": 2.0, "intercept_changes": 0.3},
    "shifted": {"latent_shift": 1.0, "latent_stretch": 0.3, "small_changes": 0.1},
}


def arrays(sim: Simulation) -> dict[str, np.ndarray]:
    values = {f.name: getattr(sim, f.name) for f in dataclasses.fields(sim)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request):
    return SMALL | request.param


def test_shapes_and_reproducible(kind):
    sim, again, other = simulate(**kind), simulate(**kind), simulate(**kind, seed=1)
    Q, A, V = kind.get("num_outcomes", 1), sim.tree.num_arcs, sim.tree.num_nodes
    assert sim.x.shape == (120, 8)
    assert sim.y.shape == ((120,) if Q == 1 else (120, Q))
    assert sim.gates.shape == sim.deltas.shape == (A, 3, Q)
    assert sim.node_weights.shape == (V, 3, Q)
    assert sim.tree == again.tree
    for name, value in arrays(sim).items():
        np.testing.assert_array_equal(value, getattr(again, name), err_msg=name)
    assert not np.array_equal(sim.x, other.x)
    assert not np.array_equal(sim.root_weights, other.root_weights)


def test_truth_explains_the_data(kind):
    sim = simulate(**kind | {"noise_scale": 0.0, "latent_noise": 0.0, "missing": 0.0})
    np.testing.assert_array_equal(sim.x, sim.mixing(sim.z))
    y = sim.y.reshape(120, -1)
    for row in range(0, 120, 7):
        path = sim.tree.path(sim.env[row])  # weights summed by hand along the way from the root
        weights = sim.root_weights + sim.deltas[path].sum(axis=0)
        intercept = sim.node_intercepts[0] + sim.intercept_deltas[path].sum(axis=0)
        if sim.likelihood == "gaussian":
            np.testing.assert_allclose(y[row], sim.z[row] @ weights + intercept, atol=1e-12)
        else:
            assert y[row].item() in (0, 1)


@pytest.mark.parametrize(
    ("changes", "counts"),
    [("one_per_arc", {1}), ("two_per_arc", {2}), ("half_the_arcs", {0, 1})],
)
def test_changes_per_arc_and_outcome(changes, counts):
    sim = simulate(changes=changes, num_outcomes=4, rows_per_leaf=1)
    assert set(np.unique(sim.gates.sum(axis=1))) == counts
    assert (np.abs(sim.deltas[sim.gates]) >= 0.5).all()
    assert (sim.deltas[~sim.gates] == 0).all()
    assert not np.array_equal(sim.gates[..., 0], sim.gates[..., 1])  # independent outcomes
    if changes == "half_the_arcs":  # 248 arc-outcome pairs: sd 0.03
        assert sim.gates.sum(axis=1).mean() == pytest.approx(0.5, abs=0.13)


def test_bernoulli_changes_and_their_sizes():
    sim = simulate(changes="bernoulli", change_prob=0.3, num_outcomes=20, rows_per_leaf=1)
    sizes = sim.deltas[sim.gates]
    assert sim.gates.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / sim.gates.size))
    expected = 0.5 + np.sqrt(2 / np.pi)  # mean of |N(0, 1)| above the smallest size
    assert np.abs(sizes).mean() == pytest.approx(expected, abs=4 * 0.6 / np.sqrt(len(sizes)))
    assert (sizes > 0).mean() == pytest.approx(0.5, abs=2 / np.sqrt(len(sizes)))


@pytest.mark.parametrize("correlation", [0.0, 0.5, -0.2])
def test_latents_have_unit_variance_and_the_correlation_asked_for(correlation):
    sim = simulate(latent_correlation=correlation, latent_dim=4)
    expected = np.full((4, 4), correlation) + (1 - correlation) * np.eye(4)
    np.testing.assert_allclose(np.cov(sim.z.T), expected, atol=5 * np.sqrt(2 / len(sim.z)))


def test_linear_mixing_can_be_undone():
    sim = simulate(**SMALL)
    np.testing.assert_allclose(sim.x @ np.linalg.pinv(sim.mixing.matrix), sim.z, atol=1e-10)


def test_mlp_mixing_is_of_order_one_and_locally_injective():
    sim = simulate(mixing="mlp", latent_dim=5, num_features=10, rows_per_leaf=10)
    assert 0.5 < sim.x.std() < 1.5
    mix, smallest = sim.mixing, []
    for z in sim.z[:50]:
        slope = 1 - np.tanh(z @ mix.inner + mix.bias) ** 2
        smallest.append(np.linalg.svd((mix.inner * slope) @ mix.outer, compute_uv=False)[-1])
    assert min(smallest) > 1e-3  # the Jacobian has full rank wherever we look


def test_missing_share_and_binary_values():
    sim = simulate(likelihood="bernoulli", missing=0.3)
    assert np.isnan(sim.y).mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / sim.y.size))
    assert set(sim.y[~np.isnan(sim.y)]) == {0, 1}


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial", "binomial"])
def test_counts_have_their_mean_and_variance(likelihood):
    sim = simulate(
        num_leaves=8, latent_dim=2, num_features=4, rows_per_leaf=2000, likelihood=likelihood,
        weight_scale=0.3, delta_min=0.1, delta_scale=0.2, intercept_mean=1.0, exposure_ratio=9.0,
        overdispersion=0.4, num_trials=8,
    )  # fmt: skip
    nodes = [sim.tree.index(leaf) for leaf in sim.env]
    predictor = np.einsum("nk,nk->n", sim.z, sim.node_weights[nodes, :, 0])
    predictor = predictor + sim.node_intercepts[nodes, 0]
    if likelihood == "binomial":
        assert sim.exposure is None
        assert sim.trials.min() == 1
        assert sim.trials.max() == 15
        chance = 1 / (1 + np.exp(-predictor))
        mean, var = sim.trials * chance, sim.trials * chance * (1 - chance)
    else:
        assert sim.trials is None
        assert sim.exposure.max() / sim.exposure.min() == pytest.approx(9, rel=0.01)
        mean = sim.exposure * np.exp(predictor)
        var = mean + (likelihood == "negative_binomial") * 0.4 * mean**2
    residual = (sim.y - mean) / np.sqrt(var)
    assert residual.mean() == pytest.approx(0, abs=4 / np.sqrt(len(residual)))
    square = residual**2
    assert square.mean() == pytest.approx(1, abs=4 * square.std() / np.sqrt(len(square)))
    x, y, _ = sim.rows("leaf0", 5)
    assert x.shape == (5, 4)
    assert (y == np.floor(y)).all()


def test_noise_has_its_scale():
    quiet, noisy = simulate(noise_scale=0.0), simulate(noise_scale=0.7)
    assert (noisy.y - quiet.y).std() == pytest.approx(0.7, rel=5 / np.sqrt(2 * len(quiet.y)))


def test_more_rows_leave_tree_weights_and_mixing():
    few, many = simulate(shape="random"), simulate(shape="random", rows_per_leaf=300)
    assert few.tree == many.tree
    np.testing.assert_array_equal(few.node_weights, many.node_weights)
    np.testing.assert_array_equal(few.mixing.matrix, many.mixing.matrix)


@pytest.mark.parametrize("num_leaves", [2, 3, 11, 32])
def test_balanced_tree_is_binary_and_even(num_leaves):
    tree = simulate(num_leaves=num_leaves, rows_per_leaf=1).tree
    assert set(tree.leaves) == {f"leaf{i}" for i in range(num_leaves)}
    assert tree.root == "root"
    assert tree.num_nodes == 2 * num_leaves - 1
    depths = [len(tree.path(leaf)) for leaf in tree.leaves]
    assert max(depths) - min(depths) <= (num_leaves & (num_leaves - 1) != 0)


def test_random_tree_has_polytomies_and_varying_depth():
    tree = simulate(shape="random", num_leaves=40, rows_per_leaf=1).tree
    assert set(tree.leaves) == {f"leaf{i}" for i in range(40)}
    children = [len(tree.children(node)) for node in tree.nodes if tree.children(node)]
    assert min(children) == 2
    assert 3 <= max(children) <= 4
    assert len({len(tree.path(leaf)) for leaf in tree.leaves}) > 2


def test_own_tree_with_labels_that_are_tuples_and_counts_per_leaf():
    tree = Tree.from_parents({("a", 1): "r", ("a", 2): "r", 7: "r"})
    sim = simulate(tree, rows_per_leaf=[2, 0, 3], latent_dim=2)
    assert sim.env.tolist() == [("a", 1)] * 2 + [7] * 3
    assert len(sim.without(("a", 1))[2]) == 3
    assert len(sim.without([("a", 1), 7])[2]) == 0


def test_rows_are_fresh_and_follow_the_same_law(kind):
    sim = simulate(**kind | {"noise_scale": 0.0, "latent_noise": 0.0})
    x, y, z = sim.rows("leaf2", 50, seed=3)
    np.testing.assert_array_equal(x, sim.mixing(z))
    assert y.shape == (50, *sim.y.shape[1:])
    assert not np.isnan(y).any()
    index = sim.tree.index("leaf2")
    if sim.likelihood == "gaussian":
        expected = z @ sim.node_weights[index] + sim.node_intercepts[index]
        np.testing.assert_allclose(y.reshape(50, -1), expected)
    np.testing.assert_array_equal(sim.rows("leaf2", 50, seed=3)[2], z)
    for other in (sim.rows("leaf2", 50, seed=4), sim.rows("leaf1", 50, seed=3)):
        assert not np.isin(other[2], z).any()
    assert not np.isin(sim.z, z).any()
    sim.rows(sim.tree.root, 1)  # an inner node will do


def test_without_holds_leaves_out():
    sim = simulate(**SMALL)
    x, y, env = sim.without(["leaf0", "leaf3"])
    assert len(x) == len(y) == len(env) == 80
    assert set(env) == {"leaf1", "leaf2", "leaf4", "leaf5"}
    np.testing.assert_array_equal(sim.without("leaf0")[0], sim.x[sim.env != "leaf0"])


ERRORS = {
    "shape": ({"shape": "star"}, DataError, "shape is 'star'"),
    "changes": ({"changes": "one"}, DataError, "'half_the_arcs'"),
    "mixing": ({"mixing": "cnn"}, DataError, "'mlp'"),
    "likelihood": ({"likelihood": "gamma"}, DataError, "'gamma'"),
    "missing": ({"missing": 1.5}, DataError, "missing is 1.5"),
    "noise": ({"noise_scale": -1}, DataError, "noise_scale is -1"),
    "nan": ({"delta_min": float("nan")}, DataError, "delta_min is nan"),
    "seed": ({"seed": -1}, DataError, "seed is -1"),
    "correlation": ({"latent_correlation": -0.5}, DataError, "latent_correlation is -0.5"),
    "latents": ({"latent_dim": 0}, ShapeError, "latent_dim is 0"),
    "two of one": ({"latent_dim": 1, "changes": "two_per_arc"}, ShapeError, "at least 2"),
    "features": ({"num_features": 4}, ShapeError, "num_features is 4, but linear"),
    "mlp features": ({"num_features": 9, "mixing": "mlp"}, ShapeError, "at least 10"),
    "leaves": ({"num_leaves": 1}, ShapeError, "num_leaves is 1"),
    "rows": ({"rows_per_leaf": [1, 2]}, ShapeError, "rows_per_leaf has shape (2,)"),
    "negative": ({"rows_per_leaf": -3}, DataError, "rows_per_leaf"),
}


@pytest.mark.parametrize(("options", "error", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_the_culprit(options, error, message):
    with pytest.raises(error) as caught:
        simulate(**options)
    assert message in str(caught.value)


def test_unknown_nodes_are_refused():
    sim = simulate(**SMALL)
    with pytest.raises(TreeError, match="'leaf9'"):
        sim.without(["leaf0", "leaf9"])
    with pytest.raises(TreeError, match="'leaf9'"):
        sim.rows("leaf9", 1)
    for options, name in (((-1,), "n is -1"), ((1, -2), "seed is -2")):
        with pytest.raises(DataError, match=name):
            sim.rows("leaf0", *options)


# --- the hard world: whatever differs from plain rows -----------------------------------------


def test_latents_walk_along_the_tree():
    sim = simulate(
        num_leaves=4, latent_dim=2, rows_per_leaf=20_000, latent_shift=1.0, latent_stretch=0.5
    )
    assert (sim.law.means[0] == 0).all()
    assert (sim.law.spreads[0] == 1).all()
    for leaf in sim.tree.leaves:
        z, node = sim.z[sim.env == leaf], sim.tree.index(leaf)
        spread = sim.law.spreads[node]
        error = spread / 20_000**0.5
        assert (np.abs(z.mean(0) - sim.law.means[node]) < 4 * error).all()
        assert (np.abs(z.std(0) - spread) < 4 * error).all()
    assert sim.law.means[1:].std() > 0.3


def test_features_show_nuisance_factors_and_noise():
    plain = {"num_leaves": 4, "latent_dim": 2, "num_features": 6, "rows_per_leaf": 2000}
    ranks = []
    for more in ({}, {"nuisance_dim": 3}, {"feature_noise": 0.5}):
        sim = simulate(**plain, **more)
        ranks.append(np.linalg.matrix_rank(sim.x))
        left = sim.x - sim.z @ np.linalg.lstsq(sim.z, sim.x, rcond=None)[0]
        if "feature_noise" in more:
            assert left.std() == pytest.approx(0.5, rel=0.03)
    assert ranks == [2, 5, 6]


@pytest.mark.parametrize("noise", ["normal", "t", "outliers"])
def test_noise_has_its_law(noise):
    sim = simulate(num_leaves=2, rows_per_leaf=100_000, noise_scale=0.3, noise=noise)
    index = np.array([sim.tree.index(label) for label in sim.env])
    left = sim.y - (sim.z * sim.node_weights[index, :, 0]).sum(1)
    beyond = (np.abs(left) > 6 * 0.3).mean()
    middle = np.quantile(np.abs(left), 0.5) / 0.3
    # P(|T| > 6 sqrt 3) of t with 3 degrees of freedom; of ten times a normal P(|N| > 0.6) / 100.
    expected = {"normal": 0.0, "t": 0.0019, "outliers": 0.00549}[noise]
    assert beyond == pytest.approx(expected, abs=4 * (expected / len(left)) ** 0.5)
    expected = {"normal": 0.6745, "t": 0.7649 / 3**0.5, "outliers": 0.6812}[noise]
    assert middle == pytest.approx(expected, rel=0.02)


def test_noise_differs_between_nodes_and_correlates_between_outcomes():
    sim = simulate(
        num_leaves=8, rows_per_leaf=5000, num_outcomes=3, noise_ratio=4.0, noise_correlation=0.7,
        noise_scale=0.2,
    )  # fmt: skip
    assert sim.law.noise_scales.max() / sim.law.noise_scales.min() > 2
    assert ((sim.law.noise_scales >= 0.1) & (sim.law.noise_scales <= 0.4)).all()
    for leaf in sim.tree.leaves:
        own, node = sim.env == leaf, sim.tree.index(leaf)
        left = sim.y[own] - sim.z[own] @ sim.node_weights[node]
        np.testing.assert_allclose(left.std(0), sim.law.noise_scales[node], rtol=0.05)
        pairs = np.corrcoef(left.T)[np.triu_indices(3, 1)]
        np.testing.assert_allclose(pairs, 0.7, atol=4 * 0.51 / 5000**0.5)


def test_latents_may_act_along_a_curve():
    sim = simulate(num_leaves=2, rows_per_leaf=50, noise_scale=0.0, curvature=0.4)
    index = np.array([sim.tree.index(label) for label in sim.env])
    acts = sim.z + 0.4 * (sim.z**2 - 1)
    np.testing.assert_allclose(sim.y, (acts * sim.node_weights[index, :, 0]).sum(1), atol=1e-12)


def test_changes_are_shared_by_outcomes_and_small_ones_are_everywhere():
    sim = simulate(num_outcomes=4, rows_per_leaf=1, shared_changes=0.5, small_changes=0.01)
    alike = (sim.gates == sim.gates[..., :1]).all((1, 2))
    assert alike.mean() == pytest.approx(0.5, abs=0.2)  # 62 arcs: sd 0.06; a few alike by chance
    assert (np.abs(sim.deltas[sim.gates]) > 0.4).all()
    small = sim.deltas[~sim.gates]
    assert small.std() == pytest.approx(0.01, rel=0.1)
    assert simulate(num_outcomes=4, rows_per_leaf=1, small_changes=0.01).gates.sum() == 62 * 4


@pytest.mark.parametrize(("sizes", "mean"), [("half_normal", 0.798), ("exponential", 0.707)])
def test_laws_of_sizes(sizes, mean):
    sim = simulate(num_outcomes=100, rows_per_leaf=1, sizes=sizes, delta_min=0.0)
    found = np.abs(sim.deltas[sim.gates])
    assert found.mean() == pytest.approx(mean, abs=4 * 0.7 / len(found) ** 0.5)
    assert (found**2).mean() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "cauchy"}, "noise is 'cauchy'"),
        ({"sizes": "all"}, "sizes is 'all'"),
        ({"noise_ratio": 0.5}, "noise_ratio is 0.5"),
        ({"nuisance_dim": -1}, "nuisance_dim is -1"),
        ({"num_outcomes": 3, "noise_correlation": -0.9}, "noise_correlation is -0.9"),
        ({"nuisance_dim": 30}, "num_features is 20"),
    ],
)
def test_laws_that_do_not_exist_are_refused(options, message):
    with pytest.raises((DataError, ShapeError), match=message):
        simulate(**options)


def test_changes_follow_lengths():
    how = SMALL | {"latent_dim": 40, "num_features": 40, "num_outcomes": 20, "rows_per_leaf": 1}
    sim = simulate(**how, changes="bernoulli", change_prob=0.3, use_lengths=True)
    lengths = np.array(sim.tree.lengths)
    assert (lengths > 0).all()
    expected = 1 - 0.7 ** (lengths / lengths.mean())
    found, number = sim.gates.mean((1, 2)), 40 * 20
    assert (np.abs(found - expected) < 4.5 * np.sqrt(expected * (1 - expected) / number)).all()
    plain = simulate(**how, changes="bernoulli", change_prob=0.3)
    assert plain.tree.arcs == sim.tree.arcs
    assert not plain.tree.has_lengths
    with pytest.raises(DataError, match="use_lengths=True"):
        simulate(**SMALL, use_lengths=True)
    with pytest.raises(TreeError, match="length"):
        simulate(plain.tree, **how, changes="bernoulli", use_lengths=True)
