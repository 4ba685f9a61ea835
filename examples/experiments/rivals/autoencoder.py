"""Latents learnt from the features alone, then a regression of each environment on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyro_tbr.errors import DataError
from pyro_tbr.evaluation.baselines.base import Baseline, Problem, Rule
from pyro_tbr.evaluation.baselines.l1_starts import cosine, standardised
from pyro_tbr.evaluation.baselines.regressions import LeafRule, leaf_rule
from pyro_tbr.models.encoders import Encoder

_HIDDEN = 128


@dataclass(frozen=True)
class AutoencoderLeafRegression(Baseline):
    r"""Sparse autoencoder, then ridge regression of each environment on its latents.

    The autoencoder minimises the mean squared error of the standardised features plus
    ``sparsity`` times the mean of :math:`|z|`, latents standardised inside the loss. Its encoder is
    the one of the other methods; its decoder is linear for a linear encoder, else a network of the
    same widths. The sparsity is the strongest whose regressions err within 1 % of the least on
    held-out rows. Regressions and held-out leaves as in ``LeafRegression``.

    Attributes:
        sparsities: To choose from.
        steps: Adam steps for each.
        lr: Peak learning rate; ``None``: 0.03 for a linear encoder, 0.003 for a network.
        batch_size: Rows a step.
    """

    has_latents: ClassVar[bool] = True

    sparsities: tuple[float, ...] = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
    steps: int = 1000
    lr: float | None = None
    batch_size: int = 512

    def _learn(self, problem: Problem) -> Rule:
        if problem.encoder == "identity":
            raise DataError("encoder='identity' leaves no latents to learn: use LeafRegression")
        train, held_out = ~problem.validation, problem.validation
        held_out = held_out if held_out.any() else train
        tried = []
        for sparsity in sorted(self.sparsities, reverse=True):
            encoder = self._trained(problem, sparsity)
            z = _latents(encoder, problem.x)
            rule = leaf_rule(z[train], problem.y[train], problem.env_index[train])
            mean, _ = rule.components(z[held_out], problem.env_index[held_out])
            error = float((problem.y[held_out] - mean.mean(0)).square().nanmean())
            tried.append((error, sparsity, encoder))
        enough = 1.01 * min(error for error, _, _ in tried)
        error, sparsity, encoder = next(one for one in tried if one[0] <= enough)
        rule = leaf_rule(_latents(encoder, problem.x), problem.y, problem.env_index)
        rule.notes = {**rule.notes, "sparsity": sparsity, "held_out": error}
        return LatentRule(encoder, rule)

    def _trained(self, problem: Problem, sparsity: float) -> Encoder:
        """The encoder after training on all rows' features, latents standardised."""
        encoder = problem.new_encoder()
        prepared, target = encoder.prepare(problem.x), problem.x.to(encoder.output_map.dtype)
        decoder = _decoder(problem)
        lr = self.lr or (0.03 if problem.encoder == "linear" else 0.003)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=lr)
        for step in range(self.steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * cosine(step, self.steps)
            rows = torch.randint(
                len(target), (min(self.batch_size, len(target)),), generator=problem.generator
            )
            z = encoder.body(prepared[rows])
            z = (z - z.mean(0)) / z.std(0, correction=0).clamp(min=1e-6)
            loss = (decoder(z) - target[rows]).square().mean() + sparsity * z.abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return standardised(encoder, problem.x)


class LatentRule(Rule):
    """A rule on an encoder's latents."""

    def __init__(self, encoder: Encoder, rule: LeafRule) -> None:
        self.rule, self.notes, self.latents = rule, rule.notes, partial(_latents, encoder)

    def components(self, x: Tensor, env_index: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the rule."""
        return self.rule.components(self.latents(x), env_index)


@torch.no_grad()
def _latents(encoder: Encoder, x: Tensor) -> Tensor:
    return encoder(x).double()


def _decoder(problem: Problem) -> nn.Module:
    """From latents (n, K) to features (n, D), its parameters from the problem's generator."""
    num_out = problem.x.shape[1]
    linear = problem.encoder == "linear"
    widths = [problem.latent_dim, *([] if linear else [_HIDDEN, _HIDDEN]), num_out]
    layers: list[nn.Module] = []
    for i, (num_in, width) in enumerate(zip(widths, widths[1:], strict=False)):
        layer = nn.utils.skip_init(nn.Linear, num_in, width)
        with torch.no_grad():
            layer.weight.normal_(0.0, num_in**-0.5, generator=problem.generator)
            layer.bias.zero_()
        layers += [layer, nn.SiLU()] if i < len(widths) - 2 else [layer]
    return nn.Sequential(*layers)
