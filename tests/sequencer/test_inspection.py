from dataclasses import replace

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.estimators.inspection import dependence, importance
from thesis_lib.sequencer.estimators.models import Boosted, Linear
from thesis_lib.sequencer.workload.scenarios import scenario


@pytest.fixture(scope="module")
def trace():
    """Scenario A with a feature that means nothing."""
    trace = scenario("A", 6_000, seed=3)
    noise = np.random.default_rng(0).normal(size=len(trace))
    return replace(
        trace,
        features=np.column_stack([trace.features, noise]),
        feature_names=(*trace.feature_names, "noise"),
    )


def test_what_is_shuffled_matters_where_it_means_something(trace):
    past, future = trace.split(0.5)
    found = importance(Boosted().fit(past), future)
    assert list(found.index) == ["payment", "new order"]
    assert list(found.columns) == list(trace.feature_names)
    # a Payment has no order lines, and within a type its flag is constant
    flags = ["is_payment", "is_new_order"]
    np.testing.assert_array_equal(found[flags].to_numpy(), 0)
    assert found.loc["payment", "order_lines"] == 0
    assert found.loc["new order", "order_lines"] > 8
    assert abs(found["noise"]).max() < 3


def test_importance_of_a_product_of_factors_is_its_mean_change(trace):
    """Exact estimates exp(x b): shuffling x costs exp(mean |x - x'| |b|)."""
    slope = 0.25
    column = trace.features[:, 3]
    exact = replace(trace, service_s=1e-3 * np.exp(slope * column))
    found = importance(Linear(1e-9).fit(exact), exact, repeats=20)
    # the mean difference of two standard normals is 2 / sqrt(pi)
    expected = 100 * np.expm1(slope * 2 / np.sqrt(np.pi))
    np.testing.assert_allclose(found["noise"], expected, rtol=0.03)


def test_dependence_is_the_formula_of_the_scenario():
    past, future = scenario("A", 30_000, seed=6).split(0.9)
    fitted = Boosted().fit(past)
    found_s = dependence(fitted, future, "new_order", "order_lines")
    lines = np.arange(5, 16)
    np.testing.assert_array_equal(found_s.index, lines)
    geometric_s = (0.4e-3 + 0.12e-3 * lines) * np.exp(-0.08)
    np.testing.assert_allclose(found_s, geometric_s, rtol=0.06)


def test_refusals(trace):
    fitted = Boosted(rounds=2).fit(trace)
    with pytest.raises(InvalidInput, match=r"'order_line' is unknown.*did you mean"):
        dependence(fitted, trace, "payment", "order_line")
    with pytest.raises(InvalidInput, match="type='pay' is unknown"):
        dependence(fitted, trace, "pay", "order_lines")
    orders = trace.take(np.flatnonzero(trace.kind == 1))
    with pytest.raises(InvalidInput, match="has no payment"):
        dependence(fitted, orders, "payment", "order_lines")
    with pytest.raises(InvalidInput, match="repeats=0"):
        importance(fitted, trace, repeats=0)
