"""Classes by name: ours, the user's own, and names that do not say which is meant."""

import pytest

import pyro_tbr as tbr
from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.likelihoods import Likelihood
from pyro_tbr.heads.priors import ArcPrior
from pyro_tbr.heads.registry import registered


def made(name, base, module):
    return type(name, (base,), {"__module__": module})


def test_ours_are_there_by_name():
    priors = {"GaussianPrior", "HorseshoePrior", "SpikeSlabPrior"}
    assert priors <= set(registered(ArcPrior))
    assert registered(ArcPrior)["HorseshoePrior"] is tbr.HorseshoePrior
    assert registered(Guide)["TreeGuide"] is tbr.TreeGuide
    assert registered(Likelihood)["BernoulliLikelihood"] is tbr.BernoulliLikelihood


def test_subclasses_of_subclasses_are_there_and_one_made_again_is_the_newer():
    base = made("Base", object, "here")
    child = made("Child", base, "here")
    below = made("Below", child, "there")
    assert dict(registered(base)) == {"Child": child, "Below": below}
    again = made("Below", child, "there")
    assert registered(base)["Below"] is again


def test_two_of_one_name_are_refused_and_the_others_stay():
    base = made("Base", object, "here")
    kept = [made("Own", base, "one"), made("Own", base, "two"), made("Other", base, "two")]
    found = registered(base)
    with pytest.raises(tbr.DataError, match=r"one.Own and two.Own have one name.*rename"):
        found["Own"]
    assert found["Other"] is kept[2]


def test_unknown_names_say_what_is_known():
    with pytest.raises(tbr.DataError, match=r"Guide: no class 'Own'.*TreeGuide.*import the module"):
        registered(Guide)["Own"]
