from dataclasses import replace

import numpy as np
from key_sets import conflict, no_keys, random_key_sets, requests
from replica import commit_order, final_state, state_digest

from thesis_lib.sequencer.core.trace import Trace
from thesis_lib.sequencer.simulator.simulator import replay
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import scenario


def plain_state(keys, order):
    """The same database in plain Python: a key holds (writer, all that it had read)."""
    state = {}
    for i in order:
        read = tuple(state.get(k) for k in requests(keys, i))
        for k, alone in requests(keys, i).items():
            if alone:
                state[k] = (int(i), read)
    return state


def test_states_are_equal_where_those_of_a_plain_model_are():
    for seed in range(30):
        random = np.random.default_rng(seed)
        keys = random_key_sets(random, 12, n_keys=6)
        order = random.permutation(12)
        for at in range(11):
            swapped = order.copy()
            swapped[[at, at + 1]] = order[[at + 1, at]]
            same = plain_state(keys, order) == plain_state(keys, swapped)
            states = [final_state(keys, each) for each in (order, swapped)]
            assert np.array_equal(*states) == same, f"{seed=}"
            if not conflict(keys, order[at], order[at + 1]):
                assert same, f"{seed=}"


def run(trace, cores, log=None):
    log = np.arange(len(trace)) if log is None else log
    dispatch_s = np.sort(trace.arrival_s[log])
    return replay(trace, log, dispatch_s, cores=cores, slo_s=1.0)


def test_any_number_of_workers_reaches_the_state_of_the_log():
    for seed in range(4):
        trace = at_rate(scenario("C", 3_000, seed), 4_000, seed)
        log = np.random.default_rng(seed).permutation(3_000)[:2_900]
        histories = [run(trace, cores, log) for cores in (1, 2, 3, 16)]
        orders = {commit_order(history).tobytes() for history in histories}
        assert len(orders) == 4, f"{seed=}"  # or the next line would show nothing
        digests = {state_digest(trace, history) for history in histories}
        assert len(digests) == 1, f"{seed=}"
        np.testing.assert_array_equal(
            final_state(trace.keys, log),
            final_state(trace.keys, commit_order(histories[3])),
            err_msg=f"{seed=}",
        )


def test_a_run_that_swaps_two_conflicting_commits_is_seen():
    trace = at_rate(scenario("A", 200, seed=1), 4_000, seed=1)
    history = run(trace, 8)
    keys = trace.keys
    i, j = next((0, j) for j in range(1, 200) if conflict(keys, 0, j))
    swap = np.arange(200)
    swap[[i, j]] = j, i
    wrong = replace(
        history, start_s=history.start_s[swap], finish_s=history.finish_s[swap]
    )
    assert state_digest(trace, wrong) != state_digest(trace, history)


def test_commits_of_one_time_go_by_start_and_then_by_log():
    arrival_s, service_s = np.array([0.0, 1.0, 2.0]), np.array([5.0, 1.0, 1.0])
    trace = Trace.of_jobs(arrival_s, service_s, no_keys(3))
    history = run(trace, 2, np.array([1, 0, 2]))
    np.testing.assert_array_equal(commit_order(history), [1, 2, 0])
    history = replace(history, finish_s=np.ones(3), start_s=np.array([0.0, 0.0, -1.0]))
    np.testing.assert_array_equal(commit_order(history), [2, 1, 0])
