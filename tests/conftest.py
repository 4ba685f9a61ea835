"""What every test shares: one thread, and a guard on global state."""

import random

import numpy as np
import pyro
import pytest
import torch

from tests.brief import LEFT_OUT, search_steps

torch.set_num_threads(1)  # small tensors: threads cost more than they bring


def pytest_collection_modifyitems(items):
    for item in items:
        if any(part in item.nodeid for part in LEFT_OUT):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _short_search():
    """Small trees are searched soon; tests of the whole search ask for ``FULL_SEARCH``."""
    with search_steps(200):
        yield


def _global_state() -> dict[str, object]:
    return {
        "dtype": torch.get_default_dtype(),
        "param store": sorted(pyro.get_param_store().keys()),
        "validation": torch.distributions.Distribution._validate_args,
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002  (we check that it is untouched)
        "torch": torch.get_rng_state().tolist(),
    }


@pytest.fixture(autouse=True)
def _global_state_untouched(request):
    """No test, and so nothing of ours, changes global state, unless the test says it does."""
    if request.node.get_closest_marker("own_random_state"):
        random_state = torch.get_rng_state()
        yield
        torch.set_rng_state(random_state)
        return
    before = _global_state()
    yield
    after = _global_state()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"test changed global state: {changed}"


@pytest.fixture
def users_store():
    """A user's own parameters, with names like ours; and a look at whether they stay."""
    store = pyro.get_param_store()
    before = store.get_state()
    names = ["encoder.layer.weight", "encoder.mine", "root_loc", "user.weight"]
    for name in names:
        pyro.param(name, torch.full((2,), 7.0))
    held = {name: store._params[name] for name in names}
    yield store
    assert sorted(store.keys()) == sorted(names)
    for name in names:
        assert store._params[name] is held[name]
        assert (pyro.param(name) == 7.0).all()
    store.clear()
    store.set_state(before)
