r"""Training of a linear encoder in closed forms: weights and encoder in turns, without rows.

Where outcomes are normal and the latents of a row are :math:`z = B' f` with white features f, sums
over the rows of each node e say all of the rows: :math:`G_{eq} = \sum f f'` and
:math:`c_{eq} = \sum f y`, one for each outcome q where some are missing, a column of ones behind
the features. Two steps take turns:

- *Weights given the encoder*: the statistics of the latents are those of the features, transformed,
  and a few sweeps along the tree move the posterior of the weights w, hyperparameters and noise.
- *Encoder given the weights*: the expected log likelihood is quadratic in B. With
  :math:`A = (B, 1)`, the shift of the latents below B, it is, but for a constant,

  .. math::
    -\tfrac12 \sum_{eq} \lambda_{eq} \left( \mathrm{tr}(G_{eq} A E[w w'] A') - 2 c_{eq}' A E[w]
    \right)

  with :math:`\lambda_{eq}` the precision of the noise. Its optimum solves RK linear equations.

This is expectation maximisation with the encoder as the parameter. It overfits where features are
many, as the encoder is a point estimate. So a step goes a part of the way, every latent the same
one, and rows that are held out choose when to stop.

Source:
    Dempster, Laird & Rubin, Journal of the Royal Statistical Society B 39 (1977) 1; in parts of the
    way: Neal & Hinton, Learning in Graphical Models (1998) 355.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.errors import TrainingError
from pyro_tbr.heads import Guide, Statistics, exact_statistics
from pyro_tbr.heads.joint_guide import JointGuide
from pyro_tbr.heads.tree_state import TreeState
from pyro_tbr.inference.encoder.rows import PreparedRows
from pyro_tbr.inference.encoder.training import FitTrace
from pyro_tbr.models import LinearEncoder, TreeModel
from pyro_tbr.progress import detail, stage, step

SVI_STEPS = 20  # for which one of these steps counts, in options and traces
_MOST_BYTES = 1_000_000_000  # of the statistics of all features
_FIRST_SWEEPS = 20  # of the weights at the start,
_SWEEPS = 2  # and after every move of the encoder
_MOST_DENSE = 2000  # unknowns, up to which their matrix is made and factorised
_ACCURACY, _MOST_ITERATIONS = 1e-6, 500  # of conjugate gradients, beyond


class Pull(NamedTuple):
    """The expected log likelihood as a function of the map from features to the design.

    Attributes:
        gram: Of features and the ones behind them, (n, R + 1, R + 1); n = E, or E Q where
            outcomes differ in their rows.
        second: Second moments of the weights times the precision of the noise, (n, W, W).
        cross: Sums of features times outcomes times means of weights, likewise, (R + 1, W).
    """

    gram: Tensor
    second: Tensor
    cross: Tensor

    @classmethod
    def of(cls, stats: Statistics, scale: Tensor, mean: Tensor, cov: Tensor) -> Pull:
        """From statistics of the features and moments of the weights.

        Args:
            stats: Of features and ones.
            scale: Precision of the noise, (E, Q).
            mean: Means of the weights, (E, Q, W).
            cov: Their covariances, (E, Q, W, W).
        """
        second = scale[..., None, None] * (cov + mean.unsqueeze(-1) * mean.unsqueeze(-2))
        if stats.gram.shape[1] == 1:
            second = second.sum(1, keepdim=True)
        cross = torch.einsum("eqr,eqw->rw", scale.unsqueeze(-1) * stats.cross, mean)
        return cls(stats.gram.flatten(0, 1), second.flatten(0, 1), cross)

    def slope(self, affine: Tensor) -> Tensor:
        """Gradient at a map (R + 1, W)."""
        pairs = zip(self.gram, self.second, strict=True)  # node by node: all at once take more
        return self.cross - sum(gram @ (affine @ second) for gram, second in pairs)

    def curvature(self, width: int, latents: Tensor) -> Curvature:
        """What bends it in the directions of some latents (k,) at R features."""
        second = self.second[:, latents][:, :, latents]
        return Curvature(self.gram[:, :width, :width], second)


class Curvature(NamedTuple):
    """A positive definite operator on directions (R, k): the sum of ``gram @ D @ second``."""

    gram: Tensor
    second: Tensor

    def diagonal(self) -> Tensor:
        """What it does to each entry by itself, (R, k)."""
        parts = (part.diagonal(dim1=-2, dim2=-1) for part in self)
        return torch.einsum("nr,nk->rk", *parts)

    def solve(self, right: Tensor, damping: Tensor, most_dense: int = _MOST_DENSE) -> Tensor:
        """Directions (R, k) that it, with a multiple (k,) of the identity added, takes to these."""
        if right.numel() > most_dense:
            return self._solve_stepwise(right, damping)
        num_features, num_latents = right.shape
        whole = self.gram.flatten(1).T @ self.second.flatten(1)  # (R R, k k)
        whole = whole.reshape(num_features, num_features, num_latents, num_latents)
        matrix = whole.permute(0, 2, 1, 3).reshape(right.numel(), right.numel()).contiguous()
        matrix.diagonal().add_(damping.expand_as(right).flatten())
        return torch.linalg.solve(matrix, right.flatten()).reshape(right.shape)

    def _solve_stepwise(self, right: Tensor, damping: Tensor) -> Tensor:
        """By conjugate gradients, each entry in the unit that gives it curvature 1."""
        unit = (self.diagonal() + damping).clamp(min=1e-300)
        found, residual = torch.zeros_like(right), right.clone()
        towards = residual / unit
        height = (residual * towards).sum()
        end = _ACCURACY**2 * height
        for _ in range(_MOST_ITERATIONS):
            if height <= end:
                break
            pairs = zip(self.gram, self.second, strict=True)
            bent = damping * towards + sum(gram @ (towards @ second) for gram, second in pairs)
            length = height / (towards * bent).sum()
            found, residual = found + length * towards, residual - length * bent
            scaled = residual / unit
            before, height = height, (residual * scaled).sum()
            towards = scaled + (height / before) * towards
        return found


def has_closed_form(model: TreeModel, rows: PreparedRows) -> bool:
    """The encoder is linear, outcomes are normal, and memory holds the sums over rows."""
    encoder = model.encoder
    if not (isinstance(encoder, LinearEncoder) and model.likelihood.exact):
        return False
    y = rows.rows.y
    alike = rows.groups is None and rows.rows.terms.weights is None and not y.isnan().any()
    tables = len(rows.rows.env_index.unique()) * (1 if alike else y.shape[1])
    size = 8 * tables * (encoder.width + 1) ** 2
    if size > _MOST_BYTES:
        detail("statistics of all features would take %.1f GB: training by rows", size / 1e9)
    return size <= _MOST_BYTES


@torch.no_grad()
def feature_statistics(guide: Guide, rows: PreparedRows) -> Statistics:
    """Statistics of prepared features with a column of ones behind them."""
    return exact_statistics(guide, replace(rows, intercept=True), grouped=True)


@torch.no_grad()
def alternate(
    model: TreeModel,
    guide: JointGuide | TreeState,
    rows: PreparedRows,
    steps: int,
    *,
    part: float,
    decay: float = 0.0,
    held_out: PreparedRows | None = None,
    patience: int = 8,
    moves_weights: bool = True,
) -> FitTrace:
    """Climbs the ELBO in a linear encoder and the weights in turns, both changed in place.

    Ends at the best encoder on held-out rows if there are, which may be that of the start; where
    the weights move they are to be conditioned on the rows anew.

    Args:
        model: Its encoder is trained.
        guide: Of the model's weights; where they do not move it is at its optimum already.
        rows: Rows of training.
        steps: Of SVI, in place of which it makes a step for :data:`SVI_STEPS` of them.
        part: Of the way to the encoder's optimum that a step goes, in (0, 1].
        decay: By which share of itself the encoder shrinks in a step.
        held_out: Rows to choose the state with.
        patience: Steps without gain on held-out rows before it stops.
        moves_weights: Move the weights too; else the encoder alone.

    Returns:
        What it did; a check after every step, and one before the first where rows are held out.

    Raises:
        TrainingError: A number is not finite.
    """
    encoder = model.encoder
    assert isinstance(encoder, LinearEncoder)
    stats = feature_statistics(guide, rows)
    other = None if held_out is None else feature_statistics(guide, held_out)
    num_rows, num_other = len(rows), 0 if held_out is None else observed_rows(held_out)
    best, best_step, best_state, waited = math.inf, 0, None, 0
    trace = FitTrace([], [], [], math.nan, 0)
    number = math.ceil(steps / SVI_STEPS)
    with stage("training", total=number):
        for done in range(number + 1):
            affine = affine_map(model)
            latents = stats.transform(affine)
            if moves_weights:
                guide.update(latents, sweeps=_SWEEPS if done else _FIRST_SWEEPS, rough=True)
            count = min(done * SVI_STEPS, steps)
            score = math.nan
            if other is not None:
                lik = guide.expected_log_lik(other.transform(affine))
                score = -lik.item() / max(1, num_other)
                waited += 1
                if score < best:
                    best, best_step, waited = score, count, 0
                    best_state = copy.deepcopy(encoder.state_dict())
            loss = -guide.elbo(latents).item() / num_rows
            if not math.isfinite(loss):
                raise TrainingError(_stopped(count, trace))
            if done or other is not None:
                trace.steps.append(count)
                trace.loss.append(loss)
                trace.held_out.append(score)
            step(min(done, 1), f"loss {loss:.3f}")
            if done == number or waited > patience:
                break
            encoder.set_latent_directions((1 - decay) * moved(model, guide, stats, part))
    if best_state is not None:
        encoder.load_state_dict(best_state)
    return trace._replace(
        best_held_out=best if other is not None else math.nan,
        best_step=best_step if other is not None else trace.steps[-1],
    )


def affine_map(model: TreeModel) -> Tensor:
    """From prepared features and a one behind them to the design, (R + 1, W) double."""
    encoder = model.encoder
    assert isinstance(encoder, LinearEncoder)
    shift = -encoder.output_shift.double()
    affine = torch.cat([encoder.latent_directions(), shift.unsqueeze(0)])
    if not model.intercept:
        return affine
    one = torch.zeros_like(affine[:, :1])
    one[-1] = 1
    return torch.cat([affine, one], 1)


@torch.no_grad()
def moved(
    model: TreeModel, guide: JointGuide | TreeState, stats: Statistics, part: float
) -> Tensor:
    """Directions (R, K) a part of the way to their optimum given the weights; all of it for 1.

    A multiple of the identity is added to the curvature, for each latent its mean curvature times
    ``1 / part - 1``: where features are white every entry goes that part of its way, and never
    further. Latents that are not used stay so.
    """
    affine = affine_map(model)
    moments = _moments(guide, stats.transform(affine))
    pull = Pull.of(stats, guide.site_scale(stats.nodes), *moments)
    directions = affine[:-1, : model.latent_dim].clone()
    used = directions.abs().amax(0).nonzero().squeeze(-1)
    curvature = pull.curvature(len(affine) - 1, used)
    slope = pull.slope(affine)[:-1, used]
    damping = (1 / part - 1) * curvature.diagonal().mean(0)
    directions[:, used] += curvature.solve(slope, damping + 1e-10)
    return directions


def _moments(guide: JointGuide | TreeState, latents: Statistics) -> tuple[Tensor, Tensor]:
    """Means (E, Q, W) and covariances (E, Q, W, W) of the weights where there are rows."""
    mean, spread = guide.moments_at(latents.nodes)
    if isinstance(guide, JointGuide):
        return mean, spread
    coupled = guide.coupled and mean.shape[-1] > 1
    return mean, guide.joint_cov(latents) if coupled else torch.diag_embed(spread)


def observed_rows(rows: PreparedRows) -> int:
    """Rows with an observed outcome."""
    return int((~rows.rows.y.isnan()).any(-1).sum())


def _stopped(count: int, trace: FitTrace) -> str:
    last = f"{trace.loss[-1]:.4g}" if trace.loss else "none yet"
    return (
        f"training stopped at step {count}: the loss is not finite, the last one was {last}. Look "
        "for outliers and scale the data"
    )
