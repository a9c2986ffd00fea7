"""What a replica ends up with: the state that the commits of a log leave behind.

Simulated transactions have key sets and no code, so each is given one that forgets
nothing: it reads every key that it locks and writes a mixture of all it has read, and
of its own number, to those that it locks exclusively. A key thus holds a hash of all
its writes in the order of their commits, and of what each of them had read. Two runs
that reach the same state committed conflicting transactions in the same order; to swap
two of them changes it.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from thesis_lib.common.compiled import njit
from thesis_lib.sequencer.core.trace import I64, Bool, History, KeySets, Trace
from thesis_lib.sequencer.policies.rules import mix

U64 = NDArray[np.uint64]


def commit_order(history: History) -> I64:
    """Ids of what a run committed, first to last.

    Of two that commit at one time the first to start comes first, then the first in
    the log.
    """
    log = history.log
    return log[np.lexsort((history.start_s[log], history.finish_s[log]))]


def final_state(keys: KeySets, order: I64) -> U64:
    """The value of every key, (n_keys,), after the transactions of `order` in turn."""
    state = np.zeros(keys.n_keys, np.uint64)
    _execute(state, keys.offsets, keys.keys, keys.exclusive, order)
    return state


def state_digest(trace: Trace, history: History) -> str:
    """SHA-256 of the state that a run of `trace` leaves behind.

    Equal for every replica that ran the same log, whatever its workers: it hashes what
    was done, not what was to be done.
    """
    state = final_state(trace.keys, commit_order(history))
    return hashlib.sha256(state.astype("<u8").tobytes()).hexdigest()


@njit(cache=True)
def _execute(state: U64, offsets: I64, keys: I64, exclusive: Bool, order: I64) -> None:
    for i in order:
        value = mix(np.uint64(i + 1))
        for request in range(offsets[i], offsets[i + 1]):
            value = mix(value ^ state[keys[request]])
        for request in range(offsets[i], offsets[i + 1]):
            if exclusive[request]:
                state[keys[request]] = mix(value ^ np.uint64(keys[request]))
