"""Files of tensors and plain values: written whole or not at all, read without running anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import torch

from pyro_tbr.errors import DataError

LIBRARY = "pyro_tbr"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write; one that is there is replaced once the new one is complete."""
    target = Path(path).resolve()  # through links: these stay
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{str(path)!r}: there is no folder {str(target.parent)!r}")
    part = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def check_path(path: object, calls: str) -> None:
    """Refuses what is no name of a file; ``calls`` shows how it is given."""
    if not isinstance(path, str | os.PathLike):
        raise DataError(f"path must be the name of a file, got {type(path).__name__}: {calls}")


def write_content(path: str | os.PathLike[str], part: str, form: int, plain: Any) -> None:
    """Writes a part of plain data with what :func:`read_content` asks for; ``form`` its format."""
    from pyro_tbr import __version__

    head = {"library": LIBRARY, "format": form, "version": __version__}
    with replacing(path) as file:
        torch.save(head | {part: plain}, file)


def read_content(path: str | os.PathLike[str], part: str, writer: str) -> dict[str, Any]:
    """A file's content, once it is known to be whole and to have the part that a writer wrote."""
    with open(path, "rb") as file:
        try:
            with ZipFile(file) as records:  # torch does not look at their checksums
                damaged = records.testzip()
            if damaged is not None:
                raise BadZipFile(f"checksum of {damaged}")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever an unpickler meets in a file of another kind
            raise DataError(
                f"{os.fspath(path)!r} is no complete file that {writer} wrote "
                f"({type(error).__name__} while reading it)"
            ) from error
    ours = isinstance(content, dict) and content.get("library") == LIBRARY and part in content
    if not ours or not isinstance(content.get("format"), int):
        raise DataError(f"{os.fspath(path)!r} is a torch file, but not one {writer} wrote")
    return content
