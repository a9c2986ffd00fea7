"""Admission control for asyncio: a request waits for its turn or is rejected."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Literal

from thesis_lib.common.errors import require
from thesis_serve.admission.log import DecisionLog
from thesis_serve.admission.machine import LOOK_S, Decided, LiveSequencer

Ending = Literal["served", "failed", "left"]  # of a request; left: its client has


class Refused(Exception):
    """Report that the policy rejects a request.

    `wait_s` is the predicted wait in seconds, `predicted_s` that and its own service.
    """

    def __init__(self, wait_s: float, predicted_s: float) -> None:
        super().__init__(
            f"rejected: it would take about {predicted_s:.3g} s, with a wait of "
            f"{wait_s:.3g} s; ask again later"
        )
        self.wait_s, self.predicted_s = wait_s, predicted_s

    @property
    def retry_after_s(self) -> int:
        """Return the whole seconds, at least 1, that a rejected client should wait."""
        return max(1, ceil(self.predicted_s))


@dataclass(slots=True)
class Turn:
    """A request that waits or runs; the caller must close it."""

    controller: "AdmissionController"
    number: int
    kind: str
    features: Sequence[float]
    granted: asyncio.Future[bool]  # False where it is rejected

    def rejection(self) -> Refused:
        """Why it was not granted."""
        sequencer = self.controller.sequencer
        wait_s = sequencer.wait_s()
        return Refused(
            wait_s, wait_s + sequencer.estimator.predict(self.kind, self.features)
        )

    def close(self, ending: Ending) -> None:
        """End the request: served, failed, or its client has left."""
        self.controller._close(self, ending)


class AdmissionController:
    """Run a sequencer on the clock of an event loop.

    It belongs to one event loop and is not thread-safe. It decides again on held
    requests whenever one arrives or ends, and at their deadlines.

    Args:
        sequencer: A sequencer that no other controller has.
        log: New file for the log of decisions.

    Raises:
        InvalidInput: If the sequencer has a controller, or the log cannot be written.

    Example:
        >>> import asyncio
        >>> from thesis_serve import AdmissionController, LiveSequencer
        >>> control = AdmissionController(LiveSequencer("fifo", workers=1, slo_s=1))
        >>> async def serve(name):
        ...     async with control.turn():
        ...         await asyncio.sleep(0.001)
        ...         return name
        >>> async def both():
        ...     return await asyncio.gather(serve("a"), serve("b"))
        >>> asyncio.run(both()), control.sequencer.counts.started
        (['a', 'b'], 2)
    """

    def __init__(self, sequencer: LiveSequencer, log: Path | str | None = None) -> None:
        require(
            isinstance(sequencer, LiveSequencer),
            f"sequencer={sequencer!r}: expected a LiveSequencer",
        )
        require(
            not sequencer.taken,
            "this sequencer has a controller already: make one sequencer for each",
        )
        self.log = None if log is None else DecisionLog(log, sequencer)
        self.sequencer, sequencer.taken = sequencer, True
        self._next = 0
        self._turns: dict[int, asyncio.Future[bool]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = float("inf")  # when the timer looks
        self._origin_s: float | None = None

    @asynccontextmanager
    async def turn(
        self, kind: str = "", features: Sequence[float] = (),
        slo_s: float | None = None,
    ) -> AsyncIterator[None]:  # fmt: skip
        """Wait for a worker and hold it inside the block.

        Raises Refused if the policy rejects the request. A service that raises or is
        cancelled teaches the policy nothing.
        """
        turn = self.ask(kind, features, slo_s)
        ending: Ending = "left"
        try:
            if not await turn.granted:
                raise turn.rejection()
            try:
                yield
                ending = "served"
            except Exception:
                ending = "failed"
                raise
        finally:
            turn.close(ending)

    def ask(
        self, kind: str = "", features: Sequence[float] = (),
        slo_s: float | None = None,
    ) -> Turn:  # fmt: skip
        """Return a new `Turn`, for callers that wait in their own way."""
        granted = asyncio.get_running_loop().create_future()
        turn = Turn(self, self._next, kind, features, granted)
        self._next += 1
        self._turns[turn.number] = granted
        try:
            decided = self.sequencer.arrive(
                turn.number, self._now_s(), kind=kind, features=features, slo_s=slo_s
            )
        except BaseException:
            turn.close("left")
            raise
        self._apply(decided)
        return turn

    def close(self) -> None:
        """Close the log; requests are served on without one."""
        if self.log is not None:
            self.log.close()

    def _close(self, turn: Turn, ending: Ending) -> None:
        self._turns.pop(turn.number, None)
        if turn.number in self.sequencer:
            now_s, failed = self._now_s(), ending == "failed"
            if ending == "left":
                decided = self.sequencer.leave(turn.number, now_s)
            else:
                decided = self.sequencer.end(turn.number, now_s, failed=failed)
            self._apply(decided)

    def _now_s(self) -> float:
        """Seconds since the first request; clocks of loops may count milliseconds."""
        now_s = monotonic()
        if self._origin_s is None:
            self._origin_s = now_s
        return now_s - self._origin_s

    def _apply(self, decided: Decided) -> None:
        """Wake who was decided on, and look again when it asks to."""
        for numbers, granted in ((decided.started, True), (decided.refused, False)):
            for number in numbers:
                turn = self._turns.get(number)
                if turn is not None and not turn.done():
                    turn.set_result(granted)
        due_s = self.sequencer.next_look_s
        if self._timer is not None and self._due_s != due_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and due_s < float("inf"):
            later_s = max(due_s - self._now_s(), LOOK_S)  # or an early clock spins
            self._timer = asyncio.get_running_loop().call_later(later_s, self._look)
            self._due_s = due_s

    def _look(self) -> None:
        self._timer = None
        self._apply(self.sequencer.look(self._now_s()))
