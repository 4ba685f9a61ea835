"""Which rows belong together: a group within an environment."""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.data.matching import RowOrder, read_table
from pyro_tbr.data.numbers import plain
from pyro_tbr.errors import DataError
from pyro_tbr.tree.labels import factorize_labels


def align_groups(groups: Any, env_index: Tensor, order: RowOrder, *, learns: bool = True) -> Tensor:
    """A number for each row's group within its environment, (N,) int64, from 0 on.

    Args:
        groups: A label for each row; a Series is brought into the order of the rows.
        env_index: Node of each row, (N,); rows at two nodes are of two groups, whatever the label.
        order: Of the rows.
        learns: How alike the rows of a group are is to be learnt, so some have to share one.

    Raises:
        ShapeError: There are more or fewer labels than rows, or more than one column.
        TreeError: Labels that are not hashable.
        DataError: A label is missing, with ``learns`` no two rows share group and node, or the
            index of a Series does not fit those of the others.
    """
    if isinstance(groups, str | bytes) or not hasattr(groups, "__len__"):
        raise DataError(f"groups={groups!r} is no label for each row: give {len(env_index)} labels")
    groups, index = read_table(groups, "groups")
    if isinstance(groups, pd.DataFrame) and groups.shape[1] == 1:
        groups = groups.iloc[:, 0]
    groups = order.arrange(groups, index, "groups")
    codes, _ = factorize_labels(groups, "groups")
    missing = codes < 0
    if missing.any():
        first = int(missing.argmax())
        where = first if order.index is None else plain(order.index[first])
        raise DataError(
            f"groups has no label for {missing.sum()} row(s), first row {where!r}: give a row that "
            "is alone a label of its own, or leave the row out"
        )
    both = torch.stack([env_index.cpu(), torch.from_numpy(codes.astype("int64"))], 1)
    pairs = both.unique(dim=0, return_inverse=True)[1]
    if learns and len(pairs) and int(pairs.max()) + 1 == len(pairs):
        raise DataError(
            f"groups: none of the {len(pairs)} rows shares group and environment with another one, "
            "so nothing says how alike the rows of a group are: leave groups out"
        )
    return pairs
