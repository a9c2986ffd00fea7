from dataclasses import replace

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import KeySets, Trace
from thesis_lib.sequencer.estimators.models import (
    AIMS,
    ESTIMATORS,
    LEARNED,
    LEVELS,
    Boosted,
    Constant,
    Linear,
    Noisy,
    Oracle,
    Quantiles,
    cut_tail,
    estimator,
    everything,
    predict_all,
)
from thesis_lib.sequencer.workload.scenarios import scenario


@pytest.fixture(scope="module")
def trace() -> Trace:
    return scenario("A", 3_000, seed=5)


def scaled(trace, factor):
    return replace(
        trace, service_s=trace.service_s * factor, units_s=trace.units_s * factor
    )


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_a_slower_machine_scales_every_prediction(trace, name, factor):
    past, future = trace.split(0.5)
    base_s = predict_all(estimator(name).fit(past), future)
    other_s = predict_all(estimator(name).fit(scaled(past, factor)), future)
    np.testing.assert_allclose(other_s, factor * base_s, rtol=1e-6)


@pytest.mark.parametrize("name", LEARNED)
def test_predictions_do_not_depend_on_what_is_predicted(trace, name):
    past, future = trace.split(0.5)
    fitted = estimator(name).fit(past)
    blind = scaled(future, 0.0)
    np.testing.assert_array_equal(
        predict_all(fitted, future), predict_all(fitted, blind)
    )
    assert (predict_all(fitted, future) > 0).all()


@pytest.mark.parametrize("name", LEARNED)
def test_the_same_seed_is_the_same_estimator(trace, name):
    past, future = trace.split(0.5)
    first, second = (
        predict_all(estimator(name, seed=3).fit(past), future) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_learned_estimators_find_the_formula_of_the_scenario():
    # log service = log of the formula + N(-0.08, 0.4): geometric mean e^-0.08 below
    past, future = scenario("A", 20_000, seed=6).split(0.8)
    payment, lines = future.kind == 0, future.features[:, 2]
    mean_s = np.where(payment, 0.5e-3, 0.4e-3 + 0.12e-3 * lines)
    boosted_s = predict_all(Boosted().fit(past), future)
    sum_max_s = predict_all(estimator("sum-max").fit(past), future)
    np.testing.assert_allclose(boosted_s, mean_s * np.exp(-0.08), rtol=0.08)
    np.testing.assert_allclose(sum_max_s, mean_s, rtol=0.08)


def test_sum_max_sums_its_units_and_the_rest():
    trace = scenario("A", 2_000, seed=6)
    parts = np.column_stack([0.5 * trace.service_s, 0.2 * trace.service_s])
    split = replace(trace, units_s=parts, unit_names=("read", "write"))
    fitted = estimator("sum-max").fit(split)
    assert len(fitted.forests) == 3
    # forests of proportional targets split alike, so the sum is the whole's forest
    whole_s = predict_all(estimator("sum-max").fit(trace), trace)
    np.testing.assert_allclose(predict_all(fitted, trace), whole_s, rtol=1e-6)


def test_linear_is_exact_on_a_product_of_factors(trace):
    slope = np.array([0.3, -0.3, 0.1])
    product = replace(trace, service_s=np.exp(trace.features @ slope - 7))
    product = replace(product, units_s=product.service_s[:, None])
    predicted_s = predict_all(Linear(penalty=1e-9).fit(product), product)
    np.testing.assert_allclose(predicted_s, product.service_s, rtol=1e-6)


def test_constant_is_the_mean_of_the_past(trace):
    past, future = trace.split(0.5)
    predicted_s = predict_all(Constant().fit(past), future)
    np.testing.assert_array_equal(predicted_s, np.full(1_500, past.service_s.mean()))


def test_oracle_reads_by_id_and_noise_has_its_size():
    trace = scenario("A", 50_000, seed=7)
    ids = np.array([4, 1, 9_999])
    batch = trace.batch(ids, np.full(3, np.inf))
    np.testing.assert_array_equal(Oracle(trace).predict(batch), trace.service_s[ids])
    noisy = Noisy(trace, sigma=0.2, seed=1)
    factor = predict_all(noisy, trace) / trace.service_s
    assert abs(factor.mean() - 1) < 4 * 0.21 / np.sqrt(50_000)
    assert abs(np.log(factor).std() - 0.2) < 0.003
    np.testing.assert_array_equal(noisy.predict(batch), predict_all(noisy, trace)[ids])
    np.testing.assert_array_equal(
        predict_all(Noisy(trace, sigma=0.0), trace), trace.service_s
    )


def test_the_cut_leaves_one_standard_deviation_to_both_sides():
    rng = np.random.default_rng(8)
    n = 20_000
    trace = Trace.of_jobs(
        np.arange(n) * 1.0, rng.normal(10, 2, n), KeySets.from_lists([[]] * n, [[]] * n)
    )
    kept = cut_tail(trace)
    stderr = np.sqrt(0.683 * 0.317 / n)
    assert abs(len(kept) / n - 0.6827) < 4 * stderr
    outside = np.setdiff1d(trace.service_s, kept.service_s)
    assert np.abs(kept.service_s - 10).max() < np.abs(outside - 10).min() + 0.1
    np.testing.assert_allclose(np.abs(kept.service_s - 10).max(), 2, rtol=0.02)
    assert (np.diff(kept.arrival_s) > 0).all()
    np.testing.assert_array_equal(
        cut_tail(scaled(trace, 7.0)).arrival_s, kept.arrival_s
    )
    equal = replace(trace, service_s=np.full(n, 0.1))
    assert len(cut_tail(equal)) == n
    with pytest.raises(InvalidInput, match="the past is empty"):
        cut_tail(trace.take(np.array([], np.int64)))


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


@pytest.mark.parametrize("name", LEARNED)
def test_no_estimate_changes_with_what_happens_later(trace, name):
    """Truth from row 2,000 on is another; fitted on the past, nothing may differ."""
    other = later(trace, 2_000)
    assert (other.service_s != trace.service_s).any()
    for aim in (None, *AIMS):
        first, second = (
            predict_all(estimator(name, aim=aim).fit(t.split(2 / 3)[0]), t)
            for t in (trace, other)
        )
        np.testing.assert_array_equal(first, second)


def test_an_aim_meets_the_mean_and_the_median():
    past, future = scenario("A", 40_000, seed=11).split(0.5)
    geometric, median, mean = (
        predict_all(estimator("boosted", aim=aim).fit(past), future)
        for aim in (None, *AIMS)
    )
    ratio = future.service_s / geometric
    # lognormal of sigma 0.4: the mean is e^0.08 above the median
    assert abs(ratio.mean() / np.exp(0.08) - 1) < 0.02
    assert abs((future.service_s / mean).mean() - 1) < 0.02
    assert abs(np.median(future.service_s / median) - 1) < 0.02
    with pytest.raises(InvalidInput, match="aim='mode' is unknown"):
        estimator("boosted", aim="mode")
    with pytest.raises(InvalidInput, match="knows the truth"):
        estimator("oracle", truth=past, aim="mean")


def test_calibrated_quantiles_cover_what_they_promise():
    past, future = scenario("A", 40_000, seed=12).split(0.5)
    fitted = Quantiles().fit(past)
    bounds_s = fitted.bounds(everything(future))
    assert (np.diff(bounds_s, axis=1) >= 0).all()
    np.testing.assert_array_equal(bounds_s[:, 0], predict_all(fitted, future))
    calibrating = 0.3 * len(past)
    for at, level in enumerate(LEVELS):
        covered = np.mean(future.service_s <= bounds_s[:, at])
        stderr = np.sqrt(level * (1 - level) * (1 / calibrating + 1 / len(future)))
        assert abs(covered - level) < 4 * stderr
    with pytest.raises(InvalidInput, match="of which 90 calibrate: expected at least"):
        Quantiles().fit(past.take(np.arange(300)))


def test_tracked_quantiles_follow_a_machine_that_slows_down():
    trace = scenario("A", 20_000, seed=13)
    slower = np.exp(np.linspace(0, 1, len(trace)))
    past, future = replace(trace, service_s=trace.service_s * slower).split(0.5)
    asked_s = np.arange(len(future)) * 1e-3
    fitted = Quantiles().fit(past)
    fixed_s = fitted.bounds(everything(future))
    tracked_s = fitted.tracked_bounds(future, asked_s, asked_s + 20e-3)
    for at, level in enumerate(LEVELS):
        assert abs(np.mean(future.service_s <= tracked_s[:, at]) - level) < 0.01
    assert np.mean(future.service_s <= fixed_s[:, 1]) < 0.85
    other = later(future, 5_000)
    changed_s = fitted.tracked_bounds(other, asked_s, asked_s + 20e-3)
    # row 5,000 is known 20 ms later, when row 5,020 asks
    np.testing.assert_array_equal(changed_s[:5_019], tracked_s[:5_019])
    assert (changed_s[5_100:] != tracked_s[5_100:]).any()


def test_one_transaction_is_estimated_as_in_a_batch(trace):
    past, future = trace.split(0.5)
    fitted = Boosted().fit(past)
    alone_s = [fitted.predict_one(row) for row in future.features]
    np.testing.assert_allclose(alone_s, predict_all(fitted, future), rtol=1e-15)


def test_the_units_of_sum_max_add_up(trace):
    parts = np.column_stack([0.5 * trace.service_s, 0.2 * trace.service_s])
    split = replace(trace, units_s=parts, unit_names=("read", "write"))
    fitted = estimator("sum-max").fit(split)
    units_s = fitted.predict_units(everything(trace))
    assert list(units_s) == ["read", "write", "rest"]
    total_s = np.sum(list(units_s.values()), axis=0)
    np.testing.assert_allclose(predict_all(fitted, trace), total_s, rtol=1e-15)
    np.testing.assert_allclose(units_s["read"], 0.5 * total_s, rtol=1e-6)


def test_refusals(trace):
    past, _ = trace.split(0.5)
    with pytest.raises(InvalidInput, match="did you mean 'boosted'"):
        estimator("bosted")
    for name in ("noisy", "oracle"):
        with pytest.raises(InvalidInput, match="needs the trace"):
            estimator(name)
    for name in LEARNED:
        with pytest.raises(InvalidInput, match=f"the {name} estimator is not fitted"):
            predict_all(estimator(name), trace)
        with pytest.raises(InvalidInput, match="the past is empty"):
            estimator(name).fit(trace.take(np.array([], np.int64)))
    narrow = replace(
        trace, features=trace.features[:, :2], feature_names=trace.feature_names[:2]
    )
    with pytest.raises(InvalidInput, match=r"has 2 features: .*missing: order_lines"):
        predict_all(Linear().fit(past), narrow)
    with pytest.raises(InvalidInput, match="knows 1500 transactions"):
        predict_all(Oracle(past), trace)
    assert {estimator(name, truth=trace).name for name in ESTIMATORS} == set(ESTIMATORS)
