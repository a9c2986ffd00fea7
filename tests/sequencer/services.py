"""A service in virtual time behind a live sequencer."""

import asyncio
import functools
import heapq
import socket
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import uvicorn
from key_sets import no_keys

from thesis_lib.sequencer import scenario
from thesis_serve import LiveSequencer

WORKERS, SLO_S = 4, 0.004
AT_ONCE = [
    "fifo", "bid-price", "codel", "queue-cap", "late-edf", "late-sjf", "least-slack",
    "startable-first", "late-demote", "adaptive-lifo", "breakwater", "envoy",
    "cinnamon", "gradient2", "headroom",
]  # fmt: skip
BATCHED = [
    "drop", "reorder", "hybrid", "drop-corrected", "reorder-corrected",
    "hybrid-corrected", "fifo-batched", "edf", "sjf",
]  # fmt: skip


def asynchronous(test):
    """A test that an event loop runs, and ends if it hangs; a compiler may work."""

    @functools.wraps(test)
    def run(*args, **options):
        asyncio.run(asyncio.wait_for(test(*args, **options), 300))

    return run


async def until(holds):
    """Wait until `holds` is true, for 20 s at most."""
    for _ in range(4000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("never")


@asynccontextmanager
async def listening(app, lifespan="off"):
    """The address of a server of the application on loopback."""
    listens = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", lifespan=lifespan)
    server = uvicorn.Server(config)
    serves = asyncio.create_task(server._serve([listens]))
    try:
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{listens.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serves


def lifo(batch, forecast, now_s):
    """The newest first, and nobody who is late already."""
    return batch.decide(np.arange(len(batch))[::-1], batch.deadline_s < now_s)


def crowd(n, load, seed):
    """A trace without locks, and what an estimator with an error says of it."""
    trace = scenario("A", n=n, seed=seed)
    arrival_s = trace.arrival_s * trace.service_s.mean() / WORKERS / load
    arrival_s /= trace.arrival_s[-1] / n
    noise = np.random.default_rng(seed).lognormal(0, 0.3, n)
    trace = replace(trace, arrival_s=arrival_s, keys=no_keys(n))
    return trace, trace.service_s * noise


def drive(live, trace, estimated_s=None, leaves=(), looks=False, fails=()):
    """Serve a trace in virtual time: starts, ends and refusals by number.

    At time t of a pair (t, number) in `leaves` the client of that number goes. With
    `looks` the sequencer looks when it asks to. Those in `fails` fail after their
    service times.
    """
    n = len(trace)
    start_s, finish_s = np.full(n, np.nan), np.full(n, np.nan)
    refused, gone = np.zeros(n, bool), set()
    events = [(t, 2, i) for i, t in enumerate(trace.arrival_s.tolist())]
    events += [(t, 1, i) for t, i in leaves]
    heapq.heapify(events)
    while events:
        due_s = live.next_look_s if looks else np.inf
        if due_s < events[0][0]:
            heapq.heappush(events, (due_s, 3, 0))
        now_s, what, i = heapq.heappop(events)
        if what == 3:
            made = live.look(now_s)
            assert live.next_look_s > now_s  # or it would look for ever
        elif what == 2:
            about = {"slo_s": SLO_S}
            if estimated_s is not None:
                about["estimate_s"] = float(estimated_s[i])
            made = live.arrive(i, now_s, features=trace.features[i], **about)
        elif what == 1:
            if refused[i] or finish_s[i] < now_s or now_s < trace.arrival_s[i]:
                continue
            gone.add(i)
            made = live.leave(i, now_s)
        elif i in gone:
            continue
        else:
            made = live.end(i, now_s, failed=i in fails)
            finish_s[i] = now_s
        for number in made.started:
            assert np.isnan(start_s[number])
            start_s[number] = now_s
            heapq.heappush(events, (now_s + float(trace.service_s[number]), 0, number))
        refused[made.refused] = True
    return start_s, finish_s, refused


def sequencer(name, trace, **options):
    return LiveSequencer(
        name, workers=WORKERS, slo_s=SLO_S, most_waiting=len(trace),
        feature_names=trace.feature_names, **options,
    )  # fmt: skip


def called(value):
    """What a test calls a policy."""
    return value if isinstance(value, str) else getattr(value, "__name__", None)
