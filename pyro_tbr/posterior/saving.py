"""A posterior as a file, and back: tensors and plain values only, so nothing in it can run.

The file says how to make tree, model and guide again (descriptions), and what they learnt (state
dicts). It opens with ``torch.load(path, weights_only=True)`` and holds no class of any library, so
it does not depend on the versions it was written with.
"""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from pyro_tbr.data import Schema
from pyro_tbr.errors import DataError, TbrError
from pyro_tbr.heads.joint_sums import JointSums
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.posterior.describing import (
    describe_guide,
    describe_model,
    describe_tree,
    guide_of,
    model_of,
)
from pyro_tbr.posterior.files import check_path, read_content, write_content
from pyro_tbr.posterior.fit_report import FitReport
from pyro_tbr.posterior.latent_choice import LatentDimChoice
from pyro_tbr.posterior.model_check import ModelCheck
from pyro_tbr.posterior.plain import from_plain, to_plain
from pyro_tbr.posterior.tables import names_index
from pyro_tbr.posterior.view import PosteriorView
from pyro_tbr.tree import Tree

_CALLS = "posterior.save('fit.pt'), then pyro_tbr.load('fit.pt')"
# What is written, and the oldest that is read. They count up when files of before can no longer be
# read, or readers of before would err.
FORMAT, OLDEST = 5, 2

_WORDS = {"schema": "names of features and outcomes", "report": "report of the fit"}  # in errors


def save_view(view: PosteriorView, path: str | os.PathLike[str]) -> None:
    """See ``Posterior.save``."""
    check_path(path, _CALLS)
    write_content(path, "posterior", FORMAT, _content(view))


def read_parts(path: str | os.PathLike[str], encoder: nn.Module | None) -> dict[str, Any]:
    """Arguments of the posterior in a file; see ``load``."""
    check_path(path, _CALLS)
    content = _read(path)
    try:
        return _parts(content, encoder, os.fspath(path))
    except TbrError:
        raise
    except Exception as error:  # whatever is missing or of another kind in a file that is not whole
        raise DataError(
            f"{os.fspath(path)!r} is damaged: {type(error).__name__} while its parts were put "
            "together; save the posterior again, or take a copy of the file"
        ) from error


def _parts(content: dict[str, Any], encoder: nn.Module | None, path: str) -> dict[str, Any]:
    """The parts of a file's content."""
    parts = {name: from_plain(part) for name, part in content["posterior"].items()}
    schema, scaling = Schema(**parts["schema"]), Scaling(**parts["scaling"])
    where = Tree(**parts["tree"]), schema, scaling, encoder, path
    model = model_of(parts["model"], *where)
    return {
        "model": model,
        "guide": guide_of(parts["guide"], model),
        "stats": _stats_of(parts["stats"]),
        "schema": schema,
        "scaling": scaling,
        "row_counts": parts["row_counts"],
        "report": _report_of(parts["report"]),
    }


def _content(view: PosteriorView) -> dict[str, Any]:
    """What goes into the file."""
    parts: dict[str, Any] = {
        "tree": describe_tree(view.tree),
        "model": describe_model(view.model),
        "guide": describe_guide(view.guide),
        "stats": _of_stats(view.stats),
        "schema": vars(view.schema),
        "scaling": view.scaling._asdict(),
        "row_counts": view.row_counts,
        "report": _described(view.report),
    }
    return {name: to_plain(part, _WORDS.get(name, name)) for name, part in parts.items()}


def _of_stats(stats: Statistics) -> dict[str, Any]:
    """Statistics as a dict, of plain values and tensors."""
    joint = None if stats.joint is None else stats.joint._asdict()
    return stats._asdict() | {"joint": joint}


def _stats_of(parts: dict[str, Any]) -> Statistics:
    """The statistics that :func:`_of_stats` took apart."""
    joint = parts.get("joint")
    return Statistics(**(parts | {"joint": None if joint is None else JointSums(**joint)}))


def _described(report: FitReport) -> dict[str, Any]:
    """A report as a dict of plain values and tables."""
    values = {name: getattr(report, name) for name in ("check", "latent_choice")}
    return vars(report) | {n: None if v is None else vars(v) for n, v in values.items()}


def _report_of(parts: dict[str, Any]) -> FitReport:
    """The report that :func:`_described` took apart."""
    check = parts.get("check")
    if check is not None:
        names = list(check["correlations"].columns)
        check["correlations"].index = names_index(names, "outcome")
        check = ModelCheck(**check)
    choice = parts.get("latent_choice")
    choice = None if choice is None else LatentDimChoice(**choice)
    return FitReport(**(parts | {"check": check, "latent_choice": choice}))


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The file's content, once it is known to be ours and of our format."""
    content = read_content(path, "posterior", "Posterior.save")
    if not OLDEST <= content["format"] <= FORMAT:
        newer = content["format"] > FORMAT
        raise DataError(
            f"{os.fspath(path)!r} has format {content['format']}, written by pyro_tbr "
            f"{content['version']}, and this pyro_tbr reads format {FORMAT}: "
            + ("update pyro_tbr" if newer else "fit anew, or read it with that version")
        )
    return content
