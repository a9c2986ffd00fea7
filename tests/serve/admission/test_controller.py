"""Turns in an event loop: who runs, who is refused, who went away."""

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from services import asynchronous

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


@asynchronous
async def test_an_exception_ends_a_turn_and_teaches_nothing():
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


@pytest.mark.parametrize("policy", ["fifo", "late-edf"])  # behind it, before it
@asynchronous
async def test_who_is_cancelled_gives_up_a_place_and_a_worker(policy):
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


@asynchronous
async def test_who_cannot_be_on_time_is_rejected_with_what_it_would_take(tmp_path):
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


@asynchronous
async def test_all_may_be_cancelled_at_one_moment():
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


@asynchronous
async def test_a_request_that_cannot_be_takes_no_worker():
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
