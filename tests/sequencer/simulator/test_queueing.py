import numpy as np
import pytest
import queueing
from key_sets import no_keys

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import KeySets, Trace
from thesis_lib.sequencer.simulator.simulator import replay


def queue(arrival_s, service_s):
    """A trace without locks: nothing but queueing for cores."""
    return Trace.of_jobs(arrival_s, service_s, no_keys(len(arrival_s)))


def agree(values, expected):
    """Whether seeds agree with a closed form, by a test that sees a fault of 2 %."""
    stderr = np.std(values, ddof=1) / np.sqrt(len(values))
    assert 8 * stderr < 0.02 * expected  # one fault apart, the intervals do not touch
    return abs(np.mean(values) - expected) < 4 * stderr


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
    "M/M/1": (0.5, exponential, 1, queueing.mm1_mean_wait(0.5, 1.0), 100),
    "M/G/1": (0.6, uniform, 1, queueing.mg1_mean_wait(0.6, 1.0, 1 / 12), 100),
    "M/M/2": (1.0, exponential, 2, queueing.mmc_mean_wait(1.0, 1.0, 2), 180),
}


@pytest.mark.parametrize("case", CASES)
def test_mean_wait_agrees_with_the_closed_form(case):
    rate, draw, cores, expected, n_seeds = CASES[case]
    seeds = np.random.SeedSequence(7).spawn(n_seeds)
    waits = [mean_wait(seed, rate, draw, cores) for seed in seeds]
    assert agree(waits, expected)
    assert not agree(waits, 1.02 * expected)
    assert not agree(waits, 0.98 * expected)


def test_share_of_late_agrees_with_the_closed_form():
    late = []
    for seed in np.random.SeedSequence(8).spawn(40):
        history, counted = simulated(seed, 0.5, exponential, 1)
        late.append(float(history.late[counted].mean()))
    expected = queueing.mm1_late(0.5, 1.0, 1.0)
    assert agree(late, expected)
    assert not agree(late, 1.02 * expected)


def test_one_key_held_alone_is_one_server_and_shared_is_none():
    random = np.random.default_rng(4)
    arrival_s, service_s = (np.cumsum(random.exponential(2.0, 3_000)),
                            random.exponential(1.0, 3_000))  # fmt: skip
    n = np.arange(3_000)

    def finish_s(cores, exclusive=None):
        trace = queue(arrival_s, service_s)
        if exclusive is not None:
            one = KeySets(np.arange(3_001), 0 * n, np.full(3_000, exclusive))
            trace = Trace.of_jobs(arrival_s, service_s, one)
        return replay(trace, n, arrival_s, cores=cores, slo_s=1.0).finish_s

    np.testing.assert_array_equal(finish_s(4, exclusive=True), finish_s(1))
    np.testing.assert_array_equal(finish_s(4, exclusive=False), finish_s(4))
    assert (finish_s(4) <= finish_s(1)).all()


def test_littles_law_holds_on_every_path():
    history, _ = simulated(3, 2.5, exponential, 4)
    # Time integral of the number in the system, from the merged events.
    times = np.concatenate([history.arrival_s, history.finish_s])
    steps = np.concatenate([np.ones(60_000), -np.ones(60_000)])
    order = np.argsort(times, kind="stable")
    inside = np.cumsum(steps[order])[:-1]
    area = float((inside * np.diff(times[order])).sum())
    assert inside.min() >= 0
    assert area == pytest.approx(history.latency_s.sum(), rel=1e-9)


def test_queueing_formulas_agree_where_they_meet():
    assert queueing.mg1_mean_wait(0.7, 1.0, 1.0) == pytest.approx(
        queueing.mm1_mean_wait(0.7, 1.0)
    )
    assert queueing.mmc_mean_wait(0.7, 1.0, 1) == pytest.approx(
        queueing.mm1_mean_wait(0.7, 1.0)
    )
    assert queueing.erlang_c(2, 1.0) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("says", "formula", "arguments"),
    [
        ("window_s=0", queueing.mmpp2_dispersion, ((1.0, 2.0), (1.0, 1.0), 0.0)),
        *(
            ("no steady state", queueing.mm1_mean_wait, (rate, 1.0))
            for rate in (0.0, 1.0, 1.2)
        ),
    ],
)
def test_formula_rejects_what_has_no_value(says, formula, arguments):
    with pytest.raises(InvalidInput, match=says):
        formula(*arguments)
