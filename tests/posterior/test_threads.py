"""One posterior asked from many threads: each call its own numbers, and nothing is changed."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.posterior.view import Kept
from tests.posterior.small_fits import BALANCED, known_fit, toy

NUM_THREADS, SEEDS = 8, range(3)
X = np.linspace(-2, 2, 6)[:, None]


@pytest.fixture(scope="module")
def data():
    return toy("abc", num_rows=30, shift={"a": 2.0})


@pytest.fixture(
    scope="module",
    params=["tree", "mean_field", pytest.param("horseshoe", marks=pytest.mark.slow)],
)
def posterior(request, data):
    if request.param == "horseshoe":
        return known_fit(BALANCED, *data, prior=tbr.HorseshoePrior(1))
    return known_fit(BALANCED, *data, guide=request.param)


def ask(posterior, what, seed):
    """One question with a seed of its own, as bytes."""
    if what == "sample":
        return b"".join(value.tobytes() for value in posterior.sample(5, seed=seed).values())
    if what == "deltas":
        return posterior.deltas(level=0.5 + 0.01 * (seed % 4)).to_csv().encode()
    env = {"leaf": "d", "new leaf": tbr.NewLeaf("new", "a"), "unknown": None}[what]
    found = posterior.predict(X, env, num_draws=20, seed=seed)
    parts = (found.mean, found.sd, found.lower, found.upper, found.sample(3, seed=seed))
    return b"".join(part.tobytes() for part in parts)


def test_every_call_gets_the_numbers_of_its_own_seed(posterior):
    kinds = ["sample", "deltas", "leaf", "new leaf", "unknown"]
    calls = [(what, seed) for seed in SEEDS for what in kinds]
    alone = {call: ask(posterior.copy(), *call) for call in calls}
    together = posterior.copy()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = dict(zip(calls, pool.map(lambda call: ask(together, *call), calls), strict=True))
        again = dict(zip(calls, pool.map(lambda call: ask(together, *call), calls), strict=True))
    assert found == again
    assert all(found[call] == value for call, value in alone.items())
    for what in ("sample", "leaf", "new leaf", "unknown"):
        assert len({found[what, seed] for seed in SEEDS}) == len(SEEDS)


def test_asking_leaves_every_byte_as_it_was(posterior, data):
    asked = pickle.loads(pickle.dumps(posterior))
    before = pickle.dumps(asked)
    for what in ("sample", "deltas", "leaf", "new leaf", "unknown"):
        ask(asked, what, 1)
    asked.predict(X, "a").log_score(np.zeros(len(X)))
    str(asked.summary())
    str(asked.identification())
    asked.pips()
    asked.node_weights()
    asked.exceedance(0.5)
    asked.encode(X)
    if asked.guide.has_gates:
        asked.select()
        asked.path_pips("a")
        asked.credible_sets(num_draws=100)
    asked.update(*(part[:3] for part in data))
    assert pickle.dumps(asked) == before


def test_what_is_kept_is_little_and_goes_nowhere():
    kept, made = Kept(2), []

    def make(value):
        return lambda: made.append(value) or value

    assert [kept.get(key, make(key)) for key in (1, 2, 1, 3, 1)] == [1, 2, 1, 3, 1]
    assert made == [1, 2, 3, 1]  # the oldest went when the third came
    assert len(kept) == 2
    assert len(pickle.loads(pickle.dumps(kept))) == 0
