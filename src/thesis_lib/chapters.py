"""Execute chapters with papermill, and skip what is fresh.

A chapter is fresh when nothing it depends on has changed: its notebook, its
parameters, the modules of the package that it imports (and those they import), the
data folder, the locks, the installed versions and the machine. Its result is one
notebook and one record, replaced only by complete ones.
"""

import ast
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any

import nbformat
import papermill
import yaml
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.inspection import inspect_notebook

from thesis_lib.checks import InvalidInput, choice, require
from thesis_lib.paths import data_folder, root
from thesis_lib.results import Record, commit, file_hash, machine, versions

PROFILES = ("smoke", "default", "full")
KEPT = {"nbval-check-output", "keep_output"}  # tags of cells whose outputs are stored

Progress = Callable[[str, int, int], None]  # chapter, cells done, cells in all

_TYPES: dict[str, type | UnionType] = {
    "int": int,
    "float": int | float,
    "str": str,
    "bool": bool,
}


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

    def load(self) -> nbformat.NotebookNode:
        return nbformat.read(self.path, as_version=4)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One papermill parameter: its declared type, smoke value and description."""

    name: str
    type_name: str  # 'int', 'float', 'str', 'bool' or 'list[…]' of one of these
    smoke: Any
    help: str

    def accept(self, value: Any) -> Any:
        """Return `value` if it has the declared type; refuse it otherwise."""
        is_list = self.type_name.startswith("list[")
        element = self.type_name.removeprefix("list[").removesuffix("]")
        wanted = _TYPES[element]

        def fits(item: Any) -> bool:
            if isinstance(item, bool):
                return element == "bool"
            return isinstance(item, wanted)

        good = (
            isinstance(value, list) and all(fits(item) for item in value)
            if is_list
            else fits(value)
        )
        require(
            good,
            f"parameter {self.name}={value!r} has the wrong type: expected "
            f"{self.type_name} ({self.help or 'no description'}), such as "
            f"{self.smoke!r}",
        )
        return value


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
    """All chapters, in order."""
    found = sorted((repository() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    return [Chapter(path) for path in found]


def select(names: Iterable[str]) -> list[Chapter]:
    """Chapters by number ('3', '03') or name; all of them for no names.

    Raises InvalidInput for a name that is no chapter.
    """
    every = chapters()
    wanted = list(names)
    if not wanted:
        return every
    by_name = {chapter.name: chapter for chapter in every}
    by_number = {str(chapter.number): chapter for chapter in every}
    chosen = []
    for name in wanted:
        short = name.lstrip("0")
        chosen.append(
            by_number[short]
            if short in by_number
            else by_name[choice("chapter", name, by_name)]
        )
    return sorted(set(chosen), key=lambda chapter: chapter.number)


def parameters(chapter: Chapter) -> dict[str, Parameter]:
    """The parameters that a chapter declares, with their smoke values."""
    declared = {}
    for name, found in inspect_notebook(chapter.path).items():
        type_name = str(found["inferred_type_name"])
        element = type_name.removeprefix("list[").removesuffix("]")
        require(
            element in _TYPES,
            f"{chapter.name}: parameter {name} has type {type_name!r}: annotate it "
            f"with one of {', '.join(_TYPES)} or a list of one",
        )
        declared[name] = Parameter(
            name, type_name, ast.literal_eval(found["default"]), found["help"]
        )
    return declared


def profile_values(profile: str) -> dict[str, dict[str, Any]]:
    """What a profile sets, by chapter name; empty for smoke, the notebooks' own.

    Raises InvalidInput for an unknown profile or chapter, and for unreadable YAML.
    """
    choice("profile", profile, PROFILES)
    if profile == "smoke":
        return {}
    path = data_folder() / "params" / f"{profile}.yml"
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidInput(f"profile file {path} cannot be read: {error}") from error
    require(
        isinstance(content, dict)
        and all(isinstance(values, dict) for values in content.values()),
        f"{path} must map each chapter to its parameters",
    )
    names = [chapter.name for chapter in chapters()]
    for name in content:
        choice(f"chapter in {path.name}", name, names)
    return content


def assignment(text: str) -> tuple[str, Any]:
    """Name and value of 'NAME=VALUE', the value read as YAML."""
    name, separator, value = text.partition("=")
    require(
        bool(separator) and name.isidentifier(),
        f"parameter {text!r} cannot be read: expected NAME=VALUE, such as seeds=5",
    )
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InvalidInput(f"value of {text!r} cannot be read as YAML") from error


def resolve(
    chosen: list[Chapter], profile: str, overrides: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Every parameter of every chosen chapter, by chapter name.

    Raises InvalidInput for a parameter that no chosen chapter has, with the list of
    those that exist, and for a value of another type than declared.
    """
    profiled = profile_values(profile)
    resolved, known = {}, {}
    for chapter in chosen:
        declared = parameters(chapter)
        known.update(declared)
        values = {name: parameter.smoke for name, parameter in declared.items()}
        for name, value in profiled.get(chapter.name, {}).items():
            choice(f"parameter of {chapter.name} in profile {profile}", name, declared)
            values[name] = declared[name].accept(value)
        for name, value in overrides.items():
            if name in declared:
                values[name] = declared[name].accept(value)
        resolved[chapter.name] = values
    for name in overrides:
        if name not in known:
            listing = "; ".join(
                f"{p.name}: {p.type_name} = {p.smoke!r}" for p in known.values()
            )
            raise InvalidInput(
                f"parameter {name!r} is unknown in {', '.join(resolved)}: expected one "
                f"of {listing or 'none (these chapters have no parameters)'}"
            )
    return resolved


def _imported(source: str) -> set[str]:
    """Dotted names of the package's modules that `source` may import."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return {name for name in names if name.split(".")[0] == "thesis_lib"}


def module_file(name: str) -> Path | None:
    """The source file of a module of the package, or None if it is not one."""
    base = Path(__file__).parents[1].joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def modules(source: str) -> set[Path]:
    """Source files of the package that `source` imports, directly or not."""
    found: set[Path] = set()
    names = list(_imported(source))
    while names:
        path = module_file(names.pop())
        if path is not None and path not in found:
            found.add(path)
            names += _imported(path.read_text())
    return found


def code(notebook: nbformat.NotebookNode) -> str:
    """All code of a notebook."""
    return "\n".join(c.source for c in notebook.cells if c.cell_type == "code")


def key(chapter: Chapter, values: Mapping[str, Any]) -> str:
    """Hash of everything that the chapter's result depends on."""
    notebook = chapter.load()
    cells = [[c.cell_type, c.source, c.metadata] for c in notebook.cells]
    data = [
        path
        for path in data_folder().rglob("*")
        if path.is_file() and path.parent.name != "params" and path.suffix != ".md"
    ]
    locks = repository().glob("requirements*.lock")
    parts = {
        "cells": cells,
        "parameters": values,
        "package": file_hash(modules(code(notebook))),
        "data": file_hash(data),
        "locks": file_hash(locks),
        "versions": versions(),
        "machine": machine(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class _ReportingEngine(NBClientEngine):
    """Papermill's own engine, telling after each cell how far it is."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, *args: Any, **options: Any
    ) -> Any:
        on_cell = options.pop("on_cell")
        complete, total = nb_man.cell_complete, len(nb_man.nb.cells)

        def report(cell: Any, cell_index: int | None = None, **rest: Any) -> None:
            complete(cell, cell_index=cell_index, **rest)
            on_cell((cell_index or 0) + 1, total)

        nb_man.cell_complete = report
        return super().execute_managed_notebook(nb_man, kernel_name, *args, **options)


papermill_engines.register("reporting", _ReportingEngine)


def _execute(
    chapter: Chapter, values: Mapping[str, Any], output: Path, progress: Progress
) -> nbformat.NotebookNode:
    partial = output.with_name(f"{output.stem}.partial.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    try:
        papermill.execute_notebook(
            str(chapter.path),
            str(partial),
            parameters=dict(values),
            engine_name="reporting",
            kernel_name="python3",
            progress_bar=False,
            cwd=str(chapter.path.parent),
            extra_arguments=["--log-level=ERROR"],  # no note on the local transport
            on_cell=lambda done, total: progress(chapter.name, done, total),
        )
    except PapermillExecutionError as error:
        partial.replace(failed)
        raise InvalidInput(
            f"chapter {chapter.name} failed in cell {error.cell_index}: {error.ename}: "
            f"{error.evalue}; earlier results are as they were; see {failed}"
        ) from error
    notebook = nbformat.read(partial, as_version=4)
    # Killed between the two, a chapter has no record and is simply executed again.
    output.with_suffix(".json").unlink(missing_ok=True)
    partial.replace(output)
    failed.unlink(missing_ok=True)
    return notebook


def glued(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """The numbers that an executed notebook glued, by name."""
    numbers = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name:
                mime = output["metadata"]["scrapbook"].get("mime_prefix", "")
                text = output["data"].get(f"{mime}text/plain")
                numbers[name] = ast.literal_eval(text)
    return numbers


def fresh(folder: Path, chapter: Chapter, wanted_key: str) -> Record | None:
    """The record of a result in `folder` that has `wanted_key`, if there is one."""
    path = folder / f"{chapter.name}.json"
    if not path.is_file() or not (folder / f"{chapter.name}.ipynb").is_file():
        return None
    record = Record.read(path)
    return record if record.key == wanted_key else None


def run(
    chosen: list[Chapter],
    profile: str,
    overrides: Mapping[str, Any],
    output: Path,
    progress: Progress,
) -> list[tuple[Record, bool]]:
    """Execute the chapters that are not fresh: (record, whether it was executed).

    Everything is checked before anything runs. A chapter that fails raises
    InvalidInput and leaves earlier results, its own included, as they were.
    """
    resolved = resolve(chosen, profile, overrides)
    output.mkdir(parents=True, exist_ok=True)
    outcome = []
    for chapter in chosen:
        values = resolved[chapter.name]
        wanted = key(chapter, values)
        if (record := fresh(output, chapter, wanted)) is not None:
            outcome.append((record, False))
            continue
        started, clock = datetime.now(UTC), time.perf_counter()
        record_path = output / f"{chapter.name}.json"
        notebook = _execute(chapter, values, output / f"{chapter.name}.ipynb", progress)
        record = Record(
            chapter=chapter.name,
            profile=profile,
            parameters=values,
            key=wanted,
            commit=commit(repository()),
            machine=machine(),
            versions=versions(),
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - clock, 1),
            numbers=glued(notebook),
        )
        record.write(record_path)
        outcome.append((record, True))
    return outcome


def strip(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Keep exactly the outputs that nbval compares, and no trace of the run."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
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
    scratch.mkdir(parents=True, exist_ok=True)
    for chapter in chosen:
        executed = _execute(chapter, {}, scratch / f"{chapter.name}.ipynb", progress)
        partial = chapter.path.with_suffix(".partial")
        nbformat.write(strip(executed), partial)
        partial.replace(chapter.path)
