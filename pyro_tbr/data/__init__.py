"""From a user's tables to tensors: one alignment step that fit, predict, update and encode share.

:func:`align_training` checks features, outcomes and environments together and returns
:class:`Rows` (float64 tensors and node indices in one row order) and a :class:`Schema`. Whatever
comes later is held against that schema by :func:`align_features` and :func:`align_outcomes`;
:func:`align_env` turns labels into node indices. Sparse features may stay so
(:class:`SparseFeatures`), and others where they lie (:class:`FeatureStream`), to be made dense by
blocks of rows. Rows of several processes become one data set by :func:`align_ranks`; which rows are
alike is for :func:`align_groups`. Rows follow the first index there is (:class:`RowOrder`), columns
their names; the rest goes by position. Input that cannot be used is refused before any training
with a message that says what, where, how many and what to do; the user's objects are neither
changed nor shared.
"""

from pyro_tbr.data.alignment import align_env, align_features, align_groups, align_training
from pyro_tbr.data.columns import varying_columns
from pyro_tbr.data.features import ALL_HERE, Features, Holding, dense
from pyro_tbr.data.known import Known, align_known, as_given
from pyro_tbr.data.matching import RowOrder, Rows, Schema
from pyro_tbr.data.outcomes import Outcomes, align_outcomes
from pyro_tbr.data.ranks import align_ranks, check_ranks, of_all_ranks, rank_of
from pyro_tbr.data.sparse import SparseFeatures
from pyro_tbr.data.stream import FeatureStream

__all__ = [
    "ALL_HERE",
    "FeatureStream",
    "Features",
    "Holding",
    "Known",
    "Outcomes",
    "RowOrder",
    "Rows",
    "Schema",
    "SparseFeatures",
    "align_env",
    "align_features",
    "align_groups",
    "align_known",
    "align_outcomes",
    "align_ranks",
    "align_training",
    "as_given",
    "check_ranks",
    "dense",
    "of_all_ranks",
    "rank_of",
    "varying_columns",
]
