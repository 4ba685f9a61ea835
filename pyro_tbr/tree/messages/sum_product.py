"""Names of the passes by keyword, for callers that do not state a law yet.

New code states an :class:`ArcLaw` and calls what ``pyro_tbr.tree.messages`` offers. This file goes
as soon as its last caller does.
"""

import torch
from torch import Tensor

from pyro_tbr.tree.messages.draws import sample
from pyro_tbr.tree.messages.gaussian import smooth_gaussian
from pyro_tbr.tree.messages.inside import InsideMessages
from pyro_tbr.tree.messages.inside import inside_pass as pass_inside
from pyro_tbr.tree.messages.laws import ArcLaw
from pyro_tbr.tree.messages.outside import TreePosterior, outside_pass
from pyro_tbr.tree.tree import Tree

__all__ = [
    "InsideMessages",
    "TreePosterior",
    "gaussian_inside_pass",
    "gaussian_smoothing",
    "inside_pass",
    "mixture_inside_pass",
    "outside_pass",
    "sample",
]


def inside_pass(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    *,
    inclusion_prob: Tensor | float,
    slab_scale: Tensor | float,
    slab_loc: Tensor | float | None = None,
    spike_scale: Tensor | float = 0.0,
    root_scale: Tensor | float,
    root_loc: Tensor | float = 0.0,
    num_components: int | None = 32,
    sweeps: int = 1,
) -> InsideMessages:
    """The inside pass under ``ArcLaw.spike_slab``; scales without a dimension of arcs are (*B)."""

    def by_arc(value: Tensor | float) -> Tensor:
        value = torch.as_tensor(value, dtype=torch.float64)
        return value.unsqueeze(-1) if value.dim() < eta.dim() else value

    loc = None if slab_loc is None else by_arc(slab_loc)
    law = ArcLaw.spike_slab(inclusion_prob, by_arc(slab_scale), loc, by_arc(spike_scale))
    return pass_inside(tree, eta, lam, law, root_loc, root_scale, num_components, sweeps)


def mixture_inside_pass(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    *,
    class_prob: Tensor,
    class_var: Tensor,
    root_scale: Tensor | float,
    root_loc: Tensor | float = 0.0,
    num_components: int | None = 32,
    sweeps: int = 1,
) -> InsideMessages:
    """The inside pass under ``ArcLaw.of(class_prob, 0.0, class_var)``."""
    law = ArcLaw.of(class_prob, 0.0, class_var)
    return pass_inside(tree, eta, lam, law, root_loc, root_scale, num_components, sweeps)


def gaussian_inside_pass(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    *,
    delta_var: Tensor | float,
    root_scale: Tensor | float,
    root_loc: Tensor | float = 0.0,
) -> InsideMessages:
    """The inside pass under a law of one class with variances (*B, A)."""
    law = ArcLaw.of(1.0, 0.0, torch.as_tensor(delta_var, dtype=torch.float64).unsqueeze(-1))
    return pass_inside(tree, eta, lam, law, root_loc, root_scale, None)


def gaussian_smoothing(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    *,
    delta_var: Tensor | float,
    root_scale: Tensor | float,
    root_loc: Tensor | float = 0.0,
) -> TreePosterior:
    """The closed form under a law of one class with variances (*B, A)."""
    law = ArcLaw.of(1.0, 0.0, torch.as_tensor(delta_var, dtype=torch.float64).unsqueeze(-1))
    return smooth_gaussian(tree, eta, lam, law, root_loc, root_scale)
