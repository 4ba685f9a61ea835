"""Case O-30: two processes, each with other leaves, train one model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_tbr.errors import DataError
from tests.brief import FULL_SEARCH, mostly_slow, search_steps
from tests.cases.two_ranks import LEARNT, LEAVES, NUM_ROWS, fit_rows, learnt, run, star, table

ROOT = Path(__file__).parents[2]

needs_distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no distributed"
)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two processes saved."""
    return saved_by_two(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def learnt_by_two(request, tmp_path_factory):
    """Fits of the kinds that are asked for, in each of two processes."""
    asked = [item.callspec.params.get("kind") for item in request.session.items
             if "learnt_by_two" in getattr(item, "fixturenames", ())]  # fmt: skip
    return saved_by_two(tmp_path_factory.mktemp("ranks"), *dict.fromkeys(asked))


def saved_by_two(folder, *kinds):
    """None of the processes may hang."""
    targets = [folder / f"rank{rank}.pt" for rank in (0, 1)]
    command = [sys.executable, "-m", "tests.cases.two_ranks"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "store"), str(target), *kinds], cwd=ROOT
        )
        for rank, target in enumerate(targets)
    ]
    try:
        assert [rank.wait(timeout=400) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    return [torch.load(target) for target in targets]


@needs_distributed
def test_o30_two_ranks_are_one_process(two_ranks):
    """Bit-equal parameters on both ranks, the inclusion probabilities of one process, no hang.

    A leaf absent from a rank leaves no parameter unused, or DDP would refuse the second step.
    """
    (state, mean_field, pips), (other, _, other_pips) = (saved[0] for saved in two_ranks)
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert torch.equal(pips, other_pips)
    _, alone, alone_pips = run()
    torch.testing.assert_close(mean_field, alone, rtol=0, atol=0.05)
    torch.testing.assert_close(pips, alone_pips, rtol=0, atol=0.05)
    found = pips[..., 0].max(1).values
    assert found[3] > 0.9  # l3, the first rank's
    assert found[15] > 0.9  # l15, the second's


@needs_distributed
def test_o30_fit_says_whose_rows_it_takes(two_ranks):
    """``ranks="together"`` is the fit of one process to all rows; nothing is guessed."""
    first, second = (saved[1] for saved in two_ranks)
    assert first["rows"] == [NUM_ROWS, NUM_ROWS, 100]
    assert second["rows"] == [NUM_ROWS, NUM_ROWS, NUM_ROWS - 100]
    assert all(map(torch.equal, first["together"], second["together"]))
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])
    assert first["seeds"] == second["seeds"]
    assert first["seeds"][0] == 3
    alone = fit_rows(star(LEAVES), *table(NUM_ROWS), seed=3)
    torch.testing.assert_close(first["together"][0], torch.tensor(alone.pips().to_numpy()))
    for refused in (first["refused"], second["refused"]):
        assert "ranks=None, but 2 processes" in refused["nothing said"]
        assert "rank 1 of 2: x has 1 cell(s) that are NaN" in refused["NaN in one rank"]
        assert "rank 1 has another seed than rank 0, 1 and 0" in refused["other seeds"]
        assert "another kind of x than rank 0, 'sparse'" in refused["sparse in one rank"]
        assert "rank 1 has another columns" in refused["another column"]


@needs_distributed
@pytest.mark.parametrize("kind", mostly_slow({kind: kind for kind in LEARNT}, "linear", "groups"))
def test_o30_encoders_are_learnt_from_the_rows_of_all(kind, learnt_by_two):
    """Each process holds its own features, and the fit is that of one with all rows.

    A third of the rows of every leaf are the first process', so their order is another one, by
    which rows are held out and batches are drawn: compared is a fit to the rows in that order.
    """
    first, second = (saved[kind] for saved in learnt_by_two)
    assert all(torch.equal(first[name], second[name]) for name in first)
    order = np.argsort(np.arange(160) % 3 > 0, kind="stable")
    with search_steps(FULL_SEARCH):  # as in the processes
        alone = learnt(kind, order)
    for name, ours in first.items():
        torch.testing.assert_close(ours, alone[name], rtol=0, atol=1e-6)


@needs_distributed
@pytest.mark.slow
def test_o30_a_fit_of_two_goes_on_from_their_files(tmp_path):
    """Each has a file of its own; a part that only one has is done again by both."""
    first, second = (saved["resumed"] for saved in saved_by_two(tmp_path, "resumed"))
    for found in (first, second):
        assert found["parts"] > 3
        assert found["again"]
        assert torch.equal(found["resumed"], found["whole"])
        assert "rank 1 of 2" in found["refused"]
        assert "no complete file" in found["refused"]
        assert "rank 0 of 2" in found["there already"]
    assert torch.equal(first["whole"], second["whole"])


def test_o30_one_process_needs_no_word():
    """``ranks`` is free where there is one process, and a misspelt one is refused."""
    x, y, env = table(40)
    fit_rows(star(LEAVES), x, y, env, ranks="together")
    with pytest.raises(DataError, match="ranks='all'.*'together' or 'apart'"):
        fit_rows(star(LEAVES), x, y, env, ranks="all")


@needs_distributed
def test_o30_processes_without_a_group(monkeypatch):
    """What torchrun started may not have met yet: that too is no single process."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    x, y, env = table(40)
    with pytest.raises(DataError, match="ranks=None, but 4 processes"):
        fit_rows(star(LEAVES), x, y, env)
    with pytest.raises(DataError, match="init_process_group"):
        fit_rows(star(LEAVES), x, y, env, ranks="together")
    fit_rows(star(LEAVES), x, y, env, ranks="apart")
