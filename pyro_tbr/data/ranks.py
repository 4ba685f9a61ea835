"""Processes of ``torch.distributed``: whether there are several, and their rows as one data set.

Features stay with the process that has them: sums over rows are added up, gradients too. What there
is of every row beside its features, outcomes, environment, latents, is few numbers and made known
to all. So every process does the same with the same numbers, and all end with one posterior.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyro_tbr.data.alignment import arrange_groups, check_whole, read_rows
from pyro_tbr.data.features import ColumnSummary, Features, Part
from pyro_tbr.data.known import Known, align_known
from pyro_tbr.data.matching import RowOrder, Rows, Schema
from pyro_tbr.data.outcomes import Check
from pyro_tbr.data.sparse import SparseFeatures
from pyro_tbr.data.stream import FeatureStream, is_table
from pyro_tbr.errors import DataError, TbrError
from pyro_tbr.tree import Tree

T = TypeVar("T")


class _Own(NamedTuple):
    """What one process tells all others of its rows."""

    common: dict[str, Any]  # what must be the same in all processes, by its name
    seed: int
    number: int  # of rows
    groups: Any  # a label a row
    rounding: Any  # of each feature, (D,)


class RankFeatures(Features):
    """Features of all processes, of which each holds those of its own rows.

    Args:
        own: Those of this process.
        places: Which of all rows these are, (n,).
        number: Rows of all processes.
    """

    def __init__(self, own: Features, places: Tensor, number: int) -> None:
        self._own, self._places = own, places
        self.shape, self.device = (number, own.shape[1]), own.device
        self._where = torch.full((number,), -1, dtype=torch.int64)
        self._where[places] = torch.arange(len(places))

    def __getitem__(self, rows: Tensor) -> RankFeatures:
        """See :class:`Features`; the same rows have to be asked for in all processes."""
        rows = rows.cpu()
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        where = self._where[rows]
        return RankFeatures(
            self._own[where[where >= 0]], (where >= 0).nonzero()[:, 0], len(rows)
        ).to(self.device)

    def to(self, device: torch.device | str) -> RankFeatures:
        """See :class:`Features`."""
        new = RankFeatures(self._own.to(device), self._places, len(self))
        if "summary" in vars(self):
            vars(new)["summary"] = self.summary
        return new

    def runs(self) -> Iterator[Any]:
        """Of the rows of this process."""
        return self._own.runs()

    def dense(self) -> Tensor:
        """See :class:`Features`."""
        return self.every(self._own.dense())

    def each(self, function: Callable[[Any], Tensor]) -> Tensor:
        """See :class:`Features`."""
        return self.every(self._own.each(function))

    def total(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """See :class:`Features`."""
        return self.summed(self._own.total(function))

    @functools.cached_property
    def summary(self) -> ColumnSummary:
        """See :class:`Features`."""
        return self.merged(self._own.summary)

    @property
    def places(self) -> Tensor | None:
        """See :class:`Features`."""
        return self._places.to(self.device)

    def here(self, rows: Tensor) -> Tensor:
        """See :class:`Features`."""
        return rows[(self._where[rows.cpu()] >= 0).to(rows.device)]

    def local(self, rows: Tensor) -> Tensor:
        """See :class:`Features`."""
        return self._where[rows.cpu()].to(rows.device)

    def held(self, rows: Tensor) -> Features:
        """See :class:`Features`."""
        return self._own[self.local(rows)]

    def every(self, own: Tensor) -> Tensor:
        """See :class:`Features`."""
        whole = own.new_zeros(len(self), *own.shape[1:])
        whole[self._places.to(own.device)] = own.detach()
        return _reduced(whole)

    def summed(self, part: Tensor) -> Tensor:
        """See :class:`Features`."""
        return _reduced(part.detach().clone())

    def merged(self, part: Part) -> Part:
        """See :class:`Features`; in the order of the ranks, so alike in all."""
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, part)
        return functools.reduce(lambda one, other: one + other, parts)

    def share_gradients(self, parameters: list[nn.Parameter]) -> None:
        """See :class:`Features`."""
        zeros = (torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
        total = self.summed(torch.cat([grad.flatten() for grad in zeros]))
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, grad in zip(parameters, total.split(sizes), strict=True):
            parameter.grad = grad.reshape(parameter.shape)

    def agree(self, module: nn.Module) -> None:
        """See :class:`Features`."""
        state: list[Any] = [{name: part.cpu() for name, part in module.state_dict().items()}]
        dist.broadcast_object_list(state)
        module.load_state_dict(state[0])


def _reduced(part: Tensor) -> Tensor:
    """The sum over processes, which may be in place; the same in all, to the last bit."""
    there = part.to("cuda" if dist.get_backend() == "nccl" else "cpu").contiguous()
    dist.all_reduce(there)
    return there.to(part.device)


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


def rank_of() -> int:
    """Number of this process among those that talk to each other, from 0."""
    return dist.get_rank()


def of_all_ranks(work: Callable[[], T]) -> list[T]:
    """What some work gives in each process, in the order of their ranks; all have to ask.

    Raises:
        TbrError, OSError: In all processes, whichever meets one.
    """
    error, found = None, None
    try:
        found = work()
    except (TbrError, OSError) as met:  # to be told to all, or the others would wait for ever
        error = met
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (error, found))
    for rank, (problem, _) in enumerate(parts):
        if problem is not None:
            raise type(problem)(f"rank {rank} of {len(parts)}: {problem}")
    return [found for _, found in parts]


def align_ranks(
    tree: Tree,
    x: Any,
    y: Any,
    env: Any,
    given: Mapping[str, Any],
    groups: Any,
    *,
    takes: tuple[str, ...],
    seed: int,
    same_seed: bool,
    check: Check | None = None,
    check_informative: Check | None = None,
    learns: bool = False,
    precision: torch.dtype | None = None,
) -> tuple[Rows, Schema, Known, Any, int]:
    """The rows of all processes, in the order of their ranks, as one data set in each of them.

    Every process calls it with its own rows; numbers of rows may differ. Arguments are those of
    ``align_training`` and ``align_known``, labels of groups, and the ``seed`` of this process: with
    ``same_seed`` all must have the same; else the first one's is taken.

    Returns:
        Rows without an index, whose features stay where they are; their schema; what is known of
        them; labels of their groups; and the seed: all alike in all processes.

    Raises:
        TbrError: In all processes, whichever has rows that cannot be used.
        DataError: Trees, columns, arguments or seeds differ.
    """
    read: list[tuple[Rows, Schema, Known]] = []  # by this process, which the others are not told

    def own() -> _Own:
        rows, schema = read_rows(
            tree, FeatureStream(x) if is_table(x) else x, y, env, check=check, keep=True
        )  # no copy of a table is made
        known = align_known(schema, given, takes, rows.order)
        labels = None if groups is None else list(arrange_groups(groups, rows.order))
        if isinstance(rows.x, Features):
            rows.x.summary  # noqa: B018  # what cannot be used is refused as it is read
        read.append((rows, schema, known))
        kind = "sparse" if isinstance(rows.x, SparseFeatures) else "dense"
        said = [name for name, value in given.items() if value is not None]
        common = {
            "tree": tree, "columns": schema, "kind of x": kind,
            "arguments": (*said, *(() if groups is None else ("groups",))),
            "seed": seed if same_seed else None,
        }  # fmt: skip
        return _Own(common, seed, len(rows.env_index), labels, rows.rounding)

    parts = of_all_ranks(own)
    _check_alike(parts)
    rows, schema, known = read[0]
    sizes = [part.number for part in parts]
    start, number = sum(sizes[: dist.get_rank()]), sum(sizes)
    features = rows.x if isinstance(rows.x, Features) else FeatureStream(rows.x)
    places = torch.arange(start, start + len(rows.env_index))
    x = RankFeatures(features, places, number)
    assert rows.y is not None  # training has outcomes
    index, order = x.every(rows.env_index), RowOrder(number)
    rounding = torch.stack([part.rounding for part in parts]).amax(0)
    whole = Rows(x, x.every(rows.y), index, order, rounding)
    known = Known(
        {name: x.every(value) for name, value in known.values.items()},
        None if known.weights is None else x.every(known.weights),
    )
    labels = None if groups is None else [label for part in parts for label in part.groups]
    check_whole(whole, schema, check_informative, learns=learns, precision=precision)
    return whole, schema, known, labels, parts[0].seed


def _check_alike(parts: list[_Own]) -> None:
    """Raises alike in all processes, where these were not given the same."""
    first = parts[0].common
    for rank, part in enumerate(parts):
        for name, value in part.common.items():
            if value != first[name]:
                raise DataError(
                    f"ranks='together': rank {rank} has another {name} than rank 0, {value!r} and "
                    f"{first[name]!r}; give all processes the same"
                )
