"""A few more rows: the same as a fit to all, at what it costs to add their statistics."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from tests.brief import mostly_slow
from tests.posterior.small_fits import NOISE_SCALE, known_fit

K = 2


def data_of(tree, num_rows=40, noise=NOISE_SCALE, seed=0, num_outcomes=2):
    """Two known latents at all leaves, sparse changes; rows of every leaf in random order."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((tree.num_nodes, K, num_outcomes))
    weights[0] = rng.standard_normal((K, num_outcomes))
    for arc, parent in enumerate(tree.arc_parent.tolist()):
        gates = rng.random((K, num_outcomes)) < 0.3
        weights[arc + 1] = weights[parent] + gates * 1.5 * rng.standard_normal(gates.shape)
    nodes = rng.permutation(np.repeat([tree.index(leaf) for leaf in tree.leaves], num_rows))
    x = rng.standard_normal((len(nodes), K))
    y = np.einsum("nk,nkq->nq", x, weights[nodes]) + 1.0
    y = y + noise * rng.standard_normal(y.shape)
    return x, y, np.array([tree.nodes[node] for node in nodes], dtype=object), weights


TREE = tbr.Tree.from_newick("((a,b)u,((c,d)v,e)w)r;")
LAW = {"rate": 0.3, "slab": 1.5, "root": 2.0, "intercept": True}


@pytest.fixture(scope="module")
def data():
    return data_of(TREE)


@pytest.fixture(scope="module")
def early(data):
    """Rows of before: none at leaf c, 20 or so of each other."""
    _, _, env, _ = data
    return (np.arange(len(env)) % 2 == 0) & (env != "c")


@pytest.fixture(scope="module")
def before(data, early):
    x, y, env, _ = data
    return known_fit(TREE, x[early], y[early], env[early], **LAW)


@pytest.fixture(scope="module")
def whole(data):
    return known_fit(TREE, *data[:3], **LAW)


def assert_same(one, two, pips=0.01, share=0.02):
    """PIPs within a hundredth, weights within a share of their sd, at every node and arc."""
    assert (one.pips() - two.pips()).abs().to_numpy().max() < pips
    mine, other = one.node_weights(), two.node_weights()
    assert ((mine["mean"] - other["mean"]).abs() / other["sd"]).max() < share
    assert mine["sd"].to_numpy() == pytest.approx(other["sd"].to_numpy(), rel=share)


def test_update_is_a_fit_to_all_rows(data, early):
    """Without an intercept nothing of the fit depends on which rows it had but the statistics."""
    x, y, env, _ = data
    law = LAW | {"intercept": False}
    before, whole = (known_fit(TREE, *part, **law) for part in (
        (x[early], y[early] - 1, env[early]), (x, y - 1, env)
    ))  # fmt: skip
    new = before.update(x[~early], y[~early] - 1, env[~early])
    assert (before.pips() - whole.pips()).abs().to_numpy().max() > 0.2  # they told something
    assert_same(new, whole)
    assert new.row_counts.tolist() == whole.row_counts.tolist()
    assert new.stats.count.sum() == whole.stats.count.sum()
    assert bool(new.guide.informed_arcs.all())
    assert not bool(before.guide.informed_arcs.all())
    assert repr(new).startswith("Posterior(200 rows at 5 nodes")
    found, expected = (p.predict(x[:20], env[:20]) for p in (new, whole))
    assert found.mean == pytest.approx(expected.mean, abs=0.02)
    assert found.sd == pytest.approx(expected.sd, rel=0.05)


def test_update_with_an_intercept_predicts_as_a_fit_to_all_rows(data, early, before, whole):
    """The earlier fit has judged the intercept where it changed least by fewer rows."""
    x, y, env, _ = data
    new = before.update(x[~early], y[~early], env[~early])
    assert (new.pips() - whole.pips()).abs().to_numpy().max() < 0.05
    mine, other = (p.predict(x, env) for p in (new, whole))
    assert (np.abs(mine.mean - other.mean) / other.sd).max() < 0.3


def test_the_old_posterior_stays(data, early, before):
    x, y, env, _ = data
    tables = before.deltas(), before.node_weights()
    state = copy.deepcopy(before.guide.state_dict())
    counts = before.row_counts.clone()
    new = before.update(x[~early], y[~early], env[~early])
    assert before.deltas().equals(tables[0])
    assert before.node_weights().equals(tables[1])
    assert all(torch.equal(before.guide.state_dict()[name], old) for name, old in state.items())
    assert torch.equal(before.row_counts, counts)
    assert new.model is not before.model
    assert new.guide.head is new.model.head
    assert new.encode(x[:3]).tolist() == before.encode(x[:3]).tolist()


def test_order_of_updates_does_not_matter(data, early, before):
    x, y, env, _ = data
    late = np.flatnonzero(~early)
    one, two = late[::2], late[1::2]
    forth = before.update(x[one], y[one], env[one]).update(x[two], y[two], env[two])
    back = before.update(x[two], y[two], env[two]).update(x[one], y[one], env[one])
    assert_same(forth, back)
    assert_same(forth, before.update(x[late], y[late], env[late]))


def test_a_held_out_leaf_moves_to_the_truth_and_its_intervals_shrink(data, before):
    x, y, env, weights = data
    rows = np.flatnonzero(env == "c")[:8]
    new = before.update(x[rows], y[rows], "c")
    truth = weights[TREE.index("c")].ravel()
    tables = []
    for posterior in (before, new):
        table = posterior.node_weights()
        tables.append(table[(table["node"] == "c") & (table["latent"] != "intercept")])
    old_error, error = (np.abs(table["mean"].to_numpy() - truth) for table in tables)
    old_sd, sd = (table["sd"].to_numpy() for table in tables)
    assert (sd < 0.5 * old_sd).all()
    assert (error < 4.5 * sd).all()
    assert error.mean() < 0.5 * old_error.mean()
    wide, narrow = (p.predict(x[rows], "c") for p in (before, new))
    assert (narrow.upper - narrow.lower < wide.upper - wide.lower).all()


def test_missing_outcomes_count_for_nothing(data, early, before):
    x, y, env, _ = data
    rows = np.flatnonzero(~early)[:30]
    half = y[rows].copy()
    half[:, 1] = np.nan
    new = before.update(x[rows], half, env[rows])
    pips = new.pips() - before.update(x[rows], y[rows], env[rows]).pips()
    assert pips["y0"].abs().to_numpy().max() < 0.01
    same = (new.pips() - before.pips())["y1"].abs()
    assert same.to_numpy().max() < 0.01


def test_no_rows_change_nothing(before):
    new = before.update(np.zeros((0, K)), np.zeros((0, 2)), [])
    assert new.deltas().equals(before.deltas())


def test_saved_and_loaded_updates_are_the_same(data, early, before, tmp_path):
    x, y, env, _ = data
    late = np.flatnonzero(~early)
    new = before.update(x[late[:20]], y[late[:20]], env[late[:20]])
    new.save(tmp_path / "new.pt")
    again = tbr.load(tmp_path / "new.pt")
    assert again.deltas().equals(new.deltas())
    assert again.predict(x[:3], env[:3]).mean.tolist() == new.predict(x[:3], env[:3]).mean.tolist()
    rest = late[20:]
    on = again.update(x[rest], y[rest], env[rest])
    assert on.pips().equals(new.update(x[rest], y[rest], env[rest]).pips())


def test_pandas_rows_are_matched(several, frames):
    x, y, env = frames
    some = x.index[::7]
    by_name = several.update(
        x.loc[some, ["depth", "size"]], y.loc[some[::-1], ["c", "a", "b"]], env.loc[some]
    )
    by_place = several.update(
        pd.DataFrame(x.loc[some]), y.loc[some].to_numpy(), env.loc[some].to_numpy()
    )
    assert by_name.deltas().equals(by_place.deltas())


def test_scales_and_noise_are_kept_where_they_are_learnt(several, frames):
    x, y, env = frames
    new = several.update(x[:30], y[:30], env[:30])
    for name, value in several.guide.hyper.state_dict().items():
        assert torch.equal(new.guide.hyper.state_dict()[name], value)
    noise, before = (posterior.guide.nuisance["noise_scale"] for posterior in (new, several))
    assert torch.equal(noise.loc, before.loc)
    assert torch.equal(noise.log_scale, before.log_scale)


HORSESHOE = tbr.HorseshoePrior(global_scale=0.3, root_scale=2.0)
DENSE = tbr.GaussianPrior(0.7, root_scale=2.0)
GIVEN = {
    "horseshoe": (HORSESHOE, "tree"),
    "horseshoe, mean field": (HORSESHOE, "mean_field"),
    "dense": (DENSE, "tree"),
    "dense, mean field": (DENSE, "mean_field"),
}


@pytest.mark.parametrize(
    ("prior", "guide"), mostly_slow(GIVEN, "horseshoe", "dense", "dense, mean field")
)
def test_every_prior_and_guide_moves_to_the_truth(data, before, early, prior, guide):
    x, y, env, weights = data
    few = np.flatnonzero(early)[:80]
    base = known_fit(TREE, x[few], y[few], env[few], prior=prior, guide=guide, intercept=True)
    rows = np.flatnonzero(env == "c")
    new = base.update(x[rows], y[rows], env[rows])
    truth = weights[TREE.index("c")].ravel()
    errors = []
    for posterior in (base, new):
        table = posterior.node_weights()
        table = table[(table["node"] == "c") & (table["latent"] != "intercept")]
        errors.append(np.abs(table["mean"].to_numpy() - truth).mean())
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.3


@pytest.mark.slow
def test_mean_field_with_spike_and_slab_learns_of_arcs_without_data(data, early):
    x, y, env, weights = data
    base = known_fit(TREE, x[early], y[early], env[early], guide="mean_field", **LAW)
    rows = np.flatnonzero(env == "c")
    new = base.update(x[rows], y[rows], env[rows])
    table = new.node_weights()
    found = table[(table["node"] == "c") & (table["latent"] != "intercept")]["mean"].to_numpy()
    assert np.abs(found - weights[TREE.index("c")].ravel()).max() < 0.5


def test_binary_outcomes(binary, binary_sim):
    """Near a fit to all rows; rows of before keep their expansion, so not the same (0.05, 0.4)."""
    sim = binary_sim
    prior = tbr.SpikeSlabPrior(inclusion_prob=0.3, slab_scale=1.0, root_scale=2.0)
    early = np.arange(len(sim.y)) % 3 > 0
    fits = [
        known_fit(
            sim.tree, sim.z[rows], sim.y[rows], sim.env[rows],
            prior=prior, likelihood="bernoulli", intercept=True, dtype="float32",
        )
        for rows in (early, np.ones(len(sim.y), dtype=bool))
    ]  # fmt: skip
    new = fits[0].update(sim.z[~early], sim.y[~early], sim.env[~early])
    assert_same(new, fits[1], pips=0.1, share=0.9)
    assert (fits[0].pips() - fits[1].pips()).abs().to_numpy().max() > 0.15
    with pytest.raises(tbr.DataError, match="0 or 1"):
        binary.update(sim.z[:2], [0.5, 1], sim.env[:2])


REFUSED = {
    "new leaf": (lambda x, y: (x, y, tbr.NewLeaf("new", "u")), tbr.DataError, "before fitting"),
    "no label": (lambda x, y: (x, y, None), tbr.TreeError, "env is None"),
    "other label": (lambda x, y: (x, y, "nowhere"), tbr.TreeError, "nowhere"),
    "outcomes": (lambda x, y: (x, y[:, 0], "a"), tbr.ShapeError, "1 outcomes"),
    "features": (lambda x, y: (x[:, :1], y, "a"), tbr.ShapeError, "1 columns"),
    "rows": (lambda x, y: (x, y[1:], "a"), tbr.ShapeError, "rows"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_rows_that_do_not_fit_are_refused(before, data, case):
    arguments, error, message = case
    with pytest.raises(error, match=message):
        before.update(*arguments(data[0][:5], data[1][:5]))
