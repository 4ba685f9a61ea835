"""What must not change a posterior does not, on random trees and tables.

Latents are known here, so that a fit has one answer: PIPs, weights and predictions of the table and
of its twin have to agree. Tolerances are those of sweeps that end when little moves, and of
messages whose components are merged in the order of the children.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyro_tbr as tbr

ONCE = settings(
    max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
OFTEN = settings(ONCE, max_examples=40)
PIP, WEIGHT = 0.04, 0.05  # differences of PIPs, and of mean changes over their size


class Table(NamedTuple):
    """Parents by child, features and outcomes by name, the label of each row."""

    parents: dict[str, str]
    x: pd.DataFrame
    y: pd.DataFrame
    env: np.ndarray

    def fit(self, **given) -> tbr.Posterior:
        model = tbr.TreeModel(tbr.Tree.from_parents(self.parents), self.x.shape[1], "identity")
        options = tbr.FitOptions(mixture_components=24)
        return tbr.fit(model, self.x, self.y, self.env, progress=False, options=options, **given)


@st.composite
def tables(draw) -> Table:
    """Trees of 4 to 9 leaves of any shape; one or two latents and outcomes; few or many rows."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    num_leaves = draw(st.integers(4, 9))
    nodes, parents = ["root"], {}
    open_ = ["root"]
    while len(open_) + sum(node.startswith("leaf") for node in nodes) < num_leaves:
        node = open_.pop(int(rng.integers(len(open_))))
        for _ in range(int(rng.integers(2, 4))):
            child = f"n{len(nodes)}"
            parents[child] = node
            nodes.append(child)
            open_.append(child)
    leaves = sorted(set(nodes) - set(parents.values()))
    latents, outcomes = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    rows = draw(st.sampled_from([8, 25, 60]))
    env = np.repeat(leaves, rows)
    x = rng.normal(size=(len(env), latents))
    weights = {"root": rng.normal(size=(latents + 1, outcomes))}
    for child, parent in parents.items():
        changes = rng.random((latents + 1, outcomes)) < 0.2
        weights[child] = weights[parent] + changes * rng.normal(0, 1.5, (latents + 1, outcomes))
    design = np.column_stack([x, np.ones(len(x))])
    y = np.stack([design[i] @ weights[label] for i, label in enumerate(env)])
    y = y + draw(st.sampled_from([0.2, 0.7])) * rng.normal(size=y.shape)
    columns = [f"x{k}" for k in range(latents)], [f"y{q}" for q in range(outcomes)]
    return Table(
        parents, pd.DataFrame(x, columns=columns[0]), pd.DataFrame(y, columns=columns[1]), env
    )


def deltas_of(posterior: tbr.Posterior) -> pd.DataFrame:
    """Changes by child, latent and outcome."""
    return posterior.deltas().set_index(["child", "latent", "outcome"]).sort_index()


def assert_same(one: tbr.Posterior, other: tbr.Posterior, scale: float = 1.0, **renamed) -> None:
    """PIPs and mean changes agree; ``scale`` is the unit of the other's changes."""
    mine, theirs = deltas_of(one), deltas_of(other)
    if renamed:
        back = {new: old for old, new in renamed.items()}
        theirs.index = theirs.index.set_levels(
            [back.get(name, name) for name in theirs.index.levels[0]], level=0
        )
        theirs = theirs.sort_index()
    assert list(mine.index) == list(theirs.index)
    gap = (mine["pip"] - theirs["pip"]).abs()
    assert gap.max() < PIP, f"PIPs differ by {gap.max():.3f} at {gap.idxmax()}"
    off = (mine["mean"] - theirs["mean"] / scale).abs() / mine["mean"].abs().clip(lower=0.5)
    assert off.max() < WEIGHT, f"means differ by {off.max():.3f} at {off.idxmax()}"


def both(check):
    """A few examples by default, many in the slow suite."""
    few = ONCE(given(tables())(check))
    many = pytest.mark.slow(OFTEN(given(tables())(check)))
    return few, many


def order_of_rows_and_children(table):
    rng = np.random.default_rng(0)
    order = rng.permutation(len(table.env))
    parents = dict(rng.permutation(list(table.parents.items())).tolist())
    x, y = table.x.iloc[order].reset_index(drop=True), table.y.iloc[order].reset_index(drop=True)
    twin = Table(parents, x, y, table.env[order])
    assert_same(table.fit(), twin.fit())


def order_of_columns(table):
    twin = table._replace(x=table.x.iloc[:, ::-1], y=table.y.iloc[:, ::-1])
    assert_same(table.fit(), twin.fit())


def names_of_nodes(table):
    nodes = sorted(set(table.parents) | set(table.parents.values()))
    names = {node: f"z{len(nodes) - i:03d}" for i, node in enumerate(nodes)}
    parents = {names[child]: names[parent] for child, parent in table.parents.items()}
    twin = table._replace(parents=parents, env=np.array([names[label] for label in table.env]))
    assert_same(table.fit(), twin.fit(), **names)


def units_of_outcomes(table):
    twin = table._replace(y=1000.0 * table.y - 7e5)
    assert_same(table.fit(), twin.fit(), scale=1000.0)


def units_of_features(table):
    """Changes of latents are per standard deviation of the feature, whatever its unit."""
    twin = table._replace(x=1e-3 * table.x + 40.0)
    one, other = table.fit(), twin.fit()
    gap = (deltas_of(one)["pip"] - deltas_of(other)["pip"]).abs()
    assert gap.max() < PIP
    mine, theirs = (
        np.asarray(p.predict(rows, table.env).mean) for p, rows in ((one, table.x), (other, twin.x))
    )
    assert np.abs(mine - theirs).max() < 0.02 * np.asarray(table.y).std()


def rows_that_stand_twice(table):
    """A weight of two is the same as the row and its copy."""
    x, y = (pd.concat([part, part], ignore_index=True) for part in (table.x, table.y))
    twin = Table(table.parents, x, y, np.concatenate([table.env, table.env]))
    assert_same(table.fit(row_weights=np.full(len(table.env), 2.0)), twin.fit())


def arcs_in_series(table):
    """A node between two others splits a change among two arcs; nothing else moves."""
    child = sorted(set(table.parents) - set(table.parents.values()))[0]
    parents = table.parents | {"between": table.parents[child], child: "between"}
    one, other = table.fit(), table._replace(parents=parents).fit()
    x = table.x.iloc[:5]
    for label in sorted(set(table.env)):
        mine, theirs = (p.predict(x, label) for p in (one, other))
        size = np.asarray(table.y).std()
        assert np.abs(np.asarray(mine.mean) - np.asarray(theirs.mean)).max() < 0.1 * size


test_order_of_rows_and_children, test_order_of_rows_and_children_often = both(
    order_of_rows_and_children
)
test_order_of_columns, test_order_of_columns_often = both(order_of_columns)
test_names_of_nodes, test_names_of_nodes_often = both(names_of_nodes)
test_units_of_outcomes, test_units_of_outcomes_often = both(units_of_outcomes)
test_units_of_features, test_units_of_features_often = both(units_of_features)
test_rows_that_stand_twice, test_rows_that_stand_twice_often = both(rows_that_stand_twice)
test_arcs_in_series, test_arcs_in_series_often = both(arcs_in_series)
