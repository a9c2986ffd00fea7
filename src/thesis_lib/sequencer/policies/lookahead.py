"""Look-ahead: predict when each transaction of a batch would commit.

A look-ahead uses estimated service times and declared keys. Three options differ:

- *feedback*: it starts from the observed database at every decision, or from a model
  in which everything ends as predicted;
- the *CPU term*: it simulates the cores and their ready queue, or chains estimates
  along conflicts as if every transaction had its own core;
- *stale reservations* (`ghosts`): a dropped transaction keeps its keys until its
  predicted end.

`OpenLoop`, as in the thesis, has only the third; `Feedback` only the others.
"""

from math import erf, sqrt
from typing import NamedTuple

import numpy as np

from thesis_lib.sequencer.core.events import (
    LOGGED,
    READY,
    STARTED,
    State,
    advance,
    idle_state,
)
from thesis_lib.sequencer.core.locks import (
    ENDS,
    NONE,
    Uncommitted,
    allocating,
    book,
    forget,
    free_at,
    inner,
    known_free_at,
    let_know,
    nobody,
    register,
)
from thesis_lib.sequencer.core.trace import F64, I64, Bool, Forecast, KeySets
from thesis_lib.sequencer.policies.recalibration import (
    Online,
    corrected_s,
    initial_calibration,
    learn,
)

SPREAD = 0.2  # relative standard error that forecasts assume of the estimates
NO_KEYS = KeySets.from_lists([], [])
# Positions in `Memory.counts`.
PENDING, READ, DECISION = range(3)
REMEMBERED = 24  # numbers that a rule may keep between decisions, zero at first


class Model(NamedTuple):
    """Options of a look-ahead."""

    feedback: bool
    cpu: bool
    ghosts: bool
    lag_s: float  # from a decision to the booking of its locks
    tolerance_s: float  # see `Feedback`
    spread: float  # relative standard error that probabilities assume of what is left


class Decided(NamedTuple):
    """The arrays of ids that a decision writes, and its work space."""

    order: I64  # (n,) to release, in order
    dropped: I64  # (n,)
    held: I64  # (n,)
    rank: I64  # (n,) of each of the batch, before its key
    key: F64  # (n,)
    service_s: F64  # (n,)
    finish_s: F64  # (n,)
    core_s: F64  # (cores,)


class Memory(NamedTuple):
    """State and work space of a look-ahead; empty if a model needs none."""

    keys: tuple[I64, I64, Bool]  # the columns of KeySets
    estimated_s: F64  # (n,) time on a core
    deadline_s: F64  # (n,)
    world: State  # what a forecast starts from
    scratch: State  # where it is simulated; idle between forecasts
    ends_s: tuple[F64, F64]  # (k,) predicted end of each key's last writer and reader
    ghosts_s: tuple[F64, F64]  # (k,) the same of what was dropped
    pending: I64  # (n,) log positions that had not committed when last looked at
    counts: I64  # (3,)
    control: F64  # (REMEMBERED,), or as a rule asks: what it remembers
    group: I64  # (n,) whose violations are compared; of a `Feedback` that learns
    online: Online  # calibration of the estimates; the same
    uncommitted: Uncommitted  # the same
    decided: Decided


@inner
def _look(memory):
    """Bring the list of log entries that have not committed up to date."""
    world, pending, counts = memory.world, memory.pending, memory.counts
    log, finish_s = world.log, world.finish_s
    n_active = 0
    for at in range(counts[PENDING]):
        if np.isnan(finish_s[log[pending[at]]]):
            pending[n_active] = pending[at]
            n_active += 1
    for at in range(counts[READ], world.progress[LOGGED]):
        if np.isnan(finish_s[log[at]]):
            pending[n_active] = at
            n_active += 1
    counts[PENDING], counts[READ] = n_active, world.progress[LOGGED]


@inner
def in_flight(memory: Memory) -> int:
    """Transactions in the observed log that have not committed."""
    _look(memory)
    return memory.counts[PENDING]


# --- Chained along conflicts, without a CPU term -------------------------------
@inner
def _chain(memory, model, ids, now_s, finish_s):
    """Forecast `ids` in turn; register what will be kept, and what stays stale."""
    keys, estimated_s, deadline_s = memory.keys, memory.estimated_s, memory.deadline_s
    ends_s, ghosts_s = memory.ends_s, memory.ghosts_s
    for at in range(len(ids)):
        i = ids[at]
        free_s = free_at(keys, ends_s, i, now_s + model.lag_s)
        if model.ghosts:
            free_s = free_at(keys, ghosts_s, i, free_s)
        finish_s[at] = free_s + estimated_s[i]
        if finish_s[at] <= deadline_s[i] + model.tolerance_s:
            register(keys, ends_s, i, finish_s[at])
        elif model.ghosts:
            register(keys, ghosts_s, i, finish_s[at])


@allocating
def _chain_and_undo(memory, model, ids, now_s, finish_s):
    """The same, and leave every key as it was."""
    offsets, key_of, _ = memory.keys
    requests = 0
    for i in ids:
        requests += offsets[i + 1] - offsets[i]
    before_s = np.empty((4, requests))
    columns = (*memory.ends_s, *memory.ghosts_s)
    for back in (False, True):
        at = 0
        for i in ids:
            for request in range(offsets[i], offsets[i + 1]):
                for column in range(4):
                    if back:
                        columns[column][key_of[request]] = before_s[column, at]
                    else:
                        before_s[column, at] = columns[column][key_of[request]]
                at += 1
        if not back:
            _chain(memory, model, ids, now_s, finish_s)


@inner
def _chain_observed(memory, now_s):
    """Register what runs and what is in the log, as observed."""
    keys, estimated_s, ends_s, pending, counts = (
        memory.keys, memory.estimated_s, memory.ends_s, memory.pending, memory.counts,
    )  # fmt: skip
    world = memory.world
    for at in range(counts[PENDING]):
        entry = pending[at]
        i = world.log[entry]
        if np.isnan(world.start_s[i]):
            free_s = free_at(keys, ends_s, i, max(now_s, world.dispatch_s[entry]))
            end_s = free_s + estimated_s[i]
        else:
            end_s = max(now_s, world.start_s[i] + estimated_s[i])
        register(keys, ends_s, i, end_s)


# --- Simulated forward, with the cores ------------------------------------------
@inner
def _due_s(world, model, now_s):
    """Return when a decision made now books its locks: never before the log's end."""
    logged = world.progress[LOGGED]
    due_s = now_s + model.lag_s
    return max(due_s, world.dispatch_s[logged - 1]) if logged else due_s


@inner
def _run_forward(memory, ids, now_s, due_s, finish_s):
    """Finish times if the log is followed by `ids` in turn and then by nothing.

    What has not committed is copied into the scratch database and runs there. What
    runs already ends one estimate after its start, now if that is past. An id of NONE
    is left out. Returns how many ran already: the first of the scratch queue.
    """
    estimated_s, world, scratch, pending, counts = (
        memory.estimated_s, memory.world, memory.scratch, memory.pending, memory.counts,
    )  # fmt: skip
    log, dispatch_s, start_s = world.log, world.dispatch_s, world.start_s
    (
        table, to_log, to_dispatch_s, queue, granted_s, _, finished_s, running,
        ends_s, turn, _, _, progress,
    ) = scratch  # fmt: skip
    cores = len(running)
    started = 0
    for core in range(cores):
        i = world.running[core]
        running[core] = i
        ends_s[core] = np.inf
        turn[core] = world.turn[core]
        if i != NONE:
            ends_s[core] = max(now_s, start_s[i] + estimated_s[i])
            granted_s[i] = now_s
            queue[started] = i
            started += 1
    ran = started
    ready = started
    for at in range(world.progress[STARTED], world.progress[READY]):
        i = world.queue[at]
        granted_s[i] = now_s
        queue[ready] = i
        ready += 1
    logged = 0
    for at in range(counts[PENDING]):
        entry = pending[at]
        i = log[entry]
        if dispatch_s[entry] > now_s and np.isnan(start_s[i]):
            to_log[logged] = i
            to_dispatch_s[logged] = dispatch_s[entry]
            logged += 1
        elif book(table, i) and np.isnan(granted_s[i]):
            granted_s[i] = now_s
            queue[ready] = i
            ready += 1
    for i in ids:
        if i != NONE:
            to_log[logged] = i
            to_dispatch_s[logged] = due_s
            logged += 1
    # Observed databases may show a core that idles while something is ready.
    core = 0
    while started < ready and core < cores:
        if running[core] == NONE:
            i = queue[started]
            running[core] = i
            ends_s[core] = now_s + estimated_s[i]
            turn[core] = started
            started += 1
        core += 1
    progress[:] = 0
    progress[LOGGED], progress[READY], progress[STARTED] = logged, ready, started
    advance(scratch, estimated_s, np.inf, np.bool_(False), 0.0)
    for at in range(len(ids)):
        if ids[at] != NONE:
            finish_s[at] = finished_s[ids[at]]
    return ran


@inner
def _clear(memory):
    """Leave the scratch database idle, as it was found."""
    scratch = memory.scratch
    queue, granted_s = scratch.queue, scratch.granted_s
    for at in range(scratch.progress[READY]):
        granted_s[queue[at]] = np.nan


@inner
def _together(memory, model, ids, now_s, finish_s):
    """Forecast `ids` as one part of the log, without those that would end too late."""
    deadline_s, tolerance_s = memory.deadline_s, model.tolerance_s
    due_s = _due_s(memory.world, model, now_s)
    held = memory.decided.held[: len(ids)]
    for at in range(len(ids)):
        held[at] = ids[at]
    while True:
        _run_forward(memory, held, now_s, due_s, finish_s)
        _clear(memory)
        late = NONE
        for at in range(len(ids)):
            i = held[at]
            if i != NONE and finish_s[at] > deadline_s[i] + tolerance_s:
                late = at
                break
        if late == NONE:
            return
        held[late] = NONE


@inner
def _alone(memory, model, ids, now_s, finish_s):
    """Forecast each of `ids` as if it alone were released next."""
    keys, estimated_s, world, scratch, ends_s, pending, counts = (
        memory.keys, memory.estimated_s, memory.world, memory.scratch, memory.ends_s,
        memory.pending, memory.counts,
    )  # fmt: skip
    log, due_s = world.log, _due_s(world, model, now_s)
    ran = _run_forward(memory, ids[:0], now_s, due_s, finish_s)
    queue, finished_s = scratch.queue, scratch.finish_s
    _, _, _, _, core_s, granted_s, _, free_s = memory.decided
    cores = len(free_s)
    for at in range(cores):
        free_s[at] = finished_s[queue[at]] if at < ran else now_s
    # After as many of the queue as came first, the earliest time of a free core.
    queued = scratch.progress[READY] - ran
    for at in range(queued + 1):
        first = 0
        for core in range(1, cores):
            if free_s[core] < free_s[first]:
                first = core
        core_s[at] = free_s[first]
        if at < queued:
            i = queue[ran + at]
            granted_s[at] = scratch.granted_s[i]
            free_s[first] = finished_s[i]
    _clear(memory)
    for at in range(counts[PENDING]):
        i = log[pending[at]]
        register(keys, ends_s, i, finished_s[i])
    for at in range(len(ids)):
        i = ids[at]
        free = free_at(keys, ends_s, i, due_s)
        before = 0
        while before < queued and granted_s[before] < free:
            before += 1
        behind = before
        while behind < queued and granted_s[behind] <= free:
            behind += 1
        # Of what one commit grants, who waits for a core first is a matter of ties.
        start_s = max(free, core_s[behind])
        tied = free > due_s and start_s != max(free, core_s[before])
        finish_s[at] = np.nan if tied else start_s + estimated_s[i]
    for at in range(counts[PENDING]):
        forget(keys, ends_s, log[pending[at]])
    for at in range(len(ids)):
        if np.isnan(finish_s[at]):
            one = ids[at : at + 1]
            _run_forward(memory, one, now_s, due_s, finish_s[at : at + 1])
            _clear(memory)


# --- What is free, and when, after all that has been released -------------------
@inner
def learn_commits(memory: Memory, window: float, seen: I64) -> int:
    """Learn from what has committed since the last look; how many, and where.

    What is older than `window` commits fades; with 0 nothing is learned. Their places
    in the log go to `seen`, which has room for every entry that had not committed then.
    """
    pending, counts, online = memory.pending, memory.counts, memory.online
    log, logged = memory.world.log, memory.world.progress[LOGGED]
    start_s, finish_s = memory.world.start_s, memory.world.finish_s
    read, waiting = counts[READ], counts[PENDING]
    n_commits = n_active = 0
    for at in range(waiting + logged - read):
        entry = pending[at] if at < waiting else read + at - waiting
        i = int(log[entry])
        if np.isnan(finish_s[i]):
            pending[n_active] = entry
            n_active += 1
            continue
        seen[n_commits] = entry
        n_commits += 1
        if window > 0:
            left_s = memory.deadline_s[i] - online.asked_s[i]
            learn(online, i, float(finish_s[i] - start_s[i]), window, left_s)
    counts[PENDING], counts[READ] = n_active, logged
    return n_commits


@inner
def occupy(core_s: F64, at: int, end_s: float) -> None:
    """Core `at` of a heap (cores,) of when each is free is busy until `end_s`.

    Core 0 is free first; cores 2 `at` + 1 and 2 `at` + 2 are free no sooner than `at`.
    """
    cores, below = len(core_s), 2 * at + 1
    while below < cores:
        if below + 1 < cores and core_s[below + 1] < core_s[below]:
            below += 1
        if core_s[below] >= end_s:
            break
        core_s[at] = core_s[below]
        at, below = below, 2 * below + 1
    core_s[at] = end_s


@inner
def predict_releases(
    memory: Memory, model: Model, ids: I64, now_s: float, core_s: F64, news: bool
) -> float:
    """Calibrate, and predict when rows and cores are free of all that was released.

    If there is `news` to calibrate by, the estimates of `ids` and of what is in flight
    are. That must have entered `memory.uncommitted`; what waits there for a core or a
    lock is chained in log order. Returns when `ids` could book their locks; writes to
    `core_s` (cores,), as a heap, when each core has nothing left to do. When rows are
    free says `known_free_at`, for the decision of this number in `memory.counts`.
    """
    world, pending, counts = memory.world, memory.pending, memory.counts
    log, dispatch_s, start_s = world.log, world.dispatch_s, world.start_s
    keys, estimated_s, uncommitted = memory.keys, memory.estimated_s, memory.uncommitted
    online, end_s = memory.online, uncommitted.end_s
    number, waiting = counts[DECISION], 0
    if news:
        for at in range(len(ids)):
            estimated_s[ids[at]] = corrected_s(online, ids[at])
        for at in range(counts[PENDING]):
            i = int(log[pending[at]])
            estimated_s[i] = corrected_s(online, i)
    for at in range(counts[PENDING]):
        i = int(log[pending[at]])
        end_s[i] = max(now_s, start_s[i] + estimated_s[i])
        if np.isnan(start_s[i]):
            end_s[i] = -np.inf
            waiting += 1
    for core in range(len(core_s)):
        i = world.running[core]
        core_s[core] = now_s
        if i != NONE:
            core_s[core] = max(now_s, start_s[i] + estimated_s[i])
    for core in range(len(core_s) // 2 - 1, -1, -1):
        occupy(core_s, core, core_s[core])
    for at in range(counts[PENDING] if waiting else 0):
        entry = pending[at]
        i = int(log[entry])
        if np.isnan(start_s[i]):
            booked_s = max(now_s, dispatch_s[entry])
            free_s = known_free_at(keys, uncommitted, number, ENDS, i, booked_s)
            end_s[i] = max(free_s, core_s[0]) + estimated_s[i]
            occupy(core_s, 0, end_s[i])
            let_know(keys, uncommitted, number, ENDS, i, end_s[i])
    return _due_s(world, model, now_s)


# --- Both ------------------------------------------------------------------------
@inner
def schedule_into(memory, model, ids, now_s, remember, finish_s):
    """Write the forecast of `schedule` to `finish_s` (b,)."""
    keys, estimated_s, deadline_s, world, ends_s, ghosts_s, pending, counts = (
        memory.keys, memory.estimated_s, memory.deadline_s, memory.world,
        memory.ends_s, memory.ghosts_s, memory.pending, memory.counts,
    )  # fmt: skip
    if model.cpu and not model.feedback:
        advance(world, estimated_s, now_s, np.bool_(False), 0.0)
    if model.cpu or model.feedback:
        _look(memory)
    if not model.cpu:
        if model.feedback:
            _chain_observed(memory, now_s)
        if remember:
            _chain(memory, model, ids, now_s, finish_s)
        else:
            _chain_and_undo(memory, model, ids, now_s, finish_s)
        if model.feedback:
            for at in range(counts[PENDING]):
                forget(keys, ends_s, world.log[pending[at]])
            for i in ids:
                forget(keys, ends_s, i)
        return
    if model.tolerance_s == -np.inf:
        _alone(memory, model, ids, now_s, finish_s)
    else:
        _together(memory, model, ids, now_s, finish_s)
    for at in range(len(ids)):
        i = ids[at]
        if model.ghosts:
            free_s = free_at(keys, ghosts_s, i, -np.inf)
            finish_s[at] = max(finish_s[at], free_s + estimated_s[i])
        if not remember:
            continue
        if finish_s[at] > deadline_s[i] + model.tolerance_s:
            if model.ghosts:
                register(keys, ghosts_s, i, finish_s[at])
        elif not model.feedback:
            logged = world.progress[LOGGED]
            world.log[logged] = i
            world.dispatch_s[logged] = now_s + model.lag_s
            world.progress[LOGGED] = logged + 1


@allocating
def schedule(
    memory: Memory, model: Model, ids: I64, now_s: float, remember: bool
) -> F64:
    """Predicted finish (b,) of `ids`, to be dispatched in that order after the lag.

    With `remember`, a world without feedback takes what is kept into its log, and what
    will be dropped keeps its reservations if the model has stale ones.
    """
    finish_s = np.empty(len(ids))
    schedule_into(memory, model, ids, now_s, remember, finish_s)
    return finish_s


@inner
def on_time_p(finish_s: float, deadline_s: float, now_s: float, spread: float) -> float:
    """P(finish <= deadline) where the time left is normal with this relative spread.

    A spread of 0 trusts the forecast: the probability is 0 or 1.
    """
    slack_s, scale_s = deadline_s - finish_s, spread * (finish_s - now_s)
    if scale_s > 0:
        return 0.5 * (1 + erf(slack_s / scale_s / sqrt(2)))
    return 1.0 if slack_s >= 0 else 0.0


@allocating
def probability_on_time(
    finish_s: F64, deadline_s: F64, now_s: float, spread: float
) -> F64:
    """The same of all (b,)."""
    on_time = np.empty(len(finish_s))
    for at in range(len(finish_s)):
        on_time[at] = on_time_p(finish_s[at], deadline_s[at], now_s, spread)
    return on_time


class _Lookahead:
    """A look-ahead of any model. `deadline_s` (n,) may be filled as deadlines come."""

    def __init__(
        self, keys: KeySets, estimated_s: F64, deadline_s: F64, model: Model,
        world: State, control: F64 | None = None, group: I64 | None = None,
    ) -> None:  # fmt: skip
        # Some models need less of what is asked for here; what they need not is empty.
        simulated, n, k = model.cpu or model.feedback, len(keys), keys.n_keys
        learns = control is not None
        if group is None:
            group = np.zeros(n if learns else 0, np.int64)
        self.model = model
        self.memory = Memory(
            keys=(
                np.array(keys.offsets),
                np.array(keys.keys),
                np.array(keys.exclusive),
            ),
            estimated_s=np.array(estimated_s, np.float64),
            deadline_s=deadline_s,
            world=world,
            scratch=idle_state(keys if model.cpu else NO_KEYS, len(world.running)),
            ends_s=(np.full(k, -np.inf), np.full(k, -np.inf)),
            ghosts_s=(np.full(k, -np.inf), np.full(k, -np.inf)),
            pending=np.empty(n if simulated else 0, np.int64),
            counts=np.zeros(3, np.int64),
            control=np.array(control) if learns else np.zeros(REMEMBERED),
            group=np.array(group, np.int64),
            online=initial_calibration(
                np.array(estimated_s if learns else [], np.float64), model.spread
            ),
            uncommitted=nobody(keys if learns else NO_KEYS),
            decided=Decided(
                order=np.empty(n, np.int64),
                dropped=np.empty(n, np.int64),
                held=np.empty(n, np.int64),
                rank=np.empty(n, np.int64),
                key=np.empty(n),
                service_s=np.empty(n),
                finish_s=np.empty(n),
                core_s=np.empty(len(world.running)),
            ),
        )

    def forecast(self, ids: I64, now_s: float) -> Forecast:
        """Forecast `ids` (b,), to be dispatched in that order, and remember them."""
        return self._forecast(ids, now_s, True)

    def peek(self, ids: I64, now_s: float) -> Forecast:
        """The same, but nothing is remembered."""
        return self._forecast(ids, now_s, False)

    def _forecast(self, ids: I64, now_s: float, remember: bool) -> Forecast:
        memory = self.memory
        finish_s = schedule(memory, self.model, ids, now_s, remember)
        deadline_s = memory.deadline_s[ids]
        return Forecast(
            service_s=memory.estimated_s[ids],
            finish_s=finish_s,
            p_on_time=probability_on_time(
                finish_s, deadline_s, now_s, self.model.spread
            ),
            in_flight=int(memory.counts[PENDING]),
        )


class OpenLoop(_Lookahead):
    """A look-ahead without feedback: what it has kept ends when it was predicted to.

    Without `cores` every transaction is taken to have one of its own. With `ghosts`,
    as in the thesis, what is dropped stays registered like the rest; without, what is
    forecast to end after its deadline + `tolerance_s` is taken to be dropped.
    """

    def __init__(
        self, keys: KeySets, estimated_s: F64, deadline_s: F64, spread: float, *,
        lag_s: float = 0.0, tolerance_s: float = np.inf, cores: int | None = None,
        ghosts: bool = True,
    ) -> None:  # fmt: skip
        cpu = cores is not None
        world = idle_state(keys if cpu else NO_KEYS, cores or 1)
        model = Model(False, cpu, ghosts, lag_s, tolerance_s, float(spread))
        super().__init__(keys, estimated_s, deadline_s, model, world)


class Feedback(_Lookahead):
    """A look-ahead rebuilt at every decision from what is observed in `state`.

    Observed are the log, starts and commits; never a service time (`State` says what
    must be filled). Only what is in the log and has not committed counts, and it is
    simulated forward as the kernel would run it: a forecast with exact estimates is
    exact for what follows the log, if nothing comes later. In the batch, a transaction
    delays the others if it is itself forecast to end by its deadline + `tolerance_s`:
    infinity counts all, minus infinity none, which forecasts each as if it were
    released next. Without `cpu` the cores are left out, with `ghosts` what is forecast
    to end later than that keeps its keys until then.

    The work of a forecast grows with what is in flight, once for each transaction of
    the batch that is taken out, and not with the length of the run. With `control`,
    what a rule starts from, it also learns while it runs, for `admission.bind_late`,
    which compares the violations of each `group` (n,).
    """

    def __init__(
        self, state: State, keys: KeySets, estimated_s: F64, deadline_s: F64,
        spread: float, lag_s: float, tolerance_s: float, *, cpu: bool = True,
        ghosts: bool = False, control: F64 | None = None, group: I64 | None = None,
    ) -> None:  # fmt: skip
        model = Model(True, cpu, ghosts, lag_s, tolerance_s, float(spread))
        super().__init__(keys, estimated_s, deadline_s, model, state, control, group)
