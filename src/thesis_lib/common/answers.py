"""Answers that take seconds and are always the same, kept on the disk.

A plan rehearses its step with torch, a load needs the rate at which FIFO saturates.
Both come to the same until the package, its tables, its libraries or the processor
change.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.files import cache_folder, data_folder, file_hash, write_whole
from thesis_lib.common.provenance import cpu_line

_LIBRARIES = ("torch", "transformers", "bitsandbytes", "numpy", "numba")
_TABLES = ("offloading_cards.csv", "deployment.csv")


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Ask `function` once: what it takes and returns are what JSON knows.

    What it refuses is asked again, and so is all where nothing can be written.
    """

    @functools.wraps(function)
    def asked(*arguments: Any) -> Any:
        question = json.dumps(
            [function.__qualname__, arguments, _circumstances()],
            default=np.generic.item,
        )
        name = f"{hashlib.sha256(question.encode()).hexdigest()}.json"
        with suppress(OSError, ValueError):
            return json.loads((cache_folder("answers") / name).read_text())
        answer = function(*arguments)
        with suppress(OSError, InvalidInput):
            write_whole(cache_folder("answers") / name, json.dumps(answer))
        return answer

    return asked


@functools.cache
def _circumstances() -> list[str]:
    """All that an answer depends on beside the question."""
    known = [file_hash(Path(__file__).parents[1].rglob("*.py"))]
    known.append(cpu_line("flags", "Features"))  # by which packed weights are laid out
    with suppress(InvalidInput, OSError):  # no tables beside an installed package
        known.append(file_hash(data_folder() / table for table in _TABLES))
    for library in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            known.append(f"{library} {metadata.version(library)}")
    return known
