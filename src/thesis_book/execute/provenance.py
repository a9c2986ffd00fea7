"""The machine that a run is recorded on: what it is, what it can do, how busy it was.

Torch is named without being imported, and a GPU is asked through its driver's own
command.
"""

import functools
import mmap
import os
import platform
import re
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from thesis_lib.common.files import file_hash, write_whole
from thesis_lib.common.provenance import cpu_model, seconds_of

# The distributions whose version can change a number on the page.
DISTRIBUTIONS = (
    "numpy", "scipy", "numba", "scikit-learn", "pandas", "pyarrow", "torch",
    "transformers", "bitsandbytes", "safetensors", "papermill", "jupyter-book",
)  # fmt: skip

# What a result depends on; files beside them may change without making it doubtful.
SOURCES = ("src", "notebooks", "data", "book", "pyproject.toml")

_DRAIN_BYTES = 256 * 2**20
_CHUNK_BYTES = 4 * 2**20
_SAMPLE_S = 0.25


@functools.cache
def gpus() -> tuple[tuple[str, str, int], ...]:
    """(name, driver, memory in bytes) of each GPU that the NVIDIA driver reports."""
    query = "--query-gpu=name,driver_version,memory.total"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    if shutil.which(command[0]) is None:
        return ()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        return ()  # a driver without a device
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
    return tuple(
        (name, driver, int(mib) * 2**20 if mib.isdigit() else 0)
        for name, driver, mib in rows
    )


@functools.cache
def torch_build() -> str:
    """Version of torch and what it was built for, such as '2.13.0+cpu, cpu'."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "not installed"
    text = (Path(spec.origin).parent / "version.py").read_text()

    def named(name: str) -> str | None:
        hit = re.search(rf"^{name}\b[^=]*= '([^']+)'", text, re.MULTILINE)
        return hit[1] if hit else None

    backends = [f"{n.upper()} {named(n)}" for n in ("cuda", "hip") if named(n)]
    version = named("__version__") or metadata.version("torch")
    return f"{version}, {', '.join(backends) or 'CPU'}"


def identity() -> dict[str, Any]:
    """Return the machine: processor, cores, memory (bytes), system, GPUs, torch.

    Equal from one call to the next on the same machine and environment.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpus": [
            {"name": name, "driver": driver, "memory_bytes": n_bytes}
            for name, driver, n_bytes in gpus()
        ],
        "torch": torch_build(),
    }


def _read_around(path: Path, flags: int) -> float:
    """Bytes per second of reading a whole file once, four chunks in flight."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    size, flight = os.fstat(descriptor).st_size, 4
    # an anonymous map is aligned to pages, as direct input demands
    buffers = [mmap.mmap(-1, _CHUNK_BYTES) for _ in range(flight)]

    def read(part: int) -> None:
        for at in range(part * _CHUNK_BYTES, size, flight * _CHUNK_BYTES):
            os.preadv(descriptor, [buffers[part]], at)

    try:
        with ThreadPoolExecutor(flight) as pool:
            return size / seconds_of(lambda: list(pool.map(read, range(flight))))
    finally:
        os.close(descriptor)


def drain(folder: Path) -> tuple[float | None, str]:
    """Rate at which the disk of `folder` gives a file up, and how it was read.

    Bytes per second, the median of three readings of 256 MiB with nothing computed
    beside them, past the page cache ("direct") where the file system allows it. The
    file is made on demand. (None, why) where it cannot be measured.
    """
    if not hasattr(os, "preadv"):
        return None, "not measured: this system has no positioned reads"
    path = folder / "drain.bin"
    try:
        if not path.is_file() or path.stat().st_size != _DRAIN_BYTES:
            block = np.random.default_rng(0).bytes(_CHUNK_BYTES)
            write_whole(path, block * (_DRAIN_BYTES // _CHUNK_BYTES))
        direct = getattr(os, "O_DIRECT", 0)
        try:
            rates, how = [_read_around(path, direct) for _ in range(3)], "direct"
        except OSError:  # a file system without direct input
            rates, how = [_read_around(path, 0) for _ in range(3)], "buffered"
    except OSError as error:
        return None, f"not measured: {error.strerror}"
    return float(np.median(rates)), how if direct else "buffered"


def matmul_flops_per_s(size: int = 1024, repeats: int = 20) -> float:
    """Operations per second of the processor's float32 matrix product, at best."""
    matrix = np.ones((size, size), np.float32)
    product = functools.partial(np.matmul, matrix, matrix)
    product()  # the first one starts the threads
    return 2 * size**3 / min(seconds_of(product) for _ in range(repeats))


@functools.cache
def describe(folder: Path) -> dict[str, Any]:
    """`identity`, and two measured rates: of the disk of `folder` and of the processor.

    Takes about a second, once in a process.
    """
    rate, how = drain(folder)
    return identity() | {
        "drain_bytes_per_s": rate,
        "drain_how": how,
        "matmul_flops_per_s": matmul_flops_per_s(),
    }


def largest_resident_bytes(process: psutil.Process) -> int:
    """Largest resident set that a process has had (VmHWM); 0 once it is gone."""
    try:
        status = Path(f"/proc/{process.pid}/status")
        if status.is_file():
            hit = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
            return 1024 * int(hit[1]) if hit else 0
        return process.memory_info().rss
    except (OSError, psutil.Error):
        return 0


class Watch:
    """Sample the memory of a run's processes and the load average while it lasts.

    The processes are the child of this process with `word` in its command line, and all
    its descendants. `peak_memory_bytes` is the largest resident set of one process;
    `load_average` has the one-minute load at the start, its mean and its maximum.
    """

    def __init__(self, word: str) -> None:
        self.peak_memory_bytes = 0
        self._word = word
        self._loads = [psutil.getloadavg()[0]]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self._loads.append(psutil.getloadavg()[0])
            for child in psutil.Process().children():
                with suppress(psutil.Error):  # the process has ended
                    if self._word in child.cmdline():
                        each = map(
                            largest_resident_bytes, [child, *child.children(True)]
                        )
                        self.peak_memory_bytes = max(self.peak_memory_bytes, *each)

    @property
    def load_average(self) -> dict[str, float]:
        return {
            "start": round(self._loads[0], 2),
            "mean": round(float(np.mean(self._loads)), 2),
            "most": round(max(self._loads), 2),
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()


def versions() -> dict[str, str]:
    """Installed versions of the distributions that can change a number."""
    return {name: _version(name) for name in DISTRIBUTIONS}


@functools.cache  # a worker of a sweep asks for every point
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit(folder: Path) -> tuple[str, bool]:
    """The commit that `folder` is at, and whether what results depend on is committed.

    ('no repository', False) outside a checkout or without git.
    """

    def git(*words: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        head = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--", *SOURCES, "requirements*.lock")
    except FileNotFoundError:
        return "no repository", False
    return (head[:12], changes == "") if head else ("no repository", False)


def lock_hash(checkout: Path) -> str:
    """SHA-256 of the files that pin the environment."""
    return file_hash(checkout.glob("requirements*.lock"))
