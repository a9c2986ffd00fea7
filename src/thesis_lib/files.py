"""Files that are whole or not there at all, and one hash over several of them."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is replaced only by a complete one, even by power loss.

    Raises OSError where it cannot be written; what was there before is then untouched
    and nothing else is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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
