"""The shadow schedule: when would each transaction of a batch commit?

A shadow knows estimated times on a core and declared keys, never a true service time.
It differs in three things:

- *feedback*: whether it starts from the database as observed at every decision, or from
  a world of its own in which everything ends as predicted;
- the *CPU term*: whether it simulates the cores and their one ready queue, exactly as
  the kernel does, or chains estimates along conflicts as if every transaction had a
  core of its own (the maximum of the operating-unit model);
- *ghosts*: whether a transaction that is dropped keeps its keys until its predicted
  end.

`Published` is the thesis' shadow, without the first two and with ghosts; `Mended` is
the opposite. Anything between is a parameter.
"""

from math import erf, sqrt
from typing import NamedTuple, Protocol

import numpy as np
from numba import njit

from thesis_lib.sequencer.kernel import (
    LOGGED,
    READY,
    STARTED,
    State,
    advance,
    idle_state,
)
from thesis_lib.sequencer.locktable import NONE, book
from thesis_lib.sequencer.trace import F64, I64, Bool, Forecast, KeySets

# Positions in `Memory.counts`.
PENDING, READ = range(2)


class Shadow(Protocol):
    """Forecasts a batch; what it remembers between batches is its own affair."""

    def forecast(self, ids: I64, now_s: float) -> Forecast: ...

    def peek(self, ids: I64, now_s: float) -> Forecast: ...


class Model(NamedTuple):
    """What a shadow takes into account."""

    feedback: bool
    cpu: bool
    ghosts: bool
    lag_s: float  # from a decision to the booking of its locks
    tolerance_s: float  # see `Mended`


class Memory(NamedTuple):
    """What a shadow knows, and room to compute in; empty where the model needs none."""

    offsets: I64  # the declared keys, as in KeySets
    keys: I64
    exclusive: Bool
    estimated_s: F64  # (n,) time on a core
    deadline_s: F64  # (n,)
    world: State  # what a forecast starts from
    scratch: State  # where it is simulated; idle between forecasts
    exclusive_end_s: F64  # (k,) predicted end of the last writer of each key
    shared_end_s: F64  # (k,) and of the last of its readers
    ghost_exclusive_end_s: F64  # (k,) the same of what was dropped
    ghost_shared_end_s: F64  # (k,)
    pending: I64  # (n,) log positions that had not committed when last looked at
    counts: I64  # (2,)


@njit(cache=True)
def _free_at(memory, i, at_least_s):
    """When every lock of i is predicted to be free, at the earliest `at_least_s`."""
    exclusive_end_s, shared_end_s = memory.exclusive_end_s, memory.shared_end_s
    free_s = at_least_s
    for request in range(memory.offsets[i], memory.offsets[i + 1]):
        key = memory.keys[request]
        free_s = max(free_s, exclusive_end_s[key])
        if memory.exclusive[request]:
            free_s = max(free_s, shared_end_s[key])
    return free_s


@njit(cache=True)
def _ghosts_leave_at(memory, i, at_least_s):
    """When every ghost on a key of i is predicted to have ended."""
    free_s = at_least_s
    for request in range(memory.offsets[i], memory.offsets[i + 1]):
        key = memory.keys[request]
        free_s = max(free_s, memory.ghost_exclusive_end_s[key])
        if memory.exclusive[request]:
            free_s = max(free_s, memory.ghost_shared_end_s[key])
    return free_s


@njit(cache=True)
def _register(memory, i, finish_s, exclusive_end_s, shared_end_s):
    for request in range(memory.offsets[i], memory.offsets[i + 1]):
        key = memory.keys[request]
        if memory.exclusive[request]:
            exclusive_end_s[key] = max(exclusive_end_s[key], finish_s)
        else:
            shared_end_s[key] = max(shared_end_s[key], finish_s)


@njit(cache=True)
def _forget(memory, i):
    for request in range(memory.offsets[i], memory.offsets[i + 1]):
        memory.exclusive_end_s[memory.keys[request]] = -np.inf
        memory.shared_end_s[memory.keys[request]] = -np.inf


@njit(cache=True)
def _look(memory):
    """Bring the list of log entries that have not committed up to date."""
    world, pending, counts = memory.world, memory.pending, memory.counts
    log, finish_s = world.log, world.finish_s
    kept = 0
    for at in range(counts[PENDING]):
        if np.isnan(finish_s[log[pending[at]]]):
            pending[kept] = pending[at]
            kept += 1
    for at in range(counts[READ], world.progress[LOGGED]):
        if np.isnan(finish_s[log[at]]):
            pending[kept] = at
            kept += 1
    counts[PENDING], counts[READ] = kept, world.progress[LOGGED]


# --- Chained along conflicts, without a CPU term -------------------------------


@njit(cache=True)
def _chain(memory, model, ids, now_s, finish_s):
    """Forecast `ids` in turn; register what will be kept, and the ghosts."""
    for at in range(len(ids)):
        i = ids[at]
        free_s = _free_at(memory, i, now_s + model.lag_s)
        if model.ghosts:
            free_s = _ghosts_leave_at(memory, i, free_s)
        finish_s[at] = free_s + memory.estimated_s[i]
        if finish_s[at] <= memory.deadline_s[i] + model.tolerance_s:
            _register(
                memory, i, finish_s[at], memory.exclusive_end_s, memory.shared_end_s
            )
        elif model.ghosts:
            _register(
                memory, i, finish_s[at],
                memory.ghost_exclusive_end_s, memory.ghost_shared_end_s,
            )  # fmt: skip


@njit(cache=True)
def _chain_and_undo(memory, model, ids, now_s, finish_s):
    """The same, and leave every key as it was."""
    before_s = np.empty((4, _requests(memory, ids)))
    _copy_ends(memory, ids, before_s, True)
    _chain(memory, model, ids, now_s, finish_s)
    _copy_ends(memory, ids, before_s, False)


@njit(cache=True)
def _requests(memory, ids):
    total = 0
    for i in ids:
        total += memory.offsets[i + 1] - memory.offsets[i]
    return total


@njit(cache=True)
def _copy_ends(memory, ids, before_s, out):
    """Copy the ends on the keys of `ids` out to `before_s` (4, requests), or back."""
    at = 0
    for i in ids:
        for request in range(memory.offsets[i], memory.offsets[i + 1]):
            key = memory.keys[request]
            if out:
                before_s[0, at] = memory.exclusive_end_s[key]
                before_s[1, at] = memory.shared_end_s[key]
                before_s[2, at] = memory.ghost_exclusive_end_s[key]
                before_s[3, at] = memory.ghost_shared_end_s[key]
            else:
                memory.exclusive_end_s[key] = before_s[0, at]
                memory.shared_end_s[key] = before_s[1, at]
                memory.ghost_exclusive_end_s[key] = before_s[2, at]
                memory.ghost_shared_end_s[key] = before_s[3, at]
            at += 1


@njit(cache=True)
def _chain_observed(memory, now_s):
    """Register what runs and what is in the log, as observed."""
    world, estimated_s = memory.world, memory.estimated_s
    _look(memory)
    for at in range(memory.counts[PENDING]):
        entry = memory.pending[at]
        i = world.log[entry]
        if np.isnan(world.start_s[i]):
            free_s = _free_at(memory, i, max(now_s, world.dispatch_s[entry]))
            end_s = free_s + estimated_s[i]
        else:
            end_s = max(now_s, world.start_s[i] + estimated_s[i])
        _register(memory, i, end_s, memory.exclusive_end_s, memory.shared_end_s)


# --- Simulated forward, with the cores ------------------------------------------


@njit(cache=True)
def _restore(memory, now_s):
    """Copy into the scratch database what has not committed, at `now_s`.

    A running transaction ends one estimate after its start, now if that is past.
    """
    world, scratch, estimated_s = memory.world, memory.scratch, memory.estimated_s
    table, queue, granted_s = scratch.table, scratch.queue, scratch.granted_s
    progress = scratch.progress
    progress[:] = 0
    started = 0
    for core in range(len(world.running)):
        i = world.running[core]
        scratch.running[core] = i
        scratch.ends_s[core] = np.inf
        scratch.turn[core] = world.turn[core]
        if i != NONE:
            scratch.start_s[i] = world.start_s[i]
            scratch.ends_s[core] = max(now_s, world.start_s[i] + estimated_s[i])
            granted_s[i] = now_s
            queue[started] = i
            started += 1
    ready = started
    for at in range(world.progress[STARTED], world.progress[READY]):
        i = world.queue[at]
        granted_s[i] = now_s
        queue[ready] = i
        ready += 1
    logged = 0
    for at in range(memory.counts[PENDING]):
        entry = memory.pending[at]
        i = world.log[entry]
        if world.dispatch_s[entry] > now_s and np.isnan(world.start_s[i]):
            scratch.log[logged] = i
            scratch.dispatch_s[logged] = world.dispatch_s[entry]
            logged += 1
        elif book(table, i) and np.isnan(granted_s[i]):
            granted_s[i] = now_s
            queue[ready] = i
            ready += 1
    progress[LOGGED], progress[READY], progress[STARTED] = logged, ready, started
    return started


@njit(cache=True)
def _clear(memory, ids):
    """Leave the scratch database idle, as it was found."""
    scratch, world = memory.scratch, memory.world
    for at in range(memory.counts[PENDING]):
        i = world.log[memory.pending[at]]
        scratch.granted_s[i] = np.nan
        scratch.start_s[i] = np.nan
        scratch.finish_s[i] = np.nan
    for i in ids:
        scratch.granted_s[i] = np.nan
        scratch.start_s[i] = np.nan
        scratch.finish_s[i] = np.nan


@njit(cache=True)
def _run_forward(memory, ids, now_s, lag_s, finish_s):
    """Finish times if the log is followed by `ids` in turn and then by nothing.

    An id of NONE is left out.
    """
    scratch = memory.scratch
    running = _restore(memory, now_s)
    logged = scratch.progress[LOGGED]
    for i in ids:
        if i != NONE:
            scratch.log[logged] = i
            scratch.dispatch_s[logged] = now_s + lag_s
            logged += 1
    scratch.progress[LOGGED] = logged
    _fill(scratch, memory.estimated_s, now_s)
    advance(scratch, memory.estimated_s, np.inf, False)
    for at in range(len(ids)):
        if ids[at] != NONE:
            finish_s[at] = scratch.finish_s[ids[at]]
    return running


@njit(cache=True)
def _fill(state, busy_s, now_s):
    """Start what waits for a core that idles; observed databases may show both."""
    progress = state.progress
    core = 0
    while progress[STARTED] < progress[READY] and core < len(state.running):
        if state.running[core] == NONE:
            i = state.queue[progress[STARTED]]
            state.running[core] = i
            state.start_s[i] = now_s
            state.ends_s[core] = now_s + busy_s[i]
            state.turn[core] = progress[STARTED]
            progress[STARTED] += 1
        core += 1


@njit(cache=True)
def _together(memory, model, ids, now_s, finish_s):
    """Forecast `ids` as the part of the log that is kept of them.

    All are taken to be kept; while one would end too late for that, the first such is
    taken out and the others are forecast without it.
    """
    kept = ids.copy()
    while True:
        _run_forward(memory, kept, now_s, model.lag_s, finish_s)
        _clear(memory, ids)
        late = NONE
        for at in range(len(ids)):
            i = kept[at]
            if i != NONE and finish_s[at] > memory.deadline_s[i] + model.tolerance_s:
                late = at
                break
        if late == NONE:
            return
        kept[late] = NONE


@njit(cache=True)
def _alone(memory, model, ids, now_s, finish_s):
    """Forecast each of `ids` as if it were released next, alone.

    It would hold its locks after its last predecessor, and start when a core is free
    and everything that held its locks before has started.
    """
    scratch, world, estimated_s = memory.scratch, memory.world, memory.estimated_s
    cores = len(world.running)
    running = _run_forward(memory, ids[:0], now_s, model.lag_s, finish_s)
    free_s = np.full(cores, now_s)
    for at in range(running):
        free_s[at] = scratch.finish_s[scratch.queue[at]]
    # After as many of the queue as came first, the earliest time of a free core.
    queued = scratch.progress[READY] - running
    core_s = np.empty(queued + 1)
    granted_s = np.empty(queued)
    for at in range(queued + 1):
        first = 0
        for core in range(1, cores):
            if free_s[core] < free_s[first]:
                first = core
        core_s[at] = free_s[first]
        if at < queued:
            i = scratch.queue[running + at]
            granted_s[at] = scratch.granted_s[i]
            free_s[first] = scratch.finish_s[i]
    for at in range(memory.counts[PENDING]):
        i = world.log[memory.pending[at]]
        end_s = scratch.finish_s[i]
        _register(memory, i, end_s, memory.exclusive_end_s, memory.shared_end_s)
    for at in range(len(ids)):
        i = ids[at]
        free = _free_at(memory, i, now_s + model.lag_s)
        before = 0
        while before < queued and granted_s[before] < free:
            before += 1
        behind = before
        while behind < queued and granted_s[behind] <= free:
            behind += 1
        start_s = max(free, core_s[before])
        # Of what one commit grants, who waits for a core first is a matter of ties.
        tied = free > now_s + model.lag_s and start_s != max(free, core_s[behind])
        if not tied:
            start_s = max(free, core_s[behind])
        finish_s[at] = np.nan if tied else start_s + estimated_s[i]
    _clear(memory, ids)
    for at in range(memory.counts[PENDING]):
        _forget(memory, world.log[memory.pending[at]])
    for at in range(len(ids)):
        if np.isnan(finish_s[at]):
            one = ids[at : at + 1]
            _run_forward(memory, one, now_s, model.lag_s, finish_s[at : at + 1])
            _clear(memory, one)


# --- Both ------------------------------------------------------------------------


@njit(cache=True)
def schedule(
    memory: Memory, model: Model, ids: I64, now_s: float, remember: bool
) -> F64:
    """Predicted finish (b,) of `ids`, to be dispatched in that order after the lag.

    With `remember`, a world without feedback takes what is kept into its log, and what
    will be dropped becomes a ghost if the model has ghosts.
    """
    finish_s = np.empty(len(ids))
    if not model.cpu:
        if model.feedback:
            _chain_observed(memory, now_s)
        if remember:
            _chain(memory, model, ids, now_s, finish_s)
        else:
            _chain_and_undo(memory, model, ids, now_s, finish_s)
        if model.feedback:
            for at in range(memory.counts[PENDING]):
                _forget(memory, memory.world.log[memory.pending[at]])
            for i in ids:
                _forget(memory, i)
        return finish_s
    if not model.feedback:
        advance(memory.world, memory.estimated_s, now_s, False)
    _look(memory)
    if model.tolerance_s == -np.inf:
        _alone(memory, model, ids, now_s, finish_s)
    else:
        _together(memory, model, ids, now_s, finish_s)
    for at in range(len(ids)):
        i = ids[at]
        if model.ghosts:
            free_s = _ghosts_leave_at(memory, i, -np.inf)
            finish_s[at] = max(finish_s[at], free_s + memory.estimated_s[i])
        if not remember:
            continue
        if finish_s[at] > memory.deadline_s[i] + model.tolerance_s:
            if model.ghosts:
                _register(
                    memory, i, finish_s[at],
                    memory.ghost_exclusive_end_s, memory.ghost_shared_end_s,
                )  # fmt: skip
        elif not model.feedback:
            logged = memory.world.progress[LOGGED]
            memory.world.log[logged] = i
            memory.world.dispatch_s[logged] = now_s + model.lag_s
            memory.world.progress[LOGGED] = logged + 1
    return finish_s


@njit(cache=True)
def probability_on_time(
    finish_s: F64, deadline_s: F64, now_s: float, spread: float
) -> F64:
    """P(finish <= deadline) where the time left is normal with this relative spread.

    All (b,). A spread of 0 trusts the forecast: the probability is 0 or 1.
    """
    on_time = np.empty(len(finish_s))
    for at in range(len(finish_s)):
        slack_s = deadline_s[at] - finish_s[at]
        scale_s = spread * (finish_s[at] - now_s)
        if scale_s > 0:
            on_time[at] = 0.5 * (1 + erf(slack_s / scale_s / sqrt(2)))
        else:
            on_time[at] = 1.0 if slack_s >= 0 else 0.0
    return on_time


class _Schedule:
    """A shadow of any model. `deadline_s` (n,) may be filled as deadlines come."""

    def __init__(
        self, keys: KeySets, estimated_s: F64, deadline_s: F64, spread: float,
        model: Model, world: State,
    ) -> None:  # fmt: skip
        # Some models need less of what is asked for here; what they need not is empty.
        none = KeySets(np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0, bool))
        simulated = model.cpu or model.feedback
        self.spread, self.model = spread, model
        self.memory = Memory(
            offsets=np.array(keys.offsets),
            keys=np.array(keys.keys),
            exclusive=np.array(keys.exclusive),
            estimated_s=np.array(estimated_s, np.float64),
            deadline_s=deadline_s,
            world=world,
            scratch=idle_state(keys if model.cpu else none, len(world.running)),
            exclusive_end_s=np.full(keys.n_keys, -np.inf),
            shared_end_s=np.full(keys.n_keys, -np.inf),
            ghost_exclusive_end_s=np.full(keys.n_keys, -np.inf),
            ghost_shared_end_s=np.full(keys.n_keys, -np.inf),
            pending=np.empty(len(keys) if simulated else 0, np.int64),
            counts=np.zeros(2, np.int64),
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
            p_on_time=probability_on_time(finish_s, deadline_s, now_s, self.spread),
        )


class Published(_Schedule):
    """A shadow without feedback: whatever it has kept ends when it was predicted to.

    Without `cores` every transaction is taken to have one of its own. With `ghosts`,
    as in the thesis, what is dropped stays registered like the rest; without, what is
    forecast to end after its deadline + `tolerance_s` is taken to be dropped.
    """

    def __init__(
        self, keys: KeySets, estimated_s: F64, deadline_s: F64, spread: float, *,
        lag_s: float = 0.0, tolerance_s: float = np.inf, cores: int | None = None,
        ghosts: bool = True,
    ) -> None:  # fmt: skip
        none = KeySets(np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0, bool))
        world = idle_state(none if cores is None else keys, cores or 1)
        model = Model(False, cores is not None, ghosts, lag_s, tolerance_s)
        super().__init__(keys, estimated_s, deadline_s, spread, model, world)


class Mended(_Schedule):
    """A shadow made anew at every decision from what is observed in `state`.

    Observed are the log, starts and commits; never a service time (`State` says what
    must be filled). Only what is in the log and has not committed counts, and it is
    simulated forward as the kernel would run it: a forecast with exact estimates is
    exact for what follows the log, if nothing comes later. In the batch, a transaction
    delays the others if it is itself forecast to end by its deadline + `tolerance_s`:
    infinity counts all, minus infinity none, which forecasts each as if it were
    released next. Without `cpu` the cores are left out, with `ghosts` what is forecast
    to end later than that keeps its keys until then.

    The work of a forecast grows with what is in flight, once for each transaction of
    the batch that is taken out, and not with the length of the run.
    """

    def __init__(
        self, state: State, keys: KeySets, estimated_s: F64, deadline_s: F64,
        spread: float, lag_s: float, tolerance_s: float, *, cpu: bool = True,
        ghosts: bool = False,
    ) -> None:  # fmt: skip
        model = Model(True, cpu, ghosts, lag_s, tolerance_s)
        super().__init__(keys, estimated_s, deadline_s, spread, model, state)
