"""The compiled event kernel of the simulator: clients, sequencer and database.

`advance` moves the database between commits and dispatches. `next_decision` moves
clients, inbox, timer and database until the sequencer has to decide.

Ties are explicit. At equal times the order is: commit, later release of locks,
dispatch, arrival, sequencer. The sequencer first takes a batch, if it is free, and then
decides once, on the finished batch and the held transactions. Commits go in start
order, dispatches in log order, arrivals by number. A commit grants its locks before its
core takes the next ready transaction.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from thesis_lib.common.errors import require
from thesis_lib.sequencer.core.locks import (
    NONE,
    LockTable,
    book,
    borrowing,
    inner,
    lock_table,
    release,
)
from thesis_lib.sequencer.core.trace import F64, I64, Bool, KeySets

# Positions in `State.progress`.
LOGGED, DISPATCHED, READY, STARTED, COMMITTED, RELEASED = range(6)
# Positions in `SequencerState.counts` and `SequencerState.clock_s`.
SUBMITTED, TAKEN, BATCHED, HELD, ANSWERED = range(5)
NOW, DONE = range(2)
DEADLOCKED = -1  # what `next_decision` returns if transactions are held for ever


@dataclass(frozen=True, slots=True)
class Delays:
    """Delays of the sequencer and the workers, in seconds.

    Raises InvalidInput for a negative or infinite delay.
    """

    lag_s: float = 0.0  # from a decision to the booking of its locks
    sequencer_s: float = 0.0  # the sequencer's work on each transaction, one by one
    worker_s: float = 0.0  # on a core in addition to the service, holding the locks
    read_s: float = 0.0  # from a request to the sequencer's inbox
    release_s: float = 0.0  # from a commit to the release of its locks

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(
                0 <= value < np.inf,
                f"{field.name}={value:g} must be finite and at least 0",
            )


NO_DELAYS = Delays()


class State(NamedTuple):
    """A deterministic database in the middle of its log.

    `log`, `dispatch_s` and `queue` are filled from the front; `progress` says how far.
    A time that has not come yet is NaN.

    A look-ahead schedule reads `log`, `dispatch_s`, `queue`, `start_s`, `finish_s`,
    `running` and of `progress` LOGGED, READY and STARTED. An observer of a real
    database fills these. If `queue` is empty (READY = STARTED), transactions that hold
    their locks are assumed to wait for a core in log order.
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
    ended: I64  # (n,) ids in the order in which they committed
    unlocked: I64  # (n,) scratch for `release`
    progress: I64  # (6,)


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
        ended=np.empty(n, np.int64),
        unlocked=np.empty(n, np.int64),
        progress=np.zeros(6, np.int64),
    )


@borrowing
def advance(
    state: State, busy_s: F64, until_s: float, stop_at_commit: bool, release_s: float
) -> float:
    """Process every event up to and including `until_s`; return the time reached.

    `busy_s` (n,) is how long each transaction keeps its core; its locks it keeps for
    `release_s` more. With `stop_at_commit`, the time reached is that of the first
    commit, after every event of that same time.
    """
    # Unpacked once: fetching a field of a tuple of arrays costs more than using it.
    (
        table, log, dispatch_s, queue, granted_s, start_s, finish_s, running, ends_s,
        turn, ended, unlocked, progress,
    ) = state  # fmt: skip
    logged, dispatched = progress[LOGGED], progress[DISPATCHED]
    released = progress[RELEASED]
    ready, started, committed = progress[READY], progress[STARTED], progress[COMMITTED]
    cores = len(running)
    while True:
        core = 0
        for other in range(1, cores):
            if ends_s[other] < ends_s[core] or (
                ends_s[other] == ends_s[core] and turn[other] < turn[core]
            ):
                core = other
        commit_s = ends_s[core]
        due_s = dispatch_s[dispatched] if dispatched < logged else np.inf
        now_s = min(commit_s, due_s)
        freed_s = np.inf
        if released < committed:
            freed_s = finish_s[ended[released]] + release_s
            now_s = min(now_s, freed_s)
        if now_s > until_s or now_s == np.inf:
            break
        freed = NONE
        if commit_s == now_s:
            i = running[core]
            finish_s[i] = now_s
            running[core] = NONE
            ends_s[core] = np.inf
            ended[committed] = i
            committed += 1
            if release_s == 0:
                freed = i
            if stop_at_commit:
                until_s = now_s
        elif freed_s == now_s:
            freed = int(ended[released])
        else:
            i = int(log[dispatched])
            dispatched += 1
            if book(table, i):
                granted_s[i] = now_s
                queue[ready] = i
                ready += 1
        if freed != NONE:
            released += 1
            for at in range(release(table, freed, unlocked)):
                granted_s[unlocked[at]] = now_s
                queue[ready] = unlocked[at]
                ready += 1
        core = 0
        while started < ready and started - committed < cores:
            while running[core] != NONE:
                core += 1
            i = queue[started]
            running[core] = i
            start_s[i] = now_s
            ends_s[core] = now_s + busy_s[i]
            turn[core] = started
            started += 1
    progress[DISPATCHED], progress[READY] = dispatched, ready
    progress[STARTED], progress[COMMITTED] = started, committed
    progress[RELEASED] = released
    return until_s


class SequencerState(NamedTuple):
    """The front of the database: clients, and the sequencer with its inbox.

    Transactions are numbered as they are submitted; `counts` says how many have been
    SUBMITTED (in an open loop all, whenever they are due), TAKEN from the inbox and
    decided on at least once, BATCHED (taken or worked on), HELD, and how many commits
    have been ANSWERED. `clock_s` holds the time reached and when the sequencer is DONE
    with its batch, infinity if it has none.
    """

    arrival_s: F64  # (n,)
    deadline_s: F64  # (n,)
    slo_s: F64  # (n,)
    decided_s: F64  # (n,)
    dropped: Bool  # (n,)
    held: I64  # (n,) ids that a decision held back, rising
    counts: I64  # (5,)
    clock_s: F64  # (2,)


class RunConfig(NamedTuple):
    """Settings of clients and sequencer; all times in seconds."""

    closed: bool  # clients wait for an answer before they submit again
    think_s: float  # and for this long after it
    size: int  # transactions that fill a batch
    flush_s: float  # after the first of a batch, it is taken anyway
    in_flight: int  # most that are released and uncommitted; 0 is no bound
    lag_s: float
    sequencer_s: float
    read_s: float  # after its arrival a transaction is in the inbox
    release_s: float


def front(
    arrival_s: F64, slo_s: F64, setting: RunConfig, clients: int
) -> SequencerState:
    """Clients that have submitted nothing yet.

    In a closed loop the first transactions of the `clients` are spread over one think
    time, and `arrival_s` (n,) is not read.
    """
    n = len(arrival_s)
    submitted = min(clients, n) if setting.closed else n
    due_s = arrival_s.astype(np.float64)
    if setting.closed:
        due_s = np.full(n, np.nan)
        due_s[:submitted] = np.arange(submitted) * (setting.think_s / clients)
    return SequencerState(
        arrival_s=due_s,
        deadline_s=due_s + slo_s,
        slo_s=slo_s,
        decided_s=np.full(n, np.nan),
        dropped=np.zeros(n, np.bool_),
        held=np.empty(n, np.int64),
        counts=np.array([submitted, 0, 0, 0, 0]),
        clock_s=np.array([-np.inf, np.inf]),
    )


@inner
def _submit(front, number, at_s):
    """Submit the next transactions of as many clients, if any are left."""
    arrival_s, deadline_s, slo_s, _, _, _, counts, _ = front
    first = counts[SUBMITTED]
    last = min(first + number, len(arrival_s))
    for i in range(first, last):
        arrival_s[i] = at_s
        deadline_s[i] = at_s + slo_s[i]
    counts[SUBMITTED] = last


@inner
def _due_s(front, setting):
    """Return when the sequencer next takes or ends a batch."""
    arrival_s, _, _, _, _, _, counts, clock_s = front
    if clock_s[DONE] < np.inf:
        return clock_s[DONE]
    taken, submitted = counts[TAKEN], counts[SUBMITTED]
    if taken == submitted:
        return np.inf
    read_s = setting.read_s
    due_s = arrival_s[taken] + read_s + setting.flush_s
    if submitted - taken >= setting.size:
        due_s = min(due_s, arrival_s[taken + setting.size - 1] + read_s)
    elif submitted == len(arrival_s):  # no arrival will fill this batch
        due_s = min(due_s, arrival_s[submitted - 1] + read_s)
    return max(due_s, clock_s[NOW])


@borrowing
def next_decision(
    state: State, front: SequencerState, busy_s: F64, setting: RunConfig, ids: I64
) -> int:
    """Process every event until the sequencer decides; return on how many.

    Their ids, those held back before and then those of the batch, are written to the
    front of `ids` (n,) and rise; the time is `front.clock_s[NOW]`. Returns 0 when
    everything has been decided on, with the database drained, and DEADLOCKED if held
    transactions, `front.counts[HELD]` of them, have nothing to wait for.
    """
    arrival_s, _, _, _, _, held, counts, clock_s = front
    progress = state.progress
    n = len(arrival_s)
    while True:
        taken, committed = counts[TAKEN], progress[COMMITTED]
        if taken == n and counts[HELD] == 0:
            clock_s[NOW] = advance(
                state, busy_s, np.inf, np.bool_(False), setting.release_s
            )
            return 0
        due_s = _due_s(front, setting)
        stop = setting.closed or counts[HELD] > 0
        now_s = advance(state, busy_s, due_s, stop, setting.release_s)
        if now_s == np.inf:
            return DEADLOCKED
        clock_s[NOW] = now_s
        if setting.closed:
            answered = progress[COMMITTED] - counts[ANSWERED]
            _submit(front, answered, now_s + setting.think_s)
            counts[ANSWERED] = progress[COMMITTED]
            due_s = _due_s(front, setting)
        if now_s == due_s:
            if clock_s[DONE] == np.inf:
                last = taken + 1
                upto = min(taken + setting.size, counts[SUBMITTED])
                while last < upto and arrival_s[last] + setting.read_s <= now_s:
                    last += 1
                counts[BATCHED] = last
                clock_s[DONE] = now_s + (last - taken) * setting.sequencer_s
            if clock_s[DONE] == now_s:
                counts[TAKEN] = counts[BATCHED]
                clock_s[DONE] = np.inf
        waiting = counts[HELD]
        if counts[TAKEN] == taken and (
            waiting == 0 or progress[COMMITTED] == committed
        ):
            continue
        released = progress[LOGGED] - progress[COMMITTED]
        if 0 < setting.in_flight <= released:
            for i in range(taken, counts[TAKEN]):
                held[counts[HELD]] = i
                counts[HELD] += 1
            continue
        for at in range(waiting):
            ids[at] = held[at]
        for i in range(taken, counts[TAKEN]):
            ids[waiting + i - taken] = i
        counts[HELD] = 0
        return waiting + counts[TAKEN] - taken


@borrowing
def enter(
    state: State,
    front: SequencerState,
    setting: RunConfig,
    order: I64,
    dropped: I64,
    held: I64,
) -> None:
    """Carry out a decision: log `order`, answer `dropped`, remember `held` (rising).

    Together they are the ids that `next_decision` asked for. What `order` has beyond
    `setting.in_flight` is held too.
    """
    now_s, room = front.clock_s[NOW], len(order)
    progress, decided_s = state.progress, front.decided_s
    if setting.in_flight > 0:
        released = progress[LOGGED] - progress[COMMITTED]
        room = min(room, setting.in_flight - released)
    for at in range(room):
        i, logged = order[at], progress[LOGGED]
        state.log[logged] = i
        state.dispatch_s[logged] = now_s + setting.lag_s
        progress[LOGGED] = logged + 1
        decided_s[i] = now_s
    for i in dropped:
        front.dropped[i] = True
        decided_s[i] = now_s
    if setting.closed:
        _submit(front, len(dropped), now_s + setting.think_s)
    count = len(held)
    for at in range(count):
        front.held[at] = held[at]
    for i in order[room:]:  # inserted, mostly at the end
        to = count
        while to > 0 and front.held[to - 1] > i:
            front.held[to] = front.held[to - 1]
            to -= 1
        front.held[to] = i
        count += 1
    front.counts[HELD] = count
