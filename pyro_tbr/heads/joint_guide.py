r"""The exact guide of dense changes: all weights of an outcome jointly along the tree.

Where changes are normal and rows are normal sites, the weights of all nodes are jointly Gaussian
given the hyperparameters, an outcome at a time: messages up and down the tree (``joint_passes``).
Hyperparameters and noise have factors of their own and are moved in turns with the weights, so
every step raises the ELBO.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.coupling import NodeRows
from pyro_tbr.heads.guide import Guide, Settled
from pyro_tbr.heads.joint_passes import Passes, joint_passes
from pyro_tbr.heads.moments import DeltaMoments, NodeMoments
from pyro_tbr.heads.priors.classes import ChangeSums
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.progress import step as one_done

_SETTLED = 0.02  # move of a weight in its standard deviations, of which a sweep is the last


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
        if not self.normal_changes:
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
        if nuisance or likelihood.moves_at_nodes:
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
        loc, scale = (part.mT for part in self.factor.root_law())  # (Q, W)
        return joint_passes(self.head.tree, loc, scale, self._change_precision(), self._rows)


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)
