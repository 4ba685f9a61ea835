"""What all metrics share: arrays from whatever is given, and checks that name the culprit."""

from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_tbr.errors import ShapeError

Array = NDArray[Any]


def require(module: str) -> Any:
    """A module of an optional package, or an ImportError that says how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        name = {"scipy": "scipy", "sklearn": "scikit-learn"}[module.split(".")[0]]
        raise ImportError(f"this metric needs {name}: pip install pyro-tbr[evaluation]") from error


def as_float(value: Any) -> Array:
    """Any array, tensor or table as float64."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def check_same_shape(name: str, value: Array, other: str, reference: Array) -> None:
    """Raises a ShapeError that names both where the shapes differ."""
    if value.shape != reference.shape:
        raise ShapeError(
            f"{name} has shape {value.shape}, {other} {reference.shape}: they must be the same"
        )
