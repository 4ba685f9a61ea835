"""The guide that is exact along the tree, and approximate between weights (latents)."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NoReturn

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Generator, Tensor

from pyro_tbr.errors import TrainingError
from pyro_tbr.heads.guide import Settled, allowed_fall, logit
from pyro_tbr.heads.local_params import show_parameter
from pyro_tbr.heads.moments import ArcInclusion, DeltaMoments, NodeMoments
from pyro_tbr.heads.rows import DesignRows
from pyro_tbr.heads.sites import row_moments, row_sites
from pyro_tbr.heads.statistics import Statistics, statistics
from pyro_tbr.heads.sweeps import Sweeps
from pyro_tbr.heads.tree_state import FINAL_PASSES, TreeState
from pyro_tbr.tree import path_sum
from pyro_tbr.tree.messages import ArcLaw, sample

_JOINT_ELEMENTS = 5_000_000  # of one block of draws, where every call makes messages anew
_SURE = 1e-13  # where one minus a PIP in double precision has still three digits
_FORGETTING = 0.6  # power of the number of minibatches by which a new one counts less
_FIRST_SWEEPS = 20  # at the first minibatch
_MOST_TRIES = 6  # of a step that lowers the bound, each half as long
_MAX_PASSES, _MAX_ARCS = 32, 4000  # passes for log odds of sure changes, and arcs in all of them


class TreeGuide(TreeState):
    r"""Each latent's weights and gates jointly exact along the tree; latents independent.

    With ``coupled`` each latent is judged with the others uncertain, by expectation propagation
    (``coupling``), else with the others at their means, which is far too sure where latents
    correlate within environments.

    The rows of a node enter as a Gaussian potential :math:`\exp(\eta u - \lambda u^2 / 2)` on the
    node's weight u, one a weight and outcome: a closed-form function of the rows, so the guide is
    amortized. Inside and outside messages along the tree then give everything else. Dense changes
    are the case of one component a message; those of a horseshoe are mixtures of normals of several
    widths, and its scales are exact jointly with them, by sums in place of integrals.

    Args:
        head: A head, or a built model that has one.
        informed_nodes: (V,) bool, nodes that have rows; ``None``: all.
        num_components: Cap on the components of a message; ``None`` is exact, and exponential in
            the number of arcs.
        coupled: Expectation propagation between latents rather than mean field. Off for the best
            ELBO, as where solutions are compared by it.
    """

    def __init__(
        self,
        head: Any,
        informed_nodes: Tensor | None = None,
        num_components: int | None = 32,
        *,
        coupled: bool = True,
    ) -> None:
        super().__init__(head, informed_nodes, num_components, coupled=coupled)
        self._start: Tensor | None = None
        self._running: Statistics | None = None  # of minibatches, scaled to all rows
        self._absorbed = 0

    def settings(self) -> dict[str, Any]:
        """See :meth:`Guide.settings`."""
        return {"num_components": self.num_components, "coupled": self.coupled}

    @torch.no_grad()
    def node_moments(self) -> NodeMoments:
        """See :meth:`Guide.node_moments`; without gradient: the potentials are not trained."""
        dtype = self.head.prior.root_loc.dtype
        mean = self.current.node_mean.permute(2, 0, 1)
        var = self.current.node_var.permute(2, 0, 1)
        if not bool(self.informed_arcs.all()):
            # Below the last data the passes add the spread at q's centre; q's own goes in instead.
            excess = self.factor.silent_square().sum(-1)
            excess = excess - self.current.delta_second.permute(2, 0, 1)
            excess = torch.where(self.informed_arcs.reshape(-1, 1, 1), 0.0, excess)
            var = var + path_sum(self.head.tree, torch.zeros_like(var[0]), excess, event_dim=2)
        return NodeMoments(mean.to(dtype), var.to(dtype))

    @torch.no_grad()
    def delta_moments(self) -> DeltaMoments:
        """See :meth:`Guide.delta_moments`."""
        now, first = self.current, 1 if self.has_gates else 0
        known = self.informed_arcs.reshape(-1, 1, 1)
        mean = now.delta_mean.permute(2, 0, 1)
        prob = torch.ones_like(mean) if now.pips is None else now.pips.permute(2, 0, 1)
        silent = self.factor.silent_square()
        second = torch.where(known, now.delta_second.permute(2, 0, 1), silent.sum(-1))
        on_mean = now.class_mean[..., first:].sum(-1).permute(2, 0, 1)
        on_second = now.class_second[..., first:].sum(-1).permute(2, 0, 1)
        on_second = torch.where(known, on_second, silent[..., first:].sum(-1))
        safe = prob.clamp(min=1e-300)
        slab_mean = on_mean / safe
        slab_var = (on_second / safe - slab_mean.square()).clamp(min=0)
        var = (second - mean.square()).clamp(min=0)
        parts = (mean, var, prob, self.factor.prior_inclusion().to(prob), slab_mean, slab_var)
        dtype = self.head.prior.root_loc.dtype
        return DeltaMoments(*(part.to(dtype) for part in parts))

    @torch.no_grad()
    def shrinkage(self) -> Tensor:
        r"""See :meth:`Guide.shrinkage`.

        :math:`E[1 / (1 + s_a^2 / e_a^2)]` with :math:`s_a` the scale of the change and :math:`e_a`
        its standard error by the data alone, were the weight it starts from known and no arc below
        changed: near 1 where the change is shrunk to nothing, near 0 where it is left as it is.

        Source:
            Carvalho, Polson & Scott, Biometrika 97 (2010) 465; Piironen & Vehtari, Electronic
            Journal of Statistics 11 (2017) 5018.
        """
        return self.factor.shrinkage(self.current)

    @torch.no_grad()
    def kl(self) -> Tensor:
        """See :meth:`Guide.kl`."""
        now = self.current
        second = now.node_var + now.node_mean.square()
        potential = (self.eta * now.node_mean - 0.5 * self.lam * second).sum()
        return potential - self.log_evidence().sum() + self.hyper_kl()

    @torch.no_grad()
    def start(self, root: Tensor, deltas: Tensor, *, sparse: bool = True) -> None:
        """See :meth:`Guide.start`."""
        self._start = path_sum(self.head.tree, root, deltas, event_dim=2).double()
        if sparse:
            self.factor.start_from(root, deltas, self.informed_arcs)
        self.refresh()

    def forget_start(self) -> None:
        """See :meth:`Guide.forget_start`."""
        self._start = None

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
        """See :meth:`Guide.update`: one latent's tree after the other, see ``sweeps``."""
        start = None if self._start is None else self._start[stats.nodes].transpose(1, 2)
        self._start = None
        run = Sweeps(self, stats, learn_hyper=learn_hyper, learn_nuisance=learn_nuisance)
        settled = run.settle(start, sweeps, rough=rough)
        self._after(learn_hyper)
        return settled

    @torch.no_grad()
    def step(
        self, stats: Statistics, *, learn_hyper: bool = True, learn_nuisance: bool = True
    ) -> None:
        """See :meth:`Guide.step`: one sweep, hyperparameters and noise after it."""
        Sweeps(self, stats, learn_hyper=learn_hyper, learn_nuisance=learn_nuisance).once()
        self._after(learn_hyper)

    @torch.no_grad()
    def absorb(self, rows: DesignRows, num_rows: int) -> None:
        """A natural-gradient step towards the optimum for all rows, of which these are some.

        Args:
            rows: A minibatch, or all rows.
            num_rows: How many rows there are in all.
        """
        known, exact = self._running, self.head.likelihood.exact
        weight, self._absorbed = num_rows / len(rows), self._absorbed + 1
        batch = self.row_statistics(rows, weight, at_start=known is None)
        # Sites that are no expansions are the rows' own: of all rows they are the optimum.
        share = 1.0 if exact and weight <= 1 else self._absorbed**-_FORGETTING
        state, bound = None, -math.inf
        if known is not None and not exact:
            state, bound = self.state_copy(), self.elbo(batch).item()
        for _ in range(_MOST_TRIES):
            self._running = batch
            if known is not None:
                self._running = known.scaled(1 - share) + batch.scaled(share)
            run = Sweeps(self, self._running, learn_hyper=True, learn_nuisance=True)
            if known is None:  # single sweeps from the prior find poor optima
                run.settle(None, _FIRST_SWEEPS, rough=True)
            else:
                run.once()
            # For the loss of this step alone, which forgets them again.
            self.refresh(self.passes(num_components=run.few, refit=True))
            if state is None:
                break
            self._learn_from(rows, weight, share)
            # Full steps of sites may overshoot, and then ever further.
            if self.elbo(self.row_statistics(rows, weight)) > bound - allowed_fall(bound):
                break
            self.load_state_dict(state)
            share = 0.5 * share
        self.check_finite("after a step of the guide")

    def row_statistics(
        self, rows: DesignRows, weight: float, *, at_start: bool = False
    ) -> Statistics:
        """Statistics of the rows' sites, each row as good as so many."""
        sites, _ = row_sites(self, rows, at_start=at_start)
        found = statistics(rows, sites, together=self.head.likelihood.correlated)
        return found.scaled(weight)

    def _learn_from(self, rows: DesignRows, weight: float, share: float) -> None:
        """A part of the way to the optimum of the likelihood's own parameters for some rows."""
        before = {name: value.clone() for name, value in self.nuisance.state_dict().items()}
        mean, var = row_moments(self, rows)
        shares, terms = weight * rows.shares(), rows.terms
        self.head.likelihood.learn(
            self.nuisance, rows.y, mean, var, shares, rows.env_index, terms.values
        )
        for name, value in self.nuisance.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.lerp(before[name], value, share))

    def _after(self, learn_hyper: bool) -> None:
        self.refresh()
        if self.factor.joint and learn_hyper:  # their weights, at the grid as it is now
            self.refresh(self.passes(sweeps=FINAL_PASSES, refit=True))
        self.check_finite("after an update of the guide")

    def sample(self, num_samples: int, generator: Generator) -> dict[str, Tensor]:
        """See :meth:`Guide.sample`; arcs without rows below are drawn anew from the prior."""
        hyper, factor = self.sample_hyper(num_samples, generator), self.factor
        if factor.joint:  # what is held jointly with the weights is in there already
            return hyper | factor.draw(self.evidence(), num_samples, generator)
        draws = factor.draw_from(self.messages(), self.head.tree, num_samples, generator)
        return self.with_prior_changes(hyper | draws, generator)

    @torch.no_grad()
    def sample_arcs(self, site: str, num_samples: int, generator: Generator) -> Iterator[Tensor]:
        """See :meth:`Guide.sample_arcs`; messages are sent once where hyperparameters allow it."""
        factor = self.factor
        if factor.joint:
            for block in self._blocks(num_samples, _JOINT_ELEMENTS):
                yield self.sample(len(block), generator)[site]
            return
        messages = self.messages()
        for block in self._blocks(num_samples):
            draws = factor.draw_from(messages, self.head.tree, len(block), generator)
            draws = self.sample_hyper(len(block), generator) | draws
            yield self.with_prior_changes(draws, generator)[site]

    @torch.no_grad()
    def sample_some(
        self, site: str, arcs: Tensor, trees: Tensor, num_samples: int, generator: Generator
    ) -> Iterator[Tensor]:
        """See :meth:`Guide.sample_some`: only what leads to these arcs is worked out."""
        factor, known = self.factor, self.informed_arcs[arcs].unsqueeze(-1)
        if factor.joint or not factor.trees_apart:
            yield from super().sample_some(site, arcs, trees, num_samples, generator)
            return
        messages, tree = self.messages(), self.head.tree
        for block in self._blocks(num_samples):
            num = len(block)
            drawn = sample(tree, messages, num, generator, arcs=arcs, batch=trees)
            values = (drawn.classes > 0) if site == "gates" else drawn.deltas
            values = values.mT.to(self.head.prior.root_loc.dtype)
            hyper = self.sample_hyper(num, generator)
            if not bool(self.informed_arcs.all()):
                new = self.head.prior.draw_changes(hyper, generator)[site].flatten(2)
                values = torch.where(known, values, new[:, arcs][:, :, trees])
            yield values

    @torch.no_grad()
    def log_odds(self) -> Tensor:
        """See :meth:`Guide.log_odds`.

        Where a PIP is within 1e-13 of 1 they come from the log evidence with and without the
        change, one pass for every such arc of a latent and outcome, up to 32 and up to 4,000 arcs
        in all; any beyond get the logit of 1 - 1e-13.
        """
        pips = self.current.pips
        if pips is None:
            return super().log_odds()
        found = logit(pips)
        # Without data below an arc its odds are the prior's, whatever they are.
        certain = self.factor.prior_inclusion().permute(1, 2, 0).to(pips.device) >= 1
        sure = (pips > 1 - _SURE) & self.informed_arcs & ~certain
        number = sure.cumsum(-1) * sure  # 1, 2, ... within a latent and outcome
        found = torch.where(sure, logit(pips.new_tensor(1 - _SURE)), found)
        passes = min(_MAX_PASSES, _MAX_ARCS // max(1, sure.shape[-1]), int(number.max()))
        passes = 0 if self.factor.trees_joint else passes  # what one tree says is not all
        for one in range(1, passes + 1):
            here = number == one
            trees = here.any(-1)  # (W, Q): of the others nothing is asked
            if one == 1:
                whole = torch.zeros_like(found[..., 0])
                whole[trees] = self._log_evidence_of(trees, self.factor.arc_law(), sweeps=1)
            off = self._log_off(here[trees], trees, whole[trees], sweeps=1).unsqueeze(-1)
            found[trees] = torch.where(here[trees], torch.maximum(found[trees], -off), found[trees])
        return found.permute(2, 0, 1)

    def _log_off(self, arcs: Tensor, trees: Tensor, log_evidence: Tensor, sweeps: int) -> Tensor:
        """Log posterior probability that none of some arcs (n, A) bool changed, (n,).

        Of n of the trees, (W, Q) bool. The log evidence without changes there, less that with, and
        the prior's log probability.
        """
        law = self.factor.arc_law()
        prob = law.prob.expand(*trees.shape, arcs.shape[-1], law.num_classes)
        none = torch.zeros_like(prob)
        none[..., 0] = 1.0
        where = torch.zeros(*trees.shape, arcs.shape[-1], dtype=torch.bool, device=arcs.device)
        where[trees] = arcs
        without = ArcLaw.of(torch.where(where.unsqueeze(-1), none, prob), law.mean, law.var, True)
        change = self._log_evidence_of(trees, without, sweeps) - log_evidence
        return change + torch.where(arcs, prob[trees][..., 0].log(), 0.0).sum(-1)

    def _log_evidence_of(self, trees: Tensor, law: ArcLaw, sweeps: int) -> Tensor:
        """Log evidence of n of the trees, (W, Q) bool, under a law of all of them, (n,)."""
        if self.factor.trees_joint:
            return self.factor.log_evidence(self.evidence(sweeps=sweeps), law)[trees]
        data, shape = self.evidence(sweeps=sweeps), (*trees.shape, self.num_arcs, law.num_classes)
        some = data._replace(eta=data.eta[trees], lam=data.lam[trees])
        prob, mean, var = (part.expand(shape)[trees] for part in (law.prob, law.mean, law.var))
        root = (part[trees] for part in self.factor.root_law())
        return some.log_evidence(ArcLaw.of(prob, mean, var, law.gated), *root)

    @torch.no_grad()
    def path_inclusion(self, arcs: Tensor) -> Tensor:
        """See :meth:`Guide.path_inclusion`: by the log evidence with and without changes there."""
        pips = self.current.pips
        assert pips is not None  # the caller has asked for gates
        single = pips[..., arcs.to(pips.device)]
        if not len(arcs):
            return single.sum(-1)
        on_path = torch.zeros_like(pips, dtype=torch.bool)
        on_path[..., arcs] = True
        every = torch.ones_like(single[..., 0], dtype=torch.bool)
        whole = self.current.log_evidence
        off = self._log_off(on_path.flatten(0, 1), every, whole.flatten(), sweeps=2)
        value = -torch.expm1(off.reshape(whole.shape))
        # The cap's error stays within what the single arcs allow.
        return torch.minimum(torch.maximum(value, single.amax(-1)), single.sum(-1).clamp(max=1.0))

    @torch.no_grad()
    def arc_inclusion(self, outcomes: Tensor, exists: Tensor) -> ArcInclusion:
        """See :meth:`Guide.arc_inclusion`: by closed forms, latents independent."""
        none = self.factor.none_open(self.current, outcomes)
        return self._arc_inclusion_apart(none, outcomes, exists)

    def forward(self, *args: object, **kwargs: object) -> None:
        """Pyro sites of q: one joint draw along the tree, its log density on ``root_weights``.

        Arguments are the model's and not used. Draws may be used as any guide's. To train by their
        gradients raises, as these know nothing of the potentials: see :meth:`show_parameters`.
        """
        del args, kwargs
        self.head.likelihood.guide_sites(self.nuisance)
        # A generator of its own, from the global one, on the CPU: draws are moved from there.
        generator = Generator().manual_seed(int(torch.randint(2**62, ()).item()))
        with _Untrainable() if torch.is_grad_enabled() else nullcontext():
            self.factor.emit(self.evidence(), self.current, generator)

    def show_parameters(self) -> None:
        """Shows one parameter that stands for all, and raises where ``SVI`` would step it."""
        potentials = torch.zeros(())
        potentials.unconstrained = _refuse  # type: ignore[attr-defined]
        show_parameter("potentials", potentials)


class _Untrainable(Messenger):
    """Gives draws and their log density a gradient that raises when an objective asks for it."""

    @torch.enable_grad()
    def _pyro_sample(self, msg: Any) -> None:
        law = msg["fn"]
        if isinstance(law, dist.Delta):
            zero = law.v.new_zeros((), requires_grad=True)
            zero.register_hook(_refuse)
            density = law.log_density + zero
            msg["fn"] = dist.Delta(law.v + zero, log_density=density, event_dim=law.event_dim)


def _refuse(*_: object) -> NoReturn:
    raise TrainingError(
        "TreeGuide is moved by closed forms, not by gradients, so this objective would leave it "
        "where it is: use pyro_tbr.TreeELBO(), as in SVI(model, guide, optim, TreeELBO()), or the "
        "guide MeanFieldGuide"
    )
