"""Overheads are differences of instants, by hand and against the simulator."""

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import KeySets
from thesis_lib.sequencer.engine.overheads import (
    Overheads,
    as_delays,
    freed_s,
    overheads,
)
from thesis_lib.sequencer.engine.scheduler import Run
from thesis_lib.sequencer.engine.storage import UNITS

# Two workers; 0 and 2 write the same key, 1 reads another that 3 writes.
KEYS = KeySets.from_lists([[], [1], [], []], [[0], [], [0], [1]])


def run(**columns):
    n = 4
    given = {
        "arrival_s": [0.0, 0.0, 0.0, 0.0],
        "decided_s": [1.0, 1.0, 1.0, 3.0],
        "sequenced_s": [1.5, 1.5, 1.5, 3.5],
        "granted_s": [1.5, 1.5, 5.5, 4.5],
        "start_s": [2.0, 2.25, 6.0, 4.75],
        "finish_s": [5.0, 4.0, 8.0, 7.0],
        "notified_s": [5.5, 4.5, 8.5, 7.5],
        "worker": [0.0, 1.0, 0.0, 1.0],
        "log": np.array([0, 1, 2, 3]),
    } | columns
    return Run(
        **{name: np.asarray(column) for name, column in given.items()},
        cpu_s=np.zeros(n),
        units_s=np.zeros((n, len(UNITS))),
        committed=np.ones(n, bool),
        loop_cpu_s=0.4,
    )


@pytest.mark.parametrize(
    ("keys", "locks_s"),
    [
        (KEYS, [-np.inf, -np.inf, 5.0, 4.0]),
        (  # readers do not wait for readers
            KeySets.from_lists([[0], [0], [0], []], [[], [], [], [0]]),
            [-np.inf, -np.inf, -np.inf, 8.0],
        ),
    ],
)
def test_freed_s_is_the_last_end_of_those_waited_for(keys, locks_s):
    locks, workers = freed_s(run(), keys, np.arange(4))
    assert locks.tolist() == locks_s
    assert workers.tolist() == [-np.inf, -np.inf, 5.0, 4.0]


BY_HAND = {
    "read_s": 1.0,
    "book_s": 0.5,
    "hand_over_s": np.median([0.5, 0.75, 0.5, 0.25]),
    "notify_s": 0.5,
    "pass_s": np.mean([1.0, 0.75]),  # 2 after 0, 3 after 1
    "gap_s": np.nan,  # both had to be granted their locks first
    "turn_s": np.mean([1.0, 0.75]),  # whoever had arrived was booked
    "loop_cpu_s": 0.1,
}


@pytest.mark.parametrize(
    ("keys", "columns", "expected"),
    [
        (KEYS, {}, BY_HAND),
        # 3 waits for nobody's key: granted when booked, at 3.5, it follows 1 on its
        # worker, in whose pipe it waits.
        (
            KeySets.from_lists([[], [1], [], []], [[0], [], [0], [2]]),
            {"granted_s": [1.5, 1.5, 5.5, 3.5]},
            {"gap_s": 0.75, "pass_s": 1.0, "turn_s": np.mean([1.0, 0.75])},
        ),
        # 2 is booked only when the worker and the key that it needs are free since 5.
        (
            KEYS,
            {"sequenced_s": [1.5, 1.5, 5.5, 3.5]},
            {"pass_s": 0.75, "turn_s": np.mean([1.0, 0.75])},
        ),
        # What was dropped is left out.
        (KEYS, {"log": np.array([0, 2])}, {"pass_s": 1.0, "loop_cpu_s": 0.2}),
    ],
)
def test_overheads_by_hand(keys, columns, expected):
    found = overheads(run(**columns), keys, 0)
    for name, value in expected.items():
        np.testing.assert_equal(getattr(found, name), value, err_msg=name)


def test_overheads_leave_out_what_warmed_the_workers():
    found = overheads(run(), KEYS, first=2)
    assert (found.read_s, found.loop_cpu_s) == (2.0, 0.2)
    assert np.isnan(found.pass_s)  # 2 and 3 waited for 0 and 1 alone
    another_clock = run(finish_s=[905.0, 904.0, 8.0, 7.0])
    assert overheads(another_clock, KEYS, 2).hand_over_s == found.hand_over_s
    with pytest.raises(InvalidInput, match="no transaction from 4 on ran"):
        overheads(run(), KEYS, first=4)


def test_the_modelled_delays_add_up_to_the_overheads():
    quiet = Overheads(1.0, 2.0, 4.0, 8.0, np.nan, np.nan, np.nan, 16.0)
    busy = Overheads(100.0, 100.0, 100.0, 100.0, 32.0, 40.0, 128.0, 64.0)
    delays = as_delays(quiet, busy)
    assert (delays.read_s, delays.lag_s) == (1.0, 14.0)
    assert (delays.worker_s, delays.release_s) == (32.0, 8.0)
    assert delays.sequencer_s == 64.0
    late = as_delays(quiet, busy, late=True)
    assert (late.read_s, late.lag_s) == (1.0, 128.0)
    assert (late.worker_s, late.release_s, late.sequencer_s) == (0.0, 40.0, 64.0)
    alone = as_delays(quiet, quiet)  # nobody waited for a stage
    assert (alone.worker_s, alone.release_s) == (0.0, 0.0)
