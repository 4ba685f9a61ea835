"""The compiler of loops that torch is slow at, where there is one."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])

try:
    import numba

    COMPILES = True
except ImportError:  # its wheels come some months after those of a new Python
    COMPILES = False

_PACKAGE = Path(__file__).parent
_MARK = b"@jit\n"


def jit(function: _F) -> _F:
    """The function compiled when it is first called, and kept on disk; without numba as it is.

    Division by zero gives infinity, as in numpy; the interpreter is free meanwhile.
    """
    if not COMPILES:
        return function
    how = {"error_model": "numpy", "nogil": True}
    before = numba.config.CACHE_DIR
    try:
        numba.config.CACHE_DIR = cache_folder(before)
        return cast(_F, numba.njit(cache=True, **how)(function))
    except (RuntimeError, OSError):  # no folder to keep it in can be written to
        return cast(_F, numba.njit(**how)(function))
    finally:
        numba.config.CACHE_DIR = before


@functools.cache
def cache_folder(given: str) -> str:
    """Where compiled functions are kept, a folder for every state of their sources.

    The compiler looks at the file of the function that is called alone, not at those of functions
    that it calls, which are compiled into it; and two of its versions that share a folder may read
    what the other is about to replace. The folder lies in the folder that the compiler was given,
    else beside this file, or, where nothing can be written there, where the compiler would put it.
    """
    stamp = hashlib.sha256(numba.__version__.encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        source = path.read_bytes()
        if _MARK in source:
            stamp.update(source)
    base = Path(given) if given else _PACKAGE / "__pycache__"
    if not given and not os.access(base if base.exists() else _PACKAGE, os.W_OK):
        return ""
    return str(base / f"compiled-{stamp.hexdigest()[:16]}")


def is_compiled(function: Callable[..., Any]) -> bool:
    """Whether it has been called before in this process, so that a call is no wait."""
    return bool(getattr(function, "signatures", True))
