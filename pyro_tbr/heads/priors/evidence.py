"""What the rows say of the weights, as the passes along the tree take it."""

from typing import NamedTuple

from torch import Tensor

from pyro_tbr.tree import Tree, descendant_sum, path_sum
from pyro_tbr.tree.messages import (
    ArcLaw,
    InsideMessages,
    TreePosterior,
    inside_pass,
    log_evidence,
    smooth,
)


class Evidence(NamedTuple):
    """Potentials of some weights at the nodes, and how messages are to be sent.

    Attributes:
        tree: The environments.
        eta: Linear terms of the potentials exp(eta u - lam u^2 / 2), (w, Q, V), in double.
        lam: Their precisions.
        informed: Arcs with rows below, (A,) bool.
        weights: Which of the W these are.
        num_components: Cap on the components of a message; ``None``: exact.
        sweeps: Of messages; the second ranks components by what the first has found.
    """

    tree: Tree
    eta: Tensor
    lam: Tensor
    informed: Tensor
    weights: slice
    num_components: int | None
    sweeps: int

    def inside(self, law: ArcLaw, root_loc: Tensor, root_scale: Tensor) -> InsideMessages:
        """Inside messages under a law of the changes, whose batch may begin with more."""
        return inside_pass(self.tree, *self._given(law), root_loc, root_scale, *self._how)

    def moments(self, law: ArcLaw, root_loc: Tensor, root_scale: Tensor) -> TreePosterior:
        """What both passes give, likewise."""
        return smooth(self.tree, *self._given(law), root_loc, root_scale, *self._how)

    def log_evidence(self, law: ArcLaw, root_loc: Tensor, root_scale: Tensor) -> Tensor:
        """The log evidence alone, likewise."""
        return log_evidence(self.tree, *self._given(law), root_loc, root_scale, *self._how)

    def _given(self, law: ArcLaw) -> tuple[Tensor, Tensor, ArcLaw]:
        eta, lam = (part.expand(*law.prob.shape[:-2], -1) for part in (self.eta, self.lam))
        return eta, lam, law

    @property
    def _how(self) -> tuple[int | None, int]:
        return self.num_components, self.sweeps

    def change_precision(self) -> Tensor:
        """Of a change by the data alone: were the weight it starts from known, (w, Q, A)."""
        return descendant_sum(self.tree, self.lam, event_dim=0)[..., 1:]

    def log_potential(self, root: Tensor, deltas: Tensor) -> Tensor:
        """Log potentials of draws (S,), from root weights (S, w, Q) and deltas (S, A, w, Q)."""
        nodes = path_sum(self.tree, root, deltas, event_dim=2).permute(0, 2, 3, 1)
        return (self.eta * nodes - 0.5 * self.lam * nodes.square()).sum((1, 2, 3))
