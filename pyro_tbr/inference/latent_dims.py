"""How many latents span the outcomes: every number judged by dense weights, no full fit for any.

Any basis of the latents spans the same, so nothing is rotated and no change need be sparse: an
encoder of the most latents is fitted once (and once a fold), its latents are ordered by how much of
the outcomes hangs on them at the environments, and the first K of them are given weights that may
change on every arc (a normal prior along the tree, its scales learnt for each latent). Two things
are asked of each K: how probable held-out rows are, and the evidence of all rows whose latents come
from encoders that have not seen them. In-sample latents would flatter every further one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_tbr.heads import GaussianPrior, TreeGuide, condition
from pyro_tbr.heads.likelihoods.expectations import expectation
from pyro_tbr.heads.sites import row_moments
from pyro_tbr.inference.encoder.cross_fit import stratified_folds
from pyro_tbr.inference.encoder.dense_stage import DenseFit, DenseStage, Recipe
from pyro_tbr.inference.encoder.directions import leading_axes, spans_all
from pyro_tbr.inference.encoder.latents import align
from pyro_tbr.inference.encoder.rows import PreparedRows, StandardRows
from pyro_tbr.inference.options import FitOptions
from pyro_tbr.inference.paired import mean_and_error
from pyro_tbr.models import LinearEncoder, TreeModel
from pyro_tbr.posterior import LatentDimChoice
from pyro_tbr.progress import detail, stage

NUM_FOLDS = 4
_SWEEPS = 4  # of the weights of one number of latents, which are only compared
_LEAST_VARIANCE_SHARE = 1e-7  # directions of the latents with less than this do not exist
_MOST_EXPONENT = 600.0  # of a density relative to its geometric mean, so that it stays finite


@dataclass(frozen=True)
class Judge:
    """Scores numbers of latents for rows in the units of training.

    Attributes:
        model: Built with the largest number of latents; not changed.
        rows: The rows.
        options: Of the fit.
        generator: Of folds and encoders.
        num_folds: Folds of the rows, which keep groups together.
    """

    model: TreeModel
    rows: StandardRows
    options: FitOptions
    generator: torch.Generator
    num_folds: int = NUM_FOLDS

    def choose(self, dims: Sequence[int], patience: int | None = None) -> LatentDimChoice:
        """Scores of these numbers, in rising order, and the best.

        With ``patience`` the path ends where so many in a row have less evidence than the best.
        """
        fold = stratified_folds(
            self.rows.env_index, self.num_folds, self.generator, self.rows.groups
        ).to(self.rows.y.device)
        with stage("encoders", plan={"recipe": 10, "folds": 70, "all rows": 20}):
            spans, own = self._spans(fold)
        seen = ~torch.isnan(self.rows.y).all(-1)
        unit = None if self.rows.groups is None else self.rows.groups.index[seen]
        scores: list[Tensor] = []
        evidence: list[float] = []
        with stage("numbers", total=len(dims)):
            for number in dims:
                with stage(f"{number} of up to {max(dims)} latents", total=self.num_folds + 1):
                    each, total = self._judged(number, fold, spans, own)
                detail("%d latents: log evidence %.6g", number, total)
                scores.append(each[seen])
                evidence.append(total)
                waited = len(evidence) - 1 - evidence.index(max(evidence))
                if patience is not None and waited >= patience:
                    break
        table = _table(dims[: len(scores)], scores, evidence, unit)
        return LatentDimChoice(table, chosen(table), int(seen.sum()), self.num_folds)

    def _spans(self, fold: Tensor) -> tuple[list[Tensor], Tensor]:
        """Ordered latents of all rows by each fold's encoder, and by that of all rows, (N, K)."""
        rows, maker = self.rows, DenseStage(self.model, self.options, self.generator)
        with stage("recipe", total=1):
            recipe, first = self._recipe(maker, fold)
        spans = []
        with stage("folds", total=self.num_folds):
            for f in range(self.num_folds):
                inside = fold != f
                with stage(f"fold {f + 1} of {self.num_folds}", total=1):
                    if f or first is None:
                        spans.append(self._span(maker, recipe, inside))
                    else:
                        spans.append(_ordered(first.model, rows, inside))
        every = torch.ones_like(fold, dtype=torch.bool)
        with stage("all rows", total=1):
            return spans, self._span(maker, recipe, every, first)

    def _span(
        self, maker: DenseStage, recipe: Recipe, inside: Tensor, start: DenseFit | None = None
    ) -> Tensor:
        """Ordered latents of all rows by an encoder fitted to those inside, (N, K)."""
        rows = self.rows.select(inside)
        model = maker.fit(rows, recipe, start=start).model if recipe.steps else None
        return _ordered(maker.begun(rows, recipe) if model is None else model, self.rows, inside)

    def _recipe(self, maker: DenseStage, fold: Tensor) -> tuple[Recipe, DenseFit | None]:
        """How encoders are trained, and that of the first fold where it was trained to tell.

        A linear one stays at its closed form.
        """
        recipes = maker.recipes(len(self.rows))
        if isinstance(self.model.encoder, LinearEncoder):
            recipes = [recipe._replace(steps=0) for recipe in recipes]
            if len(recipes) == 1:
                return recipes[0], None
        training, held_out = self.rows.select(fold != 0), self.rows.select(fold == 0)
        best = maker.choose(training, held_out, recipes)
        linear = isinstance(self.model.encoder, LinearEncoder)
        return best.recipe, None if linear else best

    def _judged(
        self, number: int, fold: Tensor, spans: list[Tensor], own: Tensor
    ) -> tuple[Tensor, float]:
        """Log score of each row by weights that have not seen it, (N,), and the evidence."""
        score = torch.zeros(len(self.rows), dtype=torch.float64, device=own.device)
        honest, reference = torch.empty_like(own[:, :number]), own[:, :number]
        for f, span in enumerate(spans):
            inside, outside, z = fold != f, fold == f, span[:, :number]
            if not bool(outside.any()):
                continue
            guide, _ = self._weights(z[inside], self.rows.select(inside))
            score[outside] = self._log_scores(guide, z[outside], self.rows.select(outside))
            honest[outside] = align(z[inside], reference[inside], z[outside])
        guide, evidence = self._weights(honest, self.rows)
        return score, evidence

    def _weights(self, z: Tensor, rows: StandardRows) -> tuple[TreeGuide, float]:
        """Dense weights of these latents given the rows, and their log evidence."""
        head = self.model.head.apart().with_prior(GaussianPrior(), z.shape[1])
        guide = TreeGuide(head, rows.nodes(head.tree.num_nodes)).to(rows.y.device)
        design = rows.with_design(self._design(z))
        stats = condition(guide, design, sweeps=_SWEEPS)
        return guide, guide.elbo(stats).item()

    def _design(self, z: Tensor) -> Tensor:
        return self.model.design(z.to(self.model.encoder.output_map.dtype))

    @torch.no_grad()
    def _log_scores(self, guide: TreeGuide, z: Tensor, rows: StandardRows) -> Tensor:
        """Log predictive density of each row, outcomes taken one by one and summed, (N,)."""
        block = rows.with_design(self._design(z))
        mean, var = (part.double() for part in row_moments(guide, block))
        likelihood, y, nuisance = self.model.likelihood, rows.y.double(), guide.nuisance_of(block)
        shares = block.shares()
        if likelihood.exact:
            centre, spread = likelihood.predictive_moments(mean, var, nuisance)
            each = Normal(centre, spread.sqrt()).log_prob(likelihood.filled(y))
            return torch.where(shares > 0, shares * each, 0.0).sum(-1)
        centre = likelihood.expected_log_prob(y, mean, var, nuisance)

        def relative(at: Tensor, predictor: Tensor, values: dict[str, Tensor]) -> Tensor:
            log_prob = likelihood(predictor, values).log_prob(likelihood.filled(y[at]))
            return (log_prob - centre[at]).clamp(max=_MOST_EXPONENT).exp()

        each = centre + expectation(relative, mean, var, nuisance).log()
        return torch.where(shares > 0, shares * each, 0.0).sum(-1)


@torch.no_grad()
def _ordered(model: TreeModel, rows: StandardRows, inside: Tensor) -> Tensor:
    """Latents of all rows by an encoder fitted to those ``inside``, most telling first, (N, K)."""
    encoder = model.encoder
    z = encoder(rows.x).double()
    if isinstance(encoder, LinearEncoder) and not spans_all(encoder):
        return z  # its closed form comes in this order
    known = z[inside]
    centre = known.mean(0)
    variance, vectors = torch.linalg.eigh((known - centre).T @ (known - centre) / len(known))
    keep = variance > _LEAST_VARIANCE_SHARE * variance.max()
    white = (z - centre) @ (vectors[:, keep] / variance[keep].sqrt())
    prepared = PreparedRows(encoder, rows.select(inside), None)
    features = prepared.holding.own(white[inside]).to(encoder.output_map.dtype)
    prepared = replace(prepared, features=features)
    ordered = torch.zeros_like(z)
    ordered[:, : white.shape[1]] = white @ leading_axes(model, prepared, white.shape[1])
    return ordered


def _table(
    dims: Sequence[int], scores: list[Tensor], evidence: list[float], unit: Tensor | None
) -> pd.DataFrame:
    """A row a number of latents; see :class:`LatentDimChoice`."""
    best = scores[int(torch.stack([score.mean() for score in scores]).argmax())]
    rows = []
    for number, score, total in zip(dims, scores, evidence, strict=True):
        mean, error = mean_and_error(score, unit)
        difference, of_difference = mean_and_error(score - best, unit)
        rows.append((number, mean, error, difference, of_difference, total - max(evidence)))
    columns = ["latent_dim", "log_score", "se", "difference", "difference_se", "evidence"]
    return pd.DataFrame(rows, columns=columns)


def chosen(table: pd.DataFrame) -> int:
    """The number of latents a table speaks for: that of the largest evidence."""
    return int(table["latent_dim"][table["evidence"].argmax()])
