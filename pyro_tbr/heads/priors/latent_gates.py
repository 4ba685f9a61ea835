r"""Gates that the functions of a latent share: along an arc all of their weights change, or none.

Given the gates the functions are independent, so messages along the tree are mixtures of normals
for all of them at once, a height for each pattern of gates. A change is then a draw from normals,
whose joint density has little mass near no change, so the slab needs no halves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints

from pyro_tbr.heads.priors.classes import ExpectedLaw
from pyro_tbr.heads.priors.evidence import Evidence
from pyro_tbr.heads.priors.gates import zero_or_one
from pyro_tbr.heads.priors.spike_slab_factor import SpikeSlabFactor
from pyro_tbr.tree import Tree
from pyro_tbr.tree.messages import ArcLaw, TreePosterior, inside_pass, sample, smooth


def first_of_each(latent_of: Iterable[int]) -> list[int]:
    """Places of the first weight of each latent, from which latent each weight is of."""
    first: dict[int, int] = {}
    for place, latent in enumerate(latent_of):
        first.setdefault(latent, place)
    return list(first.values())


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

    def largest(self, values: Tensor) -> Tensor:
        """The largest of those that are one, likewise."""
        if self.across:
            values = values.amax(-1, keepdim=True)
        found = values.new_zeros(*values.shape[:-2], self.number, values.shape[-1])
        place = self.latent.to(values.device).unsqueeze(-1).expand_as(values)
        return found.scatter_reduce(-2, place, values, "amax")

    def once(self, values: Tensor) -> Tensor:
        """Values (..., W, Q) at the first weight (and outcome) of each alone, zero elsewhere."""
        first = torch.zeros(values.shape[-2:], dtype=torch.bool)
        first[self.leaders()] = True
        if self.across:
            first[:, 1:] = False
        return torch.where(first.to(values.device), values, 0.0)

    def leaders(self) -> list[int]:
        """The first weight of each latent, (G,)."""
        return first_of_each(self.latent.tolist())

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


class LatentGatesFactor(SpikeSlabFactor):
    """Each latent's functions jointly along the tree, see :func:`~pyro_tbr.tree.messages.smooth`.

    Log evidence of a latent is at its first weight, and zero at the others.
    """

    trees_apart = False
    trees_joint = True

    @property
    def groups(self) -> GateGroups:
        """Which gates are one."""
        groups: GateGroups = self.prior.groups
        return groups

    def places(self) -> list[list[int]]:
        """See :meth:`PriorFactor.places`: one function of every latent after the other."""
        found: list[list[int]] = []
        seen: dict[int, int] = {}
        for weight, latent in enumerate(self.groups.latent.tolist()):
            place = seen.get(latent, 0)
            seen[latent] = place + 1
            if place == len(found):
                found.append([])
            found[place].append(weight)
        return found

    def _blocks(self) -> list[Tensor]:
        return self.groups.tables(self.prior.num_outcomes)

    def _given(self, data: Evidence, law: ArcLaw, table: Tensor) -> tuple[Any, ...]:
        """Arguments of the passes for the trees of a table (g, M), which go side by side."""
        flat, device = table.flatten(), data.eta.device
        flat = flat.to(device)
        shape = self.prior.delta_shape[1:]
        eta, lam = (part.flatten(0, 1)[flat] for part in (data.eta, data.lam))
        prob, mean, var = (
            part.expand(*shape, *part.shape[-2:]).flatten(0, 1)[flat]
            for part in (law.prob, law.mean, law.var)
        )
        root = (part.expand(shape).flatten()[flat] for part in self.root_law())
        own = ArcLaw.of(prob, mean, var, gated=True)
        return data.tree, eta, lam, own, *root, data.num_components, data.sweeps, table.shape[1]

    @torch.no_grad()
    def passes(self, data: Evidence, refit: bool = False) -> TreePosterior:
        """See :meth:`PriorFactor.passes`."""
        del refit
        law, shape = self.arc_law(), self.prior.delta_shape[1:]
        found: dict[str, Tensor] = {}
        for table in self._blocks():
            now = smooth(*self._given(data, law, table))
            for name, value in vars(now).items():
                if name not in found:
                    found[name] = value.new_zeros(shape[0] * shape[1], *value.shape[1:])
                some = table.flatten().to(value.device)
                if name == "log_evidence":  # that of all together, once
                    some, value = table[:, 0].to(value.device), value[:: table.shape[1]]
                found[name][some] = value
        return TreePosterior(**{n: v.unflatten(0, shape) for n, v in found.items()})

    def log_evidence(self, data: Evidence, law: ArcLaw | None = None) -> Tensor:
        """See :meth:`PriorFactor.log_evidence`; maybe under another law of changes."""
        law, shape = self.arc_law() if law is None else law, self.prior.delta_shape[1:]
        found = data.eta.new_zeros(shape[0] * shape[1])
        for table in self._blocks():
            messages = inside_pass(*self._given(data, law, table))
            found[table[:, 0].to(found.device)] = messages.log_evidence[:: table.shape[1]]
        return found.unflatten(0, shape)

    def inside(self, data: Evidence, law: ArcLaw | None = None) -> Any:
        """Inside messages, for each block of latents that have as many functions."""
        law = self.arc_law() if law is None else law
        return [inside_pass(*self._given(data, law, table)) for table in self._blocks()]

    def draw_from(
        self, messages: Any, tree: Tree, num_samples: int, generator: Generator
    ) -> dict[str, Tensor]:
        """See :meth:`PriorFactor.draw_from`."""
        num_arcs, *shape = self.prior.delta_shape
        dtype, size = self.prior.root_loc.dtype, math.prod(shape)
        device = self.prior.root_loc.device
        root = torch.zeros(num_samples, size, dtype=dtype, device=device)
        deltas = torch.zeros(num_samples, num_arcs, size, dtype=dtype, device=device)
        gates = torch.zeros_like(deltas)
        for table, own in zip(self._blocks(), messages, strict=True):
            drawn, some = sample(tree, own, num_samples, generator), table.flatten()
            root[:, some] = drawn.root.to(dtype)
            deltas[..., some] = drawn.deltas.mT.to(dtype)
            gates[..., some] = (drawn.classes > 0).mT.to(dtype)
        return {
            "root_weights": root.unflatten(-1, shape),
            "deltas": deltas.unflatten(-1, shape),
            "gates": gates.unflatten(-1, shape),
        }

    def gap(self, now: TreePosterior, informed: Tensor) -> Tensor:
        """See :meth:`PriorFactor.gap`; gates that are one count once."""
        law = self.law()
        each = law.prob.clamp(min=torch.finfo(law.prob.dtype).tiny).log() - law.log_prob
        share = torch.where(informed.reshape(-1, 1, 1, 1), now.class_prob.movedim(-2, 0), 0.0)
        of_gates = self.groups.once((share * each).sum(-1))
        return self.root_gap() + (of_gates - (share * law.excess).sum(-1)).sum((0, 2))

    def _learn_rate(self, on: Tensor, off: Tensor) -> None:
        """See :meth:`SpikeSlabFactor._learn_rate`; gates that are one count once.

        Where point estimates have some of them open, as a start may, all are.
        """
        known, on = self.groups.total(on + off) > 0, self.groups.largest(on)
        off = torch.where(known, 1 - on, 0.0)
        rate = self._rate()
        if rate.hyper.shape[-1] == 1:
            on, off = on.sum(-1, keepdim=True), off.sum(-1, keepdim=True)
        rate.update(on, off, self.prior.relative_length)

    def none_open(self, now: TreePosterior, outcomes: Tensor) -> Tensor:
        """See :meth:`PriorFactor.none_open`."""
        return super().none_open(now, outcomes[:1] if self.groups.across else outcomes)

    def prior_none(self, outcomes: Tensor) -> Tensor:
        """See :meth:`PriorFactor.prior_none`."""
        return super().prior_none(outcomes[:1] if self.groups.across else outcomes)

    def log_density(
        self, data: Evidence, log_evidence: Tensor, draws: dict[str, Tensor], law: ExpectedLaw
    ) -> Tensor:
        """See :meth:`PriorFactor.log_density`; gates that are one count once."""
        found = super().log_density(data, log_evidence, draws, law)
        log_prob = law.prob.double().clamp(min=1e-300).log()
        each = torch.where(draws["gates"] > 0, log_prob[..., 1:].logsumexp(-1), log_prob[..., 0])
        twice = each - self.groups.once(each)
        known = data.informed.reshape(-1, 1, 1)
        return found - torch.where(known, twice, 0.0).sum((1, 2, 3))
