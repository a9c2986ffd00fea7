"""Passes that may verify several tokens, how many are worth it, and their memory."""

import hashlib
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.provenance import seconds_of
from thesis_lib.common.stats import LEVEL
from thesis_lib.common.units import format_size
from thesis_lib.memory.model.batch_invariant import BatchInvariant
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.measure import compute_rates
from thesis_lib.memory.offload.offloaded_model import StreamedModel, plan_checkpoint
from thesis_lib.memory.offload.plan import MemoryPlan

SIZES = (2, 4, 8, 16)  # tokens of a pass that verifies, tried in this order


@dataclass(frozen=True, slots=True)
class Verifier:
    """Which passes of a model may verify, and how long each takes.

    `sizes` are the numbers of tokens, 1 among them, whose passes leave the bits of as
    many passes of one: logits, keys and values. `plan` is the model's with the rates
    that `calibrate` measured.
    """

    rows: BatchInvariant
    sizes: tuple[int, ...]
    plan: MemoryPlan

    @property
    def fallbacks(self) -> int:
        """Shapes of linear layers, by size of a pass, that verify a token at a time."""
        return sum(self.rows.mixing.values())

    @property
    def depths(self) -> tuple[int, ...]:
        """Proposals that a pass can verify."""
        return tuple(size - 1 for size in self.sizes)


def calibrate(model: StreamedModel) -> Verifier:
    """Compare passes of `SIZES` random tokens with as many passes of one.

    The verifier has the sizes that the plan covers and whose bits are equal. Which
    kernel runs depends on shapes alone: the weights are those that the buffers hold,
    read anew only where they give no finite numbers. The plan of the model must have a
    `rollback`. Raises InvalidInput for a model whose logits are not finite.
    """
    plan = model.plan
    largest = min(plan.logit_tokens, plan.pass_tokens, plan.context - 1)
    sizes = [size for size in SIZES if size <= largest]
    drain_s = seconds_of(model.drain)
    tried = None
    with suppress(InvalidInput), model.without_reading():
        tried = _try_sizes(model, sizes)
    # Not in an except block, whose error would keep what the first try held.
    rows, seconds, exact = tried or _try_sizes(model, sizes)
    return Verifier(rows, exact, _with_rates(plan, drain_s, seconds))


def _try_sizes(
    model: StreamedModel, sizes: Sequence[int]
) -> tuple[BatchInvariant, dict[int, float], tuple[int, ...]]:
    """Seconds of a pass by its size, 1 included, and the sizes with the bits of 1."""
    rows = BatchInvariant(model.model)
    single, single_s = _fingerprints(model, max(sizes, default=1), 1)
    seconds, exact = {1: single_s}, [1]
    for size in sizes:
        _fingerprints(model, size, size, rows)  # tries its linear layers
        together, seconds[size] = _fingerprints(model, size, size, rows)
        if together == single[:size]:
            exact.append(size)
    return rows, seconds, tuple(exact)


def _fingerprints(
    model: StreamedModel, tokens: int, size: int, rows: BatchInvariant | None = None
) -> tuple[list[bytes], float]:
    """Hash each token's logits, keys and values; time the last pass in seconds."""
    draw = torch.Generator().manual_seed(0)
    row = torch.randint(0, model.spec.vocab, (1, tokens + 1), generator=draw)
    row = row.to(model.device)
    cache, hashes, seconds = model.new_cache(), [], math.inf
    cache.activate_past_recording()
    model.step(row[:, :1], cache, keep=1)
    for part in row[:, 1:].split(size, dim=1):
        start, stalled_s = time.perf_counter(), model.stall_s
        with rows.passing() if rows else nullcontext():
            logits = model.step(part, cache, keep=size)
        seconds = time.perf_counter() - start - (model.stall_s - stalled_s)
        require(
            all(math.isfinite(end) for one in logits[0] for end in torch.aminmax(one)),
            f"{model.folder} has logits that are not finite: look for NaN in its files",
        )
        hashes += [hashlib.blake2b(_bytes(one)) for one in logits[0]]
        del logits  # or they would be held beside the next ones
    layers: Any = cache.layers
    for layer in layers:
        for values in (layer.keys, layer.values):
            for i, each in enumerate(hashes):
                each.update(_bytes(values[:, :, i - len(hashes)]))
    return [each.digest() for each in hashes], seconds


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes()


def _with_rates(
    plan: MemoryPlan, drain_s: float, seconds: dict[int, float]
) -> MemoryPlan:
    """The plan on a machine with the rates that were measured for it."""
    machine = plan.machine
    if plan.streamed_layers:
        disk_bytes = plan.disk_layers * plan.layer_read_bytes
        machine = replace(
            machine,
            disk_bytes_per_s=max(disk_bytes, 1) / drain_s,
            link_bytes_per_s=plan.bytes_per_step / drain_s,
        )
    if len(seconds) > 1:
        weights, flops = compute_rates(plan.spec, [*seconds], [*seconds.values()])
        machine = replace(machine, weight_bytes_per_s=weights, flops_per_s=flops)
    return replace(plan, machine=machine)


def expected_tokens(acceptance: float, depth: int) -> float:
    """Tokens that a pass over `depth` proposals is expected to bring.

    Where each is accepted with probability `acceptance`, independently, as long as all
    before it were: (1 - a^(k + 1)) / (1 - a). Leviathan, Kalman and Matias (2023),
    equation 1.
    """
    return sum(acceptance**i for i in range(depth + 1))


def choose_depth(
    acceptance: float,
    step_s: Callable[[int], float],
    depths: Collection[int],
    draft_s: float = 0.0,
) -> int:
    """The number of proposals with the most expected tokens a second.

    `step_s` gives the seconds of a pass of that many tokens, `draft_s` those of one
    proposal. No proposal is always among the choices; of equals the smallest is taken.
    """

    def rate(depth: int) -> float:
        seconds = step_s(depth + 1) + depth * draft_s
        return expected_tokens(acceptance, depth) / seconds

    return max(sorted({0, *depths}), key=rate)


def acceptance_interval(accepted: int, judged: int) -> tuple[float, float]:
    """Return Wilson's interval of the acceptance probability, (0, 1) without data.

    `judged` counts accepted proposals and the first rejected one of each pass; later
    ones were not verified. Wilson, JASA 22(158), 1927.
    """
    if judged == 0:
        return 0.0, 1.0
    interval = binomtest(accepted, judged).proportion_ci(LEVEL, "wilson")
    return float(interval.low), float(interval.high)


def plan_speculation(
    folder: Path | str,
    machine: Machine,
    prompt_tokens: int,
    max_new_tokens: int,
    ring: int = 3,
    draft: MemoryPlan | None = None,
) -> MemoryPlan:
    """The plan of a checkpoint that verifies proposals after a prompt.

    The prompt goes in one pass, and a pass that verifies is one of the largest of
    `SIZES` that is of use and fits: without memory for two tokens it verifies none. A
    resident `draft` lives on the same device: its peak comes off the memory first.
    Raises PlanInfeasible, and InvalidInput where the draft alone is too large.
    """
    held = draft.device_peak_bytes if draft else 0
    require(
        held < machine.device_bytes,
        f"the draft holds {format_size(held)} of {format_size(machine.device_bytes)}: "
        "expected room for the model beside it; take a smaller draft or more memory",
    )

    def planned(device_bytes: int, verified: int) -> MemoryPlan:
        return plan_checkpoint(
            folder,
            replace(machine, device_bytes=device_bytes),
            context=prompt_tokens + max_new_tokens,
            ring=ring,
            pass_tokens=max(prompt_tokens, verified),
            logit_tokens=verified,
            rollback=verified,
        )

    left = machine.device_bytes - held
    for verified in sorted(SIZES, reverse=True):
        if verified > max_new_tokens:
            continue
        if planned(2**62, verified).least_device_bytes(ring) <= left:
            return planned(left, verified)
    return planned(left, 1)
