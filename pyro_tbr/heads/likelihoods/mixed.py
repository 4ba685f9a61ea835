"""Outcomes of several kinds: a likelihood for each column."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pyro.distributions as dist
import torch
from torch import Generator, Tensor, nn

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper import HyperFactor, HyperFactors, Hyperparameter
from pyro_tbr.heads.likelihoods.base import Kind, Likelihood, SeenRows
from pyro_tbr.heads.likelihoods.distributions import Columns
from pyro_tbr.heads.likelihoods.expectations import Nuisance, SiteTerms
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.tree.readers.naming import listed


class _Group(NamedTuple):
    """Columns of one likelihood.

    Attributes:
        likelihood: Theirs, built once the whole is.
        columns: Which, (q,) int64.
        sites: Of the likelihood's parameters, by their names.
    """

    likelihood: Likelihood
    columns: Tensor
    sites: dict[str, str]


class MixedLikelihood(Likelihood):
    """Each outcome has a likelihood of its own; outcomes are independent given the weights.

    Columns that have the same one share it, so their parameters stand in one site, in the order of
    the columns; where two have parameters of one name, the name of their first column is added.

    Args:
        parts: A likelihood for the name of each outcome, all of them.
    """

    def __init__(self, parts: Mapping[Hashable, Likelihood]) -> None:
        super().__init__(parts=dict(parts))
        self._parts = dict(parts)
        self.by_node = any(part.by_node for part in parts.values())
        self.takes = _taken(parts.values())
        self.built = nn.ModuleList()
        self._groups: list[_Group] = []

    def resolved(self, names: Sequence[Hashable], known: Collection[str]) -> MixedLikelihood:
        """See :meth:`Likelihood.resolved`."""
        new = MixedLikelihood(self._parts)
        new._groups = self._grouped(names, known)
        new.by_node = any(group.likelihood.by_node for group in new._groups)
        new.predictor_scale = float(np.mean([self._parts[name].predictor_scale for name in names]))
        return new

    def _grouped(self, names: Sequence[Hashable], known: Collection[str]) -> list[_Group]:
        """The columns of each different likelihood.

        Raises:
            DataError: A name without a likelihood, or the other way round.
        """
        unknown = tuple(name for name in self._parts if name not in set(names))
        without = tuple(name for name in names if name not in self._parts)
        if unknown or without:
            what = f"none for {listed(without)}" if without else f"y has no {listed(unknown)}"
            raise DataError(
                f"likelihood has one for {listed(tuple(self._parts))}, and y has the columns "
                f"{listed(tuple(names))} ({what}): give one for each column, by its name"
            )
        groups: list[tuple[Likelihood, list[int]]] = []
        for place, name in enumerate(names):
            own = self._parts[name]
            for other, columns in groups:
                if type(other) is type(own) and other.description == own.description:
                    columns.append(place)
                    break
            else:
                groups.append((own, [place]))
        found = []
        for part, columns in groups:
            some = tuple(names[q] for q in columns)
            resolved = part.resolved(some, known)
            if resolved.correlated:
                raise DataError(
                    f"{resolved.because} for {listed(some)} beside outcomes of other kinds: noise "
                    "goes together where all outcomes have that likelihood; give one "
                    f"likelihood=GaussianLikelihood for all, or {resolved.instead}"
                )
            found.append(_Group(resolved, torch.tensor(columns), {}))
        return found

    def build(self, num_outcomes: int, **kwargs: Any) -> MixedLikelihood:
        """See :meth:`Likelihood.build`."""
        built = cast(MixedLikelihood, super().build(num_outcomes, **kwargs))
        names = kwargs.get("names") or [f"y{q}" for q in range(num_outcomes)]
        groups, taken = [], set[str]()
        for group in built._groups:
            own = [names[q] for q in group.columns.tolist()]
            part = group.likelihood.build(
                len(own), outcome_scale=built.unit[group.columns], num_nodes=built.num_nodes,
                names=own, known=kwargs.get("known", ()),
            )  # fmt: skip
            built.built.append(part)
            hypers = part.hyperparameters()
            if taken & {hyper.name for hyper in hypers}:
                for hyper in hypers:
                    hyper.site = f"{hyper.name}_{own[0]}"
            taken |= {hyper.site for hyper in hypers}
            sites = {hyper.name: hyper.site for hyper in hypers}
            groups.append(_Group(part, group.columns, sites))
        built._groups = groups
        built.takes = _taken(group.likelihood for group in groups)
        return built

    def hyperparameters(self) -> list[Hyperparameter]:
        """Those of all parts."""
        return [hyper for group in self._groups for hyper in group.likelihood.hyperparameters()]

    def kinds(self) -> list[Kind]:
        """See :meth:`Likelihood.kinds`."""
        return [
            Kind(group.columns, kind.interval, kind.discrete)
            for group in self._groups
            for kind in group.likelihood.kinds()
        ]

    def noises(self, nuisance: HyperFactors) -> list[tuple[HyperFactor, Tensor]]:
        """See :meth:`Likelihood.noises`."""
        return [
            (factor, group.columns[columns])
            for group in self._groups
            for factor, columns in group.likelihood.noises(_own(group, nuisance))
        ]

    # ---- outcomes

    def check(self, y: Outcomes) -> None:
        """See :meth:`Likelihood.check`."""
        for part, _, some in self._checked(y):
            part.check(some)

    def check_informative(self, y: Outcomes) -> None:
        """See :meth:`Likelihood.check_informative`."""
        for part, _, some in self._checked(y):
            part.check_informative(some)

    def check_with(self, y: Outcomes, values: Mapping[str, np.ndarray]) -> None:
        """See :meth:`Likelihood.check_with`."""
        for part, columns, some in self._checked(y):
            part.check_with(some, {name: value[:, columns] for name, value in values.items()})

    def _checked(self, y: Outcomes) -> list[tuple[Likelihood, np.ndarray, Outcomes]]:
        """Each likelihood, its columns and their outcomes."""
        found = []
        for group in self._grouped(y.names, ()):
            columns = group.columns.numpy()
            names = tuple(y.names[q] for q in columns)
            found.append(
                (group.likelihood, columns, Outcomes(y.values[:, columns], names, y.index))
            )
        return found

    def standardise(self, y: Tensor, *, intercept: bool) -> Scaling:
        """See :meth:`Likelihood.standardise`."""
        return self.units(y, {}, intercept=intercept)

    def units(self, y: Tensor, values: Mapping[str, Tensor], *, intercept: bool) -> Scaling:
        """See :meth:`Likelihood.units`."""
        loc, scale = torch.zeros(y.shape[1], dtype=torch.float64), torch.ones(y.shape[1]).double()
        of_outcome = torch.ones(y.shape[1], dtype=torch.bool)
        for part, columns, _ in self._groups:
            known = {name: value[:, columns] for name, value in values.items()}
            own = part.units(y[:, columns], known, intercept=intercept)
            loc[columns], scale[columns] = own.loc.cpu(), own.scale.cpu()
            if own.of_outcome is not None:
                of_outcome[columns] = own.of_outcome.cpu()
        return Scaling(loc, scale, of_outcome)

    def row_values(
        self, values: Mapping[str, Tensor], scaling: Scaling, num_rows: int
    ) -> dict[str, Tensor]:
        """See :meth:`Likelihood.row_values`; 1 where a column's likelihood takes no such value."""
        found: dict[str, Tensor] = {}
        for part, columns, _ in self._groups:
            known = {
                name: value[:, columns] for name, value in values.items() if name in part.takes
            }
            for name, value in part.row_values(known, scaling.of(columns), num_rows).items():
                one = torch.ones(num_rows, len(scaling.loc), dtype=torch.float64)
                found.setdefault(name, one)[:, columns] = value
        return found

    def rescale(self, draws: dict[str, Tensor], scaling: Scaling) -> dict[str, Tensor]:
        """See :meth:`Likelihood.rescale`."""
        new = dict(draws)
        for group in self._groups:
            own = {name: draws[site] for name, site in group.sites.items() if site in draws}
            own = group.likelihood.rescale(own, scaling.of(group.columns))
            new |= {group.sites[name]: value for name, value in own.items()}
        return new

    def filled(self, y: Tensor) -> Tensor:
        """See :meth:`Likelihood.filled`."""
        return self._joined(lambda part, columns, _: part.filled(y[..., columns]), {})

    # ---- expectations

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Columns of the parts' own distributions."""
        parts = [
            group.likelihood(predictor[..., group.columns], _own(group, nuisance))
            for group in self._groups
        ]
        return Columns(parts, [group.columns for group in self._groups])

    def start_moments(self, y: Tensor, nuisance: Nuisance) -> tuple[Tensor, Tensor]:
        """See :meth:`Likelihood.start_moments`."""
        mean, var = self._several(lambda part, at, own: part.start_moments(y[:, at], own), nuisance)
        return mean, var

    def expected_log_prob(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """See :meth:`Likelihood.expected_log_prob`."""
        return self._joined(
            lambda part, at, own: part.expected_log_prob(y[:, at], mean[:, at], var[:, at], own),
            nuisance,
        )

    def site_terms(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> SiteTerms:
        """See :meth:`Likelihood.site_terms`; an exact part's precision has its noise in it."""

        def sites(part: Likelihood, at: Tensor, own: Any) -> tuple[Tensor, ...]:
            found = part.site_terms(y[:, at], mean[:, at], var[:, at], own)
            return found._replace(precision=found.precision * part.site_scale(own))

        return SiteTerms(*self._several(sites, nuisance))

    def _learn(self, nuisance: HyperFactors, rows: SeenRows, *, common: bool) -> None:
        """See :meth:`Likelihood.learn`."""
        for group in self._groups:
            own, some = _own(group, nuisance), rows.of_outcomes(group.columns)
            group.likelihood._learn(own, some, common=common)

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: Nuisance
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Likelihood.predictive_moments`."""
        first, spread = self._several(
            lambda part, at, own: part.predictive_moments(mean[:, at], var[:, at], own), nuisance
        )
        return first, spread

    def _joined(self, function: Callable[..., Tensor], nuisance: Nuisance) -> Tensor:
        """What a function of part, columns and its own nuisance gives, columns in their order."""
        (found,) = self._several(lambda *given: (function(*given),), nuisance)
        return found

    def _several(
        self, function: Callable[..., tuple[Tensor, ...]], nuisance: Nuisance
    ) -> tuple[Tensor, ...]:
        back = torch.cat([group.columns for group in self._groups]).argsort()
        each = [function(g.likelihood, g.columns, _own(g, nuisance)) for g in self._groups]
        return tuple(torch.cat(parts, -1)[..., back] for parts in zip(*each, strict=True))

    # ---- parameters

    def factors(self) -> dict[str, HyperFactor]:
        """See :meth:`Likelihood.factors`."""
        return self._by_site(lambda part, _: part.factors(), {})

    def sample_nuisance(self) -> dict[str, Tensor]:
        """See :meth:`Likelihood.sample_nuisance`."""
        return self._by_site(lambda part, _: part.sample_nuisance(), {})

    def guide_sites(self, nuisance: HyperFactors) -> None:
        """See :meth:`Likelihood.guide_sites`."""
        for group in self._groups:
            group.likelihood.guide_sites(_own(group, nuisance))

    def draw_nuisance(
        self, nuisance: HyperFactors, num_draws: int, generator: Generator
    ) -> dict[str, Tensor]:
        """See :meth:`Likelihood.draw_nuisance`."""
        return self._by_site(
            lambda part, own: part.draw_nuisance(own, num_draws, generator), nuisance
        )

    def know_nodes(self, nuisance: HyperFactors, nodes: Tensor, *, only: bool = False) -> None:
        """See :meth:`Likelihood.know_nodes`."""
        for group in self._groups:
            group.likelihood.know_nodes(_own(group, nuisance), nodes, only=only)

    def forget_nodes(self, nuisance: HyperFactors) -> None:
        """See :meth:`Likelihood.forget_nodes`."""
        for group in self._groups:
            group.likelihood.forget_nodes(_own(group, nuisance))

    def at_nodes(self, nuisance: HyperFactors, index: Tensor) -> HyperFactors:
        """See :meth:`Likelihood.at_nodes`."""
        return self._by_site(lambda part, own: part.at_nodes(own, index), nuisance)

    def with_new_node(
        self, values: Mapping[str, Tensor], generator: Generator
    ) -> dict[str, Tensor]:
        """See :meth:`Likelihood.with_new_node`."""
        new = self._by_site(lambda part, own: part.with_new_node(own, generator), values)
        return {**values, **new}

    def values_at_nodes(self, values: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """See :meth:`Likelihood.values_at_nodes`."""

        def at_nodes(part: Likelihood, own: dict[str, Tensor]) -> dict[str, Tensor]:
            found = part.values_at_nodes(own, index)
            if part.by_node or not self.by_node:
                return found
            return {name: value.unsqueeze(-2) for name, value in found.items()}

        return self._by_site(at_nodes, values)

    def _by_site(self, function: Callable[..., Any], values: Any) -> dict[str, Any]:
        """What a function of part and its own values gives by name, by site."""
        found: dict[str, Any] = {}
        for group in self._groups:
            own = function(group.likelihood, _own(group, values))
            found |= {group.sites.get(name, name): value for name, value in own.items()}
        return found


def _taken(parts: Iterable[Likelihood]) -> tuple[str, ...]:
    """What some of the parts take of rows."""
    return tuple(dict.fromkeys(name for part in parts for name in part.takes))


def _own(group: _Group, values: Any) -> dict[str, Any]:
    """A group's own by name: factors or values of its parameters, and what is known of its rows."""
    own = {name: values[site] for name, site in group.sites.items() if site in values}
    for name in group.likelihood.takes:
        if name in values:
            own[name] = values[name][..., group.columns]
    return own
