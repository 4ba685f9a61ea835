"""Joint draws from the posterior along the tree: from the root to the leaves."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_tbr.tree.folding import fold
from pyro_tbr.tree.inside import InsideMessages
from pyro_tbr.tree.laws import ArcLaw
from pyro_tbr.tree.mixtures import Density, Message, absorb, blur
from pyro_tbr.tree.tree import Tree

_BLOCK = 1 << 22  # numbers at once: draws of the root times its components


def sample(
    tree: Tree, inside: InsideMessages, num_samples: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Joint draws from the posterior: the root, then every arc given the weight it starts from.

    Args:
        tree: The environments.
        inside: Messages of the inside pass; with a cap the draws are exact given the messages.
        num_samples: ``S``.
        generator: Source of randomness; torch's global one if None.

    Returns:
        The root's weight ``(S, *B)``; the class of every change, counted from 0, or its gate under
        ``inside_pass``, ``(S, *B, A)``; and the changes, exactly 0 where the gate is closed,
        ``(S, *B, A)``. Without gradient.
    """
    with torch.no_grad():
        folded = fold(tree, inside.root.mean.device)
        weight = _draw_root(inside, num_samples, generator)  # (S, 1, B)
        root, classes, deltas = weight[:, 0], [], []
        for level, message in zip(folded.levels[1:], inside.node[1:], strict=True):
            parent = weight.index_select(1, level.parent)
            picked, weight = _draw_step(parent, message, inside.arcs.at(level.arc), generator)
            classes.append(picked)
            deltas.append(weight - parent)

    def restored(parts: list[Tensor]) -> Tensor:
        values = torch.cat(parts, 1).index_select(1, folded.node_order[1:] - 1).movedim(1, -1)
        return values.reshape(num_samples, *inside.batch_shape, -1).to(inside.log_evidence.dtype)

    root = root.reshape(num_samples, *inside.batch_shape).to(inside.log_evidence.dtype)
    picks = restored(classes)
    return root, picks.clamp(max=1) if inside.arcs.gated else picks, restored(deltas)


def _draw_root(
    inside: InsideMessages, num_samples: int, generator: torch.Generator | None
) -> Tensor:
    """Weights at the root, ``(S, 1, B)``; by runs, as all pairs of components stay there."""
    at_root = absorb(inside.root, inside.node[0])
    picks = []
    for run in torch.arange(num_samples).split(max(1, _BLOCK // at_root.mean.numel())):
        like = at_root.mean.expand(len(run), *at_root.mean.shape)
        picks.append(_pick(at_root, _random(torch.rand, like, generator)))
    pick = torch.cat(picks)
    normal = _random(torch.randn, pick[..., 0].to(at_root.mean), generator)
    return _at(Density(*(part.expand(num_samples, *part.shape) for part in at_root)), pick, normal)


def _draw_step(
    parent: Tensor, message: Message, arcs: ArcLaw, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Classes and weights at the nodes of a level, given their parents' weights ``(S, n, B)``."""
    noise = _noise(message.mean.expand(len(parent), *message.mean.shape), generator)
    uniform = _random(torch.rand, parent, generator)
    start = parent.unsqueeze(-1)
    log_class = []
    for mean, var, log_prob in zip(
        *(part.unbind(-1) for part in (arcs.mean, arcs.var, arcs.log_prob)), strict=True
    ):
        seen = blur(message, var.unsqueeze(-1))
        gap = start + mean.unsqueeze(-1) - seen.mean
        log_mass = seen.log_height - 0.5 * seen.precision * gap.square()
        log_class.append(log_mass.logsumexp(-1) + log_prob)
    # Summed from the last one down, so that a gate is on where the uniform is below its chance.
    upto = torch.stack(log_class[::-1], -1).softmax(-1).cumsum(-1)
    picked = arcs.num_classes - 1 - (uniform.unsqueeze(-1) >= upto[..., :-1]).sum(-1)
    mean, var = (
        part.expand(len(parent), *part.shape).gather(-1, picked.unsqueeze(-1))
        for part in (arcs.mean, arcs.var)
    )
    changed = absorb(Density(torch.zeros_like(start), start + mean, var), message)
    return picked.to(parent.dtype), _draw(changed, noise)


def _noise(like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Uniform noise for every component ``(..., C)``, normal noise for every mixture ``(...)``."""
    uniform = _random(torch.rand, like, generator)
    return uniform, _random(torch.randn, like[..., 0], generator)


def _random(make: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Noise made where the generator is, whatever device the numbers are on."""
    device = like.device if generator is None else generator.device
    return make(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def _draw(density: Density, noise: tuple[Tensor, Tensor]) -> Tensor:
    """One draw of every mixture."""
    uniform, normal = noise
    return _at(density, _pick(density, uniform), normal)


def _pick(density: Density, uniform: Tensor) -> Tensor:
    """Components drawn by their weights, ``(..., 1)``."""
    return (density.log_weight - (-uniform.log()).log()).argmax(-1, keepdim=True)  # Gumbel


def _at(density: Density, pick: Tensor, normal: Tensor) -> Tensor:
    """Draws from the components picked."""
    mean, var = (part.gather(-1, pick).squeeze(-1) for part in (density.mean, density.var))
    return mean + var.sqrt() * normal
