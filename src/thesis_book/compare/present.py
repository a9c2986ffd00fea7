"""A comparison of runs as people read it: in a terminal, in the book, on one page.

What is to be read is a list of sections with tables of plain text; three short
renderers lay the sections out.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from thesis_book import figures
from thesis_book.compare.comparison import (
    Comparison,
    Quantity,
    Run,
    describe_machine,
    quantity,
)
from thesis_book.execute.claims import REFERENCE, RESOURCES, Claim, percent
from thesis_book.execute.pages import render_page
from thesis_book.execute.records import Number, Record
from thesis_book.figures.export import Drawing
from thesis_lib.common.errors import InvalidInput, choice
from thesis_lib.common.stats import RANGE
from thesis_lib.common.units import format_duration, format_size

KINDS = {  # what is demanded of a claim, what is said of those that hold, and in README
    "exact": (
        "Equal bit for bit", "exact claims are equal bit for bit", "equal bit for bit"
    ),
    "record": (
        "Read from a record", "claims read from records are the same",
        "read from the record",
    ),
    "tolerance": (
        "Equal within a tolerance", "claims with a tolerance are within it",
        "equal within tolerance",
    ),
    "time": (
        "Expected to differ",
        "times lie within the factor that is allowed around what rates predict",
        "differs with the machine",
    ),
}  # fmt: skip

_NONE = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


# --- Numbers -----------------------------------------------------------------
def format_number(
    value: Number, spread: float | None = None, digits: int = 4, signed: bool = False
) -> str:
    """A number as precise as its spread allows, or with some significant digits.

    Two digits of the spread are shown. Integers and words stay as they are.
    """
    if isinstance(value, str):
        return value
    sign = "+" if signed else ""
    if isinstance(value, int) or value == 0:
        return f"{value:{sign if value else ''}z,.0f}".replace("-", "−")
    if spread:
        places = 1 - math.floor(math.log10(spread))
    else:
        places = digits - 1 - math.floor(math.log10(abs(value)))
    if places > 6 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:{sign}.{min(digits, 3) - 1}e}".split("e")
        text = f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    else:
        text = f"{value:{sign}z,.{max(places, 0)}f}"
    return text.replace("-", "−")


def format_quantity(
    quantity: Quantity | None,
    rtol: float | None = None,
    digits: int = 4,
    signed: bool = False,
) -> str:
    """'95.9 (95.3 to 96.5)', '9 (range 8 to 12)', a value alone, or a dash for none.

    A value without an interval is as precise as its tolerance `rtol` allows.
    """
    if quantity is None:
        return _NONE
    show = partial(format_number, digits=digits, signed=signed)
    value, low, high = quantity.value, quantity.low, quantity.high
    if low is not None and high is not None:
        value, low, high = (show(part, high - low) for part in (value, low, high))
        ends = f"{'range ' if quantity.method == RANGE else ''}{low} to {high}"
        return f"{value} ({ends})"
    if rtol is None or isinstance(value, str):
        return show(value)
    return show(value, 2 * rtol * abs(value))


def as_change(reduction: Quantity) -> tuple[Quantity, str]:
    """Return a reduction as a positive quantity, and 'fewer' or 'more'."""
    value, low, high, method = reduction
    assert not isinstance(value, str)  # a reduction is a number
    if value >= 0:
        return reduction, "fewer"
    if low is None or high is None:
        return Quantity(-value), "more"
    return Quantity(-value, -high, -low, method), "more"


def published_amount(claim: Any) -> str:
    """Return the thesis' published value of a claim or row, in its unit; or a dash."""
    if claim.published is None:
        return _NONE
    unit = claim.published.get("unit", claim.unit)
    return f"{format_number(claim.published['value'])} {unit}".strip()


def _band(row: Any) -> tuple[float, float]:
    """The least and the largest ratio in which a time was to be expected; or NaN."""
    expected = math.nan if row.expected_ratio is None else row.expected_ratio
    return expected / row.factor, expected * row.factor


# --- Sections -------------------------------------------------------------------
class Section(NamedTuple):
    """A heading with a text, notes and a table; all but the heading may be empty.

    Cells are plain text. The index of a table of claims is the state of each row's
    verdict, which is in the column `VERDICT`; of another table it is "".
    """

    heading: str
    text: str = ""
    notes: Sequence[str] = ()
    table: pd.DataFrame = pd.DataFrame()


VERDICT = 2


def summary(rows: pd.DataFrame) -> str:
    """Count the claims of each kind that hold, of those that could be held."""
    held, parts = rows.query("state != 'open'"), []
    for kind, (_, what, _) in KINDS.items():
        good = held["good"][held["kind"] == kind]
        if len(good):
            parts.append(f"{sum(good)} of {len(good)} {what}")
    return "; ".join(parts or ["No claim of this run could be held"]) + "."


def in_short(rows: pd.DataFrame) -> str:
    """Count the claims that hold on the machine that made a book; times apart."""
    rows = rows.query("state != 'open'")
    factor = max(rows["factor"][rows["kind"] == "time"], default=1)
    groups = {
        "claim": (rows["kind"] != "time", "equal to the reference or within tolerance"),
        "time": (
            rows["kind"] == "time", f"within a factor of {factor:g} of the prediction"
        ),
    }  # fmt: skip
    parts = []
    for what, (chosen, end) in groups.items():
        good = [*rows["good"][chosen]]
        count = f"{sum(good)}" if all(good) else f"{sum(good)} of {len(good)}"
        if good:
            parts.append(f"{count} {what}{' is' if len(good) == 1 else 's are'} {end}")
    if not parts:
        return "No claim of this run could be held against the reference."
    return f"**{'; '.join(parts)}**, on the machine that made this book."


def run_section(comparison: Comparison, run: str) -> Section:
    """Return what came of a run, and why chapters of it were compared with nothing."""
    rows = comparison.of(run)
    commits = {c for machine in comparison.machines for c in machine["commits"]}
    notes = []
    if not all(rows["good"]) and len(commits) > 1:
        notes = ["The commits differ, so that a difference may come from the code."]
    for here in comparison.machines:
        if here["run"] == run and here["of_reference"]:
            notes.append(
                f"{here['of_reference']} of its {here['chapters']} chapters were not "
                "run again: they are the reference itself."
            )
    apart = rows.query("verdict in ['not run', 'no reference', 'not comparable']")
    reason: Any
    for reason, group in apart.groupby(["verdict", "text"], sort=False):
        numbers = [*dict.fromkeys(map(str, group["chapter"]))]
        chapters = f"Chapter{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
        notes.append(f"{chapters}: {', '.join(reason)}.")
    return Section(run, summary(rows), notes)


def _cells(row: Any) -> dict[str, str]:
    """Return what a row of a comparison says, by column of its table."""
    source = f" [{row.published['source']}]" if row.published else ""
    allowed, expected = f"{percent(row.rtol or 0)}: {row.why}", ""
    if row.kind == "time":
        expected = f"the {RESOURCES[row.follows]}"
    if row.expected_ratio is not None:
        low, high = (format_number(end, digits=2) for end in _band(row))
        ratio = format_number(row.expected_ratio, digits=3)
        expected = f"× {ratio} ({low} to {high}), {expected}"
    times = "× " if row.ratio is not None else ""
    return {
        "Ch.": str(row.chapter),
        "Claim": row.title,
        "Verdict": row.verdict,
        "Run": row.run,
        "Profile": row.profile,
        "Value": format_quantity(row.value, row.rtol),
        "Reference": format_quantity(row.reference, row.rtol),
        "Difference": format_quantity(row.difference, digits=2, signed=True),
        "Allowed": allowed,
        "Ratio": f"{times}{format_quantity(row.ratio, digits=3)}",
        "Expected ratio": expected,
        "Published": published_amount(row) + source,
    }


def claims_section(comparison: Comparison, kind: str) -> Section:
    """Return the claims of one kind, with a column of values for each side.

    These columns are named after the run and its reference. Columns that do not tell
    claims apart are left out, and so are claims of chapters that one of two runs has:
    `run_section` names them.
    """
    rows = comparison.rows.query("kind == @kind and verdict != 'not run'")
    if comparison.reference != REFERENCE:
        rows = rows.query("verdict != 'no reference'")
    if rows.empty:
        return Section(KINDS[kind][0])
    runs = [*dict.fromkeys(rows["run"])]
    left_out = ["Run"] * (len(runs) == 1)
    left_out += ["Profile"] * (len({*rows["profile"]}) == 1)
    left_out += ["Difference", "Allowed"] * (kind != "tolerance")
    left_out += ["Ratio", "Expected ratio"] * (kind != "time")
    left_out += ["Published"] * (not any(rows["published"]))
    table = pd.DataFrame([*map(_cells, rows.itertuples())], [*rows["state"]])
    sides = {"Value": runs[0] if len(runs) == 1 else "Value"}
    sides["Reference"] = comparison.reference
    table = table.drop(columns=left_out).rename(columns=sides)
    return Section(KINDS[kind][0], summary(rows), (), table)


# --- Machines ----------------------------------------------------------------
def _gpus(gpus: Iterable[dict]) -> str:
    return "; ".join(
        f"{g['name']}, driver {g['driver']}, {format_size(g['memory_bytes'])}"
        for g in gpus
    ) or "none"  # fmt: skip


_HARDWARE: dict[str, tuple[str, Callable[[Any], str]]] = {  # of a record's `machine`
    "Processor": ("cpu", str),
    "Cores": ("cores", str),
    "Memory": ("memory_bytes", format_size),
    "GPU": ("gpus", _gpus),
    "Disk, a file read": ("drain_bytes_per_s", lambda rate: f"{format_size(rate)}/s"),
    "… in which way": ("drain_how", str),
    "Processor, matrices": (
        "matmul_flops_per_s", lambda rate: f"{rate / 1e9:.3g} GFLOP/s"
    ),
    "System": ("system", str),
    "Python": ("python", str),
    "torch": ("torch", str),
}  # fmt: skip


def _column(machine: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment of a run, by row of the table."""
    column = {}
    for label, (name, show) in _HARDWARE.items():
        values: list[Any] = [one.get(name) for one in machine["machines"]]
        counted = all(isinstance(value, int | float) for value in values)
        ends = [min(values), max(values)] if values and counted else values
        texts = ["not known" if value is None else show(value) for value in ends]
        column[label] = (" to " if counted else ", ").join(dict.fromkeys(texts))
    tree = "clean tree" if machine["clean"] else "with uncommitted changes"
    locks = [lock[:8] for lock in machine["lock_sha256"]]
    locks += ["not the reference's"] * (not machine["same_lock"])
    mean, most, ratio = (machine[n] for n in ("load_mean", "load_most", "ratio"))
    over = _NONE if ratio is None else f"× {ratio:.2f}"
    load = "not known" if mean is None else f"{mean:.2f} mean, {most:.2f} at most"
    return column | {
        "Commit": ", ".join([*machine["commits"], tree]),
        "Locks": ", ".join(locks),
        "Peak memory": format_size(machine["peak_memory_bytes"]),
        "Load average": load,
        "Chapters": str(machine["chapters"]),
        "Run time": format_duration(machine["seconds"]),
        "… over the reference, of the same parameters": over,
    }


def machines_section(machines: Iterable[Mapping[str, Any]]) -> Section:
    """Return the environments of runs, a column for each."""
    table = pd.DataFrame({machine["run"]: _column(machine) for machine in machines})
    rows = [row for row in table.itertuples() if {*row[1:]} != {_NONE}]
    head = ["", *table.columns]
    return Section("The machines", table=pd.DataFrame(rows, [""] * len(rows), head))


def _tables(comparison: Comparison) -> list[Section]:
    """The machines, and the claims of every kind that has any."""
    sections = [claims_section(comparison, kind) for kind in KINDS]
    machines = machines_section(comparison.machines)
    return [machines, *(section for section in sections if len(section.table))]


# --- In a terminal -----------------------------------------------------------
_COLORS = {"good": "green", "bad": "bold red", "open": "dim"}


def draw(comparison: Comparison, console: Console) -> None:
    """Print the whole comparison; a verdict is never cut."""
    runs = [run_section(comparison, run) for run in comparison.labels]
    for heading, text, notes, table in [*_tables(comparison), *runs]:
        console.print(Text(heading, "bold"))
        for line in [text] * bool(text) + [f"  {note}" for note in notes]:
            console.print(Text(line))
        grid = Table(box=None, pad_edge=False)
        for place, name in enumerate(table.columns):
            whole = any(table.index) and place == VERDICT
            grid.add_column(Text(name), overflow="fold", no_wrap=whole)
        for state, *texts in table.itertuples(name=None):
            cells = [Text(cell) for cell in texts]
            if state:
                cells[VERDICT].stylize(_COLORS[state])
            grid.add_row(*cells)
        if len(table):
            console.print(grid)
        console.print()


# --- On one page of HTML -----------------------------------------------------
def chart(comparison: Comparison, run: str) -> Drawing | None:
    """Draw the times of a run over their reference; None where there is none."""
    columns = ["says", "ratio", "low", "high", "expected_low", "expected_high", "good"]
    rows = []
    row: Any
    for row in comparison.of(run).dropna(subset=["ratio"]).itertuples():
        rows.append([row.says, *row.ratio[:3], *_band(row), row.good])
    floats = dict.fromkeys(columns[1:-1], float)
    times = pd.DataFrame(rows, columns=columns).astype(floats)
    return figures.against_reference(times) if rows else None


_CAPTION = (
    "Times of this run over those of the reference, with the widest interval that both "
    "allow. A dot in the grey band is as expected from the measured rates, a cross is "
    "not."
)


def html_page(comparison: Comparison) -> str:
    """The whole comparison as one file that needs no other and no network."""
    runs = []
    for run in comparison.labels:
        drawn = chart(comparison, run)
        svg = figures.as_svg(drawn.figure) if drawn else ""
        runs.append((run_section(comparison, run), svg))
    return render_page(
        "compare.html",
        title="Runs beside their reference",
        against=comparison.reference,
        runs=runs,
        sections=_tables(comparison),
        caption=_CAPTION,
    )


# --- In the book -------------------------------------------------------------
_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]<>|$#~^@"})


def markdown(text: str) -> str:
    """Text as MyST Markdown shows it literally, in one cell of a table."""
    return " ".join(text.translate(_MARKS).split())


def markdown_table(
    head: Iterable[str], rows: Iterable[Sequence[str]], css: str | None = None
) -> list[str]:
    """Lines of a table whose cells are Markdown already; blank lines around it."""
    names = list(head)
    every = [names, ["---"] * len(names), *rows]
    lines = [f"| {' | '.join(cells)} |" for cells in every]
    if css is not None:
        lines = ["```{table}", f":class: {css}", "", *lines, "```"]
    return ["", *lines, ""]


def section_lines(section: Section) -> list[str]:
    """Return the lines of a section as MyST Markdown; its text is Markdown already."""
    heading, text, notes, table = section
    lines = [f"## {heading}", "", text, "", *(f"- {markdown(note)}" for note in notes)]
    rows = []
    for state, *texts in table.itertuples(name=None):
        cells = [markdown(cell) for cell in texts]
        if state:
            cells[VERDICT] = f"[{texts[VERDICT]}]{{.verdict-{state}}}"
        amount, bracket, source = texts[-1].rpartition(" [")
        if table.columns[-1] == "Published" and bracket:
            cells[-1] = f"{markdown(amount)} {{cite}}`{source[:-1]}`"
        rows.append(cells)
    css = "claims" if any(table.index) else None
    head = map(markdown, table.columns)
    return lines + (markdown_table(head, rows, css) if rows else [""])


def book_lines(comparison: Comparison, run: str, figure: str | None) -> list[str]:
    """The generated part of the book's page on the reader's machine.

    `figure` is the path of the chart's files, without their ends, where there is one.
    """
    lines = section_lines(run_section(comparison, run))[2:]  # the page has a heading
    for section in _tables(replace(comparison, rows=comparison.of(run))):
        lines += section_lines(section)
    if figure is not None:
        lines += [
            f"```{{figure}} {figure}.svg",
            f":name: {PurePosixPath(figure).name}",
            ":alt: Each time of this machine over its reference, as a dot with its "
            "interval, beside the band that was expected",
            _CAPTION,
            "```",
            "",
        ]
    return lines


def doubts_section(doubted: Mapping[str, Mapping[str, str]]) -> Section:
    """Which times of a run should not be believed, each with why, and what to do."""
    notes = []
    for chapter, of_chapter in doubted.items():
        names: dict[str, list[str]] = {}
        for name, why in of_chapter.items():
            if not name.endswith(("_low", "_high", "_n", "_interval")):
                names.setdefault(why, []).append(name)
        number = int(chapter.split("_")[0])
        notes += [
            f"chapter {number}, {', '.join(n)}: {why}" for why, n in names.items()
        ]
    return Section(
        "Times in doubt",
        "These times of this run should not be believed, and are marked wherever a "
        "chapter cites them. They were measured while something else ran, each try of "
        "them, or differ from the reference by more than the rates of the two machines "
        "say. To measure again, end what else runs and give `thesis run` the chapter "
        "and `--again`.",
        notes,
    )


def durations_lines(records: Sequence[Record]) -> list[str]:
    """Return the duration of a run by profile, from the committed reference run."""
    if not records:
        return ["No reference run is committed yet, so there is no time to go by.", ""]
    runs = [
        Run(profile, tuple(r for r in records if r.profile == profile))
        for profile in dict.fromkeys(record.profile for record in records)
    ]
    return section_lines(machines_section(map(describe_machine, runs)))[2:]


# --- In the README -----------------------------------------------------------

# The keys of the claims that the table below it shows; it ends at the next remark.
README_BLOCK = re.compile(
    r"(<!-- claims: ([\w\s]+) -->\n).*?(<!-- end of claims -->)", re.DOTALL
)

PICTURE_OF, PICTURE = 4, "fig-violations"  # the chapter, and its figure to be shown


def readme(text: str, claims: Mapping[str, Claim], reference: Run, profile: str) -> str:
    """Return the README with its table of claims renewed from the reference run.

    Raises InvalidInput where the README has no such table, or names no claim.
    """
    block = README_BLOCK.search(text)
    if block is None:
        raise InvalidInput(
            "README.md has no table of claims: expected `<!-- claims: KEY… -->` and "
            "`<!-- end of claims -->` around it"
        )
    rows = []
    for key in block[2].split():
        claim = claims[choice("claim in README.md", key, claims)]
        value = quantity(key, reference.record(claim.chapter, profile))
        unit, published = claim.unit, published_amount(claim)
        if claim.change and value is not None:
            value, word = as_change(value)
            unit = f"{unit} {word}"
        if claim.change and claim.published is not None:
            published += " fewer"
        amount = f"**{format_quantity(value, claim.rtol, digits=3)}** {unit}".strip()
        says = claim.change or claim.says
        rows.append([says, published, amount, KINDS[claim.kind][2]])
    head = ["", "Published", "Here", "On another machine"]
    table = "\n".join(markdown_table(head, rows))
    return README_BLOCK.sub(lambda hit: f"{hit[1]}{table}\n{hit[3]}", text)
