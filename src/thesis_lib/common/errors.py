"""Errors: one exception for bad input, the checks that raise it, and one for losses.

A message says what was wrong, what was expected and what to do. Nothing here
repairs an input.
"""

import json
import math
import os
import stat
from collections.abc import Iterable
from difflib import get_close_matches
from errno import EINVAL
from numbers import Integral
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # the command line rejects much without an array
    from numpy.typing import ArrayLike, NDArray

_UNREADABLE: dict[type[Exception], str] = {  # of JSON, by what Python says
    UnicodeDecodeError: "is not text in UTF-8",
    UnicodeEncodeError: "has half a character",
    RecursionError: "is nested too deeply",
}
JSON_LIMIT_BYTES = 2**26  # of a file that describes others

_BRIEF = Repr()
_BRIEF.maxlevel, _BRIEF.maxlong = 3, 60
_BRIEF.maxstring = _BRIEF.maxother = 120


class InvalidInput(ValueError):
    """An argument, a parameter or a file that cannot be used as it is."""

    exit_code = 2  # of a command


class Lost(RuntimeError):
    """A resource was lost during a run: a database, a worker, a disk.

    No input caused it; the message reports what is known of the cause.
    """

    exit_code = 1


def require(condition: bool, message: str) -> None:
    """Raise InvalidInput(message) unless `condition` holds."""
    if not condition:
        raise InvalidInput(message)


def choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`; reject with the list otherwise."""
    options = list(allowed)
    if value not in options:
        near = get_close_matches(str(value), options, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(
            f"{name}={shown(value)} is unknown: expected one of {', '.join(options)}"
            f"{hint}"
        )
    return value


def vector(
    name: str,
    values: "ArrayLike",
    dtype: type | str,
    length: int | None = None,
    minimum: float | None = None,
) -> "NDArray":
    """Return `values` as a contiguous vector of `dtype`, shape (length,).

    Raises InvalidInput for another rank or length, for values that `dtype` cannot
    hold exactly, for NaN or infinity, and for values below `minimum`. Of values it
    names the first that is wrong and its row, counted from 0.
    """
    import numpy as np

    raw = np.asarray(values)
    require(
        raw.dtype.kind not in "mMcSU",
        f"{name} holds {raw.dtype}: expected plain numbers, times in seconds",
    )
    require(raw.ndim == 1, f"{name} has shape {raw.shape}: expected one dimension")
    if length is not None:
        require(
            len(raw) == length,
            f"{name} has {len(raw)} entries: expected {length}, one per transaction",
        )
    try:
        with np.errstate(invalid="ignore"):  # compared below
            array = np.ascontiguousarray(raw, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{name} holds {raw.dtype}, such as {raw.flat[0]!r}: expected numbers "
            f"of type {np.dtype(dtype)}"
        ) from error
    if array.dtype.kind == "f":
        require_all(np.isfinite(array), name, array, "every entry must be finite")
    elif raw.dtype != array.dtype:
        require_all(raw == array, name, raw, f"{array.dtype} cannot represent it")
    if minimum is not None:
        require_all(array >= minimum, name, array, f"expected at least {minimum:g}")
    return array


def require_count(name: str, value: object, least: int = 1) -> None:
    """Raise InvalidInput for what is no whole number, of any type, or below `least`."""
    require(
        isinstance(value, Integral)
        and not isinstance(value, bool)
        and int(value) >= least,
        f"{name}={value}: expected at least {least}, a whole number",
    )


def require_all(good: "NDArray", name: str, values: "NDArray", expected: str) -> None:
    """Raise InvalidInput for the first row, from 0, whose value is not `good` (n,)."""
    import numpy as np

    if not good.all():
        row = int(np.argmin(good))
        raise InvalidInput(f"row {row} of {name} is {values[row]}: {expected}")


def shown(value: Any) -> str:
    """A value that came from a file, for a sentence: short, on one line, printable."""
    return _BRIEF.repr(value)


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, by whatever links its name leads there.

    Raises OSError for what is not there, and for a pipe, a device or a folder, which
    may keep a reader waiting or never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(EINVAL, "not a regular file", str(path))
    return descriptor


def read_object(
    path: Path,
    expected: str,
    error_type: type[InvalidInput] = InvalidInput,
) -> dict[str, Any]:
    """The JSON object in a file, as `parse_object`. Raises `error_type`."""
    try:
        with open(open_regular(path), "rb") as file:
            raw = file.read(JSON_LIMIT_BYTES + 1)
    except OSError as error:
        raise error_type(
            f"{path} cannot be read ({error.strerror}): expected {expected}"
        ) from error
    if len(raw) > JSON_LIMIT_BYTES:
        raise error_type(
            f"{path} is longer than {JSON_LIMIT_BYTES} bytes: expected {expected}"
        )
    return parse_object(raw, str(path), expected, error_type)


def parse_object(
    raw: bytes, name: str, expected: str, error_type: type[InvalidInput] = InvalidInput
) -> dict[str, Any]:
    """Parse `raw` as one JSON object. Raises `error_type`, as `parse_json` does."""
    value = parse_json(raw, name, expected, error_type)
    if not isinstance(value, dict):
        raise error_type(
            f"{name} holds no JSON object: expected {expected}; copy it again"
        )
    return value


def parse_json(
    raw: bytes, name: str, expected: str, error_type: type[InvalidInput] = InvalidInput
) -> Any:
    """The one JSON value that the bytes `raw` are.

    Raises `error_type` for anything that readers of JSON differ about: another encoding
    than UTF-8, a name given twice, a number that is not finite, half a character, and
    nesting without end.
    """

    def reject(what: str, cause: BaseException | None = None) -> NoReturn:
        raise error_type(
            f"{name} {what}: expected {expected}; copy it again"
        ) from cause

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members: dict[str, Any] = {}
        for name, value in pairs:
            if name in members:
                reject(f"says {shown(name)} twice")
            members[name] = value
        return members

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            reject(f"has the number {text[:20]}, which is not finite")
        return number

    try:
        text = raw.decode("utf-8")
        parsed = json.loads(
            text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite
        )
        if "\\u" in text:
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        reject(_UNREADABLE.get(type(error), "is not readable JSON"), error)
    return parsed


def whole(
    value: Any,
    name: str,
    least: int,
    most: int,
    error_type: type[InvalidInput] = InvalidInput,
) -> int:
    """Return `value` if a file gave it as a whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise error_type(
            f"{name} is {shown(value)}: expected a whole number from {least} to {most}"
        )
    return value
