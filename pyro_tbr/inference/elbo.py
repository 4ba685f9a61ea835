"""The collapsed ELBO: what Pyro's ``Trace_ELBO`` estimates, with all integrated that can be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.heads import DesignRows, Guide, Head, RowTerms
from pyro_tbr.heads.moments import predictor_moments
from pyro_tbr.models.tree_model import TreeModel


class TreeELBO(ELBO):
    r""":math:`E_q[\log p(y | w)] - KL(q \| p)`, weights and hyperparameters integrated under q.

    Weights enter each row's predictor by their means and variances, so the only noise of a step is
    that of its minibatch. Used as any ELBO of Pyro's, for a :class:`~pyro_tbr.TreeModel` and one of
    our guides:

    - ``SVI(model, guide, optim, TreeELBO()).step(x, env_index, y)`` trains encoder, hyperparameters
      and guide.
    - ``TreeELBO()(model, guide)`` is a module whose value is the loss, for an optimizer of torch's.

    Rows of a minibatch stand for ``model.num_rows`` rows. What an optimizer steps are the encoder
    and the parameters of a guide that is trained by gradients. A guide that is exact along the tree
    moves in closed form, before the loss is taken, as the statistics of a batch normalisation do:
    where gradients are recorded and the guide is in training mode. Each row's likelihood becomes a
    normal site, and the potentials of the weights go a part of the way to those of the sites; all
    the way where outcomes are normal and the rows given are all there are. That is a natural
    gradient step; the part falls as (number of steps) ** -0.6.

    Source:
        Hoffman, Blei, Wang & Paisley, JMLR 14 (2013) 1303; Khan & Lin, AISTATS 2017.
    """

    def differentiable_loss(
        self,
        model: TreeModel,
        guide: Guide,
        x: Tensor,
        env_index: Tensor,
        y: Tensor,
        terms: RowTerms | None = None,
    ) -> Tensor:
        """Negative ELBO of all rows, estimated from these; differentiable.

        Args:
            model: A built model.
            guide: Its guide.
            x: Features, (n, D).
            env_index: Node of each row, (n,) int64.
            y: Outcomes, NaN where not observed, (n, Q), or (n,) where Q is 1.
            terms: What else is known of the rows, as for the model.

        Raises:
            DataError: Model or guide is none of ours.
            ShapeError: Numbers of rows or outcomes do not fit.
            TrainingError: A guide that moves in closed form would not be finite.
        """
        _check(model, guide)
        y = y.unsqueeze(-1) if y.dim() == 1 else y
        if len({len(x), len(env_index), len(y)}) > 1:
            numbers = f"{len(x)}, {len(env_index)} and {len(y)}"
            raise ShapeError(f"x, env_index and y have {numbers} rows")
        if y.shape[1] != model.num_outcomes:
            raise ShapeError(
                f"y has {y.shape[1]} columns, the model was built for {model.num_outcomes} outcomes"
            )
        known = RowTerms() if terms is None else terms
        rows = DesignRows(model.design(model.encoder(x)), y, env_index, terms=known)
        moves = guide.training and torch.is_grad_enabled()
        if moves:
            guide.absorb(replace(rows, design=rows.design.detach()), model.num_rows or len(rows))
        loss = -self.of_rows(model.head, guide, rows)
        if moves:
            guide.refresh()
        return loss

    def loss(self, model: TreeModel, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """The same as a number; moves nothing."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: TreeModel, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """The same as a number, with gradients left on the parameters, for ``SVI.step``."""
        _check(model, guide)
        model.show_parameters()
        if not guide.along_tree:
            guide.show_parameters()
        with poutine.block(hide_types=["param"]):
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("TreeELBO integrates the sites; it draws none")

    def of_rows(
        self,
        head: Head,
        guide: Guide,
        rows: DesignRows,
        weights: Tensor | None = None,
        *,
        batch: int | None = None,
        share: float = 1.0,
    ) -> Tensor:
        """ELBO of all rows, from some of them; outcomes count by ``weights`` (n, Q), or by 1.

        Where the rows are those of one process, of a ``batch`` of more, it is the summand of that
        process, with a ``share`` of the divergence.
        """
        each = expected_log_lik(head, guide, rows, weights)
        number = len(rows) if batch is None else batch
        return (head.num_rows or number) * (each.sum() / number) - share * guide.kl()


def expected_log_lik(
    head: Head, guide: Guide, rows: DesignRows, weights: Tensor | None = None
) -> Tensor:
    """E[log likelihood] of each row under q, summed over observed outcomes, (n,)."""
    mean, var = predictor_moments(rows.design, rows.env_index, guide.node_moments())
    nuisance = guide.nuisance_of(rows)
    each = head.likelihood.expected_log_prob(rows.y, mean, var, nuisance)
    shares = rows.shares(weights).to(each)
    return torch.where(shares > 0, shares * each, 0.0).sum(-1)


def _check(model: TreeModel, guide: Guide) -> None:
    for what, given, sign in (("model", model, "head"), ("guide", guide, "along_tree")):
        if not hasattr(given, sign):
            raise DataError(
                f"TreeELBO takes a built pyro_tbr.TreeModel and a guide of ours; this {what} is a "
                f"{type(given).__name__}: for others use Pyro's Trace_ELBO"
            )
