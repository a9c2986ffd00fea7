"""Headline claims as data: one file says what each must be, and who may differ.

Of three kinds: *exact* numbers of seeded simulation and arithmetic are equal on every
machine, bit for bit; numbers within a *tolerance* are those that other kernels of
linear algebra round differently; *times* are expected to differ, in proportion to a
measured rate of the machine.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from thesis_lib.book.execute.records import Number, published
from thesis_lib.common.errors import InvalidInput, choice, require
from thesis_lib.common.files import data_folder, write_whole

KINDS = ("exact", "tolerance", "time")
RATES = {"drain": "drain_bytes_per_s", "compute": "matmul_flops_per_s"}
FILE = "claims.yml"


@dataclass(frozen=True, slots=True)
class Claim:
    """One headline number: where it is published, what kind it is, what it must be."""

    key: str  # the name under which its chapter publishes it
    chapter: int
    says: str
    unit: str
    kind: str  # one of KINDS
    rtol: float | None = None  # of a tolerance: share of the reference
    why: str = ""  # of a tolerance: what makes it differ
    follows: str | None = None  # of a time: the rate of the machine that it follows
    inverse: bool = False  # of a time: whether it is itself a rate or speed
    factor: float | None = None  # of a time: how far from the prediction is expected
    low: str | None = None  # published names of the ends of its 95 % interval
    high: str | None = None
    published: dict | None = None  # value, unit and source of a figure of the thesis
    change: str = ""  # of a reduction: what there is so many percent fewer or more of
    reference: dict = field(default_factory=dict)  # profile to value


@dataclass(frozen=True, slots=True)
class Setting:
    """A constant that prose may state as text, and where the code has it."""

    text: str
    attribute: str  # module:path.of.attributes
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Claims:
    """The whole file."""

    claims: dict[str, Claim]
    settings: tuple[Setting, ...]

    def of_chapter(self, number: int) -> list[Claim]:
        return [claim for claim in self.claims.values() if claim.chapter == number]


def _check(claim: Claim) -> Claim:
    where = f"claim {claim.key}"
    choice(f"{where}: kind", claim.kind, KINDS)
    require(
        isinstance(claim.chapter, int) and bool(claim.says),
        f"{where} needs a chapter (a number) and what it says",
    )
    require(
        (claim.rtol is not None and 0 < claim.rtol < 1 and bool(claim.why))
        == (claim.kind == "tolerance"),
        f"{where}: a tolerance, and nothing else, has rtol in (0, 1) and why",
    )
    require(
        (claim.follows is not None and (claim.factor or 0) > 1)
        == (claim.kind == "time"),
        f"{where}: a time, and nothing else, has follows and a factor above 1",
    )
    if claim.follows is not None:
        choice(f"{where}: follows", claim.follows, RATES)
    require(
        (claim.low is None) == (claim.high is None),
        f"{where} has one end of an interval: give low and high, or neither",
    )
    require(
        claim.published is None
        or {"value", "source"} <= claim.published.keys() <= {"value", "source", "unit"},
        f"{where}: published has a value, a source and, if it is not the claim's, a "
        "unit, and nothing else",
    )
    return claim


def read_claims(path: Path | None = None) -> Claims:
    """Read `data/claims.yml`, or another file. Raises InvalidInput if malformed."""
    path = path or data_folder() / FILE
    try:
        content = yaml.safe_load(path.read_text())
        require(
            isinstance(content, dict) and content.keys() <= {"claims", "settings"},
            f"{path} must hold claims and settings, and nothing else",
        )
        claims = {
            key: _check(Claim(key=key, **entry))
            for key, entry in (content.get("claims") or {}).items()
        }
        settings = tuple(Setting(**entry) for entry in content.get("settings") or [])
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path} cannot be read as claims: {error}") from error
    return Claims(claims, settings)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a claim: one word, whether that is good, and one phrase."""

    word: str
    good: bool
    text: str


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference else float("inf")


def expected_ratio(claim: Claim, rates: tuple[Mapping, Mapping] | None) -> float | None:
    """How a time should stand to its reference, by the rate that it follows.

    `rates` as for `judge`; None where the rate is not known on both machines.
    """
    name = RATES[claim.follows or ""]
    here, there = (side.get(name) for side in rates) if rates else (None, None)
    if not here or not there:
        return None
    return here / there if claim.inverse else there / here


def _judge_time(
    claim: Claim, value: float, reference: float, rates: tuple[Mapping, Mapping] | None
) -> Verdict:
    ratio, expected = _ratio(value, reference), expected_ratio(claim, rates)
    if expected is None:
        return Verdict("expected to differ", True, f"{ratio:.2f} times the reference")
    assert claim.factor is not None  # a time has one: checked when it was read
    good = expected / claim.factor <= ratio <= expected * claim.factor
    return Verdict(
        "as expected" if good else "UNEXPECTED",
        good,
        f"{ratio:.2f} times the reference; {expected:.2f} expected from the machine's "
        f"{'disk' if claim.follows == 'drain' else 'processor'}, within a factor of "
        f"{claim.factor:g}",
    )


def judge(
    claim: Claim,
    value: Number | None,
    reference: Number | None,
    rates: tuple[Mapping, Mapping] | None = None,
) -> Verdict:
    """Compare a value with its reference as its kind demands.

    `rates` are the records' `machine` of the run and of the reference: with them a time
    is held against the ratio of the rate that it follows.
    """
    if value is None:
        return Verdict("not published", False, "the chapter did not publish it")
    if reference is None:
        return Verdict("no reference", True, "nothing to compare with")
    if claim.kind == "exact" or isinstance(value, str) or isinstance(reference, str):
        good = value == reference
        return Verdict(
            "equal" if good else "DIFFERS",
            good,
            "bit for bit" if good else f"{value!r} is not {reference!r}",
        )
    if claim.kind == "time":
        return _judge_time(claim, value, reference, rates)
    assert claim.rtol is not None  # a tolerance has one: checked when it was read
    off = abs(value - reference)
    good = off <= claim.rtol * abs(reference)
    share = off / abs(reference) if reference else float("inf")
    return Verdict(
        "agrees" if good else "DISAGREES",
        good,
        f"{100 * share:.2g} % apart, {100 * claim.rtol:.2g} % allowed: {claim.why}",
    )


def report(chapter: int, profile: str) -> str:
    """Whether what this kernel has published is what the claims of a chapter say.

    For a cell that nbval compares: the text is the same wherever all claims hold, and
    names each that does not. Times are left out. A profile without a reference, such
    as 'custom', has nothing to hold.
    """
    numbers = published()
    lines, held = [], {"exact": [0, 0], "tolerance": [0, 0]}
    for claim in read_claims().of_chapter(chapter):
        if claim.kind == "time" or profile not in claim.reference:
            continue
        verdict = judge(claim, numbers.get(claim.key), claim.reference[profile])
        held[claim.kind][0] += verdict.good
        held[claim.kind][1] += 1
        if not verdict.good:
            lines.append(f"{claim.key} {verdict.word}: {verdict.text}")
    if not any(total for _, total in held.values()):
        return f"no reference values for profile {profile!r}"
    exact, near = held["exact"], held["tolerance"]
    return "\n".join(
        [
            f"exact claims that are equal: {exact[0]} of {exact[1]}",
            f"claims within their tolerance: {near[0]} of {near[1]}",
            *lines,
        ]
    )


def store_references(numbers: Mapping[str, Number], profile: str, path: Path) -> int:
    """Write `numbers` as the references of a profile; how many claims they changed.

    Everything else in the file, comments among it, stays as it is. Raises InvalidInput
    for a claim whose number is not there.
    """
    text, changed = path.read_text(), 0
    for key, claim in read_claims(path).claims.items():
        require(
            key in numbers,
            f"claim {key} is published by no chapter of this run: publish it in "
            f"chapter {claim.chapter}, or delete it from {path}",
        )
        reference = claim.reference | {profile: numbers[key]}
        changed += reference != claim.reference
        flow = yaml.safe_dump(
            reference, default_flow_style=True, width=10_000, sort_keys=False
        ).strip()
        entry = rf"(^  {key}:(?:(?!\n  \S).)*?reference: )\{{[^}}]*\}}"
        block = re.compile(entry, re.MULTILINE | re.DOTALL)
        text, count = block.subn(lambda hit, flow=flow: hit[1] + flow, text, count=1)
        require(count == 1, f"claim {key} in {path} has no line `reference: {{}}`")
    write_whole(path, text)
    return changed


def claim_hash(chapter: int, profile: Any) -> list:
    """What of the file a chapter's result depends on; empty where there is no file."""
    if not (data_folder() / FILE).is_file():
        return []
    return [
        [c.key, c.kind, c.rtol, c.reference.get(profile)]
        for c in read_claims().of_chapter(chapter)
        if c.kind != "time"
    ]
