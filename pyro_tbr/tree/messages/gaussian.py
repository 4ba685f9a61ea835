"""Smoothing along the tree where every arc changes by a Gaussian: one component, in closed form.

The answers are those of the passes for mixtures with one class; but the tree is not folded, as what
several children say is a sum of precisions.
"""

import torch
from torch import Tensor

from pyro_tbr.tree.messages.inputs import batch_shape, potentials, root_prior
from pyro_tbr.tree.messages.laws import ArcLaw, law_table
from pyro_tbr.tree.messages.outside import TreePosterior
from pyro_tbr.tree.path_sum import level_parents
from pyro_tbr.tree.tree import Tree


def smooth_gaussian(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    law: ArcLaw,
    root_loc: Tensor | float,
    root_scale: Tensor | float,
) -> TreePosterior:
    """Posterior moments under a law of one class, differentiable in all arguments.

    Args:
        tree: The environments.
        eta: As in ``inside_pass``, ``(*B, V)``.
        lam: As in ``inside_pass``, ``(*B, V)``.
        law: A law with one class.
        root_loc: Prior mean of the root's weight, broadcastable to ``(*B,)``.
        root_scale: Prior standard deviation of the root's weight, broadcastable to ``(*B,)``.

    Returns:
        The posterior; its ``pips`` are None.

    Raises:
        ShapeError: Arguments do not fit the tree or each other.

    Source:
        Rauch, Tung & Striebel, AIAA Journal 3 (1965) 1445, on a tree.
    """
    batch = batch_shape(tree, eta, lam)
    sizes, parents = level_parents(tree, eta.device)
    arcs = law_table(law, tree, batch, eta.device)
    prior_mean, prior_var = (
        part[:-1, :, 0].expand(tree.num_arcs, batch.numel()) for part in (arcs.mean, arcs.var)
    )
    root = root_prior(root_loc, root_scale, batch, eta.device)
    root_mean, root_var = root.mean[0, :, 0], root.var[0, :, 0]
    message, _, log_peak = potentials(eta, lam)
    own_lam, own_mean = (part[:-1, :, 0] for part in (message.precision, message.mean))

    # Up: linear term and precision of what all below say, of nodes and through their arcs.
    own = torch.stack([own_lam * own_mean, own_lam]).split(sizes, 1)
    moves = torch.stack([prior_mean, torch.zeros_like(prior_mean)])
    up = (own[:-1], parents, moves.split(sizes[1:], 1), prior_var.split(sizes[1:]))
    at_node = [own[-1]]
    for here, parent, move, var in reversed(list(zip(*up, strict=True))):
        below = at_node[-1]
        sent = (below - below[1] * move) / (1 + below[1] * var)
        at_node.append(here.index_add(1, parent, sent))
    linear, total = torch.cat(at_node[::-1], 1)
    mean = linear / torch.where(total > 0, total, 1.0)
    spread = 1 + total[1:] * prior_var  # of the arcs
    sent_lam = total[1:] / spread

    # Heights by gaps between means: nothing large is subtracted.
    above = tree.arc_parent.to(mean.device)
    said = mean[1:] - prior_mean  # about the parent's weight
    height = (
        log_peak
        - 0.5 * (own_lam * (own_mean - mean).square()).sum(0)
        - 0.5 * (sent_lam * (said - mean[above]).square()).sum(0)
        - 0.5 * spread.log().sum(0)
    )
    root_spread = 1 + total[0] * root_var
    gap = mean[0] - root_mean
    log_evidence = height - 0.5 * (root_spread.log() + total[0] / root_spread * gap.square())

    # Down: a node keeps 1 / spread of its parent's weight, the rest is what the data below say.
    keep = 1 / spread
    gain, noise = sent_lam * prior_var, keep * prior_var
    means = [(root_mean + root_var * total[0] / root_spread * gap).unsqueeze(0)]
    node_vars = [(root_var / root_spread).unsqueeze(0)]
    down = (keep, keep * prior_mean + gain * mean[1:], keep.square(), noise)
    for parent, share, shift, square, more in zip(
        parents, *(part.split(sizes[1:]) for part in down), strict=True
    ):
        means.append(share * means[-1][parent] + shift)
        node_vars.append(square * node_vars[-1][parent] + more)
    node_mean, node_var = torch.cat(means), torch.cat(node_vars)
    delta_mean = prior_mean + gain * (said - node_mean[above])
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
