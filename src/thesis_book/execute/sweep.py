"""Run one chapter at every point of a grid of parameters, on Dask.

The client submits one task per point. A worker executes the chapter with papermill from
its own checkout and returns the notebook and the record. Only the client writes files,
so the workers need no common file system. A point whose record is in the output folder
is finished: after an interruption the same command executes the remaining points.
"""

import contextlib
import dataclasses
import itertools
import logging
import math
import re
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import yaml
from pydantic import Field

from thesis_book.execute import chapters
from thesis_book.execute.chapters import Chapter
from thesis_book.execute.claims import read_claims
from thesis_book.execute.pages import write_notebook
from thesis_book.execute.parameters import read_yaml, reject
from thesis_book.execute.provenance import identity
from thesis_book.execute.records import STRICT, Record, read_as
from thesis_lib.common.errors import InvalidInput, Lost, require, require_count
from thesis_lib.common.files import write_whole

SEED = "seed"  # the parameter that `seeds` in a grid file sets
MAX_POINTS = 100_000
MAX_PANELS = 24  # numbers that the summary draws
CONNECT_S = 10  # time limit of a scheduler's first answer
RETRIES = 2  # of a point that raised an exception or whose worker died


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep."""

    name: str  # of its files; ends with the first digits of the key
    values: dict[str, Any]  # every parameter of the chapter
    key: str


@dataclass(frozen=True, slots=True)
class Grid:
    """A chapter and the points at which to run it."""

    path: Path
    chapter: Chapter
    profile: str  # sets the parameters that the grid does not
    varied: list[str]  # first parameter of each axis with more than one value
    points: list[Point]


_Values = Annotated[list, Field(min_length=1)]
_FORM = "expected\n  profile: smoke\n  grid:\n    PARAMETER: [VALUE, …]\n  seeds: [1]"


@dataclass(frozen=True, slots=True)
class _GridFile:
    __pydantic_config__: ClassVar = STRICT
    profile: str = "smoke"
    grid: dict[str, _Values] = field(default_factory=dict)
    seeds: Annotated[int, Field(ge=1, le=MAX_POINTS)] | _Values | None = None


def read_grid(path: Path, chapter: Chapter) -> Grid:
    """Read and validate a grid file.

    A key of `grid` is a parameter, or several, as in 'a, b', whose values are lists of
    one value for each. `seeds` lists values of the parameter `seed`, or how many to
    spawn. The points are all combinations, of which the seed changes fastest.

    Raises:
        InvalidInput: The file cannot be read, or a parameter or value is not allowed.
    """
    try:
        content = read_yaml(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"grid {path} cannot be read: {error}") from error
    file = read_as(_GridFile, content, f"{path} is no grid", _FORM)
    axes = [([n.strip() for n in axis.split(",")], v) for axis, v in file.grid.items()]
    if isinstance(seeds := file.seeds, int):
        seeds = np.random.SeedSequence(0).generate_state(seeds).tolist()
    axes += [([SEED], seeds)] if seeds else []
    require(bool(axes), f"{path} must vary a parameter, got none. List values in grid.")
    names = [name for axis, _ in axes for name in axis]
    declared = chapters.parameters(chapter)
    smoke = {name: parameter.smoke for name, parameter in declared.items()}
    chapters.reject_unknown(names, declared, smoke, chapter.name)
    for name, count in Counter(names).items():
        require(count == 1, f"{name} must be in one axis of {path}, got {count}.")
    count = math.prod(len(values) for _, values in axes)
    require(count <= MAX_POINTS, f"{path} has {count} points: list fewer values")
    standard = chapters.resolve([chapter], file.profile, {})[chapter.name]
    all_values = []
    for combination in itertools.product(*(values for _, values in axes)):
        values = dict(standard)
        for (axis, _), value in zip(axes, combination, strict=True):
            parts = value if len(axis) > 1 else [value]
            require(
                isinstance(parts, list) and len(parts) == len(axis),
                f"each value of {', '.join(axis)} must be a list of {len(axis)}, got "
                f"{value!r}. Give one value for each parameter of the axis.",
            )
            values |= zip(axis, parts, strict=True)
        reject(declared.values(), values)
        if values != standard and chapters.PROFILE_PARAMETER in values:
            values[chapters.PROFILE_PARAMETER] = chapters.CUSTOM
        all_values.append(values)
    keys = chapters.content_keys(chapter, all_values)
    varied = [axis[0] for axis, values in axes if len(values) > 1]
    points = []
    for values, key in zip(all_values, keys, strict=True):
        title = ",".join(f"{name}={values[name]}" for name in varied) or chapter.name
        slug = re.sub(r"[^\w.=,+-]+", "_", title)[:80]
        points.append(Point(f"{slug}-{key[:10]}", values, key))
    once = len({point.key for point in points}) == len(points)
    require(once, f"{path} must list each value once, got a value twice. Remove one.")
    return Grid(path, chapter, file.profile, varied, points)


class Outcome(NamedTuple):
    """The result of a worker for a point."""

    notebook: bytes = b""  # empty if no cell was executed
    record: str | None = None  # JSON; None for a failed point
    error: str = ""  # of a failed point


def execute_point(name: str, values: dict, profile: str, key: str) -> Outcome:
    """Execute a point of chapter `name` on a worker, from the worker's own checkout."""
    host = socket.gethostname()
    with tempfile.TemporaryDirectory(prefix="thesis-point-") as folder:
        path = Path(folder) / f"{name}.ipynb"
        try:
            (chapter,) = chapters.select([name])
            require(
                chapters.content_key(chapter, values) == key,
                "code, data and versions of a worker must equal those of the client, "
                f"got others in {chapters.repository()}. Update and restart it.",
            )
            record = chapters.produce(chapter, values, profile, path, lambda *_: None)
        except InvalidInput as error:  # deterministic: another attempt would fail too
            notebook = path.read_bytes() if path.exists() else b""
            return Outcome(notebook, error=f"{error} (on {host})")
        record = dataclasses.replace(record, machine=record.machine | {"host": host})
        return Outcome(path.read_bytes(), record.to_json())


@contextlib.contextmanager
def connect(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """Yield a client of the scheduler at an address, or of local workers."""
    from dask import config
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"scheduler must be the address of a running `dask scheduler`, such as "
                f"tcp://10.0.0.1:8786, got {scheduler}: no answer within {CONNECT_S} s."
            ) from error
        with client:
            yield client
        return
    cores = identity()["cores"]
    count = cores if workers is None else workers
    require_count("workers", count)
    # Dask would give each kernel one thread, whatever the number of cores.
    names = "OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS LOKY_MAX_CPU_COUNT"
    prefix = "distributed.nanny.pre-spawn-environ"
    settings = {f"{prefix}.{name}": max(1, cores // count) for name in names.split()}
    settings["distributed.scheduler.allowed-failures"] = RETRIES
    size: Any = {"n_workers": count, "threads_per_worker": 1, "memory_limit": None}
    quiet: Any = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
    with (
        config.set(settings),
        LocalCluster(**size, **quiet) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _execute_points(
    client: Any, grid: Grid, points: list[Point]
) -> Iterator[tuple[Point, Outcome]]:
    """Execute points, one per thread of the cluster; yield each outcome as it ends."""
    from distributed import KilledWorker, as_completed

    def task(*arguments: Any) -> Any:
        # Pickled by value, so that the scheduler need not import the thesis.
        from thesis_book.execute import sweep

        return sweep.execute_point(*arguments)

    queue, submitted = iter(points), {}
    futures = as_completed(loop=client.loop, raise_errors=False)

    def submit() -> None:
        free = max(1, sum(client.nthreads().values())) - futures.count()
        for point in itertools.islice(queue, max(0, free)):
            arguments = grid.chapter.name, point.values, grid.profile, point.key
            future = client.submit(task, *arguments, retries=RETRIES, pure=False)
            submitted[future.key] = point
            futures.add(future)

    try:
        submit()
        for future in futures:
            if future.cancelled():
                raise ConnectionError("the scheduler closed the connection")
            submit()
            error: Any = future.exception()
            if isinstance(error, KilledWorker):
                died = f"{error.allowed_failures + 1} workers died while executing it"
                outcome = Outcome(error=died)
            elif error is not None:
                outcome = Outcome(error=f"{type(error).__name__}: {error}")
            else:
                outcome = future.result()
            yield submitted.pop(future.key), outcome
    except OSError as error:
        raise Lost(
            "the connection to the scheduler was lost. Finished points are written. "
            "Start the scheduler and run the same command again."
        ) from error


def run(
    grid: Grid,
    output: Path,
    workers: int | None = None,
    scheduler: str | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] = lambda ended, total: None,
    on_wait: Callable[[str], None] = lambda sentence: None,
) -> tuple[pd.DataFrame, int]:
    """Execute the points of a grid and gather the results of all of them.

    Args:
        grid: What to execute.
        output: Folder of `points/`, `results.parquet`, `summary.ipynb` and
            `summary.html`. A failed point leaves `points/NAME.failed.ipynb`.
        workers: Processes on this machine. None: one per core.
        scheduler: Address of a Dask scheduler, instead of `workers`.
        resume: Skip the points that are finished in `output`.
        progress: Called with the numbers of points that ended, and of all points.
        on_wait: Called with a sentence while another sweep or no worker is there.

    Returns:
        The table of `gather`, and how many points this call executed.

    Raises:
        InvalidInput: The sweep cannot start or cannot write.
        Lost: The connection to the scheduler was lost.
    """
    alone = workers is None or scheduler is None
    require(alone, "--workers and --scheduler were both given: remove one of the two")
    folder, total = output / "points", len(grid.points)
    records, errors = {}, {}
    with chapters.storage(output), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        busy = f"waiting for another sweep that writes to {output}"
        stack.enter_context(chapters.claimed(output / "sweep", lambda: on_wait(busy)))
        for point in grid.points:
            record = chapters.read_whole(folder / f"{point.name}.json")
            if resume and record is not None:
                records[point.name] = record
        waiting = [point for point in grid.points if point.name not in records]
        progress(len(records), total)
        if waiting:
            client = stack.enter_context(connect(workers, scheduler))
            if not client.nthreads():
                on_wait(f"waiting for workers of {scheduler}")
            for point, outcome in _execute_points(client, grid, waiting):
                if record := _store(outcome, folder, point.name):
                    records[point.name] = record
                else:
                    errors[point.name] = " ".join(outcome.error.split())
                progress(len(records) + len(errors), total)
        results = gather(grid, records, errors)
        write_whole(output / "results.parquet", results.to_parquet(index=False))
        write_summary(grid, results, output)
    return results, len(waiting)


def _store(outcome: Outcome, folder: Path, name: str) -> Record | None:
    """Write the files of a point; return its record, None if it failed."""
    failed = folder / f"{name}.failed.ipynb"
    if outcome.record is None:
        if outcome.notebook:
            write_whole(failed, outcome.notebook)
        return None
    record = Record.from_json(outcome.record, name)
    write_whole(folder / f"{name}.ipynb", outcome.notebook)
    # Last: the record marks the point as finished.
    write_whole(folder / f"{name}.json", outcome.record)
    failed.unlink(missing_ok=True)
    return record


def gather(
    grid: Grid, records: dict[str, Record], errors: dict[str, str]
) -> pd.DataFrame:
    """Return one row for each point, in the order of the grid.

    Columns: `point`, `key`, `status` (done or failed), `error` (empty if done),
    `parameter.NAME` (lists as text), and for points that are done `number.NAME` for
    each published number, `host`, `cpu`, and the scalar fields of the record.
    """
    rows = []
    for point in grid.points:
        row: dict[str, Any] = {"point": point.name, "key": point.key}
        row["status"] = "done" if point.name in records else "failed"
        row["error"] = errors.get(point.name, "")
        for name, value in point.values.items():
            row[f"parameter.{name}"] = str(value) if isinstance(value, list) else value
        if record := records.get(point.name):
            row |= {f"number.{name}": value for name, value in record.numbers.items()}
            row |= {name: record.machine.get(name) for name in ("host", "cpu")}
            fields = dataclasses.asdict(record).items()
            row |= {n: v for n, v in fields if isinstance(v, str | int | float)}
        rows.append(row)
    results = pd.DataFrame(rows)
    for name in results.filter(regex=r"^number\."):  # may be a word in some rows
        if any(isinstance(value, str) for value in results[name]):
            results[name] = results[name].map(str, na_action="ignore")
    return results


_TABLE = """
import pandas as pd
import seaborn as sns

results = pd.read_parquet("results.parquet")
results[["point", "status", *axes, "error"]]
"""
_FIGURE = """\
# Lines join the means of runs that differ in other parameters, bands contain all runs.
%matplotlib inline
if axes and numbers:
    sns.relplot(
        results.melt(axes, numbers, "number"), x=drawn[0], y="value",
        hue=(*drawn, None)[1], col="number", col_wrap=3, height=2.6, kind="line",
        marker="o", errorbar=("pi", 100), facet_kws={"sharey": False},
    ).set_titles("{col_name}", size=7)
"""


def write_summary(grid: Grid, results: pd.DataFrame, output: Path) -> None:
    """Write a notebook about `results.parquet`, and its page.

    It draws the chapter's claims that vary, or all numbers that vary if no claim does.
    """
    axes = [f"parameter.{name}" for name in grid.varied]
    drawn = [axis for axis in axes if axis != f"parameter.{SEED}"] or axes
    numeric = results.filter(regex=r"^number\.").select_dtypes("number")
    varying = [str(name) for name, count in numeric.nunique().items() if count > 1]
    claims = read_claims().of_chapter(grid.chapter.number)
    claimed = [n for c in claims if (n := f"number.{c.key}") in varying]
    numbers = (claimed or varying)[:MAX_PANELS]
    done = sum(results["status"] == "done")
    title = f"# Sweep of chapter {grid.chapter.number}: {grid.path.stem}\n\n{done} of "
    title += f"{len(results)} points are done. Other parameters: {grid.profile}."
    lists = f"axes, drawn = {axes}, {drawn}\nnumbers = {numbers}\n"
    code = [lists + _TABLE, "results", _FIGURE]
    write_notebook(output / "summary.ipynb", title, code)
