"""Many partitions, a sequencer each, and transactions that cross two of them.

Every partition is a deterministic database of its own: cores, lock table, log, and a
sequencer that decides on what arrives there. They meet only where a transaction
crosses. The model follows Calvin (Thomson et al., SIGMOD 2012, sections 3.1 and 3.2):

- *One order.* What crosses is collected in epochs, and at the end of an epoch, one
  network delay later, booked in both logs, by sequencer and then in the order of that
  sequencer's decisions. Local transactions are booked when they are decided, wherever
  that falls between. Every wait is for something earlier in a log, and what crosses has
  the same order in all logs, so no cycle of waits can form.
- *Two parts.* Each of the two partitions reads what it holds and sends it to the other;
  with both halves at hand, each executes the whole logic and writes its own records.
  The reads are divided, the rest is done twice.
- *Waiting with locks.* Between the end of its reads and the arrival of the other's, a
  part holds all its locks and no core. Then it is the next to get a core.

Late binding stays local: a sequencer decides on what arrived there by a forecast for
its own partition, which takes the reads of the other for delivered. What crosses counts
as released at home from then on, and the other partition gets it as a commitment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba.typed.typedlist import List
from numpy.typing import NDArray

from thesis_lib.common.compiled import njit
from thesis_lib.common.errors import require
from thesis_lib.sequencer.core.events import (
    COMMITTED,
    LOGGED,
    READY,
    STARTED,
    State,
    advance,
    idle_state,
)
from thesis_lib.sequencer.core.locks import NONE, book, release
from thesis_lib.sequencer.core.trace import F64, I64, Bool, History, KeySets, Trace
from thesis_lib.sequencer.policies.decisions import decide_into
from thesis_lib.sequencer.policies.lookahead import SPREAD, Memory
from thesis_lib.sequencer.policies.registry import Policy

# What a row of a partition stands for. A local transaction is one row, WHOLE; one that
# crosses is four in a row in each of its partitions: what is decided on, a message that
# holds a lock of its own until it has arrived, and the two things that use a core.
WHOLE, MESSAGE, READ, EXECUTE = range(4)
# Positions in `Site.counts`, and in `Calendar.counts`.
HELD, SEEN, ASIDE, MERGING = range(4)
ORDERED, MERGED, BOOKED, SENT, DELIVERED = range(5)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Costs of a transaction that crosses partitions, without its service."""

    round_s: float = 1e-4  # over the network, there and back
    epoch_s: float = 1e-3  # of the common order; 0 orders by time alone
    read_share: float = 0.5  # of the service that is reading, and divided

    @property
    def repeated(self) -> float:
        """Work of a transaction that crosses beyond that of a local one, as a share."""
        return 1 - self.read_share


EXCHANGE = Exchange()


@dataclass(frozen=True, slots=True)
class Partitioned:
    """n transactions of several partitions, in order of arrival.

    The keys of `trace` are those at home; partitions have no key in common, and each
    counts its own from 0.
    """

    trace: Trace
    partitions: int
    home: I64  # (n,) whose sequencer receives it
    other: I64  # (n,) the second partition of what crosses, or NONE
    other_keys: KeySets  # n sets, empty for what is local

    def __len__(self) -> int:
        return len(self.trace)

    @property
    def crosses(self) -> Bool:
        """(n,) whether a transaction needs two partitions."""
        return self.other != NONE


def merge(traces: Sequence[Trace], crossing: float, seed: int) -> Partitioned:
    """One trace for each partition, of which a share `crossing` crosses to another.

    Each transaction crosses by a coin of its own, so that with equal seeds those that
    cross at a smaller share cross at a larger one too. The second partition is uniform
    among the others, and there a transaction locks what some transaction of its kind
    locks that is local to it, drawn from that partition's trace. The traces are of one
    workload. Raises InvalidInput where a partition has no transaction of such a kind.
    """
    partitions, first = len(traces), traces[0]

    def joined(name: str) -> NDArray:
        return np.concatenate([getattr(trace, name) for trace in traces])

    sizes = [len(trace) for trace in traces]
    order = np.argsort(joined("arrival_s"), kind="stable")
    home = np.repeat(np.arange(partitions), sizes)[order]
    keys = KeySets.concatenate([trace.keys for trace in traces])
    kind = joined("kind")[order]
    rng = np.random.default_rng(seed)
    coin, pick, which = rng.random((3, len(order)))
    crosses = coin < crossing
    step = 1 + (pick * (partitions - 1)).astype(np.int64)
    other = np.where(crosses, (home + step) % partitions, NONE)
    model = np.zeros(len(order), np.int64)  # whose keys are locked there
    begin = np.cumsum([0, *sizes])
    for place, trace in enumerate(traces):
        for k in range(len(first.kinds)):
            like = begin[place] + np.flatnonzero(trace.kind == k)
            rows = np.flatnonzero((other == place) & (kind == k))
            require(
                len(rows) == 0 or len(like) > 0,
                f"partition {place} has no {first.kinds[k]!r}: what crosses to it "
                "would not know what to lock there; use longer traces",
            )
            if len(rows):
                model[rows] = like[(which[rows] * len(like)).astype(np.int64)]
    return Partitioned(
        trace=Trace(
            kinds=first.kinds,
            kind=kind,
            arrival_s=joined("arrival_s")[order],
            service_s=joined("service_s")[order],
            features=joined("features")[order],
            feature_names=first.feature_names,
            keys=keys.take(order),
            units_s=joined("units_s")[order],
            unit_names=first.unit_names,
            meta={"partitions": partitions, "crossing": crossing, "seed": seed},
        ),
        partitions=partitions,
        home=home,
        other=other,
        other_keys=keys.take(model).keep(crosses),
    )


# --- One partition -------------------------------------------------------------
class Rows(NamedTuple):
    """The rows of one partition; rows of a transaction are together.

    A part that crosses owns a private key. MESSAGE holds it from the start until the
    part has read and the other's reads have arrived, and EXECUTE needs it. EXECUTE
    books the locks of READ right behind it and gets them when READ ends, so that no
    transaction comes between.
    """

    owner: I64  # (r,) transaction
    stage: I64  # (r,)
    keys: KeySets  # r sets
    busy: F64  # (r,) share of the service of its owner


def _rows(work: Partitioned, place: int, exchange: Exchange) -> tuple[Rows, I64]:
    """The rows of a partition, and the first of each of its (n,) transactions."""
    members = np.flatnonzero((work.home == place) | (work.other == place))
    crosses = work.crosses[members]
    rows = np.where(crosses, 4, 1)
    first = np.cumsum(rows) - rows
    member = np.repeat(np.arange(len(members)), rows)
    stage = np.arange(len(member)) - first[member]
    there = work.home[members] != place
    own_first = np.argsort(there, kind="stable")
    both = KeySets.concatenate(
        [work.trace.keys.take(members[~there]), work.other_keys.take(members[there])]
    )
    mine = both.take(np.argsort(own_first))
    locked = mine.take(member).keep(stage != MESSAGE)
    # Private keys, numbered after all others.
    own = mine.n_keys + (np.cumsum(crosses) - 1)[member]
    locks_own = np.flatnonzero((stage == MESSAGE) | (stage == EXECUTE))
    entry = np.concatenate([locked.owner, locks_own])
    key = np.concatenate([locked.keys, own[locks_own]])
    alone = np.concatenate([locked.exclusive, np.ones(len(locks_own), bool)])
    by = np.argsort(entry, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(entry, minlength=len(stage)))])
    read = exchange.read_share / 2
    shares = np.array([read + exchange.repeated, 0.0, read, exchange.repeated])
    where = np.full(len(work), NONE, np.int64)
    where[members] = first
    return (
        Rows(
            owner=members[member],
            stage=stage,
            keys=KeySets(offsets, key[by], alone[by]),
            busy=np.where(crosses[member], shares[stage], 1.0),
        ),
        where,
    )


class Site(NamedTuple):
    """One partition as it runs.

    `counts` are rows HELD back, rows SEEN to end, parts ASIDE (booked, and not granted
    what they execute with) and MERGING (decided here, not booked yet).
    """

    state: State
    busy_s: F64  # (r,)
    owner: I64  # (r,)
    stage: I64  # (r,)
    heard: Bool  # (r,) MESSAGE rows that have arrived
    held: I64  # (r,) rising
    counts: I64  # (4,)


def _idle_site(rows: Rows, service_s: F64, cores: int) -> Site:
    """A partition in which nothing has run, and no message has arrived."""
    state, r = idle_state(rows.keys, cores), len(rows.owner)
    for message in np.flatnonzero(rows.stage == MESSAGE).tolist():
        book(state.table, message)
    return Site(
        state=state,
        busy_s=service_s[rows.owner] * rows.busy,
        owner=rows.owner,
        stage=rows.stage,
        heard=np.zeros(r, np.bool_),
        held=np.empty(r, np.int64),
        counts=np.zeros(4, np.int64),
    )


# What a sequencer's look-ahead knows is kept apart from its site: fetching a tuple of
# arrays from a list costs more than most events, and only decisions need that one.
@njit(cache=True)
def _list_of(thing):
    things = List()
    things.append(thing)
    return things


@njit(cache=True)
def _append(things, thing):
    things.append(thing)


# --- All together ----------------------------------------------------------------
class Calendar(NamedTuple):
    """State shared by all partitions: transactions, the merge, and the network.

    `merging` and `sent` are filled from the front, in order of their times. `counts`
    are the entries of `log` (ORDERED), of `merging` (MERGED, of which are BOOKED) and
    of `sent` (SENT, of which are DELIVERED).
    """

    arrival_s: F64  # (n,)
    home: I64  # (n,)
    other: I64  # (n,)
    rows: I64  # (n, 2) first row at home, and at the other partition or NONE
    decided_s: F64  # (n,)
    dropped: Bool  # (n,)
    log: I64  # (n,) in the order in which they were booked
    merging: I64  # (n,) what crosses, as released by its sequencer
    booked_s: F64  # (n,) when the merge books each of these
    sent: I64  # (n, 2) transaction, and the partition that its message goes to
    sent_s: F64  # (n,) when it arrives there
    counts: I64  # (5,)


def _empty_calendar(work: Partitioned, rows: I64) -> Calendar:
    """Return the state before any decision; `rows` (n, 2) as in `Calendar`."""
    n, crossing = len(work), int(work.crosses.sum())
    return Calendar(
        arrival_s=work.trace.arrival_s,
        home=work.home,
        other=work.other,
        rows=rows,
        decided_s=np.full(n, np.nan),
        dropped=np.zeros(n, np.bool_),
        log=np.empty(n, np.int64),
        merging=np.empty(crossing, np.int64),
        booked_s=np.empty(crossing),
        sent=np.empty((2 * crossing, 2), np.int64),
        sent_s=np.empty(2 * crossing),
        counts=np.zeros(5, np.int64),
    )


@njit(cache=True)
def _step(site, calendar, now_s, delay_s, place):
    """Process what happens in a partition up to `now_s`; send what has been read."""
    state, busy_s, owner, stage, heard, _, counts = site
    advance(state, busy_s, now_s, False, 0.0)
    for at in range(counts[SEEN], state.progress[COMMITTED]):
        row = state.ended[at]
        if stage[row] == READ:
            i, sent = owner[row], calendar.counts[SENT]
            home = calendar.home[i]
            calendar.sent[sent, 0] = i
            calendar.sent[sent, 1] = calendar.other[i] if home == place else home
            calendar.sent_s[sent] = now_s + delay_s
            calendar.counts[SENT] = sent + 1
            if heard[row - READ + MESSAGE]:
                _go_on(site, row - READ + MESSAGE, now_s)
    counts[SEEN] = state.progress[COMMITTED]


@njit(cache=True)
def _deliver(site, message, now_s):
    """The other's reads are here: a part that has read its own goes on."""
    site.heard[message] = True
    if not np.isnan(site.state.finish_s[message - MESSAGE + READ]):
        _go_on(site, message, now_s)


@njit(cache=True)
def _go_on(site, message, now_s):
    """A part has all reads: it is granted EXECUTE, and is the next to get a core."""
    state, busy_s, _, _, _, _, counts = site
    queue, progress = state.queue, state.progress
    release(state.table, message, state.unlocked)
    i = message - MESSAGE + EXECUTE
    state.granted_s[i] = now_s
    counts[ASIDE] -= 1
    for at in range(progress[READY], progress[STARTED], -1):
        queue[at] = queue[at - 1]
    queue[progress[STARTED]] = i
    progress[READY] += 1
    # Elsewhere a core idles only if nothing was ready.
    if progress[STARTED] - progress[COMMITTED] < len(state.running):
        core = 0
        while state.running[core] != NONE:
            core += 1
        state.running[core] = i
        state.start_s[i] = now_s
        state.ends_s[core] = now_s + busy_s[i]
        state.turn[core] = progress[STARTED]
        progress[STARTED] += 1


@njit(cache=True)
def _log(state, row, now_s):
    at = state.progress[LOGGED]
    state.log[at] = row
    state.dispatch_s[at] = now_s
    state.progress[LOGGED] = at + 1


@njit(cache=True)
def _order(calendar, i):
    """Append transaction `i` to the log of all partitions."""
    calendar.log[calendar.counts[ORDERED]] = i
    calendar.counts[ORDERED] += 1


@njit(cache=True)
def _book(sites, calendar, now_s, delay_s, next_s):
    """Book what the merge has until `now_s`, by sequencer, in both logs."""
    counts = calendar.counts
    first = last = counts[BOOKED]
    while last < counts[MERGED] and calendar.booked_s[last] <= now_s:
        last += 1
    for sequencer in range(len(sites) if last > first else 0):
        for i in calendar.merging[first:last]:
            if calendar.home[i] != sequencer:
                continue
            for side in range(2):
                place = calendar.other[i] if side else calendar.home[i]
                site = sites[place]
                site.counts[ASIDE] += 1
                if side == 0:
                    site.counts[MERGING] -= 1
                _log(site.state, calendar.rows[i, side] + READ, now_s)
                _log(site.state, calendar.rows[i, side] + EXECUTE, now_s)
                _step(site, calendar, now_s, delay_s, place)
                next_s[place] = site.state.ends_s.min()
            _order(calendar, i)
    counts[BOOKED] = last


@njit(cache=True)
def _decide(site, memory, model, code, calendar, in_flight, booked_s, now_s):
    """Let a sequencer decide on what it holds; what crosses is booked at `booked_s`."""
    state, owner, held, counts = site.state, site.owner, site.held, site.counts
    waiting = counts[HELD]
    released = state.progress[LOGGED] - state.progress[COMMITTED]
    released += counts[MERGING] - counts[ASIDE]
    if 0 < in_flight <= released:
        return
    orders, drops, holds = decide_into(code, memory, model, held[:waiting], now_s)
    decided = memory.decided
    order, room = (
        decided.order[:orders],
        in_flight - released if in_flight > 0 else waiting,
    )
    for row in order[:room]:
        i = owner[row]
        calendar.decided_s[i] = now_s
        if calendar.other[i] == NONE:
            _log(state, row, now_s)
            _order(calendar, i)
        else:
            merged = calendar.counts[MERGED]
            calendar.merging[merged], calendar.booked_s[merged] = i, booked_s
            calendar.counts[MERGED] = merged + 1
            counts[MERGING] += 1
    for row in decided.dropped[:drops]:
        calendar.decided_s[owner[row]] = now_s
        calendar.dropped[owner[row]] = True
    still_held = np.sort(np.concatenate((order[room:], decided.held[:holds])))
    held[: len(still_held)] = still_held
    counts[HELD] = len(still_held)


@njit(cache=True)
def _next_event_s(calendar, arrived, next_s):
    """Return the time of the next event, or infinity."""
    now_s, counts = next_s.min(), calendar.counts
    if arrived < len(calendar.arrival_s):
        now_s = min(now_s, calendar.arrival_s[arrived])
    if counts[DELIVERED] < counts[SENT]:
        now_s = min(now_s, calendar.sent_s[counts[DELIVERED]])
    if counts[BOOKED] < counts[MERGED]:
        now_s = min(now_s, calendar.booked_s[counts[BOOKED]])
    return now_s


@njit(cache=True)
def _run(sites, memories, calendar, model, code, in_flight, delay_s, epoch_s):
    """Everything; returns how many transactions are held for ever.

    At equal times: what leaves a core, by partition; messages; what the merge books;
    arrivals; and then each sequencer decides once.
    """
    arrival_s, home, counts = calendar.arrival_s, calendar.home, calendar.counts
    partitions, arrived = len(sites), 0
    next_s = np.full(partitions, np.inf)
    fresh = np.full(partitions, NONE, np.int64)
    freed = np.zeros(partitions, np.bool_)
    now_s = _next_event_s(calendar, arrived, next_s)
    while now_s < np.inf:
        for place in range(partitions):
            if next_s[place] == now_s:
                site = sites[place]
                _step(site, calendar, now_s, delay_s, place)
                next_s[place] = site.state.ends_s.min()
                freed[place] = site.counts[HELD] > 0
        while (
            counts[DELIVERED] < counts[SENT]
            and calendar.sent_s[counts[DELIVERED]] <= now_s
        ):
            i, place = calendar.sent[counts[DELIVERED]]
            site = sites[place]
            row = calendar.rows[i, 0 if home[i] == place else 1]
            _deliver(site, row + MESSAGE, now_s)
            next_s[place] = site.state.ends_s.min()
            counts[DELIVERED] += 1
        _book(sites, calendar, now_s, delay_s, next_s)
        while (
            arrived < len(arrival_s)
            and arrival_s[arrived] <= now_s
            and fresh[home[arrived]] == NONE
        ):
            fresh[home[arrived]] = calendar.rows[arrived, 0]
            arrived += 1
        booked_s = now_s + delay_s
        if epoch_s > 0:
            booked_s = (np.floor(now_s / epoch_s) + 1) * epoch_s + delay_s
        for place in range(partitions):
            if fresh[place] == NONE and not freed[place]:
                continue
            site = sites[place]
            if fresh[place] != NONE:
                site.held[site.counts[HELD]] = fresh[place]
                site.counts[HELD] += 1
                fresh[place] = NONE
            freed[place] = False
            _decide(
                site, memories[place], model, code, calendar, in_flight, booked_s, now_s
            )
            _step(site, calendar, now_s, delay_s, place)
            next_s[place] = site.state.ends_s.min()
        now_s = _next_event_s(calendar, arrived, next_s)
    held = 0
    for site in sites:
        held += site.counts[HELD]
    return held


@dataclass(frozen=True, slots=True)
class PartitionedHistory:
    """The history of n transactions and of their parts.

    In `history` a transaction is granted when both parts hold their locks, starts with
    the first of them and commits with the last; its log is in the order of booking.
    Column 0 of a part is at home, column 1 at the other partition, with NaN for what is
    local or dropped. `busy_s` is what a partition's cores worked, `logs` are its
    transactions in its order.
    """

    history: History
    granted_s: F64  # (n, 2) all locks held
    read_s: F64  # (n, 2) own reads done; NaN also at home for what is local
    ready_s: F64  # (n, 2) those of the other there as well; the same
    finish_s: F64  # (n, 2)
    busy_s: F64  # (partitions,)
    logs: tuple[I64, ...]  # (partitions,) of ids


def simulate_partitions(
    work: Partitioned,
    policy: Policy,
    estimated_s: F64,
    *,
    cores: int,
    slo_s: float,
    exchange: Exchange = EXCHANGE,
) -> PartitionedHistory:
    """Run `work` on as many partitions of `cores` each, every one under `policy`.

    The policy sees the estimates (n,) of the whole service and no truth. It decides at
    every arrival and, if it holds transactions back, whenever a core is left, without
    delay. Of what crosses, its own partition's work is what a sequencer forecasts, to
    end an epoch and a round before the deadline. What waits for the other partition
    does not count as in flight. With one partition this is `simulator.simulate` without
    delays, bit for bit. The policy does not wait for batches and has a compiled rule.
    Raises InvalidInput for one that holds transactions for ever.
    """
    n = len(work)
    trace = work.trace
    deadline_s = trace.arrival_s + slo_s
    early_s = exchange.epoch_s + exchange.round_s
    where = np.full((n, 2), NONE, np.int64)
    places: list[Site] = []
    memories: list[Memory] = []
    model = None
    for place in range(work.partitions):
        rows, first = _rows(work, place, exchange)
        at_home = work.home == place
        where[at_home, 0] = first[at_home]
        where[work.other == place, 1] = first[work.other == place]
        site = _idle_site(rows, trace.service_s, cores)
        due_s = deadline_s[rows.owner]
        due_s[(rows.stage == WHOLE) & work.crosses[rows.owner]] -= early_s
        expected_s = estimated_s[rows.owner] * rows.busy
        lookahead = policy.make_lookahead(
            site.state, rows.keys, expected_s, due_s, SPREAD, 0.0
        )
        model = lookahead.model
        memories.append(lookahead.memory)
        places.append(site)
    sites, lookaheads = _list_of(places[0]), _list_of(memories[0])
    for site, memory in zip(places[1:], memories[1:], strict=True):
        _append(sites, site)
        _append(lookaheads, memory)
    calendar = _empty_calendar(work, where)
    held = _run(
        sites, lookaheads, calendar, model, policy.code, policy.in_flight or 0,
        exchange.round_s / 2, float(exchange.epoch_s),
    )  # fmt: skip
    require(
        held == 0,
        f"policy {policy.name!r} holds {held} transactions with nothing left to wait "
        "for: a rule must release or drop when the database idles",
    )
    return _history(work, deadline_s, calendar, places)


def _history(
    work: Partitioned, deadline_s: F64, calendar: Calendar, places: list[Site]
) -> PartitionedHistory:
    n = len(work)
    granted_s, start_s, read_s, ready_s, finish_s = np.full((5, n, 2), np.nan)
    for place, site in enumerate(places):
        state = site.state
        for side, here in ((0, work.home == place), (1, work.other == place)):
            ids = np.flatnonzero(here)
            row = calendar.rows[ids, side]
            read = row + READ * work.crosses[ids]
            execute = row + EXECUTE * work.crosses[ids]
            granted_s[ids, side] = state.granted_s[read]
            start_s[ids, side] = state.start_s[read]
            read_s[ids, side] = state.finish_s[read]
            ready_s[ids, side] = state.granted_s[execute]
            finish_s[ids, side] = state.finish_s[execute]
    admitted = ~calendar.dropped
    local = ~work.crosses
    read_s[local], ready_s[local] = np.nan, np.nan
    log = [site.state.log[: site.state.progress[LOGGED]] for site in places]
    first = [
        entries[site.stage[entries] != EXECUTE]
        for site, entries in zip(places, log, strict=True)
    ]

    def whole(times: F64, join: np.ufunc) -> F64:
        return np.where(local, times[:, 0], join(times[:, 0], times[:, 1]))

    return PartitionedHistory(
        history=History(
            arrival_s=work.trace.arrival_s,
            deadline_s=deadline_s,
            decided_s=calendar.decided_s,
            granted_s=whole(granted_s, np.maximum),
            start_s=whole(start_s, np.minimum),
            finish_s=whole(finish_s, np.maximum),
            dropped=calendar.dropped,
            log=calendar.log[: admitted.sum()].copy(),
        ),
        granted_s=granted_s,
        read_s=read_s,
        ready_s=ready_s,
        finish_s=finish_s,
        busy_s=np.array(
            [
                site.busy_s[entries].sum()
                for site, entries in zip(places, log, strict=True)
            ]
        ),
        logs=tuple(
            site.owner[entries] for site, entries in zip(places, first, strict=True)
        ),
    )
