"""The policy `bid-price`: late binding at a price.

The sequencer holds transactions that cannot start yet, and decides again on all of them
at every commit and arrival. It learns from commits only:

- *calibration* (`recalibration.Online`) corrects estimates by the observed service
  times and gives the probability of being on time;
- *probes* (`recalibration.doubt`) are admitted although their estimate alone would
  reject them, since a rejection gives no observation;
- the *price* is the longest service that is worth a core. It falls when a shorter
  transaction is rejected, and rises when a longer one can start;
- a *reservation* closes the rows of a waiting transaction to others that would hold
  them too long: slack-based backfilling (Talby and Feitelson, IPPS 1999).
"""

from math import exp, log
from typing import NamedTuple

import numpy as np

from thesis_lib.common.compiled import njit
from thesis_lib.sequencer.core.locks import (
    CLOSED,
    ENDS,
    NONE,
    borrowing,
    enter,
    inner,
    known_free_at,
    leave,
    let_know,
)
from thesis_lib.sequencer.core.trace import F64, I64
from thesis_lib.sequencer.policies.lookahead import (
    DECISION,
    PENDING,
    READ,
    Memory,
    Model,
    learn_commits,
    occupy,
    predict_releases,
)
from thesis_lib.sequencer.policies.recalibration import (
    LONGEST,
    MEAN_X,
    MEAN_Y,
    SHORTEST,
    SLOPE,
    SOONEST,
    SPAN,
    allowance,
    corrected_s,
    doubt,
    octave,
    regressed_s,
)

# Positions in `Memory.control`; behind them a share of violations for each group and
# then the logarithm of the weight of each.
PRICE_S, HIGHEST_S, GROUPS = range(3)
HEAVIEST = log(100.0)
BLOCK = 16  # positions that are sorted by insertion
WORTHY, ABOVE, UNSURE, REFUSED = range(4)  # ranks
RELEASED = -1  # has none any more
FADING = 0.002  # weight of the last outcome in a group's share
FAR, CHORD = 1000.0, 1.0615  # exponents that are no time; most a chord is too large
LAST = np.iinfo(np.int64).max  # behind every id


class BidPriceParameters(NamedTuple):
    """The one configuration of `bid-price`, chosen on design seeds (chapter 3)."""

    step: float = 0.05  # relative fall of the price at a rejection
    price_recovery: float = 0.3  # rise at a start above the price, as a share of step
    least_p: float = 0.3  # reject below this probability of being on time
    confidence_threshold: float = 0.9  # below it, queue behind all others
    deadline_weight: float = 2.0  # services added to deadlines if not all are confident
    max_wait: float = 1.0  # typical services to wait for a core after the release
    reservation_window: float = 2.0  # services before a deadline that others leave free
    window: float = 500.0  # commits that the calibration uses; 0 disables it
    exploration_period: float = 50.0  # doubted transactions for each that is a probe
    gap: float = np.inf  # largest excess of a group's share over the smallest share
    groups: int = 1  # groups of transactions whose shares of violations are compared


def initial_state(slo_s: float, groups: int) -> F64:
    """Return the first state of `bind_late`: the price is the SLO, which admits all."""
    control = np.zeros(GROUPS + 2 * groups)
    control[PRICE_S] = control[HIGHEST_S] = slo_s
    return control


@borrowing
def group_count(control: F64) -> int:
    """Return the number of groups in `control`."""
    return (len(control) - GROUPS) // 2


@inner
def _settle(control, terms, group, violated):
    """Increase the weight of types whose violation rate exceeds the least by `gap`."""
    groups = group_count(control)
    shares = control[GROUPS : GROUPS + groups]
    weights = control[GROUPS + groups :]
    shares[group] += FADING * (violated - shares[group])
    excess = shares[group] - shares[shares.argmin()] - terms.gap
    if terms.gap < np.inf:
        weights[group] = min(max(weights[group] + terms.step * excess, 0.0), HEAVIEST)


@borrowing
def sort_into(order: I64, spare: I64, rank: I64, key: F64) -> None:
    """Write to `order` (b,) the positions by rank, then by key, stable.

    Earlier arrivals mostly have earlier deadlines, so blocks are sorted by insertion
    and merged where they overlap, with `spare` (b,) as work space.
    """
    n, width = len(key), BLOCK
    for at in range(n):
        to = at
        while to % BLOCK > 0 and (
            rank[order[to - 1]] > rank[at]
            or (rank[order[to - 1]] == rank[at] and key[order[to - 1]] > key[at])
        ):
            order[to] = order[to - 1]
            to -= 1
        order[to] = at
    while width < n:
        for first in range(0, n - width, 2 * width):
            left, middle, last = first, first + width, min(first + 2 * width, n)
            a, b = order[middle - 1], order[middle]
            if rank[a] < rank[b] or (rank[a] == rank[b] and key[a] <= key[b]):
                continue
            for at in range(first, middle):
                spare[at] = order[at]
            right = middle
            for to in range(first, last):
                if left == middle:
                    break
                a, b = spare[left], order[min(right, last - 1)]
                if right < last and (
                    rank[a] > rank[b] or (rank[a] == rank[b] and key[a] > key[b])
                ):
                    order[to] = b
                    right += 1
                else:
                    order[to] = a
                    left += 1
        width *= 2


@njit(cache=True, inline="always")
def _dearer(price_s, weight):
    """The price of a group; nearly always of no weight, which costs no exponential."""
    return price_s * exp(weight) if weight != 0 else price_s


@njit(cache=True, inline="always")
def _rise(control, terms):
    """One above the price could start."""
    dearer_s = control[PRICE_S] * exp(terms.price_recovery * terms.step)
    control[PRICE_S] = min(dearer_s, control[HIGHEST_S])


@inner
def _something_frees(memory, due_s):
    """Return whether a core is predicted to be free by `due_s`."""
    start_s, estimated_s = memory.world.start_s, memory.estimated_s
    for i in memory.world.running:
        if i == NONE or start_s[i] + estimated_s[i] <= due_s:
            return True
    return False


@inner
def _learn(terms, memory):
    """Learn from new commits; return whether the estimates need calibration."""
    keys, uncommitted, counts = memory.keys, memory.uncommitted, memory.counts
    log, pending, estimates_s = memory.world.log, memory.pending, memory.estimated_s
    seen = memory.decided.order  # nothing is in it yet
    read = counts[READ]
    seen_n = learn_commits(memory, terms.window, seen)
    for at in range(seen_n):
        i = log[seen[at]]
        late = memory.world.finish_s[i] > memory.deadline_s[i]
        _settle(memory.control, terms, memory.group[i], late)
        if seen[at] < read:
            leave(keys, uncommitted, i)
    at = counts[PENDING] - 1
    while at >= 0 and pending[at] >= read:
        i = log[pending[at]]
        enter(keys, uncommitted, i)
        estimates_s[i] = corrected_s(memory.online, i)  # others may have sent it
        at -= 1
    return seen_n > 0 and terms.window > 0


@inner
def _judge(terms, memory, ids, due_s, ahead_s):
    """Write ranks and keys and lower the price; return how many stay, free."""
    control, online, keys, uncommitted = (
        memory.control, memory.online, memory.keys, memory.uncommitted,
    )  # fmt: skip
    _, _, _, rank, key, took_s, free_s, core_s = memory.decided
    number, startable = memory.counts[DECISION], 0
    group, probes, asked_s = memory.group, online.probes, online.asked_s
    weights = control[GROUPS + group_count(control) :]
    price_s, factor = control[PRICE_S], allowance(online, terms.least_p)
    sure_factor, weighted = allowance(online, terms.confidence_threshold), False
    for at in range(len(ids)):
        i = ids[at]
        deadline_s, service_s = memory.deadline_s[i], memory.estimated_s[i]
        needs_s = factor * service_s
        alone = asked_s[i] + needs_s > deadline_s
        if alone and not probes[i] and terms.window > 0:
            doubt(online, i, terms.least_p, terms.exploration_period)
            service_s = memory.estimated_s[i] = corrected_s(online, i)
        above = service_s > _dearer(price_s, weights[group[i]])
        if probes[i]:
            needs_s = 0.0
            above |= online.fits[octave(float(online.given[i]))] < terms.least_p
        free_s[at] = known_free_at(keys, uncommitted, number, ENDS, i, due_s)
        start_s = max(free_s[at], core_s[0])
        refused = start_s + needs_s > deadline_s
        if refused:
            _settle(control, terms, group[i], refused)
            if not above:
                control[PRICE_S] *= exp(-terms.step)
        unsure = not probes[i] and start_s + sure_factor * service_s > deadline_s
        rank[at] = ABOVE if above else WORTHY
        if refused or unsure:
            rank[at] = REFUSED if refused else UNSURE
        weighted |= rank[at] >= UNSURE
        startable += not refused and free_s[at] <= due_s + ahead_s
        key[at] = deadline_s
        took_s[at] = service_s
    if weighted:
        for at in range(len(ids)):
            key[at] += terms.deadline_weight * took_s[at]
    return startable


@inner
def _start(terms, memory, ids, due_s, ahead_s, startable):
    """Release by rank and key who can start; who has to wait reserves. How many."""
    control, keys, uncommitted = memory.control, memory.keys, memory.uncommitted
    number = memory.counts[DECISION]
    released, _, places, rank, key, service_s, free_s, core_s = memory.decided
    b = len(ids)
    sort_into(places[:b], released, rank[:b], key[:b])
    count = 0
    for place in range(b):
        at = places[place]
        if startable == 0 or core_s[0] > due_s + ahead_s:
            break
        i, worth, end_s = ids[at], rank[at], np.inf
        waits = free_s[at] > due_s + ahead_s
        if not waits:  # for who was in flight; others have been released since
            startable -= 1
            begin_s = known_free_at(keys, uncommitted, number, ENDS, i, due_s)
            end_s = max(begin_s, core_s[0]) + service_s[at]
            closed_s = -known_free_at(keys, uncommitted, number, CLOSED, i, -np.inf)
            waits = begin_s > due_s + ahead_s or end_s > closed_s
        if waits:
            if worth == WORTHY:
                latest_s = (
                    memory.deadline_s[i] - terms.reservation_window * service_s[at]
                )
                let_know(keys, uncommitted, number, CLOSED, i, -latest_s)
            continue
        occupy(core_s, 0, end_s)
        let_know(keys, uncommitted, number, ENDS, i, end_s)
        rank[at] = RELEASED
        released[count] = i
        count += 1
        if worth == ABOVE:
            _rise(control, terms)
    return count


# --- Where nothing locks ----------------------------------------------------------
# For most waiting transactions, two comparisons prove that they can neither be rejected
# nor start now, one by one or for a whole span; nothing else is computed for them.


@njit(cache=True, inline="always")
def _at_most(exponent):
    """Return 2**x or up to 6.2 % more (Schraudolph, Neural Computation 1999)."""
    if exponent > FAR:
        return np.inf
    bits = np.int64((max(exponent, -FAR) + 1023.0) * 2.0**52)
    return bits.view(np.float64) * (1 + 1e-9)


@njit(cache=True, inline="always")
def _at_least(exponent):
    """Two to this power, or up to 6.2 % less."""
    return _at_most(min(exponent, FAR)) / CHORD if exponent > -FAR else 0.0


@njit(cache=True, inline="always")
def _line(online):
    """Slope and intercept of the calibrated estimate's logarithm to base two."""
    moments = online.moments
    slope = moments[SLOPE] / log(2.0)
    return slope, moments[MEAN_Y] / log(2.0) - slope * moments[MEAN_X]


@njit(cache=True, inline="always")
def _place_of(rising, low, high, i):
    """Return the first place from `low` to `high` in `rising` with i or more."""
    while low < high:
        middle = (low + high) // 2
        if rising[middle] < i:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, inline="always")
def _end_of_span(ids, at):
    """The place behind the last of `ids` in the span of the one at `at`."""
    behind = (ids[at] // SPAN + 1) * SPAN
    end = at + behind - ids[at]  # if none has left
    if end < len(ids) and ids[end] == behind:
        return end
    return _place_of(ids, at + 1, min(end, len(ids)), behind)


@inner
def _join(online, i, deadline_s):
    """Widen the bounds of its span for a new transaction."""
    span, log_s = online.spans[i // SPAN], online.given[i]
    span[SOONEST] = min(span[SOONEST], deadline_s)
    span[LONGEST] = max(span[LONGEST], log_s)
    span[SHORTEST] = min(span[SHORTEST], log_s)


@njit(cache=True, inline="always")
def _may_be_late(log_s, deadline_s, latest_s, line):
    """Return whether one started at `latest_s` = (start, allowance) may be."""
    return latest_s[0] + latest_s[1] * _at_most(line[1] + line[0] * log_s) > deadline_s


@inner
def _pick(memory, ids, latest_s):
    """Write late transactions and probes to `decided.dropped`; count them."""
    online, deadlines_s, picked = (
        memory.online, memory.deadline_s, memory.decided.dropped,
    )  # fmt: skip
    logs, probes, spans, line = (
        online.given, online.probes, online.spans, _line(online),
    )  # fmt: skip
    at = count = 0
    while at < len(ids):
        span, end = spans[ids[at] // SPAN], _end_of_span(ids, at)
        if _may_be_late(span[LONGEST], span[SOONEST], latest_s, line):
            start, soonest_s, longest, shortest = count, np.inf, -np.inf, np.inf
            for i in ids[at:end]:
                if _may_be_late(logs[i], deadlines_s[i], latest_s, line) or probes[i]:
                    memory.estimated_s[i] = corrected_s(online, i)
                    picked[count] = i
                    count += 1
                soonest_s = min(soonest_s, deadlines_s[i])
                longest, shortest = max(longest, logs[i]), min(shortest, logs[i])
            span[SOONEST] = soonest_s if count == start else -np.inf
            span[LONGEST], span[SHORTEST] = longest, shortest
        at = end
    return count


@njit(cache=True, inline="always")
def _is_behind(first, i, deadline_s, log_s, price_s, weight, line):
    """Return whether i, or a span from i, surely comes after `first`."""
    rank, key, number = first
    if rank == WORTHY and deadline_s > key:
        return True
    least_s = _at_least(line[1] + line[0] * log_s)
    least_rank, least_key = WORTHY, deadline_s + weight * least_s
    if least_s > price_s:
        least_rank = ABOVE
    behind = least_key > key or (least_key == key and i > number)
    return least_rank > rank or (least_rank == rank and behind)


@inner
def _first(memory, ids, few, latest_s, started, price_s, weight):
    """Return the next by rank, key and number: its id, rank and place, or NONE."""
    online, deadlines_s, decided = memory.online, memory.deadline_s, memory.decided
    logs, probes, spans, line = (
        online.given, online.probes, online.spans, _line(online),
    )  # fmt: skip
    first, place, at = (REFUSED, -np.inf, NONE), NONE, 0
    for one in range(len(few)):
        other = decided.rank[one], decided.key[one], few[one]
        if other[0] != RELEASED and other < first:
            first, place = other, one
    while at < len(ids):
        span, end = spans[ids[at] // SPAN], _end_of_span(ids, at)
        soonest_s, shortest = span[SOONEST], span[SHORTEST]
        if not _is_behind(first, ids[at], soonest_s, shortest, price_s, weight, line):
            for i in ids[at:end]:
                deadline_s = deadlines_s[i]
                if _is_behind(first, i, deadline_s, logs[i], price_s, weight, line):
                    continue
                picked = _may_be_late(logs[i], deadline_s, latest_s, line)
                if picked or probes[i] or i in started:
                    continue
                service_s, rank, key = corrected_s(online, i), WORTHY, deadline_s
                if service_s > price_s:
                    rank = ABOVE
                if weight > 0:
                    key += weight * service_s
                if (rank, key, i) < first:
                    first, place = (rank, key, i), NONE
        at = end
    return first[2], first[0], place


@inner
def _hold_others(ids, order, dropped, held):
    """Write to `held` who is in neither; how many. `ids` and `dropped` rise."""
    count = at = refused = 0
    while at < len(ids):
        while refused < len(dropped) and dropped[refused] < ids[at]:
            refused += 1
        gone = dropped[refused] if refused < len(dropped) else LAST
        for i in order:
            if ids[at] <= i < gone:
                gone = i
        end = _place_of(ids, at, len(ids), gone)
        rest, to = ids[at:end], held[count : count + end - at]
        for place in range(len(rest)):
            to[place] = rest[place]
        count, at = count + end - at, end + 1
    return count


@inner
def _bind_freely(terms, memory, ids, due_s, ahead_s):
    """Steps 3 and 4 of `bind_late` without declared keys and with equal groups."""
    control, online, out = memory.control, memory.online, memory.decided
    core_s, rank, price_s = out.core_s, out.rank, control[PRICE_S]
    factor = max(
        allowance(online, terms.least_p), allowance(online, terms.confidence_threshold)
    )
    latest_s = max(due_s, core_s[0]), factor
    few = out.dropped[: _pick(memory, ids, latest_s)]
    _judge(terms, memory, few, due_s, ahead_s)
    weight = 0.0
    for at in range(len(few)):
        if rank[at] >= UNSURE:
            weight = terms.deadline_weight
    released = 0
    while core_s[0] <= due_s + ahead_s:
        started = out.order[:released]
        i, worth, place = _first(memory, ids, few, latest_s, started, price_s, weight)
        if i == NONE:
            break
        service_s = memory.estimated_s[i] = corrected_s(online, i)
        occupy(core_s, 0, max(due_s, core_s[0]) + service_s)
        if place != NONE:
            rank[place] = RELEASED
        if worth == ABOVE:
            _rise(control, terms)
        out.order[released] = i
        released += 1
    dropped = 0
    for at in range(len(few)):
        if rank[at] == REFUSED:
            out.dropped[dropped] = few[at]
            dropped += 1
    refused, order = out.dropped[:dropped], out.order[:released]
    return released, dropped, _hold_others(ids, order, refused, out.held)


@inner
def bind_late(
    terms: BidPriceParameters, memory: Memory, model: Model, ids: I64, now_s: float
) -> tuple[int, int, int]:
    """Write to `memory.decided` which `ids` (b,) to release, in order, reject and hold.

    Return the number of each. The steps:

    0. Hold all if no core will be free for a transaction that is released now.
    1. Learn from the commits and calibrate the estimates.
    2. Predict when each core and row will be free.
    3. Reject transactions that would be late even if released next; the price falls for
       each below it. If the estimate alone rejects one, it is doubted and may become a
       probe, which counts as above the price.
    4. In order of rank and weighted deadline, release transactions that find a core and
       their rows free and no reservation in their way. A confident one below the price
       that has to wait reserves its rows.
    """
    released = dropped = held = 0
    rank, asked_s = memory.decided.rank, memory.online.asked_s
    free = len(memory.keys[1]) == 0 and terms.gap == np.inf
    typical_s = exp(memory.online.moments[MEAN_Y])
    ahead_s = min(model.lag_s, terms.max_wait * typical_s)
    for at in range(len(ids) - 1, -1, -1):
        if not np.isnan(asked_s[ids[at]]):
            break
        asked_s[ids[at]] = now_s
        memory.estimated_s[ids[at]] = regressed_s(memory.online, ids[at])
        if free:
            _join(memory.online, ids[at], memory.deadline_s[ids[at]])
    if not _something_frees(memory, now_s + model.lag_s + ahead_s):
        return 0, 0, _hold_others(ids, ids[:0], ids[:0], memory.decided.held)
    memory.counts[DECISION] += 1
    news, core_s = _learn(terms, memory), memory.decided.core_s
    known = ids[:0] if free else ids
    due_s = predict_releases(memory, model, known, now_s, core_s, news)
    if free:
        return _bind_freely(terms, memory, ids, due_s, ahead_s)
    startable = _judge(terms, memory, ids, due_s, ahead_s)
    if startable > 0:
        released = _start(terms, memory, ids, due_s, ahead_s, startable)
    for at in range(len(ids)):
        if rank[at] == REFUSED:
            memory.decided.dropped[dropped] = ids[at]
            dropped += 1
        elif rank[at] != RELEASED:
            memory.decided.held[held] = ids[at]
            held += 1
    return released, dropped, held
