import functools
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import pyro_tbr as tbr
from tests.inference.problems import QUICK


def fit(latent_dim, **kwargs):
    data = tbr.simulate(latent_dim=latent_dim, rows_per_leaf=60, **kwargs)
    model = tbr.TreeModel(data.tree, latent_dim, "linear")
    return tbr.fit(model, data.x, data.y, data.env, progress=False, options=QUICK), data


@functools.cache
def many():
    """Whose latents are determined: no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fit(3, num_leaves=8, num_outcomes=4, changes="half_the_arcs", seed=0)


def test_few_environments_and_one_outcome_are_reported():
    with pytest.warns(tbr.IdentificationWarning, match="NOT determined: 4 latents from 6 env"):
        posterior, _ = fit(4, num_leaves=6, seed=0)
    found = posterior.identification()
    assert not found.determined
    assert "6 environments times 1 outcomes are few for 4 latents" in found.reasons
    assert "more outcomes" in str(found)


def test_many_environments_or_outcomes_are_not():
    posterior, data = many()
    found = posterior.identification()
    assert found.determined
    assert tbr.mcc(data.z, posterior.encode(data.x)) > 0.99
    assert found.gap > 3
    assert "Latents determined: 3 latents" in str(found)
    assert found.separation.shape == (3, 3)


def test_given_latents_need_no_identification():
    data = tbr.simulate(num_leaves=4, latent_dim=3, num_features=3, rows_per_leaf=30, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tbr.TreeModel(data.tree, 3, "identity")
        posterior = tbr.fit(model, data.z, data.y, data.env, progress=False)
    assert posterior.identification().determined


def test_a_solution_that_stands_alone_is_reported():
    posterior = many()[0].copy()
    assert posterior.identification().determined
    report = posterior.report
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(report.alternatives.shape, generator=generator, dtype=torch.float64)
    others = torch.linalg.qr(others)[0]
    evidence = report.evidence - 100.0 - torch.arange(len(others)).double()
    report = replace(report, alternatives=others, alternative_evidence=evidence)
    posterior = replace(posterior, report=report)
    found = posterior.identification()
    assert not found.determined
    # How many random bases pass for having a latent by chance is the machine's rounding.
    assert "of the search's solutions have 'z0'" in found.reasons[0]


def with_others(posterior, *, copies, gap, number=20):
    """The posterior, its search having found so many copies and other solutions far behind."""
    report = posterior.report
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(number, *report.basis.shape, generator=generator, dtype=torch.float64)
    others = torch.cat([report.basis.expand(copies, -1, -1), torch.linalg.qr(drawn)[0]])
    evidence = torch.full((len(others),), report.evidence - gap, dtype=torch.float64)
    report = replace(report, alternatives=others, alternative_evidence=evidence)
    return replace(posterior, report=report)


@pytest.mark.parametrize(("copies", "gap", "determined"), [
    (1, 4.0, True), (0, 4.0, False), (1, 2.0, False), (12, 2.0, True),
])  # fmt: skip
def test_a_solution_that_few_have_is_one_if_some_do_and_others_are_far(copies, gap, determined):
    found = with_others(many()[0].copy(), copies=copies, gap=gap).identification()
    assert found.determined is determined
    assert determined or f"only {copies / (20 + copies):.0%} of the search's" in found.reasons[0]


def test_what_is_expected_of_a_latent_goes_by_evidence_and_counts_solutions_once():
    posterior = many()[0].copy()
    rival = with_rival(posterior, 1.0, 0)
    report = rival.report
    alike = (report.basis[:, 0] @ report.alternatives[0][:, 0]).abs().item()
    share = posterior.identification().worth / 4
    weight = np.exp(-share) / (1 + np.exp(-share))
    expected = [1 - weight + weight * alike, 1.0, 1.0]
    assert rival.identification().latents["expected"].tolist() == pytest.approx(expected)
    twice = torch.cat([report.alternatives, report.alternatives])
    evidence = torch.cat([report.alternative_evidence] * 2)
    report = replace(report, alternatives=twice, alternative_evidence=evidence)
    again = replace(rival, report=report).identification()
    assert again.latents["expected"].tolist() == pytest.approx(expected)


def with_rival(posterior, gap, latent, *, copies=1):
    """The posterior, its search having found solutions with one other latent in place of one."""
    report = posterior.report
    basis = report.basis.clone()
    basis[:, latent] = torch.linalg.qr(basis + 3 * basis.roll(1, 1))[0][:, latent]
    basis[:, latent] /= basis[:, latent].norm()
    others = torch.cat([basis[None], report.basis.expand(copies, -1, -1)])
    evidence = torch.tensor([report.evidence - gap] + [report.evidence - 1.0] * copies)
    report = replace(report, alternatives=others, alternative_evidence=evidence.double())
    return replace(posterior, report=report)


def test_each_latent_has_a_verdict_of_its_own():
    posterior = many()[0].copy()
    names = posterior.latent_names[:3]
    for latent in range(3):
        found = with_rival(posterior, 1.0, latent).identification()
        assert found.latents["determined"].to_dict() == {n: n != names[latent] for n in names}
        assert found.latents["gap"][names[latent]] == pytest.approx(1.0)
        assert found.latents["agreement"][names[latent]] == pytest.approx(0.5)
        (reason,) = found.reasons
        assert f"in place of '{names[latent]}' explain" in reason
        sure = ", ".join(n for n in names if n != names[latent])
        assert f"Determined all the same: {sure}." in str(found)
    assert with_rival(posterior, 50.0, 1).identification().determined


def test_correlated_outcomes_count_for_what_they_are_worth():
    posterior = many()[0].copy()
    rival = with_rival(posterior, 12.0, 0)
    assert rival.identification().determined
    check = replace(rival.report.check, worth=1.0)  # of four
    found = replace(rival, report=replace(rival.report, check=check)).identification()
    assert found.latents["gap"].min() == pytest.approx(12 / 4)
    assert found.worth == 1
    alone = replace(rival.report.check, worth=0.5)
    few = replace(rival, report=replace(rival.report, check=alone)).identification()
    assert any("8 environments times 0.5 outcomes are few" in reason for reason in few.reasons)


@pytest.mark.parametrize("guide", ["tree", pytest.param("mean_field", marks=pytest.mark.slow)])
def test_latents_that_nothing_hangs_on_are_named_and_left_out(guide):
    data = tbr.simulate(
        num_leaves=8, latent_dim=1, num_features=6, nuisance_dim=3, feature_noise=0.3,
        num_outcomes=3, rows_per_leaf=60, noise_scale=0.3, changes="half_the_arcs", seed=3,
    )  # fmt: skip
    model = tbr.TreeModel(data.tree, 3, "linear")
    posterior = tbr.fit(model, data.x, data.y, data.env, guide=guide, progress=False, options=QUICK)
    found = posterior.identification()
    assert len(found.unused) == 2
    assert found.determined
    table = found.latents
    assert table["used"].sum() == 1
    assert (table["evidence"][table["used"]] > 100).all()
    assert not table["determined"][~table["used"]].any()
    used = list(table["used"])
    assert tbr.mcc(data.z, posterior.encode(data.x)[:, used]) > 0.95
    shown = posterior.summary().latents["used"]
    assert list(shown) == [*used, True]
