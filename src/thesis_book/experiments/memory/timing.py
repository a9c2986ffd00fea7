"""Streamed and resident passes, timed in turn."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thesis_lib.common.provenance import undisturbed
from thesis_lib.common.stats import Interval, median_interval
from thesis_lib.memory.offload.measure import Measurement, interleave
from thesis_lib.memory.offload.offloaded_model import StreamedModel


def is_identical(model: StreamedModel, resident: Any, prompt: Tensor, n: int) -> bool:
    """Whether the logits of `prompt`, (1, t), and of `n` greedy tokens are equal.

    Every bit of every logit, against the resident model in the same chunks.
    """
    cache, twin, new = model.new_cache(), model.new_cache(), prompt
    with torch.no_grad():
        for _ in range(n + 1):
            expected = resident(new, cache=twin, use_cache=True).logits
            if not torch.equal(model.step(new, cache), expected):
                return False
            new = expected[:, -1].argmax(-1, keepdim=True)
    return True


def measure_decoding(
    model: StreamedModel, resident: Any, prompt: Tensor, rounds: int
) -> dict[str, Measurement]:
    """Time one decoding step: "drain", "streamed" and "resident", interleaved.

    Each step appends one token to a cache that holds `prompt`, (b, t), and takes it
    off again. "drain" reads what "streamed" reads and computes nothing. 2 * `rounds`
    samples of each.
    """
    last = prompt[:, -1:]
    cache, twin = model.new_cache(), model.new_cache()
    model.step(prompt, cache, keep=1)

    def streamed() -> None:
        model.step(last, cache, keep=1)
        cache.crop(-1)

    def in_memory() -> None:
        resident(last, cache=twin, use_cache=True)
        twin.crop(-1)

    def sampled() -> tuple[dict[str, tuple[float, ...]], int]:
        before, warmup = model.bytes_read, 2
        samples = interleave(
            {"drain": model.drain, "streamed": streamed, "resident": in_memory},
            rounds,
            warmup,
        )
        passes = 2 * (2 * rounds + warmup)  # of drain and streamed together
        return samples, round((model.bytes_read - before) / passes)

    with torch.no_grad():
        resident(prompt, cache=twin, use_cache=True, logits_to_keep=1)
        samples, n_bytes = undisturbed(sampled)
    return {
        name: Measurement(
            name,
            seconds,
            tokens=prompt.shape[0],
            bytes_read=0 if name == "resident" else n_bytes,
        )
        for name, seconds in samples.items()
    }


@dataclass(frozen=True, slots=True)
class PassTiming:
    """Median seconds of one pass of `tokens` new tokens, each with its interval."""

    tokens: int
    drain_s: Interval  # reading alone
    streamed_s: Interval
    computing_s: Interval  # the part of streamed_s that does not wait for reading
    resident_s: Interval


def measure_passes(
    model: StreamedModel, resident: Any, tokens: Sequence[int], rounds: int, seed: int
) -> list[PassTiming]:
    """Time a pass of each number of random tokens: reading, streamed and resident."""
    draw = torch.Generator().manual_seed(seed)

    def timed(row: Tensor) -> PassTiming:
        computing: list[float] = []

        def streamed() -> None:
            stalled, start = model.stall_s, time.perf_counter()
            model.step(row, model.new_cache(), keep=1)
            passed = time.perf_counter() - start
            computing.append(passed - (model.stall_s - stalled))

        def in_memory() -> None:
            resident(row, use_cache=True, logits_to_keep=1)

        samples = interleave(
            {"drain": model.drain, "streamed": streamed, "resident": in_memory},
            rounds,
            warmup=1,
        )
        samples["computing"] = tuple(computing[1:])
        medians = {f"{name}_s": median_interval(s) for name, s in samples.items()}
        return PassTiming(row.shape[1], **medians)

    rows = [torch.randint(0, model.spec.vocab, (1, t), generator=draw) for t in tokens]
    with torch.no_grad():
        return [undisturbed(lambda row=row: timed(row)) for row in rows]
