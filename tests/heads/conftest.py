"""Pyro draws from torch's global generator: seeded for each test here, and put back after."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
