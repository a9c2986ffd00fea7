"""What happened in front of a service, and what was decided: written, read, replayed.

A line of JSON for each event, after one that says how it began. Whoever is told the
events of a log decides as it says, bit for bit: times and estimates are
written so that they are read back as they were. And of a log in which nobody was
refused every service time is known, so that any policy can be tried on it.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

from thesis_lib.common.errors import (
    InvalidInput,
    open_regular,
    parse_object,
    require,
    shown,
)
from thesis_lib.sequencer.policies.registry import OwnRule
from thesis_serve.admission.estimator import ServiceEstimator
from thesis_serve.admission.machine import Counts, Decided, LiveSequencer

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


def replay(path: Path | str, policy: str | OwnRule | None = None) -> Replayed:
    """Tell a new sequencer the events of a log, and compare what it decides.

    It ends at the first difference. `policy` stands in the place of the one that the
    log names, and is needed where that was a function. A last line that was cut by a
    kill is left out. Raises InvalidInput for a file that is no log.
    """
    events = started = refused = 0
    live = None
    for number, entry, made, live in _retold(Path(path), policy):
        events, started = events + 1, started + len(made.started)
        refused += len(made.refused)
        if not _as_logged(entry, made):
            return Replayed(events, started, refused, number, live.fault)
    fault = None if live is None else live.fault
    return Replayed(events, started, refused, None, fault)


def _as_logged(entry: dict[str, Any], made: Decided) -> bool:
    logged = entry.get("start", []), entry.get("refuse", [])
    return (made.started, made.refused) == logged


def _retold(
    path: Path, policy: str | OwnRule | None
) -> Iterator[tuple[int, dict[str, Any], Decided, LiveSequencer]]:
    """The events of a log by their lines, and what a new sequencer decides at each.

    Raises InvalidInput for what is no log, and by its line for what is no event.
    """
    entries = _entries(path)
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
        live = LiveSequencer(policy or first.get("policy", ""), **options)
    except (InvalidInput, TypeError) as error:
        raise InvalidInput(f"{path}, line 1: {_cause(error)}") from error
    for number, entry in enumerate(entries, start=2):
        try:
            made = _tell(live, entry)
        except (
            *(InvalidInput, KeyError, TypeError, ValueError, ArithmeticError),
        ) as error:
            raise InvalidInput(f"{path}, line {number}: {_cause(error)}") from error
        yield number, entry, made, live


def _cause(error: Exception) -> str:
    """What is wrong with a line, in words of this package alone."""
    if isinstance(error, InvalidInput):
        return str(error)
    if isinstance(error, KeyError):
        return f"{shown(error.args[0])} is missing: expected all fields of an event"
    return "a field has the wrong type or size: expected fields as a log writes them"


END, FAIL, LEAVE, ARRIVE, LOOK = range(5)  # what happens, in this order at one time


def what_if(
    path: Path | str, policy: str | OwnRule, estimator: ServiceEstimator | None = None
) -> Counts:
    """What would have become of the requests of a log under another `policy`.

    It is told the arrivals of the log, and the ends as its own starts and the service
    times of the log make them. Whoever left before it was served leaves when it did;
    if it starts before, it takes the mean of its kind. Whoever failed fails after as
    long, and whoever left while it ran leaves likewise. Who had not ended when the log
    ends is left out. Estimates are learned anew, by `estimator` if it is given. Service
    times stay as they were, so the log is best of the same number of workers, and as
    full. Raises InvalidInput for a file that is no log or does not replay, for one in
    which somebody was refused, of whom nobody knows what it would have taken, for a
    policy that fails, and for one without a timer for its batches where the sequencer
    of the log had no `flush_s`.
    """
    past, settings = _past(Path(path))
    options = {key: settings[key] for key in settings.keys() - {"policy", "own"}}
    live = LiveSequencer(policy, estimator=estimator, **options)
    events = [(request.arrived_s, ARRIVE, n) for n, request in enumerate(past)]
    events += [(r.left_s, LEAVE, n) for n, r in enumerate(past) if r.left_s < inf]
    heapify(events)
    look_s = inf
    while events:
        now_s, what, number = heappop(events)
        if what == ARRIVE:
            made = live.arrive(number, now_s, **past[number].about)
        elif what == LOOK:
            if now_s != look_s:  # what it was for is no longer the next
                continue
            made = live.look(now_s)
        elif number not in live:
            continue
        elif what == LEAVE:
            made = live.leave(number, now_s)
        else:
            made = live.end(number, now_s, failed=what == FAIL)
        for begun in made.started:
            if past[begun].took_s < inf:
                over_s = now_s + past[begun].took_s
                heappush(events, (over_s, past[begun].how, begun))
        due_s = live.next_look_s
        if due_s not in (look_s, inf):
            heappush(events, (due_s, LOOK, 0))
        look_s = due_s
    require(live.fault is None, live.fault or "")
    return live.counts


@dataclass(slots=True)
class _Request:
    """What a log says of a request; what it does not say is infinite."""

    arrived_s: float
    about: dict[str, Any]
    started_s: float = inf
    took_s: float = inf
    left_s: float = inf  # before it started
    how: int = END  # it ended; or FAIL, or LEAVE: its client left while it ran


def _past(path: Path) -> tuple[list[_Request], dict[str, Any]]:
    """The requests of a log that have ended or left, by arrival, and its settings."""
    requests: list[_Request] = []
    here: dict[int, _Request] = {}
    settings: dict[str, Any] = {}
    for line, entry, made, live in _retold(path, None):
        settings, now_s = live.settings(), live.now_s
        require(
            _as_logged(entry, made),
            f"{path}, line {line}: a replay decides otherwise, so starts and ends "
            "cannot be believed: expected a log as it was written",
        )
        require(
            not made.refused,
            f"{path}, line {line}: requests {made.refused} were refused, and nobody "
            "knows how long they would have taken: expected a log in which all were "
            "served, as of `fifo` with `most_waiting` out of reach",
        )
        if "arrive" in entry:
            about = {key: entry[key] for key in ("kind", "features", "slo_s")}
            requests.append(_Request(now_s, about))
            here[entry["arrive"]] = requests[-1]
        elif "look" not in entry:
            over = here.pop(entry["end" if "end" in entry else "leave"])
            if over.started_s < inf:
                over.took_s = now_s - over.started_s
                over.how = LEAVE if "leave" in entry else _end_of(entry)
            else:
                over.left_s = now_s
        for number in made.started:
            here[number].started_s = now_s
    require(len(requests) > 0, f"{path} holds no request: expected one that was served")
    past = [r for r in requests if min(r.took_s, r.left_s) < inf]
    kinds: dict[str, list[float]] = {}
    for request in past:
        if request.took_s < inf and request.how == END:
            kinds.setdefault(request.about["kind"], []).append(request.took_s)
    for request in past:
        if request.took_s == inf and request.about["kind"] in kinds:
            request.took_s = fmean(kinds[request.about["kind"]])
    return past, settings


def _end_of(entry: dict[str, Any]) -> int:
    """How a request ended, as a line says that tells it."""
    failed = entry.get("failed", False)
    require(isinstance(failed, bool), f"failed={failed!r}: expected true or false")
    return FAIL if failed else END


def _tell(live: LiveSequencer, entry: dict[str, Any]) -> Decided:
    """Tell `live` one event of a log."""
    now_s = entry["t"]
    if "arrive" in entry:
        about = {key: entry[key] for key in ("kind", "features", "slo_s", "estimate_s")}
        return live.arrive(entry["arrive"], now_s, **about)
    if "end" in entry:
        return live.end(entry["end"], now_s, failed=_end_of(entry) == FAIL)
    if "leave" in entry:
        return live.leave(entry["leave"], now_s)
    require("look" in entry, "expected an event: arrive, end, leave or look")
    return live.look(now_s)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log."""
    try:
        with open(open_regular(path), "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                yield parse_object(line, f"{path}, line {number}", "an event of a log")
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read ({error.strerror}): expected a decision log"
        ) from error
