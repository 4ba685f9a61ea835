"""What can be wrong with a call, and what a user should be warned about.

Every error raised for user input is a :class:`TbrError` and a ``ValueError``; its message names the
argument, the value, the place, the count and the way out.
"""


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
