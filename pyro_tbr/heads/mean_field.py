"""The fully factorised guide: every arc, latent and outcome on its own."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_tbr.data.ranks import num_ranks
from pyro_tbr.heads.guide import Settled, everywhere
from pyro_tbr.heads.mean_field_state import MeanFieldState
from pyro_tbr.heads.rows import DesignRows
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.progress import step
from pyro_tbr.tree import descendant_sum

_STEPS = 10  # of Adam in a sweep
_LR = 0.03
_WHOLE_STEP = 0.05  # standard deviation of a factor below which its mean moves in shorter steps
_STEP_SWEEPS = 5  # of a single step
_MOST_RUNS = 3  # of the sweeps asked for, where the ELBO still climbs
_TRIAL_SHARE = 4  # a start is judged after this share of them
_SETTLED = 0.1  # gain of the ELBO over the last tenth of a run below which it has come to rest
_SETTLED_SHARE = 1e-3  # of the ELBO, likewise
_START_SHARE = 0.05  # of a typical change: spread of a factor that starts
_OPEN, _CLOSED = 6.0, -3.0  # log odds of gates that start
_START_TURNS = 12  # of sites and such a start, where sites depend on where the guide is
_START_SWEEPS = 20  # of the tree guide whose changes are another start


class MeanFieldGuide(MeanFieldState):
    """Independent factors for root weights, every arc's change, and every hyperparameter.

    A change is normal, or, where the prior has gates, a gate and a normal change where it is open,
    and one, or none, where it is closed. Arcs in series and arcs under one root carry the same
    information, so the truth there is a split probability; this guide picks one of them with too
    much confidence. With gates it takes the better of the optima next to the start it is given and
    next to the changes that are likely by the tree guide, without them the one next to these.

    Args:
        head: A head, or a built model that has one.
        informed_nodes: (V,) bool, nodes that have rows; ``None``: all.
    """

    def __init__(self, head: Any, informed_nodes: Tensor | None = None) -> None:
        super().__init__(head, informed_nodes)
        self._fresh = True
        self._absorbed = informed_nodes is not None

    @torch.no_grad()
    def start(self, root: Tensor, deltas: Tensor, *, sparse: bool = True) -> None:
        """See :meth:`Guide.start`."""
        typical = deltas.square().mean((0, 2), keepdim=True).sqrt().clamp(min=1e-3)
        spread = _START_SHARE * typical
        self.root_loc.copy_(root)
        self.root_log_scale.copy_(spread[0].log().expand_as(root))
        self.loc.copy_(deltas)
        self.log_scale.copy_(spread.log().expand_as(deltas))
        if self.has_gates:
            evidence = (deltas / spread).square().clamp(max=60) / 2 + _CLOSED
            self.logits.copy_(evidence.clamp(_CLOSED, _OPEN))
        if sparse:
            self.factor.start_from(root, deltas, self.informed_arcs)

    def forget_start(self) -> None:
        """See :meth:`Guide.forget_start`."""
        self._fresh = False

    def update(
        self,
        stats: Statistics,
        *,
        sweeps: int,
        learn_hyper: bool = True,
        learn_nuisance: bool = True,
        rough: bool = False,
    ) -> Settled:
        """See :meth:`Guide.update`.

        A sweep is ten Adam steps of root and changes up the ELBO, then hyperparameters and noise at
        their optimum given these.
        """
        stats = stats.flattened()
        run = partial(self._climb, stats, learn_hyper=learn_hyper, learn_nuisance=learn_nuisance)
        done = 0
        if not rough and self._fresh:
            tree = self._tree_guide(stats.nodes)
            tree.update(
                stats, sweeps=_START_SWEEPS, learn_hyper=learn_hyper,
                learn_nuisance=learn_nuisance, rough=True,
            )  # fmt: skip
            if self.has_gates:
                done = max(2, sweeps // _TRIAL_SHARE)
                self._take_better(tree, stats, partial(run, done))
                done = 2 * done
            else:  # there is one optimum, given the hyperparameters
                self._start_next_to(tree, stats)
        self._fresh = False
        for _ in range(1 if rough else _MOST_RUNS):
            gain, done = run(sweeps), done + sweeps
            at_rest = gain < max(_SETTLED, _SETTLED_SHARE * abs(self.elbo(stats).item()))
            if at_rest:
                break
        self.check_finite("after an update of the guide")
        if rough or at_rest:
            return Settled(done, gain)
        return Settled(done, gain, everywhere(self.head))

    def step(
        self, stats: Statistics, *, learn_hyper: bool = True, learn_nuisance: bool = True
    ) -> None:
        """See :meth:`Guide.step`: a few sweeps, as the rates of Adam have to fall in between."""
        self.update(
            stats,
            sweeps=_STEP_SWEEPS,
            learn_hyper=learn_hyper,
            learn_nuisance=learn_nuisance,
            rough=True,
        )

    def absorb(self, rows: DesignRows, num_rows: int) -> None:
        """A guide that knows nothing yet goes next to the changes that are likely by these rows.

        Gradients take hundreds of steps to get from closed gates to there, if they get there. Where
        several processes train together, each with rows of its own, all start at the prior.
        """
        with_rows = torch.zeros(self.head.tree.num_nodes, dtype=torch.bool)
        with_rows[rows.env_index.cpu()] = True
        self.head.likelihood.know_nodes(self.nuisance, with_rows, only=not self._absorbed)
        self._absorbed = True
        if self.loc.any() or num_ranks() > 1:
            return
        tree = self._tree_guide(rows.env_index)
        for _ in range(1 if self.head.likelihood.exact else _START_TURNS):
            tree.absorb(rows, num_rows)
        self._start_next_to(tree, tree.row_statistics(rows, num_rows / len(rows)))
        if len(rows) < num_rows:  # a few rows of a node would seem to have hardly any noise
            self.head.likelihood.forget_nodes(self.nuisance)

    @torch.no_grad()
    def _narrow(self, stats: Statistics) -> None:
        """Spreads of root and changes at their optimum: what all rows below leave of the prior."""
        rows = stats.gram.diagonal(dim1=-2, dim2=-1).transpose(1, 2)
        rows = self.site_scale(stats.nodes).unsqueeze(1) * rows
        nodes = rows.new_zeros(self.head.tree.num_nodes, *self.root_loc.shape)
        nodes.index_add_(0, stats.nodes, rows.expand(-1, *self.root_loc.shape))
        below = descendant_sum(self.head.tree, nodes.flatten(1)).reshape(nodes.shape)
        root = below[0] + self.factor.scale("root_scale").mean_power(-2.0)
        self.root_log_scale.copy_(-0.5 * root.log())
        var = self.factor.law().var.double()
        var = torch.where(var > 0, var, 1.0)  # arcs that cannot change do not count
        first = 1 if self.has_gates else 0
        self.log_scale.copy_(-0.5 * (below[1:] + 1 / var[..., first:].amax(-1)).log())
        if self.head.prior.has_spike:
            self.spike_log_scale.copy_(-0.5 * (below[1:] + 1 / var[..., 0]).log())

    def _climb(
        self, stats: Statistics, sweeps: int, *, learn_hyper: bool, learn_nuisance: bool
    ) -> float:
        """Climbs the ELBO at a falling rate; returns what the last tenth of the sweeps gained."""
        likelihood = self.head.likelihood
        own = {id(p) for part in (self.factor, self.nuisance) for p in part.parameters()}
        params = [p for p in self.parameters() if id(p) not in own]
        optimizer = torch.optim.Adam(params, lr=_LR, betas=(0.9, 0.99))
        scale, before = 1 / stats.count.sum(), math.nan
        for sweep in range(sweeps):
            if sweep == sweeps - max(1, sweeps // 10):
                before = self.elbo(stats).item()
            with torch.no_grad():
                law = self.factor.law()
            optimizer.param_groups[0]["lr"] = _LR * min(1.0, 2 * (1 - sweep / sweeps) + 0.02)
            with torch.enable_grad():
                for _ in range(_STEPS):
                    optimizer.zero_grad()
                    rows = self.expected_log_lik(stats, self.node_moments(law))
                    (scale * (self._weights_kl(law) - rows)).backward()
                    before_step = [loc.detach().clone() for loc, _ in self._normals()]
                    optimizer.step()
                    self._shorten(before_step)
            if learn_hyper:
                self.factor.learn_root(self._root_square().detach())
                self.factor.learn_changes(self._sums(law))
            if likelihood.exact and (learn_nuisance or likelihood.by_node):
                self.learn_nuisance_from(stats, common=learn_nuisance)
            self.check_finite("after a step up the ELBO")
            step(unit="sweep")
        return self.elbo(stats).item() - before

    def _normals(self) -> list[tuple[Tensor, Tensor]]:
        """Means and log standard deviations of all normal factors."""
        found = [(self.root_loc, self.root_log_scale), (self.loc, self.log_scale)]
        spike = self.head.prior.has_spike
        return [*found, (self.spike_loc, self.spike_log_scale)] if spike else [*found]

    @torch.no_grad()
    def _shorten(self, before: list[Tensor]) -> None:
        """Means that the rows know better than Adam's steps are long have moved by less."""
        for old, (loc, log_scale) in zip(before, self._normals(), strict=True):
            loc.copy_(torch.lerp(old, loc, (log_scale.exp() / _WHOLE_STEP).clamp(max=1)))

    def _tree_guide(self, nodes: Tensor) -> TreeGuide:
        """A tree guide for rows at some nodes, its hyperparameters and noise as they are here."""
        informed = torch.cat([torch.zeros(1, dtype=torch.bool), self.informed_arcs.cpu()])
        informed[nodes.cpu()] = True
        guide = TreeGuide(self.head, informed, num_components=8).to(self.root_loc.device)
        guide.nuisance.load_state_dict(self.nuisance.state_dict())
        if not guide.factor.joint:
            guide.hyper.load_state_dict(self.hyper.state_dict())
        return guide

    def _take_better(self, tree: TreeGuide, stats: Statistics, run: Callable[[], object]) -> None:
        """A run from where it stands and one from next to a tree guide; it keeps the better."""
        run()
        bound, state = self.elbo(stats).item(), self.state_copy()
        self._start_next_to(tree, stats)
        run()
        if self.elbo(stats).item() < bound:
            self.load_state_dict(state)

    @torch.no_grad()
    def _start_next_to(self, guide: TreeGuide, stats: Statistics) -> None:
        """Starts at the changes that are likely by a tree guide for the rows of the statistics."""
        moments, deltas = guide.node_moments(), guide.delta_moments()
        likely = torch.where(deltas.inclusion > 0.5, deltas.slab_mean, 0.0)
        self.start(moments.mean[0], likely, sparse=False)
        self.factor.hyper.load_state_dict(guide.factor.hyper.state_dict())
        self.nuisance.load_state_dict(guide.nuisance.state_dict())
        self._narrow(stats)
