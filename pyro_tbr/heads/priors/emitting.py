"""Draws of a guide as Pyro sites."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.heads.priors.classes import Values


def emit_sites(
    prior: Any, values: Values, draws: dict[str, Tensor], density: Tensor, informed: Tensor
) -> None:
    """Sites of root weights and changes, of one joint draw.

    Args:
        prior: The built prior.
        values: Of its hyperparameters, by site name.
        draws: Root weights (1, W, Q), deltas and maybe gates (1, A, W, Q).
        density: Their log q, which goes to ``root_weights``.
        informed: Arcs with rows below, (A,) bool; the others are drawn from the prior.
    """
    density = density.to(draws["root_weights"])
    root = dist.Delta(draws["root_weights"][0], log_density=density, event_dim=2)
    pyro.sample("root_weights", root)
    # What the draws do not say has the prior, which cancels.
    laws, known = prior.site_laws(values), informed.reshape(-1, 1, 1)
    deltas = draws["deltas"][0]
    if not prior.gated:
        _emit("deltas", laws["deltas"], deltas, known)
        return
    gates = _emit("gates", laws["gates"], draws["gates"][0], known)
    _emit("slab", laws["slab"], deltas, known & (gates > 0))
    if "spike" in laws:
        own = known & prior.may_change() & (gates == 0)
        _emit("spike", laws["spike"], deltas, own)


def _emit(name: str, law: dist.TorchDistribution, ours: Tensor, own: Tensor) -> Tensor:
    """A site with our value, whose density is accounted for elsewhere, or else the prior's."""
    value = torch.where(own, ours, law.sample())
    # Outcomes that are one event have rows on the same arcs.
    one = own[..., 0] if law.event_shape else own
    density = torch.where(one, 0.0, law.log_prob(value)).sum()
    return pyro.sample(name, dist.Delta(value, log_density=density, event_dim=value.dim()))
