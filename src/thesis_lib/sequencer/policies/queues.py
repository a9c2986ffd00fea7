"""Queue management of production systems, without estimates of single services.

Each is written from its published description. They reject at arrival and leave the
order alone, but for the two that hold a queue of their own. What they remember between
decisions stands in `Memory.control`, which starts with zeros.
"""

from math import sqrt

import numpy as np

from thesis_lib.sequencer.core.locks import NONE, inner
from thesis_lib.sequencer.core.trace import F64
from thesis_lib.sequencer.policies.lookahead import (
    PENDING,
    Memory,
    in_flight,
    learn_commits,
)

# Positions in `Memory.control`, of `queue-cap`, `codel`, `gradient2`, and so on.
SEEN, TOTAL = range(2)
ABOVE, NEXT, COUNT, DROPPING = range(4)
LIMIT, RENEWED, LONG, LONG_COUNT, SUM, NUMBER, MOST = range(7)
IDLE = 0
SLICE, SLICES = 0, 10  # of Envoy's window: its number, and behind it all and successes
DRAWN = 1 + 2 * SLICES  # how often Envoy or Cinnamon has drawn
BEGUN, FLYING, ENTERED, ERRORS, SHARE = range(5)  # of Cinnamon, by its last cycle


@inner
def admitted(control: F64, service_s: F64, in_flight: int, room_s: float) -> int:
    """Return how many transactions `queue-cap` admits before the system is full.

    Full are `room_s` over the mean estimate of all that came so far: by Little's law a
    cap on latency at any load, if cores are what is short.
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


@inner
def controlled(
    control: F64, left_s: F64, now_s: float, spare_s: float, interval_s: float
) -> int:
    """Return how many transactions `codel` drops from the front of a queue.

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


@inner
def gradient_limit(memory: Memory, now_s: float, interval_s: float, cores: int) -> int:
    """The most that `gradient2` allows in flight: less where latencies rise.

    Once in `interval_s` the mean latency of what committed, if that are ten, is
    compared with its own long average: their ratio, from a half to one, scales the
    limit, which a constant lets grow again. Gradient2Limit and WindowedLimit of
    Netflix' concurrency-limits with their defaults, whose limits of 20 and 200 are
    taken to be those of eight cores.
    """
    control, world, seen = memory.control, memory.world, memory.decided.held
    n_commits = learn_commits(memory, 0.0, seen)
    flying = memory.counts[PENDING] + n_commits
    if control[LIMIT] == 0:
        control[LIMIT], control[RENEWED] = 2.5 * cores, now_s
    control[MOST] = max(control[MOST], flying)
    for at in range(n_commits):
        i = world.log[seen[at]]
        control[SUM] += world.finish_s[i] - world.dispatch_s[seen[at]]
    control[NUMBER] += n_commits
    if now_s - control[RENEWED] >= interval_s:
        if control[NUMBER] >= 10:
            _renew_limit(control, cores)
        control[RENEWED] = now_s
        control[SUM] = control[NUMBER] = control[MOST] = 0.0
    return int(control[LIMIT])


@inner
def _renew_limit(control, cores):
    short_s = control[SUM] / control[NUMBER]
    control[LONG_COUNT] += 1
    weight = 1 / control[LONG_COUNT] if control[LONG_COUNT] <= 10 else 2 / 601
    control[LONG] += weight * (short_s - control[LONG])
    ratio = control[LONG] / short_s
    if ratio > 2:
        control[LONG] *= 0.9
    if control[MOST] >= control[LIMIT] / 2:  # else the limit was not reached
        grown = max(0.5, min(1.0, ratio)) * control[LIMIT] + 4
        limit = 0.8 * control[LIMIT] + 0.2 * grown
        control[LIMIT] = max(2.5 * cores, min(25.0 * cores, limit))


@inner
def credits(
    memory: Memory, now_s: float, target_s: float, interval_s: float, cores: int
) -> int:
    """The most that `breakwater` allows in flight: credits, by the delay of its queue.

    The delay is how long the first that has not started has waited. Once in
    `interval_s` the credits grow by one where it is below `target_s`, and else shrink
    by a fiftieth of its relative excess, to a half at most; from twice `target_s` on
    nothing is let in. Cho et al., OSDI 2020. Its clients wait for credits; here a
    transaction without a credit is rejected.
    """
    control, world = memory.control, memory.world
    in_flight(memory)
    delay_s = 0.0
    for at in range(memory.counts[PENDING]):
        entry = memory.pending[at]
        if np.isnan(world.start_s[world.log[entry]]):
            delay_s = max(now_s - world.dispatch_s[entry], 0.0)
            break
    if control[LIMIT] == 0:
        control[LIMIT], control[RENEWED] = float(cores), now_s
    if now_s - control[RENEWED] >= interval_s:
        control[RENEWED] = now_s
        if delay_s < target_s:
            control[LIMIT] = min(control[LIMIT] + 1, 64.0 * cores)
        else:
            shrunk = max(1 - 0.02 * (delay_s - target_s) / target_s, 0.5)
            control[LIMIT] = max(shrunk * control[LIMIT], float(cores))
    return int(control[LIMIT]) if delay_s < 2 * target_s else 0


@inner
def stands(
    control: F64, waiting: int, room: int, now_s: float, interval_s: float
) -> bool:
    """Return whether the queue of `adaptive-lifo` has not been empty for `interval_s`.

    Empty it is when all that are `waiting` have `room`. Maurer, ACM Queue 13(8), 2015.
    """
    if waiting <= room:
        control[IDLE] = now_s
    return now_s - control[IDLE] > interval_s


@inner
def refused_share(memory: Memory, now_s: float, window_s: float) -> float:
    """The share that `envoy` rejects: that of its failures, but for 5 %.

    Failed is what committed after its deadline, of all that committed in `window_s`.
    Envoy's admission control with its defaults: a success rate of 95 %, linear, and at
    most 80 % rejected.
    """
    control, world, seen = memory.control, memory.world, memory.decided.held
    every, good = control[1 : 1 + SLICES], control[1 + SLICES : 1 + 2 * SLICES]
    current = np.floor(now_s * SLICES / window_s)
    for passed in range(min(current - control[SLICE], float(SLICES))):
        at = int(current - passed) % SLICES
        every[at] = good[at] = 0.0
    control[SLICE] = current
    at = int(current) % SLICES
    for k in range(learn_commits(memory, 0.0, seen)):
        i = world.log[seen[k]]
        every[at] += 1
        good[at] += world.finish_s[i] <= memory.deadline_s[i]
    total, failed = every.sum(), every.sum() - good.sum() / 0.95
    return min(max(failed / (total + 1), 0.0), 0.8)


@inner
def controlled_share(
    memory: Memory, now_s: float, cycle_s: float, gains: tuple[float, float], most: int
) -> float:
    """The share that `cinnamon` rejects, in [0, 1].

    It is renewed at the first arrival `cycle_s` or more after the last time, by a PID
    controller without its D. The error is what entered less what left and less the free
    places, of `most`, over what left; `gains` weigh the last error and the sum of all,
    which never falls below zero. Uber, "PID Controller for Cinnamon", 2023.
    Without priorities, rejected transactions are drawn at random, and `most`, which
    Uber tunes with a second controller, is a constant.
    """
    control, flying = memory.control, float(in_flight(memory))
    if now_s - control[BEGUN] >= cycle_s:
        grown = flying - control[FLYING]
        left = max(control[ENTERED] - grown, 1.0)
        error = (grown - max(most - flying, 0.0)) / left
        control[ERRORS] = max(control[ERRORS] + error, 0.0)
        share = gains[0] * error + gains[1] * control[ERRORS]
        control[SHARE] = min(max(share, 0.0), 1.0)
        control[BEGUN], control[FLYING], control[ENTERED] = now_s, flying, 0.0
    return control[SHARE]


@inner
def waits_on_a_key(memory: Memory, i: int, most: int) -> bool:
    """Return whether a queue that `i` would join has `most` writers: `lock-queue-cap`.

    As the option of CockroachDB that caps the queue of a lock.
    """
    table = memory.world.table
    for request in range(table.offsets[i], table.offsets[i + 1]):
        behind, writers = table.head[table.keys[request]], 0
        while behind != NONE:
            writers += table.exclusive[behind]
            if writers >= most:
                return True
            behind = table.follows[behind]
    return False
