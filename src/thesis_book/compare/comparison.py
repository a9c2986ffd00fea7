"""Compare runs of different machines with a reference, claim by claim.

A run is the records of a folder. The claims say what must be equal and what may differ,
and by how much; a number is only compared with one of the same parameters. The result
is one table with a row for each claim, profile and run.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from thesis_book.execute.chapters import PROFILE_PARAMETER, PROFILES, read_records
from thesis_book.execute.claims import (
    EQUAL,
    RATES,
    REFERENCE,
    RESOURCES,
    Claim,
    Rates,
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
        """Its record of a chapter: of `profile` if there is one, of another if not.

        The committed run has several profiles, and no other stands for one of them.
        """
        found = [r for r in self.records if r.number == chapter]
        same = [r for r in found if r.profile == profile]
        return next(iter(same or ([] if self.committed else found)), None)


class Quantity(NamedTuple):
    """A value with the ends of its interval, or of its range, where it has one."""

    value: Number
    low: float | None = None
    high: float | None = None
    method: str = ""  # of the interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """All claims and all machines.

    `rows` has a row for each claim, profile and run: `claim` (a Claim), `kind`,
    `profile`, `run` (its label), `reference` and `value` (a Quantity or None), `apart`
    (a Quantity: of a time the ratio to the reference, otherwise the difference; or
    None), `expected` (of a time the ratio that the machine's rate predicts, or None),
    and the verdict as `word`, `state` and `text`.
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
            claim, is_time = row["claim"], row["kind"] == "time"
            entry = {name: getattr(claim, name) for name in ("chapter", "says", "unit")}
            entry |= {"claim": claim.key, "kind": claim.kind, "profile": row["profile"]}
            entry |= {"published": claim.published, "runs": []}
            entry |= {"reference": _plain(row["reference"])}
            apart = _plain(row["apart"])
            of_run = {
                "run": row["run"],
                "value": _plain(row["value"]),
                "difference": None if is_time else apart,
                "ratio": apart if is_time else None,
                "expected_ratio": row["expected"],
                "demand": demand(claim, row["expected"]),
                "verdict": row["word"],
                "good": row["state"] != "bad",
                "text": row["text"],
            }
            known = entries.setdefault((claim.key, row["profile"]), entry)
            known["runs"].append(of_run)
        rows = list(entries.values())
        return {"reference": self.reference, "rows": rows, "machines": self.machines}


def _plain(quantity: Quantity | None) -> dict[str, Any] | None:
    return quantity and quantity._asdict()


# --- What is read ------------------------------------------------------------
def read_reference() -> Run:
    """The committed reference run, of every profile; without records if none is."""
    records = reference_records(data_folder() / REFERENCE)
    return Run(REFERENCE, tuple(records), committed=True)


def read_run(name: str) -> Run:
    """The run in the folder `name`, or the committed one for the word `reference`.

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
def quantity(claim: Claim, record: Record | None) -> Quantity | None:
    """The value of a claim in a record, with its interval."""
    if record is None or claim.key not in record.numbers:
        return None
    low, high = (record.numbers.get(f"{claim.key}_{end}") for end in ("low", "high"))
    if isinstance(low, str | None) or isinstance(high, str | None):
        return Quantity(record.numbers[claim.key])
    method = str(record.numbers.get(f"{claim.key}_interval", ""))
    return Quantity(record.numbers[claim.key], low, high, method)


def apart(mine: Quantity, theirs: Quantity, as_ratio: bool = False) -> Quantity | None:
    """Mine less theirs, or over theirs; the interval is the widest that both allow.

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
    """The first parameters that two records of a chapter differ in; '' for none."""
    names = sorted((mine.parameters.keys() | theirs.parameters) - {PROFILE_PARAMETER})
    sides = [
        [r.parameters.get(name, "nothing") for name in names] for r in (mine, theirs)
    ]
    differing = [
        f"{name}={here} instead of {there}"
        for name, here, there in zip(names, *sides, strict=True)
        if here != there
    ]
    more = len(differing) - MOST_NAMED
    named = ", ".join(differing[:MOST_NAMED])
    return f"{named} and {more} more" if more > 0 else named


def comparable_rates(mine: Record, theirs: Record) -> Rates:
    """Both machines' rates, without the disk's where it was read in another way."""
    sides = mine.machine, theirs.machine
    if sides[0].get("drain_how") != sides[1].get("drain_how"):
        drain = RATES["drain"]
        sides = tuple({k: v for k, v in s.items() if k != drain} for s in sides)
    return sides[0], sides[1]


def demand(claim: Claim, expected: float | None) -> str:
    """What a claim of its kind demands of a run on another machine."""
    if claim.kind in EQUAL:
        return "equal bit for bit" if claim.kind == "exact" else "read from a record"
    if claim.kind == "tolerance":
        share = percent(claim.rtol or 0)
        return f"within {share} of the reference: {claim.why}"
    follows = f"by the rate of the {RESOURCES[claim.follows or '']}"
    if expected is None:
        return f"{follows}, which is not known on both machines"
    return (
        f"{expected:.2f} times the reference {follows}, within a factor of "
        f"{claim.factor:g}"
    )


def _row(claim: Claim, profile: str, run: Run, reference: Run) -> dict[str, Any]:
    """Return the row of a claim in one run."""
    mine = run.record(claim.chapter, profile)
    theirs = reference.record(claim.chapter, profile)
    value, base = quantity(claim, mine), quantity(claim, theirs)
    rates = comparable_rates(mine, theirs) if mine and theirs else None
    is_time = claim.kind == "time"
    expected = expected_ratio(claim, rates) if is_time else None
    distance = None
    if mine is None:
        verdict = Verdict("not run", "open", "this run has no record of it")
    elif base is None or theirs is None:
        verdict = Verdict("no reference", "open", f"{reference.label} has none")
    elif other := other_parameters(mine, theirs):
        verdict = Verdict("not comparable", "open", f"parameters differ: {other}")
        expected = None
    else:
        verdict = judge(claim, value.value if value else None, base.value, rates)
        distance = apart(value, base, as_ratio=is_time) if value else None
        if distance and claim.kind in EQUAL:
            distance = Quantity(distance.value)
    return {
        "claim": claim,
        "kind": claim.kind,
        "profile": profile,
        "run": run.label,
        "reference": base,
        "value": value,
        "apart": distance,
        "expected": expected,
        **verdict._asdict(),
    }


COLUMNS = [
    "claim", "kind", "profile", "run", "reference", "value", "apart", "expected",
    "word", "state", "text",
]  # fmt: skip


def _profiles(chapter: int, runs: Iterable[Run]) -> list[str]:
    """Profiles of a chapter in some runs; [] where no run has it."""
    records = [record for run in runs for record in run.records]
    found = {r.profile for r in records if r.number == chapter}
    known = [name for name in PROFILES if name in found]
    return known + sorted(found.difference(known))


def describe_machine(run: Run, reference: Run) -> dict[str, Any]:
    """Describe what a run was made on and with, compared with its reference.

    `machines`, `commits` and `lock_sha256` list each once. `of_reference` counts the
    chapters that are the reference's own, `ratio` is that of the run times of chapters
    that can be compared. Sizes are in bytes, times in seconds.
    """
    records = run.records
    pairs = [(r, reference.record(r.number, r.profile)) for r in records]
    timed = [(r, o) for r, o in pairs if o and not other_parameters(r, o)]
    mine_s, theirs_s = (sum(pair[side].seconds for pair in timed) for side in (0, 1))
    watched = [r for r in records if {"mean", "most"} <= r.load_average.keys()]
    loads = [(r.load_average["mean"], r.seconds) for r in watched]
    total_s = sum(seconds for _, seconds in loads)
    locks = list(dict.fromkeys(r.lock_sha256 for r in records))
    machines = [r.machine for r in records]
    return {
        "run": run.label,
        "machines": [m for i, m in enumerate(machines) if m not in machines[:i]],
        "commits": list(dict.fromkeys(r.commit for r in records)),
        "clean": all(r.clean for r in records),
        "lock_sha256": locks,
        "same_lock": {*locks} <= {r.lock_sha256 for r in reference.records or records},
        "peak_memory_bytes": max(r.peak_memory_bytes for r in records),
        "load_mean": sum(m * s for m, s in loads) / total_s if total_s else None,
        "load_most": max((r.load_average["most"] for r in watched), default=None),
        "started": min(r.started for r in records),
        "chapters": len(records),
        "of_reference": sum(record == other for record, other in pairs),
        "seconds": sum(r.seconds for r in records),
        "ratio": mine_s / theirs_s
        if theirs_s and run.label != reference.label
        else None,
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
        kept = [r for r in reference.records if (r.number, r.profile) in pairs]
        reference = replace(reference, records=tuple(kept))
    columns = [reference, *(run for run in runs if run.label != reference.label)]
    return Comparison(
        reference.label,
        tuple(run.label for run in runs),
        pd.DataFrame(rows, columns=COLUMNS, dtype=object),
        [describe_machine(run, reference) for run in columns if run.records],
    )


def doubts(compared: Comparison, run: Run) -> dict[str, dict[str, str]]:
    """Times of a run that should not be believed, by chapter and name, each with why.

    Those whose measurement others disturbed, and claims whose verdict is UNEXPECTED.
    """
    found: dict[str, dict[str, str]] = {}
    for record in run.records:
        names = str(record.numbers.get("disturbed", "")).split()
        cause = f"disturbed: {record.numbers.get('disturbed_by', '')}"
        found[record.chapter] = dict.fromkeys(names, cause)
    row: Any
    for row in compared.of(run.label).itertuples():
        record = run.record(row.claim.chapter, row.profile)
        if row.word == "UNEXPECTED" and record is not None:
            names, why = found[record.chapter], f"UNEXPECTED, {row.text}"
            known = names.get(row.claim.key)
            names[row.claim.key] = f"{known}; {why}" if known else why
    return {chapter: names for chapter, names in found.items() if names}


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
