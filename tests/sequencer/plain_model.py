"""Clients, sequencer and database in plain Python, to compare the compiled ones with.

One heap of (time, rank, sequence, id), and dictionaries of deques for the locks. Slow,
and written to be read.
"""

import copy
import heapq
from collections import deque
from math import ceil, exp, floor, inf, log

import numpy as np
from key_sets import requests
from plain_rules import decide_plainly

from thesis_lib.sequencer.core.trace import Decision, Forecast
from thesis_lib.sequencer.policies.lookahead import probability_on_time

# At equal times, in this order.
COMMIT, RELEASE, DISPATCH, ARRIVAL, TAKE, DECIDE = range(6)


def key_sets(keys):
    """A list of (key, exclusive) for each transaction."""
    return [[*requests(keys, i).items()] for i in range(len(keys))]


COLUMNS = (
    "arrival_s", "deadline_s", "decided_s", "granted_s", "start_s", "finish_s",
    "dropped", "log",
)  # fmt: skip


def columns(history):
    """What a history and a plain model have in common."""
    return {name: getattr(history, name) for name in COLUMNS}


def assert_equal(history, expected, case=""):
    """The columns `expected`, bit for bit."""
    for name, values in expected.items():
        np.testing.assert_array_equal(
            getattr(history, name), values, err_msg=f"{case} {name}"
        )


class Locks:
    """Locks, each granted in the order in which it was asked for."""

    def __init__(self):
        self.waiting, self.holders, self.missing = {}, {}, {}

    def book(self, owner, locks):
        """Ask for these locks at once; return the owners that now have all theirs."""
        self.missing[owner] = len(locks)
        complete = [] if locks else [owner]
        for key, alone in locks:
            self.waiting.setdefault(key, deque()).append((owner, alone))
            complete += self._grant(key)
        return complete

    def release(self, owner, locks):
        """Release these locks; return the owners that now have all theirs."""
        complete = []
        for key, alone in locks:
            self.holders[key].remove((owner, alone))
            complete += self._grant(key)
        return complete

    def _grant(self, key):
        queue, holders = self.waiting[key], self.holders.setdefault(key, [])
        complete = []
        while queue and not (holders and (queue[0][1] or holders[0][1])):
            holders.append(queue.popleft())
            owner, _ = holders[-1]
            self.missing[owner] -= 1
            if self.missing[owner] == 0:
                complete.append(owner)
        return complete

    def copied(self):
        twin = Locks()
        twin.waiting = {key: deque(queue) for key, queue in self.waiting.items()}
        twin.holders = {key: [*holders] for key, holders in self.holders.items()}
        twin.missing = dict(self.missing)
        return twin


class Database:
    """Lock table, ready queue and cores; commits and dispatches in one heap."""

    def __init__(self, sets, busy_s, cores, release_s=0.0):
        self.sets, self.busy_s, self.idle = sets, busy_s, cores
        self.release_s = release_s
        self.locks, self.ready, self.started = Locks(), deque(), 0
        self.granted_s, self.start_s, self.finish_s = {}, {}, {}
        self.heap, self.log, self.dispatch_s = [], [], {}

    def append(self, i, at_s):
        heapq.heappush(self.heap, (at_s, DISPATCH, len(self.log), i))
        self.log.append(i)
        self.dispatch_s[i] = at_s

    def step(self):
        """The next event; returns its time and kind."""
        now, kind, _, i = heapq.heappop(self.heap)
        if kind == COMMIT:
            self.finish_s[i] = now
            self.idle += 1
            if self.release_s:
                at_s = now + self.release_s
                heapq.heappush(self.heap, (at_s, RELEASE, len(self.finish_s), i))
            else:
                self._release(i, now)
        elif kind == RELEASE:
            self._release(i, now)
        else:
            self._queue(self.locks.book(i, self.sets[i]), now)
        self._start(now)
        return now, kind

    def _release(self, i, now):
        self._queue(self.locks.release(i, self.sets[i]), now)

    def _queue(self, granted, now):
        for i in granted:
            self.granted_s[i] = now
            self.ready.append(i)

    def _start(self, now):
        while self.ready and self.idle:
            i = self.ready.popleft()
            self.idle -= 1
            self.start_s[i] = now
            end = now + self.busy_s[i]
            heapq.heappush(self.heap, (end, COMMIT, self.started, i))
            self.started += 1

    def in_flight(self):
        return len(self.log) - len(self.finish_s)

    def run(self, until=np.inf):
        while self.heap and self.heap[0][0] <= until:
            self.step()

    def as_estimated(self, estimated_s, now):
        """A copy in which nothing takes longer or shorter than estimated from now.

        What has committed has released its locks; whom that frees waits in log order.
        """
        twin = copy.copy(self)
        twin.busy_s, twin.release_s = estimated_s, 0.0
        twin.locks, twin.log = self.locks.copied(), [*self.log]
        twin.ready = deque(self.ready)
        for name in ("granted_s", "start_s", "finish_s", "dispatch_s"):
            setattr(twin, name, dict(getattr(self, name)))
        for _, kind, _, i in sorted(self.heap):
            if kind == RELEASE:
                twin._release(i, now)
        known = len(self.ready)
        freed = sorted(list(twin.ready)[known:], key=twin.log.index)
        twin.ready = deque([*self.ready, *freed])
        twin.heap = [
            (max(now, self.start_s[i] + estimated_s[i]), kind, order, i)
            if kind == COMMIT
            else (at, kind, order, i)
            for at, kind, order, i in self.heap
            if kind != RELEASE
        ]
        heapq.heapify(twin.heap)
        twin._start(now)
        return twin


class PlainShadow:
    """Forecasts by running a copy of the database; no ghosts."""

    def __init__(self, database, estimated_s, deadline_s, lag_s, tolerance_s, spread):
        self.database, self.estimated_s = database, estimated_s
        self.deadline_s, self.lag_s = deadline_s, lag_s
        self.tolerance_s, self.spread = tolerance_s, spread

    def _finish_s(self, ids, now):
        twin = self.database.as_estimated(self.estimated_s, now)
        pending = [at for at, kind, _, _ in twin.heap if kind == DISPATCH]
        for i in ids:
            twin.append(i, max([now + self.lag_s, *pending]))
        twin.run()
        return {i: twin.finish_s[i] for i in ids}

    def latest_s(self, i):
        return self.deadline_s[i] + self.tolerance_s

    def peek(self, ids, now):
        ids, finish_s = [int(i) for i in ids], {}
        # Each alone, or together: then the first that is late goes, one at a time.
        for kept in [[i] for i in ids] if self.tolerance_s == -inf else [ids]:
            while kept:
                finish_s |= self._finish_s(kept, now)
                late = [i for i in kept if finish_s[i] > self.latest_s(i)]
                kept = [i for i in kept if i != late[0]] if late else []
        finish = np.array([finish_s[i] for i in ids])
        return Forecast(
            service_s=np.array([self.estimated_s[i] for i in ids]),
            finish_s=finish,
            p_on_time=probability_on_time(
                finish, self.deadline_s[ids], now, self.spread
            ),
            in_flight=self.database.in_flight(),
        )

    forecast = peek


def note(ends, locks, end_s, later=max, never=-inf):
    """Remember that these locks are held until `end_s`: {key: [writers', readers']}."""
    for key, alone in locks:
        held = ends.setdefault(key, [never, never])
        held[not alone] = later(held[not alone], end_s)


def free_at(ends, locks, at_s, later=max, never=-inf):
    """When those that these locks wait for have ended; `at_s` if they have."""
    for key, alone in locks:
        writer, reader = ends.get(key, (never, never))
        at_s = later(at_s, writer, reader if alone else never)
    return at_s


def decided(*parts):
    """A decision of lists of ids: those in order, dropped and held."""
    return Decision(*(np.array(ids, np.int64) for ids in parts))


class PlainChain:
    """The thesis' look-ahead: predicted ends chained along keys, never forgotten."""

    def __init__(self, sets, estimated_s, deadline_s, lag_s):
        self.sets, self.estimated_s, self.deadline_s = sets, estimated_s, deadline_s
        self.lag_s, self.ends = lag_s, {}

    def forecast(self, ids, now):
        finish_s = []
        for i in ids:
            start_s = free_at(self.ends, self.sets[i], now + self.lag_s)
            finish_s.append(start_s + self.estimated_s[i])
            note(self.ends, self.sets[i], finish_s[-1])
        finish = np.array(finish_s)
        on_time = (finish <= self.deadline_s[ids]).astype(float)
        return Forecast(self.estimated_s[ids], finish, on_time)


class PlainLate:
    """The rule of `bid-price`, over a copy of the database; spread 0."""

    def __init__(self, database, estimated_s, deadline_s, lag_s, policy, groups):
        self.database, self.sets = database, database.sets
        self.deadline_s = deadline_s
        self.given = np.log(np.maximum(estimated_s, 1e-9)).tolist()
        self.lag_s, self.terms, self.groups = lag_s, policy.code.terms, groups
        if len(policy.control) == 4:
            self.groups = np.zeros_like(groups)  # one for all
        self.price_s = self.highest_s = policy.control[0]
        self.learned = set()
        self.expected_s = list(estimated_s)
        kinds = (len(policy.control) - 2) // 2
        self.shares, self.weights = [0.0] * kinds, [0.0] * kinds
        self.n, self.mx, self.my, self.xx, self.xy, self.slope = 0, 0, 0, 0.25, 0.25, 1
        self.residuals = [1.0 if at == 63 else 0.0 for at in range(128)]
        self.typical_y, self.asked_s, self.probes = 0.0, {}, set()
        self.fits, self.doubts = {}, {}  # by octave

    def _calibrated(self, i):
        y = self.my + self.slope * (self.given[i] - self.mx)
        if i in self.probes:
            return exp(min(y, self.typical_y)) if self.n else 0.0
        return exp(y)

    def _octave(self, i):
        return min(max(floor(self.given[i] / log(2)) + 32, 0), 63)

    def _refuted(self, i, least_p):
        return self.fits.get(self._octave(i), 0.25) >= least_p

    def _doubt(self, i, least_p):
        octave = self._octave(i)
        doubts = self.doubts.get(octave, 0)
        self.doubts[octave] = doubts + 1
        if self._refuted(i, least_p) or doubts % self.terms.exploration_period == 0:
            self.probes.add(i)

    def _learn(self, i):
        x = self.given[i]
        took = self.database.finish_s[i] - self.database.start_s[i]
        y = log(max(took, 1e-9))
        if self.n == 0:
            self.mx = self.my = x
        dx, dy = x - self.mx, y - self.my
        error, rate = dy - self.slope * dx, 1 / min(self.terms.window, 50.0 + self.n)
        self.n += 1
        self.mx, self.my = self.mx + rate * dx, self.my + rate * dy
        self.xx = (1 - rate) * (self.xx + rate * dx * dx)
        self.xy = (1 - rate) * (self.xy + rate * dx * dy)
        self.slope = min(max(self.xy / max(self.xx, 1e-9), 0.0), 1.5)
        at = min(max(ceil(error * 32 - 1e-9) + 63, 0), 127)
        self.residuals = [
            share * (1 - rate) + rate * (place == at)
            for place, share in enumerate(self.residuals)
        ]
        self.typical_y += (y - self.typical_y) / min(self.terms.window, self.n)
        if i in self.probes:
            octave, left_s = self._octave(i), self.deadline_s[i] - self.asked_s[i]
            share = self.fits.get(octave, 0.25)
            self.fits[octave] = share + 0.1 * ((took <= left_s) - share)
            if took <= left_s:
                self.doubts[octave] = 0  # the next is a probe as well

    def _allowance(self, p):
        share = 0.0
        for place, part in enumerate(self.residuals):
            share += part
            if share >= p:
                return exp((place - 63) / 32)
        return exp(2.0)

    def _settle(self, group, violated):
        self.shares[group] += 0.002 * (violated - self.shares[group])
        if self.terms.gap < inf:
            excess = self.shares[group] - min(self.shares) - self.terms.gap
            weight = self.weights[group] + self.terms.step * excess
            self.weights[group] = min(max(weight, 0.0), log(100.0))

    def _outlook(self, now):
        """When each core, and each key for its writers and readers, will be free."""
        database, ends = self.database, {}
        dispatch_s = {i: at for at, kind, _, i in database.heap if kind == DISPATCH}
        pending = [i for i in database.log if i not in database.finish_s]
        cores = [now] * database.idle
        for i in pending:
            if i in database.start_s:
                end_s = max(now, database.start_s[i] + self._calibrated(i))
                cores.append(end_s)
                note(ends, self.sets[i], end_s)
        cores.sort()
        for i in pending:
            if i not in database.start_s:
                free_s = free_at(ends, self.sets[i], dispatch_s.get(i, now))
                end_s = max(now, max(free_s, cores[0]) + self._calibrated(i))
                heapq.heapreplace(cores, end_s)
                note(ends, self.sets[i], end_s)
        return cores, ends

    def _none_ends_by(self, time_s):
        """By what was expected when it was last looked at."""
        return all(
            start_s + self.expected_s[i] > time_s
            for i, start_s in self.database.start_s.items()
            if i not in self.database.finish_s
        )

    def _observe(self):
        ended = self.database.finish_s
        fresh = [i for i in self.database.log if i in ended and i not in self.learned]
        self.learned.update(fresh)
        for i in fresh:
            if self.terms.window > 0:
                self._learn(i)
        for i in fresh:
            self._settle(self.groups[i], ended[i] > self.deadline_s[i])

    def decide(self, ids, now):
        terms, ids = self.terms, ids.tolist()
        ahead_s = min(self.lag_s, terms.max_wait * exp(self.my))
        for i in ids:
            self.asked_s.setdefault(i, now)
        if not self.database.idle and self._none_ends_by(now + self.lag_s + ahead_s):
            return decided([], [], ids)
        self._observe()
        pending = [at for at, kind, _, _ in self.database.heap if kind == DISPATCH]
        due_s = max([now + self.lag_s, *pending])
        cores, ends = self._outlook(now)
        database = self.database
        for i in [*ids, *(i for i in database.log if i not in database.finish_s)]:
            self.expected_s[i] = self._calibrated(i)
        service_s = self.expected_s
        least_p = terms.least_p
        sure = self._allowance(terms.confidence_threshold)
        factor = self._allowance(least_p)
        price_s, above, unsure, kept, refused = self.price_s, {}, {}, [], []
        for i in ids:
            needs_s = factor * service_s[i]
            doubted = self.asked_s[i] + needs_s > self.deadline_s[i]
            if terms.window > 0 and doubted and i not in self.probes:
                self._doubt(i, least_p)
                service_s[i] = self._calibrated(i)
            above[i] = service_s[i] > price_s * exp(self.weights[self.groups[i]])
            if i in self.probes:
                needs_s = 0.0
                above[i] = above[i] or not self._refuted(i, least_p)
            start_s = max(free_at(ends, self.sets[i], due_s), cores[0])
            sure_s = start_s + sure * service_s[i]
            unsure[i] = i not in self.probes and sure_s > self.deadline_s[i]
            if start_s + needs_s <= self.deadline_s[i]:
                kept.append(i)
                continue
            refused.append(i)
            self._settle(self.groups[i], True)
            if not above[i]:
                self.price_s *= exp(-terms.step)
        weight = terms.deadline_weight if refused or any(unsure.values()) else 0.0
        kept.sort(
            key=lambda i: (
                2 if unsure[i] else above[i],
                self.deadline_s[i] + weight * service_s[i],
            )
        )
        released, reserved = [], {}
        for i in kept:
            if cores[0] > due_s + ahead_s:
                break
            free_s = free_at(ends, self.sets[i], due_s)
            end_s = max(free_s, cores[0]) + service_s[i]
            latest_s = free_at(reserved, self.sets[i], inf, min, inf)
            if free_s > due_s + ahead_s or end_s > latest_s:
                if not above[i] and not unsure[i]:
                    spare_s = terms.reservation_window * service_s[i]
                    until_s = self.deadline_s[i] - spare_s
                    note(reserved, self.sets[i], until_s, min, inf)
                continue
            heapq.heapreplace(cores, end_s)
            note(ends, self.sets[i], end_s)
            released.append(i)
            if above[i] and not unsure[i]:
                dearer_s = self.price_s * exp(terms.price_recovery * terms.step)
                self.price_s = min(dearer_s, self.highest_s)
        held = [i for i in kept if i not in released]
        return decided(released, refused, held)


def simulate_plainly(
    trace, policy, estimated_s, *, cores, slo_s, batch_size, flush_s, delays,
    clients, think_s, spread=0.0,
):  # fmt: skip
    """What `simulate` does, as a dictionary of columns; `bid-price` with spread 0."""
    n = len(trace)
    size = batch_size if policy.batched else 1
    flush_s = min(flush_s, policy.flush_s)
    sets = key_sets(trace.keys)
    estimated_s = estimated_s + delays.worker_s
    busy_s = (trace.service_s + delays.worker_s).tolist()
    database = Database(sets, busy_s, cores, delays.release_s)
    deadline_s = np.full(n, np.nan)
    arrival_s, decided_s = np.full(n, np.nan), np.full(n, np.nan)
    dropped = np.zeros(n, bool)
    if policy.name == "bid-price":
        lookahead = PlainLate(
            database, estimated_s, deadline_s, delays.lag_s, policy, trace.kind
        )
    elif policy.defects.no_feedback:
        lookahead = PlainChain(sets, estimated_s, deadline_s, delays.lag_s)
    else:
        lookahead = PlainShadow(
            database, estimated_s, deadline_s, delays.lag_s, policy.tolerance_s, spread
        )
    events = []  # of clients and sequencer
    sequence = iter(range(10**9))

    def push(at_s, rank):
        heapq.heappush(events, (at_s, rank, next(sequence)))

    due = deque()  # arrivals, first submitted first
    submitted = 0

    def submit(at_s):
        nonlocal submitted
        if submitted < n:
            due.append(submitted)
            arrival_s[submitted], deadline_s[submitted] = at_s, at_s + slo_s[submitted]
            submitted += 1
            push(at_s + delays.read_s, ARRIVAL)

    if clients is None:
        for at_s in trace.arrival_s:
            submit(at_s)
    else:
        for client in range(clients):
            submit(client * (think_s / clients))
    arrived, inbox, working, held = 0, deque(), [], []
    done_s, committed = np.inf, False
    while events or database.heap:
        if database.heap and (not events or database.heap[0][:2] < events[0][:2]):
            now, kind = database.step()
            if kind == COMMIT:
                if clients is not None:
                    submit(now + think_s)
                if held:
                    committed = True
                    push(now, DECIDE)
            continue
        now, rank, _ = heapq.heappop(events)
        if rank == ARRIVAL:
            inbox.append(due.popleft())
            arrived += 1
            push(now, TAKE)
            push(now + flush_s, TAKE)
        elif rank == TAKE:
            if done_s < np.inf or not inbox:
                continue
            timer = arrival_s[inbox[0]] + delays.read_s + flush_s <= now
            if len(inbox) >= size or timer or arrived == n:
                working = [inbox.popleft() for _ in range(min(size, len(inbox)))]
                done_s = now + len(working) * delays.sequencer_s
                push(done_s, DECIDE)
        else:
            if not (committed or done_s == now):
                continue
            ids = list(held)
            if done_s == now:
                ids += working
                done_s = np.inf
                push(now, TAKE)
            committed, held = False, []
            room = len(ids)
            if policy.in_flight is not None:
                room = policy.in_flight - database.in_flight()
                if room <= 0:
                    held = ids
                    continue
            rows = np.array(ids)
            batch = trace.batch(rows, deadline_s[rows], arrival_s[rows])
            if policy.name == "bid-price":
                decision = lookahead.decide(rows, now)
            else:
                decision = decide_plainly(policy, lookahead, batch, now)
            for i in decision.order[:room].tolist():
                database.append(i, now + delays.lag_s)
                decided_s[i] = now
            for i in decision.dropped.tolist():
                dropped[i], decided_s[i] = True, now
                if clients is not None:
                    submit(now + think_s)
            held = sorted([*decision.order[room:].tolist(), *decision.held.tolist()])

    def column(times):
        return np.array([times.get(i, np.nan) for i in range(n)])

    return {
        "arrival_s": arrival_s,
        "deadline_s": deadline_s,
        "decided_s": decided_s,
        "granted_s": column(database.granted_s),
        "start_s": column(database.start_s),
        "finish_s": column(database.finish_s),
        "dropped": dropped,
        "log": np.array(database.log, np.int64),
    }
