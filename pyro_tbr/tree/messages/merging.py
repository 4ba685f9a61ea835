r"""Fewer components for a message, and back: what the merged ones were made of.

A product of two messages pairs their components. The heaviest are kept (with more than two classes
of changes, heavy ones that are unlike each other) and every other one is merged into its nearest by
moments; none is dropped. Weights and moments are those under a *context*, a guess of what the rest
of the tree says about the weight: a message is no density, and a component that the rest of the
tree rules out is no loss.

On the way back a merged component's posterior is split among its parts. Posterior divided by
message is what the rest of the tree said to that component, a Gaussian of its own; each part takes
as much as it overlaps with that.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.tree.messages.compiled.merging import FLATTEST, TINY, VAGUEST
from pyro_tbr.tree.messages.mixtures import (
    DEAD,
    Density,
    Message,
    absorb,
    leading,
    log_overlap,
    log_relevance,
    rows,
    summed,
)

_BLOCK = 1 << 18  # distances at once: keeps the temporaries in the cache


class Context(NamedTuple):
    """What the rest of the tree may say about a weight."""

    wide: Density  # one Gaussian, on the wide side: moments are taken under it, (..., 1)
    density: Density  # a mixture: components are weighed by their overlap with it, (..., D)

    def rows(self, start: int, stop: int) -> "Context":
        """A run of rows."""
        wide = rows(self.wide, start, stop)
        return Context(wide, wide if self.density is self.wide else rows(self.density, start, stop))


def shrink(
    message: Message, max_components: int | None, context: Context, num_classes: int
) -> tuple[Message, Tensor | None]:
    """At most so many components: the heaviest, every other one merged into its nearest.

    Without a cap, all but what is dead in every row; what lives comes first. With more than two
    classes of changes, components that are told apart are kept rather than the heaviest.

    Returns:
        The message; for each component of the old one its place in the new one, ``(..., C)``,
        None where nothing changed.
    """
    num = message.mean.shape[-1]
    if max_components is None:
        living = max(1, int((message.log_height > DEAD / 2).sum(-1).max()))
        return highest_first(message, living) if living < num else (message, None)
    if num <= max_components:
        return message, None
    guess, density = context
    tilted = absorb(guess, message)
    if density is not guess:
        tilted = tilted._replace(log_weight=log_relevance(message, density))
    # What is dead twice over is as dead as the rest, else it is outweighed by them without bound.
    tilted = tilted._replace(log_weight=tilted.log_weight.clamp_min(DEAD))
    kept, group = _groups(tilted, max_components, num_classes)
    merged = _by_moments(tilted, kept, group)
    heaviest = type(message)(*(part.gather(-1, kept) for part in message))
    # Divide the context out. Parts far apart can be wider than the context itself: what is left
    # must not be flat or turned upside down, so only the mean is right there.
    guess_precision = 1 / guess.var
    precision = torch.maximum(1 / merged.var - guess_precision, FLATTEST * heaviest.precision)
    shift = (merged.mean - guess.mean) * guess_precision
    mean = merged.mean + shift / torch.where(precision > 0, precision, 1.0)
    flat = type(message)(torch.zeros_like(mean), mean, precision)
    log_height = merged.log_weight - log_relevance(flat, density)
    alone = _counts(group, torch.ones_like(tilted.mean), max_components) == 1
    both = zip(heaviest, (log_height, mean, precision), strict=True)
    return type(message)(*(torch.where(alone, old, new) for old, new in both)), group


def shrink_density(
    density: Density, max_components: int | None, message: Message, num_classes: int
) -> Density:
    """At most so many components: those that overlap most with the message it is going to meet.

    A component of large weight that the message rules out must not move one that it allows: the
    moments are taken by overlap too, and the whole overlap is kept.
    """
    if max_components is None or density.mean.shape[-1] <= max_components:
        return density
    relevance = log_overlap(density, message)
    density = density._replace(log_weight=relevance.clamp_min(DEAD))
    kept, group = _groups(density, max_components, num_classes)
    merged = _by_moments(density, kept, group)
    unit = merged._replace(log_weight=torch.zeros_like(merged.log_weight))
    log_weight = merged.log_weight - log_overlap(unit, message)
    return merged._replace(log_weight=log_weight - log_weight.logsumexp(-1, keepdim=True))


def split(posterior: Density, merged: Message, parts: Message, group: Tensor | None) -> Density:
    """The posterior by component of a message, taken back to the parts it was merged from.

    It holds the probability of each component, and the moments of the weight if that holds;
    ``group`` is what :func:`shrink` made of ``parts``, ``(..., P)``, when it returned ``merged``.
    """
    if group is None:
        return leading(posterior, parts.mean.shape[-1])
    group = group.long()
    precision = 1 / posterior.var.clamp_min(TINY) - merged.precision
    precision = torch.maximum(precision, VAGUEST * merged.precision)
    mean = posterior.mean + merged.precision / precision * (posterior.mean - merged.mean)
    said_mean, said_var = mean.gather(-1, group), (1 / precision).gather(-1, group)

    spread = 1 + parts.precision * said_var
    pull = parts.precision / spread
    gap = parts.mean - said_mean
    log_mass = parts.log_height - 0.5 * summed(parts, spread.log() + pull * gap.square())
    highest = torch.full_like(posterior.mean, 2 * DEAD)
    highest = highest.scatter_reduce(-1, group, log_mass.detach(), "amax").gather(-1, group)
    mass = (log_mass - highest).exp()
    whole = _counts(group, mass, posterior.mean.shape[-1]).gather(-1, group)
    log_weight = posterior.log_weight.gather(-1, group) + log_mass - highest - whole.log()

    # What was not merged with anything that lives is taken over as it is, exactly.
    living = (parts.log_height > DEAD / 2).to(mass.dtype)
    alone = _counts(group, living, posterior.mean.shape[-1]).gather(-1, group) == living
    split_up = (log_weight, said_mean + said_var * pull * gap, said_var / spread)
    both = zip(posterior, split_up, strict=True)
    return type(posterior)(*(torch.where(alone, old.gather(-1, group), new) for old, new in both))


def highest_first(message: Message, num: int) -> tuple[Message, Tensor]:
    """The ``num`` highest components in order, so that dead ones come last, and their places."""
    kept = message.log_height.detach().topk(num, -1).indices
    place = torch.arange(num, device=kept.device).expand_as(kept)
    group = torch.zeros_like(message.mean, dtype=torch.int64).scatter(-1, kept, place)
    return type(message)(*(part.gather(-1, kept) for part in message)), group


def _by_moments(density: Density, kept: Tensor, group: Tensor) -> Density:
    """Groups of components merged into one each, ``(..., num)``; ``kept`` are the heaviest."""
    top, top_mean = density.log_weight.gather(-1, kept), density.mean.gather(-1, kept)
    # The kept one outweighs all others of its group: no weight exceeds 1, and none divides by 0.
    weight = (density.log_weight - top.detach().gather(-1, group)).exp()
    num = kept.shape[-1]
    number = _counts(group, weight, num)
    offset = density.mean - top_mean.gather(-1, group)
    mean = top_mean + _counts(group, weight * offset, num) / number
    offset = density.mean - mean.gather(-1, group)
    var = _counts(group, weight * (density.var + offset.square()), num) / number
    return type(density)(top.detach() + number.log(), mean, var)


def _counts(group: Tensor, values: Tensor, num: int) -> Tensor:
    """Sums of values by group, ``(..., num)``."""
    return values.new_zeros(*values.shape[:-1], num).scatter_add(-1, group, values)


@torch.no_grad()
def _groups(density: Density, num: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Which ``num`` components are kept, and the one of them each is merged into, ``(..., C)``."""
    if num_classes > 2:
        return _told_apart(density, num)
    kept = density.log_weight.topk(num, -1).indices
    return kept, _nearest(density.mean, density.var, kept, density.members)


def _told_apart(density: Density, num: int) -> tuple[Tensor, Tensor]:
    """Components that are heavy and unlike each other, and the nearest of them for every one.

    Classes that differ little, on arcs that differ little, make many components of nearly the same
    shape. Kept by weight alone they would crowd out the others. So after the heaviest one, the next
    one to be kept is always the one whose merging would lose most: its weight times one minus the
    Bhattacharyya coefficient with the nearest one kept so far.
    """
    log_weight = (density.log_weight - density.log_weight.amax(-1, keepdim=True)).float()
    # Arithmetic in place of selections by masks, which take several times as long.
    kept = [log_weight.argmax(-1, keepdim=True)]
    # From the heaviest one's mean, not from zero, else float32 loses sharp ones far out.
    mean = (density.mean - density.mean.gather(-1, kept[0])).float()
    var = density.var.float().clamp_min(1e-30)
    half_log_var = var.log() / 2
    group = torch.zeros_like(mean)
    nearest = torch.full_like(mean, torch.inf)
    for number in range(num):
        at = kept[-1]
        log_weight.scatter_(-1, at, -torch.inf)  # it is not kept again
        total = var + var.gather(-1, at)
        distance = (mean - mean.gather(-1, at)).square_().div_(total).mul_(0.5)
        distance.add_(total.mul_(0.5).log_()).sub_(half_log_var)
        distance.sub_(half_log_var.gather(-1, at)).mul_(0.5).clamp_(min=0)
        distance.scatter_(-1, at, -1.0)  # itself, even where another is the same
        closer = (distance < nearest).to(group.dtype)
        group.add_(closer.mul_(number - group))
        nearest = torch.minimum(nearest, distance)
        if number + 1 < num:
            loss = nearest.neg().expm1_().neg_().clamp_(min=1e-7).log_().add_(log_weight)
            kept.append(loss.argmax(-1, keepdim=True))
    return torch.cat(kept, -1), group.long()


def _nearest(mean: Tensor, var: Tensor, kept: Tensor, members: int) -> Tensor:
    """The nearest of ``kept`` for every component, by Bhattacharyya distance, ``(..., C)``.

    A kept component belongs to itself, even where two are equal. The distance is taken in float32:
    it only decides who is merged with whom.
    """
    num, num_all = kept.shape[-1], mean.shape[-1]
    choices = kept.reshape(-1, num)
    means, variances = mean.reshape(-1, num_all), var.reshape(-1, num_all)
    # From the heaviest one's mean, not from zero, else float32 loses sharp ones far out.
    means = (means - means.gather(-1, choices[:, :1])).float()
    variances = variances.float().clamp_min(1e-30)
    group = torch.empty(means.shape, dtype=torch.int64, device=mean.device)
    own = torch.arange(num, device=mean.device)
    size = members * max(1, _BLOCK // (num * num_all * members))
    for start in range(0, len(choices), size):
        block = slice(start, start + size)
        choice = choices[block]
        kept_var = variances[block].gather(-1, choice).unsqueeze(-1)
        distance = means[block].unsqueeze(-2) - means[block].gather(-1, choice).unsqueeze(-1)
        both = variances[block].unsqueeze(-2) + kept_var
        # Twice the distance, less a term that is the same for all kept ones.
        distance.square_().div_(both).mul_(0.5).add_(both.log_()).sub_(kept_var.log() / 2)
        if members > 1:
            each = distance.unflatten(0, (-1, members))
            distance = each.sum(1, keepdim=True).expand_as(each).flatten(0, 1)
        group[block] = distance.min(-2).indices.scatter_(-1, choice, own.expand_as(choice))
    return group.reshape(mean.shape)
