"""A comparison of runs as people read it: in a terminal, in the book, on one page.

Every form shows the one table of `words`, some of its columns at a time.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from thesis_lib.book import figures
from thesis_lib.book.compare.comparison import (
    Comparison,
    Machine,
    Quantity,
    Run,
    each,
    quantity,
)
from thesis_lib.book.execute.claims import RESOURCES, Claim
from thesis_lib.book.execute.pages import render_page
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


def apart(row: Any) -> str:
    """The difference to the reference, or the ratio of a time."""
    if row.ratio is not None:
        return f"× {format_quantity(row.ratio, digits=3)}"
    return format_quantity(row.difference, digits=2, signed=True)


def _band(row: Any) -> tuple[float, float]:
    """The least and the largest ratio in which a time was to be expected; or NaN."""
    expected = math.nan if row.expected is None else row.expected
    return expected / (row.claim.factor or 1), expected * (row.claim.factor or 1)


def expected(row: Any) -> str:
    """The ratio to the reference in which a time was to be expected."""
    resource = f"the {RESOURCES[row.claim.follows]}"
    if row.expected is None:
        return resource
    low, high = (format_number(end, digits=2) for end in _band(row))
    return f"× {format_number(row.expected, digits=3)} ({low} to {high}), {resource}"


def published_amount(claim: Claim) -> str:
    """What the thesis published, in its own unit; a dash for nothing."""
    if claim.published is None:
        return _NONE
    unit = claim.published.get("unit", claim.unit)
    return f"{format_number(claim.published['value'])} {unit}".strip()


def words(comparison: Comparison) -> pd.DataFrame:
    """The table of a comparison with a text in every cell; by kind, as KINDS has them.

    `published` is an amount, and `source` the key of its work or ''.
    """
    rows = [
        {
            "kind": kind,
            "state": row.state,
            "key": row.claim.key,
            "profile": row.profile,
            "chapter": str(row.claim.chapter),
            "claim": row.claim.title,
            "run": row.run,
            "value": format_quantity(row.value, row.claim),
            "reference": format_quantity(row.reference, row.claim),
            "apart": apart(row),
            "allowed": f"{100 * (row.claim.rtol or 0):.2g} %",
            "expected": expected(row) if kind == "time" else "",
            "demand": row.demand,
            "published": published_amount(row.claim),
            "source": (row.claim.published or {}).get("source", ""),
            "verdict": row.verdict,
            "text": row.text,
        }
        for kind in KINDS
        for row in each(comparison.table.loc[comparison.table["kind"] == kind])
    ]
    columns = ["kind", "state", "run", "profile", "source"]  # of no claim at all
    return pd.DataFrame(rows, columns=None if rows else columns, dtype=object)


def _with_source(table: pd.DataFrame, form: str) -> list[str]:
    """What was published with its work, as `form` puts it; a dash for nothing."""
    pairs = zip(table["published"], table["source"], strict=True)
    return [form.format(p, s) if s else p for p, s in pairs]


# --- Sentences ---------------------------------------------------------------
def _of(good: int, held: int, what: str) -> str:
    return f"all {held} {what}" if good == held > 1 else f"{good} of {held} {what}"


def headline(comparison: Comparison, run: str) -> str:
    """What came of a run, in two sentences."""
    table = comparison.of(run)
    held = table.loc[table["state"] != "open"]
    if held.empty:
        verdicts = set(table["verdict"])
        if not verdicts:
            return "There is no claim to hold this run against."
        if verdicts == {"no reference"}:
            profiles = dict.fromkeys(comparison.table["profile"])
            return (
                f"There is no reference run of profile {', '.join(profiles)} yet, so "
                "no claim could be held against one. The values of this run follow."
            )
        return (
            f"No claim of this run could be held: {' or '.join(sorted(verdicts))}. "
            "Its own values follow."
        )
    states = [held.loc[held["kind"] == kind, "state"] for kind in KINDS]
    (exact, of_exact), (near, of_near), (timed, of_timed) = (
        (int((state == "good").sum()), len(state)) for state in states
    )
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
    table = comparison.of(run)
    if set(table["verdict"]) == {"no reference"}:
        return []  # the headline says so
    wrong, grouped = [], {}
    for row in each(table):
        if row.state == "bad":
            wrong.append(f"{row.claim.says}: {row.verdict}, {row.text}")
        elif row.state == "open":
            unknown = row.verdict == "expected to differ"
            text = "its rate is not known there" if unknown else row.text
            why = (row.claim.chapter, row.verdict, text)
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
        for why, same in _grouped(names.items()).items():
            lines.append(f"  {chapter}: {', '.join(same)} ({why})")
    numbers = " ".join(str(int(chapter.split("_")[0])) for chapter in doubted)
    lines.append(
        "end what else runs on this machine and measure again, with the same options: "
        f"thesis run {numbers} --again"
    )
    return lines


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The names that share a reason, by reason, of pairs of both."""
    by_why: dict[str, list[str]] = {}
    for name, why in pairs:
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


def _grid(head: Iterable[str], rows: Iterable[Iterable[str | Text]]) -> Table:
    """A table without lines, whose cells are folded where they are too long."""
    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(c if isinstance(c, Text) else Text(c) for c in row))
    return table


def draw(comparison: Comparison, console: Console) -> None:
    """Print the whole comparison; the verdict is never cut."""
    console.print(_grid(*machine_table(comparison)))
    console.print()
    table = words(comparison)
    several = {"run": "run"} if len(comparison.labels) > 1 else {}
    profiles = {"profile": "profile"} if len(set(table["profile"])) > 1 else {}
    head = {
        "chapter": "ch.", **profiles, "claim": "claim", "published": "published",
        "reference": "reference", **several, "value": "value", "apart": "apart",
        "verdict": "verdict",
    }  # fmt: skip
    if len(table):
        cells = table.assign(
            published=_with_source(table, "{} [{}]"),
            verdict=[
                Text(verdict, _STYLES[state])
                for verdict, state in zip(table["verdict"], table["state"], strict=True)
            ],
        )
        drawn = _grid(head.values(), cells[[*head]].values)
        drawn.columns[-1].no_wrap = True
        drawn.columns[-1].min_width = max(map(len, table["verdict"]))
        console.print(drawn)
        console.print()
    for run in comparison.labels:
        console.print(Text(f"{run}: {headline(comparison, run)}"))
        for remark in remarks(comparison, run):
            console.print(Text(f"  {remark}"))


def plain(comparison: Comparison) -> list[str]:
    """The whole comparison as lines of text of any length, of which nothing is cut."""
    text = io.StringIO()
    draw(comparison, Console(file=text, width=100_000, color_system=None))
    return [line.rstrip() for line in text.getvalue().splitlines()]


# --- A figure ----------------------------------------------------------------
def chart(comparison: Comparison, run: str) -> str:
    """The times of a run over their reference as SVG; '' where there is none."""
    rows = []
    for row in each(comparison.of(run)):
        if row.ratio is not None:
            ends = (row.ratio.low, row.ratio.high)
            ends = [math.nan if end is None else end for end in ends]
            rows.append([row.claim.says, row.ratio.value, *ends, *_band(row), row.good])
    columns = ["says", "ratio", "low", "high", "expected_low", "expected_high", "good"]
    times = pd.DataFrame(rows, columns=columns)
    return figures.as_svg(figures.against_reference(times)) if rows else ""


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


def machine_lines(comparison: Comparison) -> list[str]:
    """The table with one column for each machine."""
    head, rows = machine_table(comparison)
    return markdown_table(map(markdown, head), [[*map(markdown, row)] for row in rows])


_OF_KIND = {  # columns of one kind alone, with their heads in the book
    "exact": {},
    "tolerance": {"apart": "Difference", "allowed": "Allowed"},
    "time": {"apart": "Ratio", "expected": "Expected ratio"},
}


def _kind_lines(table: pd.DataFrame, kind: str) -> list[str]:
    """The claims of one kind, of `words` of one run: a heading, a text, a table."""
    table = table.loc[table["kind"] == kind]
    heading, text = KINDS[kind]
    lines = [f"## {heading}", "", text, ""]
    if not len(table):
        return [*lines, "This book has no claim of this kind.", ""]
    head = {
        "chapter": "Ch.", "claim": "Claim", "verdict": "Verdict",
        "value": "This machine", "reference": "Reference", **_OF_KIND[kind],
    }  # fmt: skip
    if any(table["source"]):
        head["published"] = "Published"
    cells = table.map(markdown).assign(source=table["source"])
    cells["published"] = _with_source(cells, "{} {{cite}}`{}`")
    cells["verdict"] = "[" + cells["verdict"] + "]{.verdict-" + table["state"] + "}"
    return lines + markdown_table(head.values(), cells[[*head]].values, "claims")


def _reasons(claims: Iterable[Claim]) -> list[str]:
    """Why claims with a tolerance may differ, each reason once."""
    grouped = _grouped((claim.says, claim.why) for claim in claims)
    listed = [f"- *{markdown(why)}*: {markdown('; '.join(says))}."
              for why, says in grouped.items()]  # fmt: skip
    return ["Why they may differ at all:", "", *listed, ""] if listed else []


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
        *machine_lines(comparison),
    ]
    table, near = words(comparison), comparison.of(run)
    for kind in KINDS:
        lines += _kind_lines(table.loc[table["run"] == run], kind)
        if kind == "tolerance":
            lines += _reasons(near.loc[near["kind"] == kind, "claim"])
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
        for why, same in _grouped(names.items()).items():
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
                f"{format_duration(longest.seconds)}, chapter {longest.number}",
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


# --- One page ----------------------------------------------------------------
def html_page(comparison: Comparison) -> str:
    """The whole comparison as one file that needs no other and no network."""
    table = words(comparison)
    if len(table):
        table["published"] = _with_source(table, "{} [{}]")
    kinds = []
    for kind, (heading, text) in KINDS.items():
        columns = {
            "run": "Run", "value": "Value", "reference": "Reference",
            "apart": "Ratio" if kind == "time" else "Difference",
            "demand": "What it must be", "published": "Published",
        }  # fmt: skip
        if len(comparison.labels) == 1:
            del columns["run"]
        if kind == "exact":
            del columns["demand"]  # its heading says what is demanded
        rows = table.loc[table["kind"] == kind].to_dict("records")
        found = {"heading": heading, "text": text, "columns": columns, "rows": rows}
        kinds += [found] if rows else []
    return render_page(
        "compare.html",
        title="Runs beside their reference",
        against="the committed reference run"
        if comparison.committed
        else comparison.reference,
        runs=[
            {
                "label": run,
                "headline": headline(comparison, run),
                "remarks": remarks(comparison, run),
                "chart": chart(comparison, run),
            }
            for run in comparison.labels
        ],
        machines=machine_table(comparison),
        kinds=kinds,
        meanings=MEANINGS,
    )
