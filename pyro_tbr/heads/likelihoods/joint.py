"""Normal outcomes of which those of a row go together, whatever makes them."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.data.known import Known
from pyro_tbr.data.numbers import refuse_cells
from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.heads.hyper import HyperFactors
from pyro_tbr.heads.joint_sums import JointSums
from pyro_tbr.heads.likelihoods.correlation import JointNormal, RowNormal
from pyro_tbr.heads.likelihoods.expectations import Nuisance
from pyro_tbr.heads.likelihoods.normal import NormalLikelihood
from pyro_tbr.heads.moments import NodeMoments


class JointResiduals(NamedTuple):
    """Expected residuals of rows whose noise goes together, double precision.

    Attributes:
        square: Squares, summed over the rows of each node, (E, Q).
        count: Numbers of observed outcomes, (E, Q).
        nodes: Which nodes, (E,).
        sums: Of the rows, by node and pattern.
        outer: Sums of products, (M, Q, Q), see :meth:`JointSums.residuals`.
    """

    square: Tensor
    count: Tensor  # type: ignore[assignment]
    nodes: Tensor
    sums: JointSums
    outer: Tensor


class JointNormalLikelihood(NormalLikelihood):
    """Normal outcomes around their predictors, by noise that goes together within a row; abstract.

    Guides that are exact along the tree take it; weights of different outcomes are coupled by
    expectation propagation, as latents are, and what their trees have heard of each other twice is
    taken back (``shared_errors``). That takes memory for ``V Q^2 W^2`` numbers, with V nodes.
    Encoder and latents are found with each outcome alone.

    Attributes:
        because: What a user has given for it, for messages.
        instead: What to do for outcomes each of which is alone.
    """

    abstract = True
    correlated = True
    because: str
    instead: str

    def apart(self) -> NormalLikelihood:
        """See :meth:`Likelihood.apart`."""
        raise NotImplementedError

    def observed(self, y: Outcomes, known: Known) -> Tensor:
        """See :meth:`Support.observed`; the outcomes that a row has observed count alike."""
        found = super().observed(y, known)
        if known.weights is not None:
            weights = known.weights.numpy()
            counted = np.where(~torch.isnan(found).numpy(), weights, 0.0)
            most = counted.max(1, keepdims=True)
            what = "value(s) unlike those of the row's other outcomes"
            remedy = f"with {self.because} give one weight a row, or {self.instead}"
            bad = (counted > 0) & (counted != most)
            refuse_cells("row_weights", weights, bad, what, remedy, y.names, y.index)
        return found

    def joint(self, outcome: dist.TorchDistribution, seen: Tensor) -> dist.TorchDistribution:
        """See :meth:`Likelihood.joint`."""
        return JointNormal(cast(RowNormal, outcome), seen)

    def expected_log_prob(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """Closed form; the parts of the outcomes of a row sum to what the row says."""
        seen = ~torch.isnan(y)
        precision, log_norm = self.noise_terms(nuisance, seen, like=mean)
        residual = torch.where(seen, self.filled(y) - mean, 0.0)
        pulled = (precision @ residual.unsqueeze(-1)).squeeze(-1)
        square = residual * pulled + precision.diagonal(dim1=-2, dim2=-1) * var
        number = seen.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(seen, log_norm.unsqueeze(-1) / number - 0.5 * square, 0.0)

    def noise_terms(
        self, nuisance: Nuisance, seen: Tensor, *, like: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Expected precision of the noise of what was observed, and log density at the mean.

        Args:
            nuisance: Factors as rows see them.
            seen: Which outcomes were observed, (n, Q) bool.
            like: In whose dtype; by default double.

        Returns:
            (n, Q, Q), zero for what was not observed, and (n,).
        """
        raise NotImplementedError

    def learn_from_joint(
        self,
        nuisance: HyperFactors,
        residuals: JointResiduals,
        moments: NodeMoments,
        *,
        common: bool = True,
    ) -> None:
        """Moves q of its parameters towards the optimum given the residuals of rows.

        Args:
            nuisance: Factors by site name; changed.
            residuals: Of the rows.
            moments: Of the weights at every node.
            common: Move what nodes share too, not only what is a node's own.
        """
        raise NotImplementedError
