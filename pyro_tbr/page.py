"""One page with all that a fit found: verdict, tree, changes, features, predictions, how it ran."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_tbr import __version__
from pyro_tbr.errors import DataError
from pyro_tbr.markup import STYLE, block, box, escaped, listing, paragraph, table
from pyro_tbr.plotting import (
    plot_effects,
    plot_history,
    plot_loadings,
    plot_predictive_check,
    plot_tree,
)
from pyro_tbr.posterior import Identification, Posterior
from pyro_tbr.posterior.files import check_path, replacing
from pyro_tbr.posterior.selection import chosen_changes
from pyro_tbr.posterior.summary import described, latent_table, surest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FDR = 0.05
_MOST_CHANGES, _MOST_SETS, _MOST_FEATURES, _MOST_OUTCOMES = 30, 15, 12, 8  # shown
_LIKELY = 0.95
_SURE = 0.5  # PIP from which a change is shown beside those that are selected
_DPI = 130
_PAGE_STYLE = """
body { max-width: 68em; margin: 2em auto; padding: 0 1.5em; }
table { font-size: 0.93em; }
img { max-width: 100%; height: auto; display: block; margin: 0.8em 0; }
.wide { overflow-x: auto; }
.tbr pre { white-space: pre-wrap; }
"""


def write_page(
    posterior: Posterior,
    path: str | os.PathLike[str],
    x: Any,
    y: Any,
    env: Any,
    title: str | None,
    given: Mapping[str, Any],
) -> None:
    """See ``Posterior.to_html``."""
    rows = (x, y, env)
    if any(part is None for part in rows) and any(part is not None for part in (y, env)):
        raise DataError("x, y and env go together: give all three, or x alone, or none")
    name = "What changed on the tree" if title is None else title
    identified = posterior.identification()
    parts = [f"<h1>{escaped(name)}</h1>", *_verdict(posterior, identified)]
    parts += _changes(posterior, identified)
    parts += _features(posterior, identified, x)
    if y is not None:
        parts += _predictions(posterior, rows, given)
    parts += _model(posterior)
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped(name)}</title>'
        f"<style>{STYLE}{_PAGE_STYLE}</style></head>"
        f'<body class="tbr">{"".join(parts)}</body></html>'
    )
    check_path(path, "posterior.to_html('report.html')")
    with replacing(path) as file:
        file.write(text.encode())


def _verdict(posterior: Posterior, identified: Identification) -> Iterator[str]:
    """What it is, and whether it can be read."""
    rows, nodes = int(posterior.row_counts.sum()), identified.num_environments
    yield paragraph(
        f"{rows} rows in {nodes} environments on a tree of {posterior.tree.num_leaves} leaves, "
        f"{posterior.model.latent_dim} latents, outcomes "
        f"{', '.join(str(name) for name in posterior.outcome_names[:_MOST_OUTCOMES])}"
        + (", ..." if len(posterior.outcome_names) > _MOST_OUTCOMES else "")
        + ". A change is one of a latent's effect on an outcome along an arc of the tree; PIP is "
        "its probability given the data."
    )
    yield box(identified.verdict, good=identified.determined)
    check = posterior.report.check
    if check is not None:
        yield box(str(check).splitlines()[0], good=not check.reasons)
        yield listing(check.reasons)


def _changes(posterior: Posterior, identified: Identification) -> Iterator[str]:
    """The tree, and the surest changes beside their priors."""
    yield "<h2>Where something changed</h2>"
    found = surest(posterior, identified, _MOST_CHANGES)
    if not posterior.guide.has_gates:
        kind = type(posterior.model.prior).__name__
        yield paragraph(
            f"{kind} lets every effect change a little everywhere, so there are no PIPs; these are "
            "the changes that are largest for their standard deviations."
        )
        yield _wide(found.drop(columns=["pip", "prior_pip"]))
        yield listing(described(posterior.tree, found))
        return
    yield _image(partial(plot_tree, posterior))
    selected, _ = chosen_changes(posterior, _FDR)
    count = len(selected.chosen)
    number = max(count, int((found["pip"] >= _SURE).sum()))
    shown = found.head(max(number, 1))
    changed = posterior.arc_pips()["any"]
    yield paragraph(
        f"Something changed, in some outcome, on {int((changed >= _LIKELY).sum())} of "
        f"{posterior.tree.num_arcs} arcs with a probability of {_LIKELY} or more (arc_pips())."
    )
    rate = f"at a Bayesian false discovery rate of {_FDR:.0%}"
    report = f"No change can be reported {rate}."
    if count:
        report = f"{count} changes can be reported {rate} (realised {selected.fdr:.1%})."
    yield paragraph(
        f"{report} Below are the surest {len(shown)}; a PIP near its prior says that the data do "
        "not tell, and a false change is mostly a true one put on a neighbouring arc."
    )
    yield _wide(shown)
    yield listing(described(posterior.tree, shown))
    sets = posterior.credible_sets()
    several = sets[sets["arcs"].map(len) > 1]
    if len(several):
        yield paragraph(
            f"{len(sets)} sets of arcs hold a change with a probability stated (credible_sets()); "
            f"in {len(several)} of them it is not sure which arc:"
        )
        arcs = [", ".join(f"{p} → {c}" for p, c in s) for s in several["arcs"]]
        yield _wide(several.assign(arcs=arcs).head(_MOST_SETS))


def _features(posterior: Posterior, identified: Identification, x: Any) -> Iterator[str]:
    """What makes each latent, and what features do to outcomes."""
    yield "<h2>Latents, and the features that make them</h2>"
    latents, sure = latent_table(posterior, identified), identified.latents["determined"]
    latents["determined"] = [bool(sure.get(name, True)) for name in latents.index]
    yield _wide(latents.reset_index())
    if posterior.model.encoder.linear_map() is None and x is None:
        yield paragraph(
            "Latents are not linear in the features: to_html(path, x) averages slopes over rows.",
            "note",
        )
        return
    # Fits of earlier versions do not know how features spread.
    per = "unit" if posterior.report.feature_scale is None else "sd"
    if posterior.model.encoder.trainable:
        yield _image(partial(plot_loadings, posterior, x=x, per=per))
    yield "<h2>Effects of features</h2>"
    yield paragraph(
        f"What one {'unit' if per == 'unit' else 'standard deviation'} of a feature does to an "
        "outcome, through all latents. It does not depend on which latents there are, so it can be "
        "read where they are not determined."
    )
    image = partial(plot_effects, posterior, x=x, per=per, num_features=_MOST_FEATURES)
    for outcome in _outcomes(posterior):
        yield _image(partial(image, outcome=outcome))
    changes = posterior.effect_changes(_most_changed(posterior, x, per), x, per=per)
    changes = changes[changes["sd"] > 0]
    order = (changes["mean"] / changes["sd"]).abs().sort_values(ascending=False).index
    yield paragraph("Effects that change most for their standard deviation:")
    yield _wide(changes.loc[order].head(_MOST_FEATURES))


def _predictions(
    posterior: Posterior, rows: tuple[Any, Any, Any], given: Mapping[str, Any]
) -> Iterator[str]:
    """How predictions fit the rows given."""
    yield "<h2>Predictions against outcomes</h2>"
    yield paragraph("Of the rows given to this page; where the fit saw them it knows them.", "note")
    yield _wide(posterior.score(*rows, **given).reset_index())
    for outcome in _outcomes(posterior):
        yield _image(partial(plot_predictive_check, posterior, *rows, outcome))


def _model(posterior: Posterior) -> Iterator[str]:
    """How it was fitted."""
    yield "<h2>How it was fitted</h2>"
    yield paragraph(f"pyro_tbr {__version__}")
    yield block(f"{posterior.model!r}\n{posterior.report!r}")
    yield block(posterior.identification())
    yield _image(partial(plot_history, posterior))


def _most_changed(posterior: Posterior, x: Any, per: str) -> list[Any]:
    """Features whose effect changes most along some arc, in standard deviations of an outcome."""
    loadings = posterior.loadings(x, per=per)
    means = posterior.user_deltas().mean / posterior.scaling.outcome_scale()
    slopes = means[:, : loadings.shape[1]].movedim(1, 0).flatten(1).numpy()  # (K, A Q)
    size = np.abs(loadings.to_numpy() @ slopes).max(axis=1)
    return list(loadings.index[np.argsort(-size, kind="stable")[:_MOST_FEATURES]])


def _outcomes(posterior: Posterior) -> list[Any]:
    """Names of the outcomes that are drawn."""
    return list(posterior.outcome_names[:_MOST_OUTCOMES])


def _wide(frame: pd.DataFrame) -> str:
    """A table that scrolls where it is wider than the page."""
    return f'<div class="wide">{table(frame.columns, frame.itertuples(index=False))}</div>'


def _image(draw: Callable[[], Axes]) -> str:
    """A plot inside the page, or in a line why there is none."""
    try:
        figure = draw().figure
    except DataError as error:
        return paragraph(str(error), "note")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="plot" src="data:image/png;base64,{data}">'
