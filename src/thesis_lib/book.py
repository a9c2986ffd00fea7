"""Render executed chapters as the book: stage them, then call Jupyter Book.

Papermill executes and Jupyter Book only renders, so that no number can come from a
cache that does not know the package. The page "Provenance" is written here, from the
records of the chapters.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from thesis_lib.chapters import chapters, repository
from thesis_lib.checks import InvalidInput, require
from thesis_lib.files import file_hash
from thesis_lib.results import Record
from thesis_lib.units import format_duration, format_size

STAMP = "rendered.sha256"


def _stage_notebook(executed: Path) -> str:
    """The notebook as readers see it: inputs folded, one parameters cell.

    Raises InvalidInput if the run wrote to standard error: a reader would see it.
    """
    notebook = nbformat.read(executed, as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    injected = any("injected-parameters" in t for t in tags)
    kept = []
    for cell, cell_tags in zip(notebook.cells, tags, strict=True):
        cell.metadata.pop("papermill", None)
        if injected and "parameters" in cell_tags:
            continue  # the values that ran follow, in the injected cell
        if cell.cell_type == "code":
            for output in cell.outputs:
                require(
                    output.get("name") != "stderr",
                    f"{executed.name} wrote to standard error: "
                    f"{str(output.get('text'))[:200]!r}; mend the cell that starts "
                    f"{cell.source[:60]!r}",
                )
            if not {"hide-input", "remove-input", "remove-cell"} & set(cell_tags):
                cell.metadata["tags"] = [*cell_tags, "hide-input"]
        kept.append(cell)
    notebook.cells = kept
    notebook.metadata.pop("papermill", None)
    return nbformat.writes(notebook)


def _provenance(records: list[Record]) -> str:
    """The generated part of the page "Provenance", as MyST Markdown."""
    first = records[0]
    host = first.machine
    lines = [
        "| | |",
        "|---|---|",
        f"| Processor | {host['cpu']}, {host['cores']} cores |",
        f"| Memory | {format_size(host['memory_bytes'])} |",
        f"| System | {host['system']} |",
        f"| Python | {host['python']} |",
        *(f"| {name} | {version} |" for name, version in first.versions.items()),
        "",
        "| chapter | profile | commit | started (UTC) | run time |",
        "|---|---|---|---|---|",
        *(
            f"| {r.chapter} | {r.profile} | {r.commit} | {r.started[:16]} "
            f"| {format_duration(r.seconds)} |"
            for r in records
        ),
        "",
        "Parameters, seeds among them, of every chapter:",
        "",
        "| chapter | parameter | value |",
        "|---|---|---|",
        *(
            f"| {r.chapter} | `{name}` | `{value}` |"
            for r in records
            for name, value in r.parameters.items()
        ),
        "",
    ]
    return "\n".join(lines)


def stage(executed: Path, source: Path) -> str:
    """Lay out what Jupyter Book reads in `source`; return the hash of all of it.

    Raises InvalidInput where a chapter has no result in `executed`.
    """
    checkout = repository()
    if source.exists():
        shutil.rmtree(source)
    (source / "notebooks").mkdir(parents=True)
    shutil.copytree(checkout / "book", source / "book")
    shutil.copy2(checkout / "_config.yml", source)
    records = []
    for chapter in chapters():
        result = executed / f"{chapter.name}.ipynb"
        require(
            result.is_file() and result.with_suffix(".json").is_file(),
            f"chapter {chapter.name} has no result in {executed}: run it first with "
            f"`thesis run {chapter.number}`",
        )
        records.append(Record.read(result.with_suffix(".json")))
        staged = source / "notebooks" / chapter.path.name
        staged.write_text(_stage_notebook(result))
    (source / "book" / "provenance_table.txt").write_text(_provenance(records))
    files = [path for path in source.rglob("*") if path.is_file()]
    names = "\n".join(str(path.relative_to(source)) for path in sorted(files))
    locks = file_hash(checkout.glob("requirements*.lock"))
    return hashlib.sha256(f"{names}{file_hash(files)}{locks}".encode()).hexdigest()


def render(executed: Path, output: Path) -> tuple[Path, bool]:
    """Build the book strictly: (its first page, whether anything was built).

    Nothing is built when what would be read has not changed. A failed build raises
    InvalidInput and leaves the previous book as it was.
    """
    digest = stage(executed, output / "source")
    html, stamp = output / "html", output / STAMP
    index = html / "index.html"
    if stamp.is_file() and stamp.read_text() == digest and index.is_file():
        return index, False
    scratch = output / "scratch"
    if scratch.exists():
        shutil.rmtree(scratch)
    command = [
        str(Path(sys.executable).with_name("jupyter-book")), "build",
        str(output / "source"),
        "--toc", str(output / "source" / "book" / "_toc.yml"),
        "--path-output", str(scratch),
        "-W", "--keep-going", "--all",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    report = output / "build.log"
    report.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        warnings = [
            line
            for line in (done.stdout + done.stderr).splitlines()
            if "WARNING" in line or "ERROR" in line
        ]
        raise InvalidInput(
            "the book does not build without warnings: expected none, see "
            f"{report}\n" + "\n".join(warnings[:20])
        )
    if html.exists():
        shutil.rmtree(html)
    (scratch / "_build" / "html").rename(html)
    shutil.rmtree(scratch)
    stamp.write_text(digest)
    return index, True
