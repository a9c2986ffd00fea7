from dataclasses import replace

import numpy as np
import pytest

from thesis_lib.checks import InvalidInput
from thesis_lib.sequencer.estimator import (
    ESTIMATORS,
    LEARNED,
    Boosted,
    Constant,
    Linear,
    Noisy,
    Oracle,
    cut_tail,
    estimator,
    log_r2,
    on_time_probability,
    predict_all,
    q_error,
    ratio_bound,
    ratio_quantiles,
    replay_ceiling,
)
from thesis_lib.sequencer.trace import KeySets, Trace
from thesis_lib.sequencer.workload import scenario


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
    with pytest.raises(InvalidInput, match="has 2 features: expected the 3"):
        predict_all(Linear().fit(past), narrow)
    with pytest.raises(InvalidInput, match="knows 1500 transactions"):
        predict_all(Oracle(past), trace)
    assert {estimator(name, truth=trace).name for name in ESTIMATORS} == set(ESTIMATORS)


# --- Metrics -----------------------------------------------------------------


def test_q_error_is_symmetric_and_at_least_one():
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(size=(2, 1_000))
    np.testing.assert_array_equal(q_error(a, b), q_error(b, a))
    np.testing.assert_allclose(q_error(7 * a, 7 * b), q_error(a, b), rtol=1e-12)
    assert (q_error(a, b) >= 1).all()
    np.testing.assert_array_equal(q_error(a, a), 1)
    np.testing.assert_allclose(q_error(np.array([2.0]), np.array([0.5])), 4)
    with pytest.raises(InvalidInput, match="positive times"):
        q_error(np.array([0.0]), np.array([1.0]))


def test_log_r2_of_the_truth_and_of_its_mean():
    true_s = np.random.default_rng(1).lognormal(size=500)
    assert log_r2(true_s, true_s) == 1
    middle = np.full(500, np.exp(np.log(true_s).mean()))
    assert abs(log_r2(true_s, middle)) < 1e-12


@pytest.mark.parametrize(("shared", "own"), [(1.0, 0.5), (0.3, 0.6), (0.0, 1.0)])
def test_replay_ceiling_is_the_shared_part_of_the_variance(shared, own):
    rng = np.random.default_rng(2)
    n, replays = 20_000, 3
    log_s = rng.normal(0, shared, (n, 1)) + rng.normal(0, own, (n, replays))
    expected = shared**2 / (shared**2 + own**2)
    assert abs(replay_ceiling(np.exp(log_s)) - expected) < 0.02
    with pytest.raises(InvalidInput, match="at least 2"):
        replay_ceiling(np.ones((5, 1)))


# --- Calibration -------------------------------------------------------------


def test_coverage_equals_the_promised_probability():
    """Over many calibration lists, the k-th ratio covers k / (m + 1) exactly."""
    rng = np.random.default_rng(3)
    lists, m = 40_000, 19
    ratios = np.sort(rng.lognormal(0.1, 0.5, (lists, m)), axis=1)
    fresh = rng.lognormal(0.1, 0.5, lists)
    for coverage in (0.05, 0.5, 0.9, 0.95):
        bounds = np.array([ratio_bound(row, coverage) for row in ratios])
        stderr = np.sqrt(coverage * (1 - coverage) / lists)
        assert abs(np.mean(fresh <= bounds) - coverage) < 4 * stderr
        at_bound = on_time_probability(bounds[:1], ratios[0])
        np.testing.assert_allclose(at_bound, coverage)


def test_probability_rises_with_slack_and_ends_at_the_ends():
    ratios = np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(
        on_time_probability(np.array([-1.0, 0.4, 0.5, 1.5, 2.0, 9.0]), ratios),
        np.array([0, 0, 1, 2, 3, 3]) / 4,
    )
    with pytest.raises(InvalidInput, match="sorted"):
        on_time_probability(np.ones(1), ratios[::-1])
    for coverage in (0.0, 0.8, 1.0):
        with pytest.raises(InvalidInput, match="cannot be promised from 3 ratios"):
            ratio_bound(ratios, coverage)


def test_ratios_carry_the_bias(trace):
    class TwiceTheTruth(Oracle):
        def predict(self, batch):
            return 2 * super().predict(batch)

    np.testing.assert_allclose(ratio_quantiles(TwiceTheTruth(trace), trace), 0.5)
