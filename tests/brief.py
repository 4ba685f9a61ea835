"""Fits that search or sweep less than a user's, for tests on small trees."""

from contextlib import contextmanager

import pytest

from pyro_tbr.heads import condition
from pyro_tbr.inference import stages

FULL_SEARCH = stages.SEARCH_STEPS


@contextmanager
def search_steps(number):
    """Fits inside search for the sparse basis in so many steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "SEARCH_STEPS", number)
        yield


@contextmanager
def sweeps(number):
    """After so many sweeps what still moves goes on with short steps only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(condition.__kwdefaults__, "sweeps", number)
        yield
