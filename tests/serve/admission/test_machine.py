"""In front of a service it decides as the simulator does, and forgets nobody."""

from dataclasses import replace

import numpy as np
import pytest
from services import (
    AT_ONCE,
    BATCHED,
    SLO_S,
    WORKERS,
    called,
    crowd,
    drive,
    lifo,
    sequencer,
)

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer import SystemConfig, policy, simulate
from thesis_lib.sequencer.core.trace import Decision
from thesis_lib.sequencer.policies import queues
from thesis_lib.sequencer.policies.recalibration import COMMITS, MEAN_X, MEAN_Y, SLOPE
from thesis_serve import LiveSequencer, OnlineEstimator
from thesis_serve.admission import machine as machine_room

CASES = [
    *((name, load, {}) for name in [*AT_ONCE, lifo] for load in (0.8, 1.3)),
    *(
        (name, 1.3, {"batch_size": 7, "flush_s": timer * SLO_S})
        for name in BATCHED
        for timer in (0.1, 1e6)
    ),
]


@pytest.mark.parametrize(("name", "load", "batches"), CASES, ids=called)
def test_it_decides_as_the_simulator_does(name, load, batches, monkeypatch):
    trace, estimated_s = crowd(700, load, seed=3)
    simulated = simulate(
        trace,
        machine_room.at_hand(policy(name, slo_s=SLO_S, cores=WORKERS), WORKERS),
        estimated_s,
        SystemConfig(cores=WORKERS, slo_s=SLO_S, **batches),
    )
    for room in (4096, 1):  # with room for all, and room made again and again
        monkeypatch.setattr(machine_room, "_ROOM", room)
        live = sequencer(name, trace, **batches)
        looks = bool(batches)
        start_s, finish_s, refused = drive(live, trace, estimated_s, looks=looks)
        np.testing.assert_array_equal(refused, simulated.dropped)
        np.testing.assert_array_equal(start_s, simulated.start_s)
        np.testing.assert_array_equal(finish_s, simulated.finish_s)
        assert live.counts.late == simulated.late.sum()
        assert live.counts.refused == simulated.dropped.sum()
        assert live.running == live.waiting == len(live._slot) == 0
    assert batches or name == "fifo" or load < 1 or simulated.dropped.any()


def served(live, number, now_s, took_s=1.0, **about):
    """Whether a request was started; if so it takes `took_s`."""
    if number not in live.arrive(number, now_s, **about).started:
        return False
    live.end(number, now_s + took_s)
    return True


@pytest.mark.parametrize("name", ["bid-price", "fifo", "late-edf"])
def test_bid_price_never_explores_below_the_shortest_service_of_a_kind(name):
    live = LiveSequencer(name, workers=1, slo_s=9.0)
    for number in range(20):
        assert served(live, number, 2.0 * number, kind="slow")
    for number in range(20, 60):  # the kind is served meanwhile, so its bound stays
        assert served(live, 2 * number, 4.0 * number, kind="slow")
        early = served(live, 2 * number + 1, 4.0 * number + 2, kind="slow", slo_s=1e-6)
        assert early == (name == "fifo")
    if name == "bid-price":  # of another kind none was served: it may be a fast one
        assert served(live, 500, 500.0, 1e-7, kind="other", slo_s=1e-6)


def test_exploration_returns_once_services_may_have_become_shorter():
    live = LiveSequencer("bid-price", workers=1, slo_s=0.25)
    assert served(live, 0, 0.0, took_s=1.0)
    tried = [n for n in range(1, 200) if served(live, n, 2.0 * n, took_s=0.02)]
    assert 5 < tried[0] < 20  # 0.9^14 s are below the SLO
    assert len(tried) > 150


def test_no_request_below_the_shortest_possible_service_is_explored_with():
    live = LiveSequencer("bid-price", workers=1, slo_s=9.0, shortest_s=0.1)
    assert not any(served(live, n, 1.0 * n, slo_s=0.09) for n in range(100))
    assert live.counts.refused == 100
    assert live.settings()["shortest_s"] == 0.1
    assert served(live, 100, 100.0, slo_s=0.11)


def fail(live, number, now_s):
    return live.end(number, now_s, failed=True)


goes = pytest.mark.parametrize("goes", [LiveSequencer.leave, fail])


@goes
def test_the_policy_believes_its_estimates_whoever_leaves_or_fails(goes):
    live = LiveSequencer("bid-price", workers=1, slo_s=1.0)
    now_s = 0.0
    for number in range(60):
        estimate_s = 0.01 * 1.1 ** (number % 9)
        assert live.arrive(number, now_s, estimate_s=estimate_s).started == [number]
        if number % 2:
            goes(live, number, now_s + estimate_s / 5)
        else:
            live.end(number, now_s + estimate_s)
        now_s += 0.1
    live.arrive(60, now_s, estimate_s=0.01)
    moments = live._lookahead.memory.online.moments
    assert moments[MEAN_Y] == pytest.approx(moments[MEAN_X])
    assert moments[SLOPE] == pytest.approx(1.0)
    assert moments[COMMITS] == live.estimator.all.count == 30


@goes
def test_a_probe_that_leaves_or_fails_fits_nothing(goes):
    live = LiveSequencer("bid-price", workers=1, slo_s=0.2)
    for number in range(100):
        live.arrive(number, 0.02 * number, estimate_s=0.01)
        live.end(number, 0.02 * number + 0.01)
    live.arrive(100, 3.0, estimate_s=0.01)
    live.end(100, 3.01)
    before = live._lookahead.memory.online
    moments, fits = before.moments.copy(), before.fits.copy()
    admitted = 0
    for number in range(200, 300):  # each would take a minute, and is gone at once
        if live.arrive(number, number, estimate_s=60.0).started:
            admitted += 1
            goes(live, number, number + 0.05)
    after = live._lookahead.memory.online
    np.testing.assert_array_equal(after.fits, fits)
    assert after.moments[SLOPE] == pytest.approx(moments[SLOPE])
    assert 1 <= admitted <= 5


def test_a_rule_sees_numbers_whatever_room_is_made(monkeypatch):
    def thirds(batch, forecast, now_s):
        return batch.decide(np.arange(len(batch)), batch.ids % 3 == 0)

    for room in (4096, 1):
        monkeypatch.setattr(machine_room, "_ROOM", room)
        live = LiveSequencer(thirds, workers=1, slo_s=9.0)
        for number in range(30):
            made = live.arrive(number, float(number))
            assert made.refused == ([number] if number % 3 == 0 else [])
            for one in made.started:
                live.end(one, number + 0.5)


def test_a_deadline_that_has_just_passed_is_still_looked_at():
    live = LiveSequencer("bid-price", workers=1, slo_s=0.2)
    live.arrive(0, 0.0, estimate_s=60.0, slo_s=100.0)
    live.arrive(1, 0.0, estimate_s=0.01)
    due_s = live.next_look_s
    live.arrive(2, 0.2 + (due_s - 0.2) / 2, estimate_s=0.01)  # behind the deadline
    assert live.next_look_s == due_s
    assert live.look(due_s).refused == [1]
    assert live.next_look_s > due_s


@pytest.mark.parametrize(
    ("name", "learned"),
    [("envoy", slice(1, queues.DRAWN)), ("gradient2", slice(queues.LONG, queues.SUM))],
)
def test_who_leaves_a_queue_is_no_failure_of_the_service(name, learned):
    found = []
    for waiting in (12, 0):
        live = LiveSequencer(name, workers=8, slo_s=0.1)
        for number in range(8 + waiting):
            assert live.arrive(number, 0.0, estimate_s=0.01).refused == []
        for number in range(8, 8 + waiting):
            live.leave(number, 1.0)
        for number in range(8):
            live.end(number, 5.0)
        live.arrive(99, 5.001, estimate_s=0.01)
        found.append(live._lookahead.memory.control[learned].copy())
    np.testing.assert_array_equal(*found)


def test_nobody_waits_beyond_the_bound():
    live = LiveSequencer("fifo", workers=1, slo_s=1, most_waiting=2)
    made = [live.arrive(i, 0.0) for i in range(5)]
    assert [m.started for m in made] == [[0], [], [], [], []]
    assert [m.refused for m in made] == [[], [], [], [3], [4]]
    assert live.counts.full == 2
    assert live.waiting == 2
    assert live.end(0, 1.5).started == [1]
    assert live.counts.late == 1


@pytest.mark.parametrize("name", ["bid-price", "late-edf", "codel"])
def test_behind_a_service_that_hangs_nobody_waits_for_ever(name):
    live = LiveSequencer(name, workers=2, slo_s=0.1)
    started = []
    for number in range(12):
        started += live.arrive(number, 1e-3 * number, estimate_s=0.02).started
    assert started == [0, 1]  # which never end
    looks = 0
    while live.next_look_s < np.inf:
        assert live.look(live.next_look_s).started == []
        looks += 1
    for later in range(400):  # a queue of its own may refuse one after the other
        live.look(1.0 + 0.01 * later)
    assert (live.running, live.waiting) == (2, 0)
    assert live.counts.refused == 10
    assert live.wait_s() > 4  # what has hung so long will hang on


def test_what_is_noted_and_learned_may_fail_and_nobody_is_lost(caplog):
    def note(event):
        raise OSError("of its own")

    class Estimator(OnlineEstimator):
        def learn(self, kind, features, took_s):
            raise KeyError("of its own")

    learns = Estimator(0, first_s=0.1)
    live = LiveSequencer("fifo", workers=1, slo_s=1, estimator=learns, note=note)
    assert live.arrive(0, 0.0).started == [0]
    assert live.arrive(1, 0.0).started == []
    assert live.end(0, 0.5).started == [1]
    assert live.end(1, 0.6).started == []
    assert live.running == 0
    assert "noted no more" in caplog.text
    assert "nothing is learned of request 0" in caplog.text


def raises(batch, forecast, now_s):
    if len(batch) > 1:
        raise KeyError("of its own")
    return batch.decide([0], [False])


def loses(batch, forecast, now_s):
    return []


def idles(batch, forecast, now_s):
    return batch.decide([], [False] * len(batch))


def spoils(batch, forecast, now_s):
    if len(batch) > 1:
        batch.ids[:] = batch.ids[0]
        raise KeyError("of its own")
    return batch.decide([], [False]) if now_s > 0 else batch.decide([0], [False])


def ragged(batch, forecast, now_s):
    return Decision(order=[[1], [1, 2]], dropped=[])


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (raises, "KeyError"), (loses, "list"), (idles, "idles"), (spoils, "KeyError"),
        (ragged, "inhomogeneous"),
    ],
)  # fmt: skip
def test_a_rule_that_fails_is_named_and_others_are_served_in_turn(rule, says, caplog):
    live = LiveSequencer(rule, workers=1, slo_s=1.0)
    served = []
    for number in range(6):
        served += live.arrive(number, 0.1 * number).started
    for number in range(6):
        served += live.end(number, 1.0).started
    assert served == list(range(6))
    if rule is raises:
        assert live.fault is None or says in live.fault
    else:
        assert says in live.fault
        assert says in caplog.text
        assert "first come, first served" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda live: live.arrive(0, 2.0), "here already"),
        (lambda live: live.arrive(7, 0.5), "not before 1.0"),
        (lambda live: live.arrive(7, np.nan), "finite"),
        (lambda live: live.arrive(7, 2.0, slo_s=0.0), "slo_s=0"),
        (lambda live: live.arrive(7, 2.0, slo_s=1e-17), "is nothing at 2 s"),
        (lambda live: live.arrive(2**70, 2.0), "whole number from 0"),
        (lambda live: live.arrive(7, 2.0, features=(1.0,)), "expected 0 finite"),
        (lambda live: live.arrive(7, 2.0, features=("a",)), "expected numbers"),
        (lambda live: live.arrive(7, 2.0, features=(10**400,)), "expected numbers"),
        (lambda live: live.arrive(7, 2.0, kind=b"x"), "expected text"),
        (lambda live: live.arrive(7, 2.0, estimate_s=np.nan), "estimate_s"),
        (lambda live: live.end(1, 2.0), "has not started"),
        (lambda live: live.end(1, 2.0, failed=True), "has not started"),
        (lambda live: live.end(9, 2.0), "is not here"),
        (lambda live: live.leave(9, 2.0), "is not here"),
    ],
)
def test_what_cannot_have_happened_is_rejected_and_changes_nothing(wrong, says):
    live = LiveSequencer("fifo", workers=1, slo_s=1.0)
    live.arrive(0, 1.0)
    live.arrive(1, 1.0)
    before = live.totals()
    with pytest.raises(InvalidInput, match=says):
        wrong(live)
    assert live.totals() == before
    assert live.end(0, 1.0).started == [1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "hybrid"}, "the last of them for ever"),
        ({"name": "hybrid", "flush_s": 0}, "flush_s=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"name": "random-drop", "flush_s": 1}, "by position in a trace"),
        ({"name": "fastest"}, "unknown"),
        ({"workers": 0}, "workers=0"),
        ({"workers": True}, "workers=True"),
        ({"workers": 10**9}, "10000 at most"),
        ({"slo_s": "1"}, "slo_s='1'"),
        ({"estimator": OnlineEstimator(2, first_s=1)}, "takes 2 features"),
        *(({"shortest_s": s}, "shortest_s") for s in (-1.0, np.nan, np.inf, "1")),
        ({"feature_names": "items"}, "names that differ"),
        ({"feature_names": ("a", "a")}, "names that differ"),
        ({"slo_s": np.inf}, "slo_s"),
        ({"most_waiting": 0}, "most_waiting"),
    ],
)
def test_a_sequencer_that_cannot_be_is_rejected(options, says):
    given = {"name": "fifo", "workers": 2, "slo_s": 1.0} | options
    with pytest.raises(InvalidInput, match=says):
        LiveSequencer(**given)


def story(name, random):
    """A service in which anything happens at any time; what is decided, and by whom."""
    often = {"at_once": random.random() < 0.5, "ends": random.choice([0.2, 0.4])}
    live = LiveSequencer(
        name, workers=int(random.integers(1, 4)), slo_s=1.0,
        most_waiting=int(random.choice([3, 10, 1000])),
        batch_size=int(random.integers(1, 4)), flush_s=random.choice([0.3, 2.0]),
    )  # fmt: skip
    now_s, number, runs, waits, decided = 0.0, 0, [], [], []

    def tell(event, *told, **about):
        made = event(*told, **about)
        for one in made.started:
            waits.remove(one)
            runs.append(one)
        for one in made.refused:
            waits.remove(one)
        assert event != live.look or live.next_look_s > now_s  # or it looks for ever
        assert live.fault is None
        assert live.running == len(runs) <= live.workers
        assert live.waiting == len(waits)
        assert runs or len(waits) == len(live._open) < live.batch_size
        decided.append((made.started, made.refused, round(live.wait_s(), 9)))

    for _ in range(int(random.choice([60, 300]))):
        now_s += (
            random.choice([0, 0, 0.1, 0.25]) if often["at_once"] else random.random()
        )
        what = random.random()
        if what < 0.45:
            waits.append(number)
            about = {"slo_s": float(random.choice([0.05, 0.2, 1.0, 3.0]))}
            if random.random() < 0.7:
                about["estimate_s"] = float(random.choice([0.1, 0.25, 0.5]))
            tell(live.arrive, number, now_s, kind=random.choice(["a", "b"]), **about)
            number += 1
        elif what < 0.45 + often["ends"] and runs:
            one = runs.pop(random.integers(len(runs)))
            tell(live.end, one, now_s, failed=random.random() < 0.2)
        elif what < 0.9 and runs + waits:
            one = (runs + waits)[random.integers(len(runs + waits))]
            (runs if one in runs else waits).remove(one)
            tell(live.leave, one, now_s)
        else:
            if live.next_look_s < np.inf:
                now_s = max(now_s, live.next_look_s)
            tell(live.look, now_s)
    while runs or live._open:
        now_s += 0.1
        if live._open:
            now_s = max(now_s, live.next_look_s)
            tell(live.look, now_s)
        else:
            tell(live.end, runs.pop(), now_s)
    assert not waits
    assert len(live._slot) == len(live._gone) == len(live._about) == 0
    return decided


@pytest.mark.parametrize("name", [*AT_ONCE, *BATCHED, lifo], ids=called)
def test_whatever_happens_all_are_answered_and_room_decides_nothing(name, monkeypatch):
    for seed in range(12):
        told = []
        for room in (4096, 1):
            monkeypatch.setattr(machine_room, "_ROOM", room)
            told.append(story(name, np.random.default_rng(seed)))
        assert told[0] == told[1]


def test_a_rule_may_list_whom_it_holds_in_any_order():
    def first(batch, forecast, now_s):
        return batch.decide(np.arange(1), np.zeros(len(batch), bool))

    def backwards(batch, forecast, now_s):
        made = first(batch, forecast, now_s)
        return replace(made, held=made.held[::-1])

    trace, estimated_s = crowd(60, 1.5, 3)
    asked = [sequencer(rule, trace) for rule in (first, backwards)]
    one, other = (drive(live, trace, estimated_s) for live in asked)
    assert [live.fault for live in asked] == [None, None]
    for part, same in zip(one, other, strict=True):
        np.testing.assert_array_equal(part, same)
    assert (np.diff(one[0]) >= 0).all()  # served as they came
