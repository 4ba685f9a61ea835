"""Joint draws of a posterior, weights at nodes that follow from them, and predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_tbr.data import RowOrder, align_env
from pyro_tbr.errors import DataError, TreeError
from pyro_tbr.heads.guide import NodeMoments
from pyro_tbr.heads.priors import HorseshoePrior, SpikeSlabPrior
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.posterior.predictive import Form, NewLeaf, Prediction
from pyro_tbr.tree import Tree, path_sum
from pyro_tbr.tree.messages.sum_product import InsideMessages, inside_pass, sample

if TYPE_CHECKING:
    from pyro_tbr.posterior.posterior import Posterior

_PREDICTION_SEED = 20_405_20482  # their own, so the same call gives the same numbers
_BLOCK_ELEMENTS = 20_000_000  # weights at nodes are made in blocks of about this size
_SITE_ELEMENTS = 500_000  # draws of sites too; a draw goes through all components of a message
_JOINT_ELEMENTS = 5_000_000  # where every call makes messages anew
_DELTA_DRAWS, _DELTA_SEED = 4000, 173_205  # behind intervals


def check_number(number: int, argument: str) -> None:
    """Refuses what is no number of draws."""
    if not isinstance(number, Integral) or number < 1:
        raise DataError(f"{argument}={number!r} must be a whole number, 1 or more")


def user_draws(
    posterior: Posterior, num_draws: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draws by site name in the user's units, double precision, on the CPU."""
    draws = posterior.guide.sample(num_draws, generator)
    draws = {name: value.detach().cpu().double() for name, value in draws.items()}
    for name in ("root_weights", "deltas", "noise_scale"):
        if name in draws:
            draws[name] = draws[name] * posterior.scaling.scale
    if posterior.model.intercept:
        draws["root_weights"][:, -1] += posterior.scaling.loc
    return draws


def user_moments(posterior: Posterior) -> NodeMoments:
    """Of the weights at every node in the user's units, (V, W, Q)."""
    moments = posterior.guide.node_moments()
    scale = posterior.scaling.scale.to(moments.mean.device)
    mean = moments.mean.double() * scale
    if posterior.model.intercept:
        mean[:, -1] += posterior.scaling.loc.to(mean.device)
    return NodeMoments(mean, moments.var.double() * scale.square())


class PredictionDraws:
    """The draws behind the last predictions, kept because many calls ask for the same."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[int, int], dict[str, Tensor], Tensor] | None = None

    def get(
        self, posterior: Posterior, num_draws: int, seed: int
    ) -> tuple[dict[str, Tensor], torch.Generator]:
        """The draws in the user's units, and the generator as they left it."""
        key = (num_draws, seed)
        generator = torch.Generator().manual_seed(_PREDICTION_SEED + seed)
        if self._kept is None or self._kept[0] != key:
            draws = user_draws(posterior, num_draws, generator)
            self._kept = (key, draws, generator.get_state())
        _, draws, state = self._kept
        generator.set_state(state)
        return draws, generator


def tree_messages(guide: TreeGuide, law: dict[str, Tensor], sweeps: int = 2) -> InsideMessages:
    """Inside messages at a guide's potentials under a law with gates, as ``guide.law()``'s."""
    return inside_pass(
        guide.model.tree,
        guide.eta,
        guide.lam,
        **law,
        num_components=guide.num_components,
        sweeps=sweeps,
    )


@torch.no_grad()
def site_draws(posterior: Posterior, site: str, num_draws: int, seed: int) -> Iterator[Tensor]:
    """Draws of a site of the arcs in blocks (s, A, W, Q), model's units, on the CPU.

    Args:
        posterior: Where from.
        site: ``gates`` or ``deltas``.
        num_draws: S, over all blocks.
        seed: Of these draws alone.
    """
    guide, generator = posterior.guide, torch.Generator().manual_seed(seed)
    most = _JOINT_ELEMENTS if isinstance(guide.model.prior, HorseshoePrior) else _SITE_ELEMENTS
    size = max(1, most // math.prod(posterior.model.prior.delta_shape))
    blocks = torch.arange(num_draws).split(size)
    if not isinstance(guide, TreeGuide) or not isinstance(guide.model.prior, SpikeSlabPrior):
        for block in blocks:
            yield guide.sample(len(block), generator)[site].cpu()
        return
    messages = tree_messages(guide, guide.law())  # once; guide.sample sends them for every call
    for block in blocks:
        _, gates, deltas = sample(posterior.tree, messages, len(block), generator)
        draws = {"gates": gates.permute(0, 3, 1, 2), "deltas": deltas.permute(0, 3, 1, 2)}
        draws = guide.sample_hyper(len(block), generator) | draws
        yield guide.with_prior_changes(draws, generator)[site].cpu()


def delta_draws(posterior: Posterior) -> Tensor | None:
    """Draws of the changes (S, A, W, Q), model's units, where quantiles have no closed form.

    Of a horseshoe, or a spike of some width, 4,000, so the standard error of the end of a 90 %
    interval is some 0.03 posterior standard deviations; fewer on large trees, 200 at least. None
    for other priors.
    """
    prior = posterior.model.prior
    if not isinstance(prior, HorseshoePrior) and not prior.wide_spike:
        return None
    most = _BLOCK_ELEMENTS // math.prod(prior.delta_shape)
    num_draws = min(_DELTA_DRAWS, max(200, most))
    return torch.cat(list(site_draws(posterior, "deltas", num_draws, _DELTA_SEED))).detach()


def predicted(
    posterior: Posterior,
    x: Any,
    env: Any,
    level: float,
    num_draws: int,
    seed: int,
) -> Prediction:
    """See ``Posterior.predict``."""
    check_number(num_draws, "num_draws")
    draws, generator = posterior.prediction_draws.get(posterior, num_draws, seed)
    latents, index = posterior.align_latents(x)
    design = posterior.model.design(latents).cpu()
    order = RowOrder(len(design), index).or_of(env=env)
    position = torch.zeros(len(design), dtype=torch.int64)
    if env is None:
        weights = at_unknown(posterior, draws, generator)
    elif isinstance(env, NewLeaf):
        weights = at_new_leaf(posterior, env, draws, generator)
    else:
        nodes = _nodes(posterior.tree, env, order)
        nodes, position = nodes.unique(return_inverse=True)
        weights = at_nodes(posterior.tree, nodes, draws)
    form = Form(posterior.schema.outcome_ndim == 1, index, posterior.outcome_names, order)
    noise = draws.get("noise_scale")
    return Prediction(design, weights, position, noise, level, form, posterior.schema)


def _nodes(tree: Tree, env: Any, order: RowOrder) -> Tensor:
    """Nodes of the rows (N,); where one label is not in the tree, how to predict there too."""
    try:
        return align_env(tree, env, order)
    except TreeError as error:
        if not isinstance(env, str):
            raise
        raise TreeError(
            f"{error}; for a leaf that the tree has not: NewLeaf({env!r}, parent=...)"
        ) from error


def at_nodes(tree: Tree, nodes: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """Weights at some nodes, (S, n, W, Q); in blocks, so no table of all nodes and draws."""
    blocks = []
    size = max(1, _BLOCK_ELEMENTS // draws["deltas"][0].numel())
    for rows in torch.arange(len(draws["deltas"])).split(size):
        every = path_sum(tree, draws["root_weights"][rows], draws["deltas"][rows], event_dim=2)
        blocks.append(every[:, nodes])
    return torch.cat(blocks)


def at_unknown(
    posterior: Posterior, draws: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    """(S, 1, W, Q): each draw at a node picked by its rows."""
    nodes = posterior.row_counts.nonzero()[:, 0]
    weights = at_nodes(posterior.tree, nodes, draws)
    share = posterior.row_counts[nodes].double()
    pick = torch.multinomial(share, len(weights), replacement=True, generator=generator)
    return weights[torch.arange(len(weights)), pick].unsqueeze(1)


def at_new_leaf(
    posterior: Posterior, leaf: NewLeaf, draws: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    """(S, 1, W, Q): the parent's weights plus one change from the prior."""
    tree, prior = posterior.tree, posterior.model.prior
    if leaf.name in tree.nodes:
        raise DataError(
            f"NewLeaf: {leaf.name!r} is a node of the tree already: predict(x, {leaf.name!r}), or "
            "another name"
        )
    parent = tree.index(leaf.parent)
    length = torch.ones(1)
    if leaf.length is not None and not leaf.length >= 0:
        raise DataError(f"NewLeaf: length={leaf.length!r} must be 0 or more")
    if leaf.length is not None and getattr(prior, "use_lengths", False):
        known = torch.tensor(tree.require_lengths(), dtype=torch.float64)
        length = torch.tensor([leaf.length / known.mean().item()])
    change = prior.draw_changes(
        {name: value.to(prior.root_loc) for name, value in draws.items()}, generator, length
    )["deltas"]
    at_parent = at_nodes(tree, torch.tensor([parent]), draws)
    return at_parent + change.cpu().double() * posterior.scaling.scale
