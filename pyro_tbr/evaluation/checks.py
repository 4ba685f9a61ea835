"""What all metrics share: arrays from whatever is given, and checks that name the culprit."""

from importlib import import_module
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_tbr.errors import DataError, ShapeError

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


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a DataError where a value is none of the choices."""
    if value not in choices:
        raise DataError(f"{name} is {value!r}; give one of {', '.join(map(repr, choices))}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises a DataError where a number is out of its range, ends included."""
    if not low <= value <= high:
        raise DataError(f"{name} is {value!r}; give a number from {low:g} to {high:g}")


def check_count(name: str, value: int, least: int, what: str) -> None:
    """Raises a ShapeError where a count is too small for what needs it."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise DataError(f"{name}={value!r} must be a whole number")
    if value < least:
        raise ShapeError(f"{name} is {value!r}, but {what} needs at least {least}; raise it")
