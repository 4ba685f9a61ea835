r"""The exact guide of dense changes: all weights of an outcome jointly along the tree.

Where changes are normal and rows are normal sites, the weights :math:`u_v` of all nodes are jointly
Gaussian given the hyperparameters, an outcome at a time. The rows of a node say
:math:`\exp(b_v' u_v - u_v' P_v u_v / 2)`. From the leaves to the root, with :math:`d` the precision
of a change (diagonal) and :math:`\Lambda, \eta` what is known below an arc,

.. math::
    S = (\Lambda + d)^{-1}, \quad \text{message } (d S \Lambda, \; d S \eta),

and back, with mean m and covariance C of the parent, :math:`S (\eta + d m)` and
:math:`S + S d C d S`. Hyperparameters and noise have factors of their own and are moved in turns
with the weights, so every step raises the ELBO.

It takes ``V Q W^3`` operations a pass, and memory for ``V Q W^2`` numbers.

Source:
    Rauch, Tung & Striebel, AIAA Journal 3 (1965) 1445, along a tree in place of a line.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from pyro_tbr.errors import DataError, TrainingError
from pyro_tbr.heads.coupling import NodeRows
from pyro_tbr.heads.guide import Guide, Settled
from pyro_tbr.heads.moments import DeltaMoments, NodeMoments
from pyro_tbr.heads.priors.classes import ChangeSums
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.progress import step as one_done

_SETTLED = 0.02  # move of a weight in its standard deviations, of which a sweep is the last


class Passes(NamedTuple):
    """What messages up and down the tree leave, double precision.

    Attributes:
        mean: Of the weights, (V, Q, W).
        cov: Their covariances, (V, Q, W, W).
        change_mean: Of the changes, (A, Q, W).
        change_var: Their variances, likewise.
        inner: S of every arc, (A, Q, W, W), at the root its covariance first: (V, Q, W, W).
        linear: Eta of every node, with the prior's part at the root, (V, Q, W).
        log_evidence: Of the rows' potentials, ().
        fitted: E[b'u - u'Pu / 2], over all nodes with rows, ().
    """

    mean: Tensor
    cov: Tensor
    change_mean: Tensor
    change_var: Tensor
    inner: Tensor
    linear: Tensor
    log_evidence: Tensor
    fitted: Tensor


class JointGuide(Guide):
    """Root weights and changes jointly Gaussian, for dense priors and normal outcomes alone.

    Args:
        head: A head, or a built model that has one, whose prior has one normal class of changes.
        informed_nodes: (V,) bool, nodes that have rows; ``None``: all.

    Raises:
        DataError: Another prior, or another likelihood.
    """

    along_tree = True
    abstract = True  # it holds rows, so no file holds it

    def __init__(self, head: Any, informed_nodes: Tensor | None = None) -> None:
        super().__init__(head, informed_nodes)
        if self.has_gates or self.factor.joint or self.factor.law().prob.shape[-1] != 1:
            raise DataError("JointGuide takes dense normal changes, those of a GaussianPrior")
        if not self.head.likelihood.exact:
            raise DataError("JointGuide takes numeric outcomes with normal noise")
        self._rows: tuple[Tensor, NodeRows] | None = None  # nodes, and what their rows say
        self._current: Passes | None = None
        self._match_dtype()

    @property
    def current(self) -> Passes:
        """The passes, kept until rows or hyperparameters change."""
        if self._current is None:
            self._current = self._passes()
        return self._current

    def refresh(self) -> None:
        """See :meth:`Guide.refresh`."""
        self._current = None

    @torch.no_grad()
    def node_moments(self) -> NodeMoments:
        """See :meth:`Guide.node_moments`."""
        mean, cov = self.current.mean, self.current.cov
        dtype = self.head.prior.root_loc.dtype
        return NodeMoments(mean.mT.to(dtype), _diagonal(cov).mT.to(dtype))

    def node_cov(self, nodes: Tensor) -> Tensor:
        """See :meth:`Guide.node_cov`; double precision."""
        return self.current.cov[nodes]

    @torch.no_grad()
    def delta_moments(self) -> DeltaMoments:
        """See :meth:`Guide.delta_moments`."""
        dtype = self.head.prior.root_loc.dtype
        mean, var = (
            part.mT.to(dtype) for part in (self.current.change_mean, self.current.change_var)
        )
        one = torch.ones_like(mean)
        return DeltaMoments(mean, var, one, one, mean, var)

    @torch.no_grad()
    def kl(self) -> Tensor:
        """See :meth:`Guide.kl`."""
        law, informed = self.factor.law(), self.informed_arcs.reshape(-1, 1, 1, 1)
        excess = torch.where(informed, law.excess.expand(*self.head.prior.delta_shape, 1), 0.0)
        gap = self.factor.root_gap().sum() - excess.sum()
        return self.current.fitted - self.current.log_evidence + gap + self.hyper_kl()

    def expected_log_lik(self, stats: Statistics, moments: NodeMoments | None = None) -> Tensor:
        """See :meth:`Guide.expected_log_lik`; weights of a node go together."""
        if moments is not None:
            return super().expected_log_lik(stats, moments)
        return self._log_lik(stats, self.node_moments(), self.node_cov(stats.nodes))

    @torch.no_grad()
    def start(self, root: Tensor, deltas: Tensor, *, sparse: bool = True) -> None:
        """See :meth:`Guide.start`: of the hyperparameters alone."""
        if sparse:
            self.factor.start_from(root, deltas, self.informed_arcs)
        self.refresh()

    @torch.no_grad()
    def update(
        self,
        stats: Statistics,
        *,
        sweeps: int,
        learn_hyper: bool = True,
        learn_nuisance: bool = True,
        rough: bool = False,
    ) -> Settled:
        """See :meth:`Guide.update`: hyperparameters and noise, and the weights, in turns.

        It is always at rest: weights are at their optimum given the others.
        """
        del rough
        stats, moved, done = stats.flattened(), math.inf, 0
        self._see(stats)
        while done < sweeps and moved >= _SETTLED:
            before = self.current.mean
            self._learn(stats, learn_hyper, learn_nuisance)
            self._see(stats)
            now, done = self.current, done + 1
            spread = _diagonal(now.cov).clamp(min=1e-300).sqrt()
            moved = ((now.mean - before).abs() / spread).max().item()
            one_done(unit="sweep")
        self.check_finite("after an update of the guide")
        return Settled(done, moved)

    @torch.no_grad()
    def step(
        self, stats: Statistics, *, learn_hyper: bool = True, learn_nuisance: bool = True
    ) -> None:
        """See :meth:`Guide.step`."""
        self.update(stats, sweeps=1, learn_hyper=learn_hyper, learn_nuisance=learn_nuisance)

    def _learn(self, stats: Statistics, hyper: bool, nuisance: bool) -> None:
        """Moves hyperparameters and noise to their optimum given the weights."""
        now = self.current
        if hyper:
            root = _diagonal(now.cov[0]) + (now.mean[0] - self.head.prior.root_loc.mT).square()
            self.factor.learn_root(root.mT)
            known = self.informed_arcs.reshape(-1, 1, 1).double()
            second = known * (now.change_var + now.change_mean.square())
            parts = known.expand_as(second), known * now.change_mean, second
            self.factor.learn_changes(ChangeSums(*(p.mT.unsqueeze(-1) for p in parts)))
        likelihood = self.head.likelihood
        if nuisance or likelihood.by_node:
            self.learn_nuisance_from(stats, self.node_cov(stats.nodes), common=nuisance)

    def sample(self, num_samples: int, generator: Generator) -> dict[str, Tensor]:
        """See :meth:`Guide.sample`."""
        now, tree = self.current, self.head.tree
        factors = torch.linalg.cholesky(now.inner)
        noise = torch.randn(
            num_samples, *now.linear.shape, generator=generator, dtype=torch.float64
        )
        noise = (factors @ noise.to(factors).unsqueeze(-1)).squeeze(-1)
        precision = self._change_precision()
        nodes = [noise[:, :1] + now.mean[:1]]
        for level in tree.levels[1:]:
            above = tree.arc_parent[level.start - 1 : level.stop - 1]
            drawn = torch.cat(nodes, 1)[:, above]
            pulled = now.linear[level] + precision[level.start - 1 : level.stop - 1] * drawn
            nodes.append(noise[:, level] + (now.inner[level] @ pulled.unsqueeze(-1)).squeeze(-1))
        weights = torch.cat(nodes, 1)
        deltas = weights[:, 1:] - weights[:, tree.arc_parent]
        dtype = self.head.prior.root_loc.dtype
        draws = {"root_weights": weights[:, 0].mT.to(dtype), "deltas": deltas.mT.to(dtype)}
        return self.with_prior_changes(self.sample_hyper(num_samples, generator) | draws, generator)

    def moments_at(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Means (n, Q, W) and covariances (n, Q, W, W) of the weights at some nodes, double."""
        return self.current.mean[nodes], self.current.cov[nodes]

    def _see(self, stats: Statistics) -> None:
        """Takes what the rows say at the noise as it is now; statistics are flattened."""
        self._rows = stats.nodes, self.node_rows(stats)
        self.refresh()

    def _change_precision(self) -> Tensor:
        """Of every change, (A, Q, W)."""
        var = self.factor.arc_law().var[..., 0]  # (W, Q, A or 1)
        shape = self.head.prior.delta_shape
        return 1 / var.expand(*shape[1:], shape[0]).permute(2, 1, 0)

    def _passes(self) -> Passes:
        """Messages from the leaves to the root and back."""
        tree, precision = self.head.tree, self._change_precision()
        parent = tree.arc_parent.to(precision.device)
        loc, scale = (part.mT for part in self.factor.root_law())  # (Q, W)
        size = (tree.num_nodes, *loc.shape)
        below, linear = loc.new_zeros(*size, size[-1]), loc.new_zeros(size)
        if self._rows is not None:
            nodes, rows = self._rows
            below[nodes], linear[nodes] = rows.precision, rows.linear
        inner = torch.empty_like(below)
        log_evidence = loc.new_zeros(())
        for level in reversed(tree.levels[1:]):
            arcs = slice(level.start - 1, level.stop - 1)
            above, d = parent[arcs], precision[arcs]
            inner[level], log_det = _inverse(below[level] + torch.diag_embed(d))
            pulled = (inner[level] @ linear[level].unsqueeze(-1)).squeeze(-1)
            passed = d.unsqueeze(-1) * (inner[level] @ below[level])
            below.index_add_(0, above, 0.5 * (passed + passed.mT))
            linear.index_add_(0, above, d * pulled)
            height = (linear[level] * pulled).sum() + d.log().sum() - log_det
            log_evidence = log_evidence + 0.5 * height
        d = scale**-2
        inner[0], log_det = _inverse(below[0] + torch.diag_embed(d))
        linear[0] += d * loc
        mean, cov = torch.empty_like(linear), torch.empty_like(inner)
        mean[0], cov[0] = (inner[0] @ linear[0].unsqueeze(-1)).squeeze(-1), inner[0]
        height = (linear[0] * mean[0]).sum() - (d * loc.square()).sum() + d.log().sum() - log_det
        change_mean, change_var = torch.empty_like(mean[1:]), torch.empty_like(mean[1:])
        for level in tree.levels[1:]:
            arcs = slice(level.start - 1, level.stop - 1)
            above, d = parent[arcs], precision[arcs]
            from_above = inner[level] * d.unsqueeze(-2)  # S d
            pulled = linear[level] + d * mean[above]
            mean[level] = (inner[level] @ pulled.unsqueeze(-1)).squeeze(-1)
            cov[level] = inner[level] + from_above @ cov[above] @ from_above.mT
            change_mean[arcs] = mean[level] - mean[above]
            rest = from_above - torch.eye(size[-1]).to(from_above)
            change_var[arcs] = _diagonal(inner[level]) + ((rest @ cov[above]) * rest).sum(-1)
        fitted = log_evidence.new_zeros(())
        if self._rows is not None:
            second = cov[nodes] + mean[nodes].unsqueeze(-1) * mean[nodes].unsqueeze(-2)
            fitted = (rows.linear * mean[nodes]).sum() - 0.5 * (rows.precision * second).sum()
        log_evidence = log_evidence + 0.5 * height
        return Passes(mean, cov, change_mean, change_var, inner, linear, log_evidence, fitted)


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def _inverse(precision: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses of (..., W, W) positive definite matrices, and the sum of their log determinants."""
    factor, failed = torch.linalg.cholesky_ex(precision)
    if failed.any():
        raise TrainingError(
            f"what the rows say of the weights is not finite, or too uneven to be inverted, in "
            f"{int((failed > 0).sum())} of {failed.numel()} places: look for outliers in the "
            "features, scale the data, or lower options.encoder_lr"
        )
    return torch.cholesky_inverse(factor), 2 * _diagonal(factor).log().sum()
