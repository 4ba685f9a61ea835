"""A simulation: data with the truth behind them, and more rows of the same kind."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pyro_tbr.errors import TreeError
from pyro_tbr.evaluation.checks import Array, check_range
from pyro_tbr.tree import Tree


@dataclass(frozen=True)
class LinearMixing:
    """Features are ``z @ matrix``; matrix (K, D) of standard normal entries."""

    matrix: Array

    def __call__(self, z: Array) -> Array:
        """Features (N, D) of latents (N, K)."""
        return z @ self.matrix


@dataclass(frozen=True)
class MLPMixing:
    """Features are ``tanh(z @ inner + bias) @ outer``, scaled to variances of about 1.

    ``inner`` (K, H) has entries of variance 1/K, ``bias`` (H,) of 1/4 and ``outer`` (H, D) of 2/H.
    With D >= 2K generic maps of this kind are injective, so the latents can be learnt from x.
    """

    inner: Array
    bias: Array
    outer: Array

    def __call__(self, z: Array) -> Array:
        """Features (N, D) of latents (N, K)."""
        return np.tanh(z @ self.inner + self.bias) @ self.outer


_COUNTS = ("poisson", "negative_binomial")
LIKELIHOODS = ("gaussian", "bernoulli", "binomial", "ordinal", *_COUNTS)
_GAP = 1.5  # between neighbouring thresholds of grades, in logits
_OUTLIERS, _OUTLYING = 0.01, 10.0  # share of rows, and by how much their noise is larger
_T_DF = 3  # degrees of freedom of heavy-tailed noise


def thresholds_between(num_categories: int) -> Array:
    """Even thresholds between so many grades, of mean 0, (C - 1,)."""
    steps = np.arange(num_categories - 1, dtype=np.float64)
    return _GAP * (steps - steps.mean())


@dataclass(frozen=True)
class RowLaw:
    """How the rows of a node differ from plain ones: latents N(0, I), even normal noise.

    Attributes:
        means: Of the latents at every node, (V, K).
        spreads: Standard deviations of the latents at every node, (V, K).
        noise_scales: Standard deviation of the noise at every node, (V,).
        noise: ``"normal"``, ``"t"`` (3 degrees of freedom) or ``"outliers"`` (1 % of the rows have
            noise ten times as large).
        noise_factor: Lower Cholesky factor of the correlation of outcomes' noise, (Q, Q).
        curvature: A latent acts as ``z + curvature * (z^2 - 1)``.
        feature_noise: Standard deviation of noise in the features.
        nuisance_dim: Standard normal factors that features show and outcomes do not depend on.
        overdispersion: Of negative binomial counts.
        exposure_ratio: Most by which exposures of counts differ.
        num_trials: Trials of a row are uniform on 1 to twice this less 1.
        thresholds: Between the grades of ordinal outcomes, (C - 1,).
    """

    means: Array
    spreads: Array
    noise_scales: Array
    noise: str
    noise_factor: Array
    curvature: float
    feature_noise: float
    nuisance_dim: int
    overdispersion: float
    exposure_ratio: float
    num_trials: int
    thresholds: Array

    def noise_draws(self, index: Array, generator: np.random.Generator) -> Array:
        """Noise (N, Q) of rows at the nodes of ``index`` (N,)."""
        shape = (len(index), len(self.noise_factor))
        if self.noise == "t":
            drawn = generator.standard_t(_T_DF, shape) / np.sqrt(_T_DF / (_T_DF - 2))
        else:
            drawn = generator.standard_normal(shape)
        if self.noise == "outliers":
            drawn[generator.random(len(index)) < _OUTLIERS] *= _OUTLYING
        return self.noise_scales[index, None] * (drawn @ self.noise_factor.T)


class _Drawn(NamedTuple):
    """Rows: features (N, D), outcomes (N, Q), latents (N, K), exposures and trials (N,)."""

    x: Array
    y: Array
    z: Array
    exposure: Array | None
    trials: Array | None


@dataclass(frozen=True)
class Simulation:
    """What :func:`simulate` drew, with the truth behind it.

    Attributes:
        x: Features, (N, D) float64; rows come leaf by leaf, in ``tree.leaves`` order.
        y: Outcomes, (N,) where Q is 1, else (N, Q); float64, NaN where missing.
        env: Leaf of each row, (N,) object array of the tree's own labels.
        tree: The environments.
        z: True latents, (N, K); each standard normal unless ``law`` says otherwise.
        deltas: Changes along the arcs, outcome (logit if Bernoulli) per unit of latent, (A, K, Q).
        gates: Where ``deltas`` are not zero, nor one of the small changes, (A, K, Q) bool.
        root_weights: Weights at the root, (K, Q).
        node_weights: Weights of every node in ``tree.nodes`` order, (V, K, Q).
        node_intercepts: Intercepts of every node, (V, Q).
        intercept_deltas: Changes of the intercept along the arcs, (A, Q).
        mixing: The map from latents to features, callable.
        latent_factor: Lower Cholesky factor (K, K) of the latents' correlation.
        noise_scale: Standard deviation of y about its mean (Gaussian only), see ``law`` too.
        latent_noise: Standard deviation of what y, but not x, sees added to each latent.
        likelihood: Of the outcomes, as in :func:`simulate`.
        law: How rows differ between nodes and from plain ones.
        seed: The seed it was drawn with.
        exposure: Of the rows of counts, (N,); ``None`` for others.
        trials: Of the rows of binomial outcomes, (N,); ``None`` for others.
    """

    x: Array
    y: Array
    env: Array
    tree: Tree
    z: Array
    deltas: Array
    gates: Array
    root_weights: Array
    node_weights: Array
    node_intercepts: Array
    intercept_deltas: Array
    mixing: Callable[[Array], Array]
    latent_factor: Array
    noise_scale: float
    latent_noise: float
    likelihood: str
    law: RowLaw
    seed: int
    exposure: Array | None = None
    trials: Array | None = None

    def rows(self, node: Hashable, n: int, seed: int = 0) -> tuple[Array, Array, Array]:
        """Fresh rows at a node: same mixing and weights, nothing missing; exposure or trials 1.

        Args:
            node: Any node of the tree, a leaf that was held out or an inner node included.
            n: How many rows.
            seed: Another seed, other rows; no seed repeats rows of the simulation itself.

        Returns:
            x (n, D), y shaped as the simulation's, z (n, K).

        Raises:
            TreeError: ``node`` is not in the tree.
            DataError: ``n`` or ``seed`` is negative.
        """
        check_range("n", n, 0, np.inf)
        check_range("seed", seed, 0, np.inf)
        index = self.tree.index(node)
        generator = np.random.default_rng([self.seed, index + 1, seed])
        drawn = self._drawn(np.full(n, index), generator, plain=True)
        return drawn.x, drawn.y if self.y.ndim == 2 else drawn.y[:, 0], drawn.z

    def without(self, leaves: Hashable | Iterable[Hashable]) -> tuple[Array, Array, Array]:
        """Rows ``(x, y, env)`` of all but some leaves, which are thereby held out.

        Args:
            leaves: One leaf label or several.

        Raises:
            TreeError: A label is not a leaf of the tree.
        """
        known = set(self.tree.leaves)
        if isinstance(leaves, Iterable) and not isinstance(leaves, str):
            one = isinstance(leaves, Hashable) and leaves in known  # a label that is a tuple
            labels = [leaves] if one else list(leaves)
        else:
            labels = [leaves]
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise TreeError(
                f"leaves holds {len(unknown)} label(s) that are no leaves of the tree, first "
                f"{unknown[0]!r}; give labels out of tree.leaves"
            )
        keep = np.array([label not in labels for label in self.env], dtype=bool)
        return self.x[keep], self.y[keep], self.env[keep]

    def _drawn(
        self, index: Array, generator: np.random.Generator, *, plain: bool = False
    ) -> _Drawn:
        """Rows at the nodes of ``index`` (N,); ``plain`` ones have exposure or trials 1."""
        law = self.law
        z = generator.standard_normal((len(index), len(self.latent_factor))) @ self.latent_factor.T
        z = law.means[index] + law.spreads[index] * z
        predictor = self._predictor(z, index, generator)
        exposure, trials = self._known(len(index), generator, plain=plain)
        y = self._outcomes(predictor, index, exposure, trials, generator)
        shown = z
        if law.nuisance_dim:
            nuisance = generator.standard_normal((len(z), law.nuisance_dim))
            shown = np.concatenate([z, nuisance], 1)
        x = self.mixing(shown)
        if law.feature_noise:
            x = x + law.feature_noise * generator.standard_normal(x.shape)
        return _Drawn(x, y, z, exposure, trials)

    def _known(
        self, number: int, generator: np.random.Generator, *, plain: bool
    ) -> tuple[Array | None, Array | None]:
        """Exposures and trials (N,) of rows whose outcomes have such."""
        law, exposure, trials = self.law, None, None
        if self.likelihood in _COUNTS:
            exposure = np.ones(number)
            if law.exposure_ratio > 1 and not plain:
                exposure = law.exposure_ratio ** generator.uniform(-0.5, 0.5, number)
        elif self.likelihood == "binomial":
            most = 1 if plain else 2 * law.num_trials - 1
            trials = generator.integers(1, most + 1, number).astype(np.float64)
        return exposure, trials

    def _predictor(self, z: Array, index: Array, generator: np.random.Generator) -> Array:
        """Linear predictor (N, Q) of latents (N, K) at the nodes of ``index`` (N,)."""
        seen = z + self.latent_noise * generator.standard_normal(z.shape)
        if self.law.curvature:
            seen = seen + self.law.curvature * (seen**2 - 1)
        mean = np.einsum("nk,nkq->nq", seen, self.node_weights[index])
        return mean + self.node_intercepts[index]

    def _outcomes(
        self,
        predictor: Array,
        index: Array,
        exposure: Array | None,
        trials: Array | None,
        generator: np.random.Generator,
    ) -> Array:
        """Outcomes (N, Q) of a predictor."""
        if self.likelihood == "bernoulli":
            chance = 1 / (1 + np.exp(-predictor))
            return (generator.random(predictor.shape) < chance).astype(np.float64)
        if self.likelihood == "ordinal":
            seen = predictor + generator.logistic(size=predictor.shape)
            return (seen[..., None] > self.law.thresholds).sum(-1).astype(np.float64)
        if trials is not None:
            chance = 1 / (1 + np.exp(-predictor))
            return generator.binomial(trials.astype(int)[:, None], chance).astype(np.float64)
        if exposure is not None:
            rate = exposure[:, None] * np.exp(predictor)
            if self.likelihood == "negative_binomial":
                size = 1 / self.law.overdispersion
                rate = rate * generator.gamma(size, 1 / size, rate.shape)
            return generator.poisson(rate).astype(np.float64)
        return predictor + self.law.noise_draws(index, generator)
