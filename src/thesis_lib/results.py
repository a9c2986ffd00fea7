"""Headline numbers and the provenance of a run: glued, checked, recorded."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from numbers import Real
from pathlib import Path
from typing import Self

import psutil

from thesis_lib.checks import InvalidInput, require

RECORD_VERSION = 1
# The distributions whose version can change a number on the page.
DISTRIBUTIONS = (
    "numpy", "scipy", "numba", "scikit-learn", "pandas", "pyarrow", "torch",
    "transformers", "bitsandbytes", "safetensors", "papermill", "jupyter-book",
)  # fmt: skip


def publish(numbers: Mapping[str, Real | str]) -> None:
    """Glue each number under its name, so that prose on any page can cite it.

    Floats stay floats: prose rounds with `{glue:text}`name:.1f``.
    """
    from myst_nb import glue  # a book dependency, not one of the package

    for name, value in numbers.items():
        require(
            name.isidentifier(), f"{name!r} cannot be a glue name: use an identifier"
        )
        plain = value if isinstance(value, str | int) else float(value)
        glue(name, plain, display=False)


def check(name: str, value: float, expected: float, rtol: float) -> str:
    """'name: ok' if value is within rtol of expected; a plain report otherwise.

    For cells that nbval compares: the text is the same on every machine that agrees.
    Raises InvalidInput for an rtol outside [0, 1).
    """
    if not 0 <= rtol < 1:
        raise InvalidInput(f"rtol={rtol:g} must lie in [0, 1): it is a fraction")
    if abs(value - expected) <= rtol * abs(expected):
        return f"{name}: ok"
    return f"{name}: {value:.6g} differs from {expected:.6g} by more than {rtol:.0%}"


def file_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files, in the order of their paths."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the platform module knows less, but something
    return platform.processor() or platform.machine()


def machine() -> dict[str, str | int]:
    """What the numbers of a run depend on: processor, cores, memory (bytes), system."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the distributions that can change a number."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit(folder: Path) -> str:
    """The commit that `folder` is at, marked '+changes' where the tree is not clean.

    'no repository' outside a checkout or without git.
    """

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        return "no repository"
    if not head:
        return "no repository"
    return f"{head[:12]}+changes" if changes else head[:12]


@dataclass(frozen=True, slots=True)
class Record:
    """One executed chapter: what it ran with, where, for how long, and its numbers."""

    chapter: str
    profile: str
    parameters: dict
    key: str  # hash of all that the chapter depends on
    commit: str
    machine: dict
    versions: dict
    started: str  # ISO 8601, UTC
    seconds: float
    numbers: dict  # glued names to values

    def write(self, path: Path) -> None:
        """Write JSON; an existing record is replaced only by a complete one."""
        content = {"version": RECORD_VERSION, **asdict(self)}
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote. Raises InvalidInput for anything else."""
        try:
            content = json.loads(path.read_text())
            require(
                content.pop("version") == RECORD_VERSION, "another version of records"
            )
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(
                f"{path} is not a record of version {RECORD_VERSION} ({error}): "
                "delete it and run the chapter again"
            ) from error
