"""Measured rates of a machine with a checkpoint, and the predicted time of a plan.

Three rates are measured apart, none of them in the run that is predicted: how fast
the layers arrive, how fast they compute while nothing is read, and what reading takes
from the processor.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from thesis_lib.common.errors import require
from thesis_lib.common.provenance import measurement, seconds_of
from thesis_lib.memory.formats import lossless
from thesis_lib.memory.model.shape import Step
from thesis_lib.memory.model.spec import Machine, ModelSpec
from thesis_lib.memory.offload.measure import compute_rates
from thesis_lib.memory.offload.offloaded_model import StreamedModel, plan_checkpoint
from thesis_lib.memory.offload.plan import MemoryPlan
from thesis_lib.memory.offload.store import DECODERS, SafetensorsStore


def decoder_bytes_per_s(folder: Path | str, rounds: int = 5) -> float:
    """The rate at which the decoders of a store write a layer of `folder`, from memory.

    Decoded bytes a second, with nothing else at work.
    """
    with SafetensorsStore(folder) as store:
        stream = store.read_stream(0)
        decoded_bytes = store.tensor_bytes(0)
    return lossless.decode_bytes_per_s(stream, decoded_bytes, DECODERS, rounds)


_NEARLY = 0.9  # of the time of reads through a decoder: who takes it is their limit


@measurement
def measure_machine(
    folder: Path | str,
    tokens: Sequence[int] = (1, 16, 64, 256),
    rounds: int = 5,
    ring: int = 3,
) -> Machine:
    """Measure the rates of this machine for one checkpoint, with no layer resident.

    Steps of each length and reads alone take turns. `drag` is how much a pass over
    the weights slows reading, and `theft` how much reading slows a pass. `spread` is
    half the interquartile range of the reads over their median.

    Args:
        folder: Path of a checkpoint with at least two layers.
        tokens: At least two lengths of steps, in tokens.
        rounds: Measurements of each length.
        ring: Number of staging buffers, fewer than the layers.

    Raises:
        InvalidInput: If there is one layer only, or one length.

    Example:
        >>> from thesis_lib.memory import measure_machine
        >>> from thesis_lib.memory.model import smollm2
        >>> machine = measure_machine(smollm2.checkpoint(), tokens=(1, 16), rounds=1)
        >>> machine.disk_bytes_per_s > 0
        True
    """
    longest = ModelSpec.from_config(Path(folder)).most_positions
    if longest:
        tokens = [n for n in tokens if n <= longest]
    require(
        len(set(tokens)) > 1,
        f"tokens={tokens}: expected two numbers at least that differ and are not "
        "beyond the positions of the model",
    )
    shortest, longest = min(tokens), max(tokens)
    tight = plan_streamed(folder, 1, longest, longest, _moving(folder, ring))
    with StreamedModel(folder, tight) as model:
        turns = _take_turns(model, tokens, rounds)
    reading_s = float(np.median(turns.reading))
    medians = {n: float(np.median(turns.computing[n])) for n in tokens}
    weight_rate, flops = compute_rates(tight.spec, list(medians), [*medians.values()])
    weights_s = tight.spec.total_bytes / weight_rate
    drag = 0.0
    if reading_s > weights_s > 0:
        drag = float(np.median(turns.longer[shortest])) / weights_s
    within_s = float(np.median(turns.within[longest]))
    theft = (within_s - medians[longest]) / min(within_s, reading_s)
    low, high = np.quantile(turns.reading, (0.25, 0.75))
    return Machine(
        device_bytes=tight.machine.device_bytes,
        disk_bytes_per_s=tight.bytes_per_step / reading_s,
        weight_bytes_per_s=weight_rate,
        flops_per_s=flops,
        theft=float(np.clip(theft, 0, 0.9)),
        drag=float(np.clip(drag, 0, 0.9)),
        spread=min(float(high - low) / 2 / reading_s, 0.9),
    )


class _Turns:
    """Seconds of steps of each number of tokens, and of reads between them."""

    def __init__(self) -> None:
        self.reading: list[float] = []  # of all layers, nothing computed
        self.computing = defaultdict[int, list[float]](list)  # nothing read
        self.longer = defaultdict[int, list[float]](list)  # than the reads before it
        self.within = defaultdict[int, list[float]](list)  # computing, in a whole step


def _take_turns(model: StreamedModel, tokens: Sequence[int], rounds: int) -> _Turns:
    """Steps of each number of tokens without reads, and the ends of them with."""
    turns, draw = _Turns(), torch.Generator().manual_seed(0)
    rows = {
        n: torch.randint(0, model.spec.vocab, (1, n), generator=draw) for n in tokens
    }

    def step(n: int) -> None:
        model.step(rows[n], model.new_cache(), keep=1)

    step(max(tokens))
    for _ in range(rounds):
        for n in tokens:
            with model.without_reading():
                step(n)  # whatever the change of tokens has cost, once
                turns.computing[n].append(seconds_of(partial(step, n)))
        for n in (min(tokens), max(tokens)):
            model.drain()
            turns.reading.append(seconds_of(model.drain))
            step(n)
            stalled = model.stall_s
            taken = seconds_of(partial(step, n))
            turns.longer[n].append(taken - turns.reading[-1])
            turns.within[n].append(taken - (model.stall_s - stalled))
    return turns


@measurement
def drain_bytes_per_s(folder: Path | str, drains: int = 5) -> float:
    """The median rate at which a ring of buffers is filled with layers, bytes a second.

    Nothing is computed, every layer is streamed, and one drain before warms up. Raises
    InvalidInput for a model of one layer.
    """
    tight = plan_streamed(folder, 1, 1, 1, _moving(folder, 3))
    with StreamedModel(folder, tight) as model:
        model.drain()
        seconds = [seconds_of(model.drain) for _ in range(drains)]
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
    step: Step = {"pass_tokens": pass_tokens, "logit_tokens": logit_tokens}
    ample = plan_checkpoint(folder, Machine(2**62, 1.0), batch, context, ring, **step)
    least = Machine(ample.least_device_bytes(ring), 1.0)
    return plan_checkpoint(folder, least, batch, context, ring, **step)
