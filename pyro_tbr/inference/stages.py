"""The stages of a fit in order, for rows in the units of training."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_tbr.errors import DataError, TrainingError
from pyro_tbr.heads.condition import fit_weights
from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.heads.priors import GaussianPrior, HorseshoePrior
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.inference.encoder.cross_fit import (
    align,
    honest_latents,
    is_trained,
    optimism,
    stratified_folds,
)
from pyro_tbr.inference.encoder.dense_stage import DenseFit, DenseStage, StandardRows
from pyro_tbr.inference.encoder.training import GUIDE_LR, FitTrace, Schedule, train
from pyro_tbr.inference.options import FitOptions
from pyro_tbr.inference.rotation.arranged import arranged, widened
from pyro_tbr.inference.rotation.choice import RotationResult, rotate_to_sparsity
from pyro_tbr.inference.rotation.finals import decided, without_learnt_spike
from pyro_tbr.inference.rotation.search import Candidates, expand_basis, rotation_problem
from pyro_tbr.models import LinearEncoder, TreeModel
from pyro_tbr.posterior import FitReport

# Below this many rows nothing is held out: the choice would be noise.
_LEAST_ROWS_TO_HOLD_OUT = 40
# Directions of the latents with less than this share of the largest variance do not exist.
_LEAST_VARIANCE_SHARE = 1e-7
SEARCH_STEPS = 1500  # of Adam in the rotation search, over which its penalty sharpens
SWEEPS = 60  # of the weights' posterior; it has settled long before, this bounds one that does not
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
    """

    model: TreeModel
    guide_kind: str | type[Guide]
    options: FitOptions
    generator: torch.Generator
    bar: tqdm

    def run(self, rows: StandardRows) -> Fitted:
        """Dense stage, honest latents, rotation, sparse stage."""
        stage = DenseStage(self.model, self.options, self.generator, self.bar)
        model = copy.deepcopy(self.model)
        self.bar.set_description("dense stage")
        if not model.encoder.trainable:
            dense = stage.fit(rows, stage.recipes(len(rows))[0])
            z = model.encoder(rows.x)
            root, deltas = dense.guide.node_moments().mean[0], dense.guide.delta_moments().mean
            guide, stats = self._sparse(model, z, rows, root, deltas, sparse=False)
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
        guide, stats = self._sparse(model, z, rows, wide.root, wide.deltas)
        if self.options.sparse_steps and is_trained(reference):
            z, _ = self.train_encoder(model, guide, rows, z, reference)
            stats = self.settle(guide, model.design(z), rows)
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
                f"the encoder gives all {len(own)} rows the same latents: its training has run "
                "away; lower options.encoder_lr, or look for outliers and scale the data"
            )
        whiten = axes[:, keep] / variance[keep].sqrt()
        rank, latent_dim = int(keep.sum()), own.shape[1]
        guide, stats = self._dense_weights((honest - centre) @ whiten, rows)
        problem = rotation_problem(
            tree,
            stats,
            guide.noise_precision(),
            guide.node_moments().mean[0],
            guide.delta_moments().mean,
            rank,
            len(rows),
        )
        with torch.enable_grad():
            found = rotate_to_sparsity(problem, self.options.restarts, SEARCH_STEPS, self.generator)
        # Mean field has bad optima, and a horseshoe's update takes as long as all the search.
        quick = self.guide_kind == "tree" and not isinstance(self.model.prior, HorseshoePrior)
        if rank == latent_dim and quick:
            judge = without_learnt_spike(self.model)
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
        self, model: TreeModel, stats: Statistics, rows: StandardRows, candidate: Candidates
    ) -> float:
        """ELBO of a candidate's latents, its weights at their optimum.

        Args:
            model: Whose prior judges; its encoder is not used.
            stats: Of the white latents; binary outcomes as expanded at the dense weights.
            rows: The rows; untouched, but for where they are.
            candidate: One, with the estimates to start from.
        """
        options = replace(self.options, mixture_components=_COMPONENTS_TO_JUDGE)
        nodes = rows.nodes(self.model.tree.num_nodes)
        guide = make_guide(self.guide_kind, model, nodes, options, coupled=False)
        guide.to(rows.y.device)
        guide.start(candidate.root.to(rows.y), candidate.deltas.to(rows.y))
        width = stats.gram.shape[-1]
        stats = stats.transform(expand_basis(candidate.basis, candidate.offset, width))
        guide.update(stats, sweeps=_SWEEPS_TO_JUDGE)
        return guide.elbo(stats).item()

    def _dense_weights(self, z: Tensor, rows: StandardRows) -> tuple[TreeGuide, Statistics]:
        """Posterior of dense weights of given latents (N, rank)."""
        tree, rank = self.model.tree, z.shape[1]
        dense = TreeModel(
            tree,
            rank,
            encoder="identity",
            prior=GaussianPrior(),
            likelihood=self.model.likelihood_spec,
            intercept=self.model.intercept,
        ).build(rank, rows.y.shape[1])
        dense.likelihood = self.model.likelihood  # in the units of training
        dense = dense.to(device=rows.y.device, dtype=rows.y.dtype)
        guide = TreeGuide(dense, rows.nodes(tree.num_nodes)).to(rows.y.device)
        return guide, self.settle(guide, dense.design(z), rows)

    def _sparse(
        self,
        model: TreeModel,
        z: Tensor,
        rows: StandardRows,
        root: Tensor,
        deltas: Tensor,
        *,
        sparse: bool = True,
    ) -> tuple[Guide, Statistics]:
        """The user's guide at its optimum for given latents (N, K)."""
        guide = make_guide(self.guide_kind, model, rows.nodes(model.tree.num_nodes), self.options)
        guide.to(rows.y.device)
        guide.start(root.to(rows.y), deltas.to(rows.y), sparse=sparse)
        return guide, self.settle(guide, model.design(z), rows)

    def settle(self, guide: Guide, design: Tensor, rows: StandardRows) -> Statistics:
        """The guide at its optimum for a design (N, W), and the rows' statistics."""
        sandwich = self.options.sandwich
        if sandwich is None:
            sandwich = not isinstance(self.model.encoder, LinearEncoder)
        return fit_weights(
            guide,
            design,
            rows.y,
            rows.env_index,
            sweeps=SWEEPS,
            sandwich=sandwich and self.model.encoder.trainable,
            groups=rows.groups,
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
        data = rows.prepared(model)
        trace = train(model, guide, data, schedule, self.generator, progress=self.bar)
        with torch.no_grad():
            after = model.encoder(rows.x)
            spread = after.std(0)
            spread = torch.where(spread > 0, spread, 1.0)
            model.encoder.set_output(after.mean(0), torch.diag(1 / spread))
            return align(before, model.encoder(rows.x).double(), z), trace


def make_guide(
    kind: str | type[Guide],
    model: TreeModel,
    nodes: Tensor,
    options: FitOptions,
    *,
    coupled: bool = True,
) -> Guide:
    """The guide a user named, for a built model and its nodes with rows (V,)."""
    if kind == "tree":
        return TreeGuide(model, nodes, options.mixture_components, coupled=coupled)
    if kind == "mean_field":
        return MeanFieldGuide(model, nodes)
    if isinstance(kind, type) and issubclass(kind, Guide):
        return kind(model, nodes)
    raise DataError(f"guide={kind!r} is not known: use 'tree', 'mean_field' or a Guide class")


def trace_table(trace: FitTrace | None, stage: str) -> pd.DataFrame:
    """Steps of an encoder's training, as in ``Posterior.history``."""
    columns = ["stage", "step", "loss", "held_out"]
    if trace is None:
        return pd.DataFrame(columns=columns)
    rows = zip(trace.steps, trace.loss, trace.held_out, strict=True)
    return pd.DataFrame([(stage, *row) for row in rows], columns=columns)
