r"""Sums over rows where the noise of a row's outcomes goes together.

With Lambda the precision of the noise of what a row has observed, zero elsewhere, rows of a node
with latents z and outcomes y say of its weights

.. math::
    -\tfrac12 \sum_n \sum_{qr} \Lambda_{qr} (y_{nq} - z_n' w_q)(y_{nr} - z_n' w_r),

which asks for sums of zz', zy' and yy' over the rows that have observed the same outcomes. So they
are kept for each node and pattern of observed outcomes that occurs: Lambda may change afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.rows import DesignRows

_SUMS = ("gram", "cross", "outer", "count")
_CHUNK_ELEMENTS = 4_000_000  # sums are made of chunks of about this many numbers


class JointSums(NamedTuple):
    """Weighted sums over the rows of M nodes and patterns, double precision.

    Attributes:
        nodes: Node of each, (M,) int64.
        seen: Which outcomes its rows have observed, (M, Q) bool.
        gram: Sums of z z', (M, W, W).
        cross: Sums of y z', (M, Q, W), zero where not observed.
        outer: Sums of y y', (M, Q, Q), likewise.
        count: Sums of the weights, (M,).
        shrink: Standard deviations by the noise over those that are right of the weights of the
            nodes with rows, (E, Q, W); ``None``: 1.
        turn: From the latents of the sums to those that ``shrink`` was taken in no longer,
            (W, W); ``None``: the same.
    """

    nodes: Tensor
    seen: Tensor
    gram: Tensor
    cross: Tensor
    outer: Tensor
    count: Tensor  # type: ignore[assignment]
    shrink: Tensor | None = None
    turn: Tensor | None = None

    @classmethod
    def of(cls, rows: DesignRows, shares: Tensor) -> JointSums:
        """Of some rows; by ``shares`` (N, Q) they count, the same for all observed of a row."""
        seen = shares > 0
        kept = seen.any(1)
        seen, node = seen[kept], rows.env_index[kept]
        nodes, patterns, place = _kinds(node, seen)
        share = shares[kept].amax(1).double()
        z, y = rows.design[kept].double(), torch.where(seen, rows.y[kept].double(), 0.0)
        size, (num_weights, num_outcomes) = len(nodes), (z.shape[1], y.shape[1])
        gram = z.new_zeros(size, num_weights, num_weights)
        cross = z.new_zeros(size, num_outcomes, num_weights)
        outer = z.new_zeros(size, num_outcomes, num_outcomes)
        chunk = max(1, _CHUNK_ELEMENTS // max(num_weights, num_outcomes) ** 2)
        for some in torch.arange(len(z), device=z.device).split(chunk):
            at, left, right = place[some], z[some], y[some]
            weighed = share[some].unsqueeze(1)
            gram.index_add_(0, at, torch.einsum("nv,nw->nvw", weighed * left, left))
            cross.index_add_(0, at, torch.einsum("nq,nw->nqw", weighed * right, left))
            outer.index_add_(0, at, torch.einsum("nq,nr->nqr", weighed * right, right))
        count = z.new_zeros(size).index_add(0, place, share)
        return cls(nodes, patterns, gram, cross, outer, count)

    def __add__(self, other: object) -> JointSums:
        """Of both sets of rows together; neither is flattened."""
        assert isinstance(other, JointSums)
        pairs = ((self.nodes, other.nodes), (self.seen, other.seen))
        nodes, patterns, place = _kinds(*(torch.cat(pair) for pair in pairs))

        def summed(name: str) -> Tensor:
            both = torch.cat([getattr(self, name), getattr(other, name)])
            return both.new_zeros(len(nodes), *both.shape[1:]).index_add(0, place, both)

        return JointSums(nodes, patterns, *(summed(name) for name in _SUMS))

    def scaled(self, share: float) -> JointSums:
        """Of rows that count by a share."""
        return self._replace(**{name: share * getattr(self, name) for name in _SUMS})

    def transform(self, linear: Tensor) -> JointSums:
        """Of the design ``z @ linear``, with ``linear`` (W, W)."""
        if self.shrink is not None:
            return self._replace(turn=linear if self.turn is None else self.turn @ linear)
        return self._replace(gram=linear.mT @ self.gram @ linear, cross=self.cross @ linear)

    def flattened(self, inflation: Tensor) -> JointSums:
        """Variances of weights ``inflation`` (E, Q, W) times as large, peaks where they were."""
        return self._replace(shrink=inflation.rsqrt())

    def at_nodes(self, nodes: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the rows of each of ``nodes`` (E,) say of its weights, of all outcomes at once.

        Args:
            nodes: Those with rows, rising.
            precision: Of the noise of what was observed, zero elsewhere, (M, Q, Q).

        Returns:
            P (E, QW, QW), b (E, QW) and c (E,): minus half of ``c - 2 b'w + w'Pw``.
        """
        size, num_outcomes, num_weights = len(nodes), *self.cross.shape[1:]
        place, width = torch.searchsorted(nodes, self.nodes), num_outcomes * num_weights
        whole = self.gram.new_zeros(size, width, width)
        for some in torch.arange(len(place), device=place.device).split(
            max(1, _CHUNK_ELEMENTS // width**2)
        ):
            each = torch.einsum("mqr,mvw->mqvrw", precision[some], self.gram[some])
            whole.index_add_(0, place[some], each.reshape(-1, width, width))
        linear = torch.einsum("mqr,mrw->mqw", precision, self.cross).flatten(1)
        linear = linear.new_zeros(size, width).index_add(0, place, linear)
        square = (precision * self.outer).sum((1, 2))
        square = square.new_zeros(size).index_add(0, place, square)
        if self.shrink is not None:
            whole, linear, square = _flat(whole, linear, square, self.shrink.flatten(1))
        if self.turn is not None:
            turn = torch.block_diag(*[self.turn] * num_outcomes)
            whole, linear = turn.mT @ whole @ turn, linear @ turn
        return whole, linear, square

    def residuals(self, nodes: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
        """Expected sums of products of residuals of the observed outcomes, (M, Q, Q).

        Args:
            nodes: Those with rows, (E,).
            mean: Means of their weights, (E, Q, W).
            cov: Covariances, (E, Q W, Q W).
        """
        place, num_outcomes = torch.searchsorted(nodes, self.nodes), mean.shape[1]
        if self.turn is not None:
            turn = torch.block_diag(*[self.turn] * num_outcomes)
            mean, cov = mean @ self.turn.mT, turn @ cov @ turn.mT
        if self.shrink is not None:
            shrink = self.shrink.flatten(1)
            cov = shrink.unsqueeze(-1) * cov * shrink.unsqueeze(-2)
        mean, cov = mean[place], cov.unflatten(2, mean.shape[1:]).unflatten(1, mean.shape[1:])
        fitted = torch.einsum("mqv,mvw,mrw->mqr", mean, self.gram, mean)
        told = torch.einsum("mqw,mrw->mqr", self.cross, mean)
        spread = torch.cat([
            torch.einsum("mvw,mqvrw->mqr", self.gram[some], cov[place[some]])
            for some in torch.arange(len(place), device=place.device).split(
                max(1, _CHUNK_ELEMENTS // cov[0].numel())
            )
        ])  # fmt: skip
        found = self.outer - told - told.mT + fitted + spread
        return torch.where(self.seen.unsqueeze(-1) & self.seen.unsqueeze(-2), found, 0.0)


def _kinds(node: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes (M,) and patterns (M, Q) that occur, and which of these each of (n,), (n, Q) is."""
    keys = torch.cat([node.unsqueeze(1), seen.long()], 1)
    kinds, place = keys.unique(dim=0, return_inverse=True)
    return kinds[:, 0].contiguous(), kinds[:, 1:] > 0, place


def _flat(
    whole: Tensor, linear: Tensor, square: Tensor, shrink: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, linear term and square of rows whose peak stays and whose precision shrinks."""
    peak = (torch.linalg.pinv(whole, hermitian=True) @ linear.unsqueeze(-1)).squeeze(-1)
    flat = shrink.unsqueeze(-1) * whole * shrink.unsqueeze(-2)
    pulled = (flat @ peak.unsqueeze(-1)).squeeze(-1)
    return flat, pulled, square + ((pulled - linear) * peak).sum(-1)
