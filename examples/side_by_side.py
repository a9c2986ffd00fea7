"""FIFO and bid-price in front of PostgreSQL, side by side on a live page.

The same requests arrive, in an open loop, at two copies of an HTTP service, each with
one connection to a temporary PostgreSQL. One copy serves first come, first served, the
other decides by bid-price. The page shows what becomes of them, and a slider sets the
load: load 1 is what a copy was measured to serve while the other was as busy.

It demonstrates and measures nothing: copies, clients and page share this machine's
cores. `benchmarks/http_service.py` measures.

    python examples/side_by_side.py [--port PORT] [--seconds SECONDS]
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Annotated

import httpx
import numpy as np
import psycopg
import typer
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.routing import Mount, Route

import thesis_serve
from thesis_lib.sequencer.engine.postgres import connect, postgres_server

POLICIES = ("fifo", "bid-price")
PAGE = Path(__file__).with_suffix(".html")
SLO_MEANS = 10  # the objective, in mean service times
MOST_WAITING = 80  # at either: a queue that grows for ever says no more than this one
DAYS, A_DAY = 200, 8_000  # days of orders in the table, and orders of each
PROBES, STEP_S = 40, 1.0
SEEN = ("asked", "on_time", "late", "refused")
TABLE = f"""
CREATE TABLE orders AS SELECT n / {A_DAY} AS day, (n::bigint * 104729 % 10007)::float8
  AS amount FROM generate_series(0, {A_DAY * DAYS - 1}) AS n;
CREATE INDEX ON orders (day);
VACUUM ANALYZE orders
"""
REPORT = (
    "SELECT count(*), sum(amount), percentile_cont(0.5) WITHIN GROUP (ORDER BY amount) "
    "FROM orders WHERE day < %s"
)


def drawn_days(rng: np.random.Generator) -> int:
    """How many days a request adds up: most few, some many."""
    return int(DAYS ** rng.random())


@dataclass
class Side:
    """A copy of the service behind a policy, and what its clients have seen so far."""

    policy: str
    connection: psycopg.AsyncConnection
    seen: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("asked", "on_time", "late", "refused"), 0
        )
    )

    async def report(self, request: Request) -> JSONResponse:
        cursor = await self.connection.execute(REPORT, [request.path_params["days"]])
        return JSONResponse(await cursor.fetchone())

    def app(self, slo_s: float) -> thesis_serve.SequencerMiddleware:
        """The service, behind the policy: one request at a time, as its connection."""
        routes = [Route("/report/{days:int}", self.report)]
        sequencer = thesis_serve.LiveSequencer(
            self.policy, workers=1, slo_s=slo_s, most_waiting=MOST_WAITING,
            feature_names=("days",),
        )  # fmt: skip
        return thesis_serve.SequencerMiddleware(
            Starlette(routes=routes), thesis_serve.AdmissionController(sequencer),
            kind=lambda scope: "report",
            features=lambda scope: [float(scope["path"].rpartition("/")[2])],
        )  # fmt: skip

    async def ask(
        self, client: httpx.AsyncClient, days: int, due_s: float, slo_s: float
    ) -> None:
        """A client, whose latency counts from when it meant to ask."""
        self.seen["asked"] += 1
        answer = await client.get(f"/{self.policy}/report/{days}")
        late = monotonic() - due_s > slo_s
        refused = answer.status_code == 503
        self.seen["refused" if refused else "late" if late else "on_time"] += 1


async def mean_service_s(sides: list[Side]) -> float:
    """The mean time of a report while every copy is busy."""
    days = [drawn_days(np.random.default_rng(probe)) for probe in range(PROBES)]

    async def busy(side: Side) -> None:
        for each in days:
            await side.connection.execute(REPORT, [each])

    await busy(sides[0])  # and every page of the table is read
    began_s = monotonic()
    await asyncio.gather(*map(busy, sides))
    return (monotonic() - began_s) / PROBES


@dataclass
class Demonstration:
    """Two sides, their clients, and the page that shows them."""

    sides: list[Side]
    mean_s: float
    load: float = 1.3

    @property
    def slo_s(self) -> float:
        return SLO_MEANS * self.mean_s

    def app(self) -> Starlette:
        routes = [Mount(f"/{side.policy}", side.app(self.slo_s)) for side in self.sides]
        return Starlette(
            routes=[
                Route("/", lambda request: FileResponse(PAGE)),
                Route("/events", self.events),
                Route("/load", self.set_load, methods=["POST"]),
                *routes,
            ]
        )

    async def set_load(self, request: Request) -> JSONResponse:
        try:
            load = float(request.query_params["load"])
        except (KeyError, ValueError):
            load = np.nan
        if not 0.1 <= load <= 3:
            return JSONResponse({"error": "load: expected a number, 0.1 to 3"}, 400)
        self.load = load
        return JSONResponse({"load": load})

    def told(self) -> dict:
        """What the page shows: counts since the beginning."""
        sides = {side.policy: side.seen for side in self.sides}
        return {"load": self.load, "slo_ms": round(1e3 * self.slo_s), "sides": sides}

    async def events(self, request: Request) -> StreamingResponse:
        async def stream() -> AsyncIterator[str]:
            while True:
                yield f"data: {json.dumps(self.told())}\n\n"
                await asyncio.sleep(STEP_S)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def clients(self, address: str, seconds: float) -> None:
        """Send the same requests to both sides, at the load of the moment."""
        rng, due_s, ends_s = np.random.default_rng(), monotonic(), monotonic() + seconds
        unlimited = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(
                base_url=address, limits=unlimited, timeout=None
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            while (due_s := due_s + rng.exponential(self.mean_s / self.load)) < ends_s:
                await asyncio.sleep(due_s - monotonic())
                days = drawn_days(rng)
                for side in self.sides:
                    group.create_task(side.ask(client, days, due_s, self.slo_s))


async def show(dsn: str, listener: socket.socket, seconds: float) -> None:
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with AsyncExitStack() as opened:
        sides = []
        for policy in POLICIES:
            connecting = psycopg.AsyncConnection.connect(dsn, autocommit=True)
            connection = await opened.enter_async_context(await connecting)
            await connection.execute(
                "SET max_parallel_workers_per_gather = 0; SET work_mem = '256MB'"
            )
            sides.append(Side(policy, connection))
        demonstration = Demonstration(sides, await mean_service_s(sides))
        server = uvicorn.Server(
            uvicorn.Config(
                demonstration.app(), log_level="warning", timeout_graceful_shutdown=1
            )
        )
        serving = asyncio.create_task(server.serve([listener]))
        print(f"open {address} (Ctrl-C ends)", flush=True)
        asking = asyncio.create_task(demonstration.clients(address, seconds))
        await asyncio.wait({serving, asking}, return_when=asyncio.FIRST_COMPLETED)
        asking.cancel()
        server.should_exit = True
        await serving
        with suppress(asyncio.CancelledError):
            await asking  # raises what clients met
    for policy, seen in demonstration.told()["sides"].items():
        print(policy, json.dumps(seen))


def main(
    port: Annotated[int, typer.Option(help="0 takes one that is free.")] = 8000,
    seconds: Annotated[float, typer.Option(help="Then it ends.")] = np.inf,
) -> None:
    """Show FIFO and bid-price side by side in front of PostgreSQL."""
    with (
        postgres_server() as dsn,
        socket.create_server(("127.0.0.1", port)) as listener,
    ):
        with connect(dsn) as database:
            for statement in TABLE.split(";"):
                database.execute(statement.encode())
        asyncio.run(show(dsn, listener, seconds))


if __name__ == "__main__":
    typer.run(main)
