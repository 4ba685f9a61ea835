"""What the fully factorised guide holds: a factor for every root weight and change."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import logsigmoid

from pyro_tbr.errors import DataError
from pyro_tbr.heads.guide import Guide, logit
from pyro_tbr.heads.hyper import quadrature
from pyro_tbr.heads.moments import ArcInclusion, DeltaMoments, NodeMoments
from pyro_tbr.heads.priors.base import whole_event
from pyro_tbr.heads.priors.classes import ChangeSums, ExpectedLaw, Values, normal_mixture
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.tree import path_sum


class MeanFieldState(Guide):
    """Factors, their moments, their part of the ELBO and their draws; see ``MeanFieldGuide``."""

    abstract = True

    def __init__(self, head: Any, informed_nodes: Tensor | None = None) -> None:
        super().__init__(head, informed_nodes)
        prior = self.head.prior
        if prior.groups is not None:
            raise DataError(
                f"{type(self).__name__} takes gates as independent, and those of the functions of "
                "a basis are one: fit with guide='tree', or leave basis out"
            )
        if prior.all_or_none:
            raise DataError(
                f"{prior!r}: {type(self).__name__} takes the outcomes' gates as independent, so "
                "they cannot be all or none: use guide='tree' (TreeGuide), or gates='grouped'"
            )
        self.root_loc = nn.Parameter(prior.root_loc.clone())
        self.root_log_scale = nn.Parameter(torch.full_like(self.root_loc, math.log(0.05)))
        shape = prior.delta_shape
        self.loc = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.full(shape, math.log(0.05)))
        if prior.gated:
            self.logits = nn.Parameter(torch.full(shape, -1.5))
        if prior.has_spike:
            self.spike_loc = nn.Parameter(torch.zeros(shape))
            self.spike_log_scale = nn.Parameter(torch.full(shape, math.log(0.02)))
        self._match_dtype()

    @property
    def _known(self) -> Tensor:
        return self.informed_arcs.reshape(-1, 1, 1)

    @property
    def _free(self) -> Tensor:
        """Arcs whose gates are not the prior's, (A, 1, 1)."""
        return self._known & self.head.prior.may_change()

    def elbo(self, stats: Statistics) -> Tensor:
        """See :meth:`Guide.elbo`; what q expects of the law of changes is asked for once."""
        law = self.factor.law()
        return self.expected_log_lik(stats, self.node_moments(law)) - self.kl(law)

    @torch.no_grad()
    def _sums(self, law: ExpectedLaw) -> ChangeSums:
        """Expected changes by class; one normal stands for all classes that are open."""
        first, on = (1, self._gate_probs(law)) if self.has_gates else (0, torch.ones_like(self.loc))
        points, weights, each = _at_points(law, slice(first, None), self.loc, self.log_scale)
        share = each.softmax(-1)
        share = share * (weights.reshape(-1, 1, 1, 1) * on).unsqueeze(-1)
        powers = (torch.ones_like(points), points, points.square())
        sums = [(share * power.unsqueeze(-1)).sum(0) for power in powers]
        if self.has_gates:
            small, width = torch.zeros_like(self.loc), torch.zeros_like(self.loc)
            if self.head.prior.has_spike:
                may = self.head.prior.may_change()
                small, width = may * self.spike_loc, may * (2 * self.spike_log_scale).exp()
            closed = [(1 - on) * part for part in (torch.ones_like(small), small, small**2 + width)]
            sums = [torch.cat([c.unsqueeze(-1), s], -1) for c, s in zip(closed, sums, strict=True)]
        known = self._known.unsqueeze(-1)
        return ChangeSums(*(torch.where(known, part, 0.0) for part in sums))

    def _gate_probs(self, law: ExpectedLaw) -> Tensor:
        """Posterior inclusion (A, W, Q); exactly the prior's where nothing is known."""
        return torch.where(self._free, torch.sigmoid(self.logits), law.prob[..., 1:].sum(-1))

    def node_moments(self, law: ExpectedLaw | None = None) -> NodeMoments:
        """See :meth:`Guide.node_moments`; ``law`` where it has been asked for already."""
        deltas = self.delta_moments(law)
        root = torch.stack([self.root_loc, (2 * self.root_log_scale).exp()], dim=-1)
        both = torch.stack([deltas.mean, deltas.var], dim=-1)
        mean, var = path_sum(self.head.tree, root, both, event_dim=3).unbind(-1)
        return NodeMoments(mean, var)

    def delta_moments(self, law: ExpectedLaw | None = None) -> DeltaMoments:
        """See :meth:`Guide.delta_moments`; ``law`` as for :meth:`node_moments`."""
        law, shape = self.factor.law() if law is None else law, self.loc.shape
        square = law.square.expand(*shape, law.square.shape[-1])
        mean = torch.where(self._known, self.loc, 0.0)
        own = (2 * self.log_scale).exp()
        if not self.has_gates:
            var, one = torch.where(self._known, own, square.sum(-1)), torch.ones_like(mean)
            return DeltaMoments(mean, var, one, one, mean, var)
        prior_prob = law.prob[..., 1:].sum(-1).expand(shape)
        prob = self._gate_probs(law).expand(shape)
        tiny = torch.finfo(prob.dtype).tiny
        var = torch.where(self._known, own, square[..., 1:].sum(-1) / prior_prob.clamp(min=tiny))
        first, second = prob * mean, prob * (mean.square() + var)
        if self.head.prior.has_spike:
            small = torch.where(self._known, self.spike_loc, 0.0)
            width = torch.where(self._known, (2 * self.spike_log_scale).exp(),
                                square[..., 0] / (1 - prior_prob).clamp(min=tiny))  # fmt: skip
            closed = (1 - prob) * self.head.prior.may_change()
            first = first + closed * small
            second = second + closed * (small.square() + width)
        return DeltaMoments(first, second - first.square(), prob, prior_prob, mean, var)

    def kl(self, law: ExpectedLaw | None = None) -> Tensor:
        """See :meth:`Guide.kl`; ``law`` as for :meth:`node_moments`."""
        return self._weights_kl(self.factor.law() if law is None else law) + self.hyper_kl()

    def _root_square(self) -> Tensor:
        """Expected squared deviation of the root weights from their prior mean, (W, Q)."""
        return (self.root_loc - self.head.prior.root_loc).square() + (2 * self.root_log_scale).exp()

    def _weights_kl(self, law: ExpectedLaw) -> Tensor:
        """KL of root weights and changes to their prior."""
        scale = self.factor.scale("root_scale")
        root = 0.5 * (self._root_square() * scale.mean_power(-2.0) - 1)
        root = root - self.root_log_scale + scale.mean_log()
        return root.sum() + self._changes_kl(law)

    def _changes_kl(self, law: ExpectedLaw) -> Tensor:
        first = 1 if self.has_gates else 0
        change = _normal_kl(law, slice(first, None), self.loc, self.log_scale)
        if not self.has_gates:
            return torch.where(self._known, change, 0.0).sum()
        on, off = logsigmoid(self.logits), logsigmoid(-self.logits)
        closed = off - law.log_prob[..., 0]
        if self.head.prior.has_spike:
            closed = off + _normal_kl(law, slice(0, 1), self.spike_loc, self.spike_log_scale)
        each = on.exp() * (on + change) + off.exp() * closed
        together = self.factor.together(on.exp()).unsqueeze(-1)
        total = torch.where(self._free, each, 0.0).sum()
        return total - torch.where(self._free, together, 0.0).sum()

    def log_odds(self) -> Tensor:
        """See :meth:`Guide.log_odds`."""
        if not self.has_gates:
            return super().log_odds()
        prior = logit(self.delta_moments().prior_inclusion)
        return torch.where(self._free, self.logits.double(), prior)

    def path_inclusion(self, arcs: Tensor) -> Tensor:
        """See :meth:`Guide.path_inclusion`: arcs are independent."""
        return 1 - (1 - self.delta_moments().inclusion[arcs].double()).prod(0)

    @torch.no_grad()
    def arc_inclusion(self, outcomes: Tensor, exists: Tensor) -> ArcInclusion:
        """See :meth:`Guide.arc_inclusion`: all gates are independent."""
        none = (1 - self.delta_moments().inclusion[..., outcomes].double()).prod(-1)
        return self._arc_inclusion_apart(none, outcomes, exists)

    def forward(self, *args: object, **kwargs: object) -> None:
        """Pyro sites of q; the arguments are the model's and not used."""
        del args, kwargs
        values = {name: factor() for name, factor in self.hyper.items()}
        self.head.likelihood.guide_sites(self.nuisance)
        root = dist.Normal(self.root_loc, self.root_log_scale.exp())
        pyro.sample("root_weights", root.to_event(2))
        self._change_sites(values)

    def _change_sites(self, values: Values) -> None:
        """Sites of the changes; what a gate leaves unused, slab or spike, is the prior's."""
        prior = self.head.prior
        parts = torch.broadcast_tensors(*prior.classes(values))
        prob, mean, var = (p.expand(*p.shape[:-4], *prior.delta_shape, p.shape[-1]) for p in parts)
        first = 1 if prior.gated else 0
        own = self._known
        if prior.gated:
            on = torch.where(self._free, torch.sigmoid(self.logits), prob[..., 1:].sum(-1))
            gates = pyro.sample("gates", whole_event(prior.gates_given(on, self._free, values)))
            own = own & (gates > 0)
        law = self._sites(prob[..., first:], mean[..., first:], var[..., first:], own,
                          self.loc, self.log_scale)  # fmt: skip
        pyro.sample("slab" if prior.gated else "deltas", law.to_event(3))
        if prior.has_spike:
            own = self._free & (gates == 0)
            width = torch.where(var[..., :1] > 0, var[..., :1], 1.0)
            law = self._sites(prob[..., :1], mean[..., :1], width, own,
                              self.spike_loc, self.spike_log_scale)  # fmt: skip
            pyro.sample("spike", law.to_event(3))

    @staticmethod
    def _sites(
        prob: Tensor, mean: Tensor, var: Tensor, own: Tensor, loc: Tensor, log_scale: Tensor
    ) -> dist.TorchDistribution:
        """Q's normal where it has one, else the prior's classes."""
        own = own.unsqueeze(-1)
        mean = torch.where(own, loc.unsqueeze(-1), mean)
        return normal_mixture(
            prob, mean, torch.where(own, (2 * log_scale).exp().unsqueeze(-1), var)
        )

    def sample(self, num_samples: int, generator: Generator) -> dict[str, Tensor]:
        """See :meth:`Guide.sample`."""
        draws = self.sample_hyper(num_samples, generator)

        def normal(loc: Tensor, log_scale: Tensor) -> Tensor:
            shape = (num_samples, *loc.shape)
            noise = torch.randn(shape, generator=generator, dtype=loc.dtype).to(loc.device)
            return loc + log_scale.exp() * noise

        draws["root_weights"] = normal(self.root_loc, self.root_log_scale)
        draws["deltas"] = normal(self.loc, self.log_scale)
        if self.has_gates:
            on = self._gate_probs(self.factor.law()).expand(num_samples, *self.loc.shape)
            uniform = torch.rand(on.shape, generator=generator, dtype=on.dtype).to(on.device)
            gates = (uniform < on).to(on.dtype)
            small: Tensor | float = 0.0
            if self.head.prior.has_spike:
                small = normal(self.spike_loc, self.spike_log_scale)
                small = small * self.head.prior.may_change()
            draws["gates"] = gates
            draws["deltas"] = torch.where(gates > 0, draws["deltas"], small)
        return self.with_prior_changes(draws, generator)


def _normal_kl(law: ExpectedLaw, classes: slice, loc: Tensor, log_scale: Tensor) -> Tensor:
    """E[log q] less E[log prior] of normal changes in some classes, gates' part included.

    Of several classes one normal q stands for all: the logarithm of their sum by quadrature.
    """
    entropy = log_scale + 0.5 * (1 + math.log(2 * math.pi))
    height, mean, var = _classes(law, classes)
    if height.shape[-1] == 1:
        square = (loc - mean[..., 0]).square() + (2 * log_scale).exp()
        log_prior = height[..., 0] - 0.5 * (
            square / var[..., 0] + (2 * math.pi * var[..., 0]).log()
        )
        return -entropy - log_prior
    _, weights, each = _at_points(law, classes, loc, log_scale)
    each = each.logsumexp(-1) - 0.5 * math.log(2 * math.pi)
    return -entropy - torch.tensordot(weights, each, 1)


def _classes(law: ExpectedLaw, classes: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Log heights, means and variances; 1 for arcs that cannot change, which do not count."""
    var = law.var[..., classes]
    height = (law.log_prob + law.excess)[..., classes]
    return height, law.mean[..., classes], torch.where(var > 0, var, 1.0)


def _at_points(
    law: ExpectedLaw, classes: slice, loc: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Points and weights under q, and each class's log density there up to a constant."""
    height, mean, var = _classes(law, classes)
    points, weights = quadrature(loc, log_scale.exp())
    each = height - 0.5 * (points.unsqueeze(-1) - mean).square() / var - 0.5 * var.log()
    return points, weights, each
