"""The compiler of loops that torch is slow at, where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])

try:
    import numba

    COMPILES = True
except ImportError:  # its wheels come some months after those of a new Python
    COMPILES = False


def jit(function: _F) -> _F:
    """The function compiled when it is first called, and kept on disk; without numba as it is.

    Division by zero gives infinity, as in numpy; the interpreter is free meanwhile.
    """
    if not COMPILES:
        return function
    how = {"error_model": "numpy", "nogil": True}
    try:
        return cast(_F, numba.njit(cache=True, **how)(function))
    except RuntimeError:  # no folder to keep it in can be written to
        return cast(_F, numba.njit(**how)(function))


def is_compiled(function: Callable[..., Any]) -> bool:
    """Whether it has been called before in this process, so that a call is no wait."""
    return bool(getattr(function, "signatures", True))
