"""A real server, a real client: who is served, refused, or gone."""

import asyncio
from contextlib import asynccontextmanager
from math import ceil

import httpx
import pytest
from services import asynchronous, listening, until
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from thesis_lib.common.errors import InvalidInput
from thesis_serve import AdmissionController, LiveSequencer, SequencerMiddleware, replay


class Service:
    """Requests for /wait last until they are let go; /echo answers what it gets."""

    def __init__(self, policy="fifo", workers=1, slo_s=60.0, log=None, **options):
        self.go, self.inside, self.most = asyncio.Event(), 0, 0
        live = LiveSequencer(policy, workers=workers, slo_s=slo_s)
        self.counts, self.control = live.counts, AdmissionController(live, log)
        app = Starlette(
            routes=[
                Route("/wait", self.wait),
                Route("/echo", self.echo, methods=["POST"]),
                Route("/fail", self.fail),
                Route("/full", self.full),
            ]
        )
        self.app = SequencerMiddleware(app, self.control, **options)

    async def wait(self, request):
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.go.wait()
        self.inside -= 1
        return PlainTextResponse("served")

    async def echo(self, request):
        return PlainTextResponse(await request.body())

    async def fail(self, request):
        raise KeyError("of the service")

    async def full(self, request):
        return PlainTextResponse("too many connections", 503)

    @asynccontextmanager
    async def open(self):
        """The service behind a socket of its own, and a client of it."""
        limits = {"limits": httpx.Limits(max_connections=None), "timeout": 30}
        async with (
            listening(self.app, lifespan="on") as base_url,
            httpx.AsyncClient(base_url=base_url, trust_env=False, **limits) as client,
        ):
            try:
                yield client
            finally:
                self.go.set()


@asynchronous
async def test_no_more_run_at_once_than_there_are_workers_and_all_are_answered(
    tmp_path,
):
    service = Service(workers=3, log=tmp_path / "log.jsonl")
    async with service.open() as client:
        asked = [asyncio.create_task(client.get("/wait")) for _ in range(20)]
        await until(lambda: service.counts.arrived == 20)
        await until(lambda: service.inside == 3)
        service.go.set()
        assert [a.text for a in await asyncio.gather(*asked)] == ["served"] * 20
    assert service.most == 3
    assert service.counts.on_time == 20
    assert service.control.log._file.closed  # by the end of the server
    assert replay(tmp_path / "log.jsonl").differs_at is None


@asynchronous
async def test_a_rejection_says_when_to_come_again_and_what_it_would_have_taken():
    service = Service("late-edf", slo_header="X-Slo-Ms")
    async with service.open() as client:
        held = asyncio.create_task(client.get("/wait"))
        await until(lambda: service.inside == 1)
        answer = await client.get("/wait", headers={"X-Slo-Ms": "30"})
        assert answer.status_code == 503
        predicted_s = answer.json()["predicted_s"]
        assert predicted_s > 0
        assert int(answer.headers["retry-after"]) == max(1, ceil(predicted_s))
        assert "ask again later" in answer.json()["error"]
        service.go.set()
        assert (await held).text == "served"


@pytest.mark.parametrize(
    "value", ["soon", "-3", "0", "nan", "inf", "", "1e9", "1_0", "+5"]
)
@asynchronous
async def test_an_objective_that_is_none_is_answered_by_what_is_expected(value):
    service = Service(slo_header="X-Slo-Ms")
    async with service.open() as client:
        answer = await client.get("/wait", headers={"X-Slo-Ms": value})
        assert answer.status_code == 400
        assert "x-slo-ms must be the milliseconds" in answer.json()["error"]
    assert service.counts.arrived == 0


def test_the_shorter_of_two_objectives_holds():
    def objective_of(paths):
        control = AdmissionController(LiveSequencer("fifo", workers=1, slo_s=60))
        app = SequencerMiddleware(None, control, slo_s=paths, slo_header="X-Slo")
        return app._slo_s

    objective = objective_of({"/wait": 2.0})
    assert objective({"path": "/echo", "headers": []}) is None
    assert objective({"path": "/wait", "headers": []}) == 2.0
    assert objective({"path": "/wait", "headers": [(b"x-slo", b"500")]}) == 0.5
    assert objective({"path": "/wait", "headers": [(b"x-slo", b"9000")]}) == 2.0
    with pytest.raises(InvalidInput, match=r"slo_s of /wait=0\.0"):
        objective_of({"/wait": 0.0})
    with pytest.raises(InvalidInput, match="one from the root"):
        objective_of({"wait": 1.0})
    with pytest.raises(InvalidInput, match="name of a header"):
        Service(slo_header="X Slo")
    with pytest.raises(InvalidInput, match="expected an AdmissionController"):
        SequencerMiddleware(None, LiveSequencer("fifo", workers=1, slo_s=60))


@asynchronous
async def test_a_client_that_goes_gives_up_its_place():
    service = Service()
    async with service.open() as client:
        first = asyncio.create_task(client.get("/wait"))
        await until(lambda: service.inside == 1)
        second = asyncio.create_task(client.get("/wait"))
        third = asyncio.create_task(client.get("/wait"))
        await until(lambda: service.counts.arrived == 3)
        second.cancel()
        await until(lambda: service.counts.left == 1)
        service.go.set()
        assert (await first).text == (await third).text == "served"
    assert service.counts.started == 2


@asynchronous
async def test_a_body_that_comes_after_its_turn_is_not_lost():
    service = Service()

    async def body():
        await asyncio.sleep(0.2)
        yield b"slow"
        yield b"ly"

    transport = httpx.ASGITransport(service.app)
    base_url = "http://service"
    async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
        first = service.control.ask()
        second = asyncio.create_task(client.post("/echo", content=body()))
        await asyncio.sleep(0.05)
        first.close("served")
        assert (await second).text == "slowly"


@asynchronous
async def test_a_client_that_goes_while_it_sends_gives_up_its_place():
    service = Service()
    first, messages = service.control.ask(), [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
    ]  # fmt: skip

    async def receive():
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/echo", "headers": []}
    await service.app(scope, receive, None)
    assert service.counts.left == 1
    first.close("served")


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
@asynchronous
async def test_a_body_comes_whole_though_its_request_waits(size):
    service = Service()
    async with service.open() as client:
        first = asyncio.create_task(client.get("/wait"))
        await until(lambda: service.inside == 1)
        body = bytes(65 + i % 26 for i in range(size))
        second = asyncio.create_task(client.post("/echo", content=body))
        await until(lambda: service.counts.arrived == 2)
        await asyncio.sleep(0.05)
        service.go.set()
        assert (await second).content == body
        await first


@asynchronous
async def test_a_free_path_is_answered_while_others_wait():
    service = Service(free_paths=["/echo"])
    async with service.open() as client:
        first = asyncio.create_task(client.get("/wait"))
        await until(lambda: service.inside == 1)
        assert (await client.post("/echo", content=b"well")).text == "well"
        assert service.counts.arrived == 1
        service.go.set()
        await first


@asynchronous
async def test_a_call_that_is_cancelled_at_any_moment_keeps_no_worker():
    service = Service()
    scope = {"type": "http", "method": "GET", "path": "/wait", "headers": []}

    async def never():
        await asyncio.Event().wait()

    async def unheard(message):
        """A client that reads nothing."""

    for steps in range(12):
        first = service.control.ask()
        call = asyncio.create_task(service.app(dict(scope), never, unheard))
        await asyncio.sleep(0.01)
        first.close("served")  # and the call is granted its turn
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        sequencer = service.control.sequencer
        assert (sequencer.running, sequencer.waiting) == (0, 0)
        assert service.counts.left == steps + 1


@asynchronous
async def test_a_service_that_fails_keeps_no_worker_and_teaches_nothing():
    service = Service()
    service.go.set()
    async with service.open() as client:
        assert (await client.get("/fail")).status_code == 500
        assert (await client.get("/full")).status_code == 503
        assert (await client.get("/nowhere")).status_code == 404
        assert (await client.get("/wait")).text == "served"
    assert (service.counts.failed, service.counts.on_time) == (2, 2)
    assert service.control.sequencer.estimator.all.count == 2


@asynchronous
async def test_what_is_no_request_of_http_goes_through():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    control = AdmissionController(LiveSequencer("fifo", workers=1, slo_s=1))
    await SequencerMiddleware(app, control)({"type": "websocket"}, None, None)
    assert seen == ["websocket"]
    assert control.sequencer.counts.arrived == 0
