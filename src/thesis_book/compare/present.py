"""A comparison of runs as people read it: in a terminal, in the book, on one page.

What is to be read is a list of sections of plain text, made once; three short renderers
lay the sections out.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
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

KINDS = {  # what is demanded of a claim, and what is said of those that hold
    "exact": ("Equal bit for bit", "exact claims are equal bit for bit"),
    "record": ("Read from a record", "claims read from records are the same"),
    "tolerance": (
        "Equal within a tolerance", "claims with a tolerance are within it"
    ),
    "time": (
        "Expected to differ",
        "times lie within the factor that is allowed around what rates predict",
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
    claim: Claim | None = None,
    digits: int = 4,
    signed: bool = False,
) -> str:
    """'95.9 (95.3 to 96.5)', '9 (range 8 to 12)', a value alone, or a dash for none."""
    if quantity is None:
        return _NONE
    show = partial(format_number, digits=digits, signed=signed)
    value, low, high = quantity.value, quantity.low, quantity.high
    if low is not None and high is not None:
        value, low, high = (show(part, high - low) for part in (value, low, high))
        ends = f"{'range ' if quantity.method == RANGE else ''}{low} to {high}"
        return f"{value} ({ends})"
    if claim is None or claim.rtol is None or isinstance(value, str):
        return show(value)
    return show(value, 2 * claim.rtol * abs(value))


def as_change(reduction: Quantity) -> tuple[Quantity, str]:
    """A reduction as a positive quantity, and whether it is 'fewer' or 'more'."""
    assert not isinstance(reduction.value, str)  # a reduction is a number
    if reduction.value >= 0:
        return reduction, "fewer"
    low, high = reduction.low, reduction.high
    if low is None or high is None:
        return Quantity(-reduction.value), "more"
    return Quantity(-reduction.value, -high, -low, reduction.method), "more"


def published_amount(claim: Claim) -> str:
    """What the thesis published, in its own unit; a dash for nothing."""
    if claim.published is None:
        return _NONE
    unit = claim.published.get("unit", claim.unit)
    return f"{format_number(claim.published['value'])} {unit}".strip()


def _band(row: Any) -> tuple[float, float]:
    """The least and the largest ratio in which a time was to be expected; or NaN."""
    expected = math.nan if row.expected is None else row.expected
    return expected / (row.claim.factor or 1), expected * (row.claim.factor or 1)


def _expected(row: Any) -> str:
    """The ratio to the reference in which a time was to be expected."""
    resource = f"the {RESOURCES[row.claim.follows or '']}"
    if row.expected is None:
        return resource
    low, high = (format_number(end, digits=2) for end in _band(row))
    return f"× {format_number(row.expected, digits=3)} ({low} to {high}), {resource}"


# --- Sections -------------------------------------------------------------------
class Section(NamedTuple):
    """A heading with a text, notes and a table; all but the heading may be empty.

    Cells are plain text. Of a table of claims, `states` has the state of each row's
    verdict, which is in the column `VERDICT`.
    """

    heading: str
    text: str = ""
    notes: Sequence[str] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    states: Sequence[str] = ()


VERDICT = 2


def summary(rows: pd.DataFrame) -> str:
    """How many claims of each kind hold, of those that could be held."""
    held = rows[rows["state"] != "open"]
    parts = []
    for kind, (_, what) in KINDS.items():
        good = held.loc[held["kind"] == kind, "state"] == "good"
        if len(good):
            parts.append(f"{good.sum()} of {len(good)} {what}")
    return "; ".join(parts or ["No claim of this run could be held"]) + "."


def in_short(rows: pd.DataFrame) -> str:
    """Count the claims that hold on the machine that made a book; times apart."""
    held = rows[rows["state"] != "open"]
    is_time = held["kind"] == "time"
    factor = max((claim.factor or 1 for claim in held["claim"][is_time]), default=1)
    groups = [
        (
            held.query("kind != 'time'"),
            "claim",
            "equal to the reference or within tolerance",
        ),
        (
            held.query("kind == 'time'"),
            "time",
            f"within a factor of {factor:g} of the prediction",
        ),
    ]
    parts = [
        f"{_count(group, what)} {end}" for group, what, end in groups if len(group)
    ]
    if not parts:
        return "No claim of this run could be held against the reference."
    return f"**{'; '.join(parts)}**, on the machine that made this book."


def _count(rows: pd.DataFrame, what: str) -> str:
    """'108 claims are', '1 time is', or '107 of 108 claims are' if some do not hold."""
    good = [*rows["state"]].count("good")
    of_all = f"{good}" if good == len(rows) else f"{good} of {len(rows)}"
    return f"{of_all} {what} is" if len(rows) == 1 else f"{of_all} {what}s are"


def run_section(comparison: Comparison, run: str) -> Section:
    """Return what came of a run, and why chapters of it were compared with nothing."""
    rows = comparison.of(run)
    commits = {c for machine in comparison.machines for c in machine["commits"]}
    notes = []
    if "bad" in set(rows["state"]) and len(commits) > 1:
        notes = ["The commits differ, so that a difference may come from the code."]
    for here in comparison.machines:
        if here["run"] == run and here["of_reference"]:
            notes.append(
                f"{here['of_reference']} of its {here['chapters']} chapters were not "
                "run again: they are the reference itself."
            )
    apart = rows[rows["word"].isin(["not run", "no reference", "not comparable"])]
    word_and_text: Any
    for word_and_text, group in apart.groupby(["word", "text"], sort=False):
        word, text = word_and_text
        numbers = [
            str(each) for each in dict.fromkeys(c.chapter for c in group["claim"])
        ]
        chapters = f"Chapter{'s'[len(numbers) == 1 :]} {', '.join(numbers)}"
        notes.append(f"{chapters}: {word}, {text}.")
    return Section(run, summary(rows), notes)


def _apart(row: Any) -> str:
    """The difference to the reference, or the ratio of a time."""
    if row.kind == "time" and row.apart is not None:
        return f"× {format_quantity(row.apart, digits=3)}"
    return format_quantity(row.apart, digits=2, signed=True)


def _published(claim: Claim) -> str:
    """What was published, with the key of its work in brackets."""
    known = f" [{claim.published['source']}]" if claim.published else ""
    return published_amount(claim) + known


Columns = list[tuple[str, Callable[[Any], str]]]
_OF_KIND: dict[str, Columns] = {  # columns of one kind alone
    "tolerance": [
        ("Difference", _apart),
        ("Allowed", lambda row: f"{percent(row.claim.rtol or 0)}: {row.claim.why}"),
    ],
    "time": [("Ratio", _apart), ("Expected ratio", _expected)],
}


def claims_section(comparison: Comparison, kind: str) -> Section:
    """Return the claims of one kind, with a column of values for each side.

    These columns are named after the run and its reference. Columns that do not tell
    claims apart are left out, and so are claims of chapters that one of two runs has:
    `run_section` names them.
    """
    left_out = ["not run"]
    if comparison.reference != REFERENCE:
        left_out.append("no reference")
    rows = comparison.rows.query("kind == @kind and word not in @left_out")
    runs = [*dict.fromkeys(rows["run"])]
    columns: Columns = [
        ("Ch.", lambda row: str(row.claim.chapter)),
        ("Claim", lambda row: row.claim.title),
        ("Verdict", lambda row: row.word),
    ]
    columns += [("Run", lambda row: row.run)] * (len(runs) > 1)
    columns += [("Profile", lambda row: row.profile)] * (len({*rows["profile"]}) > 1)
    columns += [
        (
            runs[0] if len(runs) == 1 else "Value",
            lambda row: format_quantity(row.value, row.claim),
        ),
        (
            comparison.reference,
            lambda row: format_quantity(row.reference, row.claim),
        ),
        *_OF_KIND.get(kind, []),
    ]
    if any(claim.published for claim in rows["claim"]):
        columns += [("Published", lambda row: _published(row.claim))]
    table = [[cell(row) for _, cell in columns] for row in rows.itertuples()]
    head = [name for name, _ in columns]
    return Section(KINDS[kind][0], summary(rows), (), head, table, [*rows["state"]])


# --- Machines ----------------------------------------------------------------
def _gpus(gpus: Iterable[dict]) -> str:
    return "; ".join(
        f"{g['name']}, driver {g['driver']}, {format_size(g['memory_bytes'])}"
        for g in gpus
    ) or "none"  # fmt: skip


# Rows of the table, by name in a record's `machine`, and how each is shown.
_HARDWARE: dict[str, tuple[str, Callable[[Any], str]]] = {
    "cpu": ("Processor", str),
    "cores": ("Cores", str),
    "memory_bytes": ("Memory", format_size),
    "gpus": ("GPU", _gpus),
    "drain_bytes_per_s": ("Disk, a file read", lambda rate: f"{format_size(rate)}/s"),
    "drain_how": ("… in which way", str),
    "matmul_flops_per_s": (
        "Processor, matrices", lambda rate: f"{rate / 1e9:.3g} GFLOP/s"
    ),
    "system": ("System", str),
    "python": ("Python", str),
    "torch": ("torch", str),
}  # fmt: skip


def _column(machine: Mapping[str, Any]) -> dict[str, str]:
    """What a run was made on and with, by row of the table."""
    column = {}
    for name, (label, show) in _HARDWARE.items():
        values: list[Any] = [one.get(name) for one in machine["machines"]]
        counted = all(isinstance(value, int | float) for value in values)
        ends = [min(values), max(values)] if values and counted else values
        texts = ["not known" if value is None else show(value) for value in ends]
        column[label] = (" to " if counted else ", ").join(dict.fromkeys(texts))
    tree = "clean tree" if machine["clean"] else "with uncommitted changes"
    locks = ", ".join(lock[:8] for lock in machine["lock_sha256"])
    mean, most, ratio = (machine[n] for n in ("load_mean", "load_most", "ratio"))
    return column | {
        "Commit": f"{', '.join(machine['commits'])}, {tree}",
        "Locks": locks + ("" if machine["same_lock"] else ", not the reference's"),
        "Peak memory": format_size(machine["peak_memory_bytes"]),
        "Load average": "not known"
        if mean is None
        else f"{mean:.2f} mean, {most:.2f} at most",
        "Chapters": str(machine["chapters"]),
        "Run time": format_duration(machine["seconds"]),
        "… over the reference, of the same parameters": _NONE
        if ratio is None
        else f"× {ratio:.2f}",
    }


def machines_section(machines: Iterable[Mapping[str, Any]]) -> Section:
    """What runs were made on and with, a column for each."""
    columns = {machine["run"]: _column(machine) for machine in machines}
    table = pd.DataFrame(columns)
    table = table[(table != _NONE).any(axis=1)]
    rows = [[*row] for row in table.itertuples()]
    return Section("The machines", "", (), ["", *columns], rows)


def machine_of(label: str, records: Iterable[Record]) -> dict[str, Any]:
    """What some records were made on and with, compared with nothing."""
    run = Run(label, tuple(records))
    return describe_machine(run, run)


def _all_claims(comparison: Comparison) -> list[Section]:
    """The claims of every kind that has any."""
    sections = [claims_section(comparison, kind) for kind in KINDS]
    return [section for section in sections if section.rows]


# --- In a terminal -----------------------------------------------------------
_COLOURS = {"good": "green", "bad": "bold red", "open": "dim"}


def draw(comparison: Comparison, console: Console) -> None:
    """Print the whole comparison; a verdict is never cut."""
    machines = machines_section(comparison.machines)
    runs = [run_section(comparison, run) for run in comparison.labels]
    for section in [machines, *_all_claims(comparison), *runs]:
        console.print(Text(section.heading, "bold"))
        if section.text:
            console.print(Text(section.text))
        for note in section.notes:
            console.print(Text(f"  {note}"))
        table = Table(box=None, pad_edge=False)
        for place, name in enumerate(section.head):
            whole = bool(section.states) and place == VERDICT
            table.add_column(Text(name), overflow="fold", no_wrap=whole)
        for row, state in zip_longest(section.rows, section.states):
            cells = [Text(cell) for cell in row]
            if state:
                cells[VERDICT].stylize(_COLOURS[state])
            table.add_row(*cells)
        if section.rows:
            console.print(table)
        console.print()


# --- On one page of HTML -----------------------------------------------------
def chart(comparison: Comparison, run: str) -> Drawing | None:
    """The times of a run over their reference; None where there is none."""
    rows = []
    row: Any
    for row in comparison.of(run).itertuples():
        if row.kind == "time" and (ratio := row.apart) is not None:
            ends = [math.nan if end is None else end for end in (ratio.low, ratio.high)]
            good = row.state != "bad"
            rows.append([row.claim.says, ratio.value, *ends, *_band(row), good])
    columns = ["says", "ratio", "low", "high", "expected_low", "expected_high", "good"]
    times = pd.DataFrame(rows, columns=columns)
    return figures.against_reference(times) if rows else None


_CAPTION = (
    "Times of this run over those of the reference, with the widest interval that both "
    "allow. A dot in the grey band is as expected from the measured rates, a cross is "
    "not."
)


def html_page(comparison: Comparison) -> str:
    """The whole comparison as one file that needs no other and no network."""
    runs = [run_section(comparison, run) for run in comparison.labels]
    drawn = [chart(comparison, run) for run in comparison.labels]
    charts = [figures.as_svg(each.figure) if each else "" for each in drawn]
    return render_page(
        "compare.html",
        title="Runs beside their reference",
        against=comparison.reference,
        runs=[*zip(runs, charts, strict=True)],
        sections=[
            machines_section(comparison.machines),
            *_all_claims(comparison),
        ],
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
    rows = []
    for row, state in zip_longest(section.rows, section.states):
        cells = [markdown(cell) for cell in row]
        if state:
            cells[VERDICT] = f"[{row[VERDICT]}]{{.verdict-{state}}}"
        amount, bracket, source = row[-1].rpartition(" [")
        if section.head[-1] == "Published" and bracket:
            cells[-1] = f"{markdown(amount)} {{cite}}`{source[:-1]}`"
        rows.append(cells)
    css = "claims" if section.states else None
    table = markdown_table(map(markdown, section.head), rows, css) if rows else [""]
    notes = [f"- {markdown(note)}" for note in section.notes]
    return [f"## {section.heading}", "", section.text, "", *notes, *table]


def book_lines(comparison: Comparison, run: str, figure: str | None) -> list[str]:
    """The generated part of the book's page on the reader's machine.

    `figure` is the path of the chart's files, without their ends, where there is one.
    """
    lines = section_lines(run_section(comparison, run))[2:]  # the page has a heading
    lines += section_lines(machines_section(comparison.machines))
    of_run = replace(comparison, rows=comparison.of(run))
    for section in _all_claims(of_run):
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
        names = {
            name: why
            for name, why in of_chapter.items()
            if not name.endswith(("_low", "_high", "_n", "_interval"))
        }
        for why in dict.fromkeys(names.values()):
            same = ", ".join(name for name, reason in names.items() if reason == why)
            notes.append(f"chapter {int(chapter.split('_')[0])}, {same}: {why}")
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
    """What a run takes, by profile, as the committed reference run took it."""
    profiles = dict.fromkeys(record.profile for record in records)
    if not profiles:
        return ["No reference run is committed yet, so there is no time to go by.", ""]
    machines = [
        machine_of(profile, (r for r in records if r.profile == profile))
        for profile in profiles
    ]
    return section_lines(machines_section(machines))[2:]


# --- In the README -----------------------------------------------------------

# The keys of the claims that the table below it shows; it ends at the next remark.
README_BLOCK = re.compile(
    r"(<!-- claims: ([\w\s]+) -->\n).*?(<!-- end of claims -->)", re.DOTALL
)

PICTURE_OF, PICTURE = 4, "fig-violations"  # the chapter, and its figure to be shown

_ELSEWHERE = {
    "exact": "equal bit for bit",
    "record": "read from the record",
    "tolerance": "equal within tolerance",
    "time": "differs with the machine",
}


def readme(text: str, claims: Mapping[str, Claim], reference: Run, profile: str) -> str:
    """The README with its table of claims made anew from the reference run.

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
        value = quantity(claim, reference.record(claim.chapter, profile))
        unit, published = claim.unit, published_amount(claim)
        if claim.change and value is not None:
            value, word = as_change(value)
            unit = f"{unit} {word}"
        if claim.change and claim.published is not None:
            published += " fewer"
        amount = f"**{format_quantity(value, claim, digits=3)}** {unit}".strip()
        says = claim.change or claim.says
        rows.append([says, published, amount, _ELSEWHERE[claim.kind]])
    head = ["", "Published", "Here", "On another machine"]
    table = "\n".join(markdown_table(head, rows))
    return README_BLOCK.sub(lambda hit: f"{hit[1]}{table}\n{hit[3]}", text)
