"""The processor of this machine, and measurements that other processes disturb.

A disturbed measurement is repeated; where no try was undisturbed, a mark stays with
what is published of it.
"""

import functools
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import psutil

# Other processes disturb a measurement when they take more than this of a core while
# less than another one is idle, or move more than this share of what it moves itself.
_OTHER_CORES = 0.1
_IDLE_CORES = 1.0
_OTHER_BYTES = 0.25
_LEAST_S = 0.05  # the system counts in ticks of a hundredth
_LEAST_BYTES = 64 * 2**20
_PATIENCE_S = 30.0  # beyond which a measurement is not repeated

P = ParamSpec("P")
T = TypeVar("T")


def seconds_of(work: Callable[[], object]) -> float:
    """Measure the time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_line(*names: str) -> str:
    """Return Linux' entry for the first processor under one of these names, or ''."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(names):
                return line.partition(":")[2].strip()
    return ""


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    return cpu_line("model name") or platform.processor() or platform.machine()


class Usage(NamedTuple):
    """Processor time of this process with its children, and of all others."""

    wall_s: float
    own_s: float  # processor, children included
    others_s: float  # of all others on the same cores, other guests of a host included
    idle_s: float
    own_bytes: int  # from and to disks
    disk_bytes: dict[str, int]  # by disk

    @classmethod
    def read(cls) -> "Usage":
        """Read the counters; those that this system has not are zero."""
        this, own_s, own_bytes = psutil.Process(), 0.0, 0
        for process in [this, *this.children(recursive=True)]:
            with suppress(psutil.Error):
                own_s += sum(process.cpu_times()[:4])  # waited-for children included
                if hasattr(process, "io_counters"):
                    moved = process.io_counters()
                    own_bytes += moved.read_bytes + moved.write_bytes
        cores = psutil.cpu_times(percpu=True)
        if hasattr(os, "sched_getaffinity"):
            mine = os.sched_getaffinity(0)
            cores = [core for i, core in enumerate(cores) if i in mine]
        busy = ("user", "system", "nice", "steal")
        disks = {}
        with suppress(OSError, RuntimeError):
            disks = psutil.disk_io_counters(perdisk=True) or {}
        return cls(
            wall_s=time.perf_counter(),
            own_s=own_s,
            others_s=sum(getattr(c, name, 0.0) for c in cores for name in busy) - own_s,
            idle_s=sum(c.idle + getattr(c, "iowait", 0.0) for c in cores),
            own_bytes=own_bytes,
            disk_bytes={n: d.read_bytes + d.write_bytes for n, d in disks.items()},
        )

    def since(self, start: "Usage") -> "Usage":
        """Return what was used between two readings."""
        before = start.disk_bytes
        return Usage(
            wall_s=self.wall_s - start.wall_s,
            own_s=self.own_s - start.own_s,
            others_s=self.others_s - start.others_s,
            idle_s=self.idle_s - start.idle_s,
            own_bytes=self.own_bytes - start.own_bytes,
            disk_bytes={n: at - before.get(n, 0) for n, at in self.disk_bytes.items()},
        )

    @property
    def disturbance(self) -> str:
        """Describe the disturbance between two readings; "" for none."""
        causes = []
        taken = self.others_s / self.wall_s
        scarce = self.idle_s < _IDLE_CORES * self.wall_s
        if self.others_s > _LEAST_S and taken > _OTHER_CORES and scarce:
            own = self.own_s / self.wall_s
            causes.append(f"others took {taken:.2f} cores, it {own:.2f}")
        # Its own disk is not known by name: that which moved most meanwhile.
        moved = max(self.disk_bytes.values(), default=0) - self.own_bytes
        if moved > _LEAST_BYTES and moved > _OTHER_BYTES * self.own_bytes > 0:
            causes.append(f"others moved {moved / 1e6:,.0f} MB on its disk")
        return "; ".join(causes)


_disturbances: list[str] = []  # of the measurements since the last that was asked for
_asked = False
_watching = False


def undisturbed(measure: Callable[[], T], tries: int = 3) -> T:
    """Repeat `measure` while others disturb it, `tries` times at most.

    The least disturbed one counts, and where that was disturbed too `disturbances`
    says so. A measurement is not begun again after half a minute. Within another one
    it is a part of that, and is only made.
    """
    global _asked, _watching
    if _watching:
        return measure()
    if _asked:
        _disturbances.clear()
        _asked = False
    begun, results = time.perf_counter(), []
    _watching = True
    try:
        while True:
            start = Usage.read()
            result = measure()
            used = Usage.read().since(start)
            results.append((used.others_s / used.wall_s, used.disturbance, result))
            spent_s = time.perf_counter() - begun
            if not used.disturbance or len(results) >= tries or spent_s > _PATIENCE_S:
                break
    finally:
        _watching = False
    _, disturbance, result = min(results, key=lambda one: (one[1] != "", one[0]))
    if disturbance:
        _disturbances.append(disturbance)
    return result


def measurement(function: Callable[P, T]) -> Callable[P, T]:
    """A function that times something, called again while others disturb it."""

    @functools.wraps(function)
    def watched(*args: P.args, **options: P.kwargs) -> T:
        return undisturbed(lambda: function(*args, **options))

    return watched


def disturbances() -> tuple[str, ...]:
    """Return the disturbances of this process's measurements since the last query.

    They stay until the next measurement begins, so that all that is published of one
    hears the same.
    """
    global _asked
    _asked = True
    return tuple(dict.fromkeys(_disturbances))
