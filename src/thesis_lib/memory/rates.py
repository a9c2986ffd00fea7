"""What a machine does with one checkpoint, and the time that a plan may promise on it.

Three rates are measured apart, none of them in the run that is predicted: how fast
the layers arrive, how fast they compute while nothing is read, and what reading takes
from the processor.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thesis_lib.checks import require
from thesis_lib.machine import measurement
from thesis_lib.memory.coded import decoder_bytes_per_s
from thesis_lib.memory.measure import compute_rates
from thesis_lib.memory.plan import MemoryPlan, plan
from thesis_lib.memory.prices import read_quantities
from thesis_lib.memory.published import read_cards
from thesis_lib.memory.spec import Machine, ModelSpec, geometries, geometry
from thesis_lib.memory.store import SafetensorsStore
from thesis_lib.memory.stream import (
    ASSUMED_DECODE_BYTES_PER_S,
    ASSUMED_DISK_BYTES_PER_S,
    StreamedModel,
    checkpoint_folder,
    plan_checkpoint,
)

ASSUMED_CARD = "GeForce RTX 3090"  # whose data sheet bounds the computing of a geometry
_NEARLY = 0.9  # of the time of reads through a decoder: who takes it is their limit


@measurement
def measure_machine(
    folder: Path | str,
    tokens: Sequence[int] = (1, 16, 64, 256),
    rounds: int = 5,
    ring: int = 3,
    seed: int = 0,
) -> Machine:
    """The rates of this machine for one checkpoint, with no layer resident.

    Steps of each number of `tokens` take turns with the same reads alone, `rounds`
    times, each after one of its kind, which leaves the ring as full as the next one
    will find it; none is longer than the positions that the model was made for. What
    the two take from each other comes from whole steps: `drag` from how much longer
    the shortest takes than the reads right before it, where it reads longer than it
    passes over the weights, `theft` from how much longer the longest computes than
    without reading beside it. `spread` is half the range of the middle half of the
    drains, over their median: how far this disk agrees with itself.

    The ring is shorter than the model, or nothing would move. Raises InvalidInput for a
    model of one layer.
    """
    longest = ModelSpec.from_config(Path(folder)).most_positions
    if longest:
        tokens = [n for n in tokens if n <= longest]
    shortest, longest = min(tokens), max(tokens)
    tight = plan_streamed(folder, 1, longest, longest, _moving(folder, ring))
    draw = torch.Generator().manual_seed(seed)
    reading: list[float] = []
    computing: dict[int, list[float]] = {n: [] for n in tokens}
    longer: dict[int, list[float]] = {shortest: [], longest: []}  # than its reads
    within: dict[int, list[float]] = {shortest: [], longest: []}  # computing, in a step
    with StreamedModel(folder, tight) as model:
        rows = {
            n: torch.randint(0, model.spec.vocab, (1, n), generator=draw)
            for n in tokens
        }

        def step(n: int) -> None:
            model.step(rows[n], model.new_cache(), keep=1)

        step(longest)
        for _ in range(rounds):
            for n in tokens:
                with model.without_reading():
                    step(n)  # whatever the change of tokens has cost, once
                    computing[n].append(_seconds(lambda n=n: step(n)))
            for n in (shortest, longest):
                model.drain()
                reading.append(_seconds(model.drain))
                step(n)
                stalled = model.stall_s
                taken = _seconds(lambda n=n: step(n))
                longer[n].append(taken - reading[-1])
                within[n].append(taken - (model.stall_s - stalled))
    reading_s = float(np.median(reading))
    medians = {n: float(np.median(samples)) for n, samples in computing.items()}
    weight_rate, flops = compute_rates(tight.spec, list(medians), [*medians.values()])
    weights_s = tight.spec.total_bytes / weight_rate
    drag = 0.0
    if reading_s > weights_s > 0:
        drag = float(np.median(longer[shortest])) / weights_s
    within_s = float(np.median(within[longest]))
    theft = (within_s - medians[longest]) / min(within_s, reading_s)
    low, high = np.quantile(reading, (0.25, 0.75))
    return Machine(
        device_bytes=tight.machine.device_bytes,
        disk_bytes_per_s=tight.bytes_per_step / reading_s,
        weight_bytes_per_s=weight_rate,
        flops_per_s=flops,
        theft=float(np.clip(theft, 0, 0.9)),
        drag=float(np.clip(drag, 0, 0.9)),
        spread=min(float(high - low) / 2 / reading_s, 0.9),
    )


@measurement
def drain_bytes_per_s(folder: Path | str, drains: int = 5, ring: int = 3) -> float:
    """The median rate at which a ring of buffers is filled with layers, bytes a second.

    Nothing is computed, every layer is streamed, and one drain before warms up. Raises
    InvalidInput for a model of one layer.
    """
    tight = plan_streamed(folder, 1, 1, 1, _moving(folder, ring))
    with StreamedModel(folder, tight) as model:
        model.drain()
        seconds = [_seconds(model.drain) for _ in range(drains)]
    return tight.bytes_per_step / float(np.median(seconds))


def _moving(folder: Path | str, ring: int) -> int:
    """The staging buffers, of `ring` at most, that leave layers to be streamed."""
    layers = ModelSpec.from_config(Path(folder)).layers
    require(
        layers > 1,
        f"{folder} has {layers} layer, which stays in its buffer: nothing is streamed "
        "that could be timed; give the rates as a machine",
    )
    return min(ring, layers - 1)


def with_decoder(machine: Machine, folder: Path | str) -> Machine:
    """A measured machine that knows how fast it decodes a lossless checkpoint.

    Its reads went through the decoder: where that alone takes nearly as long as they
    did, it was what they waited for, and is given their rate.
    """
    with SafetensorsStore(folder) as store:
        ratio = store.read_bytes(0) / store.tensor_bytes(0)
    through = machine.disk_bytes_per_s / ratio
    alone = decoder_bytes_per_s(folder)
    waited = alone < through / _NEARLY
    return replace(machine, decode_bytes_per_s=through if waited else alone)


def plan_streamed(
    folder: Path | str,
    batch: int,
    context: int,
    pass_tokens: int,
    ring: int,
    logit_tokens: int = 1,
) -> MemoryPlan:
    """The plan of a checkpoint on the smallest device: every layer is streamed.

    Of its machine only the memory is known.
    """
    options: dict[str, Any] = {
        "batch": batch,
        "context": context,
        "pass_tokens": pass_tokens,
        "logit_tokens": logit_tokens,
        "ring": ring,
    }
    ample = plan_checkpoint(folder, Machine(2**62, 1.0), **options)
    least = Machine(ample.least_device_bytes(ring), 1.0)
    return plan_checkpoint(folder, least, **options)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def describe_plan(
    model: str,
    device_bytes: int,
    host_bytes: int = 0,
    batch: int = 1,
    context: int = 512,
    ring: int = 3,
    pass_tokens: int = 1,
    kind: str | None = None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """The plan for a folder, `smollm2` or a known geometry, as the command prints it.

    `kind` is that of a geometry's weights, by default dense; a checkpoint has its own.
    Without a `machine`, the rates of this one are measured for a checkpoint and those
    of a geometry assumed, computing at the bounds of a card's data sheet; "rates" says
    which. Raises PlanInfeasible, before anything
    is measured, and InvalidInput for a checkpoint of another kind than is asked for.
    """
    options: dict[str, Any] = {
        "batch": batch,
        "context": context,
        "ring": ring,
        "pass_tokens": pass_tokens,
        "logit_tokens": 1,
    }
    origin = "given"
    if model in geometries():
        if machine is None:
            origin = "assumed"
            decoder = ASSUMED_DECODE_BYTES_PER_S if kind == "lossless" else math.inf
            card = read_cards()[ASSUMED_CARD]
            machine = Machine(
                device_bytes,
                ASSUMED_DISK_BYTES_PER_S,
                decode_bytes_per_s=decoder,
                weight_bytes_per_s=card.memory_bytes_per_s,
                flops_per_s=card.flops_per_s or math.inf,
            )
        machine = _with_host(machine, device_bytes, host_bytes)
        made = plan(geometry(model), machine, kind=kind or "dense", **options)
    else:
        folder = checkpoint_folder(model)
        blind = _with_host(Machine(device_bytes, 1.0), device_bytes, host_bytes)
        made = plan_checkpoint(folder, blind, **options)
        require(
            kind in (None, made.kind),
            f"{model} holds {made.kind} weights, not {kind}: plan it as it is, or "
            "write another one with `thesis compress`",
        )
        if machine is None:
            origin = "measured"
            machine = measure_machine(folder)
            if made.kind == "lossless":
                machine = with_decoder(machine, folder)
        made = replace(made, machine=_with_host(machine, device_bytes, host_bytes))
    rates: dict[str, Any] = {
        "disk_bytes_per_s": made.machine.disk_bytes_per_s,
        "disk": origin,
    }
    if made.kind == "lossless":
        rates |= {"decode_bytes_per_s": made.machine.decode_bytes_per_s}
        rates |= {"ratio": "estimated" if model in geometries() else "of the files"}
    if origin == "assumed":
        rates |= {"compute": ASSUMED_CARD}
    if origin != "given":
        rates |= {
            "weight_bytes_per_s": made.machine.weight_bytes_per_s,
            "flops_per_s": made.machine.flops_per_s,
        }
    if origin == "measured":
        rates |= {"spread": made.machine.spread}
    if host_bytes:
        link = made.machine.link_bytes_per_s
        rates |= {"link_bytes_per_s": link, "link": "assumed"}
    return {**made.summary(), "rates": rates}


def _with_host(machine: Machine, device_bytes: int, host_bytes: int) -> Machine:
    link = 1e9 * read_quantities()["link_gb_per_s"].value if host_bytes else math.inf
    sized = machine.with_memory(device_bytes, host_bytes)
    return replace(sized, link_bytes_per_s=link)
