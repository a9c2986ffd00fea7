"""A streamed model that many clients ask at once, and a policy that says who may.

The sequencer decides on the event loop; a thread of its own has the model, and writes
for up to `slots` clients in the same passes over the weights. What is known of a
request before it runs is how many passes it may take; how long that is, is learned.
"""

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from thesis_lib.common.errors import require, require_count
from thesis_lib.common.provenance import seconds_of
from thesis_lib.memory.decode.generate import Sampling, TextSink, write
from thesis_lib.memory.model.pretrained import read_tokenizer
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.offloaded_model import (
    checkpoint_folder,
    enforced,
    open_streamed,
)
from thesis_serve.admission.controller import AdmissionController, Ending
from thesis_serve.admission.estimator import OnlineEstimator
from thesis_serve.admission.machine import LiveSequencer
from thesis_serve.model.together import ContinuousBatch, Lane

_SAYS = logging.getLogger(__name__)
_FEATURES = ("passes", "tokens")


class ModelLost(Exception):
    """The model cannot be asked any more, and why."""


@dataclass(frozen=True, slots=True)
class TextRequest:
    """Request a continuation of `tokens` by at most `most_tokens` tokens."""

    tokens: Sequence[int]
    most_tokens: int
    writing: Sampling
    kind: str = "text"  # such as the path: each kind's times are learned apart


@dataclass(frozen=True, slots=True)
class Ended:
    """Return the finish reason: "stop" before the maximum length, or "length"."""

    reason: str
    tokens: int


class PassEstimator:
    """Predict the seconds of a request from its passes and the tokens in them.

    It learns, for each kind, the time of a pass by the tokens computed in it (`pass_s`
    at first), and the share of its passes that a request uses. A request that arrives
    during a pass waits half a pass on average.
    """

    features = len(_FEATURES)

    def __init__(self, pass_s: float) -> None:
        self._pass = OnlineEstimator(1, first_s=pass_s)
        self._share = OnlineEstimator(1, first_s=1.0)
        self._used: int | None = None

    def predict(self, kind: str, features: Sequence[float]) -> float:
        """Seconds that a request of so many passes at most will take in its slot."""
        most, tokens = features
        share = min(self._share.predict(kind, (most,)), 1.0)
        used = max(most * share, 1.0)
        pass_s = self._pass.predict(kind, (self._each(most, tokens, used),))
        return (used + 0.5) * pass_s

    def used(self, passes: int) -> None:
        """Record how many passes the request took that is learned from next."""
        self._used = passes

    def learn(self, kind: str, features: Sequence[float], took_s: float) -> None:
        """A request of so many passes at most took `took_s`."""
        most, tokens = features
        used, self._used = self._used or most, None
        each = self._each(most, tokens, used)
        self._pass.learn(kind, (each,), took_s / (used + 0.5))
        self._share.learn(kind, (most,), used / most)

    @staticmethod
    def _each(most: float, tokens: float, used: float) -> float:
        """Tokens in each pass of a text: those that it did not use had one."""
        return (tokens - (most - used)) / used


class Answer:
    """The pieces of a text, as they are written; `ended` once it is over."""

    def __init__(self, ask: TextRequest, loop: asyncio.AbstractEventLoop) -> None:
        self.ask = ask
        self.ended: Ended | None = None
        self.ending: Ending = "left"
        self._loop, self._pieces = loop, asyncio.Queue[str | Ended | Exception]()
        self.lane: Lane | None = None  # of the thread that writes

    def tell(self, piece: str | Ended | Exception) -> None:
        """Hand over what was written, from whatever thread."""
        with suppress(RuntimeError):  # the loop is closed: the client is gone
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def __aiter__(self) -> AsyncIterator[str]:
        while self.ended is None:
            piece = await self._pieces.get()
            if isinstance(piece, Exception):
                self.ending = "failed"
                raise piece
            if isinstance(piece, Ended):
                self.ended, self.ending = piece, "served"
                return
            yield piece


@dataclass(eq=False, repr=False)
class ModelService:
    """Serve a checkpoint to up to `slots` clients at once, as an async context manager.

    A text has the same bits whatever else is written. All slots are part of the plan,
    which a graphics card enforces, and on a processor a meter with `metered`.

    Args:
        checkpoint, device_bytes, host_bytes, ring, pass_tokens, device, verify: As in
            `open_streamed`.
        policy, slo_s, most_waiting, flush_s: As in `LiveSequencer`, whose workers are
            the slots. An answer is on time if it is complete within `slo_s` seconds.
        slots: Clients at once.
        context: Positions of a slot, prompt and answer together.
        metered: Whether a meter counts every tensor; passes take longer.
        log: New file for the log of decisions.
        report: Function called with the name of each stage of opening.

    Raises:
        InvalidInput, PlanInfeasible: On entering, as `open_streamed`.

    Example:
        >>> import asyncio
        >>> from thesis_lib.memory.decode.generate import Sampling
        >>> from thesis_serve import ModelService, TextRequest
        >>> async def ask():
        ...     async with ModelService("smollm2", 96 * 2**20, context=32) as service:
        ...         tokens = service.encode("The capital of France is")
        ...         request = TextRequest(tokens, 4, Sampling())
        ...         async with service.answer(request) as pieces:
        ...             return "".join([piece async for piece in pieces])
        >>> asyncio.run(ask()).strip()
        'Paris.'
    """

    checkpoint: str
    device_bytes: int
    _: KW_ONLY
    policy: str = "bid-price"
    slo_s: float = 20.0
    slots: int = 4
    context: int = 512
    pass_tokens: int = 64
    host_bytes: int = 0
    ring: int | None = None
    device: str = "cpu"
    verify: bool = False
    metered: bool = False
    most_waiting: int = 1000
    flush_s: float = np.inf
    log: Path | None = None
    report: Callable[[str], None] = lambda stage: None

    def __post_init__(self) -> None:
        require_count("slots", self.slots)
        require_count("context", self.context, 2)
        self.report("reading the checkpoint's configuration and tokenizer")
        self.folder = checkpoint_folder(self.checkpoint)
        self.name = self.folder.resolve().name
        if self.checkpoint == "smollm2":
            self.name = "smollm2"
        self.tokenizer = read_tokenizer(self.folder)
        self.fault: str | None = None
        self.budget: DeviceBudget | None = None
        self.control: Any = None
        self.model: Any = None  # while it is open
        self.plan_bytes = 0  # which it will hold at most
        self._orders: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._taken: deque[Answer] = deque()  # orders, of the thread
        self._told_to_end = False
        self.report(f"compiling the policy {self.policy}")
        self._sequencer()  # raises for a bad policy before a model is opened

    def _sequencer(self, **learned: Any) -> LiveSequencer:
        return LiveSequencer(
            self.policy, workers=self.slots, slo_s=self.slo_s,
            most_waiting=self.most_waiting, flush_s=self.flush_s, **learned,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        require(
            self.fault is None and self.control is None,
            "this service was entered before: make another one",
        )
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[float] = loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(loop, opened), name="streamed-model", daemon=True
        )
        self._thread.start()
        try:
            pass_s = await opened
            self.estimator = PassEstimator(pass_s)
            sequencer = self._sequencer(
                feature_names=_FEATURES, estimator=self.estimator,
                shortest_s=pass_s / self.slots,
            )  # fmt: skip
            self.control = AdmissionController(sequencer, self.log)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()
        self.control.close()

    async def _stop(self) -> None:
        self.fault = self.fault or "the service has ended"
        self._orders.put(None)
        await asyncio.to_thread(self._thread.join)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [int(token) for token in self.tokenizer(text)["input_ids"]]

    def check(self, ask: TextRequest) -> None:
        """Raise InvalidInput for a request that no slot or model can take."""
        self._require_open()
        require_count("most_tokens", ask.most_tokens)
        n, most = len(ask.tokens), ask.most_tokens
        require(n > 0, "the prompt is empty: give at least one word")
        vocab = self._vocab
        require(
            all(0 <= token < vocab for token in ask.tokens),
            f"the prompt has tokens from {min(ask.tokens)} to {max(ask.tokens)}: "
            f"expected those that the model knows, from 0 to {vocab - 1}",
        )
        require(
            n + most <= self.context,
            f"a prompt of {n} tokens and an answer of {most} are longer than the "
            f"{self.context} that a slot has: shorten the prompt, or ask for fewer "
            "tokens",
        )

    def passes(self, ask: TextRequest) -> int:
        """Passes over the weights that an answer takes at most, its prompt included."""
        self._require_open()
        return self._passes(ask, ask.most_tokens)

    def _passes(self, ask: TextRequest, tokens: int) -> int:
        return -(-len(ask.tokens) // self._pass_tokens) + max(tokens, 1) - 1

    @asynccontextmanager
    async def answer(
        self, ask: TextRequest, slo_s: float | None = None
    ) -> AsyncIterator[Answer]:
        """Wait for a slot, then yield the text in pieces; leaving the block ends it.

        Raises InvalidInput as `check`, Refused if the policy rejects the request, and
        ModelLost if the model has failed.
        """
        self._require_model()
        self.check(ask)
        most = self.passes(ask), len(ask.tokens) + max(ask.most_tokens, 1) - 1
        turn = self.control.ask(ask.kind, most, slo_s)
        answer = Answer(ask, asyncio.get_running_loop())
        begun = False
        try:
            if not await turn.granted:
                raise turn.rejection()
            self._require_model()
            begun = True
            self._orders.put(answer)
            yield answer
        finally:
            ended = answer.ended
            if ended is not None:
                self.estimator.used(self._passes(ask, ended.tokens))
            elif begun:  # its client is gone, or something failed
                self._orders.put(answer)
            turn.close(answer.ending)

    def _require_open(self) -> None:
        require(
            self.control is not None,
            "the service is not open: use it inside `async with`",
        )

    def _require_model(self) -> None:
        if self.fault is not None:
            raise ModelLost(self.fault)

    # --- The thread that has the model --------------------------------------------
    def _run(
        self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[float]
    ) -> None:
        def say(settle: Any, value: Any) -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(
                    lambda: None if opened.done() else settle(value)
                )

        active: list[Answer] = []
        verified = ", and hashing every file" if self.verify else ""
        self.report(f"opening the weights{verified}")
        metered = self.metered or self.device != "cpu"
        try:
            with (
                open_streamed(
                    self.folder, self.device_bytes, self.host_bytes, batch=self.slots,
                    context=self.context, ring=self.ring, verify=self.verify,
                    pass_tokens=self.pass_tokens, device=self.device,
                ) as model,
                enforced(self.device_bytes, self.device)
                if metered
                else nullcontext() as budget,
            ):  # fmt: skip
                if budget is not None:
                    model.charge(budget)
                self.model, self.budget = model, budget
                self.plan_bytes = model.plan.device_peak_bytes
                self._vocab = model.spec.vocab
                self._pass_tokens = model.plan.pass_tokens
                self.report("measuring a pass over the weights")
                texts = ContinuousBatch(model)
                say(opened.set_result, _pass_seconds(texts))
                self._write(texts, active)
        except BaseException as error:
            self.fault = str(error)
            _SAYS.error("the model is closed: %s", error)
            say(opened.set_exception, error)
        lost = ModelLost(self.fault)
        self._taken.extendleft(active)
        while self._taken or not self._told_to_end:
            if not self._taken:
                self._take(idle=True)
            while self._taken:
                self._taken.popleft().tell(lost)

    def _write(self, texts: ContinuousBatch, active: list[Answer]) -> None:
        """Run passes until the stop order; `active` are the sequences in progress."""
        waiting: deque[Answer] = deque()
        while True:
            self._take(idle=not active)
            if self._told_to_end:
                texts.close()
                return
            while self._taken:
                answer = self._taken.popleft()
                if answer in active:  # for the second time: it leaves
                    active.remove(answer)
                    if answer.lane is None:
                        waiting.remove(answer)
                    else:
                        texts.leave(answer.lane)
                elif answer.lane is None:
                    active.append(answer)
                    waiting.append(answer)
            while waiting and len(texts.lanes) < texts.model.plan.batch:
                self._join(texts, waiting.popleft())
            texts.step()
            for answer in [a for a in active if a.lane is not None and a.lane.dead]:
                active.remove(answer)
                self._end(answer)

    def _take(self, idle: bool) -> None:
        """Take the pending orders; if idle, wait for the next one."""
        while idle or not self._orders.empty():
            order, idle = self._orders.get(), False
            if order is None:
                self._told_to_end = True
            else:
                self._taken.append(order)

    def _join(self, texts: ContinuousBatch, answer: Answer) -> None:
        ask, model = answer.ask, texts.model
        streamer = TextSink(self.tokenizer, ask.writing, answer.tell)
        prompt = torch.tensor([list(ask.tokens)], device=model.device)
        answer.lane = texts.join(
            lambda: write(
                model, self.tokenizer, prompt, ask.most_tokens, ask.writing, streamer
            )[0].tolist()
        )

    def _end(self, answer: Answer) -> None:
        lane: Any = answer.lane
        if lane.failure is not None:
            answer.tell(lane.failure)
            return
        whole = len(lane.result) == answer.ask.most_tokens
        stopped = not whole or self._ends(lane.result, answer.ask.writing)
        answer.tell(Ended("stop" if stopped else "length", len(lane.result)))

    def _ends(self, tokens: list[int], writing: Sampling) -> bool:
        """Whether a text that is as long as it may be would have ended here anyway."""
        ends = self.model.model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else ends or []
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return tokens[-1] in ends or writing.end(text) < len(text)


def _pass_seconds(texts: ContinuousBatch) -> float:
    """The median of three passes of a token in every slot, after one that warms up."""
    model = texts.model
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)

    def four() -> None:
        for _ in range(4):
            model.step(token, model.new_cache(), keep=1)

    lanes = [texts.join(four) for _ in range(model.plan.batch)]
    texts.step()
    taken = [seconds_of(texts.step) for _ in range(3)]
    for lane in lanes:
        if lane.failure is not None:
            raise lane.failure
    return float(np.median(taken))
