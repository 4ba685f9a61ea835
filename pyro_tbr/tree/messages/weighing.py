r"""How draws from capped messages are to be weighed, so that nothing is lost by the cap.

A draw goes from the root to the leaves: a change's class and the weight :math:`w_v` behind it from
the prior times the node's message :math:`M_v`, which is normalised by what goes through the arc,
:math:`Z_v`, at the parent's weight. The prior stands in target and proposal alike, so what is left
of their ratio depends on the weights alone:

.. math::
    \frac{\text{target}}{\text{proposal}} \propto \prod_v p_v(w_v) \Big/
    \Big( M_r(w_r) \prod_{v \ne r} \frac{M_v(w_v)}{Z_v(w_{pa(v)})} \Big)

with :math:`p_v` the potential of the data at a node. Without a cap a message is its node's
potential times what comes through the children's arcs, and the ratio is 1.
"""

import torch
from torch import Tensor

from pyro_tbr.tree.messages.inside import InsideMessages
from pyro_tbr.tree.messages.mixtures import Message, take
from pyro_tbr.tree.messages.steps import through
from pyro_tbr.tree.tree import Tree


@torch.no_grad()
def log_weights(tree: Tree, inside: InsideMessages, nodes: Tensor) -> Tensor:
    """Log of target over proposal of :func:`sample`, up to a constant of the messages, (*B).

    Args:
        tree: The environments.
        inside: Messages the draw is made from, or would have been.
        nodes: Weights at all nodes, (*B, V).
    """
    weights = nodes.reshape(-1, nodes.shape[-1]).T.double()  # (V, B)
    parents = tree.arc_parent.to(weights.device)
    total = torch.zeros_like(weights[0])
    for depth, (level, blocks) in enumerate(zip(inside.folded.levels, inside.node, strict=True)):
        start = 0
        for message in blocks:
            stop = start + len(message.mean)
            places = torch.arange(start, stop, device=weights.device)
            if depth:  # helpers are not drawn
                places = places[level.arc[places] < inside.arcs.num_arcs]
            seen, node = take(message, places - start), level.node[places]
            start = stop
            if not len(places):
                continue
            here = weights[node]
            total = total + _log_value(take(inside.potential, node), here).sum(0)
            total = total - _log_value(seen, here).sum(0)
            if depth:
                arc = level.arc[places]
                parent = weights[parents[arc]]
                total = total + _log_value(through(seen, inside.arcs.at(arc)), parent).sum(0)
    return total.reshape(inside.batch_shape)


def _log_value(message: Message, weights: Tensor) -> Tensor:
    """Log of a message at weights (n, B)."""
    gap = weights.unsqueeze(-1) - message.mean
    return (message.log_height - 0.5 * message.precision * gap.square()).logsumexp(-1)
