"""How few violations are possible at all: lower bounds that know the future.

Two exact algorithms for one machine, and two relaxations of a whole trace to such
machines. A relaxation only removes constraints, so that no policy, clairvoyant or
not, has fewer violations than it.
"""

import heapq

import numpy as np
from numba import njit

from thesis_lib.checks import require, vector
from thesis_lib.sequencer.trace import F64, Bool, Trace


def moore_hodgson(service_s: F64, deadline_s: F64) -> Bool:
    """(n,) which jobs a machine finishes on time when as many as possible do.

    All jobs are there at time 0. Earliest deadline first; whenever one would be late,
    the longest so far is given up. Moore, Management Science 15(1), 1968.
    """
    service_s = vector("service_s", service_s, np.float64, minimum=0.0)
    deadline_s = vector("deadline_s", deadline_s, np.float64, len(service_s))
    on_time = np.ones(len(service_s), bool)
    kept: list = []  # heap of (-service_s, job)
    end_s = 0.0
    for i in np.argsort(deadline_s, kind="stable"):
        heapq.heappush(kept, (-service_s[i], int(i)))
        end_s += service_s[i]
        if end_s > deadline_s[i]:
            shorter_s, longest = heapq.heappop(kept)
            end_s += shorter_s
            on_time[longest] = False
    return on_time


@njit(cache=True)
def _kise_ibaraki_mine(release_s, service_s, deadline_s, on_time):
    # `chain` holds the kept jobs in order, `start` and `end` their schedule.
    n = len(release_s)
    chain = np.empty(n, np.int64)
    start, end = np.empty(n), np.empty(n)
    kept = 0
    for job in range(n):
        chain[kept] = job
        before = end[kept - 1] if kept else -np.inf
        start[kept] = max(release_s[job], before)
        end[kept] = start[kept] + service_s[job]
        on_time[job] = True
        kept += 1
        if end[kept - 1] <= deadline_s[job]:
            continue
        # Give up the job whose absence lets the chain end first. Without `at`, the
        # next job can move forward to max(its release, the end before `at`), and the
        # move reaches the end of the chain as far as later releases allow.
        last = kept - 1
        before = end[last - 1] if last else -np.inf
        best, gain = last, end[last] - before
        move = np.inf  # how far the jobs behind `at` can move before a release
        for at in range(last - 1, -1, -1):
            behind = at + 1
            move = min(move, start[behind] - release_s[chain[behind]])
            if move <= 0:
                break  # an idle gap: nothing before it delays the end
            before = end[at - 1] if at else -np.inf
            reach = min(move, start[behind] - before)
            if reach > gain:
                best, gain = at, reach
            elif move <= gain:
                break
        on_time[chain[best]] = False
        kept -= 1
        for at in range(best, kept):
            chain[at] = chain[at + 1]
            before = end[at - 1] if at else -np.inf
            start[at] = max(release_s[chain[at]], before)
            end[at] = start[at] + service_s[chain[at]]


def kise_ibaraki_mine(release_s: F64, service_s: F64, deadline_s: F64) -> Bool:
    """(n,) which jobs one machine finishes on time when as many as possible do.

    Releases and deadlines must be agreeable: sorted by release, deadlines rise too,
    which a single objective makes so. Exact, O(n²). Kise, Ibaraki and Mine,
    Operations Research 26(1), 1978. Raises InvalidInput where they disagree.
    """
    release_s = vector("release_s", release_s, np.float64)
    n = len(release_s)
    service_s = vector("service_s", service_s, np.float64, n, 0.0)
    deadline_s = vector("deadline_s", deadline_s, np.float64, n)
    order = np.lexsort((deadline_s, release_s))
    require(
        bool((np.diff(deadline_s[order]) >= 0).all()),
        "releases and deadlines are not agreeable: relax each deadline to the release "
        "+ the longest objective, and call the bound weak",
    )
    kept = np.zeros(n, bool)
    _kise_ibaraki_mine(release_s[order], service_s[order], deadline_s[order], kept)
    on_time = np.zeros(n, bool)
    on_time[order] = kept
    return on_time


def pooled_cores(trace: Trace, *, cores: int, slo_s: float) -> int:
    """Violations that no schedule on `cores` cores avoids, locks forgotten.

    One machine as fast as all cores together can do whatever they do, and with
    agreeable deadlines it needs no preemption for it.
    """
    require(cores >= 1, f"cores={cores}: expected at least 1")
    on_time = kise_ibaraki_mine(
        trace.arrival_s, trace.service_s / cores, trace.arrival_s + slo_s
    )
    return int((~on_time).sum())


def exclusive_keys(trace: Trace, *, slo_s: float) -> int:
    """Violations that no schedule avoids on any number of cores, by locks alone.

    Transactions that lock one key exclusively run one after the other, so each key
    is a machine. Every transaction is counted at one key, so the bounds add up: keys
    take their transactions in order of their total exclusive work, most first.
    """
    keys = trace.keys
    owner = np.repeat(np.arange(len(trace)), np.diff(keys.offsets))
    owner, key = owner[keys.exclusive], keys.keys[keys.exclusive]
    work_s = np.bincount(key, weights=trace.service_s[owner], minlength=1)
    order = np.lexsort((key, -work_s[key]))
    owner, key = owner[order], key[order]
    _, first = np.unique(owner, return_index=True)
    owner, key = owner[first], key[first]
    groups = np.argsort(key, kind="stable")
    cuts = np.flatnonzero(np.diff(key[groups])) + 1
    violations = 0
    for group in np.split(owner[groups], cuts):
        arrival_s = trace.arrival_s[group]
        on_time = kise_ibaraki_mine(
            arrival_s, trace.service_s[group], arrival_s + slo_s
        )
        violations += int((~on_time).sum())
    return violations


def fewest_violations(trace: Trace, *, cores: int, slo_s: float) -> int:
    """A lower bound on late + dropped for any policy: the better of both."""
    return max(
        pooled_cores(trace, cores=cores, slo_s=slo_s),
        exclusive_keys(trace, slo_s=slo_s),
    )
