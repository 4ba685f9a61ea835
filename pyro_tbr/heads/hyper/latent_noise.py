"""Standard deviations of the latents' noise, and what their noise does to outcomes at each node."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.hyper.scales import PositiveScale, ScaleFactor
from pyro_tbr.heads.moments import NodeMoments

# In standard deviations of a latent. Wide: 0.01 or 4 cost some 2 nats.
_MEDIAN, _SPREAD = 0.2, 1.5


class LatentNoise(PositiveScale):
    """Standard deviations of the noise of each latent, (K,).

    Args:
        name: The Pyro site.
        fixed: As of :class:`PositiveScale`, in the model's units.
        num_latents: K.
        num_nodes: V, of the tree.
        num_outcomes: Q.
    """

    def __init__(
        self, name: str, fixed: Tensor | None, num_latents: int, num_nodes: int, num_outcomes: int
    ) -> None:
        super().__init__(name, (num_latents,), fixed, median=_MEDIAN, spread=_SPREAD, unit="latent")
        self.num_nodes, self.num_outcomes = num_nodes, num_outcomes

    def factor(self) -> LatentNoiseFactor:
        """See :meth:`Hyperparameter.factor`."""
        return LatentNoiseFactor(self)


class LatentNoiseFactor(ScaleFactor):
    r"""Log-normal q of the standard deviations :math:`\omega_k`.

    Attributes:
        scatter: Expected covariance of what the latents' noise adds to the outcomes of a row,
            :math:`E[W_v' \mathrm{diag}(\omega^2) W_v]`, at the weights it was last told of,
            (V, Q, Q) double.
        exists: Latents that are not the same everywhere, (K,) bool; others have no noise.
    """

    scatter: Tensor
    exists: Tensor

    def __init__(self, hyper: LatentNoise) -> None:
        super().__init__(hyper)
        shape = hyper.num_nodes, hyper.num_outcomes, hyper.num_outcomes
        self.register_buffer("scatter", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("exists", torch.ones(hyper.shape, dtype=torch.bool))

    def mean_square(self) -> Tensor:
        """E[omega^2], (K,) double; 0 for latents that do not exist."""
        return torch.where(self.exists, self.mean_power(2.0).double(), 0.0)

    def scatter_of(self, moments: NodeMoments) -> Tensor:
        """What ``scatter`` is at nodes whose weights have these moments, (n, Q, Q) double."""
        square, num_latents = self.mean_square(), len(self.exists)
        mean, var = (part[:, :num_latents].double() for part in moments)
        outer = torch.einsum("k,nkq,nkr->nqr", square.to(mean), mean, mean)
        return outer + torch.diag_embed(torch.einsum("k,nkq->nq", square.to(mean), var))

    @torch.no_grad()
    def hold(self, moments: NodeMoments) -> None:
        """Takes ``scatter`` at the weights of all nodes, (V, W, Q) each."""
        self.scatter.copy_(self.scatter_of(moments))

    def sample(self, num_samples: int, generator: Generator) -> Tensor:
        """See :meth:`HyperFactor.sample`; 0 for latents that do not exist."""
        return super().sample(num_samples, generator) * self.exists
