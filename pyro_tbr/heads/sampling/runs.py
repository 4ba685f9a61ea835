"""Chains from start to end: warm-up, what is kept of them, and the guide that holds it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.priors import ArcPrior, GaussianPrior, SpikeSlabPrior
from pyro_tbr.heads.sampling.chains import Chains
from pyro_tbr.heads.sampling.hyper_steps import ChainState
from pyro_tbr.heads.sampling.sampled_guide import SampledGuide
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.progress import step

SUPPORTED_PRIORS: tuple[type[ArcPrior], ...] = (SpikeSlabPrior, GaussianPrior)
_MOST_ELEMENTS = 50_000_000  # of the changes of all draws that are kept


@torch.no_grad()
def run_chains(
    guide: Guide, stats: Statistics, *, num_chains: int, num_sweeps: int, seed: int
) -> SampledGuide:
    """Draws from the posterior of everything but the encoder.

    Args:
        guide: A fitted guide whose prior is one of ``SUPPORTED_PRIORS``, likelihood Gaussian.
        stats: Statistics of the rows it was fitted to.
        num_chains: C.
        num_sweeps: Of each chain; the first half is warm-up and not kept. Of the rest every one,
            or every so many where all would take gigabytes.
        seed: Of all draws.
    """
    generator = Generator().manual_seed(seed)
    chains = Chains(guide, stats, num_chains, generator)
    warm_up = num_sweeps // 2
    each = num_chains * chains.state.deltas[0].numel()
    thin = max(1, -(-(num_sweeps - warm_up) * each // _MOST_ELEMENTS))
    kept: list[dict[str, Tensor]] = []
    inclusion = torch.zeros(guide.head.prior.delta_shape, dtype=torch.float64)
    dtype = guide.head.prior.root_loc.dtype
    for sweep, state in zip(range(num_sweeps), chains, strict=False):
        step(note="warm-up" if sweep < warm_up else "", unit="sweep")
        if sweep < warm_up:
            continue
        inclusion += state.inclusion.mean(0).permute(1, 2, 0)
        if (sweep - warm_up) % thin == 0:
            kept.append(_sites(state, guide.has_gates, dtype))
    draws = {name: torch.stack([one[name] for one in kept], 1) for name in kept[0]}
    device = guide.informed_arcs.device
    found = SampledGuide(guide.head, _nodes(guide), num_chains=num_chains, num_draws=len(kept)).to(
        device
    )
    inclusion = inclusion / (num_sweeps - warm_up)
    moved = {name: part.to(device) for name, part in draws.items()}
    found.hold(moved, inclusion.to(device) if guide.has_gates else None, generator)
    return found


def _sites(state: ChainState, gated: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of what a draw is, (C, *shape) by site."""
    draws = {
        "root_weights": state.nodes[:, :, 0].transpose(1, 2),
        "deltas": state.deltas.permute(0, 2, 3, 1),
        **state.values,
    }
    # The activity of arcs is no site of the model.
    draws = {name: p.to(dtype, copy=True) for name, p in draws.items() if name != "active"}
    if gated:
        draws["gates"] = (state.classes > 0).permute(0, 2, 3, 1).clone()
    return draws


def _nodes(guide: Guide) -> Tensor:
    """Nodes with rows below, or with rows: all that a guide keeps of where rows are."""
    return torch.cat([torch.zeros(1, dtype=torch.bool), guide.informed_arcs.cpu()])
