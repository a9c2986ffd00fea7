"""Admission control as ASGI middleware: for Starlette, FastAPI, Django and others."""

import asyncio
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thesis_lib.common.errors import InvalidInput, require
from thesis_serve.admission.controller import AdmissionController, Ending
from thesis_serve.admission.machine import seconds

_AHEAD = 2**20  # bytes of a body that are read while its request waits


def by_path(scope: Scope) -> str:
    """Return method and path: kinds of request where paths hold no numbers."""
    return f"{scope['method']} {scope['path']}"


def parse_slo_ms(name: str, text: str) -> float:
    """Return the seconds of an SLO that the header `name` gives in milliseconds.

    Raises InvalidInput for a `text` that is no positive number.
    """
    require(
        re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text, re.ASCII) is not None
        and float(text) > 0,
        f"{name} must be the milliseconds in which an answer is of use, got "
        f"{text[:40]!r}. Send a positive number such as 250.",
    )
    return float(text) / 1000


class SequencerMiddleware:
    """Let HTTP requests of `app` run when `controller` starts them, or reject them.

    A rejection is a 503 with the predicted latency in `Retry-After` and in its body. A
    client that disconnects while waiting gives up its place; later, its worker is busy
    until the service ends. Failed services, with a status from 500, teach nothing.

    Args:
        app: The ASGI application.
        controller: The controller of its sequencer.
        kind, features: Functions from the ASGI scope to what service times depend on.
        slo_s: SLO by path, in seconds.
        slo_header: Header in which a client may set a shorter SLO, in milliseconds; an
            invalid one is answered with a 400.
        free_paths: Paths that bypass the policy, as WebSockets do.

    Raises:
        InvalidInput: If an option is invalid.
    """

    def __init__(
        self, app: ASGIApp, controller: AdmissionController, *,
        kind: Callable[[Scope], str] = by_path,
        features: Callable[[Scope], Sequence[float]] = lambda scope: (),
        slo_s: Mapping[str, float] | None = None,
        slo_header: str | None = None,
        free_paths: Collection[str] = (),
    ) -> None:  # fmt: skip
        require(
            isinstance(controller, AdmissionController),
            f"controller={controller!r}: expected an AdmissionController",
        )
        require(
            slo_header is None
            or re.fullmatch(r"[A-Za-z0-9-]+", slo_header) is not None,
            f"slo_header={slo_header!r}: expected the name of a header, as X-Slo-Ms",
        )
        self.app, self.controller = app, controller
        self.kind, self.features = kind, features
        self.slo_s = {
            path: seconds(f"slo_s of {path}", value)
            for path, value in dict(slo_s or {}).items()
        }
        self.slo_header = slo_header.lower().encode() if slo_header else None
        self.free_paths = frozenset(free_paths)
        for path in [*self.slo_s, *self.free_paths]:
            require(
                path.startswith("/"), f"path {path!r}: expected one from the root, /"
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, self._closing(receive), send)
            return
        if scope["type"] != "http" or scope["path"] in self.free_paths:
            await self.app(scope, receive, send)
            return
        try:
            slo_s = self._slo_s(scope)
        except InvalidInput as error:
            await JSONResponse({"error": str(error)}, 400)(scope, receive, send)
            return
        client, status = _Client(receive), 200
        ending: Ending = "left"

        async def answer(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        turn = self.controller.ask(self.kind(scope), self.features(scope), slo_s)
        try:
            if not await client.stays_for(turn.granted):
                return
            if not turn.granted.result():
                rejection = turn.rejection()
                rejection = JSONResponse(
                    {"error": str(rejection), "predicted_s": rejection.predicted_s},
                    503,
                    {"retry-after": str(rejection.retry_after_s)},
                )
                await rejection(scope, receive, send)
                return
            try:
                await self.app(scope, client.receive, answer)
                ending = "served" if status < 500 else "failed"
            except Exception:
                ending = "failed"
                raise
        finally:
            turn.close(ending)
            client.close()

    def _slo_s(self, scope: Scope) -> float | None:
        limits = [self.slo_s[scope["path"]]] if scope["path"] in self.slo_s else []
        for name, value in scope["headers"]:
            if name == self.slo_header:
                limits.append(parse_slo_ms(name.decode(), value.decode("latin-1")))
        return min(limits, default=None)

    def _closing(self, receive: Receive) -> Receive:
        async def receive_() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self.controller.close()
            return message

        return receive_


class _Client:
    """Read request bodies and detect client disconnects."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: list[Message] = []
        self._bytes = 0  # of bodies in it
        self._next: asyncio.Future[Message] | None = None

    async def receive(self) -> Message:
        """The next message, which may have been read while its request waited."""
        if self._read:
            return self._read.pop(0)
        message, self._next = self._coming(), None
        return await message

    async def stays_for(self, granted: asyncio.Future[bool]) -> bool:
        """Wait for a turn's decision; return False if the client disconnects."""
        while not granted.done() and self._bytes <= _AHEAD:
            self._next = self._coming()
            waits = {granted, self._next}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not self._next.done():
                break
            message, self._next = self._next.result(), None
            self._read.append(message)
            self._bytes += len(message.get("body", b""))
            if message["type"] == "http.disconnect":
                return granted.done()
        await granted
        return True

    def close(self) -> None:
        """Wait for nothing more."""
        if self._next is not None:
            self._next.cancel()

    def _coming(self) -> asyncio.Future[Message]:
        """Return the pending receive call, which is resumed and never cancelled."""
        return self._next or asyncio.ensure_future(self._receive())
