from itertools import combinations

import numpy as np
import pytest
from key_sets import conflict, random_key_sets
from numba import njit

from thesis_lib.sequencer.core.locks import (
    CLOSED,
    ENDS,
    NONE,
    book,
    enter,
    free_at,
    inner,
    known_free_at,
    leave,
    let_know,
    lock_table,
    nobody,
    register,
    release,
)
from thesis_lib.sequencer.core.trace import KeySets


def random_keys(seed):
    return random_key_sets(np.random.default_rng(seed), 60, n_keys=6, fewest=1)


def run(keys, seed, booked_ahead=10):
    """Commit in random order among those that hold all locks: (starts, commits)."""
    random = np.random.default_rng(seed)
    table, ready = lock_table(keys), np.empty(len(keys), np.int64)
    running, starts, commits, next_id = [], {}, {}, 0
    clock = 0
    while len(commits) < len(keys):
        while next_id < len(keys) and next_id - len(commits) < booked_ahead:
            if book(table, next_id):
                running.append(next_id)
                starts[next_id] = (clock := clock + 1)
            next_id += 1
        assert running, "every booked transaction waits: a deadlock"
        done = running.pop(random.integers(len(running)))
        commits[done] = (clock := clock + 1)
        for owner in ready[: release(table, done, ready)]:
            running.append(int(owner))
            starts[int(owner)] = (clock := clock + 1)
    return table, starts, commits


@pytest.mark.parametrize("seed", range(25))
def test_conflicting_transactions_run_in_log_order_and_release_all(seed):
    keys = random_keys(seed)
    table, starts, commits = run(keys, seed)
    for earlier, later in combinations(range(len(keys)), 2):
        if conflict(keys, earlier, later):
            assert commits[earlier] < starts[later]
    assert (table.holders == 0).all()
    assert (table.head == NONE).all()
    assert (table.missing == 0).all()


def test_readers_share_and_a_writer_waits_for_both():
    keys = KeySets.from_lists([[0], [0], [], [0]], [[], [], [0], []])
    table, ready = lock_table(keys), np.empty(4, np.int64)
    assert [book(table, i) for i in range(4)] == [True, True, False, False]
    assert release(table, 0, ready) == 0
    assert release(table, 1, ready) == 1
    assert ready[0] == 2  # the writer, before the reader booked after it
    assert release(table, 2, ready) == 1
    assert ready[0] == 3


def test_a_decision_knows_what_it_would_know_if_all_were_registered_anew():
    random = np.random.default_rng(0)
    for seed in range(10):
        keys = random_keys(seed)
        locks, inside = (keys.offsets, keys.keys, keys.exclusive), []
        uncommitted = nobody(keys)
        for number in range(1, 40):
            i = int(random.integers(len(keys)))
            (leave if i in inside else enter)(locks, uncommitted, i)
            inside = [j for j in inside if j != i] if i in inside else [*inside, i]
            uncommitted.end_s[:] = random.random(len(keys))
            tables = {
                pair: (np.full(keys.n_keys, -np.inf), np.full(keys.n_keys, -np.inf))
                for pair in (ENDS, CLOSED)
            }
            for j in inside:
                register(locks, tables[ENDS], j, uncommitted.end_s[j])
            for other in random.integers(len(keys), size=3).tolist():
                for j in range(len(keys)):
                    for pair, table in tables.items():
                        known = known_free_at(
                            locks, uncommitted, number, pair, j, -np.inf
                        )
                        assert known == free_at(locks, table, j, -np.inf)
                pair, end_s = random.choice([ENDS, CLOSED]), random.random() - 0.5
                let_know(locks, uncommitted, number, pair, other, end_s)
                register(locks, tables[pair], other, end_s)
        for j in inside:
            leave(locks, uncommitted, j)
        assert (uncommitted.first == NONE).all()


def test_compiled_only_functions_reject_python_by_name():
    @inner
    def next_one(number):
        return number + 1

    assert njit(lambda number: 2 * next_one(number))(3) == 8
    with pytest.raises(TypeError, match=r"next_one is called from Python: .* decorate"):
        next_one(3)
