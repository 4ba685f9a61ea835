"""A measurement in a process of its own, so that its memory and compiled loops are its own too."""

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any


def spawned(function: Callable[..., Any], *given: Any) -> Any:
    """What ``function(*given)`` returns in a new process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(theirs, function, given))
    process.start()
    theirs.close()  # so that a process that dies is an error here rather than a wait
    found = ours.recv()
    process.join()
    return found


def _send(connection: Any, function: Callable[..., Any], given: tuple) -> None:
    connection.send(function(*given))


def peak() -> float:
    """The largest memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
