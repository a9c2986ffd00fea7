import numpy as np
import pytest

from thesis_lib.sequencer.core.events import LOGGED, READY, STARTED, advance, idle_state
from thesis_lib.sequencer.core.trace import KeySets
from thesis_lib.sequencer.policies.lookahead import (
    Feedback,
    OpenLoop,
    probability_on_time,
)

# 0 and 1 write key 0, 2 reads it, 3 reads it too, 4 touches key 1 only.
KEYS = KeySets.from_lists([[], [], [0], [0], []], [[0], [0], [], [], [1]])
SERVICE_S = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
FOREVER = np.full(5, 1e9)
ALL = np.arange(5)


def corrected(cores, deadline_s=FOREVER, tolerance_s=np.inf, lag_s=0.0):
    state = idle_state(KEYS, cores)
    lookahead = Feedback(state, KEYS, SERVICE_S, deadline_s, 0.0, lag_s, tolerance_s)
    return state, lookahead


def release(state, ids, now_s):
    first = state.progress[LOGGED]
    state.log[first : first + len(ids)] = ids
    state.dispatch_s[first : first + len(ids)] = now_s
    state.progress[LOGGED] += len(ids)
    advance(state, SERVICE_S, now_s, False)


def test_published_chains_along_conflicts_and_shares_reads():
    lookahead = OpenLoop(KEYS, SERVICE_S, FOREVER, 0.0)
    finish_s = lookahead.forecast(ALL, 10.0).finish_s
    assert finish_s.tolist() == [11.0, 13.0, 17.0, 21.0, 26.0]


def test_published_never_forgets_what_was_dropped():
    lookahead = OpenLoop(KEYS, SERVICE_S, FOREVER, 0.0)
    lookahead.forecast(np.array([0, 1]), 0.0)  # and nothing of it ever ran
    assert lookahead.forecast(np.array([2]), 0.0).finish_s.tolist() == [3.0 + 4.0]


def test_mended_forgets_what_never_entered_the_log():
    _, lookahead = corrected(cores=8)
    lookahead.forecast(np.array([0, 1]), 0.0)
    assert lookahead.forecast(np.array([2]), 0.0).finish_s.tolist() == [4.0]


def test_mended_counts_cores_and_corrects_by_commits():
    state, lookahead = corrected(cores=1)
    release(state, np.array([4]), 0.0)
    assert lookahead.forecast(np.array([0]), 0.0).finish_s.tolist() == [17.0]
    # Overdue: what should have committed at 16 still runs, so it ends now at best.
    assert lookahead.forecast(np.array([0]), 20.0).finish_s.tolist() == [21.0]
    advance(state, SERVICE_S, 16.0, False)
    assert lookahead.forecast(np.array([0]), 16.5).finish_s.tolist() == [17.5]


def test_what_is_forecast_to_be_dropped_delays_nobody():
    deadline_s = np.array([0.5, 2.5, 1e9, 1e9, 1e9])
    _, strict = corrected(8, deadline_s, tolerance_s=0.0)
    assert strict.forecast(np.arange(3), 0.0).finish_s.tolist() == [1.0, 2.0, 6.0]
    _, alone = corrected(8, deadline_s, tolerance_s=-np.inf)
    assert alone.forecast(np.arange(3), 0.0).finish_s.tolist() == [1.0, 2.0, 4.0]


def test_the_dispatch_lag_delays_every_start():
    _, lookahead = corrected(cores=8, lag_s=0.5)
    assert lookahead.forecast(np.array([0, 4]), 0.0).finish_s.tolist() == [1.5, 16.5]


def test_what_is_decided_on_never_overtakes_the_log():
    state, lookahead = corrected(cores=8, lag_s=0.5)
    enter(state, 4, 5.0)  # on its way for longer than the lag that is reckoned with
    assert lookahead.forecast(np.array([0]), 0.0).finish_s.tolist() == [6.0]


def random_log(seed, n=120):
    """Arrivals, true times on a core and keys of a busy database, in log order."""
    random = np.random.default_rng(seed)
    shared, exclusive = [], []
    for _ in range(n):
        touched = random.permutation(6)[: random.integers(0, 4)]
        cut = random.integers(0, len(touched) + 1)
        shared.append(touched[:cut].tolist())
        exclusive.append(touched[cut:].tolist())
    arrival_s = random.exponential(0.5, n).cumsum()
    return arrival_s, random.exponential(1.5, n), KeySets.from_lists(shared, exclusive)


def enter(state, i, now_s):
    state.log[state.progress[LOGGED]] = i
    state.dispatch_s[state.progress[LOGGED]] = now_s
    state.progress[LOGGED] += 1


@pytest.mark.parametrize("tolerance_s", [np.inf, 0.0, -np.inf])
def test_exact_estimates_forecast_exactly_what_follows_if_nothing_comes(tolerance_s):
    # FIFO without a lag: the forecast of every arrival, against a database in which it
    # is the last. Later ones may overtake it while it waits for a lock.
    for seed in range(5):
        arrival_s, service_s, keys = random_log(seed)
        n, cores = len(arrival_s), 3
        state = idle_state(keys, cores)
        lookahead = Feedback(
            state, keys, service_s, np.full(n, 1e9), 0.0, 0.0, tolerance_s
        )
        for i in range(n):
            advance(state, service_s, arrival_s[i], False)
            forecast_s = lookahead.forecast(np.array([i]), arrival_s[i]).finish_s
            enter(state, i, arrival_s[i])
            alone = idle_state(keys, cores)
            for before in range(i + 1):
                enter(alone, before, arrival_s[before])
            advance(alone, service_s, np.inf, False)
            assert forecast_s[0] == alone.finish_s[i], f"{seed=}"


def test_without_locks_later_arrivals_change_nothing_and_the_forecast_is_the_truth():
    arrival_s, service_s, _ = random_log(7)
    n = len(arrival_s)
    keys = KeySets.from_lists([[]] * n, [[]] * n)
    state = idle_state(keys, 2)
    lookahead = Feedback(state, keys, service_s, np.full(n, 1e9), 0.0, 0.0, np.inf)
    forecast_s = np.empty(n)
    for i in range(n):
        advance(state, service_s, arrival_s[i], False)
        forecast_s[i] = lookahead.forecast(np.array([i]), arrival_s[i]).finish_s[0]
        enter(state, i, arrival_s[i])
    advance(state, service_s, np.inf, False)
    np.testing.assert_array_equal(forecast_s, state.finish_s)


def test_a_queue_that_nobody_observed_is_taken_to_be_in_log_order():
    arrival_s, service_s, _ = random_log(8)
    n = len(arrival_s)
    keys = KeySets.from_lists([[]] * n, [[]] * n)  # so it is in log order
    state = idle_state(keys, 2)
    for i in range(60):
        enter(state, i, arrival_s[i])
    advance(state, service_s, arrival_s[59], False)
    assert state.progress[READY] > state.progress[STARTED] + 5
    lookahead = Feedback(state, keys, service_s, np.full(n, 1e9), 0.0, 0.0, np.inf)
    observed = lookahead.forecast(np.arange(60, 70), arrival_s[59]).finish_s
    state.progress[READY] = state.progress[STARTED]
    derived = lookahead.forecast(np.arange(60, 70), arrival_s[59]).finish_s
    np.testing.assert_array_equal(observed, derived)


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("cpu", [False, True])
def test_a_peek_leaves_no_trace(feedback, cpu):
    arrival_s, service_s, keys = random_log(9)
    deadline_s = arrival_s + 4.0
    answers = []
    for peeks in (0, 3):
        state = idle_state(keys, 2)
        if feedback:
            lookahead = Feedback(
                state, keys, service_s, deadline_s, 0.0, 0.0, 0.0, cpu=cpu, ghosts=True
            )
        else:
            lookahead = OpenLoop(
                keys, service_s, deadline_s, 0.0, tolerance_s=0.0,
                cores=2 if cpu else None,
            )  # fmt: skip
        finish_s = []
        for i in range(0, 120, 4):
            ids, now_s = np.arange(i, i + 4), float(arrival_s[i + 3])
            advance(state, service_s, now_s, False)
            for _ in range(peeks):
                lookahead.peek(ids[::-1].copy(), now_s)
            finish_s += lookahead.forecast(ids, now_s).finish_s.tolist()
            for id_ in ids[:2]:
                enter(state, id_, now_s)
        answers.append(finish_s)
    assert answers[0] == answers[1]


def test_a_world_of_its_own_with_cores_ends_as_predicted():
    # One core and no feedback: 0 ends at 1 s, whatever the database says.
    lookahead = OpenLoop(KEYS, SERVICE_S, FOREVER, 0.0, cores=1)
    assert lookahead.forecast(np.array([0, 4]), 0.0).finish_s.tolist() == [1.0, 17.0]
    assert lookahead.forecast(np.array([2]), 5.0).finish_s.tolist() == [21.0]
    assert lookahead.forecast(np.array([3]), 50.0).finish_s.tolist() == [58.0]


def test_a_ghost_keeps_its_keys_until_its_predicted_end():
    deadline_s = np.array([0.5, 1e9, 1e9, 1e9, 1e9])
    for ghosts, expected_s in ((True, 3.0), (False, 2.5)):
        state = idle_state(KEYS, 8)
        lookahead = Feedback(
            state, KEYS, SERVICE_S, deadline_s, 0.0, 0.0, 0.0, ghosts=ghosts
        )
        lookahead.forecast(np.array([0]), 0.0)  # ends at 1 s: too late, and dropped
        finish_s = lookahead.forecast(np.array([1]), 0.5).finish_s
        assert finish_s.tolist() == [expected_s]


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_probability_falls_with_the_forecast(spread):
    finish_s = np.linspace(1.0, 3.0, 21)
    p = probability_on_time(finish_s, np.full(21, 2.0), 0.0, spread)
    assert (np.diff(p) <= 0).all()
    assert p[0] > 0.99
    assert p[-1] < 0.1
    assert p[10] == (0.5 if spread else 1.0)
