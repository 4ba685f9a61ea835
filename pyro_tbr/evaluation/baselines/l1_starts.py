"""Encoders from many random starts at once, for the joint L1 objective.

Latents are standardised inside the loss: their scale cannot grow to make changes, and so the
penalty, small. Two kinds with one face: linear encoders, whose error needs sums over rows only,
and networks, trained on minibatches.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pyro_tbr.evaluation.baselines.base import Problem, with_intercept
from pyro_tbr.evaluation.baselines.squares import Squares
from pyro_tbr.models.encoders import Encoder, LinearEncoder

_LEAST_SD = 1e-6


def all_starts(problem: Problem, size: int | None, batch_size: int) -> Starts:
    """S random starts of the problem's encoder; ``None``: as many as are usual."""
    encoder = problem.new_encoder()
    if isinstance(encoder, LinearEncoder):
        shape = (size or 64, encoder.width, encoder.latent_dim)
        directions = torch.randn(shape, generator=problem.generator)
        return LinearStarts(problem, encoder, directions)
    encoders = [encoder]
    for _ in range((size or 4) - 1):
        encoders.append(copy.deepcopy(encoder))
        encoders[-1].reset(problem.generator)  # a user's module starts where the user put it
    return NetworkStarts(problem, encoders, batch_size)


class LinearStarts:
    """Linear maps of whitened features: a column of length 1 makes a latent of variance 1.

    Args:
        problem: The data.
        template: The encoder, prepared.
        directions: Starts, (S, R, K).

    Attributes:
        parameters: What is trained, the starts first in every tensor.
    """

    steps, lr = 500, 0.03

    def __init__(self, problem: Problem, template: LinearEncoder, directions: Tensor) -> None:
        self.problem, self.template = problem, template
        self.directions = directions.clone().requires_grad_()
        self.parameters = [self.directions]
        design = with_intercept(template.prepare(problem.x).double())
        self._sums = [
            Squares.of(design[rows], problem.y[rows], problem.env_index[rows]).to(torch.float32)
            for rows in _parts(problem)
        ]

    def _predictors(self, weights: Tensor, nodes: Tensor) -> Tensor:
        """Weights of the prepared features and the intercept, (S, E, R + 1, Q)."""
        unit = self.directions / self.directions.norm(dim=1, keepdim=True)
        slopes, intercept = weights[:, nodes].tensor_split([-1], dim=2)
        return torch.cat([unit[:, None] @ slopes, intercept], dim=2)

    def loss(self, weights: Tensor) -> Tensor:
        """Mean squared error (S,) in training, given weights (S, V, K + 1, Q) of the nodes."""
        sums = self._sums[0]
        return sums.error(self._predictors(weights, sums.nodes))

    @torch.no_grad()
    def error(self, weights: Tensor, *, held_out: bool) -> Tensor:
        """Mean squared error by outcome, (S, Q), over all rows of training or all held out.

        Where none is held out, of those of training.
        """
        sums = self._sums[-1 if held_out else 0]
        return sums.errors(self._predictors(weights, sums.nodes))

    def one(self, index: int) -> Starts:
        """One of the starts, to go on with alone on all rows."""
        directions = self.directions.detach()[index : index + 1]
        return LinearStarts(_on_all_rows(self.problem), self.template, directions)

    def encoder(self) -> Encoder:
        """The first start's encoder, latents standardised over all rows."""
        encoder = copy.deepcopy(self.template)
        encoder.set_directions(self.directions.detach()[0])
        return standardised(encoder, self.problem.x)


class NetworkStarts:
    """Networks of one architecture, evaluated by ``vmap``; each minibatch standardises itself.

    Trained in place of the encoders are stacked copies of their parameters. Methods as in
    :class:`LinearStarts`; ``loss`` is over the next minibatch.
    """

    steps, lr = 600, 0.003

    def __init__(self, problem: Problem, encoders: list[Encoder], batch_size: int) -> None:
        self.problem, self.batch_size, self._encoders = problem, batch_size, encoders
        bodies = [_Body(encoder) for encoder in encoders]
        stacked, self._buffers = stack_module_state(bodies)
        self._stacked = {k: v.detach().clone().requires_grad_() for k, v in stacked.items()}
        self.parameters = list(self._stacked.values())
        self._body = copy.deepcopy(bodies[0]).to("meta")
        self._prepared = encoders[0].prepare(problem.x)
        self._y = problem.y.to(self._prepared.dtype)
        self._rows = _parts(problem)
        self._order = torch.empty(0, dtype=torch.int64)

    def _raw(self, rows: Tensor) -> Tensor:
        """Latents before standardisation, (S, n, K)."""

        def one(state: dict[str, Tensor]) -> Tensor:
            return functional_call(self._body, state, (self._prepared[rows],))

        return vmap(one)({**self._stacked, **self._buffers})

    def _squared(self, z: Tensor, weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Squared errors (S, n, Q), 0 where nothing was observed; and what was observed (n, Q)."""
        at = weights[:, self.problem.env_index[rows]]  # (S, n, K + 1, Q)
        mean = (with_intercept(z)[..., None] * at).sum(2)
        seen = ~self._y[rows].isnan()
        return torch.where(seen, self._y[rows] - mean, 0.0).square(), seen

    def loss(self, weights: Tensor) -> Tensor:
        """See :meth:`LinearStarts.loss`."""
        size = min(self.batch_size, len(self._rows[0]))
        if len(self._order) < size:
            shuffled = torch.randperm(len(self._rows[0]), generator=self.problem.generator)
            self._order = self._rows[0][shuffled]
        rows, self._order = self._order[:size], self._order[size:]
        z = self._raw(rows)
        z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True).clamp(min=_LEAST_SD)
        squared, seen = self._squared(z, weights, rows)
        return squared.sum((1, 2)) / seen.sum().clamp(min=1)

    @torch.no_grad()
    def error(self, weights: Tensor, *, held_out: bool) -> Tensor:
        """See :meth:`LinearStarts.error`; latents are standardised by the rows of training."""
        z = self._raw(self._rows[0])
        loc, sd = z.mean(1, keepdim=True), z.std(1, keepdim=True).clamp(min=_LEAST_SD)
        rows = self._rows[-1 if held_out else 0]
        z = (self._raw(rows) - loc) / sd
        squared, seen = self._squared(z, weights, rows)
        return squared.sum(1) / seen.sum(0).clamp(min=1)

    def one(self, index: int) -> Starts:
        """See :meth:`LinearStarts.one`."""
        problem = _on_all_rows(self.problem)
        return NetworkStarts(problem, [self._trained(index)], self.batch_size)

    def _trained(self, index: int) -> Encoder:
        encoder = copy.deepcopy(self._encoders[index])
        state = {k: v.detach()[index] for k, v in {**self._stacked, **self._buffers}.items()}
        _Body(encoder).load_state_dict(state)
        return encoder

    def encoder(self) -> Encoder:
        """See :meth:`LinearStarts.encoder`."""
        return standardised(self._trained(0), self.problem.x)


Starts = LinearStarts | NetworkStarts


def _parts(problem: Problem) -> list[Tensor]:
    """Positions of the rows of training, then of those held out, if there are any."""
    held_out = problem.validation
    return [rows.nonzero()[:, 0] for rows in (~held_out, held_out) if rows.any()]


def _on_all_rows(problem: Problem) -> Problem:
    return replace(problem, validation=torch.zeros_like(problem.validation))


class _Body(nn.Module):
    """An encoder's trained part as a module of its own."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.inner = encoder

    def forward(self, prepared: Tensor) -> Tensor:
        return self.inner.body(prepared)


@torch.no_grad()
def standardised(encoder: Encoder, x: Tensor) -> Encoder:
    """The encoder with an output map that gives its latents mean 0 and variance 1 on these rows."""
    z = encoder(x)
    encoder.set_output(z.mean(0), torch.diag(1 / z.std(0, correction=0).clamp(min=_LEAST_SD)))
    return encoder


def cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))
