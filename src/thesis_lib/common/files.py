"""Locate data and caches, and write files whole or not at all."""

import hashlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from thesis_lib.common.errors import InvalidInput, read_object


def root() -> Path | None:
    """The checkout that this package is imported from, if there is one."""
    candidate = Path(__file__).resolve().parents[3]
    return candidate if (candidate / "_config.yml").is_file() else None


def data_folder() -> Path:
    """The folder `data/`. Raises InvalidInput where there is none."""
    if named := os.environ.get("THESIS_DATA"):
        folder = Path(named)
    elif (checkout := root()) is not None:
        folder = checkout / "data"
    else:
        raise InvalidInput(
            "no data folder: the package is not imported from a checkout; "
            "set THESIS_DATA to the folder data/ of a clone"
        )
    if not folder.is_dir():
        raise InvalidInput(f"data folder {folder} does not exist: expected a folder")
    return folder


def cache_folder(*parts: str) -> Path:
    """A folder for what can be made again, created on demand; git ignores it."""
    if named := os.environ.get("THESIS_CACHE"):
        base = Path(named)
    elif (checkout := root()) is not None:
        base = checkout / ".cache"
    else:
        base = Path.home() / ".cache" / "thesis_lib"
    folder = base.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"the cache folder {folder} cannot be made ({error.strerror}): expected a "
            "place that you may write to; name one with THESIS_CACHE"
        ) from error
    return folder


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is replaced only by a complete one, even by power loss.

    Raises OSError where it cannot be written; what was there before is then untouched
    and nothing else is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    own = f"{os.getpid()}.{threading.get_ident()}"
    partial = path.with_name(f".{path.name}.{own}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def content_hash(path: Path) -> str:
    """SHA-256 of the content of one file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def file_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files, in the order of their paths."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read_record(name: str, folder: Path | None = None) -> dict[str, Any] | None:
    """Return the record `name` of `data/measurements`, or None without such a file.

    Raises InvalidInput for a file that is no JSON object.
    """
    folder = data_folder() / "measurements" if folder is None else folder
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    return read_object(path, "the record of a script")
