"""Render executed chapters as the book: stage them, then call Jupyter Book.

Papermill executes and Jupyter Book only renders, so that no number can come from a
cache that does not know the package. The pages "Your hardware", "Parameters" and
"Provenance" are written here from the records of the chapters, and the table of
packages from `src`.
"""

import ast
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from thesis_book import figures
from thesis_book.compare.audit import anchor, audit, page_lines, sections
from thesis_book.compare.cards import claim_cards
from thesis_book.compare.comparison import (
    Comparison,
    Run,
    compare,
    describe_machine,
    doubts,
    read_reference,
)
from thesis_book.compare.headlines import headline_results
from thesis_book.compare.present import (
    book_lines,
    chart,
    doubts_section,
    durations_lines,
    in_short,
    machines_section,
    markdown,
    markdown_table,
    section_lines,
)
from thesis_book.execute.chapters import (
    PROFILE_PARAMETER,
    Chapter,
    chapters,
    claimed,
    parameters,
    repository,
    storage,
)
from thesis_book.execute.claims import HISTORY, REFERENCE, read_claims, read_history
from thesis_book.execute.provenance import lock_hash
from thesis_book.execute.records import Record
from thesis_book.render.notebooks import clean_notebook
from thesis_book.render.offers import number_references, offer_pdf
from thesis_book.render.staging import Published, stage_notebook, write_figure
from thesis_book.tables import measurements
from thesis_book.widgets.widget import PARTS, widget
from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.files import content_hash, file_hash, read_record
from thesis_lib.common.stats import Interval
from thesis_lib.common.units import format_duration, format_size, significant

STAMP = "rendered.sha256"
FIGURES = Path("_static", "figures")  # in the folder of the book's pages
TIMES, HEADLINES = "fig-your-hardware", "fig-headlines"  # drawn from the records
CARDS = "claim_cards.json"  # beside the pages, for book/_ext/thesis_cards.py
DOWNLOADS = "downloads"  # the chapters as readers take them away


def _published(results: list[tuple[Path, Record]], compared: Comparison) -> Published:
    """Published values of the chapters, with doubts, and the cards of claims."""
    run = Run(compared.labels[0], tuple(record for _, record in results))
    doubted = doubts(compared, run)
    by_chapter = {record.chapter: record for _, record in results}
    keys = [*zip(compared.rows["chapter"], compared.rows["claim"], strict=True)]
    claims = {
        record.chapter: {
            name: anchor(key)
            for number, key in keys
            if number == record.number
            for name in (key, f"{key}_by")
        }
        for record in run.records
    }
    return Published(by_chapter, doubted, claims)


def _results(executed: Path) -> list[tuple[Path, Record]]:
    """Return each chapter's notebook and record; raise InvalidInput for a mismatch."""
    results = []
    for chapter in chapters():
        notebook = executed / f"{chapter.name}.ipynb"
        path = notebook.with_suffix(".json")
        again = f"run it with `thesis run {chapter.number} --profile {executed.name}`"
        require(
            notebook.is_file() and path.is_file(),
            f"chapter {chapter.name} has no result in {executed}: {again} first",
        )
        record = Record.read(path)
        require(
            content_hash(notebook) == record.notebook_sha256,
            f"{notebook} is not the notebook that its record describes (a run was "
            f"killed between the two, or it was edited): {again} again",
        )
        results.append((notebook, record))
    return results


def _provenance(records: list[Record]) -> list[str]:
    """Return the environment of the chapters, as MyST Markdown."""
    machine = machines_section([describe_machine(Run("this run", tuple(records)))])
    table = [
        [
            str(r.number),
            r.profile,
            f"`{r.commit}`{'' if r.clean else ', with changes'}",
            r.started[:16].replace("T", " "),
            format_duration(r.seconds),
            format_size(r.peak_memory_bytes),
            ", ".join(f"{r.load_average.get(n, 0):.2f}" for n in ("mean", "most")),
            markdown(r.precision),
        ]
        for r in records
    ]
    head = [
        "Chapter", "Profile", "Commit", "Started (UTC)", "Run time", "Peak memory",
        "Load, mean and most", "Precision",
    ]  # fmt: skip
    versions = map(list, records[0].versions.items())
    return [
        *section_lines(machine),
        *["## Runs", *markdown_table(head, table)],
        *["## Versions", *markdown_table(["Distribution", "Version"], versions)],
    ]


def _packages(source: Path) -> list[str]:
    """Return the table of packages below `src`: purpose and lines of Python of each."""
    rows, total = [], 0
    for init in sorted(source.rglob("__init__.py")):
        purpose = (ast.get_docstring(ast.parse(init.read_text())) or "").split("\n")[0]
        texts = (module.read_text() for module in init.parent.glob("*.py"))
        lines = sum(len(text.splitlines()) for text in texts)
        name = ".".join(init.parent.relative_to(source).parts)
        rows.append([f"`{name}`", purpose, f"{lines:,}"])
        total += lines
    rows.append(["all", "", f"{total:,}"])
    return markdown_table(["Package", "Purpose", "Lines"], rows)


def _parameter_lines(chapter: Chapter, record: Record) -> list[str]:
    """Return a chapter's parameters with ranges and values, as MyST Markdown."""
    rows = [
        [
            f"`{name}`",
            markdown(p.help),
            markdown("true or false" if p.element == "bool" else p.limits.text),
            f"`{_parameter_value(record.parameters.get(name, p.smoke))}`",
        ]
        for name, p in parameters(chapter).items()
        if name != PROFILE_PARAMETER
    ]
    head = ["Parameter", "What it is", "Allowed", "This run"]
    title = f"## Chapter {chapter.number}, profile `{record.profile}`"
    return [title, *markdown_table(head, rows)] if rows else []


def _parameter_value(value: Any) -> str:
    """A value as it is printed: whole numbers in a row by their ends."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and len(value) > 4:
        whole = all(isinstance(each, int) for each in value)
        if whole and value == [*range(value[0], value[0] + len(value))]:
            return f"[{value[0]}, ..., {value[-1]}]"
    return str(value)


def _large_cell(label: str, value: Any) -> str:
    """A value, or a mean with its interval; a share's ends are shares."""
    if not isinstance(value, list):
        return significant(value, 4)
    interval = Interval(*value)
    if label.endswith("(%)"):
        interval = interval.within(0.0, 100.0)
    mean, low, high = (
        significant(each, 3) for each in (interval.value, interval.low, interval.high)
    )
    return mean if value[1] == value[2] else f"{mean} ({low} to {high})"


def _large_runs() -> list[str]:
    """Return the record of the large runs (`benchmarks/grids.py`) as Markdown."""
    record = read_record("grids")
    if record is None:
        return ["The large grids and the profile `full` have not been recorded yet."]
    full = record.pop("full", None)
    lines = []
    if full is not None:
        lines = [
            f"The profile `full` took {format_duration(sum(full['seconds'].values()))} "
            f"and {format_size(full['peak_memory_bytes'])} at most, at "
            f"`{full['commit']}`.",
            "",
        ]
    for name, run in record.items():
        whole, longest = (format_duration(run["point_s"][n]) for n in ("sum", "most"))
        lines += [
            f"### `{name}`",
            "",
            f"{run['points']} points, {len(run['failed'])} of them failed; {whole} on "
            f"{run['workers']} worker{'s' * (run['workers'] > 1)}, {longest} for the "
            f"longest; at `{run['commit']}`.",
            *markdown_table(
                map(markdown, run["rows"][0]),
                [[_large_cell(*cell) for cell in row.items()] for row in run["rows"]],
            ),
        ]
    return lines


def _first_use() -> list[str]:
    """Return the table of `benchmarks/first_use.py` as MyST Markdown."""
    record = read_record("first_use")
    if record is None:
        return ["The first use has not been recorded yet."]
    columns = ["first_wall_s", "first_cpu_s", "again_wall_s"]
    rows = [
        [markdown(point["command"]), *(f"{median(point[of]):.1f}" for of in columns)]
        for point in record["points"]
    ]
    head = ["command", "first use (s)", "processor time (s)", "second use (s)"]
    where = f"\nMedians of {record['rounds']} runs on {measurements.origin(record)}."
    return [*markdown_table(head, rows), where]


def _played(source: Path) -> set[str]:
    """The interactive parts that the staged pages embed."""
    pages = (*source.glob("book/*.md"), *source.glob("notebooks/*.ipynb"))
    names = (re.findall(r"\{play\} *(\w+)", page.read_text()) for page in pages)
    return set(itertools.chain(*names)) & PARTS.keys()


_GITHUB = re.compile(
    r"(?:https?://(?:[^@/]+@)?|ssh://git@|git@)github\.com[:/]"
    r"(?P<owner>[\w-]+)/(?P<name>[\w.-]+?)(?:\.git)?/?"
)


def _canonical(address: str, where: str = "") -> str | None:
    """Return a GitHub address in one form; None, or InvalidInput, for another."""
    match = _GITHUB.fullmatch(address.strip())
    require(
        bool(match or not where),
        f"{where} is {address!r}: expected the address of a GitHub repository, such as "
        "https://github.com/OWNER/NAME; correct or remove it",
    )
    return match and f"https://github.com/{match['owner']}/{match['name']}"


def repository_address(checkout: Path) -> str | None:
    """Return the address of this repository on GitHub, or None if unknown.

    The first of: THESIS_REPOSITORY in the environment, the remote `origin` where it is
    on GitHub, `repository.url` in _config.yml. Raises InvalidInput if what was set by
    hand is no address of a GitHub repository.
    """
    if address := os.environ.get("THESIS_REPOSITORY"):
        return _canonical(address, "THESIS_REPOSITORY")
    # Asked elsewhere, git would answer for a repository around this folder.
    if (checkout / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(checkout), "remote", "get-url", "origin"]
        done = subprocess.run(command, capture_output=True, text=True)
        if known := _canonical(done.stdout):
            return known
    config = yaml.safe_load((checkout / "_config.yml").read_text())
    address = (config.get("repository") or {}).get("url")
    return _canonical(address, "repository.url in _config.yml") if address else None


def _stage_config(checkout: Path, source: Path) -> None:
    """Copy _config.yml, with the repository's address for the launch buttons."""
    address = repository_address(checkout)
    if address is None:
        shutil.copy2(checkout / "_config.yml", source)
        return
    config = yaml.safe_load((checkout / "_config.yml").read_text())
    config["sphinx"]["config"]["html_context"]["thesis_repository"] = address
    (source / "_config.yml").write_text(
        yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    )


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _stage_pages(
    results: Sequence[tuple[Path, Record]], published: Published, source: Path
) -> None:
    """Write the chapters, fill what cites them, and the chapters to take away."""
    book = source / "book"
    for notebook, _ in results:
        tell = partial(published.plain, home=notebook.stem, reject=False)
        clean = clean_notebook(notebook.read_text(), tell)
        pages = stage_notebook(notebook, published, book / FIGURES)
        for name, page in pages.items():
            (source / "notebooks" / f"{name}.ipynb").write_text(page)
            (source / DOWNLOADS / f"{name}.ipynb").write_text(clean)
    for page in book.glob("*.md"):
        text = page.read_text()
        language = "zh-Hant" if "lang: zh-Hant" in text else "en"
        page.write_text(published.mark(text, language=language))
    for part in book.glob("*.html"):
        part.write_text(published.html(part.read_text(), "the first page"))


def stage(executed: Path, source: Path) -> str:
    """Lay out what Jupyter Book reads in `source`; return the hash of all of it.

    Raises InvalidInput where a chapter has no result in `executed`.
    """
    checkout, results = repository(), _results(executed)
    _clear(source)
    (source / "notebooks").mkdir(parents=True)
    book = source / "book"
    shutil.copytree(checkout / "book", book)
    shutil.copytree(checkout / "examples", source / "examples")  # which pages include
    _stage_config(checkout, source)
    (source / "genindex.md").write_text("# Index\n")  # Sphinx writes its page itself
    records = [record for _, record in results]
    here, reference = Run("this machine", tuple(records)), read_reference()
    known, labels = read_claims(), sections(checkout)
    compared = compare([here], known.claims, reference)
    published = _published(results, compared)
    doubted = published.doubted
    (book / FIGURES).mkdir(parents=True)
    (source / DOWNLOADS).mkdir()
    _stage_pages(results, published, source)
    if times := chart(compared, here.label):
        write_figure(times.bundle(), TIMES, book / FIGURES)
    hardware = book_lines(compared, here.label, f"{FIGURES / TIMES}" if times else None)
    if doubted:
        hardware += ["(sec-doubts)=", *section_lines(doubts_section(doubted))]
    history = read_history(checkout / "data" / REFERENCE / "default" / HISTORY)
    audited = audit(known, records, labels, reference.records, history)
    cards = claim_cards(audited, compared.of(here.label), doubted)
    (book / CARDS).write_text(json.dumps(cards))
    generated = {
        "front_claims": [f"{in_short(compared.of(here.label))} [](your_hardware.md)"],
        "your_hardware_results": hardware,
        "your_hardware_durations": durations_lines(reference.records),
        "provenance_table": _provenance(records),
        "audit_table": page_lines(audited, doubted),
        "packages_table": _packages(checkout / "src"),
        "parameters_table": [
            line
            for chapter in chapters()
            for line in _parameter_lines(chapter, published.records[chapter.name])
        ],
        "parameters_large": _large_runs(),
        "first_use": _first_use(),
        **{f"play_{name}": [widget(name)] for name in _played(source)},
    }
    for name, lines in generated.items():
        (book / f"{name}.txt").write_text("\n".join(lines))
    if (headline := headline_results(records, known.claims)) is not None:
        drawn = figures.headlines(headline).bundle()
        write_figure(drawn, HEADLINES, book / FIGURES)
    files = [path for path in source.rglob("*") if path.is_file()]
    names = "\n".join(str(path.relative_to(source)) for path in sorted(files))
    package = checkout / "src"  # whose docstrings and templates are in the pages
    files += [checkout / "README.md", *package.rglob("*.py")]
    files += package.glob("thesis_book/templates/*")
    everything = f"{names}{file_hash(files)}{lock_hash(checkout)}"
    return hashlib.sha256(everything.encode()).hexdigest()


def render(
    executed: Path, output: Path, on_wait: Callable[[], None] = lambda: None
) -> tuple[Path, bool]:
    """Build the book strictly: (its first page, whether anything was built).

    Nothing is built when what would be read has not changed. A failed build raises
    InvalidInput and leaves the previous book as it was. Another rendering into the
    same folder is waited for, after `on_wait`.
    """
    with storage(output):
        output.mkdir(parents=True, exist_ok=True)
        with claimed(output, on_wait):
            return _render(executed, output)


def _render(executed: Path, output: Path) -> tuple[Path, bool]:
    """Build the book; the caller holds the lock of `output`."""
    source, scratch, html = (output / name for name in ("source", "scratch", "html"))
    digest, stamp, index = stage(executed, source), output / STAMP, html / "index.html"
    if stamp.is_file() and stamp.read_text() == digest and index.is_file():
        offer_pdf(html, source)
        return index, False
    _clear(scratch)
    command = [
        str(Path(sys.executable).with_name("jupyter-book")), "build", str(source),
        "--toc", str(source / "book" / "_toc.yml"), "--path-output", str(scratch),
        "-W", "--keep-going", "--all",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    text, report = done.stdout + done.stderr, output / "build.log"
    report.write_text(text)
    if done.returncode != 0:
        lines = [x for x in text.splitlines() if "WARNING" in x or "ERROR" in x]
        raise InvalidInput(
            "the book does not build without warnings: expected none, see "
            f"{report}\n" + "\n".join(lines[:20])
        )
    _clear(html)
    (scratch / "_build" / "html").rename(html)
    _clear(scratch)
    shutil.copytree(source / DOWNLOADS, html / "_sources/notebooks", dirs_exist_ok=True)
    number_references(html, source / "book" / "_toc.yml")
    stamp.write_text(digest)
    offer_pdf(html, source)
    return index, True
