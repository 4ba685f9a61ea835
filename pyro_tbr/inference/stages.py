"""The stages of a fit in order, for rows in the units of training."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.errors import DataError, TrainingError
from pyro_tbr.heads import (
    GaussianPrior,
    Guide,
    Head,
    MeanFieldGuide,
    Statistics,
    TreeGuide,
    condition,
)
from pyro_tbr.heads.tree_state import TreeState
from pyro_tbr.inference.encoder.alternating import SVI_STEPS, alternate, has_closed_form
from pyro_tbr.inference.encoder.cross_fit import (
    align,
    honest_latents,
    is_trained,
    optimism,
    stratified_folds,
)
from pyro_tbr.inference.encoder.dense_stage import DenseFit, DenseStage
from pyro_tbr.inference.encoder.following import follow
from pyro_tbr.inference.encoder.rows import PreparedRows, StandardRows
from pyro_tbr.inference.encoder.training import GUIDE_LR, FitTrace, Schedule, trace_table, train
from pyro_tbr.inference.options import FitOptions
from pyro_tbr.inference.rotation.basis import estimated
from pyro_tbr.inference.rotation.choice import (
    RotationResult,
    arranged,
    decided,
    rotate_to_sparsity,
    widened,
)
from pyro_tbr.inference.rotation.judging import basis_elbo, judging_head
from pyro_tbr.inference.rotation.needed import needed_axes
from pyro_tbr.inference.rotation.reference import reference_point
from pyro_tbr.inference.rotation.search import expand_basis, rotation_problem
from pyro_tbr.models import LinearEncoder, TreeModel
from pyro_tbr.posterior import FitReport
from pyro_tbr.progress import detail, stage

# Below this many rows nothing is held out: the choice would be noise.
_LEAST_ROWS_TO_HOLD_OUT = 40
# Directions of the latents with less than this share of the largest variance do not exist.
_LEAST_VARIANCE_SHARE = 1e-7
SEARCH_STEPS = 1500  # of Adam in the rotation search, over which its penalty sharpens
# Parts of the rotation, and about which share of its time each takes.
_ROTATION = {
    "dense weights": 5, "search": 45, "directions": 3, "climb": 27, "weights of bases": 6,
    "reference points": 4, "bases that are close": 10,
}  # fmt: skip
_PART = 0.1  # of the way to its optimum that a step of a linear encoder in closed form goes
_ENCODER_LR_SHARE = 0.2  # of the dense stage's peak rates, in the sparse stage: it is nearly there


class Fitted(NamedTuple):
    """What the stages leave: a guide at its optimum, statistics and rows in the final latents."""

    model: TreeModel
    guide: Guide
    stats: Statistics
    design: Tensor
    report: FitReport


@dataclass(frozen=True)
class Stages:
    """Runs the stages for a built model in the units of training, which is not changed."""

    model: TreeModel
    guide_kind: str | type[Guide]
    options: FitOptions
    generator: torch.Generator
    outcome_names: tuple[Hashable, ...]

    def run(self, rows: StandardRows) -> Fitted:
        """Dense stage, honest latents, rotation, sparse stage."""
        maker = DenseStage(self.model, self.options, self.generator)
        model = copy.deepcopy(self.model)
        if not model.encoder.trainable:
            with stage("dense stage", total=1):
                dense = maker.fit(rows, maker.recipes(len(rows))[0])
            root, deltas = dense.guide.node_moments().mean[0], dense.guide.delta_moments().mean
            with stage("reference point"):
                offset = self._reference_point(dense)
            model.encoder.set_output(offset, torch.eye(len(offset)).to(offset))
            if model.intercept:  # seen from the reference point
                root[-1] += torch.einsum("k,kq->q", offset.to(root), root[:-1])
                deltas[:, -1] += torch.einsum("k,akq->aq", offset.to(root), deltas[:, :-1])
            guide = make_guide(self.guide_kind, model, rows, self.options)
            guide.start(root.to(rows.y), deltas.to(rows.y), sparse=False)
            design = model.design(model.encoder(rows.x))
            with stage("sparse stage", total=1):
                stats = self.settle(guide, design, rows, last=True)
            return Fitted(model, guide, stats, design, FitReport(rank=model.latent_dim))
        with stage("dense stage", plan={"choice": 60, "all rows": 40}):
            reference, measured, choosing = self._dense(maker, rows)
        with stage("honest latents", total=1):
            honest = honest_latents(maker, reference, rows, self.options.cross_fit, measured)
        with stage("rotation", plan=_ROTATION):
            z, found = self._rotate(reference, honest.z, rows)
        model.encoder = reference.model.encoder
        wide = widened(found, model.latent_dim)
        guide = make_guide(self.guide_kind, model, rows, self.options)
        guide.start(wide.root.to(rows.y), wide.deltas.to(rows.y))
        stats, design, sparse = self.sparse_stage(model, guide, rows, z, reference)
        traces = {"choosing": choosing, "dense": reference.trace, "sparse": sparse}
        report = FitReport(
            rank=found.basis.shape[0],
            history=trace_table(traces),
            decay=reference.recipe.decay,
            num_components=reference.recipe.num_components,
            folds=honest.folds,
            optimism=honest.optimism,
            evidence=found.evidence,
            basis=found.basis,
            alternatives=found.others.basis,
            alternative_evidence=found.other_evidence,
        )
        return Fitted(model, guide, stats, design, report)

    @torch.no_grad()
    def _reference_point(self, dense: DenseFit) -> Tensor:
        """Where the intercept of known latents is judged, (K,): where it changes least.

        An arc that changes a latent's effect changes the intercept too, unless that is measured
        where the effect is nothing. The mean of the rows is as good as any other place, and off by
        its error, which many rows tell from zero.
        """
        head, stats = dense.model.head, dense.stats.flattened()
        if not dense.model.intercept:
            return torch.zeros(head.num_latents).to(stats.cross)
        scale = dense.guide.site_scale(stats.nodes).unsqueeze(-1)
        precision = scale[..., None] * stats.gram.expand(*stats.cross.shape, -1)
        estimates = estimated(head.tree, stats.nodes, precision, scale * stats.cross)
        # Means of environments scatter, and that of all rows with them.
        return reference_point(estimates, len(stats.nodes) ** -0.5)

    def _dense(
        self, maker: DenseStage, rows: StandardRows
    ) -> tuple[DenseFit, tuple[float, float], FitTrace | None]:
        """The reference encoder, fitted to all rows, the optimism of its kind, how that went."""
        if len(rows) < _LEAST_ROWS_TO_HOLD_OUT:
            with stage("all rows", total=1):
                return maker.fit(rows, maker.recipes(len(rows))[0]), (0.0, 0.0), None
        num_folds = max(2, round(1 / self.options.validation_share))
        fold = stratified_folds(rows.env_index, num_folds, self.generator, rows.groups)
        fold = fold.to(rows.y.device)
        training, held_out = rows.select(fold != 0), rows.select(fold == 0)
        with stage("choice", total=1):
            chosen = maker.choose(training, held_out)
        measured = optimism(chosen, training, held_out)
        detail("rows held out fit %+.1f %% worse than rows of training", 100 * measured[0])
        if rows.groups is not None and training.groups is not None:
            rows.groups.correlation = training.groups.correlation  # training weighs rows by it
        with stage("all rows", total=1):
            if isinstance(chosen.model.encoder, LinearEncoder):
                # Its closed form starts afresh on all rows; then as many steps as were good.
                steps = 0 if chosen.trace is None else chosen.trace.best_step
                recipe = chosen.recipe._replace(steps=steps)
                return maker.fit(rows, recipe), measured, chosen.trace
            if maker.follows and chosen.trace is not None:  # afresh too, to the step that was best
                recipe = chosen.recipe._replace(stop=chosen.trace.best_step)
                return maker.fit(rows, recipe), measured, chosen.trace
            return maker.fit(rows, chosen.recipe, start=chosen), measured, chosen.trace

    @torch.no_grad()
    def _rotate(
        self, reference: DenseFit, honest: Tensor, rows: StandardRows
    ) -> tuple[Tensor, RotationResult]:
        """Turns the reference encoder's output to the sparse basis.

        Returns:
            Honest latents in the new basis (N, K), and the rotation of those that exist.
        """
        tree, own = reference.model.tree, reference.latents(rows.x)
        centre = own.mean(0)
        variance, axes = torch.linalg.eigh((own - centre).T @ (own - centre) / len(own))
        keep = variance > _LEAST_VARIANCE_SHARE * variance.max()
        if not keep.any():
            raise TrainingError(
                f"the encoder gives all {len(own)} rows the same latents: a network of your own is "
                "constant, or its training has run away; lower options.encoder_lr, or look for "
                "outliers and scale the data"
            )
        white, nodes = axes[:, keep] / variance[keep].sqrt(), rows.nodes(tree.num_nodes)
        with stage("dense weights", total=1):
            guide, stats = self._dense_weights((honest - centre) @ white, rows)
            weights = guide.node_moments().mean[stats.nodes]
            needed = needed_axes(guide.head, nodes, stats, weights)
            if needed.shape[1] < needed.shape[0]:
                detail("%d of %d latents are needed", *needed.shape[::-1])
                white = white @ needed.to(white)
                guide, stats = self._dense_weights((honest - centre) @ white, rows)
        rank, latent_dim = white.shape[1], own.shape[1]
        problem = rotation_problem(
            tree,
            stats,
            guide.site_scale(stats.nodes),
            guide.node_moments().mean[0],
            guide.delta_moments().mean,
            rank,
            len(rows),
        )
        with torch.enable_grad():
            found = rotate_to_sparsity(problem, self.options.restarts, SEARCH_STEPS, self.generator)
        # Mean field has bad optima, and where scales are held jointly with the weights an update
        # takes as long as all the search.
        head = self.model.head
        if rank < latent_dim:
            head = head.with_prior(self.model.prior_spec, rank)
        judge = judging_head(head)
        if self.guide_kind == "tree" and not judge.prior.tree_factor().joint:
            with stage("bases that are close", total=1):
                found = decided(found, lambda one: basis_elbo(judge, nodes, stats, one))
        turned = stats.transform(expand_basis(found.basis, found.offset, stats.gram.shape[-1]))
        found = arranged(tree, found, turned)
        linear = own.new_zeros(latent_dim, latent_dim)
        linear[:, :rank] = white @ found.basis
        offset = own.new_zeros(latent_dim)
        offset[:rank] = found.offset
        reference.model.encoder.set_output(centre, linear, offset)
        return (honest - centre) @ linear - offset, found

    def _dense_weights(self, z: Tensor, rows: StandardRows) -> tuple[TreeGuide, Statistics]:
        """Weights of white latents (N, r) that may change on every arc; statistics flattened."""
        head = self.model.head.with_prior(GaussianPrior(), z.shape[1])
        guide = TreeGuide(head, rows.nodes(head.tree.num_nodes)).to(rows.y.device)
        return guide, self.settle(guide, self.model.design(z), rows).flattened()

    def settle(
        self,
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
        sandwich = self.options.sandwich
        if sandwich is None:
            sandwich = not isinstance(self.model.encoder, LinearEncoder)
        return condition(
            guide,
            rows.with_design(design),
            sandwich=sandwich and self.model.encoder.trainable,
            rough=rough,
            names=(self.model.weight_names, self.outcome_names) if last else None,
        )

    def sparse_stage(
        self, model: TreeModel, guide: Guide, rows: StandardRows, z: Tensor, reference: DenseFit
    ) -> tuple[Statistics, Tensor, FitTrace | None]:
        """The guide at its optimum under the sparse prior, before and after SVI of the encoder.

        Args:
            model: Its encoder is trained in place.
            guide: Moved from where it stands; by SVI too, if it has parameters of its own.
            rows: The rows.
            z: Their honest latents, (N, K); they move as the encoder's own latents move.
            reference: How the encoder was trained in the dense stage.

        Returns:
            The rows' statistics; their design (N, W); what SVI did, ``None`` where nothing is
            trained.
        """
        if not (self.options.sparse_steps and is_trained(reference)):
            design = model.design(z)
            with stage("sparse stage", total=1):
                return self.settle(guide, design, rows, last=True), design, None
        with stage("sparse stage", plan={"first weights": 40, "encoder": 25, "last weights": 35}):
            return self._trained(model, guide, rows, z, reference)

    def _trained(
        self, model: TreeModel, guide: Guide, rows: StandardRows, z: Tensor, reference: DenseFit
    ) -> tuple[Statistics, Tensor, FitTrace]:
        """The sparse stage with training of the encoder."""
        with stage("first weights", total=1):
            stays = isinstance(guide, TreeState)  # while the encoder moves
            self.settle(guide, model.design(z), rows, rough=stays)
        with torch.no_grad():
            before = model.encoder(rows.x).double()
        data = rows.prepared(model.encoder)
        with stage("encoder", total=1):
            trace = self._encoder(model, guide, data, reference)
        with torch.no_grad():
            after = model.encoder(rows.x)
            spread = after.std(0)
            spread = torch.where(spread > 0, spread, 1.0)
            model.encoder.set_output(after.mean(0), torch.diag(1 / spread))
            z = align(before, model.encoder(rows.x).double(), z)
        design = model.design(z)
        with stage("last weights", total=1):
            return self.settle(guide, design, rows, last=True), design, trace

    def _encoder(
        self, model: TreeModel, guide: Guide, data: PreparedRows, reference: DenseFit
    ) -> FitTrace:
        """Training of the encoder, in closed form where it has one, else by SVI.

        A guide that is exact along the tree stays as it is meanwhile.
        """
        steps = self.options.sparse_steps
        if isinstance(guide, TreeState) and has_closed_form(model, data):
            part, decay = _PART, reference.recipe.decay * reference.recipe.lr * SVI_STEPS
            return alternate(
                model, guide, data, steps, part=part, decay=_ENCODER_LR_SHARE * decay,
                moves_weights=False,
            )  # fmt: skip
        schedule = Schedule(
            steps=steps,
            batch_size=min(self.options.batch_size, len(data)),
            encoder_lr=_ENCODER_LR_SHARE * reference.recipe.lr,
            guide_lr=_ENCODER_LR_SHARE * GUIDE_LR,
            encoder_decay=reference.recipe.decay,
        )
        if isinstance(guide, TreeState) and model.likelihood.exact:
            return follow(model, guide, data, schedule, self.generator, moves_weights=False)
        return train(model, guide, data, schedule, self.generator)


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
