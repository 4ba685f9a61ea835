"""What the rest of the tree says about a weight: densities to weigh a message's components by.

They only decide which components an inside message keeps, so they may be rough, and carry no
gradient. A first guess lets every arc change by its widest class: it is Gaussian, and rather too
wide than too narrow. A second one is made from the inside messages that the first guess gave.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyro_tbr.progress import beat
from pyro_tbr.tree.messages.compiled.contexts import POINT
from pyro_tbr.tree.messages.folding import FoldedLevel
from pyro_tbr.tree.messages.laws import ClassRows, LawTable
from pyro_tbr.tree.messages.merging import Context, shrink_density
from pyro_tbr.tree.messages.mixtures import Density, Message, absorb, concatenate, take
from pyro_tbr.tree.messages.steps import Blocks

_BLOCK = 1 << 18  # pairs of components at once: bounds the memory of large trees

Contexts = list[tuple[Context, Context]]  # for each level


@torch.no_grad()
def contexts_from(
    levels: Sequence[FoldedLevel],
    potential: Message,
    arcs: LawTable,
    root: Density,
    node_blocks: Sequence[Blocks],
    arc_blocks: Sequence[Blocks],
    cap: int | None,
    wide: Contexts | None = None,
) -> Contexts:
    """Outside messages of at most so many components, from inside messages at nodes and arcs.

    Returns:
        For each level what is said of the nodes' weights by all data that are not at or below
        them, and of their parents' weights by the same; as wide as in ``wide`` if there is one.
    """
    node, arc = ([concatenate(blocks) for blocks in part] for part in (node_blocks, arc_blocks))
    at_node = root._replace(var=root.var + POINT)
    found = [(at_node, at_node)]
    for depth in range(1, len(levels)):
        above, level = levels[depth - 1], levels[depth]
        here = absorb(at_node, take(potential, above.node))
        size = here.mean.shape[1] * here.mean.shape[2] * (arc[depth].mean.shape[2] + 1) ** 2
        steps = []
        for child, sibling in _families(above, max(1, _BLOCK // size)):
            at_parent = take(here, level.parent[child])
            if sibling is not None:
                at_parent = absorb(at_parent, take(arc[depth], sibling))
            at_parent = shrink_density(at_parent, cap, take(arc[depth], child), arcs.num_classes)
            arrived = _arrive(at_parent, arcs.at(level.arc[child]))
            met = take(node[depth], child)
            arrived = shrink_density(arrived, cap, met, arcs.num_classes)
            steps.append((arrived, at_parent))
        at_node, at_parent = (
            take(concatenate(blocks), level.slot) for blocks in zip(*steps, strict=True)
        )
        found.append((at_node, at_parent))
        beat()
    if wide is None:
        return [(Context(one, one), Context(two, two)) for one, two in found]
    return [
        (at_node._replace(density=one), at_parent._replace(density=two))
        for (at_node, at_parent), (one, two) in zip(wide, found, strict=True)
    ]


def _families(above: FoldedLevel, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Children of a level and their siblings, None where they have none, in blocks."""
    paired, single = above.children.tensor_split([2 * above.num_pairs])
    siblings = paired.roll(above.num_pairs)
    for start in range(0, len(paired), size):
        yield paired[start : start + size], siblings[start : start + size]
    for start in range(0, len(single), size):
        yield single[start : start + size], None


def _arrive(density: Density, arcs: ClassRows) -> Density:
    """The density of a weight, taken through its arc: once for every class."""
    log_weight, mean, var = (part.unsqueeze(-2) for part in density)
    spread = (arcs.var + POINT * (arcs.var > 0)).unsqueeze(-1)
    log_weight = log_weight + arcs.log_prob.unsqueeze(-1)
    parts = (log_weight, mean + arcs.mean.unsqueeze(-1), var + spread)
    return type(density)(*(part.flatten(-2) for part in parts))
