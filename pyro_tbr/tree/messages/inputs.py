"""What the passes are given beside the law: the data, the root's prior, and the shapes of both."""

import torch
from torch import Tensor

from pyro_tbr.errors import ShapeError
from pyro_tbr.tree.messages.laws import WORK, ArcLaw, LawTable, law_table, with_helper
from pyro_tbr.tree.messages.mixtures import Density, Message
from pyro_tbr.tree.tree import Tree


def check_inputs(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    law: ArcLaw,
    root_loc: Tensor | float,
    root_scale: Tensor | float,
) -> tuple[LawTable, Density, torch.Size]:
    """The law, the prior of the root's weight ``(1, B, 1)`` and ``*B``, if all fits the tree.

    Raises:
        ShapeError: It does not.
    """
    if eta.shape != lam.shape or eta.dim() < 1 or eta.shape[-1] != tree.num_nodes:
        raise ShapeError(
            f"eta, lam: expected (*B, {tree.num_nodes}) each, a potential for every node of "
            f"{tree!r}; received {tuple(eta.shape)} and {tuple(lam.shape)}"
        )
    batch = eta.shape[:-1]
    arcs = law_table(law, tree, batch, eta.device)
    parts = []
    for name, value in (("root_loc", root_loc), ("root_scale", root_scale)):
        value = torch.as_tensor(value, dtype=WORK, device=eta.device)
        try:
            parts.append(value.expand(batch).reshape(1, -1, 1))
        except RuntimeError as error:
            raise ShapeError(
                f"{name}: expected a number or (*B) = {tuple(batch)}, received {tuple(value.shape)}"
            ) from error
    return arcs, Density(torch.zeros_like(parts[1]), parts[0], parts[1].square()), batch


def potentials(eta: Tensor, lam: Tensor) -> tuple[Message, Tensor, Tensor]:
    """Messages of the data at every node and the helpers; where there are data; their height."""
    eta, lam = (part.to(WORK).reshape(-1, part.shape[-1]).T for part in (eta, lam))  # (V, B)
    has_data = lam > 0
    mean = torch.where(has_data, eta / torch.where(has_data, lam, 1.0), 0.0)
    lam = torch.where(has_data, lam, 0.0)
    message = Message(
        *(with_helper(p, 0.0).unsqueeze(-1) for p in (torch.zeros_like(lam), mean, lam))
    )
    return message, has_data, 0.5 * (lam * mean.square()).sum(0)
