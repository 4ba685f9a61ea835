import functools
import warnings
from dataclasses import replace

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
    assert found.gap > 6
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
    assert "of the search's solutions have these latents" in found.reasons[0]
