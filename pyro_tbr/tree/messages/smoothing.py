"""The posterior along the tree in one call, in memory that does not grow with the batch."""

from typing import Any

import torch
from torch import Tensor

from pyro_tbr.tree.messages.compiled.calls import compiled_moments, compiles, differentiated
from pyro_tbr.tree.messages.inside import check_inputs, potentials, run_inside
from pyro_tbr.tree.messages.laws import ArcLaw, LawTable
from pyro_tbr.tree.messages.mixtures import Density
from pyro_tbr.tree.messages.outside import TreePosterior, outside_pass
from pyro_tbr.tree.path_sum import level_parents
from pyro_tbr.tree.tree import Tree

_COMPONENTS = 1 << 22  # of the messages of all nodes at once; some 100 bytes each are kept
_DEEP = 100  # levels, each of which is a step of the interpreter where nothing is compiled
_BESIDE = 16  # what else is kept of a node and element of the batch, counted in components


def smooth(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    law: ArcLaw,
    root_loc: Tensor | float,
    root_scale: Tensor | float,
    num_components: int | None = 32,
    sweeps: int = 1,
    members: int = 1,
) -> TreePosterior:
    r"""Log evidence, probabilities of classes and moments: an inside and an outside pass.

    A law of one class is Gaussian: there the answer has a closed form, which is used. Arguments and
    errors are those of :func:`inside_pass`.

    Example:
        >>> import torch
        >>> tree = Tree.from_parents({"u": "r", "v": "u", "a": "v", "b": "r"})
        >>> weight, error = torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0]), 0.05
        >>> lam = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0]) / error**2  # data at "b" and "a" only
        >>> law = ArcLaw.spike_slab(inclusion_prob=0.2, slab_scale=1.0)
        >>> smooth(tree, lam * weight, lam, law, root_loc=0.0, root_scale=1.0).pips
        tensor([0.4413, 0.2185, 0.4413, 0.4413])

        These are the arcs r-u, r-b, u-v and v-a: the first and the last two are in series.
    """
    arcs, root, batch = check_inputs(tree, eta, lam, law, root_loc, root_scale)
    one = arcs.num_classes == 1  # then messages have one component too
    cap = 1 if one else num_components
    if one and tree.depth <= _DEEP:
        return _smooth_gaussian(tree, eta, lam, arcs, root, batch)
    alone = members == 1 and not differentiated(eta, lam, arcs, root)
    if alone and cap is not None and compiles(eta, cap):
        return compiled_moments(tree, eta, lam, arcs, root, batch, cap, 1 if one else sweeps)
    if one:
        return _smooth_gaussian(tree, eta, lam, arcs, root, batch)
    each = ((num_components or 1) + _BESIDE) * tree.num_nodes
    step = members * max(1, _COMPONENTS // (each * members))
    eta, lam = (part.reshape(-1, tree.num_nodes) for part in (eta, lam))
    runs: list[dict[str, Any]] = []
    for start in range(0, len(eta), step):
        run = slice(start, min(start + step, len(eta)))
        law_of_run = arcs.columns(run.start, run.stop)
        root_of_run = Density(*(part[:, run] for part in root))
        size = eta[run].shape[:1]
        inside = run_inside(
            tree, eta[run], lam[run], law_of_run, root_of_run, size, num_components, sweeps, members
        )
        runs.append(dict(vars(outside_pass(tree, inside))))
    found: dict[str, Any] = {}
    for name in list(runs[0]):
        values = [run.pop(name) for run in runs]  # gone before the next field is joined
        if values[0] is None:
            found[name] = None
            continue
        whole = torch.cat(values) if len(values) > 1 else values[0]
        found[name] = whole.reshape((*batch, *whole.shape[1:]))
    return TreePosterior(**found)


def _smooth_gaussian(
    tree: Tree, eta: Tensor, lam: Tensor, arcs: LawTable, root: Density, batch: torch.Size
) -> TreePosterior:
    """Where every arc changes by a Gaussian: one component, in closed form.

    The answers are those of the passes with one class, but the tree is not folded, as what several
    children say is a sum of precisions.

    Source:
        Rauch, Tung & Striebel, AIAA Journal 3 (1965) 1445, on a tree.
    """
    sizes, parents = level_parents(tree, eta.device)
    prior_mean, prior_var = (
        part[:-1, :, 0].expand(tree.num_arcs, batch.numel()) for part in (arcs.mean, arcs.var)
    )
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
