"""Write, read and replay the log of an admission controller.

The first line is JSON and holds the configuration; one line follows for each event.
Times and estimates are written so that reading restores their bits. A controller that
receives the same events therefore decides the same.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thesis_lib.common.errors import (
    InvalidInput,
    open_regular,
    parse_object,
    require,
    shown,
)
from thesis_lib.sequencer.policies.registry import OwnRule
from thesis_serve.admission.machine import Decided, LiveSequencer

SCHEMA = "thesis-live-log/1"
_SAYS = logging.getLogger(__name__)


class DecisionLog:
    """Write every event of `sequencer` to a new file at `path`.

    Each line is written at once, so that a killed process loses no answered request.
    If the disk is full, the log ends with its last whole line and serving continues.
    Raises InvalidInput if the file exists or cannot be written.
    """

    def __init__(self, path: Path | str, sequencer: LiveSequencer) -> None:
        require(
            sequencer.note is None and sequencer.counts.arrived == 0,
            "this sequencer has begun, or its events are noted elsewhere: expected a "
            "new one, since a log begins with its service",
        )
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
        self._write({"schema": SCHEMA} | sequencer.settings())

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file.closed:
            return
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        end = self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError("the line was cut")
        except OSError as error:
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
    """Counts of a replay: events, starts and rejections, and where it differs."""

    events: int
    started: int
    refused: int
    differs_at: int | None  # the first line that says something else, from 1
    fault: str | None  # why requests were served in order of arrival from then on


def replay(path: Path | str, policy: str | OwnRule | None = None) -> Replayed:
    """Replay a log of decisions in a new sequencer, up to the first difference.

    Args:
        path: The log; a last line that a kill cut short is ignored.
        policy: Policy instead of the logged one; required if that was a function.

    Raises:
        InvalidInput: If the file is not a log.
    """
    events = started = refused = 0
    differs_at = fault = None
    for number, entry, decided, live in retell(Path(path), policy):
        events, started = events + 1, started + len(decided.started)
        refused, fault = refused + len(decided.refused), live.fault
        if not is_as_logged(entry, decided):
            differs_at = number
            break
    return Replayed(events, started, refused, differs_at, fault)


def is_as_logged(entry: dict[str, Any], decided: Decided) -> bool:
    """Return whether `decided` is what the line `entry` of a log says was decided."""
    logged = entry.get("start", []), entry.get("refuse", [])
    return (decided.started, decided.refused) == logged


def retell(
    path: Path, policy: str | OwnRule | None
) -> Iterator[tuple[int, dict[str, Any], Decided, LiveSequencer]]:
    """Yield line number, event, and the decision of a new sequencer for each event.

    Raises InvalidInput for an invalid log or event, which it names by line.
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
            decided = _tell(live, entry)
        except (
            *(InvalidInput, KeyError, TypeError, ValueError, ArithmeticError),
        ) as error:
            raise InvalidInput(f"{path}, line {number}: {_cause(error)}") from error
        yield number, entry, decided, live


def _cause(error: Exception) -> str:
    """Return the error of a line in this package's own words."""
    if isinstance(error, InvalidInput):
        return str(error)
    if isinstance(error, KeyError):
        return f"{shown(error.args[0])} is missing: expected all fields of an event"
    return "a field has the wrong type or size: expected fields as a log writes them"


def _tell(live: LiveSequencer, entry: dict[str, Any]) -> Decided:
    """Tell `live` one event of a log."""
    now_s = entry["t"]
    if "arrive" in entry:
        about = {key: entry[key] for key in ("kind", "features", "slo_s", "estimate_s")}
        return live.arrive(entry["arrive"], now_s, **about)
    if "end" in entry:
        failed = entry.get("failed", False)
        require(isinstance(failed, bool), f"failed={failed!r}: expected true or false")
        return live.end(entry["end"], now_s, failed=failed)
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
