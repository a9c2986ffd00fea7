from dataclasses import replace

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import KeySets, Trace
from thesis_lib.sequencer.estimators import models
from thesis_lib.sequencer.workload.scenarios import scenario


@pytest.fixture(scope="module")
def trace() -> Trace:
    return scenario("A", 3_000, seed=5)


def scaled(trace, factor):
    return replace(
        trace, service_s=trace.service_s * factor, units_s=trace.units_s * factor
    )


@pytest.mark.parametrize("name", models.LEARNED)
def test_a_slower_machine_scales_every_prediction(trace, name):
    past, future = trace.split(0.5)
    base_s = models.predict_all(models.estimator(name).fit(past), future)
    for factor in (1e-3, 7.0):
        slower = models.estimator(name).fit(scaled(past, factor))
        other_s = models.predict_all(slower, future)
        np.testing.assert_allclose(other_s, factor * base_s, rtol=1e-6)


def test_estimators_find_the_formula_of_the_scenario():
    # log service = log of the formula + N(-0.08, 0.4): geometric mean e^-0.08 below
    past, future = scenario("A", 20_000, seed=6).split(0.8)
    payment, lines = future.kind == 0, future.features[:, 2]
    mean_s = np.where(payment, 0.5e-3, 0.4e-3 + 0.12e-3 * lines)
    boosted = models.Boosted().fit(past)
    boosted_s = models.predict_all(boosted, future)
    sum_max_s = models.predict_all(models.estimator("sum-max").fit(past), future)
    constant = models.Constant().fit(past)
    assert constant.mean_s == past.service_s.mean()
    one_s = [boosted.predict_one(row) for row in future.features[:500]]
    np.testing.assert_allclose(one_s, boosted_s[:500], rtol=1e-15)
    np.testing.assert_allclose(boosted_s, mean_s * np.exp(-0.08), rtol=0.08)
    np.testing.assert_allclose(sum_max_s, mean_s, rtol=0.08)


def test_linear_is_exact_on_a_product_of_factors(trace, monkeypatch):
    slope = np.array([0.3, -0.3, 0.1])
    product = replace(trace, service_s=np.exp(trace.features @ slope - 7))
    product = replace(product, units_s=product.service_s[:, None])
    monkeypatch.setattr(models.Linear, "penalty", 1e-9)
    predicted_s = models.predict_all(models.Linear().fit(product), product)
    np.testing.assert_allclose(predicted_s, product.service_s, rtol=1e-6)


def test_the_cut_leaves_one_standard_deviation_to_both_sides():
    rng = np.random.default_rng(8)
    n = 20_000
    trace = Trace.of_jobs(
        np.arange(n) * 1.0, rng.normal(10, 2, n), KeySets.from_lists([[]] * n, [[]] * n)
    )
    kept = models.cut_tail(trace)
    stderr = np.sqrt(0.683 * 0.317 / n)
    assert abs(len(kept) / n - 0.6827) < 4 * stderr
    outside = np.setdiff1d(trace.service_s, kept.service_s)
    assert np.abs(kept.service_s - 10).max() < np.abs(outside - 10).min() + 0.1
    np.testing.assert_allclose(np.abs(kept.service_s - 10).max(), 2, rtol=0.02)
    assert (np.diff(kept.arrival_s) > 0).all()
    np.testing.assert_array_equal(
        models.cut_tail(scaled(trace, 7.0)).arrival_s, kept.arrival_s
    )
    equal = replace(trace, service_s=np.full(n, 0.1))
    assert len(models.cut_tail(equal)) == n
    with pytest.raises(InvalidInput, match="the past is empty"):
        models.cut_tail(trace.take(np.array([], np.int64)))


def later(trace, now):
    """The trace with everything that happens from row `now` on shuffled and scaled."""
    rows = np.arange(len(trace))
    rows[now:] = np.random.default_rng(9).permutation(rows[now:])
    factor = np.where(np.arange(len(trace)) < now, 1.0, 3.0)
    return replace(
        trace,
        service_s=trace.service_s[rows] * factor,
        units_s=trace.units_s[rows] * factor[:, None],
    )


@pytest.mark.parametrize("name", models.LEARNED)
def test_no_estimate_changes_with_what_happens_later(trace, name):
    """Truth from row 2,000 on is another; fitted on the past, nothing may differ."""
    other = later(trace, 2_000)
    assert (other.service_s != trace.service_s).any()
    first, second = (
        models.predict_all(models.estimator(name).fit(t.split(2 / 3)[0]), t)
        for t in (trace, other)
    )
    np.testing.assert_array_equal(first, second)
    assert (first > 0).all()


def test_calibrated_quantiles_cover_what_they_promise():
    past, future = scenario("A", 40_000, seed=12).split(0.5)
    fitted = models.Quantiles().fit(past)
    bounds_s = fitted.bounds(models.everything(future))
    assert (np.diff(bounds_s, axis=1) >= 0).all()
    np.testing.assert_array_equal(bounds_s[:, 0], models.predict_all(fitted, future))
    calibrating = 0.3 * len(past)
    for at, level in enumerate(models.LEVELS):
        covered = np.mean(future.service_s <= bounds_s[:, at])
        stderr = np.sqrt(level * (1 - level) * (1 / calibrating + 1 / len(future)))
        assert abs(covered - level) < 4 * stderr
    with pytest.raises(InvalidInput, match="of which 90 calibrate: expected at least"):
        models.Quantiles().fit(past.take(np.arange(300)))


def test_tracked_quantiles_follow_a_machine_that_slows_down():
    trace = scenario("A", 20_000, seed=13)
    slower = np.exp(np.linspace(0, 1, len(trace)))
    past, future = replace(trace, service_s=trace.service_s * slower).split(0.5)
    asked_s = np.arange(len(future)) * 1e-3
    fitted = models.Quantiles().fit(past)
    fixed_s = fitted.bounds(models.everything(future))
    tracked_s = fitted.tracked_bounds(future, asked_s, asked_s + 20e-3)
    for at, level in enumerate(models.LEVELS):
        assert abs(np.mean(future.service_s <= tracked_s[:, at]) - level) < 0.01
    assert np.mean(future.service_s <= fixed_s[:, 1]) < 0.85
    other = later(future, 5_000)
    changed_s = fitted.tracked_bounds(other, asked_s, asked_s + 20e-3)
    # row 5,000 is known 20 ms later, when row 5,020 asks
    np.testing.assert_array_equal(changed_s[:5_019], tracked_s[:5_019])
    assert (changed_s[5_100:] != tracked_s[5_100:]).any()


def test_the_units_of_sum_max_add_up(trace):
    parts = np.column_stack([0.5 * trace.service_s, 0.2 * trace.service_s])
    split = replace(trace, units_s=parts, unit_names=("read", "write"))
    fitted = models.estimator("sum-max").fit(split)
    units_s = fitted.predict_units(models.everything(trace))
    assert list(units_s) == ["read", "write", "rest"]
    total_s = np.sum(list(units_s.values()), axis=0)
    np.testing.assert_allclose(models.predict_all(fitted, trace), total_s, rtol=1e-15)
    np.testing.assert_allclose(units_s["read"], 0.5 * total_s, rtol=1e-6)
    # forests of proportional targets split alike, so the sum is the whole's forest
    whole_s = models.predict_all(models.estimator("sum-max").fit(trace), trace)
    np.testing.assert_allclose(total_s, whole_s, rtol=1e-6)


@pytest.mark.parametrize("name", ["bosted", "noisy", "oracle"])
def test_estimator_rejects_unknown_name(name):
    with pytest.raises(InvalidInput, match=f"estimator='{name}' is unknown"):
        models.estimator(name)


def test_estimator_rejects_other_features(trace):
    fitted, names = models.Linear().fit(trace), ("is_payment", "is_new_order")
    two = replace(trace, features=trace.features[:, :2], feature_names=names)
    with pytest.raises(InvalidInput, match=r"has 2 features: .*missing: order_lines"):
        models.predict_all(fitted, two)
    other = replace(trace, feature_names=(*names, "lines"))
    with pytest.raises(InvalidInput, match="missing: order_lines; unknown: lines"):
        models.predict_all(fitted, other)


@pytest.mark.parametrize("name", models.LEARNED)
def test_estimator_rejects_what_it_cannot_learn_or_predict(trace, name):
    fresh = models.estimator(name)
    assert fresh.name == name
    with pytest.raises(InvalidInput, match=f"the {name} estimator is not fitted"):
        models.predict_all(fresh, trace)
    with pytest.raises(InvalidInput, match="the past is empty"):
        fresh.fit(trace.take(np.array([], np.int64)))
