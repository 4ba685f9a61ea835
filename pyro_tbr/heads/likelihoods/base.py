"""What a likelihood is: from a linear predictor to the distribution of an outcome."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.heads.hyper import HyperFactor, HyperFactors, Hyperparameter, quadrature
from pyro_tbr.heads.hyper.base import by_name, gauss_hermite
from pyro_tbr.heads.likelihoods.learning import climb
from pyro_tbr.heads.likelihoods.scaling import Scaling, unscaled
from pyro_tbr.heads.local_params import LocalParamsModule

_PREDICTOR_POINTS = 32  # of a quadrature over a linear predictor
_NUISANCE_POINTS = {1: 7, 2: 5}  # over each of so many parameters of the likelihood
_CHUNK_ELEMENTS = 4_000_000  # rows are taken in chunks of about this many log densities
_LEAST_PRECISION = 1e-6  # of a row's site, over the mean one of its outcome


class SiteTerms(NamedTuple):
    """What rows say of their linear predictor, as normal sites; (N, Q) each, double precision.

    At the moments (m, v) they were made at, value and first derivatives in m and v of

    ``log_norm - site_scale * precision * E[(f - response)^2] / 2,   f ~ N(m, v)``

    are those of the expected log density.

    Attributes:
        precision: Above 0; in units of ``Likelihood.site_scale``.
        response: In the predictor's unit.
        log_norm: Log density.
    """

    precision: Tensor
    response: Tensor
    log_norm: Tensor


class Likelihood(LocalParamsModule):
    r"""Maps a linear predictor to the distribution of an outcome; abstract.

    A new one says four things, and three of them have defaults:

    - ``forward``: the distribution of every outcome given predictor and parameters; always needed.
    - ``_build``: its own parameters (*nuisance*: noise, dispersion), as hyperparameters. They may
      be of shape (Q,), (1,) or (Q, ...). None by default.
    - ``check``: which outcomes it takes. Any real number by default.
    - ``standardise``: units in which its hyperpriors are right. The user's by default.

    All else follows from ``forward``: expectations under q by Gauss-Hermite sums over the predictor
    (32 points) and over its parameters (7 points for one, 5 each for two; for more, a rule of
    degree 3), sites of rows by derivatives of the expected log density, optima of its parameters
    by climbing it, moments of predictions by the same sums. For log densities that are smooth over
    a few standard deviations of the predictor these are exact to many digits. Where they have a
    corner, as below, an expected log density is off by at most 0.03 standard deviations of the
    predictor over the outcome's spread, and its derivatives by 0.1 over that spread, rows apart
    independently; where that is too coarse, ``expected_log_prob`` is to be overridden, and sites
    follow it.

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
        interval: What the bounds of a prediction are of: a new ``"outcome"``, or its ``"mean"``.
        placeholder: An outcome it takes, which stands where none was observed.
        unit: (Q,), the user's units in one unit of the outcomes the model sees; after ``build``.
    """

    exact: bool = False
    interval: str = "outcome"
    placeholder: float = 0.0
    unit: Tensor

    def __init__(self, **description: Any) -> None:
        super().__init__()
        self.description = description

    def build(self, num_outcomes: int, *, outcome_scale: Tensor | None = None) -> Likelihood:
        """This likelihood for Q outcomes, as a new module that has all its buffers.

        Args:
            num_outcomes: Q.
            outcome_scale: (Q,), the user's units in one unit of the outcomes the model sees.
        """
        built = copy.deepcopy(self)
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

    def hyperparameters(self) -> list[Hyperparameter]:
        """Its own parameters, in the order of their sites."""
        return [module for module in self.children() if isinstance(module, Hyperparameter)]

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

        return self._expectation(log_prob, mean, var, nuisance)

    def site_terms(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: HyperFactors) -> SiteTerms:
        """Rows as normal sites, by derivatives of the expected log density E at (mean, var).

        precision is ``-2 dE/dvar`` and response ``mean + (dE/dmean) / precision``, so that a
        natural-gradient step of the weights is conditioning on these sites. Log densities that are
        not concave, such as a Student-t's, may have rows of negative precision; those get a
        millionth of the mean precision of their outcome in place of it.

        Args:
            y: As for :meth:`expected_log_prob`, and so on.
            mean: (N, Q).
            var: (N, Q).
            nuisance: By site name.

        Source:
            Khan & Lin, AISTATS 2017 (conjugate-computation variational inference).
        """
        mean, var = mean.detach().double(), var.detach().double()
        parts = []
        for rows in self._chunks(mean, nuisance):
            with torch.enable_grad():
                m, v = mean[rows].clone().requires_grad_(), var[rows].clone().requires_grad_()
                each = self.expected_log_prob(y[rows].double(), m, v, nuisance)
                slopes = torch.autograd.grad(each.sum(), (m, v))
            parts.append((each.detach(), *slopes))
        each, slope, bend = (torch.cat(part) for part in zip(*parts, strict=True))
        precision = -2 * bend
        least = _LEAST_PRECISION * precision.clamp(min=0).mean(0)
        precision = torch.maximum(precision, least.clamp(min=torch.finfo(least.dtype).eps))
        return touching(each, mean, var, precision, slope)

    def site_scale(self, nuisance: HyperFactors) -> Tensor:
        """What multiplies the precision of every site, (Q,); only exact likelihoods have one."""
        return torch.ones_like(self.unit)

    def site_norm(self, nuisance: HyperFactors) -> Tensor:
        """``log_norm`` of every site of an exact likelihood under q as it is now, (Q,).

        So sums of sites outlive a change of its parameters. Zero where not exact: there sites keep
        their own.
        """
        return torch.zeros_like(self.unit)

    def learn(
        self, nuisance: HyperFactors, y: Tensor, mean: Tensor, var: Tensor, weights: Tensor
    ) -> None:
        """Moves q of its parameters to its optimum given rows; deterministic.

        Args:
            nuisance: Factors by site name; changed.
            y: As for :meth:`expected_log_prob`, and so on.
            mean: (N, Q).
            var: (N, Q).
            weights: How much each outcome counts, (N, Q); 0 where not observed.

        Raises:
            TrainingError: Something is not finite.
        """
        factors = by_name(nuisance)
        learnt = {name: factor for name, factor in factors.items() if factor.learnt}
        if not learnt:
            return
        y, mean, var, weights = (part.detach().double() for part in (y, mean, var, weights))
        chunks = self._chunks(mean, nuisance)

        def log_lik(moved: dict[str, HyperFactor]) -> Iterator[Tensor]:
            for rows in chunks:
                each = self.expected_log_prob(y[rows], mean[rows], var[rows], factors | moved)
                yield (weights[rows] * each).sum()

        climb(learnt, log_lik)

    def learn_from_residuals(
        self, nuisance: HyperFactors, square: Tensor, count: Tensor, total: Tensor | None = None
    ) -> None:
        """Moves q of an exact likelihood's parameters to its optimum given sums over rows.

        Args:
            nuisance: Factors by site name; changed.
            square: Expected squared residuals, summed over rows, (Q,).
            count: Number of observed outcomes, (Q,).
            total: Squared outcomes, summed over rows, (Q,): what residuals are differences of, so
                their rounding is known; ``count`` where absent, as outcomes are standardised.
        """
        raise NotImplementedError(f"{type(self).__name__} is not exact: call learn")

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: HyperFactors
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of a new outcome whose predictor is N(mean, var), (N, Q) each.

        Args:
            mean: Means of the linear predictor, (N, Q).
            var: Its variances, (N, Q).
            nuisance: Factors of its parameters by site name.
        """

        def centre(rows: Tensor, predictor: Tensor, values: dict[str, Tensor]) -> Tensor:
            return self(predictor, values).mean

        expected = self._expectation(centre, mean, var, nuisance)

        def spread(rows: Tensor, predictor: Tensor, values: dict[str, Tensor]) -> Tensor:
            outcome = self(predictor, values)
            return outcome.variance + (outcome.mean - expected[rows]).square()

        return expected, self._expectation(spread, mean, var, nuisance)

    def rescale(self, draws: dict[str, Tensor], scaling: Scaling) -> dict[str, Tensor]:
        """The draws (S, ...) by site name, its own parameters among them in the user's units."""
        return scaling.rescale(draws, self.hyperparameters())

    def filled(self, y: Tensor) -> Tensor:
        """Outcomes, with what it takes where none was observed."""
        return torch.where(torch.isnan(y), self.placeholder, y)

    def _expectation(
        self,
        function: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor],
        mean: Tensor,
        var: Tensor,
        nuisance: HyperFactors,
    ) -> Tensor:
        """E[function] under q, (N, Q), of rows (n,), predictors (P, n, Q) and parameters."""
        values, weights = nuisance_points(nuisance, mean)
        sd = (var.clamp(min=0) + torch.finfo(var.dtype).eps ** 0.75).sqrt()
        parts = []
        for rows in self._chunks(mean, nuisance):
            points, point_weights = quadrature(mean[rows], sd[rows], _PREDICTOR_POINTS)
            each = function(rows, points, values)
            each = each.expand(len(weights), *points.shape)
            parts.append(torch.einsum("t,p,tpnq->nq", weights.to(each), point_weights, each))
        return torch.cat(parts)

    def _chunks(self, like: Tensor, nuisance: HyperFactors) -> tuple[Tensor, ...]:
        """Rows in chunks of bounded memory, for (N, Q)."""
        _, weights = nuisance_points(nuisance, like)
        each = len(weights) * _PREDICTOR_POINTS * like.shape[1]
        return torch.arange(len(like), device=like.device).split(max(1, _CHUNK_ELEMENTS // each))

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self.description.items() if v is not None)
        return f"{type(self).__name__}({given})"


def touching(
    each: Tensor, mean: Tensor, var: Tensor, precision: Tensor, slope: Tensor
) -> SiteTerms:
    """Sites of these precisions that have value ``each`` and slope in the mean; (N, Q) all."""
    step = slope / precision
    return SiteTerms(precision, mean + step, each + 0.5 * precision * (step.square() + var))


def nuisance_points(nuisance: HyperFactors, like: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Values (T, 1, 1, *shape) by site name and weights (T,) for expectations under all factors.

    An outcome has one or more elements of each parameter, (Q, ...); the elements of other outcomes
    do not matter to it, so they share their points. One element: Gauss-Hermite; two: a grid of
    them; more: the two points sqrt(D) standard deviations up and down each of the D axes, exact
    for polynomials of degree 3.
    """
    factors = by_name(nuisance)
    learnt = {name: factor for name, factor in factors.items() if factor.learnt}
    sizes = {name: math.prod(factor.hyper.shape[1:]) for name, factor in learnt.items()}
    standard, weights = _standard_points(sum(sizes.values()), like)
    values, first = {}, 0
    for name, factor in factors.items():
        shape = factor.hyper.shape
        if name in learnt:
            axes = standard[:, first : first + sizes[name]]
            first += sizes[name]
        else:
            axes = standard.new_zeros(1, math.prod(shape[1:]))
        values[name] = factor.at(axes.reshape(len(axes), 1, 1, *[1] * len(shape[:1]), *shape[1:]))
    return values, weights


def _standard_points(num_axes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Points (T, D) and weights (T,) for expectations under D independent standard normals."""
    if num_axes > max(_NUISANCE_POINTS):
        eye = num_axes**0.5 * torch.eye(num_axes, dtype=like.dtype, device=like.device)
        points = torch.cat([eye, -eye])
        return points, points.new_full((2 * num_axes,), 0.5 / num_axes)
    nodes, weights = (like.new_tensor(p) for p in gauss_hermite(_NUISANCE_POINTS.get(num_axes, 1)))
    if num_axes == 0:
        return nodes.reshape(1, 1)[:, :0], weights
    points = torch.cartesian_prod(*[nodes] * num_axes).reshape(-1, num_axes)
    each = torch.cartesian_prod(*[weights] * num_axes).reshape(-1, num_axes)
    return points, each.prod(-1)
