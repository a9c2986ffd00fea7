"""A command inside a hard limit of memory, and what it took and read.

The kernel counts every page of the command, its page cache included, and kills what
does not fit: control groups of version 1 or 2, whichever has the memory controller and
may be written. Elsewhere the largest resident set is watched and the command killed
past the limit, which is reported as "uncapped".
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, Self

import psutil
from record import calling

from thesis_book.execute.provenance import largest_resident_bytes
from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.units import format_size

How = Literal["cgroup v1", "cgroup v2", "uncapped"]

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_LOOK_S = 0.02  # between two looks at an ending command
_EMPTY_S = 5.0  # until a killed group must be empty
# The shell joins the group and becomes the command: no page is charged elsewhere.
_JOIN = 'echo 0 > "$0" && exec "$@"'


class OverLimit(InvalidInput):
    """A command that did not fit into its memory and was killed."""


@dataclass(frozen=True, slots=True)
class Confined:
    """What a command in a memory limit took and left."""

    how: How
    limit_bytes: int
    peak_bytes: int  # of the group, page cache included; uncapped: of one process
    killed: bool  # at the limit
    returncode: int  # negative: the signal that ended it
    seconds: float
    read_bytes: int | None  # from storage, with its children; None: not known here
    stdout: str
    # At each look: seconds since the start, bytes held, and those of them that are no
    # page cache; uncapped both are the largest resident set of one.
    use: tuple[tuple[float, int, int], ...] = ()

    def check(self) -> "Confined":
        """This, or OverLimit if the command was killed at its limit."""
        if self.killed:
            raise OverLimit(
                f"the command was killed at its limit of "
                f"{format_size(self.limit_bytes)} ({self.how}, peak "
                f"{format_size(self.peak_bytes)}): expected to fit; give it more memory"
            )
        return self

    @property
    def report(self) -> Any:
        """What the function of `confined_call` returned; None where it did not."""
        return None if self.returncode else json.loads(self.stdout.splitlines()[-1])

    @property
    def physical(self) -> dict[str, Any]:
        """What a record keeps of it."""
        return {
            "how": self.how,
            "limit_bytes": self.limit_bytes,
            "peak_bytes": self.peak_bytes,
            "process_read_bytes": self.read_bytes,
            "use": thinned([[round(s, 2), *n_bytes] for s, *n_bytes in self.use]),
        }


def thinned(points: Sequence[Sequence[float]], most: int = 300) -> list[list[float]]:
    """At most `most` of the rows, evenly, the first among them."""
    every = max(1, -(-len(points) // most))
    return [list(row) for row in points[::every]]


def confined_call(
    function: Callable[..., Any], limit_bytes: int, look_s: float = 0.1, **options: Any
) -> Confined:
    """A function of a script, called in a process of its own: its `report`.

    What it is given and what it returns travels as JSON, a path as its name.
    """
    return confine(calling(function, **options), limit_bytes, look_s)


def confine(
    argv: Sequence[str | Path], limit_bytes: int, look_s: float = 0.02
) -> Confined:
    """Run a command that may hold `limit_bytes` of memory at most, and wait for it.

    Swap counts too, or is forbidden. The group is removed afterwards, also after an
    interrupt, and processes that the command left in it are killed. Messages go to this
    process's own stream. Every `look_s` seconds its use is noted. Raises InvalidInput
    for a limit that is not positive; a command that is killed is reported, not raised.
    """
    require(limit_bytes > 0, f"limit_bytes={limit_bytes} must be positive")
    words = [str(word) for word in argv]
    start = time.perf_counter()
    with _open_group(limit_bytes) as group, tempfile.TemporaryFile() as out:
        process = subprocess.Popen([*group.joins, *words], stdout=out)
        try:
            use, read_bytes = _watch(process, group, look_s)
        finally:
            if process.poll() is None:  # an interrupt: nothing may stay behind
                process.kill()
                process.wait()
        out.seek(0)
        return Confined(
            how=group.how,
            limit_bytes=limit_bytes,
            peak_bytes=group.peak_bytes,
            killed=group.kills() > 0,
            returncode=process.returncode,
            seconds=time.perf_counter() - start,
            read_bytes=read_bytes,
            stdout=out.read().decode(errors="replace"),
            use=tuple(use),
        )


def how_confined() -> How:
    """Return what `confine` can do on this machine."""
    with _open_group(2**30) as group:
        return group.how


def read_from_disk_bytes(pid: int | Literal["self"] = "self") -> int | None:
    """Bytes that a process has fetched from storage, finished children included.

    Reads that the page cache served do not count. None where the system does not say.
    """
    try:
        return _entry(PROC / str(pid) / "io", "read_bytes:")
    except OSError:
        return None


def decoded(steps: Iterable[tuple[float, int]]) -> dict[str, Any]:
    """Of greedy steps, each its seconds and its token: these, and the bytes read.

    The step of the whole prompt stands apart, as `first_token_s`; bytes are those of
    the steps behind it.
    """
    seconds, tokens, read = [], [], [read_from_disk_bytes() or 0]
    for taken_s, token in steps:
        seconds.append(taken_s)
        tokens.append(token)
        read.append(read_from_disk_bytes() or 0)
    return {
        "first_token_s": seconds[0],
        "seconds": seconds[1:],
        "read_bytes": [after - before for before, after in pairwise(read)][1:],
        "tokens": tokens,
    }


def forget_pages(paths: Iterable[Path]) -> None:
    """Drop files from the page cache, so that the next reads reach the disk.

    Pages that a process has mapped stay. Does nothing where the system has no advice.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # a page that is not written yet cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


class _Uncapped:
    """No group: the largest resident set is watched, and killed past the limit."""

    how: How = "uncapped"
    joins: tuple[str, ...] = ()

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self.peak_bytes = limit_bytes, 0

    def look(self, pid: int) -> tuple[int, int]:
        """Return the largest resident set of a process and its children, twice."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
            family = [psutil.Process(pid), *psutil.Process(pid).children(True)]
        most_bytes = max(map(largest_resident_bytes, family), default=0)
        self.peak_bytes = max(self.peak_bytes, most_bytes)
        for process in reversed(family) if self.kills() else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return most_bytes, most_bytes

    def kills(self) -> int:
        return int(self.peak_bytes > self._limit_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Files(NamedTuple):
    """The files of a control group, by its version."""

    how: How
    peak: str  # largest number of bytes so far, which old kernels lack
    usage: str  # number of bytes now
    anonymous: str  # entry of memory.stat that counts all but the page cache
    events: str  # counts kills
    # What is written into which file, the limit first; a kernel may lack the others.
    limits: dict[str, str]


_FILES = {
    1: _Files(
        "cgroup v1", "memory.max_usage_in_bytes", "memory.usage_in_bytes", "total_rss",
        "memory.oom_control",
        {
            "memory.limit_in_bytes": "{limit}",
            "memory.swappiness": "0",
            "memory.memsw.limit_in_bytes": "{limit}",  # memory and swap together
        },
    ),
    2: _Files(
        "cgroup v2", "memory.peak", "memory.current", "anon", "memory.events",
        {"memory.max": "{limit}", "memory.swap.max": "0"},
    ),
}  # fmt: skip


class _Group:
    """A new control group with a limit. Raises OSError where `parent` takes none."""

    def __init__(self, parent: Path, version: int, limit_bytes: int) -> None:
        self.files, self._most_bytes = _FILES[version], 0
        self.how: How = self.files.how
        self.folder = parent / f"thesis-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.members = self.folder / "cgroup.procs"
        # The words before those of a command that is to run in it.
        self.joins = ("/bin/sh", "-c", _JOIN, str(self.members))
        if version == 2:
            enabled = parent / "cgroup.subtree_control"
            if "memory" not in enabled.read_text().split():
                enabled.write_text("+memory")  # fails where `parent` has processes
        self.folder.mkdir()  # the kernel puts the files into it
        try:
            for number, (name, text) in enumerate(self.files.limits.items()):
                if number == 0 or (self.folder / name).exists():
                    (self.folder / name).write_text(text.format(limit=limit_bytes))
        except OSError:
            self.folder.rmdir()
            raise

    @property
    def peak_bytes(self) -> int:
        """Largest use so far; that of all looks where the kernel keeps no maximum."""
        kept = (self.folder / self.files.peak).is_file()
        name = self.files.peak if kept else self.files.usage
        self._most_bytes = max(self._most_bytes, int((self.folder / name).read_text()))
        return self._most_bytes

    def look(self, pid: int) -> tuple[int, int]:
        """Return bytes now, and those of them that are no page cache."""
        now = int((self.folder / self.files.usage).read_text())
        return min(now, self.peak_bytes), self._entry(
            "memory.stat", self.files.anonymous
        )

    def kills(self) -> int:
        return self._entry(self.files.events, "oom_kill")

    def _entry(self, file: str, name: str) -> int:
        return _entry(self.folder / file, name) or 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what is left inside, and remove the group."""
        until = time.monotonic() + _EMPTY_S
        while True:
            for pid in self.members.read_text().split():
                with contextlib.suppress(ProcessLookupError):  # it ended by itself
                    os.kill(int(pid), signal.SIGKILL)
            try:
                self.folder.rmdir()
                return
            except OSError:  # a dying process counts as a member for a moment
                if time.monotonic() > until:
                    raise
                time.sleep(_LOOK_S)


def _entry(file: Path, name: str) -> int | None:
    """The number behind a name that begins a line of a file; None without it."""
    lines = map(str.split, file.read_text().splitlines())
    return next((int(words[1]) for words in lines if words[0] == name), None)


def _open_group(limit_bytes: int) -> _Group | _Uncapped:
    """A new group with the limit, where a memory controller lets us make one."""
    for parent, version in _parents():
        try:
            group = _Group(parent, version, limit_bytes)
        except OSError:
            continue  # not ours to write, or without the controller: the next one
        joins = [*group.joins, "true"]
        if subprocess.run(joins, stderr=subprocess.DEVNULL).returncode == 0:
            return group
        group.__exit__()
    return _Uncapped(limit_bytes)


def _parents() -> Iterator[tuple[Path, int]]:
    """Groups under which one may be made, the nearest first, with their version.

    In version 2 a group with processes cannot hand its memory to children, but one
    further up often does so already, and belongs to the user. In a container the tree
    may be mounted without what lies above its own group.
    """
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return  # not Linux
    unified = CGROUPS / "unified"
    tops = {1: CGROUPS / "memory", 2: unified if unified.is_dir() else CGROUPS}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version, own = 1 if controllers else 2, PurePosixPath(path)
        for each in (own, *own.parents):
            group = tops[version] / each.relative_to("/")
            if group.is_dir():
                yield group, version


def _watch(
    process: subprocess.Popen, group: _Group | _Uncapped, look_s: float
) -> tuple[list[tuple[float, int, int]], int | None]:
    """Wait for a command: its use at each look, and the bytes it read from storage."""
    use, read_bytes, start = [], None, time.perf_counter()
    while not _has_ended(process):
        held = group.look(process.pid)
        use.append((time.perf_counter() - start, *held))
        read_bytes = read_from_disk_bytes(process.pid)
        time.sleep(look_s)
    # Ended but not reaped: its counters still stand.
    ended_bytes = read_from_disk_bytes(process.pid)
    process.wait()
    return use, read_bytes if ended_bytes is None else ended_bytes


def _has_ended(process: subprocess.Popen) -> bool:
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, flags) is not None
