"""Results that take seconds and are asked for again, kept by what they were asked with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

Result = TypeVar("Result")


class Kept:
    """The last few results by key; for several threads, and empty in every copy and file.

    A result depends on its key alone and nobody changes it, so it does not matter which thread
    made it: an entry is there or not, and what a call returns is never read back from another's.

    Args:
        most: How many results are kept; the oldest goes first.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._entries: dict[Hashable, object] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """The result of a key, made where it is not there."""
        with self._lock:
            if key in self._entries:
                return self._entries[key]  # type: ignore[return-value]
        # Outside the lock: calls for other keys need not wait.
        value = make()
        with self._lock:
            self._entries[key] = value
            while len(self._entries) > self.most:
                del self._entries[next(iter(self._entries))]
        return value

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type[Kept], tuple[int]]:
        return Kept, (self.most,)
