"""Plan the place of each layer, the device's peak memory, and the time of a step.

A plan is rejected before anything is allocated. What the buffers and the cache hold is
arithmetic; what a step allocates on the way is rehearsed on tensors without memory.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Unpack

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.units import MiB, format_size
from thesis_lib.memory.model.shape import Shape, Step, read_step
from thesis_lib.memory.model.spec import Machine, ModelSpec
from thesis_lib.memory.offload.footprint import Footprint, geometry_footprint

RINGS = (3, 2, 1)  # staging buffers: with one, reading and computing take turns
HOST_BUFFERS = 2  # buffers of host memory on the way from the disk to another device
# Assumed, not measured rates: a solid-state disk on four lanes of PCIe 4, and two
# cores that decode. A plan that rests on them says so.
ASSUMED_DISK_BYTES_PER_S = 7e9
ASSUMED_DECODE_BYTES_PER_S = 10e9


class PlanInfeasible(InvalidInput):
    """Report that a model cannot run in this memory, and what would have to change.

    Example:
        >>> from thesis_lib.memory import Machine, PlanInfeasible, geometry, plan
        >>> try:
        ...     plan(geometry("llama-65b"), Machine(2**30, 3e9))
        ... except PlanInfeasible as error:
        ...     print(str(error).split("; ")[-1])
        give it 5897 MiB more
    """

    exit_code = 3  # the input is sound: other memory would do


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan(Shape):
    """Hold a placement of layers with its certified peak and predicted time.

    A step is one pass over all layers: at most `pass_tokens` new tokens in each of
    `batch` sequences, whose keys and values reach `context` positions. If the token
    tables do not fit, rows of the first are read on demand and the output head comes in
    `head_parts`, which count as layers.

    Example:
        >>> from thesis_lib.memory import Machine, geometry, plan
        >>> chosen = plan(geometry("llama-65b"), Machine(8 * 2**30, 3e9), kind="nf4")
        >>> chosen.device_peak_bytes <= 8 * 2**30, chosen.ring
        (True, 3)
    """

    spec: ModelSpec
    machine: Machine
    resident_layers: int  # on the device, read once
    host_layers: int  # in host memory, copied each step
    disk_layers: int  # read from disk each step
    ring: int  # staging buffers: one computing, the others being filled
    staging_bytes: int  # of one buffer
    non_layer_bytes: int  # embedding, final norm and head
    kv_bytes: int
    activation_bytes: int  # everything else that a step holds at its worst moment
    layer_read_bytes: int  # of one layer, as the disk delivers it
    kind: str = "dense"  # of the format of the layers
    host_buffers: int = 0  # buffers of host memory between disk and device
    scratch_bytes: int = 0  # what kernels take within an operator, and decoders
    layer_decoded_bytes: int | None = None  # of a coded layer in its buffer
    head_parts: int = 0  # of an output head that is not kept on the device
    part_read_bytes: int = 0  # of one of them, as the disk delivers it

    def __str__(self) -> str:
        """Return the choice and its reason, in one line."""
        at_most = (
            f"at most {format_size(self.device_peak_bytes)} of "
            f"{format_size(self.machine.device_bytes)}"
        )
        layers = f"{self.parts} layers"
        if self.head_parts:
            layers += f" ({self.head_parts} of them parts of the output head)"
        if not self.streamed_layers:
            return f"{self.spec.name}: all {layers} stay; {at_most}"
        moved = [
            f"{count} from the {tier}"
            for tier, count in (("host", self.host_layers), ("disk", self.disk_layers))
            if count
        ]
        buffers = f"{self.ring} staging buffers" if self.ring > 1 else "one buffer"
        return (
            f"{self.spec.name}: {self.resident_layers} of {layers} stay, as many as "
            f"fit beside {buffers}; {' and '.join(moved)} for each step; {at_most}"
        )

    @property
    def parts(self) -> int:
        """Decoder layers, and the parts of a split head behind them."""
        return self.spec.layers + self.head_parts

    @property
    def device_peak_bytes(self) -> int:
        """Return the peak memory of the device."""
        buffers = self.ring + self.resident_layers
        return (
            self.non_layer_bytes
            + buffers * self.staging_bytes
            + self.kv_bytes
            + self.activation_bytes
            + self.scratch_bytes
        )

    def least_device_bytes(self, ring: int) -> int:
        """Return the device's memory with no resident layer and so many buffers."""
        spared = self.ring + self.resident_layers - min(ring, self.parts)
        return self.device_peak_bytes - spared * self.staging_bytes

    @property
    def host_peak_bytes(self) -> int:
        """Return the host memory of its layers and of those in transit."""
        return (self.host_layers + self.host_buffers) * self.staging_bytes

    @property
    def streamed_layers(self) -> int:
        """Layers that move in each step."""
        return self.host_layers + self.disk_layers

    @property
    def bytes_per_step(self) -> int:
        """Bytes that move in a step, as the disk has them."""
        heads = sum(map(self.is_streamed, range(self.spec.layers, self.parts)))
        layers = self.streamed_layers - heads
        return layers * self.layer_read_bytes + heads * self.part_read_bytes

    @property
    def bytes_per_token(self) -> float:
        """Bytes that move for one generated token of one sequence."""
        return self.bytes_per_step / self.batch

    @property
    def decoded_bytes_per_step(self) -> int:
        """Bytes that reach the device in a step: a code is longer once decoded."""
        if self.layer_decoded_bytes is None:
            return self.bytes_per_step
        return self.streamed_layers * self.layer_decoded_bytes

    def transfer_s(self) -> float:
        """Seconds in which the streamed layers reach the device.

        Disk, decoder and link work at the same time; the slowest one is the bound.
        """
        read = self.disk_layers * self.bytes_per_step / max(self.streamed_layers, 1)
        disk = read / self.machine.disk_bytes_per_s
        link = self.decoded_bytes_per_step / self.machine.link_bytes_per_s
        return max(disk, link, self.decode_s())

    def decode_s(self) -> float:
        """Seconds in which the layers that come from the disk are decoded, if coded."""
        decoded = self.disk_layers * (self.layer_decoded_bytes or 0)
        return decoded / self.machine.decode_bytes_per_s

    def compute_s(self, tokens: int = 1) -> float:
        """Seconds of arithmetic in a step of `tokens` new tokens a sequence.

        Reading every weight once, and the matrix products on top: on a processor the
        two hardly overlap.
        """
        flops = self.batch * tokens * self.spec.flops_per_token()
        return (
            self.spec.total_bytes / self.machine.weight_bytes_per_s
            + flops / self.machine.flops_per_s
        )

    def step_s(self, tokens: int = 1) -> float:
        """Predicted seconds of a step in the steady state.

        With one staging buffer reading and computing take turns; with more they
        overlap and the slower one remains, and what the other one takes from it: of
        computing it is the pass over the weights that uses the memory's bandwidth.
        """
        reading, computing = self.transfer_s(), self.compute_s(tokens)
        if self.ring == 1:
            return reading + computing
        return max(
            reading + self.machine.drag * self.compute_s(0),
            computing + self.machine.theft * reading,
        )

    def step_interval_s(self) -> tuple[float, float]:
        """The interval of `step_s` that the spread of the machine's rates gives."""
        seconds, spread = self.step_s(), self.machine.spread
        return seconds * (1 - spread), seconds * (1 + spread)

    @property
    def predicted_s_per_token(self) -> float:
        """Predicted seconds for one generated token of one sequence."""
        return self.step_s() / self.batch

    @property
    def limit(self) -> Literal["link", "disk", "decode", "compute"]:
        """Return the resource that limits a step of one token for each sequence."""
        if self.compute_s() >= self.transfer_s():
            return "compute"
        over_link = self.decoded_bytes_per_step / self.machine.link_bytes_per_s
        if over_link >= self.transfer_s():
            return "link"
        return "decode" if self.decode_s() >= self.transfer_s() else "disk"

    def crossover_tokens(self, reading_s: float | None = None) -> float:
        """New tokens in a step, all sequences together, at which compute meets IO.

        For reads of `reading_s` seconds, by default those predicted. Zero where
        computing exceeds reading from the first token, and a million at most.
        """
        reading = self.transfer_s() if reading_s is None else reading_s
        reading *= 1 - self.machine.theft
        weights = self.spec.total_bytes / self.machine.weight_bytes_per_s
        rate = self.machine.flops_per_s / self.spec.flops_per_token()
        return min(max(0.0, (reading - weights) * rate), 1e6)

    def tier(self, layer: int) -> Literal["device", "host", "disk"]:
        """Return the tier of `layer`; streamed layers of two tiers alternate evenly."""
        if not self.is_streamed(layer):
            return "device"
        rank = sum(self.is_streamed(i) for i in range(layer))
        streamed, disk = self.streamed_layers, self.disk_layers
        on_disk = (rank + 1) * disk // streamed > rank * disk // streamed
        return "disk" if on_disk else "host"

    def is_streamed(self, layer: int) -> bool:
        """Return whether `layer` moves in each step.

        Resident layers are spread evenly, so that the reader never waits long for a
        free buffer.
        """
        layers, streamed = self.parts, self.streamed_layers
        return (layer + 1) * streamed // layers > layer * streamed // layers

    def summary(self) -> dict[str, Any]:
        """The plan under the names of the command's JSON."""
        return {
            "feasible": True,
            "model": self.spec.name,
            "model_bytes": self.spec.total_bytes,
            "device_bytes": self.machine.device_bytes,
            "device_peak_bytes": self.device_peak_bytes,
            "host_peak_bytes": self.host_peak_bytes,
            "bytes_per_token": self.bytes_per_token,
            "predicted_s_per_token": self.predicted_s_per_token,
            "predicted_s_interval": [s / self.batch for s in self.step_interval_s()],
            "limit": self.limit,
            "tiers": {
                "device": self.resident_layers,
                "host": self.host_layers,
                "disk": self.disk_layers,
            },
            "head_parts": self.head_parts,
            "ring": self.ring,
            "batch": self.batch,
            "context": self.context,
            "weights": self.kind,
            "parts_bytes": {
                "embedding and head": self.non_layer_bytes,
                "staging ring": self.ring * self.staging_bytes,
                "resident layers": self.resident_layers * self.staging_bytes,
                "keys and values": self.kv_bytes,
                "activations": self.activation_bytes + self.scratch_bytes,
            },
        }


def plan(
    spec: ModelSpec,
    machine: Machine,
    batch: int = 1,
    context: int | None = None,
    ring: int | None = 3,
    *,
    kind: str = "dense",
    layer_read_bytes: Sequence[int] | None = None,
    **step: Unpack[Step],
) -> MemoryPlan:
    """Place the layers of `spec` on `machine`, as many resident as fit.

    The device holds the embedding, the final norm, the head, the staging buffers, the
    cache and the activations of a step. Each layer that still fits is resident, the
    next ones are in host memory, and the rest is read from disk in each step.

    Args:
        spec: The geometry of the model.
        machine: Sizes and rates of the machine.
        batch: Sequences, beams included.
        context: Positions of a sequence; None for 512, or all that the model has.
        ring: Staging buffers; None for as many as fit, at most three.
        kind: Format of the weights.
        layer_read_bytes: Bytes read for a layer; None for its size.
        step: `pass_tokens` new tokens, `logit_tokens` whose logits are kept,
            `generating` if transformers' `generate` chooses them, `rollback` for passes
            that `speculate` verifies.

    Raises:
        PlanInfeasible: If the model does not fit, before anything is allocated.

    Example:
        >>> from thesis_lib.memory import Machine, geometry, plan
        >>> chosen = plan(geometry("llama-65b"), Machine(8 * 2**30, 3e9), kind="nf4")
        >>> chosen.resident_layers, chosen.disk_layers
        (11, 69)
    """

    def needed(shape: Shape) -> Footprint:
        footprint = geometry_footprint(spec, shape, kind)
        if layer_read_bytes is None:
            return footprint
        mean, most = sum(layer_read_bytes) / spec.layers, max(layer_read_bytes)
        return replace(footprint, read_bytes=math.ceil(mean), staging_bytes=most)

    require(
        layer_read_bytes is None or len(layer_read_bytes) == spec.layers,
        f"{len(layer_read_bytes or ())} read sizes for {spec.layers} layers",
    )
    return place(spec, machine, ring, read_step(spec, batch, context, step), needed)


def place(
    spec: ModelSpec,
    machine: Machine,
    ring: int | None,
    shape: Shape,
    needed: Callable[[Shape], Footprint],
    split: Callable[[Shape], Footprint] | None = None,
) -> MemoryPlan:
    """Plan as `plan` does, with `needed` for the memory of steps of a shape.

    `split` says it of a model without its tables of tokens, which is what is placed
    where the whole does not fit.
    """
    if ring is None:
        for ring in RINGS[:-1]:
            with suppress(PlanInfeasible):
                return place(spec, machine, ring, shape, needed, split)
        ring = RINGS[-1]
    require(ring > 0, f"ring={ring} must be positive")
    needs = needed(shape)
    buffers = min(ring, spec.layers) * needs.staging_bytes
    if split is not None and needs.fixed_bytes + buffers > machine.device_bytes:
        needed, needs = split, split(shape)
    staging, parts = needs.staging_bytes, spec.layers + needs.head_parts
    ring = min(ring, parts)
    spare = machine.device_bytes - needs.fixed_bytes
    if spare < ring * staging:
        raise _infeasible(spec, machine, needs, ring, shape, needed)
    resident = spare // staging - ring
    if spare >= parts * staging:
        resident, ring = parts, 0
    host, host_buffers = _host_layers(machine, parts - resident, staging)
    return MemoryPlan(
        **asdict(shape),
        spec=spec,
        machine=machine,
        resident_layers=resident,
        host_layers=host,
        disk_layers=parts - resident - host,
        ring=ring,
        staging_bytes=staging,
        non_layer_bytes=needs.outer_bytes,
        kv_bytes=needs.kv_bytes,
        activation_bytes=needs.activation_bytes,
        layer_read_bytes=needs.read_bytes,
        kind=needs.kind,
        host_buffers=host_buffers,
        scratch_bytes=needs.scratch_bytes,
        layer_decoded_bytes=needs.decoded_bytes,
        head_parts=needs.head_parts,
        part_read_bytes=needs.part_read_bytes,
    )


def _infeasible(
    spec: ModelSpec,
    machine: Machine,
    needs: Footprint,
    ring: int,
    shape: Shape,
    needed: Callable[[Shape], Footprint],
) -> PlanInfeasible:
    kv, buffers = needs.kv_bytes, ring * needs.staging_bytes
    short = buffers + needs.fixed_bytes - machine.device_bytes
    return PlanInfeasible(
        f"{spec.name} needs {format_size(machine.device_bytes + short)} of device "
        f"memory ({format_size(needs.outer_bytes)} embedding and head, {ring} staging "
        f"buffers of {format_size(needs.staging_bytes)}, {format_size(kv)} keys and "
        f"values, {format_size(needs.step_bytes - kv)} activations) but the device "
        f"offers {format_size(machine.device_bytes)}: short by {format_size(short)}; "
        + _remedy(short, ring, shape, needed)
    )


def _host_layers(machine: Machine, layers: int, staging: int) -> tuple[int, int]:
    """Return the layers that host memory holds, and its buffers for others."""
    if machine.host_bytes == 0:
        return 0, 0
    buffers = machine.host_bytes // staging
    if buffers >= layers:
        return layers, 0
    if buffers < HOST_BUFFERS:
        least = math.ceil(HOST_BUFFERS * staging / MiB)
        raise PlanInfeasible(
            f"host memory of {format_size(machine.host_bytes)} holds {buffers} layers "
            f"of {format_size(staging)}: expected {HOST_BUFFERS} buffers at least for "
            f"what comes from disk; give it {least} MiB, or "
            "none where the device is the processor"
        )
    return buffers - HOST_BUFFERS, HOST_BUFFERS


def least_device_bytes(spec: ModelSpec, ring: int = 3, **options: Any) -> int:
    """The smallest device on which `plan` with these options is feasible."""
    boundless = Machine(device_bytes=2**63, disk_bytes_per_s=1)
    return plan(spec, boundless, ring=ring, **options).least_device_bytes(ring)


def _remedy(
    short: int, ring: int, shape: Shape, needed: Callable[[Shape], Footprint]
) -> str:
    """The smallest single changes that would make the plan feasible."""
    needs = needed(shape)
    ways = [f"give it {math.ceil(short / MiB)} MiB more"]
    buffers = math.ceil(short / needs.staging_bytes)
    if buffers < ring:
        ways.append(f"use a ring of {ring - buffers} instead of {ring}")
    for field, least, way in (
        ("context", shape.pass_tokens, "shorten the context from {} to {} positions"),
        ("batch", 1, "lower the batch from {} to {}"),
        ("pass_tokens", 1, "lower the tokens of a pass from {} to {}"),
    ):

        def step_bytes(n: int, field: str = field) -> int:
            smaller: dict[str, Any] = {"logit_tokens": shape.logit_tokens, field: n}
            if field == "pass_tokens":
                smaller["logit_tokens"] = min(n, shape.logit_tokens)
            return needed(replace(shape, **smaller)).step_bytes

        most, allowed = getattr(shape, field), needs.step_bytes - short
        if fitting := bisect_right(range(least, most), allowed, key=step_bytes):
            ways.append(way.format(most, least + fitting - 1))
    return ", or ".join(ways)
