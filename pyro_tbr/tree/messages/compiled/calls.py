"""From tensors to the compiled passes and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_tbr.jit import COMPILES, is_compiled
from pyro_tbr.progress import beat, stage
from pyro_tbr.tree.messages.compiled.layout import FlatTree, Room, flat_tree, room
from pyro_tbr.tree.messages.compiled.parts import Law
from pyro_tbr.tree.messages.compiled.passes import run
from pyro_tbr.tree.messages.folding import FoldedTree, fold
from pyro_tbr.tree.messages.inside import ROUGH, potentials
from pyro_tbr.tree.messages.laws import LawTable
from pyro_tbr.tree.messages.mixtures import Density
from pyro_tbr.tree.messages.outside import TreePosterior, as_posterior
from pyro_tbr.tree.tree import Tree

_Key = tuple[bytes, int, int]  # nodes at or above data, cap, number of classes

_KEPT = 16  # flat trees and rooms that are remembered for one tree
_MOST_COMPONENTS = 1 << 14  # places in a message are kept as 16 bit numbers
_AT_ONCE = 1 << 21  # nodes times elements of the batch in one call, after which it tells it lives


def compiles(eta: Tensor, cap: int | None) -> bool:
    """Whether there are compiled passes for these potentials: on the CPU, with a cap.

    Where numba is not installed there are none.
    """
    return COMPILES and cap is not None and cap <= _MOST_COMPONENTS and eta.device.type == "cpu"


def differentiated(eta: Tensor, lam: Tensor, arcs: LawTable, root: Density) -> bool:
    """Whether a gradient is asked for in something that the passes read."""
    parts = (eta, lam, arcs.prob, arcs.mean, arcs.var, root.mean, root.var)
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


def compiled_evidence(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    arcs: LawTable,
    root: Density,
    batch: torch.Size,
    cap: int,
    sweeps: int,
) -> Tensor:
    """Log evidence alone, (*B,); arguments as those of ``run_inside``."""
    evidence = _run(tree, eta, lam, arcs, root, cap, sweeps, moments=False)[1]
    return evidence.reshape(batch).to(eta.dtype)


def compiled_moments(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    arcs: LawTable,
    root: Density,
    batch: torch.Size,
    cap: int,
    sweeps: int,
) -> TreePosterior:
    """Both passes; arguments as those of ``run_inside``."""
    folded, evidence, nodes, changes = _run(tree, eta, lam, arcs, root, cap, sweeps, moments=True)
    return as_posterior(
        tree,
        folded,
        arcs,
        batch,
        evidence.reshape(batch).to(eta.dtype),
        tuple(nodes.movedim(0, 1).unbind(-1)),
        tuple(changes.movedim(0, 1)[1:].unbind(2)),
    )


def _run(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    arcs: LawTable,
    root: Density,
    cap: int,
    sweeps: int,
    *,
    moments: bool,
) -> tuple[FoldedTree, Tensor, Tensor, Tensor]:
    """The tree's levels, log evidence (B,), moments (B, P, 2) and changes by class (B, P, 3, J)."""
    message, has_data, log_peak = potentials(eta.detach(), lam.detach())
    folded = fold(tree, has_data.any(1))
    flat, space = _laid_out(tree, folded, cap, arcs.num_classes)
    mean, precision = (part[..., 0].T.contiguous().numpy() for part in message[1:])
    root_mean, root_var = (
        part.detach().reshape(-1).expand(len(mean)).contiguous().numpy() for part in root[1:]
    )
    law = Law(*(_array(getattr(arcs, name)) for name in Law._fields))
    size, places = len(mean), len(flat.node)
    evidence = np.empty(size)
    nodes = np.empty((size if moments else 0, places if moments else 0, 2))
    changes = np.empty((len(nodes), nodes.shape[1], 3, arcs.num_classes))
    rough = min(cap, ROUGH) if sweeps > 1 else 0
    step = max(1, _AT_ONCE // places)
    if not is_compiled(run):
        with stage("compiling, once on a machine", units=0):
            none = slice(0, 0)
            run(
                flat, space, law, mean[none], precision[none], root_mean[none], root_var[none],
                tree.num_arcs, cap, rough, evidence[none], nodes[none], changes[none],
            )  # fmt: skip
    for start in range(0, size, step):
        here = slice(start, start + step)
        of_run = law if law.var.shape[1] == 1 else Law(*(_columns(part, here) for part in law))
        run(
            flat, space, of_run, mean[here], precision[here], root_mean[here], root_var[here],
            tree.num_arcs, cap, rough, evidence[here], nodes[here], changes[here],
        )  # fmt: skip
        beat()
    total = torch.from_numpy(evidence) + log_peak
    return folded, total, torch.from_numpy(nodes), torch.from_numpy(changes)


def _array(part: Tensor) -> Any:
    return part.detach().contiguous().numpy()


def _columns(part: Any, here: slice) -> Any:
    return np.ascontiguousarray(part[:, here])


def _laid_out(tree: Tree, folded: FoldedTree, cap: int, num_classes: int) -> tuple[FlatTree, Room]:
    """The flat tree and the room for its messages, which stay with the tree."""
    kept: dict[_Key, tuple[FlatTree, Room]] = tree._derived.setdefault("laid out", {})
    key = folded.nodes.numpy().tobytes(), cap, num_classes
    if key not in kept:
        if len(kept) >= _KEPT:
            kept.pop(next(iter(kept)))
        flat = flat_tree(folded)
        kept[key] = flat, room(folded, flat, cap, num_classes)
    return kept[key]
