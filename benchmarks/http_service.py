"""Violations of a real HTTP service behind each policy, beside what a log foretells.

uvicorn serves an ASGI application whose requests are queries of PostgreSQL: three of
ten add up some days of orders, the others those of one customer. Clients in a process
of their own send them over loopback in an open loop, at shares of the rate that the
service reached just before with its workers always busy, and count from the intended
time. PostgreSQL has all cores but one, and a worker for each; service and clients have
the last. Every policy gets the same requests at the same times; `bare` is the service
without any, and PostgreSQL shares its cores out. What the log of FIFO says of the
others (`what_if`) is kept beside what they then did.

    python benchmarks/http_service.py [REPEATS [REQUESTS]]
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count, product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, LiteralString
from urllib.parse import urlencode

import numpy as np
import psutil
import psycopg
import uvicorn
from record import Record, benchmark, calling, checkout, own_core, show, tell
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

import thesis_serve
from thesis_lib.common.errors import require
from thesis_lib.sequencer.core.trace import F64
from thesis_lib.sequencer.engine.postgres import connect, postgres_server
from thesis_lib.sequencer.workload.arrivals import poisson_arrivals
from thesis_serve.admission.estimator import ServiceEstimator

sys.path.append(str(checkout() / "examples" / "sequencer"))
from what_if import what_if

POLICIES = ("bare", "fifo", "codel", "queue-cap", "late-edf", "bid-price")
LOADS = (0.9, 1.1, 1.5)
CORES = sorted(os.sched_getaffinity(0))[:-1]  # of PostgreSQL; one is the others'
SLO_MEANS = 20  # the objective, in mean service times
BURST = 300  # requests at once that saturate it
DAYS, ORDERS, CUSTOMERS = 365, 3_000, 10_000  # in the table; ORDERS of each day
REPORTS, LONGEST = 0.3, 90  # share of requests that are reports; days of the longest
CONNECTIONS = 64  # to PostgreSQL, which the service alone uses all of
TABLE = f"""
CREATE TABLE orders AS SELECT (n / {ORDERS})::int AS day,
  mod(n * 7919, {CUSTOMERS})::int AS customer, mod(n * 104729, 10007)::float8 AS amount
  FROM generate_series(0, {DAYS * ORDERS - 1}::bigint) AS n;
CREATE INDEX ON orders (day);
CREATE INDEX ON orders (customer);
VACUUM ANALYZE orders;
"""
QUERIES: dict[str, LiteralString] = {
    "customer": "SELECT count(*), sum(amount) FROM orders WHERE customer = %s",
    "report": "SELECT count(*), sum(amount), percentile_cont(0.5) WITHIN GROUP "
    "(ORDER BY amount) FROM orders WHERE day < %s",
}


# --- The service, in a process of its own ------------------------------------
def application(dsn: str) -> Starlette:
    """`/customer/17` and `/report/30`, behind the policy that `/begin` names."""
    idle: asyncio.LifoQueue[psycopg.AsyncConnection] = asyncio.LifoQueue()
    behind: dict[str, Any] = {}

    async def answer(request: Request) -> JSONResponse:
        kind, number = request.path_params["kind"], request.path_params["number"]
        connection = await idle.get()
        try:
            cursor = await connection.execute(QUERIES[kind], [number])
            return JSONResponse(await cursor.fetchone())
        finally:
            idle.put_nowait(connection)

    bare = Starlette(routes=[Route("/{kind}/{number:int}", answer)])

    async def begin(request: Request) -> JSONResponse:
        asked = request.query_params
        behind["app"] = bare
        if asked["policy"] != "bare":
            sequencer = thesis_serve.LiveSequencer(
                asked["policy"],
                workers=int(asked["workers"]), slo_s=float(asked["slo_s"]),
                most_waiting=10**6, feature_names=("number",),
            )  # fmt: skip
            control = thesis_serve.AdmissionController(sequencer, log=asked["log"])
            behind["app"] = thesis_serve.SequencerMiddleware(
                bare, control,
                kind=lambda scope: scope["path"].split("/")[1],
                features=lambda scope: [float(scope["path"].split("/")[2])],
            )  # fmt: skip
        return JSONResponse(asked["policy"])

    async def front(scope: Any, receive: Any, send: Any) -> None:
        await behind["app"](scope, receive, send)

    @asynccontextmanager
    async def connected(app: Starlette) -> AsyncIterator[None]:
        for _ in range(CONNECTIONS):
            connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            await connection.execute(
                "SET max_parallel_workers_per_gather = 0; SET jit = off"
            )
            idle.put_nowait(connection)
        yield
        while not idle.empty():
            await idle.get_nowait().close()

    routes = [Route("/begin", begin), Mount("/", front)]
    return Starlette(routes=routes, lifespan=connected)


def serve(dsn: str, listener: int) -> None:
    """Serve on the socket `listener`, until it is told to end."""
    config = uvicorn.Config(
        application(dsn), log_level="warning", timeout_keep_alive=600
    )
    uvicorn.Server(config).run([socket.socket(fileno=listener)])


@contextmanager
def running(dsn: str) -> Iterator[str]:
    """The address of a service that runs."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        command = calling(serve, dsn=dsn, listener=listener.fileno())
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as process:
            try:
                yield f"127.0.0.1:{listener.getsockname()[1]}"
            finally:
                process.terminate()


# --- Its clients -------------------------------------------------------------
def requests(n: int, rng: np.random.Generator) -> list[str]:
    """Paths of `n` requests; days of a report are uniform in their logarithm."""
    days = np.exp(rng.uniform(0, np.log(LONGEST + 1), n)).astype(int)
    customers = rng.integers(0, CUSTOMERS, n)
    return [
        f"/report/{days[i]}" if report else f"/customer/{customers[i]}"
        for i, report in enumerate(rng.random(n) < REPORTS)
    ]


Connections = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


async def get(address: str, path: str, idle: Connections) -> int:
    """The status of an answer; a client of a library would take a core of its own."""
    host, _, port = address.partition(":")
    reader, writer = idle.pop() if idle else await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    await reader.readexactly(int(head.split("content-length:")[1].split()[0]))
    idle.append((reader, writer))
    return int(head.split()[1])


async def _sent(address: str, paths: list[str], arrival_s: F64) -> F64:
    latency_s, idle = np.full(len(paths), np.nan), Connections()
    begins_s = monotonic() + 0.1

    async def ask(i: int) -> None:
        due_s = begins_s + arrival_s[i]
        await asyncio.sleep(due_s - monotonic())
        if await get(address, paths[i], idle) == 200:
            latency_s[i] = monotonic() - due_s

    await asyncio.gather(*map(ask, range(len(paths))))
    for _, writer in idle:
        writer.close()
    return latency_s


def send(
    address: str, policy: str, slo_s: float, log: Path, paths: list[str], arrival_s: F64
) -> F64:
    """Latencies (n,) from the intended times, behind a policy; NaN where refused."""
    begin = {"policy": policy, "slo_s": slo_s, "log": str(log), "workers": len(CORES)}
    begun = asyncio.run(get(address, f"/begin?{urlencode(begin)}", Connections()))
    require(begun == 200, f"the service did not begin: {begun}; see its message above")
    return asyncio.run(_sent(address, paths, arrival_s))


def saturation_per_s(address: str, log: Path) -> float:
    """Requests a second while every worker is busy."""
    paths = requests(BURST, np.random.default_rng(BURST))
    return BURST / send(address, "fifo", 1.0, log, paths, np.zeros(BURST)).max()


def outcome(latency_s: F64, slo_s: float) -> dict[str, float]:
    """Shares of the requests that were either, late, refused; the median latency."""
    late = float(np.mean(latency_s > slo_s))
    refused = float(np.mean(np.isnan(latency_s)))
    return {
        "measured": late + refused, "late": late, "refused": refused,
        "median_s": float(np.nanmedian(latency_s)),
    }  # fmt: skip


def front_s() -> float:
    """Processor seconds of clients and service so far, which share one core."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children())]
    return sum(each.user + each.system for each in times)


def foretold(
    log: Path, policy: str, estimator: ServiceEstimator | None = None
) -> float:
    """The share of violations that a log of FIFO says of a policy."""
    counts = what_if(log, policy, estimator)
    return (counts.late + counts.refused) / counts.arrived


@benchmark
def main(out: Path, repeats: int = 8, n: int = 800) -> None:
    require(len(CORES) > 0, "one core: expected two or more, one of them for clients")
    record, runs = Record(out), []
    own_core()
    with postgres_server() as dsn, TemporaryDirectory() as folder:
        with connect(dsn) as database:
            for statement in TABLE.split(";")[:-1]:
                database.execute(statement.encode())
            server = psutil.Process(database.info.backend_pid).parent()
            assert server is not None
            server.cpu_affinity(CORES)  # and so do later connections
        logs = (Path(folder) / f"{number}.jsonl" for number in count())
        with running(dsn) as address:
            saturation_per_s(address, next(logs))  # and every page of the table is read
            slo_s = SLO_MEANS * len(CORES) / saturation_per_s(address, next(logs))
            for repeat, load in product(range(repeats), LOADS):
                rng = np.random.default_rng([repeat, n])
                paths, unit = requests(n, rng), poisson_arrivals(1.0, n, rng)
                rate_per_s = saturation_per_s(address, next(logs))
                log = {policy: next(logs) for policy in POLICIES}
                found = {}
                for policy in POLICIES[:: -1 if repeat % 2 else 1]:
                    used_s, began_s = front_s(), monotonic()
                    latency_s = send(
                        address, policy, slo_s, log[policy],
                        paths, unit / (load * rate_per_s),
                    )  # fmt: skip
                    busy = (front_s() - used_s) / (monotonic() - began_s)
                    found[policy] = {**outcome(latency_s, slo_s), "front_busy": busy}
                for policy in POLICIES:
                    at = {"policy": policy, "workers": len(CORES), "load": load}
                    at |= {"repeat": repeat, "rate_per_s": rate_per_s}
                    told = None if policy == "bare" else foretold(log["fifo"], policy)
                    runs.append({**at, **found[policy], "foretold": told})
                tell(f"repeat {repeat} of {repeats}, load {load}")
    show(runs)
    record.write(slo_s=slo_s, requests=n, repeats=repeats, runs=runs)
