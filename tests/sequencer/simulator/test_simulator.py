from dataclasses import fields, replace

import numpy as np
import pytest
from key_sets import random_key_sets
from plain_model import (
    Database,
    assert_equal,
    columns,
    key_sets,
    simulate_plainly,
)
from plain_rules import decide_plainly

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.events import (
    HELD,
    Delays,
    RunConfig,
    enter,
    front,
    idle_state,
)
from thesis_lib.sequencer.core.trace import Decision, KeySets, Trace
from thesis_lib.sequencer.policies.admission import BidPriceParameters
from thesis_lib.sequencer.policies.parameters import Defects
from thesis_lib.sequencer.policies.registry import POLICIES, Policy, policy
from thesis_lib.sequencer.simulator import simulator
from thesis_lib.sequencer.simulator.simulator import SystemConfig, replay, simulate
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import (
    SCENARIOS,
    mean_one_lognormal,
    scenario,
)

SPEC = SCENARIOS["A"]


def random_trace(seed, n=200, n_keys=8, ties=False):
    random = np.random.default_rng(seed)
    keys = random_key_sets(random, n, n_keys)
    arrival_s = np.sort(random.exponential(1.0, n).cumsum())
    service_s = random.exponential(2.0, n)
    if ties:  # whole numbers: events collide all the time
        arrival_s, service_s = np.floor(arrival_s), np.ceil(service_s)
    return Trace.of_jobs(arrival_s, service_s, keys)


def test_a_replay_equals_a_plain_heapq_model_bit_for_bit():
    for seed in range(40):
        trace = random_trace(seed, ties=bool(seed % 2))
        random = np.random.default_rng(seed)
        log = random.permutation(len(trace))[:180]
        dispatch_s = np.sort(trace.arrival_s[log]) + 1.0
        cores = int(random.integers(1, 5))
        history = replay(trace, log, dispatch_s, cores=cores, slo_s=5.0)
        plain = Database(key_sets(trace.keys), trace.service_s.tolist(), cores)
        for i, at_s in zip(log.tolist(), dispatch_s.tolist(), strict=True):
            plain.append(i, at_s)
        plain.run()
        expected = {
            name: [getattr(plain, name).get(i, np.nan) for i in range(len(trace))]
            for name in ("granted_s", "start_s", "finish_s")
        }
        assert_equal(history, expected, f"{seed=}")


def random_run(seed, n=60):
    """A trace and the options of a run, with colliding times for every other seed."""
    random = np.random.default_rng(seed)
    ties = bool(seed % 2)
    trace = random_trace(seed, n=n, ties=ties)
    estimated_s = trace.service_s * random.lognormal(0, 0.4, n)
    if ties:
        estimated_s = np.ceil(estimated_s)
    delay = random.choice([0.0, 1.0, 2.0], 5) if ties else random.exponential(0.3, 5)
    delay *= random.integers(0, 2, 5)
    delay[1] /= 8  # a binary fraction: the sequencer is not the bottleneck
    size = int(random.integers(1, 7))
    closed = seed % 3 == 0
    options = {
        "cores": int(random.integers(1, 5)),
        "slo_s": random.choice([6.0, 9.0, 15.0], n),
        "batch_size": size,
        "flush_s": float(random.choice([0.0, 2.0, np.inf])),
        "delays": Delays(*delay.tolist()),
        "clients": size + int(random.integers(0, 9)) if closed else None,
        "think_s": float(random.choice([0.0, 3.0])) if closed else 0.0,
    }
    return trace, estimated_s, options


@pytest.mark.parametrize("name", POLICIES)
def test_the_whole_system_equals_a_plain_heapq_model_bit_for_bit(name):
    for seed in range(1_000, 1_020):
        trace, estimated_s, options = random_run(seed)
        doubted = seed < 1_012 and name != "bid-price"
        options["spread"] = 0.2 if doubted else 0.0
        lag_s = options["delays"].lag_s if doubted else 0.0
        given = policy(name, slo_s=9.0, cores=options["cores"], lag_s=lag_s)
        history = simulate(trace, given, estimated_s, SystemConfig(**options))
        plain = simulate_plainly(trace, given, estimated_s, **options)
        assert_equal(history, plain, f"{seed=}")


def test_bid_price_equals_a_plain_model_bit_for_bit():
    for seed in range(150):
        trace, estimated_s, options = random_run(5_000 + seed)
        given = policy(
            "bid-price", slo_s=9.0, cores=options["cores"],
            lag_s=options["delays"].lag_s if seed % 2 else 0.0,
            params=BidPriceParameters(
                window=40.0 * (seed % 4), exploration_period=float(1 + seed % 5),
                gap=np.inf if seed % 3 else 0.01,
                groups=1 if seed % 4 == 3 else len(trace.kinds),
            ),
        )  # fmt: skip
        if seed % 2:  # every other estimate is far off, so that there are probes
            estimated_s[:: 2 + seed % 3] *= 10.0 ** (seed % 7 - 2)
        history = simulate(
            trace, given, estimated_s, SystemConfig(spread=0.0, **options)
        )
        plain = simulate_plainly(trace, given, estimated_s, **options)
        assert_equal(history, plain, f"{seed=}")


def test_every_combination_of_defects_equals_its_plain_rules(monkeypatch):
    """The simulator asks the plain rule of a policy instead of its compiled code."""
    for seed in range(128):
        trace, estimated_s, options = random_run(2_000 + seed)
        defects = Defects(*(bool(seed >> bit & 1) for bit in range(7)))
        system = SystemConfig(**options)
        for base in ("drop", "reorder", "hybrid"):
            given = policy(base, slo_s=9.0, cores=options["cores"], params=defects)
            compiled = simulate(trace, given, estimated_s, system)

            def decide(_, *seen, given=given):
                return decide_plainly(given, *seen)

            with monkeypatch.context() as patched:
                patched.setattr(simulator, "decide", decide)
                asked = replace(given, code=None, rule=decide)
                plain = simulate(trace, asked, estimated_s, system)
            assert_equal(compiled, columns(plain), f"{defects} {base}")


def renamed(keys, random):
    """The same key sets under other names: integers far apart, or text."""
    names = random.choice(2**40, keys.n_keys, replace=False) * 2**20
    if random.random() < 0.5:
        return KeySets(keys.offsets, names[keys.keys], keys.exclusive)
    rows = key_sets(keys)
    return KeySets.from_lists(
        *(
            [
                [f"key {names[key]}" for key, alone in row if alone == mode]
                for row in rows
            ]
            for mode in (False, True)
        )
    )


@pytest.mark.parametrize(
    "name", ["fifo", "drop", "reorder", "hybrid", "bid-price", "codel"]
)
def test_what_a_key_is_called_changes_nothing(name):
    for seed in range(20):
        trace, estimated_s, options = random_run(seed)
        other = replace(trace, keys=renamed(trace.keys, np.random.default_rng(seed)))
        given = policy(name, slo_s=8.0, cores=options["cores"])
        system = SystemConfig(**options)
        first = simulate(trace, given, estimated_s, system)
        second = simulate(other, given, estimated_s, system)
        assert_equal(first, columns(second), f"{seed=}")


def loaded(seed, n=1_200, per_s=8_000.0):
    trace = at_rate(scenario("A", n, seed), per_s, seed)
    noise = mean_one_lognormal(0.2, n, np.random.default_rng(seed))
    return trace, trace.service_s * noise


def run(trace, estimated_s, name, **options):
    given = policy(name, slo_s=SPEC.slo_s, cores=SPEC.cores)
    system = SystemConfig(cores=SPEC.cores, slo_s=SPEC.slo_s, **options)
    return simulate(trace, given, estimated_s, system)


@pytest.mark.parametrize("lag_s", [0.0, 5e-4])
@pytest.mark.parametrize("name", POLICIES)
def test_arrivals_are_committed_or_dropped_and_the_log_repeats(name, lag_s):
    trace, estimated_s = loaded(1)
    delays = Delays(lag_s)
    history = run(trace, estimated_s, name, delays=delays)
    committed = ~np.isnan(history.finish_s)
    np.testing.assert_array_equal(committed, ~history.dropped)
    np.testing.assert_array_equal(np.sort(history.log), np.flatnonzero(committed))
    for earlier, later in (
        (history.arrival_s, history.decided_s),
        (history.decided_s + lag_s, history.granted_s),
        (history.granted_s, history.start_s),
        (history.start_s, history.finish_s),
    ):
        assert (earlier <= later)[committed].all()
    again = run(trace, estimated_s, name, delays=delays)
    np.testing.assert_array_equal(history.log, again.log)


@pytest.mark.parametrize("name", ["fifo", "hybrid", "bid-price"])
def test_a_replica_replays_the_log_without_a_model(name):
    trace, estimated_s = loaded(2)
    history = run(trace, estimated_s, name)
    twin = replay(
        trace, history.log, history.decided_s[history.log], cores=SPEC.cores,
        slo_s=SPEC.slo_s,
    )  # fmt: skip
    np.testing.assert_array_equal(twin.finish_s, history.finish_s)
    np.testing.assert_array_equal(twin.log, history.log)


def test_what_is_released_beyond_the_bound_is_held_and_rises():
    trace, none = random_trace(0, n=5), np.empty(0, np.int64)
    setting = RunConfig(
        closed=False, think_s=0.0, size=1, flush_s=np.inf, in_flight=2, lag_s=0.0,
        sequencer_s=0.0, read_s=0.0, release_s=0.0,
    )  # fmt: skip
    state = idle_state(trace.keys, 1)
    before = front(trace.arrival_s, np.ones(5), setting, 0)
    enter(state, before, setting, np.array([4, 1, 3, 0]), none, np.array([2]))
    assert state.log[:2].tolist() == [4, 1]
    assert before.held[: before.counts[HELD]].tolist() == [0, 2, 3]


def simulated_by(trace, rule, **changed):
    given = policy("drop", slo_s=1.0, cores=8)
    if rule:
        given = Policy("own", lambda batch, forecast, now_s: Decision(*rule(batch.ids)))
    system = SystemConfig(**{"cores": 8, "slo_s": 1.0} | changed)
    return simulate(trace, given, trace.service_s, system)


@pytest.mark.parametrize(
    ("rule", "changed", "says"),
    [
        (lambda ids: (ids[1:], ids[:0]), {}, "exactly one of order"),
        (lambda ids: (ids[:0], ids[:0], ids), {}, "nothing left to wait for"),
        (None, {"cores": 0}, "cores=0"),
        (None, {"slo_s": 0.0}, "row 0 of slo_s is 0"),
        (None, {"batch_size": 0}, "batch_size=0"),
        (None, {"think_s": np.inf}, "think_s=inf"),
        (None, {"clients": 0}, "clients=0"),
        (None, {"clients": 9}, "clients=9 never fill a batch of 10"),
        (None, {"slo_s": np.ones(3)}, "slo_s has 3 entries: expected 20"),
        (None, {"slo_s": np.zeros(20)}, "row 0 of slo_s is 0"),
    ],
)
def test_simulate_rejects_settings_and_decisions(rule, changed, says):
    trace, _ = loaded(10, n=20)
    with pytest.raises(InvalidInput, match=says):
        simulated_by(trace, rule, **changed)


@pytest.mark.parametrize("log", [[0, 1, 1], [0, 3], [-1]])
def test_replay_rejects_a_log_of_other_rows(log):
    trace = random_trace(0, n=3)
    with pytest.raises(InvalidInput, match=r"each at most once|row 0 of log is -1"):
        replay(trace, np.array(log), np.zeros(len(log)), cores=1, slo_s=1.0)


@pytest.mark.parametrize("name", [field.name for field in fields(Delays)])
@pytest.mark.parametrize("value", [-1.0, np.inf, np.nan])
def test_delays_reject_what_is_no_time(name, value):
    with pytest.raises(InvalidInput, match=f"{name}="):
        Delays(**{name: value})


def test_littles_law_in_a_closed_loop():
    # Clients = throughput x (latency + thinking), over the whole run.
    trace, estimated_s = loaded(12, n=20_000)
    clients, think_s = 50, 2e-3
    history = run(trace, estimated_s, "fifo", clients=clients, think_s=think_s)
    span_s = history.finish_s.max()
    cycle_s = history.latency_s.mean() + think_s
    assert clients == pytest.approx(len(trace) / span_s * cycle_s, rel=0.01)
