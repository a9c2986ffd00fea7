from dataclasses import replace

import numpy as np
import pytest
from key_sets import no_keys

from thesis_lib.sequencer.core.events import Delays, idle_state
from thesis_lib.sequencer.core.observed import commit, dispatch
from thesis_lib.sequencer.core.trace import KeySets, Trace
from thesis_lib.sequencer.experiments.configuration import SimulationConfig
from thesis_lib.sequencer.experiments.metrics import summarize
from thesis_lib.sequencer.policies.admission import (
    FAR,
    BidPriceParameters,
    _at_least,
    _at_most,
    sort_into,
)
from thesis_lib.sequencer.policies.decisions import decide_compiled
from thesis_lib.sequencer.policies.recalibration import (
    MEAN_Y,
    SLOPE,
    allowance,
    corrected_s,
    initial_calibration,
    learn,
)
from thesis_lib.sequencer.policies.registry import policy
from thesis_lib.sequencer.simulator.simulator import SystemConfig, simulate
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import scenario

MS = 1e-3


def learned(given_s, took_s, window=500.0):
    online = initial_calibration(given_s, 0.2)
    for i, took in enumerate(took_s):
        learn(online, i, took, window)
    return online


def all_corrected(online, n):
    return np.array([corrected_s(online, i) for i in range(n)])


def sampled(n, seed, noise):
    """True times that scatter by a factor, and estimates that err by another."""
    random = np.random.default_rng(seed)
    true_s = MS * np.exp(random.normal(0, 0.6, n))
    return true_s, true_s * np.exp(random.normal(0, noise, n)), random


@pytest.mark.parametrize("bias", [0.5, 1.0, 3.0])
def test_calibration_removes_a_bias(bias):
    true_s, given_s, _ = sampled(4_000, 1, 0.2)
    online = learned(bias * given_s, true_s, window=2_000.0)
    corrected = all_corrected(online, 4_000)
    assert abs(np.log(corrected / true_s).mean()) < 0.03
    assert np.log(corrected / true_s).std() < 0.21


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_calibration_shrinks_noise_as_a_regression_does(noise):
    true_s, given_s, _ = sampled(20_000, 2, noise)
    slope = learned(given_s, true_s, window=5_000.0).moments[SLOPE]
    expected = 0.6**2 / (0.6**2 + noise**2)
    assert abs(slope - expected) < 0.05


def test_estimates_that_say_nothing_shrink_to_a_constant():
    true_s, _, random = sampled(20_000, 3, 0.2)
    online = learned(MS * np.exp(random.normal(0, 0.6, 20_000)), true_s, 5_000.0)
    corrected = all_corrected(online, 1_000)
    assert np.log(corrected).std() < 0.05
    assert abs(np.log(corrected / MS)).max() < 0.2


def test_an_allowance_keeps_the_share_that_it_promises():
    true_s, given_s, _ = sampled(20_000, 4, 0.3)
    online = learned(given_s, true_s, window=1e9)
    corrected_at = all_corrected(online, 20_000)
    for p in (0.1, 0.5, 0.8, 0.95):
        kept = np.mean(true_s <= allowance(online, p) * corrected_at)
        assert p - 0.01 < kept < p + 0.06  # rounded up to the edge of a bin


def test_exact_estimates_are_allowed_what_they_say():
    exact = initial_calibration([MS], 0.0)
    assert [allowance(exact, p) for p in (0.01, 0.3, 1.0)] == [1.0, 1.0, 1.0]
    assert allowance(initial_calibration([MS], 0.2), 0.5) == 1.0
    assert allowance(initial_calibration([MS], 0.2), 0.84134) == pytest.approx(
        np.exp(0.2), 0.04
    )


def jobs(arrival_ms, service_ms, reads, writes):
    return Trace.of_jobs(
        arrival_s=MS * np.array(arrival_ms),
        service_s=MS * np.array(service_ms),
        keys=KeySets.from_lists(reads, writes),
    )


def run(trace, slo_ms, cores, estimated_s=None, **options):
    given = policy("bid-price", slo_s=slo_ms * MS, cores=cores, **options)
    said_s = trace.service_s if estimated_s is None else estimated_s
    return simulate(
        trace, given, said_s, SystemConfig(cores=cores, slo_s=slo_ms * MS, spread=0.0)
    )


def test_sort_into_orders_as_a_stable_sort_does():
    """Nearly sorted, as arrivals are, and shuffled."""
    random = np.random.default_rng(1)
    for near in (0.1, 10.0):
        for _ in range(300):
            b = int(random.integers(0, 200))
            rank = (random.random(b) < 0.2 * near).astype(np.int64)
            key = np.round(np.arange(b) / 9 + near * random.random(b), 1)
            order = np.empty(b, np.int64)
            sort_into(order, np.empty(b, np.int64), rank, key)
            assert order.tolist() == np.lexsort((key, rank)).tolist()


def unlocked(arrival_ms, service_ms):
    nothing = [[]] * len(arrival_ms)
    return jobs(arrival_ms, service_ms, nothing, nothing)


def apart(n, service_ms):
    """Alone in the system, one after the other."""
    return unlocked(100.0 * np.arange(n), [service_ms] * n)


def test_of_the_hopeless_the_first_goes_in_and_then_one_in_so_many():
    terms = BidPriceParameters(exploration_period=7.0)
    history = run(apart(50, 20.0), 10.0, cores=1, params=terms)
    assert history.log.tolist() == list(range(0, 50, 7))


def test_one_probe_that_fits_refutes_estimates_of_its_octave():
    trace = apart(50, 1.0)
    assert run(trace, 10.0, 1, np.full(50, 1e6)).log.tolist() == list(range(50))
    # ... and of no other: each octave has its own first probe, and then its own hits.
    said_s = np.where(np.arange(50) % 2, 1e6, 1e2)
    assert run(trace, 10.0, 1, said_s).log.tolist() == list(range(50))
    # Two cores: while the first probe runs, nothing is known yet.
    early = unlocked([0, 0.5, 2], [1, 1, 1])
    assert run(early, 10.0, 2, np.full(3, 1e6)).log.tolist() == [0, 2]


def test_a_probe_that_fits_calls_for_the_next_and_one_that_does_not_ends_the_row():
    never = BidPriceParameters(
        least_p=1.0, confidence_threshold=1.0, exploration_period=7.0
    )  # refuted
    service_ms = np.where(np.arange(50) % 3, 1.0, 20.0)
    trace = unlocked(100.0 * np.arange(50), service_ms)
    history = run(trace, 10.0, 1, np.full(50, 1e6), params=never)
    rows = [[0], [7, 8, 9], [16, 17, 18], [25, 26, 27], [34, 35, 36], [43, 44, 45]]
    assert history.log.tolist() == [i for row in rows for i in row]


def test_who_is_not_sure_gets_a_free_core_and_no_other():
    # Times are shorter or longer than said by a half of an octave, in turn.
    taught_ms = 4.0 * 2 ** (np.arange(80) % 2 - 0.5)
    at_ms, blocker, long, short = 50.0 * np.arange(81), 80, 81, 82

    def after_learning(late_ms, said_ms, **terms):
        arrival_ms = [*at_ms, *(at_ms[-1] + 0.1 * np.arange(1, len(late_ms)))]
        trace = unlocked(arrival_ms, [*taught_ms, *late_ms])
        said_s = MS * np.array([4.0] * 80 + said_ms)
        terms = BidPriceParameters(deadline_weight=0.0, **terms)
        return run(trace, 10.0, 1, said_s, params=terms).log.tolist()[80:]

    assert after_learning([1.0, 5.0], [1.0, 8.0]) == [blocker, long]
    both = after_learning([1.0, 5.0, 3.0], [1.0, 8.0, 3.0])
    assert both[:2] == [blocker, short]
    equal = after_learning([1.0, 5.0, 3.0], [1.0, 8.0, 3.0], confidence_threshold=0.3)
    assert equal[:2] == [blocker, long]


@pytest.mark.parametrize("wrong", ["all", "one type", "from mid-run", "a constant"])
def test_no_estimator_stops_bid_price_for_good(wrong):
    cell, n = SimulationConfig.of_scenario("A", transactions=9_000), 9_000
    trace = cell.arrange(cell.make_trace(21), 0.8, 22)
    worse = {
        "all": np.ones(n, bool),
        "one type": trace.kind == 1,
        "from mid-run": np.arange(n) > 3_000,
        "a constant": np.ones(n, bool),
    }[wrong]
    said_s = np.where(worse, 1e3 * trace.service_s, trace.service_s)
    if wrong == "a constant":
        said_s = np.full(n, 15 * MS)
    given = cell.policy("bid-price"), cell.policy("fifo")
    bid_price, fifo = (
        cell.history(trace, p, said_s, 0.8).violated[7_000:] for p in given
    )
    assert bid_price.mean() <= fifo.mean() + 0.002


def test_a_writer_closes_its_row_before_readers_can_starve_it():
    # Readers of 2 ms come every 1 ms and overlap without end. The writer must end by
    # 10.1 ms: from 8.1 ms on, two of its services before, nobody may hold its row.
    arrival_ms = [*range(40), 0.1]
    order = np.argsort(arrival_ms, kind="stable")
    reads = [[0]] * 40 + [[]]
    writes = [[]] * 40 + [[0]]
    service_ms = [2.0] * 40 + [1.0]
    columns = arrival_ms, service_ms, reads, writes
    trace = jobs(*([column[i] for i in order] for column in columns))
    history = run(trace, 10.0, cores=4)
    assert not history.violated.any()
    assert history.latency_s[1] > 5 * MS  # it has let others pass while it could
    none = BidPriceParameters(reservation_window=-np.inf)
    starved = run(trace, 10.0, cores=4, params=none)
    assert starved.violated[1]


def test_a_lock_that_is_free_goes_before_one_that_is_not():
    # 0 writes a until 5 ms; 1 needs a, 2 does not and comes later.
    trace = jobs([0, 0.1, 0.2], [5, 1, 1], [[]] * 3, [[0], [0], [1]])
    history = run(trace, 20.0, cores=2)
    assert history.log.tolist() == [0, 2, 1]


def test_under_overload_the_long_are_given_up_and_the_price_follows_the_load():
    cell = SimulationConfig.of_scenario("A", transactions=6_000)
    trace = cell.make_trace(5)
    shares = {}
    for load in (0.7, 1.5):
        given = cell.arrange(trace, load, 6)
        history = run(given, 1e3 * cell.slo_s, cell.cores)
        long = given.service_s > np.quantile(given.service_s, 0.9)
        shares[load] = [history.violated[rows].mean() for rows in (long, ~long)]
    assert shares[0.7] == [0.0, 0.0]
    assert shares[1.5][0] > 0.9
    assert shares[1.5][1] < 0.06


def test_no_transaction_waits_beyond_its_deadline():
    cell = SimulationConfig.of_scenario("A", transactions=3_000)
    trace = cell.arrange(cell.make_trace(7), 1.5, 8)
    history = run(trace, 1e3 * cell.slo_s, cell.cores)
    waited_s = history.decided_s - trace.arrival_s
    assert np.nanmax(waited_s) <= cell.slo_s + 1 * MS  # or to the next commit


def test_bid_price_decides_alike_in_any_unit_of_time():
    # Everything twice as long: the same log, the same drops.
    trace = at_rate(scenario("A", 1_500, seed=1), 11_000.0, seed=2)
    slow = replace(
        trace, arrival_s=2 * trace.arrival_s, service_s=2 * trace.service_s,
        units_s=2 * trace.units_s,
    )  # fmt: skip
    terms = BidPriceParameters(window=0.0)
    one, two = (
        run(given, slo_ms, 8, params=terms)
        for given, slo_ms in ((trace, 12.5), (slow, 25.0))
    )
    np.testing.assert_array_equal(one.log, two.log)
    np.testing.assert_array_equal(2 * one.finish_s, two.finish_s)


def test_what_was_released_by_another_is_calibrated_as_well():
    """Other partitions send what their sequencers decided on."""
    n, now_s = 22, 0.0
    keys = no_keys(n)
    state, given = idle_state(keys, 3), policy("bid-price", slo_s=1.0, cores=3)
    look = given.make_lookahead(state, keys, np.full(n, MS), np.full(n, 9.0), 0.2, 0.0)
    memory, (*own, sent) = look.memory, np.arange(n)
    for i in own:
        ids = np.array([i])
        decide_compiled(given.code, memory, look.model, ids, now_s)
        dispatch(state, ids, now_s)
        if i == own[-1]:
            break
        now_s += 3 * MS
        commit(state, ids, np.array([now_s - 3 * MS]), np.array([now_s]), now_s)
    dispatch(state, np.array([sent]), now_s)
    decide_compiled(given.code, memory, look.model, np.empty(0, np.int64), now_s)
    assert memory.estimated_s[sent] == corrected_s(memory.online, sent) > 1.2 * MS


@pytest.mark.parametrize("gap", [0.2, 0.05])
def test_a_gap_bounds_how_much_more_one_group_is_violated(gap):
    cell = SimulationConfig.of_scenario("A", transactions=40_000)
    trace = cell.arrange(cell.make_trace(9), 1.5, 10)

    def spread(**options):
        history = run(trace, 1e3 * cell.slo_s, cell.cores, **options)
        by_kind = summarize(trace, history).violations_by_kind
        return max(by_kind.values()) - min(by_kind.values())

    assert spread() > 0.25
    assert spread(params=BidPriceParameters(gap=gap, groups=2)) < gap + 0.02


@pytest.mark.parametrize("load", [0.7, 1.1, 3.0])
@pytest.mark.parametrize(
    "options",
    [{}, {"deadline_weight": 0, "step": 0.5}, {"window": 0}, {"exploration_period": 2}],
)
@pytest.mark.parametrize(("slo_s", "lag_s"), [(0.04, 0.0), (1.0, 0.0), (0.04, 0.003)])
def test_uncontended_key_changes_nothing(load, options, slo_s, lag_s):
    """With one each, everybody who waits is looked at; without, only a few."""
    n, cores, delays = 3_000, 4, Delays(lag_s=lag_s)
    service_s, said_s, random = sampled(n, 31, 0.7)
    said_s[::7] *= 30  # doubted, some of them for good reason
    service_s[::14] *= 30
    arrival_s = np.cumsum(random.exponential(service_s.mean() / cores / load, n))
    slos_s = slo_s * random.choice([0.3, 1.0, 4.0], n)
    histories = []
    for keys in ([[]] * n, [[i] for i in range(n)]):
        trace = jobs(arrival_s / MS, service_s / MS, [[]] * n, keys)
        terms = BidPriceParameters(**options)
        given = policy("bid-price", slo_s=slo_s, cores=cores, params=terms)
        system = SystemConfig(cores=cores, slo_s=slos_s, delays=delays)
        histories.append(simulate(trace, given, said_s, system))
    free, locked = histories
    for column in ("log", "dropped", "finish_s"):
        np.testing.assert_array_equal(getattr(free, column), getattr(locked, column))
    assert free.dropped.any() or load < 3


def test_a_probe_is_found_when_it_is_not_late_any_more():
    keys, deadline_s = no_keys(2), np.array([9.0, 1.0])
    state, given = idle_state(keys, 1), policy("bid-price", slo_s=1.0, cores=1)
    said_s = np.array([MS, 10.0])
    look = given.make_lookahead(state, keys, said_s, deadline_s, 0.2, 0.0)

    def decide_on(ids, now_s):
        parts = decide_compiled(
            given.code, look.memory, look.model, np.array(ids, np.int64), now_s
        )
        return [part.tolist() for part in parts]

    assert decide_on([0, 1], 0.0) == [[0], [], [1]]
    assert look.memory.online.probes.tolist() == [False, True]
    dispatch(state, np.array([0]), 0.0)
    commit(state, np.array([0]), np.zeros(1), np.array([MS]), MS)
    decide_on([], MS)  # which learns
    look.memory.online.moments[MEAN_Y] -= 9  # all would take a moment, by now
    assert decide_on([1], MS) == [[1], [], []]


def test_chords_enclose_powers_of_two():
    """And are tight at a whole power."""
    exponents = np.append(np.linspace(-1100, 1100, 100_001), np.arange(-9, 9))
    exact = 2.0**exponents
    most, least = (
        np.array([bound(e) for e in exponents]) for bound in (_at_most, _at_least)
    )
    assert (least <= exact).all()
    assert (exact <= most).all()
    far = np.abs(exponents) > FAR
    assert (most[~far] <= 1.0615 * exact[~far]).all()
    assert (least[~far] >= exact[~far] / 1.0616).all()
    np.testing.assert_allclose(most[-18:], exact[-18:], rtol=2e-9)
