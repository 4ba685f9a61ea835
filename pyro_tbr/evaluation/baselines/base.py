"""The face all baselines share: ``Baseline(options).fit(tree, x, y, env)`` and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from pyro_tbr.data import (
    RowOrder,
    Schema,
    align_env,
    align_features,
    align_groups,
    align_training,
    varying_columns,
)
from pyro_tbr.errors import DataError
from pyro_tbr.evaluation.baselines.prediction import BaselinePrediction
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.models import Encoder, LinearEncoder, TreeModel
from pyro_tbr.models.encoders import PreparedEncoder
from pyro_tbr.posterior.form import Form
from pyro_tbr.posterior.tables import long_table
from pyro_tbr.tree import Tree

_VALIDATION_SHARE = 0.2
MAX_COMPONENTS = 50  # leading components of wide features that encoders and tree weights see


@dataclass(frozen=True)
class Problem:
    """What a baseline learns from.

    Attributes:
        tree: The environments.
        x: Features, standardised, (N, D), float64; constant columns are 0.
        y: Outcomes, standardised, (N, Q), NaN where not observed.
        env_index: Node of each row, (N,) int64.
        validation: Rows to choose with, (N,) bool: the same for every baseline with this seed.
        latent_dim: K.
        encoder: As in :class:`~pyro_tbr.TreeModel`.
        generator: Randomness.
        seed: What it was seeded with.
        groups: Number of each row's group within its environment, (N,); ``None``: none given.
    """

    tree: Tree
    x: Tensor
    y: Tensor
    env_index: Tensor
    validation: Tensor
    latent_dim: int
    encoder: str | nn.Module
    generator: torch.Generator
    seed: int
    groups: Tensor | None = None

    def new_encoder(self) -> Encoder:
        """An encoder as ``fit`` would build it, untrained, its preparation set from all rows."""
        model = TreeModel(self.tree, self.latent_dim, self.encoder)
        encoder = model.build(self.x.shape[1], 1).encoder.eval()
        if isinstance(encoder, PreparedEncoder):
            encoder.num_components = MAX_COMPONENTS
            encoder.fit_preparation(self.x)
            encoder.reset(self.generator)
        return encoder


class Rule(ABC):
    """What a baseline learnt, for standardised features and outcomes; abstract.

    Attributes:
        deltas: Point estimates of the changes, (A, W, Q) with the intercept last; ``None`` where
            the method has none.
        latent_names: Names of the W weights.
        latents: Learnt latents (n, K) of features (n, D); ``None`` where the method learns none.
        notes: What was chosen on the way, by name.
    """

    deltas: Tensor | None = None
    latent_names: tuple[str, ...] = ()
    latents: Callable[[Tensor], Tensor] | None = None
    notes: dict[str, Any]

    @abstractmethod
    def components(self, x: Tensor, env_index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Means and standard deviations (S, n, Q) of an equal mixture of S normals.

        No standard deviations where the method has no predictive distribution.
        """


class Baseline(ABC):
    """A method to compare with; abstract. Options are fields of the frozen dataclass it is.

    Attributes:
        distribution: ``predict`` gives a predictive distribution; else only its mean, the rest
            is NaN.
        has_latents: ``encode`` gives latents that were learnt.
    """

    distribution: ClassVar[bool] = True
    has_latents: ClassVar[bool] = False

    @torch.inference_mode(False)
    @torch.enable_grad()
    def fit(
        self,
        tree: Tree,
        x: Any,
        y: Any,
        env: Any,
        *,
        latent_dim: int = 5,
        encoder: str | nn.Module = "linear",
        seed: int = 0,
        groups: Any = None,
    ) -> FittedBaseline:
        """Fits the method to rows of data, with the arguments of :func:`pyro_tbr.fit`.

        All baselines take all arguments, so one loop serves them; methods without latents do not
        look at ``latent_dim`` and ``encoder``. Outcomes are taken as numbers with Gaussian noise.

        Args:
            tree: The environments.
            x: Features, (N, D): array, tensor, DataFrame or scipy sparse.
            y: Outcomes, (N,) or (N, Q), NaN where not observed.
            env: Node label of each row, (N,).
            latent_dim: K.
            encoder: ``"linear"``, ``"mlp"`` or a torch module from (N, D) to (N, K); features reach
                it standardised.
            seed: Of all randomness, and of the rows held out to choose with: baselines with one
                seed choose on the same rows.
            groups: As in ``fit``; methods that are no fit of ours do not look at it.

        Raises:
            DataError: Values that cannot be used.
            ShapeError: Arrays that do not fit together.
            TreeError: Labels that are not in the tree.
        """
        rows, schema = align_training(tree, x, y, env)
        assert rows.y is not None  # align_training asks for it
        features = _standardiser(rows.x)
        loc = rows.y.nanmean(0)
        scale = (rows.y - loc).square().nanmean(0).sqrt()
        scaling = Scaling(loc, torch.where(scale > 1e-12 * loc.abs(), scale, 1.0))
        problem = Problem(
            tree=tree,
            x=features(rows.x),
            y=(rows.y - scaling.loc) / scaling.scale,
            env_index=rows.env_index,
            validation=_validation_rows(rows.env_index, seed),
            latent_dim=latent_dim,
            encoder=encoder,
            generator=torch.Generator().manual_seed(seed),
            seed=seed,
            groups=None if groups is None else align_groups(groups, rows.env_index, rows.order),
        )
        rule = self._learn(problem)
        return FittedBaseline(self, rule, tree, schema, features, scaling)

    @abstractmethod
    def _learn(self, problem: Problem) -> Rule:
        """The method itself."""


@dataclass(frozen=True)
class FittedBaseline:
    """A baseline after ``fit``; asking it changes nothing.

    Attributes:
        baseline: The method and its options.
        rule: What it learnt, in standardised units.
        tree: The environments.
        schema: What later tables have to fit.
        features: From the user's features to standardised ones.
        scaling: From standardised outcomes to the user's.
    """

    baseline: Baseline
    rule: Rule
    tree: Tree
    schema: Schema
    features: Callable[[Tensor], Tensor]
    scaling: Scaling

    @property
    def notes(self) -> dict[str, Any]:
        """What was chosen on the way (penalties, noise in standardised units, ...), by name."""
        return dict(self.rule.notes)

    def predict(self, x: Any, env: Any, level: float = 0.9) -> BaselinePrediction:
        """Predicts new outcomes, at leaves with data and at held-out leaves of the tree.

        Args:
            x: Features, (N, D), columns matched by name where ``fit`` had a DataFrame.
            env: Node labels (N,), or one label for all rows.
            level: Probability of the central interval.
        """
        table, index = align_features(self.schema, x)
        order = RowOrder(len(table)).or_of(x=x, env=env)
        nodes = align_env(self.tree, env, order)
        standard = self.features(table)
        form = Form(self.schema.outcome_ndim == 1, index, self.schema.outcome_names, order)

        def components(rows: Tensor) -> tuple[Tensor, Tensor | None]:
            mean, sd = self.rule.components(standard[rows], nodes[rows])
            scale, loc = self.scaling.scale, self.scaling.loc
            return mean * scale + loc, None if sd is None else sd * scale

        return BaselinePrediction(components, len(table), level, form, self.schema)

    def encode(self, x: Any) -> Any:
        """Latents of new rows, (N, K), a DataFrame where ``x`` is one.

        Raises:
            DataError: The method learns no latents.
        """
        table, index = align_features(self.schema, x)
        if self.rule.latents is None:
            raise DataError(f"{type(self.baseline).__name__} learns no latents")
        z = self.rule.latents(self.features(table)).detach().double().numpy()
        names = [f"z{k}" for k in range(z.shape[1])]
        return z if index is None else pd.DataFrame(z, index=index, columns=names)

    def deltas(self) -> pd.DataFrame:
        """Estimated changes: parent, child, latent, outcome, mean, in rows as Posterior.deltas().

        In outcome per standard deviation of the latent or feature.

        Raises:
            DataError: The method has no changes along arcs.
        """
        if self.rule.deltas is None:
            raise DataError(f"{type(self.baseline).__name__} has no changes along arcs")
        columns = {"mean": self.rule.deltas.double() * self.scaling.scale}
        return long_table(self.tree, columns, self.rule.latent_names, self.schema.outcome_names)


def _standardiser(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Takes features less their mean, over their standard deviation; constant ones become 0."""
    alive, scale = varying_columns(x), x.std(0, correction=0)
    inverse = torch.where(alive, 1 / torch.where(alive, scale, 1.0), 0.0)
    return partial(_standardised, loc=x.mean(0), inverse=inverse)


def _standardised(x: Tensor, loc: Tensor, inverse: Tensor) -> Tensor:
    return (x - loc) * inverse


def _validation_rows(env_index: Tensor, seed: int) -> Tensor:
    """Rows to choose with, (N,) bool: some of each environment's, at random, one stays at least."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(env_index), generator=generator)
    chosen = torch.zeros(len(env_index), dtype=torch.bool)
    for node in env_index.unique():
        rows = (env_index == node).nonzero()[:, 0]
        number = min(round(_VALIDATION_SHARE * len(rows)), len(rows) - 1)
        chosen[rows[order[rows].argsort()[:number]]] = True
    return chosen


def leading_components(problem: Problem) -> Callable[[Tensor], Tensor]:
    """From features to their whitened leading principal components, (n, R), at most 50."""
    num_features = problem.x.shape[1]
    encoder = LinearEncoder(num_features, 1, min(num_features, MAX_COMPONENTS))
    encoder.fit_preparation(problem.x)
    return lambda x: encoder.prepare(x).double()


def with_intercept(z: Tensor) -> Tensor:
    """With a last column of ones, (..., K) to (..., K + 1)."""
    return torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)
