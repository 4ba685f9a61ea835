"""The log evidence alone, as a search asks for it many times, and its gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_tbr.tree.messages.compiled.calls import (
    compiled_evidence,
    compiled_moments,
    compiles,
    differentiated,
)
from pyro_tbr.tree.messages.inside import check_inputs, run_inside
from pyro_tbr.tree.messages.laws import ArcLaw, LawTable
from pyro_tbr.tree.messages.mixtures import Density
from pyro_tbr.tree.messages.outside import TreePosterior
from pyro_tbr.tree.tree import Tree


def log_evidence(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    law: ArcLaw,
    root_loc: Tensor | float,
    root_scale: Tensor | float,
    num_components: int | None = 32,
    sweeps: int = 1,
) -> Tensor:
    r"""Log evidence of the potentials, ``(*B,)``, differentiable in them, the law and the root.

    Arguments and errors are those of :func:`inside_pass`. With a cap the gradient is that of the
    exact log evidence at capped moments (Fisher's identity): a mean in ``eta``, half a mean square
    in ``lam``, and so on. Variances of exactly zero have none.
    """
    arcs, root, batch = check_inputs(tree, eta, lam, law, root_loc, root_scale)
    if not compiles(eta, num_components):
        args = (tree, eta, lam, arcs, root, batch, num_components, sweeps)
        return run_inside(*args).log_evidence
    assert num_components is not None
    if differentiated(eta, lam, arcs, root):
        how = _Passes(tree, arcs, batch, num_components, sweeps)
        law_and_root = arcs.prob, arcs.mean, arcs.var, root.mean, root.var
        return _LogEvidence.apply(how, eta, lam, *law_and_root)
    return compiled_evidence(tree, eta, lam, arcs, root, batch, num_components, sweeps)


class _Passes(NamedTuple):
    """What the passes take beside what is differentiated."""

    tree: Tree
    arcs: LawTable
    batch: torch.Size
    cap: int
    sweeps: int

    def moments(self, eta: Tensor, lam: Tensor, mean: Tensor, var: Tensor) -> TreePosterior:
        """Both passes; ``mean`` and ``var`` are the root's."""
        root = Density(torch.zeros_like(mean), mean, var)
        return compiled_moments(
            self.tree, eta, lam, self.arcs, root, self.batch, self.cap, self.sweeps
        )


class _LogEvidence(torch.autograd.Function):
    """Fisher's identity: the gradient of a log evidence is a posterior mean of one."""

    @staticmethod
    def forward(ctx: Any, how: _Passes, eta: Tensor, lam: Tensor, *rest: Tensor) -> Tensor:
        """``rest`` are probabilities, means and variances of the classes, and the root's law."""
        ctx.found, ctx.batch = how.moments(eta, lam, *rest[-2:]), how.batch.numel()
        ctx.save_for_backward(lam, *rest)
        return ctx.found.log_evidence

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """By the moments of the passes."""
        lam, prob, mean, var, root_mean, root_var = ctx.saved_tensors
        now, each = ctx.found, gradient.unsqueeze(-1)
        some = (lam > 0).to(lam)
        square = now.node_var + now.node_mean.square()
        found = [None, each * some * now.node_mean, -0.5 * each * some * square]
        # As the law is laid out: arcs, batch, classes.
        each = gradient.reshape(1, -1, 1).double()
        odds, first, second = (
            part.double().reshape(ctx.batch, *part.shape[-2:]).movedim(1, 0)
            for part in (now.class_prob, now.class_mean, now.class_second)
        )
        row = slice(-1) if len(prob) > 2 else slice(1)  # the last is the helpers'
        p, m, v = (part[row] for part in (prob, mean, var))
        scatter = second - 2 * m * first + odds * m.square()
        width = torch.where(v > 0, v, torch.inf)
        parts = odds / torch.where(p > 0, p, torch.inf), (first - odds * m) / width
        for part in (*parts, 0.5 * (scatter / width - odds) / width):
            found.append(_summed(each * part, prob.shape))
        at_root, root_square = (
            part[..., 0].reshape(1, -1, 1).double() for part in (now.node_mean, now.node_var)
        )
        off = at_root - root_mean
        found.append(each * off / root_var)
        found.append(0.5 * each * ((root_square + off.square()) / root_var - 1) / root_var)
        return tuple(found)


def _summed(values: Tensor, shape: torch.Size) -> Tensor:
    """A gradient (A, B, J) of a law's table of this shape, whose last row has none."""
    if shape[1] == 1:
        values = values.sum(1, keepdim=True)
    if shape[0] == 2:
        values = values.sum(0, keepdim=True)
    return torch.cat([values, torch.zeros_like(values[:1])])
