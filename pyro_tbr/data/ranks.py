"""Processes of ``torch.distributed``: whether there are several, and their rows as one data set.

Rows are gathered, not statistics: every process then works on the same data and ends with the same
numbers. So it is for data that each process can hold.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pyro_tbr.data.alignment import check_whole, read_rows
from pyro_tbr.data.matching import RowOrder, Rows, Schema
from pyro_tbr.data.outcomes import Check
from pyro_tbr.data.sparse import SparseFeatures
from pyro_tbr.errors import DataError, TbrError
from pyro_tbr.tree import Tree


class _Part(NamedTuple):
    """What one process sends to all others: its rows, or the error that they met."""

    error: TbrError | None
    common: dict[str, Any]  # what must be the same in all processes, by its name
    rows: Rows | None
    seed: int


def num_ranks() -> int:
    """Processes of this program: of the initialised group, else those that torchrun started."""
    if not dist.is_available():
        return 1
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1


def check_ranks(ranks: str | None) -> bool:
    """Whether rows of several processes are one data set, by the user's word.

    Raises:
        DataError: There are several processes and nothing was said, as a guess would be wrong for
            half of the users without a sign of it; or they have no group to talk through.
    """
    if ranks not in (None, "together", "apart"):
        raise DataError(f"ranks={ranks!r}: give 'together' or 'apart', or leave it out")
    number = num_ranks()
    if number == 1 or ranks == "apart":
        return False
    if ranks is None:
        raise DataError(
            f"ranks=None, but {number} processes run under torch.distributed: give "
            "ranks='together' if each has a part of the rows of one data set, or ranks='apart' if "
            "each fits what it has for itself"
        )
    if not dist.is_initialized():
        raise DataError(
            f"ranks='together': {number} processes run, but they cannot talk to each other; call "
            "torch.distributed.init_process_group('gloo') first"
        )
    return True


def align_ranks(
    tree: Tree,
    x: Any,
    y: Any,
    env: Any,
    *,
    seed: int,
    same_seed: bool,
    check: Check | None = None,
    check_informative: Check | None = None,
    learns: bool = False,
    precision: torch.dtype | None = None,
) -> tuple[Rows, Schema, int]:
    """The rows of all processes, in the order of their ranks, in each of them.

    Every process calls it with its own rows; numbers of rows may differ. Sparse features stay so.
    Arguments are those of ``align_training``, and the ``seed`` of this process: with ``same_seed``
    all must have the same; else the first one's is taken.

    Returns:
        Rows without an index, their schema, and the seed, all three alike in all processes.

    Raises:
        TbrError: In all processes, whichever has rows that cannot be used.
        DataError: Trees, columns or seeds differ.
    """
    try:
        rows, schema = read_rows(tree, x, y, env, check=check, keep_sparse=True)
    except TbrError as error:  # to be told to all, or the others would wait for ever
        own = _Part(error, {}, None, seed)
    else:
        kind = "sparse" if isinstance(rows.x, SparseFeatures) else "dense"
        common = {"tree": tree, "columns": schema, "kind of x": kind}
        common["seed"] = seed if same_seed else None
        own = _Part(None, common, replace(rows, order=RowOrder(len(rows.env_index))), seed)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    _check_parts(parts)
    every = [part.rows for part in parts]
    features = [part.x for part in every]
    sparse = isinstance(features[0], SparseFeatures)
    env_index = torch.cat([part.env_index for part in every])
    whole = Rows(
        SparseFeatures.stack(features) if sparse else torch.cat(features),
        torch.cat([part.y for part in every]),
        env_index,
        RowOrder(len(env_index)),
        torch.stack([part.rounding for part in every]).amax(0),
    )
    check_whole(whole, schema, check_informative, learns=learns, precision=precision)
    return whole, schema, parts[0].seed


def _check_parts(parts: list[_Part]) -> None:
    """Raises alike in all processes, where one of them cannot go on."""
    for rank, part in enumerate(parts):
        if part.error is not None:
            raise type(part.error)(f"rank {rank} of {len(parts)}: {part.error}")
    first = parts[0].common
    for rank, part in enumerate(parts):
        for name, value in part.common.items():
            if value != first[name]:
                raise DataError(
                    f"ranks='together': rank {rank} has another {name} than rank 0, {value!r} and "
                    f"{first[name]!r}; give all processes the same"
                )
