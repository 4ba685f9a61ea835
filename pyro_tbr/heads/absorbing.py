r"""What of a latent's weights others can take up: one that only echoes others is not needed.

If latent j becomes :math:`z_j + b_j z_k`, the weights of latent k become
:math:`w_k - \sum_j b_j w_j` and all else stays. So weights that are multiples of other latents' at
every node say that these point a little elsewhere, not that there is one latent more.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-12  # of the largest eigenvalue: below it weights of latents are multiples of others'


def taken_up(linear: Tensor, precision: Tensor, others: Tensor) -> Tensor:
    """Of a latent's weights the part that multiples of others' make up best.

    Args:
        linear: Slope at zero of the rows' log likelihood in the latent's weights, (*B).
        precision: Its curvature there, (*B).
        others: Weights of the others, (*B, J).

    Returns:
        The part, (*B).
    """
    design, eta, lam = (part.double() for part in (others, linear, precision))
    flat, weight = design.reshape(-1, design.shape[-1]), lam.reshape(-1, 1)
    gram = flat.T @ (weight * flat)
    share = torch.linalg.pinv(gram, hermitian=True, rtol=_LEAST) @ (flat.T @ eta.reshape(-1))
    return design @ share
