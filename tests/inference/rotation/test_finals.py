"""The last choice among candidates, by a score that the search does not have."""

import pytest
import torch

from pyro_tbr.inference.rotation.choice import decided, ranked
from pyro_tbr.inference.rotation.search import Candidates

K = 3


def bases(num, seed=0):
    """Orthogonal bases, no two of them alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(num, K, K, generator=generator, dtype=torch.float64))[0]


def candidates(basis):
    num = len(basis)
    names = torch.arange(num, dtype=torch.float64)  # told apart by their root weights
    return Candidates(
        basis,
        torch.zeros(num, K).double(),
        names.reshape(-1, 1, 1).expand(num, K, 1),
        torch.zeros(num, 4, K, 1).double(),
        torch.zeros(num).double(),
    )


def name(candidate):
    return int(candidate.root[0, 0])


def run(evidence, elbos, basis=None):
    basis = bases(len(evidence)) if basis is None else basis
    asked = []

    def elbo(candidate):
        asked.append(name(candidate))
        return elbos[name(candidate)]

    found = ranked(candidates(basis), torch.tensor(evidence).double())
    return decided(found, elbo), asked


def test_the_elbo_decides_among_close_candidates():
    found, asked = run([10.0, 8.0, 9.0], [-7.0, -3.0, -9.0])
    assert sorted(asked) == [0, 1, 2]
    assert name(found) == 1
    assert found.evidence == 10.0
    assert found.others.root[:, 0, 0].tolist() == [0, 2]
    assert found.other_evidence.tolist() == [6.0, 4.0]


def test_far_candidates_are_not_asked():
    found, asked = run([50.0, 10.0, 48.0], [1.0, 99.0, 2.0])
    assert sorted(asked) == [0, 2]
    assert name(found) == 2
    # The finalists moved by -49 and -46, so the one behind moves by the mean of these.
    assert found.other_evidence.tolist() == pytest.approx([49.0, 10.5])


def test_a_single_candidate_or_one_far_ahead_stays():
    for evidence in ([3.0], [90.0, 10.0, 20.0]):
        found, asked = run(evidence, [0.0] * 3)
        assert asked == []
        assert name(found) == 0


def test_doubles_move_with_their_finalist():
    basis = bases(3)
    basis = torch.cat([basis, basis[:1, :, [2, 0, 1]] * torch.tensor([1.0, -1, 1])])
    found, asked = run([10.0, 9.0, 8.0, 9.5], [0.0, 30.0, 12.0, 77.0], basis)
    assert sorted(asked) == [0, 1, 2]
    assert name(found) == 1
    assert found.other_evidence.tolist() == [-8.0, -20.0, -20.5]


def test_at_most_so_many_run():
    num = 30
    found, asked = run([100.0 - 0.1 * i for i in range(num)], [float(-i) for i in range(num)])
    assert len(asked) <= 8
    assert name(found) == 0
    assert len(found.other_evidence) == num - 1
