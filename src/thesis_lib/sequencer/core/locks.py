"""The ordered lock table of a deterministic scheduler.

Transactions book all their locks at once, in log order; each key grants in that
order, so conflicting transactions run in log order and no cycle of waits can form
(Thomson et al., Calvin, SIGMOD 2012, section 3.2). The same compiled functions
serve the simulator and the real engine.
"""

from typing import Any, NamedTuple

import numpy as np
from numba.core.dispatcher import Dispatcher

from thesis_lib.common.compiled import njit
from thesis_lib.sequencer.core.trace import F64, I64, Bool, KeySets

NONE = -1  # no request
EXCLUSIVE = -1  # in `holders`: one exclusive holder

# `borrowing` compiles a function that borrows the arrays it is handed, and neither
# makes nor keeps any: without reference counts. Those of the arrays of a `State` or a
# `Memory`, at every call, took most of the time of a decision. What it calls inherits
# that; a function that makes arrays says that it is `allocating`.
borrowing = njit(cache=True, _nrt=False)
allocating = njit(cache=True, _nrt=True)
_unwrapped = njit(cache=True, _nrt=False, no_cpython_wrapper=True)


class _Inner(Dispatcher):
    """Compiled without what Python would need to call it."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"{self.py_func.__qualname__} is called from Python: it is compiled for "
            "compiled code alone; call that, or decorate it with `borrowing`"
        )


def inner(function: Any) -> Any:
    """`borrowing` for what compiled code alone calls.

    To take a `Memory` apart at every such call, which never comes, took a third of
    what compiling a policy took.
    """
    compiled = _unwrapped(function)
    compiled.__class__ = _Inner
    return compiled


class LockTable(NamedTuple):
    """State of every key, and of every request of every transaction.

    A request is a row of the key sets: (transaction, key, mode). Waiting requests of
    a key form a linked list in log order; holders are only counted.
    """

    offsets: I64  # (n + 1,)
    keys: I64  # (r,)
    exclusive: Bool  # (r,)
    owner: I64  # (r,) transaction of each request
    missing: I64  # (n,) locks that a booked transaction still waits for
    holders: I64  # (k,) shared holders, or EXCLUSIVE
    head: I64  # (k,) first waiting request, or NONE
    tail: I64  # (k,) last waiting request, or NONE
    follows: I64  # (r,) the request that waits behind, or NONE


def lock_table(keys: KeySets) -> LockTable:
    """An empty lock table for transactions with these key sets."""
    n, r, k = len(keys), len(keys.keys), keys.n_keys
    return LockTable(
        offsets=keys.offsets,
        keys=keys.keys,
        exclusive=keys.exclusive,
        owner=keys.owner,
        missing=np.zeros(n, np.int64),
        holders=np.zeros(k, np.int64),
        head=np.full(k, NONE, np.int64),
        tail=np.full(k, NONE, np.int64),
        follows=np.full(r, NONE, np.int64),
    )


# Both unpack the table once: a compiled function pays for every field that it fetches
# from a tuple of arrays, and here that was more than half of the time.
@njit(cache=True, inline="always")
def book(table: LockTable, i: int) -> bool:
    """Book every lock of transaction i; True if all are granted at once."""
    offsets, keys, exclusive, _, waits_for, holders, head, tail, follows = table
    missing = 0
    for request in range(offsets[i], offsets[i + 1]):
        key = keys[request]
        if head[key] == NONE and (
            holders[key] == 0 or (holders[key] > 0 and not exclusive[request])
        ):
            if exclusive[request]:
                holders[key] = EXCLUSIVE
            else:
                holders[key] += 1
            continue
        missing += 1
        follows[request] = NONE
        if head[key] == NONE:
            head[key] = request
        else:
            follows[tail[key]] = request
        tail[key] = request
    waits_for[i] = missing
    return missing == 0


@njit(cache=True, inline="always")
def release(table: LockTable, i: int, ready: I64) -> int:
    """Release every lock of transaction i, which holds them all.

    Writes the transactions that now hold all their locks into `ready` (any length
    that the number of waiting transactions cannot exceed) and returns how many. Their
    order is explicit: by the keys of i as listed, then by log order.
    """
    offsets, keys, exclusive, owners, waits_for, holders, head, _, follows = table
    n_ready = 0
    for request in range(offsets[i], offsets[i + 1]):
        key = keys[request]
        if holders[key] == EXCLUSIVE:
            holders[key] = 0
        else:
            holders[key] -= 1
        while head[key] != NONE:
            waiting = head[key]
            if exclusive[waiting]:
                if holders[key] != 0:
                    break
                holders[key] = EXCLUSIVE
            else:
                if holders[key] == EXCLUSIVE:
                    break
                holders[key] += 1
            head[key] = follows[waiting]
            owner = owners[waiting]
            waits_for[owner] -= 1
            if waits_for[owner] == 0:
                ready[n_ready] = owner
                n_ready += 1
    return n_ready


# --- The last end of each key --------------------------------------------------
# Here `locks` are the columns of KeySets, and `ends_s` (k,) when each key's last writer
# and its last reader end. A compiled function pays for every array that it is handed,
# so these are inlined.
@njit(cache=True, inline="always")
def free_at(locks, ends_s, i, at_least_s):
    """Return when all locks of i are free of conflicts, `at_least_s` or later."""
    offsets, key_of, exclusive = locks
    exclusive_end_s, shared_end_s = ends_s
    free_s = at_least_s
    for request in range(offsets[i], offsets[i + 1]):
        key = key_of[request]
        free_s = max(free_s, exclusive_end_s[key])
        if exclusive[request]:
            free_s = max(free_s, shared_end_s[key])
    return free_s


@njit(cache=True, inline="always")
def register(locks, ends_s, i, end_s):
    """Transaction i holds its locks until `end_s`."""
    offsets, key_of, exclusive = locks
    exclusive_end_s, shared_end_s = ends_s
    for request in range(offsets[i], offsets[i + 1]):
        key = key_of[request]
        if exclusive[request]:
            exclusive_end_s[key] = max(exclusive_end_s[key], end_s)
        else:
            shared_end_s[key] = max(shared_end_s[key], end_s)


@njit(cache=True, inline="always")
def forget(locks, ends_s, i):
    """Reset the keys of i to the state before any transaction held them."""
    offsets, key_of, _ = locks
    for request in range(offsets[i], offsets[i + 1]):
        ends_s[0][key_of[request]] = -np.inf
        ends_s[1][key_of[request]] = -np.inf


# --- Who of what was released has not committed ----------------------------------
# Columns of `Uncommitted.known`: which decision asked, then pairs of a writer's and a
# reader's time, of the last end and of minus the reservation.
ASKED, ENDS, CLOSED = 0, 1, 3


class Uncommitted(NamedTuple):
    """The lock requests of released, uncommitted transactions, by key.

    The requests of a key form an unordered linked list. A decision reads few keys and
    predicts all ends again; `known` caches what it read, valid for its number only.
    """

    first: I64  # (k,) a request, or NONE
    behind: I64  # (r,) the request behind, or NONE
    before: I64  # (r,) the request before, or NONE
    owner: I64  # (r,) transaction of each request
    end_s: F64  # (n,) predicted, minus infinity where that is still to be done
    known: F64  # (k, 5)


def nobody(keys: KeySets) -> Uncommitted:
    """Return the state in which all transactions with these key sets have committed."""
    n, r, k = len(keys), len(keys.keys), keys.n_keys
    return Uncommitted(
        first=np.full(k, NONE),
        behind=np.full(r, NONE),
        before=np.full(r, NONE),
        owner=keys.owner,
        end_s=np.full(n, -np.inf),
        known=np.full((k, 5), -np.inf),
    )


@borrowing
def enter(locks: tuple, uncommitted: Uncommitted, i: int) -> None:
    """Transaction i has been released."""
    offsets, key_of, _ = locks
    first, behind, before, _, _, _ = uncommitted
    for request in range(offsets[i], offsets[i + 1]):
        other = first[key_of[request]]
        first[key_of[request]] = request
        behind[request], before[request] = other, NONE
        if other != NONE:
            before[other] = request


@borrowing
def leave(locks: tuple, uncommitted: Uncommitted, i: int) -> None:
    """Transaction i, which had entered, has committed."""
    offsets, key_of, _ = locks
    first, behind, before, _, _, _ = uncommitted
    for request in range(offsets[i], offsets[i + 1]):
        if before[request] == NONE:
            first[key_of[request]] = behind[request]
        else:
            behind[before[request]] = behind[request]
        if behind[request] != NONE:
            before[behind[request]] = before[request]


@inner
def _ask(exclusive, uncommitted, key, number):
    """Work out for decision `number` when the last writer and reader of a key end."""
    first, behind, _, owner, end_s, known = uncommitted
    row = known[key]
    row[:] = -np.inf
    row[ASKED] = number
    request = first[key]
    while request != NONE:
        at = ENDS if exclusive[request] else ENDS + 1
        row[at] = max(row[at], end_s[owner[request]])
        request = behind[request]


@njit(cache=True, inline="always")
def known_free_at(locks, uncommitted, number, pair, i, at_least_s):
    """`free_at` for decision `number`, by ENDS or by CLOSED."""
    offsets, key_of, exclusive = locks
    first, known = uncommitted.first, uncommitted.known
    free_s = at_least_s
    for request in range(offsets[i], offsets[i + 1]):
        key = key_of[request]
        if known[key, ASKED] != number:
            if first[key] == NONE:
                continue
            _ask(exclusive, uncommitted, key, number)
        free_s = max(free_s, known[key, pair])
        if exclusive[request]:
            free_s = max(free_s, known[key, pair + 1])
    return free_s


@njit(cache=True, inline="always")
def let_know(locks, uncommitted, number, pair, i, end_s):
    """`register` for decision `number`, as ENDS or as CLOSED."""
    offsets, key_of, exclusive = locks
    known = uncommitted.known
    for request in range(offsets[i], offsets[i + 1]):
        key = key_of[request]
        if known[key, ASKED] != number:
            _ask(exclusive, uncommitted, key, number)
        at = pair if exclusive[request] else pair + 1
        known[key, at] = max(known[key, at], end_s)
