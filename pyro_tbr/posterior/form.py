"""How what is said of each row is given back: arrays, or pandas where the user's rows were."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from pyro_tbr.data import RowOrder
from pyro_tbr.posterior.tables import names_index


@dataclass(frozen=True)
class Form:
    """How per-row results are given back.

    Attributes:
        flat: (N,) rather than (N, Q).
        index: The user's row index where the features were a DataFrame, else ``None``.
        names: Names of the outcomes.
        order: Of the rows, for outcomes that come later.
    """

    flat: bool
    index: pd.Index | None
    names: tuple[Hashable, ...]
    order: RowOrder

    def draws(self, values: Tensor) -> np.ndarray:
        """(..., N, Q) values as numpy."""
        return (values[..., 0] if self.flat else values).numpy()

    def table(self, values: Tensor) -> Any:
        """(N, Q) values as numpy or pandas."""
        array = self.draws(values.cpu().double())
        if self.index is None:
            return array
        if self.flat:
            return pd.Series(array, index=self.index, name=self.names[0])
        return pd.DataFrame(array, index=self.index, columns=list(self.names))

    def frame(self, parts: Mapping[str, Any]) -> pd.DataFrame:
        """Several tables, as :meth:`table` gives them, side by side: see ``Prediction.to_frame``.

        Its index is that of the rows, whichever argument labelled them, else 0, 1, ...
        """
        size, labels = self.order.size, self.order.index
        index = self.index if labels is None else labels
        index = pd.RangeIndex(size) if index is None else index
        wide = (size, len(self.names))
        values = np.stack([np.reshape(part, wide) for part in parts.values()], axis=-1)
        if len(self.names) == 1:
            return pd.DataFrame(values[:, 0], index=index, columns=list(parts))
        statistic = pd.Index(list(parts), name="statistic")
        columns = pd.MultiIndex.from_product([names_index(self.names, "outcome"), statistic])
        return pd.DataFrame(values.reshape(size, -1), index=index, columns=columns)
