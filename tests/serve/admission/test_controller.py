"""Turns in an event loop: who runs, who is refused, who went away."""

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from thesis_lib.common.errors import InvalidInput
from thesis_serve import (
    AdmissionController,
    LiveSequencer,
    Refused,
    SequencerMetrics,
    replay,
)


class Desk:
    """A service of so many workers, whose requests last until they are let go."""

    def __init__(self, policy="fifo", workers=1, slo_s=60.0, **options):
        live = LiveSequencer(policy, workers=workers, slo_s=slo_s)
        self.control = AdmissionController(live, **options)
        self.counts = live.counts
        self.inside, self.go = [], {}

    async def serve(self, name, **about):
        async with self.control.turn(**about):
            self.inside.append(name)
            self.go[name] = asyncio.Event()
            await self.go[name].wait()
            self.inside.remove(name)
        return name

    def ask(self, *names, **about):
        return [asyncio.create_task(self.serve(name, **about)) for name in names]


async def rest():
    for _ in range(5):
        await asyncio.sleep(0)


def run(story):
    asyncio.run(asyncio.wait_for(story, 300))  # a compiler may be at work


def test_as_many_run_as_there_are_workers_and_the_next_when_one_ends():
    async def story():
        desk = Desk(workers=2)
        a, b, c = desk.ask("a", "b", "c")
        await rest()
        assert desk.inside == ["a", "b"]
        desk.go["b"].set()
        await rest()
        assert desk.inside == ["a", "c"]
        for name in "ac":
            desk.go[name].set()
        assert await asyncio.gather(a, b, c) == ["a", "b", "c"]
        assert desk.counts.on_time == 3

    run(story())


def test_an_exception_ends_a_turn_and_teaches_nothing():
    async def story():
        desk = Desk()
        with pytest.raises(KeyError):
            async with desk.control.turn():
                raise KeyError
        (a,) = desk.ask("a")
        await rest()
        assert desk.inside == ["a"]
        desk.go["a"].set()
        await a
        assert (desk.counts.failed, desk.counts.on_time) == (1, 1)
        assert desk.control.sequencer.estimator.all.count == 1

    run(story())


@pytest.mark.parametrize("policy", ["fifo", "late-edf"])  # behind it, before it
def test_who_is_cancelled_gives_up_a_place_and_a_worker(policy):
    async def story():
        desk = Desk(policy)
        a, b, c, d = desk.ask("a", "b", "c", "d")
        await rest()
        c.cancel()
        a.cancel()
        await rest()
        assert desk.inside == ["a", "b"]  # of which a was left where it stood
        desk.go["b"].set()
        await rest()
        assert desk.inside == ["a", "d"]
        desk.go["d"].set()
        assert await asyncio.gather(b, d) == ["b", "d"]
        assert desk.counts.left == 2
        assert desk.control.sequencer.estimator.all.count == 2

    run(story())


def test_a_task_that_is_cancelled_when_its_turn_comes_keeps_no_worker():
    async def story():
        desk = Desk()
        a, b, c = desk.ask("a", "b", "c")
        await rest()
        desk.go["a"].set()
        await asyncio.sleep(0)  # a ends, and b is granted what it has not seen yet
        b.cancel()
        await rest()
        assert desk.inside == ["c"]
        desk.go["c"].set()
        assert await asyncio.gather(a, c) == ["a", "c"]

    run(story())


@pytest.mark.parametrize(
    ("wait_s", "predicted_s", "seconds"),
    [(0.0, 10.1, 11), (9.0, 10.1, 11), (0.0, 0.01, 1), (3.0, 4.0, 4)],
)
def test_a_client_is_told_to_retry_after_the_predicted_latency(
    wait_s, predicted_s, seconds
):
    assert Refused(wait_s, predicted_s).retry_after_s == seconds


def test_who_cannot_be_on_time_is_refused_with_what_it_would_take(tmp_path):
    async def story():
        desk = Desk("late-edf", slo_s=0.5, log=tmp_path / "log.jsonl")
        desk.ask("a")
        b, c = desk.ask("b", "c", slo_s=0.05)
        await rest()
        assert desk.inside == ["a"]
        with pytest.raises(Refused, match="ask again later") as refused:
            await c  # nobody comes and nobody ends: its deadline alone decides
        assert refused.value.predicted_s > refused.value.wait_s >= 0
        desk.go["a"].set()
        await rest()
        assert desk.inside == []
        with pytest.raises(Refused):
            await b
        assert desk.counts.refused == 2
        desk.control.close()
        assert replay(tmp_path / "log.jsonl").differs_at is None

    run(story())


def test_ten_thousand_at_once_are_each_answered():
    async def story():
        live = LiveSequencer("bid-price", workers=8, slo_s=0.5, most_waiting=500)
        control = AdmissionController(live)

        async def ask():
            async with control.turn():
                await asyncio.sleep(0)

        made = await asyncio.gather(
            *(ask() for _ in range(10_000)), return_exceptions=True
        )
        refused = [m for m in made if isinstance(m, Refused)]
        assert len(refused) == live.counts.refused > 9_000
        assert all(m is None for m in made if not isinstance(m, Refused))
        assert live.counts.on_time + live.counts.late + len(refused) == 10_000

    run(story())


def test_all_may_be_cancelled_at_one_moment():
    async def story():
        desk = Desk("late-edf", slo_s=0.02)
        asked = desk.ask(*"abcdefgh")
        await rest()
        time.sleep(0.05)  # nobody is on time any more, and nothing has been decided
        for one in asked:
            one.cancel()
        made = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(m) for m in made} == {asyncio.CancelledError}
        assert desk.counts.arrived == desk.counts.left + desk.counts.refused == 8
        assert desk.control.sequencer.running == desk.control.sequencer.waiting == 0

    run(story())


def test_prometheus_reads_what_has_become_of_requests():
    live = LiveSequencer("fifo", workers=1, slo_s=1.0)
    registry = CollectorRegistry()
    registry.register(SequencerMetrics(live))
    live.arrive(0, 0.0, estimate_s=0.5)
    live.arrive(1, 0.1, estimate_s=0.25)
    live.end(0, 0.3)
    text = generate_latest(registry).decode()
    said = dict(line.split() for line in text.splitlines() if line[0] != "#")
    for name, count in live.totals().items():
        total = "" if name in ("running", "waiting") else "_total"
        assert float(said[f"sequencer_{name}{total}"]) == count
    assert float(said["sequencer_wait_seconds"]) == pytest.approx(0.25)


def test_a_closed_log_leaves_the_timer_that_refuses(tmp_path):
    async def story():
        desk = Desk("late-edf", slo_s=0.1, log=tmp_path / "log.jsonl")
        a, b = desk.ask("a", "b")
        await rest()
        desk.control.close()
        with pytest.raises(Refused):
            await b
        desk.go["a"].set()
        await a

    run(story())


def test_a_request_that_cannot_be_takes_no_worker():
    async def story():
        desk = Desk()
        for wrong in ({"kind": b"x"}, {"features": (1.0,)}, {"slo_s": -1.0}):
            with pytest.raises(InvalidInput):
                await desk.serve("a", **wrong)
        assert desk.control._turns == {}
        (b,) = desk.ask("b")
        await rest()
        assert desk.inside == ["b"]
        desk.go["b"].set()
        await b

    run(story())


def test_a_sequencer_has_one_controller(tmp_path):
    live = LiveSequencer("fifo", workers=1, slo_s=1.0)
    AdmissionController(live)
    with pytest.raises(InvalidInput, match="has a controller"):
        AdmissionController(live)
    with pytest.raises(InvalidInput, match="expected a LiveSequencer"):
        AdmissionController("bid-price")
    noted = LiveSequencer("fifo", workers=1, slo_s=1.0, note=print)
    with pytest.raises(InvalidInput, match="noted elsewhere"):
        AdmissionController(noted, tmp_path / "log.jsonl")
    assert not (tmp_path / "log.jsonl").exists()
