"""The posterior: what came out of a fit, as a value. Asking it changes nothing."""

from __future__ import annotations

import copy
import os
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.data import Schema, align_env, align_features
from pyro_tbr.errors import DataError
from pyro_tbr.guides import Guide, NodeMoments, Statistics
from pyro_tbr.models import TreeModel
from pyro_tbr.posterior import tables
from pyro_tbr.posterior.identification import Identification, identify
from pyro_tbr.posterior.predictive import Form, NewLeaf, Prediction
from pyro_tbr.posterior.report import FitReport, Scaling
from pyro_tbr.posterior.summary import Summary, summarise
from pyro_tbr.tree import Tree, path_sum

_NUM_DRAWS = 400  # draws of the weights behind a prediction
_DRAW_SEED = 20_405_20482  # their own, so the same call gives the same numbers


class Posterior:
    """Posterior of root weights and arc changes, with the encoder they belong to.

    Args:
        model: The trained model, outcomes in the units of training.
        guide: The guide at its optimum.
        stats: Statistics of the rows it was fitted to.
        schema: What later tables have to fit.
        scaling: From the units of training to the user's.
        row_counts: Rows at each node, (V,).
        report: What the fit did.
    """

    def __init__(
        self,
        model: TreeModel,
        guide: Guide,
        stats: Statistics,
        schema: Schema,
        scaling: Scaling,
        row_counts: Tensor,
        report: FitReport,
    ) -> None:
        # Asking changes nothing: no dropout, no batch statistics in a user's own encoder.
        self.model, self.guide, self.stats = model.eval(), guide, stats
        # The last predictions' draws; derived, so kept out of files and copies need not care.
        self._kept: tuple[tuple[int, int], dict[str, Tensor], Tensor] | None = None
        self.schema, self.scaling, self.row_counts, self.report = (
            schema,
            scaling,
            row_counts,
            report,
        )

    @property
    def tree(self) -> Tree:
        """The environments."""
        return self.model.tree

    @property
    def latent_names(self) -> tuple[str, ...]:
        """``z0``, ``z1``, ..., then ``intercept`` where there is one."""
        return self.model.weight_names

    @property
    def outcome_names(self) -> tuple[str, ...]:
        """The user's column names, else ``y0``, ``y1``, ..."""
        return self.schema.outcome_names

    @property
    def history(self) -> pd.DataFrame:
        """Training of the encoder: stage, step, loss and held-out loss a row."""
        return self.report.history.copy()

    @torch.no_grad()
    def pips(self) -> pd.DataFrame:
        """Posterior inclusion probabilities of the changes.

        Returns:
            Rows (parent, child), columns latents; with several outcomes (outcome, latent). For a
            prior without gates (horseshoe, Gaussian) every change is included: 1.
        """
        inclusion = self.guide.delta_moments().inclusion
        return tables.pip_table(self.tree, inclusion, self.latent_names, self.outcome_names)

    @torch.no_grad()
    def deltas(self, level: float = 0.9) -> pd.DataFrame:
        """The changes, one row an arc, latent and outcome.

        Args:
            level: Probability of the interval.

        Returns:
            Columns parent, child, latent, outcome, pip, prior_pip, mean, sd, lower, upper (of the
            change, zero included, in outcome per unit of latent) and lfsr (local false sign rate:
            probability that the change is not of its likelier sign).
        """
        return tables.delta_table(
            self.tree,
            self.guide.delta_moments(),
            self.scaling.scale,
            self.latent_names,
            self.outcome_names,
            level,
        )

    @torch.no_grad()
    def node_weights(self) -> pd.DataFrame:
        """Weights at every node: node, latent, outcome, mean, sd, in outcome per unit of latent."""
        moments = self._node_moments()
        return tables.node_table(self.tree, moments, self.latent_names, self.outcome_names)

    def _node_moments(self) -> NodeMoments:
        """In the user's units, (V, W, Q)."""
        moments = self.guide.node_moments()
        scale = self.scaling.scale.to(moments.mean.device)
        mean = moments.mean.double() * scale
        if self.model.intercept:
            mean[:, -1] += self.scaling.loc.to(mean.device)
        return NodeMoments(mean, moments.var.double() * scale.square())

    @torch.no_grad()
    def encode(self, x: Any) -> Any:
        """Latents of new rows.

        Args:
            x: Features, columns matched by name where ``fit`` had a DataFrame.

        Returns:
            (N, K), a DataFrame where ``x`` is one.
        """
        features, index = align_features(self.schema, x)
        z = self._latents(features).cpu().numpy()
        if index is None:
            return z
        names = [name for name in self.latent_names if name != "intercept"]
        return pd.DataFrame(z, index=index, columns=names)

    def _latents(self, features: Tensor) -> Tensor:
        device = self.model.prior.root_loc.device
        return self.model.encoder(features.to(device)).double()

    @torch.no_grad()
    def predict(
        self, x: Any, env: Any, *, level: float = 0.9, num_draws: int = _NUM_DRAWS, seed: int = 0
    ) -> Prediction:
        """Predictive distribution of new outcomes.

        It holds the uncertainty of weights and hyperparameters, changes the prior expects on arcs
        without data, and the noise of an outcome.

        Args:
            x: Features, (N, D).
            env: Node labels (N,), or one label for all rows; a leaf without data is predicted from
                its deepest informed ancestor. A :class:`NewLeaf` for a leaf that is not in the
                tree. ``None`` for rows of an unknown environment: a mixture over the nodes that
                had rows, by their rows.
            level: Probability of the central interval.
            num_draws: Draws of the weights the mixture is made of.
            seed: Of these draws.

        Returns:
            Mean, sd, lower and upper in the user's units.
        """
        features, index = align_features(self.schema, x)
        design = self.model.design(self._latents(features)).cpu()
        draws, generator = self._prediction_draws(num_draws, seed)
        num_rows = len(design)
        if env is None:
            weights = self._unknown_environment(draws, generator)
            position = torch.zeros(num_rows, dtype=torch.int64)
        elif isinstance(env, NewLeaf):
            weights = self._new_leaf(env, draws, generator)
            position = torch.zeros(num_rows, dtype=torch.int64)
        else:
            nodes, position = align_env(self.tree, env, index, num_rows).unique(return_inverse=True)
            weights = self._weights_at(nodes, draws)
        form = Form(self.schema.outcome_ndim == 1, index, self.outcome_names)
        return Prediction(design, weights, position, draws.get("noise_scale"), level, form)

    def _prediction_draws(
        self, num_draws: int, seed: int
    ) -> tuple[dict[str, Tensor], torch.Generator]:
        """Draws for predictions, and the generator as they left it; the last ones are kept."""
        key = (num_draws, seed)
        if self._kept is None or self._kept[0] != key:
            generator = torch.Generator().manual_seed(_DRAW_SEED + seed)
            draws = self._draws(num_draws, generator)
            self._kept = (key, draws, generator.get_state())
        _, draws, state = self._kept
        generator = torch.Generator()
        generator.set_state(state)
        return draws, generator

    def _draws(self, num_draws: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws in the user's units, double precision, on the CPU."""
        draws = self.guide.sample(num_draws, generator)
        draws = {name: value.detach().cpu().double() for name, value in draws.items()}
        for name in ("root_weights", "deltas", "noise_scale"):
            if name in draws:
                draws[name] = draws[name] * self.scaling.scale
        if self.model.intercept:
            draws["root_weights"][:, -1] += self.scaling.loc
        return draws

    def _weights_at(self, nodes: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(S, n, W, Q) at some nodes; draws in blocks, so no table of all nodes and draws."""
        blocks = []
        size = max(1, 20_000_000 // draws["deltas"][0].numel())
        for rows in torch.arange(len(draws["deltas"])).split(size):
            every = path_sum(
                self.tree, draws["root_weights"][rows], draws["deltas"][rows], event_dim=2
            )
            blocks.append(every[:, nodes])
        return torch.cat(blocks)

    def _unknown_environment(self, draws: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """(S, 1, W, Q): each draw at a node picked by its rows."""
        nodes = self.row_counts.nonzero()[:, 0]
        weights = self._weights_at(nodes, draws)
        share = self.row_counts[nodes].double()
        pick = torch.multinomial(share, len(weights), replacement=True, generator=generator)
        return weights[torch.arange(len(weights)), pick].unsqueeze(1)

    def _new_leaf(
        self, leaf: NewLeaf, draws: dict[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """(S, 1, W, Q): the parent's weights plus one change from the prior."""
        parent = self.tree.index(leaf.parent)
        length = torch.ones(1)
        if leaf.length is not None and not leaf.length >= 0:
            raise DataError(f"NewLeaf: length={leaf.length!r} must be 0 or more")
        if leaf.length is not None and getattr(self.model.prior, "use_lengths", False):
            known = torch.tensor(self.tree.require_lengths(), dtype=torch.float64)
            length = torch.tensor([leaf.length / known.mean().item()])
        change = self.model.prior.draw_changes(
            {name: value.to(self.model.prior.root_loc) for name, value in draws.items()},
            generator,
            length,
        )["deltas"]
        at_parent = self._weights_at(torch.tensor([parent]), draws)
        return at_parent + change.cpu().double() * self.scaling.scale

    @torch.no_grad()
    def sample(self, n: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
        """Joint draws from the posterior.

        Args:
            n: Number of draws.
            seed: Of these draws alone.

        Returns:
            Arrays by Pyro site name, draws first: ``root_weights`` (n, W, Q), ``deltas`` and, for
            spike and slab, ``gates`` (n, A, W, Q), ``noise_scale`` (n, Q), in the user's units;
            scales of the prior in the units of training, where outcomes have variance 1.
        """
        generator = torch.Generator().manual_seed(seed)
        return {name: value.numpy() for name, value in self._draws(n, generator).items()}

    def identification(self) -> Identification:
        """Whether these environments and outcomes determine the latents, and if not, why."""
        return identify(self)

    def summary(self) -> Summary:
        """The fit in a page: sizes, noise, expected changes by latent, the surest changes."""
        return summarise(self)

    def copy(self) -> Posterior:
        """A deep copy."""
        return copy.deepcopy(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the posterior to a file that ``pyro_tbr.load`` reads, with no class in it."""
        from pyro_tbr.posterior.saving import save_posterior

        save_posterior(self, path)

    def __repr__(self) -> str:
        rows = int(self.row_counts.sum())
        return (
            f"Posterior({rows} rows at {int((self.row_counts > 0).sum())} nodes of {self.tree!r}, "
            f"{self.model.latent_dim} latents, {len(self.outcome_names)} outcomes)"
        )


def node_label(tree: Tree, index: int) -> Hashable:
    """The user's label of a node."""
    return tree.nodes[index]
