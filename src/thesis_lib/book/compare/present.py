"""A comparison of runs as people read it: in a terminal, in the book, on one page."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from thesis_lib.book import figures
from thesis_lib.book.compare.comparison import (
    RESOURCES,
    Comparison,
    Held,
    Machine,
    Quantity,
    Row,
    Run,
    number,
    reference_value,
)
from thesis_lib.book.execute.claims import Claim
from thesis_lib.book.execute.records import Number, Record
from thesis_lib.common.errors import choice, require
from thesis_lib.common.units import format_duration, format_size

KINDS = {
    "exact": (
        "Equal bit for bit",
        "Numbers of seeded simulation and of arithmetic. A difference of the last bit "
        "is a difference: something computes otherwise here than it did there.",
    ),
    "tolerance": (
        "Equal within a tolerance",
        "Numbers of linear algebra in floating point, whose kernels add in another "
        "order on another processor.",
    ),
    "time": (
        "Expected to differ",
        "Times, and what is derived from them. They follow a rate that was measured on "
        "both machines: how fast the disk gives a file up, or how fast the processor "
        "multiplies matrices.",
    ),
}

# What each verdict means, in the order of the kinds.
MEANINGS = {
    "equal": "an exact claim has the very value of the reference.",
    "DIFFERS": "an exact claim has another value. Look at the commit, the locks and "
    "the versions first; if these are the same, it is a defect that we want to know.",
    "agrees": "a claim within a tolerance lies no further from the reference than it "
    "says.",
    "DISAGREES": "it lies further.",
    "as expected": "a time stands to the reference as the rate that it follows, within "
    "the factor that it says.",
    "UNEXPECTED": "it does not. Another load on the machine is the usual reason: see "
    "the load average; it is no failure.",
    "expected to differ": "a time whose rate was not measured on both machines, so "
    "that no ratio can be predicted.",
    "not comparable": "the chapter ran with other parameters than the reference.",
    "no reference": "nobody has committed a reference of this profile.",
    "not run": "the chapter is not in this run.",
    "not published": "the chapter ran and did not publish the number.",
}

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
        return f"{value:{sign if value else ''},.0f}".replace("-", "−")
    if spread:
        places = 1 - math.floor(math.log10(spread))
    else:
        places = digits - 1 - math.floor(math.log10(abs(value)))
    if places > 6 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:{sign}.{min(digits, 3) - 1}e}".split("e")
        text = f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    else:
        text = f"{value:{sign},.{max(places, 0)}f}"
    return text.replace("-", "−")


def _spread(quantity: Quantity, claim: Claim | None = None) -> float | None:
    """What says how many digits of a quantity mean something."""
    if quantity.low is not None and quantity.high is not None:
        return quantity.high - quantity.low
    if claim is not None and claim.rtol and not isinstance(quantity.value, str):
        return 2 * claim.rtol * abs(quantity.value)
    return None


def format_quantity(
    quantity: Quantity | None,
    claim: Claim | None = None,
    digits: int = 4,
    signed: bool = False,
) -> str:
    """'95.9 (95.3 to 96.5)', a value alone, or a dash for none."""
    if quantity is None:
        return "–"
    spread = _spread(quantity, claim)
    text = format_number(quantity.value, spread, digits, signed)
    if quantity.low is None or quantity.high is None:
        return text
    low, high = (
        format_number(end, spread, digits, signed)
        for end in (quantity.low, quantity.high)
    )
    return f"{text} ({low} to {high})"


def as_change(reduction: Quantity) -> tuple[Quantity, str]:
    """A reduction as a positive quantity, and whether it is 'fewer' or 'more'."""
    assert not isinstance(reduction.value, str)  # a reduction is a number
    if reduction.value >= 0:
        return reduction, "fewer"
    low, high = reduction.low, reduction.high
    if low is None or high is None:
        return Quantity(-reduction.value), "more"
    return Quantity(-reduction.value, -high, -low), "more"


def title(claim: Claim) -> str:
    """What a claim says, with its unit."""
    return f"{claim.says} ({claim.unit})" if claim.unit else claim.says


def apart(held: Held) -> str:
    """The difference to the reference, or the ratio of a time."""
    if held.ratio is not None:
        return f"× {format_quantity(held.ratio, digits=3)}"
    return format_quantity(held.difference, digits=2, signed=True)


def expected(row: Row, held: Held) -> str:
    """The ratio to the reference in which a time was to be expected."""
    if held.expected is None:
        return f"the {RESOURCES[row.claim.follows or '']}"
    factor = row.claim.factor or 1
    low, high = held.expected / factor, held.expected * factor
    return (
        f"× {format_number(held.expected, digits=3)} "
        f"({format_number(low, digits=2)} to {format_number(high, digits=2)}), "
        f"the {RESOURCES[row.claim.follows or '']}"
    )


# --- Sentences ---------------------------------------------------------------
def _counts(comparison: Comparison, run: str, kind: str) -> tuple[int, int]:
    """Claims of a kind that hold in a run, and how many could be held."""
    states = [h.state for row, h in comparison.held(run) if row.claim.kind == kind]
    return states.count("good"), len(states) - states.count("open")


def _of(good: int, held: int, what: str) -> str:
    return f"all {held} {what}" if good == held > 1 else f"{good} of {held} {what}"


def headline(comparison: Comparison, run: str) -> str:
    """What came of a run, in two sentences."""
    held = {kind: _counts(comparison, run, kind) for kind in KINDS}
    if not any(total for _, total in held.values()):
        words = {h.verdict.word for _, h in comparison.held(run)}
        if not words:
            return "There is no claim to hold this run against."
        if words == {"no reference"}:
            profiles = dict.fromkeys(row.profile for row in comparison.rows)
            return (
                f"There is no reference run of profile {', '.join(profiles)} yet, so "
                "no claim could be held against one. The values of this run follow."
            )
        return (
            f"No claim of this run could be held: {' or '.join(sorted(words))}. "
            "Its own values follow."
        )
    (exact, of_exact), (near, of_near), (timed, of_timed) = held.values()
    parts = []
    if of_exact:
        parts.append(f"{_of(exact, of_exact, 'exact claims')} are equal bit for bit")
    if of_near:
        what = "claims with a tolerance"
        parts.append(f"{_of(near, of_near, what)} are within it")
    sentences = [" and ".join(parts)] if parts else []
    if of_timed:
        sentences.append(
            f"{of_timed} {'time is' if of_timed == 1 else 'times are'} expected to "
            f"differ, and {timed} of them {'does' if timed == 1 else 'do'} so as the "
            "measured rates of disk and processor predict"
        )
    return " ".join(s[0].upper() + s[1:] + "." for s in sentences)


def remarks(comparison: Comparison, run: str) -> list[str]:
    """What does not hold, each by name; what could not be held, by chapter."""
    if {held.verdict.word for _, held in comparison.held(run)} == {"no reference"}:
        return []  # the headline says so
    wrong, grouped = [], {}
    for row, held in comparison.held(run):
        verdict = held.verdict
        if held.state == "bad":
            wrong.append(f"{row.claim.says}: {verdict.word}, {verdict.text}")
        elif held.state == "open":
            why = (row.claim.chapter, verdict.word, verdict.text)
            if verdict.word == "expected to differ":
                why = (row.claim.chapter, verdict.word, "its rate is not known there")
            grouped[why] = grouped.get(why, 0) + 1
    commits = {commit for machine in comparison.machines for commit in machine.commits}
    if wrong and len(commits) > 1:
        wrong.append("the commits differ, so that a difference may come from the code")
    return wrong + [
        f"chapter {chapter}, {count} {'claim' if count == 1 else 'claims'}: {word}, "
        f"{text}"
        for (chapter, word, text), count in grouped.items()
    ]


def doubt_lines(doubted: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Which times of a run should not be believed, and what to do; [] for none."""
    if not doubted:
        return []
    lines = ["not to be believed:"]
    for chapter, names in doubted.items():
        for why, same in _grouped(names).items():
            lines.append(f"  {chapter}: {', '.join(same)} ({why})")
    numbers = " ".join(str(int(chapter.split("_")[0])) for chapter in doubted)
    lines.append(
        "end what else runs on this machine and measure again, with the same options: "
        f"thesis run {numbers} --again"
    )
    return lines


def _grouped(doubted: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that share a reason, by reason."""
    by_why: dict[str, list[str]] = {}
    for name, why in doubted.items():
        by_why.setdefault(why, []).append(name)
    return by_why


def whose(comparison: Comparison) -> str:
    """Whether the first run was made where the reference was; '' if it was not."""
    if len(comparison.machines) < 2:
        return ""
    theirs, mine = comparison.machines[:2]
    if (theirs.started, theirs.seconds) == (mine.started, mine.seconds):
        return "This run is the reference run itself."
    if [_identity(m) for m in theirs.machines] == [_identity(m) for m in mine.machines]:
        return (
            "This is a machine like that of the reference run, in all that its record "
            "says, so that the times show how much they vary from run to run."
        )
    return ""


def _identity(machine: dict) -> dict:
    """What a machine is, without what was measured on it."""
    measured = {"drain_bytes_per_s", "drain_how", "matmul_flops_per_s"}
    return {name: value for name, value in machine.items() if name not in measured}


# --- Machines ----------------------------------------------------------------
_NONE = "–"


def _known(value: Any, show: Callable[[Any], str] = str) -> str:
    return "not known" if value is None else show(value)


def _gpu(gpu: dict) -> str:
    return f"{gpu['name']}, driver {gpu['driver']}, {format_size(gpu['memory_bytes'])}"


def _hardware(machine: dict) -> dict[str, str]:
    """What a record says of a machine, by row of the table."""
    rate, how = machine.get("drain_bytes_per_s"), machine.get("drain_how", "not known")
    return {
        "Processor": _known(machine.get("cpu")),
        "Cores": _known(machine.get("cores")),
        "Memory": _known(machine.get("memory_bytes"), format_size),
        "GPU": _known(
            machine.get("gpus"), lambda gpus: "; ".join(map(_gpu, gpus)) or "none"
        ),
        "Disk, a file read": f"{format_size(rate)}/s, {how}" if rate else how,
        "Processor, matrices": _known(
            machine.get("matmul_flops_per_s"), lambda rate: f"{rate / 1e9:.3g} GFLOP/s"
        ),
        "System": _known(machine.get("system")),
        "Python": _known(machine.get("python")),
        "torch": _known(machine.get("torch")),
    }


def _software(machine: Machine) -> dict[str, str]:
    """What a run was made with and how long it took, by row of the table."""
    locks = ", ".join(lock[:8] for lock in machine.lock_sha256)
    tree = "clean tree" if machine.clean else "with uncommitted changes"
    load = f"{machine.load_mean or 0:.2f} mean, {machine.load_most or 0:.2f} at most"
    n = machine.chapters
    return {
        "Commit": f"{', '.join(machine.commits)}, {tree}",
        "Locks": locks + ("" if machine.same_lock else ", not the reference's"),
        "Peak memory": format_size(machine.peak_memory_bytes),
        "Load average": "not known" if machine.load_mean is None else load,
        "Run time": f"{format_duration(machine.seconds)}, {n} "
        f"{'chapter' if n == 1 else 'chapters'}",
        "… over the reference": _NONE
        if machine.ratio is None
        else f"× {machine.ratio:.2f}, chapters with the same parameters",
    }


def machine_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table with one column for each machine."""
    columns = []
    for machine in comparison.machines:
        each = [_hardware(m) for m in machine.machines]
        merged = {
            name: " / ".join(dict.fromkeys(one[name] for one in each))
            for name in each[0]
        }
        columns.append(merged | _software(machine))
    names = [
        name
        for name in (columns[0] if columns else {})
        if any(column[name] != _NONE for column in columns)
    ]
    head = ["", *(machine.run for machine in comparison.machines)]
    return head, [[name, *(column[name] for column in columns)] for name in names]


# --- In a terminal -----------------------------------------------------------
_STYLES = {"good": "green", "bad": "bold red", "open": "dim"}


def claim_table(comparison: Comparison) -> tuple[list[str], list[list[str]], list[str]]:
    """Head, rows and state of each row: a row for each claim in each run."""
    several = len(comparison.labels) > 1
    profiles = {row.profile for row in comparison.rows}
    head = ["ch.", "claim", "published", "reference", "value", "apart", "verdict"]
    if several:
        head.insert(4, "run")
    if len(profiles) > 1:
        head.insert(1, "profile")
    rows, states = [], []
    for kind in KINDS:
        for row in comparison.of_kind(kind):
            for held in row.runs:
                cells = [
                    str(row.claim.chapter),
                    title(row.claim),
                    _published(row.claim),
                    format_quantity(row.reference, row.claim),
                    format_quantity(held.value, row.claim),
                    apart(held),
                    held.verdict.word,
                ]
                if several:
                    cells.insert(4, held.run)
                if len(profiles) > 1:
                    cells.insert(1, row.profile)
                rows.append(cells)
                states.append(held.state)
    return head, rows, states


def _published(claim: Claim) -> str:
    if claim.published is None:
        return "–"
    return f"{published_amount(claim)} [{claim.published['source']}]"


def published_amount(claim: Claim) -> str:
    """What the thesis published, in its own unit; a dash for nothing."""
    if claim.published is None:
        return _NONE
    unit = claim.published.get("unit", claim.unit)
    return f"{format_number(claim.published['value'])} {unit}".strip()


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of plain text; nothing is cut."""
    every = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in every
    ]


def sentences(comparison: Comparison) -> list[str]:
    """The headline of each run, and what there is to remark."""
    lines = []
    for run in comparison.labels:
        lines += [f"{run}: {headline(comparison, run)}"]
        lines += [f"  {remark}" for remark in remarks(comparison, run)]
    return lines


def plain(comparison: Comparison) -> list[str]:
    """The whole comparison as lines of text."""
    head, rows, _ = claim_table(comparison)
    parts = [aligned(*machine_table(comparison)), aligned(head, rows)]
    return [line for part in parts for line in [*part, ""]] + sentences(comparison)


def draw(comparison: Comparison, console: Console) -> None:
    """Print the whole comparison on a terminal; the verdict is never cut."""
    table = Table(box=None, pad_edge=False)
    head, rows = machine_table(comparison)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    console.print()
    head, rows, states = claim_table(comparison)
    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold", no_wrap=name == "verdict")
    table.columns[-1].min_width = max([len(row[-1]) for row in rows], default=1)
    for row, state in zip(rows, states, strict=True):
        table.add_row(*map(Text, row[:-1]), Text(row[-1], _STYLES[state]))
    console.print(table)
    console.print()
    for line in sentences(comparison):
        console.print(Text(line))


# --- A figure ----------------------------------------------------------------
def ratios(comparison: Comparison, run: str) -> pd.DataFrame:
    """What `figures.against_reference` draws of a run: its times."""
    rows = []
    for row, held in comparison.held(run):
        if held.ratio is None:
            continue
        band = (math.nan, math.nan)
        if held.expected is not None:
            factor = row.claim.factor or 1
            band = (held.expected / factor, held.expected * factor)
        ends = (held.ratio.low, held.ratio.high)
        ends = [math.nan if end is None else end for end in ends]
        rows.append([row.claim.says, held.ratio.value, *ends, *band, held.verdict.good])
    columns = ["says", "ratio", "low", "high", "expected_low", "expected_high", "good"]
    return pd.DataFrame(rows, columns=columns)


def chart(comparison: Comparison, run: str) -> str:
    """The figure of a run as SVG; '' where there is nothing to draw."""
    table = ratios(comparison, run)
    return figures.as_svg(figures.against_reference(table)) if len(table) else ""


# --- In the book -------------------------------------------------------------
_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]<>|$#~^@"})


def markdown(text: str) -> str:
    """Text as MyST Markdown shows it literally, in one cell of a table."""
    return " ".join(text.translate(_MARKS).split())


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], css: str | None = None
) -> list[str]:
    """Lines of a table whose cells are Markdown already; blank lines around it."""
    every = [head, ["---"] * len(head), *rows]
    lines = [f"| {' | '.join(cells)} |" for cells in every]
    if css is not None:
        lines = ["```{table}", f":class: {css}", "", *lines, "```"]
    return ["", *lines, ""]


def _verdict(held: Held) -> str:
    return f"[{markdown(held.verdict.word)}]{{.verdict-{held.state}}}"


def _cited(claim: Claim) -> str:
    if claim.published is None:
        return "–"
    value = markdown(published_amount(claim))
    return f"{value} {{cite}}`{claim.published['source']}`"


def _kind_lines(comparison: Comparison, kind: str, run: str) -> list[str]:
    """The claims of one kind: a heading, what they are, a table."""
    found = [
        (row, held) for row, held in comparison.held(run) if row.claim.kind == kind
    ]
    heading, text = KINDS[kind]
    lines = [f"## {heading}", "", text, ""]
    if not found:
        return [*lines, "This book has no claim of this kind.", ""]
    head = ["Ch.", "Claim", "Verdict", "This machine", "Reference"]
    head += {
        "exact": [], "tolerance": ["Difference", "Allowed"],
        "time": ["Ratio", "Expected ratio"],
    }[kind]  # fmt: skip
    published = any(row.claim.published for row, _ in found)
    rows = []
    for row, held in found:
        claim = row.claim
        cells = [
            markdown(title(claim)),
            markdown(format_quantity(held.value, claim)),
            markdown(format_quantity(row.reference, claim)),
        ]
        cells = [str(claim.chapter), cells[0], _verdict(held), *cells[1:]]
        if kind == "tolerance":
            cells += [markdown(apart(held)), f"{100 * (claim.rtol or 0):.2g} %"]
        if kind == "time":
            cells += [markdown(apart(held)), markdown(expected(row, held))]
        rows.append([*cells, *([_cited(claim)] if published else [])])
    head += ["Published"] if published else []
    lines += markdown_table(head, rows, "claims")
    if kind == "tolerance":
        lines += _reasons([row.claim for row, _ in found])
    return lines


def _reasons(claims: Iterable[Claim]) -> list[str]:
    """Why claims with a tolerance may differ, each reason once."""
    grouped: dict[str, list[str]] = {}
    for claim in claims:
        grouped.setdefault(claim.why, []).append(claim.says)
    listed = [f"- *{markdown(why)}*: {markdown('; '.join(says))}."
              for why, says in grouped.items()]  # fmt: skip
    return ["Why they may differ at all:", "", *listed, ""]


def book_lines(comparison: Comparison, run: str, figure: str | None) -> list[str]:
    """The generated part of the book's page on the reader's machine.

    `figure` names the file of the chart, where there is one.
    """
    lines = [
        " ".join(filter(None, [headline(comparison, run), whose(comparison)])),
        "",
        *(f"- {markdown(remark)}" for remark in remarks(comparison, run)),
        "",
        "## The machines",
    ]
    head, rows = machine_table(comparison)
    lines += markdown_table(
        [markdown(cell) for cell in head],
        [[markdown(cell) for cell in row] for row in rows],
    )
    for kind in KINDS:
        lines += _kind_lines(comparison, kind, run)
    if figure is not None:
        lines += [
            f"```{{figure}} {figure}",
            ":name: fig-your-hardware",
            ":alt: Each time of this machine over its reference, as a dot with its "
            "interval, beside the band that was expected",
            "Times of this machine over those of the reference, with the widest "
            "interval that both allow. A dot in the grey band is as expected from the "
            "measured rates, a cross is not.",
            "```",
            "",
        ]
    return lines


def doubt_section(doubted: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The section of the book's page to which the marks of doubt lead."""
    if not doubted:
        return []
    lines = [
        "(sec-doubts)=",
        "## Times in doubt",
        "",
        "These times of this run should not be believed, and are marked wherever the "
        "book cites them. They were measured while something else ran, each try of "
        "them, or differ from the reference by more than the rates of the two machines "
        "say. To measure again, end what else runs and give `thesis run` the chapter "
        "and `--again`.",
        "",
    ]
    for chapter, names in doubted.items():
        for why, same in _grouped(names).items():
            listed = ", ".join(f"`{name}`" for name in same)
            lines.append(f"- Chapter {int(chapter.split('_')[0])}, {listed}: "
                         f"{markdown(why)}.")  # fmt: skip
    return [*lines, ""]


def durations_lines(records: Sequence[Record]) -> list[str]:
    """What a run takes, by profile, as the committed reference run took it."""
    profiles = list(dict.fromkeys(record.profile for record in records))
    if not profiles:
        return ["No reference run is committed yet, so there is no time to go by.", ""]
    rows = []
    for profile in profiles:
        chosen = [record for record in records if record.profile == profile]
        peak = max(record.peak_memory_bytes for record in chosen)
        longest = max(chosen, key=lambda record: record.seconds)
        hosts = [f"{r.machine['cpu']}, {r.machine['cores']} cores" for r in chosen]
        rows.append(
            [
                f"`{profile}`",
                str(len(chosen)),
                format_duration(sum(record.seconds for record in chosen)),
                f"{format_duration(longest.seconds)}, chapter {number(longest)}",
                format_size(peak),
                markdown(" / ".join(dict.fromkeys(hosts))),
            ]
        )
    head = ["Profile", "Chapters", "Run time", "Longest", "Peak memory", "On"]
    return markdown_table(head, rows)


def meanings_lines() -> list[str]:
    """What each verdict means, as a definition list."""
    lines = []
    for word, meaning in MEANINGS.items():
        lines += [f"*{word}*", f": {meaning[0].upper()}{meaning[1:]}", ""]
    return lines


# --- In the README -----------------------------------------------------------

# The keys of the claims that the table below it shows; it ends at the next remark.
README_BLOCK = re.compile(
    r"(<!-- claims: ([\w\s]+) -->\n).*?(<!-- end of claims -->)", re.DOTALL
)

_ELSEWHERE = {
    "exact": "equal bit for bit",
    "tolerance": "equal within a tolerance",
    "time": "differs with the machine",
}


def readme(text: str, claims: Mapping[str, Claim], reference: Run, profile: str) -> str:
    """The README with its table of claims made anew from the reference run.

    Raises InvalidInput where the README has no such table, or names no claim.
    """
    block = README_BLOCK.search(text)
    require(
        block is not None,
        "README.md has no table of claims: expected `<!-- claims: KEY… -->` and "
        "`<!-- end of claims -->` around it",
    )
    assert block is not None  # required above
    rows = []
    for key in block[2].split():
        claim = claims[choice("claim in README.md", key, claims)]
        value = reference_value(claim, profile, reference)
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


# --- One page ----------------------------------------------------------------
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --page: #fcfcfa; --ink: #1f2328; --muted: #5c6570; --line: #dcdfe3; --card: #ffffff;
  --good: #00694b; --good-ground: #dff3ea; --bad: #a5280f; --bad-ground: #fde4dd;
  --open: #525b66; --open-ground: #eceef1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --ink: #e4e7ea; --muted: #9aa4ae; --line: #323941;
    --card: #1b1f24; --good: #6fdcb4; --good-ground: #12382c; --bad: #ff9d86;
    --bad-ground: #4a1d13; --open: #b4bdc6; --open-ground: #2a3037;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 "Source Sans 3", "Noto Sans", "Segoe UI", "Helvetica Neue", Arial,
    sans-serif;
}
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .3rem; }
p { max-width: 46rem; margin: .3rem 0 1rem; }
.lead { color: var(--muted); }
section.run {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .9rem 1.1rem; margin: 1rem 0;
}
section.run h3 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; }
section.run p { margin: .2rem 0 0; }
section.run ul { margin: .5rem 0 0; padding-left: 1.2rem; color: var(--muted); }
section.run li { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin: .8rem 0; }
th, td {
  text-align: left; vertical-align: top; padding: .45rem .9rem .45rem 0;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums;
  overflow-wrap: break-word;
}
thead th { color: var(--muted); font-weight: 600; font-size: .85rem; }
tbody th { font-weight: 400; }
.verdict {
  display: inline-block; white-space: nowrap; border-radius: 1rem; padding: 0 .6rem;
  font-size: .9rem; font-weight: 600;
}
.good { color: var(--good); background: var(--good-ground); }
.bad { color: var(--bad); background: var(--bad-ground); }
.open { color: var(--open); background: var(--open-ground); }
.small { color: var(--muted); font-size: .85rem; display: block; }
figure { margin: 1.2rem 0; max-width: 38rem; }
figure svg { width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: .9rem; }
dt { margin-top: .5rem; font-weight: 600; }
dd { margin: 0 0 .2rem; max-width: 46rem; }
@media (max-width: 48rem) {
  main { padding: 1.2rem .9rem 3rem; }
  thead { display: none; }
  table, tbody, tr, th, td { display: block; width: 100%; }
  tr {
    border: 1px solid var(--line); border-radius: .6rem; background: var(--card);
    padding: .5rem .8rem; margin: .7rem 0;
  }
  th, td { border: 0; padding: .15rem 0; }
  tbody th { font-weight: 600; }
  td.none { display: none; }
  td[data-label]::before {
    content: attr(data-label) ": "; color: var(--muted); font-size: .85rem;
  }
}
</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
</main>
</body>
</html>
""")


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table whose cells are HTML already; on a small screen each row is a card."""
    none = ' class="none"'  # left out where a row is a card
    lines = ["<table>", "<thead><tr>"]
    lines += [f'<th scope="col">{escape(name)}</th>' for name in head]
    lines += ["</tr></thead>", "<tbody>"]
    for first, *others in rows:
        lines.append(f'<tr><th scope="row">{first}</th>')
        lines += [
            f'<td data-label="{escape(name)}"{none if cell == "–" else ""}>{cell}</td>'
            for name, cell in zip(head[1:], others, strict=True)
        ]
        lines.append("</tr>")
    return [*lines, "</tbody>", "</table>"]


def _kind_html(comparison: Comparison, kind: str) -> list[str]:
    """The claims of one kind as a section of the page."""
    rows = comparison.of_kind(kind)
    if not rows:
        return []
    heading, text = KINDS[kind]
    several = len(comparison.labels) > 1
    head = ["Claim", "Verdict", *(["Run"] if several else []), "Value", "Reference"]
    demands = kind != "exact"  # its heading says what is demanded
    head.append("Ratio" if kind == "time" else "Difference")
    head += ["What it must be", "Published"] if demands else ["Published"]
    cells = []
    for row in rows:
        claim = row.claim
        says = (
            f'{escape(title(claim))}<span class="small">chapter {claim.chapter}, '
            f"{escape(row.profile)}: {escape(claim.key)}</span>"
        )
        for held in row.runs:
            chip = (
                f'<span class="verdict {held.state}">{escape(held.verdict.word)}</span>'
            )
            if held.state == "bad" or held.verdict.word == "not comparable":
                chip += f'<span class="small">{escape(held.verdict.text)}</span>'
            texts = [
                *([held.run] if several else []),
                format_quantity(held.value, claim),
                format_quantity(row.reference, claim),
                apart(held),
                *([held.demand] if demands else []),
                _published(claim),
            ]
            cells.append([says, chip, *map(escape, texts)])
    return [
        f"<h2>{escape(heading)}</h2>",
        f"<p>{escape(text)}</p>",
        *_html_table(head, cells),
    ]


def html_page(comparison: Comparison) -> str:
    """The whole comparison as one file that needs no other and no network."""
    against = (
        "the committed reference run" if comparison.committed else comparison.reference
    )
    lines = [f'<p class="lead">Held against {escape(against)}, claim by claim.</p>']
    for run in comparison.labels:
        lines += [
            '<section class="run">',
            f"<h3>{escape(run)}</h3>",
            f"<p>{escape(headline(comparison, run))}</p>",
        ]
        if found := remarks(comparison, run):
            lines += ["<ul>", *(f"<li>{escape(r)}</li>" for r in found), "</ul>"]
        lines.append("</section>")
    head, rows = machine_table(comparison)
    lines += ["<h2>The machines</h2>"]
    lines += _html_table(head, [[escape(cell) for cell in row] for row in rows])
    for kind in KINDS:
        lines += _kind_html(comparison, kind)
    for run in comparison.labels:
        if drawn := chart(comparison, run):
            lines += [
                "<figure>",
                drawn,
                f"<figcaption>Times of {escape(run)} over those of {escape(against)}. "
                "A dot in the grey band is as expected from the measured rates, a "
                "cross is not.</figcaption>",
                "</figure>",
            ]
    lines += ["<h2>What each verdict means</h2>", "<dl>"]
    for word, meaning in MEANINGS.items():
        lines.append(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>")
    lines.append("</dl>")
    heading = escape("Runs beside their reference")
    return _PAGE.substitute(title=heading, body="\n".join(lines))
