"""A posterior as a file, and back: tensors and plain values only, so nothing in it can run.

The file says how to make tree, model and guide again (descriptions), and what they learnt (state
dicts). It opens with ``torch.load(path, weights_only=True)`` and holds no class of any library, so
it does not depend on the versions it was written with.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tbr.data import Schema
from pyro_tbr.errors import DataError
from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.likelihoods import LIKELIHOODS, Likelihood
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.heads.priors import ArcPrior, GaussianPrior, HorseshoePrior, SpikeSlabPrior
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.models import (
    Encoder,
    IdentityEncoder,
    LinearEncoder,
    MLPEncoder,
    ModuleEncoder,
    TreeModel,
)
from pyro_tbr.models.encoders import PreparedEncoder
from pyro_tbr.posterior.plain import from_plain, to_plain
from pyro_tbr.posterior.posterior import Posterior
from pyro_tbr.posterior.report import FitReport, Scaling
from pyro_tbr.tree import Tree

LIBRARY = "pyro_tbr"
FORMAT = 1  # counts up when files of before can no longer be read, or readers of before would err

_ENCODERS: tuple[type[Encoder], ...] = (IdentityEncoder, LinearEncoder, MLPEncoder)
_PRIORS: tuple[type[ArcPrior], ...] = (GaussianPrior, HorseshoePrior, SpikeSlabPrior)
_LIKELIHOODS: tuple[type[Likelihood], ...] = tuple(LIKELIHOODS.values())
_GUIDES: tuple[type[Guide], ...] = (MeanFieldGuide, TreeGuide)
_WORDS = {"schema": "names of features and outcomes", "report": "report of the fit"}  # in errors


def save_posterior(posterior: Posterior, path: str | os.PathLike[str]) -> None:
    """Writes a posterior; a file that is there is replaced once the new one is complete.

    Args:
        posterior: Its encoder may be the user's own module, of which only the state is written.
        path: Where to.

    Raises:
        FileNotFoundError: No such folder.
        DataError: A node label, or the user's own prior, likelihood or guide, that would not come
            back as it is.
    """
    target = Path(path).resolve()  # through links: these stay
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{str(path)!r}: there is no folder {str(target.parent)!r}")
    content = _content(posterior)
    part = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
    try:
        with part.open("xb") as file:
            torch.save(content, file)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


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
        DataError: No file of ours, one in a newer format, or an ``encoder`` that is missing, does
            not fit or is not asked for.

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
    content = _read(path)
    parts = {name: from_plain(part) for name, part in content["posterior"].items()}
    tree = Tree(**parts["tree"])
    schema, scaling = Schema(**parts["schema"]), Scaling(**parts["scaling"])
    model = _model_of(parts["model"], tree, schema, scaling, encoder, path)
    return Posterior(
        model,
        _guide_of(parts["guide"], model),
        Statistics(**parts["stats"]),
        schema,
        scaling,
        parts["row_counts"],
        FitReport(**parts["report"]),
    )


def _content(posterior: Posterior) -> dict[str, Any]:
    """What goes into the file."""
    from pyro_tbr import __version__

    report, schema = posterior.report, posterior.schema
    parts: dict[str, Any] = {
        "tree": _describe_tree(posterior.tree),
        "model": _describe_model(posterior.model),
        "guide": _describe_guide(posterior.guide),
        "stats": posterior.stats._asdict(),
        "schema": {field.name: getattr(schema, field.name) for field in dataclasses.fields(schema)},
        "scaling": posterior.scaling._asdict(),
        "row_counts": posterior.row_counts,
        "report": {field.name: getattr(report, field.name) for field in dataclasses.fields(report)},
    }
    plain = {name: to_plain(part, _WORDS.get(name, name)) for name, part in parts.items()}
    return {"library": LIBRARY, "format": FORMAT, "version": __version__, "posterior": plain}


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The file's content, once it is known to be ours and not newer than we are."""
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever an unpickler meets in a file of another kind
            raise DataError(
                f"{os.fspath(path)!r} is no complete file that Posterior.save wrote "
                f"({type(error).__name__} while reading it)"
            ) from error
    ours = isinstance(content, dict) and content.get("library") == LIBRARY
    if not ours or not isinstance(content.get("format"), int):
        raise DataError(f"{os.fspath(path)!r} is a torch file, but not one Posterior.save wrote")
    if content["format"] > FORMAT:
        raise DataError(
            f"{os.fspath(path)!r} has format {content['format']} (pyro_tbr "
            f"{content['version']}), this pyro_tbr reads formats up to {FORMAT}: update pyro_tbr"
        )
    return content


def _describe_tree(tree: Tree) -> dict[str, Any]:
    """Arguments of :class:`Tree`, labels checked one by one so that an error can name the node."""
    nodes, parents, lengths, labels, support = tree.__reduce__()[1]
    for node in nodes:
        _check_label(node)
    return {
        "nodes": nodes,
        "parents": torch.tensor(parents),
        "lengths": lengths,
        "labels": labels,
        "support": support,
    }


def _check_label(node: Hashable) -> None:
    if node is None:
        raise DataError("node None cannot be saved, as it is no label: give the node a name")
    to_plain(node, f"node {node!r}")


def _describe_model(model: TreeModel) -> dict[str, Any]:
    """What the model was made of, by name, and what its parts hold."""
    return {
        "latent_dim": model.latent_dim,
        "intercept": model.intercept,
        "num_rows": model.num_rows,
        "encoder": _describe_encoder(model.encoder_spec),
        "prior": _describe_part(model.prior_spec, _PRIORS, "prior"),
        "likelihood": _describe_part(model.likelihood_spec, _LIKELIHOODS, "likelihood"),
        "num_components": getattr(model.encoder, "num_components", None),
        "encoder_state": dict(model.encoder.state_dict()),
        "prior_state": dict(model.prior.state_dict()),
        "likelihood_state": dict(model.likelihood.state_dict()),
    }


def _describe_encoder(spec: str | nn.Module) -> str | dict[str, Any]:
    """The name, or class and arguments; of the user's own module the class's name alone."""
    if isinstance(spec, str):
        return spec
    if type(spec) not in _ENCODERS:
        kind = type(spec.module if isinstance(spec, ModuleEncoder) else spec)
        return {"own": f"{kind.__module__}.{kind.__qualname__}"}
    arguments = {
        name: getattr(spec, name)
        for name in ("num_features", "latent_dim", "num_components", "hidden")
        if hasattr(spec, name)
    }
    return {"class": type(spec).__name__, "arguments": arguments, "state": dict(spec.state_dict())}


def _describe_part(spec: Any, known: tuple[type, ...], argument: str) -> Any:
    """A prior or likelihood: its name, or class and arguments."""
    if isinstance(spec, str):
        return spec
    if type(spec) not in known:
        raise DataError(
            f"{argument} is a {type(spec).__qualname__}, and only {_names(known)} can be saved: "
            "a file holds no classes; pickle the posterior instead"
        )
    return {"class": type(spec).__name__, "arguments": spec.description}


def _describe_guide(guide: Guide) -> dict[str, Any]:
    if type(guide) not in _GUIDES:
        raise DataError(
            f"guide is a {type(guide).__qualname__}, and only {_names(_GUIDES)} can be saved: "
            "a file holds no classes; pickle the posterior instead"
        )
    # A root without rows: arcs with rows below them are the same, whatever the root has.
    informed = torch.cat([torch.zeros(1, dtype=torch.bool), guide.informed_arcs.cpu()])
    arguments: dict[str, Any] = {"informed_nodes": informed}
    if isinstance(guide, TreeGuide):
        arguments["num_components"] = guide.num_components
    return {
        "class": type(guide).__name__,
        "arguments": arguments,
        "state": dict(guide.state_dict()),
    }


def _names(classes: tuple[type, ...]) -> str:
    return ", ".join(kind.__name__ for kind in classes)


def _made(description: Any, known: tuple[type, ...]) -> Any:
    """A part from its description: a name stays a name."""
    if isinstance(description, str):
        return description
    kinds = {kind.__name__: kind for kind in known}
    made = kinds[description["class"]](**description["arguments"])
    if isinstance(made, Encoder):
        _restore_encoder(made, description["state"])
    return made


def _model_of(
    parts: dict[str, Any],
    tree: Tree,
    schema: Schema,
    scaling: Scaling,
    encoder: nn.Module | None,
    path: str | os.PathLike[str],
) -> TreeModel:
    """The trained model: built as for training, then given the state it ended in."""
    described = parts["encoder"]
    own = described.get("own") if isinstance(described, dict) else None
    if (own is None) != (encoder is None):
        raise DataError(
            f"{os.fspath(path)!r} holds the encoder's state, but not its class {own}: "
            "load(path, encoder=module) with a module of that class and sizes"
            if encoder is None
            else f"encoder: {os.fspath(path)!r} says how to make its encoder: leave it out"
        )
    spec = _made(described, _ENCODERS) if encoder is None else copy.deepcopy(encoder)
    model = TreeModel(
        tree,
        parts["latent_dim"],
        encoder=spec,
        prior=_made(parts["prior"], _PRIORS),
        likelihood=_made(parts["likelihood"], _LIKELIHOODS),
        intercept=parts["intercept"],
    )
    # Fixed values are given in the user's units; the state has all else that data decided.
    model.build(schema.num_features, len(schema.outcome_names), outcome_scale=scaling.scale)
    model.num_rows = parts["num_rows"]
    if isinstance(model.encoder, PreparedEncoder):
        model.encoder.num_components = parts["num_components"]
    try:
        _restore_encoder(model.encoder, parts["encoder_state"])
    except RuntimeError as error:
        raise DataError(f"encoder does not fit the one in {os.fspath(path)!r}: {error}") from error
    _restore(model.prior, parts["prior_state"])
    _restore(model.likelihood, parts["likelihood_state"])
    return model


def _guide_of(parts: dict[str, Any], model: TreeModel) -> Guide:
    kinds = {kind.__name__: kind for kind in _GUIDES}
    guide = kinds[parts["class"]](model, **parts["arguments"])
    _restore(guide, parts["state"])
    return guide


def _restore_encoder(encoder: Encoder, state: dict[str, Tensor]) -> None:
    """Loads the state of an encoder, whose data may have decided on how many features it sees."""
    if isinstance(encoder, PreparedEncoder):
        encoder.projection = state["projection"]
        encoder.component_share = state["component_share"]
        encoder.reset(torch.Generator())  # layers of this width
    _restore(encoder, state)


def _restore(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads a state, dtypes included."""
    module.load_state_dict(state, assign=True)
