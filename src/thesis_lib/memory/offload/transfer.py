"""A ring of buffers through which the layers of a model stream.

The ring handles numbers and tickets, not tensors: its owner defines a buffer, and how
to fetch a layer into it.
"""

import ctypes
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.memory.model.checkpoint import DTYPES, allocate
from thesis_lib.memory.offload.store import PendingRead, SafetensorsStore, Seconds

Buffer = TypeVar("Buffer")
_Filled = tuple[memoryview, Seconds]  # a buffer of host memory, and when it was filled


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
        fetch: Callable[[int, Buffer], PendingRead],
    ) -> None:
        require(
            len(buffers) > 0 or len(layers) == 0,
            f"no buffer for {len(layers)} layers: expected one at least",
        )
        self.layers, self.buffers, self._fetch = tuple(layers), tuple(buffers), fetch
        self._pending: deque[tuple[int, Buffer, PendingRead]] = deque()
        self.rewind()

    @property
    def at_start(self) -> bool:
        """Return whether the first layer is the next one."""
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
            # The layer will not be used, so its error does not matter.
            with suppress(Exception):
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


class StagingBuffer:
    """A buffer of one layer on a device; on the processor also as plain memory."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.memory: memoryview | None = None
        if device.type == "cpu":
            self.memory = allocate(nbytes)
            self.tensor = torch.frombuffer(self.memory, dtype=torch.uint8)
        else:
            self.tensor = torch.empty(nbytes, dtype=torch.uint8, device=device)


def views(store: SafetensorsStore, layer: int, memory: Tensor) -> dict[str, Tensor]:
    """The tensors of `layer` inside the bytes that it was read to, without a copy."""
    return {
        placed.name: memory[placed.start : placed.start + placed.nbytes]
        .view(DTYPES[placed.dtype])
        .view(placed.shape)
        for placed in store.placements(layer)
    }


def read_tensors(store: SafetensorsStore, layer: int) -> dict[str, Tensor]:
    """The tensors of `layer`, read now, in the order of its files."""
    buffer = allocate(store.nbytes(layer))
    store.read_layer(layer, buffer).wait()
    return views(store, layer, torch.frombuffer(buffer, dtype=torch.uint8))


class Device:
    """Copies concurrent with the arithmetic, and the events that order both.

    On the processor as its own device, where what was asked for is over when it returns
    and an event is nothing.
    """

    def mark(self) -> Any:
        """An event: everything that has been computed so far."""

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        """Copy once `after` has happened; the event of its end."""
        target.copy_(source)

    def follow(self, event: Any) -> None:
        """Let the arithmetic from now on come after `event`."""

    def finish(self, event: Any) -> None:
        """Return when `event` has happened."""

    def pin(self, memory: memoryview) -> None:
        """Let the device read `memory` without the help of the processor."""

    def unpin(self, memory: memoryview) -> None:
        """Undo `pin`."""


class Cuda(Device):
    """A graphics card: copies on a stream of their own, from page-locked memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def mark(self) -> Any:
        """An event on the stream that computes."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        """Enqueue a copy behind `after` on the copying stream."""
        event = torch.cuda.Event()
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            event.record(self._stream)
        return event

    def follow(self, event: Any) -> None:
        """Let the computing stream wait for `event`; the host goes on."""
        torch.cuda.current_stream(self._device).wait_event(event)

    def finish(self, event: Any) -> None:
        """Let the host wait for `event`."""
        event.synchronize()

    def pin(self, memory: memoryview) -> None:
        """Page-lock memory that exists, whole pages, with nothing rounded up.

        Raises InvalidInput where the driver rejects.
        """
        driver: Any = torch.cuda.cudart()
        code = driver.cudaHostRegister(_address(memory), len(memory), 0)
        if int(code) != 0:
            raise InvalidInput(
                f"the driver rejects to page-lock {len(memory)} bytes (CUDA error "
                f"{int(code)}): lower host_bytes, or raise the limit of locked memory"
            )

    def unpin(self, memory: memoryview) -> None:
        """Unlock the pages."""
        driver: Any = torch.cuda.cudart()
        driver.cudaHostUnregister(_address(memory))


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def find_device(device: torch.device | str) -> torch.device:
    """The device of a name, such as cpu or cuda:1. Raises InvalidInput without one."""
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = torch.device("meta")  # of no name that torch knows
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if resolved.type == "cpu" or (
        resolved.type == "cuda" and (resolved.index or 0) < here
    ):
        return resolved
    raise InvalidInput(
        f"device {device} is not available: expected cpu, or cuda on a machine with a "
        "CUDA device and a torch that was built for it"
    )


class ThroughHost:
    """Layers that host memory holds, and others that pass through it from the disk.

    `host` names the layers that are read once and stay in host memory; `host_buffers`
    buffers of `staging_bytes` are for the others.
    """

    def __init__(
        self,
        store: SafetensorsStore,
        device: Device,
        host: Sequence[int],
        host_buffers: int,
        staging_bytes: int,
    ) -> None:
        self._store, self._device = store, device
        self._memories: list[memoryview] = []
        self._reader = ThreadPoolExecutor(max(host_buffers, 1), "weights-read")
        self._copier = ThreadPoolExecutor(1, "weights-copy")
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        try:
            self._host = {layer: self._allocate(store.nbytes(layer)) for layer in host}
            for _ in range(host_buffers):
                self._free.put(self._allocate(staging_bytes))
            for ticket in [store.read_layer(i, m) for i, m in self._host.items()]:
                ticket.wait()
        except BaseException:
            self.close()
            raise

    def _allocate(self, nbytes: int) -> memoryview:
        memory = allocate(nbytes)
        self._device.pin(memory)
        self._memories.append(memory)
        return memory

    def fetch(self, layer: int, slot: StagingBuffer) -> PendingRead:
        """Start to bring `layer` into `slot`, by way of host memory if need be."""
        computed = self._device.mark()
        read = None if layer in self._host else self._reader.submit(self._read, layer)
        copied = self._copier.submit(self._copy, layer, read, slot, computed)

        def land() -> Seconds:
            event, span = copied.result()
            self._device.follow(event)
            return span

        return PendingRead(land)

    def _read(self, layer: int) -> _Filled:
        bounce = self._free.get()
        try:
            return bounce, self._store.read_layer(layer, bounce).wait()
        except BaseException:
            self._free.put(bounce)
            raise

    def _copy(
        self, layer: int, read: Future[_Filled] | None, slot: StagingBuffer, after: Any
    ) -> tuple[Any, Seconds]:
        memory, span = read.result() if read else (self._host[layer], None)
        nbytes = self._store.nbytes(layer)
        source = torch.frombuffer(memory, dtype=torch.uint8)[:nbytes]
        start = time.perf_counter()
        try:
            event = self._device.copy(slot.tensor[:nbytes], source, after)
            if span is not None:  # the buffer may be filled again afterwards
                self._device.finish(event)
        finally:
            if span is not None:
                self._free.put(memory)
        return event, (span[0] if span else start, time.perf_counter())

    def close(self) -> None:
        """Wait for what is in flight and give host memory back."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._copier.shutdown(wait=True, cancel_futures=True)
        while self._memories:
            self._device.unpin(self._memories.pop())
        self._host = {}
