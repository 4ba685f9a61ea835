"""The sparse stage: weights under the user's prior, and the encoder once more."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads import Guide, Head, MeanFieldGuide, Statistics, TreeGuide, condition
from pyro_tbr.heads.tree_state import TreeState
from pyro_tbr.inference.checkpoint import Checkpoint, Part, part
from pyro_tbr.inference.encoder.alternating import SVI_STEPS, alternate, has_closed_form
from pyro_tbr.inference.encoder.cross_fit import is_trained
from pyro_tbr.inference.encoder.dense_stage import DenseFit, Recipe
from pyro_tbr.inference.encoder.following import follow
from pyro_tbr.inference.encoder.latents import align, as_kept
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.encoder.training import GUIDE_LR, FitTrace, Schedule, train
from pyro_tbr.inference.options import FitOptions
from pyro_tbr.models import LinearEncoder, TreeModel
from pyro_tbr.progress import stage

_PART = 0.1  # of the way to its optimum that a step of a linear encoder in closed form goes
_ENCODER_LR_SHARE = 0.2  # of the dense stage's peak rates, in the sparse stage: it is nearly there


@dataclass(frozen=True)
class Task:
    """What all stages of a fit need.

    Attributes:
        model: Built, in the units of training; not changed.
        guide_kind: As the user named it.
        options: Of the fit.
        generator: Of all its draws.
        outcome_names: For warnings.
        checkpoint: What is done already, and where to write what is; ``None``: neither.
    """

    model: TreeModel
    guide_kind: str | type[Guide]
    options: FitOptions
    generator: torch.Generator
    outcome_names: tuple[Hashable, ...]
    checkpoint: Checkpoint | None = None

    @property
    def names(self) -> tuple[tuple[str, ...], tuple[Hashable, ...]]:
        """Of weights and outcomes."""
        return self.model.weight_names, self.outcome_names


def sparse_stage(
    task: Task, model: TreeModel, guide: Guide, rows: StandardRows, z: Tensor, reference: DenseFit
) -> tuple[Statistics, Tensor, FitTrace | None]:
    """The guide at its optimum under the sparse prior, before and after SVI of the encoder.

    Args:
        task: What is to be done.
        model: Its encoder is trained in place.
        guide: Moved from where it stands; by SVI too, if it has parameters of its own.
        rows: The rows.
        z: Their honest latents, (N, K); they move as the encoder's own latents move.
        reference: How the encoder was trained in the dense stage.

    Returns:
        The rows' statistics; their design (N, W); what SVI did, ``None`` where nothing is
        trained.
    """
    if not (task.options.sparse_steps and is_trained(reference)):
        design = model.design(z)
        with stage("sparse stage", total=1):
            return settle(task, guide, design, rows, last=True), design, None
    with stage("sparse stage", plan={"first weights": 40, "encoder": 25, "last weights": 35}):
        return _trained(task, model, guide, rows, z, reference)


def _trained(
    task: Task, model: TreeModel, guide: Guide, rows: StandardRows, z: Tensor, reference: DenseFit
) -> tuple[Statistics, Tensor, FitTrace | None]:
    """The sparse stage with training of the encoder."""
    states = {"encoder": model.encoder, "guide": guide}
    stays = isinstance(guide, TreeState)  # while the encoder moves

    def described(trace: FitTrace | None) -> Part:
        parts = {name: dict(one.state_dict()) for name, one in states.items()}
        return parts | {"trace": None if trace is None else tuple(trace)}

    def restored(left: Part) -> FitTrace | None:
        for name, one in states.items():
            one.load_state_dict(left[name], assign=True)  # dtypes included
            one.to(rows.y.device)
        guide.forget_start()
        return None if left["trace"] is None else FitTrace(*left["trace"])

    def settled() -> None:
        settle(task, guide, model.design(z), rows, rough=stays)

    def trained() -> FitTrace:
        return train_encoder(task, model, guide, rows, reference.recipe)

    with stage("first weights", total=1):
        part(task.checkpoint, "first weights", settled, described, restored)
    with torch.no_grad():
        before = as_kept(model.encoder(rows.x))
    with stage("encoder", total=1):
        trace = part(task.checkpoint, "encoder of changes", trained, described, restored)
    z = moved_along(model, rows, before, z)
    design = model.design(z)
    with stage("last weights", total=1):
        return settle(task, guide, design, rows, last=True), design, trace


@torch.no_grad()
def moved_along(model: TreeModel, rows: StandardRows, before: Tensor, z: Tensor) -> Tensor:
    """Honest latents (N, K) moved as an encoder's own have, which are standardised anew.

    ``before`` are the encoder's latents as they were when ``z`` went with them.
    """
    rows.holding.agree(model.encoder)
    after = model.encoder(rows.x)
    spread = after.std(0)
    spread = torch.where(spread > 0, spread, 1.0)
    model.encoder.set_output(after.mean(0), torch.diag(1 / spread))
    return align(before, as_kept(model.encoder(rows.x)), z)


def train_encoder(
    task: Task, model: TreeModel, guide: Guide, rows: StandardRows, recipe: Recipe
) -> FitTrace:
    """Training of the encoder, in closed form where it has one, else by SVI.

    A guide that is exact along the tree stays as it is meanwhile.
    """
    data, steps = rows.prepared(model.encoder), task.options.sparse_steps
    if isinstance(guide, TreeState) and model.basis is None and has_closed_form(model, data):
        decay = _ENCODER_LR_SHARE * recipe.decay * recipe.lr * SVI_STEPS
        return alternate(model, guide, data, steps, part=_PART, decay=decay, moves_weights=False)
    schedule = Schedule(
        steps=steps,
        batch_size=min(task.options.batch_size, len(data)),
        encoder_lr=_ENCODER_LR_SHARE * recipe.lr,
        guide_lr=_ENCODER_LR_SHARE * GUIDE_LR,
        encoder_decay=recipe.decay,
    )
    if isinstance(guide, TreeState) and model.likelihood.exact:
        return follow(model, guide, data, schedule, task.generator, moves_weights=False)
    return train(model, guide, data, schedule, task.generator)


def settle(
    task: Task,
    guide: Guide,
    design: Tensor,
    rows: StandardRows,
    *,
    rough: bool = False,
    last: bool = False,
) -> Statistics:
    """Moves the guide to its optimum for a design (N, W); returns the rows' statistics.

    The ``last`` time it stays there, so it warns if it does not come to rest. ``rough``: near
    to the optimum, as it will move again.
    """
    sandwich = task.options.sandwich
    if sandwich is None:
        sandwich = not isinstance(task.model.encoder, LinearEncoder)
    return condition(
        guide,
        rows.with_design(design),
        sandwich=sandwich and task.model.encoder.trainable,
        rough=rough,
        names=task.names if last else None,
    )


def make_guide(
    kind: str | type[Guide],
    head: Head | TreeModel,
    rows: StandardRows,
    options: FitOptions,
) -> Guide:
    """The guide a user named, for a head or a built model and its rows, on their device."""
    nodes, device = rows.nodes(head.tree.num_nodes), rows.y.device
    if kind == "tree":
        return TreeGuide(head, nodes, options.mixture_components).to(device)
    if kind == "mean_field":
        return MeanFieldGuide(head, nodes).to(device)
    if isinstance(kind, type) and issubclass(kind, Guide):
        return kind(head, nodes).to(device)
    shown = repr(kind)
    if isinstance(kind, Guide):
        shown = f"<a {type(kind).__name__}>"
    raise DataError(
        f"guide={shown} is not known: use 'tree', 'mean_field' or a Guide class, not an object"
    )
