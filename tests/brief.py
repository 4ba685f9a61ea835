"""What keeps the default suite short: fits that search or sweep less, cases that are left out."""

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


def mostly_slow(cases, *quick):
    """Cases as parameters of a test, by id; those not named as quick are for the slow suite."""
    cases = dict(cases)
    assert set(quick) <= set(cases), set(quick) - set(cases)
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            id=name,
            marks=[] if name in quick else pytest.mark.slow,
        )
        for name, case in cases.items()
    ]
