"""What a likelihood is: from a linear predictor to the distribution of an outcome."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import pyro.distributions as dist
import torch
from torch import Generator, Tensor

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.heads.hyper.base import Described, HyperFactor, HyperFactors, by_name
from pyro_tbr.heads.likelihoods.expectations import SiteTerms, expectation, row_chunks, touching
from pyro_tbr.heads.likelihoods.learning import climb
from pyro_tbr.heads.likelihoods.scaling import Scaling, unscaled

_LEAST_PRECISION = 1e-6  # of a row's site, over the mean one of its outcome


class Likelihood(Described):
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
        by_node: Some of its parameters are a node's own.
        predictor_scale: Typical standard deviation of the predictor where it explains half,
            the unit of the medians of the scales that a prior learns; 1 for outcomes
            that are standardised.
        interval: What the bounds of a prediction are of: a new ``"outcome"``, or its ``"mean"``.
        placeholder: An outcome it takes, which stands where none was observed.
        unit: (Q,), the user's units in one unit of the outcomes the model sees; after ``build``.
        num_nodes: V, nodes of the tree; after ``build``.
    """

    exact: bool = False
    by_node: bool = False
    predictor_scale: float = 1.0
    interval: str = "outcome"
    placeholder: float = 0.0
    unit: Tensor
    num_nodes: int = 1

    def build(
        self, num_outcomes: int, *, outcome_scale: Tensor | None = None, num_nodes: int = 1
    ) -> Likelihood:
        """This likelihood for Q outcomes, as a new module that has all its buffers.

        Args:
            num_outcomes: Q.
            outcome_scale: (Q,), the user's units in one unit of the outcomes the model sees.
            num_nodes: V, nodes of the tree.
        """
        built = copy.deepcopy(self)
        built.num_nodes = num_nodes
        unit = torch.ones(num_outcomes) if outcome_scale is None else outcome_scale.clone()
        built.register_buffer("unit", unit.to(torch.get_default_dtype()))
        built._build(num_outcomes, built.unit)
        return built

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        """Makes the parameters of the likelihood as attributes; none by default.

        Args:
            num_outcomes: Q.
            unit: (Q,), by which what the user fixed in units of the outcome is to be divided.
        """

    def factors(self) -> dict[str, HyperFactor]:
        """A new factor of q for each of its parameters, by site name."""
        return {hyper.name: hyper.factor() for hyper in self.hyperparameters()}

    def check(self, y: Outcomes) -> None:
        """Refuses outcomes it does not take; missing ones are NaN and pass.

        Raises:
            DataError: Names rows and columns; ``y.refuse`` makes it.
        """

    def check_informative(self, y: Outcomes) -> None:
        """Refuses outcomes there is nothing to learn from, before training only.

        Raises:
            DataError: Names the column.
        """

    def standardise(self, y: Tensor, *, intercept: bool) -> Scaling:
        """Units the model is to see outcomes (N, Q) in, NaN where not observed.

        Args:
            y: Outcomes in the user's units.
            intercept: Whether the predictor has an intercept, which takes up a shift.
        """
        del intercept
        return unscaled(y)

    def sample_nuisance(self) -> dict[str, Tensor]:
        """Pyro sites of its parameters, by name."""
        return {hyper.name: hyper() for hyper in self.hyperparameters()}

    def guide_sites(self, nuisance: HyperFactors) -> None:
        """Pyro sites of the factors of its parameters."""
        for factor in nuisance.values():
            factor()

    def draw_nuisance(
        self, nuisance: HyperFactors, num_draws: int, generator: Generator
    ) -> dict[str, Tensor]:
        """Draws (S, ...) of its parameters from their factors, by site name."""
        factors = by_name(nuisance)
        return {name: factor.sample(num_draws, generator) for name, factor in factors.items()}

    def know_nodes(self, nuisance: HyperFactors, nodes: Tensor, *, only: bool = False) -> None:
        """Says which nodes have rows too, (V,) bool; for parameters that differ between nodes."""

    def forget_nodes(self, nuisance: HyperFactors) -> None:
        """Takes back what was learnt of single nodes, for parameters that differ between them."""

    def at_nodes(self, nuisance: HyperFactors, index: Tensor) -> HyperFactors:
        """The factors as rows at some nodes (n,) see them; the same where nodes share them.

        A node V is one that the tree has not.
        """
        del index
        return nuisance

    def with_new_node(
        self, values: Mapping[str, Tensor], generator: Generator
    ) -> dict[str, Tensor]:
        """Draws (S, ...) that have one more node, number V, if nodes have values of their own."""
        del generator
        return dict(values)

    def values_at_nodes(self, values: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """Values (*B, ...) of its parameters as rows at nodes (N,) see them, for ``forward``."""
        del index
        return dict(values)

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Distribution of every outcome, batch shape (*B, N, Q).

        Args:
            predictor: (*B, N, Q).
            nuisance: Values of its parameters by site name: their shape last, a dimension of 1 for
                the rows before it where there are batch dimensions.
        """
        raise NotImplementedError

    def expected_log_prob(
        self, y: Tensor, mean: Tensor, var: Tensor, nuisance: HyperFactors
    ) -> Tensor:
        """E[log p(y | f)] under q, (N, Q), differentiable in moments and factors.

        Takes memory for a chunk of rows at a time, unless gradients are recorded.

        Args:
            y: Outcomes, (N, Q); where NaN the result is finite and means nothing.
            mean: Means of the linear predictor, (N, Q).
            var: Its variances, (N, Q).
            nuisance: Factors of its parameters by site name.
        """

        def log_prob(rows: Tensor, predictor: Tensor, values: dict[str, Tensor]) -> Tensor:
            return self(predictor, values).log_prob(self.filled(y[rows]))

        return expectation(log_prob, mean, var, nuisance)

    def site_terms(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: HyperFactors) -> SiteTerms:
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
                each = self.expected_log_prob(y[rows].double(), m, v, nuisance)
                slopes = torch.autograd.grad(each.sum(), (m, v))
            parts.append((each.detach(), *slopes))
        each, slope, bend = (torch.cat(part) for part in zip(*parts, strict=True))
        precision, observed = -2 * bend, ~torch.isnan(y)
        typical = (precision.clamp(min=0) * observed).sum(0) / observed.sum(0).clamp(min=1)
        least = _LEAST_PRECISION * typical
        precision = torch.maximum(precision, least.clamp(min=torch.finfo(least.dtype).eps))
        return touching(each, mean, var, precision, slope)

    def site_scale(self, nuisance: HyperFactors) -> Tensor:
        """What multiplies the precision of every site; only exact likelihoods have one.

        (Q,), or (n, Q) of factors :meth:`at_nodes`.
        """
        return torch.ones_like(self.unit)

    def site_norm(self, nuisance: HyperFactors) -> Tensor:
        """``log_norm`` of every site of an exact likelihood under q as it is now, (Q,) or (n, Q).

        So sums of sites outlive a change of its parameters. Zero where not exact: there sites keep
        their own.
        """
        return torch.zeros_like(self.unit)

    def learn(
        self, nuisance: HyperFactors, y: Tensor, mean: Tensor, var: Tensor, weights: Tensor
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

        Raises:
            TrainingError: Something is not finite.
        """
        factors = by_name(nuisance)
        learnt = {name: factor for name, factor in factors.items() if factor.learnt}
        if not learnt:
            return
        y, mean, var, weights = (part.detach().double() for part in (y, mean, var, weights))
        rounding = max(torch.finfo(factor.loc.dtype).eps for factor in learnt.values())
        typical = (weights * mean.square()).sum(0) / weights.sum(0).clamp(min=1e-300)
        var = torch.maximum(var, rounding * typical)
        chunks = row_chunks(mean, nuisance)

        def log_lik(moved: dict[str, HyperFactor]) -> Iterator[Tensor]:
            for rows in chunks:
                each = self.expected_log_prob(y[rows], mean[rows], var[rows], factors | moved)
                yield (weights[rows] * each).sum()

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
        self, mean: Tensor, var: Tensor, nuisance: HyperFactors
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

    def rescale(self, draws: dict[str, Tensor], scaling: Scaling) -> dict[str, Tensor]:
        """The draws (S, ...) by site name, its own parameters among them in the user's units."""
        return scaling.rescale(draws, self.hyperparameters())

    def filled(self, y: Tensor) -> Tensor:
        """Outcomes, with what it takes where none was observed."""
        return torch.where(torch.isnan(y), self.placeholder, y)
