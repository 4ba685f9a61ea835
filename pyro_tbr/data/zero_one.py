"""What a Bernoulli likelihood asks of outcomes, until likelihoods say it themselves."""

import numpy as np

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.errors import DataError
from pyro_tbr.tree.readers.naming import listed


def check_zero_one(y: Outcomes) -> None:
    """Refuses values other than 0, 1 and NaN."""
    held = np.unique(y.values[~np.isnan(y.values)]).tolist()
    bad = ~np.isnan(y.values) & (y.values != 0) & (y.values != 1)
    what = f"that must be 0 or 1 and are not (y holds {listed(held, 4)})"
    y.refuse(bad, what, "recode it to 0 and 1, or choose another likelihood")


def check_both_classes(y: Outcomes) -> None:
    """Refuses a column with a single value."""
    for name, column in zip(y.names, y.values.T, strict=True):
        seen = column[~np.isnan(column)]
        if len(seen) and (seen == seen[0]).all():
            rows = "rows" if len(seen) == len(column) else "observed rows"
            raise DataError(
                f"y has a single value {seen[0]:g} in all {len(seen)} {rows} of column {name!r}: "
                "there is nothing to learn, give both 0 and 1 or drop this outcome"
            )
