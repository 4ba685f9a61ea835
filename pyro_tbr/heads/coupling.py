r"""What the rows of a node say of one weight, the node's other weights being uncertain too.

Given all weights :math:`u` of a node and outcome, its rows are a Gaussian
:math:`\exp(b'u - u'Pu/2)`. A tree guide needs of it a potential for each weight alone:

- *mean field*: the others at their means. The precision is then :math:`P_{kk}`, as if the others
  were known: where latents correlate within an environment, or have a mean there, so that slopes
  and intercept do the same, that is far too sure.
- *expectation propagation*: the others integrated over what their own trees say without these rows
  (their cavity). Means are then those of the joint posterior where all is Gaussian, and variances
  nearly so.

Source:
    Minka, UAI 2001, "Expectation propagation for approximate Bayesian inference".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.statistics import Statistics

_LEAST = 1e-6  # precision of a cavity over that of the rows: below it nothing is known,
_MOST = 1e10  # above it everything, and differences of precisions keep six digits


class Potential(NamedTuple):
    """``exp(eta u - lam u^2 / 2)`` at nodes, outcomes and maybe weights, (E, Q, ...)."""

    eta: Tensor
    lam: Tensor


class NodeRows(NamedTuple):
    """Likelihood of the weights at each node and outcome.

    Attributes:
        precision: P, (E, Q, W, W).
        linear: b, (E, Q, W).
    """

    precision: Tensor
    linear: Tensor

    @classmethod
    def of(cls, stats: Statistics, noise_precision: Tensor) -> NodeRows:
        """From statistics and the precision of the noise, (E, Q)."""
        gram = stats.gram.expand(*stats.cross.shape, -1)
        scale = noise_precision[..., None]
        return cls(scale[..., None] * gram, scale * stats.cross)

    def given_means(self, mean: Tensor) -> Potential:
        """Of every weight with the others at their means, (E, Q, W) each."""
        diagonal = self.precision.diagonal(dim1=-2, dim2=-1)
        others = (self.precision @ mean.unsqueeze(-1)).squeeze(-1) - diagonal * mean
        return Potential(self.linear - others, diagonal)

    def given_cavities(self, cavity: Potential) -> Potential:
        """Of every weight with the others integrated over their cavities, (E, Q, W) each."""
        cov = self.joint_cov(cavity)
        precision = 1 / cov.diagonal(dim1=-2, dim2=-1)
        mean = (cov @ (self.linear + cavity.eta).unsqueeze(-1)).squeeze(-1)
        eta, lam = precision * mean - cavity.eta, precision - cavity.lam
        return Potential(eta, lam.clamp(min=0))

    def cavity(self, mean: Tensor, var: Tensor, own: Potential) -> Potential:
        """What all else says of each weight, from its posterior moments and its own potential."""
        diagonal = self.precision.diagonal(dim1=-2, dim2=-1)
        lam = (1 / var - own.lam).clamp(_LEAST * diagonal + 1e-12, _MOST * diagonal + 1.0)
        return Potential(mean * (lam + own.lam) - own.eta, lam)

    def joint_cov(self, cavity: Potential) -> Tensor:
        """Covariance of a node's weights by rows and cavities together, (E, Q, W, W)."""
        return torch.linalg.inv(self.precision + torch.diag_embed(cavity.lam))
