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
import queue
import re
import socket
import tempfile
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import yaml
from pydantic import Field

from thesis_lib.book.execute import chapters
from thesis_lib.book.execute.chapters import CUSTOM, PROFILE_PARAMETER, Chapter
from thesis_lib.book.execute.claims import FILE as CLAIMS_FILE
from thesis_lib.book.execute.claims import read_claims
from thesis_lib.book.execute.pages import render_page
from thesis_lib.book.execute.parameters import refuse
from thesis_lib.book.execute.records import STRICT, Record, read_as
from thesis_lib.common import units
from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.files import data_folder, write_whole
from thesis_lib.common.provenance import identity

SEED = "seed"  # the parameter that `seeds` in a grid file sets
MOST_POINTS = 100_000
CONNECT_S = 10  # how long a scheduler may take to answer
DEATHS = 2  # workers that one point may take with it; with one more it has failed
_LOOK_S = 1.0  # how often workers that joined are looked for

Progress = Callable[[int, int, int, int], None]  # done, failed, running, in all


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
        return [
            _names(axis)[0] for axis, values in self.axes.items() if len(values) > 1
        ]


def _names(axis: str) -> list[str]:
    """The parameters of an axis."""
    return [name.strip() for name in str(axis).split(",")]


class _Strict(yaml.SafeLoader):
    """YAML whose mappings name no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name, count in Counter(map(str, names)).items():
            if count > 1:
                raise yaml.YAMLError(f"{name} is given {count} times")
        return super().construct_mapping(node, deep)


_Seeds = Annotated[int, Field(ge=1)] | Annotated[list, Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class _GridFile:
    """What a grid file may hold."""

    __pydantic_config__: ClassVar = STRICT
    profile: str = "smoke"
    grid: dict[str, Annotated[list, Field(min_length=1)]] | None = None
    seeds: _Seeds | None = None  # which, or how many
    seed: int | None = None  # that a number of seeds are spawned from

    def axes(self, path: Path) -> dict[str, list]:
        """The values of every axis, seeds last. Raises InvalidInput."""
        axes, seeds = dict(self.grid or {}), self.seeds
        require(
            self.seed is None or isinstance(seeds, int),
            f"seed={self.seed!r} in {path} must stand beside a number of seeds, which "
            "are spawned from it: leave it out, or write seeds: 5",
        )
        if isinstance(seeds, int):
            root_seed = np.random.SeedSequence(self.seed or 0)
            seeds = root_seed.generate_state(seeds).tolist()
        if seeds is not None:
            require(
                SEED not in axes, f"{path} gives {SEED} in grid and as seeds: keep one"
            )
            axes[SEED] = seeds
        require(
            bool(axes), f"{path} is an empty grid: list values of a parameter in grid"
        )
        return axes


def _as_declared(type_name: str, value: Any) -> Any:
    """`value`, whole numbers as floats where the parameter is one: 1 and 1.0 are one
    point."""
    if type_name == "float":
        return float(value)
    return [float(item) for item in value] if type_name == "list[float]" else value


def _settings(
    chapter: Chapter, axis: str, values: list, path: Path
) -> list[dict[str, Any]]:
    """What each value of an axis sets, by parameter. Raises InvalidInput."""
    declared, names = chapters.parameters(chapter), _names(axis)
    found = []
    for value in values:
        parts = value if len(names) > 1 else [value]
        require(
            isinstance(parts, list) and len(parts) == len(names),
            f"{value!r} of {axis} in {path} must be a list of {len(names)}: one value "
            "for each parameter of the axis",
        )
        setting = dict(zip(names, parts, strict=True))
        smoke = {name: parameter.smoke for name, parameter in declared.items()}
        chapters.refuse_unknown(names, declared, smoke, chapter.name)
        refuse([declared[name] for name in names], setting)
        found.append(
            {n: _as_declared(declared[n].type_name, v) for n, v in setting.items()}
        )
    once = {json.dumps(setting) for setting in found}
    require(
        len(once) == len(found),
        f"{axis} in {path} lists a value twice: every point must differ; list each "
        "value once",
    )
    return found


def _slug(values: Mapping[str, Any]) -> str:
    text = ",".join(f"{name}={value}" for name, value in values.items())
    return re.sub(r"[^\w.=,+-]+", "_", text)[:80]


def read_grid(path: Path, chapter: Chapter) -> Grid:
    """Read a grid file and check all of it. Raises InvalidInput; nothing has run then.

    Points are in the order of the axes, the last of which, the seed, turns fastest.
    """
    try:
        content = yaml.load(path.read_text(), _Strict)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"grid {path} cannot be read: {error}") from error
    form = "  profile: smoke\n  grid:\n    PARAMETER: [VALUE, …]\n  seeds: [1, 2, 3]"
    file = read_as(_GridFile, content, f"{path} is no grid", f"expected\n{form}")
    axes, profile = file.axes(path), file.profile
    standard = chapters.resolve([chapter], profile, {})[chapter.name]
    settings = {
        axis: _settings(chapter, axis, values, path) for axis, values in axes.items()
    }
    for name, times in Counter(n for axis in axes for n in _names(axis)).items():
        require(times == 1, f"{name} is in {times} axes of {path}: keep one")
    count = int(np.prod([float(len(values)) for values in axes.values()]))
    require(
        count <= MOST_POINTS,
        f"{path} has {count} points, more than {MOST_POINTS}: list fewer values",
    )
    every, declared = [], chapters.parameters(chapter)
    for combination in itertools.product(*settings.values()):
        values = functools.reduce(operator.or_, combination, standard)
        refuse(declared.values(), values)
        if values != standard and PROFILE_PARAMETER in values:
            values[PROFILE_PARAMETER] = CUSTOM
        every.append(values)
    grid = Grid(path, chapter, profile, axes, ())
    points = []
    for values, key in zip(every, chapters.content_keys(chapter, every), strict=True):
        shown = {n: values[n] for n in grid.varied} or {"chapter": chapter.number}
        points.append(Point(f"{_slug(shown)}-{key[:10]}", values, key))
    return dataclasses.replace(grid, points=tuple(points))


# --- on a worker -------------------------------------------------------------
def _failure(error: BaseException, host: str, notebook: Path | None) -> dict[str, Any]:
    text = getattr(error, "traceback", None) or "".join(
        traceback.format_exception(error)
    )
    kept = notebook if notebook is not None and notebook.is_file() else None
    return {
        "host": host,
        "failed": str(error) or type(error).__name__,
        "traceback": text,
        "notebook": kept.read_bytes() if kept else None,
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
        return _failure(error, host, None)
    with tempfile.TemporaryDirectory(prefix="thesis-point-") as scratch:
        path = Path(scratch) / f"{name}.ipynb"
        try:
            record = chapters.produce(chapter, values, profile, path, lambda *_: None)
        # Whatever stops a point is that point's failure, and not the worker's.
        except Exception as error:
            return _failure(error, host, path)
        record = dataclasses.replace(record, machine=record.machine | {"host": host})
        return {
            "host": host,
            "record": record.to_json(),
            "notebook": path.read_bytes(),
        }


def _task() -> Callable[..., dict]:
    """What a worker is sent: a local function, which the scheduler reads unimported."""

    def on_worker(*arguments: Any) -> dict:
        from thesis_lib.book.execute import sweep

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
    from distributed import Future, KilledWorker

    run = uuid.uuid4().hex[:8]  # two sweeps may share a scheduler
    task, waiting = _task(), list(reversed(points))
    flying: dict[Future, Point] = {}
    landed: queue.SimpleQueue[Future] = queue.SimpleQueue()

    def top_up() -> None:
        while waiting and len(flying) < max(1, _threads(client)):
            point = waiting.pop()
            future = client.submit(
                task,
                grid.chapter.name,
                point.values,
                grid.profile,
                point.key,
                key=f"{point.name}-{run}",
                pure=False,
            )
            flying[future] = point
            future.add_done_callback(landed.put)

    top_up()
    while flying:
        try:
            future = landed.get(timeout=_LOOK_S)
        except queue.Empty:
            top_up()
            continue
        point = flying.pop(future)
        require(not future.cancelled(), _LOST)
        top_up()
        error: Any = future.exception()
        if isinstance(error, KilledWorker):
            died = InvalidInput(
                f"{error.allowed_failures + 1} workers died while they executed this "
                "point: killed, or out of memory"
            )
            yield point, _failure(died, error.last_worker.address, None)
        elif error is not None:  # nothing that a point did: `execute` returns that
            yield point, _failure(error, "the cluster", None)
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

        def tell(running: int) -> None:
            progress(len(records), len(failures), running, len(grid.points))

        tell(0)
        if wanted:
            with _connect(workers, scheduler) as client:
                if not client.scheduler_info()["workers"]:
                    on_wait(f"{scheduler} has no workers yet: waiting for the first")
                    client.wait_for_workers(1)
                left = len(wanted)
                tell(min(left, _threads(client)))
                for point, outcome in _outcomes(client, grid, wanted):
                    match _store(point, outcome, points):
                        case Failure() as failure:
                            failures.append(failure)
                        case record:
                            records[point.name] = record
                    left -= 1
                    tell(min(left, _threads(client)))
        sweep = Sweep(grid, output, records, failures, len(wanted))
        table = gather(sweep)
        parquet = io.BytesIO()
        table.to_parquet(parquet, index=False)
        write_whole(output / "results.parquet", parquet.getvalue())
        write_whole(output / "summary.html", summarise(sweep, table))
    return sweep


# --- the gathered results ----------------------------------------------------
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
        rows.append(
            {"point": point.name}
            | {
                f"parameter.{n}": str(v) if isinstance(v, list | dict) else v
                for n, v in record.parameters.items()
            }
            | {f"number.{n}": v for n, v in record.numbers.items()}
            | {
                "chapter": record.chapter,
                "key": record.key,
                "commit": record.commit,
                "clean": record.clean,
                "host": record.machine.get("host", "unknown"),
                "cpu": record.machine["cpu"],
                "started": record.started,
                "seconds": float(record.seconds),
                "peak_memory_bytes": record.peak_memory_bytes,
                "load_average": float(record.load_average["mean"]),
            }
        )
    table = pd.DataFrame(rows)
    for name in table.columns:
        # A column of Parquet has one type; some numbers are words in some points.
        values = table[name].dropna()
        if any(isinstance(value, str) for value in values):
            table[name] = table[name].map(lambda v: v if pd.isna(v) else str(v))
        elif name.startswith("number."):
            table[name] = table[name].astype(float)
    return table


@dataclass(frozen=True, slots=True)
class Headline:
    """A number that the summary shows: its column, and what it says."""

    column: str
    says: str
    title: str  # what it says, with its unit


MOST_HEADLINES, MOST_COLUMNS = 12, 6  # in figures, in the table of points


def headlines(chapter: Chapter, table: pd.DataFrame) -> list[Headline]:
    """The chapter's claims that vary over a sweep; all its numbers if it has none."""
    numeric = [
        name
        for name in table.columns
        if name.startswith("number.") and pd.api.types.is_float_dtype(table[name])
    ]
    # What a chapter publishes of its own parameters is no result.
    given = {tuple(table[name]) for name in table if name.startswith("parameter.")}
    varying = [
        name
        for name in numeric
        if len(set(table[name])) > 1 and tuple(table[name]) not in given
    ]
    claims = []
    if (data_folder() / CLAIMS_FILE).is_file():
        claims = [
            Headline(f"number.{claim.key}", claim.says, claim.title)
            for claim in read_claims().of_chapter(chapter.number)
            if f"number.{claim.key}" in varying
        ]
    plain = [
        Headline(name, words, words)
        for name in varying or numeric
        if not name.endswith(("_low", "_high"))  # ends of an interval
        for words in [name.removeprefix("number.").replace("_", " ")]
    ]
    return (claims or plain)[:MOST_HEADLINES]


def _figures(
    sweep: Sweep, table: pd.DataFrame, shown: list[Headline]
) -> list[tuple[str, str]]:
    """The headline numbers against the first axis that varies: what it is, and SVG."""
    from thesis_lib.book import figures

    free = [name for name in sweep.grid.varied if name != SEED]
    axis = free[0] if free else _names(next(iter(sweep.grid.axes)))[0]
    line = free[1] if len(free) > 1 else None
    described = chapters.parameters(sweep.grid.chapter)[axis].help
    drawn = []
    for headline in shown:
        figure = figures.sweep_lines(
            table[f"parameter.{axis}"].tolist(),
            table[headline.column].to_numpy(),
            None if line is None else table[f"parameter.{line}"].map(str).tolist(),
            xlabel=f"{axis}: {described}" if described else axis,
            ylabel=headline.title,
            legend=line or "",
        )
        drawn.append((f"{headline.says} against {axis}", figures.as_svg(figure)))
    return drawn


def _number(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4g}".replace("-", "−")
    return str(value)


def _points(
    sweep: Sweep, table: pd.DataFrame, shown: list[Headline]
) -> tuple[list[str], dict[str, list[str]]]:
    """The table of points as text: the head, and the cells of each by its name."""
    names = sweep.grid.varied or [_names(axis)[0] for axis in sweep.grid.axes]
    shown = shown[:MOST_COLUMNS]
    columns = [f"parameter.{name}" for name in names] + [h.column for h in shown]
    head = [*names, *(h.title for h in shown), "seconds", "peak memory", "load", "host"]
    return head, {
        row["point"]: [
            *(_number(row[column]) for column in columns),
            f"{row['seconds']:.1f}",
            units.format_size(row["peak_memory_bytes"]),
            f"{row['load_average']:.2f}",
            row["host"],
        ]
        for row in table.to_dict("records")
    }


def culprits(sweep: Sweep) -> dict[str, str]:
    """Which parameter made each failed point fail, in one phrase, by point.

    Those whose value no finished point has. Where each value has finished beside
    others, it is their combination; where nothing has finished, nothing can be told.
    """
    names = [name for axis in sweep.grid.axes for name in _names(axis)]
    finished = [record.parameters for record in sweep.records.values()]
    phrases = {}
    for failure in sweep.failures:
        values = failure.point.values
        alone = [
            f"{name}={values[name]}"
            for name in names
            if all(other[name] != values[name] for other in finished)
        ]
        if not finished:
            phrases[failure.point.name] = "no point finished to compare it with"
        elif alone:
            phrases[failure.point.name] = f"no point finished with {', '.join(alone)}"
        else:
            shown = ", ".join(f"{name}={values[name]}" for name in names)
            phrases[failure.point.name] = f"only together: {shown}"
    return phrases


def _provenance(records: Collection[Record]) -> dict[str, str]:
    commits = {f"{r.commit}{'' if r.clean else ' with changes'}" for r in records}
    return {
        "commit": ", ".join(sorted(commits)),
        "environment (locks)": ", ".join(sorted({r.lock_sha256[:12] for r in records})),
        "Python": ", ".join(sorted({r.machine["python"] for r in records})),
        "first point started": min(r.started for r in records),
        "last point started": max(r.started for r in records),
        "seconds of all points": f"{sum(r.seconds for r in records):.0f}",
    }


def _machines(records: Iterable[Record]) -> list[list[str]]:
    """Host, processor, cores, memory and number of points of each machine."""
    hosts = Counter((r.machine.get("host", "unknown"), r.machine["cpu"],
                     r.machine["cores"], r.machine["memory_bytes"])
                    for r in records)  # fmt: skip
    return [
        [host, cpu, str(cores), units.format_size(memory), str(count)]
        for (host, cpu, cores, memory), count in sorted(hosts.items())
    ]


def summarise(sweep: Sweep, table: pd.DataFrame) -> str:
    """One page of HTML that needs nothing beside it: figures, points, provenance."""
    grid, phrases = sweep.grid, culprits(sweep)
    failures = []
    for failure in sweep.failures:
        files = _files(sweep.output / "points", failure.point.name)
        failures.append(
            {
                "point": failure.point.name,
                "phrase": phrases[failure.point.name],
                "sentence": failure.sentence,
                "host": failure.host,
                "notebook": files["failed"].is_file(),
                "traceback": files["traceback"].read_text()[-4000:],
            }
        )
    state = f"{len(sweep.records)} of {len(grid.points)} points are finished"
    failed = f", {len(failures)} failed" if failures else ""
    page = {
        "title": f"Sweep of chapter {grid.chapter.number}: {grid.path.stem}",
        "chapter": grid.chapter.name,
        "profile": grid.profile,
        "state": f"{state}{failed}.",
        "axes": {name: ", ".join(map(str, v)) for name, v in grid.axes.items()},
        "failures": failures,
        "points": {},
    }
    if len(table):
        shown = headlines(grid.chapter, table)
        head, points = _points(sweep, table, shown)
        free = [name for name in grid.varied if name != SEED]
        pooled = [*free[2:], *([SEED] if SEED in grid.varied else [])]
        over = f" over {', '.join(pooled)}" if pooled else ""
        page |= {
            "note": f"Each point is one run; lines join the means{over}",
            "figures": _figures(sweep, table, shown),
            "columns": head,
            "points": points,
            "provenance": _provenance(sweep.records.values()),
            "machines": _machines(sweep.records.values()),
        }
    return render_page("sweep.html", **page)
