from dataclasses import replace

import numpy as np
import pytest

from thesis_book.experiments.sequencer import perturbations
from thesis_book.experiments.sequencer.perturbations import MISESTIMATIONS, View
from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import scenario

N = 4_000
TRUTH_CHANGES = {"100 ms stale", "truth drifts to 2x", "30 % move to a hot key", "both"}


def seen(seed=1, rate_per_s=7_000.0):
    trace = at_rate(scenario("A", N, seed), rate_per_s, seed)
    return View(trace, trace.service_s)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", MISESTIMATIONS)
def test_a_misestimation_repeats_and_changes_the_truth_only_where_it_says(name):
    before = seen()
    one, other = (MISESTIMATIONS[name](before, rng()) for _ in range(2))
    np.testing.assert_array_equal(one.estimated_s, other.estimated_s)
    np.testing.assert_array_equal(one.trace.service_s, other.trace.service_s)
    np.testing.assert_array_equal(one.trace.keys.keys, other.trace.keys.keys)
    np.testing.assert_array_equal(one.trace.arrival_s, before.trace.arrival_s)
    np.testing.assert_array_equal(one.trace.kind, before.trace.kind)
    same = np.array_equal(one.trace.service_s, before.trace.service_s)
    same &= np.array_equal(one.trace.keys.keys, before.trace.keys.keys)
    assert same == (name not in TRUTH_CHANGES)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 1.0])
def test_scatter_has_its_sigma_and_mean_one(sigma):
    made = perturbations.scattered(seen(), rng(), sigma)
    ratio = made.estimated_s / made.trace.service_s
    assert np.log(ratio).std() == pytest.approx(sigma, rel=0.05)
    spread = np.sqrt(np.expm1(sigma**2) / N)
    assert abs(ratio.mean() - 1) <= 4 * spread


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_swap_exchanges_between_types_and_keeps_the_whole(share):
    before = seen()
    # Every estimate is its own row, so that a swap shows who it came from.
    before = replace(before, estimated_s=np.arange(1.0, N + 1))
    after = perturbations.swapped(before, rng(), share).estimated_s
    np.testing.assert_array_equal(np.sort(after), before.estimated_s)
    source = after.astype(int) - 1
    moved = np.flatnonzero(source != np.arange(N))
    kind = before.trace.kind
    assert len(moved) == 2 * round(share * N / 2)
    assert (kind[moved] != kind[source[moved]]).all()
    np.testing.assert_array_equal(source[source], np.arange(N))  # in pairs


def test_a_swap_among_one_type_is_rejected():
    before = seen()
    alone = replace(before.trace, kind=np.zeros(N, np.int64))
    with pytest.raises(InvalidInput, match="ask for less"):
        perturbations.swapped(replace(before, trace=alone), rng(), 0.1)


def test_stale_estimates_are_those_of_a_moment_ago():
    before, lag_s, period_s = seen(rate_per_s=2_000.0), 0.1, 0.5
    made = perturbations.stale(before, rng(), lag_s, depth=0.3, period_s=period_s)
    at_s = before.trace.arrival_s
    truth = made.trace.service_s / before.trace.service_s
    said = made.estimated_s / before.estimated_s
    then = np.searchsorted(at_s, at_s - lag_s)
    late = at_s > lag_s + 0.01
    np.testing.assert_allclose(said[late], truth[then][late], atol=0.02)
    assert truth.min() == pytest.approx(0.7, abs=1e-3)
    assert truth.max() == pytest.approx(1.3, abs=1e-3)
    whole = at_s < period_s * int(at_s[-1] / period_s)
    assert truth[whole].mean() == pytest.approx(1.0, abs=0.02)
    fresh = perturbations.stale(before, rng(), 0.0)
    np.testing.assert_array_equal(fresh.estimated_s, fresh.trace.service_s)


def test_a_drift_goes_all_the_way_and_is_not_estimated():
    before = seen()
    made = perturbations.drifting(before, rng(), to=2.0)
    factor = made.trace.service_s / before.trace.service_s
    assert (np.diff(factor) >= -1e-12).all()
    assert (factor[0], factor[-1]) == pytest.approx((1.0, 2.0))
    np.testing.assert_array_equal(made.estimated_s, before.estimated_s)
    np.testing.assert_allclose(made.trace.units_s[:, 0], made.trace.service_s)


def test_crowd_moves_its_share_to_the_hot_key_and_none_before():
    before = seen()
    made = perturbations.crowded(before, rng(), share=0.3)
    key = perturbations.hottest(before.trace.keys)
    was, now = (
        perturbations.locking(keys, key)
        for keys in (before.trace.keys, made.trace.keys)
    )
    half = N // 2
    np.testing.assert_array_equal(was[:half], now[:half])
    assert (now >= was)[half:].all()
    others = ~was[half:]
    assert now[half:][others].mean() == pytest.approx(0.3, abs=0.05)
    sizes = [np.diff(keys.offsets) for keys in (before.trace.keys, made.trace.keys)]
    np.testing.assert_array_equal(*sizes)


def test_only_the_hot_key_is_underrated():
    before = seen()
    made = perturbations.underestimated(before, rng())
    hot = perturbations.locking(
        before.trace.keys, perturbations.hottest(before.trace.keys)
    )
    ratio = made.estimated_s / before.estimated_s
    np.testing.assert_allclose(ratio[hot], 1 / 3)
    assert (ratio[~hot] == 1).all()
    assert 0.05 < hot.mean() < 0.2


def test_anything_changes_estimates_alone_and_from_its_row_on():
    before, ratios = seen(), []
    for case in range(200):
        made = perturbations.anything(before, rng(case), after=1_000)
        assert made.trace is before.trace
        np.testing.assert_array_equal(
            made.estimated_s[:1_000], before.estimated_s[:1_000]
        )
        ratios.append(made.estimated_s[1_000:] / before.estimated_s[1_000:])
        again = perturbations.anything(before, rng(case), after=1_000)
        np.testing.assert_array_equal(made.estimated_s, again.estimated_s)
    assert np.min(ratios) < 1e-5
    assert np.max(ratios) > 1e5
    alike = [np.ptp(ratio) < 1e-9 * np.max(ratio) for ratio in ratios]
    assert 0.05 < np.mean(alike) < 0.3
