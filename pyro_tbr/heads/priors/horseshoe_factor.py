r"""The horseshoe's part of q: factors of its scales, and along the tree the scales jointly.

Given the global scale :math:`\tau` and the slab's scale c a change is a mixture of normals, one for
each class of its local scale (``horseshoe_classes.py``). :math:`\log\tau` and :math:`\log c`, one
pair a weight and outcome, are integrated by the trapezoid rule over a grid that follows their
posterior: passes run at every point, and a point's weight is its prior times the evidence there.
So within a weight's tree nothing is approximated but integrals by sums.
"""

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from pyro_tbr.heads.hyper.base import quadrature
from pyro_tbr.heads.priors.classes import ExpectedLaw, one_class
from pyro_tbr.heads.priors.evidence import Evidence
from pyro_tbr.heads.priors.factor import PriorFactor, root_square
from pyro_tbr.heads.priors.horseshoe_classes import (
    ScaleClasses,
    draw_half_cauchy,
    draw_local_scales,
    scale_classes,
)
from pyro_tbr.heads.priors.horseshoe_grid import ScaleGrid
from pyro_tbr.progress import beat
from pyro_tbr.tree.messages import ArcLaw, TreePosterior, sample

_GRID_SITES = ("global_scale", "slab_scale")
_BLOCK = 1 << 18  # changes at points of the grid at once: bounds the memory of large trees


class HorseshoeFactor(PriorFactor):
    """Factors of all scales, independent of the changes."""

    @property
    def closed_form(self) -> bool:
        """See :attr:`PriorFactor.closed_form`: tails are heavy where rows say little."""
        return False

    def law(self, relative_length: Tensor | None = None) -> ExpectedLaw:
        """See :meth:`PriorFactor.law`."""
        # 1/s^2 = 1/t^2 + 1/c^2 with t the product of global and local scale, c the slab's.
        slab = self.scale("slab_scale")
        local_loc, local_var = self.scale("local_scale").log_moments()
        whole_loc, whole_var = self.scale("global_scale").log_moments()
        slab_loc, slab_var = slab.log_moments()
        loc, var = local_loc + whole_loc, local_var + whole_var
        inverse = torch.exp(-2 * loc + 2 * var) + slab.mean_power(-2.0)
        # log s = log t - softplus(2 log(t/c)) / 2, and log(t/c) is normal under q.
        points, weights = quadrature(2 * (loc - slab_loc), 2 * (var + slab_var).sqrt())
        weights = weights.reshape(-1, 1, 1, 1)
        log_scale = loc - 0.5 * (weights * softplus(points)).sum(0)
        # s^2 = c^2 sigmoid(-2 log(c/t)); c^2 and the sigmoid are both increasing in c, and their
        # covariance is small beside the prior's own width, so it is left out of this one moment.
        square = slab.mean_power(2.0) * (weights * torch.sigmoid(points)).sum(0)
        return one_class(inverse, log_scale, square)

    def new_var(self, relative_length: Tensor) -> Tensor:
        """See :meth:`PriorFactor.new_var`; the local scale has its prior."""
        whole, slab = (self.hyper[name].points() for name in _GRID_SITES)  # type: ignore[operator]
        square = _mean_square(whole[0].unsqueeze(1), slab[0])
        square = torch.einsum("s,t,stwq->wq", whole[1], slab[1], square)
        return square.double().expand(len(relative_length), *square.shape)


def _mean_square(whole: Tensor, slab: Tensor) -> Tensor:
    """E[t^2 c^2 / (t^2 + c^2)] for t half-Cauchy with the global scale, c the slab's."""
    return whole * slab.square() / (whole + slab)


@dataclass(frozen=True)
class HorseshoePosterior(TreePosterior):
    """Moments over the grid of scales; ``class_prob`` is that of the classes at each point's own.

    Attributes:
        log_local: Posterior mean of the log local scale, ``(w, Q, A)``.
        log_local_square: Of its square.
        shrinkage: Posterior mean of the share of a change that the prior takes away.
        log_evidence_at: Log evidence at every point of the grid, ``(G, w, Q)``.
    """

    log_local: Tensor
    log_local_square: Tensor
    shrinkage: Tensor
    log_evidence_at: Tensor


class HorseshoeTreeFactor(HorseshoeFactor):
    """Global, local and slab scales held jointly with the weights.

    Attributes:
        grid: Of the global and the slab scale.
    """

    joint = frozenset({"global_scale", "local_scale", "slab_scale"})
    rough_components = 8

    def __init__(self, prior: Any) -> None:
        super().__init__(prior)
        self.grid = ScaleGrid(prior.global_scale, prior.slab_scale)

    @torch.no_grad()
    def start_from(self, root: Tensor, deltas: Tensor, informed: Tensor) -> None:
        """See :meth:`PriorFactor.start_from`; weights of the grid are those of the hyperprior."""
        super().start_from(root, deltas, informed)
        factors = [self.scale(name) for name in _GRID_SITES]
        self.grid.start(torch.stack([factor.log_moments()[0].double() for factor in factors]))

    def _classes(self, data: Evidence, points: slice = slice(None)) -> ScaleClasses:
        """Classes of the scales of changes at points of the grid, (g, w, Q, A, J)."""
        whole, slab = self.grid.points()[:, points, data.weights].unsqueeze(-1)
        return scale_classes(whole, slab, data.change_precision())

    @torch.no_grad()
    def passes(self, data: Evidence, refit: bool = False) -> HorseshoePosterior:
        """See :meth:`PriorFactor.passes`."""
        grid, weights = self.grid, data.weights
        num, size = len(grid.log_weight), data.tree.num_arcs * grid.loc[0, weights].numel()
        starts = range(0, num, max(1, _BLOCK // size))
        at_points = [self._at(data, slice(start, start + starts.step)) for start in starts]
        parts = {
            name: torch.cat([getattr(part, name) for part in at_points])
            for name in HorseshoePosterior.__dataclass_fields__
            if name != "pips"
        }
        log_joint = grid.log_prior()[:, weights] + parts["log_evidence"]
        if refit:
            grid.log_weight[:, weights] = log_joint.log_softmax(0).to(grid.log_weight)
        log_weight = grid.log_weight[:, weights].double()
        weight = log_weight.exp()
        # The lower bound that these weights give; the log evidence itself where they are best.
        log_evidence = (weight * (log_joint - log_weight)).sum(0)
        mixed = {
            name: (weight.reshape(*weight.shape, *[1] * (value.dim() - 3)) * value).sum(0)
            for name, value in parts.items()
        }
        between = (parts["node_mean"] - mixed["node_mean"]).square()
        mixed["node_var"] = mixed["node_var"] + (weight.unsqueeze(-1) * between).sum(0)
        return HorseshoePosterior(
            **mixed | {"log_evidence": log_evidence, "log_evidence_at": parts["log_evidence"]},
            pips=None,
        )

    def _at(self, data: Evidence, points: slice) -> HorseshoePosterior:
        """Passes at some points of the grid, which lead."""
        classes = self._classes(data, points)
        found = data.moments(_arc_law(classes), *self.root_law(data.weights))
        beat()
        prob, precision = found.class_prob, data.change_precision().unsqueeze(-1)
        return HorseshoePosterior(
            **found.__dict__,
            log_local=(prob * classes.log_local).sum(-1),
            log_local_square=(prob * classes.log_local.square()).sum(-1),
            shrinkage=(prob / (1 + classes.var * precision)).sum(-1),
            log_evidence_at=found.log_evidence,
        )

    @torch.no_grad()
    def learn(self, now: TreePosterior, informed: Tensor) -> None:
        """See :meth:`PriorFactor.learn`: moves the grid, and factors to its moments for reports.

        The weights then belong to the grid of before, until passes are made with ``refit``.
        """
        assert isinstance(now, HorseshoePosterior)
        self.learn_root(root_square(now, self.prior.root_loc))
        for name, loc, spread in zip(_GRID_SITES, *self.grid.move(), strict=True):
            factor = self.scale(name)
            factor.match(loc, spread)
        local_var = (now.log_local_square - now.log_local.square()).clamp(min=1e-4)
        self.scale("local_scale").match(
            torch.where(informed, now.log_local, 0.0).permute(2, 0, 1),
            torch.where(informed, local_var.sqrt(), math.pi / 2).permute(2, 0, 1),
        )

    def gap(self, now: TreePosterior, informed: Tensor) -> Tensor:
        """See :meth:`PriorFactor.gap`: scales are in the log evidence."""
        return self.root_gap()

    def silent_square(self) -> Tensor:
        """See :meth:`PriorFactor.silent_square`."""
        return self.grid.mean(_mean_square).expand(self.prior.delta_shape).unsqueeze(-1)

    def new_var(self, relative_length: Tensor) -> Tensor:
        """See :meth:`PriorFactor.new_var`."""
        square = self.grid.mean(_mean_square)
        return square.expand(len(relative_length), *square.shape)

    def shrinkage(self, now: TreePosterior) -> Tensor:
        """See :meth:`PriorFactor.shrinkage`."""
        assert isinstance(now, HorseshoePosterior)
        return now.shrinkage.permute(2, 0, 1)

    @torch.no_grad()
    def draw(self, data: Evidence, num_samples: int, generator: Generator) -> dict[str, Tensor]:
        """See :meth:`PriorFactor.draw`; arcs without rows below have the prior."""
        draws = self._draw(data, num_samples, generator)[0]
        dtype = self.prior.root_loc.dtype
        return {name: value.to(dtype) for name, value in draws.items()}

    def _draw(
        self, data: Evidence, num_samples: int, generator: Generator
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Draws, the points of the grid behind them and log q of their scales, (S, W, Q)."""
        point, (whole, slab), log_q = self.grid.draw(num_samples, generator)
        root, deltas = self._draw_weights(data, point, generator)
        scales = {"global_scale": whole, "slab_scale": slab}
        known = data.informed.reshape(-1, 1, 1)
        whole, slab = whole.unsqueeze(-3), slab.unsqueeze(-3)
        local, log_local = draw_local_scales(deltas, whole, slab, generator)
        silent = draw_half_cauchy(local.shape, generator, local).clamp(min=1e-12)
        local = torch.where(known, local, silent)
        scale = whole * local
        scale = scale * slab / torch.hypot(scale, slab)
        noise = torch.randn(deltas.shape, generator=generator, dtype=torch.float64)
        deltas = torch.where(known, deltas, scale * noise.to(scale.device))
        log_silent = math.log(2 / math.pi) - torch.log1p(local.square())  # half-Cauchy
        log_silent = log_silent + dist.Normal(0.0, scale).log_prob(deltas)
        log_q = log_q + torch.where(known, log_local, log_silent).sum(-3)
        draws = {"root_weights": root, "deltas": deltas, "local_scale": local}
        return draws | scales, point, log_q

    def _draw_weights(
        self, data: Evidence, point: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Root weights (S, W, Q) and deltas (S, A, W, Q), each at its point of the grid."""
        root = torch.zeros(point.shape, dtype=torch.float64, device=point.device)
        deltas = root.new_zeros(*point.shape, data.tree.num_arcs)
        for g in range(len(self.grid.log_weight)):
            here = point == g
            num = int(here.sum(0).max())
            if not num:
                continue
            inside = self.inside(data, _arc_law(self._classes(data, slice(g, g + 1))))
            found, _, changes = sample(data.tree, inside, num, generator)
            order = (here.cumsum(0) - 1).clamp(min=0)  # the how many-th draw at this point it is
            root = torch.where(here, found[:, 0].gather(0, order), root)
            order = order.unsqueeze(-1).expand_as(deltas)
            deltas = torch.where(here.unsqueeze(-1), changes[:, 0].gather(0, order), deltas)
        return root, deltas.movedim(-1, 1)

    @torch.no_grad()
    def emit(self, data: Evidence, now: TreePosterior, generator: Generator) -> None:
        """See :meth:`PriorFactor.emit`.

        The scales are uniform within their cell, so the mean of log p - log q is a little below
        the guide's ELBO.
        """
        assert isinstance(now, HorseshoePosterior)
        self.hyper["root_scale"]()
        draws, point, log_q = self._draw(data, 1, generator)
        root, deltas = draws["root_weights"], draws["deltas"]
        log_q = log_q + dist.Normal(*self.root_law()).log_prob(root)
        log_q = log_q - now.log_evidence_at.double().gather(0, point)
        log_q = log_q + self._log_changes(data, deltas, point)
        dtype = self.prior.root_loc.dtype
        density = (log_q.sum() + data.log_potential(root, deltas).sum()).to(dtype)
        for name in ("root_weights", "deltas", "global_scale", "local_scale", "slab_scale"):
            if name not in self.hyper or self.scale(name).learnt:
                value = draws[name][0].to(dtype)
                pyro.sample(name, dist.Delta(value, log_density=density, event_dim=value.dim()))
                density = torch.zeros_like(density)

    def _log_changes(self, data: Evidence, deltas: Tensor, point: Tensor) -> Tensor:
        """Log prior of the informed changes at the points, classes summed out, (S, W, Q)."""
        classes = self._classes(data)
        place = point[..., None, None].expand(*point.shape, *classes.prob.shape[-2:])
        prob, var = (part.gather(0, place) for part in (classes.prob, classes.var))
        changes = deltas.movedim(1, -1).unsqueeze(-1)  # (S, W, Q, A, 1)
        log_each = (prob.log() + dist.Normal(0.0, var.sqrt()).log_prob(changes)).logsumexp(-1)
        return torch.where(data.informed, log_each, 0.0).sum(-1)


def _arc_law(classes: ScaleClasses) -> ArcLaw:
    return ArcLaw.of(classes.prob, torch.zeros_like(classes.var), classes.var)
