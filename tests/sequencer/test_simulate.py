import heapq
from collections import deque

import numpy as np
import pytest

from thesis_lib.checks import InvalidInput
from thesis_lib.sequencer.policies import POLICIES, Policy, fifo, policy
from thesis_lib.sequencer.simulate import digest, replay, simulate
from thesis_lib.sequencer.trace import Decision, KeySets, Trace
from thesis_lib.sequencer.workload import (
    SCENARIOS,
    at_rate,
    mean_one_lognormal,
    scenario,
)

SPEC = SCENARIOS["A"]


def random_trace(seed, n=200, n_keys=8, ties=False):
    random = np.random.default_rng(seed)
    shared, exclusive = [], []
    for _ in range(n):
        touched = random.permutation(n_keys)[: random.integers(0, 4)].tolist()
        cut = random.integers(0, len(touched) + 1)
        shared.append(touched[:cut])
        exclusive.append(touched[cut:])
    arrival_s = np.sort(random.exponential(1.0, n).cumsum())
    service_s = random.exponential(2.0, n)
    if ties:  # whole numbers: events collide all the time
        arrival_s, service_s = np.floor(arrival_s), np.ceil(service_s)
    return Trace.of_jobs(arrival_s, service_s, KeySets.from_lists(shared, exclusive))


COMMIT, DISPATCH = 0, 1


def heapq_model(trace, log, dispatch_s, cores):
    """The same database in plain Python: one heap of (time, kind, sequence, id)."""
    keys = trace.keys
    sets = [
        [
            (int(keys.keys[r]), bool(keys.exclusive[r]))
            for r in range(keys.offsets[i], keys.offsets[i + 1])
        ]
        for i in range(len(trace))
    ]
    waiting = {k: deque() for k in range(keys.n_keys)}
    held = {k: [] for k in range(keys.n_keys)}  # (id, exclusive)
    granted_s, start_s, finish_s = (np.full(len(trace), np.nan) for _ in range(3))
    missing = [0] * len(trace)
    ready, idle, started = deque(), cores, 0
    heap = [
        (float(t), DISPATCH, at, int(i))
        for at, (i, t) in enumerate(zip(log, dispatch_s, strict=True))
    ]
    heapq.heapify(heap)

    def grant(key):
        unlocked = []
        while waiting[key]:
            i, alone = waiting[key][0]
            if held[key] and (alone or held[key][0][1]):
                break
            held[key].append(waiting[key].popleft())
            missing[i] -= 1
            if missing[i] == 0:
                unlocked.append(i)
        return unlocked

    while heap:
        now, kind, _, i = heapq.heappop(heap)
        if kind == COMMIT:
            finish_s[i] = now
            idle += 1
            for key, alone in sets[i]:
                held[key].remove((i, alone))
                for other in grant(key):
                    granted_s[other] = now
                    ready.append(other)
        else:
            missing[i] = len(sets[i])
            unlocked = [i] if not sets[i] else []
            for key, alone in sets[i]:
                waiting[key].append((i, alone))
                unlocked += grant(key)
            for other in unlocked:
                granted_s[other] = now
                ready.append(other)
        while ready and idle:
            other = ready.popleft()
            idle -= 1
            start_s[other] = now
            end = now + trace.service_s[other]
            heapq.heappush(heap, (float(end), COMMIT, started, other))
            started += 1
    return granted_s, start_s, finish_s


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_a_plain_heapq_model_bit_for_bit(seed):
    trace = random_trace(seed, ties=bool(seed % 2))
    random = np.random.default_rng(seed)
    log = random.permutation(len(trace))[:180]
    dispatch_s = np.sort(trace.arrival_s[log]) + 1.0
    cores = int(random.integers(1, 5))
    history = replay(trace, log, dispatch_s, cores=cores, slo_s=5.0)
    expected = heapq_model(trace, log, dispatch_s, cores)
    for name, values in zip(
        ("granted_s", "start_s", "finish_s"), expected, strict=True
    ):
        np.testing.assert_array_equal(getattr(history, name), values, err_msg=name)


@pytest.mark.parametrize("log", [[0, 1, 1], [0, 3], [-1]])
def test_a_log_that_is_none_is_refused(log):
    trace = random_trace(0, n=3)
    with pytest.raises(InvalidInput, match=r"each at most once|row 0 of log is -1"):
        replay(trace, np.array(log), np.zeros(len(log)), cores=1, slo_s=1.0)


def loaded(seed, n=1_200, per_s=8_000.0):
    trace = at_rate(scenario("A", n, seed), per_s, seed)
    noise = mean_one_lognormal(0.2, n, np.random.default_rng(seed))
    return trace, trace.service_s * noise


def run(trace, estimated_s, name, **options):
    given = policy(name, slo_s=SPEC.slo_s, cores=SPEC.cores)
    return simulate(
        trace, given, estimated_s, cores=SPEC.cores, slo_s=SPEC.slo_s, **options
    )


@pytest.mark.parametrize("lag_s", [0.0, 5e-4])
@pytest.mark.parametrize("name", POLICIES)
def test_arrivals_are_committed_or_dropped_and_the_log_repeats(name, lag_s):
    trace, estimated_s = loaded(1)
    history = run(trace, estimated_s, name, lag_s=lag_s)
    committed = ~np.isnan(history.finish_s)
    np.testing.assert_array_equal(committed, ~history.dropped)
    np.testing.assert_array_equal(np.sort(history.log), np.flatnonzero(committed))
    for earlier, later in (
        (history.arrival_s, history.decided_s),
        (history.decided_s + lag_s, history.granted_s),
        (history.granted_s, history.start_s),
        (history.start_s, history.finish_s),
    ):
        assert (earlier <= later)[committed].all()
    assert digest(history) == digest(run(trace, estimated_s, name, lag_s=lag_s))


@pytest.mark.parametrize("name", ["hybrid", "ours"])
def test_a_replica_replays_the_log_without_a_model(name):
    trace, estimated_s = loaded(2)
    history = run(trace, estimated_s, name)
    twin = replay(
        trace, history.log, history.decided_s[history.log], cores=SPEC.cores,
        slo_s=SPEC.slo_s,
    )  # fmt: skip
    np.testing.assert_array_equal(twin.finish_s, history.finish_s)
    assert digest(twin) == digest(history)


def test_conflicting_transactions_commit_in_log_order():
    trace, estimated_s = loaded(3, n=400)
    history = run(trace, estimated_s, "ours")
    keys = trace.keys
    ends = {}
    for i in history.log:
        for r in range(keys.offsets[i], keys.offsets[i + 1]):
            key, alone = int(keys.keys[r]), bool(keys.exclusive[r])
            readers, writers = ends.get(key, (0.0, 0.0))
            assert history.start_s[i] >= (max(readers, writers) if alone else writers)
            end = history.finish_s[i]
            ends[key] = (
                (readers, max(writers, end)) if alone else (max(readers, end), writers)
            )


def test_cores_are_never_exceeded():
    trace, estimated_s = loaded(4)
    history = run(trace, estimated_s, "hybrid")
    start_s, finish_s = (
        t[~history.dropped] for t in (history.start_s, history.finish_s)
    )
    times = np.concatenate([finish_s, start_s])
    steps = np.repeat([-1, 1], len(start_s))
    busy = np.cumsum(steps[np.lexsort((steps, times))])
    assert busy.max() == SPEC.cores
    assert busy.min() >= 0


def test_fifo_through_the_sequencer_is_fifo_past_it():
    trace, estimated_s = loaded(5)
    past = run(trace, estimated_s, "fifo")
    through = simulate(
        trace, Policy("fifo", fifo, batched=False), estimated_s, cores=SPEC.cores,
        slo_s=SPEC.slo_s,
    )  # fmt: skip
    np.testing.assert_array_equal(past.finish_s, through.finish_s)


def test_a_batch_closes_when_full_or_when_its_timer_fires():
    trace, estimated_s = loaded(6, n=103)
    full = run(trace, estimated_s, "fifo-batched")
    closes = trace.arrival_s[np.minimum(np.arange(103) // 10 * 10 + 9, 102)]
    np.testing.assert_array_equal(full.decided_s, closes)
    timed = run(trace, estimated_s, "fifo-batched", flush_s=2e-4)
    assert (timed.decided_s - timed.arrival_s).max() < 2e-4 + 1e-12


def test_in_flight_is_bounded():
    trace, estimated_s = loaded(7, per_s=12_000.0)
    given = policy("ours", slo_s=SPEC.slo_s, cores=SPEC.cores)
    history = run(trace, estimated_s, "ours")
    kept = ~history.dropped
    times = np.concatenate([history.finish_s[kept], history.decided_s[kept]])
    steps = np.repeat([-1, 1], kept.sum())
    assert np.cumsum(steps[np.lexsort((steps, times))]).max() == given.in_flight


def test_a_decision_that_is_no_partition_is_refused():
    trace, estimated_s = loaded(8, n=50)
    loses_one = Policy("loses", lambda b, f, t: Decision(b.ids[1:], b.ids[:0]))
    with pytest.raises(InvalidInput, match="exactly one of order"):
        simulate(trace, loses_one, estimated_s, cores=8, slo_s=1.0)


def test_holding_for_ever_is_refused():
    trace, estimated_s = loaded(9, n=50)
    holds = Policy("holds", lambda b, f, t: Decision(b.ids[:0], b.ids[:0], b.ids))
    with pytest.raises(InvalidInput, match="nothing left to wait for"):
        simulate(trace, holds, estimated_s, cores=8, slo_s=1.0)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"cores": 0}, "cores=0"),
        ({"slo_s": 0.0}, "slo_s=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lag_s": -1.0}, "lag_s=-1"),
    ],
)
def test_bad_parameters_are_refused(changed, says):
    trace, estimated_s = loaded(10, n=20)
    given = policy("drop", slo_s=1.0, cores=8)
    with pytest.raises(InvalidInput, match=says):
        simulate(trace, given, estimated_s, **{"cores": 8, "slo_s": 1.0} | changed)
