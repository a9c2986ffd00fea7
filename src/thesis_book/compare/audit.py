"""Audit the evidence of each claim, and whether it is enough.

A reader of a number asks how many observations it rests on, which interval they give,
and what keeps it from being better. Each question has a floor; a claim that misses one
is red, unless `data/claims.yml` says why it may. So is a peer that was run in fewer
configurations than its users would try.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from thesis_book.compare.comparison import quantity
from thesis_book.compare.present import (
    format_number,
    format_quantity,
    markdown,
    markdown_table,
)
from thesis_book.execute.claims import Change, Claims, Peer
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
COLUMNS = [
    "what", "name", "missed", "state", "limiter", "evidence", "accepted", "tried",
    "chapter", "title", "says", "unit", "kind", "rtol", "value", "n", "of", "interval",
    "rests", "record", "processors", "changed",
]  # fmt: skip


def sections(checkout: Path) -> set[str]:
    """Return the labels of the sections of all chapters."""
    texts = (path.read_text() for path in checkout.glob("notebooks/*.ipynb"))
    return {label for text in texts for label in re.findall(r"\((sec-[\w-]+)\)=", text)}


def audit(
    claims: Claims,
    run: Sequence[Record],
    labels: Collection[str],
    everywhere: Sequence[Record] = (),
    history: Sequence[Change] = (),
) -> pd.DataFrame:
    """Hold each claim of a run, and each peer, against the floors: a row for each.

    Args:
        claims: All claims and peers, in whose order the rows are.
        run: Records of the chapters.
        labels: Those of the `sections`, each of which may be evidence.
        everywhere: Records of other machines.
        history: What has changed.

    Returns:
        `what` is "claims" or "peers". Columns of both are `name`, `limiter`,
        `evidence` and `accepted` as in data/claims.yml, `missed` (floors in words) and
        `state` (good, accepted or red). Of a peer there is `tried`, of a claim those
        of `Claim`, `value` (a Quantity or None), `n`, `of`, `interval` (the name of its
        method, "" for none), what it `rests` on in words, its chapter's `record` or
        None, `processors` on which it was seen, and how it was last `changed` or None.
    """
    by_chapter = {record.number: record for record in run}
    last = {change.claim: change for change in history}
    rows = []
    for claim in claims.claims.values():
        basis, record = claims.bases[claim.rests_on], by_chapter.get(claim.chapter)
        numbers = record.numbers if record else {}
        counted = numbers.get(basis.n) if isinstance(basis.n, str) else basis.n
        n = numbers.get(f"{claim.key}_n", counted)
        seen = [r for r in (record, *everywhere) if r and claim.key in r.numbers]
        row = asdict(claim) | asdict(basis)
        row |= {
            "what": "claims",
            "name": claim.key,
            "title": claim.title,
            "counted": basis.n,
            "value": quantity(claim.key, record),
            "n": int(n) if isinstance(n, int | float) else None,  # a table's is a float
            "interval": str(numbers.get(f"{claim.key}_interval", "")),
            "record": record,
            "processors": tuple(dict.fromkeys(str(r.machine["cpu"]) for r in seen)),
            "changed": last.get(claim.key),
        }
        missing, few = _faults(row, numbers, labels)
        row["state"] = _state(missing + few, bool(missing), basis.accepted)
        rests = _rests(row, numbers.get(basis.each))
        rows.append(row | {"missed": missing + few, "rests": rests})
    rows += [_peer(name, peer, labels) for name, peer in claims.peers.items()]
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def _state(missed: list[str], unexcused: bool, accepted: str) -> str:
    """Good, accepted or red; `unexcused` is a floor that no reason excuses."""
    if not missed:
        return "good"
    return "accepted" if accepted and not unexcused else "red"


def _not_a_reason(accepted: str) -> list[str]:
    """Return the fault of an `accepted:` that is too short; [] without one."""
    if not accepted or len(set(accepted.casefold().split())) >= REASON_WORDS:
        return []
    return [f"accepted must be {REASON_WORDS} distinct words or more, got {accepted!r}"]


def _faults(
    row: Mapping[str, Any], numbers: Mapping[str, Any], labels: Collection[str]
) -> tuple[list[str], list[str]]:
    """Say what a claim has to have, which no reason excuses, and what is too few."""
    key, n, of, samples = row["name"], row["n"], row["of"], numbers.get(row["samples"])
    limited, publish = row["limiter"] != "nothing", "its chapter has to publish"
    missing, few = _not_a_reason(row["accepted"]), []
    if limited and row["evidence"] not in labels:
        missing += [f"no section {row['evidence']}, which is to show what limits it"]
    if row["value"] is None:
        again = "its reference to be made again (thesis claims --update)"
        missing += [f"not published by this run: {publish} {key}, and {again}"]
    elif n is None:
        unknown = f"nothing says how many {of} it rests on"
        missing += [f"{unknown}: {publish} {row['counted'] or key + '_n'}"]
    elif row["samples"] and samples is None:
        unknown = "nothing says of how many samples this percentile is"
        missing += [f"{unknown}: {publish} {row['samples']}"]
    if row["value"] is None or n is None or not limited:
        return missing, few
    if row["quantile"] is not None and samples is not None:
        least = least_samples(row["quantile"])
        if samples < least:
            lies = "the largest may lie below this percentile"
            few += [f"{samples} samples: with fewer than {least} {lies}"]
    if n < LEAST:
        few += [f"{n} {of}: {LEAST} are needed for an interval"]
    elif row["interval"] in ("", RANGE):
        few += [f"no interval, of {n} {of}"]
    return missing, few


def _rests(row: Mapping[str, Any], length: float | None) -> str:
    """Return a claim's sample size and the method of its interval."""
    if not row["of"]:
        return "exact"
    of = f" of {length:,.0f} transactions" if length else ""
    method = f", {row['interval']}" if row["interval"] else ""
    return f"{row['n']} {row['of']}{of}{method}"


def _peer(name: str, peer: Peer, labels: Collection[str]) -> dict[str, Any]:
    """Hold a peer against the floors of a fair comparison."""
    missed = [] if peer.limiter else ["nothing says what limits it"]
    if peer.evidence not in labels:
        missed += [f"no section {peer.evidence}, which is to show it"]
    missed += _not_a_reason(peer.accepted)
    distinct = {" ".join(each.casefold().split()) for each in peer.tried} - {""}
    if len(distinct) < len(peer.tried):
        missed += ["tried must name each configuration once, and none as ''"]
    unexcused = bool(missed)
    if len(distinct) < CONFIGURATIONS:
        missed += [f"{len(distinct)} of {CONFIGURATIONS} configurations tried"]
    state = _state(missed, unexcused, peer.accepted)
    row = {"what": "peers", "name": name, "missed": missed, "state": state}
    return asdict(peer) | row


def lines(audited: pd.DataFrame) -> list[str]:
    """Return the audit as a terminal shows it: a line for whatever misses a floor."""
    shown = []
    row: Any
    for row in audited.query("state != 'good'").itertuples():
        reason = f" ({row.accepted})" if row.accepted else ""
        shown.append(f"{row.name:<44} {row.state:<9} {'; '.join(row.missed)}{reason}")
    return [*shown, summary(audited, "claims"), summary(audited, "peers")]


def summary(audited: pd.DataFrame, what: str) -> str:
    """Count claims or peers in each state, in one sentence."""
    counts = Counter(audited["state"][audited["what"] == what])
    if counts["good"] == counts.total():
        return f"All {counts.total()} {what} meet every floor."
    missing = " and ".join(
        f"{counts[state]} {words}" for state, words in MISSING.items() if counts[state]
    )
    return (
        f"{counts['good']} of {counts.total()} {what} meet every floor. The others "
        f"miss at least one: {missing}."
    )


def page_lines(
    audited: pd.DataFrame, doubted: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return the audit as MyST Markdown for the book: each claim has an anchor.

    `doubted` is as `cards.claim_cards` takes it.
    """
    lines = [summary(audited, "claims") + " " + summary(audited, "peers")]
    head = ["Claim", "Value", "Rests on", "Remarks"]
    claims = audited.query("what == 'claims'")
    for number, chapter in claims.groupby("chapter", sort=False):
        seen = " and ".join(max(chapter["processors"], key=len)) or "no machine"
        where = f"Its claims were seen on {seen}."
        for record in [*filter(None, chapter["record"])][:1]:
            ran = f"ran for {record.seconds:,.0f} s, at commit `{record.commit}`"
            where = f"The chapter {ran}. {where}"
        rows = [_claim_cells(row, doubted) for row in chapter.itertuples()]
        table = markdown_table(head, rows, css="audit")
        lines += ["", f"## Chapter {number}", "", where, "", *table]
    peers = audited.query("what == 'peers'").itertuples()
    head = ["Peer", "Tried", "Limited by", "Remarks"]
    table = markdown_table(head, map(_peer_cells, peers), css="audit")
    return [*lines, "", "## Peers", "", *table]


def _claim_cells(row: Any, doubted: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the row of a claim: whether to believe it, and what it was before."""
    remarks = [*row.missed, row.accepted if row.missed else ""]
    if row.record and row.name in doubted.get(row.record.chapter, {}):
        remarks.insert(0, "{ref}`in doubt <sec-doubts>`")
    if row.changed is not None:
        was, now = format_number(row.changed.was), format_number(row.changed.now)
        before = markdown(was) if was != now else "other last bits"
        remarks.append(
            f"{before} until {row.changed.date} (`{row.changed.commit[:7]}`)"
        )
    limit = f"; limited by {row.limiter} ({{numref}}`{row.evidence}`)"
    return [
        f"[]{{#{anchor(row.name)}}}{markdown(row.title)}",
        markdown(format_quantity(row.value, row.rtol)),
        row.rests + (limit if row.limiter != "nothing" else ""),
        "; ".join(filter(None, remarks)),
    ]


def _peer_cells(row: Any) -> list[str]:
    """Return the row of a peer."""
    return [
        markdown(row.name),
        "; ".join(row.tried),
        f"{{ref}}`{row.limiter} <{row.evidence}>`",
        "; ".join(filter(None, [*row.missed, row.accepted])),
    ]


def anchor(key: str) -> str:
    """Return the id of HTML of a claim's row on the book's page."""
    return f"claim-{key.replace('_', '-')}"
