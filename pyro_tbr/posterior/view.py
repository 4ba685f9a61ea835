"""What a fit found, as one frozen value, and its numbers in the user's units.

The other files of this room work on a :class:`PosteriorView`, and the user's
:class:`~pyro_tbr.Posterior` is one that has their answers for methods. The model believes in units
of its own: outcomes of variance 1, and known latents that may be centred and scaled. Here, and
nowhere else, they become the user's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.data import (
    Features,
    Known,
    Outcomes,
    RowOrder,
    Schema,
    align_env,
    align_features,
    align_known,
    align_outcomes,
)
from pyro_tbr.errors import DataError
from pyro_tbr.heads import DesignRows, Guide, RowTerms
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.heads.moments import DeltaMoments, NodeMoments
from pyro_tbr.heads.priors.latent_gates import first_of_each
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.models import TreeModel
from pyro_tbr.models.encoders import LatentUnits
from pyro_tbr.posterior.fit_report import FitReport
from pyro_tbr.tree import Tree, path_sum

_BLOCK_ELEMENTS = 20_000_000  # weights at nodes are made in blocks of about this size

Own = TypeVar("Own", bound="PosteriorView")


class Kept:
    """The last few results by key, for several threads; empty in every copy and file.

    A result depends on its key alone and nobody changes it, so it does not matter which thread
    made it.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._entries: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of a key, made where it is not there; the oldest goes where there are many."""
        with self._lock:
            if key in self._entries:
                return self._entries[key]
        value = make()  # outside the lock: calls for other keys need not wait
        with self._lock:
            self._entries[key] = value
            while len(self._entries) > self.most:
                del self._entries[next(iter(self._entries))]
        return value

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type[Kept], tuple[int]]:
        return Kept, (self.most,)


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorView:
    """What a fit found; nothing of it changes.

    Attributes:
        model: The trained model, outcomes in its own units.
        guide: The guide at its optimum.
        stats: Statistics of the rows it was fitted to.
        schema: What later tables have to fit.
        scaling: From the model's units of the outcomes to the user's.
        row_counts: Rows at each node, (V,).
        report: What the fit did.
        draws_kept: Draws behind the last predictions, as many calls ask for the same.
        tables_kept: Answers that take seconds: the changes by level, the identification.
    """

    model: TreeModel
    guide: Guide
    stats: Statistics
    schema: Schema
    scaling: Scaling
    row_counts: Tensor
    report: FitReport
    draws_kept: Kept = field(default_factory=lambda: Kept(2), init=False)
    tables_kept: Kept = field(default_factory=lambda: Kept(8), init=False)

    def __post_init__(self) -> None:
        self.model.eval()  # no dropout, no batch statistics in a user's own encoder

    @property
    def tree(self) -> Tree:
        """The environments."""
        return self.model.tree

    @property
    def latent_names(self) -> tuple[str, ...]:
        """``z0``, ``z1``, ..., then ``intercept`` where there is one; see ``weight_names``."""
        return self.model.weight_names

    @property
    def gate_places(self) -> list[int]:
        """Weights that stand for all functions of their latent, as these change together: (G,)."""
        latent_of = self.model.latent_of
        if latent_of is None:
            return list(range(len(self.latent_names)))
        return first_of_each(latent_of)

    @property
    def gate_names(self) -> tuple[str, ...]:
        """Names of the latents and the intercept, without those of curves, (G,)."""
        return tuple(self.latent_names[place] for place in self.gate_places)

    @property
    def outcome_names(self) -> tuple[Hashable, ...]:
        """The user's column names as they are, else ``y0``, ``y1``, ..."""
        return self.schema.outcome_names

    @property
    def latent_units(self) -> LatentUnits:
        """Those of the features where they are the latents, else shift 0 and scale 1."""
        return LatentUnits(*(part.cpu() for part in self.model.encoder.latent_units))

    @property
    def weight_unit(self) -> Tensor:
        """One of the model's slopes or changes in the user's units, (W, Q)."""
        per_latent = 1 / self.latent_units.scale
        others = self.model.num_weights - len(per_latent)  # curves and intercept have no unit
        per_latent = torch.cat([per_latent, per_latent.new_ones(others)])
        return per_latent[:, None] * self.scaling.scale

    @property
    def weights_that_exist(self) -> np.ndarray:
        """Latents that are not constant, and the intercept, (W,) bool."""
        exists = np.ones(len(self.latent_names), dtype=bool)
        exists[self.report.rank : self.model.latent_dim] = False
        latent_of = self.model.latent_of
        if latent_of is None:
            return exists
        latents = np.append(exists[: self.model.latent_dim], True)  # and the intercept
        return latents[list(latent_of)]

    @property
    def informed_changes(self) -> np.ndarray:
        """Of which changes the rows say something, (A, W) bool.

        Elsewhere, on arcs without rows below and of latents that are constant, a PIP is the
        prior's: no discovery. The functions of a latent change together, so its first weight's
        stand for all.
        """
        stands = np.zeros(len(self.latent_names), dtype=bool)
        stands[self.gate_places] = True
        return self.guide.informed_arcs.cpu().numpy()[:, None] & (self.weights_that_exist & stands)

    # ---- rows of the user's

    def latents(self, features: Tensor | Features) -> Tensor:
        """Latents (N, K) of aligned features (N, D), user's units, double precision."""
        shift, scale = self.latent_units
        z = self.encoded(features)
        return shift.to(z.device) + scale.to(z.device) * z

    def align_design(self, x: Any) -> tuple[Tensor, pd.Index | None]:
        """The model's own design (N, W) for the user's features, and their index."""
        features, index = align_features(self.schema, x, keep=True)
        return self.model.design(self.encoded(features)), index

    def encoded(self, features: Tensor | Features) -> Tensor:
        """Latents as the model sees them."""
        device = self.model.prior.root_loc.device
        return self.model.encoder(features.to(device)).double()

    def align_outcomes(self, y: Any, order: RowOrder) -> Tensor:
        """Outcomes (N, Q) of later rows in the user's units, NaN where not observed."""
        return align_outcomes(self.schema, y, order, check=self.model.likelihood.check)

    def align_known(self, given: Mapping[str, Any], order: RowOrder) -> Known:
        """What users say of rows beside y, by argument, in their units."""
        return align_known(self.schema, given, self.model.likelihood.takes, order)

    def row_terms(self, known: Known, order: RowOrder) -> RowTerms:
        """The same in the model's units."""
        return self.model.likelihood.row_terms(known, self.scaling, order.size)

    def align_rows(
        self, x: Any, y: Any, env: Any, given: Mapping[str, Any], **others: Any
    ) -> tuple[DesignRows, RowOrder]:
        """Rows with outcomes, as the model sees them, and their order.

        ``others`` are arguments that may order the rows too. A row of weight 0 is not observed.
        """
        with torch.no_grad():
            design, _ = self.align_design(x)
        order = RowOrder(len(design)).or_of(x=x, y=y, env=env, **others)
        outcomes = self.align_outcomes(y, order)
        nodes = align_env(self.tree, env, order).to(design.device)
        known = self.align_known(given, order)
        seen = Outcomes(outcomes.numpy(), self.outcome_names, order.index)
        y_model = self.scaling.to_model(self.model.likelihood.observed(seen, known)).to(design)
        terms = self.row_terms(known, order).to(y_model)
        return DesignRows(design, y_model, nodes, terms=terms), order

    # ---- moments and draws

    def user_weights(self, weights: Tensor) -> Tensor:
        """Weights of nodes from the model's units to the user's, (*B, W, Q), double precision.

        The intercept becomes that at latents of 0 in the user's units.
        """
        weights = weights.cpu().double() * self.weight_unit
        if self.model.intercept:
            shift = self.latent_units.shift
            slopes, intercept = weights[..., :-1, :], weights[..., -1:, :]
            back = torch.einsum("k,...kq->...q", shift, slopes[..., : len(shift), :]).unsqueeze(-2)
            weights = torch.cat([slopes, intercept + self.scaling.loc - back], dim=-2)
        return weights

    @torch.no_grad()
    def user_moments(self) -> NodeMoments:
        """Of the weights at every node in the user's units, (V, W, Q); latents independent."""
        moments = self.guide.node_moments()
        var = moments.var.cpu().double() * self.weight_unit.square()
        if self.model.intercept:
            square = self.latent_units.shift.square()
            var[:, -1] += torch.einsum("k,vkq->vq", square, var[:, : len(square)])
        mean = self.user_weights(moments.mean)
        if self.reference_cov is not None:
            off = mean[:, : len(self.reference_cov)] - self._usual_slopes(mean)
            var[:, -1] += torch.einsum("vkq,kl,vlq->vq", off, self.reference_cov, off)
        return NodeMoments(mean, var)

    def user_weight_draws(self, weights: Tensor) -> Tensor:
        """Draws of nodes' weights (S, *B, W, Q) in the user's units.

        With the error of the reference point, the same one in a draw for all nodes and calls.
        Means of several draws stay what they are.
        """
        found, cov = self.user_weights(weights), self.reference_cov
        if cov is not None:
            usual = self._usual_slopes(self.user_weights(self.guide.node_moments().mean))
            generator = torch.Generator().manual_seed(0)
            error = torch.randn(len(found), len(cov), generator=generator, dtype=torch.float64)
            off = found[..., : len(cov), :] - usual
            moved = torch.einsum("sk,s...kq->s...q", error @ torch.linalg.cholesky(cov).mT, off)
            if len(moved) > 1:
                moved = moved - moved.mean(0)
            found[..., -1, :] += moved
        return found

    @property
    def reference_cov(self) -> Tensor | None:
        """Of the error of the point that intercepts are judged at, (K, K), if they have one.

        It is one of the intercepts where slopes are not the usual.
        """
        return self.report.reference_cov if self.model.intercept else None

    def _usual_slopes(self, mean: Tensor) -> Tensor:
        """Of weights (V, W, Q) the mean slopes of nodes with rows, (K, Q)."""
        return mean[self.row_counts.cpu() > 0, : len(self.latent_units.shift)].mean(0)

    @torch.no_grad()
    def user_deltas(self) -> DeltaMoments:
        """Of the changes in the user's units, (A, W, Q), double precision."""
        m = DeltaMoments(*(part.cpu().double() for part in self.guide.delta_moments()))
        unit = self.weight_unit
        return m._replace(
            mean=m.mean * unit,
            var=m.var * unit.square(),
            slab_mean=m.slab_mean * unit,
            slab_var=m.slab_var * unit.square(),
        )

    @torch.no_grad()
    def draws(self, num_draws: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Joint draws by site name in the model's units, double precision, on the CPU."""
        draws = self.guide.sample(num_draws, generator)
        return {name: value.detach().cpu().double() for name, value in draws.items()}

    def nuisance_at(
        self, draws: dict[str, Tensor], nodes: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Draws of the likelihood's own parameters for rows at nodes (n,), (S, n or 1, ...).

        With what follows from draws of the weights there, (S, n, W, Q).
        """
        likelihood = self.model.likelihood
        own = {name: draws[name] for name in self.guide.nuisance}
        follows = likelihood.values_with(own, weights)
        if likelihood.by_node:
            return likelihood.values_at_nodes(own, nodes) | follows
        return {name: value.unsqueeze(1) for name, value in own.items()} | follows

    def user_draws(self, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws of :meth:`draws` in the user's units; scales of the prior stay in the model's."""
        weights = {
            "root_weights": self.user_weight_draws(draws["root_weights"]),
            "deltas": draws["deltas"] * self.weight_unit,
        }
        likelihood, unit = self.model.likelihood, self.latent_units.scale
        of_latents = {h.name for h in likelihood.hyperparameters() if h.unit == "latent"}
        scales = {name: draws[name] * unit for name in of_latents & draws.keys()}
        return likelihood.rescale(draws | weights | scales, self.scaling)


def weights_at(tree: Tree, nodes: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """Weights at some nodes (n,), (S, n, W, Q), from draws of root weights and changes.

    In blocks, so there is no table of all nodes and draws. Of draws in the model's units: in the
    user's an intercept at latents of 0 is not the sum of that of the root and its changes.
    """
    blocks = []
    size = max(1, _BLOCK_ELEMENTS // draws["deltas"][0].numel())
    for rows in torch.arange(len(draws["deltas"])).split(size):
        every = path_sum(tree, draws["root_weights"][rows], draws["deltas"][rows], event_dim=2)
        blocks.append(every[:, nodes])
    return torch.cat(blocks)


def check_number(number: int, argument: str, least: int = 1) -> None:
    """Refuses what is no number of draws, folds, chains and their like."""
    if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
        raise DataError(f"{argument}={number!r} must be a whole number, {least} or more")


def is_real(number: object) -> bool:
    """Whether it can be compared with a bound: text and None cannot."""
    return isinstance(number, Real) and not isinstance(number, bool)


def check_seed(seed: int) -> None:
    """Refuses what is no seed of draws from a posterior."""
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise DataError(f"seed={seed!r} must be a whole number, such as 0: the draws are its own")


def check_posterior(posterior: object) -> None:
    """Refuses what is no posterior, such as a model that is not fitted yet."""
    if not isinstance(posterior, PosteriorView):
        way_out = ": fit it first, posterior = fit(model, x, y, env)"
        raise DataError(
            f"posterior must be a pyro_tbr.Posterior, got {type(posterior).__name__}"
            + (way_out if isinstance(posterior, TreeModel) else ", which fit and load return")
        )


def check_level(level: float) -> None:
    """Refuses what is no probability of an interval."""
    if not (is_real(level) and 0 < level < 1):
        raise DataError(f"level={level!r} must be a number above 0 and below 1, such as 0.9")


def require_gates(view: PosteriorView, call: str) -> None:
    """Raises where the prior has no gates, so that nothing is included or not."""
    if not view.guide.has_gates:
        raise DataError(
            f"{call} needs gates that are on or off, which {type(view.model.prior).__name__} has "
            "not (every change is included): use exceedance(threshold), or fit with SpikeSlabPrior"
        )
