"""The guide that is exact along the tree, and approximate between weights (latents)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.guide import Guide, NodeMoments, logit
from pyro_tbr.heads.priors import ArcPrior, HorseshoePrior
from pyro_tbr.heads.priors.delta_factors import DeltaMoments
from pyro_tbr.heads.priors.factor_law import FactorLaw
from pyro_tbr.heads.priors.horseshoe_law import HorseshoeLaw, HorseshoePosterior
from pyro_tbr.heads.priors.prior_factors import PriorFactors
from pyro_tbr.heads.priors.tree_laws import Evidence, Law, TreeLaw
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.heads.sweeps import TreeSweeps
from pyro_tbr.models.tree_model import TreeModel
from pyro_tbr.tree import path_sum
from pyro_tbr.tree.messages.sum_product import InsideMessages, TreePosterior, inside_pass, sample

FINAL_PASSES = 2  # sweeps of messages behind what is reported
_SITE_ELEMENTS = 500_000  # draws of arcs are made in blocks; a draw goes through all components
_JOINT_ELEMENTS = 5_000_000  # where every call makes messages anew
_SURE = 1e-13  # where one minus a PIP in double precision has still three digits
_MAX_PASSES, _MAX_ARCS = 32, 4000  # passes for log odds of sure changes, and arcs in all of them


class TreeGuide(Guide):
    r"""Each latent's weights and gates jointly exact along the tree; latents independent.

    With ``coupled`` each latent is judged with the others uncertain, by expectation propagation
    (``node_rows``), else with the others at their means. Where latents correlate by 0.8 and have
    means within leaves (five data sets of ``tests/guides/test_coupled.py``) the variance of a
    leaf's weight is at worst 0.98 of that under the joint posterior, else 0.03.

    The rows of a node enter as a Gaussian potential :math:`\exp(\eta u - \lambda u^2 / 2)` on the
    node's weight u, one a weight and outcome; inside and outside messages along the tree then give
    everything else, in closed form. Dense changes are the case of one component a message; those
    of a horseshoe are mixtures of normals of several widths, and its scales are exact jointly with
    them, by sums in place of integrals.

    Args:
        model: A built model.
        informed_nodes: (V,) bool, nodes that have rows; ``None``: all.
        num_components: Cap on the components of a message; ``None`` is exact, and exponential in
            the number of arcs.
        coupled: Expectation propagation between latents rather than mean field. Off for the best
            ELBO, as where solutions are compared by it.

    Attributes:
        eta: Linear terms of the potentials, (W, Q, V), zero where a node has no rows.
        lam: Precisions of the potentials, likewise.
    """

    eta: Tensor
    lam: Tensor

    def __init__(
        self,
        model: TreeModel,
        informed_nodes: Tensor | None = None,
        num_components: int | None = 32,
        *,
        coupled: bool = True,
    ) -> None:
        super().__init__(model, informed_nodes)
        prior = model.prior
        if getattr(prior, "shared_gates", False):
            raise DataError(
                "guide='tree' keeps outcomes apart and cannot share their gates: use "
                "guide='mean_field', or SpikeSlabPrior(shared_gates=False)"
            )
        self.num_components, self.coupled = num_components, coupled
        self.tree_law = tree_law(prior, self.hyper)
        self.joint_hyper = self.tree_law.joint_hyper
        shape = (prior.num_weights, prior.num_outcomes, model.tree.num_nodes)
        self.register_buffer("eta", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("lam", torch.zeros(shape, dtype=torch.float64))
        self._match_dtype()
        self._current: TreePosterior | None = None
        self._start: Tensor | None = None

    def law(self, weights: slice | int = slice(None)) -> Law:
        """Arguments of the passes for some weights, (w, Q) or (w, Q, A) each, at q's centre.

        Raises:
            DataError: The prior is a horseshoe, whose scales have no centre the passes run at.
        """
        if not isinstance(self.tree_law, FactorLaw):
            raise DataError(f"{self.model.prior!r} has no one law: its scales are integrated")
        return self.tree_law.arguments(weights)

    @property
    def evidence(self) -> Evidence:
        """What the rows say of the weights, as the passes take it."""
        return Evidence(
            self.model.tree, self.eta, self.lam, self.informed_arcs, self.num_components
        )

    @torch.no_grad()
    def passes(
        self,
        weights: slice = slice(None),
        num_components: int | None = None,
        sweeps: int = 1,
        *,
        refit: bool = False,
    ) -> TreePosterior:
        """Inside and outside pass for some weights at the current potentials.

        Args:
            weights: Which of the W.
            num_components: Cap on the components of a message; default the guide's own.
            sweeps: Of messages; the second ranks components by what the first has found.
            refit: Move hyperparameters that are held jointly with the weights too.
        """
        components = num_components or self.num_components
        return self.tree_law.passes(self.evidence, weights, components, sweeps, refit)

    @property
    def current(self) -> TreePosterior:
        """The passes for all weights at once, kept until potentials or hyperparameters change."""
        now = self._current  # once: another thread may forget or make them in between
        if now is None:
            now = self._current = self.passes(sweeps=FINAL_PASSES)
        return now

    def __getstate__(self) -> dict[str, Any]:
        """Without the passes, which follow from the rest: asking changes no copy and no file."""
        return self.__dict__ | {"_current": None}

    def refresh(self, now: TreePosterior | None = None) -> None:
        """Forgets the passes, after a change of potentials or hyperparameters; keeps new ones."""
        self._current = now

    def load_state_dict(self, *args: object, **kwargs: object) -> object:
        """Also forgets the passes of the state before."""
        self.refresh()
        return super().load_state_dict(*args, **kwargs)

    def node_moments(self) -> NodeMoments:
        """See :meth:`Guide.node_moments`; without gradient: the potentials are not trained."""
        dtype = self.model.prior.root_loc.dtype
        mean = self.current.node_mean.permute(2, 0, 1)
        var = self.current.node_var.permute(2, 0, 1)
        if not bool(self.informed_arcs.all()):
            # Below the last data the passes add the spread at q's centre; q's own goes in instead.
            excess = self._silent_var() - self.current.delta_second.permute(2, 0, 1)
            excess = torch.where(self.informed_arcs.reshape(-1, 1, 1), 0.0, excess)
            var = var + path_sum(self.model.tree, torch.zeros_like(var[0]), excess, event_dim=2)
        return NodeMoments(mean.to(dtype), var.to(dtype))

    @torch.no_grad()
    def _silent_var(self) -> Tensor:
        """Variance of a change where there are no data, hyperparameters integrated, (A, W, Q)."""
        return self.tree_law.silent_var()

    def delta_moments(self) -> DeltaMoments:
        """See :meth:`Guide.delta_moments`."""
        dtype = self.model.prior.root_loc.dtype
        now = self.current
        mean = now.delta_mean.permute(2, 0, 1)
        second = now.delta_second.permute(2, 0, 1)
        prob = torch.ones_like(mean) if now.pips is None else now.pips.permute(2, 0, 1)
        prior_prob = self.tree_law.prior_inclusion().to(prob)
        known = self.informed_arcs.reshape(-1, 1, 1)
        silent = self._silent_var()
        second = torch.where(known, second, silent)
        on_mean, on_second = mean, second
        if self.model.prior.wide_spike:
            on_mean = now.class_mean[..., 1:].sum(-1).permute(2, 0, 1)
            on_second = now.class_second[..., 1:].sum(-1).permute(2, 0, 1)
            silent = silent - self.tree_law.silent_spike_var().to(silent)
            on_second = torch.where(known, on_second, silent)
        safe = prob.clamp(min=1e-300)
        slab_mean = on_mean / safe
        slab_var = (on_second / safe - slab_mean.square()).clamp(min=0)
        var = (second - mean.square()).clamp(min=0)
        parts = (mean, var, prob, prior_prob, slab_mean, slab_var)
        return DeltaMoments(*(part.to(dtype) for part in parts))

    @torch.no_grad()
    def shrinkage(self) -> Tensor:
        r"""Posterior mean of the share of a change that its prior takes away, (A, W, Q).

        :math:`E[1 / (1 + s_a^2 / e_a^2)]` with :math:`s_a` the scale of the change and :math:`e_a`
        its standard error by the data alone, were the weight it starts from known and no arc below
        changed: near 1 where the change is shrunk to nothing, near 0 where it is left as it is.

        Raises:
            DataError: The prior is no horseshoe.

        Source:
            Carvalho, Polson & Scott, Biometrika 97 (2010) 465; Piironen & Vehtari, Electronic
            Journal of Statistics 11 (2017) 5018.
        """
        now = self.current
        if not isinstance(now, HorseshoePosterior):
            return super().shrinkage()
        return now.shrinkage.permute(2, 0, 1)

    def settings(self) -> dict[str, Any]:
        """See :meth:`Guide.settings`."""
        return {"num_components": self.num_components, "coupled": self.coupled}

    @torch.no_grad()
    def log_odds(self) -> Tensor:
        """See :meth:`Guide.log_odds`: logits of the PIPs in double precision.

        Where a PIP is within 1e-13 of 1 they come from the log evidence with and without the
        change, one pass for every such arc of a latent and outcome, up to 32 and up to 4,000 arcs
        in all; any beyond get the logit of 1 - 1e-13.
        """
        pips = self.current.pips
        if pips is None:
            return super().log_odds()
        found = logit(pips)
        # Without data below an arc its odds are the prior's, whatever they are.
        sure = (pips > 1 - _SURE) & self.informed_arcs & (self.law()["inclusion_prob"] < 1)
        number = sure.cumsum(-1) * sure  # 1, 2, ... within a latent and outcome
        found = torch.where(sure, logit(pips.new_tensor(1 - _SURE)), found)
        passes = min(_MAX_PASSES, _MAX_ARCS // max(1, sure.shape[-1]), int(number.max()))
        if passes:
            whole = self._messages(self.law(), sweeps=1).log_evidence
        for one in range(1, passes + 1):
            here = number == one
            off = self._log_off(here, whole, sweeps=1).unsqueeze(-1)
            found = torch.where(here, torch.maximum(found, -off), found)
        return found.permute(2, 0, 1)

    @torch.no_grad()
    def path_inclusion(self, arcs: Tensor) -> Tensor:
        """See :meth:`Guide.path_inclusion`: from the log evidence with and without changes."""
        pips = self.current.pips
        assert pips is not None  # the prior has gates
        single = pips[..., arcs.to(pips.device)]
        if not len(arcs):
            return single.sum(-1)
        on_path = torch.zeros_like(pips, dtype=torch.bool)
        on_path[..., arcs] = True
        value = -torch.expm1(self._log_off(on_path, self.current.log_evidence, sweeps=2))
        # The cap's error stays within what the single arcs allow.
        return torch.minimum(torch.maximum(value, single.amax(-1)), single.sum(-1).clamp(max=1.0))

    def _log_off(self, arcs: Tensor, log_evidence: Tensor, sweeps: int) -> Tensor:
        """Log posterior probability that none of some arcs changed, (W, Q).

        It is the log evidence without changes there, over that with, times the prior's probability.

        Args:
            arcs: Which arcs, (W, Q, A) bool.
            log_evidence: That with changes, (W, Q).
            sweeps: Of messages.
        """
        law = self.law()
        rate = law["inclusion_prob"]
        law["inclusion_prob"] = torch.where(arcs, 0.0, rate)
        without = self._messages(law, sweeps).log_evidence
        return without - log_evidence + torch.where(arcs, torch.log1p(-rate), 0.0).sum(-1)

    def _messages(self, law: Law, sweeps: int = 2) -> InsideMessages:
        """Inside messages at the potentials under a law with gates, as :meth:`law`'s."""
        tree, cap = self.head.tree, self.num_components
        return inside_pass(tree, self.eta, self.lam, **law, num_components=cap, sweeps=sweeps)

    @torch.no_grad()
    def sample_arcs(
        self, site: str, num_samples: int, generator: torch.Generator
    ) -> Iterator[Tensor]:
        """See :meth:`Guide.sample_arcs`; with gates the messages are sent once for all blocks."""
        most = _JOINT_ELEMENTS if self.joint_hyper else _SITE_ELEMENTS
        size = max(1, most // math.prod(self.head.prior.delta_shape))
        messages = self._messages(self.law()) if self.has_gates else None
        for block in torch.arange(num_samples).split(size):
            if messages is None:
                yield self.sample(len(block), generator)[site]
                continue
            _, gates, deltas = sample(self.head.tree, messages, len(block), generator)
            draws = {"gates": gates.permute(0, 3, 1, 2), "deltas": deltas.permute(0, 3, 1, 2)}
            draws = self.sample_hyper(len(block), generator) | draws
            yield self.with_prior_changes(draws, generator)[site]

    @torch.no_grad()
    def change_var(self, relative_length: Tensor) -> Tensor:
        """See :meth:`Guide.change_var`; of a horseshoe over its grid of scales, for any length."""
        if not self.joint_hyper:
            return super().change_var(relative_length)
        one = self.tree_law.silent_var()[:1].double()
        return one.expand(len(relative_length), *one.shape[1:])

    @torch.no_grad()
    def kl(self) -> Tensor:
        """See :meth:`Guide.kl`."""
        now = self.current
        second = now.node_var + now.node_mean.square()
        potential = (self.eta * now.node_mean - 0.5 * self.lam * second).sum()
        return potential - self.log_evidence().sum() + self.hyper_kl()

    def log_evidence(self) -> Tensor:
        """Of the potentials of each weight at q of its hyperparameters, a lower bound, (W,)."""
        now = self.current
        return now.log_evidence.sum(-1) - self.tree_law.gap(now, self.informed_arcs)

    @torch.no_grad()
    def start(self, root: Tensor, deltas: Tensor, *, sparse: bool = True) -> None:
        """See :meth:`Guide.start`."""
        self._start = path_sum(self.model.tree, root, deltas, event_dim=2).double()
        if sparse:
            self.hyper.start_from(root, deltas, self.informed_arcs)
            self.tree_law.start()
        self.refresh()

    @torch.no_grad()
    def update(
        self,
        stats: Statistics,
        *,
        sweeps: int,
        learn_hyper: bool = True,
        learn_noise: bool = True,
        rough: bool = False,
    ) -> int:
        """See :meth:`Guide.update`: one latent's tree after the other, see ``tree_sweeps``."""
        start = None if self._start is None else self._start[stats.nodes].transpose(1, 2)
        self._start = None
        run = TreeSweeps(self, stats, learn_hyper=learn_hyper, learn_noise=learn_noise)
        done = run.settle(start, sweeps, rough=rough)
        self.refresh()
        if self.joint_hyper and learn_hyper:  # their weights, at the grid as it is now
            self.refresh(self.passes(sweeps=FINAL_PASSES, refit=True))
        return done

    @torch.no_grad()
    def draw(self, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Joint draws of root weights, gates, deltas and what is held jointly with them.

        Other hyperparameters are at q's centre.
        """
        return self.tree_law.draw(self.evidence, num_samples, FINAL_PASSES, generator)

    def sample(self, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        """See :meth:`Guide.sample`; arcs without rows below are drawn anew from the prior.

        There the spread of the hyperparameters is the whole uncertainty, so it goes in.
        """
        hyper = self.sample_hyper(num_samples, generator)
        draws = hyper | self.draw(num_samples, generator)
        if self.joint_hyper:  # then it is in there already
            return draws
        return self.with_prior_changes(draws, generator)

    def forward(self, x: Tensor, env_index: Tensor, y: Tensor | None = None) -> None:
        """Pyro sites of q: one joint draw along the tree, its log density on ``root_weights``."""
        del x, env_index, y
        if self.noise is not None:
            self.noise()
        # A generator of its own, from the global one, on the CPU: draws are moved from there.
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ()).item()))
        self.tree_law.guide(self.evidence, self.current, FINAL_PASSES, generator)


def tree_law(prior: ArcPrior, hyper: PriorFactors) -> TreeLaw:
    """The law that belongs to a kind of prior."""
    if isinstance(prior, HorseshoePrior):
        return HorseshoeLaw(prior, hyper)
    return FactorLaw(prior, hyper)
