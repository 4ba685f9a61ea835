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

from pyro_tbr.data import Schema, SparseFeatures, align_features
from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.models import TreeModel
from pyro_tbr.posterior import drawing, inclusion, tables
from pyro_tbr.posterior.credible_sets import credible_set_table
from pyro_tbr.posterior.identification import Identification, identify
from pyro_tbr.posterior.predictive import Prediction
from pyro_tbr.posterior.report import FitReport, Scaling
from pyro_tbr.posterior.selection import exceedances, selected, shrinkages
from pyro_tbr.posterior.summary import Summary, summarise
from pyro_tbr.posterior.updating import updated
from pyro_tbr.tree import Tree

_NUM_DRAWS = 400  # draws of the weights behind a prediction


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
        self.prediction_draws = drawing.PredictionDraws()
        self.delta_tables: dict[float, pd.DataFrame] = {}  # by level, once asked for
        self.schema, self.scaling, self.row_counts = schema, scaling, row_counts
        self.report = report

    @property
    def tree(self) -> Tree:
        """The environments."""
        return self.model.tree

    @property
    def latent_names(self) -> tuple[str, ...]:
        """``z0``, ``z1``, ..., then ``intercept`` where there is one."""
        return self.model.weight_names

    @property
    def outcome_names(self) -> tuple[Hashable, ...]:
        """The user's column names, of whatever type they are, else ``y0``, ``y1``, ..."""
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
        pips = self.guide.delta_moments().inclusion
        return tables.pip_table(self.tree, pips, self.latent_names, self.outcome_names)

    @torch.no_grad()
    def deltas(self, level: float = 0.9) -> pd.DataFrame:
        """The changes, one row an arc, latent and outcome.

        Args:
            level: Probability of the interval.

        Returns:
            Columns parent, child, latent, outcome, pip, prior_pip, mean, sd, lower, upper (of the
            change, zero included, in outcome per unit of latent), lfsr (local false sign rate:
            probability that the change is not of its likelier sign; Stephens, Biostatistics 18
            (2017) 275) and log_odds (of inclusion: finite, and they differ where PIPs round to 1;
            NaN for a prior without gates). For a horseshoe, and where arcs with gates that are off
            change a little (``SpikeSlabPrior(spike_scale=)``), lower, upper and lfsr are those of
            draws (their seed their own), for others in closed form. A PIP is no p-value, and PIPs
            summed over arcs are an expected number of changes, not the probability of one: see
            :meth:`path_pips`.
        """
        if level not in self.delta_tables:  # a horseshoe's takes seconds
            self.delta_tables[level] = inclusion.deltas(self, level)
        return self.delta_tables[level].copy()

    def path_pips(self, node: Hashable) -> pd.Series | pd.DataFrame:
        """Probability that some arc on the way from the root to a node changed.

        Arcs that share the evidence for one change have a small PIP each, and their path a large
        one. For ``guide="tree"`` it is the ratio of the log evidence with and without changes on
        the path, within 0.02 (the cap on components); for mean field one minus the product of
        1 - PIP; for other guides a share of 4,000 draws, standard error up to 0.008.

        Args:
            node: A node's label; for the root all are 0.

        Returns:
            By latent; with several outcomes latents by outcomes.
        """
        return inclusion.path_pips(self, node)

    def credible_sets(
        self, coverage: float = 0.95, *, min_purity: float | None = None, num_draws: int = 4000
    ) -> pd.DataFrame:
        """Sets of arcs that hold a change with this probability or more, one change a set.

        How they are found: :mod:`pyro_tbr.posterior.credible_sets`.

        Args:
            coverage: Least probability that some arc of a set changed.
            min_purity: Least probability that an arc of a set that changed is the only one of it;
                ``None``: just above what independent arcs can reach, 0.25 at 0.95.
            num_draws: Joint draws of the gates, their seed their own; with 4,000 the standard
                error of a coverage of 0.95 is 0.003.

        Returns:
            Columns latent, outcome, set (1, 2, ...), arcs (a tuple of (parent, child), likeliest
            first), coverage, purity; no rows where nothing is sure.
        """
        return credible_set_table(self, coverage, min_purity, num_draws)

    def select(self, fdr: float = 0.05) -> pd.DataFrame:
        """The changes to report so that the expected share of wrong ones is at most ``fdr``.

        Arcs without data below them are left out, as their PIP is the prior's.

        Args:
            fdr: Bayesian false discovery rate; see :func:`~pyro_tbr.posterior.select_at_fdr`.

        Returns:
            Rows and columns of :meth:`deltas`, surest first, and ``fdr``: the level of the list
            down to this row. The last row's, the realised level, is in ``.attrs["fdr"]``.
        """
        return selected(self, fdr)

    def exceedance(self, threshold: float) -> pd.DataFrame:
        """Probabilities that changes are larger in size than a threshold; for every prior.

        Args:
            threshold: In outcome per unit of latent, 0 or more.

        Returns:
            Columns parent, child, latent, outcome, exceedance (a share of 4,000 draws, standard
            error up to 0.008), threshold.
        """
        return exceedances(self, threshold)

    def shrinkage(self) -> pd.DataFrame:
        """How much of each change a horseshoe prior takes away, between 0 and 1.

        Near 1 where the change is shrunk to nothing, near 0 where it is left as the data have it;
        1 less it is what comes closest to an inclusion probability, but it is none.

        Returns:
            Columns parent, child, latent, outcome, shrinkage (posterior mean).

        Raises:
            DataError: The prior is no horseshoe, or the guide is not exact along the tree.
        """
        return shrinkages(self)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def update(self, x: Any, y: Any, env: Any, *, groups: Any = None) -> Posterior:
        """The posterior after a few more rows, without training; this one stays as it is.

        Encoder, noise and scales of the prior are kept. Weights and changes become those of a fit
        to all rows; for binary outcomes nearly, as earlier rows keep their quadratic expansion.

        Args:
            x: Features, as in :meth:`encode`.
            y: Outcomes, as in ``fit``, NaN where not observed.
            env: Node labels, or one for all rows, with rows before or not; no :class:`NewLeaf`.
            groups: Labels of groups, (N,), if the fit had them; none is taken for one of before.
        """
        return updated(self, x, y, env, groups)

    @torch.no_grad()
    def node_weights(self) -> pd.DataFrame:
        """Weights at every node: node, latent, outcome, mean, sd, in outcome per unit of latent."""
        moments = drawing.user_moments(self)
        return tables.node_table(self.tree, moments, self.latent_names, self.outcome_names)

    @torch.no_grad()
    def encode(self, x: Any) -> Any:
        """Latents of new rows.

        Args:
            x: Features, columns matched by name where ``fit`` had a DataFrame.

        Returns:
            (N, K), a DataFrame where ``x`` is one.
        """
        latents, index = self.align_latents(x)
        z = latents.cpu().numpy()
        columns = self.latent_names[: z.shape[1]]
        return z if index is None else pd.DataFrame(z, index=index, columns=columns)

    def align_latents(self, x: Any) -> tuple[Tensor, pd.Index | None]:
        """Latents (N, K) of the user's features, and their index."""
        features, index = align_features(self.schema, x, keep_sparse=True)
        return self.latents(features), index

    def latents(self, features: Tensor | SparseFeatures) -> Tensor:
        """Latents (N, K) of aligned features (N, D), in double precision."""
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
        return drawing.predicted(self, x, env, level, num_draws, seed)

    @torch.no_grad()
    def sample(self, n: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
        """Joint draws from the posterior.

        Args:
            n: Number of draws.
            seed: Of these draws alone.

        Returns:
            Arrays by Pyro site name, draws first: ``root_weights`` (n, W, Q), ``deltas`` and, for
            spike and slab, ``gates`` (n, A, W, Q), ``noise_scale`` (n, Q), in the user's units
            (a delta whose gate is off is small, or zero if ``spike_scale`` is); scales of the prior
            in the units of training, where outcomes have variance 1.
        """
        drawing.check_number(n, "n")
        draws = drawing.user_draws(self, n, torch.Generator().manual_seed(seed))
        return {name: value.numpy() for name, value in draws.items()}

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
