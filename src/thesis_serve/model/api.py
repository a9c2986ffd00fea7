"""The interface of OpenAI's completions and chats, in front of a `ModelService`.

What clients of that interface send and expect, from its published reference; what a
streamed model cannot do is rejected by name and never ignored.
"""

import asyncio
import hmac
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from secrets import token_hex
from typing import Annotated, Any, Literal

import uvicorn
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.memory.decode.generate import Sampling
from thesis_lib.memory.model.pretrained import encode_messages
from thesis_lib.memory.offload.store import StoreDamaged
from thesis_serve.admission.asgi import parse_slo_ms
from thesis_serve.admission.controller import Refused
from thesis_serve.admission.metrics import SequencerMetrics
from thesis_serve.model.service import Answer, ModelLost, ModelService, TextRequest

MOST_BYTES = 2**20  # of a body
_BODY_S = 10.0  # in which it has to be here
_DEFAULT_TOKENS = 16  # of a completion that asks for no number, as the reference has it
_CHAT_TOKENS = 128  # of an answer in a chat, or what fits in its slot
_NOTHINGS = (None, False, "", [], {})
_Stop = Annotated[str, Field(max_length=256)]
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _asks(name: str, value: Any) -> bool:
    """Return whether a field asks for something: no 0 does, but that of `logprobs`."""
    zero = name == "logprobs" and value == 0 and value is not False
    return zero or value not in _NOTHINGS


class _Strict(BaseModel):
    """A form that rejects what it does not know, unless it asks for nothing."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nothings(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        known = cls.model_fields
        return {k: v for k, v in body.items() if k in known or _asks(k, v)}


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class _Format(_Strict):
    type: Literal["text"]


class _Asked(_Strict):
    """Fields of both kinds of request; the last ones have no effect here."""

    model: str
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: list[_Stop] | None = Field(None, max_length=4)
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    n: int | None = Field(1, ge=1, le=1)
    presence_penalty: float | None = Field(0, ge=0, le=0)
    frequency_penalty: float | None = Field(0, ge=0, le=0)
    response_format: _Format | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def writing(self, number: int) -> Sampling:
        """Return how to continue a text: greedily, or seeded by `number` by default."""
        heat = self.temperature or None
        top_p = 1.0 if self.top_p is None or self.temperature == 0 else self.top_p
        seed = number if self.seed is None else self.seed
        return Sampling(heat, top_p, seed, tuple(self.stop or []))


class _Completion(_Asked):
    prompt: str | list[int]
    best_of: int | None = Field(None, ge=1, le=1)

    @field_validator("prompt", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        if not isinstance(value, list) or not value or isinstance(value[0], int):
            return value
        if len(value) > 1:
            raise ValueError("expected one prompt; send a request for each")
        return value[0]

    def ask(self, service: ModelService, number: int) -> TextRequest:
        prompt = self.prompt
        tokens = service.encode(prompt) if isinstance(prompt, str) else prompt
        most = self.max_tokens or _DEFAULT_TOKENS
        return TextRequest(tokens, most, self.writing(number), "completion")


class _Part(_Format):
    text: str


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Return the message in the form of a chat template."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content}


class _Chat(_Asked):
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)

    def ask(self, service: ModelService, number: int) -> TextRequest:
        require(
            self.max_tokens is None or self.max_completion_tokens is None,
            "max_tokens and max_completion_tokens say the same: give one of them",
        )
        messages = [message.plain() for message in self.messages]
        tokens = encode_messages(service.tokenizer, messages)
        most = self.max_tokens or self.max_completion_tokens
        if most is None:
            most = max(1, min(_CHAT_TOKENS, service.context - len(tokens)))
        return TextRequest(tokens, most, self.writing(number), "chat")


class _Failed(Exception):
    """An answer that says what was wrong, in the form of the interface."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None,
        param: str | None = None, headers: dict[str, str] | None = None, **more: float,
    ) -> None:  # fmt: skip
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.error = {"message": message, "type": kind, "param": param, "code": code}
        self.error |= more
        self.status, self.headers = status, headers or {}

    def response(self) -> Response:
        return JSONResponse({"error": self.error}, self.status, self.headers)


def _failure(error: Exception) -> _Failed:
    """Return the response to a request that raised `error`."""
    if isinstance(error, _Failed):
        return error
    if isinstance(error, Refused):
        return _Failed(
            503, str(error), code="overloaded",
            headers={"retry-after": str(error.retry_after_s)},
            predicted_s=error.predicted_s,
        )  # fmt: skip
    if isinstance(error, InvalidInput) and not isinstance(error, StoreDamaged):
        return _Failed(400, str(error))
    if isinstance(error, HTTPException):
        message = f"{error.detail}: expected a path and a method that is served"
        return _Failed(error.status_code, message, headers=dict(error.headers or {}))
    code = "model_lost" if isinstance(error, ModelLost) else None
    return _Failed(500, str(error) or type(error).__name__, code=code)


def _parse(form: type[_Asked], body: bytes) -> Any:
    """A body as a request of its form. Raises _Failed that names the first fault."""
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        fault = max(faults, key=lambda each: len(each["loc"]))  # of several forms
        where = ".".join(str(part) for part in fault["loc"] if not _is_form(part))
        if fault["type"] == "extra_forbidden":
            raise _Failed(
                400, f"{where} is nothing that this server can do: leave it out",
                param=where, code="unsupported",
            ) from None  # fmt: skip
        message = f"{where}: {fault['msg']}" if where else fault["msg"]
        raise _Failed(400, message, param=where or None) from None


def _is_form(part: int | str) -> bool:
    """Return whether part of a location names a variant, not a field of the client."""
    return isinstance(part, str) and (part == "str" or "[" in part)


class _Endpoint:
    """Texts of one kind: `form` is what a body has to be, `kind` that of the answer."""

    def __init__(self, api: "_Api", form: type[_Asked], prefix: str, kind: str) -> None:
        self.api, self.form, self.prefix, self.kind = api, form, prefix, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            self.api.admit(request)
            body = _parse(self.form, await _body(request))
            header = request.headers.get("x-slo-ms")
            slo_s = None if header is None else parse_slo_ms("X-Slo-Ms", header)
        except ClientDisconnect:
            return
        except (_Failed, InvalidInput) as error:
            await _failure(error).response()(scope, receive, send)
            return
        works = asyncio.create_task(self._answer(body, slo_s, scope, send))
        goes = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({works, goes}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (goes, works):
                if not task.done():
                    task.cancel()
            with suppress(asyncio.CancelledError):
                await works

    async def _answer(
        self, body: _Completion | _Chat, slo_s: float | None, scope: Scope, send: Send
    ) -> None:
        """Answer a request whole or piece by piece, or say why not."""
        number, begun = next(self.api.numbers), False
        head = {
            "id": f"{self.prefix}-{token_hex(12)}",
            "object": self.kind,
            "created": int(time.time()),
            "model": self.api.service.name,
        }
        try:
            self.api.require_here(body.model)
            # In a thread: a long text takes a second to become tokens.
            ask = await asyncio.to_thread(body.ask, self.api.service, number)
            async with self.api.service.answer(ask, slo_s) as answer:
                if not body.stream:
                    text = "".join([piece async for piece in answer])
                    reply = head | {
                        "choices": [self._choice(text, answer)],
                        "usage": _usage(answer),
                    }
                    await JSONResponse(reply)(scope, _nothing, send)
                    return
                begun = True
                await _start_events(send)
                counted = body.stream_options and body.stream_options.include_usage
                async for event in self._events(head, answer, bool(counted)):
                    await _event(send, json.dumps(event))
        except Exception as error:
            failed = _failure(error)
            if not begun:
                await failed.response()(scope, _nothing, send)
                return
            await _event(send, json.dumps({"error": failed.error}))
        await _event(send, "[DONE]", more=False)

    def _choice(self, text: str, answer: Answer) -> dict[str, Any]:
        choice: Any = {"text": text}
        if self.form is _Chat:
            choice = {"message": {"role": "assistant", "content": text}}
        reason = answer.ended and answer.ended.reason
        return {"index": 0, "logprobs": None, "finish_reason": reason} | choice

    async def _events(
        self, head: dict[str, Any], answer: Answer, counted: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """The parts of an answer, as objects of the interface."""
        unsaid = {"usage": None} if counted else {}
        if chat := self.form is _Chat:
            head = head | {"object": "chat.completion.chunk"}

        def part(text: str, **more: str) -> dict[str, Any]:
            choice = self._choice(text, answer)
            if chat:
                del choice["message"]
                choice["delta"] = {} if answer.ended else {"content": text} | more
            return head | {"choices": [choice]} | unsaid

        if chat:
            yield part("", role="assistant")
        async for piece in answer:
            yield part(piece)
        yield part("")
        if counted:
            yield head | {"choices": [], "usage": _usage(answer)}


class _Api:
    """State shared by the endpoints."""

    def __init__(self, service: ModelService, key: str | None) -> None:
        self.service, self._key = service, key
        self.numbers = count()
        self._registry = CollectorRegistry()
        self._registry.register(SequencerMetrics(service.control.sequencer))
        sizes = [
            ("bytes", "Most that it may hold", lambda: service.device_bytes),
            ("plan_bytes", "Most that it will", lambda: service.plan_bytes),
        ]
        if (budget := service.budget) is not None:
            metered = "Most that the meter saw", lambda: budget.peak_bytes
            sizes.append(("peak_bytes", *metered))
        for name, says, read in sizes:
            gauge = Gauge(f"model_device_{name}", says, registry=self._registry)
            gauge.set_function(read)

    def admit(self, request: Request) -> None:
        """Raise _Failed for a client that does not say the key."""
        header = request.headers.get("authorization", "")
        if self._key is not None and not hmac.compare_digest(
            header.encode(), f"Bearer {self._key}".encode()
        ):
            raise _Failed(
                401, "the API key is missing or another: send Authorization: Bearer "
                "and the key of this server", code="invalid_api_key",
            )  # fmt: skip

    async def models(self, request: Request) -> Response:
        """The one model that is here."""
        self.admit(request)
        return JSONResponse({"object": "list", "data": [self._about()]})

    async def model(self, request: Request) -> Response:
        """The model of a name, which is the one or none."""
        self.admit(request)
        self.require_here(request.path_params["name"])
        return JSONResponse(self._about())

    def _about(self) -> dict[str, Any]:
        return {
            "id": self.service.name, "object": "model", "created": 0,
            "owned_by": "thesis",
        }  # fmt: skip

    def require_here(self, name: str) -> None:
        """Raise _Failed for another model than the one that is here."""
        if name != self.service.name:
            raise _Failed(
                404, f"model {name[:80]!r} is not here: expected "
                f"{self.service.name!r}", code="model_not_found", param="model",
            )  # fmt: skip

    async def health(self, _: Request) -> Response:
        """Return whether texts are written, and why not."""
        fault = self.service.fault
        status = {"status": "ok"} if fault is None else {"status": "lost", "why": fault}
        return JSONResponse(status, 200 if fault is None else 503)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        self.admit(request)
        return PlainTextResponse(generate_latest(self._registry))


def openai_api(service: ModelService, key: str | None = None) -> Starlette:
    """Return an ASGI application with OpenAI's API for an entered `service`.

    It answers `/v1/completions`, `/v1/chat/completions`, `/v1/models`, `/health` and
    `/metrics`. The header `X-Slo-Ms` sets an SLO in milliseconds. A rejection is a 503
    with the predicted latency, in `Retry-After` and in its body.

    Args:
        service: The model service, entered.
        key: Key that clients have to send; None for none.

    Example:
        >>> import asyncio
        >>> import httpx
        >>> from thesis_serve import ModelService, openai_api
        >>> async def complete(**body):
        ...     async with ModelService("smollm2", 96 * 2**20, context=32) as service:
        ...         here = httpx.ASGITransport(openai_api(service))
        ...         async with httpx.AsyncClient(transport=here) as client:
        ...             answer = await client.post("http://t/v1/completions", json=body)
        ...             return answer.json()
        >>> question = {"model": "smollm2", "prompt": "The capital of France is"}
        >>> answer = asyncio.run(complete(**question))
        >>> answer["choices"][0]["text"].split(".")[0].strip()
        'Paris'
    """
    _require_key(key)
    require(
        service.control is not None,
        "the service is not open: make the application inside `async with service`",
    )
    api = _Api(service, key)
    texts = {
        "/v1/completions": (_Completion, "cmpl", "text_completion"),
        "/v1/chat/completions": (_Chat, "chatcmpl", "chat.completion"),
    }

    async def failed(_: Request, error: Exception) -> Response:
        return _failure(error).response()

    return Starlette(
        routes=[
            *(
                Route(path, _Endpoint(api, *about), methods=["POST"])
                for path, about in texts.items()
            ),
            Route("/v1/models", api.models),
            Route("/v1/models/{name}", api.model),
            Route("/health", api.health),
            Route("/metrics", api.metrics),
        ],
        exception_handlers={HTTPException: failed, _Failed: failed},
    )


async def _body(request: Request) -> bytes:
    """The body of a request. Raises _Failed for one that is too long or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_BYTES:
                    raise _Failed(
                        413, f"the body is longer than {MOST_BYTES} bytes: send less"
                    )
    except TimeoutError:
        raise _Failed(
            408, f"the body was not here after {_BODY_S:.0f} s: send it at once"
        ) from None
    return bytes(body)


def _usage(answer: Answer) -> dict[str, int]:
    after = answer.ended.tokens if answer.ended else 0
    usage = {"prompt_tokens": len(answer.ask.tokens), "completion_tokens": after}
    return usage | {"total_tokens": sum(usage.values())}


async def _gone(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        continue


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _start_events(send: Send) -> None:
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _event(send: Send, data: str, more: bool = True) -> None:
    body = f"data: {data}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": more})


class _Server(uvicorn.Server):
    """A server that stops on request and leaves the signals to its caller."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handled = (signal.SIGINT, signal.SIGTERM)
        for number in handled:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.should_exit, self.force_exit = True, self.should_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop gracefully; at the second signal, stop at once."""
        ends = asyncio.create_task(super().shutdown(sockets))
        while not ends.done() and not self.force_exit:
            await asyncio.wait({ends}, timeout=0.1)
        if not ends.done():
            ends.cancel()
        with suppress(asyncio.CancelledError):
            await ends

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _require_key(key: str | None) -> None:
    """Reject a key that no client could send in a header."""
    require(
        key is None
        or (key.isascii() and key.isprintable() and key.strip() == key != ""),
        "the API key is empty, or holds what no header does: expected letters, digits "
        "and signs of ASCII, one at least, without spaces around them",
    )


def listen(host: str, port: int, key: str | None = None) -> socket.socket:
    """Open a socket to serve on; port 0 finds a free one.

    Raises InvalidInput if the address is taken, or is public without a `key`.
    """
    _require_key(key)
    require(
        host in _LOOPBACK or key is not None,
        f"host {host} can be reached by others: give an API key as well, or listen on "
        f"{_LOOPBACK[0]}",
    )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        raise InvalidInput(
            f"{host}:{port} cannot be listened on ({error}): expected an address of "
            "this machine and a free port. Port 0 selects one."
        ) from error


async def serve_api(
    service: ModelService, listens: socket.socket, key: str | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Serve on a socket until SIGINT or SIGTERM, finish accepted requests, and return.

    A second signal ends it at once. `ready` is called when it accepts requests.
    """
    app = openai_api(service, key)
    config = uvicorn.Config(app, log_level="warning", lifespan="off")
    await _Server(config, ready).serve([listens])
