"""How good it is: data whose truth is known, and measures of how close a fit comes to it.

:func:`simulate` draws a tree, sparse changes along its arcs and rows at its leaves, and returns
them with everything behind them as one frozen :class:`Simulation`; it can draw more rows at any
node later. The metrics are plain functions of arrays, tensors or tables: truth first, estimate
second, one number out; they know nothing of models or fits. PIPs and gates are the exception,
the estimate comes first, as in ``reliability(pips, gates)``. What is missing in ``y`` (NaN) is
not scored. scipy and scikit-learn are imported where used; install them with
``pip install pyro-tbr[evaluation]``.
"""

from pyro_tbr.evaluation.metrics import (
    LatentMatch,
    crps,
    expected_calibration_error,
    interval_coverage,
    linear_r2,
    log_score,
    match_latents,
    mcc,
    pip_auroc,
    pip_average_precision,
    reliability,
)
from pyro_tbr.evaluation.simulate import LinearMixing, MLPMixing, Simulation, simulate

__all__ = [
    "LatentMatch",
    "LinearMixing",
    "MLPMixing",
    "Simulation",
    "crps",
    "expected_calibration_error",
    "interval_coverage",
    "linear_r2",
    "log_score",
    "match_latents",
    "mcc",
    "pip_auroc",
    "pip_average_precision",
    "reliability",
    "simulate",
]
