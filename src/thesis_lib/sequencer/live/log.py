"""What happened in front of a service, and what was decided: written, read, replayed.

A line of JSON for each event, after one that says how it began. Whoever is told the
events of a log decides as it says, bit for bit: times and estimates are
written so that they are read back as they were. And of a log in which nobody was
refused every service time is known, so that any policy can be tried on it.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.sequencer.live.machine import Counts, Decided, LiveSequencer
from thesis_lib.sequencer.policies.registry import Rule

SCHEMA = "thesis-live-log/1"
_SAYS = logging.getLogger(__name__)


class DecisionLog:
    """A new file at `path` that every event of `sequencer` is written to.

    A line is handed to the system at once, so a process that is killed loses none
    that it has answered. Where the disk is full the log ends with its last whole line
    and says so in the log of the process; requests are served on. Raises InvalidInput
    where there is a file already.
    """

    def __init__(self, path: Path | str, sequencer: LiveSequencer) -> None:
        require(
            sequencer.note is None and sequencer.counts.arrived == 0,
            "this sequencer has begun, or its events are noted elsewhere: expected a "
            "new one, since a log begins with its service",
        )
        first = json.dumps({"schema": SCHEMA} | sequencer.settings()).encode() + b"\n"
        try:
            self._file = Path(path).open("xb", buffering=0)  # noqa: SIM115
        except FileExistsError as error:
            raise InvalidInput(
                f"{path} is there already: expected a new file, since a log begins "
                "with its service; name another, or move it away"
            ) from error
        except OSError as error:
            raise InvalidInput(f"no log can be written to {path}: {error}") from error
        self.path, sequencer.note = Path(path), self._write
        self._append(first)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file.closed:
            return
        self._append(json.dumps(entry, allow_nan=False).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        end = self._file.tell()
        try:
            written = self._file.write(line)
        except OSError as error:
            self._end_at(end, error)
            return
        if written != len(line):
            self._end_at(end, OSError("the line was cut"))

    def _end_at(self, end: int, error: OSError) -> None:
        _SAYS.error("%s ends here, and its service goes on: %s", self.path, error)
        try:
            self._file.truncate(end)
        finally:
            self._file.close()

    def close(self) -> None:
        """Write nothing more."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay saw: how many events, starts and refusals, and where it differs."""

    events: int
    started: int
    refused: int
    differs_at: int | None  # the first line that says something else, from 1
    fault: str | None  # why requests were served in order of arrival from then on


def replay(path: Path | str, policy: str | Rule | None = None) -> Replayed:
    """Tell a new sequencer the events of a log, and compare what it decides.

    It ends at the first difference. `policy` stands in the place of the one that the
    log names, and is needed where that was a function. A last line that was cut by a
    kill is left out. Raises InvalidInput for a file that is no log.
    """
    path = Path(path)
    entries = _entries(path)
    live = _begun(path, entries, policy)
    events = started = refused = 0
    for number, entry in enumerate(entries, start=2):
        try:
            made = _tell(live, entry)
        except (InvalidInput, KeyError, TypeError, ArithmeticError) as error:
            raise InvalidInput(f"{path}, line {number}: {error}") from error
        events, started = events + 1, started + len(made.started)
        refused += len(made.refused)
        if (made.started, made.refused) != (
            entry.get("start", []), entry.get("refuse", []),
        ):  # fmt: skip
            return Replayed(events, started, refused, number, live.fault)
    return Replayed(events, started, refused, None, live.fault)


END, LEAVE, ARRIVE = range(3)  # what happens, in this order at one time


def what_if(path: Path | str, policy: str | Rule) -> Counts:
    """What would have become of the requests of a log under another `policy`.

    It is told the arrivals of the log, and the ends as its own starts and the service
    times of the log make them; whoever left before it was served leaves when it did,
    and who had not ended when the log ends is left out. It learns its estimates anew,
    and refuses at the next arrival or end whom a service refuses at a deadline. Service
    times stay as they were, so the log is best of the same number of workers, and as
    full. Raises InvalidInput for a file that is no log, for one in which
    somebody was refused, of whom nobody knows what it would have taken, and for a
    policy that fails.
    """
    path = Path(path)
    entries = _entries(path)
    live = _begun(path, entries, policy)
    past = _past(path, entries)
    events = [(past.arrived_s[n], ARRIVE, n) for n in past.arrived_s]
    events += [(past.left_s[n], LEAVE, n) for n in past.left_s]
    heapify(events)
    while events:
        now_s, what, number = heappop(events)
        if what == ARRIVE:
            made = live.arrive(number, now_s, **past.about[number])
        elif number not in live:
            continue
        else:
            made = live.end(number, now_s) if what == END else live.leave(number, now_s)
        for begun in made.started:
            if begun in past.took_s:
                over = LEAVE if begun in past.cut else END
                heappush(events, (now_s + past.took_s[begun], over, begun))
    require(live.fault is None, live.fault or "")
    return live.counts


@dataclass(slots=True)
class _Past:
    """What a log knows of its requests, by their numbers."""

    arrived_s: dict[int, float] = field(default_factory=dict)
    about: dict[int, dict[str, Any]] = field(default_factory=dict)
    started_s: dict[int, float] = field(default_factory=dict)
    took_s: dict[int, float] = field(default_factory=dict)
    left_s: dict[int, float] = field(default_factory=dict)  # before they started
    cut: set[int] = field(default_factory=set)  # left while they ran

    def add(self, entry: dict[str, Any]) -> None:
        now_s = float(entry["t"])
        if "arrive" in entry:
            number = int(entry["arrive"])
            self.arrived_s[number] = now_s
            self.about[number] = {k: entry[k] for k in ("kind", "features", "slo_s")}
        elif "leave" in entry and entry["leave"] not in self.started_s:
            self.left_s[int(entry["leave"])] = now_s
        elif "look" not in entry:
            number = entry["leave" if "leave" in entry else "end"]
            self.took_s[number] = now_s - self.started_s[number]
            if "leave" in entry:
                self.cut.add(number)
        self.started_s |= dict.fromkeys(entry.get("start", []), now_s)


def _past(path: Path, entries: Iterator[dict[str, Any]]) -> _Past:
    """All that have ended or left, of a log in which nobody was refused."""
    past = _Past()
    for line, entry in enumerate(entries, start=2):
        try:
            past.add(entry)
            refused = list(entry.get("refuse", []))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{path}, line {line}: {error!r}") from error
        require(
            not refused,
            f"{path}, line {line}: requests {refused} were refused, and nobody knows "
            "how long they would have taken: expected a log in which all were served, "
            "as `fifo` serves them",
        )
    over = past.took_s.keys() | past.left_s.keys()
    for number in past.arrived_s.keys() - over:
        del past.arrived_s[number]
    return past


def _begun(
    path: Path, entries: Iterator[dict[str, Any]], policy: str | Rule | None
) -> LiveSequencer:
    """A sequencer that begins as that of the log at `path` did."""
    first = next(entries, {})
    require(
        first.get("schema") == SCHEMA,
        f"{path} is no log of a live sequencer: expected its first line to be of the "
        f"schema {SCHEMA}",
    )
    named = {"schema", "policy", "own"}
    options = {key: first[key] for key in first if key not in named}
    require(
        policy is not None or not first.get("own"),
        f"the policy of {path} was a function, {first.get('policy')}: hand it to "
        "replay as `policy`",
    )
    try:
        return LiveSequencer(policy or first.get("policy", ""), **options)
    except (InvalidInput, TypeError) as error:
        raise InvalidInput(f"{path}, line 1: {error}") from error


def _tell(live: LiveSequencer, entry: dict[str, Any]) -> Decided:
    """Tell `live` one event of a log."""
    now_s = entry["t"]
    if "arrive" in entry:
        about = {key: entry[key] for key in ("kind", "features", "slo_s", "estimate_s")}
        return live.arrive(entry["arrive"], now_s, **about)
    if "end" in entry:
        return live.end(entry["end"], now_s)
    if "leave" in entry:
        return live.leave(entry["leave"], now_s)
    require("look" in entry, "expected an event: arrive, end, leave or look")
    return live.look(now_s)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InvalidInput(f"{path}, line {number}: {error}") from error
                require(isinstance(entry, dict), f"{path}, line {number}: no object")
                yield entry
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
