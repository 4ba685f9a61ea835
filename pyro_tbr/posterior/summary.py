"""A fit in a page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.heads.hyper import HyperFactor, ScaleFactor
from pyro_tbr.heads.priors import ArcPrior
from pyro_tbr.markup import box, fragment, listing, paragraph, table
from pyro_tbr.posterior.identification import Identification, identify
from pyro_tbr.posterior.latent_choice import LatentDimChoice
from pyro_tbr.posterior.tables import changes, names_index, noise_table
from pyro_tbr.posterior.view import PosteriorView
from pyro_tbr.tree import Tree

_NUM_SHOWN = 10


@dataclass(frozen=True)
class Summary:
    """What ``Posterior.summary`` gives; ``str`` of it reads well.

    Attributes:
        num_rows: Rows of the fit.
        num_environments: Nodes with rows.
        num_arcs: Arcs of the tree.
        noise_scale: Noise standard deviation by outcome, in its unit; empty where a
            likelihood has none.
        noise_range: Its ``least`` and ``most`` over environments with rows, by outcome; likewise.
        latents: By latent: share of the predictor's variance, expected number of changes (sum of
            PIPs over arcs and outcomes), prior and posterior mean of the inclusion rate, that of
            the sharing where gates of outcomes hang together, whether it is used.
        changes: The surest changes, as in ``Posterior.deltas``, without log odds: of latents in
            use, on arcs with data below.
        nodes: What nodes of these without a name of their own are, see ``Tree.describe``.
        folds: Folds of the cross-fit.
        optimism: Share by which held-out rows fit worse than rows of training.
        how_latents: The same in words, with what to do where it matters.
        likelihood: Of the outcomes.
        determined: Whether the latents in use are.
        verdict: The same in words, see ``Posterior.identification``.
        latent_choice: How the number of latents was chosen; ``None``: it was given.
    """

    num_rows: int
    num_environments: int
    num_arcs: int
    noise_scale: pd.Series
    noise_range: pd.DataFrame
    latents: pd.DataFrame
    changes: pd.DataFrame
    nodes: tuple[str, ...]
    folds: int
    optimism: float
    how_latents: str
    likelihood: str
    determined: bool
    verdict: str
    latent_choice: LatentDimChoice | None = None

    def __str__(self) -> str:
        ranges = [
            "" if least == most else f" ({least:.4g} to {most:.4g} by environment)"
            for least, most in self.noise_range.to_numpy()
        ]
        pairs = zip(self.noise_scale.items(), ranges, strict=True)
        noise = ", ".join(f"{name} {value:.4g}{ends}" for (name, value), ends in pairs)
        lines = [
            f"{self.num_rows} rows in {self.num_environments} environments, {self.num_arcs} arcs",
            self.likelihood + (f", noise {noise}" if noise else ""),
            self.how_latents,
            *self._chosen(),
            self.verdict,
            "",
            self.latents.to_string(float_format=lambda v: f"{v:.3f}"),
            "",
            *self._changes(),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        first, *rest = str(self).split("\n\n", maxsplit=1)[0].splitlines()
        rest.remove(self.verdict)
        shown = self.latents.reset_index()
        return fragment(
            paragraph(first),
            box(self.verdict, good=self.determined),
            listing(rest),
            table(shown.columns, shown.itertuples(index=False)),
            paragraph(f"Surest changes (first {len(self.changes)}; PIP beside its prior)"),
            table(self.changes.columns, self.changes.itertuples(index=False)),
            listing(self.nodes),
        )

    def _changes(self) -> list[str]:
        """The surest changes, and what nodes in them are."""
        if not len(self.changes):
            return ["no changes to speak of: no latent in use, or no arc with data below"]
        changes = self.changes.to_string(index=False, float_format=lambda v: f"{v:.3f}")
        head = f"surest changes (first {len(self.changes)}; PIP beside its prior):"
        return [head, changes, *(f"  {text}" for text in self.nodes)]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes ``changes``, a row each, PIP beside its prior; ``latents`` has its own to_csv.

        All changes, not the surest ten alone: ``posterior.deltas().to_csv(path, index=False)``.
        """
        self.changes.to_csv(path, index=False)

    def _chosen(self) -> list[str]:
        """A line on the number of latents, where it was not given."""
        choice = self.latent_choice
        if choice is None:
            return []
        tried = choice.tried
        return [f"{choice.best} latents, chosen of {min(tried)} to {max(tried)}"]


@torch.no_grad()
def latent_table(view: PosteriorView, identified: Identification) -> pd.DataFrame:
    """See :class:`Summary`."""
    guide, model = view.guide, view.model
    moments, informed = guide.delta_moments(), guide.informed_arcs
    weights = guide.node_moments().mean[view.stats.nodes].double()
    power = view.stats.gram.diagonal(dim1=-2, dim2=-1).transpose(-1, -2)
    share = (power * weights.square()).sum((0, 2))
    places, latent_of = view.gate_places, model.latent_of
    if latent_of is not None:  # of all functions of a latent
        share = share.new_zeros(len(places)).index_add(0, torch.tensor(latent_of), share)
    columns = {"variance_share": share / share.sum().clamp(min=1e-300)}
    if guide.has_gates:
        columns |= _prior_rate(model.prior)
        columns["posterior_rate"] = moments.prior_inclusion.mean((0, 2))[places]
        if "sharing" in guide.hyper:
            sharing, weights = cast(HyperFactor, guide.hyper["sharing"]).points()
            columns["sharing"] = torch.einsum("t,twq->w", weights, sharing)
        expected = moments.inclusion[informed].sum((0, 2)).cpu()[places]
        exists = torch.from_numpy(view.weights_that_exist)[places]
        columns["expected_changes"] = torch.where(exists, expected, torch.nan)
    names = names_index(view.gate_names, "latent")
    latents = pd.DataFrame({name: v.cpu().numpy() for name, v in columns.items()}, index=names)
    used = identified.latents["used"].to_numpy()
    latents["used"] = np.append(used, np.ones(len(names) - len(used), dtype=bool))
    return latents


@torch.no_grad()
def summarise(view: PosteriorView) -> Summary:
    """See ``Posterior.summary``."""
    identified = identify(view)
    shown = surest(view, identified, _NUM_SHOWN)
    return Summary(
        num_rows=int(view.row_counts.sum()),
        num_environments=int((view.row_counts > 0).sum()),
        num_arcs=view.tree.num_arcs,
        noise_scale=_noise_scale(view),
        noise_range=_noise_range(view),
        latents=latent_table(view, identified),
        changes=shown,
        nodes=described(view.tree, shown),
        folds=view.report.folds,
        optimism=view.report.optimism,
        how_latents=view.report.how_latents,
        likelihood=repr(view.model.likelihood),
        determined=identified.determined,
        verdict=identified.verdict,
        latent_choice=view.report.latent_choice,
    )


def surest(view: PosteriorView, identified: Identification, most: int) -> pd.DataFrame:
    """Changes that the data speak of, surest first: rows of ``Posterior.deltas``, no log odds.

    Those of latents that are not used, and those of which the rows say nothing, are left out.
    """
    moments = view.guide.delta_moments()
    by_size = moments.mean.double().square() / moments.var
    sure = (moments.inclusion if view.guide.has_gates else by_size).cpu().double().numpy().copy()
    spoken = np.broadcast_to(view.informed_changes[..., None], sure.shape).copy()
    spoken[:, [name in identified.unused for name in view.latent_names]] = False
    rows = np.flatnonzero(spoken)
    order = np.argsort(-sure.ravel()[rows], kind="stable")[:most]
    return changes(view, 0.9, rows[order])


def described(tree: Tree, found: pd.DataFrame) -> tuple[str, ...]:
    """What nodes in a table of changes are that have no name of their own, in order."""
    nodes = dict.fromkeys([*found["parent"], *found["child"]])
    texts = [(node, tree.describe(node)) for node in nodes]
    return tuple(text for node, text in texts if text not in (str(node), tree.labels[node]))


def _prior_rate(prior: ArcPrior) -> dict[str, Tensor]:
    """Mean inclusion rate by latent before any row, (W,), where the prior has such a site."""
    rates = [hyper for hyper in prior.hyperparameters() if hyper.name == "inclusion_rate"]
    values = [rate.middle() if rate.fixed is None else rate.fixed for rate in rates]
    return {"prior_rate": values[0].mean(-1)} if values else {}


def _noise_scale(view: PosteriorView) -> pd.Series:
    """Posterior mean by outcome in its unit; empty where the likelihood has no such scale."""
    found, unit = view.model.likelihood.noises(view.guide.nuisance), view.scaling.outcome_scale()
    values: dict[int, float] = {}
    for factor, columns in found:
        mean = cast(ScaleFactor, factor).mean_power(1.0).detach().cpu().double()
        values |= dict(zip(columns.tolist(), (mean * unit[columns.cpu()]).tolist(), strict=True))
    if not found:
        return pd.Series(dtype=float)
    names = tuple(view.outcome_names[q] for q in sorted(values))
    return pd.Series([values[q] for q in sorted(values)], index=names_index(names, None))


def _noise_range(view: PosteriorView) -> pd.DataFrame:
    """Of the posterior means at environments with rows, by outcome."""
    if not view.model.likelihood.noises(view.guide.nuisance):
        return pd.DataFrame({"least": [], "most": []})
    table = noise_table(view, 0.9)
    mean = table["mean"].to_numpy().reshape(view.tree.num_nodes, -1)
    index = names_index(tuple(table["outcome"].head(mean.shape[1])), None)
    mean = mean[view.stats.nodes.cpu().numpy()]
    return pd.DataFrame({"least": mean.min(0), "most": mean.max(0)}, index=index)
