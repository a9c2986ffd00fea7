"""The compiled event kernel of the simulator: lock table, ready queue, cores.

Time moves between two kinds of event, a commit and the dispatch of a log entry.
Ties are explicit: at equal times a commit precedes a dispatch, commits go in the
order in which the transactions started, dispatches in log order; and a commit
grants its locks before its core takes the next ready transaction.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from thesis_lib.sequencer.locktable import NONE, LockTable, book, lock_table, release
from thesis_lib.sequencer.trace import F64, I64, KeySets

# Positions in `State.progress`.
LOGGED, DISPATCHED, READY, STARTED, COMMITTED = range(5)


class State(NamedTuple):
    """A deterministic database in the middle of its log.

    `log`, `dispatch_s` and `queue` are filled from the front; `progress` says how far.
    A time that has not come yet is NaN.
    """

    table: LockTable
    log: I64  # (n,) ids in total order
    dispatch_s: F64  # (n,) when each log entry books its locks, by log position
    queue: I64  # (n,) ids in the order in which they held all their locks
    granted_s: F64  # (n,)
    start_s: F64  # (n,)
    finish_s: F64  # (n,) written at commit, so that a reader learns nothing early
    running: I64  # (cores,) id on each core, or NONE
    ends_s: F64  # (cores,) when it will commit, infinity on an idle core
    turn: I64  # (cores,) position in the order of starts
    unlocked: I64  # (n,) scratch for `release`
    progress: I64  # (5,)


def idle_state(keys: KeySets, cores: int) -> State:
    """A database with nothing in its log."""
    n = len(keys)
    return State(
        table=lock_table(keys),
        log=np.empty(n, np.int64),
        dispatch_s=np.empty(n),
        queue=np.empty(n, np.int64),
        granted_s=np.full(n, np.nan),
        start_s=np.full(n, np.nan),
        finish_s=np.full(n, np.nan),
        running=np.full(cores, NONE, np.int64),
        ends_s=np.full(cores, np.inf),
        turn=np.zeros(cores, np.int64),
        unlocked=np.empty(n, np.int64),
        progress=np.zeros(5, np.int64),
    )


@njit(cache=True)
def _enqueue(state: State, i, now_s: float) -> None:
    state.granted_s[i] = now_s
    state.queue[state.progress[READY]] = i
    state.progress[READY] += 1


@njit(cache=True)
def _fill_cores(state: State, service_s: F64, now_s: float) -> None:
    for core in range(len(state.running)):
        if state.progress[STARTED] == state.progress[READY]:
            return
        if state.running[core] != NONE:
            continue
        i = state.queue[state.progress[STARTED]]
        state.running[core] = i
        state.start_s[i] = now_s
        state.ends_s[core] = now_s + service_s[i]
        state.turn[core] = state.progress[STARTED]
        state.progress[STARTED] += 1


@njit(cache=True)
def advance(
    state: State, service_s: F64, until_s: float, stop_at_commit: bool
) -> float:
    """Process every event up to and including `until_s`; return the time reached.

    With `stop_at_commit`, the time reached is that of the first commit, after every
    event of that same time.
    """
    while True:
        core = 0
        for other in range(1, len(state.running)):
            if state.ends_s[other] < state.ends_s[core] or (
                state.ends_s[other] == state.ends_s[core]
                and state.turn[other] < state.turn[core]
            ):
                core = other
        commit_s = state.ends_s[core]
        dispatch_s = np.inf
        if state.progress[DISPATCHED] < state.progress[LOGGED]:
            dispatch_s = state.dispatch_s[state.progress[DISPATCHED]]
        now_s = min(commit_s, dispatch_s)
        if now_s > until_s or now_s == np.inf:
            return until_s
        if commit_s <= dispatch_s:
            i = state.running[core]
            state.finish_s[i] = now_s
            state.running[core] = NONE
            state.ends_s[core] = np.inf
            state.progress[COMMITTED] += 1
            for at in range(release(state.table, i, state.unlocked)):
                _enqueue(state, state.unlocked[at], now_s)
            if stop_at_commit:
                until_s = now_s
        else:
            i = int(state.log[state.progress[DISPATCHED]])
            state.progress[DISPATCHED] += 1
            if book(state.table, i):
                _enqueue(state, i, now_s)
        _fill_cores(state, service_s, now_s)
