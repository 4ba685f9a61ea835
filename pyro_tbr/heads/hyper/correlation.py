"""A correlation matrix, by its Cholesky factor, and a point for it in q."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Generator, Tensor, nn

from pyro_tbr.heads.hyper.base import FactorState, HyperFactor, Hyperparameter

_CONCENTRATION = 1.0  # of the hyperprior: every correlation matrix alike


class CorrelationCholesky(Hyperparameter):
    """The lower triangular L of a correlation matrix L L' of Q things, (Q, Q), under an LKJ prior.

    Source:
        Lewandowski, Kurowicka & Joe, Journal of Multivariate Analysis 100 (2009) 1989.
    """

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name, (size, size), None)

    def prior(self) -> dist.TorchDistribution:
        """See :meth:`Hyperparameter.prior`."""
        return dist.LKJCholesky(self.shape[0], _CONCENTRATION)

    def middle(self) -> Tensor:
        """No correlations."""
        return torch.eye(self.shape[0])

    def factor(self) -> CorrelationFactor:
        """See :meth:`Hyperparameter.factor`."""
        return CorrelationFactor(self)


class CorrelationFactor(HyperFactor):
    """A point in place of a distribution: rows are many, and a matrix has no closed form.

    Attributes:
        cholesky: L, (Q, Q) double.
    """

    cholesky: Tensor

    def __init__(self, hyper: CorrelationCholesky) -> None:
        nn.Module.__init__(self)
        self._hyper = (hyper,)
        self.register_buffer("cholesky", hyper.middle().double())

    @property
    def learnt(self) -> bool:
        """There is no normal on the real line to be moved; :meth:`hold` moves the point."""
        return False

    @property
    def correlation(self) -> Tensor:
        """L L', (Q, Q) double."""
        return self.cholesky @ self.cholesky.mT

    @torch.no_grad()
    def hold(self, correlation: Tensor) -> None:
        """Takes another correlation matrix, (Q, Q)."""
        self.cholesky.copy_(torch.linalg.cholesky(correlation.double()))

    def _place(self) -> FactorState:
        return FactorState(self.cholesky, torch.full_like(self.cholesky, -torch.inf))

    @torch.no_grad()
    def restore(self, state: FactorState) -> None:
        """See :meth:`HyperFactor.restore`."""
        self.cholesky.copy_(state.loc)

    def at(self, standard: Tensor) -> Tensor:
        """See :meth:`HyperFactor.at`: the point, wherever."""
        return self.cholesky.expand(torch.broadcast_shapes(standard.shape, self.hyper.shape))

    def forward(self) -> Tensor:
        """The Pyro site in a guide."""
        like = torch.get_default_dtype()
        return pyro.sample(self.hyper.site, dist.Delta(self.cholesky.to(like), event_dim=2))

    def sample(self, num_samples: int, generator: Generator) -> Tensor:
        """See :meth:`HyperFactor.sample`."""
        del generator
        return self.cholesky.expand(num_samples, *self.hyper.shape).to(torch.get_default_dtype())

    def kl(self) -> Tensor:
        """Minus the log density of the hyperprior, (): a point has no entropy of its own."""
        found = self.hyper.prior().log_prob(self.cholesky.cpu())  # which it only takes there
        return -found.to(self.cholesky)
