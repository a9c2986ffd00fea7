from dataclasses import replace

import numpy as np
import pytest
from key_sets import no_keys

from thesis_book.experiments.sequencer import accuracy
from thesis_book.experiments.sequencer.forecasts import (
    end_to_end,
    forecast_finish,
    track_latency,
)
from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import KeySets, Trace
from thesis_lib.sequencer.estimators.models import Boosted, Linear
from thesis_lib.sequencer.experiments.configuration import (
    SimulationConfig,
    noisy_estimate,
)
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import scenario


def test_q_error_is_symmetric_and_at_least_one():
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(size=(2, 1_000))
    np.testing.assert_array_equal(accuracy.q_error(a, b), accuracy.q_error(b, a))
    np.testing.assert_allclose(
        accuracy.q_error(7 * a, 7 * b), accuracy.q_error(a, b), rtol=1e-12
    )
    assert (accuracy.q_error(a, b) >= 1).all()
    np.testing.assert_array_equal(accuracy.q_error(a, a), 1)
    np.testing.assert_allclose(accuracy.q_error(np.array([2.0]), np.array([0.5])), 4)


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_no_estimator_beats_the_irreducible_scatter(share):
    true_s = np.random.default_rng(3).lognormal(0, 0.4, 100_000)
    least = accuracy.least_q_error(0.4, share)

    def reached(off):
        errors = accuracy.q_error(true_s, np.full(len(true_s), np.exp(off)))
        return np.quantile(errors, 1 - share)

    np.testing.assert_allclose(reached(0.0), least, rtol=0.01)
    for off in (-0.2, -0.08, 0.08, 0.2):  # the mean is 0.08 above
        assert reached(off) > 1.005 * reached(0.0)
    assert accuracy.least_q_error(0.0, share) == 1


def test_log_r2_of_the_truth_and_of_its_mean():
    true_s = np.random.default_rng(1).lognormal(size=500)
    assert accuracy.log_r2(true_s, true_s) == 1
    middle = np.full(500, np.exp(np.log(true_s).mean()))
    assert abs(accuracy.log_r2(true_s, middle)) < 1e-12


@pytest.mark.parametrize(("shared", "own"), [(1.0, 0.5), (0.3, 0.6), (0.0, 1.0)])
def test_replay_ceiling_is_the_shared_part_of_the_variance(shared, own):
    rng = np.random.default_rng(2)
    n, replays = 20_000, 3
    log_s = rng.normal(0, shared, (n, 1)) + rng.normal(0, own, (n, replays))
    expected = shared**2 / (shared**2 + own**2)
    assert abs(accuracy.intraclass_correlation(np.exp(log_s)) - expected) < 0.02


# --- By type -------------------------------------------------------------------


def test_a_row_for_each_type_and_one_for_all():
    trace = scenario("A", 5_000, seed=1)
    factor = np.where(trace.kind == 0, 2.0, 0.8)
    bounds_s = {0.9: 1.5 * trace.service_s, 0.5: trace.service_s * (trace.kind == 0)}
    table = accuracy.by_type(trace, factor * trace.service_s, bounds_s)
    assert list(table.index) == ["all", "payment", "new order"]
    np.testing.assert_allclose(table["q-error p95"], [2, 2, 1.25])
    np.testing.assert_allclose(table["within 90%"], 100)
    payments = trace.kind == 0
    np.testing.assert_allclose(table["within 50%"], [100 * payments.mean(), 100, 0])
    mae_us = 1e6 * trace.service_s[payments].mean()
    np.testing.assert_allclose(table.loc["payment", "MAE µs"], mae_us)
    expected = 1 - np.log(2) ** 2 / np.log(trace.service_s[payments]).var()
    np.testing.assert_allclose(table.loc["payment", "R² of log"], expected)
    assert table["transactions"].tolist() == [5_000, payments.sum(), (~payments).sum()]
    one = accuracy.by_type(trace.take(np.arange(1)), trace.service_s[:1])
    assert np.isnan(one["R² of log"]).all()


def test_ceilings_of_types_are_those_of_their_rows():
    rng = np.random.default_rng(0)
    trace = scenario("A", 4_000, seed=1)
    times_s = trace.service_s[:, None] * rng.lognormal(0, 0.3, (len(trace), 3))
    replays = {f"service_s_r{r + 1}": times_s[:, r] for r in range(3)}
    found = accuracy.noise_ceilings(replace(trace, measured=replays), "service_s")
    for name, rows in (("all", slice(None)), ("new order", trace.kind == 1)):
        assert found[name] == accuracy.intraclass_correlation(times_s[rows])


def test_totals_are_sums_over_sums():
    trace = scenario("A", 3_000, seed=1)
    factor = np.where(trace.kind == 0, 2.0, 0.5)
    table = accuracy.totals(
        trace, {"own": trace.service_s, "skewed": factor * trace.service_s}
    )
    np.testing.assert_allclose(table["own"], 100, rtol=1e-12)
    by_name = table["skewed"]
    np.testing.assert_allclose(by_name[["payment", "new order"]], [200, 50])
    share = trace.service_s[trace.kind == 0].sum() / trace.service_s.sum()
    np.testing.assert_allclose(by_name["all"], 200 * share + 50 * (1 - share))


def test_what_is_missing_is_counted_by_type():
    trace = scenario("A", 1_000, seed=1)
    payments = trace.take(np.flatnonzero(trace.kind == 0))
    gone = accuracy.missing(trace, payments)
    assert gone["payment"] == 0
    assert gone["new order"] == 100
    np.testing.assert_allclose(gone["all"], 100 * np.mean(trace.kind == 1))
    assert (accuracy.missing(trace, trace) == 0).all()


def test_units_are_judged_where_they_take_time():
    """Of 4 transactions: read, write and nothing, and the rest that these leave."""
    units_s = np.array([[1.0, 2, 0], [2, 0, 0], [3, 4, 0], [4, 0, 0]])
    rest_s = np.array([0.5, 1, 0.5, 1])
    trace = Trace.of_jobs(np.arange(4.0), units_s.sum(axis=1) + rest_s, no_keys(4))
    trace = replace(trace, units_s=units_s, unit_names=("read", "write", "nothing"))
    guess = {
        "read": units_s[:, 0],
        "write": np.array([1.0, 1, 4, 1]),  # errors 1, 1, 0 and 1, signs of both
        "rest": 2 * rest_s,
    }
    table = accuracy.by_unit(trace, guess)
    assert list(table.index) == ["read", "write", "rest"]
    np.testing.assert_allclose(table["of the time %"], np.array([10, 6, 3]) / 0.19)
    np.testing.assert_allclose(table["sum %"], [100, 700 / 6, 200])
    np.testing.assert_allclose(table["q-error p50"], [1, 1.5, 2])
    np.testing.assert_allclose(table.loc[["read", "rest"], "q-error p95"], [1, 2])
    assert table.loc["read", "R² of log"] == 1
    np.testing.assert_allclose(
        table["of the squared error %"], np.array([0, 3, 2.5]) / 0.055
    )


# --- End to end ------------------------------------------------------------------


def test_auroc_counts_the_pairs_in_the_right_order():
    rng = np.random.default_rng(4)
    late = rng.random(200) < 0.3
    score = np.round(late + rng.normal(0, 1, 200), 1)  # with ties
    pairs = score[late][:, None] - score[~late]
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    np.testing.assert_allclose(accuracy.auroc(late, score), expected, rtol=1e-12)
    np.testing.assert_allclose(accuracy.auroc(~late, score), 1 - expected, rtol=1e-12)
    assert accuracy.auroc(late, np.exp(score)) == accuracy.auroc(late, score)
    assert accuracy.auroc(late, late.astype(float)) == 1


def test_a_single_queue_is_forecast_exactly_from_exact_estimates():
    rng = np.random.default_rng(5)
    n = 500
    keys = KeySets.from_lists([[]] * n, [[0]] * n)
    arrival_s = np.cumsum(rng.exponential(1.0, n))
    trace = Trace.of_jobs(arrival_s, rng.exponential(0.9, n), keys)
    forecast_s, history = forecast_finish(trace, trace.service_s, cores=1, slo_s=3.0)
    np.testing.assert_allclose(forecast_s, history.finish_s, rtol=1e-12)
    assert not history.dropped.any()
    np.testing.assert_array_equal(history.log, np.arange(n))


def test_end_to_end_an_idle_machine_errs_as_its_estimates_do():
    cell = SimulationConfig.of_scenario("A", transactions=4_000)
    runs = end_to_end(cell, noisy_estimate(0.2), [0.01, 0.9], seeds=2, seed=1)
    types = ["all", "payment", "new order"]
    assert runs["load"].tolist() == [*[0.01] * 3, *[0.9] * 3] * 2
    assert runs["type"].tolist() == 4 * types
    assert runs["seed"].tolist() == [0] * 6 + [1] * 6
    idle = runs[runs["load"] == 0.01]
    np.testing.assert_allclose(idle["q-error p50"], np.exp(0.6745 * 0.2), rtol=0.02)
    np.testing.assert_allclose(idle["q-error p95"], np.exp(1.96 * 0.2), rtol=0.04)
    assert (idle["late"] == 0).all()
    assert idle["auroc"].isna().all()
    again = end_to_end(cell, noisy_estimate(0.2), [0.9], seeds=2, seed=1)
    busy = runs[runs["load"] == 0.9].reset_index(drop=True)
    assert busy.equals(again)
    assert (busy["auroc"].dropna() > 0.9).all()


@pytest.mark.parametrize("load", [0.5, 0.99])
def test_latency_bounds_keep_their_promise_by_type_and_load(load):
    cell = SimulationConfig.of_scenario("A", transactions=10_000)
    runs = end_to_end(cell, noisy_estimate(0.2), [load], seeds=1, seed=3)
    for level in (90, 95, 99):
        miss = (runs[f"within {level}%"] - level).abs()
        assert miss[0] < 0.5  # all
        assert (miss < 1).all()


MACHINE = {"cores": 8, "slo_s": 12.5e-3}


def busy(n):
    return at_rate(scenario("A", n, seed=2), 6_000.0, seed=3)


@pytest.mark.parametrize("now", [600, 1_000])
def test_latency_bounds_read_no_commit_that_is_still_to_come(now):
    trace = busy(2_000)
    forecast_s, history = forecast_finish(trace, 0.7 * trace.service_s, **MACHINE)
    judged, bounds_s = track_latency(trace, forecast_s, history)
    assert judged.tolist() == [False] * 600 + [True] * 1_400
    assert np.isnan(bounds_s[0.9][:600]).all()
    assert (bounds_s[0.9] <= bounds_s[0.95])[judged].all()
    unfinished = history.finish_s > trace.arrival_s[now]
    assert unfinished[:now].any()
    other = replace(history, finish_s=history.finish_s + unfinished)
    _, changed_s = track_latency(trace, forecast_s, other)
    for level, bound_s in bounds_s.items():
        known = slice(0, now + 1)
        np.testing.assert_array_equal(changed_s[level][known], bound_s[known])
        assert (changed_s[level][now + 100 :] != bound_s[now + 100 :]).any()


def test_too_few_commits_promise_no_latency():
    trace = busy(110)
    forecast_s, history = forecast_finish(trace, trace.service_s, **MACHINE)
    with pytest.raises(InvalidInput, match="99% cannot be promised: 99 transactions"):
        track_latency(trace, forecast_s, history)


def test_latency_bounds_begin_when_enough_have_committed():
    """Long transactions at the beginning keep back others beyond the first 30 %."""
    trace = busy(2_000)
    service_s = np.where(np.arange(len(trace)) < 16, 0.12, trace.service_s)
    trace = replace(trace, service_s=service_s)
    forecast_s, history = forecast_finish(trace, service_s, **MACHINE)
    judged, bounds_s = track_latency(trace, forecast_s, history)
    first = int(judged.argmax())
    assert first > 600
    assert judged[first:].all()
    committed = [(history.finish_s[200:] <= s).sum() for s in trace.arrival_s]
    assert committed[first - 1] < 99 <= committed[first]
    assert np.isfinite(bounds_s[0.99][first:]).all()


def test_a_forecast_reads_no_service_time_that_is_still_to_come():
    trace = busy(1_000)
    estimated_s = np.full(len(trace), 1e-3)
    forecast_s, history = forecast_finish(trace, estimated_s, **MACHINE)
    unfinished = history.finish_s > trace.arrival_s[600]
    other = replace(trace, service_s=np.where(unfinished, 0.02, trace.service_s))
    changed_s, _ = forecast_finish(other, estimated_s, **MACHINE)
    np.testing.assert_array_equal(changed_s[:601], forecast_s[:601])
    assert (changed_s[700:] != forecast_s[700:]).any()


# --- What it has found in its features -------------------------------------------


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
    found = accuracy.importance(Boosted().fit(past), future)
    assert list(found.index) == ["payment", "new order"]
    assert list(found.columns) == list(trace.feature_names)
    # a Payment has no order lines, and within a type its flag is constant
    flags = ["is_payment", "is_new_order"]
    np.testing.assert_array_equal(found[flags].to_numpy(), 0)
    assert found.loc["payment", "order_lines"] == 0
    assert found.loc["new order", "order_lines"] > 8
    assert abs(found["noise"]).max() < 3


def test_importance_of_a_product_of_factors_is_its_mean_change(trace, monkeypatch):
    """Exact estimates exp(x b): shuffling x costs exp(mean |x - x'| |b|)."""
    slope = 0.25
    column = trace.features[:, 3]
    exact = replace(trace, service_s=1e-3 * np.exp(slope * column))
    monkeypatch.setattr(Linear, "penalty", 1e-9)
    found = accuracy.importance(Linear().fit(exact), exact, repeats=20)
    # the mean difference of two standard normals is 2 / sqrt(pi)
    expected = 100 * np.expm1(slope * 2 / np.sqrt(np.pi))
    np.testing.assert_allclose(found["noise"], expected, rtol=0.03)


def test_dependence_is_the_formula_of_the_scenario():
    past, future = scenario("A", 30_000, seed=6).split(0.9)
    fitted = Boosted().fit(past)
    found_s = accuracy.dependence(fitted, future, "new_order", "order_lines")
    lines = np.arange(5, 16)
    np.testing.assert_array_equal(found_s.index, lines)
    geometric_s = (0.4e-3 + 0.12e-3 * lines) * np.exp(-0.08)
    np.testing.assert_allclose(found_s, geometric_s, rtol=0.06)
