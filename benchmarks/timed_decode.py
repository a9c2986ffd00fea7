"""A streamed model against its own link: steps and the same reads without computing.

For models so large that a step takes a minute: few steps, between drains.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory_limit import read_from_disk_bytes
from record import tell
from torch import Tensor

from thesis_lib.common.errors import require
from thesis_lib.common.files import cache_folder
from thesis_lib.memory.compress.random_weights import synthesize
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.offloaded_model import StreamedModel
from thesis_lib.memory.offload.plan import MemoryPlan


@dataclass(frozen=True, slots=True)
class Trial:
    """Greedy decoding, a drain before, after and between the steps that count."""

    first_token_s: float
    warm_up_s: tuple[float, ...]  # of steps that do not count
    step_s: tuple[float, ...]  # (n,)
    drain_s: tuple[float, ...]  # (m + 1,) before, between and after m runs of n / m
    read_bytes: int | None  # from storage, by these drains and steps; None: not known
    tokens: tuple[tuple[int, ...], ...]  # of every step, by sequence

    @property
    def fractions(self) -> tuple[float, ...]:
        """Of each step: time of the drains around it over its own time, (n,)."""
        drain = np.asarray(self.drain_s)
        around = (drain[:-1] + drain[1:]) / 2
        beside = np.repeat(around, len(self.step_s) // len(around))
        return tuple((beside / np.asarray(self.step_s)).tolist())

    @property
    def fraction_of_drain(self) -> float:
        """The median of `fractions`: a slow drift of the link cancels out."""
        return float(np.median(self.fractions))

    @property
    def read_bytes_per_step(self) -> float | None:
        """Bytes from storage in one pass over the layers, drains included.

        Over all passes together: reads of the next pass are in flight between two.
        """
        passes = len(self.step_s) + len(self.drain_s)
        return None if self.read_bytes is None else self.read_bytes / passes

    @property
    def s_per_step(self) -> float:
        """Median seconds of a step."""
        return float(np.median(self.step_s))


Step = Callable[[Tensor], Tensor]  # new tokens, (b, t), to logits, (b, 1, vocab)


@torch.no_grad()
def greedily(step: Step, new: Tensor) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Seconds and the token of each sequence, (b,), of one step after the other.

    The first step gets the prompt `new`, (b, t). Without end.
    """
    while True:
        start = time.perf_counter()
        new = step(new)[:, -1].argmax(-1, keepdim=True).to(new.device)
        tokens = tuple(new[:, 0].tolist())  # waits for a device
        yield time.perf_counter() - start, tokens


def count_drains(steps: int, drain_every: int) -> int:
    """How many drains stand around and between the steps of a trial.

    Raises InvalidInput where `drain_every` does not divide `steps`.
    """
    require(
        steps > 0 and drain_every > 0 and steps % drain_every == 0,
        f"--drain-every must be a divisor of --steps {steps}, got {drain_every}",
    )
    return steps // drain_every + 1


def run_trial(
    model: StreamedModel,
    prompt: Tensor,
    steps: int,
    warm_up: int = 1,
    drain_every: int = 1,
) -> Trial:
    """Decode greedily after `prompt`, (b, t): `warm_up` steps, then `steps` that count.

    A drain stands before these, after the last, and after every `drain_every` of them.
    Reports each in a line. Raises InvalidInput as `count_drains`.
    """
    count_drains(steps, drain_every)
    cache = model.new_cache()
    decoding = greedily(lambda new: model.step(new, cache, keep=1), prompt)
    tokens: list[tuple[int, ...]] = []

    def decode(name: str) -> float:
        seconds, made = next(decoding)
        tokens.append(made)
        tell(f"{name}: {seconds:.3f} s")
        return seconds

    def drain() -> float:
        start = time.perf_counter()
        model.drain()
        if prompt.is_cuda:
            torch.cuda.synchronize(prompt.device)
        seconds = time.perf_counter() - start
        tell(f"drain: {seconds:.3f} s")
        return seconds

    first_token_s = decode("first token")
    warm_up_s = [decode(f"warm-up {i + 1} of {warm_up}") for i in range(warm_up)]
    before = read_from_disk_bytes()
    step_s, drain_s = [], [drain()]
    for i in range(steps):
        step_s.append(decode(f"step {i + 1} of {steps}"))
        if (i + 1) % drain_every == 0:
            drain_s.append(drain())
    after = read_from_disk_bytes()
    return Trial(
        first_token_s,
        tuple(warm_up_s),
        tuple(step_s),
        tuple(drain_s),
        None if before is None or after is None else after - before,
        tuple(tokens),
    )


@contextmanager
def random_checkpoint(name: str, layers: int) -> Iterator[Path]:
    """A few layers of a geometry on the disk, with random weights, and then no more."""
    with tempfile.TemporaryDirectory(dir=cache_folder("benchmarks")) as home:
        folder = Path(home) / f"{name}-{layers}"
        synthesize(name, folder, layers=layers)
        os.sync()  # or its pages would be written while it is read
        yield folder


def stream_store(
    folder: Path,
    made: MemoryPlan,
    steps: int,
    warm_up: int,
    device: str = "cpu",
    drain_every: int = 1,
) -> tuple[Trial, dict[str, Any]]:
    """Carry a plan out: the trial at batch 1, and what a report says of it."""
    prompt = torch.ones(1, 1, dtype=torch.long, device=device)
    start = time.perf_counter()
    with (
        StreamedModel(folder, made, device=device) as model,
        DeviceBudget(made.machine.device_bytes, device) as budget,
    ):
        model.charge(budget)
        loading_s = time.perf_counter() - start
        trial = run_trial(model, prompt, steps, warm_up, drain_every)
        return trial, {
            "trial": asdict(trial),
            "s_per_token": trial.s_per_step,
            "fraction_of_drain": trial.fraction_of_drain,
            "logical_peak_bytes": budget.peak_bytes,
            "planned_peak_bytes": made.device_peak_bytes,
            "predicted_s_per_token": made.predicted_s_per_token,
            "plan": made.summary(),
            "load_s": loading_s,
            "mode": model.mode,
        }
