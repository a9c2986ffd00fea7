"""Lower bounds on violations, for a known future.

An exact algorithm for one machine, and two relaxations of a whole trace to such
machines. A relaxation only removes constraints, so that no policy, clairvoyant or
not, has fewer violations than it. Rounding follows the same rule: times are counted in
ticks of 2^-40 s, releases and services rounded down and deadlines up, and from there
on every sum is exact.
"""

import numpy as np

from thesis_lib.common.compiled import njit
from thesis_lib.common.errors import require, require_all, require_count, vector
from thesis_lib.sequencer.core.trace import F64, I64, Bool, Trace

TICKS = 40  # a tick is 2^-40 s: scaling a float by a power of two is exact
NEVER = 2**62  # the wait of what is not in the chain


def ticks(seconds: F64, up: bool = False, power: int = TICKS) -> I64:
    """Whole ticks of 2^-power s, rounded down or up. Rejects what would overflow."""
    scaled = np.ldexp(seconds, power)
    require(
        bool((np.abs(scaled) < 2.0**55).all()),
        f"times up to {np.abs(seconds).max(initial=0.0):g} s: expected less than nine "
        "hours; count them from the start of the run",
    )
    return (np.ceil(scaled) if up else np.floor(scaled)).astype(np.int64)


# A tree over the jobs, by position: each leaf holds how long a kept job takes and how
# long it waits, start - release, each node the longest and the least of its leaves.
# `later` of an inner node is to be added to every wait below it.
@njit(cache=True)
def _refresh(node, longest, least, later):
    """Bring the ancestors of a node up to date."""
    node >>= 1
    while node:
        left, right = 2 * node, 2 * node + 1
        longest[node] = max(longest[left], longest[right])
        least[node] = later[node] + min(least[left], least[right])
        node >>= 1


@njit(cache=True)
def _wait(leaf, least, later):
    """The wait at a leaf, with what its ancestors hold for it."""
    wait, node = least[leaf], leaf >> 1
    while node:
        wait += later[node]
        node >>= 1
    return wait


@njit(cache=True)
def _delay(first, by, longest, least, later):
    """Add `by` to the wait of every leaf from `first` on."""
    node = first
    least[node] += by
    while node > 1:
        if node % 2 == 0:
            least[node + 1] += by
            if node + 1 < len(later):
                later[node + 1] += by
        node >>= 1
    _refresh(first, longest, least, later)


@njit(cache=True)
def _to_give_up(longest, least, later):
    """The leaf whose absence lets the chain end first.

    Without a job all behind it move forward, by its length or by the least wait of
    theirs, whichever is shorter. From the end of the chain towards its front the least
    wait only falls and the longest job only grows: where they cross, the best is found.
    """
    inner = len(later)
    node, moved = 1, later[1]
    wait, length, best = NEVER, -1, -1
    while node < inner:
        right = 2 * node + 1
        here = moved + least[right]
        if max(length, longest[right]) >= min(wait, here):
            node = right
        else:
            if longest[right] > length:
                length, best = longest[right], right
            wait = min(wait, here)
            node = right - 1
        if node < inner:
            moved += later[node]
    if longest[node] > length:
        return node
    while best < inner:
        right = 2 * best + 1
        best = right if longest[right] == length else right - 1
    return best


@njit(cache=True)
def _first_early(least, later):
    """The first leaf whose wait is negative: it would start before its release."""
    inner = len(later)
    node, moved = 1, 0
    while node < inner:
        moved += later[node]
        node *= 2
        if moved + least[node] >= 0:
            node += 1
    return node


@njit(cache=True)
def _kise_ibaraki_mine(release, service, deadline, on_time):
    """Mark the jobs (n,) that one machine serves in time; ticks, by release."""
    n = len(release)
    inner = 2
    while inner < n:
        inner *= 2
    longest = np.full(2 * inner, -1, np.int64)
    least = np.full(2 * inner, NEVER, np.int64)
    later = np.zeros(inner, np.int64)
    before, behind = np.empty(n, np.int64), np.empty(n, np.int64)  # in the chain
    last, end, due = -1, release[0] if n else 0, -NEVER
    for job in range(n):
        start = max(release[job], end)
        due = max(due, deadline[job])
        on_time[job] = True
        if last >= 0:
            behind[last] = job
        before[job], last = last, job
        leaf = inner + job
        longest[leaf] = service[job]
        least[leaf] += start - release[job] - _wait(leaf, least, later)
        _refresh(leaf, longest, least, later)
        end = start + service[job]
        if end <= due:
            continue
        leaf = _to_give_up(longest, least, later)
        given_up = leaf - inner
        on_time[given_up] = False
        length = longest[leaf]
        longest[leaf] = -1
        least[leaf] += NEVER
        _refresh(leaf, longest, least, later)
        if given_up == last:
            last = before[last]
        else:
            before[behind[given_up]] = before[given_up]
            if before[given_up] >= 0:
                behind[before[given_up]] = behind[given_up]
            _delay(leaf, -length, longest, least, later)
            while least[1] < 0:
                early = _first_early(least, later)
                _delay(early, -_wait(early, least, later), longest, least, later)
        end = release[0]
        if last >= 0:
            end = release[last] + service[last] + _wait(inner + last, least, later)


def kise_ibaraki_mine(release_s: F64, service_s: F64, deadline_s: F64) -> Bool:
    """(n,) which jobs one machine finishes on time when as many as possible do.

    Releases and deadlines must be agreeable: sorted by release, deadlines rise too,
    which a single objective makes so. Exact on the grid of ticks, O(n log n). Kise,
    Ibaraki and Mine, Operations Research 26(1), 1978; which job to give up is found in
    a tree. Raises InvalidInput where they disagree.
    """
    n = len(release_s)
    order = np.lexsort((deadline_s, release_s))
    require(
        bool((np.diff(deadline_s[order]) >= 0).all()),
        "releases and deadlines are not agreeable: relax each deadline to the latest "
        "of those released before, and call the bound weak",
    )
    is_kept = np.zeros(n, bool)
    _kise_ibaraki_mine(
        ticks(release_s[order]),
        ticks(service_s[order]),
        ticks(deadline_s[order], up=True),
        is_kept,
    )
    on_time = np.zeros(n, bool)
    on_time[order] = is_kept
    return on_time


@njit(cache=True)
def _late_of_machines(cuts, release, service, deadline):
    """Count jobs that machines g with cuts[g]:cuts[g + 1] cannot serve in time."""
    late = 0
    on_time = np.empty(len(release), np.bool_)
    for machine in range(len(cuts) - 1):
        first, last = cuts[machine], cuts[machine + 1]
        _kise_ibaraki_mine(
            release[first:last], service[first:last], deadline[first:last],
            on_time[first:last],
        )  # fmt: skip
        late += last - first - on_time[first:last].sum()
    return late


def _late(trace: Trace, slo_s: float | F64, rows: I64, cuts: I64, speed: int) -> int:
    """Sum late jobs over machines; times are scaled by the speed to round only once."""
    if len(rows) == 0:
        return 0
    since_s = trace.arrival_s - trace.arrival_s[0]
    require(
        float((since_s + slo_s).max()) * speed < 2**20,
        f"{since_s[-1]:g} s on {speed} cores: expected a product below a million; "
        "bound the run in pieces",
    )
    release, due = ticks(since_s), ticks(since_s + slo_s, up=True)
    return _late_of_machines(
        cuts, release[rows] * speed, ticks(trace.service_s)[rows], due[rows] * speed
    )


def pooled_cores(trace: Trace, *, cores: int, slo_s: float | F64) -> int:
    """Violations that no schedule on `cores` cores avoids, locks forgotten.

    One machine as fast as all cores together can do whatever they do, and with
    agreeable deadlines it needs no preemption for it.
    """
    require_count("cores", cores)
    rows = np.arange(len(trace))
    return _late(trace, slo_s, rows, np.array([0, len(rows)]), cores)


def exclusive_keys(trace: Trace, *, slo_s: float | F64) -> int:
    """Violations that no schedule avoids on any number of cores, by locks alone.

    Transactions that lock one key exclusively run one after the other, so each key
    is a machine. Every transaction is counted at one key, so the bounds add up: keys
    take their transactions in order of their total exclusive work, most first.
    """
    keys = trace.keys
    owner, key = keys.owner[keys.exclusive], keys.keys[keys.exclusive]
    work_s = np.bincount(key, weights=trace.service_s[owner], minlength=1)
    order = np.lexsort((key, -work_s[key]))
    owner, key = owner[order], key[order]
    _, first = np.unique(owner, return_index=True)
    owner, key = owner[first], key[first]
    groups = np.argsort(key, kind="stable")
    inner = np.flatnonzero(np.diff(key[groups])) + 1
    cuts = np.concatenate([[0], inner, [len(key)]])
    return _late(trace, slo_s, owner[groups], cuts, speed=1)


def fewest_violations(trace: Trace, *, cores: int, slo_s: float | F64) -> int:
    """Return a lower bound on the violations of any policy, the better of two.

    Args:
        trace: The transactions with their true service times.
        cores: Number of workers.
        slo_s: SLO in seconds, one number or one for each transaction (n,). If deadlines
            do not rise with arrivals, the bound relaxes them and is weaker.

    Example:
        >>> from thesis_lib.sequencer import fewest_violations, scenario
        >>> at_once = scenario("A", n=40, seed=1).take(range(40))
        >>> fewest_violations(at_once, cores=1, slo_s=0.001)
        19
    """
    if np.ndim(slo_s):
        slo_s = vector("slo_s", slo_s, np.float64, len(trace))
    each = np.atleast_1d(slo_s)
    good = (each > 0) & np.isfinite(each)
    require_all(good, "slo_s", each, "an objective must be positive and finite")
    return max(
        pooled_cores(trace, cores=cores, slo_s=slo_s),
        exclusive_keys(trace, slo_s=slo_s),
    )
