"""The posterior along the tree in one call, in memory that does not grow with the batch."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from pyro_tbr.tree.messages.gaussian import smooth_gaussian
from pyro_tbr.tree.messages.inputs import batch_shape, root_prior
from pyro_tbr.tree.messages.inside import run_inside
from pyro_tbr.tree.messages.laws import ArcLaw, law_table
from pyro_tbr.tree.messages.mixtures import Density
from pyro_tbr.tree.messages.outside import TreePosterior, outside_pass
from pyro_tbr.tree.tree import Tree

_COMPONENTS = 1 << 22  # of the messages of all nodes at once; some 100 bytes each are kept
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
) -> TreePosterior:
    r"""Log evidence, probabilities of classes and moments: an inside and an outside pass.

    A law of one class is Gaussian: there the answer has a closed form, which is used.

    Args:
        tree: The environments.
        eta: Linear terms of the potentials :math:`\exp(\eta u - \lambda u^2 / 2)`, ``(*B, V)``:
            estimate over squared standard error. Ignored where ``lam`` is zero.
        lam: Precisions of the potentials, zero where a node has no data, ``(*B, V)``.
        law: Of the changes along the arcs, for this batch or what broadcasts to it.
        root_loc: Prior mean of the root's weight, broadcastable to ``(*B,)``.
        root_scale: Prior standard deviation of the root's weight, broadcastable to ``(*B,)``.
        num_components: Cap on the components of a message, see :func:`inside_pass`.
        sweeps: Of the inside pass, see there.

    Raises:
        ShapeError: Arguments do not fit the tree or each other.

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
    if law.num_classes == 1:
        return smooth_gaussian(tree, eta, lam, law, root_loc, root_scale)
    batch = batch_shape(tree, eta, lam)
    arcs = law_table(law, tree, batch, eta.device)
    root = root_prior(root_loc, root_scale, batch, eta.device)
    width = ((num_components or 1) + _BESIDE) * tree.num_nodes
    step = max(1, _COMPONENTS // width)
    eta, lam = (part.reshape(-1, tree.num_nodes) for part in (eta, lam))
    parts = []
    for start in range(0, len(eta), step):
        run = slice(start, min(start + step, len(eta)))
        inside = run_inside(
            tree,
            eta[run],
            lam[run],
            arcs.columns(run.start, run.stop),
            Density(*(part[:, run] for part in root)),
            eta[run].shape[:1],
            num_components,
            sweeps,
        )
        parts.append(outside_pass(tree, inside))
    return _joined(parts, batch)


def _joined(parts: list[TreePosterior], batch: torch.Size) -> TreePosterior:
    """Posteriors of runs of the batch as one."""
    runs = [dict(vars(part)) for part in parts]
    parts.clear()  # so that of every field the runs are gone before the next one is joined
    found: dict[str, Any] = {}
    for field in fields(TreePosterior):
        values = [run.pop(field.name) for run in runs]
        if values[0] is not None:
            whole = torch.cat(values) if len(values) > 1 else values[0]
            found[field.name] = whole.reshape((*batch, *whole.shape[1:]))
    return TreePosterior(**{"pips": None} | found)
