"""What the passes are given beside the law: the data, the root's prior, and the shapes of both."""

import torch
from torch import Tensor

from pyro_tbr.errors import ShapeError
from pyro_tbr.tree.messages.laws import WORK, with_helper
from pyro_tbr.tree.messages.mixtures import Density, Message
from pyro_tbr.tree.tree import Tree


def batch_shape(tree: Tree, eta: Tensor, lam: Tensor) -> torch.Size:
    """``*B``, if the potentials fit each other and the tree.

    Raises:
        ShapeError: They do not.
    """
    if eta.shape != lam.shape or eta.dim() < 1 or eta.shape[-1] != tree.num_nodes:
        raise ShapeError(
            f"eta, lam: expected (*B, {tree.num_nodes}) each, a potential for every node of "
            f"{tree!r}; received {tuple(eta.shape)} and {tuple(lam.shape)}"
        )
    return eta.shape[:-1]


def potentials(eta: Tensor, lam: Tensor) -> tuple[Message, Tensor, Tensor]:
    """Messages of the data at every node and the helpers; where there are data; their height."""
    eta, lam = (_flat(part.to(WORK)) for part in (eta, lam))
    has_data = lam > 0
    mean = torch.where(has_data, eta / torch.where(has_data, lam, 1.0), 0.0)
    lam = torch.where(has_data, lam, 0.0)
    message = Message(
        *(with_helper(p, 0.0).unsqueeze(-1) for p in (torch.zeros_like(lam), mean, lam))
    )
    return message, has_data, 0.5 * (lam * mean.square()).sum(0)


def root_prior(
    loc: Tensor | float, scale: Tensor | float, batch: torch.Size, device: torch.device
) -> Density:
    """The prior of the root's weight, ``(1, B, 1)``.

    Raises:
        ShapeError: ``loc`` or ``scale`` is not one number per element of the batch.
    """
    parts = []
    for name, value in (("root_loc", loc), ("root_scale", scale)):
        value = torch.as_tensor(value, dtype=WORK, device=device)
        try:
            parts.append(value.expand(batch).reshape(1, -1, 1))
        except RuntimeError as error:
            raise ShapeError(
                f"{name}: expected a number or (*B) = {tuple(batch)}, received {tuple(value.shape)}"
            ) from error
    return Density(torch.zeros_like(parts[1]), parts[0], parts[1].square())


def _flat(value: Tensor) -> Tensor:
    """``(*B, M)`` with the batch in one dimension and behind: ``(M, B)``."""
    return value.reshape(-1, value.shape[-1]).T
