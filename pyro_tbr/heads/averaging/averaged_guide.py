"""A guide that is a mixture of guides, each in a basis of the latents of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from pyro_tbr.heads.averaging.mixing import allotted, mixed, mixed_deltas, mixed_log_odds
from pyro_tbr.heads.guide import Guide, Part
from pyro_tbr.heads.held_guide import HeldGuide
from pyro_tbr.heads.hyper.base import HyperFactors, by_name
from pyro_tbr.heads.moments import DeltaMoments, NodeMoments
from pyro_tbr.heads.registry import registered
from pyro_tbr.heads.statistics import Statistics

_LEAST_SPREAD = 1e-6  # of a factor on the real line
_WEIGHTS = ("root_weights", "deltas")  # sites that act on the design


class AveragedGuide(HeldGuide):
    r"""Guides in several bases of the latents, weighted; every answer is their mixture's.

    The first basis is the reference, whose latents make the design. In basis c the design is
    ``design @ map_c``, so weights :math:`w_c` there act as :math:`M_c w_c` on the design, exactly.
    Two kinds of answers follow, which are the same where there is one basis:

    - Weights at nodes, their draws and what is new along arcs are in the reference's latents,
      whatever basis they come from: they are what predictions are made of.
    - Changes, their inclusion and hyperparameters are those of each basis's own latents, which
      stand in the order and with the signs of the reference's that they go with.

    It holds what it was given: rows cannot move it, and it is not for training.

    Args:
        head: A head, or a built model that has one.
        informed_nodes: (V,) bool, nodes that have rows; ``None``: all.
        kind: Name of the class of the guides.
        arguments: Of their constructor but for head and nodes.
        num_bases: C.

    Attributes:
        weight: Of each basis, they sum to 1, (C,) double.
        gap: By how much its ELBO is below that of the reference, (C,) double; negative if above.
        agreement: Absolute correlation of its latents with the reference's, (C, K) double.
        maps: From the reference's design to its own, (C, W, W) double.
    """

    held = "is an average over bases"
    remade = "average_bases()"
    couples_outcomes = True
    weight: Tensor
    gap: Tensor
    agreement: Tensor
    maps: Tensor

    def __init__(
        self,
        head: Any,
        informed_nodes: Tensor | None = None,
        *,
        kind: str = "TreeGuide",
        arguments: dict[str, Any] | None = None,
        num_bases: int = 1,
    ) -> None:
        super().__init__(head, informed_nodes)
        self.kind, self.arguments = kind, dict(arguments or {})
        made = registered(Guide)[kind]
        bases = [made(self.head, informed_nodes, **self.arguments) for _ in range(num_bases)]
        self.bases = nn.ModuleList(bases)
        width, empty = len(self.head.prior.root_loc), torch.zeros(num_bases, dtype=torch.float64)
        self.register_buffer("weight", empty + 1 / num_bases)
        self.register_buffer("gap", empty.clone())
        self.register_buffer("agreement", empty.new_ones(num_bases, self.head.num_latents))
        self.register_buffer("maps", torch.eye(width).to(empty).repeat(num_bases, 1, 1))
        self._match_dtype()

    def settings(self) -> dict[str, Any]:
        """See :meth:`Guide.settings`."""
        return {"kind": self.kind, "arguments": self.arguments, "num_bases": len(self.bases)}

    @torch.no_grad()
    def hold(
        self,
        guides: Sequence[Guide],
        weight: Tensor,
        gap: Tensor,
        agreement: Tensor,
        maps: Tensor,
    ) -> None:
        """Takes guides, the reference's first, and what the attributes say of them."""
        for own, guide in zip(self.bases, guides, strict=True):
            own.load_state_dict(guide.state_copy(), assign=True)
        for name, part in (("weight", weight), ("gap", gap), ("agreement", agreement),
                           ("maps", maps)):  # fmt: skip
            getattr(self, name).copy_(part)
        # For what asks for the likelihood's parameters alone; bases hardly differ in these.
        for name, factor in by_name(self.nuisance).items():
            states = [by_name(guide.nuisance)[name].state() for guide in self._guides()]
            if not factor.learnt:  # a correlation is a point; what is fixed stays
                factor.restore(states[0])
            else:
                loc, var = self._moments(
                    [part.loc.double() for part in states],
                    [(2 * part.log_scale.double()).exp() for part in states],
                )
                factor.match(loc, var.sqrt().clamp(min=_LEAST_SPREAD))

    def refresh(self) -> None:
        """See :meth:`Guide.refresh`."""
        for guide in self._guides():
            guide.refresh()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Also forgets what the guides keep of the state before."""
        self.refresh()
        return super().load_state_dict(*args, **kwargs)

    def parts(self) -> list[Part]:
        """See :meth:`Guide.parts`."""
        turns = [None] if self._single else list(self.maps)
        triples = zip(self.weight.tolist(), self._guides(), turns, strict=True)
        return [Part(*each) for each in triples]

    def _guides(self) -> list[Guide]:
        return [cast(Guide, guide) for guide in self.bases]

    def _mean(self, parts: Sequence[Tensor]) -> Tensor:
        return mixed(self.weight, parts)

    def _moments(self, means: Sequence[Tensor], variances: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Mean and variance of the mixture, element by element."""
        mean = self._mean(means)
        pairs = zip(means, variances, strict=True)
        return mean, self._mean([var + (own - mean).square() for own, var in pairs])

    @property
    def _single(self) -> bool:
        """One basis, so that every answer is that of its guide."""
        return len(self.bases) == 1

    # ---- in the reference's latents

    @torch.no_grad()
    def node_moments(self) -> NodeMoments:
        """See :meth:`Guide.node_moments`; for how weights go together see :meth:`node_cov`."""
        if self._single:
            return self._guides()[0].node_moments()
        own = [guide.node_moments() for guide in self._guides()]
        means = [self._in_design(c, part.mean.double()) for c, part in enumerate(own)]
        every = torch.arange(self.head.tree.num_nodes, device=self.informed_arcs.device)
        covs = [self._cov_in_design(c, every).diagonal(dim1=-2, dim2=-1).mT
                for c in range(len(own))]  # fmt: skip
        mean, var = self._moments(means, covs)
        return NodeMoments(mean.to(own[0].mean), var.to(own[0].var))

    @torch.no_grad()
    def node_cov(self, nodes: Tensor) -> Tensor | None:
        """See :meth:`Guide.node_cov`."""
        if self._single:
            return self._guides()[0].node_cov(nodes)
        means = [self._in_design(c, guide.node_moments().mean[nodes].double()).mT
                 for c, guide in enumerate(self._guides())]  # fmt: skip
        mean, total = self._mean(means), []
        for c, own in enumerate(means):
            off = own - mean
            outer = off.unsqueeze(-1) * off.unsqueeze(-2)
            total.append(self._cov_in_design(c, nodes) + outer)
        return self._mean(total)

    def _in_design(self, basis: int, weights: Tensor) -> Tensor:
        """Weights (*B, W, Q) of a basis as weights of the reference's design."""
        return self.maps[basis].to(weights) @ weights

    def _cov_in_design(self, basis: int, nodes: Tensor) -> Tensor:
        """Covariances of a basis's weights at nodes (n,), of the design's, (n, Q, W, W) double."""
        guide, turn = self._guides()[basis], self.maps[basis]
        cov = guide.node_cov(nodes)
        if cov is None:
            cov = torch.diag_embed(guide.node_moments().var[nodes].mT)
        return turn @ cov.double() @ turn.T

    def change_cov(self, relative_length: Tensor) -> Tensor:
        """See :meth:`Guide.change_cov`."""
        parts = [turn @ guide.change_cov(relative_length).double() @ turn.T
                 for turn, guide in zip(self.maps, self._guides(), strict=True)]  # fmt: skip
        return self._mean(parts)

    def change_var(self, relative_length: Tensor) -> Tensor:
        """See :meth:`Guide.change_var`."""
        return self.change_cov(relative_length).diagonal(dim1=-2, dim2=-1).mT

    def in_design(self, weights: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """See :meth:`Guide.in_design`."""
        if "basis" not in draws:
            return weights
        turn = self.maps.to(weights)[draws["basis"].long().to(weights.device)]
        return torch.einsum("svw,s...wq->s...vq", turn, weights)

    @torch.no_grad()
    def sample(self, num_samples: int, generator: Generator) -> dict[str, Tensor]:
        """See :meth:`Guide.sample`, with the number of its basis, ``basis`` (S,).

        Root weights and changes are of the reference's latents, so sums along the tree are weights
        of the design; gates and hyperparameters are of the basis's own.
        """
        if self._single:
            return self._guides()[0].sample(num_samples, generator)
        parts = []
        for c, count in enumerate(allotted(self.weight, num_samples, generator)):
            if count:
                part = self._guides()[c].sample(count, generator)
                turned = {name: self._in_design(c, part[name]) for name in _WEIGHTS}
                number = torch.full((count,), c, device=self.weight.device)
                parts.append(part | turned | {"basis": number})
        order = torch.randperm(num_samples, generator=generator).to(self.weight.device)
        return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}

    # ---- in each basis's own latents

    @property
    def closed_form(self) -> bool:
        """See :meth:`Guide.closed_form`; a mixture's quantiles come from draws."""
        return self._single and self._guides()[0].closed_form

    @torch.no_grad()
    def delta_moments(self) -> DeltaMoments:
        """See :meth:`Guide.delta_moments`."""
        return mixed_deltas(self.weight, [guide.delta_moments() for guide in self._guides()])

    @torch.no_grad()
    def log_odds(self) -> Tensor:
        """See :meth:`Guide.log_odds`."""
        return mixed_log_odds(self.weight, [guide.log_odds() for guide in self._guides()])

    @torch.no_grad()
    def path_inclusion(self, arcs: Tensor) -> Tensor:
        """See :meth:`Guide.path_inclusion`."""
        return self._mean([guide.path_inclusion(arcs).double() for guide in self._guides()])

    def shrinkage(self) -> Tensor:
        """See :meth:`Guide.shrinkage`."""
        return self._mean([guide.shrinkage().double() for guide in self._guides()])

    def sample_arcs(self, site: str, num_samples: int, generator: Generator) -> Iterator[Tensor]:
        """See :meth:`Guide.sample_arcs`; one basis after the other."""
        if self._single:
            yield from self._guides()[0].sample_arcs(site, num_samples, generator)
            return
        for c, count in enumerate(allotted(self.weight, num_samples, generator)):
            if count:
                yield from self._guides()[c].sample_arcs(site, count, generator)

    @torch.no_grad()
    def weight_evidence(self, stats: Statistics) -> Tensor:
        """See :meth:`Guide.weight_evidence`; statistics are of the reference's design."""
        each = [guide.weight_evidence(own) for guide, own in self._turned(stats)]
        return self._mean(each)

    @torch.no_grad()
    def evidence_beyond(self, stats: Statistics, weight: int, others: Sequence[int]) -> float:
        """See :meth:`Guide.evidence_beyond`; statistics are of the reference's design."""
        each = [guide.evidence_beyond(own, weight, others) for guide, own in self._turned(stats)]
        return float((self.weight.cpu() * torch.tensor(each, dtype=torch.float64)).sum())

    def _turned(self, stats: Statistics) -> list[tuple[Guide, Statistics]]:
        """Each guide, with the statistics of its own design."""
        flat = stats.flattened()
        return [
            (part.guide, flat if part.turn is None else flat.transform(part.turn))
            for part in self.parts()
        ]

    def nuisance_at(self, nodes: Tensor) -> HyperFactors:
        """See :meth:`Guide.nuisance_at`."""
        return self._guides()[0].nuisance_at(nodes) if self._single else super().nuisance_at(nodes)
