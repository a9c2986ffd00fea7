"""Overheads of the live engine, and their model in the simulator.

A transaction is read when the loop wakes, booked, handed to a worker through a pipe,
and its commit is heard of through another: four stages, each a difference of two
observed instants. The others are what a busy engine pays between two transactions: the
gap of a worker whose next one waits in its pipe, the pass of a lock through the
scheduler, and the turn of what the sequencer holds back until both are free.
"""

from dataclasses import dataclass

import numpy as np

from thesis_lib.common.compiled import njit
from thesis_lib.common.errors import require
from thesis_lib.sequencer.core.events import Delays
from thesis_lib.sequencer.core.locks import free_at, register
from thesis_lib.sequencer.core.trace import F64, I64, KeySets
from thesis_lib.sequencer.engine.scheduler import Run


@dataclass(frozen=True, slots=True)
class Overheads:
    """Overheads of a transaction [s]: medians, except for three means.

    A stage that no transaction of the run went through undisturbed is NaN.
    """

    read_s: float  # from the intended arrival to the decision
    book_s: float  # from the decision to the booked locks
    hand_over_s: float  # from the last lock to the start on a worker that idled
    notify_s: float  # from the commit to the sequencer's hearing of it
    gap_s: float  # mean, from a free worker to the start of what had its locks
    pass_s: float  # mean, from a last lock left to the start, if a worker was free
    turn_s: float  # mean, from free worker and locks to the start of what had arrived
    loop_cpu_s: float  # processor time of sequencer and scheduler


@njit(cache=True)
def _locks_left_s(locks, ends_s, log, finish_s):
    """Return when all conflicting predecessors had finished, by log position."""
    left_s = np.empty(len(log))
    for at in range(len(log)):
        left_s[at] = free_at(locks, ends_s, log[at], -np.inf)
        register(locks, ends_s, log[at], finish_s[log[at]])
    return left_s


def freed_s(run: Run, keys: KeySets, log: I64) -> tuple[F64, F64]:
    """Return when the locks and the worker of each of `log` became free, (k,) each.

    `log` is a part of `run.log` in its order; other transactions do not count. A time
    is minus infinity where none of `log` came before.
    """
    locks = keys.offsets, keys.keys, keys.exclusive
    never_s = np.full((2, keys.n_keys), -np.inf)
    locks_s = _locks_left_s(locks, (never_s[0], never_s[1]), log, run.finish_s)
    workers_s = np.full(len(log), -np.inf)
    for number in np.unique(run.worker[log]):
        mine = np.flatnonzero(run.worker[log] == number)
        mine = mine[np.argsort(run.start_s[log[mine]])]
        workers_s[mine[1:]] = run.finish_s[log[mine[:-1]]]
    return locks_s, workers_s


def overheads(run: Run, keys: KeySets, first: int) -> Overheads:
    """Return what transactions `first` to n - 1 paid in addition to their service.

    What ran before them is left out altogether: its times may be of another clock.
    Raises InvalidInput where none of them ran.
    """
    ids: I64 = run.log[run.log >= first]
    require(len(ids) > 0, f"no transaction from {first} on ran: nothing to measure")
    locks_s, workers_s = freed_s(run, keys, ids)
    idle = workers_s < run.granted_s[ids]
    free_s = np.maximum(locks_s, workers_s)
    locked = (locks_s > run.sequenced_s[ids]) & (locks_s >= workers_s)
    queued = workers_s >= run.granted_s[ids]

    def mean(times_s: F64) -> float:
        return float(times_s.mean()) if len(times_s) else np.nan

    def median(times_s: F64) -> float:
        return float(np.median(times_s)) if len(times_s) else np.nan

    return Overheads(
        read_s=median(run.decided_s[ids] - run.arrival_s[ids]),
        book_s=median(run.sequenced_s[ids] - run.decided_s[ids]),
        hand_over_s=median((run.start_s - run.granted_s)[ids[idle]]),
        notify_s=median(run.notified_s[ids] - run.finish_s[ids]),
        gap_s=mean((run.start_s[ids] - workers_s)[queued]),
        pass_s=mean((run.start_s[ids] - locks_s)[locked]),
        turn_s=mean((run.start_s[ids] - free_s)[free_s > run.arrival_s[ids]]),
        loop_cpu_s=run.loop_cpu_s / len(ids),
    )


def as_delays(quiet: Overheads, busy: Overheads, late: bool = False) -> Delays:
    """Return the simulator's delays, from a run far from saturation and a busy one.

    A transaction without contention pays for reading, the lag, booking, handing over
    and the answer. The gap keeps a worker from the next transaction. The excess of the
    pass over the gap keeps a lock, and the processor time for each transaction keeps
    the sequencer. With `late` binding the sequencer decides when a worker is free: the
    lag is then the turn, and there is no gap. A gap or pass without a waiting
    transaction is zero.
    """
    gap_s = 0.0 if late or np.isnan(busy.gap_s) else busy.gap_s
    pass_s = 0.0 if np.isnan(busy.pass_s) else busy.pass_s
    return Delays(
        read_s=quiet.read_s,
        lag_s=busy.turn_s
        if late
        else quiet.book_s + quiet.hand_over_s + quiet.notify_s,
        sequencer_s=busy.loop_cpu_s,
        worker_s=gap_s,
        release_s=max(pass_s - gap_s, 0.0),
    )
