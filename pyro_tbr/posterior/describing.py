"""Tree, model and guide as descriptions without classes, and back: what they were made of.

A class is described by its name and the arguments of its constructor. Priors, likelihoods and
guides are found again among all classes of their kind, the user's own too once they are imported;
of an encoder that is the user's own module only the state is kept.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pyro_tbr.data import Schema
from pyro_tbr.errors import DataError
from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.likelihoods import GaussianLikelihood, Likelihood
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.heads.priors import ArcPrior
from pyro_tbr.heads.registry import registered
from pyro_tbr.models import Encoder, ModuleEncoder, TreeModel
from pyro_tbr.models.basis import LatentBasis
from pyro_tbr.models.encoders import ENCODERS, PreparedEncoder
from pyro_tbr.posterior.plain import to_plain
from pyro_tbr.tree import Tree

_OURS = {kind.__name__: kind for kind in ENCODERS.values()}


def describe_tree(tree: Tree) -> dict[str, Any]:
    """Arguments of :class:`Tree`, labels checked one by one so that an error can name the node."""
    nodes, parents, *rest = tree.__reduce__()[1]
    if tree.find(None) is not None:
        raise DataError("node None cannot be saved, as it is no label: give the node a name")
    for node in nodes:
        to_plain(node, f"node {node!r}")
    names = ("nodes", "parents", "lengths", "labels", "support")
    return dict(zip(names, (nodes, torch.tensor(parents), *rest), strict=True))


def describe_model(model: TreeModel) -> dict[str, Any]:
    """What the model was made of, by name, and what its parts hold."""
    return {
        "latent_dim": model.latent_dim,
        "intercept": model.intercept,
        "num_rows": model.num_rows,
        "encoder": _describe_encoder(model.encoder_spec),
        "prior": _describe_part(model.prior_spec, ArcPrior, "prior"),
        "likelihood": _describe_part(model.likelihood_spec, Likelihood, "likelihood"),
        "basis": _describe_basis(model.basis_spec),
        "basis_state": None if model.basis is None else dict(model.basis.state_dict()),
        "num_components": getattr(model.encoder, "num_components", None),
        "encoder_state": dict(model.encoder.state_dict()),
        "prior_state": dict(model.prior.state_dict()),
        "likelihood_state": dict(model.likelihood.state_dict()),
        "known": model.likelihood.takes,
    }


def _describe_encoder(spec: str | nn.Module) -> str | dict[str, Any]:
    """The name, or class and arguments; of the user's own module the class's name alone."""
    if isinstance(spec, str):
        return spec
    if _OURS.get(type(spec).__name__) is not type(spec):
        kind = type(spec.module if isinstance(spec, ModuleEncoder) else spec)
        return {"own": f"{kind.__module__}.{kind.__qualname__}"}
    names = ("num_features", "latent_dim", "num_components", "hidden")
    arguments = {name: getattr(spec, name) for name in names if hasattr(spec, name)}
    return {"class": type(spec).__name__, "arguments": arguments, "state": dict(spec.state_dict())}


def _describe_basis(spec: str | LatentBasis | None) -> Any:
    """Its name, or class and arguments; ``None`` without one."""
    return None if spec is None else _describe_part(spec, LatentBasis, "basis")


def _describe_part(spec: Any, base: type, argument: str) -> Any:
    """A prior or likelihood: its name, or class and arguments."""
    if isinstance(spec, str):
        return spec
    kind = type(spec)
    try:
        kind(**spec.description)
    except TypeError as error:
        raise DataError(
            f"{argument}: {kind.__qualname__} cannot be made again from its description "
            f"{spec.description!r} ({error}): give the arguments of its own constructor to "
            f"{base.__name__}.__init__, or pickle the posterior instead"
        ) from error
    return _describe_class(kind, base) | {"arguments": _described(spec.description)}


def _described(value: Any) -> Any:
    """Arguments of which some may be likelihoods, alone or in a dict."""
    if isinstance(value, Likelihood):
        return {"part": _describe_part(value, Likelihood, "likelihood")}
    if isinstance(value, dict):
        return {name: _described(part) for name, part in value.items()}
    return value


def _remade(value: Any) -> Any:
    """What :func:`_described` took apart."""
    if isinstance(value, dict):
        if set(value) == {"part"} and "class" in value["part"]:
            return _made(value["part"], Likelihood)
        return {name: _remade(part) for name, part in value.items()}
    return value


def describe_guide(guide: Guide) -> dict[str, Any]:
    """Its class, arguments and state."""
    # A root without rows: arcs with rows below them are the same, whatever the root has.
    informed = torch.cat([torch.zeros(1, dtype=torch.bool), guide.informed_arcs.cpu()])
    return _describe_class(type(guide), Guide) | {
        "informed_nodes": informed,
        "arguments": guide.settings(),
        "state": dict(guide.state_dict()),
    }


def _describe_class(kind: type, base: type) -> dict[str, Any]:
    """Its name, which has to say which one it is, and for errors its module."""
    _ = registered(base)[kind.__name__]
    return {"class": kind.__name__, "module": kind.__module__}


def _likelihood_of(parts: dict[str, Any]) -> Any:
    """Its description; in files of format 2 normal noise is common to all environments."""
    described, name = parts["likelihood"], GaussianLikelihood.__name__
    before = not any(key.startswith("node_noise_scale") or key.startswith("noise_spread")
                     for key in parts["likelihood_state"])  # fmt: skip
    if described == "gaussian" and before:
        return {"class": name, "module": "", "arguments": {"noise": "common"}}
    if isinstance(described, dict) and described["class"] == name and before:
        arguments = described["arguments"]
        if arguments.get("scale") is None and not arguments.get("noise"):
            return described | {"arguments": arguments | {"noise": "common"}}
    return described


def _made(description: Any, base: type, *first: Any) -> Any:
    """A part from its description, these arguments before those it names; a name stays a name."""
    if isinstance(description, str):
        return description
    known, name, module = registered(base), description["class"], description["module"]
    if name not in known and name not in known.several:
        raise DataError(
            f"the file has a {base.__name__} of class {name} in {module}, which is not there: "
            f"import {module} first"
        )
    return known[name](*first, **_remade(description["arguments"]))


def _encoder_of(described: Any, encoder: nn.Module | None, path: str) -> str | nn.Module:
    """The encoder to build the model with."""
    own = described.get("own") if isinstance(described, dict) else None
    if own is not None and encoder is None:
        raise DataError(
            f"{path!r} holds the encoder's state, but not its class {own}: load(path, "
            "encoder=module) with a module of that class and sizes"
        )
    if own is None and encoder is not None:
        raise DataError(f"encoder: {path!r} says how to make its encoder: leave it out")
    if encoder is not None:
        return copy.deepcopy(encoder)
    if isinstance(described, str):
        return described
    made = _OURS[described["class"]](**described["arguments"])
    restore_encoder(made, described["state"])
    return made


def model_of(
    parts: dict[str, Any],
    tree: Tree,
    schema: Schema,
    scaling: Scaling,
    encoder: nn.Module | None,
    path: str,
) -> TreeModel:
    """The trained model: built as for training, then given the state it ended in.

    Built with the scaling of the outcomes, as fixed values are given in the user's units. Errors
    name the path.
    """
    model = TreeModel(
        tree,
        parts["latent_dim"],
        encoder=_encoder_of(parts["encoder"], encoder, path),
        prior=_made(parts["prior"], ArcPrior),
        likelihood=_made(_likelihood_of(parts), Likelihood),
        intercept=parts["intercept"],
        basis=None if parts.get("basis") is None else _made(parts["basis"], LatentBasis),
    )
    model.build(
        schema.num_features,
        len(schema.outcome_names),
        outcome_scale=scaling.outcome_scale(),
        outcome_names=schema.outcome_names,
        known=parts.get("known", ()),
        feature_names=schema.feature_names,
    )
    model.num_rows = parts["num_rows"]
    if isinstance(model.encoder, PreparedEncoder):
        model.encoder.num_components = parts["num_components"]
    try:
        restore_encoder(model.encoder, parts["encoder_state"])
    except RuntimeError as error:
        raise DataError(f"encoder does not fit the one in {path!r}: {error}") from error
    model.prior.load_state_dict(parts["prior_state"], assign=True)  # dtypes included
    model.likelihood.load_state_dict(parts["likelihood_state"], assign=True)
    if model.basis is not None:
        model.basis.load_state_dict(parts["basis_state"], assign=True)
    return model


def guide_of(parts: dict[str, Any], model: TreeModel) -> Guide:
    """A guide from :func:`describe_guide`."""
    guide = _made(parts, Guide, model, parts["informed_nodes"])
    guide.load_state_dict(parts["state"], assign=True)
    return guide


def restore_encoder(encoder: Encoder, state: dict[str, Tensor]) -> None:
    """Loads the state of an encoder, whose data may have decided on how many features it sees."""
    if isinstance(encoder, PreparedEncoder):
        encoder.projection = state["projection"]
        encoder.component_share = state["component_share"]
        encoder.reset(torch.Generator())  # layers of this width
    encoder.load_state_dict(state, assign=True)
