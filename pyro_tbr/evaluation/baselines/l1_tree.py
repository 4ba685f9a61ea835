"""Point estimates with an L1 penalty on the changes along the arcs: the paper's TBR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from pyro_tbr.errors import DataError
from pyro_tbr.evaluation.baselines.base import Baseline, Problem, Rule, with_intercept
from pyro_tbr.evaluation.baselines.l1_starts import Starts, all_starts, cosine
from pyro_tbr.evaluation.baselines.squares import Squares, Weights, l1_weights
from pyro_tbr.heads.moments import NodeMoments, predictor_moments
from pyro_tbr.tree import descendant_sum, path_sum

STRENGTHS = tuple(np.geomspace(1, 1e-3, 10).round(6).tolist())


@dataclass(frozen=True)
class L1TBR(Baseline):
    r"""Tree-based regularization as published: encoder, root weights and changes by one objective.

    Mean squared error plus :math:`\lambda \sum_a |\delta_a|_1` by Adam, latents standardised inside
    the loss. Lambda goes down a path, each value starting from the last, with all random starts
    side by side: so latents stay where strong sparsity put them. Held-out rows choose lambda (and
    the weight decay of a network); among the starts at this lambda the objective chooses, as
    held-out rows cannot tell rotations apart. The choice is trained on with all rows, then root
    weights and changes are brought to the minimum for its encoder, so changes are exactly 0 or not.

    Where it misses the latents the objective does, not the search: its minimum at the true ones is
    the higher one (``examples/experiments/RESULTS.md``, baselines).

    The method has no predictive distribution of its own. Ours: normal, its noise the squared error
    on held-out rows; on arcs without rows below, changes of a latent have the mean square of those
    on the other arcs.

    Attributes:
        strengths: The path, strongest first, each as the amount by which a change confined to one
            environment of mean size is shrunk, in outcome sd per latent sd.
        restarts: Random starts; ``None``: 64 for a linear encoder, 4 for a network.
        steps: Adam steps for each lambda; ``None``: 500 for a linear encoder, 600 for a network.
        lr: Peak learning rate; ``None``: 0.03 for a linear encoder, 0.003 for a network, whose
            weights and changes have 0.03 too.
        decays: Weight decays of a network to choose from.
        batch_size: Rows a step, for a network; a linear encoder takes all rows at once.

    Source:
        arXiv 2405.20482.
    """

    has_latents: ClassVar[bool] = True

    strengths: tuple[float, ...] = STRENGTHS
    restarts: int | None = None
    steps: int | None = None
    lr: float | None = None
    decays: tuple[float, ...] = (0.3, 0.03)
    batch_size: int = 512

    def _learn(self, problem: Problem) -> Rule:
        if problem.encoder == "identity":
            raise DataError("encoder='identity' leaves no latents to learn: use DenseTree")
        candidates = []
        for decay in (0.0,) if problem.encoder == "linear" else self.decays:
            starts = all_starts(problem, self.restarts, self.batch_size)
            candidates.append(self._best_on_path(problem, starts, decay))
        best = min(candidates, key=lambda one: one.held_out)
        starts = best.starts
        weights = self._train(problem, starts, best.weights, best.penalty, best.decay)
        encoder = starts.encoder()

        @torch.no_grad()
        def to_latents(x: Tensor) -> Tensor:
            return encoder(x).double()

        squares = Squares.of(with_intercept(to_latents(problem.x)), problem.y, problem.env_index)
        first = Weights(weights.root[0].double(), weights.deltas[0].double())
        final = l1_weights(problem.tree, squares, best.penalty, first)
        notes = {"strength": best.strength, "decay": best.decay, "held_out": best.held_out}
        names = tuple(f"z{k}" for k in range(problem.latent_dim))
        return L1Rule(problem, to_latents, final, best.noise_var, names, notes, learnt=True)

    def _best_on_path(self, problem: Problem, starts: Starts, decay: float) -> _Candidate:
        """The start and lambda of choice for one weight decay."""
        size = len(starts.parameters[0])
        shape = (size, problem.tree.num_arcs, problem.latent_dim + 1, problem.y.shape[1])
        deltas = 0.1 * torch.randn(shape, generator=problem.generator)
        root = 0.3 * torch.randn(shape[:1] + shape[2:], generator=problem.generator)
        weights, environments = Weights(root, deltas), len(problem.env_index.unique())
        held_out = problem.validation if problem.validation.any() else ~problem.validation
        count = (~problem.y[held_out].isnan()).sum(0).float()
        best: _Candidate | None = None
        for strength in self.strengths:
            penalty = 2 / environments * strength
            weights = self._train(problem, starts, weights, penalty, decay)
            nodes = path_sum(problem.tree, *weights, event_dim=2)
            objective = starts.error(nodes, held_out=False).mean(1)
            objective = objective + penalty * weights.deltas.abs().sum((1, 2, 3))
            chosen = int(objective.nan_to_num(nan=torch.inf).argmin())
            errors = starts.error(nodes, held_out=True)
            total = float((errors[chosen] * count).sum() / count.sum())
            if best is None or total < best.held_out:
                kept = Weights(*(part[chosen : chosen + 1].clone() for part in weights))
                noise = errors[chosen].double()
                best = _Candidate(starts.one(chosen), kept, penalty, strength, decay, total, noise)
        assert best is not None
        return best

    def _train(
        self, problem: Problem, starts: Starts, weights: Weights, penalty: float, decay: float
    ) -> Weights:
        """Adam from where encoders and weights are; trains the encoders in place."""
        steps, lr = self.steps or starts.steps, self.lr or starts.lr
        root, deltas = (part.clone().requires_grad_() for part in weights)
        groups: list[dict[str, Any]] = [
            {"params": starts.parameters, "lr": lr, "weight_decay": decay},
            {"params": [root, deltas], "lr": 0.03, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups)
        schedule = LambdaLR(optimizer, lambda step: cosine(step, steps))
        for _ in range(steps):
            optimizer.zero_grad()
            nodes = path_sum(problem.tree, root, deltas, event_dim=2)
            loss = starts.loss(nodes) + penalty * deltas.abs().sum((1, 2, 3))
            loss.sum().backward()
            optimizer.step()
            schedule.step()
        return Weights(root.detach(), deltas.detach())


class _Candidate(NamedTuple):
    """A start at a lambda: the encoder, its weights, and how it does on held-out rows."""

    starts: Starts
    weights: Weights
    penalty: float
    strength: float
    decay: float
    held_out: float
    noise_var: Tensor


class L1Rule(Rule):
    """Point estimates of the nodes' weights, with the noise of held-out rows.

    Args:
        problem: What they were learnt from.
        to_latents: From standardised features to what the weights are of.
        weights: (P, Q) and (A, P, Q), the intercept last.
        noise_var: (Q,).
        names: Names of the latents or features.
        notes: What was chosen.
        learnt: The latents were learnt.
    """

    def __init__(
        self,
        problem: Problem,
        to_latents: Callable[[Tensor], Tensor],
        weights: Weights,
        noise_var: Tensor,
        names: tuple[str, ...],
        notes: dict[str, Any],
        *,
        learnt: bool,
    ) -> None:
        self.to_latents, self.latents = to_latents, to_latents if learnt else None
        self.deltas, self.latent_names = weights.deltas, (*names, "intercept")
        self.noise_var = noise_var.clamp(min=1e-12)
        # Changes on arcs without rows below are as large as those on other arcs.
        counts = torch.bincount(problem.env_index, minlength=problem.tree.num_nodes)[:, None]
        informed = descendant_sum(problem.tree, counts)[1:, :, None] > 0  # (A, 1, 1)
        typical = weights.deltas[informed[:, 0, 0]].square().mean(0)
        unknown = Weights(torch.zeros_like(typical), torch.where(informed, 0.0, typical))
        self.moments = NodeMoments(weights.at_nodes(problem.tree), unknown.at_nodes(problem.tree))
        self.notes = {**notes, "noise_var": self.noise_var.tolist()}

    def components(self, x: Tensor, env_index: Tensor) -> tuple[Tensor, Tensor]:
        """A single normal."""
        design = with_intercept(self.to_latents(x))
        mean, var = predictor_moments(design, env_index, self.moments)
        return mean[None], (var + self.noise_var).sqrt()[None]
