"""Late binding at a price: what to release now, what to hold, what to refuse.

The rule of the policy `bid-price`. The sequencer keeps whatever cannot start at once,
and decides on all of it again at every commit and every arrival. It learns while it
runs, from what it may observe alone:

- *calibration* (`recalibration.Online`): how long the committed took, against their
  estimates, corrects the estimates and says how probable it is to be on time;
- *probes*: a refusal that rests on an estimate alone teaches nothing, since only
  commits do. So some of those go in all the same (`recalibration.doubt`);
- *price*: the longest service that is worth its place on a core. It falls whenever a
  shorter one has to be refused and rises whenever a longer one can start, so that
  nothing but the load sets it;
- *reservations*: who has to wait for a lock closes its rows to those who would hold
  them beyond the latest time at which it can start; who ends earlier may pass.

Reservations that others may pass are the slack-based backfilling of batch schedulers:
Talby and Feitelson, IPPS 1999.
"""

from math import exp, log
from typing import NamedTuple

import numpy as np
from numba import njit

from thesis_lib.sequencer.core.events import LOGGED
from thesis_lib.sequencer.core.locks import NONE, borrowing, forget, free_at, register
from thesis_lib.sequencer.core.trace import F64, I64, Bool
from thesis_lib.sequencer.policies.lookahead import (
    PENDING,
    READ,
    Memory,
    Model,
    forget_releases,
    learn_commits,
    predict_releases,
)
from thesis_lib.sequencer.policies.recalibration import (
    MEAN_Y,
    allowance,
    corrected_s,
    doubt,
    octave,
)

# Positions in `Memory.control`; behind them a share of violations for each group and
# then the logarithm of the weight of each.
PRICE_S, HIGHEST_S, PRESSURE, GROUPS = range(4)
HEAVIEST = log(100.0)
PRESSED = 0.01  # weight of the last decision in `PRESSURE`
SHIFTS = 4  # of a position, in the mean, up to which insertion is faster
FADING = 0.002  # weight of the last outcome in a group's share


class BidPriceParameters(NamedTuple):
    """The one configuration of `bid-price`, chosen on design seeds (chapter 3)."""

    step: float = 0.05  # by which the price falls at a refusal, of itself
    relief: float = 0.3  # share of that by which it rises at a start above it
    full: float = 0.2  # share of decisions that press which is full pressure
    least_p: float = 0.3  # refused below this probability of being on time,
    pressed_p: float = 0.8  # and below this one under full pressure
    haste: float = 2.0  # services that a deadline counts later, under full pressure
    patience: float = 0.25  # typical services that one may wait once released
    reserve: float = 2.0  # services from the latest start reserved to the deadline
    window: float = 500.0  # commits that calibration remembers; with 0 there is none
    probe: float = 50.0  # of so many doubted on estimates alone, one goes in
    gap: float = np.inf  # most that a group's share may exceed the smallest one


def initial_state(slo_s: float, groups: int) -> F64:
    """What `bind_late` remembers at first: everything is worth its place."""
    control = np.zeros(GROUPS + 2 * groups)
    control[PRICE_S] = control[HIGHEST_S] = slo_s
    return control


@borrowing
def group_count(control: F64) -> int:
    """How many groups what is remembered tells apart."""
    return (len(control) - GROUPS) // 2


@njit(cache=True)
def _settle(control, terms, group, violated):
    """Who is violated more often than others, by more than the gap, weighs more."""
    groups = group_count(control)
    shares = control[GROUPS : GROUPS + groups]
    weights = control[GROUPS + groups :]
    shares[group] += FADING * (violated - shares[group])
    excess = shares[group] - shares.min() - terms.gap
    if terms.gap < np.inf:
        weights[group] = min(max(weights[group] + terms.step * excess, 0.0), HEAVIEST)


@njit(cache=True)
def ranked(rank: I64, key: F64) -> I64:
    """Positions (b,) by rank, then by key, stable.

    By insertion, since whoever came earlier is due earlier as a rule, until that has
    moved SHIFTS positions for each; then by merging.
    """
    order, shifts = np.empty(len(key), np.int64), 0
    for at in range(len(key)):
        to = at
        while to > 0 and (
            rank[order[to - 1]] > rank[at]
            or (rank[order[to - 1]] == rank[at] and key[order[to - 1]] > key[at])
        ):
            order[to] = order[to - 1]
            to -= 1
        order[to] = at
        shifts += at - to
        if shifts > SHIFTS * len(key):
            by_key = np.argsort(key, kind="mergesort")
            return by_key[np.argsort(rank[by_key], kind="mergesort")]
    return order


@borrowing
def _nothing_frees(memory, due_s):
    """Every core runs something that is predicted to last beyond `due_s`."""
    start_s, estimated_s = memory.world.start_s, memory.estimated_s
    for i in memory.world.running:
        if i == NONE or start_s[i] + estimated_s[i] <= due_s:
            return False
    return True


@njit(cache=True)
def bind_late(
    terms: BidPriceParameters, memory: Memory, model: Model, ids: I64, now_s: float
) -> tuple[I64, Bool]:
    """Which `ids` (b,) to release, as positions in order, and which to refuse.

    0. If no core will be free for whoever is released now, hold them all.
    1. Learn from what has committed, and calibrate every estimate that counts here.
    2. Predict when each core and each row will be free of what has been released.
    3. Refuse who would hardly be on time even if released next; how hardly rises with
       the pressure. The price falls for each that is below it. Whom its estimate alone
       would refuse, had nobody been there when it was first seen, is doubted: it may be
       a probe, which is refused only once its time is up, and counts as above the price
       until estimates like its own are refuted.
    4. By deadline, which counts the later the longer a service is and the higher the
       pressure, and behind all others who is above the price: release who finds a core
       and its rows free and no reservation in its way; a dispatch that takes time may
       be sent a little ahead. Who has to wait, and is not above the price, reserves.

    A decision presses if it refuses who is above the price, or releases it while
    somebody else waits; the share of such decisions is the pressure. The work is one
    look at each of `ids`, and their order.
    """
    b, control, ends_s = len(ids), memory.control, memory.ends_s
    refused, above = np.zeros(b, np.bool_), np.zeros(b, np.bool_)
    typical_s = exp(memory.online.moments[MEAN_Y])
    ahead_s = min(model.lag_s, terms.patience * typical_s)
    online, fits = memory.online, memory.online.fits
    given, asked_s, probes = online.given, online.asked_s, online.probes
    for at in range(b - 1, -1, -1):
        if not np.isnan(asked_s[ids[at]]):
            break
        asked_s[ids[at]] = now_s
    if _nothing_frees(memory, now_s + model.lag_s + ahead_s):
        return ids[:0], refused
    weights = control[GROUPS + group_count(control) :]
    counts, logged = memory.counts, memory.world.progress[LOGGED]
    seen = np.empty(counts[PENDING] + logged - counts[READ], np.int64)
    for at in range(learn_commits(memory, terms.window, seen)):
        i = seen[at]
        late = memory.world.finish_s[i] > memory.deadline_s[i]
        _settle(control, terms, memory.group[i], late)
    core_s = np.empty(len(memory.world.running))
    due_s = predict_releases(memory, model, ids, now_s, core_s)
    keys, closed_s, group = memory.keys, memory.closed_s, memory.group
    deadline_s, service_s = memory.deadline_s[ids], memory.estimated_s[ids]
    core = core_s.argmin()
    rank = np.zeros(b, np.int64)
    pressure = min(control[PRESSURE] / terms.full, 1.0)
    least_p = terms.least_p + pressure * (terms.pressed_p - terms.least_p)
    price_s, factor = control[PRICE_S], allowance(memory.online, least_p)
    for at in range(b):
        i = ids[at]
        needs_s = factor * service_s[at]
        alone = asked_s[i] + needs_s > deadline_s[at]
        if alone and not probes[i] and terms.window > 0:
            doubt(online, i, least_p, terms.probe)
            service_s[at] = memory.estimated_s[i] = corrected_s(online, i)
        above[at] = service_s[at] > price_s * exp(weights[group[i]])
        if probes[i]:
            needs_s = 0.0
            above[at] |= fits[octave(float(given[i]))] < least_p
        start_s = max(free_at(keys, ends_s, i, due_s), core_s[core])
        if start_s + needs_s > deadline_s[at]:
            refused[at] = True
            control[PRESSURE] += PRESSED * (above[at] - control[PRESSURE])
            _settle(control, terms, group[i], True)
            if not above[at]:
                control[PRICE_S] *= exp(-terms.step)
        rank[at] = 2 * refused[at] + above[at]
    key = deadline_s + terms.haste * pressure * service_s
    order = ranked(rank, key)
    released, ended, reserves = np.empty(b, np.int64), 0, 0
    for place in range(b):
        at, core = order[place], core_s.argmin()
        if refused[at] or core_s[core] > due_s + ahead_s:
            break
        i = ids[at]
        free_s = free_at(keys, ends_s, i, due_s)
        end_s = max(free_s, core_s[core]) + service_s[at]
        if free_s > due_s + ahead_s or end_s > -free_at(keys, closed_s, i, -np.inf):
            if not above[at]:
                latest_s = deadline_s[at] - terms.reserve * service_s[at]
                register(keys, closed_s, i, -latest_s)
                reserves += 1
            continue
        core_s[core] = end_s
        register(keys, ends_s, i, end_s)
        released[ended] = at
        ended += 1
        presses = above[at] and place + 1 < b and not refused[order[place + 1]]
        control[PRESSURE] += PRESSED * (presses - control[PRESSURE])
        if above[at]:
            dearer_s = control[PRICE_S] * exp(terms.relief * terms.step)
            control[PRICE_S] = min(dearer_s, control[HIGHEST_S])
    forget_releases(memory, ids)
    if reserves > 0:
        for i in ids:
            forget(keys, closed_s, i)
    return released[:ended], refused
