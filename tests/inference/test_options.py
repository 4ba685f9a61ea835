from dataclasses import replace

import pytest

import pyro_tbr as tbr
from pyro_tbr import DataError, FitOptions
from tests.inference.problems import BRIEF


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"restarts": 0}, "restarts=0 must be a whole number >= 1"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"cross_fit": 1}, "cross_fit=1 must be None, 0, or 2 to 20"),
        ({"encoder_lr": -1.0}, "encoder_lr=-1.0 must be positive"),
        ({"validation_share": 1.0}, "validation_share=1.0"),
        ({"dtype": "float16"}, "dtype='float16'"),
    ],
)
def test_options_check_themselves(change, message):
    with pytest.raises(DataError, match=message):
        FitOptions(**change)


def test_an_unknown_option_is_pythons_own_error():
    with pytest.raises(TypeError, match="rotation_steps"):
        FitOptions(rotation_steps=10)


def test_a_saved_fit_with_options_that_are_gone_keeps_its_report(tmp_path):
    data = tbr.simulate(num_leaves=3, latent_dim=1, num_features=1, rows_per_leaf=10)
    model = tbr.TreeModel(data.tree, 1, "identity")
    posterior = tbr.fit(model, data.x, data.y, data.env, options=BRIEF, progress=False)
    old = posterior.report.options | {"rotation_steps": 1500, "sweeps": 60, "guide_lr": 0.03}
    posterior = replace(posterior, report=replace(posterior.report, options=old))
    posterior.save(tmp_path / "old.tbr")
    assert tbr.load(tmp_path / "old.tbr").report.options == old
