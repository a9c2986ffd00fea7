from dataclasses import replace

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.events import idle_state
from thesis_lib.sequencer.core.trace import Batch, Forecast, KeySets
from thesis_lib.sequencer.policies.admission import Terms
from thesis_lib.sequencer.policies.registry import (
    AS_DESCRIBED,
    INTERVAL,
    POLICIES,
    QUEUE,
    Defects,
    decide,
    policy,
)
from thesis_lib.sequencer.simulator.simulator import simulate
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import SCENARIOS, scenario

MS = 1e-3
RULES = [name for name in POLICIES if name not in ("fifo", "ours")]


def made(name, **options):
    return policy(name, slo_s=12.5 * MS, cores=8, **options)


def batch_of(latency_ms, service_ms=None, arrival_ms=None):
    """A batch that arrived `arrival_ms` ago, forecast to take `latency_ms` in all."""
    b = len(latency_ms)
    arrival_s = np.zeros(b) if arrival_ms is None else MS * np.array(arrival_ms)
    finish_s = arrival_s + MS * np.array(latency_ms)
    service_s = np.full(b, MS) if service_ms is None else MS * np.array(service_ms)
    batch = Batch(
        ids=100 + np.arange(b),
        arrival_s=arrival_s,
        deadline_s=arrival_s + 12.5 * MS,
        features=np.empty((b, 0)),
        keys=KeySets.from_lists([[]] * b, [[]] * b),
        feature_names=(),
    )
    on_time = (finish_s <= batch.deadline_s).astype(float)
    return batch, Forecast(service_s, finish_s, on_time)


def test_drop_reorder_and_hybrid_on_the_thesis_band():
    # Against an objective of 12.5 ms with a band of 2.5 ms:
    #         early critical early critical hopeless critical
    given = batch_of([3.0, 10.5, 9.0, 14.5, 15.5, 12.5])
    decisions = {n: made(n).rule(*given, 0.0) for n in ("drop", "reorder", "hybrid")}
    orders = {name: (d.order - 100).tolist() for name, d in decisions.items()}
    drops = {name: (d.dropped - 100).tolist() for name, d in decisions.items()}
    assert orders == {
        "drop": [0, 1, 2, 3, 5],
        "reorder": [1, 3, 5, 0, 2, 4],
        "hybrid": [1, 3, 5, 0, 2],
    }
    assert drops == {"drop": [4], "reorder": [], "hybrid": [4]}


def test_the_fixed_drop_without_allowance_and_take_the_least_slack_first():
    # Slack against 12.5 ms:  9.5   2.0   3.5   -2.0  -3.0  0.0
    given = batch_of([3.0, 10.5, 9.0, 14.5, 15.5, 12.5])
    slack = made("reorder", defects=Defects(stale=True)).rule(*given, 0.0)
    assert (slack.order - 100).tolist() == [3, 5, 1, 2, 0, 4]  # 4 is hopeless
    both = made("hybrid", defects=Defects(stale=True)).rule(*given, 0.0)
    assert (both.order - 100).tolist() == [5, 1, 2, 0]
    assert (both.dropped - 100).tolist() == [3, 4]


def test_a_batch_is_forecast_again_in_its_new_order():
    # Both write one row: whoever goes second is late, and is dropped or not for that.
    batch, _ = batch_of([0.0, 0.0], arrival_ms=[0.0, 0.0])
    keys = KeySets.from_lists([[], []], [[0], [0]])
    batch = replace(batch, ids=np.arange(2), keys=keys)
    state = idle_state(keys, 8)
    service_s = MS * np.array([4.0, 9.0])

    def decision(defects):
        given = made("hybrid", defects=defects)
        shadow = given.make_shadow(state, keys, service_s, batch.deadline_s, 0.0, 0.0)
        return decide(given, shadow, batch, 0.0)

    # In order of arrival they would end at 4 and 13 ms: the second has less slack.
    kept = decision(Defects(allowance=True))
    assert (kept.order.tolist(), kept.dropped.tolist()) == ([1, 0], [])
    late = decision(Defects())
    assert (late.order.tolist(), late.dropped.tolist()) == ([1], [0])
    stale = decision(Defects(stale=True))
    assert (stale.order.tolist(), stale.dropped.tolist()) == ([0], [1])


def test_defects_belong_to_the_thesis_three():
    assert made("hybrid").defects == AS_DESCRIBED
    assert made("hybrid-fixed").defects == Defects()
    with pytest.raises(InvalidInput, match="none of the thesis' defects"):
        made("ours", defects=Defects())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", RULES)
def test_every_decision_partitions_its_batch(name, seed):
    random = np.random.default_rng(seed)
    b = int(random.integers(0, 12))
    batch, forecast = batch_of(
        random.uniform(0, 25, b), random.uniform(0.1, 3, b), random.uniform(0, 9, b)
    )
    decision = made(name).rule(batch, forecast, 9 * MS)
    parts = [*decision.order, *decision.dropped, *decision.held]
    assert sorted(parts) == batch.ids.tolist()


@pytest.mark.parametrize("name", [*(n for n in RULES if n != "random-drop"), "ours"])
def test_an_idle_system_drops_nothing(name):
    spec = SCENARIOS["A"]
    trace = at_rate(scenario("A", 500, seed=1), 100.0, seed=2)
    history = simulate(
        trace, made(name), trace.service_s, cores=spec.cores, slo_s=spec.slo_s,
        batch_size=1,
    )  # fmt: skip
    assert not history.violated.any()


def test_edf_and_sjf_sort_by_what_they_say():
    given = batch_of([1, 1, 1], service_ms=[3, 1, 2], arrival_ms=[2, 0, 1])
    assert (made("edf").rule(*given, 0.0).order - 100).tolist() == [1, 2, 0]
    assert (made("sjf").rule(*given, 0.0).order - 100).tolist() == [1, 2, 0]


def test_least_slack_and_late_sjf_sort_by_what_they_say_and_drop_the_hopeless():
    # Latest start: 9.5, 10.5, 7.0 and 12.0 ms; the last is forecast to be late.
    given = batch_of(
        [1, 1, 1, 20], service_ms=[3, 1, 4, 0.5], arrival_ms=[0, -1, -1.5, 0]
    )
    slack = made("least-slack").rule(*given, 0.0)
    assert (slack.order - 100).tolist() == [2, 0, 1]
    shortest = made("late-sjf").rule(*given, 0.0)
    assert (shortest.order - 100).tolist() == [1, 0, 2]
    for decision in (slack, shortest):
        assert decision.dropped.tolist() == [103]


def test_a_capped_queue_takes_what_the_cores_can_finish():
    # Of 8 cores times 12.5 ms, a share; 10 transactions are past the sequencer.
    for service_ms in (0.51, 1.03, 2.11):
        batch, forecast = batch_of(np.ones(200), service_ms=[service_ms] * 200)
        forecast = replace(forecast, in_flight=10)
        decision = made("queue-cap").rule(batch, forecast, 0.0)
        fits = int(QUEUE * 12.5 * 8 / service_ms) - 10
        assert (decision.order - 100).tolist() == list(range(fits))
    huge = made("queue-cap").rule(*batch_of([1, 1], service_ms=[900, 900]), 0.0)
    assert huge.order.tolist() == [100]  # or nothing would ever run


def test_a_capped_queue_bounds_the_latency_at_any_load():
    n, cores = 4_000, 8
    given = made("queue-cap")
    alone = replace(
        scenario("A", n, seed=1), service_s=np.full(n, MS),
        units_s=np.full((n, 1), MS), keys=KeySets.from_lists([[]] * n, [[]] * n),
    )  # fmt: skip
    for per_s in (6_000.0, 9_000.0, 40_000.0):
        history = simulate(
            at_rate(alone, per_s, seed=2), given, alone.service_s, cores=cores,
            slo_s=12.5 * MS,
        )  # fmt: skip
        full = int(QUEUE * 12.5 * cores)  # transactions, each of a millisecond
        assert np.nanmax(history.latency_s) <= full / cores * MS + MS
        assert history.dropped.any() == (per_s > 8_000)


def test_codel_drops_after_an_interval_and_then_ever_faster():
    # Everything that comes to the front has waited too long, looked at each 0.01 ms.
    interval_ms, control = INTERVAL * 12.5, np.zeros(4)
    batch, forecast = batch_of(np.ones(9), arrival_ms=[-1e6] * 9)
    drops_ms = []
    for now_ms in np.arange(0, 8 * interval_ms, 0.01):
        decide_at = made("codel").remembering(batch, forecast, MS * now_ms, control)
        drops_ms += [now_ms] * len(decide_at.dropped)
        assert [*decide_at.dropped, *decide_at.order] == batch.ids.tolist()
    gaps = 1 / np.sqrt(np.arange(1, len(drops_ms)))
    due_ms = interval_ms * np.concatenate([[1], 1 + np.cumsum(gaps)])
    assert len(drops_ms) > 10
    np.testing.assert_allclose(drops_ms, due_ms, atol=0.02)


def test_codel_forgives_a_queue_that_was_short_once_in_the_interval():
    control, rule = np.zeros(4), made("codel").remembering
    late, forecast = batch_of([1.0], arrival_ms=[-1e6])
    fresh, _ = batch_of([1.0], arrival_ms=[1e6])
    interval_s = INTERVAL * 12.5 * MS
    for at in range(20):
        assert not len(rule(late, forecast, 0.9 * at * interval_s, control).dropped)
        assert not len(
            rule(fresh, forecast, (0.9 * at + 0.5) * interval_s, control).dropped
        )
    waited = rule(late, forecast, 18.9 * interval_s, control)
    assert waited.dropped.tolist() == []  # above since just now
    waited = rule(late, forecast, 20.0 * interval_s, control)
    assert waited.dropped.tolist() == [100]


def test_random_drop_drops_its_share_and_repeats():
    batch, forecast = batch_of(np.ones(20_000))
    rule = made("random-drop", drop_share=0.3, seed=5).rule
    first, second = (rule(batch, forecast, 0.0).dropped for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert abs(len(first) / 20_000 - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 20_000)
    other = made("random-drop", drop_share=0.3, seed=6).rule(batch, forecast, 0.0)
    assert not np.array_equal(first, other.dropped)


def test_late_demote_lets_a_lock_wait_behind_what_can_start():
    # Forecast waits for a lock: 0 and 2; free to start: 1 and 3.
    given = batch_of([5.0, 1.0, 4.0, 1.0])
    assert (made("late-demote").rule(*given, 0.0).order - 100).tolist() == [1, 3, 0, 2]


def test_late_demote_demotes_the_longest_when_not_all_can_be_on_time():
    # Twelve milliseconds of time, thirteen times eight of work: the long one loses.
    service_ms = [8.0] * 6 + [57.0]
    given = batch_of(service_ms, service_ms=service_ms)
    decision = made("late-demote").rule(given[0], given[1], 0.0)
    assert decision.dropped.tolist() == [106]  # cannot be on time even alone
    patient = batch_of([1.0] * 111, service_ms=[1.0] * 110 + [9.0])
    order = made("late-demote").rule(*patient, 0.0).order
    assert order[-1] == 210
    assert len(order) == 111


def test_a_policy_has_as_many_groups_as_it_was_made_for():
    trace = scenario("A", 20, seed=1)
    with pytest.raises(InvalidInput, match="group 4"):
        made("ours", groups=2).make_shadow(
            idle_state(trace.keys, 8), trace.keys, trace.service_s, trace.arrival_s,
            0.2, 0.0, np.full(20, 4),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("hybird", {}, "did you mean 'hybrid'"),
        ("drop", {"band_s": -1.0}, "band_s=-1"),
        ("random-drop", {"drop_share": 2.0}, "drop_share=2"),
        ("late-edf", {"flight": 0.0}, "flight=0"),
        ("late-edf", {"least_p": 1.5}, "least_p=1.5"),
        ("ours", {"gap": -0.1}, "gap=-0.1"),
        ("ours", {"groups": 0}, "groups=0"),
        ("late-edf", {"gap": 0.1}, "only 'ours' has"),
        ("fifo", {"terms": Terms()}, "only 'ours' has"),
    ],
)
def test_what_cannot_be_is_refused(name, changed, says):
    with pytest.raises(InvalidInput, match=says):
        made(name, **changed)
