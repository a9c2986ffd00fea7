"""Schedules with few violations for a known future, and false drops.

Policies decide on what they see. The references of this module know every arrival and
every service time, and keep all other constraints: locks, cores and releases. What they
reach lies above the optimum as `bounds` lies below it, so that the two enclose it.

A schedule is a log and the time at which each entry is dispatched. Locks are booked in
log order and held until the commit. With a known future, a transaction is dispatched
when its locks and a core are free. Start times are therefore free, a log sorted by them
never waits, and a lock is held only from start to commit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from thesis_lib.common.compiled import njit
from thesis_lib.sequencer.core.events import LOGGED, advance, idle_state
from thesis_lib.sequencer.core.locks import NONE, forget, free_at, register
from thesis_lib.sequencer.core.trace import F64, I64, Bool, History, Trace
from thesis_lib.sequencer.optimum.bounds import kise_ibaraki_mine
from thesis_lib.sequencer.policies.lookahead import Feedback
from thesis_lib.sequencer.simulator.simulator import replay

EARLY = -np.inf  # a start before everything
FAR = 300  # entries of the log behind a window that a move may disturb
SWEEPS = 20
QUEUES = 0.3  # share of moves in which none overtakes a waiter for a lock

SHARED, EXCLUSIVE = 1, 2


class Jobs(NamedTuple):
    """The truth about n transactions."""

    locks: tuple[I64, I64, Bool]  # the columns of KeySets
    arrival_s: F64  # (n,)
    service_s: F64  # (n,)
    deadline_s: F64  # (n,)


class Locks(NamedTuple):
    """The time until which each key is held, minus infinity if it never was.

    `claims` says who waits for it in front: nobody, some that share it, or one that
    does not.
    """

    ends_s: tuple[F64, F64]  # (k,) of those that lock it exclusively, and that share it
    claims: I64  # (k,) 0, SHARED or EXCLUSIVE


@njit(cache=True)
def _claimed(jobs, locks, i):
    """Return whether an earlier transaction waits for a conflicting lock."""
    offsets, keys, exclusive = jobs.locks
    for request in range(offsets[i], offsets[i + 1]):
        claim = locks.claims[keys[request]]
        if claim == EXCLUSIVE or (claim == SHARED and exclusive[request]):
            return True
    return False


@njit(cache=True)
def _claim(jobs, locks, i, claims):
    """Wait in front for the keys of i, or with `claims` false give them back."""
    offsets, keys, exclusive = jobs.locks
    for request in range(offsets[i], offsets[i + 1]):
        key = keys[request]
        claim = EXCLUSIVE if exclusive[request] else SHARED
        locks.claims[key] = max(locks.claims[key], claim) if claims else 0


@njit(cache=True)
def _list_schedule(
    jobs, locks, core_s, running, ids, rank, queues, from_s, until_s, order
):
    """Start, whenever a core is free, the first by rank whose locks are free.

    With `queues`, who waits for a lock is not overtaken by who conflicts with it. `ids`
    rise and arrive before `until_s`; `rank` is theirs. `running` (cores,) holds
    the cores until `core_s`. Who cannot be on time any more is left out. Writes who
    starts before `until_s` to `order`, behind them who then still waits; returns how
    many there are of each.
    """
    arrival_s, service_s = jobs.arrival_s, jobs.service_s
    for core in range(len(core_s)):
        if running[core] != NONE:
            register(jobs.locks, locks.ends_s, running[core], core_s[core])
    waiting = np.empty(len(ids), np.int64)  # positions in `ids`, by rank
    waits, started, following = 0, 0, 0
    now_s = EARLY
    while True:
        # The next time at which a core is free and a transaction may be ready.
        next_s = np.inf
        if following < len(ids):
            next_s = arrival_s[ids[following]]
        if waits:
            for core in range(len(core_s)):
                if now_s < core_s[core] < next_s:
                    next_s = core_s[core]
        now_s = max(next_s, from_s)
        if now_s >= until_s:
            break
        while following < len(ids) and arrival_s[ids[following]] <= now_s:
            at = waits
            while at > 0 and rank[waiting[at - 1]] > rank[following]:
                waiting[at] = waiting[at - 1]
                at -= 1
            waiting[at] = following
            waits += 1
            following += 1
        left = 0
        for at in range(waits):
            core = np.argmin(core_s)
            if core_s[core] > now_s:
                waiting[left : left + waits - at] = waiting[at:waits]
                left += waits - at
                break
            i = ids[waiting[at]]
            if now_s + service_s[i] > jobs.deadline_s[i]:
                continue
            free = free_at(jobs.locks, locks.ends_s, i, EARLY) <= now_s
            if free and not (queues and _claimed(jobs, locks, i)):
                core_s[core] = now_s + service_s[i]
                register(jobs.locks, locks.ends_s, i, core_s[core])
                order[started] = i
                started += 1
                continue
            if queues:
                _claim(jobs, locks, i, True)
            waiting[left] = waiting[at]
            left += 1
        waits = left
        if queues:
            for at in range(waits):
                _claim(jobs, locks, ids[waiting[at]], False)
    for at in range(waits):
        order[started + at] = ids[waiting[at]]
    for core in range(len(core_s)):
        if running[core] != NONE:
            forget(jobs.locks, locks.ends_s, running[core])
    for at in range(started):
        forget(jobs.locks, locks.ends_s, order[at])
    return started, waits


@njit(cache=True)
def _in_order(
    jobs, locks, core_s, running, log, from_s, tail, least, before_s, start_s
):
    """Start the entries of a log as early as may be, none before the one in front.

    `running` (cores,) holds the cores until `core_s`; both are written. Late entries
    are left out: NaN in `start_s`, which goes by entry. Returns how many entries
    it took until the others, from number `tail` on, can start as in `before_s` (n,)
    or earlier, because what runs at such a start ran then before, and as long.
    Returns NONE as soon as more of them are late than the first `tail` entries have on
    time beyond `least`.
    """
    done, first = len(log), running.copy()
    for core in range(len(core_s)):
        if running[core] != NONE:
            register(jobs.locks, locks.ends_s, running[core], core_s[core])
    spare, seen = -least, 0
    for at in range(len(log)):
        i = log[at]
        seen = at + 1
        if at >= tail:
            if spare < 0:
                done = NONE
                break
            if from_s <= before_s[i] and _undisturbed(
                jobs, core_s, running, before_s, before_s[i]
            ):
                done = at
                break
        core = np.argmin(core_s)
        free_s = max(core_s[core], free_at(jobs.locks, locks.ends_s, i, EARLY))
        begin_s = max(from_s, jobs.arrival_s[i], free_s)
        start_s[at] = np.nan
        if begin_s + jobs.service_s[i] <= jobs.deadline_s[i]:
            start_s[at] = from_s = begin_s
            core_s[core] = begin_s + jobs.service_s[i]
            running[core] = i
            register(jobs.locks, locks.ends_s, i, core_s[core])
            if at < tail:
                spare += 1
        elif at >= tail:
            spare -= 1
    for i in log[:seen]:
        forget(jobs.locks, locks.ends_s, i)
    for i in first:
        if i != NONE:
            forget(jobs.locks, locks.ends_s, i)
    return done


@njit(cache=True)
def _undisturbed(jobs, core_s, running, before_s, at_s):
    """Return whether all that runs past `at_s` ran then before, and as long."""
    for core in range(len(core_s)):
        if core_s[core] > at_s:
            began_s = before_s[running[core]]
            until_s = began_s + jobs.service_s[running[core]]
            if not (began_s <= at_s and until_s >= core_s[core]):
                return False
    return True


@njit(cache=True)
def _position(log, logged, start_s, at_s):
    """The first entry of the log that starts at `at_s` or later."""
    low, high = 0, logged
    while low < high:
        middle = (low + high) // 2
        if start_s[log[middle]] < at_s:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _freed(jobs, start_s, from_s, until_s, reach_s):
    """Return the violated that start in a window or could; ids rise."""
    first = np.searchsorted(jobs.arrival_s, from_s - reach_s)
    last = np.searchsorted(jobs.arrival_s, until_s)
    ids = np.empty(last - first, np.int64)
    n_freed = 0
    for i in range(first, last):
        if np.isnan(start_s[i]):
            free = jobs.deadline_s[i] - jobs.service_s[i] >= from_s
        else:
            free = from_s <= start_s[i] < until_s
        if free:
            ids[n_freed] = i
            n_freed += 1
    return ids[:n_freed]


@njit(cache=True)
def _random_rank(jobs, start_s, ids, pivot, reach_s):
    """A rank for each of `ids`: by start or by deadline, blurred, the pivot early."""
    by_start = np.random.random() < 0.5
    by_length = np.random.choice(np.array([0.0, 0.0, 1.0, 4.0]))
    blur_s = reach_s * np.random.choice(np.array([0.0, 0.02, 0.1, 0.3]))
    behind_s = reach_s * np.random.choice(np.array([0.0, 0.5, 2.0]))
    rank = np.empty(len(ids))
    for at in range(len(ids)):
        i = ids[at]
        outside = np.isnan(start_s[i])
        latest_s = jobs.deadline_s[i] - jobs.service_s[i]
        rank[at] = latest_s if outside or not by_start else start_s[i]
        rank[at] += by_length * jobs.service_s[i] + blur_s * np.random.normal()
        if i == pivot:
            rank[at] -= reach_s * np.random.random()
        elif outside:
            rank[at] += behind_s
    return rank


@njit(cache=True)
def _move(jobs, locks, cores, log, logged, start_s, pivot, reach_s):
    """Try to include a violated transaction; return the new length of the log.

    Removes the transactions that start in a window around it, schedules them again by a
    random rank with all violated ones that fit, and keeps the result unless fewer are
    on time, or as many with more work.
    """
    longest_s = jobs.service_s.max()
    latest_s = jobs.deadline_s[pivot] - jobs.service_s[pivot]
    from_s = np.random.uniform(jobs.arrival_s[pivot] - reach_s / 2, latest_s)
    until_s = from_s + reach_s * np.random.uniform(0.25, 1.5)
    until_s = max(until_s, jobs.arrival_s[pivot] + longest_s)
    begin = _position(log, logged, start_s, from_s)
    end = _position(log, logged, start_s, until_s)
    core_s, running = np.full(cores, EARLY), np.full(cores, NONE)
    busy, at = 0, begin - 1
    while at >= 0 and start_s[log[at]] > from_s - longest_s:
        end_s = start_s[log[at]] + jobs.service_s[log[at]]
        if end_s > from_s:
            core_s[busy], running[busy] = end_s, log[at]
            busy += 1
        at -= 1
    ids = _freed(jobs, start_s, from_s, until_s, reach_s)
    rank = _random_rank(jobs, start_s, ids, pivot, reach_s)
    tail = log[end : min(end + FAR, logged)]
    entries = np.empty(len(ids) + len(tail), np.int64)
    window, waits = _list_schedule(
        jobs, locks, core_s.copy(), running, ids, rank, np.random.random() < QUEUES,
        from_s, until_s, entries,
    )  # fmt: skip
    for at in range(window, window + waits):
        if not np.isnan(start_s[entries[at]]):
            entries[window] = entries[at]
            window += 1
    entries[window : window + len(tail)] = tail
    entries = entries[: window + len(tail)]
    begin_s = np.empty(len(entries))
    done = _in_order(
        jobs, locks, core_s, running, entries, from_s, window, end - begin, start_s,
        begin_s,
    )  # fmt: skip
    if done == NONE or (done == len(entries) and end + len(tail) < logged):
        return logged
    end += done - window
    on_time = entries[:done][~np.isnan(begin_s[:done])]
    gained = len(on_time) - (end - begin)
    more_s = jobs.service_s[on_time].sum() - jobs.service_s[log[begin:end]].sum()
    if gained < 0 or (gained == 0 and more_s > 0):
        return logged
    start_s[log[begin:end]] = np.nan
    start_s[entries[:done]] = begin_s[:done]
    log[end + gained : logged + gained] = log[end:logged].copy()
    log[begin : end + gained] = on_time
    return logged + gained


@njit(cache=True)
def _search(jobs, locks, cores, log, logged, start_s, reach_s, sweeps, seed):
    """Move every violated transaction once a sweep; returns how many are logged then.

    `log` and `start_s` (n,), NaN for the violated, are written; `reach_s` is the
    longest objective.
    """
    np.random.seed(seed)
    for _ in range(sweeps):
        violated = np.flatnonzero(np.isnan(start_s))
        np.random.shuffle(violated)
        for pivot in violated:
            if np.isnan(start_s[pivot]):
                logged = _move(jobs, locks, cores, log, logged, start_s, pivot, reach_s)
        # What a move left undisturbed may start earlier now.
        _start_early(jobs, locks, cores, log[:logged], start_s)
    return logged


@njit(cache=True)
def _start_early(jobs, locks, cores, log, start_s):
    """Start each entry of a whole log as early as its order allows."""
    core_s, running = np.full(cores, EARLY), np.full(cores, NONE)
    begin_s, n = np.empty(len(log)), len(log)
    _in_order(jobs, locks, core_s, running, log, EARLY, n, 0, start_s, begin_s)
    start_s[log] = begin_s


def _problem(trace: Trace, slo_s: float | F64) -> tuple[Jobs, Locks]:
    """Return the true times of a trace, and its keys, never held."""
    keys = trace.keys
    jobs = Jobs(
        (keys.offsets, keys.keys, keys.exclusive), trace.arrival_s, trace.service_s,
        trace.arrival_s + slo_s,
    )  # fmt: skip
    never_s = np.full(keys.n_keys, EARLY), np.full(keys.n_keys, EARLY)
    return jobs, Locks(never_s, np.zeros(keys.n_keys, np.int64))


def search(
    trace: Trace,
    *,
    cores: int,
    slo_s: float | F64,
    begun: Sequence[History] = (),
    sweeps: int = SWEEPS,
    seed: int = 0,
) -> History:
    """A schedule with few violations, by local search; what is violated is dropped.

    It begins with the best of two schedules that start, whenever a core is free, the
    first by deadline whose locks are free, with and without what the pooled cores of
    `bounds` would give up going last; and with who is on time in each of `begun`. None
    of these has fewer violations than what is returned. `slo_s` is one objective or one
    for each transaction, (n,). The same `seed` gives the same schedule.
    """
    n = len(trace)
    jobs, locks = _problem(trace, slo_s)
    on_time = kise_ibaraki_mine(
        trace.arrival_s,
        trace.service_s / cores,
        np.maximum.accumulate(jobs.deadline_s),
    )
    logs = []
    for last in (np.zeros(n, bool), ~on_time):
        rank = np.where(last, np.inf, jobs.deadline_s)
        order = np.empty(n, np.int64)
        idle = np.full(cores, EARLY), np.full(cores, NONE)
        started, _ = _list_schedule(
            jobs, locks, *idle, np.arange(n), rank, False, EARLY, np.inf, order
        )
        logs.append(order[:started])
    for history in begun:
        in_time = np.flatnonzero(~history.violated)
        logs.append(in_time[np.argsort(history.start_s[in_time], kind="stable")])
    best = max(logs, key=len)
    log, start_s = np.empty(n, np.int64), np.full(n, np.nan)
    log[: len(best)] = best
    _start_early(jobs, locks, cores, best, start_s)
    reach_s = float((jobs.deadline_s - jobs.arrival_s).max())
    logged = _search(jobs, locks, cores, log, len(best), start_s, reach_s, sweeps, seed)
    return replay(trace, log[:logged], start_s[log[:logged]], cores=cores, slo_s=slo_s)


# --- What was dropped in vain ------------------------------------------------------
def would_be_on_time(
    trace: Trace, history: History, *, cores: int, lag_s: float = 0.0
) -> Bool:
    """(n,) whether each dropped transaction would have met its deadline if kept.

    By counterfactual replay: the log as it stood before the decision that dropped it,
    followed by this transaction, `lag_s` after that decision, and by nothing else, with
    the true service times. What keeping it would have done to others is not counted.
    False for what was not dropped. `history` is of an open loop with no other delay.
    """
    state = idle_state(trace.keys, cores)
    log = history.log
    decided_s = history.decided_s[log]
    state.log[: len(log)] = log
    state.dispatch_s[: len(log)] = decided_s + lag_s
    lookahead = Feedback(
        state, trace.keys, trace.service_s, history.deadline_s, 0.0, lag_s, -np.inf
    )
    on_time = np.zeros(len(trace), bool)
    dropped = np.flatnonzero(history.dropped)
    dropped = dropped[np.argsort(history.decided_s[dropped], kind="stable")]
    for i in dropped:
        now_s = float(history.decided_s[i])
        state.progress[LOGGED] = np.searchsorted(decided_s, now_s)
        advance(state, trace.service_s, now_s, False, 0.0)
        forecast = lookahead.peek(np.array([i]), now_s)
        on_time[i] = forecast.finish_s[0] <= history.deadline_s[i]
    return on_time
