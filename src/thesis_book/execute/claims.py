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
from dataclasses import astuple, dataclass, field, fields
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
    "nothing",
    "algorithm",
    "bound",
    "noise",
    "processor",
    "locks",
    "disk",
    "memory",
    "data",
]
RATES = {"drain": "drain_bytes_per_s", "compute": "matmul_flops_per_s"}
RESOURCES = {"drain": "disk", "compute": "processor"}
FILE = "claims.yml"
HISTORY = "history.csv"  # beside the records of a profile: claims that have changed
REFERENCE = "reference"  # the committed run: its folder of records, and its name


@dataclass(frozen=True, slots=True)
class Basis:
    """What several claims rest on, and what keeps their numbers from being better."""

    __pydantic_config__: ClassVar = STRICT
    of: str  # what is counted: what does not depend on another one of them
    limiter: Limiter
    evidence: str  # the label of the section that shows it
    n: int | str = ""  # how many, or the published name of that; "": each claim says
    each: str = ""  # the published name of how many transactions each of them has
    accepted: str = ""  # why fewer than the floors ask for, or no interval, are enough


@dataclass(frozen=True, slots=True)
class Peer:
    """Another system that this work is measured against, and how it was run."""

    __pydantic_config__: ClassVar = STRICT
    tried: tuple[str, ...]  # documented configurations, the best of which is shown
    limiter: str  # what keeps it from being faster, in words
    evidence: str  # the label of the section that shows it
    accepted: str = ""  # why fewer configurations were tried than the floor asks for


@dataclass(frozen=True, slots=True)
class Claim:
    """One headline number: where it is published, what kind it is, what it must be.

    Raises InvalidInput where it has what belongs to another kind.
    """

    __pydantic_config__: ClassVar = STRICT
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
    factor: float | None = None  # of a time: how far from the prediction is expected
    published: dict | None = None  # value, unit and source of a figure of the thesis
    quantile: float | None = None  # of a percentile, in (0, 1): needs samples
    samples: str = ""  # of a percentile: the published name of how many there were
    change: str = ""  # of a reduction: what there is so many percent fewer or more of
    reference: dict = field(default_factory=dict)  # profile to value

    @property
    def title(self) -> str:
        """What it says, with its unit."""
        return f"{self.says} ({self.unit})" if self.unit else self.says

    def __post_init__(self) -> None:
        where, near = f"claim {self.key}", self.rtol is not None and 0 < self.rtol < 1
        require(
            (near and bool(self.why)) == (self.kind == "tolerance"),
            f"{where}: a tolerance, and nothing else, has rtol in (0, 1) and why",
        )
        require(
            (self.follows is not None and (self.factor or 0) > 1)
            == (self.kind == "time"),
            f"{where}: a time, and nothing else, has follows and a factor above 1",
        )
        require(
            self.quantile is None or (0 < self.quantile < 1 and bool(self.samples)),
            f"{where}: quantile={self.quantile} must lie in (0, 1), with the name of "
            "how many samples there were as `samples`",
        )
        names = {"value", "source"}
        require(
            self.published is None
            or names <= self.published.keys() <= names | {"unit"},
            f"{where}: published has a value, a source and, if it is not the claim's, "
            "a unit, and nothing else",
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """A constant that prose may state as text, and where the code has it."""

    __pydantic_config__: ClassVar = STRICT
    text: str
    attribute: str  # module:path.of.attributes
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Claims:
    """The whole file."""

    __pydantic_config__: ClassVar = STRICT
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
    wrong, remedy = (
        f"{path} cannot be read as claims",
        f"the head of {path.name} shows an entry of each",
    )
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
    """The records of the committed runs of all profiles; [] where there is none."""
    return [Record.read(path) for path in sorted(folder.glob("*/[0-9][0-9]_*.json"))]


class Verdict(NamedTuple):
    """What became of a claim: one word, how good that is, and one phrase."""

    word: str
    state: Literal["good", "bad", "open"]  # open: it was held against nothing
    text: str

    @property
    def good(self) -> bool:
        """Whether nothing speaks against it."""
        return self.state != "bad"


Rates = tuple[Mapping, Mapping]  # the records' `machine` of a run and of the reference


def _held(good: bool, words: tuple[str, str], text: str) -> Verdict:
    """A verdict of something that was held: the first of two words where it is good."""
    return Verdict(words[not good], "good" if good else "bad", text)


def expected_ratio(claim: Claim, rates: Rates | None) -> float | None:
    """How a time should stand to its reference, by the rate that it follows.

    None where the rate is not known on both machines.
    """
    name = RATES[claim.follows or ""]
    here, there = (side.get(name) for side in rates) if rates else (None, None)
    if not here or not there:
        return None
    return here / there if claim.inverse else there / here


def judge(
    claim: Claim,
    value: Number | None,
    reference: Number | None,
    rates: Rates | None = None,
) -> Verdict:
    """Compare a value with its reference as its kind demands.

    With `rates` a time is held against the ratio of the rate that it follows.
    """
    if value is None:
        return Verdict("not published", "bad", "the chapter did not publish it")
    if reference is None:
        return Verdict("no reference", "open", "nothing to compare with")
    if claim.kind in EQUAL or isinstance(value, str) or isinstance(reference, str):
        good = value == reference
        text = "bit for bit" if good else f"{value!r} is not {reference!r}"
        return _held(good, ("equal", "DIFFERS"), text)
    if claim.kind == "time":
        ratio = value / reference if reference else float("inf")
        text, expected = (
            f"{ratio:.2f} times the reference",
            expected_ratio(claim, rates),
        )
        if expected is None:
            return Verdict("expected to differ", "open", text)
        assert claim.factor is not None  # a time has one: checked when it was read
        return _held(
            expected / claim.factor <= ratio <= expected * claim.factor,
            ("as expected", "UNEXPECTED"),
            f"{text}; {expected:.2f} expected from the machine's "
            f"{RESOURCES[claim.follows or '']}, within a factor of {claim.factor:g}",
        )
    assert claim.rtol is not None  # a tolerance has one: checked when it was read
    off, allowed = abs(value - reference), claim.rtol * abs(reference)
    share = off / abs(reference) if reference else float("inf")
    return _held(
        off <= allowed,
        ("agrees", "DISAGREES"),
        f"{percent(share)} apart, {percent(claim.rtol)} allowed: {claim.why}",
    )


def percent(share: float) -> str:
    """Two digits, and all those before the point."""
    return f"{100 * share:.0f} %" if share >= 0.995 else f"{100 * share:.2g} %"


def report(chapter: int, profile: str) -> str:
    """Whether what this kernel has published is what the claims of a chapter say.

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
    for kind, what in (
        ("exact", "exact claims that are equal"),
        ("record", "claims read from records that are equal"),
        ("tolerance", "claims within their tolerance"),
    ):
        good = [verdict.good for claim, verdict in verdicts if claim.kind == kind]
        if good:
            lines.append(f"{what}: {sum(good)} of {len(good)}")
    wrong = [(c.key, v) for c, v in verdicts if not v.good]
    return "\n".join(lines + [f"{key} {v.word}: {v.text}" for key, v in wrong])


def store_references(
    records: Sequence[Record], profile: str, folder: Path | None = None
) -> int:
    """Make a run the reference of a profile; how many claims that changed.

    `folder` is the data folder. Raises InvalidInput, and writes nothing, for a claim
    whose number is not there, for a time whose measurement was disturbed and for a run
    with parameters of its own.
    """
    folder = folder or data_folder()
    known = read_claims(folder / FILE).claims
    for record in records:
        ran = record.parameters.get("profile", record.profile)
        require(
            record.profile == profile == ran,
            f"{record.chapter} ran with the parameters of {ran!r}, in profile "
            f"{record.profile!r}: expected those of {profile!r}; run it again with "
            f"`thesis run {record.chapter} --profile {profile}`",
        )
    found = {  # a number of the same name in another chapter is another one
        key: record
        for record in records
        for key, claim in known.items()
        if record.number == claim.chapter and key in record.numbers
    }
    missing = ", ".join(sorted(known.keys() - found))
    require(
        not missing,
        f"claim {missing} is published by no chapter of this run: publish it in its "
        f"chapter, or delete it from {folder / FILE}",
    )
    timed = {key for key, claim in known.items() if claim.follows}
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
        for key, record in found.items()
        if key not in timed
        and (was := known[key].reference.get(profile)) is not None
        and not judge(known[key], record.numbers[key], was).good
    ]
    _write_history(target / HISTORY, [*read_history(target / HISTORY), *changes])
    for record in records:
        record.write(target / f"{record.chapter}.json")
    return sum(
        known[key].reference.get(profile) != record.numbers[key]
        for key, record in found.items()
    )


@dataclass(frozen=True, slots=True)
class Change:
    """A claim that no longer held: when, and whose run replaced its reference."""

    date: str
    commit: str
    claim: str
    was: Number
    now: Number


def read_history(path: Path) -> list[Change]:
    """What has changed, oldest first; [] without a file.

    Raises InvalidInput for one with other columns.
    """
    if not path.is_file():
        return []
    rows = list(csv.reader(path.read_text().splitlines()))
    columns = [each.name for each in fields(Change)]
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


def _write_history(path: Path, changes: Sequence[Change]) -> None:
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n")
    write.writerow(each.name for each in fields(Change))
    write.writerows(astuple(each) for each in changes)
    write_whole(path, out.getvalue())


def claim_hash(chapter: int, profile: Any) -> list:
    """What of the file a chapter's result depends on; empty where there is no file."""
    if not (data_folder() / FILE).is_file():
        return []
    return [
        [c.key, c.kind, c.rtol, c.reference.get(profile)]
        for c in read_claims().of_chapter(chapter)
        if c.kind != "time"
    ]
