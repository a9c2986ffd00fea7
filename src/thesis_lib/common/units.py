"""Sizes in bytes and durations in seconds, as people write and read them."""

import math
import re

from thesis_lib.common.errors import InvalidInput, require

KiB, MiB, GiB, TiB = 2**10, 2**20, 2**30, 2**40
MILLISECONDS = 1e-3

_BYTES = {
    "B": 1, "KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


def _quantity(text: str, scale: dict, what: str, example: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-zµ]+)\s*", text)
    if match is None or match[2] not in scale:
        raise InvalidInput(
            f"{what} {text!r} cannot be read: expected a number and one of "
            f"{', '.join(scale)}, such as {example}"
        )
    quantity = float(match[1]) * scale[match[2]]
    require(math.isfinite(quantity), f"{what} of {len(text)} letters is too large")
    return quantity


def significant(value: float, digits: int) -> str:
    """A number with so many significant digits, thousands apart: '10,400,000'."""
    return f"{float(f'{value:.{digits}g}'):z,.10g}"


def _three(value: float) -> str:
    """Three significant digits, and all those before the point."""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def parse_size(text: str) -> int:
    """Bytes in a size such as '8GiB'. Raises InvalidInput without a known unit."""
    return round(_quantity(text, _BYTES, "size", "8GiB"))


def parse_duration(text: str) -> float:
    """Seconds in a duration such as '12.5ms'. Raises InvalidInput without a unit."""
    return _quantity(text, _SECONDS, "duration", "12.5ms")


def parse_rows(text: str) -> tuple[int, int]:
    """The first row and the one to end before, of '1000000:1200000'.

    Raises InvalidInput for anything but two whole numbers.
    """
    match = re.fullmatch(r"\s*(\d{1,15}):(\d{1,15})\s*", text, re.ASCII)
    if match is None:
        raise InvalidInput(
            f"rows {text!r} cannot be read: expected the first, counted from 0, and "
            "the one to end before, such as 0:200000"
        )
    return int(match[1]), int(match[2])


def format_size(n_bytes: float) -> str:
    """A size with a binary unit and three significant digits: '1.50 GiB'."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(size := n_bytes / _BYTES[unit]) >= 1:
            return f"{_three(size)} {unit}"
    return f"{n_bytes:.0f} B"


def format_duration(seconds: float) -> str:
    """A duration with a readable unit and three significant digits: '12.5 ms'."""
    if abs(seconds) >= 120:
        return f"{_three(seconds / 60)} min"
    if abs(seconds) >= 1 or seconds == 0:
        return f"{seconds:.3g} s"
    for unit in ("ms", "µs"):
        if abs(seconds) >= _SECONDS[unit]:
            return f"{_three(seconds / _SECONDS[unit])} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
