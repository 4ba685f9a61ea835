r"""Gates at two levels where each outcome's changes are exact along its tree.

The trees of a latent talk through the activity of each arc, by belief propagation. A tree says of
an arc's gate the Bayes factor :math:`B_q` of open against closed, by its own rows and with other
arcs as they may be. Of the arc's activity that is :math:`m_q = 1 - b + b B_q`, so outcome q's gate
is open, by all but its own rows, with probability

.. math::
    r_q = b \, \sigma\Big(\log \frac{a}{1 - a} + \sum_{p \ne q} \log m_p\Big)

which is the rate its tree takes. The log evidence is Bethe's: that of the trees at these rates, and
for each arc :math:`\log(1 - a + a \prod_q m_q) - \sum_q \log(1 - r_q + r_q B_q)`. All this is exact
where outcomes share one uncertain arc; where they share several there are loops.

Source:
    Yedidia, Freeman & Weiss, IEEE Transactions on Information Theory 51 (2005) 2282.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.hyper import RateFactor
from pyro_tbr.heads.priors.classes import ExpectedLaw
from pyro_tbr.heads.priors.evidence import Evidence
from pyro_tbr.heads.priors.gate_levels import LevelLogs
from pyro_tbr.heads.priors.grouped_factor import GroupedFactor
from pyro_tbr.heads.priors.pairing import paired
from pyro_tbr.tree import Tree
from pyro_tbr.tree.messages import ArcLaw, InsideMessages, TreePosterior

_LEAST_RATE, _REST = 1e-100, 1e-12  # of a rate that a tree takes, and of what is left to 1
_LEAST_REST = 1e-26  # likewise of the levels, where no gate of an active arc may be closed
_MOST = 60.0  # log Bayes factor of one gate
_LEAST = 1e-300
_START, _START_SPREAD = 0.1, 0.2  # of the sharing, the latter on the real line
_SURE_START = 30.0  # log Bayes factors of changes that a start takes for certain, and of others


class GroupedTreeFactor(GroupedFactor):
    """See the module's docstring.

    Attributes:
        log_bayes: Log Bayes factors of open gates by each outcome's own rows, (A, W, Q) double.
    """

    log_bayes: Tensor
    trees_apart = False  # outcomes are paired

    def __init__(self, prior: Any) -> None:
        super().__init__(prior)
        self.register_buffer("log_bayes", torch.zeros(prior.delta_shape, dtype=torch.float64))
        self._talk_little()

    # ---- messages

    def _centre(self) -> LevelLogs:
        """Logarithms of the two levels at q's centre, (A or 1, W, 1 or Q), all finite."""
        levels = self.expected_levels()
        logs = (part.clamp(min=_LEAST_RATE).log() for part in levels[2:])
        rests = ((1 - part).clamp(min=_LEAST_REST).log() for part in levels[2:])
        active, within = logs
        inactive, closed = rests
        return LevelLogs(active, inactive, within, closed)

    def _rates(self, log_bayes: Tensor | None = None) -> Tensor:
        """Inclusion probabilities that the trees take, (A, W, Q), by what the others say."""
        centre = self._centre()
        says = _of_activity(centre, self.log_bayes if log_bayes is None else log_bayes)
        others = says.sum(-1, keepdim=True) - says
        odds = centre.active - centre.inactive + others
        rate = (centre.open + torch.nn.functional.logsigmoid(odds)).exp()
        rate = rate.clamp(_LEAST_RATE, 1 - _REST).expand(self.prior.delta_shape)
        return torch.where(self.prior.may_change(), rate, 0.0)

    def _said(self, now: TreePosterior, rates: Tensor, informed: Tensor) -> Tensor:
        """Log Bayes factors (A, W, Q) by passes that had these rates."""
        prob = now.class_prob.movedim(-2, 0)
        open_, closed = prob[..., 1:].sum(-1), prob[..., 0]
        found = open_.clamp(min=_LEAST).log() - closed.clamp(min=_LEAST).log()
        found = (found - torch.logit(rates, eps=0.0)).clamp(-_MOST, _MOST)
        known = informed.reshape(-1, 1, 1) & self.prior.may_change()
        return torch.where(known, found, 0.0)

    @torch.no_grad()
    def exchange(self, now: TreePosterior, informed: Tensor, step: float) -> Tensor:
        """See :meth:`PriorFactor.exchange`."""
        before = self._rates()
        said = self._said(now, before, informed)
        moves = (self._rates(said) - before).abs()
        self.log_bayes.copy_(torch.lerp(self.log_bayes, said.to(self.log_bayes), step))
        return moves.amax(0).T

    # ---- what trees see

    def arc_law(self, weights: slice = slice(None)) -> ArcLaw:
        """See :meth:`PriorFactor.arc_law`; rates are by arc and outcome."""
        law = super().arc_law(weights)
        return _with_rates(law, self._rates()[:, weights].permute(1, 2, 0))

    def gap(self, now: TreePosterior, informed: Tensor) -> Tensor:
        """See :meth:`PriorFactor.gap`."""
        law, mask = self.law(), informed.reshape(-1, 1, 1)
        share = torch.where(mask.unsqueeze(-1), now.class_prob.movedim(-2, 0), 0.0)
        gap = self.root_gap() - (share * law.excess).sum((0, 2, 3))
        rates, centre, levels = self._rates(), self._centre(), self.expected_levels()
        said = self._said(now, rates, informed)
        says = _of_activity(centre, said).sum(-1, keepdim=True)
        joint = torch.logaddexp(centre.inactive, centre.active + says)
        single = torch.logaddexp(torch.log1p(-rates), rates.clamp(min=_LEAST).log() + said)
        known = mask & self.prior.may_change()
        arcs = torch.where(known, joint - single.sum(-1, keepdim=True), 0.0)
        # Rate and sharing have factors of their own: expected logarithms are below those of means.
        active = torch.sigmoid(centre.active - centre.inactive + says)
        opened = share[..., 1:].sum(-1)
        counts = LevelLogs(active, 1 - active, opened, (active - opened).clamp(min=0))
        pairs = zip(counts, levels.logs, centre, strict=True)
        loss = sum(((n * (mean - at)).sum(-1, keepdim=True) for n, mean, at in pairs), arcs)
        return gap - torch.where(known, loss, 0.0).sum((0, 2))

    def activity(self, on: Tensor, off: Tensor) -> Tensor:
        """See :meth:`GroupedFactor.activity`: by what all trees say."""
        del on, off
        centre = self._centre()
        says = _of_activity(centre, self.log_bayes).sum(-1, keepdim=True)
        return torch.sigmoid(centre.active - centre.inactive + says)

    def start_from(self, root: Tensor, deltas: Tensor, informed: Tensor) -> None:
        """See :meth:`PriorFactor.start_from`; the trees talk anew afterwards."""
        size = torch.where(informed.reshape(-1, 1, 1), deltas, 0.0).abs()
        changed = (size > 0).to(self.log_bayes)
        self.log_bayes.copy_(_SURE_START * (2 * changed - 1))
        super().start_from(root, deltas, informed)
        self.log_bayes.zero_()
        self._talk_little()

    def _talk_little(self) -> None:
        """Starts with hardly any sharing: from much of it trees agree on wrong arcs, and stay."""
        cast(RateFactor, self.hyper["sharing"]).initialise(torch.tensor(_START), _START_SPREAD)

    def none_open(self, now: TreePosterior, outcomes: Tensor) -> Tensor:
        """See :meth:`PriorFactor.none_open`: by what all trees say of the arc."""
        centre = self._centre()
        every = torch.ones(len(self.log_bayes), dtype=torch.bool, device=self.log_bayes.device)
        said = self._said(now, self._rates(), every)
        says = _of_activity(centre, said)
        closed = centre.closed.expand_as(says)
        chosen = torch.zeros(says.shape[-1], dtype=torch.bool, device=says.device)
        chosen[outcomes] = True
        off = torch.where(chosen, closed, says).sum(-1)
        active, inactive = centre.active[..., 0], centre.inactive[..., 0]
        whole = torch.logaddexp(inactive, active + says.sum(-1))
        return (torch.logaddexp(inactive, active + off) - whole).exp()

    # ---- draws

    def draw_from(
        self, messages: InsideMessages, tree: Tree, num_samples: int, generator: Generator
    ) -> dict[str, Tensor]:
        """See :meth:`PriorFactor.draw_from`: outcome by outcome, then paired, see ``pairing``."""
        draws = super().draw_from(messages, tree, num_samples, generator)
        known = (self.log_bayes != 0).any(-1).any(-1)  # others are to be drawn from the prior
        return paired(draws, self._centre(), known, generator)

    @torch.no_grad()
    def draw_one(
        self, data: Evidence, now: TreePosterior, generator: Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """See :meth:`PriorFactor.draw_one`: each outcome given the gates of those before it."""
        del now
        centre, law = self._centre(), super().arc_law()
        says = _of_activity(centre, self.log_bayes)
        log_odds = (centre.active - centre.inactive)[..., 0]  # (A or 1, W)
        shape = self.prior.delta_shape
        open_, closed = (part.expand(shape) for part in (centre.open, centre.closed))
        rates, parts, log_evidence = [], [], torch.zeros((), dtype=torch.float64)
        for q in range(shape[-1]):
            after = log_odds + says[..., q + 1 :].sum(-1)
            rate = (open_[..., q] + torch.nn.functional.logsigmoid(after)).exp()
            rate = rate.clamp(_LEAST_RATE, 1 - _REST).expand(shape[:2])
            rate = torch.where(self.prior.may_change()[..., 0], rate, 0.0)
            rates.append(rate)
            own = slice(q, q + 1)
            here = ArcLaw(law.prob[:, own], law.mean[:, own], law.var[:, own], gated=True)
            here = _with_rates(here, rate.T.unsqueeze(1))
            root = (part[:, own] for part in self.root_law())
            one = data._replace(eta=data.eta[:, own], lam=data.lam[:, own])
            messages = one.inside(here, *root)
            log_evidence = log_evidence + messages.log_evidence.sum()
            drawn = super().draw_from(messages, data.tree, 1, generator)
            parts.append(drawn)
            # What this outcome says of the activity from now on is its gate.
            gate = drawn["gates"][0, ..., 0].to(log_odds)
            log_odds = log_odds + torch.where(gate > 0, _MOST, closed[..., q])
        draws = {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}
        prob = torch.stack(rates, -1)
        return draws, self.log_density(data, log_evidence, draws, self._drawn_law(prob))[0]

    def _drawn_law(self, rates: Tensor) -> ExpectedLaw:
        """The law of changes that draws are from, at these rates."""
        law = self.law()
        share = law.prob[..., 1:] / law.prob[..., 1:].sum(-1, keepdim=True).clamp(min=_LEAST)
        rates = rates.unsqueeze(-1)
        share = share.double().expand(*rates.shape[:-1], share.shape[-1])
        return law._replace(prob=torch.cat([1 - rates, rates * share], -1))


def _of_activity(centre: LevelLogs, log_bayes: Tensor) -> Tensor:
    """Log Bayes factors of activity, from those of gates (A, W, Q)."""
    return torch.logaddexp(centre.closed, centre.open + log_bayes.double())


def _with_rates(law: ArcLaw, rates: Tensor) -> ArcLaw:
    """A law of changes whose gates are open with these probabilities, (w, q, A)."""
    total = law.prob[..., 1:].sum(-1, keepdim=True)
    share = law.prob[..., 1:] / torch.where(total > 0, total, 1.0)
    rates = rates.unsqueeze(-1)
    share = share.expand(*rates.shape[:-1], share.shape[-1])
    return ArcLaw.of(torch.cat([1 - rates, rates * share], -1), law.mean, law.var, gated=True)
