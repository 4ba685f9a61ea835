"""Case O-30: two processes, each with other leaves, train one model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cases.two_ranks import run

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
@pytest.mark.parametrize("num_rows", [200, 201], ids=["even", "uneven"])
def test_o30_two_ranks_are_one_process(num_rows, tmp_path):
    """Bit-equal parameters on both ranks, the inclusion probabilities of one process, no hang.

    A leaf absent from a rank leaves no parameter unused, or DDP would refuse the second step.
    """
    targets = [tmp_path / f"rank{rank}.pt" for rank in (0, 1)]
    command = [sys.executable, "-m", "tests.cases.two_ranks", str(num_rows)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), str(target)], cwd=ROOT)
        for rank, target in enumerate(targets)
    ]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    (state, mean_field, pips), (other, _, other_pips) = map(torch.load, targets)
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert torch.equal(pips, other_pips)
    _, alone, alone_pips = run(num_rows)
    torch.testing.assert_close(mean_field, alone, rtol=0, atol=0.05)
    torch.testing.assert_close(pips, alone_pips, rtol=0, atol=0.05)
    found = pips[..., 0].max(1).values
    assert found[3] > 0.9  # l3, the first rank's
    assert found[15] > 0.9  # l15, the second's
