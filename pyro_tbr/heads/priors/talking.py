"""Trees that tell each other of their gates, by belief propagation.

Where gates hang together each tree is exact by itself, at inclusion probabilities that say what the
others have found. What a tree says of a gate is a Bayes factor: of open against closed, by its own
rows and with other arcs as they may be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_tbr.heads.priors.factor import PriorFactor
from pyro_tbr.tree.messages import ArcLaw, TreePosterior

LEAST_RATE, REST = 1e-100, 1e-12  # of a rate that a tree takes, and of what is left to 1
MOST = 60.0  # log Bayes factor of one gate
LEAST = 1e-300


class TalkingTrees(PriorFactor):
    """What such factors share; abstract.

    Attributes:
        log_bayes: Log Bayes factors of open gates by each tree's own rows, (A, W, Q) double.
    """

    log_bayes: Tensor
    trees_apart = False

    def __init__(self, prior: Any) -> None:
        super().__init__(prior)
        self.register_buffer("log_bayes", torch.zeros(prior.delta_shape, dtype=torch.float64))

    def rates(self, log_bayes: Tensor | None = None) -> Tensor:
        """Inclusion probabilities that the trees take, (A, W, Q), by what the others say.

        ``log_bayes`` is by default what they have said.
        """
        raise NotImplementedError

    def said(self, now: TreePosterior, rates: Tensor, informed: Tensor) -> Tensor:
        """Log Bayes factors (A, W, Q) by passes that had these rates."""
        prob = now.class_prob.movedim(-2, 0)
        open_, closed = prob[..., 1:].sum(-1), prob[..., 0]
        found = open_.clamp(min=LEAST).log() - closed.clamp(min=LEAST).log()
        found = (found - torch.logit(rates, eps=0.0)).clamp(-MOST, MOST)
        known = informed.reshape(-1, 1, 1) & self.prior.may_change()
        return torch.where(known, found, 0.0)

    @torch.no_grad()
    def exchange(self, now: TreePosterior, informed: Tensor, step: float) -> Tensor:
        """See :meth:`PriorFactor.exchange`."""
        before = self.rates()
        said = self.said(now, before, informed)
        moves = (self.rates(said) - before).abs()
        self.log_bayes.copy_(torch.lerp(self.log_bayes, said.to(self.log_bayes), step))
        return moves.amax(0).T

    def arc_law(self, weights: slice = slice(None)) -> ArcLaw:
        """See :meth:`PriorFactor.arc_law`; rates are by arc and tree."""
        law = super().arc_law(weights)
        return with_rates(law, self.rates()[:, weights].permute(1, 2, 0))


def with_rates(law: ArcLaw, rates: Tensor) -> ArcLaw:
    """A law of changes whose gates are open with these probabilities, (w, q, A)."""
    total = law.prob[..., 1:].sum(-1, keepdim=True)
    share = law.prob[..., 1:] / torch.where(total > 0, total, 1.0)
    rates = rates.unsqueeze(-1)
    share = share.expand(*rates.shape[:-1], share.shape[-1])
    return ArcLaw.of(torch.cat([1 - rates, rates * share], -1), law.mean, law.var, gated=True)
