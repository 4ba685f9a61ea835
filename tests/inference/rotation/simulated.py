"""Rotation problems from simulated statistics: their cost does not depend on the number of rows."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

import pyro_tbr as tbr
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.inference.rotation.search import RotationProblem, rotation_problem

NOISE = 0.3


class Simulated(NamedTuple):
    """A problem and the true basis: true latents are ``z @ basis``, unit columns, (K, K)."""

    problem: RotationProblem
    basis: torch.Tensor

    def match(self, basis):
        """Mean correlation of the true latents with those of a basis."""
        correlation = (self.basis.T @ basis).abs().numpy()
        return correlation[linear_sum_assignment(-correlation)].mean()


def balanced_tree(depth):
    return tbr.Tree.from_parents({i: (i - 1) // 2 for i in range(1, 2 ** (depth + 1) - 1)})


def leaf_nodes(tree):
    return torch.tensor(sorted(tree.index(label) for label in tree.leaves))


def simulated(rows, *, seed=0, depth=5, latent_dim=4, misfit=0.0):
    """One change on each arc, of the latent whose number is the arc's modulo K; one outcome.

    Args:
        rows: Rows of each leaf, a number or one for each.
        seed: Randomness.
        depth: Of the tree.
        latent_dim: K.
        misfit: Standard deviation of what is added to each leaf's weights: no tree explains it.
    """
    rng = np.random.default_rng(seed)
    tree, k = balanced_tree(depth), latent_dim
    nodes = leaf_nodes(tree)
    rows = np.broadcast_to(rows, len(nodes))
    deltas = np.zeros((tree.num_arcs, k + 1, 1))
    sizes = rng.choice([-1.0, 1.0], tree.num_arcs) * (0.5 + abs(rng.normal(size=tree.num_arcs)))
    deltas[np.arange(tree.num_arcs), np.arange(tree.num_arcs) % k, 0] = sizes
    root = np.append(rng.normal(size=k), 0.0)[:, None]
    weights = tbr.tree.path_sum(tree, torch.tensor(root), torch.tensor(deltas), event_dim=2)[nodes]
    weights = weights + misfit * torch.tensor(rng.normal(size=weights.shape))
    mixing = rng.normal(size=(10 * k, k)) / (10 * k) ** 0.5
    scale = np.linalg.cholesky(mixing.T @ mixing)
    grams = np.stack([_gram(rng, scale, num) for num in rows])
    grams = torch.tensor(grams)
    noise = torch.linalg.cholesky(grams) @ torch.tensor(rng.normal(size=(len(nodes), k + 1, 1)))
    cross = (grams @ weights + NOISE * noise).mT
    # Latents turned at random and made white over all rows.
    total = grams.sum(0) / rows.sum()
    mean = total[:k, k]
    white = torch.linalg.inv(torch.linalg.cholesky(total[:k, :k] - mean.outer(mean))).T
    white = white @ torch.linalg.qr(torch.tensor(rng.normal(size=(k, k))))[0]
    linear = torch.eye(k + 1).double()
    linear[:k, :k], linear[k, :k] = white, -mean @ white
    count = torch.tensor(rows.copy()).double()[:, None]
    zero = torch.zeros_like(count)
    stats = Statistics(nodes, grams[:, None], cross, zero, count, zero)
    stats = stats.transform(linear)
    precision = torch.full((1,), NOISE**-2).double()
    # Dense weights: leaf by leaf, all changes on leaf arcs.
    gram = stats.gram[:, 0] + 1e-3 * torch.eye(k + 1)
    leaf = torch.linalg.solve(gram, stats.cross.mT)  # (E, W, 1)
    dense = torch.zeros(deltas.shape).double()
    dense[nodes - 1] = leaf - leaf.mean(0)
    true = torch.linalg.inv(white)
    problem = rotation_problem(tree, stats, precision, leaf.mean(0), dense, k, int(rows.sum()))
    return Simulated(problem, true / true.norm(dim=0))


def _gram(rng, scale, num):
    """Sums of products of latents and intercept over rows: exact for few, as a draw for many."""
    k = len(scale)
    if num <= 1000:
        design = np.c_[rng.normal(size=(num, k)) @ scale.T, np.ones(num)]
        return design.T @ design + 1e-9 * np.eye(k + 1)
    mean = scale @ rng.normal(size=k) / num**0.5
    factor = np.tril(rng.normal(size=(k, k)), -1)  # Bartlett's factor of a Wishart draw
    factor += np.diag(np.sqrt(rng.chisquare(num - 1 - np.arange(k))))
    scatter = scale @ factor @ factor.T @ scale.T
    full = np.append(mean, 1.0)
    gram = num * np.outer(full, full)
    gram[:k, :k] += scatter
    return gram
