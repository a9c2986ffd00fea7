"""A command inside a hard limit of memory, and what it really took and read.

The physical half of the meter: the kernel counts every page of the command, its page
cache included, and kills what does not fit. Control groups of version 1 and 2,
whichever holds the memory controller and may be written; elsewhere the largest resident
set is watched and the command killed past the limit, which is reported as "uncapped".
"""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import psutil

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.provenance import largest_resident_bytes
from thesis_lib.common.units import format_size

How = Literal["cgroup v1", "cgroup v2", "uncapped"]

PROC = Path("/proc")
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
    stdout: str  # empty where the output was not captured
    stderr: str
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


def confine(
    argv: Sequence[str | Path],
    limit_bytes: int,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    capture: bool = True,
    look_s: float = 0.02,
    proc: Path = PROC,
) -> Confined:
    """Run a command that may hold `limit_bytes` of memory at most, and wait for it.

    Swap counts too, or is forbidden. The group is removed afterwards, after an
    interrupt too, and processes that the command left in it are killed; what a killed
    caller leaves, the next call removes. Without `capture`
    the command writes to this process's own streams. Every `look_s` seconds its use is
    noted. Raises InvalidInput for a limit
    that is not positive; a command that is killed is reported, not raised.
    """
    require(limit_bytes > 0, f"limit_bytes={limit_bytes} must be positive")
    words = [str(word) for word in argv]
    group = _open_group(limit_bytes, proc)
    start = time.perf_counter()
    try:
        if group is not None:
            words = ["/bin/sh", "-c", _JOIN, str(group.members), *words]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                words,
                env=env,
                cwd=cwd,
                stdout=out if capture else None,
                stderr=err if capture else None,
            )
            watch = _Watch(process, group, limit_bytes, look_s)
            try:
                read_bytes = watch.wait()
            finally:
                if process.poll() is None:  # an interrupt: nothing may stay behind
                    process.kill()
                    process.wait()
            return Confined(
                how="uncapped" if group is None else group.how,
                limit_bytes=limit_bytes,
                peak_bytes=watch.peak_bytes,
                killed=watch.killed if group is None else group.kills() > 0,
                returncode=process.returncode,
                seconds=time.perf_counter() - start,
                read_bytes=read_bytes,
                stdout=_text(out),
                stderr=_text(err),
                use=tuple(watch.use),
            )
    finally:
        if group is not None:
            group.remove()


def how_confined(proc: Path = PROC) -> How:
    """What `confine` can do on this machine."""
    group = _open_group(2**30, proc)
    if group is None:
        return "uncapped"
    group.remove()
    return group.how


def read_from_disk_bytes(pid: int | Literal["self"] = "self") -> int | None:
    """Bytes that a process has fetched from storage, finished children included.

    Reads that the page cache served do not count. None where the system does not say.
    """
    try:
        text = (PROC / str(pid) / "io").read_text()
    except OSError:
        return None
    hit = re.search(r"^read_bytes: (\d+)$", text, re.MULTILINE)
    return int(hit[1]) if hit else None


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


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group of our own, and the names of its files in this version."""

    folder: Path
    how: How
    peak: str  # file with the largest number of bytes so far
    usage: str  # file with the number of bytes now
    anonymous: str  # entry of memory.stat that counts what is no page cache
    events: str  # file that counts kills

    @property
    def members(self) -> Path:
        return self.folder / "cgroup.procs"

    def peak_bytes(self) -> int:
        """Largest use so far; that of now where the kernel keeps no maximum."""
        for name in (self.peak, self.usage):
            if (path := self.folder / name).is_file():
                return int(path.read_text())
        return 0

    def use_bytes(self) -> tuple[int, int]:
        """Bytes now, and those of them that are no page cache."""
        now = int((self.folder / self.usage).read_text())
        return now, self._entry("memory.stat", self.anonymous)

    def kills(self) -> int:
        return self._entry(self.events, "oom_kill")

    def _entry(self, file: str, name: str) -> int:
        text = (self.folder / file).read_text()
        hit = re.search(rf"^{name} (\d+)$", text, re.MULTILINE)
        return int(hit[1]) if hit else 0

    def remove(self) -> None:
        """Kill what is left inside, and the group."""
        until = time.monotonic() + _EMPTY_S
        while True:
            for pid in self.members.read_text().split():
                with contextlib.suppress(ProcessLookupError):  # it ended by itself
                    os.kill(int(pid), signal.SIGKILL)
            try:
                _unmake(self.folder)
                return
            except OSError:  # a dying process counts as a member for a moment
                if time.monotonic() > until:
                    raise
                time.sleep(_LOOK_S)


def _make(folder: Path) -> None:
    folder.mkdir()  # the kernel puts the files into it


def _unmake(folder: Path) -> None:
    folder.rmdir()


def _open_group(limit_bytes: int, proc: Path) -> _Group | None:
    """A new group with the limit; None if no memory controller lets us make one."""
    for parent, version in _parents(proc):
        try:
            group = _limited(parent, version, limit_bytes)
        except OSError:
            continue  # not ours to write, or without the controller: the next one
        joins = ["/bin/sh", "-c", 'echo 0 > "$0"', str(group.members)]
        if subprocess.run(joins, stderr=subprocess.DEVNULL).returncode == 0:
            return group
        group.remove()
    return None


def _limited(parent: Path, version: int, limit_bytes: int) -> _Group:
    """A child of `parent` with a hard limit. Raises OSError, and leaves nothing."""
    _sweep(parent)
    folder = parent / f"thesis-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    if version == 2:
        enabled = parent / "cgroup.subtree_control"
        if "memory" not in enabled.read_text().split():
            enabled.write_text("+memory")  # refused where processes are in `parent`
    _make(folder)
    try:
        if version == 1:
            group = _Group(
                folder,
                "cgroup v1",
                "memory.max_usage_in_bytes",
                "memory.usage_in_bytes",
                "total_rss",
                "memory.oom_control",
            )
            (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
            (folder / "memory.swappiness").write_text("0")
            both = folder / "memory.memsw.limit_in_bytes"  # memory and swap together
            if both.exists():
                both.write_text(str(limit_bytes))
        else:
            group = _Group(
                folder,
                "cgroup v2",
                "memory.peak",
                "memory.current",
                "anon",
                "memory.events",
            )
            (folder / "memory.max").write_text(str(limit_bytes))
            swap = folder / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")
    except OSError:
        _unmake(folder)
        raise
    return group


def _sweep(parent: Path) -> None:
    """Remove the empty groups of processes that were killed and could not do it."""
    for folder in parent.glob("thesis-*-*"):
        if not psutil.pid_exists(int(folder.name.split("-")[1])):
            with contextlib.suppress(OSError):  # its command still runs in it
                _unmake(folder)


def _parents(proc: Path) -> Iterator[tuple[Path, int]]:
    """Groups under which ours may be made, the nearest first, with their version.

    In version 2 a group with processes cannot hand its memory to children, but one
    further up often does so already, and belongs to the user.
    """
    try:
        own = (proc / "self" / "cgroup").read_text().splitlines()
        mounts = (proc / "self" / "mountinfo").read_text().splitlines()
    except OSError:
        return  # not Linux
    paths: dict[int, str] = {}
    for line in own:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            paths[1] = path
        elif not controllers:
            paths[2] = path
    for version, kind in ((1, "cgroup"), (2, "cgroup2")):
        for line in mounts:
            before, _, after = line.partition(" - ")
            root, point = before.split()[3:5]
            name, *_, options = after.split()
            memory = version == 2 or "memory" in options.split(",")
            if name != kind or not memory or version not in paths:
                continue
            path = paths[version]
            if root != "/" and not f"{path}/".startswith(f"{root}/"):
                continue  # a mount of another part of the tree
            inside = path if root == "/" else path[len(root) :]
            group = Path(point + inside)
            yield group, version
            if version == 2:
                for ancestor in group.parents:
                    if not ancestor.is_relative_to(point):
                        break
                    yield ancestor, version


class _Watch:
    """Waits for a command and keeps what is gone once it is reaped."""

    def __init__(
        self,
        process: subprocess.Popen,
        group: _Group | None,
        limit_bytes: int,
        look_s: float,
    ) -> None:
        self._process = process
        self._group = group
        self._limit_bytes = limit_bytes
        self._look_s = look_s
        self.peak_bytes = 0
        self.killed = False
        self.use: list[tuple[float, int, int]] = []

    def wait(self) -> int | None:
        """Return when the command has ended: the bytes it read from storage."""
        read_bytes, start = None, time.perf_counter()
        while not self._has_ended():
            now_bytes, anonymous_bytes = self._look()
            self.use.append((time.perf_counter() - start, now_bytes, anonymous_bytes))
            read_bytes = read_from_disk_bytes(self._process.pid)
            time.sleep(self._look_s)
        # Ended but not reaped: its counters still stand.
        ended_bytes = read_from_disk_bytes(self._process.pid)
        self._process.wait()
        if self._group is not None:
            self.peak_bytes = max(self.peak_bytes, self._group.peak_bytes())
        return read_bytes if ended_bytes is None else ended_bytes

    def _has_ended(self) -> bool:
        if not hasattr(os, "waitid"):
            return self._process.poll() is not None
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is not None

    def _look(self) -> tuple[int, int]:
        if self._group is not None:
            self.peak_bytes = max(self.peak_bytes, self._group.peak_bytes())
            return self._group.use_bytes()
        family = _family(self._process.pid)
        most_bytes = max(map(largest_resident_bytes, family), default=0)
        self.peak_bytes = max(self.peak_bytes, most_bytes)
        if self.peak_bytes > self._limit_bytes:
            self.killed = True
            for process in reversed(family):
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
                    process.kill()
        return most_bytes, most_bytes


def _family(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")
