"""Smoothing along the tree where every arc changes by a Gaussian: one component, in closed form.

What the mixtures' passes do with one component, without folding the tree: several children of a
node are a sum of precisions. How much faster it is: ``examples/benchmark_tree.py``.
"""

import torch
from torch import Tensor

from pyro_tbr.tree.messages.laws import batch_shape, by_batch, changing_arcs, potentials
from pyro_tbr.tree.messages.outside import TreePosterior
from pyro_tbr.tree.path_sum import level_parents
from pyro_tbr.tree.tree import Tree


def gaussian_smoothing(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    *,
    delta_var: Tensor | float,
    root_scale: Tensor | float,
    root_loc: Tensor | float = 0.0,
) -> TreePosterior:
    """Posterior moments for arcs that all change, by a Gaussian of known variance.

    Differentiable in all arguments.

    Args:
        tree: The environments.
        eta: As in ``sum_product``, ``(*B, V)``.
        lam: As in ``sum_product``, ``(*B, V)``.
        delta_var: Variance of the change along each arc, zero for none, broadcastable to
            ``(*B, A)``.
        root_scale: Prior standard deviation of the root's weight, broadcastable to ``(*B,)``.
        root_loc: Prior mean of the root's weight, broadcastable to ``(*B,)``.

    Returns:
        The posterior; its ``pips`` are None.

    Raises:
        ShapeError: Arguments do not fit the tree or each other.

    Source:
        Rauch, Tung & Striebel, AIAA Journal 3 (1965) 1445, on a tree.
    """
    batch = batch_shape(tree, eta, lam)
    sizes, parents = level_parents(tree, eta.device)
    delta_var = changing_arcs(tree, eta, batch, delta_var).var[:-1, :, 0]
    message, _, log_peak = potentials(eta, lam)
    own_lam, own_mean = (part[:-1, :, 0] for part in (message.precision, message.mean))
    root_var = by_batch("root_scale", root_scale, batch, eta)[0, :, 0].square()
    root_loc = by_batch("root_loc", root_loc, batch, eta)[0, :, 0]

    # Up: linear term and precision of what all below say, of nodes and through their arcs.
    own = torch.stack([own_lam * own_mean, own_lam]).split(sizes, 1)
    vars_ = delta_var.split(sizes[1:])
    at_node = [own[-1]]
    for parent, here, var in zip(parents[::-1], own[-2::-1], vars_[::-1], strict=True):
        sent = at_node[-1] / (1 + at_node[-1][1] * var)
        at_node.append(here.index_add(1, parent, sent))
    linear, total = torch.cat(at_node[::-1], 1)
    mean = linear / torch.where(total > 0, total, 1.0)
    spread = 1 + total[1:] * delta_var  # of the arcs
    sent_lam = total[1:] / spread

    # Heights by gaps between means: nothing large is subtracted.
    above = tree.arc_parent.to(mean.device)
    height = (
        log_peak
        - 0.5 * (own_lam * (own_mean - mean).square()).sum(0)
        - 0.5 * (sent_lam * (mean[1:] - mean[above]).square()).sum(0)
        - 0.5 * spread.log().sum(0)
    )
    root_spread = 1 + total[0] * root_var
    gap = mean[0] - root_loc
    log_evidence = height - 0.5 * (root_spread.log() + total[0] / root_spread * gap.square())

    # Down: a node keeps 1 / spread of its parent's weight, the rest is what the data below say.
    keep = 1 / spread
    gain, noise = sent_lam * delta_var, keep * delta_var
    means = [(root_loc + root_var * total[0] / root_spread * gap).unsqueeze(0)]
    node_vars = [(root_var / root_spread).unsqueeze(0)]
    steps = (keep, gain * mean[1:], keep.square(), noise)
    for parent, share, shift, square, more in zip(
        parents, *(part.split(sizes[1:]) for part in steps), strict=True
    ):
        means.append(share * means[-1][parent] + shift)
        node_vars.append(square * node_vars[-1][parent] + more)
    node_mean, node_var = torch.cat(means), torch.cat(node_vars)
    delta_mean = gain * (mean[1:] - node_mean[above])
    delta_second = gain.square() * node_var[above] + noise + delta_mean.square()

    def shaped(values: Tensor) -> Tensor:
        return values.T.reshape(*batch, -1).to(eta.dtype)

    change, second = shaped(delta_mean), shaped(delta_second)
    return TreePosterior(
        log_evidence=log_evidence.reshape(batch).to(eta.dtype),
        pips=None,
        node_mean=shaped(node_mean),
        node_var=shaped(node_var),
        delta_mean=change,
        delta_second=second,
        class_prob=torch.ones_like(change).unsqueeze(-1),
        class_mean=change.unsqueeze(-1),
        class_second=second.unsqueeze(-1),
    )
