import numpy as np
import pytest
from key_sets import no_keys, random_key_sets

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


def corrected(cores, deadline_s=FOREVER, tolerance_s=np.inf, lag_s=0.0, **options):
    state = idle_state(KEYS, cores)
    lookahead = Feedback(
        state, KEYS, SERVICE_S, deadline_s, 0.0, lag_s, tolerance_s, **options
    )
    return state, lookahead


def published(**options):
    return OpenLoop(KEYS, SERVICE_S, FOREVER, 0.0, **options)


def enter(state, i, now_s):
    state.log[state.progress[LOGGED]] = i
    state.dispatch_s[state.progress[LOGGED]] = now_s
    state.progress[LOGGED] += 1


SOON_S = np.array([0.5, 2.5, 1e9, 1e9, 1e9])


@pytest.mark.parametrize(
    ("make", "asked"),
    [
        # It chains along conflicts, and readers share.
        (published, [(range(5), 10.0, [11.0, 13.0, 17.0, 21.0, 26.0])]),
        # Nothing of 0 and 1 ever runs: only the published one remembers them.
        (published, [([0, 1], 0.0, [1.0, 3.0]), ([2], 0.0, [7.0])]),
        (lambda: corrected(8)[1], [([0, 1], 0.0, [1.0, 3.0]), ([2], 0.0, [4.0])]),
        (lambda: corrected(8, lag_s=0.5)[1], [([0, 4], 0.0, [1.5, 16.5])]),
        # What is forecast to be dropped delays nobody, or all are forecast alone.
        (lambda: corrected(8, SOON_S, 0.0)[1], [(range(3), 0.0, [1.0, 2.0, 6.0])]),
        (lambda: corrected(8, SOON_S, -np.inf)[1], [(range(3), 0.0, [1.0, 2.0, 4.0])]),
        # 0 is too late and dropped. Its ghost keeps its keys until its predicted end.
        (
            lambda: corrected(8, SOON_S, 0.0, ghosts=True)[1],
            [([0], 0.0, [1.0]), ([1], 0.5, [3.0])],
        ),
        (lambda: corrected(8, SOON_S, 0.0)[1], [([0], 0.0, [1.0]), ([1], 0.5, [2.5])]),
        # A world of its own with one core: 0 ends at 1 s, whatever the database does.
        (
            lambda: published(cores=1),
            [([0, 4], 0.0, [1.0, 17.0]), ([2], 5.0, [21.0]), ([3], 50.0, [58.0])],
        ),
    ],
)
def test_forecasts_by_hand(make, asked):
    lookahead = make()
    for ids, now_s, expected_s in asked:
        assert lookahead.forecast(np.array(ids), now_s).finish_s.tolist() == expected_s


def test_mended_counts_cores_and_corrects_by_commits():
    state, lookahead = corrected(cores=1)
    enter(state, 4, 0.0)
    advance(state, SERVICE_S, 0.0, False, 0.0)
    assert lookahead.forecast(np.array([0]), 0.0).finish_s.tolist() == [17.0]
    # Overdue: what should have committed at 16 still runs, so it ends now at best.
    assert lookahead.forecast(np.array([0]), 20.0).finish_s.tolist() == [21.0]
    advance(state, SERVICE_S, 16.0, False, 0.0)
    assert lookahead.forecast(np.array([0]), 16.5).finish_s.tolist() == [17.5]


def test_what_is_decided_on_never_overtakes_the_log():
    state, lookahead = corrected(cores=8, lag_s=0.5)
    enter(state, 4, 5.0)  # on its way for longer than the lag that is reckoned with
    assert lookahead.forecast(np.array([0]), 0.0).finish_s.tolist() == [6.0]


def random_log(seed, n=120):
    """Arrivals, true times on a core and keys of a busy database, in log order."""
    random = np.random.default_rng(seed)
    keys = random_key_sets(random, n, n_keys=6)
    return random.exponential(0.5, n).cumsum(), random.exponential(1.5, n), keys


def forecasts(arrival_s, service_s, keys, cores, tolerance_s):
    """A database under FIFO, and when each arrival was forecast to commit (n,)."""
    n, state = len(keys), idle_state(keys, cores)
    never = np.full(n, 1e9)
    lookahead = Feedback(state, keys, service_s, never, 0.0, 0.0, tolerance_s)
    forecast_s = np.empty(n)
    for i in range(n):
        advance(state, service_s, arrival_s[i], False, 0.0)
        forecast_s[i] = lookahead.forecast(np.array([i]), arrival_s[i]).finish_s[0]
        enter(state, i, arrival_s[i])
    return state, forecast_s


@pytest.mark.parametrize("tolerance_s", [np.inf, 0.0, -np.inf])
def test_exact_estimates_forecast_exactly_what_follows_if_nothing_comes(tolerance_s):
    # FIFO without a lag: the forecast of every arrival, against a database in which it
    # is the last. Later ones may overtake it while it waits for a lock.
    for seed in range(5):
        arrival_s, service_s, keys = random_log(seed)
        _, forecast_s = forecasts(arrival_s, service_s, keys, 3, tolerance_s)
        for last in range(len(keys)):
            alone = idle_state(keys, 3)
            for i in range(last + 1):
                enter(alone, i, arrival_s[i])
            advance(alone, service_s, np.inf, False, 0.0)
            assert forecast_s[last] == alone.finish_s[last], f"{seed=}"


def test_without_locks_later_arrivals_change_nothing_and_the_forecast_is_the_truth():
    arrival_s, service_s, _ = random_log(7)
    state, forecast_s = forecasts(arrival_s, service_s, no_keys(120), 2, np.inf)
    advance(state, service_s, np.inf, False, 0.0)
    np.testing.assert_array_equal(forecast_s, state.finish_s)


def test_unobserved_queue_is_in_log_order():
    arrival_s, service_s, _ = random_log(8)
    keys = no_keys(120)  # so it is in log order
    state = idle_state(keys, 2)
    for i in range(60):
        enter(state, i, arrival_s[i])
    advance(state, service_s, arrival_s[59], False, 0.0)
    assert state.progress[READY] > state.progress[STARTED] + 5
    never = np.full(120, 1e9)
    lookahead = Feedback(state, keys, service_s, never, 0.0, 0.0, np.inf)
    asked = np.arange(60, 70), arrival_s[59]
    observed = lookahead.forecast(*asked).finish_s
    state.progress[READY] = state.progress[STARTED]
    np.testing.assert_array_equal(observed, lookahead.forecast(*asked).finish_s)


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
            advance(state, service_s, now_s, False, 0.0)
            for _ in range(peeks):
                lookahead.peek(ids[::-1].copy(), now_s)
            finish_s += lookahead.forecast(ids, now_s).finish_s.tolist()
            for id_ in ids[:2]:
                enter(state, id_, now_s)
        answers.append(finish_s)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_probability_falls_with_the_forecast(spread):
    finish_s = np.linspace(1.0, 3.0, 21)
    p = probability_on_time(finish_s, np.full(21, 2.0), 0.0, spread)
    assert (np.diff(p) <= 0).all()
    assert p[0] > 0.99
    assert p[-1] < 0.1
    assert p[10] == (0.5 if spread else 1.0)
