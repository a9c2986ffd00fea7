import heapq
from collections import deque

import numpy as np
import pytest
from key_sets import requests
from plain_model import COLUMNS, Locks, assert_equal, columns

from thesis_book.experiments.sequencer.partitions import (
    Exchange,
    Partitioned,
    merge,
    simulate_partitions,
)
from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import KeySets, Trace
from thesis_lib.sequencer.policies.registry import policy
from thesis_lib.sequencer.simulator.simulator import SystemConfig, simulate
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import SCENARIOS, scenario

SPEC = SCENARIOS["A"]
RELEASED_LATE = ("fifo", "late-edf", "startable-first", "bid-price")


def traces(partitions, n=400, per_s=7_000.0, seed=0):
    return [
        at_rate(scenario("A", n, 100 * seed + k), per_s, 100 * seed + 50 + k)
        for k in range(partitions)
    ]


def run(work, name, exchange=None, slo_s=SPEC.slo_s):
    given = policy(name, slo_s=slo_s, cores=SPEC.cores)
    options = {} if exchange is None else {"exchange": exchange}
    return simulate_partitions(
        work, given, work.trace.service_s, cores=SPEC.cores, slo_s=slo_s, **options
    )


# --- Where nothing crosses -----------------------------------------------------


@pytest.mark.parametrize("name", RELEASED_LATE)
def test_one_partition_is_the_simulator_bit_for_bit(name):
    (trace,) = traces(1, per_s=9_000.0)
    given = policy(name, slo_s=SPEC.slo_s, cores=SPEC.cores)
    system = SystemConfig(cores=SPEC.cores, slo_s=SPEC.slo_s)
    alone = simulate(trace, given, trace.service_s, system)
    assert_equal(run(merge([trace], 0.0, 0), name).history, columns(alone))


@pytest.mark.parametrize("name", RELEASED_LATE)
def test_without_crossing_partitions_do_not_know_of_each_other(name):
    parts = traces(3, per_s=9_000.0)
    work = merge(parts, 0.0, 0)
    together = run(work, name)
    for place, trace in enumerate(parts):
        alone = run(merge([trace], 0.0, 0), name).history
        here = work.home == place
        for column in COLUMNS[:-1]:
            np.testing.assert_array_equal(
                getattr(together.history, column)[here], getattr(alone, column)
            )
        np.testing.assert_array_equal(
            np.cumsum(here)[together.logs[place]] - 1, alone.log
        )


# --- Where something does: an independent model --------------------------------


class Part:
    def __init__(self, i, place, keys):
        self.i, self.place, self.sets = i, place, [*requests(keys, i).items()]
        self.has_read = self.has_heard = False
        self.twin = None


class PlainPartitions:
    """FIFO on partitions in plain Python: one heap of events, deques for the locks."""

    LEAVE, HEAR, MERGE, ARRIVE = range(4)

    def __init__(self, work, cores, exchange):
        self.work, self.exchange = work, exchange
        self.idle = [cores] * work.partitions
        self.ready = [deque() for _ in self.idle]
        self.locks = [Locks() for _ in self.idle]
        self.granted, self.complete, self.finish = {}, {}, {}
        self.starts, self.released, self.sent = 0, 0, 0
        self.heap = [
            (at_s, self.ARRIVE, i, 0, None)
            for i, at_s in enumerate(work.trace.arrival_s.tolist())
        ]

    def run(self):
        while self.heap:
            now, event, _, _, what = heapq.heappop(self.heap)
            if event == self.ARRIVE:
                self.arrive(now)
            elif event == self.MERGE:
                for part in what:
                    self.book(part, now)
            elif event == self.HEAR:
                what.has_heard = True
                self.go_on(what, now)
            else:
                self.leave(*what, now)

    def arrive(self, now):
        i, work = self.released, self.work
        self.released += 1
        home, other = int(work.home[i]), int(work.other[i])
        here = Part(i, home, work.trace.keys)
        if other < 0:
            self.book(here, now)
            return
        there = Part(i, other, work.other_keys)
        here.twin, there.twin = there, here
        epoch_s, delay_s = self.exchange.epoch_s, self.exchange.round_s / 2
        end_s = (np.floor(now / epoch_s) + 1) * epoch_s if epoch_s else now
        heapq.heappush(self.heap, (end_s + delay_s, self.MERGE, home, i, (here, there)))

    def book(self, part, now):
        self.grant(self.locks[part.place].book(part, part.sets), now)
        self.fill(part.place, now)

    def grant(self, parts, now):
        for part in parts:
            self.granted[part.i, part.place] = now
            self.ready[part.place].append(part)

    def go_on(self, part, now):
        if part.has_read and part.has_heard:
            self.complete[part.i, part.place] = now
            self.ready[part.place].appendleft(part)
            self.fill(part.place, now)

    def fill(self, place, now):
        while self.idle[place] and self.ready[place]:
            part = self.ready[place].popleft()
            self.idle[place] -= 1
            service_s = float(self.work.trace.service_s[part.i])
            if part.twin and part.has_read:
                service_s *= 1 - self.exchange.read_share
            elif part.twin:
                service_s *= self.exchange.read_share / 2
            self.starts += 1
            heapq.heappush(
                self.heap,
                (now + service_s, self.LEAVE, place, self.starts, (part,)),
            )

    def leave(self, part, now):
        self.idle[part.place] += 1
        if part.twin and not part.has_read:
            part.has_read = True
            self.sent += 1
            at_s = now + self.exchange.round_s / 2
            heapq.heappush(self.heap, (at_s, self.HEAR, self.sent, 0, part.twin))
            self.fill(part.place, now)
            self.go_on(part, now)
        else:
            self.finish[part.i, part.place] = now
            self.grant(self.locks[part.place].release(part, part.sets), now)
        self.fill(part.place, now)


def test_partitions_equal_a_plain_model_bit_for_bit():
    for seed in range(30):
        random = np.random.default_rng(seed)
        partitions = int(random.integers(2, 6))
        parts = traces(partitions, n=120, per_s=9_000.0, seed=seed)
        work = merge(parts, float(random.choice([0.05, 0.3, 1.0])), seed)
        exchange = Exchange(
            round_s=float(random.choice([0.0, 1e-4, 2e-3])),
            epoch_s=float(random.choice([0.0, 1e-3])),
            read_share=float(random.choice([0.1, 0.5, 0.9])),
        )
        plain = PlainPartitions(work, SPEC.cores, exchange)
        plain.run()
        made = run(work, "fifo", exchange)
        for times, expected in (
            (made.granted_s, plain.granted),
            (made.finish_s, plain.finish),
        ):
            for side, places in enumerate((work.home, work.other)):
                np.testing.assert_array_equal(
                    times[:, side],
                    [expected.get((i, int(p)), np.nan) for i, p in enumerate(places)],
                    err_msg=f"{seed=}",
                )


# --- Laws ------------------------------------------------------------------------


@pytest.mark.parametrize("name", RELEASED_LATE)
@pytest.mark.parametrize("crossing", [0.1, 1.0])
def test_conflicting_transactions_commit_in_the_order_of_every_log(name, crossing):
    work = merge(traces(4, per_s=9_000.0), crossing, 1)
    made = run(work, name)
    for place, log in enumerate(made.logs):
        ends = {}
        for i in log:
            side = int(work.home[i] != place)
            keys = work.other_keys if side else work.trace.keys
            granted_s, end_s = made.granted_s[i, side], made.finish_s[i, side]
            assert granted_s <= end_s
            for key, alone in requests(keys, i).items():
                readers, writers = ends.get(key, (0.0, 0.0))
                assert granted_s >= (max(readers, writers) if alone else writers)
                if alone:
                    ends[key] = readers, max(writers, end_s)
                else:
                    ends[key] = max(readers, end_s), writers


@pytest.mark.parametrize("name", RELEASED_LATE)
@pytest.mark.parametrize("partitions", [2, 5])
def test_what_crosses_has_one_order_in_all_logs_and_nothing_waits(name, partitions):
    work = merge(traces(partitions, per_s=9_000.0), 0.3, 2)
    made = run(work, name)
    kept = ~made.history.dropped
    at = np.full(len(work), -1)
    at[made.history.log] = np.arange(kept.sum())
    assert sum(len(log) for log in made.logs) == (kept * (1 + work.crosses)).sum()
    for log in made.logs:
        assert (np.diff(at[log]) > 0).all()
    np.testing.assert_array_equal(np.isnan(made.finish_s[:, 0]), ~kept)
    np.testing.assert_array_equal(np.isnan(made.finish_s[:, 1]), ~(kept & work.crosses))


def test_a_part_executes_when_both_have_read_and_a_delay_has_passed():
    # By hand: 0 runs at home for 1 s. 1 crosses, is booked at the end of its epoch
    # (0.5 s) and a delay of 0.25 s, and reads for a quarter of its 2 s: from 0.75 s at
    # the other partition, and from 1 s at home, where it waits for 0.
    keys = KeySets.from_lists([[], []], [[0], [0]])
    work = Partitioned(
        Trace.of_jobs(np.array([0.0, 0.1]), np.array([1.0, 2.0]), keys),
        2,
        np.zeros(2, np.int64),
        np.array([-1, 1]),
        KeySets.from_lists([[], []], [[], [7]]),
    )
    made = simulate_partitions(
        work, policy("fifo", slo_s=9.0, cores=1), work.trace.service_s, cores=1,
        slo_s=9.0, exchange=Exchange(round_s=0.5, epoch_s=0.5, read_share=0.5),
    )  # fmt: skip
    assert made.granted_s[1].tolist() == [1.0, 0.75]
    assert made.read_s[1].tolist() == [1.5, 1.25]
    assert made.ready_s[1].tolist() == [1.5, 1.75]
    assert made.finish_s[1].tolist() == [2.5, 2.75]
    assert made.history.finish_s.tolist() == [1.0, 2.75]
    assert made.busy_s.tolist() == [2.5, 1.5]


@pytest.mark.parametrize("read_share", [0.0, 0.4, 1.0])
def test_what_crosses_costs_what_the_two_do_twice(read_share):
    work = merge(traces(3), 0.2, 3)
    made = run(work, "fifo", Exchange(read_share=read_share))
    service_s, crosses = work.trace.service_s, work.crosses
    expected_s = service_s.sum() + (1 - read_share) * service_s[crosses].sum()
    assert made.busy_s.sum() == pytest.approx(expected_s, rel=1e-12)


def test_littles_law_holds_on_partitions():
    work = merge(traces(4, n=6_000, per_s=6_000.0), 0.1, 4)
    history = run(work, "fifo").history
    begin_s, end_s = 0.1 * history.arrival_s[-1], 0.9 * history.arrival_s[-1]
    seen_s = np.linspace(begin_s, end_s, 20_000)
    inside = np.searchsorted(history.arrival_s, seen_s, side="right")
    inside -= np.searchsorted(np.sort(history.finish_s), seen_s, side="right")
    counted = (history.arrival_s > begin_s) & (history.arrival_s <= end_s)
    arrivals_per_s = counted.sum() / (end_s - begin_s)
    expected = arrivals_per_s * history.latency_s[counted].mean()
    assert inside.mean() == pytest.approx(expected, rel=0.02)


def test_a_larger_share_crosses_what_a_smaller_one_did():
    parts = traces(3)
    few, many = (merge(parts, share, 5) for share in (0.05, 0.3))
    assert few.crosses.sum() > 0
    assert many.crosses[few.crosses].all()
    np.testing.assert_array_equal(few.other[few.crosses], many.other[few.crosses])
    assert few.crosses.mean() == pytest.approx(0.05, abs=0.02)


def test_elsewhere_a_transaction_locks_what_its_kind_locks_there():
    work = merge(traces(2), 1.0, 6)
    sizes = np.diff(work.other_keys.offsets)
    assert (sizes == 2).all()
    first = work.other_keys.exclusive[work.other_keys.offsets[:-1]]
    np.testing.assert_array_equal(first, work.trace.kind == 0)


@pytest.mark.parametrize("name", RELEASED_LATE[1:])
def test_in_flight_is_bounded_but_for_what_others_commit(name):
    history = run(merge(traces(1, per_s=12_000.0), 0.0, 0), name).history
    bound = policy(name, slo_s=SPEC.slo_s, cores=SPEC.cores).in_flight
    kept = ~history.dropped
    times = np.concatenate([history.finish_s[kept], history.decided_s[kept]])
    steps = np.repeat([-1, 1], kept.sum())
    most = np.cumsum(steps[np.lexsort((steps, times))]).max()
    assert SPEC.cores <= most <= bound
    assert name == "bid-price" or most == bound


@pytest.mark.parametrize("name", RELEASED_LATE[1:])
def test_what_crosses_is_in_flight_but_not_while_it_waits_for_its_other_half(name):
    # Partition 0 sends to partition 1 and gets nothing back.
    both = merge(traces(2, per_s=12_000.0), 0.3, 7)
    rows = np.flatnonzero(both.home == 0)
    work = Partitioned(
        both.trace.take(rows),
        2,
        both.home[rows],
        both.other[rows],
        both.other_keys.take(rows),
    )
    made = run(work, name)
    history, kept = made.history, ~made.history.dropped
    crosses = work.crosses & kept
    decided_s = history.decided_s[kept]
    ready_s, read_s = made.ready_s[crosses, 0], made.read_s[crosses, 0]
    begins_s = np.sort(np.concatenate([decided_s, ready_s]))
    ends_s = np.sort(np.concatenate([made.finish_s[kept, 0], read_s]))
    inside = np.searchsorted(begins_s, decided_s, side="right")
    inside -= np.searchsorted(ends_s, decided_s, side="right")
    assert (read_s < ready_s).any()
    bound = policy(name, slo_s=SPEC.slo_s, cores=SPEC.cores).in_flight
    assert inside.max() == bound


def test_what_crosses_needs_a_model_of_its_kind():
    parts = traces(2, n=20)
    payments = parts[1].take(np.flatnonzero(parts[1].kind == 0))
    with pytest.raises(InvalidInput, match="has no 'new_order'"):
        merge([parts[0], payments], 1.0, 0)
