"""Hold runs of different machines against a reference, claim by claim.

A run is the records of a folder. What must be equal, what may differ and by how much
is said by the claims; a number is only held against one of the same parameters.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thesis_lib.book.execute.chapters import (
    CUSTOM,
    PROFILE_PARAMETER,
    PROFILES,
    read_records,
)
from thesis_lib.book.execute.claims import RATES, Claim, Verdict, expected_ratio, judge
from thesis_lib.book.execute.records import Number, Record
from thesis_lib.common.errors import require
from thesis_lib.common.files import data_folder

REFERENCE = "reference"  # the word for the committed run, and its label
RESOURCES = {"drain": "disk", "compute": "processor"}

# Verdicts that say neither good nor bad: nothing was held against anything.
OPEN = {"not run", "not comparable", "no reference", "expected to differ"}


@dataclass(frozen=True, slots=True)
class Run:
    """The records of one run, under the name that its columns carry."""

    label: str
    records: tuple[Record, ...]
    committed: bool = False  # the reference of the claims: `data/reference`

    def record(self, chapter: int, profile: str) -> Record | None:
        """Its record of a chapter: of `profile` if there is one, of another if not."""
        found = [r for r in self.records if number(r) == chapter]
        same = [r for r in found if r.profile == profile]
        return next(iter(same or found), None)

    def of_profiles(self, pairs: set[tuple[int, str]]) -> "Run":
        """The same run with the records of some (chapter, profile) alone."""
        kept = tuple(r for r in self.records if (number(r), r.profile) in pairs)
        return Run(self.label, kept, self.committed)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with the ends of its interval where it has one."""

    value: Number
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What became of a claim in one run."""

    run: str
    value: Quantity | None
    difference: Quantity | None  # to the reference
    ratio: Quantity | None  # to the reference; of a time
    expected: float | None  # of a time: the ratio that the machine's rate predicts
    demand: str
    verdict: Verdict

    @property
    def state(self) -> str:
        """'good', 'bad' or, where nothing could be held, 'open'."""
        if self.verdict.word in OPEN:
            return "open"
        return "good" if self.verdict.good else "bad"


@dataclass(frozen=True, slots=True)
class Row:
    """One claim, at one profile, in every run."""

    claim: Claim
    profile: str
    reference: Quantity | None
    runs: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run was made on and with; several where its chapters differ in it."""

    run: str
    machines: tuple[dict, ...]  # as records have them, each once
    commits: tuple[str, ...]
    clean: bool
    lock_sha256: tuple[str, ...]
    same_lock: bool  # as the reference
    peak_memory_bytes: int
    load_mean: float | None
    load_most: float | None
    started: str
    chapters: int
    seconds: float
    ratio: float | None  # of the run times of the chapters that can be compared


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows and machines; the reference's machine comes first where it is known."""

    reference: str
    committed: bool
    labels: tuple[str, ...]  # of the runs, the reference apart
    rows: tuple[Row, ...]
    machines: tuple[Machine, ...]

    def of_kind(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row.claim.kind == kind]

    def held(self, run: str) -> list[tuple[Row, Held]]:
        """Each claim with what became of it in `run`."""
        return [(row, one) for row in self.rows for one in row.runs if one.run == run]

    @property
    def broken(self) -> list[tuple[Row, Held]]:
        """Claims that had to hold and do not; times are not among them."""
        return [
            (row, held)
            for row in self.rows
            for held in row.runs
            if held.state == "bad" and row.claim.kind != "time"
        ]

    @property
    def any_held(self) -> bool:
        """Whether there is a claim of any run that holds or does not, times apart."""
        return any(
            held.state != "open" and row.claim.kind != "time"
            for row in self.rows
            for held in row.runs
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "reference": self.reference,
            "rows": [_row_json(row) for row in self.rows],
            "machines": [asdict(machine) for machine in self.machines],
        }


def _row_json(row: Row) -> dict[str, Any]:
    claim = row.claim
    return {
        "claim": claim.key,
        "chapter": claim.chapter,
        "says": claim.says,
        "unit": claim.unit,
        "kind": claim.kind,
        "profile": row.profile,
        "published": claim.published,
        "reference": row.reference and asdict(row.reference),
        "runs": [
            {
                "run": held.run,
                "value": held.value and asdict(held.value),
                "difference": held.difference and asdict(held.difference),
                "ratio": held.ratio and asdict(held.ratio),
                "expected_ratio": held.expected,
                "demand": held.demand,
                "verdict": held.verdict.word,
                "good": held.verdict.good,
                "text": held.verdict.text,
            }
            for held in row.runs
        ],
    }


# --- What is read ------------------------------------------------------------
def number(record: Record) -> int:
    """The number of a record's chapter."""
    return int(record.chapter.split("_")[0])


def read_reference(folder: Path | None = None) -> Run:
    """The committed reference run, of every profile; without records if none is."""
    folder = folder or data_folder() / "reference"
    found = [
        f for f in sorted(folder.glob("*")) if f.is_dir() and any(f.glob("*.json"))
    ]
    records = tuple(record for part in found for record in read_records(part))
    return Run(REFERENCE, records, committed=True)


def read_run(name: str) -> Run:
    """The run in the folder `name`, or the committed one for the word `reference`.

    Raises InvalidInput where there is none.
    """
    if name == REFERENCE:
        reference = read_reference()
        require(
            bool(reference.records),
            f"no reference run is committed: expected {data_folder() / 'reference'}/"
            "PROFILE with records; `thesis claims --update` writes it",
        )
        return reference
    folder = Path(name)
    require(
        folder.is_dir(),
        f"run {name!r} is no folder: expected one that `thesis run` wrote, such as "
        f"build/chapters/default, or the word {REFERENCE}",
    )
    return Run(name, tuple(read_records(folder)))


# --- What is compared --------------------------------------------------------
def quantity(claim: Claim, numbers: Mapping[str, Number]) -> Quantity | None:
    """The value of a claim among published numbers, with its interval."""
    if claim.key not in numbers:
        return None
    low, high = (numbers.get(name or "") for name in (claim.low, claim.high))
    if isinstance(low, str | None) or isinstance(high, str | None):
        return Quantity(numbers[claim.key])
    return Quantity(numbers[claim.key], low, high)


def _ends(*quantities: Quantity) -> list[float] | None:
    """The ends of intervals, low and high of each, or None if one has none."""
    ends = [end for q in quantities for end in (q.low, q.high) if end is not None]
    return ends if len(ends) == 2 * len(quantities) else None


def difference(mine: Quantity, theirs: Quantity) -> Quantity | None:
    """Mine less theirs; the interval is the widest that both allow.

    None between words.
    """
    if isinstance(mine.value, str) or isinstance(theirs.value, str):
        return None
    value, ends = mine.value - theirs.value, _ends(mine, theirs)
    if ends is None:
        return Quantity(value)
    return Quantity(value, ends[0] - ends[3], ends[1] - ends[2])


def ratio(mine: Quantity, theirs: Quantity) -> Quantity | None:
    """Mine over theirs; the interval is the widest that both allow.

    None between words and where one is not positive.
    """
    if isinstance(mine.value, str) or isinstance(theirs.value, str):
        return None
    if mine.value <= 0 or theirs.value <= 0:
        return None
    value, ends = mine.value / theirs.value, _ends(mine, theirs)
    if ends is None or min(ends) <= 0:
        return Quantity(value)
    return Quantity(value, ends[0] / ends[3], ends[1] / ends[2])


def other_parameters(mine: Record, theirs: Record, most: int = 3) -> str:
    """The parameters that two records of a chapter differ in; '' for none."""
    names = sorted((mine.parameters.keys() | theirs.parameters) - {PROFILE_PARAMETER})
    differing = [
        f"{name}={mine.parameters.get(name, 'nothing')} instead of "
        f"{theirs.parameters.get(name, 'nothing')}"
        for name in names
        if mine.parameters.get(name) != theirs.parameters.get(name)
    ]
    more = len(differing) - most
    return ", ".join(differing[:most]) + (f" and {more} more" if more > 0 else "")


def comparable_rates(mine: Record, theirs: Record) -> tuple[Mapping, Mapping]:
    """Both machines' rates, without the disk's where it was read in another way."""
    sides = mine.machine, theirs.machine
    if sides[0].get("drain_how") != sides[1].get("drain_how"):
        drain = RATES["drain"]
        sides = tuple({k: v for k, v in s.items() if k != drain} for s in sides)
    return sides[0], sides[1]


def demand(claim: Claim, expected: float | None) -> str:
    """What a claim of its kind demands of a run on another machine."""
    if claim.kind == "exact":
        return "equal bit for bit"
    if claim.kind == "tolerance":
        share = 100 * (claim.rtol or 0)
        return f"within {share:.2g} % of the reference: {claim.why}"
    resource = RESOURCES[claim.follows or ""]
    if expected is None:
        return f"follows the {resource}, whose rate is not known on both machines"
    return (
        f"{expected:.2f} times the reference by the rate of the {resource}, within a "
        f"factor of {claim.factor:g}"
    )


def _hold(claim: Claim, profile: str, run: Run, reference: Run) -> Held:
    """What becomes of a claim in one run."""
    mine = run.record(claim.chapter, profile)
    theirs = reference.record(claim.chapter, profile)
    if theirs is not None and reference.committed and theirs.profile != profile:
        theirs = None
    value = quantity(claim, mine.numbers) if mine else None
    base = reference_value(claim, profile, reference)
    rates = comparable_rates(mine, theirs) if mine and theirs else None
    is_time = claim.kind == "time"
    expected = expected_ratio(claim, rates) if is_time else None
    parted = apart = None

    if mine is None:
        verdict = Verdict("not run", True, f"chapter {claim.chapter} is not in it")
    elif base is None:
        verdict = Verdict("no reference", True, "nothing to compare with")
    elif other := _unlike(mine, theirs, profile):
        verdict = Verdict("not comparable", True, f"other parameters ({other})")
        expected = None
    else:
        verdict = judge(claim, value.value if value else None, base.value, rates)
        if value and is_time:
            apart = ratio(value, base)
        elif value:
            parted = difference(value, base)
            if parted and claim.kind == "exact":
                parted = Quantity(parted.value)
    return Held(
        run.label, value, parted, apart, expected, demand(claim, expected), verdict
    )


def _unlike(mine: Record, theirs: Record | None, profile: str) -> str:
    """Why a record cannot be held against the reference's values; '' if it can."""
    if theirs is not None:
        return other_parameters(mine, theirs)
    if mine.profile != profile:
        return f"profile {mine.profile} instead of {profile}"
    if mine.parameters.get(PROFILE_PARAMETER) == CUSTOM:
        return f"set by hand, instead of those of profile {profile}"
    return ""


def reference_value(claim: Claim, profile: str, reference: Run) -> Quantity | None:
    """The value that a claim is held against, with its interval."""
    record = reference.record(claim.chapter, profile)
    if reference.committed:
        if profile not in claim.reference:
            return None
        same = record is not None and record.profile == profile
        numbers = record.numbers if record is not None and same else {}
        return quantity(claim, {**numbers, claim.key: claim.reference[profile]})
    return quantity(claim, record.numbers) if record else None


def _profiles(chapter: int, runs: Iterable[Run]) -> list[str]:
    """Profiles of a chapter in some runs, or of other chapters where it is in none."""
    records = [record for run in runs for record in run.records]
    found = {r.profile for r in records if number(r) == chapter}
    found = found or {r.profile for r in records[:1]}
    order = {name: place for place, name in enumerate(PROFILES)}
    return sorted(found, key=lambda name: (order.get(name, len(order)), name))


def describe_machine(run: Run, reference: Run) -> Machine:
    """What a run was made on and with, beside its reference."""
    records = run.records
    ours = theirs = 0.0
    for record in records:
        other = reference.record(number(record), record.profile)
        if other is not None and not other_parameters(record, other):
            ours, theirs = ours + record.seconds, theirs + other.seconds
    watched = [r for r in records if {"mean", "most"} <= r.load_average.keys()]
    loads = [(r.load_average["mean"], r.seconds) for r in watched]
    total_s = sum(seconds for _, seconds in loads)
    locks = tuple(dict.fromkeys(r.lock_sha256 for r in records))
    return Machine(
        run=run.label,
        machines=tuple(
            machine
            for place, machine in enumerate(r.machine for r in records)
            if machine not in [r.machine for r in records[:place]]
        ),
        commits=tuple(dict.fromkeys(r.commit for r in records)),
        clean=all(r.clean for r in records),
        lock_sha256=locks,
        same_lock={*locks} == {r.lock_sha256 for r in reference.records or records},
        peak_memory_bytes=max(r.peak_memory_bytes for r in records),
        load_mean=sum(m * s for m, s in loads) / total_s if total_s else None,
        load_most=max((r.load_average["most"] for r in watched), default=None),
        started=min(r.started for r in records),
        chapters=len(records),
        seconds=sum(r.seconds for r in records),
        ratio=ours / theirs if theirs and run.label != reference.label else None,
    )


def compare(
    runs: Sequence[Run], claims: Mapping[str, Claim], reference: Run
) -> Comparison:
    """Hold each run against the reference, a row for each claim.

    Against the committed reference, which has several profiles, a claim has a row for
    each profile that its chapter was run with. Raises InvalidInput for a run that
    shares no chapter with a reference that is itself a run.
    """
    if not reference.committed:
        known = {number(record) for record in reference.records}
        for run in runs:
            require(
                bool(known & {number(record) for record in run.records}),
                f"runs {reference.label} and {run.label} have no chapter in common: "
                "expected two runs of the same chapters; run them with `thesis run`",
            )
    whose = runs if reference.committed else [reference]
    rows = tuple(
        Row(
            claim,
            profile,
            reference_value(claim, profile, reference),
            tuple(_hold(claim, profile, run, reference) for run in runs),
        )
        for claim in claims.values()
        for profile in _profiles(claim.chapter, whose)
    )
    if reference.committed:
        pairs = {(number(r), r.profile) for run in runs for r in run.records}
        reference = reference.of_profiles(pairs)
    columns = [reference, *(run for run in runs if run.label != reference.label)]
    return Comparison(
        reference.label,
        reference.committed,
        tuple(run.label for run in runs),
        rows,
        tuple(describe_machine(run, reference) for run in columns if run.records),
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
    for row, held in compared.held(run.label):
        record = run.record(row.claim.chapter, row.profile)
        if held.verdict.word == "UNEXPECTED" and record is not None:
            why = [found[record.chapter].get(row.claim.key, "")]
            why.append(f"UNEXPECTED, {held.verdict.text}")
            found[record.chapter][row.claim.key] = "; ".join(filter(None, why))
    return {chapter: names for chapter, names in found.items() if names}


def compare_named(names: Sequence[str], claims: Mapping[str, Claim]) -> Comparison:
    """Compare runs by name: the first is what the others are held against.

    One alone is held against the committed reference of its profile. Raises
    InvalidInput for a name that is no run and for one that is given twice.
    """
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    require(not twice, f"run {' '.join(twice)} is given twice: name each run once")
    runs = [read_run(name) for name in names]
    if len(runs) == 1:
        return compare(runs, claims, read_reference())
    return compare(runs[1:], claims, runs[0])
