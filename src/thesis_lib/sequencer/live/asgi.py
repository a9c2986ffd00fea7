"""Admission control as ASGI middleware: for Starlette, FastAPI, Django and others."""

import asyncio
import json
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    MutableMapping,
    Sequence,
)
from math import ceil, isfinite
from typing import Any

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.sequencer.live.controller import AdmissionController, Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def by_path(scope: Scope) -> str:
    """Method and path: kinds of request where paths hold no numbers of their own."""
    return f"{scope['method']} {scope['path']}"


def nothing(scope: Scope) -> Sequence[float]:
    """No features: all requests of a kind are expected to take the same time."""
    return ()


class SequencerMiddleware:
    """`app`, whose HTTP requests run when `controller` says so, or are refused.

    `kind` and `features` say of a request, by its ASGI scope, what service times may
    depend on. Its objective is that of its path in `slo_s`, or of a client that names
    one in milliseconds in the header `slo_header`, where the shorter holds; else that
    of the sequencer. A refusal is a 503 with `Retry-After` and a JSON body that says
    the predicted latency; a header that is no time is answered by a 400. A client that
    goes while it waits gives up its place. Raises InvalidInput for an objective in
    `slo_s` that is none.
    """

    def __init__(
        self, app: App, controller: AdmissionController, *,
        kind: Callable[[Scope], str] = by_path,
        features: Callable[[Scope], Sequence[float]] = nothing,
        slo_s: Mapping[str, float] | None = None,
        slo_header: str | None = None,
    ) -> None:  # fmt: skip
        self.app, self.controller = app, controller
        self.kind, self.features = kind, features
        self.slo_s = dict(slo_s or {})
        for path, seconds in self.slo_s.items():
            require(
                0 < seconds < float("inf"),
                f"slo_s of {path} is {seconds:g}: expected positive seconds",
            )
        self.slo_header = slo_header.lower().encode() if slo_header else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, self._closing(receive), send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            slo_s = self._objective(scope)
        except InvalidInput as error:
            await _answer(send, 400, {"error": str(error)})
            return
        client = _Client(receive)
        turn = self.controller.turn(self.kind(scope), self.features(scope), slo_s)
        try:
            if not await client.stays_for(turn.__aenter__()):
                return
        except Refused as error:
            seconds = max(1, ceil(error.wait_s))
            said = {"error": str(error), "predicted_s": error.predicted_s}
            await _answer(send, 503, said, [(b"retry-after", b"%d" % seconds)])
            return
        try:
            await self.app(scope, client.receive, send)
        except BaseException as error:
            await turn.__aexit__(type(error), error, error.__traceback__)
            raise
        await turn.__aexit__(None, None, None)

    def _objective(self, scope: Scope) -> float | None:
        given = [self.slo_s[scope["path"]]] if scope["path"] in self.slo_s else []
        for name, value in scope["headers"]:
            if name == self.slo_header:
                try:
                    seconds = float(value) / 1000
                except ValueError:
                    seconds = -1.0
                require(
                    seconds > 0 and isfinite(seconds),
                    f"{name.decode()}: expected the milliseconds in which an answer is "
                    "of use, such as 250",
                )
                given.append(seconds)
        return min(given, default=None)

    def _closing(self, receive: Receive) -> Receive:
        async def receive_() -> MutableMapping[str, Any]:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self.controller.close()
            return message

        return receive_


class _Client:
    """What a client sends, and whether it is still there."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: list[MutableMapping[str, Any]] = []

    async def receive(self) -> MutableMapping[str, Any]:
        """The next message, which may have been read while its request waited."""
        return self._read.pop(0) if self._read else await self._receive()

    async def stays_for(self, turn: Coroutine[Any, Any, None]) -> bool:
        """Wait for `turn`; False if the client was gone first."""
        tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(turn)]
        try:
            await asyncio.sleep(0)  # most wait for nobody
            if not tasks[0].done():
                tasks.append(asyncio.ensure_future(self._watch()))
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if not tasks[0].done() and tasks[1].result():
                    return False
            await tasks[0]
            return True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> bool:
        """Read on until the client is gone, or has more than one message to say."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._read.append(message)
                return True
            self._read.append(message)
            if message.get("more_body", False):
                return False


async def _answer(
    send: Send, status: int, said: dict[str, Any],
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:  # fmt: skip
    body = json.dumps(said).encode()
    kind = (b"content-type", b"application/json")
    length = (b"content-length", b"%d" % len(body))
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [kind, length, *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})
