"""In front of an HTTP service: who would be late is refused, and more are in time."""

import asyncio

import httpx
from starlette import applications, responses, routing

from thesis_serve import AdmissionController, LiveSequencer, SequencerMiddleware


async def slow(request):
    await asyncio.sleep(0.04)
    return responses.PlainTextResponse("done")


async def crowd(policy):
    app = applications.Starlette(routes=[routing.Route("/", slow)])
    sequencer = LiveSequencer(policy, workers=2, slo_s=0.2)  # 50 a second
    app = SequencerMiddleware(app, AdmissionController(sequencer))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app))
    async with client, asyncio.TaskGroup() as clients:
        for _ in range(200):
            clients.create_task(client.get("http://service/"))
            await asyncio.sleep(0.005)  # and 200 a second come
    return sequencer.counts.on_time


fifo, bid_price = (asyncio.run(crowd(policy)) for policy in ("fifo", "bid-price"))
print("more than twice as many in time as under fifo:", bid_price > 2 * fifo)
