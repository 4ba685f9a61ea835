"""The collapsed ELBO: what Pyro's ``Trace_ELBO`` estimates, with all integrated that can be."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.poutine.runtime import effectful
from torch import Tensor, nn

from pyro_tbr.errors import ShapeError
from pyro_tbr.heads import DesignRows, Guide, Head
from pyro_tbr.heads.moments import predictor_moments
from pyro_tbr.models.tree_model import TreeModel


class TreeELBO(ELBO):
    r""":math:`E_q[\log p(y | w)] - KL(q \| p)`, weights and hyperparameters integrated under q.

    Weights enter each row's predictor by their means and variances, so the only noise of a step is
    that of its minibatch. Used as any ELBO of Pyro's, for a :class:`~pyro_tbr.TreeModel` and one of
    our guides:

    - ``SVI(model, guide, optim, TreeELBO()).step(x, env_index, y)``: a gradient step in the encoder
      and, for a guide that is moved by gradients, in the guide. A guide that is exact along the
      tree is moved in closed form: each row's likelihood becomes a normal site, the sites of a
      minibatch stand for all rows (``model.num_rows``), and the potentials of the weights go a
      part of the way to theirs, all the way where the minibatch is all there is. That is a natural
      gradient step; the part falls as (number of steps) ** -0.6.
    - ``TreeELBO()(model, guide)``: a module whose value is the loss, for an optimizer of torch's;
      it moves nothing.

    Source:
        Hoffman, Blei, Wang & Paisley, JMLR 14 (2013) 1303; Khan & Lin, AISTATS 2017.
    """

    def differentiable_loss(
        self, model: TreeModel, guide: Guide, x: Tensor, env_index: Tensor, y: Tensor
    ) -> Tensor:
        """Negative ELBO of all rows, estimated from these; differentiable.

        Args:
            model: A built model.
            guide: Its guide.
            x: Features, (n, D).
            env_index: Node of each row, (n,) int64.
            y: Outcomes, NaN where not observed, (n, Q), or (n,) where Q is 1.
        """
        rows = _rows(model, x, env_index, y)
        return -self.of_rows(model.head, guide, rows)

    def loss(self, model: TreeModel, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """The same as a number."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(
        self, model: TreeModel, guide: Guide, x: Tensor, env_index: Tensor, y: Tensor
    ) -> float:
        """The same, after the guide's own step, with gradients left on the parameters."""
        rows = _rows(model, x, env_index, y)
        if guide.along_tree:
            num_rows = model.num_rows or len(rows)
            seen = DesignRows(rows.design.detach(), rows.y, rows.env_index)
            guide.absorb(seen, num_rows)
        _show_parameters({"encoder": model.encoder, "guide": guide})
        loss = -self.of_rows(model.head, guide, rows)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("TreeELBO integrates the sites; it draws none")

    def of_rows(
        self, head: Head, guide: Guide, rows: DesignRows, weights: Tensor | None = None
    ) -> Tensor:
        """ELBO of all rows, from some of them.

        Args:
            head: Prior, likelihood, and how many rows there are.
            guide: Its guide.
            rows: Some of the rows, or all.
            weights: By how much of a row each outcome counts, (n, Q); 1 where absent.
        """
        each = expected_log_lik(head, guide, rows, weights)
        return (head.num_rows or len(rows)) * each.mean() - guide.kl()


def expected_log_lik(
    head: Head, guide: Guide, rows: DesignRows, weights: Tensor | None = None
) -> Tensor:
    """E[log likelihood] of each row under q, summed over observed outcomes, (n,)."""
    mean, var = predictor_moments(rows.design, rows.env_index, guide.node_moments())
    each = head.likelihood.expected_log_prob(rows.y, mean, var, guide.nuisance)
    shares = rows.shares(weights).to(each)
    return torch.where(shares > 0, shares * each, 0.0).sum(-1)


def _rows(model: TreeModel, x: Tensor, env_index: Tensor, y: Tensor) -> DesignRows:
    y = y.unsqueeze(-1) if y.dim() == 1 else y
    if len({len(x), len(env_index), len(y)}) > 1:
        raise ShapeError(f"x, env_index and y have {len(x)}, {len(env_index)} and {len(y)} rows")
    return DesignRows(model.design(model.encoder(x)), y, env_index)


def _show_parameters(modules: dict[str, nn.Module]) -> None:
    """Tells Pyro of the parameters, so that ``SVI`` steps them; its global store stays as it is."""
    for owner, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
                effectful(lambda value=parameter: value, type="param")(name=f"{owner}.{name}")
