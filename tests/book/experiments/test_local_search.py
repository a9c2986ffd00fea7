import numpy as np
import pytest
from exhaustive import fewest_by_trying, tiny
from key_sets import conflict, no_keys

from thesis_book.experiments.optimum.cpsat import solve
from thesis_book.experiments.optimum.local_search import search, would_be_on_time
from thesis_lib.sequencer.core.trace import Trace
from thesis_lib.sequencer.optimum.bounds import fewest_violations
from thesis_lib.sequencer.policies.registry import POLICIES, policy
from thesis_lib.sequencer.simulator.simulator import SystemConfig, replay, simulate
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import SCENARIOS, scenario


def simulated(trace, name, spec, estimated_s=None):
    """A policy on a scenario, by default with an estimator that knows the truth."""
    return simulate(
        trace,
        policy(name, slo_s=spec.slo_s, cores=spec.cores),
        trace.service_s if estimated_s is None else estimated_s,
        SystemConfig(cores=spec.cores, slo_s=spec.slo_s),
    )


def assert_is_a_schedule(trace, history, cores):
    """Nobody starts early, without a core, or while a conflicting lock is held."""
    log = history.log
    assert (np.diff(history.start_s[log]) >= 0).all()
    assert (history.start_s[log] >= trace.arrival_s[log]).all()
    for at, i in enumerate(log):
        running = [j for j in log[:at] if history.finish_s[j] > history.start_s[i]]
        assert len(running) < cores
        assert not any(conflict(trace.keys, i, j) for j in running)


@pytest.mark.parametrize("seed", range(60))
def test_window_and_search_reach_the_optimum_of_few_transactions(seed):
    trace, cores, slo_s = tiny(seed)
    fewest = fewest_by_trying(trace, cores, slo_s)
    window = solve(trace, cores=cores, slo_s=slo_s)
    assert window.violations == window.bound == fewest
    found = search(trace, cores=cores, slo_s=slo_s, sweeps=50)
    assert found.violated.sum() == found.dropped.sum() == fewest
    for history in (window.history, found):
        assert_is_a_schedule(trace, history, cores)


@pytest.mark.parametrize(("name", "load"), [("B", 4.0), ("C", 5.0)])
def test_relaxation_proven_bound_schedule_and_policies_come_in_this_order(name, load):
    spec = SCENARIOS[name]
    for seed in range(4):
        trace = at_rate(scenario(name, 36, seed), load * 2_500, seed)
        window = solve(trace, cores=spec.cores, slo_s=spec.slo_s, effort=1.0)
        relaxed = fewest_violations(trace, cores=spec.cores, slo_s=spec.slo_s)
        assert relaxed <= window.bound <= window.violations
        for rule in POLICIES:
            assert window.bound <= simulated(trace, rule, spec).violated.sum(), rule
        bid_price = simulated(trace, "bid-price", spec).violated.sum()
        assert window.violations <= bid_price or window.violations > window.bound


def test_a_solver_that_is_stopped_at_once_proves_nothing_false():
    spec = SCENARIOS["B"]
    for seed in range(4):
        trace = at_rate(scenario("B", 36, seed), 10_000, seed)
        for effort in (1e-9, 1e-5, 1e-3):
            window = solve(trace, cores=spec.cores, slo_s=spec.slo_s, effort=effort)
            assert window.bound <= window.violations, (seed, effort)


@pytest.mark.parametrize(("name", "load"), [("A", 1.1), ("B", 0.9), ("C", 1.2)])
def test_search_lies_between_the_bound_and_what_it_began_with(name, load):
    spec = SCENARIOS[name]
    rate_per_s = load * (2_500 if name == "C" else 7_500)
    trace = at_rate(scenario(name, 1_500, seed=11), rate_per_s, seed=12)
    begun = [simulated(trace, rule, spec) for rule in ("bid-price", "late-edf")]
    before = trace.arrival_s.copy()
    options = {"cores": spec.cores, "slo_s": spec.slo_s, "begun": begun, "seed": 5}
    found = [search(trace, sweeps=sweeps, **options) for sweeps in (0, 2, 2)]
    assert_is_a_schedule(trace, found[1], spec.cores)
    np.testing.assert_array_equal(found[1].start_s, found[2].start_s)
    counts = [int(history.violated.sum()) for history in found]
    bound = fewest_violations(trace, cores=spec.cores, slo_s=spec.slo_s)
    assert bound <= counts[1] <= counts[0]
    assert counts[0] <= min(int(history.violated.sum()) for history in begun)
    assert not found[1].late.any()
    np.testing.assert_array_equal(trace.arrival_s, before)


@pytest.mark.parametrize("lag_s", [0.0, 5e-4])
@pytest.mark.parametrize(
    ("name", "rule"), [("B", "bid-price"), ("C", "hybrid-corrected")]
)
def test_false_drops_equal_replaying_each_prefix_with_the_dropped(name, rule, lag_s):
    spec = SCENARIOS[name]
    rate_per_s = 9_000.0 if name == "B" else 3_000.0
    trace = at_rate(scenario(name, 600, seed=21), rate_per_s, seed=22)
    noise = np.random.default_rng(23).lognormal(0.0, 0.3, len(trace))
    history = simulated(trace, rule, spec, trace.service_s * noise)
    on_time = would_be_on_time(trace, history, cores=spec.cores, lag_s=lag_s)
    dropped = np.flatnonzero(history.dropped)
    assert 0 < on_time.sum() < len(dropped)
    assert not on_time[~history.dropped].any()
    for i in dropped:
        now_s = history.decided_s[i]
        log = history.log[history.decided_s[history.log] < now_s]
        dispatch_s = np.append(history.decided_s[log], now_s) + lag_s
        again = replay(
            trace, np.append(log, i), dispatch_s, cores=spec.cores, slo_s=spec.slo_s
        )
        assert on_time[i] == (again.finish_s[i] <= history.deadline_s[i])


def test_what_idles_is_never_dropped_rightly():
    """No queue: dropping it was in vain unless it is too long."""
    trace = Trace.of_jobs(np.array([0.0, 10.0]), np.array([1.0, 9.0]), no_keys(2))
    none = np.empty(0, np.int64)
    history = replay(trace, none, np.empty(0), cores=1, slo_s=5.0)
    assert would_be_on_time(trace, history, cores=1).tolist() == [True, False]
