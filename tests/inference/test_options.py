import pytest

from pyro_tbr import DataError, FitOptions


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
