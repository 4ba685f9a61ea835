"""Point estimates with an L1 penalty on the changes of the features' own weights: DendroNet's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyro_tbr.evaluation.baselines.base import (
    MAX_COMPONENTS,
    Baseline,
    Problem,
    Rule,
    leading_components,
    with_intercept,
)
from pyro_tbr.evaluation.baselines.l1_tree import STRENGTHS, L1Rule
from pyro_tbr.evaluation.baselines.squares import Squares, Weights, l1_weights


@dataclass(frozen=True)
class DendroNet(Baseline):
    r"""L1-penalised changes of the features' own weights along the arcs; like DendroNet.

    No latents: squared error plus :math:`\lambda \sum_a |\delta_a|_1` is convex and solved to its
    minimum, lambda chosen on held-out rows. Where there are more than 50 features, their 50 leading
    components take their place. Predictive distributions as in ``L1TBR``.

    Attributes:
        strengths: The path of lambda, as in ``L1TBR``.

    Source:
        Layne, Dort, Hamelin, Li & Blanchette, Bioinformatics 36 (2020) i543.
    """

    strengths: tuple[float, ...] = STRENGTHS

    def _learn(self, problem: Problem) -> Rule:
        num_features = problem.x.shape[1]
        wide = num_features > MAX_COMPONENTS
        to_features = leading_components(problem) if wide else _as_they_are
        design, held_out = with_intercept(to_features(problem.x)), problem.validation
        parts = [
            Squares.of(design[rows], problem.y[rows], problem.env_index[rows])
            for rows in (~held_out, held_out)
            if rows.any()
        ]
        best: tuple[float, float, Tensor] | None = None
        weights: Weights | None = None
        for strength in self.strengths:
            weights = l1_weights(problem.tree, parts[0], parts[0].strength(strength), weights)
            nodes = weights.at_nodes(problem.tree)
            errors = parts[-1].errors(nodes[parts[-1].nodes])
            total = float(parts[-1].error(nodes[parts[-1].nodes]))
            if best is None or total < best[0]:
                best = total, strength, errors
        assert best is not None
        squares = Squares.of(design, problem.y, problem.env_index)
        final = l1_weights(problem.tree, squares, squares.strength(best[1]), weights)
        names = tuple(f"{'c' if wide else 'x'}{j}" for j in range(design.shape[1] - 1))
        notes = {"strength": best[1], "held_out": best[0]}
        return L1Rule(problem, to_features, final, best[2], names, notes, learnt=False)


def _as_they_are(x: Tensor) -> Tensor:
    return x
