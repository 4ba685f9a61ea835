"""The contract of all baselines of the package, and the table of their changes."""

import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import DataError
from pyro_tbr.evaluation import baselines
from tests.brief import mostly_slow
from tests.evaluation.baselines import contract

SPARSE = tbr.FitOptions(restarts=2, max_steps=5, sparse_steps=5, cross_fit=0, mixture_components=8)
QUICK = {
    "SparseTree": {"options": SPARSE},
    "DenseTree": {"options": tbr.FitOptions(mixture_components=2)},
    "L1TBR": {"restarts": 4, "steps": 60, "strengths": (0.1, 0.01)},
}
METHODS = [cls(**QUICK.get(cls.__name__, {})) for cls in (baselines.SparseTree, *baselines.ALL)]
every = pytest.mark.parametrize("method", METHODS, ids=contract.name)
but_sparse = pytest.mark.parametrize(  # whose fit is tested by itself
    "method",
    mostly_slow(
        {contract.name(method): method for method in METHODS},
        *(contract.name(method) for method in METHODS[1:]),
    ),
)


@but_sparse
def test_predictions(method):
    contract.check_predictions(method)


@but_sparse
def test_units(method):
    contract.check_units(method)


@every
def test_intervals(method):
    contract.check_intervals(method)


def test_encoders_that_cannot_be_learnt():
    contract.check_what_cannot_be_learnt(baselines.L1TBR())


def test_deltas_are_a_table_in_the_order_of_posteriors():
    of = {contract.name(method): method for method in METHODS}
    table = contract.fitted(of["L1TBR"]).deltas()
    assert len(table) == contract.data().tree.num_arcs * 3 * 2
    assert list(table.columns) == ["parent", "child", "latent", "outcome", "mean"]
    assert (table.loc[table["child"] == contract.HELD_OUT, "mean"] == 0).all()
    with pytest.raises(DataError, match="no changes"):
        contract.fitted(of["Pooled"]).deltas()
