"""What a likelihood is: from a linear predictor to the distribution of an outcome."""

from __future__ import annotations

import copy
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.data.outcomes import default_names
from pyro_tbr.heads.hyper.base import HyperFactor, HyperFactors, by_name
from pyro_tbr.heads.likelihoods.expectations import (
    Nuisance,
    SiteTerms,
    expectation,
    of_rows,
    row_chunks,
    touching,
)
from pyro_tbr.heads.likelihoods.learning import climb
from pyro_tbr.heads.likelihoods.support import Support
from pyro_tbr.heads.moments import NodeMoments

_LEAST_PRECISION = 1e-6  # of a row's site, over the mean one of its outcome


class Kind(NamedTuple):
    """What predictions of some outcomes are like; attributes are those of the likelihood.

    ``columns`` (q,) says of which outcomes; ``None``: all.
    """

    columns: Tensor | None
    interval: str
    discrete: bool


class SeenRows(NamedTuple):
    """Rows that parameters are learnt from, (N, Q) double; see :meth:`Likelihood.learn`."""

    y: Tensor
    mean: Tensor
    var: Tensor
    weights: Tensor
    env_index: Tensor | None
    values: Mapping[str, Tensor]

    def of_outcomes(self, columns: Tensor) -> SeenRows:
        """Of some outcomes (q,) alone."""
        y, mean, var, weights = (part[:, columns] for part in self[:4])
        values = {name: value[:, columns] for name, value in self.values.items()}
        return SeenRows(y, mean, var, weights, self.env_index, values)

    def square(self) -> Tensor:
        """Expected squared distances of outcomes from their predictors, NaN where not observed."""
        return (self.y - self.mean).square() + self.var


class Likelihood(Support):
    r"""Maps a linear predictor to the distribution of an outcome; abstract.

    A new one says four things, and three of them have defaults:

    - ``forward``: the distribution of every outcome given predictor and parameters; always needed.
    - ``_build``: its own parameters (*nuisance*: noise, dispersion), as hyperparameters. They may
      be of shape (Q,), (1,) or (Q, ...). None by default.
    - ``check``: which outcomes it takes. Any real number by default.
    - ``standardise``: units in which its hyperpriors are right. The user's by default.

    All else follows from ``forward``: expectations under q by Gauss-Hermite sums over the predictor
    (32 points) and over its parameters (5 points for one, 3 each for two; for more, a rule of
    degree 3), sites of rows by derivatives of the expected log density, optima of its parameters
    by climbing it, moments of predictions by the same sums. For log densities that are smooth over
    some standard deviations of the predictor these are exact to many digits. At a corner, as below,
    an expected log density is off by at most 0.02 s/b, with s the predictor's standard deviation
    and 1/b half the change of slope; its slope in the mean by 0.02/b, in the variance by 0.01/(sb).
    Where that is too coarse ``expected_log_prob`` is to be overridden, and sites follow it.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_tbr.heads.hyper import PositiveScale
        >>> from pyro_tbr.heads.likelihoods import Likelihood, standardised
        >>> class LaplaceLikelihood(Likelihood):
        ...     def _build(self, num_outcomes, unit):
        ...         self.spread = PositiveScale("spread", (num_outcomes,), None, unit="outcome")
        ...
        ...     def standardise(self, y, *, intercept):
        ...         return standardised(y, intercept=intercept)
        ...
        ...     def forward(self, predictor, nuisance):
        ...         return dist.Laplace(predictor, nuisance["spread"])
        >>> likelihood = LaplaceLikelihood().build(1)
        >>> nuisance = likelihood.factors()
        >>> y, mean, var = torch.tensor([[0.3]]), torch.zeros(1, 1), torch.ones(1, 1)
        >>> likelihood.site_terms(y, mean, var, nuisance).response.shape
        torch.Size([1, 1])

    Attributes:
        exact: Rows are normal sites whatever q is: outcomes are normal around the predictor.
        correlated: The noise of a row's outcomes goes together.
        predictor_scale: Typical standard deviation of the predictor where it explains half,
            the unit of the medians of the scales that a prior learns; 1 for outcomes
            that are standardised.
        interval: What the bounds of a prediction are of: a new ``"outcome"``, or its ``"mean"``.
        discrete: Outcomes are whole numbers.
        unit: (Q,), the user's units in one unit of the outcomes the model sees; after ``build``.
        num_nodes: V, nodes of the tree; after ``build``.
        num_latents: K; after ``build``, where that was told.
        latent_scale: (K,), the user's units in one unit of the latents the model sees; likewise.
    """

    exact: bool = False
    correlated: bool = False
    predictor_scale: float = 1.0
    interval: str = "outcome"
    discrete: bool = False
    unit: Tensor
    num_nodes: int = 1
    num_latents: int | None = None
    latent_scale: Tensor | None = None

    def build(
        self,
        num_outcomes: int,
        *,
        outcome_scale: Tensor | None = None,
        num_nodes: int = 1,
        names: Sequence[Hashable] | None = None,
        known: Collection[str] = (),
        num_latents: int | None = None,
        latent_scale: Tensor | None = None,
    ) -> Likelihood:
        """This likelihood for Q outcomes, as a new module that has all its buffers.

        Args:
            num_outcomes: Q.
            outcome_scale: (Q,), the user's units in one unit of the outcomes the model sees.
            num_nodes: V, nodes of the tree.
            names: Of the outcomes; ``None``: ``y0``, ``y1``, ...
            known: What is known of each row, out of ``takes``.
            num_latents: K, for likelihoods that have something of each latent.
            latent_scale: (K,), the user's units in one unit of the latents the model sees.
        """
        built = copy.deepcopy(self.resolved(names or default_names(num_outcomes), known))
        built.num_nodes, built.num_latents, built.latent_scale = (
            num_nodes,
            num_latents,
            latent_scale,
        )
        unit = torch.ones(num_outcomes) if outcome_scale is None else outcome_scale.clone()
        built.register_buffer("unit", unit.to(torch.get_default_dtype()))
        built._build(num_outcomes, built.unit)
        return built

    def resolved(self, names: Sequence[Hashable], known: Collection[str]) -> Likelihood:
        """The likelihood of outcomes of these names, of whose rows this is known; often itself.

        Args:
            names: Of the outcomes, Q.
            known: What is known of each row, out of ``takes``.

        Raises:
            DataError: It is a likelihood of other outcomes, or does not go with what is known.
        """
        del names, known
        return self

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        """Makes the parameters of the likelihood as attributes; none by default.

        Args:
            num_outcomes: Q.
            unit: (Q,), by which what the user fixed in units of the outcome is to be divided.
        """

    def kinds(self) -> list[Kind]:
        """What predictions are like, one for each part of the distribution."""
        return [Kind(None, self.interval, self.discrete)]

    def noises(self, nuisance: HyperFactors) -> list[tuple[HyperFactor, Tensor]]:
        """Scales of noise around predictors, and which outcomes (q,) they are of; here none.

        ``nuisance`` are factors, or those :meth:`at_nodes`.
        """
        del nuisance
        return []

    def noise_correlation(self, nuisance: HyperFactors) -> Tensor:
        """Correlations of the noise of a row's outcomes, (Q, Q) double; here none."""
        del nuisance
        return torch.eye(len(self.unit), dtype=torch.float64)

    def start_moments(self, y: Tensor, nuisance: Nuisance) -> tuple[Tensor, Tensor]:
        """Means and variances (N, Q) of predictors that a first expansion of rows is made at.

        By default zero within one: a log density with a corner has no curvature at a point.
        """
        del nuisance
        return torch.zeros_like(y), torch.ones_like(y)

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Distribution of every outcome, batch shape (*B, N, Q).

        Args:
            predictor: (*B, N, Q).
            nuisance: Values of its parameters by site name: their shape last, a dimension of 1 for
                the rows before it where there are batch dimensions.
        """
        raise NotImplementedError

    def seen_with(self, nuisance: HyperFactors, moments: NodeMoments) -> dict[str, Tensor]:
        """What rows see of a node that follows from its weights, (n, ...) by name; here nothing.

        Args:
            nuisance: Factors of its parameters.
            moments: Of the weights at some nodes, (n, W, Q) each.
        """
        del nuisance, moments
        return {}

    def values_with(self, values: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        """What ``forward`` takes of rows that follows from their weights, by name; here nothing.

        Args:
            values: Of its parameters, (*B, ...).
            weights: (*B, N, W, Q).
        """
        del values, weights
        return {}

    def apart(self) -> Likelihood:
        """This likelihood of outcomes each of which is alone; its parameters are shared."""
        return self

    def joint(self, outcome: dist.TorchDistribution, seen: Tensor) -> dist.TorchDistribution:
        """What ``forward`` gave, with log densities that sum to those of rows that were seen so.

        Args:
            outcome: Batch shape (*B, N, Q).
            seen: Which outcomes were observed, (N, Q) bool.
        """
        del seen
        return outcome

    def expected_log_prob(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """E[log p(y | f)] under q, (N, Q), differentiable in moments and factors.

        Takes memory for a chunk of rows at a time, unless gradients are recorded.

        Args:
            y: Outcomes, (N, Q); where NaN the result is finite and means nothing.
            mean: Means of the linear predictor, (N, Q).
            var: Its variances, (N, Q).
            nuisance: Factors of its parameters by site name, and what is known of each row.
        """

        def log_prob(rows: Tensor, predictor: Tensor, values: dict[str, Tensor]) -> Tensor:
            return self(predictor, values).log_prob(self.filled(y[rows]))

        return expectation(log_prob, mean, var, nuisance)

    def site_terms(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> SiteTerms:
        """Rows as normal sites, by derivatives of the expected log density E at (mean, var).

        precision is ``-2 dE/dvar`` and response ``mean + (dE/dmean) / precision``, so that a
        natural-gradient step of the weights is conditioning on these sites. Log densities that are
        not concave, such as a Student-t's, may have rows of negative precision; those get a
        millionth of the mean precision of their outcome in place of it. Arguments are those of
        :meth:`expected_log_prob`.

        Source:
            Khan & Lin, AISTATS 2017 (conjugate-computation variational inference).
        """
        mean, var = mean.detach().double(), var.detach().double()
        parts = []
        for rows in row_chunks(mean, nuisance):
            with torch.inference_mode(False), torch.enable_grad():
                m, v = mean[rows].clone().requires_grad_(), var[rows].clone().requires_grad_()
                each = self.expected_log_prob(y[rows].double(), m, v, of_rows(nuisance, rows))
                slopes = torch.autograd.grad(each.sum(), (m, v))
            parts.append((each.detach(), *slopes))
        each, slope, bend = (torch.cat(part) for part in zip(*parts, strict=True))
        precision, observed = -2 * bend, ~torch.isnan(y)
        typical = (precision.clamp(min=0) * observed).sum(0) / observed.sum(0).clamp(min=1)
        least = _LEAST_PRECISION * typical
        precision = torch.maximum(precision, least.clamp(min=torch.finfo(least.dtype).eps))
        return touching(each, mean, var, precision, slope)

    def site_scale(self, nuisance: Nuisance) -> Tensor:
        """What multiplies the precision of every site; only exact likelihoods have one.

        (Q,), or (n, Q) of factors :meth:`at_nodes`.
        """
        return torch.ones_like(self.unit)

    def site_norm(self, nuisance: Nuisance) -> Tensor:
        """``log_norm`` of every site of an exact likelihood under q as it is now, (Q,) or (n, Q).

        So sums of sites outlive a change of its parameters. Zero where not exact: there sites keep
        their own.
        """
        return torch.zeros_like(self.unit)

    def learn(
        self,
        nuisance: HyperFactors,
        y: Tensor,
        mean: Tensor,
        var: Tensor,
        weights: Tensor,
        env_index: Tensor | None = None,
        values: Mapping[str, Tensor] | None = None,
        *,
        common: bool = True,
    ) -> None:
        """Moves q of its parameters to its optimum given rows; deterministic.

        Predictors are known to rounding at best, so their variances count as no less than that
        share of their mean square: where rows are fitted exactly, spreads stay finite.

        Args:
            nuisance: Factors by site name; changed.
            y: Outcomes, as for :meth:`expected_log_prob`.
            mean: Likewise.
            var: Likewise.
            weights: How much each outcome counts, (N, Q); 0 where not observed.
            env_index: Node of each row, (N,); where parameters are nodes' own.
            values: What is known of the rows, (N, Q) by name, in the model's units.
            common: Move what nodes share too, not only what is a node's own.

        Raises:
            TrainingError: Something is not finite.
        """
        y, mean, var, weights = (part.detach().double() for part in (y, mean, var, weights))
        rows = SeenRows(y, mean, var, weights, env_index, values or {})
        self._learn(nuisance, rows, common=common)

    def _learn(self, nuisance: HyperFactors, rows: SeenRows, *, common: bool) -> None:
        """See :meth:`learn`; what a likelihood with another way overrides."""
        factors = by_name(nuisance)
        learnt = {name: factor for name, factor in factors.items() if factor.learnt}
        if not learnt or not common:
            return
        rounding = max(torch.finfo(factor.loc.dtype).eps for factor in learnt.values())
        weights = rows.weights
        typical = (weights * rows.mean.square()).sum(0) / weights.sum(0).clamp(min=1e-300)
        rows = rows._replace(var=torch.maximum(rows.var, rounding * typical))
        self._climb(learnt, {**factors, **rows.values}, rows)

    def _climb(self, learnt: dict[str, HyperFactor], nuisance: Nuisance, rows: SeenRows) -> None:
        """Some factors at their optimum, the others as they are."""
        y, mean, var, weights = rows[:4]
        chunks = row_chunks(mean, nuisance)

        def log_lik(moved: dict[str, HyperFactor]) -> Iterator[Tensor]:
            for some in chunks:
                now: Nuisance = {**of_rows(nuisance, some), **moved}
                each = self.expected_log_prob(y[some], mean[some], var[some], now)
                yield torch.where(weights[some] > 0, weights[some] * each, 0.0).sum()

        climb(learnt, log_lik)

    def learn_from_residuals(
        self,
        nuisance: HyperFactors,
        square: Tensor,
        count: Tensor,
        nodes: Tensor,
        total: Tensor | None = None,
        *,
        common: bool = True,
    ) -> None:
        """Moves q of an exact likelihood's parameters to its optimum given sums over rows.

        Args:
            nuisance: Factors by site name; changed.
            square: Expected squared residuals, summed over the rows of each node, (E, Q).
            count: Numbers of observed outcomes, (E, Q).
            nodes: Which nodes, (E,).
            total: Squared outcomes, summed alike: what residuals are differences of, so their
                rounding is known; ``count`` where absent, as outcomes are standardised.
            common: Move what nodes share too, not only what is a node's own.
        """
        raise NotImplementedError(f"{type(self).__name__} is not exact: call learn")

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: Nuisance
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of a new outcome whose predictor is N(mean, var), (N, Q) each.

        Arguments are those of :meth:`expected_log_prob`.
        """

        def centre(rows: Tensor, predictor: Tensor, values: dict[str, Tensor]) -> Tensor:
            return self(predictor, values).mean

        expected = expectation(centre, mean, var, nuisance)

        def spread(rows: Tensor, predictor: Tensor, values: dict[str, Tensor]) -> Tensor:
            outcome = self(predictor, values)
            return outcome.variance + (outcome.mean - expected[rows]).square()

        return expected, expectation(spread, mean, var, nuisance)
