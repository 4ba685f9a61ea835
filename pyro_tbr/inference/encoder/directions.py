"""Where a linear encoder starts, in closed form, and the guide of dense weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyro_tbr.heads import GaussianPrior, Head, TreeGuide, condition
from pyro_tbr.heads.joint_guide import JointGuide
from pyro_tbr.inference.encoder.rows import PreparedRows
from pyro_tbr.models.encoders import Encoder, LinearEncoder
from pyro_tbr.models.tree_model import TreeModel

_DIRECTION_SWEEPS = 60
# The joint guide's: numbers in the covariances at all nodes, and levels of the tree, which it goes
# through one by one.
_MOST_NUMBERS, _MOST_LEVELS = 15_000_000, 300


def dense_guide(head: Head, informed_nodes: Tensor) -> JointGuide | TreeGuide:
    """The guide of dense weights: joint where outcomes are normal and that is no great work.

    Nodes that have rows, (V,) bool.
    """
    tree = head.tree
    few = tree.num_nodes * head.num_outcomes * head.num_weights**2 <= _MOST_NUMBERS
    joint = head.likelihood.exact and few and tree.depth <= _MOST_LEVELS
    guide = (JointGuide if joint else TreeGuide)(head, informed_nodes)
    return guide.to(head.prior.root_loc.device)


def spans_all(encoder: Encoder) -> bool:
    """A linear encoder of no fewer latents than prepared features: there is nothing to choose."""
    return isinstance(encoder, LinearEncoder) and encoder.width <= encoder.latent_dim


@torch.no_grad()
def leading_directions(
    model: TreeModel, rows: PreparedRows, kept: dict[str, Tensor] | None = None
) -> Tensor:
    """A linear encoder in closed form: the leading directions of leaf-specific regressions.

    Every prepared feature gets a weight of its own at every leaf, under a dense Gaussian tree prior
    whose scales all features share; the posterior means of all leaves' weights, stacked, have K
    leading right singular vectors, and these span the latents. On wide features this does better
    than a linear encoder that is trained until it converges, whose point estimate overfits.

    Args:
        model: Gives tree, likelihood and K.
        rows: Rows with white features; where these come block by block, the correlation of rows of
            a group stays as it is.
        kept: Scales that such a call has found for other rows of the same table, to start from;
            replaced by those that this one finds.

    Returns:
        Directions of the prepared features, (R, K), orthonormal.

    Source:
        Reduced-rank regression: Izenman, Journal of Multivariate Analysis 5 (1975) 248.
    """
    like = model.encoder.output_map
    if spans_all(model.encoder):
        width, latent_dim = model.encoder.width, model.latent_dim
        return torch.eye(width, latent_dim, dtype=like.dtype, device=like.device)
    axes = leading_axes(model, rows, model.encoder.width, kept)
    return axes[:, : model.latent_dim].to(like)


@torch.no_grad()
def leading_axes(
    model: TreeModel, rows: PreparedRows, width: int, kept: dict[str, Tensor] | None = None
) -> Tensor:
    """All directions of R white features by what outcomes hang on them, (R, R), most first.

    See :func:`leading_directions`; double precision.
    """
    head = model.head.with_prior(GaussianPrior(pooled=True), width)
    guide = dense_guide(head, rows.rows.nodes(head.tree.num_nodes))
    _start_scales(guide, kept)
    few = isinstance(guide, TreeGuide)  # its sweeps are several, and longer
    stats = condition(
        guide,
        replace(rows, intercept=model.intercept),
        sweeps=_DIRECTION_SWEEPS // 2 if few else _DIRECTION_SWEEPS,
        learn_groups=rows.features is not None,
    )
    if kept is not None:
        kept |= _scales(guide)
    leading = ordered_axes(guide.node_moments().mean[stats.nodes][:, :width], stats.count)
    sign = leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
    return leading * sign


def ordered_axes(weights: Tensor, count: Tensor) -> Tensor:
    """Directions (R, R) by what hangs on them, most first, orthonormal; double precision.

    From weights (E, R, Q) of white features at nodes with so many rows (E, Q).
    """
    scaled = weights * count.sqrt().to(weights)[:, None]
    stacked = scaled.permute(0, 2, 1).reshape(-1, weights.shape[1]).double()
    return torch.linalg.eigh(stacked.T @ stacked)[1].flip(1)


def _scales(guide: JointGuide | TreeGuide) -> dict[str, Tensor]:
    """Copies of what a guide knows of hyperparameters and noise."""
    state = guide.state_dict().items()
    return {name: v.clone() for name, v in state if name.startswith(("factor.", "nuisance."))}


def _start_scales(guide: JointGuide | TreeGuide, kept: dict[str, Tensor] | None) -> None:
    """Starts there, if they are of the same shapes."""
    own = _scales(guide)
    if kept and all(name in kept and kept[name].shape == v.shape for name, v in own.items()):
        guide.load_state_dict(kept, strict=False)
        guide.refresh()
