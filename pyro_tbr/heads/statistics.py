"""Sufficient statistics of the rows of each node: all that the weights' posterior needs of them.

They are additive: over blocks of rows, over processes, over updates. What rows leave unsaid, as
their own residuals show that they are less sure than the noise says, stands beside them and is
applied when they are used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.joint_sums import JointSums
from pyro_tbr.heads.rows import DesignRows

_SUMS = ("gram", "cross", "square", "count", "constant")
_CHUNK_ELEMENTS = 4_000_000  # numbers that are made at once
_WIDE = 12  # weights from which on products of matrices pay, rather than those of single rows
_MOST_ROWS = 64  # of a node that are multiplied together


class Statistics(NamedTuple):
    """Weighted moments of design and response at each node with rows, in double precision.

    The log likelihood of node weights w is ``constant - (square - 2 cross' w + w' gram w) / 2`` for
    each outcome; for an exact likelihood the second part is in units of the noise variance, and
    what depends on the noise alone comes on top.

    Attributes:
        nodes: Nodes that have rows, (E,) int64.
        gram: Sums of precision * z z', (E, Q, W, W), or (E, 1, W, W) where all outcomes share it.
        cross: Sums of precision * z * response, (E, Q, W).
        square: Sums of precision * response^2, (E, Q).
        count: Observed outcomes, (E, Q); sums of their weights, where rows have such.
        constant: Sums of what does not depend on the weights, (E, Q).
        inflation: Variances of the node's weights over those that the noise says, (E, Q, W);
            ``None``: 1.
        joint: Sums of outcomes together, where their noise goes together; else ``None``.
    """

    nodes: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor
    count: Tensor  # type: ignore[assignment]
    constant: Tensor
    inflation: Tensor | None = None
    joint: JointSums | None = None

    def transform(self, linear: Tensor) -> Statistics:
        """Statistics of the design ``z @ linear``, with ``linear`` (*B, W, W); batch goes first.

        Sums of outcomes together are turned where there is no batch, and left out elsewhere.
        """
        joint = None
        if self.joint is not None and linear.dim() == 2:
            joint = self.joint.transform(linear)
        linear = linear[..., None, None, :, :]
        gram = linear.transpose(-1, -2) @ self.gram @ linear
        cross = (linear.transpose(-1, -2) @ self.cross.unsqueeze(-1)).squeeze(-1)
        return self._replace(gram=gram, cross=cross, joint=joint)

    def scaled(self, share: float) -> Statistics:
        """Statistics of rows that count by a share, or as so many."""
        sums = {name: getattr(self, name) * share for name in _SUMS}
        joint = None if self.joint is None else self.joint.scaled(share)
        return self._replace(**sums, joint=joint)

    def residual(self, mean: Tensor, var: Tensor, cov: Tensor | None = None) -> Tensor:
        """Expected sum of squared residuals, (E, Q), double precision, never below zero.

        Args:
            mean: Means of the weights at every node, (V, W, Q).
            var: Their variances, for independent weights.
            cov: Covariances at the nodes with rows, (E, Q, W, W), to be used in place of ``var``.
        """
        mean = mean[self.nodes].transpose(-1, -2).double()  # (E, Q, W)
        var = var[self.nodes].transpose(-1, -2).double()
        gram = self.gram.expand(*self.cross.shape, -1)
        fitted = torch.einsum("eqw,eqwv,eqv->eq", mean, gram, mean)
        if cov is None:
            spread = (self.gram.diagonal(dim1=-2, dim2=-1) * var).sum(-1)
        else:
            spread = (gram * cov).sum((-1, -2))
        at_mean = (self.square - 2 * (self.cross * mean).sum(-1) + fitted).clamp(min=0)
        return at_mean + spread.clamp(min=0)

    def peaks(self) -> tuple[Tensor, Tensor]:
        """Inverse grams (E, Q, W, W) and where each node's likelihood peaks, (E, Q, W)."""
        inverse = torch.linalg.pinv(self.gram, hermitian=True)  # once where outcomes share it
        peak = (inverse @ self.cross.unsqueeze(-1)).squeeze(-1)
        return inverse.expand(*peak.shape, -1), peak

    def flattened(self) -> Statistics:
        """The same peaks, residuals and correlations, variances ``inflation`` times as large."""
        if self.inflation is None or bool((self.inflation == 1).all()):
            return self._replace(inflation=None)
        shrink = self.inflation.rsqrt()
        peak = self.peaks()[1]
        flat = self.gram * shrink[..., :, None] * shrink[..., None, :]
        cross = (flat @ peak.unsqueeze(-1)).squeeze(-1)
        square = self.square + ((cross - self.cross) * peak).sum(-1)
        joint = None if self.joint is None else self.joint.flattened(self.inflation)
        return self._replace(gram=flat, cross=cross, square=square, inflation=None, joint=joint)

    def __add__(self, other: object) -> Statistics:
        """Statistics of both sets of rows together."""
        assert isinstance(other, Statistics)
        nodes, position = torch.cat([self.nodes, other.nodes]).unique(return_inverse=True)
        width = max(self.gram.shape[1], other.gram.shape[1])

        def summed(mine: Tensor, theirs: Tensor) -> Tensor:
            both = torch.cat([mine, theirs])
            total = both.new_zeros(len(nodes), *both.shape[1:])
            return total.index_add(0, position, both)

        one, two = (s._replace(gram=s.gram.expand(-1, width, -1, -1)) for s in (self, other))
        sums = {name: summed(getattr(one, name), getattr(two, name)) for name in _SUMS}
        joint = None
        if self.joint is not None and other.joint is not None:
            joint = self.joint + other.joint
        inflation = self._inflation_with(other, summed)
        return Statistics(nodes, **sums, inflation=inflation, joint=joint)

    def _inflation_with(self, other: Statistics, summed) -> Tensor | None:  # type: ignore[no-untyped-def]
        """Of both together: by rows, in logs; rows of which none is known have the average."""
        if self.inflation is None and other.inflation is None:
            return None
        known = [s for s in (self, other) if s.inflation is not None]
        logs = torch.cat([s.inflation.log() for s in known])  # type: ignore[union-attr]
        rows = torch.cat([s.count for s in known]).unsqueeze(-1)
        usual = (rows * logs).sum(0) / rows.sum(0).clamp(min=1e-300)
        parts = [
            (usual.expand_as(s.cross) if s.inflation is None else s.inflation.log())
            * s.count.unsqueeze(-1)
            for s in (self, other)
        ]
        total = summed(self.count, other.count).unsqueeze(-1)
        return torch.where(total > 0, summed(*parts) / total.clamp(min=1e-300), usual).exp()


class Sites(NamedTuple):
    """A Gaussian for each row and outcome, exp(log_norm - precision (f - response)^2 / 2), (N, Q).

    By ``share``, in double precision, the outcome counts: 0 where it was not observed.
    """

    precision: Tensor
    response: Tensor
    log_norm: Tensor
    share: Tensor


@torch.no_grad()
def statistics(rows: DesignRows, sites: Sites, *, together: bool = False) -> Statistics:
    """Sufficient statistics of some rows, from the Gaussians that stand for their likelihood.

    With ``together`` those of outcomes whose noise goes together are among them.
    """
    nodes, position = rows.env_index.unique(return_inverse=True)
    precision = torch.where(sites.share > 0, sites.share * sites.precision.double(), 0.0)
    response = torch.where(sites.share > 0, sites.response.double(), 0.0)
    shared = bool((precision == precision[:, :1]).all())
    num_weights, num_outcomes = rows.design.shape[1], precision.shape[1]
    width = 1 if shared else num_outcomes
    gram = precision.new_zeros(len(nodes), width, num_weights, num_weights)
    cross = gram.new_zeros(len(nodes), num_outcomes, num_weights)
    wide = num_weights >= _WIDE
    chunk = max(1, _CHUNK_ELEMENTS // (num_weights if wide else width * num_weights**2))
    for some in torch.arange(len(precision), device=precision.device).split(chunk):
        z, w, at = rows.design[some].double(), precision[some], position[some]
        if wide:
            _add_by_pieces(gram, cross, z, w, response[some], at)
        else:
            gram.index_add_(0, at, torch.einsum("nq,nv,nw->nqvw", w[:, :width], z, z))
            cross.index_add_(0, at, torch.einsum("nq,nw->nqw", w * response[some], z))
    zeros = gram.new_zeros(len(nodes), num_outcomes)
    height = torch.where(sites.share > 0, sites.share * sites.log_norm.double(), 0.0)
    sums = (precision * response.square(), sites.share, height)
    square, count, constant = (zeros.index_add(0, position, part) for part in sums)
    joint = JointSums.of(rows, sites.share) if together else None
    return Statistics(nodes, gram, cross, square, count, constant, joint=joint)


def _add_by_pieces(
    gram: Tensor, cross: Tensor, z: Tensor, precision: Tensor, response: Tensor, position: Tensor
) -> None:
    """Adds rows to the sums of their nodes, ``position`` (n,): gram and cross of `statistics`.

    The rows of each node are laid into pieces of equal length, the last one filled up with zeros,
    so that outer products are summed by products of matrices: ten times as fast for 50 weights.
    """
    num_nodes, width, num_weights, _ = gram.shape
    count = torch.bincount(position, minlength=num_nodes)
    seen = int((count > 0).sum())
    length = min(max(2 * len(z) // (3 * max(1, seen)), 4), _MOST_ROWS)
    pieces = (count + length - 1) // length
    order = position.argsort(stable=True)
    node = position[order]
    rank = torch.arange(len(z), device=z.device) - (count.cumsum(0) - count)[node]
    place = ((pieces.cumsum(0) - pieces)[node] + rank // length) * length + rank % length

    def laid(values: Tensor) -> Tensor:
        found = values.new_zeros(int(pieces.sum()) * length, values.shape[1])
        found[place] = values[order]
        return found.reshape(-1, length, values.shape[1])

    each = torch.arange(num_nodes, device=z.device).repeat_interleave(pieces)
    run = max(1, _CHUNK_ELEMENTS // num_weights**2)
    parts = (laid(part).split(run) for part in (z, precision, precision * response))
    for at, rows, weight, pull in zip(each.split(run), *parts, strict=True):
        cross.index_add_(0, at, pull.mT @ rows)
        for q in range(width):
            gram[:, q].index_add_(0, at, (weight[..., q : q + 1] * rows).mT @ rows)
