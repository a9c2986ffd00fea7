"""A model of five times its memory, for several clients of OpenAI's at once."""

import asyncio

import httpx
from openai import AsyncOpenAI

from thesis_serve import ModelService, openai_api

PROMPTS = ["The capital of France is", "Once upon a time", "One, two, three,"]


async def main():
    room = {"slots": 3, "context": 64, "metered": True}
    async with ModelService("smollm2", 51 * 2**20, **room) as service:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(openai_api(service)))
        ask = AsyncOpenAI(base_url="http://model/v1", api_key="-", http_client=http)
        texts = (
            ask.completions.create(model="smollm2", prompt=prompt, max_tokens=6)
            for prompt in PROMPTS
        )
        for prompt, said in zip(PROMPTS, await asyncio.gather(*texts), strict=True):
            print(prompt + said.choices[0].text)
        print("kept its memory:", service.budget.peak_bytes <= 51 * 2**20)
        print("let in:", service.control.sequencer.counts.started)


asyncio.run(main())
