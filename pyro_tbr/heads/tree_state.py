"""What a tree guide holds: potentials of the rows at the nodes, and the passes along the trees."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_tbr.heads.absorbing import taken_up
from pyro_tbr.heads.coupling import NodeRows, Potential
from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.priors.evidence import Evidence
from pyro_tbr.heads.shared_errors import shared_errors, widening
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.tree.messages import InsideMessages, TreePosterior

FINAL_PASSES = 2  # sweeps of messages behind what is reported
_TIMES = 3  # that shares of what trees were told are set, as changes get less sure by that
_MOST_WIDER = 2.0  # times that variances of latents get larger in all, at most
# Of twice the log likelihood by weight and node, that rows may lose by that. Their own posterior
# loses 1 in the mean.
_LOSS = 0.1
_KEPT = 1 << 20  # components of messages that are kept; some 100 bytes each
_BESIDE = 16  # what else is kept of a node, counted in components


class TreeState(Guide):
    """Potentials, hyperparameters and noise, which sweeps move; arguments as of ``TreeGuide``.

    Attributes:
        eta: Linear terms of the potentials, (W, Q, V), zero where a node has no rows.
        lam: Precisions of the potentials, likewise.
    """

    eta: Tensor
    lam: Tensor
    along_tree = True
    couples_outcomes = True
    abstract = True

    def __init__(
        self, head: Any, informed_nodes: Tensor | None, num_components: int | None, *, coupled: bool
    ) -> None:
        super().__init__(head, informed_nodes)
        self.num_components, self.coupled = num_components, coupled
        shape = (self.head.num_weights, self.head.num_outcomes, self.head.tree.num_nodes)
        self.register_buffer("eta", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("lam", torch.zeros(shape, dtype=torch.float64))
        self._match_dtype()
        self._current: TreePosterior | None = None
        self._messages: InsideMessages | None = None

    def evidence(
        self,
        weights: slice = slice(None),
        num_components: int | None = None,
        sweeps: int = FINAL_PASSES,
    ) -> Evidence:
        """What the rows say of some weights; ``num_components`` is by default the guide's own."""
        eta, lam = (part[weights].double() for part in (self.eta, self.lam))
        cap = num_components or self.num_components
        return Evidence(self.head.tree, eta, lam, self.informed_arcs, weights, cap, sweeps)

    @torch.no_grad()
    def passes(
        self,
        weights: slice = slice(None),
        num_components: int | None = None,
        sweeps: int = 1,
        *,
        refit: bool = False,
    ) -> TreePosterior:
        """Inside and outside pass at the current potentials, see :class:`Evidence`.

        With ``refit`` hyperparameters that are held jointly with the weights are moved too.
        """
        if not self.factor.trees_joint or weights == slice(None):
            return self.factor.passes(self.evidence(weights, num_components, sweeps), refit)
        found = self.factor.passes(self.evidence(slice(None), num_components, sweeps), refit)
        some: dict[str, Any] = {n: v if v is None else v[weights] for n, v in vars(found).items()}
        return TreePosterior(**some)

    @property
    def current(self) -> TreePosterior:
        """The passes for all weights at once, kept until potentials or hyperparameters change."""
        if self._current is None:
            self._current = self.factor.passes(self.evidence())
        return self._current

    @torch.no_grad()
    def messages(self) -> InsideMessages:
        """Inside messages to draw from, kept until then too, where they are not too large."""
        if self._messages is not None:
            return self._messages
        data = self.evidence()
        found = self.factor.inside(data)
        if data.eta.numel() * ((data.num_components or 1) + _BESIDE) <= _KEPT:
            self._messages = found
        return found

    def moments_at(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances of the weights at some nodes (E,), (E, Q, W) each, double."""
        now = self.current
        mean, var = (_at(nodes, part) for part in (now.node_mean, now.node_var))
        return mean, var.clamp(min=1e-300)

    def potentials_at(self, nodes: Tensor) -> Potential:
        """Potentials of the rows at some nodes (E,), (E, Q, W) each, double."""
        return Potential(*(_at(nodes, part) for part in (self.eta, self.lam)))

    def _cavity(self, rows: NodeRows, nodes: Tensor) -> Potential:
        """See :meth:`Guide._cavity`: what the trees say beside what they were told."""
        return rows.cavity(*self.moments_at(nodes), self.potentials_at(nodes))

    def shared_errors(self, rows: NodeRows, nodes: Tensor) -> Tensor | None:
        """See :meth:`Guide.shared_errors`."""
        if not rows.together:
            return None
        return shared_errors(self.head.tree, nodes, rows, *self._spreads())

    @torch.no_grad()
    def widen(self, stats: Statistics) -> None:
        """See :meth:`Guide.widen`: by :func:`widening`, outcomes jointly where their noise is.

        Else the latents of an outcome, step by step, as long as the rows lose little by it: where
        latents do nearly the same they are wide jointly, but their sum is not, and each pulled
        to its prior by itself it would be lost.
        """
        if not self.coupled:
            return
        rows, nodes = self.node_rows(stats), stats.nodes
        if rows.together:
            for _ in range(_TIMES):
                known = self._cavity(rows, nodes), self.shared_errors(rows, nodes)
                self._tell_less(self._wider(rows.by_latent(*known), nodes, of_latents=True))
            return
        if self.head.num_weights == 1:
            return
        moving = torch.ones(rows.num_outcomes, dtype=torch.bool, device=self.eta.device)
        most = self.misfit(rows, nodes).sum(0) + _LOSS * rows.linear[:, 0].numel()
        for _ in range(_TIMES):
            before = self.eta.clone(), self.lam.clone()
            ratio = self._wider(rows, nodes, of_latents=False)
            ratio = ratio.clamp(1.0, _MOST_WIDER ** (1 / _TIMES))
            ratio = torch.where(moving.unsqueeze(-1), ratio, 1.0)
            if not (ratio > 1).any():
                break
            self._tell_less(ratio)
            over = moving & ~(self.misfit(rows, nodes).sum(0) <= most)
            if over.any():
                for now, then in zip((self.eta, self.lam), before, strict=True):
                    now[:, over] = then[:, over]
                self.refresh()
                moving &= ~over

    def _wider(self, rows: NodeRows, nodes: Tensor, *, of_latents: bool) -> Tensor:
        """See :func:`widening`, (Q, W)."""
        told, law = self.potentials_at(nodes), self._spreads()
        return widening(self.head.tree, nodes, rows, told, *law, of_latents=of_latents)

    def _tell_less(self, ratio: Tensor) -> None:
        """All that a weight's tree was told counts by a share, so that weights are so much wider.

        So peaks stay. Where changes are normal means are those of the joint posterior, and stay
        too.
        """
        share = 1 / ratio.mT.unsqueeze(-1)
        if self.normal_changes:
            self.eta -= (1 - share) * self.lam * self.current.node_mean
        else:
            self.eta *= share
        self.lam *= share
        self.refresh()

    def misfit(self, rows: NodeRows, nodes: Tensor) -> Tensor:
        """What rows lose at the means of the weights that are judged together, (E, G)."""
        mean = self.moments_at(nodes)[0]
        return rows.misfit(mean, torch.zeros_like(rows.precision))

    def _spreads(self) -> tuple[Tensor, Tensor]:
        """Prior standard deviations of the root (Q, W), second moments of the changes (A, Q, W)."""
        scale = self.factor.root_law()[1].mT.double()
        return scale, self.current.delta_second.permute(2, 1, 0).double()

    def refresh(self, now: TreePosterior | None = None) -> None:
        """Forgets the passes, after a change of potentials or hyperparameters; keeps new ones."""
        self._current, self._messages = now, None

    def __getstate__(self) -> dict[str, Any]:
        """Passes that are kept are no part of what a guide is: it is the same asked or not."""
        return self.__dict__ | {"_current": None, "_messages": None}

    def load_state_dict(self, *args: object, **kwargs: object) -> object:
        """Also forgets the passes of the state before."""
        self.refresh()
        return super().load_state_dict(*args, **kwargs)

    def weight_evidence(self, stats: Statistics) -> Tensor:
        """See :meth:`Guide.weight_evidence`: that of the potentials."""
        del stats
        return self.log_evidence().double()

    @torch.no_grad()
    def evidence_beyond(self, stats: Statistics, weight: int, others: Sequence[int]) -> float:
        """See :meth:`Guide.evidence_beyond`: that of the potentials around what others take up."""
        del stats
        here = self.evidence(slice(weight, weight + 1))
        others_here = self.node_moments().mean[:, list(others)].permute(2, 0, 1)  # (Q, V, J)
        echo = taken_up(here.eta[0], here.lam[0], others_here)
        left = here._replace(eta=here.eta - here.lam * echo)
        without = self.factor.log_evidence(left).sum()
        whole = self.current.log_evidence[weight].sum()
        if self.factor.joint:  # passes average over the hyperparameters
            whole = self.factor.log_evidence(here).sum()
        return float(self.log_evidence()[weight] + without - whole)

    @torch.no_grad()
    def log_evidence(self) -> Tensor:
        """Of the potentials of each weight at q of its hyperparameters, a lower bound, (W,)."""
        now = self.current
        return now.log_evidence.sum(-1) - self.factor.gap(now, self.informed_arcs)


def _at(nodes: Tensor, values: Tensor) -> Tensor:
    """Of (W, Q, V) some nodes, (E, Q, W), as a copy in double precision."""
    return values[:, :, nodes].permute(2, 1, 0).double().clone()
