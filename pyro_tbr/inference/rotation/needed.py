"""How many of the latents the outcomes need: the rest is left out of the rotation.

Where more latents are fitted than there are, some mixture of them has weights near zero at every
environment. A search for sparse changes cannot tell what such a mixture should be: it may take the
same empty direction twice, each time with a little of a true latent, and a true latent's direction
is free in as many dimensions as are empty. So latents are ordered by how much hangs on them at the
environments, and the last ones are dropped as long as the evidence of weights that may change on
every arc, which any basis has alike, grows by that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tbr.heads import GaussianPrior, Head, Statistics
from pyro_tbr.inference.encoder.directions import dense_guide, ordered_axes
from pyro_tbr.inference.rotation.search import expand_basis

# Log evidence that dropping a latent has to gain. One that nothing hangs on costs its prior, 9 to
# 15; one that is dropped wrongly loses from 20 on (hard world, 2 to 5 latents).
_GAIN = 3.0
_SWEEPS = 10  # of weights that are only compared


@torch.no_grad()
def needed_axes(head: Head, nodes: Tensor, stats: Statistics, weights: Tensor) -> Tensor:
    """Directions (K, r) of white latents that the outcomes hang on, most first, orthonormal.

    Args:
        head: Of K latents.
        nodes: Nodes that have rows, (V,) bool.
        stats: Of the white latents, flattened.
        weights: Dense ones at the nodes with rows, (E, W, Q).
    """
    k = head.num_latents
    axes = ordered_axes(weights[:, :k].double(), stats.count)
    kept, best = k, _evidence(head, nodes, stats, axes)
    while kept > 1:
        without = _evidence(head, nodes, stats, axes[:, : kept - 1])
        if without < best + _GAIN:
            break
        kept, best = kept - 1, without
    return axes[:, :kept]


def _evidence(head: Head, nodes: Tensor, stats: Statistics, axes: Tensor) -> float:
    """ELBO of dense weights of the latents along some axes (K, r)."""
    rank = axes.shape[1]
    guide = dense_guide(head.with_prior(GaussianPrior(), rank), nodes)
    along = stats.transform(expand_basis(axes, axes.new_zeros(rank), guide.head.num_weights))
    guide.update(along, sweeps=_SWEEPS)
    return guide.elbo(along).item()
