"""Refusals: one exception for bad input, the checks that raise it, and one for losses.

A message says what was wrong, what was expected and what to do. Nothing here
repairs an input.
"""

from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np
from numpy.typing import ArrayLike, NDArray


class InvalidInput(ValueError):
    """An argument, a parameter or a file that cannot be used as it is."""


class Lost(RuntimeError):
    """What a run stands on has ended in its middle: a database, a worker, a disk.

    It is nobody's input; the message says what was heard of the cause.
    """


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
    hold exactly, for NaN or infinity, and for values below `minimum`. Of values it
    names the first that is wrong and its row, counted from 0.
    """
    given = np.asarray(values)
    require(given.ndim == 1, f"{name} has shape {given.shape}: expected one dimension")
    if length is not None:
        require(
            len(given) == length,
            f"{name} has {len(given)} entries: expected {length}, one per transaction",
        )
    try:
        with np.errstate(invalid="ignore"):  # compared below
            array = np.ascontiguousarray(given, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{name} holds {given.dtype}, such as {given.flat[0]!r}: expected numbers "
            f"of type {np.dtype(dtype)}"
        ) from error
    if array.dtype.kind == "f":
        require_all(np.isfinite(array), name, array, "every entry must be finite")
    elif given.dtype != array.dtype:
        require_all(given == array, name, given, f"{array.dtype} cannot represent it")
    if minimum is not None:
        require_all(array >= minimum, name, array, f"expected at least {minimum:g}")
    return array


def require_all(good: NDArray, name: str, values: NDArray, expected: str) -> None:
    """Raise InvalidInput for the first row, from 0, whose value is not `good` (n,)."""
    if not good.all():
        row = int(np.argmin(good))
        raise InvalidInput(f"row {row} of {name} is {values[row]}: {expected}")
