"""The passes for changes with gates, their law by keyword; scales are by batch or by arc."""

import torch

from pyro_tbr.tree.messages import ArcLaw, inside_pass, outside_pass


def gated_inside(
    tree,
    eta,
    lam,
    *,
    inclusion_prob,
    slab_scale,
    slab_loc=None,
    spike_scale=0.0,
    root_scale,
    root_loc=0.0,
    num_components=32,
    sweeps=1,
):
    """The inside pass; scales without a dimension for arcs are (*B)."""

    def by_arc(value):
        value = torch.as_tensor(value, dtype=torch.float64)
        return value.unsqueeze(-1) if value.dim() < eta.dim() else value

    loc = None if slab_loc is None else by_arc(slab_loc)
    law = ArcLaw.spike_slab(inclusion_prob, by_arc(slab_scale), loc, by_arc(spike_scale))
    return inside_pass(tree, eta, lam, law, root_loc, root_scale, num_components, sweeps)


def smooth_gated(tree, eta, lam, **law):
    """Both passes."""
    return outside_pass(tree, gated_inside(tree, eta, lam, **law))
