"""The predictive distribution of new outcomes.

Means and standard deviations come from the moments of the weights, in closed form; quantiles,
samples and densities from a mixture over draws of them, whatever the likelihood.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_tbr.data import Features, RowOrder, align_features
from pyro_tbr.errors import DataError
from pyro_tbr.heads.likelihoods.expectations import OfNodes, as_dict
from pyro_tbr.heads.moments import predictor_moments
from pyro_tbr.posterior.form import Form
from pyro_tbr.posterior.mixture import Mixture, drawn, quantiles
from pyro_tbr.posterior.places import Places, places_of
from pyro_tbr.posterior.scoring import score_table
from pyro_tbr.posterior.view import PosteriorView, check_level, check_number, check_seed
from pyro_tbr.progress import beat, querying

_CHUNK_ELEMENTS = 1_000_000  # rows are taken in chunks of about this many numbers: fits caches


class Predictor(NamedTuple):
    """What predictions of some of the rows are made from; all aligned, nothing encoded yet."""

    view: PosteriorView
    features: Tensor | Features
    labels: pd.Index | None
    order: RowOrder
    places: Places
    known: Mapping[str, Tensor]
    how: tuple[float, int, int]  # level, number of draws and their seed

    def blocks(self, block_rows: int) -> Iterator[tuple[slice, Prediction]]:
        """See ``Posterior.predict_blocks``."""
        check_number(block_rows, "block_rows")
        number = len(self.features)
        starts = range(0, number, block_rows)
        parts = (slice(start, min(start + block_rows, number)) for start in starts)
        return ((rows, self.prediction(rows)) for rows in parts)

    @torch.no_grad()
    def prediction(self, rows: slice | None = None) -> Prediction:
        """Of some rows; ``None``: of all."""
        view, features, labels, order, places, known, how = self
        if rows is not None:
            by_place = torch.arange(rows.start, rows.stop)
            features = features[rows] if isinstance(features, Tensor) else features[by_place]
            labels = None if labels is None else labels[rows]
            by_label = None if order.index is None else order.index[rows]
            order = RowOrder(rows.stop - rows.start, by_label, order.owner)
            known = {name: value[rows] for name, value in known.items()}
            if places.position is not None:
                places = replace(places, position=places.position[rows])
        design = view.model.design(view.encoded(features)).cpu()
        form = Form(view.schema.outcome_ndim == 1, labels, view.outcome_names, order)
        return Prediction(view, design, places, known, form, *how)


@torch.no_grad()
def predictor(
    view: PosteriorView,
    x: Any,
    env: Any,
    level: float,
    num_draws: int,
    seed: int,
    given: Mapping[str, Any],
) -> Predictor:
    """Checks and aligns what ``Posterior.predict`` is to predict."""
    check_number(num_draws, "num_draws")
    check_level(level)
    check_seed(seed)
    features, index = align_features(view.schema, x, keep=True)
    order = RowOrder(len(features)).or_of(x=x, env=env, **given)
    places = places_of(view, env, order)
    known = view.row_terms(view.align_known(given, order), order).values
    return Predictor(view, features, index, order, places, known, (level, num_draws, seed))


class Prediction:
    """Predictive distribution of a new outcome for each row; ``Posterior.predict`` makes it.

    Attributes:
        mean: Mean of a new outcome; for binary ones their probability. (N,) or (N, Q) as ``y`` was
            in ``fit``, pandas where the features were.
        sd: Standard deviation of a new outcome, noise included.
        level: Probability of the interval.
    """

    mean: Any
    sd: Any
    level: float

    def __init__(
        self,
        view: PosteriorView,
        design: Tensor,
        places: Places,
        known: Mapping[str, Tensor],
        form: Form,
        level: float,
        num_draws: int,
        seed: int,
    ) -> None:
        # The model's design of the rows is (N, W), double precision; what is known of them (N, Q)
        # by name, in the model's units; seed and number are of the draws of the weights behind
        # quantiles, samples and densities.
        self._view, self._design, self._places, self._form = view, design, places, form
        self._known = {name: value.cpu() for name, value in known.items()}
        self.level, self._num_draws, self._seed = level, num_draws, seed
        self.mean, self.sd = (form.table(part) for part in self._moments())

    @property
    def lower(self) -> Any:
        """Lower end of the central interval of probability ``level`` of a new outcome.

        For binary outcomes of its probability. From draws, and made when first asked for.
        """
        return self._interval[0]

    @property
    def upper(self) -> Any:
        """Its upper end."""
        return self._interval[1]

    @torch.no_grad()
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a new outcome, (N, Q) each, in the user's units."""
        weights, parts = [], []
        for part in self._view.guide.parts():
            design = self._design if part.turn is None else self._design @ part.turn.cpu()
            weights.append(part.weight)
            parts.append(self._moments_by(replace(self._view, guide=part.guide), design))
        if len(parts) == 1:
            mean, var = parts[0]
        else:
            share = torch.tensor(weights, dtype=torch.float64).reshape(-1, 1, 1)
            each, spread = (torch.stack(column) for column in zip(*parts, strict=True))
            mean = (share * each).sum(0)
            var = (share * (spread + (each - mean).square())).sum(0)
        scaling = self._view.scaling
        return scaling.to_user(mean), scaling.outcome_scale() * var.sqrt()

    def _moments_by(self, view: PosteriorView, design: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance by one guide, for its own design of the rows, in the model's units."""
        places, position = self._places, self._places.position
        moments, cov = places.moments(view), places.cov(view)
        nodes = places.noise_nodes(view)
        num_nodes, num_weights, num_outcomes = moments.mean.shape
        width = num_outcomes * (num_nodes if position is None else num_weights)
        share = places.share.reshape(1, -1, 1)
        likelihood = view.model.likelihood
        follows = likelihood.seen_with(view.guide.nuisance, moments)
        parts = []
        for rows in _chunks(len(design), width):
            some = design[rows]
            if position is None:  # each row at each of the nodes
                first = torch.einsum("bw,nwq->bnq", some, moments.mean)
                second = torch.einsum("bw,nwq->bnq", some.square(), moments.var)
                if cov is not None:
                    second = torch.einsum("bv,nqvw,bw->bnq", some, cov, some)
                at = nodes.repeat(len(some))
                here = rows.repeat_interleave(num_nodes)
                place = torch.arange(num_nodes).repeat(len(some))
            else:
                at_rows = predictor_moments(some, position[rows], moments, cov)
                at = nodes[position[rows]]
                first, second = (part.unsqueeze(1) for part in at_rows)
                here, place = rows, position[rows]
            known = {name: value[here] for name, value in self._known.items()}
            own = as_dict(view.guide.nuisance_at(at))
            own |= {name: OfNodes(value.cpu(), place) for name, value in follows.items()}
            found = likelihood.predictive_moments(
                first.flatten(0, 1), second.flatten(0, 1), {**own, **known}
            )
            each, spread = (part.reshape(first.shape) for part in found)
            whole = (share * each).sum(1)
            spread = (share * (spread + (each - whole.unsqueeze(1)).square())).sum(1)
            parts.append((whole, spread))
        one, other = (torch.cat(column) for column in zip(*parts, strict=True))
        return one, other

    @functools.cached_property
    @torch.no_grad()
    def _interval(self) -> tuple[Any, Any]:
        """Both ends, as the user gets them."""
        scaling, kinds = self._view.scaling, self._view.model.likelihood.kinds()
        tails, parts = ((1 - self.level) / 2, (1 + self.level) / 2), []
        with querying("intervals"):
            for _, each in self._by_draw():
                ends = [quantiles(each, kinds, tail) for tail in tails]
                parts.append([scaling.to_user(end) for end in ends])
                beat()
        lower, upper = (torch.cat(column) for column in zip(*parts, strict=True))
        return self._form.table(lower), self._form.table(upper)

    @torch.no_grad()
    def sample(self, n: int = 1, seed: int = 0) -> np.ndarray:
        """Draws of new outcomes, (n, N) or (n, N, Q); the same seed gives the same draws.

        The rows of a draw share their weights, so sums and differences over rows are right too.
        """
        check_number(n, "n")
        check_seed(seed)
        scaling = self._view.scaling
        generator = torch.Generator().manual_seed(seed)
        pick = torch.randint(self._num_draws, (n,), generator=generator)
        draws = [scaling.to_user(drawn(each, generator)) for _, each in self._by_draw(pick)]
        return self._form.draws(torch.cat(draws, dim=1))

    def log_score(self, y: Any) -> float:
        """Mean log density of the observed outcomes, or log probability of binary ones, in nats.

        Larger is better. In the unit of y: outcomes of another scale have other scores.

        Args:
            y: Outcomes as ``fit`` took them, NaN where not observed; pandas objects are matched by
                index where the features or environments were pandas.

        Raises:
            DataError: Nothing is observed, or values cannot be used.
            ShapeError: The numbers of rows or outcomes differ.
        """
        return mean_over_observed(*self._log_densities(y))

    def log_scores(self, y: Any) -> Any:
        """The log density of every outcome, (N,) or (N, Q) as ``mean``, NaN where not observed.

        Arguments, unit and errors are those of :meth:`log_score`, which is the mean of these.
        """
        scores, outcomes = self._log_densities(y)
        return self._form.table(torch.where(torch.isnan(outcomes), torch.nan, scores))

    def score(self, y: Any) -> pd.DataFrame:
        """How well outcomes were predicted, a row an outcome; what is NaN in y is left out.

        Args:
            y: Outcomes, as in :meth:`log_score`.

        Returns:
            Rows outcomes, columns num_rows (observed), log_score (mean log density or probability,
            in nats, larger is better), r2 (of the means, against the mean of these outcomes),
            auroc (of the probabilities of a binary outcome), coverage (share of the outcomes in
            their interval; it should be ``level``, of counts a little more). NaN where one makes no
            sense: r2 and coverage of a binary outcome, auroc of others, r2 where y is constant.

        Raises:
            DataError: Nothing is observed, or values cannot be used.
            ShapeError: The numbers of rows or outcomes differ.
        """
        scores, standard = self._log_densities(y)
        names = self._view.outcome_names
        wide = len(scores), len(names)
        mean, lower, upper = (np.reshape(v, wide) for v in (self.mean, self.lower, self.upper))
        binary = np.zeros(len(names), dtype=bool)
        for kind in self._view.model.likelihood.kinds():
            columns = slice(None) if kind.columns is None else kind.columns.cpu().numpy()
            binary[columns] = kind.interval == "mean"
        outcomes = self._view.scaling.to_user(standard)
        return score_table(names, binary, outcomes.numpy(), scores.numpy(), mean, (lower, upper))

    def to_frame(self) -> pd.DataFrame:
        """All of it as one table, a row a row of the prediction, for csv files and the like.

        Returns:
            Columns mean, sd, lower, upper; with several outcomes (outcome, statistic), so that
            ``frame["growth"]`` is the table of one. The index is that of the features, else of
            the environments, else 0, 1, ...
        """
        parts = ("mean", "sd", "lower", "upper")
        return self._form.frame({name: getattr(self, name) for name in parts})

    @torch.no_grad()
    def _log_densities(self, y: Any) -> tuple[Tensor, Tensor]:
        """Log densities in the user's unit (N, Q), and standardised outcomes, NaN if missing."""
        scaling = self._view.scaling
        outcomes = self._view.align_outcomes(y, self._form.order.or_of(y=y))
        outcomes = scaling.to_model(outcomes)
        parts = [Mixture(each).log_prob(outcomes[rows]) for rows, each in self._by_draw()]
        return torch.cat(parts) - scaling.outcome_scale().log(), outcomes

    def _by_draw(self, pick: Tensor | None = None) -> Iterator[tuple[Tensor, Distribution]]:
        """Some rows at a time, and the distribution of their outcomes given each (or some) draw."""
        weights, nuisance = self._places.draws(self._view, self._num_draws, self._seed)
        picked = slice(None) if pick is None else pick
        num = max(self._num_draws, 0 if pick is None else len(pick))
        for rows in _chunks(len(self._design), num * len(self._view.outcome_names)):
            position = self._places.position
            at = torch.zeros_like(rows) if position is None else position[rows]
            predictor = linear_predictor(self._design[rows], weights, at)[picked]
            own = {n: (v if v.shape[1] == 1 else v[:, at])[picked] for n, v in nuisance.items()}
            known = {name: value[rows] for name, value in self._known.items()}
            yield rows, self._view.model.likelihood(predictor, {**own, **known})

    def __repr__(self) -> str:
        return f"Prediction({len(self._design)} rows, {self.level:.0%} intervals)"


def _chunks(num_rows: int, width: int) -> Iterator[Tensor]:
    """Positions of rows in runs of a bounded size; one empty run where there are no rows."""
    size = max(1, _CHUNK_ELEMENTS // max(1, width))
    for start in range(0, max(1, num_rows), size):
        yield torch.arange(start, min(start + size, num_rows))


def mean_over_observed(scores: Tensor, outcomes: Tensor) -> float:
    """Mean of scores (N, Q) where outcomes are no NaN."""
    found = scores[~torch.isnan(outcomes)]
    if not len(found):
        raise DataError("y has no observed value; there is nothing to score")
    return found.mean().item()


def linear_predictor(design: Tensor, weights: Tensor, position: Tensor) -> Tensor:
    """Of each draw and row, (S, N, Q); by runs of rows, as a table of their weights is large.

    Args:
        design: Latents and intercept, (N, W).
        weights: Draws of the weights at some nodes, (S, n, W, Q).
        position: Which of these nodes each row is at, (N,).
    """
    num_draws, _, *shape = weights.shape  # without rows there are no nodes
    parts = [
        torch.einsum("nw,snwq->snq", design[rows], weights[:, position[rows]])
        for rows in _chunks(len(design), num_draws * math.prod(shape))
    ]
    return torch.cat(parts, dim=1)
