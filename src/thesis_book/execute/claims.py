"""Headline claims as data: one file says what each must be, and who may differ.

Of four kinds: *exact* numbers of seeded simulation and arithmetic are equal on every
machine, bit for bit; those of a *record* are read from what a benchmark wrote, and not
run again; numbers within a *tolerance* are those that other kernels of linear algebra
round differently; *times* are expected to differ, in proportion to a
measured rate of the machine.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import yaml

from thesis_book.execute.records import STRICT, Number, Record, published, read_as
from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import data_folder, write_whole

Kind = Literal["exact", "record", "tolerance", "time"]
KINDS: tuple[str, ...] = get_args(Kind)
EQUAL = ("exact", "record")  # kinds of which every bit is the reference's
# What keeps a number from being better. "nothing": it is exact, or a count of facts.
Limiter = Literal[
    "nothing", "algorithm", "bound", "noise", "processor", "locks", "disk", "memory",
    "data",
]  # fmt: skip
RATES = {"drain": "drain_bytes_per_s", "compute": "matmul_flops_per_s"}
RESOURCES = {"drain": "disk", "compute": "processor"}
FILE = "claims.yml"
HISTORY = "history.csv"  # beside the records of a profile: claims that have changed
REFERENCE = "reference"  # the committed run: its folder of records, and its name


@dataclass(frozen=True, slots=True)
class Basis:
    """Evidence shared by several claims, and what limits their numbers."""

    of: str  # what is counted: what does not depend on another one of them
    limiter: Limiter
    evidence: str  # the label of the section that shows it
    n: int | str = ""  # how many, or the published name of that; "": each claim says
    each: str = ""  # the published name of how many transactions each of them has
    accepted: str = ""  # why fewer than the floors ask for, or no interval, are enough


@dataclass(frozen=True, slots=True)
class Peer:
    """Another system that this work is measured against, and how it was run."""

    tried: tuple[str, ...]  # documented configurations, the best of which is shown
    limiter: str  # what keeps it from being faster, in words
    evidence: str  # the label of the section that shows it
    accepted: str = ""  # why fewer configurations were tried than the floor asks for


@dataclass(frozen=True, slots=True)
class Claim:
    """One headline number: where it is published, what kind it is, what it must be.

    Raises InvalidInput where it has what belongs to another kind.
    """

    key: str  # the name under which its chapter publishes it
    chapter: int
    says: str
    unit: str
    kind: Kind
    rests_on: str  # the name of a basis
    rtol: float | None = None  # of a tolerance: share of the reference
    why: str = ""  # of a tolerance: what makes it differ
    follows: Literal["drain", "compute"] | None = None  # of a time: a rate (RATES)
    inverse: bool = False  # of a time: whether it is itself a rate or speed
    factor: float = 0.0  # of a time: how far from the prediction is expected
    published: dict | None = None  # value, unit and source of a figure of the thesis
    quantile: float | None = None  # of a percentile, in (0, 1): needs samples
    samples: str = ""  # of a percentile: the published name of how many there were
    change: str = ""  # of a reduction: what there is so many percent fewer or more of
    reference: dict = field(default_factory=dict)  # profile to value

    @property
    def title(self) -> str:
        """Return its description with its unit."""
        return f"{self.says} ({self.unit})" if self.unit else self.says

    def __post_init__(self) -> None:
        near = 0 < (self.rtol or 0) < 1 and bool(self.why)
        timed = self.follows is not None and self.factor > 1
        names = {"value", "source"}
        for holds, message in (
            (
                near == (self.kind == "tolerance"),
                "a tolerance, and nothing else, has rtol in (0, 1) and why",
            ),
            (
                timed == (self.kind == "time"),
                "a time, and nothing else, has follows and a factor above 1",
            ),
            (
                self.quantile is None or (0 < self.quantile < 1 and bool(self.samples)),
                f"quantile={self.quantile} must lie in (0, 1), with the name of how "
                "many samples there were as `samples`",
            ),
            (
                self.published is None
                or names <= self.published.keys() <= names | {"unit"},
                "published has a value, a source and, if it is not the claim's, a "
                "unit, and nothing else",
            ),
        ):
            require(holds, f"claim {self.key}: {message}")


@dataclass(frozen=True, slots=True)
class Setting:
    """A constant that prose may state as text, and where the code has it."""

    text: str
    attribute: str  # module:path.of.attributes
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Claims:
    """The whole file."""

    __pydantic_config__: ClassVar = STRICT  # of all that it holds, too
    claims: dict[str, Claim]
    bases: dict[str, Basis] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()

    def __post_init__(self) -> None:
        for claim in self.claims.values():
            choice(f"claim {claim.key} rests_on", claim.rests_on, self.bases)
            limiter = self.bases[claim.rests_on].limiter
            require(
                claim.kind != "time" or limiter != "nothing",
                f"claim {claim.key} is a time and rests on {claim.rests_on}, which "
                "nothing limits: expected a basis that counts what was timed",
            )

    def of_chapter(self, number: int) -> list[Claim]:
        return [claim for claim in self.claims.values() if claim.chapter == number]


def read_claims(path: Path | None = None) -> Claims:
    """Read `data/claims.yml`, or another file, and the references beside it.

    A claim's reference in a profile is what its chapter published in the committed run
    of that profile. Raises InvalidInput if malformed.
    """
    path = path or data_folder() / FILE
    wrong = f"{path} cannot be read as claims"
    remedy = f"the head of {path.name} shows an entry of each"
    try:
        content = yaml.safe_load(path.read_text())
        known = dict(content["claims"] or {})
        entries = {key: dict(entry) for key, entry in known.items()}
    except (OSError, yaml.YAMLError, LookupError, ValueError, TypeError) as error:
        raise InvalidInput(f"{wrong}: {error!r}; {remedy}") from error
    runs = reference_records(path.parent / REFERENCE)
    for key, entry in entries.items():
        require(
            "reference" not in entry,
            f"{path} gives a reference of claim {key}: expected it in the records of "
            f"{REFERENCE}/ alone; delete that line",
        )
        entry["key"] = key
        entry["reference"] = {
            record.profile: record.numbers[key]
            for record in runs
            if record.number == entry.get("chapter") and key in record.numbers
        }
    return read_as(Claims, content | {"claims": entries}, wrong, remedy)


def reference_records(folder: Path) -> list[Record]:
    """Read the committed records of all profiles; [] where there is none."""
    return [Record.read(path) for path in sorted(folder.glob("*/[0-9][0-9]_*.json"))]


class Verdict(NamedTuple):
    """The verdict on a claim: one word, how good it is, and one phrase."""

    word: str
    state: Literal["good", "bad", "open"]  # open: it was held against nothing
    text: str

    @property
    def good(self) -> bool:
        """Return whether nothing speaks against it."""
        return self.state != "bad"


def expected_ratio(claim: Claim, mine: Mapping, theirs: Mapping) -> float | None:
    """Predict the ratio of a time to its reference, by the rate that it follows.

    `mine` and `theirs` are the records' `machine` of a run and of the reference. None
    where the rate is not known on both, or the disk was read in another way.
    """
    name = RATES[claim.follows or ""]
    here, there = mine.get(name), theirs.get(name)
    same = claim.follows != "drain" or mine.get("drain_how") == theirs.get("drain_how")
    if not (here and there and same):
        return None
    return here / there if claim.inverse else there / here


def judge(
    claim: Claim,
    value: Number | None,
    reference: Number | None,
    expected: float | None = None,
) -> Verdict:
    """Compare a value with its reference as its kind demands.

    A time is held against its `expected_ratio`, where there is one.
    """
    if value is None:
        return Verdict("not published", "bad", "the chapter did not publish it")
    if reference is None:
        return Verdict("no reference", "open", "nothing to compare with")
    if claim.kind in EQUAL or isinstance(value, str) or isinstance(reference, str):
        good = value == reference
        words = "equal", "DIFFERS"
        text = "bit for bit" if good else f"{value!r} is not {reference!r}"
    elif claim.kind == "time":
        ratio = value / reference if reference else float("inf")
        text = f"{ratio:.2f} times the reference"
        if expected is None:
            return Verdict("expected to differ", "open", text)
        good = expected / claim.factor <= ratio <= expected * claim.factor
        words = "as expected", "UNEXPECTED"
        text += (
            f"; {expected:.2f} expected from the machine's "
            f"{RESOURCES[claim.follows or '']}, within a factor of {claim.factor:g}"
        )
    else:
        off, rtol = abs(value - reference), claim.rtol or 0.0
        share = off / abs(reference) if reference else float("inf")
        good = off <= rtol * abs(reference)
        words = "agrees", "DISAGREES"
        text = f"{percent(share)} apart, {percent(rtol)} allowed: {claim.why}"
    return Verdict(words[not good], "good" if good else "bad", text)


def percent(share: float) -> str:
    """Format a share with two digits, and all those before the point."""
    return f"{100 * share:.0f} %" if share >= 0.995 else f"{100 * share:.2g} %"


_REPORTED = {
    "exact": "exact claims that are equal",
    "record": "claims read from records that are equal",
    "tolerance": "claims within their tolerance",
}


def report(chapter: int, profile: str) -> str:
    """Say whether this kernel has published what the claims of a chapter say.

    For a cell that nbval compares: the text is the same wherever all claims hold, and
    names each that does not. Times are left out. A profile without a reference, such
    as 'custom', has nothing to hold.
    """
    numbers = published()
    verdicts = [
        (claim, judge(claim, numbers.get(claim.key), claim.reference[profile]))
        for claim in read_claims().of_chapter(chapter)
        if claim.kind != "time" and profile in claim.reference
    ]
    if not verdicts:
        return f"no reference values for profile {profile!r}"
    lines = []
    for kind, what in _REPORTED.items():
        good = [verdict.good for claim, verdict in verdicts if claim.kind == kind]
        if good:
            lines.append(f"{what}: {sum(good)} of {len(good)}")
    lines += [f"{claim.key} {v.word}: {v.text}" for claim, v in verdicts if not v.good]
    return "\n".join(lines)


def store_references(
    records: Sequence[Record], profile: str, folder: Path | None = None
) -> int:
    """Make a run the reference of a profile; return how many claims that changed.

    `folder` is the data folder. Raises InvalidInput, and writes nothing, for a claim
    whose number is not there, for a time whose measurement was disturbed and for a run
    with parameters of its own.
    """
    folder = folder or data_folder()
    known = read_claims(folder / FILE).claims
    timed = {key for key, claim in known.items() if claim.follows}
    for record in records:
        ran = record.parameters.get("profile", record.profile)
        require(
            record.profile == profile == ran,
            f"{record.chapter} ran with the parameters of {ran!r}, in profile "
            f"{record.profile!r}: expected those of {profile!r}; run it again with "
            f"`thesis run {record.chapter} --profile {profile}`",
        )
    publishers = {  # a number of the same name in another chapter is another one
        key: record
        for record in records
        for key, claim in known.items()
        if record.number == claim.chapter and key in record.numbers
    }
    missing = ", ".join(sorted(known.keys() - publishers))
    require(
        not missing,
        f"claim {missing} is published by no chapter of this run: publish it in its "
        f"chapter, or delete it from {folder / FILE}",
    )
    for record in records:
        lost = timed.intersection(str(record.numbers.get("disturbed", "")).split())
        require(
            not lost,
            f"{', '.join(sorted(lost))} of {record.chapter} cannot become "
            f"references: {record.numbers.get('disturbed_by')}; measure again when "
            f"nothing else runs, with `thesis run {record.chapter} --again`",
        )
    target = folder / REFERENCE / profile
    target.mkdir(parents=True, exist_ok=True)
    changes = [
        Change(record.started[:10], record.commit, key, was, record.numbers[key])
        for key, record in publishers.items()
        if key not in timed
        and (was := known[key].reference.get(profile)) is not None
        and not judge(known[key], record.numbers[key], was).good
    ]
    history = io.StringIO()
    lines = [Change._fields, *read_history(target / HISTORY), *changes]
    csv.writer(history, lineterminator="\n").writerows(lines)
    write_whole(target / HISTORY, history.getvalue())
    for record in records:
        record.write(target / f"{record.chapter}.json")
    return sum(
        known[key].reference.get(profile) != record.numbers[key]
        for key, record in publishers.items()
    )


class Change(NamedTuple):
    """A claim that no longer held: when, and whose run replaced its reference."""

    date: str
    commit: str
    claim: str
    was: Number
    now: Number


def read_history(path: Path) -> list[Change]:
    """Read what has changed, oldest first; [] without a file.

    Raises InvalidInput for one with other columns.
    """
    if not path.is_file():
        return []
    rows = list(csv.reader(path.read_text().splitlines()))
    columns = [*Change._fields]
    require(
        rows[:1] == [columns] and all(len(row) == len(columns) for row in rows),
        f"{path} is no history of claims: expected columns {', '.join(columns)}",
    )
    return [Change(*row[:3], *map(_number, row[3:])) for row in rows[1:]]


def _number(text: str) -> Number:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def claim_hash(chapter: int, profile: Any) -> list:
    """Return the part of the file that a chapter depends on; empty without a file."""
    if not (data_folder() / FILE).is_file():
        return []
    return [
        [c.key, c.kind, c.rtol, c.reference.get(profile)]
        for c in read_claims().of_chapter(chapter)
        if c.kind != "time"
    ]
