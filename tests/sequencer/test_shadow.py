import numpy as np
import pytest

from thesis_lib.sequencer.kernel import LOGGED, advance, idle_state
from thesis_lib.sequencer.shadow import Mended, Published, probability_on_time
from thesis_lib.sequencer.trace import KeySets

# 0 and 1 write key 0, 2 reads it, 3 reads it too, 4 touches key 1 only.
KEYS = KeySets.from_lists([[], [], [0], [0], []], [[0], [0], [], [], [1]])
SERVICE_S = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
FOREVER = np.full(5, 1e9)
ALL = np.arange(5)


def mended(cores, deadline_s=FOREVER, tolerance_s=np.inf, lag_s=0.0):
    state = idle_state(KEYS, cores)
    shadow = Mended(state, KEYS, SERVICE_S, deadline_s, 0.0, lag_s, tolerance_s)
    return state, shadow


def release(state, ids, now_s):
    first = state.progress[LOGGED]
    state.log[first : first + len(ids)] = ids
    state.dispatch_s[first : first + len(ids)] = now_s
    state.progress[LOGGED] += len(ids)
    advance(state, SERVICE_S, now_s, False)


def test_published_chains_along_conflicts_and_shares_reads():
    shadow = Published(KEYS, SERVICE_S, FOREVER, 0.0)
    finish_s = shadow.forecast(ALL, 10.0).finish_s
    assert finish_s.tolist() == [11.0, 13.0, 17.0, 21.0, 26.0]


def test_published_never_forgets_what_was_dropped():
    shadow = Published(KEYS, SERVICE_S, FOREVER, 0.0)
    shadow.forecast(np.array([0, 1]), 0.0)  # and nothing of it ever ran
    assert shadow.forecast(np.array([2]), 0.0).finish_s.tolist() == [3.0 + 4.0]


def test_mended_forgets_what_never_entered_the_log():
    _, shadow = mended(cores=8)
    shadow.forecast(np.array([0, 1]), 0.0)
    assert shadow.forecast(np.array([2]), 0.0).finish_s.tolist() == [4.0]


def test_mended_is_exact_for_exact_estimates_without_a_queue():
    state, shadow = mended(cores=8)
    forecast_s = shadow.forecast(ALL, 0.0).finish_s
    release(state, ALL, 0.0)
    advance(state, SERVICE_S, np.inf, False)
    np.testing.assert_array_equal(forecast_s, state.finish_s)


def test_mended_counts_cores_and_corrects_by_commits():
    state, shadow = mended(cores=1)
    release(state, np.array([4]), 0.0)
    assert shadow.forecast(np.array([0]), 0.0).finish_s.tolist() == [17.0]
    # Overdue: what should have committed at 16 still runs, so it ends now at best.
    assert shadow.forecast(np.array([0]), 20.0).finish_s.tolist() == [21.0]
    advance(state, SERVICE_S, 16.0, False)
    assert shadow.forecast(np.array([0]), 16.5).finish_s.tolist() == [17.5]


def test_what_will_be_dropped_delays_nobody():
    deadline_s = np.array([0.5, 2.5, 1e9, 1e9, 1e9])
    _, strict = mended(8, deadline_s, tolerance_s=0.0)
    assert strict.forecast(np.arange(3), 0.0).finish_s.tolist() == [1.0, 2.0, 6.0]
    _, alone = mended(8, deadline_s, tolerance_s=-np.inf)
    assert alone.forecast(np.arange(3), 0.0).finish_s.tolist() == [1.0, 2.0, 4.0]


def test_the_dispatch_lag_delays_every_start():
    _, shadow = mended(cores=8, lag_s=0.5)
    assert shadow.forecast(np.array([0, 4]), 0.0).finish_s.tolist() == [1.5, 16.5]


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_probability_falls_with_the_forecast(spread):
    finish_s = np.linspace(1.0, 3.0, 21)
    p = probability_on_time(finish_s, np.full(21, 2.0), 0.0, spread)
    assert (np.diff(p) <= 0).all()
    assert p[0] > 0.99
    assert p[-1] < 0.1
    assert p[10] == (0.5 if spread else 1.0)
