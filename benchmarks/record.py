"""The record of a benchmark: who made it, what was found, whole after every point.

A script opens `data/measurements/NAME.json`, or a file of its working folder where it
goes on after a stop, fills it in and writes it. What several scripts do besides stands
here too: the command line, a function called in a process of its own, a line of
progress, a table of rows, seconds of a run, a ratio of medians.
"""

import argparse
import inspect
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import numpy as np
import pandas as pd
import psutil

from thesis_book.execute import provenance
from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.files import read_record, root, write_whole
from thesis_lib.common.stats import median_interval

Point = dict[str, Any]
Name = TypeVar("Name")
# The help of an option of scripts that resume.
ELSEWHERE = "go on with a record of another commit or machine"


def checkout() -> Path:
    """The checkout that this script belongs to."""
    found = root()
    if found is None:
        raise InvalidInput("thesis_lib is not imported from a checkout: install it")
    return found


def benchmark(measure: Callable[..., None]) -> Callable[..., None]:
    """Turn `measure` into the command of a script; call it last in the script.

    `measure` receives `out`, the path of its record. Its other parameters become
    arguments or options of the command, as in Python, with their help in `Annotated`;
    a dataclass contributes its fields. An input error ends the script.
    """
    name = Path(inspect.getfile(measure)).stem

    def main(words: Sequence[str] | None = None) -> None:
        doc = inspect.getdoc(inspect.getmodule(measure)) or name
        parser = argparse.ArgumentParser(description=doc.splitlines()[0])
        out = checkout() / "data" / "measurements" / f"{name}.json"
        parser.add_argument("--out", type=Path, default=out, help="the record")
        _add_parameters(parser, measure)
        try:
            measure(**_arguments(measure, vars(parser.parse_args(words))))
        except InvalidInput as error:
            sys.exit(str(error))

    if measure.__module__ == "__main__":
        main()
    return main


def _add_parameters(parser: argparse.ArgumentParser, target: Callable) -> None:
    for name, parameter in inspect.signature(target).parameters.items():
        kind, told = parameter.annotation, None
        if get_origin(kind) is Annotated:
            kind, told = get_args(kind)
        if isinstance(kind, UnionType):
            kind = get_args(kind)[0]  # or None
        if isinstance(kind, type) and is_dataclass(kind):
            _add_parameters(parser, kind)
        elif name != "out":
            option = parameter.kind is parameter.KEYWORD_ONLY
            words: dict[str, Any] = {"type": kind, "default": argparse.SUPPRESS}
            if kind is bool:
                words = {"action": "store_true"}
            elif get_origin(kind) is list:
                words = {"nargs": "*"}
            elif not option:
                words |= {"nargs": "?", "default": parameter.default}
            flag = f"--{name.replace('_', '-')}" if option else name
            parser.add_argument(flag, help=told, **words)


def _arguments(target: Callable, given: dict[str, Any]) -> dict[str, Any]:
    """Of what is given the arguments of a function or a dataclass."""
    found = {}
    for name, parameter in inspect.signature(target).parameters.items():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            found[name] = kind(**_arguments(kind, given))
        elif name in given:
            found[name] = given[name]
    return found


def turns(names: Iterable[Name], rounds: int) -> Iterator[tuple[int, Name]]:
    """Each name once a round, backwards in every second one, as a drift cancels out."""
    order = list(names)
    for number in range(rounds):
        for name in reversed(order) if number % 2 else order:
            yield number, name


# A generator function says that it is ready, then answers for as long as it is asked.
_CALL = """
import importlib, inspect, json, sys
folder, script, name, options = sys.argv[1:]
sys.path.insert(0, folder)
found = getattr(importlib.import_module(script), name)(**json.loads(options))
for each in found if inspect.isgenerator(found) else [found]:
    print(json.dumps(each), flush=True)
"""


def calling(function: Callable[..., Any], **options: Any) -> list[str]:
    """The command that calls a function of a script and prints what it returns."""
    script, given = Path(inspect.getfile(function)), json.dumps(options, default=str)
    place = [str(script.parent), script.stem, function.__name__]
    return [sys.executable, "-c", _CALL, *place, given]


@contextmanager
def answering(
    function: Callable[[], Iterator[Any]], **environment: str
) -> Iterator[Callable[[], Any]]:
    """A process of its own for a generator function: what asks it for its next answer.

    The function yields once when it is ready, and then for each line of its standard
    input, while others rest or are asked in turn.
    """
    with subprocess.Popen(
        calling(function), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | environment,
    ) as process:  # fmt: skip
        asked, answered = process.stdin, process.stdout
        assert asked is not None
        assert answered is not None

        def ask() -> Any:
            print(file=asked, flush=True)
            return json.loads(answered.readline())

        if not answered.readline():
            sys.exit("a measuring process did not start: see its message above")
        yield ask


def made_by() -> dict[str, Any]:
    """Commit, machine, versions and the date of now."""
    head, clean = provenance.commit(checkout())
    return {
        "commit": head, "clean": clean, "kernel": platform.release(),
        "machine": provenance.identity(), "versions": provenance.versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


class Record:
    """A file of measurements, from the moment that measuring begins.

    With `resume`, names of what a file that is there may hold already, that is kept:
    points that are done stay done. Raises InvalidInput where that file was made with
    other `settings`, and, but for `elsewhere`, at another commit or on another machine.
    `content` is what will be written.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any] | None = None,
        resume: Sequence[str] = (),
        elsewhere: bool = False,
        points: str = "points",
    ) -> None:
        self.path = Path(path)
        require(
            self.path.suffix == ".json",
            f"{path} is no name of a record: expected one that ends in .json",
        )
        self._points, self._load = points, psutil.getloadavg()
        self.content: dict[str, Any] = made_by()
        if settings is not None:
            self.content["settings"] = json.loads(json.dumps(dict(settings)))
        before = read_record(self.path.stem, self.path.parent) if resume else None
        if before is not None:
            self._require_same(before, elsewhere)
            self.content |= {key: before[key] for key in resume if key in before}
        if resume:
            self.content.setdefault(points, [])

    def _require_same(self, before: dict[str, Any], elsewhere: bool) -> None:
        wanted = self.content.get("settings")
        require(
            before.get("settings") == wanted,
            f"{self.path} was made with other settings, {before.get('settings')}: "
            f"expected {wanted}; give another --out or remove it",
        )
        for part in ("commit", "machine"):
            require(
                elsewhere or before.get(part) == self.content[part],
                f"{self.path} was made at another {part}, {before.get(part)}: expected "
                f"{self.content[part]}; go on with --elsewhere, or remove it",
            )

    @property
    def points(self) -> list[Point]:
        """What was measured so far, in the order of measuring."""
        return self.content.setdefault(self._points, [])

    def find(self, **key: Any) -> Point | None:
        """The point with these values, None where it is still to be measured."""
        return next((p for p in self.points if key.items() <= p.items()), None)

    def add(self, point: Mapping[str, Any]) -> Point:
        """Keep a point, with the commit that found it, and write the file."""
        self.points.append({**point, "commit": self.content["commit"]})
        self.write()
        return self.points[-1]

    def write(self, **found: Any) -> None:
        """Replace the file by all that is known."""
        now = psutil.getloadavg()
        self.content |= found
        self.content["load_average"] = {"start": self._load, "end": now}
        _write(self.path, self.content)


def renew(path: Path, part: str, **found: Any) -> None:
    """Replace one part of a file of parts, each of which says who made it."""
    content = read_record(path.stem, path.parent) or {}
    _write(path, content | {part: {**found, **made_by()}})


def _write(path: Path, content: Point) -> None:
    """Replace the file; a row of a table takes one line."""

    def text(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        return json.dumps(value, indent=1).replace("\n", "\n ")

    parts = [f" {json.dumps(name)}: {text(value)}" for name, value in content.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "{\n" + ",\n".join(parts) + "\n}\n")


def tell(line: str) -> None:
    """Progress, on the stream of complaints."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def show(rows: Sequence[Point], *hidden: str) -> None:
    """Print a table of all but what is `hidden`, of samples their median."""
    shown = [{k: v for k, v in row.items() if k not in hidden} for row in rows]
    table = pd.json_normalize(shown).map(_middle).dropna(axis=1, how="all")
    print(table.to_string(index=False, float_format="{:.4g}".format), flush=True)


def _middle(value: Any) -> Any:
    """The median of numbers; None for other lists; what is no list as it is."""
    if not isinstance(value, list | tuple):
        return value
    return median(value) if value and isinstance(value[0], int | float) else None


def both_clocks(run: Callable[[], object], calls: int | None = None) -> Point:
    """Wall and processor seconds of a run, or microseconds of each of its calls."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    if calls is None:
        return {f"{clock}_s": seconds for clock, seconds in taken.items()}
    return {f"{clock}_us": 1e6 * s / calls for clock, s in taken.items()}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, Any]:
    """Median of the ratios of rounds, its ends, and what kind of ends they are."""
    found = median_interval(np.divide(over, under))
    ends = {"low": found.low, "high": found.high, "n": found.n}
    return {"ratio": found.value, **ends, "interval": found.method}


def medians(label: Mapping[str, Any], rounds: Sequence[Point]) -> Point:
    """A row of medians over rounds, of all that ends in _us, beside its samples."""
    names = [name for name in rounds[0] if name.endswith("_us")]
    samples = {name: [round(row[name], 3) for row in rounds] for name in names}
    middle = {name: median(values) for name, values in samples.items()}
    return {**label, **middle, "samples": samples}


def own_core() -> None:
    """Stay on one core from here on."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
