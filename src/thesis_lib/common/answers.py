"""Results that take seconds and are always the same, kept on the disk.

A plan rehearses its step with torch, a load needs the rate at which FIFO saturates.
Both come to the same until the package, its tables, its libraries or the processor
change.
"""

import functools
import hashlib
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.files import cache_folder, data_folder, file_hash
from thesis_lib.common.provenance import cpu_line

_LIBRARIES = ("torch", "transformers", "bitsandbytes", "numpy", "numba")
_TABLES = ("offloading_cards.csv", "deployment.csv")


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with a cache of its results on the disk.

    It is called again after an error, and always where nothing can be written.
    """

    @functools.wraps(function)
    def cached(*arguments: Any) -> Any:
        from joblib import Memory  # a tenth of a second, which few wait for

        try:
            folder = cache_folder("answers", _environment_hash())
        except InvalidInput:
            return function(*arguments)
        return Memory(folder, verbose=0).cache(function)(*arguments)

    return cached


@functools.cache
def _environment_hash() -> str:
    """SHA-256 of all that a result depends on beside the arguments."""
    known = [file_hash(Path(__file__).parents[1].rglob("*.py"))]
    known.append(cpu_line("flags", "Features"))  # by which packed weights are laid out
    with suppress(InvalidInput, OSError):  # no tables beside an installed package
        known.append(file_hash(data_folder() / table for table in _TABLES))
    for library in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            known.append(f"{library} {metadata.version(library)}")
    return hashlib.sha256("\n".join(known).encode()).hexdigest()
