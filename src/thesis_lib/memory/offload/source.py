"""The weights of a checkpoint, a layer at a time, in the buffers of a plan."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.model.checkpoint import NON_LAYER, allocate
from thesis_lib.memory.offload.measure import DeviceBudget, Span
from thesis_lib.memory.offload.plan import MemoryPlan
from thesis_lib.memory.offload.store import PendingRead, SafetensorsStore, Seconds
from thesis_lib.memory.offload.transfer import (
    Cuda,
    Device,
    Ring,
    StagingBuffer,
    ThroughHost,
    views,
)

Weights = dict[str, Tensor]  # of a layer, by the names of its parameters


class StoredLayers:
    """Layers of a store, which stay on the device or pass through a ring of buffers.

    `layer` is the only way to their weights. `names` has the names of the parameters of
    each layer by those in the files. Reads what stays, starts to fill the ring, and
    closes the store with itself. `stall_s` is the time that computing has waited for
    reading.
    """

    def __init__(
        self,
        store: SafetensorsStore,
        plan: MemoryPlan,
        device: torch.device,
        names: Mapping[int, Mapping[str, str]],
    ) -> None:
        self.store, self.plan, self.device = store, plan, device
        self.stall_s = 0.0
        self._names = names
        self._still = False  # whether steps compute without reading
        self._spans: list[Span] | None = None
        self._views: dict[tuple[int, int], Weights] = {}
        self.host: ThroughHost | None = None  # on the way to another device
        self.ring: Ring[StagingBuffer] | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        store, plan = self.store, self.plan
        copier = Device() if self.device.type == "cpu" else Cuda(self.device)
        tiers = {i: plan.tier(i) for i in range(plan.parts)}
        if plan.host_layers + plan.host_buffers:
            host = [i for i, tier in tiers.items() if tier == "host"]
            sizes = plan.host_buffers, plan.staging_bytes
            self.host = ThroughHost(store, copier, host, *sizes)
        outer = StagingBuffer(store.nbytes(NON_LAYER), self.device)
        self.resident = {
            layer: StagingBuffer(store.nbytes(layer), self.device)
            for layer, tier in tiers.items()
            if tier == "device"
        }
        buffers = [
            StagingBuffer(plan.staging_bytes, self.device) for _ in range(plan.ring)
        ]
        self._slots = [outer, *self.resident.values(), *buffers]
        reads = [
            _read_into(store, copier, layer, slot)
            for layer, slot in {NON_LAYER: outer, **self.resident}.items()
        ]
        for read in reads:
            read.wait()
        self.outer = views(store, NON_LAYER, outer.tensor)
        streamed = [i for i, tier in tiers.items() if tier != "device"]
        self.ring = Ring(streamed, buffers, self._fetch)

    def close(self) -> None:
        """Wait for reads in flight, close the files and give the memory back."""
        if self.ring is not None:
            self.ring.settle()
        if self.host is not None:
            self.host.close()
        self.store.close()
        self.ring = self.host = None

    def _turning(self) -> Ring[StagingBuffer]:
        if self.ring is None:
            raise InvalidInput("the layers are closed: open the model again")
        return self.ring

    @contextmanager
    def layer(self, number: int) -> Iterator[Weights]:
        """Hold the weights of a layer, or of a part of the head, in its turn.

        A buffer is refilled as soon as its layer is done. An interrupted pass leaves
        the ring between two layers; the next one starts it anew. Raises StoreDamaged
        for a file that is not what it was, and InvalidInput for a layer out of turn.
        """
        with self._buffer(number) as slot:
            start = time.perf_counter()
            yield self._weights(number, slot)
            if self._spans is not None:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                self._note("compute", number, start, time.perf_counter())

    def _buffer(self, number: int) -> AbstractContextManager[StagingBuffer]:
        ring = self._turning()
        if number == 0 and not ring.at_start and not self._still:
            ring.rewind()
        if number in self.resident:
            return nullcontext(self.resident[number])
        if self._still:
            return nullcontext(ring.buffers[number % self.plan.ring])
        return ring.hold(number)

    def _weights(self, number: int, slot: StagingBuffer) -> Weights:
        key = number, id(slot)
        if key not in self._views:
            names = self._names[number]
            self._views[key] = {
                names[name]: view
                for name, view in views(self.store, number, slot.tensor).items()
                if name in names
            }
        return self._views[key]

    def _fetch(self, number: int, slot: StagingBuffer) -> PendingRead:
        if self.host is not None:
            read = self.host.fetch(number, slot)
        else:
            assert slot.memory is not None  # a plan without host memory is for the CPU
            read = self.store.read_layer(number, slot.memory)
        return PendingRead(partial(self._await, read, number))

    def _await(self, read: PendingRead, number: int) -> Seconds:
        start = time.perf_counter()
        span = read.wait()
        end = time.perf_counter()
        self.stall_s += end - start
        self._note("read", number, *span)
        self._note("wait", number, start, end)
        return span

    def _note(self, kind: Any, number: int, start_s: float, end_s: float) -> None:
        if self._spans is not None:
            self._spans.append(Span(kind, number, start_s, end_s))

    def rows(self, numbers: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Read rows of the token table, (n, hidden), of a head that is split."""
        rows = torch.empty((len(numbers), self.plan.spec.hidden), dtype=dtype)
        self.store.read_rows(numbers, rows.view(torch.uint8).numpy().data)
        return rows.to(self.device)

    def drain(self) -> None:
        """Do the reads of one step through the same ring, without computing."""
        ring = self._turning()
        if not ring.at_start:
            ring.rewind()
        for number in ring.layers:
            with ring.hold(number):
                continue

    @contextmanager
    def without_reading(self) -> Iterator[None]:
        """Let `layer` give what the buffers happen to hold, with no read in flight."""
        self._turning().settle()
        self._still = True
        try:
            yield
        finally:
            self._still = False

    @contextmanager
    def timeline(self) -> Iterator[list[Span]]:
        """A list that fills with what is read, computed and waited for meanwhile."""
        spans: list[Span] = []
        self._spans = spans
        try:
            yield spans
        finally:
            self._spans = None

    def charge(self, budget: DeviceBudget) -> None:
        """Count the buffers, which were allocated before the meter could see them."""
        budget.charge(*(slot.tensor for slot in self._slots))
        budget.charge(*map(torch.from_numpy, self.store.scratch.buffers))


def _read_into(
    store: SafetensorsStore, copier: Device, layer: int, slot: StagingBuffer
) -> PendingRead:
    """Start to read what will stay on the device."""
    if slot.memory is not None:
        return store.read_layer(layer, slot.memory)
    memory = allocate(store.nbytes(layer))
    read = store.read_layer(layer, memory)
    read.wait()
    source = torch.frombuffer(memory, dtype=torch.uint8)
    copier.finish(copier.copy(slot.tensor, source, copier.mark()))
    return read
