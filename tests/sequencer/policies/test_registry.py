from dataclasses import replace

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.events import LOGGED, advance, idle_state
from thesis_lib.sequencer.core.trace import Decision, KeySets
from thesis_lib.sequencer.policies.admission import BidPriceParameters
from thesis_lib.sequencer.policies.decisions import decide_compiled
from thesis_lib.sequencer.policies.parameters import (
    AS_PUBLISHED,
    Defects,
    LateBound,
    QueueParameters,
    RandomDrop,
)
from thesis_lib.sequencer.policies.registry import POLICIES, policy
from thesis_lib.sequencer.simulator.simulator import SystemConfig, simulate
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import SCENARIOS, scenario

MS = 1e-3
USED = QueueParameters()


def made(name, params=None):
    return policy(name, slo_s=12.5 * MS, cores=8, params=params)


def run(given, trace, cores=8, slo_s=12.5 * MS, **options):
    """The history of a policy that knows every service time."""
    system = SystemConfig(cores=cores, slo_s=slo_s, **options)
    return simulate(trace, given, trace.service_s, system)


class Sequencer:
    """A policy before eight cores, which idle but for `logged`; estimates are exact."""

    def __init__(self, given, service_ms, arrival_ms=0.0, writes=None, logged=()):
        n = len(service_ms)
        keys = KeySets.from_lists([[]] * n, writes or [[]] * n)
        service_s = MS * np.array(service_ms, float)
        arrival_s = MS * np.broadcast_to(arrival_ms, n)
        state = idle_state(keys, 8)
        state.log[: len(logged)], state.progress[LOGGED] = logged, len(logged)
        state.dispatch_s[: len(logged)] = 0.0
        advance(state, service_s, 0.0, False, 0.0)
        self.run = lambda now_ms: advance(state, service_s, MS * now_ms, False, 0.0)
        self.code, self.ids = given.code, np.setdiff1d(np.arange(n), logged)
        self.lookahead = given.make_lookahead(
            state, keys, service_s, arrival_s + 12.5 * MS, 0.0, 0.0
        )

    def decide(self, ids=None, now_ms=0.0):
        """Lists of what runs, in order, and of what is dropped."""
        asked = self.ids if ids is None else np.array(ids)
        memory, model = self.lookahead.memory, self.lookahead.model
        parts = decide_compiled(self.code, memory, model, asked, MS * now_ms)
        order, dropped, held = (part.tolist() for part in parts)
        assert sorted([*order, *dropped, *held]) == asked.tolist()
        return order, dropped


# Against an SLO of 12.5 ms with a band of 2.5 ms:
#       early critical early critical hopeless critical
BAND = {"service_ms": [3.0, 10.5, 9.0, 14.5, 15.5, 12.5]}
STALE = Defects(stale=True)
THREE = {"service_ms": [3, 1, 2], "arrival_ms": [2, 0, 1]}
# Latest start: 9.5, 10.5 and 7.0 ms; the last is forecast to be late.
FOUR = {"service_ms": [3, 1, 4, 20], "arrival_ms": [0, -1, -1.5, 0]}
# Both write one row: whoever goes second is late, and is dropped or not for that. In
# order of arrival they would end at 4 and 13 ms: the second has less slack.
ONE_ROW = {"service_ms": [4.0, 9.0], "writes": [[0], [0]]}
# The last holds the row of the first and the third for 4 ms.
HELD = {
    "service_ms": [1, 1, 1, 1, 4], "writes": [[0], [], [0], [], [0]], "logged": [4]
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "params", "asked", "order", "dropped"),
    [
        ("drop", None, BAND, [0, 1, 2, 3, 5], [4]),
        ("reorder", None, BAND, [1, 3, 5, 0, 2, 4], []),
        ("hybrid", None, BAND, [1, 3, 5, 0, 2], [4]),
        ("reorder", STALE, BAND, [3, 5, 1, 2, 0, 4], []),  # by slack; 4 is hopeless
        ("hybrid", STALE, BAND, [5, 1, 2, 0], [3, 4]),
        ("hybrid", Defects(allowance=True), ONE_ROW, [1, 0], []),
        ("hybrid", Defects(), ONE_ROW, [1], [0]),
        ("hybrid", STALE, ONE_ROW, [0], [1]),
        ("edf", None, THREE, [1, 2, 0], []),
        ("sjf", None, THREE, [1, 2, 0], []),
        ("least-slack", None, FOUR, [2, 0, 1], [3]),
        ("late-sjf", None, FOUR, [1, 0, 2], [3]),
        ("late-demote", None, HELD, [1, 3, 0, 2], []),
    ],
)
def test_decisions_by_hand(name, params, asked, order, dropped):
    decision = Sequencer(made(name, params), **asked).decide()
    assert (decision[0], sorted(decision[1])) == (order, dropped)


def test_defects_belong_to_the_thesis_three():
    assert made("hybrid").defects == AS_PUBLISHED
    assert made("hybrid-corrected").defects == Defects()


@pytest.mark.parametrize("name", [n for n in POLICIES if n != "random-drop"])
def test_an_idle_system_drops_nothing(name):
    trace = at_rate(scenario("A", 500, seed=1), 100.0, seed=2)
    assert not run(made(name), trace, batch_size=1).violated.any()


def test_a_capped_queue_takes_what_the_cores_can_finish():
    # Of 8 cores times 12.5 ms, a share; 10 transactions are past the sequencer.
    for service_ms in (0.51, 1.03, 2.11):
        sequencer = Sequencer(made("queue-cap"), [service_ms] * 210, logged=range(10))
        fits = int(USED.room * 12.5 * 8 / service_ms) - 10
        assert sequencer.decide()[0] == list(range(10, 10 + fits))
    huge = Sequencer(made("queue-cap"), [900, 900]).decide()
    assert huge == ([0], [1])  # or nothing would ever run


def test_a_capped_queue_bounds_the_latency_at_any_load():
    for per_s in (6_000.0, 9_000.0, 40_000.0):
        history = run(made("queue-cap"), alike(4_000, per_s=per_s))
        full = int(USED.room * 12.5 * 8)  # transactions, each of a millisecond
        assert np.nanmax(history.latency_s) <= full / 8 * MS + MS
        assert history.dropped.any() == (per_s > 8_000)


def test_codel_drops_after_an_interval_and_then_ever_faster():
    # Everything that comes to the front has waited too long, looked at each 0.01 ms.
    interval_ms, drops_ms = USED.interval * 12.5, []
    sequencer = Sequencer(made("codel"), np.ones(9), arrival_ms=-1e6)
    for now_ms in np.arange(0, 8 * interval_ms, 0.01):
        _, dropped = sequencer.decide(now_ms=now_ms)
        assert dropped == list(range(len(dropped)))  # from the front
        drops_ms += [now_ms] * len(dropped)
    gaps = 1 / np.sqrt(np.arange(1, len(drops_ms)))
    due_ms = interval_ms * np.concatenate([[1], 1 + np.cumsum(gaps)])
    assert len(drops_ms) > 10
    np.testing.assert_allclose(drops_ms, due_ms, atol=0.02)


def test_codel_forgives_a_queue_that_was_short_once_in_the_interval():
    sequencer = Sequencer(made("codel"), [1.0, 1.0], arrival_ms=[-1e6, 1e6])
    interval_ms = USED.interval * 12.5
    for at in range(20):
        assert sequencer.decide([0], 0.9 * at * interval_ms) == ([0], [])
        assert sequencer.decide([1], (0.9 * at + 0.5) * interval_ms) == ([1], [])
    assert sequencer.decide([0], 18.9 * interval_ms) == ([0], [])  # since just now
    assert sequencer.decide([0], 20.0 * interval_ms) == ([], [0])


def alike(n, writes=(), per_s=12_000.0):
    """Transactions of a millisecond that write these keys: 8,000 a second fit."""
    trace = replace(
        scenario("A", n, seed=1), service_s=np.full(n, MS),
        units_s=np.full((n, 1), MS),
        keys=KeySets.from_lists([[]] * n, [[*writes]] * n),
    )  # fmt: skip
    return at_rate(trace, per_s, seed=2)


def overloaded(name, trace, **terms):
    return run(made(name, QueueParameters(**terms)), trace)


def in_system(history, arrivals):
    """How many are in the system after each arrival of a slice."""
    arrival_s = history.arrival_s
    return [
        ((arrival_s <= now_s) & (history.finish_s > now_s)).sum()
        for now_s in arrival_s[arrivals]
    ]


def test_adaptive_lifo_starts_no_transaction_beyond_max_wait():
    trace = alike(4_000)
    history = overloaded("adaptive-lifo", trace, depth=1.0)
    waited_s = history.start_s - trace.arrival_s
    max_wait_s = USED.max_wait * 12.5 * MS
    assert np.nanmax(waited_s[trace.arrival_s <= max_wait_s]) <= max_wait_s
    # From then on the queue has always stood, and who comes last goes first.
    later = trace.arrival_s > 2 * max_wait_s
    assert np.nanmax(waited_s[later]) <= USED.standing * 12.5 * MS
    assert np.nanmedian(waited_s[later]) < MS
    assert abs(history.dropped[later].mean() - 1 / 3) < 0.02  # what cores cannot do


@pytest.mark.parametrize("writers", [1, 5])
def test_no_lock_has_a_longer_queue_than_its_cap(writers):
    trace = alike(500, writes=[0])
    history = overloaded("lock-queue-cap", trace, writers=writers)
    assert max(in_system(history, slice(None))) == writers + 1  # one holds it
    assert history.dropped.any()


def test_envoy_rejects_the_share_that_fails():
    # Of eight that have committed, some in time: the share is the formula's.
    for late in (0, 1, 4, 8):
        service_ms = [1.0] * (8 - late) + [20.0] * late + [1.0] * 4_000
        sequencer = Sequencer(made("envoy"), service_ms, logged=range(8))
        sequencer.run(21.0)
        dropped = sequencer.decide(now_ms=21.0)[1]
        share = min(max((8 - (8 - late) / 0.95) / 9, 0.0), 0.8)
        assert abs(len(dropped) / 4_000 - share) < 4 * np.sqrt(0.25 / 4_000)
    later_ms = 21.0 + USED.window * 12.5  # all of them are forgotten
    assert sequencer.decide(now_ms=later_ms)[1] == []


def test_cinnamon_lets_in_what_leaves_with_a_queue_that_its_sum_gain_sets():
    # While nobody idles, the errors add up to what waits over what leaves in a cycle,
    # and the share refused is in proportion to it.
    sum_gain, leave_in_a_cycle = 0.3, 8 * 12.5
    trace = alike(20_000)
    given = {"cycle": 1.0, "gain": 0.3, "sum_gain": sum_gain, "places": 1.0}
    history = overloaded("cinnamon", trace, **given)
    here = in_system(history, slice(10_000, None))
    share = 1 / 3
    assert abs(history.dropped[10_000:].mean() - share) < 0.01
    settled = share / sum_gain * leave_in_a_cycle
    assert abs(np.mean(here) - settled) < 0.1 * settled


def test_gradient2_lets_its_limit_grow_slowly_while_latencies_do_not():
    history = overloaded("gradient2", alike(20_000))
    renewals = history.arrival_s // (USED.gradient * 12.5 * MS)
    most = np.maximum.accumulate(in_system(history, slice(None)))
    assert most[99] == 20  # two and a half a core, and the least
    assert (most <= 20 + 0.2 * 4 * renewals).all()
    assert 20 < most[-1] < 30  # each step makes latencies longer, which counts


def test_breakwater_keeps_the_delay_of_its_queue_near_the_target():
    trace = alike(20_000)
    history = overloaded("breakwater", trace, delay=0.4)
    waited_s = (history.start_s - trace.arrival_s)[10_000:]
    assert 0.2 * 12.5 * MS < np.nanmedian(waited_s) < 0.6 * 12.5 * MS
    assert np.nanmax(waited_s) <= 2 * 0.4 * 12.5 * MS + 2 * MS


def test_random_drop_drops_its_share_and_repeats():
    def dropped(seed):
        given = made("random-drop", RandomDrop(0.3, seed))
        return Sequencer(given, np.ones(20_000)).decide()[1]

    first = dropped(5)
    assert first == dropped(5)
    assert abs(len(first) / 20_000 - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 20_000)
    assert first != dropped(6)


def test_late_demote_demotes_the_longest_when_not_all_can_be_on_time():
    # Cannot be on time even alone.
    assert Sequencer(made("late-demote"), [8.0] * 6 + [57.0]).decide()[1] == [6]
    # Twelve and a half milliseconds of eight cores, 119 of work: the long one loses.
    order, dropped = Sequencer(made("late-demote"), [9.0] + [1.0] * 110).decide()
    assert order.index(0) >= 99  # behind all those that can be on time
    assert dropped == []


def test_a_policy_has_as_many_groups_as_it_was_made_for():
    trace = scenario("A", 20, seed=1)
    with pytest.raises(InvalidInput, match="group 4"):
        made("bid-price", BidPriceParameters(groups=2)).make_lookahead(
            idle_state(trace.keys, 8), trace.keys, trace.service_s, trace.arrival_s,
            0.2, 0.0, np.full(20, 4),
        )  # fmt: skip


def test_a_function_is_a_policy_with_the_surroundings_of_late_edf():
    cores, slo_s = SCENARIOS["C"].cores, SCENARIOS["C"].slo_s

    def by_deadline(batch, forecast, now_s):
        order = np.argsort(batch.deadline_s, kind="stable")
        return batch.decide(order, forecast.p_on_time < LateBound().least_p)

    trace = at_rate(scenario("C", 600, seed=3), 12_000.0, seed=4)
    own, named = (
        run(policy(which, slo_s=slo_s, cores=cores), trace, cores, slo_s)
        for which in (by_deadline, "late-edf")
    )
    assert own.dropped.any()
    np.testing.assert_array_equal(own.log, named.log)
    np.testing.assert_array_equal(own.finish_s, named.finish_s)
    assert made(by_deadline).name == "by_deadline"


def test_what_a_rule_neither_runs_nor_drops_is_held():
    trace = scenario("A", 5, seed=1)
    batch = trace.batch(np.arange(5), np.full(5, 9.0))
    decision = batch.decide(np.array([3, 1, 0]), np.array([1, 0, 0, 0, 1], bool))
    assert decision.order.tolist() == [3, 1]
    assert decision.dropped.tolist() == [0, 4]
    assert decision.held.tolist() == [2]
    with pytest.raises(InvalidInput, match="exactly one of order"):
        Decision(batch.ids[:4], batch.ids[:0]).partition_of(batch.ids, "loses")
    for order, dropped, says in (
        ([5], np.zeros(5, bool), "row 0 of order is 5: a batch of 5"),
        ([-1], np.zeros(5, bool), "row 0 of order is -1"),
        ([0.5], np.zeros(5, bool), "row 0 of order is 0.5"),
        ([0], np.zeros(4, bool), "dropped has 4 entries: expected 5"),
        ([0], [0, 0, 2, 0, 0], "row 2 of dropped is 2"),
    ):
        with pytest.raises(InvalidInput, match=says):
            batch.decide(order, dropped)


OWN = """
from __future__ import annotations
from dataclasses import dataclass
from shutil import copy

@dataclass
class Asked:
    times: int = 0

asked = Asked()

def longest_first(batch, forecast, now_s):
    return batch.decide((-forecast.service_s).argsort(), forecast.p_on_time < 0.5)

def once(batch, forecast, now_s):
    asked.times += 1
    assert asked.times == 1
    return batch.decide(range(len(batch)), [False] * len(batch))

def raises(batch, forecast, now_s):
    return forecast.nothing

def of_two(batch, forecast):
    return batch

def beyond(batch, forecast, now_s):
    return batch.decide([len(batch)], [False] * len(batch))

def overwrites(batch, forecast, now_s):
    batch.ids[...] = 100_000
    return batch.decide(range(len(batch)), [False] * len(batch))

def forgets(batch, forecast, now_s):
    batch.decide(range(len(batch)), [False] * len(batch))

def halves(batch, forecast, now_s):
    from thesis_lib.sequencer.core.trace import Decision
    return Decision(batch.ids + 0.5, [], [])
"""


@pytest.fixture
def own(tmp_path):
    """A function that names one of a file of policies."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return lambda function: f"{file}:{function}"


def decisions(rule, trace):
    return run(policy(rule, slo_s=0.003, cores=4), trace, 4, 0.003)


def test_function_of_a_file_is_a_policy(own):
    trace = at_rate(scenario("A", 200, seed=3), 10_000.0, seed=3)

    def longest_first(batch, forecast, now_s):
        return batch.decide((-forecast.service_s).argsort(), forecast.p_on_time < 0.5)

    expected = decisions(longest_first, trace)
    named = decisions(own("longest_first"), trace)
    assert 0 < expected.dropped.sum() < len(trace)
    for column in ("finish_s", "dropped"):
        np.testing.assert_array_equal(getattr(named, column), getattr(expected, column))


def test_a_file_begins_anew_with_each_run(own):
    trace = scenario("A", 1, seed=1)
    for _ in range(2):
        assert not decisions(own("once"), trace).dropped.any()


@pytest.mark.parametrize(
    ("function", "text", "says"),
    [
        ("longestfirst", OWN, "expected one of longest_first, .*; did you mean"),
        ("copy", OWN, "expected one of longest_first, once, raises, of_two"),
        ("Asked", OWN, "expected one of longest_first"),
        ("of_two", OWN, r"expected a function of \(batch, forecast, now_s\)"),
        (
            "raises",
            OWN,
            r"raised AttributeError: .* line 21: return forecast.nothing\)",
        ),
        ("beyond", OWN, r"raised InvalidInput: .*own.py, line 27: return batch.decide"),
        ("overwrites", OWN, "overwrites' must put each of the"),
        ("forgets", OWN, "forgets' answered with NoneType: expected a Decision"),
        ("halves", OWN, "row 0 of order of policy '.*:halves' is 0.5"),
        ("f", None, r"own.py:f.*there is no file"),
        ("f", "def f(:", r"own.py:f.*raised SyntaxError: .*own.py, line 1\)$"),
        (
            "f",
            "import nowhere_at_all",
            r"own.py:f.*raised ModuleNotFoundError: .*line 1: import",
        ),
        ("f", "raise SystemExit(3)", r"own.py:f.*raised SystemExit: 3"),
    ],
)
def test_what_is_no_policy_of_a_file_is_named(tmp_path, function, text, says):
    file = tmp_path / "own.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidInput, match=says):
        decisions(f"{file}:{function}", scenario("A", 40, seed=1))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("hybird", lambda: None, "did you mean 'hybrid'"),
        (
            "random-drop",
            lambda: RandomDrop(2.0),
            "share must be between 0 and 1",
        ),
        ("late-edf", lambda: LateBound(flight=0.0), "flight must be positive"),
        ("late-edf", lambda: LateBound(flight=np.inf), "flight must be .* got inf"),
        ("late-edf", lambda: LateBound(least_p=1.5), "least_p must be .* got 1.5"),
        ("envoy", lambda: QueueParameters(window=0), "window must be positive"),
        ("bid-price", lambda: BidPriceParameters(gap=-0.1), "gap must be at least 0"),
        ("bid-price", lambda: BidPriceParameters(groups=0), "groups=0"),
        (
            "bid-price",
            lambda: BidPriceParameters(exploration_period=0),
            "exploration_period must be positive",
        ),
        ("late-edf", lambda: BidPriceParameters(gap=0.1), "must be LateBound, got Bid"),
        ("fifo", BidPriceParameters, "must be NoParameters, got BidPriceParameters"),
        ("bid-price", QueueParameters, "must be BidPriceParameters, got Queue"),
        ("bid-price", Defects, "must be BidPriceParameters, got Defects"),
    ],
)
def test_policy_rejects_parameters(name, params, message):
    with pytest.raises(InvalidInput, match=message):
        made(name, params())
