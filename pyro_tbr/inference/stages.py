"""The stages of a fit in order, for rows in the units of training."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

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
from pyro_tbr.inference.encoder.cross_fit import (
    align,
    honest_latents,
    is_trained,
    optimism,
    stratified_folds,
)
from pyro_tbr.inference.encoder.dense_stage import DenseFit, DenseStage
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.encoder.training import GUIDE_LR, FitTrace, Schedule, train
from pyro_tbr.inference.options import FitOptions
from pyro_tbr.inference.rotation.arranged import arranged, widened
from pyro_tbr.inference.rotation.choice import RotationResult, rotate_to_sparsity
from pyro_tbr.inference.rotation.finals import decided
from pyro_tbr.inference.rotation.reference import reference_point
from pyro_tbr.inference.rotation.search import Candidates, expand_basis, rotation_problem
from pyro_tbr.models import LinearEncoder, TreeModel
from pyro_tbr.posterior import FitReport

# Below this many rows nothing is held out: the choice would be noise.
_LEAST_ROWS_TO_HOLD_OUT = 40
# Directions of the latents with less than this share of the largest variance do not exist.
_LEAST_VARIANCE_SHARE = 1e-7
SEARCH_STEPS = 1500  # of Adam in the rotation search, over which its penalty sharpens
_LEAST_PRECISION = 1e-2  # of a weight before any row, where estimates of nodes are asked for
_COMPONENTS_TO_JUDGE = 8  # of a message, where ELBOs are only compared
_SWEEPS_TO_JUDGE = 4
_ENCODER_LR_SHARE = 0.2  # of the dense stage's peak rates, in the sparse stage: it is nearly there


class Fitted(NamedTuple):
    """What the stages leave.

    Attributes:
        model: The model, its encoder trained, rotated and standardised.
        guide: The guide at its optimum.
        stats: Statistics of the rows in the final latents.
        report: What was done and found.
    """

    model: TreeModel
    guide: Guide
    stats: Statistics
    report: FitReport


@dataclass(frozen=True)
class Stages:
    """Runs the stages.

    Attributes:
        model: A built model in the units of training; not changed.
        guide_kind: What the user asked for.
        options: Options of the fit.
        generator: Randomness of the fit.
        bar: Progress.
        outcome_names: For warnings.
    """

    model: TreeModel
    guide_kind: str | type[Guide]
    options: FitOptions
    generator: torch.Generator
    bar: tqdm
    outcome_names: tuple[Hashable, ...]

    def run(self, rows: StandardRows) -> Fitted:
        """Dense stage, honest latents, rotation, sparse stage."""
        stage = DenseStage(self.model, self.options, self.generator, self.bar)
        model = copy.deepcopy(self.model)
        self.bar.set_description("dense stage")
        if not model.encoder.trainable:
            dense = stage.fit(rows, stage.recipes(len(rows))[0])
            root, deltas = dense.guide.node_moments().mean[0], dense.guide.delta_moments().mean
            offset = self._reference_point(dense)
            model.encoder.set_output(offset, torch.eye(len(offset)).to(offset))
            if model.intercept:  # seen from the reference point
                root[-1] += torch.einsum("k,kq->q", offset.to(root), root[:-1])
                deltas[:, -1] += torch.einsum("k,akq->aq", offset.to(root), deltas[:, :-1])
            z = model.encoder(rows.x)
            guide, stats = self._sparse(model, z, rows, root, deltas, sparse=False, last=True)
            return Fitted(model, guide, stats, FitReport(rank=model.latent_dim))
        reference, measured = self._dense(stage, rows)
        self.bar.set_description("honest latents")
        honest = honest_latents(
            stage, reference, rows, folds=self.options.cross_fit, measured=measured
        )
        self.bar.set_description("rotation")
        z, found = self._rotate(reference, honest.z, rows)
        model.encoder = reference.model.encoder
        self.bar.set_description("sparse stage")
        wide = widened(found, model.latent_dim)
        training = bool(self.options.sparse_steps) and is_trained(reference)
        guide, stats = self._sparse(model, z, rows, wide.root, wide.deltas, last=not training)
        if training:
            z, _ = self.train_encoder(model, guide, rows, z, reference)
            stats = self.settle(guide, model.design(z), rows, last=True)
        report = FitReport(
            rank=found.basis.shape[0],
            history=trace_table(reference.trace, "dense"),
            decay=reference.recipe.decay,
            num_components=reference.recipe.num_components,
            folds=honest.folds,
            optimism=honest.optimism,
            evidence=found.evidence,
            basis=found.basis,
            alternatives=found.others.basis,
            alternative_evidence=found.other_evidence,
        )
        return Fitted(model, guide, stats, report)

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
        scale = dense.guide.site_scale()[:, None]
        precision = scale[..., None] * stats.gram.expand(*stats.cross.shape, -1)
        ridge = _LEAST_PRECISION * torch.eye(head.num_weights).to(precision)
        cov = torch.linalg.inv(precision + ridge)
        mean = (cov @ (scale * stats.cross).unsqueeze(-1)).squeeze(-1)
        # Means of environments scatter, and that of all rows with them.
        spread = len(stats.nodes) ** -0.5
        return reference_point(mean, cov, stats.nodes, head.tree, spread)

    def _dense(self, stage: DenseStage, rows: StandardRows) -> tuple[DenseFit, tuple[float, float]]:
        """The reference encoder, fitted to all rows, and the optimism of its kind."""
        if len(rows) < _LEAST_ROWS_TO_HOLD_OUT:
            return stage.fit(rows, stage.recipes(len(rows))[0]), (0.0, 0.0)
        num_folds = max(2, round(1 / self.options.validation_share))
        fold = stratified_folds(rows.env_index, num_folds, self.generator, rows.groups)
        fold = fold.to(rows.y.device)
        training = rows.select((fold != 0).nonzero()[:, 0])
        held_out = rows.select((fold == 0).nonzero()[:, 0])
        chosen = stage.choose(training, held_out)
        measured = optimism(chosen, training, held_out)
        if rows.groups is not None and training.groups is not None:
            rows.groups.correlation = training.groups.correlation  # training weighs rows by it
        if isinstance(chosen.model.encoder, LinearEncoder):
            # Its closed form starts afresh on all rows; then as many steps as were good.
            steps = 0 if chosen.trace is None else chosen.trace.best_step
            return stage.fit(rows, chosen.recipe._replace(steps=steps)), measured
        return stage.fit(rows, chosen.recipe, start=chosen), measured

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
        whiten = axes[:, keep] / variance[keep].sqrt()
        rank, latent_dim = int(keep.sum()), own.shape[1]
        guide, stats = self._dense_weights((honest - centre) @ whiten, rows)
        stats = stats.flattened()
        problem = rotation_problem(
            tree,
            stats,
            guide.site_scale(),
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
        judge = Head(tree, head.prior.without_learnt_spike(), head.likelihood)
        quick = self.guide_kind == "tree" and not judge.prior.tree_factor().joint
        if rank == latent_dim and quick:
            found = decided(found, lambda one: self._elbo(judge, stats, rows, one))
        turned = stats.transform(expand_basis(found.basis, found.offset, stats.gram.shape[-1]))
        found = arranged(tree, found, turned)
        linear = own.new_zeros(latent_dim, latent_dim)
        linear[:, :rank] = whiten @ found.basis
        offset = own.new_zeros(latent_dim)
        offset[:rank] = found.offset
        reference.model.encoder.set_output(centre, linear, offset)
        return (honest - centre) @ linear - offset, found

    def _elbo(
        self, head: Head, stats: Statistics, rows: StandardRows, candidate: Candidates
    ) -> float:
        """ELBO of a candidate's latents, its weights at their optimum.

        Args:
            head: Whose prior judges.
            stats: Of the white latents; sites of outcomes that are not normal at the dense weights.
            rows: The rows; untouched, but for where they are.
            candidate: One, with the estimates to start from.
        """
        options = replace(self.options, mixture_components=_COMPONENTS_TO_JUDGE)
        nodes = rows.nodes(self.model.tree.num_nodes)
        guide = make_guide(self.guide_kind, head, nodes, options, coupled=False)
        guide.to(rows.y.device)
        guide.start(candidate.root.to(rows.y), candidate.deltas.to(rows.y))
        width = stats.gram.shape[-1]
        stats = stats.transform(expand_basis(candidate.basis, candidate.offset, width))
        guide.update(stats, sweeps=_SWEEPS_TO_JUDGE)
        return guide.elbo(stats).item()

    def _dense_weights(self, z: Tensor, rows: StandardRows) -> tuple[TreeGuide, Statistics]:
        """Posterior of dense weights of given latents (N, rank)."""
        dense = self.model.head.with_prior(GaussianPrior(), z.shape[1])
        guide = TreeGuide(dense, rows.nodes(dense.tree.num_nodes)).to(rows.y.device)
        return guide, self.settle(guide, self.model.design(z), rows)

    def _sparse(
        self,
        model: TreeModel,
        z: Tensor,
        rows: StandardRows,
        root: Tensor,
        deltas: Tensor,
        *,
        sparse: bool = True,
        last: bool = False,
    ) -> tuple[Guide, Statistics]:
        """The user's guide at its optimum for given latents (N, K)."""
        guide = make_guide(self.guide_kind, model, rows.nodes(model.tree.num_nodes), self.options)
        guide.to(rows.y.device)
        guide.start(root.to(rows.y), deltas.to(rows.y), sparse=sparse)
        return guide, self.settle(guide, model.design(z), rows, last=last)

    def settle(
        self, guide: Guide, design: Tensor, rows: StandardRows, *, last: bool = False
    ) -> Statistics:
        """The guide at its optimum for a design (N, W), and the rows' statistics.

        Args:
            guide: Moved.
            design: Of the rows.
            rows: The rows.
            last: It stays there: warn if it does not come to rest.
        """
        sandwich = self.options.sandwich
        if sandwich is None:
            sandwich = not isinstance(self.model.encoder, LinearEncoder)
        return condition(
            guide,
            rows.with_design(design),
            sandwich=sandwich and self.model.encoder.trainable,
            names=(self.model.weight_names, self.outcome_names) if last else None,
        )

    def train_encoder(
        self, model: TreeModel, guide: Guide, rows: StandardRows, z: Tensor, reference: DenseFit
    ) -> tuple[Tensor, FitTrace]:
        """SVI of the encoder under the sparse prior; a guide with parameters of its own moves too.

        Returns:
            The honest latents (N, K), moved as the encoder's own latents moved; what was done.
        """
        with torch.no_grad():
            before = model.encoder(rows.x).double()
        lr = _ENCODER_LR_SHARE * reference.recipe.lr
        schedule = Schedule(
            steps=self.options.sparse_steps,
            batch_size=min(self.options.batch_size, len(rows)),
            encoder_lr=lr,
            guide_lr=_ENCODER_LR_SHARE * GUIDE_LR,
            encoder_decay=reference.recipe.decay,
        )
        data = rows.prepared(model.encoder)
        trace = train(model, guide, data, schedule, self.generator, progress=self.bar)
        with torch.no_grad():
            after = model.encoder(rows.x)
            spread = after.std(0)
            spread = torch.where(spread > 0, spread, 1.0)
            model.encoder.set_output(after.mean(0), torch.diag(1 / spread))
            return align(before, model.encoder(rows.x).double(), z), trace


def make_guide(
    kind: str | type[Guide],
    head: Head | TreeModel,
    nodes: Tensor,
    options: FitOptions,
    *,
    coupled: bool = True,
) -> Guide:
    """The guide a user named, for a head or a built model and its nodes with rows (V,)."""
    if kind == "tree":
        return TreeGuide(head, nodes, options.mixture_components, coupled=coupled)
    if kind == "mean_field":
        return MeanFieldGuide(head, nodes)
    if isinstance(kind, type) and issubclass(kind, Guide):
        return kind(head, nodes)
    raise DataError(f"guide={kind!r} is not known: use 'tree', 'mean_field' or a Guide class")


def trace_table(trace: FitTrace | None, stage: str) -> pd.DataFrame:
    """Steps of an encoder's training, as in ``Posterior.history``."""
    columns = ["stage", "step", "loss", "held_out"]
    if trace is None:
        return pd.DataFrame(columns=columns)
    rows = zip(trace.steps, trace.loss, trace.held_out, strict=True)
    return pd.DataFrame([(stage, *row) for row in rows], columns=columns)
