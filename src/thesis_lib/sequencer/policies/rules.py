"""The rules of all policies, compiled: what a batch and its forecast are made into.

Simulator, partitions and live engine call `decide_compiled` with the `Code` of a policy
(`registry.policy`). The rule of `bid-price` is in `admission`.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np
from numba import njit

from thesis_lib.sequencer.core.trace import F64, I64, Bool
from thesis_lib.sequencer.policies.admission import (
    BidPriceParameters,
    bind_late,
    ranked,
)
from thesis_lib.sequencer.policies.lookahead import (
    Memory,
    Model,
    in_flight,
    probability_on_time,
    schedule,
)

# Kinds of code, and positions in what `queue-cap` and `codel` remember.
FIFO, RANDOM, BANDED, EDF, SJF, LATE, SLACK, SHORT, CAP, CODEL, OURS = range(11)
SEEN, TOTAL = range(2)
ABOVE, NEXT, COUNT, DROPPING = range(4)


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


@njit(cache=True)
def _coin(seed, i):
    """The coin of `random-drop`, in [0, 1): it depends on `seed` and the id alone."""
    number = np.uint64(i) + np.uint64(seed) + np.uint64(1)
    mixed = mix(number * np.uint64(0x9E3779B97F4A7C15))
    return np.float64(mixed >> np.uint64(11)) / 2.0**53


@njit(cache=True)
def _admitted(control: F64, service_s: F64, in_flight: int, room_s: float) -> int:
    """How many `queue-cap` lets in, who refuses whoever finds the system full.

    Full are `room_s` over the mean estimate of all that came so far: by Little's law a
    cap on latency at any load, if cores are what is short. `control` (4,), that mean,
    is changed.
    """
    control[SEEN] += len(service_s)
    control[TOTAL] += service_s.sum()
    admitted = 0
    while admitted < len(service_s) and (
        in_flight + admitted == 0
        or (in_flight + admitted + 1) * control[TOTAL] <= room_s * control[SEEN]
    ):
        admitted += 1
    return admitted


@njit(cache=True)
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


@njit(cache=True)
def _demote(deadline_s: F64, service_s: F64, now_s: float, cores: int) -> Bool:
    """Moore and Hodgson on one machine as fast as all cores; (b,) who loses.

    `deadline_s` rises. Whenever a deadline would be missed, the longest so far goes.
    """
    loses = np.zeros(len(deadline_s), np.bool_)
    end_s = now_s
    for at in range(len(deadline_s)):
        end_s += service_s[at] / cores
        if end_s > deadline_s[at]:
            longest = -1
            for other in range(at + 1):
                if not loses[other] and (
                    longest < 0 or service_s[other] > service_s[longest]
                ):
                    longest = other
            loses[longest] = True
            end_s -= service_s[longest] / cores
    return loses


@njit(cache=True)
def _late(memory, model, ids, now_s, code):
    """The rule of the simpler designs with late binding: in order, and who is dropped.

    Dropped is what can hardly be on time any more. The others go by deadline, by
    latest start (SLACK) or by estimate (SHORT). What would wait more than `slack_s` for
    a lock goes behind them; and behind those what an optimal selection for a single
    machine of the speed of all `cores` would give up, which is kept while there is
    hope.
    """
    finish_s = schedule(memory, model, ids, now_s, True)
    deadline_s, service_s = memory.deadline_s[ids], memory.estimated_s[ids]
    on_time = probability_on_time(finish_s, deadline_s, now_s, model.spread)
    hopeless = on_time < code.least_p
    by_s = deadline_s
    if code.kind == SLACK:
        by_s = deadline_s - service_s
    elif code.kind == SHORT:
        by_s = service_s
    first = ranked(np.zeros(len(ids), np.int64), by_s)
    first = first[~hopeless[first]]
    rank = np.zeros(len(ids), np.int64)
    if code.cores > 0:
        loses = _demote(deadline_s[first], service_s[first], now_s, code.cores)
        rank[first[loses]] = 2
    for at in first:
        if finish_s[at] - service_s[at] > now_s + code.slack_s:
            rank[at] += 1
    order = np.empty(len(first), np.int64)
    front = 0
    for turn in range(4):
        for at in first:
            if rank[at] == turn:
                order[front] = at
                front += 1
    return order, hopeless


@njit(cache=True)
def _critical_first(finish_s, deadline_s, code):
    """Positions, stable: what the thesis calls critical first.

    As described, that is forecast to end within the band of its deadline; corrected, it
    has the least time left between forecast end and deadline, and what is hopeless, a
    band too late, goes last.
    """
    order = np.empty(len(finish_s), np.int64)
    if code.band:
        front = 0
        for critical in (True, False):
            for at in range(len(finish_s)):
                if (abs(finish_s[at] - deadline_s[at]) < code.band_s) == critical:
                    order[front] = at
                    front += 1
        return order
    hopeless = finish_s > deadline_s + code.band_s
    return ranked(hopeless.astype(np.int64), deadline_s - finish_s)


@njit(cache=True)
def _drop_and_reorder(memory, model, ids, now_s, code):
    """The rule of the thesis: ids in order, and who is dropped."""
    if code.fresh:
        finish_s = schedule(memory, model, ids, now_s, False)
        ids = ids[_critical_first(finish_s, memory.deadline_s[ids], code)]
    finish_s = schedule(memory, model, ids, now_s, True)
    deadline_s = memory.deadline_s[ids]
    late = np.zeros(len(ids), np.bool_)
    if code.drops:
        late[:] = finish_s > deadline_s + code.allowance_s
    if code.moves and not code.fresh:
        order = _critical_first(finish_s, deadline_s, code)
        ids, late = ids[order], late[order]
    return ids[~late], ids[late]


@njit(cache=True)
def decide_compiled(
    code: Code, memory: Memory, model: Model, ids: I64, now_s: float
) -> tuple[I64, I64, I64]:
    """What a policy with `code` orders, drops and holds of `ids` (b,), which rise."""
    none = ids[:0]
    if code.kind == OURS:
        order, refused = bind_late(code.terms, memory, model, ids, now_s)
        held = ~refused
        held[order] = False
        return ids[order], ids[refused], ids[held]
    if code.kind == FIFO:
        return ids, none, none
    if code.kind == RANDOM:
        lost = np.empty(len(ids), np.bool_)
        for at in range(len(ids)):
            lost[at] = _coin(code.seed, ids[at]) < code.share
        return ids[~lost], ids[lost], none
    if code.kind in (EDF, SJF):
        by = memory.deadline_s if code.kind == EDF else memory.estimated_s
        return ids[ranked(np.zeros(len(ids), np.int64), by[ids])], none, none
    if code.kind == CAP:
        front = _admitted(
            memory.control, memory.estimated_s[ids], in_flight(memory), code.room_s
        )
        return ids[:front], ids[front:], none
    if code.kind == CODEL:
        left_s = memory.deadline_s[ids] - now_s
        front = _controlled(
            memory.control, left_s, now_s, code.spare_s, code.interval_s
        )
        return ids[front:], ids[:front], none
    if code.kind == BANDED:
        kept, lost = _drop_and_reorder(memory, model, ids, now_s, code)
        return kept, lost, none
    order, hopeless = _late(memory, model, ids, now_s, code)
    return ids[order], ids[hopeless], none
