"""What every prior on the arcs' changes is: hyperparameters, and classes of normal changes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Generator, Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper import PositiveScale, as_fixed, spread_fixed
from pyro_tbr.heads.hyper.base import Described
from pyro_tbr.heads.priors.classes import Classes, Values, draw_classes, normal_mixture
from pyro_tbr.heads.priors.factor import PriorFactor
from pyro_tbr.heads.priors.gates import Gates
from pyro_tbr.heads.priors.latent_gates import GateGroups
from pyro_tbr.tree import Tree


class ArcPrior(Described):
    """A prior on root weights (W, Q) and arc changes (A, W, Q); abstract.

    ``W`` counts the weights of one outcome: the latents, then the intercept if there is one.

    A new prior says two things: its hyperparameters, which ``_build_changes`` makes as attributes,
    and in :meth:`classes` the mixture of normals that a change is drawn from given their values.
    Sites, draws, messages along the tree and both guides follow from these. Where the default of
    :class:`PriorFactor` is too coarse, :meth:`factor` returns a subclass of it.

    Example:
        Changes that are small, or large, with even odds and known sizes:

        >>> class TwoNormals(ArcPrior):
        ...     def __init__(self, scale=None, root_scale=None):
        ...         super().__init__(scale=scale, root_scale=root_scale)
        ...         self.scale_value = as_fixed(scale, "scale")
        ...
        ...     def _build_changes(self, tree, standard_error):
        ...         self.slab_scale = self._scale("slab_scale", self.scale_value, median=0.5)
        ...
        ...     def classes(self, values, relative_length=None):
        ...         var = values["slab_scale"].unsqueeze(-3).square()
        ...         var = torch.stack([0.01 * var, var], -1)
        ...         return Classes(torch.full_like(var, 0.5), torch.zeros_like(var), var)
        >>> TwoNormals(scale=1.0)
        TwoNormals(scale=1.0)

    Attributes:
        gated: The first class is the closed gate: a change is *included* in the others. Sites are
            then ``gates``, ``slab`` and, where the first class has a width, ``spike``.
        has_levels: Of a built prior, gates of several outcomes depend on whether their arc is
            active, so outcomes tell of each other's gates.
        all_or_none: Of a built prior, an arc changes either all outcomes or none.
        has_spike: Arcs whose gate is closed change a little.
        use_lengths: What a change is depends on the length of its arc.
        latent_of: Of a built prior, of which latent each weight is, where some have several.
        groups: Of a built prior, which gates are one; ``None``: each is its own.
    """

    gated = False
    has_levels = False
    all_or_none = False
    has_spike = False
    use_lengths = False
    latent_of: tuple[int, ...] | None = None
    groups: GateGroups | None = None

    def __init__(self, **description: Any) -> None:
        super().__init__(**description)
        self.root_scale_value = as_fixed(description["root_scale"], "root_scale")

    def build(
        self,
        tree: Tree,
        num_weights: int,
        num_outcomes: int,
        *,
        num_latents: int | None = None,
        outcome_scale: Tensor | None = None,
        latent_units: tuple[Tensor, Tensor] | None = None,
        root_loc: Tensor | None = None,
        standard_error: float = 0.1,
        predictor_scale: float = 1.0,
        latent_of: Sequence[int] | None = None,
    ) -> ArcPrior:
        """This prior for a tree and sizes, as a new module that has all its buffers.

        Args:
            tree: The environments.
            num_weights: W.
            num_outcomes: Q.
            num_latents: K; W where absent. What comes behind is the intercept.
            outcome_scale: (Q,), the user's units in one unit of the outcomes the model sees.
            latent_units: Shift and scale of the latents, (K,) each: the user's are
                ``shift + scale * (latents the model sees)``.
            root_loc: (W, Q), prior mean of the root weights in the model's units; zero if absent.
            standard_error: Typical standard error of one leaf's weight in the model's units; sets
                the horseshoe's global scale.
            predictor_scale: Of the likelihood, in which the medians of learnt scales are given.
            latent_of: Of which latent each weight is, (W,) numbers from 0, the intercept's last,
                where latents have several functions; ``None``: each weight is one's own.
        """
        built = copy.deepcopy(self)
        built.predictor_scale = float(predictor_scale)
        outcome = torch.ones(num_outcomes) if outcome_scale is None else outcome_scale
        latent = torch.ones(num_weights)
        if latent_units is not None:
            scale = latent_units[1].to(latent)
            latent[: len(scale)] = scale
            if latent_of is not None:  # of curves, so that a fixed scale means the same of them
                latent = torch.cat([scale, latent.new_ones(1)])[list(latent_of)]
        built.unit = (outcome / latent[:, None]).to(torch.get_default_dtype())
        built.num_arcs, built.num_weights = tree.num_arcs, num_weights
        built.num_outcomes = num_outcomes
        built.latent_of = None if latent_of is None else tuple(latent_of)
        built.num_latents = num_weights if num_latents is None else num_latents
        loc = torch.zeros(num_weights, num_outcomes) if root_loc is None else root_loc
        built.register_buffer("root_loc", loc.to(torch.get_default_dtype()))
        built.root_scale = built._scale("root_scale", built.root_scale_value, median=1.0)
        fixed = built.root_scale.fixed
        if fixed is not None and latent_units is not None and num_weights > len(latent_units[0]):
            # Fixed root scales say what is believed where latents are 0, not at their shift.
            shift, scale = latent_units
            slopes = (shift / scale).to(fixed)[:, None] * fixed[: len(shift)]
            fixed[-1] = (fixed[-1].square() + slopes.square().sum(0)).sqrt()
        built._build_changes(tree, standard_error)
        return built

    def _scale(self, name: str, fixed: Tensor | None, *, median: float) -> PositiveScale:
        """A scale of shape (W, 1) where learnt, (W, Q) where the user fixed it."""
        if fixed is None:
            median = self.predictor_scale * median
            return PositiveScale(name, (self.num_weights, 1), None, median=median)
        return PositiveScale(name, self.delta_shape[1:], self._in_unit(fixed, name))

    def _in_unit(self, value: Tensor, argument: str) -> Tensor:
        """What the user gave in outcome per unit of latent, (W, Q) in the model's units.

        Functions of a latent have what was given for the latent.
        """
        of = self.latent_of
        if of is not None and value.dim() == 2 and len(value) == max(of) + 1:
            value = value[list(of)]
        return spread_fixed(value, self.delta_shape[1:], argument) / self.unit

    def _build_changes(self, tree: Tree, standard_error: float) -> None:
        """Sets the hyperparameters of the changes as attributes."""
        raise NotImplementedError

    def classes(self, values: Values, relative_length: Tensor | None = None) -> Classes:
        """The law of the changes given values of the hyperparameters.

        Args:
            values: By site name, (*S, ...).
            relative_length: Lengths of some arcs over the mean of the tree's, (A',); the tree's
                own arcs where absent.
        """
        raise NotImplementedError

    def factor(self) -> PriorFactor:
        """Its part of q, for a built prior."""
        return PriorFactor(self)

    def tree_factor(self) -> PriorFactor:
        """The same for a guide that is exact along the tree; may hold hyperparameters jointly."""
        return self.factor()

    @property
    def delta_shape(self) -> tuple[int, int, int]:
        """(A, W, Q)."""
        return (self.num_arcs, self.num_weights, self.num_outcomes)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Pyro sites; returns root weights (W, Q) and deltas (A, W, Q)."""
        law = dist.Normal(self.root_loc, self.root_scale()).to_event(2)
        root = pyro.sample("root_weights", law)
        rest = (hyper for hyper in self.hyperparameters() if hyper is not self.root_scale)
        laws = self.site_laws({hyper.name: hyper() for hyper in rest})
        sites = {name: pyro.sample(name, whole_event(law)) for name, law in laws.items()}
        if not self.gated:
            return root, sites["deltas"]
        deltas = sites["gates"] * sites["slab"]
        if self.has_spike:
            deltas = deltas + (1 - sites["gates"]) * self.may_change() * sites["spike"]
        return root, pyro.deterministic("deltas", deltas, event_dim=3)

    def may_change(self, relative_length: Tensor | None = None) -> Tensor:
        """Which arcs may change at all, (A, 1, 1) bool."""
        num = self.num_arcs if relative_length is None else len(relative_length)
        return torch.ones(num, 1, 1, dtype=torch.bool, device=self.root_loc.device)

    def site_laws(self, values: Values) -> dict[str, dist.TorchDistribution]:
        """Distributions of the sites of the changes given the hyperparameters, (*S, A, W, Q)."""
        parts, shape = torch.broadcast_tensors(*self.classes(values)), self.delta_shape
        prob, mean, var = (p.expand(*p.shape[:-4], *shape, p.shape[-1]) for p in parts)
        if not self.gated:
            return {"deltas": normal_mixture(prob, mean, var)}
        laws: dict[str, dist.TorchDistribution] = {
            "gates": Gates(prob[..., 1:].sum(-1)),
            "slab": normal_mixture(prob[..., 1:], mean[..., 1:], var[..., 1:]),
        }
        if self.has_spike:
            width = torch.where(var[..., 0] > 0, var[..., 0], 1.0).sqrt()
            laws["spike"] = dist.Normal(mean[..., 0], width)
        return laws

    def gates_given(self, on: Tensor, known: Tensor, values: Values) -> dist.TorchDistribution:
        """A law of gates that are independent where known, (A, 1, 1) bool, else the prior's.

        Probabilities ``on`` of open gates, (*S, A, W, Q), are the prior's where not known.
        """
        del known, values
        return Gates(on)

    def without_learnt_spike(self) -> ArcPrior:
        """This prior, built or not, with no change where gates are closed; itself if that is known.

        A spike of learnt width takes up what latents mix of each other, so it hardly minds a wrong
        basis: bases are compared without it.
        """
        return self

    def without_arcs(self) -> ArcPrior:
        """This prior, not built, without what it says of single arcs: for another tree."""
        return self

    def draw_changes(
        self, values: Values, generator: Generator, relative_length: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Changes along arcs nothing is known of, given draws of the hyperparameters, draws first.

        Arcs are those of :meth:`classes`.

        Returns:
            ``deltas`` and, where the prior has them, ``gates``, each (S, A', W, Q).
        """
        num_samples = len(next(iter(values.values())))
        num_arcs = self.num_arcs if relative_length is None else len(relative_length)
        shape = (num_samples, num_arcs, self.num_weights, self.num_outcomes)
        deltas, pick = draw_classes(self.classes(values, relative_length), shape, generator)
        draws = {"deltas": deltas}
        if self.gated:
            draws["gates"] = (pick > 0).to(deltas.dtype)
        return draws


def whole_event(law: dist.TorchDistribution) -> dist.TorchDistribution:
    """A law of changes (*S, A, W, Q) whose arcs, weights and outcomes are one event."""
    return law.to_event(3 - len(law.event_shape))


def share_of(expected: float, num_arcs: int) -> float:
    """Expected share of changed arcs, refused where it is no probability."""
    if not 0 < expected < num_arcs:
        raise DataError(
            f"expected_num_nonzero={expected:g} must be above 0 and below the number of arcs, "
            f"{num_arcs}: it counts changed arcs per latent and outcome"
        )
    return expected / num_arcs
