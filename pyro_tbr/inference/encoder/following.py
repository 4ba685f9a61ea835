r"""Training of a neural encoder of normal outcomes, whose weights follow in closed form.

Where outcomes are normal the posterior of the weights given the latents has a closed form. So only
the encoder is trained by gradients, of the expected log likelihood: for a row f with outcomes y at
node e and design :math:`z = \mathrm{encoder}(f)`, with a one behind,

.. math::
    -\tfrac12 \sum_q \lambda_{eq} \left( (y_q - z' m_{eq})^2 + z' C_{eq} z \right)

where m and C are means and covariances of the weights and :math:`\lambda` is the precision of the
noise. Every few steps the rows are encoded anew, and weights, hyperparameters and noise move to
where the ELBO is largest for them. At the weights' optimum that gradient is the one of the ELBO
with the weights integrated (the envelope theorem), so the encoder climbs it without weights that
lag behind, in a fraction of the steps that both together take.

The noise of rows of training is no guide to when to stop, as an encoder that overfits makes it
small: the state that is kept has the smallest squared error on held-out rows.

Source:
    Golub & Pereyra, SIAM Journal on Numerical Analysis 10 (1973) 413, of weights that follow.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_tbr.errors import TrainingError
from pyro_tbr.heads import DesignRows, Statistics, exact_statistics
from pyro_tbr.heads.joint_guide import JointGuide
from pyro_tbr.heads.tree_state import TreeState
from pyro_tbr.inference.encoder.rows import PreparedRows
from pyro_tbr.inference.encoder.training import FitTrace, Schedule, blown, ramp
from pyro_tbr.models import TreeModel
from pyro_tbr.progress import stage, step

_EVERY = 25  # steps after which the weights follow; at the start sooner, after 1, 2, 4, ...
_CHECK_EVERY = 50  # steps after which held-out rows are asked
_FIRST_SWEEPS, _SWEEPS = 5, 1  # of the weights, at the start and later
_ROWS_ASKED = 50_000  # at most, drawn at random, when the weights follow
_BLOCK = 20_000  # rows encoded at once where no gradient is asked for


class Weights(NamedTuple):
    """Moments of the weights at E nodes, those of all rows, and the noise there, in one dtype.

    Attributes:
        place: For every node its place among these, (V,).
        mean: (E, Q, W).
        cov: (E, Q, W, W).
        scale: Precision of the noise, (E, Q).
        total: Covariances times that, summed over outcomes, (E, W, W).
    """

    place: Tensor
    mean: Tensor
    cov: Tensor
    scale: Tensor
    total: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, guide: JointGuide | TreeState, nodes: Tensor, like: Tensor) -> Weights:
        """From a guide; where it has variances alone weights count as independent."""
        mean, cov = guide.moments_at(nodes)
        cov = torch.diag_embed(cov) if cov.dim() == mean.dim() else cov
        place = torch.zeros(guide.head.tree.num_nodes, dtype=torch.int64, device=nodes.device)
        place[nodes] = torch.arange(len(nodes), device=nodes.device)
        mean, cov, scale = (part.to(like) for part in (mean, cov, guide.site_scale(nodes)))
        return cls(place, mean, cov, scale, torch.einsum("eq,eqwv->ewv", scale, cov))

    def squares(self, rows: DesignRows, response: Tensor) -> tuple[Tensor, Tensor]:
        """Squared residuals at the means and variances of the predictors, (n, Q) both."""
        at = self.place[rows.env_index]
        mean = torch.einsum("nw,nqw->nq", rows.design, self.mean[at])
        var = torch.einsum("nw,nqwv,nv->nq", rows.design, self.cov[at], rows.design)
        return (response - mean).square(), var

    def loss(self, rows: DesignRows, targets: Targets) -> Tensor:
        """Negative expected log likelihood of each row, but for what is constant, (n,)."""
        if targets.shares is None:  # the outcomes' variances at once
            at, design = self.place[rows.env_index], rows.design.unsqueeze(-1)
            off = targets.response - (self.mean[at] @ design).squeeze(-1)
            var = (rows.design * (self.total[at] @ design).squeeze(-1)).sum(-1)
            return 0.5 * ((self.scale[at] * off.square()).sum(-1) + var)
        square, var = self.squares(rows, targets.response)
        scale = targets.shares * self.scale[self.place[rows.env_index]]
        return 0.5 * (scale * (square + var)).sum(-1)


class Targets(NamedTuple):
    """What the rows ask of the predictors.

    Attributes:
        response: Where each row's likelihood peaks, (N, Q), any number where not observed.
        shares: Its precision, in units of the noise's, times by how much of a row it counts;
            ``None``: 1 everywhere.
    """

    response: Tensor
    shares: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, guide: JointGuide | TreeState, rows: PreparedRows) -> Targets:
        """Of all rows, under an exact likelihood."""
        y = rows.rows.y
        block = rows.rows.with_design(y.new_zeros(len(y), 0))
        zero = torch.zeros_like(y)
        terms = guide.head.likelihood.site_terms(y, zero, zero, guide.nuisance_of(block))
        shares = block.shares(rows.weights()) * terms.precision
        plain = bool((shares == 1).all())
        return cls(terms.response.to(y), None if plain else shares.to(y))

    def select(self, rows: Tensor) -> Targets:
        """Those of some rows."""
        return Targets(self.response[rows], None if self.shares is None else self.shares[rows])


def follow(
    model: TreeModel,
    guide: JointGuide | TreeState,
    rows: PreparedRows,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    held_out: PreparedRows | None = None,
    moves_weights: bool = True,
) -> FitTrace:
    """Climbs the ELBO in the encoder, the guide at its optimum for it; both changed in place.

    Ends at the best state of the encoder on held-out rows if there are; where the weights move they
    are to be conditioned on the rows anew.

    Args:
        model: Its encoder is trained.
        guide: Of the model's weights, with an exact likelihood.
        rows: Rows of training.
        schedule: Steps and rates; of the guide's nothing is used.
        generator: Draws the order of the rows.
        held_out: Rows to choose the state with.
        moves_weights: Move the weights too; else the encoder alone.

    Returns:
        What it did; ``held_out`` is the mean squared error there.

    Raises:
        TrainingError: A number is not finite.
    """
    params = [p for p in model.encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        params, lr=1e-3, betas=(0.9, 0.99), weight_decay=schedule.encoder_decay, fused=True
    )
    y, num_rows = rows.rows.y, len(rows)
    targets = Targets.of(guide, rows)
    tried = None if held_out is None else Targets.of(guide, held_out)
    stop = schedule.steps if schedule.stop is None else min(schedule.stop, schedule.steps)
    trace, best, best_step, best_state = FitTrace([], [], [], math.nan, 0), math.inf, 0, None
    done, waited, model.num_rows = 0, 0, num_rows
    nodes, asked = rows.rows.env_index.unique(), torch.arange(num_rows)
    if held_out is not None:  # some may be at nodes that have no other rows
        nodes = torch.cat([nodes, held_out.rows.env_index]).unique()

    def now(sweeps: int) -> Statistics:
        nonlocal asked
        if num_rows > _ROWS_ASKED:
            asked = torch.randperm(num_rows, generator=generator)[:_ROWS_ASKED]
        stats = _statistics(model, guide, rows, asked.to(y.device))
        if not torch.isfinite(stats.gram.sum() + stats.cross.sum()):
            raise TrainingError(blown(model, guide, done, trace, stats.gram.sum()))
        if moves_weights:
            guide.update(stats, sweeps=sweeps, rough=True)
        return stats

    now(_FIRST_SWEEPS)
    weights = Weights.of(guide, nodes, y)
    model.encoder.train()
    with stage("training", total=stop):
        while done < stop and waited < schedule.patience:
            order = torch.randperm(num_rows, generator=generator).to(y.device)
            for batch in order.split(schedule.batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = schedule.encoder_lr * ramp(done / schedule.steps)
                own = rows.holding.here(batch)
                each = weights.loss(rows.encoded(model, own), targets.select(own))
                loss = each.sum() / len(batch)
                optimizer.zero_grad()
                loss.backward()
                rows.holding.share_gradients(params)
                total = nn.utils.clip_grad_norm_(params, 100.0)
                if not torch.isfinite(total + loss):
                    raise TrainingError(blown(model, guide, done, trace, -loss))
                optimizer.step()
                done += 1
                step()
                ends, checks = done == stop, done % _CHECK_EVERY == 0 or done == stop
                early = done < _EVERY and done & (done - 1) == 0
                if checks or (moves_weights and (early or done % _EVERY == 0)):
                    model.encoder.eval()
                    stats = now(_SWEEPS)
                    weights = Weights.of(guide, nodes, y)
                    if checks:
                        trace.steps.append(done)
                        trace.loss.append(-guide.elbo(stats).item() / num_rows)
                        score = math.nan
                        if held_out is not None and tried is not None:
                            score = _squared_error(model, weights, held_out, tried)
                            waited += 1
                            if score < best:
                                best, best_step, waited = score, done, 0
                                best_state = copy.deepcopy(model.encoder.state_dict())
                        trace.held_out.append(score)
                        step(0, f"loss {trace.loss[-1]:.3f}")
                    model.encoder.train()
                if ends or waited >= schedule.patience:
                    break
    model.encoder.eval()
    if best_state is not None:
        model.encoder.load_state_dict(best_state)
    return trace._replace(
        best_held_out=best if held_out is not None else math.nan,
        best_step=best_step if held_out is not None else done,
    )


@torch.no_grad()
def _statistics(
    model: TreeModel, guide: JointGuide | TreeState, rows: PreparedRows, asked: Tensor
) -> Statistics:
    """Of rows as they are encoded now; of some of them as if all were like these."""
    own = rows.holding.here(asked)
    design = torch.cat([rows.encoded(model, some).design for some in own.split(_BLOCK)])
    groups = None if rows.groups is None else rows.groups.select(own)
    block = replace(rows.with_design(design, own), groups=groups)
    stats = rows.holding.merged(exact_statistics(guide, block, grouped=True))
    return stats if len(asked) == len(rows) else stats.scaled(len(rows) / len(asked))


@torch.no_grad()
def _squared_error(
    model: TreeModel, weights: Weights, rows: PreparedRows, targets: Targets
) -> float:
    """Mean squared error on held-out rows, less the weights' own variance there."""
    sums = torch.zeros(2, dtype=torch.float64, device=weights.place.device)  # of squares, shares
    for some in rows.holding.here(torch.arange(len(rows), device=sums.device)).split(_BLOCK):
        here = targets.select(some)
        square, var = weights.squares(rows.encoded(model, some), here.response)
        shares = torch.ones_like(square) if here.shares is None else here.shares
        each = torch.where(shares > 0, shares * (square - var), 0.0)
        sums += torch.stack([part.sum(dtype=torch.float64) for part in (each, shares)])
    total, count = rows.holding.summed(sums).tolist()
    return total / max(count, 1e-12)
