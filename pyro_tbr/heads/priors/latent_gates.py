r"""Gates that the functions of a latent share: along an arc all of their weights change, or none.

Each function's changes are exact along its tree, and the trees of a latent talk (``talking``): with
:math:`B_m` the Bayes factors of the others and :math:`\pi` the prior's probability, the tree of
function m takes the rate

.. math::
    r_m = \sigma\Big(\log \frac{\pi}{1 - \pi} + \sum_{p \ne m} \log B_p\Big)

and the log evidence is Bethe's: that of the trees at these rates, and for each arc
:math:`\log(1 - \pi + \pi \prod_m B_m) - \sum_m \log(1 - r_m + r_m B_m)`. All this is exact where a
latent has one uncertain arc; where it has several there are loops.

Source:
    Yedidia, Freeman & Weiss, IEEE Transactions on Information Theory 51 (2005) 2282.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import pyro.distributions as dist
import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints

from pyro_tbr.errors import DataError
from pyro_tbr.heads.priors.gates import zero_or_one
from pyro_tbr.heads.priors.pairing import matched
from pyro_tbr.heads.priors.spike_slab_factor import SpikeSlabFactor
from pyro_tbr.heads.priors.talking import LEAST, LEAST_RATE, REST, TalkingTrees
from pyro_tbr.tree import Tree
from pyro_tbr.tree.messages import InsideMessages, TreePosterior


class GateGroups(NamedTuple):
    """Which gates of an arc are one.

    Attributes:
        latent: Of which latent each weight is, (W,) int64, the first weight of each in their order.
        number: How many latents there are, the intercept among them: G.
        across: Gates of all outcomes are one too; else each outcome has its own.
    """

    latent: Tensor
    number: int
    across: bool

    def by_weight(self, values: Tensor) -> Tensor:
        """Of latents (..., G, q) as their weights have it, (..., W, q)."""
        return values.index_select(-2, self.latent.to(values.device))

    def total(self, values: Tensor) -> Tensor:
        """Sums over the gates that are one, (..., G, Q or 1), of (..., W, Q)."""
        if self.across:
            values = values.sum(-1, keepdim=True)
        zero = values.new_zeros(*values.shape[:-2], self.number, values.shape[-1])
        return zero.index_add(-2, self.latent.to(values.device), values)

    def first(self, values: Tensor) -> Tensor:
        """Of the first weight and outcome of each, (..., G, Q or 1)."""
        found = values[..., self.leaders(values.device), :]
        return found[..., :1] if self.across else found

    def leaders(self, device: torch.device | None = None) -> Tensor:
        """The first weight of each latent, (G,)."""
        places = torch.arange(len(self.latent))
        first = torch.full((self.number,), len(places))
        found = first.scatter_reduce(0, self.latent.cpu(), places, "amin")
        return found.to(device) if device is not None else found

    def tables(self, num_outcomes: int) -> list[Tensor]:
        """Places ``weight * Q + outcome`` of gates that are one, (g, M) for each size M."""
        own: dict[tuple[int, int], list[int]] = {}
        for weight, latent in enumerate(self.latent.tolist()):
            for q in range(num_outcomes):
                key = latent, 0 if self.across else q
                own.setdefault(key, []).append(weight * num_outcomes + q)
        sizes = sorted({len(places) for places in own.values()})
        return [torch.tensor([p for p in own.values() if len(p) == size]) for size in sizes]


class LatentGates(dist.TorchDistribution):
    """Gates (W, Q) of an arc, those of a latent all open or all closed.

    Args:
        prob: Of a latent's gate to be open, (*B, G, Q or 1).
        groups: Which gates are one.
        num_outcomes: Q.
    """

    arg_constraints = {"prob": constraints.unit_interval}
    support = constraints.independent(zero_or_one, 2)

    def __init__(
        self,
        prob: Tensor,
        groups: GateGroups,
        num_outcomes: int,
        validate_args: bool | None = None,
    ) -> None:
        self.prob, self.groups, self.num_outcomes = prob, groups, num_outcomes
        event = Size((len(groups.latent), num_outcomes))
        super().__init__(prob.shape[:-2], event, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> LatentGates:
        """The same of a larger batch."""
        prob = self.prob.expand(*batch_shape, *self.prob.shape[-2:])
        return LatentGates(prob, self.groups, self.num_outcomes, validate_args=False)

    def sample(self, sample_shape: Size = torch.Size()) -> Tensor:  # noqa: B008  (torch's own)
        """Draws (*sample_shape, *B, W, Q) of zeros and ones, from torch's global generator."""
        wide = 1 if self.groups.across else self.num_outcomes
        shape = (*sample_shape, *self.batch_shape, self.groups.number, wide)
        with torch.no_grad():
            gate = torch.bernoulli(self.prob.expand(shape))
            found = self.groups.by_weight(gate)
            return found.expand(*found.shape[:-1], self.num_outcomes)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of gates (*B, W, Q)."""
        number = self.groups.total(torch.ones_like(value))
        found = self.groups.total(value)
        prob = self.prob.expand_as(found)
        each = torch.where(found == number, prob.log(), torch.log1p(-prob))
        each = torch.where((found == 0) | (found == number), each, -torch.inf)
        return each.sum((-1, -2))


class LatentGatesFactor(TalkingTrees, SpikeSlabFactor):
    """See the module's docstring."""

    @property
    def groups(self) -> GateGroups:
        """Which gates are one."""
        groups: GateGroups = self.prior.groups
        return groups

    def _log_odds(self) -> tuple[Tensor, Tensor]:
        """Logarithms of prior probabilities of open and closed gates, (A or 1, G, Q or 1)."""
        rates, weights = self._rate().points()
        prob = self.prior.latent_inclusion_prob(rates.double())
        prob = torch.einsum("t,tagq->agq", weights.double(), prob).clamp(LEAST_RATE, 1 - REST)
        return prob.log(), torch.log1p(-prob)

    def rates(self, log_bayes: Tensor | None = None) -> Tensor:
        """See :meth:`TalkingTrees.rates`."""
        says = self.log_bayes if log_bayes is None else log_bayes
        on, off = self._log_odds()
        odds = self.groups.by_weight(on - off + self.groups.total(says)) - says
        rate = torch.sigmoid(odds).clamp(LEAST_RATE, 1 - REST).expand(self.prior.delta_shape)
        return torch.where(self.prior.may_change(), rate, 0.0)

    def inclusion(self, now: TreePosterior) -> Tensor:
        """See :meth:`PriorFactor.inclusion`."""
        every = torch.ones(len(self.log_bayes), dtype=torch.bool, device=self.log_bayes.device)
        found = self.groups.by_weight(self._open(self.said(now, self.rates(), every)))
        return found.expand(self.prior.delta_shape)

    def _open(self, log_bayes: Tensor) -> Tensor:
        """Probabilities of open gates by what all trees say, (A, G, Q or 1)."""
        on, off = self._log_odds()
        found = torch.sigmoid(on - off + self.groups.total(log_bayes))
        return torch.where(self.prior.may_change(), found, 0.0)

    def gap(self, now: TreePosterior, informed: Tensor) -> Tensor:
        """See :meth:`PriorFactor.gap`; that of a latent's gates is its first weight's."""
        law, mask, groups = self.law(), informed.reshape(-1, 1, 1), self.groups
        share = torch.where(mask.unsqueeze(-1), now.class_prob.movedim(-2, 0), 0.0)
        gap = self.root_gap() - (share * law.excess).sum((0, 2, 3))
        rates = self.rates()
        said = self.said(now, rates, informed)
        on, off = self._log_odds()
        joint = torch.logaddexp(off, on + groups.total(said))
        single = torch.logaddexp(torch.log1p(-rates), rates.clamp(min=LEAST).log() + said)
        # The rate has a factor of its own: expected logarithms are below those of the mean.
        number = self._open(said)
        mean_on, mean_off = self._mean_logs()
        loss = number * (mean_on - on) + (1 - number) * (mean_off - off)
        known = mask & self.prior.may_change()
        each = torch.where(known, joint - groups.total(single) + loss, 0.0)
        found = torch.zeros_like(gap)
        found[groups.leaders(gap.device)] = each.sum((0, 2)).to(gap)
        return gap - found

    def _mean_logs(self) -> tuple[Tensor, Tensor]:
        """Mean logarithms of probabilities of open and closed gates, (A or 1, G, Q or 1)."""
        rates, weights = self._rate().points()
        prob = self.prior.latent_inclusion_prob(rates.double()).clamp(LEAST_RATE, 1 - REST)
        parts = (torch.einsum("t,tagq->agq", weights.double(), p)
                 for p in (prob.log(), torch.log1p(-prob)))  # fmt: skip
        on, off = parts
        return on, off

    def _learn_rate(self, on: Tensor, off: Tensor) -> None:
        """See :meth:`SpikeSlabFactor._learn_rate`; gates that are one count once."""
        groups, known = self.groups, self.groups.first(on + off) > 0
        found = self._open(self.log_bayes)
        if not bool((self.log_bayes != 0).any()):  # nothing was said yet: what a start has it
            found = (groups.total(on) > 0).double()
        opened = torch.where(known, found, 0.0)
        closed = torch.where(known, 1 - found, 0.0)
        rate = self._rate()
        if rate.hyper.shape[-1] == 1:
            opened, closed = opened.sum(-1, keepdim=True), closed.sum(-1, keepdim=True)
        rate.update(opened, closed, self.prior.relative_length)

    def start_from(self, root: Tensor, deltas: Tensor, informed: Tensor) -> None:
        """See :meth:`PriorFactor.start_from`; the trees talk anew afterwards."""
        self.log_bayes.zero_()
        super().start_from(root, deltas, informed)

    def none_open(self, now: TreePosterior, outcomes: Tensor) -> Tensor:
        """See :meth:`PriorFactor.none_open`."""
        every = torch.ones(len(self.log_bayes), dtype=torch.bool, device=self.log_bayes.device)
        off = 1 - self._open(self.said(now, self.rates(), every))
        off = off[..., 0] if self.groups.across else off[..., outcomes].prod(-1)
        return self.groups.by_weight(off.unsqueeze(-1))[..., 0]

    def prior_none(self, outcomes: Tensor) -> Tensor:
        """See :meth:`PriorFactor.prior_none`."""
        return super().prior_none(outcomes[:1] if self.groups.across else outcomes)

    def draw_from(
        self, messages: InsideMessages, tree: Tree, num_samples: int, generator: Generator
    ) -> dict[str, Tensor]:
        """See :meth:`PriorFactor.draw_from`: tree by tree, then matched, see ``pairing``."""
        draws = super().draw_from(messages, tree, num_samples, generator)
        num_outcomes = draws["root_weights"].shape[-1]
        flat = {name: value.flatten(-2).clone() for name, value in draws.items()}
        for table in self.groups.tables(num_outcomes):
            if table.shape[1] > 1:
                own = {name: value[..., table] for name, value in flat.items()}
                for name, value in matched(own, generator).items():
                    flat[name][..., table] = value
        return {name: value.view_as(draws[name]) for name, value in flat.items()}

    def draw_one(self, *_: object) -> NoReturn:
        """Refused: one draw has no partners to be paired with."""
        raise DataError(
            "this guide has no single draws for Pyro, as gates of a basis' functions are one: "
            "posterior.sample(n) has joint draws"
        )
