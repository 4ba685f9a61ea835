"""Draws data with their truth: trees, sparse changes along arcs, latents, features and outcomes."""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.evaluation.checks import Array, check_choice, check_count, check_range
from pyro_tbr.evaluation.simulation import (
    LIKELIHOODS,
    LinearMixing,
    MLPMixing,
    RowLaw,
    Simulation,
    thresholds_between,
)
from pyro_tbr.tree import Tree, path_sum

_CHANGES = ("one_per_arc", "bernoulli", "two_per_arc", "half_the_arcs")
_SIZES = {
    "half_normal": lambda generator, size: np.abs(generator.standard_normal(size)),
    "exponential": lambda generator, size: generator.exponential(0.5**0.5, size),
}
_HIDDEN = 64  # hidden units of the MLP mixing


def simulate(
    tree: Tree | None = None,
    *,
    num_leaves: int = 32,
    shape: str = "balanced",
    latent_dim: int = 5,
    num_features: int = 20,
    num_outcomes: int = 1,
    rows_per_leaf: int | Sequence[int] = 200,
    changes: str = "one_per_arc",
    change_prob: float = 0.2,
    use_lengths: bool = False,
    mixing: str = "linear",
    noise_scale: float = 0.1,
    latent_noise: float = 0.0,
    latent_correlation: float = 0.0,
    delta_min: float = 0.5,
    delta_scale: float = 1.0,
    likelihood: str = "gaussian",
    weight_scale: float = 1.0,
    intercept_mean: float = 0.0,
    overdispersion: float = 0.3,
    exposure_ratio: float = 1.0,
    num_trials: int = 10,
    num_categories: int = 5,
    missing: float = 0.0,
    intercept_scale: float = 0.0,
    intercept_changes: float = 0.0,
    sizes: str = "half_normal",
    shared_changes: float = 0.0,
    small_changes: float = 0.0,
    latent_shift: float = 0.0,
    latent_stretch: float = 0.0,
    feature_noise: float = 0.0,
    nuisance_dim: int = 0,
    noise: str = "normal",
    noise_ratio: float = 1.0,
    noise_correlation: float = 0.0,
    curvature: float = 0.0,
    seed: int = 0,
) -> Simulation:
    """Draw a tree, sparse changes along its arcs, and rows of data at its leaves.

    Root weights are N(0, weight_scale^2); a change is
    ``sign * (delta_min + delta_scale * |N(0, 1)|)`` with a random sign. Tree, weights, mixing, rows
    and missingness have generators of their own, so more rows a leaf, say, leaves tree, weights and
    mixing as they were.

    Args:
        tree: The environments; None draws one from ``num_leaves`` and ``shape``.
        num_leaves: Leaves of the drawn tree.
        shape: ``"balanced"`` (binary, halves as even as possible) or ``"random"``: a node splits
            in 2, 3 or 4 with probability 0.7, 0.2, 0.1, into parts of sizes uniform over all
            compositions, down to single leaves; so depth varies and polytomies occur.
        latent_dim: K.
        num_features: D; at least K, at least 2K for the MLP mixing.
        num_outcomes: Q.
        rows_per_leaf: Rows of every leaf, or a count for each leaf in ``tree.leaves`` order.
        changes: What changes on an arc, independently for each outcome: ``"one_per_arc"`` one
            latent, ``"two_per_arc"`` two, ``"half_the_arcs"`` one with probability 1/2,
            ``"bernoulli"`` each latent with ``change_prob``.
        change_prob: Used by ``"bernoulli"`` only.
        use_lengths: With ``"bernoulli"``: the probability is ``1 - (1 - change_prob) ** (length /
            mean length)``; arcs of a drawn tree get exponential lengths of mean 1.
        mixing: ``"linear"`` (:class:`LinearMixing`) or ``"mlp"`` (:class:`MLPMixing`).
        noise_scale: Standard deviation of Gaussian y; the features carry no noise.
        latent_noise: Standard deviation of what is added to each latent for y, not for x.
        latent_correlation: Correlation of every pair of latents.
        delta_min: Smallest size of a change.
        delta_scale: Scale of a change's size above ``delta_min``.
        likelihood: ``"gaussian"``, ``"bernoulli"`` (y is 0 or 1), ``"binomial"`` or ``"ordinal"``,
            logit link; ``"poisson"`` or ``"negative_binomial"``, log link.
        weight_scale: Standard deviation of the root weights.
        intercept_mean: Mean of the root's intercept: log rate of counts, logit of probabilities.
        overdispersion: Of ``"negative_binomial"``: variance is mean + overdispersion * mean^2.
        exposure_ratio: Most by which exposures of counts differ, as a ratio; log-uniform around 1.
        num_trials: Of ``"binomial"``: trials of each row are uniform on 1 to twice this less 1.
        num_categories: Grades of ``"ordinal"``, between which thresholds are 1.5 apart.
        missing: Share of the entries of y set to NaN, completely at random.
        intercept_scale: Standard deviation of the root's intercept.
        intercept_changes: Probability that an arc changes the intercept (sized as a delta).
        sizes: Law of the sizes of changes above ``delta_min``, of mean square ``delta_scale^2``:
            ``"half_normal"`` or ``"exponential"``. For equal sizes give ``delta_scale`` 0.
        shared_changes: Probability that an arc changes the same latents for all outcomes.
        small_changes: Standard deviation of small changes of every weight on every arc.
        latent_shift: Standard deviation of the change of a latent's mean along an arc.
        latent_stretch: The same of the logarithm of its standard deviation.
        feature_noise: Standard deviation of noise in the features.
        nuisance_dim: Standard normal factors that features show and outcomes do not depend on.
        noise: Of Gaussian y: ``"normal"``, ``"t"`` (3 degrees of freedom, of standard deviation
            ``noise_scale`` too) or ``"outliers"`` (ten times as large in 1 % of the rows).
        noise_ratio: Most by which the noise of two nodes differs, as a ratio; log-uniform.
        noise_correlation: Correlation of the noise of every pair of outcomes.
        curvature: A latent acts as ``z + curvature * (z^2 - 1)``.
        seed: Non-negative; the same seed gives the same simulation.

    Returns:
        Data and truth.

    Raises:
        ShapeError: Counts that do not fit, such as fewer features than latents.
        DataError: An unknown option or a number outside its range.

    Example:
        >>> sim = simulate(num_leaves=4, latent_dim=2, num_features=6, rows_per_leaf=10)
        >>> sim.x.shape, sim.deltas.shape, sim.tree.leaves[0]
        ((40, 6), (6, 2, 1), 'leaf0')

    Source:
        The 1-sparse and the stochastic simulation of arXiv 2405.20482, with counts of our own.
    """
    check_choice("shape", shape, ("balanced", "random"))
    check_choice("changes", changes, _CHANGES)
    check_choice("mixing", mixing, ("linear", "mlp"))
    check_choice("likelihood", likelihood, LIKELIHOODS)
    check_choice("sizes", sizes, tuple(_SIZES))
    check_choice("noise", noise, ("normal", "t", "outliers"))
    shares = {
        "change_prob": change_prob, "missing": missing, "intercept_changes": intercept_changes,
        "shared_changes": shared_changes,
    }  # fmt: skip
    not_negative = {
        "seed": seed, "noise_scale": noise_scale, "latent_noise": latent_noise,
        "delta_min": delta_min, "delta_scale": delta_scale, "intercept_scale": intercept_scale,
        "weight_scale": weight_scale, "overdispersion": overdispersion,
        "small_changes": small_changes, "latent_shift": latent_shift,
        "latent_stretch": latent_stretch, "feature_noise": feature_noise,
    }  # fmt: skip
    for name, value in (shares | not_negative).items():
        check_range(name, value, 0, 1 if name in shares else np.inf)
    check_range("noise_ratio", noise_ratio, 1, np.inf)
    check_range("exposure_ratio", exposure_ratio, 1, np.inf)
    check_range("intercept_mean", intercept_mean, -np.inf, np.inf)
    check_count("num_trials", num_trials, 1, "a trial")
    check_count("num_categories", num_categories, 3, "grades")
    check_range("curvature", curvature, -np.inf, np.inf)
    check_count("nuisance_dim", nuisance_dim, 0, "no factor")
    check_count("latent_dim", latent_dim, 2 if changes == "two_per_arc" else 1, changes)
    num_shown = latent_dim + nuisance_dim
    check_count("num_features", num_features, num_shown * (1 + (mixing == "mlp")), mixing)
    check_count("num_outcomes", num_outcomes, 1, "one outcome")
    factor = _equal_correlations("latent_correlation", latent_correlation, latent_dim)
    noise_factor = _equal_correlations("noise_correlation", noise_correlation, num_outcomes)

    streams = [np.random.default_rng(one) for one in np.random.SeedSequence(seed).spawn(8)]
    for_tree, for_weights, for_mixing, for_rows, for_missing, for_small, for_law = streams[:7]
    if tree is not None and not isinstance(tree, Tree):
        raise DataError(
            f"tree must be a pyro_tbr.Tree or None, got {type(tree).__name__}: see Tree.from_*"
        )
    if tree is None:
        check_count("num_leaves", num_leaves, 2, "a tree")
        tree = _draw_tree(num_leaves, shape, for_tree, streams[7] if use_lengths else None)
    counts = _row_counts(rows_per_leaf, tree)

    def changes_of(*size: int) -> Array:
        sign = for_weights.choice([-1.0, 1.0], size)
        return sign * (delta_min + delta_scale * _SIZES[sizes](for_weights, size))

    A, K, Q = tree.num_arcs, latent_dim, num_outcomes
    root_weights = weight_scale * for_weights.standard_normal((K, Q))
    probs = _change_probs(change_prob, tree, changes, use_lengths)
    gates = _draw_gates((A, K, Q), changes, probs, for_weights)
    shared = for_law.random((A, 1, 1)) < shared_changes
    gates = np.where(shared, gates[..., :1], gates)
    deltas = gates * changes_of(A, K, Q)
    if small_changes:
        deltas = deltas + small_changes * for_small.standard_normal(deltas.shape)
    root_intercept = intercept_mean + intercept_scale * for_weights.standard_normal(Q)
    intercept_deltas = (for_weights.random((A, Q)) < intercept_changes) * changes_of(A, Q)
    index = np.repeat(tree.leaf_index.numpy(), counts)
    mix = _draw_mixing(mixing, num_shown, num_features, for_mixing)
    walks = for_law.standard_normal((2, A, K))
    uneven = noise_ratio ** for_law.uniform(-0.5, 0.5, tree.num_nodes)
    law = RowLaw(
        means=_along_tree(tree, np.zeros(K), latent_shift * walks[0]),
        spreads=np.exp(_along_tree(tree, np.zeros(K), latent_stretch * walks[1])),
        noise_scales=noise_scale * uneven,
        noise=noise,
        noise_factor=noise_factor,
        curvature=curvature,
        feature_noise=feature_noise,
        nuisance_dim=nuisance_dim,
        overdispersion=overdispersion,
        exposure_ratio=exposure_ratio,
        num_trials=num_trials,
        thresholds=thresholds_between(num_categories),
    )
    env = np.empty(len(index), dtype=object)
    for row, node in enumerate(index):  # one by one: numpy would unpack labels that are tuples
        env[row] = tree.nodes[node]
    truth = Simulation(
        x=np.empty((0, num_features)),
        y=np.empty((0, Q)),
        env=env,
        tree=tree,
        z=np.empty((0, K)),
        deltas=deltas,
        gates=gates,
        root_weights=root_weights,
        node_weights=_along_tree(tree, root_weights, deltas),
        node_intercepts=_along_tree(tree, root_intercept, intercept_deltas),
        intercept_deltas=intercept_deltas,
        mixing=mix,
        latent_factor=factor,
        noise_scale=noise_scale,
        latent_noise=latent_noise,
        likelihood=likelihood,
        law=law,
        seed=seed,
    )
    drawn = truth._drawn(index, for_rows)
    y = drawn.y
    y[for_missing.random(y.shape) < missing] = np.nan
    y = y[:, 0] if Q == 1 else y
    return replace(truth, **(drawn._asdict() | {"y": y}))


def _equal_correlations(name: str, correlation: float, size: int) -> Array:
    """Lower Cholesky factor of the correlation matrix whose pairs all have one correlation."""
    lowest = -1 / (size - 1) if size > 1 else -1  # below it, no such correlations
    check_range(name, correlation, lowest + 1e-6, 1 - 1e-6)
    matrix = np.full((size, size), float(correlation))
    np.fill_diagonal(matrix, 1.0)
    return np.linalg.cholesky(matrix)


def _change_probs(change_prob: float, tree: Tree, changes: str, use_lengths: bool) -> Array:
    """Probability of a change on every arc, (A,)."""
    if not use_lengths:
        return np.full(tree.num_arcs, float(change_prob))
    check_choice("changes (with use_lengths=True)", changes, ("bernoulli",))
    lengths = np.array(tree.require_lengths(), dtype=float)
    return 1 - (1 - change_prob) ** (lengths / lengths.mean())


def _draw_tree(
    num_leaves: int,
    shape: str,
    generator: np.random.Generator,
    for_lengths: np.random.Generator | None = None,
) -> Tree:
    """A tree over leaf0, leaf1, ... by splitting ranges of leaves, level by level."""
    parents: dict[Hashable, Hashable] = {}
    num_inner = 0
    queue: deque[tuple[str, int, int]] = deque([("root", 0, num_leaves)])
    while queue:
        parent, start, stop = queue.popleft()
        count = stop - start
        if shape == "balanced":
            cuts = [start + (count + 1) // 2]
        else:
            parts = min(int(generator.choice([2, 3, 4], p=[0.7, 0.2, 0.1])), count)
            places = np.arange(start + 1, stop)
            cuts = sorted(generator.choice(places, parts - 1, replace=False).tolist())
        for low, high in zip([start, *cuts], [*cuts, stop], strict=True):
            name = f"leaf{low}" if high - low == 1 else f"node{num_inner}"
            parents[name] = parent
            if high - low > 1:
                num_inner += 1
                queue.append((name, low, high))
    lengths = for_lengths.exponential(size=len(parents)) if for_lengths else None
    tree = Tree.from_parents(parents)
    return Tree(tree.nodes, tree.arc_parent.tolist(), lengths)


def _draw_gates(
    size: tuple[int, int, int], changes: str, change_prob: Array, generator: np.random.Generator
) -> Array:
    """Which latents change on which arc for which outcome, (A, K, Q) bool."""
    score = generator.random(size)
    if changes == "bernoulli":
        return score < change_prob[:, None, None]
    rank = score.argsort(axis=1).argsort(axis=1)  # a random order of the latents on each arc
    gates = rank < (2 if changes == "two_per_arc" else 1)
    if changes == "half_the_arcs":
        gates = gates & (generator.random((size[0], 1, size[2])) < 0.5)
    return gates


def _draw_mixing(
    kind: str, K: int, D: int, generator: np.random.Generator
) -> LinearMixing | MLPMixing:
    if kind == "linear":
        return LinearMixing(generator.standard_normal((K, D)))
    return MLPMixing(
        inner=generator.standard_normal((K, _HIDDEN)) / np.sqrt(K),
        bias=generator.standard_normal(_HIDDEN) / 2,
        outer=generator.standard_normal((_HIDDEN, D)) * np.sqrt(2 / _HIDDEN),
    )


def _along_tree(tree: Tree, root: Array, deltas: Array) -> Array:
    """Values of every node from those of the root and the changes along the arcs."""
    total = path_sum(tree, torch.from_numpy(root), torch.from_numpy(deltas), event_dim=root.ndim)
    return total.numpy()


def _row_counts(rows_per_leaf: int | Sequence[int], tree: Tree) -> Array:
    counts = np.asarray(rows_per_leaf)
    if counts.ndim > 1 or (counts.ndim == 1 and len(counts) != tree.num_leaves):
        raise ShapeError(
            f"rows_per_leaf has shape {counts.shape}, the tree {tree.num_leaves} leaves; "
            "give one number, or one for each leaf"
        )
    if not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise DataError(f"rows_per_leaf must be counts of rows, got {rows_per_leaf!r}")
    return np.broadcast_to(counts, (tree.num_leaves,))
