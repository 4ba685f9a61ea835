"""Fits to outcomes of every kind: against regressions and rows that were counted twice."""

import functools

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch
from pyro.infer import Trace_ELBO
from torch.testing import assert_close

import pyro_tbr as tbr
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.heads.rows import RowTerms
from tests.brief import mostly_slow

TREE = tbr.Tree.from_newick("((a,b)u,((c,d)v,e)w)r;")
PRIOR = {"inclusion_prob": 0.2, "slab_scale": 1.0, "root_scale": 1.0, "spike_scale": 0}


@functools.cache
def table(kind, num_rows=80):
    """One latent whose effect changes towards v; outcomes of a kind, and what rows give."""
    rng = np.random.default_rng(1)
    env = np.repeat(np.array(TREE.leaves, dtype=object), num_rows)
    x = rng.standard_normal((len(env), 1))
    slope = np.where(np.isin(env, ["c", "d"]), 1.2, 0.3)
    predictor = slope * x[:, 0] + 0.5
    if kind in ("poisson", "negative_binomial"):
        exposure = np.exp(rng.uniform(-1, 2, len(env)))
        rate = exposure * np.exp(predictor)
        if kind == "negative_binomial":
            rate = rate * rng.gamma(4.0, 0.25, len(env))
        return x, rng.poisson(rate).astype(float), env, {"exposure": exposure}
    if kind == "binomial":
        trials = rng.integers(1, 15, len(env)).astype(float)
        hits = rng.binomial(trials.astype(int), 1 / (1 + np.exp(-predictor)))
        return x, hits.astype(float), env, {"trials": trials}
    if kind == "ordinal":
        seen = predictor + rng.logistic(size=len(env))
        return x, (seen[:, None] > np.array([-1.2, 0.3, 0.9])).sum(1).astype(float), env, {}
    if kind == "y_se":
        error = np.exp(rng.uniform(-3, 1, len(env)))
        noise = np.sqrt(0.3**2 + error**2)
        return x, predictor + noise * rng.standard_normal(len(env)), env, {"y_se": error}
    noise = 0.3 * rng.standard_t(3, len(env))
    noise[rng.random(len(env)) < 0.02] *= 20
    return x, predictor + noise, env, {}


KINDS = {
    "poisson": "poisson", "negative_binomial": "negative_binomial", "binomial": "binomial",
    "y_se": "gaussian", "student_t": "student_t", "ordinal": tbr.OrdinalLikelihood(4),
}  # fmt: skip
every = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def fitted(kind, guide="tree"):
    x, y, env, given = table(kind)
    prior = tbr.SpikeSlabPrior(**PRIOR)
    model = tbr.TreeModel(TREE, 1, "identity", prior=prior, likelihood=KINDS[kind])
    options = tbr.FitOptions(mixture_components=4, dtype="float64")
    return tbr.fit(model, x, y, env, guide=guide, progress=False, options=options, **given)


def by_leaf(kind, leaf):
    """Slope and intercept of a leaf alone at their maximum likelihood, and their errors."""
    x, y, env, given = table(kind)
    here = env == leaf
    terms = {name: torch.as_tensor(value[here])[:, None] for name, value in given.items()}
    posterior = fitted(kind)
    likelihood = posterior.model.likelihood
    draws = {n: torch.as_tensor(v) for n, v in posterior.sample(1).items()}
    design = torch.as_tensor(np.stack([x[here, 0], np.ones(here.sum())], 1))
    nuisance = {name: draws[name].double()[0] for name in likelihood.factors()}
    nuisance = likelihood.values_at_nodes(
        nuisance, torch.full((int(here.sum()),), TREE.index(leaf))
    )

    def loss(weights):
        each = likelihood(design @ weights[:, None], {**nuisance, **terms})
        return -each.log_prob(torch.as_tensor(y[here])[:, None]).sum()

    def numbers(flat):
        weights = torch.tensor(flat, requires_grad=True)
        value = loss(weights)
        value.backward()
        return value.item(), weights.grad.numpy()

    best = scipy.optimize.minimize(numbers, np.zeros(2), jac=True).x
    curvature = torch.autograd.functional.hessian(loss, torch.tensor(best))
    return best, np.sqrt(np.diag(np.linalg.inv(curvature.numpy())))


@every
def test_leaves_agree_with_a_regression_of_their_rows(kind):
    weights = fitted(kind).node_weights().set_index(["node", "latent"])
    for leaf in TREE.leaves:
        best, error = by_leaf(kind, leaf)
        for place, name in enumerate(("z0", "intercept")):
            own = weights.loc[(leaf, name)]
            # Leaves share what they have in common, so they are surer than alone.
            assert abs(own["mean"] - best[place]) < 3.5 * error[place]
            assert own["sd"] < 1.5 * error[place]


@every
def test_the_change_is_found_and_new_rows_are_covered(kind):
    posterior = fitted(kind)
    pips = posterior.pips()["z0"]
    assert pips.loc[("w", "v")] > 0.6
    assert pips.drop(("w", "v")).max() < 0.6
    x, y, env, given = table(kind)
    prediction = posterior.predict(x, env, **given)
    inside = np.mean((prediction.lower <= y) & (y <= prediction.upper))
    assert inside > 0.87
    assert inside < 0.98 or kind == "ordinal"  # few grades are in most intervals all together
    assert np.abs(prediction.mean - y).mean() < np.abs(y - y.mean()).mean()
    some = prediction.sample(300)
    noise = some.std(0) / 300**0.5
    assert np.mean(np.abs(some.mean(0) - prediction.mean) < 5 * noise + 1e-6) > 0.95
    assert np.isfinite(prediction.log_score(y))


@pytest.mark.slow
@every
def test_mean_field_agrees(kind):
    one, other = (fitted(kind, guide).node_weights() for guide in ("tree", "mean_field"))
    one, other = (found[found["node"].isin(TREE.leaves)] for found in (one, other))
    assert ((one["mean"] - other["mean"]).abs() < 1.5 * one["sd"] + 0.05).all()


@every
def test_the_elbo_is_that_of_rows_and_below_pyros(kind):
    posterior = fitted(kind)
    x, y, env, given = table(kind)
    rows, _ = posterior.align_rows(x, y, env, given)
    z = rows.design[:, :-1] * posterior.latent_units.scale + posterior.latent_units.shift
    arguments = z, rows.env_index, rows.y, rows.terms
    loss = tbr.TreeELBO().loss(posterior.model, posterior.guide, *arguments)
    assert loss == pytest.approx(-posterior.guide.elbo(posterior.stats).item(), rel=2e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guide = posterior.guide
        draws = [Trace_ELBO().loss(posterior.model, guide, *arguments) for _ in range(30)]
    assert np.mean(draws) < loss + 4 * np.std(draws) / 30**0.5 + 0.5


@pytest.mark.parametrize("kind", mostly_slow({k: k for k in KINDS}, "poisson", "y_se"))
def test_a_row_of_weight_two_is_two_rows_and_one_of_weight_none_is_none(kind):
    x, y, env, given = table(kind)
    model = tbr.TreeModel(
        TREE, 1, "identity", prior=tbr.SpikeSlabPrior(**PRIOR), likelihood=KINDS[kind]
    )
    rng = np.random.default_rng(0)
    weights = rng.choice([0.0, 1.0, 2.0], len(y))
    again = np.repeat(np.arange(len(y)), weights.astype(int))
    options = tbr.FitOptions(mixture_components=4, dtype="float64")
    one = tbr.fit(model, x, y, env, row_weights=weights, progress=False, options=options, **given)
    doubled = {name: value[again] for name, value in given.items()}
    both = tbr.fit(
        model, x[again], y[again], env[again], progress=False, options=options, **doubled
    )
    own, other = one.node_weights(), both.node_weights()
    assert ((own["mean"] - other["mean"]).abs() < 0.1 * own["sd"]).all()
    np.testing.assert_allclose(own["sd"], other["sd"], rtol=0.05)


def test_rows_that_come_later():
    x, y, env, given = table("poisson")
    half = np.arange(len(y)) % 2 == 0
    first = {name: value[half] for name, value in given.items()}
    later = {name: value[~half] for name, value in given.items()}
    model = tbr.TreeModel(
        TREE, 1, "identity", prior=tbr.SpikeSlabPrior(**PRIOR), likelihood="poisson"
    )
    options = tbr.FitOptions(mixture_components=8)
    posterior = tbr.fit(
        model, x[half], y[half], env[half], progress=False, options=options, **first
    )
    updated = posterior.update(x[~half], y[~half], env[~half], **later)
    whole, own = fitted("poisson").node_weights(), updated.node_weights()
    # Scales, and the point where the intercept is judged, are those of the first rows.
    assert ((whole["mean"] - own["mean"]).abs() < 1.5 * whole["sd"]).all()
    check = updated.check(x, y, env, **given)
    assert check.environments["ratio"].between(0.6, 1.5).all()


@every
def test_saved_and_loaded(kind, tmp_path):
    posterior = fitted(kind)
    posterior.save(tmp_path / "posterior.pt")
    again = tbr.load(tmp_path / "posterior.pt")
    x, _, env, given = table(kind)
    one, other = (p.predict(x, env, **given) for p in (posterior, again))
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.upper, other.upper)
    assert repr(again.model.likelihood) == repr(posterior.model.likelihood)


# --- several kinds at once --------------------------------------------------------------------


@functools.cache
def several():
    x, count, env, given = table("negative_binomial")
    rng = np.random.default_rng(5)
    size = 1000 + 50 * (0.8 * x[:, 0] + 0.3 * rng.standard_normal(len(x)))
    alive = (rng.random(len(x)) < 1 / (1 + np.exp(-x[:, 0]))).astype(float)
    y = pd.DataFrame({"size": size, "count": count, "alive": alive})
    y.loc[::7, "size"] = np.nan
    x = pd.DataFrame(x, columns=["gene"])
    likelihood = {"count": "negative_binomial", "alive": "bernoulli", "size": "gaussian"}
    model = tbr.TreeModel(TREE, 1, "identity", likelihood=likelihood)
    options = tbr.FitOptions(mixture_components=4)
    return x, y, env, given, model, tbr.fit(
        model, x, y, env, progress=False, options=options, **given
    )  # fmt: skip


def test_each_outcome_has_its_likelihood(tmp_path):
    x, y, env, given, model, posterior = several()
    weights = posterior.node_weights().set_index(["node", "latent", "outcome"])["mean"]
    assert weights.loc[("a", "gene", "size")] == pytest.approx(40, abs=4)
    assert weights.loc[("a", "intercept", "size")] == pytest.approx(1000, abs=5)
    alone = fitted("negative_binomial").node_weights().set_index(["node", "latent"])
    assert weights.loc[("c", "gene", "count")] == pytest.approx(
        alone["mean"].loc[("c", "z0")], abs=2 * alone["sd"].loc[("c", "z0")]
    )
    prediction = posterior.predict(x, env, **given)
    assert prediction.mean["size"].between(700, 1300).all()
    assert prediction.mean["alive"].between(0, 1).all()
    assert (prediction.lower["count"] == np.floor(prediction.lower["count"])).all()
    inside = (prediction.lower["size"] <= y["size"]) & (y["size"] <= prediction.upper["size"])
    assert 0.86 < inside[y["size"].notna()].mean() < 0.94
    noise = posterior.noise()
    assert set(noise["outcome"]) == {"size"}
    assert noise["mean"].between(12, 18).all()
    assert list(posterior.summary().noise_scale.index) == ["size"]
    posterior.save(tmp_path / "several.pt")
    again = tbr.load(tmp_path / "several.pt")
    other = again.predict(x, env, **given)
    pd.testing.assert_frame_equal(prediction.mean, other.mean)
    assert np.isfinite(prediction.log_score(y))
    draws = posterior.sample(5)
    assert draws["overdispersion"].shape == (5, 1)
    assert np.abs(draws["noise_scale"] - 15).max() < 4
    anywhere = posterior.predict(x[:4], None, exposure=given["exposure"][:4])
    assert np.isfinite(anywhere.lower.to_numpy()).all()
    with pytest.raises(DataError, match="none for 'size'"):
        tbr.fit(tbr.TreeModel(TREE, 1, "identity", likelihood={"count": "poisson"}), x, y, env)


# --- what is refused --------------------------------------------------------------------------

WRONG = {
    "exposure of a normal outcome": (
        "gaussian", {"exposure": 1.0}, DataError, r"exposure was given, .*no use.*it takes 'y_se'",
    ),
    "no exposure": (
        "poisson", {"exposure": "zero"}, DataError, r"1 value\(s\) .*not above 0.*row 3",
    ),
    "exposure of other length": (
        "poisson", {"exposure": [1.0, 2.0]}, ShapeError, "exposure has 2 rows",
    ),
    "exposure for other outcomes": (
        "poisson", {"exposure": np.ones((400, 2))}, ShapeError, r"exposure has shape \(400, 2\)",
    ),
    "missing exposure": ("poisson", {"exposure": "nan"}, DataError, "exposure has 1 cell.*NaN"),
    "too few trials": ("binomial", {"trials": 1.0}, DataError, "more than their row's trials"),
    "half a trial": ("binomial", {"trials": 10.5}, DataError, "no whole numbers above 0"),
    "no trials": ("binomial", {}, DataError, "more than their row's trials.*give trials="),
    "negative weights": (
        "poisson", {"row_weights": -1.0}, DataError, "row_weights has 400.*below 0",
    ),
    "no weight at all": ("poisson", {"row_weights": 0.0}, DataError, "row_weights are all zero"),
    "negative errors": ("gaussian", {"y_se": -1.0}, DataError, "y_se has 400.*below 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_rows_cannot_give_is_refused(name):
    likelihood, given, error, message = WRONG[name]
    x, y, env, _ = table("binomial" if likelihood == "binomial" else "poisson")
    if isinstance(given.get("exposure"), str):
        bad = np.ones(len(y))
        bad[3] = 0.0 if given["exposure"] == "zero" else np.nan
        given = {"exposure": bad}
    model = tbr.TreeModel(TREE, 1, "identity", likelihood=likelihood)
    with pytest.raises(error, match=message):
        tbr.fit(model, x, y, env, progress=False, **given)


def test_later_rows_are_held_against_the_fit():
    x, y, env, given = table("y_se")
    plain = fitted("student_t")
    with pytest.raises(DataError, match="y_se was given"):
        plain.predict(x, env, **given)
    with_errors = fitted("y_se")
    wide = with_errors.predict(x[:3], "a", y_se=100.0).sd
    assert (wide > 90).all()
    assert (with_errors.predict(x[:3], "a").sd < 1).all()
    with pytest.raises(DataError, match="groups need numeric outcomes with normal noise"):
        tbr.fit(tbr.TreeModel(TREE, 1, "identity"), x, y, env, groups=np.arange(400) % 20, **given)
    terms = RowTerms({"exposure": torch.ones(3, 1)}, torch.ones(3, 1))
    assert_close(terms.select(torch.tensor([0, 2])).values["exposure"], torch.ones(2, 1))


@pytest.mark.parametrize("kind", mostly_slow({k: k for k in ("poisson", "student_t")}, "student_t"))
def test_the_number_of_latents_of_other_outcomes(kind):
    counts = {
        "likelihood": "poisson", "weight_scale": 0.5, "intercept_mean": 1.0, "delta_min": 0.2,
        "delta_scale": 0.3, "exposure_ratio": 4.0,
    }  # fmt: skip
    how = counts if kind == "poisson" else {"noise": "outliers", "noise_scale": 0.3}
    sim = tbr.simulate(
        num_leaves=6, latent_dim=2, num_features=6, num_outcomes=3, nuisance_dim=2,
        rows_per_leaf=40, **how,
    )  # fmt: skip
    model = tbr.TreeModel(sim.tree, None, "linear", likelihood=kind)
    given = {} if sim.exposure is None else {"exposure": sim.exposure}
    choice = tbr.choose_latent_dim(
        model, sim.x, sim.y, sim.env, [1, 2, 3], num_folds=2, progress=False, **given
    )
    assert choice.best == 2
    assert choice.table["log_score"].idxmax() == 1
