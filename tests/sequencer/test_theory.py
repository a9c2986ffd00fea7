import numpy as np
import pytest

from thesis_lib.checks import InvalidInput
from thesis_lib.sequencer import theory
from thesis_lib.sequencer.simulate import replay
from thesis_lib.sequencer.trace import KeySets, Trace


def queue(arrival_s, service_s):
    """A trace without locks: nothing but queueing for cores."""
    n = len(arrival_s)
    nothing = KeySets(
        np.zeros(n + 1, np.int64), np.empty(0, np.int64), np.empty(0, bool)
    )
    return Trace.of_jobs(arrival_s, service_s, nothing)


def simulated(seed, rate, draw, cores, n=60_000, warm=3_000):
    random = np.random.default_rng(seed)
    arrival_s = np.cumsum(random.exponential(1 / rate, n))
    trace = queue(arrival_s, draw(random, n))
    history = replay(trace, np.arange(n), arrival_s, cores=cores, slo_s=1.0)
    return history, slice(warm, None)


def mean_wait(*arguments):
    history, counted = simulated(*arguments)
    return float((history.start_s - history.arrival_s)[counted].mean())


def exponential(random, n):
    return random.exponential(1.0, n)


def uniform(random, n):
    return random.uniform(0.5, 1.5, n)


CASES = {
    "M/M/1": (0.5, exponential, 1, theory.mm1_mean_wait(0.5, 1.0)),
    "M/G/1": (0.6, uniform, 1, theory.mg1_mean_wait(0.6, 1.0, 1 / 12)),
    "M/M/4": (2.4, exponential, 4, theory.mmc_mean_wait(2.4, 1.0, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_mean_wait_agrees_with_the_closed_form(case):
    rate, draw, cores, expected = CASES[case]
    seeds = np.random.SeedSequence(7).spawn(100)
    waits = [mean_wait(seed, rate, draw, cores) for seed in seeds]
    stderr = np.std(waits, ddof=1) / np.sqrt(len(waits))
    assert 4 * stderr < 0.02 * expected  # the test can see a 2 % fault
    assert abs(np.mean(waits) - expected) < 4 * stderr


def test_share_of_late_agrees_with_the_closed_form():
    seeds = np.random.SeedSequence(8).spawn(40)
    late = []
    for seed in seeds:
        history, counted = simulated(seed, 0.5, exponential, 1)
        late.append(float(history.late[counted].mean()))
    stderr = np.std(late, ddof=1) / np.sqrt(len(late))
    expected = theory.mm1_late(0.5, 1.0, 1.0)
    assert 4 * stderr < 0.02 * expected
    assert abs(np.mean(late) - expected) < 4 * stderr


def test_little_holds_on_every_path():
    history, _ = simulated(3, 2.5, exponential, 4)
    # Time integral of the number in the system, from the merged events.
    times = np.concatenate([history.arrival_s, history.finish_s])
    steps = np.concatenate([np.ones(60_000), -np.ones(60_000)])
    order = np.argsort(times, kind="stable")
    inside = np.cumsum(steps[order])[:-1]
    area = float((inside * np.diff(times[order])).sum())
    assert inside.min() >= 0
    assert area == pytest.approx(history.latency_s.sum(), rel=1e-9)


def test_the_forms_agree_where_they_meet():
    assert theory.mg1_mean_wait(0.7, 1.0, 1.0) == pytest.approx(
        theory.mm1_mean_wait(0.7, 1.0)
    )
    assert theory.mmc_mean_wait(0.7, 1.0, 1) == pytest.approx(
        theory.mm1_mean_wait(0.7, 1.0)
    )
    assert theory.erlang_c(2, 1.0) == pytest.approx(1 / 3)


@pytest.mark.parametrize("rate", [0.0, 1.0, 1.2])
def test_no_steady_state_is_refused(rate):
    with pytest.raises(InvalidInput, match="no steady state"):
        theory.mm1_mean_wait(rate, 1.0)
