import pytest
import torch

from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.inference.encoder.cross_fit import stratified_folds
from pyro_tbr.inference.encoder.latents import align


def test_folds_spread_every_environment_evenly():
    env = torch.tensor([4] * 40 + [7] * 13 + [2] * 3)
    folds = stratified_folds(env, 5, torch.Generator().manual_seed(0))
    for node in env.unique():
        counts = torch.bincount(folds[env == node], minlength=5)
        assert counts.max() - counts.min() <= 1
    other = stratified_folds(env, 5, torch.Generator().manual_seed(1))
    assert (folds != other).any()


def test_rows_of_a_group_stay_together():
    env = torch.tensor([4] * 40 + [7] * 26 + [2] * 10)
    index = torch.tensor([*range(20)] * 2 + [20 + i // 2 for i in range(26)] + [33] * 10)
    groups = RowGroups(index, torch.zeros(1))
    folds = stratified_folds(env, 5, torch.Generator().manual_seed(0), groups)
    for group in range(33):
        assert len(folds[index == group].unique()) == 1
    for node, size in ((4, 2), (7, 2), (2, 1)):  # the last group is all of its environment
        counts = torch.bincount(folds[env == node], minlength=5)
        assert counts.max() - counts.min() <= size
    single = RowGroups(torch.arange(76), torch.zeros(1))
    plain, other = (
        stratified_folds(env, 5, torch.Generator().manual_seed(0), g) for g in (None, single)
    )
    assert torch.equal(plain, other)


@pytest.mark.parametrize("seed", range(5))
def test_the_first_folds_have_rows_where_groups_are_few(seed):
    env = torch.arange(2).repeat_interleave(40)
    groups = RowGroups(torch.arange(4).repeat_interleave(20), torch.zeros(1))
    folds = stratified_folds(env, 5, torch.Generator().manual_seed(seed), groups)
    assert torch.bincount(folds).tolist() == [20] * 4


def test_align_undoes_an_affine_map():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    turn = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    theirs = z @ turn + 5
    torch.testing.assert_close(align(theirs[:30], z[:30], theirs[30:]), z[30:])


def test_align_where_latents_do_not_exist():
    generator = torch.Generator().manual_seed(1)
    theirs = torch.randn(50, 2, generator=generator, dtype=torch.float64) - 0.05
    z, none = 2 * theirs + 1, torch.zeros(50, 3, dtype=torch.float64)
    wide, reference = torch.cat([theirs, none], 1), torch.cat([z, none], 1)
    found = align(wide[:30], reference[:30], wide[30:])
    torch.testing.assert_close(found, reference[30:])
