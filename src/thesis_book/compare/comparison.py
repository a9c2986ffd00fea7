"""Compare runs of different machines with a reference, claim by claim.

A run is the records of a folder. The claims say what must be equal and what may differ,
and by how much; a number is only compared with one of the same parameters. The result
is one table with a row for each claim, profile and run.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from thesis_book.execute.chapters import PROFILE_PARAMETER, PROFILES, read_records
from thesis_book.execute.claims import (
    EQUAL,
    REFERENCE,
    RESOURCES,
    Claim,
    Verdict,
    expected_ratio,
    judge,
    percent,
    reference_records,
)
from thesis_book.execute.records import Number, Record
from thesis_lib.common.errors import require
from thesis_lib.common.files import data_folder

MOST_NAMED = 3  # of the parameters that two records differ in


@dataclass(frozen=True, slots=True)
class Run:
    """The records of one run, under the name that its columns carry."""

    label: str
    records: tuple[Record, ...]
    committed: bool = False  # the reference of the claims: `data/reference`

    def record(self, chapter: int, profile: str) -> Record | None:
        """Return its record of a chapter: of `profile`, or else of another one.

        The committed run has several profiles, and no other stands for one of them.
        """
        records = [r for r in self.records if r.number == chapter]
        same = [r for r in records if r.profile == profile]
        return next(iter(same or ([] if self.committed else records)), None)


class Quantity(NamedTuple):
    """A value with the ends of its interval, or of its range, where it has one."""

    value: Number
    low: float | None = None
    high: float | None = None
    method: str = ""  # of the interval


# Columns of `Comparison.rows`, as JSON has them: of a claim, and of a run.
OF_CLAIM = [
    "chapter", "says", "unit", "claim", "kind", "profile", "published",
]  # fmt: skip
OF_RUN = [
    "run", "value", "difference", "ratio", "expected_ratio", "demand", "verdict",
    "good", "text",
]  # fmt: skip
COLUMNS = [
    *OF_CLAIM, *OF_RUN, "reference", "title", "state", "rtol", "why", "follows",
    "factor",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """The table of all claims and all machines.

    `rows` has a row for each claim, profile and run. Columns are those of `Claim`, with
    its key as `claim`, and `profile`, `run` (its label), `reference` and `value` (a
    Quantity or None), `ratio` to the reference (of a time) or `difference` (of
    another one; a Quantity or None), `expected_ratio` (that the machine's rate predicts
    of a time, or None), `demand`, and the `verdict`, its `state` and its `text`.
    """

    reference: str
    labels: tuple[str, ...]  # of the runs, without the reference
    rows: pd.DataFrame
    machines: list[dict[str, Any]]  # the reference's first, if known

    def of(self, run: str) -> pd.DataFrame:
        """Return the rows of one run."""
        return self.rows.query("run == @run")

    def states(self) -> list[str]:
        """Return the states of all claims but of times, which break nothing."""
        return self.rows.loc[self.rows["kind"] != "time", "state"].tolist()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        entries: dict[tuple[str, str], dict[str, Any]] = {}
        for row in self.rows.to_dict("records"):
            plain = {
                name: cell._asdict() if isinstance(cell, Quantity) else cell
                for name, cell in row.items()
            }
            entry = {name: plain[name] for name in OF_CLAIM}
            entry |= {"runs": [], "reference": plain["reference"]}
            known = entries.setdefault((row["claim"], row["profile"]), entry)
            known["runs"].append({name: plain[name] for name in OF_RUN})
        rows = list(entries.values())
        return {"reference": self.reference, "rows": rows, "machines": self.machines}


# --- What is read ------------------------------------------------------------
def read_reference() -> Run:
    """Read the committed run, of every profile; without records if there is none."""
    records = reference_records(data_folder() / REFERENCE)
    return Run(REFERENCE, tuple(records), committed=True)


def read_run(name: str) -> Run:
    """Read the run in the folder `name`, or for the word `reference` the committed one.

    Raises InvalidInput where there is none.
    """
    if name == REFERENCE:
        reference = read_reference()
        require(
            bool(reference.records),
            f"no reference run is committed: expected {data_folder() / REFERENCE}/"
            "PROFILE with records; `thesis claims --update` writes it",
        )
        return reference
    require(
        Path(name).is_dir(),
        f"run {name!r} is no folder: expected one that `thesis run` wrote, such as "
        f"build/chapters/default, or the word {REFERENCE}",
    )
    return Run(name, tuple(read_records(Path(name))))


# --- What is compared --------------------------------------------------------
def quantity(key: str, record: Record | None) -> Quantity | None:
    """Return a number of a record with its interval; None where it has none."""
    if record is None or key not in record.numbers:
        return None
    low, high = (record.numbers.get(f"{key}_{end}") for end in ("low", "high"))
    if isinstance(low, str | None) or isinstance(high, str | None):
        return Quantity(record.numbers[key])
    method = str(record.numbers.get(f"{key}_interval", ""))
    return Quantity(record.numbers[key], low, high, method)


def apart(mine: Quantity, theirs: Quantity, as_ratio: bool = False) -> Quantity | None:
    """Return mine less theirs, or over theirs, with the widest interval of both.

    None between words, and for a ratio of what is not positive.
    """
    if isinstance(mine.value, str) or isinstance(theirs.value, str):
        return None
    if as_ratio and min(mine.value, theirs.value) <= 0:
        return None
    combine = operator.truediv if as_ratio else operator.sub
    value = combine(mine.value, theirs.value)
    ends = [e for q in (mine, theirs) for e in (q.low, q.high) if e is not None]
    if len(ends) < 4 or (as_ratio and min(ends) <= 0):
        return Quantity(value)
    return Quantity(value, combine(ends[0], ends[3]), combine(ends[1], ends[2]))


def other_parameters(mine: Record, theirs: Record) -> str:
    """Name the first parameters that two records differ in; '' for none."""
    differing = []
    for name in sorted(mine.parameters.keys() | theirs.parameters):
        here, there = (r.parameters.get(name, "nothing") for r in (mine, theirs))
        if here != there and name != PROFILE_PARAMETER:
            differing.append(f"{name}={here} instead of {there}")
    more = len(differing) - MOST_NAMED
    named = ", ".join(differing[:MOST_NAMED])
    return f"{named} and {more} more" if more > 0 else named


def demand(claim: Claim, expected: float | None) -> str:
    """Say what a claim of its kind demands of a run on another machine."""
    if claim.kind in EQUAL:
        return "equal bit for bit" if claim.kind == "exact" else "read from a record"
    if claim.kind == "tolerance":
        return f"within {percent(claim.rtol or 0)} of the reference: {claim.why}"
    follows = f"by the rate of the {RESOURCES[claim.follows or '']}"
    if expected is None:
        return f"{follows}, which is not known on both machines"
    near = f"within a factor of {claim.factor:g}"
    return f"{expected:.2f} times the reference {follows}, {near}"


def _row(claim: Claim, profile: str, run: Run, reference: Run) -> dict[str, Any]:
    """Return the row of a claim in one run."""
    mine, theirs = (r.record(claim.chapter, profile) for r in (run, reference))
    value, base = quantity(claim.key, mine), quantity(claim.key, theirs)
    is_time, expected, distance = claim.kind == "time", None, None
    if is_time and mine and theirs:
        expected = expected_ratio(claim, mine.machine, theirs.machine)
    if mine is None:
        verdict = Verdict("not run", "open", "this run has no record of it")
    elif base is None or theirs is None:
        verdict = Verdict("no reference", "open", f"{reference.label} has none")
    elif other := other_parameters(mine, theirs):
        verdict = Verdict("not comparable", "open", f"parameters differ: {other}")
        expected = None
    else:
        verdict = judge(claim, value.value if value else None, base.value, expected)
        distance = apart(value, base, as_ratio=is_time) if value else None
        if distance and claim.kind in EQUAL:
            distance = Quantity(distance.value)
    return asdict(claim) | {
        "claim": claim.key,
        "title": claim.title,
        "profile": profile,
        "run": run.label,
        "reference": base,
        "value": value,
        "difference": None if is_time else distance,
        "ratio": distance if is_time else None,
        "expected_ratio": expected,
        "demand": demand(claim, expected),
        "verdict": verdict.word,
        "state": verdict.state,
        "good": verdict.good,
        "text": verdict.text,
    }


def _profiles(chapter: int, runs: Iterable[Run]) -> list[str]:
    """Return the profiles of a chapter in some runs; [] where no run has it."""
    records = [record for run in runs for record in run.records]
    profiles = {r.profile for r in records if r.number == chapter}
    known = [name for name in PROFILES if name in profiles]
    return known + sorted(profiles.difference(known))


def elapsed_s(records: Iterable[Record]) -> float:
    """Seconds during which at least one of the chapters ran."""
    total_s, until_s = 0.0, 0.0
    for started, seconds in sorted((r.started, r.seconds) for r in records):
        start_s = datetime.fromisoformat(started).timestamp()
        total_s += max(0.0, start_s + seconds - max(start_s, until_s))
        until_s = max(until_s, start_s + seconds)
    return total_s


def describe_machine(run: Run, reference: Run | None = None) -> dict[str, Any]:
    """Describe what a run was made on and with, compared with its reference, or itself.

    `machines`, `commits` and `lock_sha256` list each once. `of_reference` counts the
    chapters that are the reference's own, `ratio` is that of the run times of chapters
    that can be compared. Sizes are in bytes, times in seconds.
    """
    records, reference = run.records, reference or run
    pairs = [(r, reference.record(r.number, r.profile)) for r in records]
    timed = [(r, o) for r, o in pairs if o and not other_parameters(r, o)]
    mine_s, theirs_s = (elapsed_s(pair[side] for pair in timed) for side in (0, 1))
    watched = [r for r in records if {"mean", "most"} <= r.load_average.keys()]
    load_s = sum(r.load_average["mean"] * r.seconds for r in watched)
    total_s = sum(r.seconds for r in watched)
    locks = list(dict.fromkeys(r.lock_sha256 for r in records))
    machines = [r.machine for r in records]
    has_ratio = theirs_s and run.label != reference.label
    return {
        "run": run.label,
        "machines": [m for i, m in enumerate(machines) if m not in machines[:i]],
        "commits": list(dict.fromkeys(r.commit for r in records)),
        "clean": all(r.clean for r in records),
        "lock_sha256": locks,
        "same_lock": {*locks} <= {r.lock_sha256 for r in reference.records or records},
        "peak_memory_bytes": max(r.peak_memory_bytes for r in records),
        "load_mean": load_s / total_s if total_s else None,
        "load_most": max((r.load_average["most"] for r in watched), default=None),
        "started": min(r.started for r in records),
        "chapters": len(records),
        "of_reference": sum(record == other for record, other in pairs),
        "seconds": elapsed_s(records),
        "ratio": mine_s / theirs_s if has_ratio else None,
    }


def compare(
    runs: Sequence[Run], claims: Mapping[str, Claim], reference: Run
) -> Comparison:
    """Compare each run with the reference, claim by claim.

    Against the committed reference, which has several profiles, a claim has a row for
    each profile that its chapter was run with. A chapter that only the committed
    reference has, or no run at all, has no rows. Raises InvalidInput for a run that
    shares no chapter with a reference that is itself a run.
    """
    known = {record.number for record in reference.records}
    for run in runs:
        require(
            reference.committed or bool(known & {r.number for r in run.records}),
            f"runs {reference.label} and {run.label} have no chapter in common: "
            "expected two runs of the same chapters; run them with `thesis run`",
        )
    whose = [] if reference.committed else [reference]
    rows = [
        _row(claim, profile, run, reference)
        for claim in claims.values()
        for profile in _profiles(claim.chapter, whose) or _profiles(claim.chapter, runs)
        for run in runs
    ]
    if reference.committed:  # its machine is that of the chapters that were compared
        pairs = {(r.number, r.profile) for run in runs for r in run.records}
        compared = [r for r in reference.records if (r.number, r.profile) in pairs]
        reference = replace(reference, records=tuple(compared))
    columns = [reference, *(run for run in runs if run.label != reference.label)]
    return Comparison(
        reference.label,
        tuple(run.label for run in runs),
        pd.DataFrame(rows, columns=COLUMNS, dtype=object),
        [describe_machine(run, reference) for run in columns if run.records],
    )


def doubts(compared: Comparison, run: Run) -> dict[str, dict[str, str]]:
    """Return the times of a run not to be believed, by chapter and name, with why.

    Those whose measurement others disturbed, and claims whose verdict is UNEXPECTED.
    """
    doubted: dict[str, dict[str, str]] = {}
    for record in run.records:
        names = str(record.numbers.get("disturbed", "")).split()
        cause = f"disturbed: {record.numbers.get('disturbed_by', '')}"
        doubted[record.chapter] = dict.fromkeys(names, cause)
    row: Any
    for row in compared.of(run.label).itertuples():
        record = run.record(row.chapter, row.profile)
        if row.verdict == "UNEXPECTED" and record is not None:
            names, why = doubted[record.chapter], f"UNEXPECTED, {row.text}"
            known = names.get(row.claim)
            names[row.claim] = f"{known}; {why}" if known else why
    return {chapter: names for chapter, names in doubted.items() if names}


def compare_named(names: Sequence[str], claims: Mapping[str, Claim]) -> Comparison:
    """Compare runs by name: the first is what the others are compared with.

    One alone is compared with the committed reference of its profile. Raises
    InvalidInput for a name that is no run and for one that is given twice.
    """
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    require(not twice, f"run {' '.join(twice)} is given twice: name each run once")
    runs = [read_run(name) for name in names]
    if len(runs) == 1:
        return compare(runs, claims, read_reference())
    return compare(runs[1:], claims, runs[0])
