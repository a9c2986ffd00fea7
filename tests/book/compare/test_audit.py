"""The floors of the audit: a claim that misses one is seen, whatever it misses."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from runs import record

from thesis_book.compare.audit import (
    audit,
    audit_peers,
    lines,
    page_lines,
    sections,
    summary,
)
from thesis_book.compare.comparison import read_reference
from thesis_book.execute.claims import Basis, Change, Claim, Claims, Peer, read_claims
from thesis_lib.common.errors import InvalidInput

ROOT = Path(__file__).parents[3]
SEEDS = Basis(n="seeds", of="seeds", limiter="noise", evidence="sec-shown")
CLAIM = Claim("share", 4, "A share", "%", "exact", "seeds")
REASON = "two seeds are enough for this"
TAIL = {"quantile": 0.99, "samples": "of"}
WHOLE = {
    "share": 5.0, "share_low": 4.0, "share_high": 6.0, "share_n": 20,
    "share_interval": "Student",
}  # fmt: skip


def audited(numbers=WHOLE, basis=SEEDS, **changes):
    claims = Claims({"share": replace(CLAIM, **changes)}, {"seeds": basis})
    (found,) = audit(claims, [record("04_x", **numbers)], {"sec-shown"})
    return found


def test_a_claim_with_all_that_is_asked_for_is_good():
    found = audited()
    assert (found.state, found.missed, found.n) == ("good", (), 20)
    assert (found.value.low, found.interval) == (4.0, "Student")
    assert found.processors == ("A & B",)


@pytest.mark.parametrize(
    ("numbers", "changes", "missed"),
    [
        ({"share_n": 3}, {}, "3 seeds: 8 are needed"),
        ({"share_interval": "range"}, {}, "no interval, of 20 seeds"),
        ({"share_interval": ""}, {}, "no interval, of 20 seeds"),
        ({"of": 100}, TAIL, "100 samples: with fewer than 459"),
        ({"of": 459, "share_interval": ""}, TAIL, "no interval, of 20 seeds"),
    ],
)
def test_a_claim_that_misses_a_floor_is_red_unless_a_reason_is_given(
    numbers, changes, missed
):
    found = audited(WHOLE | numbers, **changes)
    assert found.state == "red"
    assert [missed in each for each in found.missed] == [True]
    told = replace(found, basis=replace(found.basis, accepted=REASON))
    assert told.state == "accepted"
    assert REASON in "\n".join(page_lines([told], [], {}))


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"key": "lost"}, "not published by this run: its chapter has to publish lost"),
        ({"basis": replace(SEEDS, evidence="sec-x")}, "no section sec-x"),
        ({"basis": replace(SEEDS, n="lost_n")}, "has to publish lost_n"),
        ({"basis": replace(SEEDS, n="")}, "has to publish share_n"),
        (dict(TAIL), "of how many samples this percentile is: its chapter has to"),
    ],
)
def test_what_is_not_there_is_excused_by_no_reason(changes, missed):
    basis = replace(changes.pop("basis", SEEDS), accepted=REASON)
    numbers = {key: value for key, value in WHOLE.items() if key != "share_n"}
    found = audited(numbers | {"seeds": 20}, basis, **changes)
    assert missed in "; ".join(found.missed)
    assert found.state == "red"


def test_a_percentile_of_enough_samples_is_good():
    assert audited(WHOLE | {"of": 459}, **TAIL).state == "good"


def test_the_last_change_of_a_claim_stands_beside_it():
    changes = [
        Change("2026-01-01", "aaa", "share", 3.0, 4.0),
        Change("2026-02-01", "bbb", "share", 4.0, 5.0),
        Change("2026-03-01", "ccc", "other", 1.0, 2.0),
    ]
    claims = Claims({"share": CLAIM}, {"seeds": SEEDS})
    found = audit(claims, [record("04_x", **WHOLE)], {"sec-shown"}, history=changes)
    assert "4.000 until 2026-02-01 (`bbb`)" in "\n".join(page_lines(found, [], {}))
    bits = [replace(changes[1], was=4.0 + 1e-15, now=4.0)]
    found = audit(claims, [record("04_x", **WHOLE)], {"sec-shown"}, history=bits)
    assert "other last bits until 2026-02-01" in "\n".join(page_lines(found, [], {}))


PEER = Peer(("as it comes", "threads", "batches"), "locks", "sec-shown")


@pytest.mark.parametrize(
    ("changes", "missed", "excused"),
    [
        ({}, "", "good"),
        ({"tried": ("as it comes",)}, "1 of 3 configurations tried", "accepted"),
        ({"limiter": ""}, "nothing says what limits it", "red"),
        ({"evidence": "sec-x"}, "no section sec-x, which is to show it", "red"),
    ],
)
def test_an_unfair_comparison_is_red_unless_a_reason_is_given(changes, missed, excused):
    peers = {
        "one": (peer := replace(PEER, **changes)),
        "two": replace(peer, accepted=REASON),
    }
    one, two = audit_peers(Claims({}, peers=peers), {"sec-shown"})
    assert "; ".join(one.missed) == missed
    assert (one.state, two.state) == ("red" if missed else "good", excused)
    assert (REASON in "".join(lines([], [two]))) == bool(missed)
    assert REASON in "\n".join(page_lines([], [two], {}))


@pytest.mark.parametrize("accepted", ["x", "four words of reason", "no no no no no"])
def test_audit_rejects_an_accepted_that_is_no_reason(accepted):
    found = audited(WHOLE | {"share_n": 3}, replace(SEEDS, accepted=accepted))
    (peer,) = audit_peers(
        Claims({}, peers={"one": replace(PEER, accepted=accepted, tried=("a",))}),
        {"sec-shown"},
    )
    for each in (found, peer):
        assert each.state == "red"
        assert "accepted must be 5 distinct words or more" in "; ".join(each.missed)


@pytest.mark.parametrize(
    "tried", [("a", "a", "a"), ("a", "A", " a "), ("a", "b", "c", "c"), ("a", "b", "")]
)
def test_audit_rejects_a_configuration_that_is_listed_twice(tried):
    peer = replace(PEER, tried=tried, accepted=REASON)
    (found,) = audit_peers(Claims({}, peers={"one": peer}), {"sec-shown"})
    assert found.state == "red"
    assert "tried must name each configuration once" in found.missed[0]


def test_a_count_that_went_through_a_table_is_a_count():
    assert audited(WHOLE | {"share_n": 20.0}).n == 20


def test_the_audit_marks_what_should_not_be_believed():
    found = audited()
    key, why = found.claim.key, "others took 1.90 cores"
    for name, marks in ((key, 1), ("another", 0)):
        page = page_lines([found], [], {found.record.chapter: {name: why}})
        assert "\n".join(page).count("{ref}`in doubt <sec-doubts>`") == marks


def test_the_audit_says_how_long_a_run_is_where_that_is_published():
    long = replace(SEEDS, each="length")
    assert "| 20 seeds, Student;" in "\n".join(page_lines([audited()], [], {}))
    page = page_lines([audited(WHOLE | {"length": 8000}, long)], [], {})
    assert "| 20 seeds of 8,000 transactions, Student;" in "\n".join(page)


def test_what_is_exact_needs_nothing():
    exact = Basis(n=1, of="", limiter="nothing", evidence="")
    assert audited({"share": 5}, basis=exact).state == "good"
    time = {"kind": "time", "follows": "drain", "factor": 2}
    with pytest.raises(InvalidInput, match="share is a time and rests on seeds, which"):
        audited({"share": 5}, basis=exact, **time)


def test_the_audit_is_told_in_a_line_a_claim_and_a_sum():
    found = [audited(), audited(WHOLE | {"share_n": 3})]
    assert summary(found, "claims") == (
        "1 of 2 claims meet every floor. The others miss at least one: 1 without a "
        "reason."
    )
    assert summary(found[:1] * 6, "peers") == "All 6 peers meet every floor."
    assert len(lines(found, [])) == 3
    page = page_lines(found, [], {})
    assert sum("claim-share" in line for line in page) == 2
    (where,) = (line for line in page if "Its claims" in line)
    assert where.endswith("Its claims were seen on A & B.")


def test_no_claim_of_the_published_book_misses_a_floor_without_a_reason():
    run, known = read_reference(), read_claims()
    chapters = {claim.chapter for claim in known.claims.values()}
    records = [r for n in sorted(chapters) if (r := run.record(n, "default"))]
    found = audit(known, records, sections(ROOT))
    assert [f"{each.claim.key}: {each.missed}" for each in found
            if each.state == "red"] == []  # fmt: skip
    peers = audit_peers(known, sections(ROOT))
    assert [f"{each.name}: {each.missed}" for each in peers
            if each.state == "red"] == []  # fmt: skip


def test_every_basis_is_used_and_shown_in_a_section():
    known, labels = read_claims(), sections(ROOT)
    used = {claim.rests_on for claim in known.claims.values()}
    assert used == set(known.bases)
    texts = [page.read_text() for page in ROOT.glob("notebooks/*.ipynb")]
    for name, basis in known.bases.items():
        assert basis.limiter == "nothing" or basis.evidence in labels, name
        name_of_length = rf'\b{basis.each}(\\":|=)'
        published = not basis.each or re.search(name_of_length, "".join(texts))
        assert published, f"{name}: no chapter publishes {basis.each}"
