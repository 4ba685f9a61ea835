"""The posterior: what came out of a fit, as a value. Asking it changes nothing."""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import pyro_tbr.posterior.saving as saving
import pyro_tbr.posterior.tables as tables
from pyro_tbr.data import align_features, as_given
from pyro_tbr.posterior.bases import bases_table
from pyro_tbr.posterior.change_answers import ChangeAnswers
from pyro_tbr.posterior.checking import check_of
from pyro_tbr.posterior.convergence import convergence_table
from pyro_tbr.posterior.feature_answers import FeatureAnswers
from pyro_tbr.posterior.identification import Identification, identify
from pyro_tbr.posterior.model_check import ModelCheck
from pyro_tbr.posterior.prediction import Prediction, predictor
from pyro_tbr.posterior.summary import Summary, summarise
from pyro_tbr.posterior.updating import updated
from pyro_tbr.posterior.view import check_number, check_seed
from pyro_tbr.progress import querying


class Posterior(ChangeAnswers, FeatureAnswers):
    """Posterior of root weights and arc changes, with the encoder they belong to.

    A value: nothing about it changes, ``dataclasses.replace`` makes another. It may be asked from
    several threads at once, and each call gets the numbers of its own seed.
    """

    @property
    def history(self) -> pd.DataFrame:
        """Training of the encoder: stage, step, loss and held-out loss a row."""
        return self.report.history.copy()

    @torch.inference_mode(False)
    @torch.enable_grad()
    def update(
        self,
        x: Any,
        y: Any,
        env: Any,
        *,
        groups: Any = None,
        exposure: Any = None,
        trials: Any = None,
        y_se: Any = None,
        row_weights: Any = None,
    ) -> Posterior:
        """The posterior after a few more rows, without training; this one stays as it is.

        Encoder and scales of the prior are kept, and of the noise what environments share. Weights,
        changes and each environment's noise become those of a fit to all rows; for outcomes that
        are not normal nearly, as earlier rows keep their quadratic expansion.

        Args:
            x: Features, as in :meth:`encode`.
            y: Outcomes, as in ``fit``, NaN where not observed.
            env: Node labels, or one for all rows, with rows before or not; no :class:`NewLeaf`.
            groups: Labels of groups, (N,), if the fit had them; none is taken for one of before.
            exposure: As in ``fit``, and so the other three.
            trials: Likewise.
            y_se: Likewise.
            row_weights: Likewise.
        """
        given = as_given(exposure, trials, y_se, row_weights)
        return updated(self, x, y, env, groups, given)

    @torch.no_grad()
    def node_weights(self) -> pd.DataFrame:
        """Weights at every node: node, latent, outcome, mean, sd, in outcome per unit of latent.

        The intercept is that where all latents are 0; of known latents its sd has the error of the
        point at which it is judged, see ``report.reference_cov``.
        """
        names = self.latent_names, self.outcome_names
        return tables.node_table(self.tree, self.user_moments(), *names)

    @torch.no_grad()
    def noise(self, level: float = 0.9) -> pd.DataFrame:
        """Noise standard deviation at every node, in the outcome's unit.

        Args:
            level: Probability of the interval.

        Returns:
            Columns node, outcome, mean, lower, upper. At nodes without rows what the others lead to
            expect. With ``latent_noise`` it is what is left beside the noise of the latents.

        Raises:
            DataError: The likelihood has no noise scale.
        """
        return tables.noise_table(self, level)

    @torch.no_grad()
    def latent_noise(self, level: float = 0.9) -> pd.DataFrame:
        """Standard deviations of the latents' noise, ``GaussianLikelihood(latent_noise=)``.

        Args:
            level: Probability of the interval.

        Returns:
            Rows latents, columns mean, lower, upper: in standard deviations of the latent, or in
            the feature's unit where the features are the latents. 0 for latents that outcomes do
            not need. That of a latent with small effects is the prior's.

        Raises:
            DataError: The latents of this model have no noise.
        """
        return tables.latent_noise_table(self, level)

    def noise_correlation(self) -> pd.DataFrame:
        """Correlations of the noise of a row's outcomes, outcomes by outcomes.

        Learnt with ``GaussianLikelihood(covariance="full")``; else the model takes them for none,
        and ``check().correlations`` are those of the residuals.

        Raises:
            DataError: Correlations differ between environments, as with ``latent_noise``.
        """
        return tables.noise_correlation(self)

    @torch.no_grad()
    def encode(self, x: Any) -> Any:
        """Latents of new rows.

        Args:
            x: Features, columns matched by name where ``fit`` had a DataFrame.

        Returns:
            (N, K), a DataFrame where ``x`` is one. Latents that the outcomes do not need are zero
            everywhere, see ``identification()``.
        """
        features, index = align_features(self.schema, x, keep=True)
        z = self.latents(features).cpu().numpy()
        columns = self.latent_names[: z.shape[1]]
        return z if index is None else pd.DataFrame(z, index=index, columns=columns)

    def predict(
        self,
        x: Any,
        env: Any,
        *,
        level: float = 0.9,
        num_draws: int = 400,
        seed: int = 0,
        exposure: Any = None,
        trials: Any = None,
        y_se: Any = None,
    ) -> Prediction:
        """Predictive distribution of new outcomes.

        It holds the uncertainty of weights and hyperparameters, changes the prior expects on arcs
        without data, and the noise of an outcome. Mean and sd are in closed form; quantiles,
        samples and densities are from draws, made when they are asked for.

        Args:
            x: Features, (N, D).
            env: Node labels (N,), or one label for all rows; a leaf without data is predicted from
                its deepest informed ancestor. A :class:`NewLeaf` for a leaf that is not in the
                tree. ``None`` for rows of an unknown environment: a mixture over the nodes that
                had rows, by their rows.
            level: Probability of the central interval.
            num_draws: Draws of the weights behind quantiles, samples and densities.
            seed: Of these draws.
            exposure: Of the new rows, as in ``fit``; 1 where not given.
            trials: Likewise.
            y_se: Of the measurements to predict, as in ``fit``; 0 where not given.

        Returns:
            Mean, sd, lower and upper in the user's units.
        """
        given = as_given(exposure, trials, y_se)
        with querying("predict"):
            return predictor(self, x, env, level, num_draws, seed, given).prediction()

    def predict_blocks(
        self,
        x: Any,
        env: Any,
        *,
        block_rows: int = 100_000,
        level: float = 0.9,
        num_draws: int = 400,
        seed: int = 0,
        exposure: Any = None,
        trials: Any = None,
        y_se: Any = None,
    ) -> Iterator[tuple[slice, Prediction]]:
        """The same block by block, for more rows than memory holds.

        Args:
            x: Features, as in :meth:`predict`; those in a file are read as blocks are asked for.
            env: As in :meth:`predict`, for all rows; and so all others.
            block_rows: Rows of a block.
            level: See :meth:`predict`.
            num_draws: Likewise.
            seed: Likewise; all blocks share their draws of the weights.
            exposure: Likewise.
            trials: Likewise.
            y_se: Likewise.

        Returns:
            Which rows they are, a slice, and their prediction, block after block.

        Example:
            >>> import numpy as np
            >>> import pyro_tbr as tbr
            >>> sim = tbr.simulate(num_leaves=3, latent_dim=1, num_features=1, rows_per_leaf=9)
            >>> model = tbr.TreeModel(sim.tree, 1, encoder="identity")
            >>> posterior = tbr.fit(model, sim.x, sim.y, sim.env, progress=False)
            >>> mean = np.empty(len(sim.y))
            >>> for rows, some in posterior.predict_blocks(sim.x, sim.env, block_rows=10):
            ...     mean[rows] = some.mean
        """
        given = as_given(exposure, trials, y_se)
        return predictor(self, x, env, level, num_draws, seed, given).blocks(block_rows)

    def score(
        self,
        x: Any,
        y: Any,
        env: Any,
        *,
        level: float = 0.9,
        num_draws: int = 400,
        seed: int = 0,
        exposure: Any = None,
        trials: Any = None,
        y_se: Any = None,
    ) -> pd.DataFrame:
        """How well outcomes of other rows are predicted, a row an outcome.

        Of the rows of the fit it is too good: hold some out.

        Args:
            x: Features, as in :meth:`predict`; and so all others but ``y``.
            y: Outcomes, as ``fit`` took them; what is NaN is left out.
            env: Node labels, or one for all rows.
            level: Probability of the interval whose coverage is told.
            num_draws: Draws of the weights behind log scores and intervals.
            seed: Of these draws.
            exposure: Of the rows.
            trials: Likewise.
            y_se: Likewise.

        Returns:
            Columns num_rows, log_score, r2, auroc, coverage: see :meth:`Prediction.score`. One
            number for all is ``score(x, y, env)["r2"].mean()``, as scikit-learn has it.
        """
        given = as_given(exposure, trials, y_se)
        return predictor(self, x, env, level, num_draws, seed, given).prediction().score(y)

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
            in the units of training, where outcomes have variance 1. The root's intercept is that
            where all latents are 0, its changes are those at the latents' reference point, as in
            :meth:`deltas`. After ``average_bases`` also ``basis`` (n,), and then weights and
            changes act on the latents of the fit, gates are of those of the basis.
        """
        check_number(n, "n")
        check_seed(seed)
        with querying("sample"):
            draws = self.draws(n, torch.Generator().manual_seed(seed))
        return {name: value.numpy() for name, value in self.user_draws(draws).items()}

    def convergence(self) -> pd.DataFrame:
        """How well the chains of a posterior by ``sample_posterior`` agree, a row a kind of number.

        Returns:
            By quantity (gates, node weights, each learnt hyperparameter): number (of those that
            move), max_rhat and where_rhat (largest R-hat, rank-normalised, of split chains: should
            be 1.01 or less), min_ess and where_ess (smallest bulk effective number of draws).
            Where no row says anything it is not looked at.

        Raises:
            DataError: This posterior is no sampled one.

        Source:
            Vehtari, Gelman, Simpson, Carpenter & Bürkner, Bayesian Analysis 16 (2021) 667.
        """
        return convergence_table(self)

    def bases(self) -> pd.DataFrame:
        """Bases of the latents that a posterior by ``average_bases`` is averaged over, a row each.

        Returns:
            By basis, that of the fit first: gap (ELBO behind that of the fit, nats, of outcomes
            that correlate for what they are worth; negative if ahead), weight (they sum to 1), and
            for every latent how alike that of the basis and that of the fit are (absolute
            correlation). A latent whose mean by weight is near 1 means the same in all of them.

        Raises:
            DataError: This posterior is no averaged one.
        """
        return bases_table(self)

    def identification(self) -> Identification:
        """Whether these environments and outcomes determine the latents, and if not, why."""
        return identify(self)

    def check(
        self,
        x: Any = None,
        y: Any = None,
        env: Any = None,
        *,
        exposure: Any = None,
        trials: Any = None,
        y_se: Any = None,
        row_weights: Any = None,
    ) -> ModelCheck:
        """Whether the model fits: noise by environment, curvature, missing latents, outliers.

        Args:
            x: Features of rows to check by, as in :meth:`encode`; with none given the check that
                ``fit`` made by its own rows.
            y: Their outcomes.
            env: Their nodes, or one label for all.
            exposure: As in ``fit``, and so the other three.
            trials: Likewise.
            y_se: Likewise.
            row_weights: Likewise.

        Returns:
            Tables, and in ``reasons`` what is clearly wrong, which ``fit`` warns of. Of more than
            10,000 rows as many, evenly.

        Raises:
            DataError: Some of x, y, env are missing; or none is given and the fit left no check.
        """
        return check_of(self, x, y, env, as_given(exposure, trials, y_se, row_weights))

    def summary(self) -> Summary:
        """The fit in a page: sizes, noise, expected changes by latent, the surest changes."""
        with querying("summary"):
            return summarise(self)

    def copy(self) -> Posterior:
        """A deep copy."""
        return copy.deepcopy(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the posterior to a file that ``pyro_tbr.load`` reads, with no class in it.

        Of an encoder that is the user's own module only the state is in it.

        Raises:
            FileNotFoundError: No such folder.
            DataError: A label, or the user's own prior or likelihood, that would not come back.
        """
        saving.save_view(self, path)

    def to_html(
        self,
        path: str | os.PathLike[str],
        x: Any = None,
        y: Any = None,
        env: Any = None,
        *,
        title: str | None = None,
        exposure: Any = None,
        trials: Any = None,
        y_se: Any = None,
    ) -> None:
        """Writes all that was found on one page, with its plots in it; it needs no network.

        Verdict, tree with its surest changes, table of changes beside their priors, what makes each
        latent, effects of features, how predictions fit, how it was fitted.

        Args:
            path: File to write; one that is there is replaced once the new one is complete.
            x: Rows to check predictions by, best rows that the fit has not seen, and to average
                slopes over where latents are not linear in the features; ``None``: without.
            y: Their outcomes, as in ``fit``.
            env: Their environments, as in ``fit``.
            title: What stands at the top.
            exposure: As in ``predict``.
            trials: Likewise.
            y_se: Likewise.

        Raises:
            DataError: Some of x, y, env are missing.
            FileNotFoundError: No such folder.
            ImportError: matplotlib is not installed.
        """
        # The page draws, and plots are made of posteriors: it stands below this room.
        page = importlib.import_module("pyro_tbr.page")
        given = {"exposure": exposure, "trials": trials, "y_se": y_se}
        page.write_page(self, path, x, y, env, title, given)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def __repr__(self) -> str:
        rows, nodes = int(self.row_counts.sum()), int((self.row_counts > 0).sum())
        chosen = "" if self.report.latent_choice is None else " (chosen)"
        what = f"{self.model.latent_dim} latents{chosen}, {len(self.outcome_names)} outcomes"
        return f"Posterior({rows} rows at {nodes} nodes of {self.tree!r}, {what})"


@torch.inference_mode(False)
def load(path: str | os.PathLike[str], *, encoder: nn.Module | None = None) -> Posterior:
    """Reads a posterior that :meth:`Posterior.save` wrote; trains nothing and needs no data.

    Args:
        path: The file.
        encoder: Where the model's encoder was the user's own module: a module of that class and
            sizes. It is left untouched; the state in the file goes into a copy.

    Returns:
        The posterior, on the CPU, with the same answers as the one that was saved.

    Raises:
        DataError: No file of ours, one in another format, a class of the user's that is not
            imported, or an ``encoder`` that is missing, does not fit or is not asked for.

    Example:
        >>> import tempfile
        >>> import pyro_tbr as tbr
        >>> sim = tbr.simulate(num_leaves=3, latent_dim=1, num_features=1, rows_per_leaf=9)
        >>> model = tbr.TreeModel(sim.tree, 1, encoder="identity")
        >>> posterior = tbr.fit(model, sim.x, sim.y, sim.env, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     posterior.save(f"{folder}/three_leaves.pt")
        ...     again = tbr.load(f"{folder}/three_leaves.pt")
        >>> again.pips().equals(posterior.pips())
        True
    """
    return Posterior(**saving.read_parts(path, encoder))
