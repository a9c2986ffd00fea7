"""The rules of all policies, compiled, and the table `RULES` of the policies.

To add a policy, add a kind of code, its branch in the compiled function of its class
and its row in `RULES`. The rule of `bid-price` is in `admission`; the functions that
watch a queue are in `queues`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from thesis_lib.common.compiled import njit
from thesis_lib.sequencer.core.locks import NONE, inner
from thesis_lib.sequencer.policies.admission import (
    BidPriceParameters,
    bind_late,
    sort_into,
)
from thesis_lib.sequencer.policies.lookahead import (
    in_flight,
    on_time_p,
    schedule_into,
)
from thesis_lib.sequencer.policies.parameters import (
    AS_PUBLISHED,
    BAND,
    CORRECTED,
    Defects,
    LateBound,
    Machine,
    NoParameters,
    Parameters,
    QueueParameters,
    RandomDrop,
    When,
)
from thesis_lib.sequencer.policies.queues import (
    DRAWN,
    ENTERED,
    admitted,
    controlled,
    controlled_share,
    credits,
    gradient_limit,
    refused_share,
    stands,
    waits_on_a_key,
)

(  # kinds of code
    FIFO, RANDOM, THESIS, EDF, SJF, LATE, SLACK, LATE_SJF, CAP, CODEL,
    BID_PRICE, ENVOY, GRADIENT, BREAKWATER, LIFO, KEY_CAP, CINNAMON,
) = range(17)  # fmt: skip
OBSERVING = (ENVOY, GRADIENT)  # decide by what has committed
AT_ARRIVAL = (  # and not again
    CAP, ENVOY, GRADIENT, BREAKWATER, KEY_CAP, CINNAMON, THESIS,
)  # fmt: skip
HOPELESS = 4  # the rank of what `_late` drops


class RuleCode(NamedTuple):
    """A rule as numbers, for `decide_compiled`."""

    kind: int
    drops: bool = False
    moves: bool = False
    band: bool = False  # moves by band, else by least slack
    fresh: bool = False  # forecasts again in the new order
    band_s: float = 0.0
    allowance_s: float = 0.0
    share: float = 0.0
    seed: int = 0
    least_p: float = 0.0
    slack_s: float = np.inf  # what waits longer for a lock goes last
    cores: int = 0  # demotes what so many cannot bring home in time; 0 is nothing
    # Of what watches a queue:
    room_s: float = 0.0  # of `queue-cap`, in seconds of one core
    spare_s: float = 0.0  # who has less left has waited too long
    standing_s: float = 0.0  # the same of `adaptive-lifo`, once its queue stands
    target_s: float = 0.0  # delay of a queue
    interval_s: float = 0.0  # in which it is judged
    most: int = 0  # in front of a lock, or past the sequencer
    gains: tuple[float, float] = (0.0, 0.0)  # of an error, and of the sum of all
    terms: BidPriceParameters = BidPriceParameters()  # of `bid-price`


class Fifo(RuleCode):
    """First come, first served."""


class Undirected(RuleCode):
    """A rule that reads no forecast: sorted, at random, or by the state of a queue."""


class Thesis(RuleCode):
    """Drop, reorder or hybrid, as published or corrected."""


class LateBinding(RuleCode):
    """A simple rule that is asked again at each commit."""


class BidPrice(RuleCode):
    """The rule of `bid-price`."""


@njit(cache=True)
def mix(value):
    """A bijection of 64 bits that scatters: the last steps of SplitMix64.

    Steele, Lea and Flood, OOPSLA 2014.
    """
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@inner
def _coin(seed, i):
    """A coin in [0, 1), of `random-drop` by id, of `envoy` and `cinnamon` by turn."""
    number = np.uint64(i) + np.uint64(seed) + np.uint64(1)
    mixed = mix(number * np.uint64(0x9E3779B97F4A7C15))
    return np.float64(mixed >> np.uint64(11)) / 2.0**53


@inner
def _put(decided, i, drops, n_kept, dropped):
    """Write `i` behind what is kept or dropped; how many either are then."""
    if drops:
        decided.dropped[dropped] = i
        return n_kept, dropped + 1
    decided.order[n_kept] = i
    return n_kept + 1, dropped


@inner
def _demote(memory, ids, places, now_s, cores):
    """Give rank 2 to the jobs that Moore and Hodgson reject on one fast machine."""
    rank, service_s = memory.decided.rank, memory.decided.service_s
    end_s = now_s
    for last in range(len(places)):
        at = places[last]
        end_s += service_s[at] / cores
        if end_s > memory.deadline_s[ids[at]]:
            longest = NONE
            for other in places[: last + 1]:
                if rank[other] == 0 and (
                    longest == NONE or service_s[other] > service_s[longest]
                ):
                    longest = other
            rank[longest] = 2
            end_s -= service_s[longest] / cores


@inner
def _late(code, memory, model, ids, now_s):
    """Apply a simple late-bound rule; return how many run, are dropped, and 0 held.

    It drops transactions that can hardly be on time. It orders the others by deadline,
    latest start (SLACK) or estimate (LATE_SJF). Transactions that would wait more than
    `slack_s` for a lock come next, then those that an optimal selection for one machine
    with the speed of all `cores` would give up; they stay while they may be in time.
    """
    decided, b = memory.decided, len(ids)
    rank, key, finish_s = decided.rank[:b], decided.key[:b], decided.finish_s[:b]
    schedule_into(memory, model, ids, now_s, np.bool_(True), finish_s)  # no literal
    dropped = 0
    for at in range(b):
        i = ids[at]
        deadline_s, service_s = memory.deadline_s[i], memory.estimated_s[i]
        decided.service_s[at] = service_s
        key[at] = deadline_s
        if code.kind == SLACK:
            key[at] = deadline_s - service_s
        elif code.kind == LATE_SJF:
            key[at] = service_s
        p = on_time_p(finish_s[at], deadline_s, now_s, model.spread)
        rank[at] = 0
        if p < code.least_p:
            rank[at] = HOPELESS
            decided.dropped[dropped] = i
            dropped += 1
    places, n_kept = decided.held[:b], b - dropped
    sort_into(places, decided.order, rank, key)
    if code.cores > 0:
        _demote(memory, ids, places[:n_kept], now_s, code.cores)
    for at in places[:n_kept]:
        if finish_s[at] - decided.service_s[at] > now_s + code.slack_s:
            rank[at] += 1
    sort_into(places, decided.order, rank, key)
    for at in range(n_kept):
        decided.order[at] = ids[places[at]]
    return n_kept, dropped, 0


@inner
def _critical_first(memory, ids, code):
    """Write positions to `decided.held`: what the thesis calls critical first.

    As described, that is forecast to end within the band of its deadline; corrected, it
    has the least time left between forecast end and deadline, and what is hopeless, a
    band too late, goes last.
    """
    decided, b = memory.decided, len(ids)
    rank, key = decided.rank[:b], decided.key[:b]
    for at in range(b):
        finish_s, deadline_s = decided.finish_s[at], memory.deadline_s[ids[at]]
        if code.band:
            rank[at], key[at] = abs(finish_s - deadline_s) >= code.band_s, 0.0
        else:
            rank[at] = finish_s > deadline_s + code.band_s
            key[at] = deadline_s - finish_s
    sort_into(decided.held[:b], decided.dropped, rank, key)


@inner
def _drop_and_reorder(code, memory, model, ids, now_s):
    """The rule of the thesis: how many run and are dropped, and 0 held."""
    decided, b = memory.decided, len(ids)
    finish_s, places = decided.finish_s[:b], decided.held[:b]
    forecasts = 2 if code.fresh else 1
    for turn in range(forecasts):
        schedule_into(memory, model, ids, now_s, turn + 1 == forecasts, finish_s)
        if turn + 1 < forecasts:
            _critical_first(memory, ids, code)
            for at in range(b):
                decided.order[at] = ids[places[at]]
            ids = decided.order[:b]
    if code.moves and not code.fresh:
        _critical_first(memory, ids, code)
    else:
        for at in range(b):
            places[at] = at
    n_kept = dropped = 0
    for at in places:
        i = ids[at]
        late = finish_s[at] > memory.deadline_s[i] + code.allowance_s
        n_kept, dropped = _put(decided, i, code.drops and late, n_kept, dropped)
    return n_kept, dropped, 0


@inner
def _in_turn(code, memory, ids, now_s):
    """A queue that drops at its end, or at its front."""
    decided, first, last = memory.decided, 0, len(ids)
    if code.kind == CAP:
        for at in range(len(ids)):
            decided.service_s[at] = memory.estimated_s[ids[at]]
        last = admitted(
            memory.control,
            decided.service_s[: len(ids)],
            in_flight(memory),
            code.room_s,
        )
    elif code.kind == CODEL:
        for at in range(len(ids)):
            decided.key[at] = memory.deadline_s[ids[at]] - now_s
        left_s = decided.key[: len(ids)]
        first = controlled(memory.control, left_s, now_s, code.spare_s, code.interval_s)
    elif code.kind == GRADIENT:
        limit = gradient_limit(memory, now_s, code.interval_s, code.cores)
        last = min(max(limit - in_flight(memory), 0), len(ids))
    elif code.kind == BREAKWATER:
        limit = credits(memory, now_s, code.target_s, code.interval_s, code.cores)
        last = min(max(limit - in_flight(memory), 0), len(ids))
    for at in range(first, last):
        decided.order[at - first] = ids[at]
    for at in range(first):
        decided.dropped[at] = ids[at]
    for at in range(last, len(ids)):
        decided.dropped[at - last] = ids[at]
    return last - first, len(ids) - last + first


@inner
def _one_by_one(code, memory, ids, now_s):
    """Drop at random with one probability, or what would wait for a lock."""
    n_kept = dropped = 0
    share = code.share
    if code.kind == ENVOY:
        share = refused_share(memory, now_s, code.interval_s)
    elif code.kind == CINNAMON:
        share = controlled_share(memory, now_s, code.interval_s, code.gains, code.most)
    for i in ids:
        if code.kind == KEY_CAP:
            drops = waits_on_a_key(memory, i, code.most)
        elif code.kind in (ENVOY, CINNAMON):
            # By turn and not by id: a service numbers its requests in another way.
            drops = _coin(code.seed, memory.control[DRAWN]) < share
            memory.control[DRAWN] += 1
        else:
            drops = _coin(code.seed, i) < share
        n_kept, dropped = _put(memory.decided, i, drops, n_kept, dropped)
    if code.kind == CINNAMON:
        memory.control[ENTERED] += n_kept
    return n_kept, dropped


@inner
def _sorted(code, memory, ids):
    """Order by deadline or by estimate; run all."""
    decided, b = memory.decided, len(ids)
    by = memory.deadline_s if code.kind == EDF else memory.estimated_s
    for at in range(b):
        decided.rank[at], decided.key[at] = 0, by[ids[at]]
    sort_into(decided.held[:b], decided.dropped, decided.rank[:b], decided.key[:b])
    for at in range(b):
        decided.order[at] = ids[decided.held[at]]
    return b, 0


@inner
def _last_first(code, memory, ids, now_s):
    """Put the newest first in a standing queue; drop those that waited too long."""
    decided, waiting = memory.decided, len(ids)
    room = code.most - in_flight(memory)
    standing = stands(memory.control, waiting, room, now_s, code.interval_s)
    spare_s = code.standing_s if standing else code.spare_s
    n_kept = dropped = 0
    for at in range(waiting):
        i = ids[waiting - 1 - at] if waiting > room else ids[at]
        left = memory.deadline_s[i] - now_s < spare_s
        n_kept, dropped = _put(decided, i, left, n_kept, dropped)
    return n_kept, dropped


@inner
def _fifo(code, memory, model, ids, now_s):
    """Order all as they arrived."""
    for at in range(len(ids)):
        memory.decided.order[at] = ids[at]
    return len(ids), 0, 0


@inner
def _undirected(code, memory, model, ids, now_s):
    """Decide without a forecast; nothing is held."""
    if code.kind in (RANDOM, ENVOY, KEY_CAP, CINNAMON):
        order, dropped = _one_by_one(code, memory, ids, now_s)
    elif code.kind == LIFO:
        order, dropped = _last_first(code, memory, ids, now_s)
    elif code.kind in (EDF, SJF):
        order, dropped = _sorted(code, memory, ids)
    else:
        order, dropped = _in_turn(code, memory, ids, now_s)
    return order, dropped, 0


@inner
def _bid_price(code, memory, model, ids, now_s):
    """Decide by `bid-price`, which may hold transactions."""
    return bind_late(code.terms, memory, model, ids, now_s)


# numba compiles one rule for each class of code, when a policy of that class is first
# used: FIFO does not wait for bid-price to be compiled.
COMPILED = {
    Fifo: _fifo,
    Undirected: _undirected,
    Thesis: _drop_and_reorder,
    LateBinding: _late,
    BidPrice: _bid_price,
}


# --- The table of policies --------------------------------------------------------
class Rule(NamedTuple):
    """A row of `RULES`: what makes a policy of a rule."""

    label: str  # in figures and tables
    when: When
    code: Callable[[Machine, Any], RuleCode]  # of a machine and these parameters:
    parameters: Parameters = NoParameters()
    observes: bool = True  # forecasts, or counts, from the database as observed


def _thesis_code(drops: bool, moves: bool) -> Callable[[Machine, Defects], Thesis]:
    def code(on: Machine, defects: Defects) -> Thesis:
        band_s = BAND * on.slo_s
        return Thesis(
            THESIS, drops, moves, band=defects.band, fresh=moves and not defects.stale,
            band_s=band_s, allowance_s=band_s if defects.allowance else 0.0,
        )  # fmt: skip

    return code


def _late_code(
    kind: int, waits: bool = False, demotes: bool = False
) -> Callable[[Machine, LateBound], LateBinding]:
    """Order; with `waits`, lock waiters go last; see `_late` for `demotes`."""
    return lambda on, own: LateBinding(
        kind, least_p=own.least_p, slack_s=on.lag_s if waits else np.inf,
        cores=on.cores if demotes else 0,
    )  # fmt: skip


_DROP, _REORDER, _HYBRID = (
    _thesis_code(*parts) for parts in ((True, False), (False, True), (True, True))
)
_BATCH, _ARRIVAL, _LATE = When.FULL_BATCH, When.ARRIVAL, When.ARRIVAL_AND_COMMIT

RULES = {
    "fifo": Rule("FIFO", _ARRIVAL, lambda on, _: Fifo(FIFO), observes=False),
    "drop": Rule("Drop", _BATCH, _DROP, AS_PUBLISHED),
    "reorder": Rule("Reorder", _BATCH, _REORDER, AS_PUBLISHED),
    "hybrid": Rule("Hybrid", _BATCH, _HYBRID, AS_PUBLISHED),
    "drop-corrected": Rule("Drop, corrected", _BATCH, _DROP, CORRECTED),
    "reorder-corrected": Rule("Reorder, corrected", _BATCH, _REORDER, CORRECTED),
    "hybrid-corrected": Rule("Hybrid, corrected", _BATCH, _HYBRID, CORRECTED),
    "fifo-batched": Rule(
        "FIFO, batched", _BATCH, lambda on, _: Fifo(FIFO), observes=False
    ),
    "random-drop": Rule(
        "random drop",
        _BATCH,
        lambda on, own: Undirected(RANDOM, share=own.share, seed=own.seed),
        RandomDrop(),
        observes=False,
    ),
    "queue-cap": Rule(
        "capped queue",
        _ARRIVAL,
        lambda on, own: Undirected(CAP, room_s=own.room * on.slo_s * on.cores),
        QueueParameters(),
    ),
    "lock-queue-cap": Rule(
        "capped lock queue",
        _ARRIVAL,
        lambda on, own: Undirected(KEY_CAP, most=own.writers),
        QueueParameters(),
    ),
    "codel": Rule(
        "CoDel",
        _LATE,
        lambda on, own: Undirected(
            CODEL,
            spare_s=(1 - own.target) * on.slo_s,
            interval_s=own.interval * on.slo_s,
        ),
        QueueParameters(),
    ),
    "adaptive-lifo": Rule(
        "adaptive LIFO",
        _LATE,
        lambda on, own: Undirected(
            LIFO,
            most=on.places(own.depth),
            interval_s=own.max_wait * on.slo_s,
            spare_s=(1 - own.max_wait) * on.slo_s,
            standing_s=(1 - own.standing) * on.slo_s,
        ),
        QueueParameters(),
    ),
    "breakwater": Rule(
        "Breakwater",
        _ARRIVAL,
        lambda on, own: Undirected(
            BREAKWATER,
            cores=on.cores,
            target_s=own.delay * on.slo_s,
            interval_s=own.credit * on.slo_s,
        ),
        QueueParameters(),
    ),
    "envoy": Rule(
        "Envoy's admission control",
        _ARRIVAL,
        lambda on, own: Undirected(
            ENVOY, seed=own.seed, interval_s=own.window * on.slo_s
        ),
        QueueParameters(),
    ),
    "cinnamon": Rule(
        "Cinnamon",
        _ARRIVAL,
        lambda on, own: Undirected(
            CINNAMON,
            seed=own.seed,
            most=on.places(own.places),
            interval_s=own.cycle * on.slo_s,
            gains=(own.gain, own.sum_gain),
        ),
        QueueParameters(),
    ),
    "gradient2": Rule(
        "Gradient2",
        _ARRIVAL,
        lambda on, own: Undirected(
            GRADIENT, cores=on.cores, interval_s=own.gradient * on.slo_s
        ),
        QueueParameters(),
    ),
    "headroom": Rule(
        "headroom shedding", _ARRIVAL, lambda on, _: Thesis(THESIS, drops=True)
    ),
    "edf": Rule(
        "earliest deadline", _BATCH, lambda on, _: Undirected(EDF), observes=False
    ),
    "sjf": Rule("shortest job", _BATCH, lambda on, _: Undirected(SJF), observes=False),
    "late-edf": Rule(
        "earliest deadline, late-bound", _LATE, _late_code(LATE), LateBound(3.0, 0.999)
    ),
    "late-sjf": Rule(
        "shortest job, late-bound", _LATE, _late_code(LATE_SJF), LateBound(4.0, 0.99)
    ),
    "least-slack": Rule(
        "least slack, late-bound", _LATE, _late_code(SLACK), LateBound(10.0, 0.999)
    ),
    "startable-first": Rule(
        "startable first", _LATE, _late_code(LATE, waits=True), LateBound(2.0, 0.999)
    ),
    "late-demote": Rule(
        "late demotion", _LATE, _late_code(LATE, True, True), LateBound(2.0, 0.999)
    ),
    "bid-price": Rule(
        "bid-price",
        _LATE,
        lambda on, own: BidPrice(BID_PRICE, terms=own),
        BidPriceParameters(),
    ),
}
