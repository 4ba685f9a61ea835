r"""What rows that a fit has not seen say of the changes it found: an estimate, and its expectation.

The estimate is that of a linear regression along the tree, with changes of every weight on every
arc, drawn from a normal (random slopes). It knows nothing of gates or sizes: with latents that are
given it is linear in the outcomes. A change's posterior mean there is its generalised least squares
estimate (all other arcs random, its own free, so unbiased) times a positive factor, the shrinkage
by its own prior; so the sign of the one is that of the other.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

import pyro_tbr as tbr
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.tree import path_sum

_ROOT_SCALE = 100.0  # of root weights, in standard deviations of an outcome: nearly free


class Rows(NamedTuple):
    """Rows of some half with what a fit of the other half calls latents.

    Attributes:
        design: Latents and a last column of ones, (N, W).
        y: Outcomes, (N, Q), none missing.
        node: Node of each row, (N,).
        group: Number of each row's group, such as a mouse or a genus, (N,).
    """

    design: Tensor
    y: Tensor
    node: Tensor
    group: Tensor


class Scales(NamedTuple):
    """Hyperparameters of the regression along the tree.

    Attributes:
        change: Standard deviation of a change, (W, Q).
        noise: Of an outcome given its predictor, (Q,).
        correlation: Of two rows of a group given their predictors, (Q,).
    """

    change: Tensor
    noise: Tensor
    correlation: Tensor


def learn_scales(tree: tbr.Tree, rows: Rows, seed: int = 0) -> Scales:
    """Those of :func:`pyro_tbr.fit` with normal changes, told of the groups."""
    labels = [tree.nodes[i] for i in rows.node.tolist()]
    latent_dim = rows.design.shape[1] - 1
    model = tbr.TreeModel(tree, latent_dim, "identity", prior=tbr.GaussianPrior(pooled=True))
    with warnings.catch_warnings():
        # The latents are given, whatever determines them.
        warnings.simplefilter("ignore", tbr.IdentificationWarning)
        posterior = tbr.fit(
            model, rows.design[:, :-1], rows.y, labels,
            groups=rows.group.numpy(), seed=seed, progress=False,
        )  # fmt: skip
    draws = posterior.sample(1000, seed=seed)
    scale, noise = (torch.as_tensor(draws[name]) for name in ("slab_scale", "noise_scale"))
    return Scales(
        (scale.square().mean(0).sqrt() * posterior.weight_unit).expand(-1, rows.y.shape[1]),
        noise.square().mean(0).sqrt(),
        posterior.report.group_correlation.double(),
    )


class OtherHalf:
    """The regression along the tree, ready for any outcomes of its rows.

    Args:
        tree: The environments.
        rows: Those of the half.
        scales: Hyperparameters.
    """

    def __init__(self, tree: tbr.Tree, rows: Rows, scales: Scales) -> None:
        self.tree, self.rows, self.scales = tree, rows, scales
        size = rows.design.shape[1]
        self._weight = RowGroups(rows.group, scales.correlation).weights(rows.y)
        self._weight = self._weight / scales.noise.square()  # (N, Q)
        on_path = path_sum(tree, torch.zeros(tree.num_arcs), torch.eye(tree.num_arcs)).double()
        self._on_path = torch.cat([torch.ones(tree.num_nodes, 1), on_path], 1)  # (V, V)
        self._factors = []
        for q in range(rows.y.shape[1]):
            weighted = rows.design * self._weight[:, q, None]
            gram = self._at_nodes(rows.design[:, :, None] * weighted[:, None])  # (V, W, W)
            precision = torch.einsum("nu,nv,nij->uivj", self._on_path, self._on_path, gram)
            precision = precision.reshape(tree.num_nodes * size, -1)
            prior = scales.change[:, q].repeat(tree.num_nodes).reciprocal().square()
            prior[:size] = (_ROOT_SCALE * rows.y[:, q].std()) ** -2
            self._factors.append(torch.linalg.cholesky(precision + prior.diag()))

    def _at_nodes(self, values: Tensor) -> Tensor:
        """Sums over the rows of each node, (V, ...)."""
        total = values.new_zeros(self.tree.num_nodes, *values.shape[1:])
        return total.index_add_(0, self.rows.node, values)

    def changes(self, y: Tensor) -> Tensor:
        """Posterior means of the changes, (S, A, W, Q), for outcomes (S, N, Q) of these rows."""
        found, size = [], self.rows.design.shape[1]
        for q, factor in enumerate(self._factors):
            outcome = y[:, :, q].T * self._weight[:, q, None]  # (N, S)
            cross = self._at_nodes(self.rows.design[:, :, None] * outcome[:, None])  # (V, W, S)
            cross = torch.einsum("nu,nis->uis", self._on_path, cross)
            solved = torch.cholesky_solve(cross.flatten(0, 1), factor)
            found.append(solved.reshape(-1, size, len(y))[1:].permute(2, 0, 1))
        return torch.stack(found, -1)

    def replicate(
        self, node_weights: Tensor, noise: Tensor, correlation: Tensor, seed: int
    ) -> Tensor:
        """Outcomes of these rows as a posterior of the other rows expects them, (S, N, Q).

        Args:
            node_weights: Draws of the weights at every node, (S, V, W, Q).
            noise: Draws of the noise scale, (S, Q).
            correlation: Of the noise of rows of a group, (Q,).
            seed: Of the noise.
        """
        generator = torch.Generator().manual_seed(seed)
        rows, num = self.rows, len(noise)

        def normal(size: int) -> Tensor:
            shape = (num, size, noise.shape[1])
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        shared = normal(int(rows.group.max()) + 1)[:, rows.group]
        error = correlation.sqrt() * shared + (1 - correlation).sqrt() * normal(len(rows.y))
        mean = torch.stack(
            [torch.einsum("nw,nwq->nq", rows.design, one[rows.node]) for one in node_weights]
        )
        return mean + noise[:, None] * error
