"""Metering: bytes that live on the device, and seconds that repeat."""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from scipy.optimize import nnls
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from thesis_lib.common.errors import require
from thesis_lib.common.provenance import seconds_of, undisturbed
from thesis_lib.common.stats import RANGE, Interval, median_interval
from thesis_lib.common.units import format_size
from thesis_lib.memory.model.spec import ModelSpec


class DeviceBudget(TorchDispatchMode):
    """A logical meter: the bytes of every storage that lives on a device.

    Inside the context each storage that an operator returns is charged once and
    released when it dies; `charge` adds what was allocated before. Past
    `limit_bytes` it raises torch.OutOfMemoryError. It sees what operators return,
    not the scratch memory that a kernel frees before it returns: a physical check
    stands beside it, not below it.
    """

    def __init__(
        self, limit_bytes: int | None = None, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__()
        require(
            limit_bytes is None or limit_bytes > 0,
            f"limit_bytes={limit_bytes} must be positive, or None for a meter only",
        )
        self.limit_bytes = limit_bytes
        self.device_type = torch.device(device).type
        self.bytes = 0
        self.peak_bytes = 0
        # By address: two wrappers of one storage must not be charged twice.
        self._live: dict[int, weakref.ref] = {}

    def charge(self, *tensors: torch.Tensor) -> None:
        """Count the storages of `tensors`, unless they are counted already."""
        for tensor in tensors:
            if tensor.device.type == self.device_type:
                self._charge(tensor.untyped_storage())

    def _charge(self, storage: torch.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self._live or n_bytes == 0:
            return

        def release(_: weakref.ref) -> None:
            del self._live[key]
            self.bytes -= n_bytes

        self._live[key] = weakref.ref(storage, release)
        self.bytes += n_bytes
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        if self.limit_bytes is not None and self.bytes > self.limit_bytes:
            raise torch.OutOfMemoryError(
                f"device budget of {format_size(self.limit_bytes)} exceeded: "
                f"{format_size(self.bytes)} live after {format_size(n_bytes)} more; "
                "give the plan more memory, fewer tokens a pass or a shallower ring"
            )

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in [result] if isinstance(result, torch.Tensor) else tree_iter(result):
            if isinstance(leaf, torch.Tensor):
                self.charge(leaf)
        return result


class CudaCap:
    """The physical check on a GPU: the allocator may reserve `limit_bytes` at most.

    A context manager around everything that allocates. PyTorch raises
    torch.OutOfMemoryError past the limit. After it, `allocated_bytes` and
    `reserved_bytes` are the peaks of tensors and of the allocator's blocks, and
    `context_bytes` is what the device holds beside them: the CUDA context, which no
    fraction limits, and other processes. Raises InvalidInput for a limit that is not
    positive or that the device does not have.
    """

    def __init__(self, limit_bytes: int, device: int = 0, cuda: Any = None) -> None:
        require(limit_bytes > 0, f"limit_bytes={limit_bytes} must be positive")
        self.limit_bytes = limit_bytes
        self.allocated_bytes = self.reserved_bytes = self.context_bytes = 0
        self._device = device
        self._cuda = torch.cuda if cuda is None else cuda

    def __enter__(self) -> Self:
        _, total_bytes = self._cuda.mem_get_info(self._device)
        require(
            self.limit_bytes <= total_bytes,
            f"limit of {format_size(self.limit_bytes)} on a device of "
            f"{format_size(total_bytes)}: expected a part of it; lower the limit",
        )
        self._cuda.empty_cache()
        self._cuda.reset_peak_memory_stats(self._device)
        fraction = self.limit_bytes / total_bytes
        self._cuda.set_per_process_memory_fraction(fraction, self._device)
        return self

    def look(self) -> None:
        """Bring the three numbers up to date."""
        self._cuda.synchronize(self._device)
        free_bytes, total_bytes = self._cuda.mem_get_info(self._device)
        self.allocated_bytes = self._cuda.max_memory_allocated(self._device)
        self.reserved_bytes = self._cuda.max_memory_reserved(self._device)
        now_bytes = self._cuda.memory_reserved(self._device)
        self.context_bytes = total_bytes - free_bytes - now_bytes

    def __exit__(self, *_: object) -> None:
        try:
            self.look()
        finally:
            self._cuda.set_per_process_memory_fraction(1.0, self._device)


@dataclass(frozen=True, slots=True)
class Span:
    """Kind and times of work on a layer: seconds of `time.perf_counter`."""

    kind: Literal["read", "copy", "compute", "wait"]
    layer: int
    start_s: float
    end_s: float


def busy_shares(spans: Sequence[Span]) -> dict[str, float]:
    """For each kind, the share of the time in which at least one of its spans ran.

    Of the time from the first start to the last end, in [0, 1]; spans may overlap.
    Raises InvalidInput without a span.
    """
    require(len(spans) > 0, "no span was noted: expected those of one step or more")
    whole_s = max(s.end_s for s in spans) - min(s.start_s for s in spans)
    shares = {}
    for kind in ("read", "copy", "compute", "wait"):
        busy_s, until_s = 0.0, -math.inf
        for start_s, end_s in sorted(
            (s.start_s, s.end_s) for s in spans if s.kind == kind
        ):
            busy_s += max(0.0, end_s - max(start_s, until_s))
            until_s = max(until_s, end_s)
        shares[kind] = busy_s / whole_s if whole_s else 0.0
    return shares


@dataclass(frozen=True, slots=True)
class Measurement:
    """Repeated timings of one step, and what it reads."""

    name: str
    seconds: tuple[float, ...]  # (n,) raw samples, warm-up excluded
    tokens: int = 1  # in each step
    bytes_read: int = 0  # in each step

    def __post_init__(self) -> None:
        require(
            len(self.seconds) > 0 and min(self.seconds) >= 0,
            f"{self.name}: expected at least one sample and none negative",
        )

    @property
    def median_s(self) -> float:
        """Median seconds of a step."""
        return float(np.median(self.seconds))

    @property
    def s_per_token(self) -> float:
        """Median seconds of a step over its tokens."""
        return self.median_s / self.tokens

    def interval_s(self) -> Interval:
        """The median with its interval, in seconds."""
        return median_interval(self.seconds)


def interleave(
    steps: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, tuple[float, ...]]:
    """Seconds of each step, `2 * rounds` samples, forwards and backwards in turn.

    The order A B B A cancels a drift of the machine that is linear in time. Rounds that
    others disturbed are taken again (`undisturbed`).
    """
    require(rounds > 0 and warmup >= 0, f"rounds={rounds}, warmup={warmup}: too few")
    for step in steps.values():
        for _ in range(warmup):
            step()

    def sampled() -> dict[str, tuple[float, ...]]:
        samples: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name in (*steps, *reversed(list(steps))):
                samples[name].append(seconds_of(steps[name]))
        return {name: tuple(values) for name, values in samples.items()}

    return undisturbed(sampled)


def compute_rates(
    spec: ModelSpec, tokens: Sequence[int], seconds: Sequence[float]
) -> tuple[float, float]:
    """Weight bytes and floating point operations per second of arithmetic alone.

    The line through the seconds of a step of each number of tokens with the least
    squared relative residuals, since times scatter in proportion, and with neither
    part negative: its intercept is one pass over the weights, its slope the products
    of one token. A part that the timings do not show is infinitely fast. Raises
    InvalidInput for fewer than two times, and for times that are not positive.
    """
    require(
        len(tokens) == len(seconds) >= 2 and min(seconds) > 0,
        f"{len(tokens)} token counts for {len(seconds)} times: expected two or more, "
        "and positive ones",
    )
    taken = np.asarray(seconds)
    parts = np.stack([np.ones(len(taken)), np.asarray(tokens)], axis=1)
    (intercept, slope), _ = nnls(parts / taken[:, None], np.ones(len(taken)))
    return (
        spec.total_bytes / intercept if intercept > 0 else math.inf,
        spec.flops_per_token() / slope if slope > 0 else math.inf,
    )


def crossing(tokens: Sequence[int], rising_s: Sequence[float], level_s: float) -> float:
    """Return the number of tokens at which `rising_s` reaches `level_s`.

    Linear between the measured points (n,). Zero means below the first count: the time
    exceeds the level from there on. Infinity means that the level is not reached up to
    the last count. Raises InvalidInput for counts that do not rise.
    """
    require(
        len(tokens) == len(rising_s) > 0 and bool((np.diff(tokens) > 0).all()),
        f"{len(tokens)} token counts for {len(rising_s)} times: expected one each, "
        "in rising order",
    )
    above = np.flatnonzero(np.asarray(rising_s) >= level_s)
    if len(above) == 0:
        return math.inf
    if rising_s[0] > level_s:
        return 0.0
    pair = slice(max(above[0] - 1, 0), above[0] + 1)
    return float(np.interp(level_s, rising_s[pair], tokens[pair]))


def crossing_interval(
    tokens: Sequence[int], rising_s: Sequence[Interval], level_s: Interval
) -> Interval:
    """Return `crossing` between measured times, with all that their intervals allow.

    The low end is where the upper ends of `rising_s` reach the low end of the level.
    The high end is where the lower ends reach its high end.
    """
    values, lows, highs = (
        [getattr(each, end) for each in rising_s] for end in ("value", "low", "high")
    )
    return Interval(
        crossing(tokens, values, level_s.value),
        crossing(tokens, highs, level_s.low),
        crossing(tokens, lows, level_s.high),
        n=min(each.n for each in (*rising_s, level_s)),
        method=RANGE,
    )
