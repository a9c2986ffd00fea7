"""A state that is told what happens: who must be running, and who holds its locks."""

from functools import partial

import numpy as np

from thesis_lib.sequencer.core.events import COMMITTED, idle_state
from thesis_lib.sequencer.core.locks import NONE
from thesis_lib.sequencer.core.observed import commit, dispatch
from thesis_lib.sequencer.core.trace import KeySets


def free(n):
    return KeySets.from_lists([[] for _ in range(n)], [[k] for k in range(n)])


def test_the_observed_state_knows_who_must_be_running():
    state = idle_state(free(5), 2)
    advance = partial(commit, state)
    dispatch(state, np.array([3, 1, 4]), 1.0)
    assert state.running.tolist() == [3, 1]
    assert state.start_s[[3, 1]].tolist() == [1.0, 1.0]
    assert np.isnan(state.start_s[4])
    advance(np.array([1]), np.array([1.1]), np.array([1.5]), 1.6)
    assert state.running.tolist() == [3, 4]  # since a worker was free
    assert state.start_s[[1, 4]].tolist() == [1.1, 1.5]
    advance(np.array([4, 3]), np.array([1.6, 1.1]), np.array([1.7, 1.8]), 1.9)
    assert state.running.tolist() == [NONE, NONE]
    assert state.start_s[[3, 4]].tolist() == [1.1, 1.6]
    assert state.finish_s[[1, 4, 3]].tolist() == [1.5, 1.7, 1.8]
    assert state.progress[COMMITTED] == 3


def test_a_lock_is_granted_when_its_holder_was_reported_to_commit():
    state = idle_state(KeySets.from_lists([[], []], [[0], [0]]), 2)
    dispatch(state, np.array([1, 0]), 1.0)
    assert state.running.tolist() == [1, NONE]
    commit(state, np.array([1]), np.array([1.1]), np.array([2.0]), 2.5)
    assert (state.granted_s[0], state.start_s[0]) == (2.5, 2.5)
    assert state.running.tolist() == [0, NONE]
