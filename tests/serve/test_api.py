"""A client of OpenAI's, a server on loopback, a model that streams: real, and small."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from math import ceil

import httpx
import openai
import pytest
import tiny
import torch
from services import listening, until

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.decode.generate import Sampling, write
from thesis_lib.memory.model.pretrained import decode, encode, read_tokenizer
from thesis_lib.memory.offload.offloaded_model import open_streamed
from thesis_serve import ModelService, TextRequest, openai_api, replay
from thesis_serve.model.api import listen
from thesis_serve.model.service import ModelLost, PassEstimator

CONTEXT = 60
SHAPE = {"context": CONTEXT, "pass_tokens": 8}
ROOM = SHAPE | {"slots": 3, "slo_s": 600.0}


def memory(folder, slots=3):
    """What holds one of four layers and two buffers."""
    shape = SHAPE | {"batch": slots, "logit_tokens": 1, "generating": True}
    return tiny.plan_tight(folder, 1, **shape).machine.device_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    tiny.write(made, vocab_size=128, eos_token_id=None)
    tiny.give_tokenizer(made, tiny.TEMPLATE)
    return made


@asynccontextmanager
async def serving(folder, key=None, **options):
    """The service, and the address of an API in front of it."""
    room = ROOM | options
    size = memory(folder, room["slots"])
    async with (
        ModelService(str(folder), size, metered=True, **room) as service,
        listening(openai_api(service, key)) as address,
    ):
        yield service, f"{address}/v1"


def client(address, **options):
    http = httpx.AsyncClient(trust_env=False, timeout=60)
    options = {"api_key": "-", "max_retries": 0, "http_client": http} | options
    return openai.AsyncOpenAI(base_url=address, **options)


def with_a_client(folder, ask, **options):
    """What `ask` makes of a client, the name of the model, and the service."""

    async def run():
        async with serving(folder, **options) as (service, address):
            return await ask(client(address), service.name, service)

    return asyncio.run(run())


def alone(folder, prompt, most, **wishes):
    """The text that `thesis generate` would write, in the same plan."""
    tokenizer = read_tokenizer(folder)
    with open_streamed(folder, memory(folder), batch=3, **SHAPE) as model:
        tokens = torch.tensor([encode(tokenizer, prompt)])
        written = write(model, tokenizer, tokens, most, Sampling(**wishes))[0]
    return decode(tokenizer, written.tolist())


PROMPTS = ["a", "The capital of France", "0123456789" * 4, "zz", "What?", "Lo, a list"]


def test_texts_are_those_of_generate_however_they_are_asked_for(folder):
    wishes = {"temperature": 0.9, "top_p": 0.8, "seed": 7}

    async def ask(client, model, service):
        def one(prompt, **more):
            return client.completions.create(
                model=model, prompt=prompt, max_tokens=12, **more
            )

        whole = await asyncio.gather(*map(one, PROMPTS))
        drawn = await asyncio.gather(*(one(prompt, **wishes) for prompt in PROMPTS))
        pieces = []
        for prompt in PROMPTS:
            stream = await one(
                prompt, stream=True, stream_options={"include_usage": True}
            )
            pieces.append([event async for event in stream])
        return whole, drawn, pieces

    whole, drawn, pieces = with_a_client(folder, ask)
    expected = [alone(folder, prompt, 12) for prompt in PROMPTS]
    assert [said.choices[0].text for said in whole] == expected
    assert [said.choices[0].text for said in drawn] == [
        alone(folder, prompt, 12, **wishes) for prompt in PROMPTS
    ]
    for prompt, text, events, said in zip(
        PROMPTS, expected, pieces, whole, strict=True
    ):
        *parts, usage = events
        assert "".join(part.choices[0].text for part in parts) == text
        assert len(parts) > 2
        assert parts[-1].choices[0].finish_reason == "length"
        assert usage.usage == said.usage
        assert said.usage.model_dump(exclude_none=True) == {
            "prompt_tokens": len(prompt),
            "completion_tokens": 12,
            "total_tokens": len(prompt) + 12,
        }


def test_a_chat_is_put_in_the_template_and_ends_at_its_stop(folder):
    said = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "me"},
    ]
    text = alone(folder, "s:be brief.u:hi.a:", 20)
    stop = text[8:10]
    expected = text[: text.find(stop)]

    async def ask(client, model, service):
        create = client.chat.completions.create
        about = {"model": model, "messages": said, "max_completion_tokens": 20}
        whole = await create(**about)
        ended = await create(**about, stop=[stop, "never"])
        stream = await create(**about, stop=stop, stream=True)
        return whole, ended, [event async for event in stream]

    whole, ended, events = with_a_client(folder, ask)
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == "length"
    assert ended.choices[0].message.content == expected
    assert ended.choices[0].finish_reason == "stop"
    assert ended.usage.completion_tokens < 20
    assert events[0].choices[0].delta.role == "assistant"
    told = [event.choices[0].delta.content or "" for event in events]
    assert "".join(told) == expected
    assert events[-1].choices[0].finish_reason == "stop"


def test_it_says_which_model_it_has_how_it_is_and_what_it_did(folder):
    async def ask(client, model, service):
        (one,) = (await client.models.list()).data
        assert await client.models.retrieve(model) == one
        with pytest.raises(openai.NotFoundError, match="expected"):
            await client.models.retrieve("gpt-4")
        await client.completions.create(model=model, prompt="a", max_tokens=2)
        root = str(client.base_url).removesuffix("/v1/")
        async with httpx.AsyncClient(trust_env=False) as plain:
            found = [
                (await plain.get(f"{root}/{at}")).text for at in ("health", "metrics")
            ]
        return one.id == model, found

    named, (health, metrics) = with_a_client(folder, ask)
    assert named
    assert json.loads(health) == {"status": "ok"}
    assert "sequencer_started_total 1.0" in metrics
    assert f"model_device_bytes {float(memory(folder))}" in metrics


WRONG = {
    "another model": ({"model": "gpt-4"}, 404, "expected"),
    "an empty prompt": ({"prompt": ""}, 400, "empty"),
    "too long": ({"prompt": "a" * 61}, 400, "longer than the 60"),
    "too many tokens": ({"max_tokens": 99}, 400, "longer than the 60"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens"),
    "a cold draw": ({"temperature": -1}, 400, "temperature"),
    "a share of no draw": ({"top_p": 0.5}, 400, "give a temperature"),
    "a stop of nothing": ({"stop": ""}, 400, "stop word is empty"),
    "an unknown token": ({"prompt": [5, 999]}, 400, "to 999: expected those that"),
    "two prompts": ({"prompt": ["a", "b"]}, 400, "prompt: "),
    "five stops": ({"stop": list("abcde")}, 400, "stop: "),
    "what it cannot": ({"logprobs": 3}, 400, "logprobs is nothing that this"),
    "of each token": ({"logprobs": 0}, 400, "logprobs is nothing that this"),
    "two answers": ({"n": 2}, 400, "n: "),
    "a number as text": ({"seed": "7"}, 400, "seed"),
    "a word too many": ({"extra_body": {"tools": [{}]}}, 400, "tools is nothing"),
}  # fmt: skip


def test_what_it_cannot_do_is_rejected_by_name(folder):
    async def ask(client, model, service):
        found = {}
        for name, (wish, _, _) in WRONG.items():
            about = {"model": model, "prompt": "a", "max_tokens": 2} | wish
            try:
                await client.completions.create(**about)
            except openai.APIStatusError as error:
                found[name] = error.status_code, error.body["message"]
        assert service.control.sequencer.counts.arrived == 0
        return found

    found = with_a_client(folder, ask)
    for name, (_, status, words) in WRONG.items():
        assert found[name][0] == status, name
        assert words in found[name][1], name


BODIES = {
    b"{": (400, "JSON"),
    b"[1]": (400, "object"),
    b'{"model": "m", "messages": []}': (400, "messages"),
    b'{"model": "m", "messages": [{"role": "user", "content": '
    b'[{"type": "image_url"}]}]}': (400, "messages.0.content.0."),
    b"\xff": (400, "JSON"),
    b'{"model": "m", "messages": [{"role": "user", "content": "a"}], '
    b'"temperature": NaN}': (400, "temperature: Input should be a finite number"),
    b" " * (2**20 + 1): (413, "longer"),
}


def test_bodies_paths_and_headers_that_mean_nothing_are_answered(folder):
    async def ask(client, model, service):
        root = str(client.base_url).removesuffix("/v1/")
        async with httpx.AsyncClient(trust_env=False, base_url=root) as plain:
            path = "/v1/chat/completions"
            found = [await plain.post(path, content=body) for body in BODIES]
            good = {"model": model, "messages": [{"role": "user", "content": "a"}]}
            late = await plain.post(path, json=good, headers={"X-Slo-Ms": "soon"})
            return found, [late, await plain.get("/v2"), await plain.get(path)]

    found, others = with_a_client(folder, ask)
    for (status, words), answer in zip(BODIES.values(), found, strict=True):
        assert answer.status_code == status
        assert words in answer.json()["error"]["message"]
    assert [answer.status_code for answer in others] == [400, 404, 405]
    assert others[2].headers["allow"] == "POST"
    assert all(answer.json()["error"]["type"] for answer in others)


def test_request_without_key_is_rejected(folder):
    async def run():
        async with serving(folder, key="secret") as (_, address):
            with pytest.raises(openai.AuthenticationError, match="API key"):
                await client(address, api_key="other").models.list()
            return len((await client(address, api_key="secret").models.list()).data)

    assert asyncio.run(run()) == 1


NOTHINGS = {
    "temperature": 0, "top_p": 0.5, "stop": None, "stream": None, "n": 1, "seed": None,
    "logit_bias": {}, "user": "me",
    "extra_body": {
        "tools": None, "logprobs": False, "response_format": {"type": "text"},
        "service_tier": "auto", "echo": False, "stream_options": None,
    },
}  # fmt: skip


def test_what_changes_nothing_is_taken(folder):
    async def ask(client, model, service):
        create, about = client.completions.create, {"model": model, "max_tokens": 3}
        tokens = service.encode("zz")
        asked = ["zz", ["zz"], tokens, [tokens]]
        found = [await create(**about, prompt=prompt, **NOTHINGS) for prompt in asked]
        return [said.choices[0].text for said in found]

    assert with_a_client(folder, ask) == [alone(folder, "zz", 3)] * 4


def test_a_body_that_does_not_come_is_not_waited_for(folder, monkeypatch):
    monkeypatch.setattr("thesis_serve.model.api._BODY_S", 0.2)

    async def ask(client, model, service):
        at = client.base_url.host, client.base_url.port
        reader, writer = await asyncio.open_connection(*at)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
                     b"Content-Length: 99\r\n\r\n{")  # fmt: skip
        said = await reader.readuntil(b"\r\n")
        writer.close()
        return said

    assert with_a_client(folder, ask).split()[1] == b"408"


def test_late_request_is_rejected_with_its_predicted_latency(folder):
    async def ask(client, model, service):
        long = {"model": model, "prompt": "a", "max_tokens": 50}
        first = asyncio.create_task(client.completions.create(**long))
        await until(lambda: service.control.sequencer.counts.started)
        with pytest.raises(openai.InternalServerError) as refused:
            await client.completions.create(**long, extra_headers={"X-Slo-Ms": "0.01"})
        await first
        return refused.value

    refused = with_a_client(folder, ask, slots=1)
    assert refused.status_code == 503
    assert refused.code == "overloaded"
    predicted_s = refused.body["predicted_s"]
    assert predicted_s > 0
    assert int(refused.response.headers["retry-after"]) == max(1, ceil(predicted_s))


def test_a_crowd_gets_its_texts_within_the_plan_and_the_log_tells_the_same(
    folder, tmp_path
):
    log = tmp_path / "log.jsonl"
    wishes = [
        {"prompt": PROMPTS[i % 6], "max_tokens": 1 + i % 9, "seed": i, "temperature": 1}
        for i in range(40)
    ]

    async def ask(client, model, service):
        async def one(wish):
            return (await client.completions.create(model=model, **wish)).choices[0]

        before, plan = service.model.bytes_read, service.model.plan
        found = await asyncio.gather(*map(one, wishes))
        passes = (service.model.bytes_read - before) / plan.bytes_per_step
        prompts = [service.encode(wish["prompt"]) for wish in wishes]
        most = [wish["max_tokens"] for wish in wishes]
        asked = [TextRequest(*ask, None) for ask in zip(prompts, most, strict=True)]
        assert passes < 0.6 * sum(map(service.passes, asked))  # three share each
        assert service.budget.peak_bytes <= service.model.plan.device_peak_bytes
        return [choice.text for choice in found]

    found = with_a_client(folder, ask, policy="fifo", log=log)
    for wish, text in list(zip(wishes, found, strict=True))[::5]:
        prompt, most = wish["prompt"], wish["max_tokens"]
        assert text == alone(folder, prompt, most, temperature=1, seed=wish["seed"])
    seen = replay(log)
    assert seen.differs_at is None


def test_a_client_that_goes_gives_its_slot_to_the_next(folder):
    async def ask(client, model, service):
        counts = service.control.sequencer.counts
        long = {"model": model, "prompt": "a", "max_tokens": 59}
        stream = await client.completions.create(**long, stream=True)
        await anext(stream.__aiter__())
        waits = asyncio.create_task(client.completions.create(**long))
        await until(lambda: counts.arrived == 2)
        waits.cancel()
        await until(lambda: counts.left == 1)
        await stream.close()
        await until(lambda: counts.left == 2)
        before = service.model.bytes_read
        text = await client.completions.create(model=model, prompt="zz", max_tokens=3)
        passes = (service.model.bytes_read - before) / service.model.plan.bytes_per_step
        assert passes < 20  # of 59 that the text had to go
        return text.choices[0].text, counts

    text, counts = with_a_client(folder, ask, slots=1, policy="fifo")
    assert text == alone(folder, "zz", 3)
    assert (counts.arrived, counts.started, counts.left) == (3, 2, 2)
    assert counts.on_time + counts.late == 1


@pytest.mark.parametrize("split", [False, True])
def test_a_model_that_is_lost_says_so_and_so_does_every_request(tmp_path, split):
    (tiny.write_wide if split else tiny.write)(tmp_path)
    tiny.give_tokenizer(tmp_path)
    file = tmp_path / "model.safetensors"
    shape = SHAPE | {"batch": 3, "logit_tokens": 1, "generating": True}
    plan = tiny.plan_split if split else tiny.plan_tight
    size = plan(tmp_path, 1, **shape).machine.device_bytes

    async def ask():
        async with ModelService(str(tmp_path), size, **ROOM) as service:
            os.utime(file, (1, 1))
            os.truncate(file, file.stat().st_size // 2)
            here = httpx.AsyncClient(transport=httpx.ASGITransport(openai_api(service)))
            one = client("http://here/v1", http_client=here)
            for _ in range(2):
                with pytest.raises(openai.InternalServerError) as failed:
                    await one.completions.create(
                        model=service.name, prompt="a", max_tokens=9
                    )
                assert failed.value.code == "model_lost"
            counts = service.control.sequencer.counts
            assert counts.failed == counts.arrived == 1
            return await here.get("http://here/health")

    health = asyncio.run(ask())
    assert health.status_code == 503
    assert "model.safetensors" in health.json()["why"]


def test_waiting_clients_get_an_answer_at_shutdown(folder):
    async def run():
        async def one(service, most):
            ask = TextRequest(service.encode("a"), most, Sampling())
            async with service.answer(ask) as pieces:
                return "".join([piece async for piece in pieces])

        size = memory(folder, 1)
        options = ROOM | {"slots": 1, "policy": "fifo"}
        async with ModelService(str(folder), size, **options) as service:
            tasks = [asyncio.create_task(one(service, 59)) for _ in range(3)]
            await until(lambda: service.control.sequencer.counts.started)
        tasks.append(asyncio.create_task(one(service, 2)))
        return await asyncio.wait_for(
            asyncio.gather(*tasks, return_exceptions=True), 60
        )

    assert [type(said) for said in asyncio.run(run())] == [ModelLost] * 4


def test_time_is_that_of_a_pass_and_of_the_share_of_them_that_is_used():
    learns = PassEstimator(0.5)
    assert learns.predict("chat", (8, 8)) == pytest.approx(8.5 * 0.5)
    for most in (40, 400) * 200:
        learns.used(20)
        learns.learn("chat", (most, most), 20.5 * 0.25)
    assert learns.predict("chat", (40, 40)) == pytest.approx(5.125, rel=0.05)
    assert learns.predict("chat", (400, 400)) == pytest.approx(5.125, rel=0.05)
    learns.learn("text", (10, 10), 2.5)  # of a kind of its own, all of them used
    assert learns.predict("text", (10, 10)) <= 2.5 * 1.01


def test_a_pass_with_many_tokens_takes_longer():
    learns, passes = PassEstimator(0.1), 5
    for each in (1, 4, 16) * 200:
        learns.learn("chat", (passes, passes * each), 5.5 * 0.1 * each**0.5)
    for each in (1, 4, 16):
        took_s = learns.predict("chat", (passes, passes * each))
        assert took_s == pytest.approx(5.5 * 0.1 * each**0.5, rel=0.15)


def test_what_cannot_be_opened_or_listened_on_is_a_sentence(folder):
    with pytest.raises(InvalidInput, match="API key"):
        listen("0.0.0.0", 0)
    for key in ("", "schlüssel", " a"):
        with pytest.raises(InvalidInput, match="the API key is empty, or holds"):
            listen("0.0.0.0", 0, key)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for at in (taken.getsockname(), ("no.such.host.", 1), ("127.0.0.1", 70000)):
            with pytest.raises(InvalidInput, match="cannot be listened on"):
                listen(*at, key="secret")
    with pytest.raises(InvalidInput, match="MiB"):
        asyncio.run(ModelService(str(folder), 2**12, **ROOM).__aenter__())
    with pytest.raises(InvalidInput, match="polic"):
        ModelService(str(folder), 2**20, policy="first-come")


def test_a_service_is_open_inside_its_with_and_once(folder):
    service = ModelService(str(folder), memory(folder), **ROOM)
    ask = TextRequest([1, 2], 3, Sampling())
    for use in (service.check, service.passes, lambda _: openai_api(service)):
        with pytest.raises(InvalidInput, match="is not open"):
            use(ask)

    async def twice():
        async with service:
            with pytest.raises(InvalidInput, match="most_tokens=0"):
                service.check(TextRequest([1], 0, Sampling()))
            async with service.answer(ask) as pieces:
                assert [piece async for piece in pieces]
                assert [piece async for piece in pieces] == []
        async with service:
            raise AssertionError("it was entered twice")

    with pytest.raises(InvalidInput, match="entered before"):
        asyncio.run(twice())


def test_shutdown_answers_accepted_requests_and_closes_the_log(folder, tmp_path):
    log = tmp_path / "log.jsonl"
    served = subprocess.Popen(
        [
            sys.executable, "-m", "thesis_book", "api", str(folder),
            "--device-memory", f"{memory(folder)}B", "--context", "60", "--slots", "2",
            "--slo", "600s", "--port", "0", "--log", str(log),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = served.stdout.readline().strip()

        async def ask():
            one = client(address)
            stream = await one.completions.create(
                model=folder.name, prompt="a", max_tokens=59, stream=True
            )
            events = stream.__aiter__()
            first = await anext(events)
            served.send_signal(signal.SIGTERM)
            return [first] + [event async for event in events]

        events = asyncio.run(ask())
        assert served.wait(60) == 0
    finally:
        served.kill()
        served.wait()
    told = served.stderr.read()
    assert "loading the libraries" in told
    assert "measuring a pass" in told
    assert "".join(e.choices[0].text for e in events) == alone(folder, "a", 59)
    assert replay(log).differs_at is None
