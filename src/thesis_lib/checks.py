"""Refusals: one exception for bad input, and the checks that raise it.

A message says what was wrong, what was expected and what to do. Nothing here
repairs an input.
"""

from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np
from numpy.typing import ArrayLike, NDArray


class InvalidInput(ValueError):
    """An argument, a parameter or a file that cannot be used as it is."""


def require(condition: bool, message: str) -> None:
    """Raise InvalidInput(message) unless `condition` holds."""
    if not condition:
        raise InvalidInput(message)


def choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`; refuse with the list otherwise."""
    options = list(allowed)
    if value not in options:
        near = get_close_matches(value, options, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(
            f"{name}={value!r} is unknown: expected one of {', '.join(options)}{hint}"
        )
    return value


def vector(
    name: str,
    values: ArrayLike,
    dtype: type | str,
    length: int | None = None,
    minimum: float | None = None,
) -> NDArray:
    """Return `values` as a contiguous vector of `dtype`, shape (length,).

    Raises InvalidInput for another rank or length, for values that `dtype` cannot
    hold exactly, for NaN or infinity, and for values below `minimum`.
    """
    given = np.asarray(values)
    require(given.ndim == 1, f"{name} has shape {given.shape}: expected one dimension")
    if length is not None:
        require(
            len(given) == length,
            f"{name} has {len(given)} entries: expected {length}, one per transaction",
        )
    array = np.ascontiguousarray(given, dtype=dtype)
    if array.dtype.kind == "f":
        require(
            bool(np.isfinite(array).all()),
            f"{name} holds NaN or infinity: every entry must be finite",
        )
    elif given.size and given.dtype != array.dtype:
        require(
            bool((given == array).all()),
            f"{name} holds values that {array.dtype} cannot represent",
        )
    if minimum is not None and array.size:
        require(
            bool(array.min() >= minimum),
            f"{name} has a minimum of {array.min():g}: expected at least {minimum:g}",
        )
    return array
