"""The one loop that moves a guide to its optimum for some rows, its encoder held fixed.

A fit, an update with more rows, a cross-fit and the choice of an encoder all call it. For outcomes
that are normal around their predictor the rows' statistics are exact and one round is enough.
Otherwise each row's likelihood stands in as a normal site at the moments of its predictor; guide,
sites and the likelihood's own parameters are moved in turns until the predictors are still.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterator
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.errors import ConvergenceWarning, DataError
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.heads.guide import Guide, Settled, allowed_fall, everywhere
from pyro_tbr.heads.rows import RowSource
from pyro_tbr.heads.sandwich import inflation
from pyro_tbr.heads.sites import row_moments, row_sites
from pyro_tbr.heads.statistics import Sites, Statistics, statistics
from pyro_tbr.progress import aside, beat, detail, stage
from pyro_tbr.tree.readers.naming import listed

SWEEPS = 60  # after which a guide that still moves goes on with care
_ROUNDS = 60  # at most, of sites and guide; the first few are large steps
_WHOLE_STEPS = 20  # after so many rounds sites move by ever shorter steps
_LEAST_STEP = 0.05  # down to which a step is halved where it lowers the bound
_SETTLED = 0.01  # mean change of the predictor, in its standard deviations, that ends the rounds
# Times a bound, and some nats, by which no round may be below the best one.
_MUCH, _LITTLE = 5.0, 10.0
_GAIN = 1.0  # of the bound by a whole update: with more there is another one
_ROUGH_SHARE = 8  # a round in between has this share of the sweeps
_MOSTLY = 25  # sweeps of all updates together
_CORRELATION_ROUNDS = 8  # at most, of weights and the correlation of rows of a group
_CORRELATION_SETTLED = 0.015  # change of a correlation that ends them: one step of its grid


def condition(
    guide: Guide,
    rows: RowSource,
    *,
    sweeps: int = SWEEPS,
    before: Statistics | None = None,
    learn_hyper: bool = True,
    learn_nuisance: bool = True,
    learn_groups: bool = True,
    sandwich: bool = False,
    rough: bool = False,
    names: tuple[tuple[str, ...], tuple[Hashable, ...]] | None = None,
    ends: Callable[[Settled], object] | None = None,
) -> Statistics:
    """Moves a guide to its optimum for these rows, and returns all rows' statistics.

    Args:
        guide: The guide; changed.
        rows: The rows.
        sweeps: Sweeps of the guide's update after which it goes on with care.
        before: Statistics of rows that were there before; sites of these stay what they were.
        learn_hyper: Update hyperparameters too.
        learn_nuisance: Update the parameters of the likelihood too.
        learn_groups: Update the correlation of rows of a group too.
        sandwich: Take the spread of the weights from the rows' own residuals, see ``sandwich``;
            exact likelihoods only.
        rough: Statistics will change again, so leave out what only the last update of an exact
            likelihood needs.
        names: Of latents and outcomes: a last update that does not come to rest is warned of by
            them; ``None``: no warning, as this is no last update.
        ends: Is told how the update came to rest, where only later it is known to be the last one:
            then :func:`warn_unsettled`.

    Raises:
        DataError: Groups for a likelihood that is not exact.
        TrainingError: A number is not finite.

    Warns:
        ConvergenceWarning: The guide did not come to rest.
    """
    if rows.groups is not None and not guide.head.likelihood.exact:
        raise DataError(
            "groups need numeric outcomes with normal noise, and this model's are others: leave "
            "groups out, or make each group a leaf of the tree"
        )
    how = learn_hyper, learn_nuisance
    with stage("", about=_MOSTLY, unit="sweep"):
        if guide.head.likelihood.exact:
            if rows.groups is not None and learn_groups:
                _learn_correlation(guide, rows, rows.groups, sweeps, learn_hyper)
            stats, settled = _exactly(
                guide, rows, sweeps, before, *how, sandwich=sandwich, rough=rough
            )
        else:
            stats, settled = _by_sites(guide, rows, sweeps, before, *how)
            if not settled.trouble:
                guide.widen(stats)
    detail("weights moved by %.3g in the last of %d sweeps", settled.moved, settled.sweeps)
    if ends is not None:
        ends(settled)
    if names is not None:
        warn_unsettled(guide, settled, names)
    return stats


def warn_unsettled(
    guide: Guide, settled: Settled, names: tuple[tuple[str, ...], tuple[Hashable, ...]]
) -> None:
    """Warns of a last update that did not come to rest, by the names of latents and outcomes."""
    if settled.trouble:
        with aside():
            warnings.warn(_unsettled(guide, settled, *names), ConvergenceWarning, stacklevel=3)


def _exactly(
    guide: Guide,
    rows: RowSource,
    sweeps: int,
    before: Statistics | None,
    learn_hyper: bool,
    learn_nuisance: bool,
    *,
    sandwich: bool,
    rough: bool,
) -> tuple[Statistics, Settled]:
    """One update, as the rows' statistics say all of them."""
    together = guide.head.likelihood.correlated
    stats = exact_statistics(guide, rows, grouped=True, together=together)
    if sandwich:
        by_node = guide.head.likelihood.by_node
        plain = stats if rows.groups is None else exact_statistics(guide, rows)
        stats = stats._replace(inflation=inflation(rows, plain, by_node=by_node))
    stats = stats if before is None else before + stats
    how = {"learn_hyper": learn_hyper, "learn_nuisance": learn_nuisance}
    return stats, guide.update(stats, sweeps=sweeps, rough=rough, **how)


def exact_statistics(
    guide: Guide, rows: RowSource, *, grouped: bool = False, together: bool = False
) -> Statistics:
    """Statistics of rows under an exact likelihood.

    The guide gives the likelihood alone; its weights do not matter. With ``grouped`` rows of groups
    count less; ``together``: with the sums of outcomes whose noise goes together.
    """
    likelihood, weights = guide.head.likelihood, None
    if grouped and rows.groups is not None:
        y = rows.holding.every(torch.cat([block.y for block in rows.blocks()]))
        weights = rows.holding.own(rows.groups.weights(y))

    def of_blocks() -> Iterator[Statistics]:
        start = 0
        for block in rows.blocks():
            here = slice(start, start + len(block))
            shares = block.shares(None if weights is None else weights[here])
            start += len(block)
            zero = torch.zeros_like(block.y)
            terms = likelihood.site_terms(block.y, zero, zero, guide.nuisance_of(block))
            # What depends on the noise alone is taken as it is when the statistics are used.
            sites = Sites(*terms[:2], torch.zeros_like(terms.log_norm), shares)
            yield statistics(block, sites, together=together)

    return rows.holding.merged(reduce(Statistics.__add__, of_blocks()))


def _learn_correlation(
    guide: Guide, rows: RowSource, groups: RowGroups, sweeps: int, learn_hyper: bool
) -> None:
    """Moves the correlation of rows of a group and the guide in turns until the first is still."""
    few = max(2, sweeps // _ROUGH_SHARE)
    for _ in range(_CORRELATION_ROUNDS):
        stats = exact_statistics(guide, rows, grouped=True)
        guide.update(stats, sweeps=few, learn_hyper=learn_hyper, rough=True)
        residual = [block.y - row_moments(guide, block)[0] for block in rows.blocks()]
        if groups.learn(rows.holding.every(torch.cat(residual))) < _CORRELATION_SETTLED:
            break


def _by_sites(
    guide: Guide,
    rows: RowSource,
    sweeps: int,
    before: Statistics | None,
    learn_hyper: bool,
    learn_nuisance: bool,
) -> tuple[Statistics, Settled]:
    """Sites, guide and the likelihood's parameters in turns until the predictors are still.

    A round moves the sites some way towards those at the guide's moments, which is a
    natural-gradient step, and the guide to its optimum for them. One that lowers the bound is taken
    back and made with half the step; after many rounds steps get shorter in any case. Where one
    loses far more, as where outcomes are separable and scales grow without end, all begins anew
    with the hyperparameters held until the predictors are still, and learnt from there if that is
    better.
    """

    def sites(at_start: bool = False) -> tuple[Statistics, Tensor]:
        found, points = _sites_statistics(guide, rows, at_start=at_start)
        return found if before is None else before + found, points

    def move(rough: bool) -> Settled:
        settled = Settled(1, 0.0)
        learns = learn_hyper and held == (0 if safe is None else 1)
        if rough and last is not None:
            guide.step(stats, learn_hyper=learns, learn_nuisance=False)
        else:
            settled = guide.update(
                stats,
                sweeps=max(2, sweeps // _ROUGH_SHARE) if rough else sweeps,
                learn_hyper=learns,
                learn_nuisance=False,
                rough=rough,
            )
        if learn_nuisance or guide.head.likelihood.moves_at_nodes:
            _learn_nuisance(guide, rows, common=learn_nuisance)
        return settled

    last: _Round | None = None
    rough, step, held = True, 1.0, 0  # held: how often hyperparameters have run away
    # A fresh guide knows nothing: sites at its prior's spread would say next to nothing too.
    stats = sites(at_start=before is None)[0]
    here, points = sites()
    bound = guide.elbo(here).item()  # of counts the prior's rates may be beyond all numbers
    bound = bound if math.isfinite(bound) else -math.inf
    start = best = _Round(guide.state_copy(), stats.scaled(0.0), stats, points, bound)
    safe: _Round | None = None
    settled = move(rough)
    for done in range(1, _ROUNDS + 1):
        new, points = sites()
        beat()
        now = _Round(guide.state_copy(), stats, new, points, guide.elbo(new).item())
        # So that a bound that is not finite has fallen too.
        fell = last is not None and not now.bound >= last.bound - allowed_fall(last.bound)
        if not now.bound > best.bound - _MUCH * (_LITTLE + abs(best.bound)):
            held += 1
            step, now = 0.5**held, start if safe is None else safe
            best = now
            guide.load_state_dict(now.state)
        elif last is not None and fell and step > _LEAST_STEP:
            step, now = 0.5 * step, last
            guide.load_state_dict(now.state)
        elif last is not None and now.moved_from(last) < _SETTLED:
            if learn_hyper and held == 1 and safe is None:
                safe = now  # near the optimum they may be learnt
            elif not rough and not now.bound > last.bound + _GAIN:
                if safe is None or now.bound > safe.bound:
                    return new, settled
                guide.load_state_dict(safe.state)
                return safe.sites, settled
            # From here on whole updates, as single sweeps take hyperparameters to their optimum
            # slowly; while one gains, sites and parameters have moved along, so there is another.
            rough = False
        best = now if now.bound > best.bound else best
        last = now
        share = min(step, 1 / max(1, done - _WHOLE_STEPS))
        stats = now.stats.scaled(1 - share) + now.sites.scaled(share)
        settled = move(rough)
    return sites()[0], settled._replace(trouble=everywhere(guide.head))


class _Round(NamedTuple):
    """Where a round of sites and guide has ended.

    Attributes:
        state: Of the guide.
        stats: Statistics of the sites the guide is at its optimum for.
        sites: Statistics of the sites at the guide's moments, whose ELBO is its own.
        points: Root mean squares of the predictors, (N, Q).
        bound: The ELBO.
    """

    state: dict[str, Tensor]
    stats: Statistics
    sites: Statistics
    points: Tensor
    bound: float

    def moved_from(self, other: _Round) -> float:
        """Mean change of the predictors, in their standard deviation."""
        spread = self.points.std(correction=0).clamp(min=1e-6)
        return ((self.points - other.points).abs().mean() / spread).item()


def _sites_statistics(
    guide: Guide, rows: RowSource, *, at_start: bool
) -> tuple[Statistics, Tensor]:
    """Statistics of the rows' sites at the guide's moments, and root mean squares of predictors."""
    points: list[Tensor] = []

    def of_blocks() -> Iterator[Statistics]:
        for block in rows.blocks():
            sites, point = row_sites(guide, block, at_start=at_start)
            points.append(point)
            yield statistics(block, sites)

    total = rows.holding.merged(reduce(Statistics.__add__, of_blocks()))
    return total, rows.holding.every(torch.cat(points))


def _learn_nuisance(guide: Guide, rows: RowSource, *, common: bool) -> None:
    """The likelihood's own parameters at their optimum given the rows' predictors.

    Those that nodes share only if ``common``; what is a node's own in any case.
    """
    if not len(guide.nuisance):
        return
    known, owned = [], []
    for block in rows.blocks():
        known.append((block.y, *row_moments(guide, block), block.shares(), block.env_index))
        owned.append(block.terms.values)
    joined = (rows.holding.every(torch.cat(parts)) for parts in zip(*known, strict=True))
    y, mean, var, shares, nodes = joined
    values = {n: rows.holding.every(torch.cat([own[n] for own in owned])) for n in owned[0]}
    likelihood = guide.head.likelihood
    likelihood.learn(guide.nuisance, y, mean, var, shares, nodes, values, common=common)


def _unsettled(
    guide: Guide, settled: Settled, latents: tuple[str, ...], outcomes: tuple[Hashable, ...]
) -> str:
    """What did not come to rest, and what to do."""
    weights, columns, nodes = (list(dict.fromkeys(p)) for p in zip(*settled.trouble, strict=True))
    places = listed([guide.head.tree.nodes[v] for v in nodes], 5)
    return (
        f"the weights did not come to rest in {settled.sweeps} sweeps: latents "
        f"{listed([latents[k] for k in weights], 5)} for outcomes "
        f"{listed([outcomes[q] for q in columns], 5)} at nodes {places}. The rows cannot tell "
        "these latents apart there, or there are too few; the posterior is that of latents judged "
        "one by one, whose predictions hold but whose weights are too sure. Drop a latent that "
        "repeats another, or give more rows"
    )
