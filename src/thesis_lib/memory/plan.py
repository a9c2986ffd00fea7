"""Where each layer lives, what the device holds at most, and how long a step takes.

A plan is arithmetic: it is refused before anything is allocated, and what it promises
is an upper bound that the meter of `measure` checks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from thesis_lib.checks import InvalidInput, require
from thesis_lib.memory.spec import Machine, ModelSpec
from thesis_lib.units import MiB

Limit = Literal["link", "disk", "compute"]

_BLOCK_BYTES = 4096  # staging buffers hold whole blocks of the disk


class PlanInfeasible(InvalidInput):
    """The model cannot run in this memory, and what would have to change."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A placement of the layers with a certified peak and a predicted time.

    A step is one pass over all layers: `pass_tokens` new tokens in each of `batch`
    sequences at most, whose keys and values reach `context` at the end.
    """

    spec: ModelSpec
    machine: Machine
    batch: int
    context: int  # most positions in the cache of one sequence
    pass_tokens: int  # most new tokens of one sequence in a step
    logit_tokens: int  # most positions of one sequence whose logits are kept
    resident_layers: int  # on the device, read once
    host_layers: int  # in host memory, copied each step
    disk_layers: int  # read from disk each step
    ring: int  # staging buffers: one computing, the others being filled
    staging_bytes: int  # of one buffer
    outer_bytes: int  # embedding, final norm and head
    kv_bytes: int
    activation_bytes: int  # upper bound of everything a step allocates
    layer_read_bytes: int  # of one layer, as the disk delivers it

    @property
    def device_peak_bytes(self) -> int:
        """What the device holds at most."""
        buffers = self.ring + self.resident_layers
        return (
            self.outer_bytes
            + buffers * self.staging_bytes
            + self.kv_bytes
            + self.activation_bytes
        )

    @property
    def host_peak_bytes(self) -> int:
        """Weights that host memory holds for the device."""
        return self.host_layers * self.staging_bytes

    @property
    def streamed_layers(self) -> int:
        """Layers that move in each step."""
        return self.host_layers + self.disk_layers

    @property
    def bytes_per_step(self) -> int:
        """Bytes that reach the device in a step."""
        return self.streamed_layers * self.layer_read_bytes

    @property
    def bytes_per_token(self) -> float:
        """Bytes that reach the device for one generated token of one sequence."""
        return self.bytes_per_step / self.batch

    def transfer_s(self) -> float:
        """Seconds in which the streamed layers reach the device.

        Disk and link work at the same time; the slower one is the bound.
        """
        disk = self.disk_layers * self.layer_read_bytes / self.machine.disk_bytes_per_s
        return max(disk, self.bytes_per_step / self.machine.link_bytes_per_s)

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
        overlap and the slower one remains.
        """
        if self.ring == 1:
            return self.transfer_s() + self.compute_s(tokens)
        return max(self.transfer_s(), self.compute_s(tokens))

    @property
    def predicted_s_per_token(self) -> float:
        """Predicted seconds for one generated token of one sequence."""
        return self.step_s() / self.batch

    @property
    def limit(self) -> Limit:
        """What bounds a step of one token a sequence."""
        if self.compute_s() >= self.transfer_s():
            return "compute"
        over_link = self.bytes_per_step / self.machine.link_bytes_per_s
        return "link" if over_link >= self.transfer_s() else "disk"

    def crossover_tokens(self) -> float:
        """New tokens in a step, all sequences together, at which compute meets IO.

        Zero where computing exceeds reading from the first token.
        """
        reading = self.transfer_s()
        weights = self.spec.total_bytes / self.machine.weight_bytes_per_s
        rate = self.machine.flops_per_s / self.spec.flops_per_token()
        return max(0.0, (reading - weights) * rate)

    def is_streamed(self, layer: int) -> bool:
        """Whether `layer` moves in each step.

        Resident layers are spread evenly, so that the reader never waits long for a
        free buffer.
        """
        layers, streamed = self.spec.layers, self.streamed_layers
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
            "limit": self.limit,
            "tiers": {
                "device": self.resident_layers,
                "host": self.host_layers,
                "disk": self.disk_layers,
            },
            "ring": self.ring,
            "batch": self.batch,
            "context": self.context,
            "parts_bytes": {
                "embedding and head": self.outer_bytes,
                "staging ring": self.ring * self.staging_bytes,
                "resident layers": self.resident_layers * self.staging_bytes,
                "keys and values": self.kv_bytes,
                "activations": self.activation_bytes,
            },
        }


def activation_bound(
    spec: ModelSpec, batch: int, pass_tokens: int, context: int, logit_tokens: int
) -> int:
    """Bytes that a step allocates at most beside weights and cache.

    Follows the tensors that are alive together in each part of a LLaMA layer. Scratch
    memory inside kernels is not a tensor and not counted.
    """
    rows = batch * pass_tokens
    item = spec.dtype_bytes
    hidden = rows * spec.hidden
    query = rows * spec.heads * spec.head_dim
    key = rows * spec.kv_heads * spec.head_dim
    # Alive throughout: tokens, positions, rotary tables (with their float32 making),
    # the causal mask (with the comparisons that it is made from).
    always = 8 * rows + 8 * pass_tokens + rows * spec.head_dim * (2 * item)
    always += 16 * batch * context  # generated tokens
    always += rows * context
    making = rows * spec.head_dim * 4 * 4 + 3 * rows * context + 16 * (rows + context)
    # The residual, and float32 copies of it.
    norm = 2 * hidden * item + 2 * hidden * 4 + rows * 8
    # The residual, its norm, query, key, value; then one of: the rotation of the
    # query, the cache's copy of one layer, keys and values repeated for each head
    # with the mask in the weights' type, the output in two layouts.
    projected = (2 * hidden + query + 2 * key) * item
    rotation = (4 * query + key) * item
    copies = batch * context * spec.kv_heads * spec.head_dim * item
    repeated = 2 * batch * context * spec.heads * spec.head_dim * item
    scores = rows * context * item * 2 + rows * spec.heads * 4
    attention = projected + max(
        rotation, query * item + 2 * copies + repeated + scores + 3 * query * item
    )
    # The residual, its norm, and three vectors of the feed-forward block.
    feed_forward = (3 * hidden + 3 * rows * spec.intermediate) * item
    logits = batch * logit_tokens * spec.vocab * item + 2 * hidden * item
    return always + max(making + hidden * item, norm, attention, feed_forward, logits)


def plan(
    spec: ModelSpec,
    machine: Machine,
    batch: int = 1,
    context: int = 512,
    ring: int = 3,
    pass_tokens: int = 1,
    logit_tokens: int | None = None,
    layer_read_bytes: Sequence[int] | None = None,
    outer_read_bytes: int | None = None,
) -> MemoryPlan:
    """Place the layers of `spec` on `machine`: as many resident as fit.

    The embedding, the final norm and the head stay on the device, then come `ring`
    staging buffers, the cache of `batch` sequences of `context` positions and the
    activations of a step; every layer that still fits is resident, the next ones live
    in host memory, the rest is read from disk each step. A store knows the exact
    sizes of its reads: give them as `layer_read_bytes` (one per layer) and
    `outer_read_bytes`. Raises PlanInfeasible before anything is allocated.
    """
    require(batch > 0 and ring > 0, f"batch={batch} and ring={ring} must be positive")
    require(
        0 < pass_tokens <= context,
        f"pass_tokens={pass_tokens} must lie in 1 to context={context}",
    )
    logit_tokens = pass_tokens if logit_tokens is None else logit_tokens
    require(
        0 < logit_tokens <= pass_tokens,
        f"logit_tokens={logit_tokens} must lie in 1 to pass_tokens={pass_tokens}",
    )
    if layer_read_bytes is None:
        read = _blocks(spec.layer_bytes)
        staging = read + _BLOCK_BYTES  # a layer may straddle one block more
    else:
        require(
            len(layer_read_bytes) == spec.layers,
            f"{len(layer_read_bytes)} read sizes for {spec.layers} layers",
        )
        read = math.ceil(sum(layer_read_bytes) / spec.layers)
        staging = max(layer_read_bytes)
    if outer_read_bytes is None:
        outer_read_bytes = _blocks(spec.embedding_bytes + spec.head_bytes)
        outer_read_bytes += 3 * _BLOCK_BYTES
    rotary_bytes = 2 * spec.head_dim * 4  # frequencies, kept twice
    outer = outer_read_bytes + rotary_bytes
    kv = spec.kv_bytes(batch, context)
    activation = activation_bound(spec, batch, pass_tokens, context, logit_tokens)
    fixed = outer + kv + activation
    spare = machine.device_bytes - fixed
    if spare >= spec.layers * staging:
        resident, ring = spec.layers, 0
    else:
        short = ring * staging - spare
        if short > 0:
            raise PlanInfeasible(
                f"{spec.name} needs {(fixed + ring * staging) / MiB:.1f} MiB of device "
                f"memory ({outer / MiB:.1f} embedding and head, {ring} staging buffers "
                f"of {staging / MiB:.1f}, {kv / MiB:.1f} keys and values, "
                f"{activation / MiB:.1f} activations) but the device offers "
                f"{machine.device_bytes / MiB:.1f} MiB: short by "
                f"{short / MiB:.1f} MiB; "
                + _remedy(spec, batch, context, ring, staging, kv, activation, short)
            )
        resident = (spare - ring * staging) // staging
    host = min(spec.layers - resident, machine.host_bytes // staging)
    return MemoryPlan(
        spec=spec,
        machine=machine,
        batch=batch,
        context=context,
        pass_tokens=pass_tokens,
        logit_tokens=logit_tokens,
        resident_layers=resident,
        host_layers=host,
        disk_layers=spec.layers - resident - host,
        ring=ring,
        staging_bytes=staging,
        outer_bytes=outer,
        kv_bytes=kv,
        activation_bytes=activation,
        layer_read_bytes=read,
    )


def least_device_bytes(spec: ModelSpec, ring: int = 3, **options: Any) -> int:
    """The smallest device on which `plan` with these options is feasible."""
    boundless = Machine(device_bytes=2**63, disk_bytes_per_s=1)
    ample = plan(spec, boundless, ring=ring, **options)
    buffers = min(ring, spec.layers)
    return ample.device_peak_bytes - (spec.layers - buffers) * ample.staging_bytes


def _blocks(n_bytes: int) -> int:
    return -(-n_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _remedy(
    spec: ModelSpec,
    batch: int,
    context: int,
    ring: int,
    staging: int,
    kv: int,
    activation: int,
    short: int,
) -> str:
    """The smallest single changes that would make the plan feasible."""
    ways = [f"give it {math.ceil(short / MiB)} MiB more"]
    buffers = math.ceil(short / staging)
    if buffers < ring:
        ways.append(f"use a ring of {ring - buffers} instead of {ring}")
    if short < kv and short <= (kv // context) * (context - 1):
        shorter = context - math.ceil(short / (kv / context))
        ways.append(f"shorten the context from {context} to about {shorter} positions")
    if batch > 1 and short < (kv + activation) * (batch - 1) // batch:
        smaller = batch - math.ceil(short * batch / (kv + activation))
        ways.append(f"lower the batch from {batch} to {smaller}")
    return ", or ".join(ways)
