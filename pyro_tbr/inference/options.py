"""Options of a fit: one frozen object that checks itself, so a saved fit says how it was made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch

from pyro_tbr.errors import DataError

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_LEAST = {"restarts": 1, "sparse_steps": 0, "batch_size": 1, "patience": 1, "mixture_components": 2}


@dataclass(frozen=True)
class FitOptions:
    """How :func:`~pyro_tbr.fit` works; the defaults suit a few hundred to ten million rows.

    Steps are those of stochastic variational inference (SVI) on minibatches. A linear encoder of
    normal outcomes is trained by closed forms instead, from the sums of the rows of each
    environment: weights and encoder in turns, the encoder a part of the way to its optimum each
    time. One such step counts for 20.

    Attributes:
        restarts: Random starts of the rotation search.
        max_steps: Steps of the dense stage at most; ``None``: 1,000 where weights follow the
            encoder, else by its kind. With 1 a linear encoder of normal outcomes makes one step in
            closed form, and keeps it only if held-out rows are fitted better.
        sparse_steps: Steps that train the encoder under the sparse prior; 0: it stays.
        batch_size: Rows a minibatch.
        encoder_lr: Peak learning rate of the encoder, of SVI; ``None``: by the kind of encoder.
        encoder_decays: Weight decays of the encoder to choose from on held-out rows, warm-started
            in this order; ``None``: by the kind of encoder.
        num_components: Leading components of wide features to choose from on held-out rows;
            ``None``: by the number of features and rows.
        validation_share: Share of the rows held out to choose with.
        patience: Checks on held-out rows without gain before a run stops.
        cross_fit: Folds whose rows are encoded by an encoder that was not fitted to them; 0 never,
            ``None``: as many as needed, none where the encoder's optimism is not measurable.
        sandwich: Take the errors of each environment's weights from its rows' own residuals where
            these are surely larger or smaller than the common noise says (learnt encoders, Gaussian
            outcomes); ``None``: where the encoder is not linear, as a linear one is calibrated
            without.
        mixture_components: Cap on the components of a message along the tree.
        num_threads: Threads of torch while fitting, put back after; the tensors are small, and more
            threads mostly wait for each other. ``None``: as torch is set.
        device: Where to train; ``"cuda"`` pays for neural encoders and very many rows, and is
            slower for fewer.
        dtype: ``"float32"`` or ``"float64"``.
    """

    restarts: int = 64
    max_steps: int | None = None
    sparse_steps: int = 300
    batch_size: int = 512
    encoder_lr: float | None = None
    encoder_decays: tuple[float, ...] | None = None
    num_components: tuple[int, ...] | None = None
    validation_share: float = 0.2
    patience: int = 8
    cross_fit: int | None = None
    sandwich: bool | None = None
    mixture_components: int = 32
    num_threads: int | None = 1
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        rules = []
        for name, least in _LEAST.items():
            value = getattr(self, name)
            holds = isinstance(value, int) and value >= least
            rules.append((name, holds, f"a whole number >= {least}"))
        rules += [
            ("max_steps", _is_number(self.max_steps, least=1), "a number, at least 1, or None"),
            ("num_threads", _is_number(self.num_threads, least=1), "a number, at least 1, or None"),
            ("cross_fit", self.cross_fit in (None, 0, *range(2, 21)), "None, 0, or 2 to 20"),
            ("encoder_lr", _is_number(self.encoder_lr, above=0), "positive, or None"),
            (
                "validation_share",
                isinstance(self.validation_share, Real) and 0 < self.validation_share < 1,
                "above 0 and below 1",
            ),
            ("dtype", self.dtype in _DTYPES, f"one of {sorted(_DTYPES)}"),
        ]
        for name, holds, must in rules:
            if not holds:
                raise DataError(f"options: {name}={getattr(self, name)!r} must be {must}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise DataError(
                f"options: device={self.device!r} is not there for this torch: use 'cpu', or "
                "'cuda' on a machine with a GPU and a torch built for it"
            ) from error

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        return _DTYPES[self.dtype]


def _is_number(value: object, *, least: float = -math.inf, above: float = -math.inf) -> bool:
    """``None``, which leaves it open, or a number in range."""
    if value is None:
        return True
    return isinstance(value, Real) and float(value) >= least and float(value) > above
