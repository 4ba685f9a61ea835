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

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_tbr.tree import Tree, path_sum
from pyro_tbr.tree.messages import ArcLaw, InsideMessages, inside_pass, log_weights, sample


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

