"""A fixed number of buffers through which the layers of a model pass, for ever.

The ring knows numbers and tickets, no tensors: whoever owns it says how a layer is
fetched into a buffer, and what a buffer is.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from thesis_lib.checks import InvalidInput, require
from thesis_lib.memory.store import Ticket

Buffer = TypeVar("Buffer")


class Ring(Generic[Buffer]):
    """Staging buffers that are filled one after the other, in the order of use.

    `fetch(layer, buffer)` starts to fill a buffer and returns a ticket. A buffer is
    refilled as soon as its layer is done, with the layer one ring ahead; after the
    last layer comes the first one again. Layers have to be held in the order of
    `layers`, from the first: `rewind` starts anew after an interruption.
    """

    def __init__(
        self,
        layers: Sequence[int],
        buffers: Sequence[Buffer],
        fetch: Callable[[int, Buffer], Ticket],
    ) -> None:
        require(
            len(buffers) > 0 or len(layers) == 0,
            f"no buffer for {len(layers)} layers: expected one at least",
        )
        self.layers, self.buffers, self._fetch = tuple(layers), tuple(buffers), fetch
        self._pending: deque[tuple[int, Buffer, Ticket]] = deque()
        self.rewind()

    @property
    def at_start(self) -> bool:
        """Whether the first layer is the next one."""
        whole = len(self._pending) == len(self.buffers)  # none lost by an exception
        return not self.layers or (whole and self._pending[0][0] == 0)

    def rewind(self) -> None:
        """Start to fetch the first layers, after what is in flight has landed."""
        self.settle()
        if self.layers:
            for at, buffer in enumerate(self.buffers):
                self._refill(at, buffer)

    def settle(self) -> None:
        """Wait until nothing is in flight, whatever became of it, and forget it."""
        while self._pending:
            _, _, ticket = self._pending.popleft()
            # Nobody will use the layer: what went wrong with it is of no interest.
            with _ignored():
                ticket.wait()

    @contextmanager
    def hold(self, layer: int) -> Iterator[Buffer]:
        """The buffer of the next layer, which must be `layer`, once it is full.

        On leaving it is refilled. Raises what went wrong with the read, and
        InvalidInput for a layer out of turn.
        """
        expected = self.layers[self._pending[0][0]] if self._pending else None
        if layer != expected:
            raise InvalidInput(
                f"layer {layer} is asked for where layer {expected} comes next: call "
                "the layers in order, or rewind the ring"
            )
        at, buffer, ticket = self._pending.popleft()
        ticket.wait()
        yield buffer
        self._refill(at + len(self.buffers), buffer)

    def _refill(self, at: int, buffer: Buffer) -> None:
        at %= len(self.layers)
        self._pending.append((at, buffer, self._fetch(self.layers[at], buffer)))


@contextmanager
def _ignored() -> Iterator[None]:
    try:
        yield
    except Exception:
        return
