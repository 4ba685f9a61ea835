"""What can be wrong with a call, and what a user should be warned about.

Every error raised for user input is a :class:`TbrError` and a ``ValueError``; its message names the
argument, the value, the place, the count and the way out.
"""

import sys
import warnings


class TbrError(ValueError):
    """Something the user gave cannot be used; the message says what, where and what to do."""


class TreeError(TbrError):
    """The environments do not form a rooted tree with unique leaves, or a label is not in it."""


class ShapeError(TbrError):
    """Arrays do not fit together, or do not fit what the model was built for."""


class DataError(TbrError):
    """Values that a likelihood or an encoder cannot use: NaN features, unusable outcomes."""


class TrainingError(RuntimeError):
    """Training met a loss or gradient that is not finite and stopped."""


class ConvergenceWarning(UserWarning):
    """Training stopped before the objective settled."""


class DataWarning(UserWarning):
    """Data that can be used, but hardly as the user means it: a constant column, say."""


class IdentificationWarning(UserWarning):
    """The latents are not determined by these environments and outcomes."""


class ModelWarning(UserWarning):
    """The model does not fit the data in a way that makes its probabilities misleading."""


def warn_user(text: str, kind: type[Warning] = DataWarning) -> None:
    """Warns at the line that called the package, however deep inside it we are."""
    level, frame = 1, sys._getframe(0)
    inside = ("pyro_tbr", "torch")  # torch wraps functions of ours that are decorated
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in inside:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, kind, stacklevel=level)
