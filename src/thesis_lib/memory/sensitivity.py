"""What a result owes to each of its inputs: one at a time, and all of them at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thesis_lib.checks import require
from thesis_lib.stats import F64

Evaluate = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Range:
    """An input as it is believed to be, and between what it may lie. All positive."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        require(
            0 < self.low <= self.value <= self.high < np.inf,
            f"low={self.low:g}, value={self.value:g}, high={self.high:g}: expected "
            "positive numbers in that order",
        )


@dataclass(frozen=True, slots=True)
class Bar:
    """The result with one input at its low and its high, all others at their value."""

    name: str
    range: Range
    at_low: float
    at_high: float

    @property
    def swing(self) -> float:
        """How far the result moves over the range of this input."""
        return abs(self.at_high - self.at_low)


def values(ranges: Mapping[str, Range]) -> dict[str, float]:
    """Each input as it is believed to be."""
    return {name: each.value for name, each in ranges.items()}


def tornado(evaluate: Evaluate, ranges: Mapping[str, Range]) -> list[Bar]:
    """A bar for each input, the one that moves the result furthest first."""
    base = values(ranges)
    bars = [
        Bar(
            name,
            each,
            float(evaluate(base | {name: each.low})),
            float(evaluate(base | {name: each.high})),
        )
        for name, each in ranges.items()
    ]
    return sorted(bars, key=lambda bar: bar.swing, reverse=True)


def draw(
    ranges: Mapping[str, Range], draws: int = 10_000, seed: int = 0
) -> dict[str, F64]:
    """Independent random inputs, (draws,) each, for a result that takes arrays.

    The logarithm of an input has a triangular density over its range with the mode at
    its value: prices err by factors. An input without a range is a constant. Each
    input has a stream of its own, so that leaving one out does not move the others.
    """
    require(draws > 0, f"draws={draws} must be positive")
    return {
        name: _draw(each, draws, [seed, *name.encode()])
        for name, each in ranges.items()
    }


def _draw(each: Range, draws: int, seed: list[int]) -> F64:
    if each.low == each.high:
        return np.full(draws, each.value)
    low, mode, high = np.log([each.low, each.value, each.high])
    return np.exp(np.random.default_rng(seed).triangular(low, mode, high, draws))
