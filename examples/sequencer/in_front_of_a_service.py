"""A policy in front of an HTTP service: who would be late is told so at once."""

import asyncio

import httpx
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from thesis_lib.sequencer import live


async def slow(request):
    await asyncio.sleep(0.02)
    return PlainTextResponse("done")


async def crowd(policy):
    sequencer = live.LiveSequencer(policy, workers=2, slo_s=0.2)
    control = live.AdmissionController(sequencer)
    app = live.SequencerMiddleware(Starlette(routes=[Route("/", slow)]), control)
    http = {"transport": httpx.ASGITransport(app), "base_url": "http://service"}
    async with httpx.AsyncClient(**http) as client:
        await asyncio.gather(*(client.get("/") for _ in range(100)))
    return sequencer.counts


for policy in ("fifo", "bid-price"):
    most = "late" if asyncio.run(crowd(policy)).late > 50 else "refused or on time"
    print(f"{policy}: most of a hundred at once are {most}")
