"""Parts of a model as users name them: what a name stands for, and which are none."""

from __future__ import annotations

from torch import nn

from pyro_tbr.errors import DataError
from pyro_tbr.heads.likelihoods import LIKELIHOODS, Likelihood
from pyro_tbr.tree.readers.naming import listed


def likelihood_of(spec: str | Likelihood) -> Likelihood:
    """The likelihood of a name."""
    return LIKELIHOODS[spec]() if isinstance(spec, str) else spec


def check_choosable(
    encoder: str | nn.Module, num_features: int | None, num_outcomes: int | None
) -> None:
    """Refuses to leave K open where something else says it, or needs it at once."""
    if not isinstance(encoder, str) or encoder == "identity":
        says = (
            "'identity' has as many latents as features"
            if encoder == "identity"
            else f"{type(encoder).__name__} has a number of latents of its own"
        )
        raise DataError(
            f"latent_dim=None needs encoder='linear' or 'mlp': {says}; give latent_dim that number"
        )
    if num_features is not None and num_outcomes is not None:
        raise DataError(
            "latent_dim=None is not chosen yet, and num_features with num_outcomes builds the "
            "model at once: leave these two to fit, or give latent_dim"
        )


def check_known(value: object, names: dict, kind: type, argument: str, what: str) -> None:
    """Refuses what is neither one of the names nor of the kind, and says what would be."""
    if isinstance(value, kind) or (isinstance(value, str) and value in names):
        return
    if isinstance(value, type) and issubclass(value, kind):
        raise DataError(f"{argument}={value.__name__} is a class: call it, {value.__name__}()")
    known = f"one of {listed(sorted(names))}, or " if names else ""
    raise DataError(f"{argument}={value!r} is not known: give {known}{what}")
