"""A comparison of runs as people read it: in a terminal, in the book, on one page.

What is to be read is a list of sections, made once; a style says how a medium writes
texts, verdicts and sources, and three short renderers lay the sections out.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pandas as pd
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from thesis_book import figures
from thesis_book.compare.comparison import (
    Comparison,
    Machine,
    Quantity,
    Row,
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


def _band(row: Row) -> tuple[float, float]:
    """The least and the largest ratio in which a time was to be expected; or NaN."""
    expected = math.nan if row.expected is None else row.expected
    return expected / (row.claim.factor or 1), expected * (row.claim.factor or 1)


def _expected(row: Row) -> str:
    """The ratio to the reference in which a time was to be expected."""
    resource = f"the {RESOURCES[row.claim.follows or '']}"
    if row.expected is None:
        return resource
    low, high = (format_number(end, digits=2) for end in _band(row))
    return f"× {format_number(row.expected, digits=3)} ({low} to {high}), {resource}"


# --- Sections, in the style of a medium -----------------------------------------
@dataclass(frozen=True, slots=True)
class Style:
    """How a medium writes a text, a verdict with its state, and a published work."""

    text: Callable[[str], Any]
    verdict: Callable[[str, str], Any]
    source: str  # of an amount and a key


_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]<>|$#~^@"})
_COLOURS = {"good": "green", "bad": "bold red", "open": "dim"}


def markdown(text: str) -> str:
    """Text as MyST Markdown shows it literally, in one cell of a table."""
    return " ".join(text.translate(_MARKS).split())


TERMINAL = Style(str, lambda word, state: Text(word, _COLOURS[state]), "{} [{}]")
BOOK = Style(markdown, "[{}]{{.verdict-{}}}".format, "{} {{cite}}`{}`")
PAGE = Style(str, Markup('<span class="verdict {1}">{0}</span>').format, "{} [{}]")


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a text, some notes and a table; all but the heading may be empty.

    Notes and cells are written in the style of a medium.
    """

    heading: str
    text: str = ""
    notes: Sequence[Any] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()


def summary(rows: Iterable[Row]) -> str:
    """How many claims of each kind hold, of those that could be held."""
    held = [row for row in rows if row.verdict.state != "open"]
    parts = []
    for kind, (_, what) in KINDS.items():
        states = [row.verdict.state for row in held if row.claim.kind == kind]
        if states:
            parts.append(f"{states.count('good')} of {len(states)} {what}")
    return "; ".join(parts or ["No claim of this run could be held"]) + "."


def in_short(rows: Iterable[Row]) -> str:
    """Count the claims that hold on the machine that made a book; times apart."""
    held = [row for row in rows if row.verdict.state != "open"]
    times = [row for row in held if row.claim.kind == "time"]
    factor = max((row.claim.factor or 1 for row in times), default=1)
    parts = [
        f"{_count(group, what)} {ends}"
        for group, what, ends in (
            (
                [row for row in held if row.claim.kind != "time"],
                "claim",
                "equal to the reference or within tolerance",
            ),
            (times, "time", f"within a factor of {factor:g} of the prediction"),
        )
        if group
    ]
    return (
        f"**{'; '.join(parts)}**, on the machine that made this book."
        if parts
        else "No claim of this run could be held against the reference."
    )


def _count(rows: Sequence[Row], what: str) -> str:
    """'108 claims are', '1 time is', or '107 of 108 claims are' if some do not hold."""
    good = sum(row.verdict.state == "good" for row in rows)
    of_all = f"{good}" if good == len(rows) else f"{good} of {len(rows)}"
    return f"{of_all} {what} is" if len(rows) == 1 else f"{of_all} {what}s are"


def run_section(comparison: Comparison, run: str, style: Style = TERMINAL) -> Section:
    """Return what came of a run, and why chapters of it were compared with nothing."""
    rows = comparison.of(run)
    wrong = any(row.verdict.state == "bad" for row in rows)
    commits = {commit for machine in comparison.machines for commit in machine.commits}
    notes = []
    if wrong and len(commits) > 1:
        notes = ["The commits differ, so that a difference may come from the code."]
    for here in comparison.machines:
        if here.run == run and here.of_reference:
            notes.append(
                f"{here.of_reference} of its {here.chapters} chapters were not run "
                "again: they are the reference itself."
            )
    chapters: dict[str, dict[str, None]] = {}  # by the reason that nothing was compared
    for row in rows:
        if row.verdict.word in ("not run", "no reference", "not comparable"):
            reason = f"{row.verdict.word}, {row.verdict.text}"
            chapters.setdefault(reason, {})[str(row.claim.chapter)] = None
    notes += [
        style.text(f"Chapter{'s'[len(numbers) == 1 :]} {', '.join(numbers)}: {reason}.")
        for reason, numbers in chapters.items()
    ]
    return Section(run, summary(rows), notes)


def _apart(row: Row) -> str:
    """The difference to the reference, or the ratio of a time."""
    if row.claim.kind == "time" and row.apart is not None:
        return f"× {format_quantity(row.apart, digits=3)}"
    return format_quantity(row.apart, digits=2, signed=True)


def _published(claim: Claim, style: Style) -> Any:
    """What was published, with the key of its work."""
    amount = style.text(published_amount(claim))
    known = claim.published
    return style.source.format(amount, known["source"]) if known else amount


_OF_KIND: dict[str, dict[str, Callable[[Row], str]]] = {  # columns of one kind alone
    "exact": {},
    "record": {},
    "tolerance": {
        "Difference": _apart,
        "Allowed": lambda row: f"{percent(row.claim.rtol or 0)}: {row.claim.why}",
    },
    "time": {"Ratio": _apart, "Expected ratio": _expected},
}


def claims_section(comparison: Comparison, kind: str, style: Style) -> Section:
    """Return the claims of one kind, with a column of values for each side.

    These columns are named after the run and its reference. Columns that do not tell
    claims apart are left out, and so are claims of chapters that one of two runs has:
    `run_section` names them.
    """
    left_out = {"not run"}
    if comparison.reference != REFERENCE:
        left_out.add("no reference")
    of_kind = [row for row in comparison.rows if row.claim.kind == kind]
    rows = [row for row in of_kind if row.verdict.word not in left_out]
    runs = list(dict.fromkeys(row.run for row in rows))
    cells: list[tuple[str, Callable[[Row], str]]] = []
    if len(runs) > 1:
        cells += [("Run", lambda row: row.run)]
    if len({row.profile for row in rows}) > 1:
        cells += [("Profile", lambda row: row.profile)]
    mine = style.text(runs[0]) if len(runs) == 1 else "Value"
    cells += [
        (mine, lambda row: format_quantity(row.value, row.claim)),
        (
            style.text(comparison.reference),
            lambda row: format_quantity(row.reference, row.claim),
        ),
        *_OF_KIND[kind].items(),
    ]
    columns = [
        ("Ch.", [str(row.claim.chapter) for row in rows]),
        ("Claim", [style.text(row.claim.title) for row in rows]),
        ("Verdict", [style.verdict(r.verdict.word, r.verdict.state) for r in rows]),
        *((name, [style.text(cell(r)) for r in rows]) for name, cell in cells),
    ]
    if any(row.claim.published for row in rows):
        columns += [("Published", [_published(row.claim, style) for row in rows])]
    head = [name for name, _ in columns]
    table = [*zip(*(column for _, column in columns), strict=True)]
    return Section(KINDS[kind][0], summary(rows), (), head, table)


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


def _column(machine: Machine) -> dict[str, str]:
    """What a run was made on and with, by row of the table."""
    column = {}
    for name, (label, show) in _HARDWARE.items():
        values: list[Any] = [one.get(name) for one in machine.machines]
        counted = all(isinstance(value, int | float) for value in values)
        ends = [min(values), max(values)] if values and counted else values
        texts = ["not known" if value is None else show(value) for value in ends]
        column[label] = (" to " if counted else ", ").join(dict.fromkeys(texts))
    tree = "clean tree" if machine.clean else "with uncommitted changes"
    locks = ", ".join(lock[:8] for lock in machine.lock_sha256)
    load = f"{machine.load_mean or 0:.2f} mean, {machine.load_most or 0:.2f} at most"
    return column | {
        "Commit": f"{', '.join(machine.commits)}, {tree}",
        "Locks": locks + ("" if machine.same_lock else ", not the reference's"),
        "Peak memory": format_size(machine.peak_memory_bytes),
        "Load average": "not known" if machine.load_mean is None else load,
        "Chapters": str(machine.chapters),
        "Run time": format_duration(machine.seconds),
        "… over the reference, of the same parameters": _NONE
        if machine.ratio is None
        else f"× {machine.ratio:.2f}",
    }


def machines_section(machines: Iterable[Machine], style: Style) -> Section:
    """What runs were made on and with, a column for each."""
    columns = {machine.run: _column(machine) for machine in machines}
    table = pd.DataFrame(columns)
    table = table[(table != _NONE).any(axis=1)]
    rows = [[style.text(cell) for cell in row] for row in table.itertuples()]
    head = ["", *(style.text(name) for name in columns)]
    return Section("The machines", "", (), head, rows)


def machine_of(label: str, records: Iterable[Record]) -> Machine:
    """What some records were made on and with, held against nothing."""
    run = Run(label, tuple(records))
    return describe_machine(run, run)


def _all_claims(comparison: Comparison, style: Style) -> list[Section]:
    """The claims of every kind that has any."""
    sections = [claims_section(comparison, kind, style) for kind in KINDS]
    return [section for section in sections if section.rows]


# --- In a terminal -----------------------------------------------------------
def draw(comparison: Comparison, console: Console) -> None:
    """Print the whole comparison; a verdict is never cut."""
    machines = machines_section(comparison.machines, TERMINAL)
    claims = _all_claims(comparison, TERMINAL)
    runs = [run_section(comparison, run) for run in comparison.labels]
    for section in [machines, *claims, *runs]:
        console.print(Text(section.heading, "bold"))
        if section.text:
            console.print(Text(section.text))
        for note in section.notes:
            console.print(Text(f"  {note}"))
        table = Table(box=None, pad_edge=False)
        for name in section.head:
            whole = name == "Verdict"
            table.add_column(Text(name), overflow="fold", no_wrap=whole)
        for row in section.rows:
            table.add_row(*(c if isinstance(c, Text) else Text(c) for c in row))
        if section.rows:
            console.print(table)
        console.print()


# --- On one page of HTML -----------------------------------------------------
def chart(comparison: Comparison, run: str) -> Drawing | None:
    """The times of a run over their reference; None where there is none."""
    rows = []
    for row in comparison.of(run):
        if row.claim.kind == "time" and (ratio := row.apart) is not None:
            ends = [math.nan if end is None else end for end in (ratio.low, ratio.high)]
            good = row.verdict.good
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
            machines_section(comparison.machines, PAGE),
            *_all_claims(comparison, PAGE),
        ],
        caption=_CAPTION,
    )


# --- In the book -------------------------------------------------------------
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
    """Lines of a section in the style of the book."""
    css = "claims" if "Verdict" in section.head else None
    table = markdown_table(section.head, section.rows, css) if section.rows else [""]
    notes = [f"- {note}" for note in section.notes]
    return [f"## {section.heading}", "", section.text, "", *notes, *table]


def book_lines(comparison: Comparison, run: str, figure: str | None) -> list[str]:
    """The generated part of the book's page on the reader's machine.

    `figure` is the path of the chart's files, without their ends, where there is one.
    """
    lines = section_lines(run_section(comparison, run, BOOK))[
        2:
    ]  # the page has a heading
    lines += section_lines(machines_section(comparison.machines, BOOK))
    of_run = replace(comparison, rows=tuple(comparison.of(run)))
    for section in _all_claims(of_run, BOOK):
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


def doubts_section(doubted: Mapping[str, Mapping[str, str]], style: Style) -> Section:
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
            notes.append(
                style.text(f"chapter {int(chapter.split('_')[0])}, {same}: {why}")
            )
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
    return section_lines(machines_section(machines, BOOK))[2:]


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
