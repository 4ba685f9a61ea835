r"""What the rows of a node say of one weight, the node's other weights being uncertain too.

Given all weights :math:`u` of a node and outcome, its rows are a Gaussian
:math:`\exp(b'u - u'Pu/2)`. A tree guide needs of it a potential for each weight alone:

- *mean field*: the others at their means. The precision is then :math:`P_{kk}`, as if the others
  were known: where latents correlate within an environment, or have a mean there, so that slopes
  and intercept do the same, that is far too sure.
- *expectation propagation*: the others integrated over what their own trees say without these rows
  (their cavity). Means are then those of the joint posterior where all is Gaussian, and variances
  nearly so.

Where the noise of outcomes goes together the weights of all outcomes are judged together, and
errors that their cavities share (``shared_errors``) are taken into account.

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
_LEAST_OWN = 1e-9  # share of a cavity's variance that it does not share


class Potential(NamedTuple):
    """``exp(eta u - lam u^2 / 2)`` at nodes, outcomes and maybe weights, (E, Q, ...)."""

    eta: Tensor
    lam: Tensor


def scaled_inverse(matrix: Tensor) -> Tensor:
    """Inverses of (..., P, P) positive definite matrices whose diagonals may differ by magnitudes.

    As those of outcomes do, one of which has next to no noise.
    """
    scale = matrix.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).rsqrt()
    unit = scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
    return scale.unsqueeze(-1) * torch.linalg.inv(unit) * scale.unsqueeze(-2)


class NodeRows(NamedTuple):
    """Likelihood of the weights at each node, of each outcome alone or of all together.

    P weights are judged together in each of G groups: those of an outcome, G = Q and P = W, or, as
    where the noise of outcomes goes together, those of all, G = 1 and P = Q W. What methods take
    and return is (E, Q, W) in either case. In messages there are also those of a latent, G = W and
    P = Q.

    Attributes:
        precision: P, (E, G, P, P).
        linear: b, (E, G, P).
        square: What the rows say at weights of zero: minus twice the log likelihood, up to what
            depends on the noise alone, (E, G).
        num_outcomes: Q.
    """

    precision: Tensor
    linear: Tensor
    square: Tensor
    num_outcomes: int

    @property
    def together(self) -> bool:
        """Weights of all outcomes are judged together."""
        return self.linear.shape[1] < self.num_outcomes

    @classmethod
    def of(cls, stats: Statistics, noise_precision: Tensor) -> NodeRows:
        """Of each outcome alone, from statistics and the precision of the noise, (E, Q)."""
        gram = stats.gram.expand(*stats.cross.shape, -1)
        scale = noise_precision[..., None]
        square = noise_precision * stats.square
        return cls(scale[..., None] * gram, scale * stats.cross, square, stats.cross.shape[1])

    @classmethod
    def of_all(cls, stats: Statistics, precision: Tensor) -> NodeRows:
        """Of all outcomes together, by the precision (M, Q, Q) of the noise of ``stats.joint``."""
        assert stats.joint is not None
        whole, linear, square = (
            part.unsqueeze(1) for part in stats.joint.at_nodes(stats.nodes, precision)
        )
        return cls(whole, linear, square, stats.cross.shape[1])

    @classmethod
    def apart(cls, potentials: Potential) -> NodeRows:
        """Of every weight alone, as the trees were told, (E, Q, W) each."""
        eta, lam = (part.flatten(1).unsqueeze(-1) for part in potentials)
        return cls(lam.unsqueeze(-1), eta, torch.zeros_like(eta[..., 0]), potentials.lam.shape[1])

    def groups(self, some: slice) -> NodeRows:
        """Of some groups alone."""
        parts = self.precision[:, some], self.linear[:, some], self.square[:, some]
        return NodeRows(*parts, self.num_outcomes)

    def steadied(self, share: float) -> NodeRows:
        """With precisions that can be inverted, though weights do the same: the diagonal larger."""
        more = torch.diag_embed(share * self._diagonal())
        return self._replace(precision=self.precision + more)

    def given_means(self, mean: Tensor) -> Potential:
        """Of every weight with the others at their means, (E, Q, W) each."""
        diagonal, mean = self._diagonal(), mean.reshape(self.linear.shape)
        others = (self.precision @ mean.unsqueeze(-1)).squeeze(-1) - diagonal * mean
        return self._apart(Potential(self.linear - others, diagonal))

    def given_cavities(self, cavity: Potential, shared: Tensor | None = None) -> Potential:
        """Of every weight with the others integrated over their cavities, (E, Q, W) each.

        Errors of cavities are independent but for ``shared``, covariances (E, G, P, P) that their
        variances are at least.
        """
        precision, linear = self._known(cavity, shared)
        cov, own = scaled_inverse(self.precision + precision), self._together(cavity)
        mean = (cov @ (self.linear + linear).unsqueeze(-1)).squeeze(-1)
        alone = 1 / cov.diagonal(dim1=-2, dim2=-1)
        eta, lam = alone * mean - own.eta, alone - own.lam
        return self._apart(Potential(eta, lam.clamp(min=0)))

    def by_latent(self, cavity: Potential, shared: Tensor | None = None) -> NodeRows:
        """What rows say of each latent's weights for all outcomes, G = W and P = Q.

        Those of the other latents are integrated over their cavities, as in
        :meth:`given_cavities`, but the outcomes of a latent are left as they go together.
        """
        known = self._known(cavity, shared)[0]
        number = self.num_outcomes
        shape = (len(known), number, known.shape[-1] // number)
        own, cov = (
            part.reshape(*shape, *shape[1:]).diagonal(dim1=2, dim2=4).permute(0, 3, 1, 2)
            for part in (known, scaled_inverse(self.precision + known))
        )
        precision = scaled_inverse(cov) - own
        values, axes = torch.linalg.eigh(0.5 * (precision + precision.mT))
        precision = (axes * values.clamp(min=0).unsqueeze(-2)) @ axes.mT
        linear = precision.new_zeros(precision.shape[:-1])
        return NodeRows(precision, linear, linear[..., 0], self.num_outcomes)

    def cavity(self, mean: Tensor, var: Tensor, own: Potential) -> Potential:
        """What all else says of each weight, from its posterior moments and its own potential."""
        diagonal = self._diagonal().reshape(mean.shape)
        lam = (1 / var - own.lam).clamp(_LEAST * diagonal + 1e-12, _MOST * diagonal + 1.0)
        return Potential(mean * (lam + own.lam) - own.eta, lam)

    def joint_cov(self, cavity: Potential, shared: Tensor | None = None) -> Tensor:
        """Covariance of the weights of a group by rows and cavities together, (E, G, P, P)."""
        return scaled_inverse(self.precision + self._known(cavity, shared)[0])

    def _known(self, cavity: Potential, shared: Tensor | None) -> tuple[Tensor, Tensor]:
        """What cavities say of the weights of a group, (E, G, P, P) and (E, G, P)."""
        eta, lam = self._together(cavity)
        if shared is None:
            return torch.diag_embed(lam), eta
        var, least = 1 / lam, shared.diagonal(dim1=-2, dim2=-1)
        scale = (var / least).clamp(max=1.0).sqrt()
        shared = scale.unsqueeze(-1) * shared * scale.unsqueeze(-2)
        rest = torch.maximum(var - shared.diagonal(dim1=-2, dim2=-1), _LEAST_OWN * var)
        precision = scaled_inverse(shared + torch.diag_embed(rest))
        return precision, (precision @ (eta * var).unsqueeze(-1)).squeeze(-1)

    def misfit(self, mean: Tensor, cov: Tensor) -> Tensor:
        """Expectation of what ``square`` is at weights of zero, (E, G).

        Args:
            mean: Of the weights, (E, Q, W).
            cov: Their covariances, (E, G, P, P).
        """
        mean = mean.reshape(self.linear.shape)
        pulled = (self.precision @ mean.unsqueeze(-1)).squeeze(-1)
        at_mean = self.square + ((pulled - 2 * self.linear) * mean).sum(-1)
        return at_mean.clamp(min=0) + (self.precision * cov).sum((-1, -2)).clamp(min=0)

    def _diagonal(self) -> Tensor:
        return self.precision.diagonal(dim1=-2, dim2=-1)

    def _together(self, each: Potential) -> Potential:
        """Of (E, Q, W) as groups have it, (E, G, P)."""
        return Potential(*(part.reshape(self.linear.shape) for part in each))

    def _apart(self, each: Potential) -> Potential:
        """The other way round."""
        return Potential(*(part.reshape(len(part), self.num_outcomes, -1) for part in each))


def by_outcome(cov: Tensor, num_outcomes: int) -> Tensor:
    """Of covariances (E, G, P, P) those of each outcome's weights, (E, Q, W, W)."""
    if cov.shape[1] == num_outcomes:
        return cov
    width = cov.shape[-1] // num_outcomes
    parts = cov.reshape(len(cov), num_outcomes, width, num_outcomes, width)
    return parts.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
