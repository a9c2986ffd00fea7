"""The header of a safetensors file: which tensors it holds, and at which bytes.

The safetensors library gives no offsets, so the header is parsed here, and held to what
the library demands.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from thesis_lib.common.errors import InvalidInput, parse_object, shown
from thesis_lib.memory.model.checkpoint import ITEM_BYTES

_MOST_DIMENSIONS = 8
_FIELDS = {"dtype", "shape", "data_offsets"}


class StoreDamaged(InvalidInput):
    """A weight file that is missing, truncated, altered or not safetensors."""


def reject(place: object, what: str, do: str = "copy it again") -> NoReturn:
    raise StoreDamaged(f"{place} {what}; {do}")


def bare(name: str) -> str:
    """A tensor's name for a sentence, without the quotes."""
    return shown(name)[1:-1]


@dataclass(frozen=True, slots=True)
class Placement:
    """A tensor, and where it lies: in a file, in what that codes, or in a buffer."""

    name: str  # within the layer, or the full name outside the stack
    dtype: str  # as safetensors writes it: BF16, F32, …
    shape: tuple[int, ...]
    start: int  # byte offset
    nbytes: int
    file: int = 0

    @property
    def end(self) -> int:
        return self.start + self.nbytes


def read_header(raw: bytes, place: str) -> tuple[dict[str, Placement], dict[str, str]]:
    """The tensors of a safetensors header, in the order of their bytes; its metadata.

    Holds them to what the safetensors library does (`Metadata::validate`): offsets
    that are whole numbers, each tensor starting where the one before ends, shape times
    type its bytes. Of what the library tolerates it also rejects a name or a field
    given twice, other fields, and tensors without entries. `place` begins the sentence.
    """
    fail = partial(reject, place)
    header = parse_object(raw, place, "the header of safetensors", StoreDamaged)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        fail(f"has the metadata {shown(metadata)}: expected texts by name")
    spans = [_read_span(name, entry, fail) for name, entry in header.items()]
    spans.sort(key=lambda span: span.end)
    end = 0
    for span in spans:
        if span.start != end:
            fail(
                f"has overlapping tensors or holes between them: {shown(span.name)} "
                f"starts at byte {span.start}, not {end}"
            )
        end = span.end
    return {span.name: span for span in spans}, metadata


def _read_span(name: str, entry: Any, fail: Callable[[str], NoReturn]) -> Placement:
    """One entry of a header, of the right types and of as many bytes as it says."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        fail(
            f"describes {shown(name)} as {shown(entry)}: expected "
            f"{', '.join(sorted(_FIELDS))}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    size = ITEM_BYTES.get(dtype) if isinstance(dtype, str) else None
    if (
        size is None
        or not _are_sizes(shape)
        or not _are_sizes(offsets)
        or len(offsets) != 2
        or len(shape) > _MOST_DIMENSIONS
        or not offsets[1] - offsets[0] == size * math.prod(shape) > 0
    ):
        fail(
            f"has {shown(name)} as {shown(dtype)} {shown(shape)} at the bytes "
            f"{shown(offsets)}, which do not agree: expected a known type, and whole "
            "numbers of which those of the shape fill those of the bytes"
        )
    return Placement(name, dtype, tuple(shape), offsets[0], offsets[1] - offsets[0])


def _are_sizes(value: Any) -> bool:
    """Return whether a JSON value is a list of numbers that 64 bits count."""
    return isinstance(value, list) and all(
        type(part) is int and 0 <= part < 2**64 for part in value
    )
