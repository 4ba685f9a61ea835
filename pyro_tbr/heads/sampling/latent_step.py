"""Classes and weights of one latent along its whole tree at once, given the other latents' weights.

The draw is from the messages of ``tree.messages``, mixtures over classes of all arcs, so several
changes may move together, wherever they are. A cap on the components of a message makes it a
proposal only, taken or not by Metropolis and Hastings: what the cap leaves out is known exactly
(``log_weights``), so draws are from the posterior at any cap.

Rates and scales of the latent may be proposed along with it: they are then judged by the evidence
of the rows, classes and weights summed out. Given these they could hardly move, where they decide
which changes are small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.hyper import HyperFactor
from pyro_tbr.heads.sampling.active_step import Activity
from pyro_tbr.heads.sampling.hyper_steps import ChainState
from pyro_tbr.heads.sampling.normal_messages import Arcs
from pyro_tbr.tree import Tree, path_sum
from pyro_tbr.tree.messages import ArcLaw, InsideMessages, inside_pass, log_weights, sample

_COMPONENTS = 8  # of messages of one latent; some 9 in 10 proposals are taken
_PLACES = 8  # of a latent's hyperparameters that are weighed together
_SPREAD_OF_PLACES = 1.0  # on the real line, at most
_OWN = ("inclusion_rate", "slab_scale", "spike_scale")  # what each latent has for itself


class LatentDraw(NamedTuple):
    """One latent's weights (C, Q, V), changes (C, Q, A) and their classes.

    Changes on arcs without rows below are from the prior.
    """

    nodes: Tensor
    deltas: Tensor
    classes: Tensor


class LatentTree:
    """Messages of one latent along its tree, for every chain and outcome.

    Args:
        tree: The environments.
        potentials: Linear terms and precisions of its weights, (C, Q, V) each.
        law: Log probabilities, means and scales of classes of its changes, (C, Q, A, J) each.
        root: Prior mean and standard deviation of the root's weight, (C, Q) each.
        num_components: Cap.
    """

    def __init__(
        self,
        tree: Tree,
        potentials: tuple[Tensor, Tensor],
        law: tuple[Tensor, Tensor, Tensor],
        root: tuple[Tensor, Tensor],
        num_components: int | None,
    ) -> None:
        self.tree = tree
        log_prob, mean, scale = law
        arcs = ArcLaw.of(log_prob.exp(), mean, scale.square())
        self.inside: InsideMessages = inside_pass(tree, *potentials, arcs, *root, num_components)

    def draw(self, generator: Generator) -> LatentDraw:
        """A proposal."""
        root, classes, deltas = (part[0] for part in sample(self.tree, self.inside, 1, generator))
        return LatentDraw(path_sum(self.tree, root, deltas, event_dim=0), deltas, classes.long())

    def log_weight(self, nodes: Tensor) -> Tensor:
        """Log of prior times potentials over the proposal's density, (C, Q), at weights."""
        return self.inside.log_evidence + log_weights(self.tree, self.inside, nodes)


class LatentMoves:
    """Steps of one latent's tree, by itself or with its hyperparameters.

    Args:
        tree: The environments.
        informed: Arcs with rows below, (A,) bool.
        factors: Of all hyperparameters, by site name.
        law_of: The law of changes given values of the hyperparameters.
        generator: On the CPU.
        activity: Of arcs, which then moves along with the latent's tree.

    Attributes:
        taken: Shares of the proposals without hyperparameters that were taken, one a step.
    """

    def __init__(
        self,
        tree: Tree,
        informed: Tensor,
        factors: Mapping[str, HyperFactor],
        law_of: Callable[[dict[str, Tensor]], Arcs],
        generator: Generator,
        activity: Activity | None = None,
    ) -> None:
        self.tree, self.informed, self.law_of, self.generator = tree, informed, law_of, generator
        self.activity = activity
        self.own = {name: factors[name] for name in _OWN if name in factors}
        self.own = {name: factor for name, factor in self.own.items() if factor.learnt}
        self.taken: list[float] = []

    def draw(
        self, state: ChainState, latent: int, potentials: tuple[Tensor, Tensor],
        root: tuple[Tensor, Tensor],
    ) -> None:  # fmt: skip
        """Moves one latent; with hyperparameters in two of three steps, where some are learnt.

        Args:
            state: Changed.
            latent: Its number.
            potentials: Of its weights given those of the others, as for :class:`LatentTree`.
            root: Likewise.
        """
        moves = self.own or self.activity
        if moves and int(torch.randint(3, (), generator=self.generator)):
            self._draw_with_hyper(state, latent, potentials, root)
            return
        law = self.law_of(state.values).of(latent)
        tree = LatentTree(self.tree, potentials, law, root, _COMPONENTS)
        found = tree.draw(self.generator)
        gain = tree.log_weight(found.nodes) - tree.log_weight(state.nodes[..., latent])
        taken = torch.rand(gain.shape, generator=self.generator, dtype=gain.dtype).log() < gain
        self.taken.append(taken.double().mean().item())
        self._take(state, latent, found, taken)

    def _draw_with_hyper(
        self, state: ChainState, latent: int, potentials: tuple[Tensor, Tensor],
        root: tuple[Tensor, Tensor],
    ) -> None:  # fmt: skip
        """The hyperparameters at one of several places, among them where they stand.

        Places are normal around a centre that is normal around where the chain stands, with one
        spread, so all of them are alike; each has a proposal for the tree, and is taken by prior
        times evidence.

        Source:
            Tjelmeland, "Using all Metropolis-Hastings proposals to estimate mean values" (2004).
        """
        values, gain = self._places(state, latent)
        size = (_PLACES, *root[0].shape)  # (G, C, Q)
        law = self.law_of({name: part.flatten(0, 1) for name, part in values.items()}).of(latent)
        one, two, three = (part.reshape(*size, *part.shape[2:]) for part in law)
        eta, lam = (part.expand(*size, -1) for part in potentials)
        loc, scale = (part.expand(size) for part in root)
        tree = LatentTree(self.tree, (eta, lam), (one, two, three), (loc, scale), _COMPONENTS)
        found = tree.draw(self.generator)
        now = (part[..., latent] for part in (state.nodes, state.deltas, state.classes))
        for new, old in zip(found, now, strict=True):
            new[0] = old
        weight = (gain + tree.log_weight(found.nodes).sum(-1)).softmax(0)  # (G, C)
        pick = torch.multinomial(weight.T, 1, generator=self.generator)[:, 0]
        chains = torch.arange(len(pick))
        moved = [*self.own, "active"] if self.activity else self.own
        for name in moved:
            state.values[name] = values[name][pick, chains]
        self._take(state, latent, LatentDraw(*(part[pick, chains] for part in found)), None)

    def _places(self, state: ChainState, latent: int) -> tuple[dict[str, Tensor], Tensor]:
        """Values (G, C, *shape), those of one latent moved, and what hyperpriors say, (G, C)."""
        values = {name: part.expand(_PLACES, *part.shape) for name, part in state.values.items()}
        num_chains = len(state.nodes)
        gain = torch.zeros(_PLACES, num_chains, dtype=torch.float64)
        spread = _SPREAD_OF_PLACES * torch.rand(
            num_chains, 1, generator=self.generator, dtype=torch.float64
        )

        def noise(*shape: int) -> Tensor:
            return spread * torch.randn(shape, generator=self.generator, dtype=torch.float64)

        for name, factor in self.own.items():
            real = factor.to_real(values[name]).clone()
            centre = real[0, :, latent] + noise(num_chains, 1)
            real[1:, :, latent] = centre + noise(_PLACES - 1, num_chains, 1)
            gain = gain + factor.log_prior(real)[..., latent, 0]
            moved = factor.to_support(real)
            moved[0] = values[name][0]
            values[name] = moved
        if self.activity is not None:
            values["active"] = self.activity.moved(values["active"], latent)
            gain = gain + self.activity.log_prior(values)[..., latent]
        return values, gain

    def _take(
        self, state: ChainState, latent: int, found: LatentDraw, taken: Tensor | None
    ) -> None:
        """Puts a latent's tree in place, for some chains and outcomes (C, Q) or for all."""
        found = found._replace(deltas=torch.where(self.informed, found.deltas, 0.0))
        held = (state.nodes, state.deltas, state.classes)
        for whole, part in zip(held, found, strict=True):
            old = whole[..., latent]
            whole[..., latent] = part if taken is None else torch.where(taken[..., None], part, old)
