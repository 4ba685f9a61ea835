"""Parts of a fit in a file, so that one that was cut short goes on to the very same result.

A fit is a row of parts: an encoder's training, the rotation, the weights. What a part leaves is a
dict of tensors and plain values, and what comes after is made from it, whether it was just computed
or read. With it is kept where the random generators stood. The file is written anew after each
part, whole or not at all, and holds nothing that runs. It says which fit it is of, by the rows, the
model and the options; another fit does not go on from it.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pyro_tbr.data import Features, SparseFeatures, of_all_ranks, rank_of
from pyro_tbr.errors import DataError, warn_user
from pyro_tbr.posterior.files import check_path, read_content, write_content
from pyro_tbr.posterior.plain import from_plain, to_plain

FORMAT = 1
_WRITER = "fit(checkpoint=)"
# Parts of an identity whose text says nothing.
_HASHED = ("tree", "rows", "start", "state of the encoder", "values of the prior")
_HOLDS = {"name", "left", "generator", "global generator"}  # each part
_CALLS = "fit(..., checkpoint='fit.part', resume='fit.part')"

Part = dict[str, Any]
T = TypeVar("T")


def part(
    checkpoint: Checkpoint | None,
    name: str,
    work: Callable[[], T],
    describe: Callable[[T], Part],
    restore: Callable[[Part], T],
) -> T:
    """A part of a fit: done, or taken from the checkpoint that holds it.

    Args:
        checkpoint: ``None``: it is done, and nothing is kept.
        name: Of the part.
        work: Does it.
        describe: From what it gives to what a file holds of that.
        restore: And back.
    """
    if checkpoint is None:
        return work()
    known = checkpoint.next(name)
    if known is not None:
        return restore(known)
    found = work()
    checkpoint.keep(name, describe(found))
    return found


class Checkpoint:
    """What is done of a fit.

    Args:
        identity: Which fit it is, text by what it is of.
        generator: Whose state is kept with each part.
        global_draws: Torch's own generator draws too, as in networks with dropout.
        path: File to write; ``None``: none.
        resume: File to go on from; ``None``, or the file to write where that is not there yet: from
            the start.

    Raises:
        DataError: A file of another fit, of another version, or that is damaged; a file to write
            that is there and is not to be gone on from.
        OSError: The file cannot be written.
    """

    def __init__(
        self,
        identity: Mapping[str, str],
        generator: torch.Generator,
        *,
        global_draws: bool = False,
        path: str | os.PathLike[str] | None = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> None:
        self.identity = dict(identity)
        self.generator, self.global_draws, self.path = generator, global_draws, path
        self._done, self._failed = 0, False
        for given in (path, resume):
            if given is not None:
                check_path(given, _CALLS)
        if path is not None and resume is None and Path(path).exists():
            raise DataError(
                f"checkpoint={os.fspath(path)!r} is there already: give it as resume too, to go on "
                "from it, or remove it"
            )
        afresh = resume is None or (resume == path and not Path(resume).exists())
        self._parts: list[Part] = [] if afresh or resume is None else self._read(resume)
        if path is not None:
            _remove_leftovers(Path(path).resolve())
            self._write()

    @property
    def num_parts(self) -> int:
        """Parts that the file holds."""
        return len(self._parts)

    def go_on_from(self, num_parts: int) -> None:
        """Takes only so many of these for done, as where another process has no more."""
        del self._parts[num_parts:]

    def next(self, name: str) -> Part | None:
        """What the next part left, if the file holds it; generators then stand behind it."""
        if self._done == len(self._parts):
            return None
        found = self._parts[self._done]
        if found["name"] != name:
            raise DataError(
                f"resume: part {self._done + 1} of the file is {found['name']!r} where this fit "
                f"has {name!r}, so it is of another fit; leave resume out"
            )
        self._done += 1
        self.generator.set_state(found["generator"])
        if self.global_draws:
            torch.set_rng_state(found["global generator"])
        left: Part = from_plain(copy.deepcopy(found["left"]))
        return left

    def keep(self, name: str, left: Part) -> None:
        """Writes what a part left, as it is now: tensors may change where they came from."""
        plain = to_plain(left, "checkpoint")
        self._parts.append({
            "name": name, "left": plain, "generator": self.generator.get_state(),
            "global generator": torch.get_rng_state() if self.global_draws else None,
        })  # fmt: skip
        self._done += 1
        if self.path is not None:
            self._try_to_write()

    def _try_to_write(self) -> None:
        """Hours of work are not lost as a disk is full: the file stays what it was before."""
        try:
            self._write()
        except OSError as error:
            if not self._failed:
                warn_user(
                    f"checkpoint={os.fspath(self.path or '')!r} could not be written ({error}): "
                    "the fit goes on, and the file stays as it was"
                )
            self._failed = True

    def _write(self) -> None:
        assert self.path is not None
        write_content(self.path, "fit", FORMAT, {"identity": self.identity, "parts": self._parts})

    def _read(self, path: str | os.PathLike[str]) -> list[Part]:
        """The parts in a file, once it is known to be of this fit."""
        from pyro_tbr import __version__

        content, shown = read_content(path, "fit", _WRITER), repr(os.fspath(path))
        if content["format"] != FORMAT or content.get("version") != __version__:
            raise DataError(
                f"resume={shown} was written by pyro_tbr {content.get('version')}, and this is "
                f"{__version__}, whose fits may differ: go on with that version, or leave resume "
                "out"
            )
        try:
            identity, parts = content["fit"]["identity"], content["fit"]["parts"]
            names = set(identity) | set(self.identity)
            whole = all(set(part) == _HOLDS for part in parts)
        except Exception as error:  # whatever is missing or of another kind
            raise DataError(
                f"resume={shown} is damaged: {type(error).__name__} while its parts were read; "
                "leave resume out"
            ) from error
        if not whole:
            raise DataError(f"resume={shown} is damaged: parts of it are not whole; leave it out")
        for name in sorted(names):
            theirs, ours = identity.get(name), self.identity.get(name)
            if theirs != ours:
                told = "" if name in _HASHED else f" ({theirs}, here {ours})"
                raise DataError(
                    f"resume={shown} is of a fit with another {name}{told}: call fit as then, or "
                    "leave resume out"
                )
        known: list[Part] = parts
        return known


def opened(make: Callable[[], Checkpoint], *, together: bool) -> Checkpoint:
    """A checkpoint; with that of other processes, of which some may be a part ahead.

    Raises:
        DataError, OSError: See :class:`Checkpoint`; in all processes, whichever meets one.
    """
    if not together:
        return make()
    made: list[Checkpoint] = []  # what one process tells all others is the number alone

    def number() -> int:
        made.append(make())
        return made[0].num_parts

    least = min(of_all_ranks(number))
    made[0].go_on_from(least)
    return made[0]


def file_of_rank(path: str | os.PathLike[str] | None) -> str | None:
    """A process' own file: the name that all were given, its rank behind."""
    if path is None:
        return None
    check_path(path, _CALLS)
    return f"{os.fspath(path)}.{rank_of()}"


def seed_in(path: str | os.PathLike[str]) -> int | None:
    """The seed of the fit in a file; ``None`` where there is no file."""
    check_path(path, _CALLS)
    if not Path(path).exists():
        return None
    return int(read_content(path, "fit", _WRITER)["fit"]["identity"]["seed"])


def digest(*values: object) -> str:
    """What arrays, sparse features, modules' states and plain values are, as text."""
    found = hashlib.sha256()
    for value in values:
        _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: object) -> None:
    if isinstance(value, SparseFeatures):
        stored = value.stored
        value = [stored.data, stored.indices, stored.indptr]
    elif isinstance(value, Features):
        for block in value.blocks():
            _add(found, block)
        return
    if isinstance(value, nn.Module):
        value = dict(value.state_dict())
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        found.update(f"{value.dtype}{value.shape}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for name, part in value.items():
            found.update(repr(name).encode())
            _add(found, part)
    elif isinstance(value, list | tuple):
        found.update(f"{len(value)}".encode())
        for part in value:
            _add(found, part)
    else:
        found.update(repr(value).encode())


def _remove_leftovers(target: Path) -> None:
    """What writes of a file that were killed have left beside it."""
    if target.parent.is_dir():
        for other in target.parent.iterdir():
            if other.name.startswith(f".{target.name}.") and other.name.endswith(".part"):
                other.unlink(missing_ok=True)
