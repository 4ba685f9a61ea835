"""Units: outcomes as the user gave them, and as the model sees them."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.hyper import Hyperparameter

_CONSTANT = 1e-12  # spread over the largest value below which an outcome is constant


class Scaling(NamedTuple):
    """Outcomes in the user's units are ``loc + scale * (outcomes the model sees)``.

    Attributes:
        loc: (Q,), double precision.
        scale: (Q,), likewise.
    """

    loc: Tensor
    scale: Tensor

    def rescale(
        self, draws: dict[str, Tensor], hypers: Iterable[Hyperparameter]
    ) -> dict[str, Tensor]:
        """The draws, with hyperparameters that are in units of the outcome in the user's.

        Args:
            draws: By site name, the outcome last: (*B, Q), or (*B, 1) where outcomes share it.
            hypers: Hyperparameters, some of which may not be among the draws.
        """
        names = {hyper.name for hyper in hypers if hyper.unit == "outcome"} & draws.keys()
        return draws | {name: draws[name] * self.scale.to(draws[name]) for name in names}


def unscaled(y: Tensor) -> Scaling:
    """Outcomes (N, Q) as they are."""
    loc = torch.zeros(y.shape[1], dtype=torch.float64, device=y.device)
    return Scaling(loc, torch.ones_like(loc))


def standardised(y: Tensor, *, intercept: bool) -> Scaling:
    """Outcomes (N, Q), NaN where not observed, of mean 0 and standard deviation 1.

    A constant outcome keeps its unit. Without an intercept nothing takes up a shift, so there the
    outcomes stay where they are and only their spread becomes 1.
    """
    y = y.double()
    loc = y.nanmean(0)
    scale = (y - loc).square().nanmean(0).sqrt()
    constant = scale <= _CONSTANT * y.abs().nan_to_num().amax(0)
    return Scaling(loc if intercept else torch.zeros_like(loc), torch.where(constant, 1.0, scale))
