"""Live, a policy decides once; every replay of the log reaches the same state."""

import time
from itertools import pairwise

import numpy as np
import pytest
from serial_execution import execute_serially

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.events import LOGGED
from thesis_lib.sequencer.core.trace import Decision
from thesis_lib.sequencer.engine.command_log import CommandLog, read_log
from thesis_lib.sequencer.engine.engine import database, replay
from thesis_lib.sequencer.engine.scheduler import (
    Requests,
    Scheduler,
    history,
    run_closed,
    run_open,
)
from thesis_lib.sequencer.engine.storage import UNITS
from thesis_lib.sequencer.policies.parameters import LateBound
from thesis_lib.sequencer.policies.registry import Policy, policy
from thesis_lib.sequencer.workload.arrivals import poisson_arrivals
from thesis_lib.sequencer.workload.tpcc import tpcc
from thesis_lib.sequencer.workload.transactions import Scale

SMALL, SEED, N = Scale(warehouses=2, customers=30, items=100), 4, 400


class Idle:
    """A database whose transactions do nothing, for as long as they are told."""

    one_writer = True
    engine = "idle"

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.units_s = [0.0] * len(UNITS)

    def session(self):
        return self

    def run(self, t):
        time.sleep(self.seconds)
        return True

    def close(self):
        pass


@pytest.fixture(scope="module")
def log():
    return tpcc(N, SMALL, SEED)


def requests(log, arrival_s, slo_s=5e-3, estimated_s=2e-4):
    return Requests.of_log(log, arrival_s, slo_s, np.full(len(log), estimated_s))


def poisson(log, rate_per_s, **options):
    rng = np.random.default_rng(0)
    return requests(log, poisson_arrivals(rate_per_s, len(log), rng), **options)


def fifo(batch, forecast, now_s):
    return Decision(batch.ids, batch.ids[:0])


def live(log, asked, rule, storage=None, workers=2, append=None, **options):
    with Scheduler(storage or Idle(), log, workers, append) as scheduler:
        return run_open(scheduler, asked, rule, first=0, **options)


@pytest.mark.parametrize("name", ["drop", "hybrid-corrected", "bid-price"])
def test_what_was_decided_live_is_what_every_replica_executes(name, log, tmp_path):
    path = tmp_path / "log"
    asked = poisson(log, 1e5, slo_s=20e-3)  # far too much: 40 ms of work
    rule = policy(name, slo_s=20e-3, cores=2, lag_s=1e-4)
    with database("sqlite") as storage, CommandLog(path, log) as file:
        storage.load(log.scale, log.seed)
        run = live(log, asked, rule, storage, append=file.append, flush_s=1e-3)
        digest = storage.digest()
    dropped = np.isnan(run.finish_s)
    assert dropped.any()
    assert len(run.log) > 0
    assert sorted([*run.log, *np.flatnonzero(dropped)]) == list(range(N))
    logged = read_log(path).log
    assert logged.transactions == tuple(log.transactions[i] for i in run.log)
    for workers in (1, 4):
        with database("sqlite") as storage:
            replay(path, storage, workers)
            assert storage.digest() == digest
    with database("sqlite") as storage:
        storage.load(log.scale, log.seed)
        execute_serially(storage, logged)
        assert storage.digest() == digest


def test_a_batch_is_in_the_log_before_anything_of_it_is_dispatched(log):
    dispatched, logged = [], [0]

    def append(ids):
        state = scheduler.state
        dispatched.append((int(state.progress[LOGGED]), scheduler.handed))
        logged.append(logged[-1] + len(ids))

    with Scheduler(Idle(), log, 2, append) as scheduler:
        run_closed(scheduler, N, 8, 4)
    assert [entries for entries, _ in dispatched] == logged[:-1]
    assert all(handed <= entries for entries, handed in dispatched)
    assert logged[-1] == N


@pytest.mark.parametrize("name", ["fifo", "fifo-batched", "hybrid", "edf", "bid-price"])
def test_stages_follow_each_other_from_the_intended_arrival(name, log):
    asked = poisson(log, 2e4)
    rule = policy(name, slo_s=5e-3, cores=2)
    run = live(log, asked, rule, flush_s=1e-3)
    np.testing.assert_array_equal(run.arrival_s, asked.arrival_s)
    ran = ~np.isnan(run.finish_s)
    assert (run.decided_s >= run.arrival_s).all()
    stages = [run.decided_s, run.sequenced_s, run.granted_s, run.start_s]
    stages += [run.finish_s, run.notified_s]
    for before, after in pairwise(stages):
        assert (before[ran] <= after[ran]).all()
        assert np.isnan(after[~ran]).all()
    happened = history(run, asked.deadline_s)
    np.testing.assert_array_equal(happened.finish_s, run.notified_s)
    np.testing.assert_array_equal(happened.dropped, ~ran)
    assert (run.worker[ran] < 2).all()
    if name in ("fifo", "fifo-batched"):
        assert ran.all()
        np.testing.assert_array_equal(run.log, np.arange(N))


def test_a_request_that_is_read_late_has_waited_since_it_was_due(log):
    def slow(batch, forecast, now_s):
        time.sleep(0.02 if 0 in batch.ids else 0.0)
        return fifo(batch, forecast, now_s)

    arrival_s = np.linspace(0, 1e-3, N)
    run = live(log, requests(log, arrival_s), Policy("slow", slow))
    late = history(run, arrival_s + 5e-3)
    assert late.latency_s.min() > 0.018
    assert late.late.all()


def test_back_pressure_bounds_what_is_released_and_uncommitted(log):
    rule = policy("late-edf", slo_s=1.0, cores=4, params=LateBound(1.25))
    assert rule.in_flight == 5
    run = live(log, poisson(log, 1e5, slo_s=1.0), rule, Idle(1e-4), workers=4)
    assert len(run.log) == N
    for s in run.sequenced_s:
        flying = (run.sequenced_s <= s) & (run.notified_s > s)
        assert flying.sum() <= rule.in_flight


@pytest.mark.parametrize("flush_s", [np.inf, 2e-3])
def test_a_batch_closes_when_it_is_full_or_its_time_is_over(flush_s, log):
    sizes, waited_s = [], []

    def note(batch, forecast, now_s):
        if len(batch):
            sizes.append(len(batch))
            waited_s.append(now_s - batch.arrival_s[0])
        return fifo(batch, forecast, now_s)

    live(log, poisson(log, 4e3), Policy("note", note), batch_size=7, flush_s=flush_s)
    assert sum(sizes) == N
    if flush_s == np.inf:
        assert sizes == [7] * (N // 7) + [N % 7] * (N % 7 > 0)
    else:
        closed = zip(sizes[:-1], waited_s, strict=False)
        assert all(size == 7 or waited >= flush_s - 1e-9 for size, waited in closed)
        assert min(sizes) < 7


def test_what_is_held_is_decided_on_again_at_a_commit(log):
    seen = []

    def two_at_a_time(batch, forecast, now_s):
        seen.extend([len(batch)] * (len(batch) > 0))
        return Decision(batch.ids[:2], batch.ids[:0], batch.ids[2:])

    asked = requests(log, np.zeros(N))
    run = live(log, asked, Policy("two", two_at_a_time), batch_size=N)
    assert seen[0] == N
    assert len(seen) >= N // 4  # two a decision, at most two commits between them
    np.testing.assert_array_equal(run.log, np.arange(N))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda b, f, t: Decision(b.ids[1:], b.ids[:0]), "into exactly one of order"),
        (lambda b, f, t: Decision(b.ids, b.ids[:1]), "into exactly one of order"),
        (
            lambda b, f, t: Decision(b.ids[:0], b.ids[:0], b.ids),
            "'bad' holds 400 transactions with nothing left to wait for",
        ),
    ],
)
def test_a_rule_that_loses_a_request_is_rejected(rule, message, log):
    asked = requests(log, np.zeros(N))
    with pytest.raises(InvalidInput, match=message):
        live(log, asked, Policy("bad", rule), batch_size=N)


def test_warm_transactions_are_no_part_of_the_loop(log):
    first = 100
    arrival_s = np.concatenate([np.zeros(first), np.linspace(0, 1e-2, N - first)])
    asked = requests(log, arrival_s)
    with Scheduler(Idle(), log, 2) as scheduler:
        run_closed(scheduler, first, 8, 4)
        run = run_open(scheduler, asked, policy("fifo", slo_s=1, cores=2), first=first)
    happened = history(run, asked.deadline_s, first)
    np.testing.assert_array_equal(happened.log, np.arange(N - first))
    assert (happened.latency_s > 0).all()
    assert len(happened.arrival_s) == N - first
