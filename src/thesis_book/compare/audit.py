"""What each claim rests on, and whether that is enough.

A reader of a number asks how many observations it rests on, which interval they give,
and what keeps it from being better. Each question has a floor; a claim that misses one
is red, unless `data/claims.yml` says why it may. So is a peer that was run in fewer
configurations than its users would try.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from thesis_book.compare.comparison import Quantity, quantity
from thesis_book.compare.present import (
    format_number,
    format_quantity,
    markdown,
    markdown_table,
)
from thesis_book.execute.claims import Basis, Change, Claim, Claims, Peer
from thesis_book.execute.records import Record
from thesis_lib.common.stats import LEAST, RANGE, least_samples

# How a claim or a peer that is not good misses a floor.
MISSING = {"accepted": "for a reason that is given", "red": "without a reason"}
REMEDY = (
    "let more observations stand behind it, or write `accepted:` with the reason "
    "beside its basis or peer in data/claims.yml; what is not published or not shown "
    "is excused by no reason"
)
CONFIGURATIONS = 3  # of a peer, the best of which is shown
REASON_WORDS = 5  # distinct words of an `accepted:`, at least


@dataclass(frozen=True, slots=True)
class Audited:
    """A claim with what it rests on in one run, and the floors that it misses."""

    claim: Claim
    basis: Basis
    value: Quantity | None
    n: int | None
    interval: str  # the method's name; "" for none
    record: Record | None
    processors: tuple[str, ...]  # on which it was seen
    missed: tuple[str, ...]
    unexcused: bool = False  # whether one of these is excused by no reason
    changed: Change | None = None  # the last time that its reference was replaced

    @property
    def state(self) -> str:
        """Good, accepted or red."""
        return _state(self.missed, self.unexcused, self.basis.accepted)


@dataclass(frozen=True, slots=True)
class AuditedPeer:
    """A peer, and the floors that the comparison with it misses."""

    name: str
    peer: Peer
    missed: tuple[str, ...]
    unexcused: bool = False  # whether one of these is excused by no reason

    @property
    def state(self) -> str:
        """Good, accepted or red."""
        return _state(self.missed, self.unexcused, self.peer.accepted)


def _state(missed: tuple[str, ...], unexcused: bool, accepted: str) -> str:
    if not missed:
        return "good"
    return "accepted" if accepted and not unexcused else "red"


def _not_a_reason(accepted: str) -> list[str]:
    """Return the fault of an `accepted:` that is too short; [] without one."""
    if not accepted or len(set(accepted.casefold().split())) >= REASON_WORDS:
        return []
    return [f"accepted must be {REASON_WORDS} distinct words or more, got {accepted!r}"]


def sections(checkout: Path) -> set[str]:
    """The labels of the sections of all chapters."""
    texts = (path.read_text() for path in checkout.glob("notebooks/*.ipynb"))
    return {label for text in texts for label in re.findall(r"\((sec-[\w-]+)\)=", text)}


def audit(
    claims: Claims,
    run: Sequence[Record],
    labels: Collection[str],
    everywhere: Sequence[Record] = (),
    history: Sequence[Change] = (),
) -> list[Audited]:
    """Each claim of a run against the floors, in the order of the claims.

    `labels` are those of the `sections`, each of which may be evidence; `everywhere`
    are the records of other machines, and `history` says what has changed.
    """
    by_chapter = {record.number: record for record in run}
    last = {change.claim: change for change in history}
    return [
        replace(
            _audited(
                claim, claims.bases[claim.rests_on], by_chapter, labels, everywhere
            ),
            changed=last.get(claim.key),
        )
        for claim in claims.claims.values()
    ]


def _audited(
    claim: Claim,
    basis: Basis,
    by_chapter: Mapping[int, Record],
    labels: Collection[str],
    everywhere: Sequence[Record],
) -> Audited:
    record = by_chapter.get(claim.chapter)
    numbers = record.numbers if record else {}
    counted = numbers.get(basis.n) if isinstance(basis.n, str) else basis.n
    n = numbers.get(f"{claim.key}_n", counted)
    seen = [r for r in (record, *everywhere) if r and claim.key in r.numbers]
    found = Audited(
        claim=claim,
        basis=basis,
        value=quantity(claim, record),
        n=int(n) if isinstance(n, int | float) else None,  # a table makes it a float
        interval=str(numbers.get(f"{claim.key}_interval", "")),
        record=record,
        processors=tuple(dict.fromkeys(str(r.machine["cpu"]) for r in seen)),
        missed=(),
    )
    missing = tuple(_missing(found, numbers, labels))
    few = () if found.value is None else tuple(_too_few(found, numbers))
    return replace(found, missed=missing + few, unexcused=bool(missing))


def _missing(
    found: Audited, numbers: Mapping[str, Any], labels: Collection[str]
) -> Iterator[str]:
    """In words, what a claim has to have, whatever it rests on."""
    claim, basis = found.claim, found.basis
    yield from _not_a_reason(basis.accepted)
    if basis.limiter != "nothing" and basis.evidence not in labels:
        yield f"no section {basis.evidence}, which is to show what limits it"
    if found.value is None:
        yield (
            f"not published by this run: its chapter has to publish {claim.key}, and "
            "its reference to be made again (thesis claims --update)"
        )
    elif found.n is None:
        yield (
            f"nothing says how many {basis.of} it rests on: its chapter has to publish "
            f"{basis.n or claim.key + '_n'}"
        )
    elif claim.samples and claim.samples not in numbers:
        yield (
            "nothing says of how many samples this percentile is: its chapter has to "
            f"publish {claim.samples}"
        )


def _too_few(found: Audited, numbers: Mapping[str, Any]) -> Iterator[str]:
    """In words, each floor of observations that a claim misses."""
    claim, basis, n = found.claim, found.basis, found.n
    if n is None or basis.limiter == "nothing":
        return
    if claim.quantile is not None and claim.samples in numbers:
        least, samples = least_samples(claim.quantile), numbers[claim.samples]
        if samples < least:
            yield (
                f"{samples} samples: with fewer than {least} the largest may lie below "
                "this percentile"
            )
    if n < LEAST:
        yield f"{n} {basis.of}: {LEAST} are needed for an interval"
    elif not found.interval or found.interval == RANGE:
        yield f"no interval, of {n} {basis.of}"


def audit_peers(claims: Claims, labels: Collection[str]) -> list[AuditedPeer]:
    """Each peer against the floors of a fair comparison."""
    found = []
    for name, peer in claims.peers.items():
        missed = [] if peer.limiter else ["nothing says what limits it"]
        if peer.evidence not in labels:
            missed += [f"no section {peer.evidence}, which is to show it"]
        missed += _not_a_reason(peer.accepted)
        distinct = {" ".join(each.casefold().split()) for each in peer.tried} - {""}
        if len(distinct) < len(peer.tried):
            missed += ["tried must name each configuration once, and none as ''"]
        few = len(distinct) < CONFIGURATIONS
        tried = [f"{len(distinct)} of {CONFIGURATIONS} configurations tried"] * few
        found += [AuditedPeer(name, peer, (*missed, *tried), bool(missed))]
    return found


def lines(audited: Sequence[Audited], peers: Sequence[AuditedPeer]) -> list[str]:
    """The audit as a terminal shows it: a line for whatever misses a floor."""
    found = [
        *((each.claim.key, each, each.basis.accepted) for each in audited),
        *((each.name, each, each.peer.accepted) for each in peers),
    ]
    return [
        f"{name:<44} {each.state:<9} {'; '.join(each.missed)}"
        + (f" ({accepted})" if accepted else "")
        for name, each, accepted in found
        if each.missed
    ] + [summary(audited, "claims"), summary(peers, "peers")]


def summary(audited: Sequence[Audited | AuditedPeer], what: str) -> str:
    """How many are in which state, in one sentence."""
    counts = Counter(each.state for each in audited)
    if counts["good"] == len(audited):
        return f"All {len(audited)} {what} meet every floor."
    missing = " and ".join(
        f"{counts[state]} {words}" for state, words in MISSING.items() if counts[state]
    )
    return (
        f"{counts['good']} of {len(audited)} {what} meet every floor. The others miss "
        f"at least one: {missing}."
    )


def page_lines(
    audited: Sequence[Audited],
    peers: Sequence[AuditedPeer],
    doubted: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """The audit as the book shows it, in MyST Markdown: each claim has an anchor.

    `doubted` is as `cards.claim_cards` takes it.
    """
    lines = [summary(audited, "claims") + " " + summary(peers, "peers")]
    for number, chapter in groupby(audited, lambda each: each.claim.chapter):
        claims = list(chapter)
        seen = max((each.processors for each in claims), key=len)
        kinds = f"Its claims were seen on {' and '.join(seen) or 'no machine'}."
        made = (each.record for each in claims if each.record)
        ran = [
            f"The chapter ran for {r.seconds:,.0f} s, at commit `{r.commit}`."
            for r in islice(made, 1)
        ]
        rows = [
            [
                f"[]{{#{anchor(each.claim.key)}}}{markdown(each.claim.title)}",
                markdown(format_quantity(each.value, each.claim)),
                f"{rests(each)}{_limit(each.basis)}",
                "; ".join(filter(None, _remarks(each, doubted))),
            ]
            for each in claims
        ]
        lines += ["", f"## Chapter {number}", "", " ".join([*ran, kinds]), ""]
        head = ["Claim", "Value", "Rests on", "Remarks"]
        lines += markdown_table(head, rows, css="audit")
    rows = [
        [
            markdown(each.name),
            "; ".join(each.peer.tried),
            f"{{ref}}`{each.peer.limiter} <{each.peer.evidence}>`",
            "; ".join(filter(None, [*each.missed, each.peer.accepted])),
        ]
        for each in peers
    ]
    lines += ["", "## Peers", ""]
    head = ["Peer", "Tried", "Limited by", "Remarks"]
    return lines + markdown_table(head, rows, css="audit")


def anchor(key: str) -> str:
    """Where the row of a claim stands on the book's page, as an id of HTML."""
    return f"claim-{key.replace('_', '-')}"


def rests(audited: Audited) -> str:
    """How many of what a claim rests on, and by which method its ends are found."""
    if not audited.basis.of:
        return "exact"
    counted = f"{audited.n} {audited.basis.of}"
    numbers = audited.record.numbers if audited.record else {}
    if length := numbers.get(audited.basis.each):
        counted += f" of {length:,.0f} transactions"
    return f"{counted}, {audited.interval}" if audited.interval else counted


def _remarks(
    audited: Audited, doubted: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """Whether to believe a claim, which floors it misses, and what it was before."""
    if (record := audited.record) and audited.claim.key in doubted.get(
        record.chapter, {}
    ):
        yield "{ref}`in doubt <sec-doubts>`"
    yield from audited.missed
    if audited.missed:
        yield audited.basis.accepted
    if (changed := audited.changed) is not None:
        was, now = format_number(changed.was), format_number(changed.now)
        seen = f"{markdown(was)} until" if was != now else "other last bits until"
        yield f"{seen} {changed.date} (`{changed.commit[:7]}`)"


def _limit(basis: Basis) -> str:
    """What limits a claim, and where that is shown."""
    if basis.limiter == "nothing":
        return ""
    return f"; limited by {basis.limiter} ({{numref}}`{basis.evidence}`)"
