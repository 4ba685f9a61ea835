"""What keeps the default suite short: fits that search or sweep less, cases that are left out."""

from contextlib import contextmanager

import pytest

from pyro_tbr.heads import condition
from pyro_tbr.inference import rotating

FULL_SEARCH = rotating.SEARCH_STEPS
# Tests of ten seconds and more that others stand for in the default suite, by parts of their ids.
LEFT_OUT = (
    "test_examples.py::test_genomes",
    "test_examples.py::test_species",
    "test_examples.py::test_replication",
    "test_examples.py::test_gates_of_neurons",
    "heads/test_contract.py::test_elbo_is_that_of_pyro[tree-horseshoe",
    "heads/test_contract.py::test_elbo_is_that_of_pyro[tree-grouped",
    "heads/test_contract.py::test_elbo_is_that_of_pyro[mean field-horseshoe",
    "heads/test_contract.py::test_updates_raise_the_elbo[tree-grouped",
    "heads/test_contract.py::test_updates_raise_the_elbo[mean field-horseshoe",
    "heads/test_contract.py::test_moments_are_those_of_draws[tree-horseshoe-learnt",
    "heads/test_contract.py::test_update_is_deterministic_and_leaves_no_trace[mean field-horseshoe",
    "heads/test_new_parts.py::test_the_elbo_is_a_bound",
    "heads/test_new_parts.py::test_a_fit_is_saved_and_updated[linear]",
    "heads/test_new_parts.py::test_elbo_is_that_of_pyro[mean field",
    "heads/test_horseshoe.py::test_silent_arcs_have_the_priors_variance",
    "inference/test_identification.py::test_latents_that_nothing_hangs_on_are_named_and_left_out[t",
    "inference/test_outcomes.py::test_the_number_of_latents_of_other_outcomes",
    "inference/test_averaging.py::test_a_file_gives_the_same_answers",
    "inference/test_averaging.py::test_priors_without_gates",
    "inference/test_elbo.py::test_minibatches_of_a_tenth",
    "inference/test_fit.py::test_every_prior_goes_through_the_same_fit",
    "inference/rotation/test_climb.py::test_the_search_reaches_what_the_evidence_prefers[31000]",
    "posterior/test_saving.py::test_loaded_posterior_gives_the_same_answers[mean field]",
    "posterior/test_saving.py::test_loaded_posterior_gives_the_same_answers[horseshoe]",
    "posterior/test_sampling.py::test_the_fit_stays_and_the_seed_decides",
    "posterior/test_effects.py::test_a_posterior_by_sampling_knows",
    "posterior/test_checking.py::test_outcomes_that_correlate_are_worth_fewer",
    "tree/messages/test_large.py::test_large_trees[chain of 1,500]",
)


@contextmanager
def search_steps(number):
    """Fits inside search for the sparse basis in so many steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotating, "SEARCH_STEPS", number)
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
