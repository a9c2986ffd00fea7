"""In front of an HTTP service: who would be late is refused instead."""

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
    app = Starlette(routes=[Route("/", slow)])
    sequencer = live.LiveSequencer(policy, workers=2, slo_s=0.2)
    control = live.AdmissionController(sequencer)
    service = httpx.ASGITransport(live.SequencerMiddleware(app, control))
    async with httpx.AsyncClient(transport=service) as client:
        asked = (client.get("http://service/") for _ in range(100))
        await asyncio.gather(*asked)
    return sequencer.counts.late


for policy in ("fifo", "bid-price"):
    print(policy, "- most are late:", asyncio.run(crowd(policy)) > 50)
