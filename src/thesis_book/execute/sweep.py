"""One chapter over a grid of parameters, on the processes of Dask.

Workers share no file system with the client. A task carries the point's parameters
and its content key; the worker executes it from its own checkout, whose key must be
the same, and returns the notebook and the record. The client alone writes, each point
as it arrives: whatever is killed, what was written stays, and is not executed again.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import logging
import operator
import re
import socket
import tempfile
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import yaml
from pydantic import Field

from thesis_book.execute import chapters
from thesis_book.execute.chapters import CUSTOM, PROFILE_PARAMETER, Chapter
from thesis_book.execute.claims import FILE as CLAIMS_FILE
from thesis_book.execute.claims import read_claims
from thesis_book.execute.pages import render_page
from thesis_book.execute.parameters import Parameter, read_yaml, refuse
from thesis_book.execute.records import STRICT, Record, read_as
from thesis_lib.common import units
from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.files import data_folder, write_whole
from thesis_lib.common.provenance import identity

SEED = "seed"  # the parameter that `seeds` in a grid file sets
MOST_POINTS = 100_000
CONNECT_S = 10  # how long a scheduler may take to answer
DEATHS = 2  # workers that one point may take with it; with one more it has failed

Progress = Callable[[int, int, int], None]  # points done, failed, in all


# --- the grid ----------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep; `name` is that of its files, and holds part of the key."""

    name: str
    values: dict[str, Any]  # every parameter of the chapter
    key: str


@dataclass(frozen=True, slots=True)
class Grid:
    """A chapter, and every combination of what its axes list.

    An axis is a parameter, or several, as 'a, b', that take their values together.
    """

    path: Path
    chapter: Chapter
    profile: str
    axes: dict[str, list]
    points: tuple[Point, ...]

    @property
    def varied(self) -> list[str]:
        """The first parameter of each axis with more than one value, in order."""
        return [_names(axis)[0] for axis, found in self.axes.items() if len(found) > 1]


def _names(axis: str) -> list[str]:
    """The parameters of an axis."""
    return [name.strip() for name in str(axis).split(",")]


_Seeds = (
    Annotated[int, Field(ge=1, le=MOST_POINTS)] | Annotated[list, Field(min_length=1)]
)


@dataclass(frozen=True, slots=True)
class _GridFile:
    """What a grid file may hold."""

    __pydantic_config__: ClassVar = STRICT
    profile: str = "smoke"
    grid: dict[str, Annotated[list, Field(min_length=1)]] | None = None
    seeds: _Seeds | None = None  # which, or how many
    # that a number of seeds are spawned from
    seed: Annotated[int, Field(ge=0)] | None = None

    def axes(self, path: Path) -> dict[str, list]:
        """The values of every axis, seeds last. Raises InvalidInput."""
        axes, seeds = dict(self.grid or {}), self.seeds
        require(
            self.seed is None or isinstance(seeds, int),
            f"seed={self.seed!r} in {path} must stand beside a number of seeds, which "
            "are spawned from it: leave it out, or write seeds: 5",
        )
        if isinstance(seeds, int):
            spawned = np.random.SeedSequence(self.seed or 0).generate_state(seeds)
            seeds = spawned.tolist()
        if seeds is not None:
            require(
                SEED not in axes, f"{path} gives {SEED} in grid and as seeds: keep one"
            )
            axes[SEED] = seeds
        require(
            bool(axes), f"{path} is an empty grid: list values of a parameter in grid"
        )
        counts = Counter(name for axis in axes for name in _names(axis))
        for name, times in counts.items():
            require(times == 1, f"{name} is in {times} axes of {path}: keep one")
        count = int(np.prod([float(len(values)) for values in axes.values()]))
        require(
            count <= MOST_POINTS,
            f"{path} has {count} points, more than {MOST_POINTS}: list fewer values",
        )
        return axes


def _as_declared(parameter: Parameter, value: Any) -> Any:
    """`value`, whole numbers as floats where the parameter is one: 1 and 1.0 are one
    point."""
    if parameter.element != "float":
        return value
    return [float(item) for item in value] if parameter.is_list else float(value)


def _settings(
    declared: Mapping[str, Parameter], axis: str, values: list, where: str
) -> list[dict[str, Any]]:
    """What each value of an axis sets, by parameter. Raises InvalidInput."""
    names, found = _names(axis), []
    smoke = {name: parameter.smoke for name, parameter in declared.items()}
    chapters.refuse_unknown(names, declared, smoke, where)
    for value in values:
        parts = value if len(names) > 1 else [value]
        require(
            isinstance(parts, list) and len(parts) == len(names),
            f"{value!r} of {axis} must be a list of {len(names)}: one value for each "
            "parameter of the axis",
        )
        setting = dict(zip(names, parts, strict=True))
        refuse([declared[name] for name in names], setting)
        found.append({n: _as_declared(declared[n], v) for n, v in setting.items()})
    distinct = {json.dumps(setting) for setting in found}
    once = len(distinct) == len(found)
    require(once, f"{axis} lists a value twice: list each value once")
    return found


def _point(chapter: Chapter, values: dict[str, Any], key: str, shown: list) -> Point:
    """A point, named for the values that it does not share with others."""
    told = {name: values[name] for name in shown} or {"chapter": chapter.number}
    text = ",".join(f"{name}={value}" for name, value in told.items())
    slug = re.sub(r"[^\w.=,+-]+", "_", text)[:80]
    return Point(f"{slug}-{key[:10]}", values, key)


def read_grid(path: Path, chapter: Chapter) -> Grid:
    """Read a grid file and check all of it. Raises InvalidInput; nothing has run then.

    Points are in the order of the axes, the last of which, the seed, turns fastest.
    """
    try:
        content = read_yaml(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"grid {path} cannot be read: {error}") from error
    form = "  profile: smoke\n  grid:\n    PARAMETER: [VALUE, …]\n  seeds: [1, 2, 3]"
    file = read_as(_GridFile, content, f"{path} is no grid", f"expected\n{form}")
    axes, declared = file.axes(path), chapters.parameters(chapter)
    standard = chapters.resolve([chapter], file.profile, {})[chapter.name]
    settings = [
        _settings(declared, axis, values, chapter.name) for axis, values in axes.items()
    ]
    every = []
    for combination in itertools.product(*settings):
        values = functools.reduce(operator.or_, combination, standard)
        refuse(declared.values(), values)
        if values != standard and PROFILE_PARAMETER in values:
            values[PROFILE_PARAMETER] = CUSTOM
        every.append(values)
    grid = Grid(path, chapter, file.profile, axes, ())
    keys = chapters.content_keys(chapter, every)
    points = [
        _point(chapter, values, key, grid.varied)
        for values, key in zip(every, keys, strict=True)
    ]
    return dataclasses.replace(grid, points=tuple(points))


# --- on a worker -------------------------------------------------------------
def _failure(error: BaseException, host: str, notebook: bytes | None = None) -> dict:
    """What is told of a point that failed, with its notebook so far."""
    told = getattr(error, "traceback", None)
    return {
        "host": host,
        "failed": str(error) or type(error).__name__,
        "traceback": told or "".join(traceback.format_exception(error)),
        "notebook": notebook,
    }


def execute(name: str, values: dict[str, Any], profile: str, key: str) -> dict:
    """On a worker: execute a point of chapter `name` from the worker's own checkout.

    Nothing outside a temporary folder is written. Returns the notebook's bytes with
    the text of its record; where the point failed, with the sentence and traceback.
    """
    host = socket.gethostname()
    try:
        (chapter,) = chapters.select([name])
        require(
            chapters.content_key(chapter, values) == key,
            f"this worker on {host} has other code, data or versions in "
            f"{chapters.repository()}: bring it to the commit and environment of the "
            "client, and start the worker again",
        )
    except InvalidInput as error:
        return _failure(error, host)
    with tempfile.TemporaryDirectory(prefix="thesis-point-") as scratch:
        path = Path(scratch) / f"{name}.ipynb"
        try:
            record = chapters.produce(chapter, values, profile, path, lambda *_: None)
        # Whatever stops a point is that point's failure, and not the worker's.
        except Exception as error:
            return _failure(error, host, path.read_bytes() if path.exists() else None)
        record = dataclasses.replace(record, machine=record.machine | {"host": host})
        return {
            "host": host,
            "record": record.to_json(),
            "notebook": path.read_bytes(),
        }


def _task() -> Callable[..., dict]:
    """What a worker is sent: a local function, which the scheduler reads unimported."""

    def on_worker(*arguments: Any) -> dict:
        from thesis_book.execute import sweep

        return sweep.execute(*arguments)

    return on_worker


# --- on the client -----------------------------------------------------------
@contextlib.contextmanager
def _connect(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """A client of the scheduler at an address, or of workers on this machine."""
    from dask import config
    from distributed import Client, LocalCluster

    # What goes wrong is said once, by us; Dask's own log would say it in pages.
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"the scheduler {scheduler} did not answer within {CONNECT_S} s: "
                "expected the address of a running `dask scheduler`, such as "
                "tcp://10.0.0.1:8786"
            ) from error
        with client:
            yield client
        return
    cores = identity()["cores"]
    count = cores if workers is None else workers
    require(count >= 1, f"workers={count} must be at least 1")
    threads = max(1, cores // count)
    environ = "distributed.nanny.pre-spawn-environ"
    with (
        tempfile.TemporaryDirectory(prefix="thesis-sweep-") as scratch,
        config.set(
            {
                "distributed.scheduler.allowed-failures": DEATHS,
                # Dask would give every kernel one thread, whatever the machine has.
                f"{environ}.OMP_NUM_THREADS": threads,
                f"{environ}.MKL_NUM_THREADS": threads,
                f"{environ}.OPENBLAS_NUM_THREADS": threads,
                f"{environ}.LOKY_MAX_CPU_COUNT": threads,  # processes of run_grid
            }
        ),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",  # any free port: two sweeps may run
            local_directory=scratch,
            memory_limit=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@dataclass(frozen=True, slots=True)
class Failure:
    """A point that failed: what in one sentence, where, and the traceback."""

    point: Point
    sentence: str
    host: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep came to; `records` hold its finished points, by name."""

    grid: Grid
    output: Path
    records: dict[str, Record]
    failures: list[Failure]
    executed: int  # points that this call executed, failed ones among them


def _files(folder: Path, name: str) -> dict[str, Path]:
    return {
        "notebook": folder / f"{name}.ipynb",
        "record": folder / f"{name}.json",
        "failed": folder / f"{name}.failed.ipynb",
        "traceback": folder / f"{name}.traceback.txt",
    }


def _finished(grid: Grid, folder: Path) -> dict[str, Record]:
    """The records of the points that are whole in `folder`.

    Raises InvalidInput for a record that is newer than this code, or damaged.
    """
    found = {}
    for point in grid.points:
        files = _files(folder, point.name)
        record = chapters.read_whole(files["record"])
        if record is not None and record.key == point.key:
            found[point.name] = record
    return found


def _store(point: Point, outcome: dict, folder: Path) -> Record | Failure:
    """Write what a worker returned; a record comes last, once its notebook is there."""
    files = _files(folder, point.name)
    if "failed" in outcome:
        if outcome["notebook"] is not None:
            write_whole(files["failed"], outcome["notebook"])
        write_whole(files["traceback"], outcome["traceback"].rstrip() + "\n")
        return Failure(point, outcome["failed"], outcome["host"])
    record = Record.from_json(outcome["record"], f"a record from {outcome['host']}")
    write_whole(files["notebook"], outcome["notebook"])
    write_whole(files["record"], outcome["record"])
    files["failed"].unlink(missing_ok=True)
    files["traceback"].unlink(missing_ok=True)
    return record


_LOST = (
    "the scheduler was lost: what was finished is written; start it and run the same "
    "command again"
)


def _threads(client: Any) -> int:
    """How many points are executed at once. Raises InvalidInput for a lost cluster."""
    try:
        return sum(client.nthreads().values())
    except OSError as error:  # before the futures have heard of it
        raise InvalidInput(_LOST) from error


def _outcomes(
    client: Any, grid: Grid, points: Sequence[Point]
) -> Iterator[tuple[Point, dict]]:
    """Execute points on the cluster; each with its outcome, as they arrive.

    No more are submitted than there are threads: Dask blames the death of a worker on
    all that it was given, and workers that join later are to find something to do.
    """
    from distributed import KilledWorker, as_completed

    run = uuid.uuid4().hex[:8]  # two sweeps may share a scheduler
    task, waiting, flying = _task(), list(reversed(points)), {}
    landed = as_completed(loop=client.loop)

    def top_up() -> None:
        while waiting and len(flying) < max(1, _threads(client)):
            point = waiting.pop()
            given = grid.chapter.name, point.values, grid.profile, point.key
            name = f"{point.name}-{run}"
            future = client.submit(task, *given, key=name, pure=False)
            flying[future] = point
            landed.add(future)

    top_up()
    for future in landed:
        point = flying.pop(future)
        require(not future.cancelled(), _LOST)
        top_up()
        error: Any = future.exception()
        if isinstance(error, KilledWorker):
            died = InvalidInput(
                f"{error.allowed_failures + 1} workers died while they executed this "
                "point: killed, or out of memory"
            )
            yield point, _failure(died, error.last_worker.address)
        elif error is not None:  # nothing that a point did: `execute` returns that
            yield point, _failure(error, "the cluster")
        else:
            yield point, future.result()
        future.release()


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[Path]:
    """The folder of the points, held; what ends the writing is said in one sentence."""

    def busy() -> None:
        raise InvalidInput(
            f"another sweep is writing to {output}: wait for it, or name another "
            "folder with --output"
        )

    points = output / "points"
    with chapters.storage(output):
        points.mkdir(parents=True, exist_ok=True)
        try:
            with chapters.claimed(output / "sweep", busy):
                for leftover in points.glob(".*.partial"):  # of a client that died
                    leftover.unlink()
                yield points
        except KeyboardInterrupt as error:
            raise InvalidInput(
                f"interrupted: what was finished is in {output}; run the same command "
                "again for the rest"
            ) from error


def run(
    grid: Grid,
    output: Path,
    workers: int | None,
    scheduler: str | None,
    resume: bool,
    progress: Progress,
    on_wait: Callable[[str], None] = lambda sentence: None,
) -> Sweep:
    """Execute the points of a grid that `output` does not hold; gather all of them.

    On `workers` processes of this machine (None: one a core), or on the cluster of a
    `scheduler`. Raises InvalidInput where it cannot start or cannot write; a point that
    fails is in `failures`, with its notebook and traceback in the folder `points`.
    """
    require(
        workers is None or scheduler is None,
        "--workers and --scheduler were both given: the scheduler's cluster has its "
        "own workers; leave one out",
    )
    failures: list[Failure] = []
    with _writing(output) as points:
        finished = _finished(grid, points)
        records = finished if resume else {}
        wanted = [point for point in grid.points if point.name not in records]

        progress(len(records), 0, len(grid.points))
        if wanted:
            with _connect(workers, scheduler) as client:
                if not client.scheduler_info()["workers"]:
                    on_wait(f"{scheduler} has no workers yet: waiting for the first")
                    client.wait_for_workers(1)
                for point, outcome in _outcomes(client, grid, wanted):
                    match _store(point, outcome, points):
                        case Failure() as failure:
                            failures.append(failure)
                        case record:
                            records[point.name] = record
                    progress(len(records), len(failures), len(grid.points))
        sweep = Sweep(grid, output, records, failures, len(wanted))
        table = gather(sweep)
        parquet = io.BytesIO()
        table.to_parquet(parquet, index=False)
        write_whole(output / "results.parquet", parquet.getvalue())
        write_whole(output / "summary.html", summarise(sweep, table))
    return sweep


# --- the gathered results ----------------------------------------------------
_PROVENANCE = (  # of a record, which a row has under the same names
    "chapter", "key", "commit", "clean", "started", "seconds", "peak_memory_bytes",
)  # fmt: skip


def gather(sweep: Sweep) -> pd.DataFrame:
    """One row for each finished point, in the order of the grid.

    `parameter.NAME` (lists as text) and `number.NAME` for whatever the chapter
    published, and the provenance: `point`, `chapter`, `key`, `commit`, `clean`,
    `host`, `cpu`, `started`, `seconds`, `peak_memory_bytes`, `load_average`.
    """
    rows = []
    for point in sweep.grid.points:
        record = sweep.records.get(point.name)
        if record is None:
            continue
        as_text = {n: str(v) for n, v in record.parameters.items()
                   if isinstance(v, list | dict)}  # fmt: skip
        parameters, host = record.parameters | as_text, record.machine.get("host")
        rows.append(
            {"point": point.name}
            | {f"parameter.{name}": value for name, value in parameters.items()}
            | {f"number.{name}": value for name, value in record.numbers.items()}
            | {name: getattr(record, name) for name in _PROVENANCE}
            | {
                "host": host or "unknown",
                "cpu": record.machine["cpu"],
                "load_average": float(record.load_average["mean"]),
            }
        )
    table = pd.DataFrame(rows)
    for name in table.columns:
        # A column of Parquet has one type; some numbers are words in some points.
        if any(isinstance(value, str) for value in table[name].tolist()):
            table[name] = table[name].map(str, na_action="ignore")
        elif name.startswith("number.") or name == "seconds":
            table[name] = table[name].astype(float)
    return table


MOST_HEADLINES, MOST_COLUMNS = 12, 6  # in figures, in the table of points


def headlines(chapter: Chapter, table: pd.DataFrame) -> dict[str, str]:
    """The columns that the summary shows, each with what it says.

    The chapter's claims that vary over a sweep; all its numbers if it has none.
    """
    numeric = [*table.filter(regex="^number").select_dtypes(float)]
    # What a chapter publishes of its own parameters is no result.
    given = {tuple(table[name]) for name in table.filter(regex="^parameter")}
    values = {name: tuple(table[name]) for name in numeric}
    varying = [n for n in numeric if len(set(values[n])) > 1 and values[n] not in given]
    claims = {}
    if (data_folder() / CLAIMS_FILE).is_file():
        known = read_claims().of_chapter(chapter.number)
        claims = {f"number.{claim.key}": claim.title for claim in known}
    shown = {name: title for name, title in claims.items() if name in varying} or {
        name: name.removeprefix("number.").replace("_", " ")
        for name in varying or numeric
        if not name.endswith(("_low", "_high"))  # ends of an interval
    }
    return dict(itertools.islice(shown.items(), MOST_HEADLINES))


def _figures(
    sweep: Sweep, table: pd.DataFrame, shown: Mapping[str, str]
) -> list[tuple[str, str]]:
    """The headline numbers against the first axis that varies: what it is, and SVG."""
    from thesis_book import figures

    free = [name for name in sweep.grid.varied if name != SEED]
    axis = free[0] if free else _names(next(iter(sweep.grid.axes)))[0]
    line = free[1] if len(free) > 1 else None
    described = chapters.parameters(sweep.grid.chapter)[axis].help
    drawn = []
    for column, title in shown.items():
        figure = figures.sweep_lines(
            table[f"parameter.{axis}"].tolist(),
            table[column].to_numpy(),
            None if line is None else table[f"parameter.{line}"].map(str).tolist(),
            xlabel=f"{axis}: {described}" if described else axis,
            ylabel=title,
            legend=line or "",
        ).figure
        drawn.append((f"{title} against {axis}", figures.as_svg(figure)))
    return drawn


def _text(value: Any) -> str:
    """A cell of the summary."""
    if not isinstance(value, float):
        return str(value)
    return "" if np.isnan(value) else units.significant(value, 4).replace("-", "−")


def _points(grid: Grid, table: pd.DataFrame, shown: Mapping[str, str]) -> pd.DataFrame:
    """The table of points as text, by their names."""
    names = grid.varied or [_names(axis)[0] for axis in grid.axes]
    columns = {f"parameter.{name}": name for name in names}
    columns |= dict(itertools.islice(shown.items(), MOST_COLUMNS))
    columns |= {"seconds": "seconds", "load_average": "load", "host": "host"}
    cells = {label: [*map(_text, table[name])] for name, label in columns.items()}
    points = pd.DataFrame(cells, index=table["point"].tolist())
    points["peak memory"] = [units.format_size(n) for n in table["peak_memory_bytes"]]
    return points


def culprits(sweep: Sweep) -> dict[str, str]:
    """Which parameter made each failed point fail, in one phrase, by point.

    Those whose value no finished point has. Where each value has finished beside
    others, it is their combination; where nothing has finished, nothing can be told.
    """
    names = [name for axis in sweep.grid.axes for name in _names(axis)]
    finished = [record.parameters for record in sweep.records.values()]
    phrases = {}
    for point in (failure.point for failure in sweep.failures):
        given = {name: f"{name}={point.values[name]}" for name in names}
        alone = [
            text
            for name, text in given.items()
            if all(other[name] != point.values[name] for other in finished)
        ]
        if not finished:
            phrases[point.name] = "no point finished to compare it with"
        elif alone:
            phrases[point.name] = f"no point finished with {', '.join(alone)}"
        else:
            phrases[point.name] = f"only together: {', '.join(given.values())}"
    return phrases


def _facts(table: pd.DataFrame) -> dict[str, str]:
    """Where the points were made, and how; more is in the record of each."""
    commits = [
        commit if clean else f"{commit} with changes"
        for commit, clean in zip(table["commit"], table["clean"], strict=True)
    ]
    places = Counter(table["host"] + ", " + table["cpu"])
    return {
        "commit": ", ".join(sorted(set(commits))),
        "first point started": min(table["started"]),
        "last point started": max(table["started"]),
        "seconds of all points": f"{table['seconds'].sum():.0f}",
        **{f"points on {place}": str(count) for place, count in places.items()},
    }


def summarise(sweep: Sweep, table: pd.DataFrame) -> str:
    """One page of HTML that needs nothing beside it: figures, points, provenance."""
    grid, phrases = sweep.grid, culprits(sweep)
    files = [_files(sweep.output / "points", f.point.name) for f in sweep.failures]
    failures = [
        {
            "point": failure.point.name,
            "phrase": phrases[failure.point.name],
            "sentence": failure.sentence,
            "host": failure.host,
            "notebook": kept["failed"].is_file(),
            "traceback": kept["traceback"].read_text()[-4000:],
        }
        for failure, kept in zip(sweep.failures, files, strict=True)
    ]
    state = f"{len(sweep.records)} of {len(grid.points)} points are finished"
    page = {
        "title": f"Sweep of chapter {grid.chapter.number}: {grid.path.stem}",
        "chapter": grid.chapter.name,
        "profile": grid.profile,
        "state": f"{state}, {len(failures)} failed" if failures else state,
        "axes": {name: ", ".join(map(str, v)) for name, v in grid.axes.items()},
        "failures": failures,
        "points": None,
    }
    if len(table):
        shown = headlines(grid.chapter, table)
        free = [name for name in grid.varied if name != SEED]
        pooled = [*free[2:], *([SEED] if SEED in grid.varied else [])]
        over = f" over {', '.join(pooled)}" if pooled else ""
        page |= {
            "note": f"Each point is one run; lines join the means{over}",
            "figures": _figures(sweep, table, shown),
            "points": _points(grid, table, shown),
            "facts": _facts(table),
        }
    return render_page("sweep.html", **page)
