"""Execute chapters with papermill, and skip what is fresh.

A chapter is fresh when nothing it depends on has changed: its notebook, its
parameters and the files of functions among them, the modules of the package that it
imports (and those they import), the data folder, its claims, the locks, the installed
versions and the machine. Its result is one notebook and one record, replaced only by
complete ones, under a lock that a killed process gives up.

Chapters run at the same time. A cell that measures a time has the tag `alone`: no cell
of another chapter runs with it.
"""

import errno
import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml
from filelock import FileLock, Timeout

from thesis_book.execute.claims import FILE as CLAIMS_FILE
from thesis_book.execute.claims import claim_hash
from thesis_book.execute.imports import modules
from thesis_book.execute.parameters import (
    TYPES,
    Parameter,
    declared_in,
    limits_of,
    read_yaml,
    reject,
)
from thesis_book.execute.provenance import (
    Watch,
    commit,
    describe,
    identity,
    lock_hash,
    versions,
)
from thesis_book.execute.records import OldRecord, Record, glued, read_as
from thesis_lib.common.errors import InvalidInput, Lost, choice, require
from thesis_lib.common.files import (
    cache_folder,
    content_hash,
    data_folder,
    file_hash,
    root,
    write_whole,
)

if TYPE_CHECKING:  # a wrong parameter is reported before these seconds of imports
    from nbformat import NotebookNode
    from papermill.exceptions import PapermillExecutionError

PROFILES = ("smoke", "default", "full")
PROFILE_PARAMETER = "profile"  # set here, so that a chapter knows its references
CUSTOM = "custom"  # the profile of a run whose parameters are the reader's own
KEPT = {"nbval-check-output", "keep_output"}  # tags of cells whose outputs are stored
ALONE = "alone"  # tag of cells that measure a time: no other cell runs with them

Progress = Callable[[str, int, int], None]  # chapter, cells done, cells in all


@dataclass(frozen=True, slots=True)
class Chapter:
    """A notebook of the thesis: `name` is its file name without the ending."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> int:
        return int(self.name.split("_")[0])

    def load(self) -> "NotebookNode":
        import nbformat

        return nbformat.read(self.path, as_version=4)


def repository() -> Path:
    """The checkout. Raises InvalidInput where the package runs without one."""
    checkout = root()
    if checkout is None:
        raise InvalidInput(
            "the chapters are not here: run `thesis` from an editable install of a "
            "clone (`make book` makes one)"
        )
    return checkout


def chapters() -> list[Chapter]:
    """Return all chapters, in order."""
    notebooks = sorted((repository() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    return [Chapter(path) for path in notebooks]


def select(names: Iterable[str]) -> list[Chapter]:
    """Chapters by number ('3', '03') or name; all of them for no names.

    Raises InvalidInput for a name that is no chapter.
    """
    every = chapters()
    by_name = {chapter.name: chapter for chapter in every}
    by_number = {str(chapter.number): chapter for chapter in every}
    chosen = {
        by_number.get(name.lstrip("0")) or by_name[choice("chapter", name, by_name)]
        for name in names
    }
    return sorted(chosen, key=lambda chapter: chapter.number) or every


def parameters(chapter: Chapter) -> dict[str, Parameter]:
    """The parameters that a chapter declares, with their smoke values and limits."""
    tagged = {"parameters": "", "limits": ""}
    for cell in json.loads(chapter.path.read_text())["cells"]:
        for tag in tagged.keys() & cell["metadata"].get("tags", []):
            tagged[tag] = "".join(cell["source"])
    limits = limits_of(tagged["limits"]) if tagged["limits"] else {}
    declared = declared_in(tagged["parameters"], limits)
    for parameter in declared.values():
        require(
            parameter.element in TYPES,
            f"{chapter.name}: parameter {parameter.name} has type "
            f"{parameter.type_name!r}: annotate it with one of {', '.join(TYPES)} or a "
            "list of one",
        )
    return declared


def profile_values(profile: str) -> dict[str, dict[str, Any]]:
    """Return a profile's parameters by chapter name; empty for smoke.

    Raises InvalidInput for an unknown profile or chapter, and for unreadable YAML.
    """
    choice("profile", profile, PROFILES)
    if profile == "smoke":
        return {}
    path = data_folder() / "params" / f"{profile}.yml"
    try:
        content = read_yaml(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"profile file {path} cannot be read: {error}") from error
    content = read_as(
        dict[str, dict[str, Any]],
        content,
        f"{path} is no profile",
        "expected each chapter with its parameters",
    )
    names = [chapter.name for chapter in chapters()]
    for name in content:
        choice(f"chapter in {path.name}", name, names)
    return content


def listing(declared: Mapping[str, Parameter], values: Mapping[str, Any]) -> str:
    """Parameters, a line each: name, type, value where nothing else is said, limits."""
    return "\n".join(
        f"  {p.name}: {p.type_name} = {values[p.name]!r}  {p.help} [{p.limits.text}]"
        for p in declared.values()
        if p.name != PROFILE_PARAMETER
    )


def resolve(
    chosen: list[Chapter], profile: str, overrides: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Every parameter of every chosen chapter, by chapter name.

    Raises InvalidInput for a value that its chapter does not allow and for a parameter
    that no chosen chapter has, the latter with a note that lists those that exist.
    """
    profiled = profile_values(profile)
    resolved, known, defaults = {}, {}, {}
    for chapter in chosen:
        declared = parameters(chapter)
        standard = {name: parameter.smoke for name, parameter in declared.items()}
        standard |= profiled.get(chapter.name, {})
        for name in standard:
            choice(f"parameter of {chapter.name} in profile {profile}", name, declared)
        if PROFILE_PARAMETER in declared:
            standard[PROFILE_PARAMETER] = profile
        known, defaults = known | declared, defaults | standard
        own = {n: value for n, value in overrides.items() if n in declared}
        require(
            PROFILE_PARAMETER not in own,
            f"parameter {PROFILE_PARAMETER} is not set by hand: use --profile",
        )
        try:
            reject(declared.values(), standard | own)
        except InvalidInput as error:
            raise InvalidInput(f"{chapter.name} cannot run: {error}") from error
        values = standard | own
        if values != standard and PROFILE_PARAMETER in declared:
            values[PROFILE_PARAMETER] = CUSTOM
        resolved[chapter.name] = values
    reject_unknown(overrides, known, defaults, ", ".join(resolved))
    return resolved


def reject_unknown(
    names: Iterable[str],
    declared: Mapping[str, Parameter],
    values: Mapping[str, Any],
    where: str,
) -> None:
    """Raise InvalidInput for a name that is not declared.

    Its note, which is printed above the error, lists those that are.
    """
    for name in names:
        if name in declared:
            continue
        near = get_close_matches(name, declared, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = f"one of these {len(declared)}" if declared else "none"
        error = InvalidInput(
            f"parameter {name!r} is unknown in {where}: expected {known}{hint}"
        )
        if declared:
            error.add_note(f"Parameters of {where}:\n{listing(declared, values)}")
        raise error


def code(notebook: "NotebookNode") -> str:
    """Return all code of a notebook."""
    return "\n".join(c.source for c in notebook.cells if c.cell_type == "code")


def _read_data(source: str) -> list[Path]:
    """The files of the data folder that code may read, those of all claims apart."""
    folder = data_folder()
    aside = {"params", "grids", "reference"}  # no chapter reads them
    if "measurements" not in source:  # which benchmarks write
        aside.add("measurements")
    if "read_claims" not in source:  # a chapter that reads them counts all
        aside.add(CLAIMS_FILE)
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not aside & set(path.relative_to(folder).parts)
        and path.suffix != ".md"
    ]


def content_keys(chapter: Chapter, many: Iterable[Mapping[str, Any]]) -> list[str]:
    """`content_key` of many sets of parameters, reading what they share once."""
    notebook = chapter.load()
    source = code(notebook)
    shared = {
        "cells": [[c.cell_type, c.source, c.metadata] for c in notebook.cells],
        "package": file_hash(modules(source)),
        "data": file_hash(_read_data(source)),
        "locks": lock_hash(repository()),
        "versions": versions(),
    }
    claims = functools.cache(functools.partial(claim_hash, chapter.number))
    taking = [p for p in parameters(chapter).values() if p.limits.function]
    keys = []
    for values in many:
        reject(taking, values)  # a worker may not have the file
        functions = [name for p in taking for name in values.get(p.name, [])]
        own = {
            "parameters": values, "claims": claims(values.get(PROFILE_PARAMETER)),
            "functions": file_hash(Path(name.rpartition(":")[0]) for name in functions),
        }  # fmt: skip
        text = json.dumps(shared | own, sort_keys=True)
        keys.append(hashlib.sha256(text.encode()).hexdigest())
    return keys


def content_key(chapter: Chapter, values: Mapping[str, Any]) -> str:
    """Hash of everything that the chapter's result depends on, the machine apart."""
    return content_keys(chapter, [values])[0]


class _CellLock:
    """A lock that threads share or hold alone; waiting to be alone goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders, self._waiting = 0, 0  # -1: held alone; waiting to be alone

    def acquire(self, alone: bool) -> None:
        with self._changed:
            self._waiting += alone
            self._changed.wait_for(
                lambda: self._holders == 0 if alone
                else self._holders >= 0 and not self._waiting
            )  # fmt: skip
            self._waiting -= alone
            self._holders = -1 if alone else self._holders + 1

    def release(self) -> None:
        with self._changed:
            self._holders = max(0, self._holders - 1)
            self._changed.notify_all()


_CELLS = _CellLock()


@functools.cache
def _reporting_engine() -> str:
    """Register an engine that reports progress and locks cells; return its name."""
    from papermill.engines import NBClientEngine, papermill_engines

    class ReportingEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(
            cls, nb_man: Any, kernel_name: str, *args: Any, **options: Any
        ) -> Any:
            on_cell = options.pop("on_cell")
            start, complete = nb_man.cell_start, nb_man.cell_complete

            def lock_and_start(cell: Any, cell_index: int) -> None:
                _CELLS.acquire(ALONE in cell.metadata.get("tags", []))
                start(cell, cell_index)

            def report(cell: Any, cell_index: int) -> None:
                complete(cell, cell_index=cell_index)
                _CELLS.release()
                on_cell(cell_index + 1, len(nb_man.nb.cells))

            nb_man.cell_start, nb_man.cell_complete = lock_and_start, report
            return super().execute_managed_notebook(
                nb_man, kernel_name, *args, **options
            )

    papermill_engines.register("reporting", ReportingEngine)
    return "reporting"


class ChapterFailed(InvalidInput):
    """A chapter that stopped in a cell; its notebook so far is kept."""

    def __init__(self, chapter: Chapter, path: Path, error: "PapermillExecutionError"):
        super().__init__(
            f"chapter {chapter.name} failed in cell {error.cell_index}: {error.ename}: "
            f"{error.evalue}"
        )
        self.cell = error.cell_index
        self.notebook_path = path
        self.traceback = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback))


def _word(chapter: Chapter) -> str:
    """Return a word of the command line by which the kernel of a chapter is found."""
    return f"--Session.username={chapter.name}"


def _execute(
    chapter: Chapter,
    values: Mapping[str, Any],
    path: Path,
    progress: Progress,
) -> "NotebookNode":
    """Execute a chapter into the notebook `path`. Raises ChapterFailed, and Lost."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    # Of paths papermill makes formats, which may name parameters.
    source, target = (
        str(each).replace("{", "{{").replace("}", "}}") for each in (chapter.path, path)
    )
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters=dict(values),
            engine_name=_reporting_engine(),
            kernel_name="python3",
            progress_bar=False,
            request_save_on_cell_execute=False,  # save once, at the end or at an error
            # The folder of the kernel; papermill's `cwd` would be that of all threads.
            resources={"metadata": {"path": str(chapter.path.parent)}},
            # No note on the local transport, on the interrupt before the end, or on a
            # request that comes while the kernel leaves.
            extra_arguments=[
                "--log-level=CRITICAL",
                _word(chapter),
                "--IPKernelApp.exec_lines=__import__('logging')"
                ".getLogger('tornado.general').setLevel('CRITICAL')",
            ],
            on_cell=lambda done, total: progress(chapter.name, done, total),
        )
    except PapermillExecutionError as error:
        raise ChapterFailed(chapter, path, error) from error
    except DeadKernelError as error:
        raise Lost(
            f"the kernel of chapter {chapter.name} died, for want of memory or killed; "
            "earlier results are as they were: free memory, and run it again"
        ) from error
    return nbformat.read(path, as_version=4)


def produce(
    chapter: Chapter,
    values: Mapping[str, Any],
    profile: str,
    path: Path,
    progress: Progress,
) -> Record:
    """Execute a chapter into the notebook `path`; the record of it, not yet written.

    Raises ChapterFailed, which leaves the notebook so far at `path`.
    """
    checkout = repository()
    wanted, (head, clean) = content_key(chapter, values), commit(checkout)
    _CELLS.acquire(alone=not describe.cache_info().currsize)  # it measures once
    try:
        host = describe(cache_folder())
    finally:
        _CELLS.release()
    started, clock = datetime.now(UTC), time.perf_counter()
    with Watch(_word(chapter)) as watch:
        notebook = _execute(chapter, values, path, progress)
    numbers = glued(notebook)
    return Record(
        chapter=chapter.name,
        profile=profile,
        parameters=dict(values),
        seeds={
            name: value
            for name, value in values.items()
            if name.removesuffix("s").endswith("seed")
        },
        key=wanted,
        notebook_sha256=content_hash(path),
        commit=head,
        clean=clean,
        lock_sha256=lock_hash(checkout),
        machine=host,
        versions=versions(),
        precision=str(numbers.get("precision", "not published")),
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - clock, 1),
        peak_memory_bytes=watch.peak_memory_bytes,
        load_average=watch.load_average,
        numbers=numbers,
    )


def read_whole(path: Path) -> Record | None:
    """The record `path` if its notebook stands beside it, as it describes it.

    None for one of an earlier version of records, and where there is none. Raises
    InvalidInput for a record that is newer than this code, or damaged.
    """
    if not path.is_file():
        return None
    try:
        record = Record.read(path)
    except OldRecord:
        return None
    notebook = path.with_suffix(".ipynb")
    whole = notebook.is_file() and content_hash(notebook) == record.notebook_sha256
    return record if whole else None


def fresh(folder: Path, chapter: Chapter, wanted_key: str) -> Record | None:
    """The record of a whole result in `folder` that has `wanted_key`, if there is one.

    A result of another machine is not fresh. Raises InvalidInput as `read_whole`.
    """
    record = read_whole(folder / f"{chapter.name}.json")
    if record is None or record.key != wanted_key:
        return None
    here = identity()
    return record if {name: record.machine.get(name) for name in here} == here else None


def read_records(folder: Path) -> list[Record]:
    """The records of a folder of results, in the order of their chapters.

    Raises InvalidInput for a folder without any, and for a record that cannot be read.
    """
    paths = sorted(folder.glob("[0-9][0-9]_*.json"))
    require(
        bool(paths),
        f"{folder} holds no record of a run: expected a folder that `thesis run` wrote",
    )
    return [Record.read(path) for path in paths]


@contextmanager
def claimed(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock beside `path`; call `on_wait` once if another process has it.

    The system gives it up when its holder dies, however it dies.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


_REFUSED = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ENOTDIR, errno.EEXIST, errno.EFBIG,
}  # fmt: skip


@contextmanager
def storage(folder: Path) -> Iterator[None]:
    """Turn what the file system rejects while results are written into a rejection."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise InvalidInput(
            f"results cannot be written to {error.filename or folder}: "
            f"{error.strerror or error}; what was finished is as it was: make room, or "
            "name another folder with --output, and run again"
        ) from error


def _run_one(
    chapter: Chapter,
    values: Mapping[str, Any],
    profile: str,
    folder: Path,
    progress: Progress,
) -> Record:
    """Produce a chapter in `folder`; the caller holds its lock."""
    output = folder / f"{chapter.name}.ipynb"
    failed = output.with_suffix(".failed.ipynb")
    partial = folder / f".{chapter.name}.partial.ipynb"
    try:
        record = produce(chapter, values, profile, partial, progress)
    except ChapterFailed as error:
        partial.replace(failed)
        standard = resolve([chapter], profile, {})[chapter.name]
        own = [f"{n}={v!r}" for n, v in values.items() if v != standard.get(n)]
        beside = f" with {', '.join(own)} (otherwise as in {profile})" if own else ""
        raise InvalidInput(
            f"{error}{beside}; earlier results are as they were; see {failed}"
        ) from error
    # Killed between these two, the notebook is not the one of its record: not fresh.
    write_whole(output, partial.read_bytes())
    record.write(output.with_suffix(".json"))
    partial.unlink()
    failed.unlink(missing_ok=True)
    return record


def run(
    chosen: list[Chapter],
    profile: str,
    overrides: Mapping[str, Any],
    output: Path,
    progress: Progress,
    on_wait: Callable[[str], None] = lambda name: None,
    again: bool = False,
    workers: int = 2,
) -> list[tuple[Record, bool]]:
    """Execute the chapters that are not fresh: (record, whether it was executed).

    `workers` of them run at the same time, in the order of the sizes of their files.

    All of them with `again`: a measurement is fresh when nothing it depends on has
    changed, and may yet be one that others disturbed.

    Everything is checked before anything runs. A chapter that fails raises
    InvalidInput and leaves earlier results, its own included, as they were. Another
    run of the same chapter into the same folder is waited for, after `on_wait`.
    """
    require(
        workers >= 1,
        f"workers={workers} cannot run chapters: expected at least 1 at a time",
    )
    resolved = resolve(chosen, profile, overrides)

    def one(chapter: Chapter) -> tuple[Record, bool]:
        name, values = chapter.name, resolved[chapter.name]
        with claimed(output / name, functools.partial(on_wait, name)):
            key = content_key(chapter, values)
            known = None if again else fresh(output, chapter, key)
            record = known or _run_one(chapter, values, profile, output, progress)
        return record, known is None

    # The longest chapter starts first, so that it does not run alone at the end.
    ordered = sorted(chosen, key=lambda each: -each.path.stat().st_size)
    with storage(output), ThreadPoolExecutor(workers) as pool:
        output.mkdir(parents=True, exist_ok=True)
        begun = {chapter: pool.submit(one, chapter) for chapter in ordered}
        try:
            wait(begun.values(), return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:  # the terminal does not send it to kernels
            pool.shutdown(wait=False, cancel_futures=True)
            while wait(begun.values(), timeout=0.1).not_done:
                for child in psutil.Process().children():
                    child.kill()
            raise
        pool.shutdown(cancel_futures=True)
        ended = {chapter: each.result() for chapter, each in begun.items()}
    return [ended[chapter] for chapter in chosen]


def strip(notebook: "NotebookNode") -> "NotebookNode":
    """Keep exactly the outputs that nbval compares, and no trace of the run."""
    import nbformat

    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}}
    )
    for index, cell in enumerate(notebook.cells):
        cell.id = str(index)
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code" and not KEPT & set(cell.metadata.get("tags", [])):
            # nbval needs the count where there is an output, and only there.
            cell.execution_count, cell.outputs = None, []
    return notebook


def store_outputs(chosen: list[Chapter], scratch: Path, progress: Progress) -> None:
    """Execute chapters at their smoke values; store in place what nbval compares."""
    import nbformat

    scratch.mkdir(parents=True, exist_ok=True)
    for chapter in chosen:
        executed = _execute(chapter, {}, scratch / f"{chapter.name}.ipynb", progress)
        partial = chapter.path.with_suffix(".partial")
        nbformat.write(strip(executed), partial)
        partial.replace(chapter.path)
