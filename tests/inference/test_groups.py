"""Rows that are alike: how alike is learnt, and they count as fewer."""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch.testing import assert_close

import pyro_tbr as tbr
from pyro_tbr.data import RowOrder, align_groups
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.evaluation import baselines
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.inference.elbo import TreeELBO
from tests.brief import mostly_slow
from tests.inference.problems import design_statistics, standard_rows

CORRELATION, NUM_GROUPS, SIZE = 0.6, 10, 6
OPTIONS = tbr.FitOptions(restarts=4)


@functools.cache
def rows(seed=0):
    """16 leaves, one change, ten groups of six rows a leaf whose shift is most of the noise."""
    tree = tbr.simulate(num_leaves=16, latent_dim=2, rows_per_leaf=1, seed=0).tree
    rng = np.random.default_rng(seed)
    weights = {tree.nodes[0]: np.array([1.0, -0.5, 0.2])}
    for place, (parent, child) in enumerate(tree.arcs):
        weights[child] = weights[parent] + np.array([2.0 * (place == 5), 0.0, 0.0])
    env = np.repeat(tree.leaves, NUM_GROUPS * SIZE)
    group = np.tile(np.repeat(np.arange(NUM_GROUPS), SIZE), len(tree.leaves))
    x = rng.standard_normal((len(env), 2))
    shift = rng.standard_normal(len(env) // SIZE).repeat(SIZE)
    noise = CORRELATION**0.5 * shift + (1 - CORRELATION) ** 0.5 * rng.standard_normal(len(env))
    design = np.column_stack([x, np.ones(len(env))])
    y = (design * np.stack([weights[leaf] for leaf in env])).sum(1) + noise
    return tree, x, y, env, group


@functools.cache
def fitted(grouped, seed=0):
    tree, x, y, env, group = rows(seed)
    model = tbr.TreeModel(tree, 2, encoder="identity")
    groups = group if grouped else None
    return tbr.fit(model, x, y, env, groups=groups, progress=False, options=OPTIONS)


def row_groups(index, correlation):
    return RowGroups(torch.as_tensor(index), torch.as_tensor(correlation, dtype=torch.float64))


def test_a_group_counts_as_its_effective_number_of_rows():
    y = torch.zeros(5, 2)
    y[2, 1] = torch.nan
    weights = row_groups([0, 1, 1, 1, 2], [0.0, 0.5]).weights(y)
    assert_close(weights[:, 0], torch.ones(5).double())
    assert_close(weights[[0, 4], 1], torch.ones(2).double())  # alone
    assert_close(weights[[1, 3], 1], torch.full((2,), 1 / 1.5).double())  # two are seen


def test_weights_are_repeated_rows():
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(6, 3, generator=generator)
    y = torch.randn(6, 2, generator=generator)
    y[3, 0] = torch.nan
    env, times = torch.tensor([0, 0, 2, 2, 2, 0]), torch.tensor([1, 2, 3, 1, 2, 1])
    found = design_statistics(design, y, env, times[:, None].expand(6, 2))
    rows = torch.arange(6).repeat_interleave(times)
    expected = design_statistics(design[rows], y[rows], env[rows])
    for one, other in zip(found[:6], expected[:6], strict=True):
        assert_close(one, other)


def test_training_counts_rows_of_a_group_as_fewer():
    """Every row twice, the two of a pair wholly alike, is every row once."""
    data = tbr.simulate(num_leaves=4, latent_dim=2, num_outcomes=2, rows_per_leaf=10, seed=0)
    rows = standard_rows(data)
    rows.y[3, 0] = torch.nan
    model = tbr.TreeModel(data.tree, 2, "linear").build(rows.x.shape[1], 2)
    model.encoder.fit_preparation(rows.x)
    model.encoder.reset(torch.Generator().manual_seed(0))
    guide, twice = MeanFieldGuide(model), rows.select(torch.arange(80) // 2)
    pairs = replace(twice, groups=row_groups(torch.arange(80) // 2, [1.0, 1.0]))

    def elbo(part):
        prepared = part.prepared(model.encoder)
        encoded = prepared.encoded(model, torch.arange(len(part)))
        return TreeELBO().of_rows(model.head, guide, encoded, prepared.weights())

    once, both, alone = (elbo(part) for part in (rows, pairs, twice))
    assert_close(both, once)
    assert alone < 1.5 * once < 0


def test_the_correlation_is_that_of_maximum_likelihood():
    rng = np.random.default_rng(1)
    index = np.repeat(np.arange(60), rng.integers(1, 7, 60))
    shift = rng.standard_normal((60, 3)) * [0.0, 0.7, 1.5]
    residual = shift[index] + rng.standard_normal((len(index), 3))
    residual[rng.random(residual.shape) < 0.1] = np.nan
    groups = row_groups(index, [0.0, 0.0, 0.0])
    groups.learn(torch.from_numpy(residual))
    for q in range(3):

        def loss(arguments, q=q):
            log_var, logit = arguments
            var, rho = np.exp(log_var), 1 / (1 + np.exp(-logit))
            total = 0.0
            for group in range(60):
                r = residual[index == group, q]
                r = r[~np.isnan(r)]
                if len(r):
                    cov = var * ((1 - rho) * np.eye(len(r)) + rho)
                    total -= scipy.stats.multivariate_normal(np.zeros(len(r)), cov).logpdf(r)
            return total

        best = scipy.optimize.minimize(loss, [0.0, -1.0], method="Nelder-Mead").x
        expected = 1 / (1 + np.exp(-best[1]))
        assert abs(groups.correlation[q].item() - expected) < 0.006  # half a step of the grid
    assert groups.learn(torch.from_numpy(residual)) == 0.0


def test_the_correlation_of_the_rows_is_found():
    found = fitted(True).report.group_correlation
    error = (2 / (16 * NUM_GROUPS)) ** 0.5 * CORRELATION  # of a variance of so many shifts
    assert found.shape == (1,)
    assert abs(found.item() - CORRELATION) < 3 * error
    assert fitted(False).report.group_correlation is None


def intercepts(posterior):
    """Largest PIP of an intercept, and root mean square error of the leaves' in their sds."""
    pips, weights = posterior.deltas(), posterior.node_weights()
    weights = weights[weights["node"].isin(posterior.tree.leaves)]
    weights = weights[weights["latent"] == "intercept"]
    error = (weights["mean"] - 0.2) / weights["sd"]
    return pips.loc[pips["latent"] == "intercept", "pip"].max(), (error**2).mean() ** 0.5


@pytest.mark.parametrize("seed", mostly_slow({str(seed): seed for seed in range(3)}, "0"))
def test_shifts_are_not_taken_for_changes(seed):
    """Without groups a leaf whose groups lie high by chance has an intercept of its own."""
    (alone, sure), (together, fair) = (intercepts(fitted(grouped, seed)) for grouped in (0, 1))
    assert alone > 0.6
    assert together < 0.4
    assert sure > 1.3
    assert fair < 1.2
    table = fitted(True, seed).deltas()
    assert ((table["latent"] == "z0") & (table["pip"] > 0.9)).sum() == 1


def test_rows_of_new_groups_are_predicted():
    """Their noise is that of a row alone, shift included."""
    tree, x, y, env, _ = rows(seed=7)
    posterior = fitted(True)
    covered = [
        ((y[env == leaf] >= at.lower) & (y[env == leaf] <= at.upper)).mean()
        for leaf in tree.leaves
        for at in [posterior.predict(x[env == leaf], leaf, level=0.9)]
    ]
    error = np.std(covered) / len(covered) ** 0.5
    assert abs(np.mean(covered) - 0.9) < 3 * error + 0.01


def test_it_is_saved(tmp_path):
    fitted(True).save(tmp_path / "fit.pt")
    again = tbr.load(tmp_path / "fit.pt")
    assert_close(again.report.group_correlation, fitted(True).report.group_correlation)


def test_baselines_that_are_fits_take_them():
    tree, x, y, env, group = rows()
    fit = baselines.DenseTree().fit(tree, x, y, env, groups=group)
    assert fit.rule.posterior.report.group_correlation > 0.4
    baselines.Pooled().fit(tree, x, y, env, groups=group)  # takes rows as they are


def test_learnt_latents_and_missing_outcomes():
    tree, x, y, env, group = rows()
    y = np.column_stack([y, -y])
    y[::7, 0] = np.nan
    model = tbr.TreeModel(tree, 2, encoder="linear")
    options = tbr.FitOptions(restarts=4, max_steps=1, sparse_steps=0)
    mixed = x @ [[1.0, 0.5, 0.2], [0.3, -1.0, 0.4]]
    posterior = tbr.fit(model, mixed, y, env, groups=group, progress=False, options=options)
    assert ((posterior.report.group_correlation - CORRELATION).abs() < 0.2).all()


def near_copies(num_groups, seed):
    """6 leaves; rows of a group have almost the same features, so a network can know it by them."""
    tree = tbr.simulate(num_leaves=6, latent_dim=2, rows_per_leaf=1, seed=0).tree
    mixing = np.random.default_rng(99).standard_normal((2, 8))
    rng = np.random.default_rng(seed)
    weights = np.tile([1.0, -0.7, 0.2], (6, 1))
    weights[[0, 1], [0, 1]] += [2.0, 1.5]
    leaf = np.arange(6).repeat(num_groups)
    x = rng.standard_normal((len(leaf), 8)).repeat(SIZE, 0)
    x += 0.2 * rng.standard_normal(x.shape)
    z = np.tanh(x @ mixing.T / 2) / 0.7
    shift = rng.standard_normal(len(leaf)).repeat(SIZE)
    noise = CORRELATION**0.5 * shift + (1 - CORRELATION) ** 0.5 * rng.standard_normal(len(x))
    leaf = leaf.repeat(SIZE)
    y = (np.column_stack([z, np.ones(len(z))]) * weights[leaf]).sum(1) + 0.7 * noise
    return tree, x, y, np.array(tree.leaves)[leaf], np.arange(len(x)) // SIZE


@pytest.mark.slow  # a network is trained several times
def test_a_network_that_knows_the_groups_is_found_out():
    """Held-out rows of groups that training has seen would say that it is good."""
    tree, x, y, env, group = near_copies(20, seed=0)
    options = tbr.FitOptions(
        restarts=4, max_steps=600, sparse_steps=0, encoder_decays=(0.03,), mixture_components=8,
    )  # fmt: skip
    posterior = tbr.fit(
        tbr.TreeModel(tree, 2), x, y, env, groups=group, progress=False, seed=0, options=options
    )
    assert posterior.report.optimism > 2
    assert posterior.report.group_correlation > 0.5
    _, new_x, new_y, new_env, _ = near_copies(30, seed=1)
    covered = []
    for leaf in tree.leaves:
        own = new_env == leaf
        at = posterior.predict(new_x[own], leaf, level=0.9)
        covered.append(((new_y[own] >= at.lower) & (new_y[own] <= at.upper)).mean())
    assert np.mean(covered) > 0.8


ENV = torch.tensor([3, 3, 4, 4, 4])


def test_labels_are_of_an_environment_and_in_the_order_of_x():
    found = align_groups(["a", "b", "a", "a", "b"], ENV, RowOrder(len(ENV)))
    assert len(found.unique()) == 4
    assert found[2] == found[3]
    index = pd.Index(list("pqrst"))
    shuffled = pd.Series(["a", "b", "a", "a", "b"], index=index).iloc[[4, 2, 0, 1, 3]]
    assert_close(align_groups(shuffled, ENV, RowOrder(len(ENV), index)), found)
    assert_close(align_groups(torch.tensor([0, 1, 0, 0, 1]), ENV, RowOrder(len(ENV))), found)


@pytest.mark.parametrize(
    ("groups", "error", "says"),
    [
        (["a", "a", "b"], ShapeError, "groups"),
        ("mouse", DataError, "'mouse'.*5 labels"),
        (["a", None, "b", "b", "b"], DataError, r"no label for 1 row\(s\), first row 1"),
        (["a", "b", "c", "d", "e"], DataError, "none of the 5 rows"),
        (np.zeros((5, 2)), ShapeError, r"shape \(5, 2\)"),
    ],
)
def test_groups_that_cannot_be_used(groups, error, says):
    with pytest.raises(error, match=says):
        align_groups(groups, ENV, RowOrder(len(ENV)))


def test_binary_outcomes_have_none():
    tree, x, y, env, group = rows()
    model = tbr.TreeModel(tree, 2, encoder="identity", likelihood="bernoulli")
    with pytest.raises(DataError, match="groups need numeric outcomes"):
        tbr.fit(model, x, (y > 0).astype(float), env, groups=group, progress=False)


def test_new_rows_count_by_the_correlation_of_the_fit():
    tree, x, y, env, group = rows()
    early = group < NUM_GROUPS // 2
    model = tbr.TreeModel(tree, 2, encoder="identity")
    before = tbr.fit(
        model, x[early], y[early], env[early], groups=group[early], progress=False, options=OPTIONS
    )
    new = (x[~early], y[~early], env[~early])
    told, untold = before.update(*new, groups=group[~early]), before.update(*new)
    share = 1 / (1 + (SIZE - 1) * before.report.group_correlation.item())
    added = (told.stats.count - before.stats.count).numpy()
    np.testing.assert_allclose(added, share * SIZE * NUM_GROUPS / 2)
    np.testing.assert_allclose(untold.stats.count - before.stats.count, SIZE * NUM_GROUPS / 2)
    # As sure as a fit to all rows, within what the correlation and the scales still move.
    sd = [p.node_weights()["sd"].to_numpy() for p in (told, fitted(True), untold)]
    np.testing.assert_allclose(np.median(sd[0] / sd[1]), 1.0, atol=0.2)
    assert np.median(sd[2] / sd[0]) < 0.85
    alone = before.update(new[0][:1], new[1][:1], env[~early][:1], groups=["new"])
    np.testing.assert_allclose((alone.stats.count - before.stats.count).sum(), 1.0)


def test_an_update_has_groups_only_if_the_fit_had():
    _, x, y, env, group = rows()
    with pytest.raises(DataError, match="update: groups were given, but the fit had none"):
        fitted(False).update(x, y, env, groups=group)
    with pytest.raises(ShapeError, match="groups has 3"):
        fitted(True).update(x, y, env, groups=group[:3])
