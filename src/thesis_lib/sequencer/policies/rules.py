"""The rules of all policies, compiled: what a batch and its forecast are made into.

Simulator and partitions call `decide_into` with the `Code` of a policy
(`registry.policy`), Python and the live engine `decide_compiled`. The
rule of `bid-price` is in `admission`.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np
from numba import njit

from thesis_lib.sequencer.core.locks import NONE, borrowing
from thesis_lib.sequencer.core.trace import F64, I64
from thesis_lib.sequencer.policies.admission import (
    BidPriceParameters,
    bind_late,
    sort_into,
)
from thesis_lib.sequencer.policies.lookahead import (
    Memory,
    Model,
    in_flight,
    on_time_p,
    schedule_into,
)

# Kinds of code, and positions in what `queue-cap` and `codel` remember.
FIFO, RANDOM, BANDED, EDF, SJF, LATE, SLACK, SHORT, CAP, CODEL, OURS = range(11)
SEEN, TOTAL = range(2)
ABOVE, NEXT, COUNT, DROPPING = range(4)
HOPELESS = 4  # the rank of what `_late` drops


class Code(NamedTuple):
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
    room_s: float = 0.0  # of `queue-cap`, in seconds of one core
    spare_s: float = 0.0  # of `codel`: who has less left has waited too long
    interval_s: float = 0.0  # of `codel`
    terms: BidPriceParameters = BidPriceParameters()  # of `bid-price`


@njit(cache=True)
def mix(value):
    """A bijection of 64 bits that scatters: the last steps of SplitMix64.

    Steele, Lea and Flood, OOPSLA 2014.
    """
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@borrowing
def _coin(seed, i):
    """The coin of `random-drop`, in [0, 1): it depends on `seed` and the id alone."""
    number = np.uint64(i) + np.uint64(seed) + np.uint64(1)
    mixed = mix(number * np.uint64(0x9E3779B97F4A7C15))
    return np.float64(mixed >> np.uint64(11)) / 2.0**53


@borrowing
def _admitted(control: F64, service_s: F64, in_flight: int, room_s: float) -> int:
    """How many `queue-cap` lets in, who refuses whoever finds the system full.

    Full are `room_s` over the mean estimate of all that came so far: by Little's law a
    cap on latency at any load, if cores are what is short. `control` (4,), that mean,
    is changed.
    """
    control[SEEN] += len(service_s)
    total_s = 0.0
    for at in range(len(service_s)):
        total_s += service_s[at]
    control[TOTAL] += total_s
    admitted = 0
    while admitted < len(service_s) and (
        in_flight + admitted == 0
        or (in_flight + admitted + 1) * control[TOTAL] <= room_s * control[SEEN]
    ):
        admitted += 1
    return admitted


@borrowing
def _controlled(
    control: F64, left_s: F64, now_s: float, spare_s: float, interval_s: float
) -> int:
    """How many of the front of a queue `codel` drops; `control` (4,) is changed.

    A transaction has waited beyond the target when less than `spare_s` of its objective
    is `left_s`. Once every one that came to the front in `interval_s` had, one is
    dropped, and the next `interval_s` over the square root of their number later, until
    one had not. One decision is one look at the front. Nichols and Jacobson, ACM Queue
    10(5), 2012, with the latency objective in the place of a round trip.
    """
    front = 0
    while True:
        above = front < len(left_s) and left_s[front] < spare_s
        if not above:
            control[ABOVE] = 0.0
        elif control[ABOVE] == 0:
            control[ABOVE] = now_s + interval_s
        if not above or now_s < control[ABOVE]:
            control[DROPPING] = 0.0
            return front
        if control[DROPPING] == 0:
            again = now_s - control[NEXT] < interval_s
            control[COUNT] = max(control[COUNT] - 2, 1.0) if again else 1.0
            control[DROPPING], control[NEXT] = 1.0, now_s
        elif now_s < control[NEXT]:
            return front
        else:
            control[COUNT] += 1
        control[NEXT] += interval_s / sqrt(control[COUNT])
        front += 1


@borrowing
def _demote(memory, ids, places, now_s, cores):
    """Moore and Hodgson on one machine as fast as all cores: who loses has rank 2.

    At `places` of `ids` deadlines rise. Whenever one would be missed, the longest so
    far goes.
    """
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


@borrowing
def _late(memory, model, ids, now_s, code):
    """The rule of the simpler designs with late binding; how many run and are dropped.

    Dropped is what can hardly be on time any more. The others go by deadline, by
    latest start (SLACK) or by estimate (SHORT). What would wait more than `slack_s` for
    a lock goes behind them; and behind those what an optimal selection for a single
    machine of the speed of all `cores` would give up, which is kept while there is
    hope.
    """
    made, b = memory.decided, len(ids)
    rank, key, finish_s = made.rank[:b], made.key[:b], made.finish_s[:b]
    schedule_into(memory, model, ids, now_s, np.bool_(True), finish_s)  # no literal
    dropped = 0
    for at in range(b):
        i = ids[at]
        deadline_s, service_s = memory.deadline_s[i], memory.estimated_s[i]
        made.service_s[at] = service_s
        key[at] = deadline_s
        if code.kind == SLACK:
            key[at] = deadline_s - service_s
        elif code.kind == SHORT:
            key[at] = service_s
        p = on_time_p(finish_s[at], deadline_s, now_s, model.spread)
        rank[at] = 0
        if p < code.least_p:
            rank[at] = HOPELESS
            made.dropped[dropped] = i
            dropped += 1
    places, kept = made.held[:b], b - dropped
    sort_into(places, made.order, rank, key)
    if code.cores > 0:
        _demote(memory, ids, places[:kept], now_s, code.cores)
    for at in places[:kept]:
        if finish_s[at] - made.service_s[at] > now_s + code.slack_s:
            rank[at] += 1
    sort_into(places, made.order, rank, key)
    for at in range(kept):
        made.order[at] = ids[places[at]]
    return kept, dropped


@borrowing
def _critical_first(memory, ids, code):
    """Write positions to `decided.held`: what the thesis calls critical first.

    As described, that is forecast to end within the band of its deadline; corrected, it
    has the least time left between forecast end and deadline, and what is hopeless, a
    band too late, goes last.
    """
    made, b = memory.decided, len(ids)
    rank, key = made.rank[:b], made.key[:b]
    for at in range(b):
        finish_s, deadline_s = made.finish_s[at], memory.deadline_s[ids[at]]
        if code.band:
            rank[at], key[at] = abs(finish_s - deadline_s) >= code.band_s, 0.0
        else:
            rank[at] = finish_s > deadline_s + code.band_s
            key[at] = deadline_s - finish_s
    sort_into(made.held[:b], made.dropped, rank, key)


@borrowing
def _drop_and_reorder(memory, model, ids, now_s, code):
    """The rule of the thesis; how many run and are dropped."""
    made, b = memory.decided, len(ids)
    finish_s, places = made.finish_s[:b], made.held[:b]
    forecasts = 2 if code.fresh else 1
    for turn in range(forecasts):
        schedule_into(memory, model, ids, now_s, turn + 1 == forecasts, finish_s)
        if turn + 1 < forecasts:
            _critical_first(memory, ids, code)
            for at in range(b):
                made.order[at] = ids[places[at]]
            ids = made.order[:b]
    if code.moves and not code.fresh:
        _critical_first(memory, ids, code)
    else:
        for at in range(b):
            places[at] = at
    kept = dropped = 0
    for at in places:
        i = ids[at]
        if code.drops and finish_s[at] > memory.deadline_s[i] + code.allowance_s:
            made.dropped[dropped] = i
            dropped += 1
        else:
            made.order[kept] = i
            kept += 1
    return kept, dropped


@borrowing
def _in_turn(code, memory, ids, now_s):
    """A queue that lets everybody in, or drops at its end, or at its front."""
    made, first, last = memory.decided, 0, len(ids)
    if code.kind == CAP:
        for at in range(len(ids)):
            made.service_s[at] = memory.estimated_s[ids[at]]
        last = _admitted(
            memory.control, made.service_s[: len(ids)], in_flight(memory), code.room_s
        )
    elif code.kind == CODEL:
        for at in range(len(ids)):
            made.key[at] = memory.deadline_s[ids[at]] - now_s
        left_s = made.key[: len(ids)]
        first = _controlled(
            memory.control, left_s, now_s, code.spare_s, code.interval_s
        )
    for at in range(first, last):
        made.order[at - first] = ids[at]
    for at in range(first):
        made.dropped[at] = ids[at]
    for at in range(last, len(ids)):
        made.dropped[at - last] = ids[at]
    return last - first, len(ids) - last + first


@borrowing
def _by_chance(code, memory, ids):
    """Each is dropped with one probability."""
    kept = dropped = 0
    for i in ids:
        if _coin(code.seed, i) < code.share:
            memory.decided.dropped[dropped] = i
            dropped += 1
        else:
            memory.decided.order[kept] = i
            kept += 1
    return kept, dropped


@borrowing
def _sorted(code, memory, ids):
    """By deadline or by estimate; all run."""
    made, b = memory.decided, len(ids)
    by = memory.deadline_s if code.kind == EDF else memory.estimated_s
    for at in range(b):
        made.rank[at], made.key[at] = 0, by[ids[at]]
    sort_into(made.held[:b], made.dropped, made.rank[:b], made.key[:b])
    for at in range(b):
        made.order[at] = ids[made.held[at]]
    return b, 0


# Apart from `decide_into`: in one function with them the rule of `bid-price` takes half
# as long again.
@borrowing
def _in_batches(code, memory, model, ids, now_s):
    """Every other rule that holds nothing."""
    if code.kind == RANDOM:
        return _by_chance(code, memory, ids)
    if code.kind in (EDF, SJF):
        return _sorted(code, memory, ids)
    if code.kind == BANDED:
        return _drop_and_reorder(memory, model, ids, now_s, code)
    return _late(memory, model, ids, now_s, code)


@borrowing
def decide_into(
    code: Code, memory: Memory, model: Model, ids: I64, now_s: float
) -> tuple[int, int, int]:
    """How many a policy with `code` orders, drops and holds of `ids` (b,), which rise.

    Which, stands at the front of the columns of `memory.decided`.
    """
    if code.kind == OURS:
        return bind_late(code.terms, memory, model, ids, now_s)
    if code.kind in (FIFO, CAP, CODEL):
        order, dropped = _in_turn(code, memory, ids, now_s)
    else:
        order, dropped = _in_batches(code, memory, model, ids, now_s)
    return order, dropped, 0


@njit(cache=True)
def decide_compiled(
    code: Code, memory: Memory, model: Model, ids: I64, now_s: float
) -> tuple[I64, I64, I64]:
    """What a policy with `code` orders, drops and holds of `ids` (b,), which rise."""
    order, dropped, held = decide_into(code, memory, model, ids, now_s)
    made = memory.decided
    return (
        made.order[:order].copy(),
        made.dropped[:dropped].copy(),
        made.held[:held].copy(),
    )
