"""Answers about known geometries, kept on the disk.

A plan rehearses its step with torch, which takes seconds to import, and comes to the
same every time until the package, its tables, its libraries or the processor change.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from thesis_lib.common.files import cache_folder, data_folder, file_hash, write_whole

_LIBRARIES = ("torch", "transformers", "bitsandbytes", "numpy")
_TABLES = ("offloading_cards.csv", "deployment.csv")


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Ask `function` once: its arguments and what it returns are what JSON knows.

    What it refuses is asked again, and so is all where nothing can be written.
    """

    @functools.wraps(function)
    def asked(*arguments: Any) -> Any:
        question = json.dumps([function.__qualname__, arguments, _circumstances()])
        name = f"{hashlib.sha256(question.encode()).hexdigest()}.json"
        with suppress(OSError, ValueError):
            return json.loads((cache_folder("answers") / name).read_text())
        answer = function(*arguments)
        with suppress(OSError):
            write_whole(cache_folder("answers") / name, json.dumps(answer))
        return answer

    return asked


@functools.cache
def _circumstances() -> list[str]:
    """All that an answer depends on beside the question."""
    sources = file_hash(Path(__file__).parents[1].rglob("*.py"))
    tables = file_hash(data_folder() / table for table in _TABLES)
    versions = [metadata.version(library) for library in _LIBRARIES]
    return [sources, tables, *versions, _processor()]


def _processor() -> str:
    """What the processor can do, by which the layout of packed weights is chosen."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return ""
