"""The prior along the tree as a tree guide's passes take it, hyperparameters included.

Where hyperparameters have factors of their own (spike and slab, dense), ``factor_law.py`` takes
what a weight's tree expects of them; the horseshoe's scales are held jointly with the tree:
``horseshoe_law.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_tbr.heads.priors import ArcPrior
from pyro_tbr.heads.priors.prior_factors import PriorFactors
from pyro_tbr.heads.priors.prior_moments import (
    scale_factor,
)
from pyro_tbr.tree import Tree, path_sum
from pyro_tbr.tree.messages.sum_product import (
    InsideMessages,
    TreePosterior,
    gaussian_inside_pass,
    inside_pass,
    mixture_inside_pass,
)

Law = dict[str, Tensor]


class Evidence(NamedTuple):
    """What the rows say, and where.

    Attributes:
        tree: The environments.
        eta: Linear terms of the potentials, (W, Q, V), double precision.
        lam: Their precisions.
        informed: Arcs with rows below, (A,) bool.
        num_components: Cap on the components of a message.
    """

    tree: Tree
    eta: Tensor
    lam: Tensor
    informed: Tensor
    num_components: int | None


def inside_messages(
    data: Evidence, weights: slice, law: Law, num_components: int | None, sweeps: int
) -> InsideMessages:
    """The inside pass for some weights under a law, whatever its kind; its batch goes first."""
    shape = (*law["root_scale"].shape, data.tree.num_nodes)
    eta, lam = (part[weights].double().expand(shape) for part in (data.eta, data.lam))
    if "delta_var" in law:
        return gaussian_inside_pass(data.tree, eta, lam, **law)
    make = mixture_inside_pass if "class_prob" in law else inside_pass
    return make(data.tree, eta, lam, **law, num_components=num_components, sweeps=sweeps)


class TreeLaw(nn.Module):
    """Prior and hyperparameters of the weights' trees; abstract.

    Args:
        prior: The built prior.
        hyper: Factors of its hyperparameters.

    Attributes:
        joint_hyper: Sites of the hyperparameters held jointly with the weights.
        rough_components: Cap on the components of a message while sweeps still move far.
    """

    joint_hyper: frozenset[str] = frozenset()
    rough_components: int = 4

    def __init__(self, prior: ArcPrior, hyper: PriorFactors) -> None:
        super().__init__()
        self._shared = (prior, hyper)  # in a tuple: model and guide own them, not we

    @property
    def prior(self) -> ArcPrior:
        """The prior."""
        return self._shared[0]

    @property
    def hyper(self) -> PriorFactors:
        """Factors of its hyperparameters."""
        return self._shared[1]

    def root_law(self) -> Law:
        """Arguments of the passes for the root, (W, Q) each: what its scale's factor expects."""
        shape = (self.prior.num_weights, self.prior.num_outcomes)
        scale = scale_factor(self.hyper, "root_scale").mean_power(-2.0).rsqrt().expand(shape)
        law = {"root_scale": scale, "root_loc": self.prior.root_loc}
        return {name: value.detach().double() for name, value in law.items()}

    def root_gap(self) -> Tensor:
        """KL that the root's law leaves out, as its scale has a factor of its own, (W,)."""
        scale = self.root_law()["root_scale"]
        return (scale_factor(self.hyper, "root_scale").mean_log() - scale.log()).sum(-1)

    def start(self) -> None:
        """Goes to where the hyperparameters' factors are."""

    def passes(
        self,
        data: Evidence,
        weights: slice,
        num_components: int | None,
        sweeps: int,
        refit: bool = False,
    ) -> TreePosterior:
        """Both passes for some weights; with ``refit`` joint hyperparameters are moved too."""
        raise NotImplementedError

    def learn(self, now: TreePosterior, informed: Tensor) -> None:
        """Moves the hyperparameters to their optimum given the passes of all weights."""
        raise NotImplementedError

    def gap(self, now: TreePosterior, informed: Tensor) -> Tensor:
        """KL of root, changes and joint hyperparameters less what the passes have of it, (W,)."""
        raise NotImplementedError

    def silent_var(self) -> Tensor:
        """Variance of a change where there are no data, hyperparameters integrated, (A, W, Q)."""
        raise NotImplementedError

    def silent_spike_var(self) -> Tensor:
        """The part of it that comes from gates that are off, (A, W, Q)."""
        return torch.zeros(self.prior.delta_shape, dtype=torch.float64)

    def prior_inclusion(self) -> Tensor:
        """Prior mean of the inclusion probability, (A, W, Q); 1 where changes have no gates."""
        return torch.ones(self.prior.delta_shape, dtype=torch.float64)

    def draw(
        self, data: Evidence, num_samples: int, sweeps: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Joint draws of root weights, changes, gates and joint hyperparameters, by site name."""
        raise NotImplementedError

    def guide(
        self, data: Evidence, now: TreePosterior, sweeps: int, generator: torch.Generator
    ) -> None:
        """Pyro sites of all but the noise."""
        raise NotImplementedError


def root_square(now: TreePosterior, prior: ArcPrior) -> Tensor:
    """Expected squared deviation of the root weights from their prior mean, (W, Q)."""
    return now.node_var[..., 0] + (now.node_mean[..., 0] - prior.root_loc).square()


def log_potential(data: Evidence, root: Tensor, deltas: Tensor) -> Tensor:
    """Log potentials of draws (S,), from root weights (S, W, Q) and deltas (S, A, W, Q)."""
    nodes = path_sum(data.tree, root, deltas, event_dim=2).permute(0, 2, 3, 1)
    return (data.eta * nodes - 0.5 * data.lam * nodes.square()).sum((1, 2, 3))
