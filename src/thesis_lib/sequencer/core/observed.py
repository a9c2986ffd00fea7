"""The `State` of a running database, filled from observed events.

The engine reports what was dispatched and what has ended, and reads from the queue what
may start. A look-ahead uses this state in the same way as a simulated one.
"""

from thesis_lib.common.compiled import njit
from thesis_lib.sequencer.core.events import (
    COMMITTED,
    DISPATCHED,
    LOGGED,
    READY,
    STARTED,
    State,
)
from thesis_lib.sequencer.core.locks import NONE, book, release
from thesis_lib.sequencer.core.trace import F64, I64


@njit(cache=True)
def _start(state: State, now_s: float) -> None:
    """Assign the oldest uncommitted transactions of the queue to the workers."""
    for worker in range(len(state.running)):
        if state.progress[STARTED] == state.progress[READY]:
            return
        if state.running[worker] == NONE:
            i = state.queue[state.progress[STARTED]]
            state.running[worker] = i
            state.start_s[i] = now_s
            state.turn[worker] = state.progress[STARTED]
            state.progress[STARTED] += 1


@njit(cache=True)
def _enqueue(state: State, i: int, now_s: float) -> None:
    state.granted_s[i] = now_s
    state.queue[state.progress[READY]] = i
    state.progress[READY] += 1


@njit(cache=True)
def dispatch(state: State, ids: I64, now_s: float) -> None:
    """Append `ids` to the log and book their locks in that order."""
    for i in ids:
        at = state.progress[LOGGED]
        state.log[at], state.dispatch_s[at] = i, now_s
        state.progress[LOGGED] += 1
        state.progress[DISPATCHED] += 1
        if book(state.table, i):
            _enqueue(state, i, now_s)
    _start(state, now_s)


@njit(cache=True)
def commit(state: State, ids: I64, start_s: F64, finish_s: F64, now_s: float) -> None:
    """Release the locks of `ids`, which ended in this order, and grant them again."""
    for k in range(len(ids)):
        i = ids[k]
        for worker in range(len(state.running)):
            if state.running[worker] == i:
                state.running[worker] = NONE
        state.start_s[i], state.finish_s[i] = start_s[k], finish_s[k]
        state.progress[COMMITTED] += 1
        _start(state, finish_s[k])
        for at in range(release(state.table, i, state.unlocked)):
            _enqueue(state, state.unlocked[at], now_s)
    _start(state, now_s)
