"""The loop that trains an encoder: stochastic steps up the collapsed ELBO."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from pyro_tbr.errors import TrainingError
from pyro_tbr.heads import Guide
from pyro_tbr.inference.elbo import TreeELBO, expected_log_lik
from pyro_tbr.inference.encoder.rows import PreparedRows
from pyro_tbr.models import TreeModel
from pyro_tbr.progress import beat, stage, step

# Peak rate of what a guide learns by gradients. Its parameters are locations and logarithms of
# scales in the units of training, all of order one, so one rate suits them.
GUIDE_LR = 0.03


class Schedule(NamedTuple):
    """How a run of SVI goes; its rates are peaks, as each rises over the first tenth, then falls.

    The decay is decoupled (AdamW): the encoder's weight prior. ``patience`` is in checks on
    held-out rows without gain, of which there is one after ``check_every`` steps. It ends after
    ``stop`` steps, as if that were on the way; ``None``: after all.
    """

    steps: int
    batch_size: int
    encoder_lr: float
    guide_lr: float
    encoder_decay: float = 0.0
    patience: int = 8
    check_every: int = 100
    stop: int | None = None


class FitTrace(NamedTuple):
    """What a run did, by its checks, and the step of the state that was kept.

    The loss is the negative ELBO per row, of SVI a mean since the check before, in closed form that
    at the check; ``held_out`` the negative expected log score per held-out row, NaN without such
    rows.
    """

    steps: list[int]
    loss: list[float]
    held_out: list[float]
    best_held_out: float
    best_step: int


def train(
    model: TreeModel,
    guide: Guide,
    rows: PreparedRows,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    held_out: PreparedRows | None = None,
) -> FitTrace:
    """Climbs the ELBO in encoder and guide, both trained in place.

    Ends at the best state on held-out rows if there are; the generator draws the order of the rows.

    Raises:
        TrainingError: Loss or a gradient is not finite; the parameters are the last finite ones.
    """
    encoder_params = [p for p in model.encoder.parameters() if p.requires_grad]
    guide_params = list(guide.parameters())
    groups = [
        {"params": encoder_params, "weight_decay": schedule.encoder_decay},
        {"params": guide_params, "weight_decay": 0.0},
    ]
    peaks = [schedule.encoder_lr, schedule.guide_lr]
    used = [pair for pair in zip(groups, peaks, strict=True) if pair[0]["params"]]
    optimizer = torch.optim.AdamW([group for group, _ in used], lr=1e-3, betas=(0.9, 0.99))
    best_state, best, best_step = None, math.inf, 0
    trace = FitTrace([], [], [], math.nan, 0)
    losses: list[Tensor] = []
    waited, done, num_rows = 0, 0, len(rows)
    objective, weights, model.num_rows = TreeELBO(), rows.weights(), num_rows
    model.encoder.train()
    stop = schedule.steps if schedule.stop is None else min(schedule.stop, schedule.steps)
    with stage("training", total=stop):
        while done < stop and waited < schedule.patience:
            order = torch.randperm(num_rows, generator=generator).to(rows.rows.y.device)
            for batch in order.split(schedule.batch_size):
                for group, (_, peak) in zip(optimizer.param_groups, used, strict=True):
                    group["lr"] = peak * ramp(done / schedule.steps)
                own = rows.holding.here(batch)
                elbo = objective.of_rows(
                    model.head,
                    guide,
                    rows.encoded(model, own),
                    None if weights is None else weights[own],
                    batch=len(batch),
                    share=len(own) / len(batch),
                )
                elbo = elbo / num_rows
                optimizer.zero_grad()
                (-elbo).backward()
                rows.holding.share_gradients(encoder_params + guide_params)
                total = nn.utils.clip_grad_norm_(encoder_params + guide_params, 100.0)
                if not torch.isfinite(total + elbo):
                    raise TrainingError(blown(model, guide, done, trace, elbo))
                optimizer.step()
                losses.append(-elbo.detach())
                done += 1
                step()
                if done % schedule.check_every == 0 or done == stop:
                    trace.steps.append(done)
                    trace.loss.append(rows.holding.summed(torch.stack(losses).mean()).item())
                    losses.clear()
                    score = _score(model, guide, held_out)
                    trace.held_out.append(score)
                    if held_out is not None:
                        waited += 1
                        if score < best:
                            best, best_step, waited = score, done, 0
                            state = model.encoder.state_dict(), guide.state_dict()
                            best_state = copy.deepcopy(state)
                    step(0, f"loss {trace.loss[-1]:.3f}")
                if done >= stop or waited >= schedule.patience:
                    break
    model.encoder.eval()
    if best_state is not None:
        model.encoder.load_state_dict(best_state[0])
        guide.load_state_dict(best_state[1])
    return trace._replace(
        best_held_out=best if held_out is not None else math.nan,
        best_step=best_step if held_out is not None else done,
    )


def ramp(position: float) -> float:
    """Share of the peak rate: up over the first tenth, then half a cosine down."""
    if position < 0.1:
        return 0.1 + 9 * position
    return 0.5 * (1 + math.cos(math.pi * (position - 0.1) / 0.9)) + 1e-3


@torch.no_grad()
def _score(model: TreeModel, guide: Guide, rows: PreparedRows | None) -> float:
    """Negative expected log score per observed row."""
    if rows is None:
        return math.nan
    model.encoder.eval()
    weights, total, observed, start = rows.weights(), 0.0, 0, 0
    weights = None if weights is None else rows.holding.own(weights)
    for block in rows.encoded_blocks(model):
        share = None if weights is None else weights[start : start + len(block)]
        start += len(block)
        total += expected_log_lik(model.head, guide, block, share).sum().item()
        beat()
        observed += int((~torch.isnan(block.y)).any(-1).sum())
    model.encoder.train()
    sums = torch.tensor([total, observed], dtype=torch.float64, device=rows.rows.y.device)
    total, observed = rows.holding.summed(sums).tolist()
    return -total / max(1, observed)


def blown(model: TreeModel, guide: Guide, step: int, trace: FitTrace, elbo: Tensor) -> str:
    """What is said of a step whose loss or gradient is not finite."""
    named = [("encoder." + n, p) for n, p in model.encoder.named_parameters()]
    named += [("guide." + n, p) for n, p in guide.named_parameters()]
    bad = [n for n, p in named if p.grad is not None and not torch.isfinite(p.grad).all()]
    last = f"{trace.loss[-1]:.4g}" if trace.loss else "none yet"
    return (
        f"training stopped at step {step}: loss {-elbo.item():.4g}, gradients not finite in "
        f"{bad[:5] or 'none'}; last finite mean loss {last}. The parameters of the step before are "
        f"kept. Lower options.encoder_lr, or look for outliers and scale the data"
    )


def trace_table(traces: Mapping[str, FitTrace | None]) -> pd.DataFrame:
    """Steps of an encoder's training by stage, as in ``Posterior.history``."""
    rows = [
        (stage, *row)
        for stage, trace in traces.items()
        if trace is not None
        for row in zip(trace.steps, trace.loss, trace.held_out, strict=True)
    ]
    return pd.DataFrame(rows, columns=["stage", "step", "loss", "held_out"])
