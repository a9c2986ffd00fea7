"""Admission control for asyncio: who wants to run waits for its turn, or is refused."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from thesis_lib.sequencer.live.log import DecisionLog
from thesis_lib.sequencer.live.machine import Decided, LiveSequencer


class Refused(Exception):
    """A request that the policy does not let in; `wait_s` is how long one would wait.

    `predicted_s` is the latency that it would have had about: that wait and its own
    service.
    """

    def __init__(self, wait_s: float, predicted_s: float) -> None:
        super().__init__(
            f"refused: it would take about {predicted_s:.3g} s, with a wait of "
            f"{wait_s:.3g} s; ask again later"
        )
        self.wait_s, self.predicted_s = wait_s, predicted_s


class AdmissionController:
    """`sequencer`, told the time by the running loop; a log at `log` if one is given.

    It belongs to one event loop and knows no threads. Who is kept back is decided on
    again whenever somebody comes or ends, and at its deadline if nobody does.

    >>> import asyncio
    >>> from thesis_lib.sequencer.live import AdmissionController, LiveSequencer
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
        self.sequencer = sequencer
        self.log = None if log is None else DecisionLog(log, sequencer)
        self._next = 0
        self._turns: dict[int, asyncio.Future[bool]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._origin_s: float | None = None

    @asynccontextmanager
    async def turn(
        self, kind: str = "", features: Sequence[float] = (),
        slo_s: float | None = None,
    ) -> AsyncIterator[None]:  # fmt: skip
        """Wait for a worker, and have it inside; raises Refused where none is granted.

        What is left by an exception counts as served; what is cancelled has no client
        any more, and teaches nothing.
        """
        number, sequencer = self._next, self.sequencer
        self._next += 1
        turn = asyncio.get_running_loop().create_future()
        self._turns[number] = turn
        try:
            self._apply(
                sequencer.arrive(
                    number, self._now_s(), kind=kind, features=features, slo_s=slo_s
                )
            )
            granted = await turn
        except asyncio.CancelledError:
            if number in sequencer:  # else it was refused at that moment
                self._apply(sequencer.leave(number, self._now_s()))
            raise
        finally:
            del self._turns[number]
        if not granted:
            wait_s = sequencer.wait_s()
            expected_s = sequencer.estimator.predict(kind, features)
            raise Refused(wait_s, wait_s + expected_s)
        try:
            yield
        except asyncio.CancelledError:
            self._apply(sequencer.leave(number, self._now_s()))
            raise
        except BaseException:
            self._apply(sequencer.end(number, self._now_s()))
            raise
        self._apply(sequencer.end(number, self._now_s()))

    def close(self) -> None:
        """Close the log; requests are served on without one."""
        if self._timer is not None:
            self._timer.cancel()
        if self.log is not None:
            self.log.close()

    def _now_s(self) -> float:
        now_s = asyncio.get_running_loop().time()
        if self._origin_s is None:
            self._origin_s = now_s
        return now_s - self._origin_s

    def _apply(self, decided: Decided) -> None:
        """Wake who was decided on, and look again when the next deadline is over."""
        for numbers, granted in ((decided.started, True), (decided.refused, False)):
            for number in numbers:
                turn = self._turns.get(number)
                if turn is not None and not turn.done():
                    turn.set_result(granted)
        due_s = self.sequencer.next_deadline_s
        if self._timer is not None:
            if self._timer.when() == due_s + (self._origin_s or 0.0):
                return
            self._timer.cancel()
            self._timer = None
        if due_s < float("inf"):
            at_s = due_s + (self._origin_s or 0.0)
            self._timer = asyncio.get_running_loop().call_at(at_s, self._look)

    def _look(self) -> None:
        self._timer = None
        self._apply(self.sequencer.look(self._now_s()))
