"""The floors of the audit: a claim that misses one is seen, whatever it misses."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from runs import CLAIM, EXACT, SEEDS, WHOLE, record

from thesis_book.compare.audit import audit, lines, page_lines, sections, summary
from thesis_book.compare.comparison import read_reference
from thesis_book.execute.claims import Change, Claims, Peer, read_claims
from thesis_lib.common.errors import InvalidInput

ROOT = Path(__file__).parents[3]
PEER = Peer(("as it comes", "threads", "batches"), "locks", "sec-shown")
TWICE = "tried must name each configuration once, and none as ''"
REASON = "two seeds are enough for this"
TAIL = {"quantile": 0.99, "samples": "of"}


def audited(numbers=WHOLE, basis=SEEDS, history=(), peers=None, **changes):
    """Return the audit of one claim and some peers, and its first row."""
    claim = replace(CLAIM, **changes)
    claims = Claims({"the_share": claim}, {"seeds": basis}, peers or {})
    made = [record("04_x", **numbers)]
    frame = audit(claims, made, {"sec-shown"}, history=history)
    return frame, next(frame.itertuples())


def audited_peer(**changes):
    frame, _ = audited(peers={"one": replace(PEER, **changes)})
    return frame[1:], [*frame.itertuples()][1]


def page(frame, doubted=None):
    return "\n".join(page_lines(frame, doubted or {}))


def test_a_claim_with_all_that_is_asked_for_is_good():
    _, row = audited()
    assert (row.state, row.missed, row.n) == ("good", [], 20)
    assert (row.value.low, row.interval, row.processors) == (4.0, "Student", ("A & B",))
    assert audited(WHOLE | {"of": 459}, **TAIL)[1].state == "good"
    assert audited(WHOLE | {"the_share_n": 20.0})[1].n == 20  # it went through a table


COUNTED = {k: v for k, v in WHOLE.items() if k != "the_share_n"} | {"seeds": 20}


@pytest.mark.parametrize(
    ("numbers", "basis", "changes", "missed", "excused"),
    [
        (WHOLE | {"the_share_n": 3}, {}, {}, "3 seeds: 8 are needed", True),
        (WHOLE | {"the_share_interval": "range"}, {}, {}, "no interval, of 20", True),
        (WHOLE | {"the_share_interval": ""}, {}, {}, "no interval, of 20 seeds", True),
        (WHOLE | {"of": 100}, {}, TAIL, "100 samples: with fewer than 459", True),
        (
            WHOLE | {"of": 459, "the_share_interval": ""}, {}, TAIL,
            "no interval, of 20 seeds", True,
        ),
        (COUNTED, {}, {"key": "lost"}, "its chapter has to publish lost", False),
        (COUNTED, {"evidence": "sec-x"}, {}, "no section sec-x", False),
        (COUNTED, {"n": "lost_n"}, {}, "has to publish lost_n", False),
        (COUNTED, {"n": ""}, {}, "has to publish the_share_n", False),
        (COUNTED, {}, TAIL, "of how many samples this percentile is: its", False),
    ],
)  # fmt: skip
def test_a_floor_is_excused_by_a_reason_and_what_is_not_there_by_none(
    numbers, basis, changes, missed, excused
):
    _, row = audited(numbers, replace(SEEDS, **basis), **changes)
    assert row.state == "red"
    assert [missed in each for each in row.missed] == [True]
    excuse = replace(SEEDS, accepted=REASON, **basis)
    frame, row = audited(numbers, excuse, **changes)
    assert row.state == ("accepted" if excused else "red")
    assert REASON in page(frame)


@pytest.mark.parametrize(
    ("was", "now", "text"),
    [
        (4.0, 5.0, "4.000 until 2026-02-01 (`bbb`)"),
        (4.0 + 1e-15, 4.0, "other last bits until 2026-02-01"),
    ],
)
def test_the_last_change_of_a_claim_stands_beside_it(was, now, text):
    history = [
        Change("2026-01-01", "aaa", "the_share", 3.0, 4.0),
        Change("2026-02-01", "bbb", "the_share", was, now),
        Change("2026-03-01", "ccc", "other", 1.0, 2.0),
    ]
    assert text in page(audited(history=history)[0])


@pytest.mark.parametrize(
    ("changes", "missed", "excused"),
    [
        ({}, "", "good"),
        ({"tried": ("as it comes",)}, "1 of 3 configurations tried", "accepted"),
        ({"limiter": ""}, "nothing says what limits it", "red"),
        ({"evidence": "sec-x"}, "no section sec-x, which is to show it", "red"),
        ({"tried": ("a", "a", "a")}, f"{TWICE}; 1 of 3 configurations tried", "red"),
        ({"tried": ("a", "A", " a ")}, f"{TWICE}; 1 of 3 configurations tried", "red"),
        ({"tried": ("a", "b", "c", "c")}, TWICE, "red"),
        ({"tried": ("a", "b", "")}, f"{TWICE}; 2 of 3 configurations tried", "red"),
    ],
)
def test_an_unfair_comparison_is_red_unless_a_reason_is_given(changes, missed, excused):
    _, one = audited_peer(**changes)
    assert "; ".join(one.missed) == missed
    assert one.state == ("red" if missed else "good")
    frame, two = audited_peer(**changes, accepted=REASON)
    assert two.state == excused
    assert (REASON in "".join(lines(frame))) == bool(missed)
    assert REASON in page(frame)


@pytest.mark.parametrize("accepted", ["x", "four words of reason", "no no no no no"])
def test_audit_rejects_an_accepted_that_is_no_reason(accepted):
    _, claim = audited(WHOLE | {"the_share_n": 3}, replace(SEEDS, accepted=accepted))
    _, peer = audited_peer(accepted=accepted, tried=("a",))
    for row in (claim, peer):
        assert row.state == "red"
        assert "accepted must be 5 distinct words or more" in "; ".join(row.missed)


def test_the_audit_marks_what_should_not_be_believed():
    frame, row = audited()
    for name, marks in (("the_share", 1), ("another", 0)):
        doubted = {row.record.chapter: {name: "others took 1.90 cores"}}
        assert page(frame, doubted).count("{ref}`in doubt <sec-doubts>`") == marks


def test_the_audit_says_how_long_a_run_is_where_that_is_published():
    long, _ = audited(WHOLE | {"length": 8000}, replace(SEEDS, each="length"))
    assert "| 20 seeds, Student;" in page(audited()[0])
    assert "| 20 seeds of 8,000 transactions, Student;" in page(long)


def test_what_is_exact_needs_nothing():
    assert audited({"the_share": 5}, basis=EXACT)[1].state == "good"
    time = {"kind": "time", "follows": "drain", "factor": 2}
    with pytest.raises(
        InvalidInput, match="the_share is a time and rests on seeds, which"
    ):
        audited({"the_share": 5}, basis=EXACT, **time)


def test_audit_prints_a_line_per_claim_and_a_sum():
    claims = {key: replace(CLAIM, key=key) for key in ("the_share", "other")}
    made = record("04_x", **WHOLE, other=1.0, other_n=3)
    frame = audit(Claims(claims, {"seeds": SEEDS}), [made], {"sec-shown"})
    assert summary(frame, "claims") == (
        "1 of 2 claims meet every floor. The others miss at least one: 1 without a "
        "reason."
    )
    peers, _ = audited(peers=dict.fromkeys("abcdef", PEER))
    assert summary(peers, "peers") == "All 6 peers meet every floor."
    assert len(lines(frame)) == 3
    assert page(frame).count("{#claim-") == 2
    (where,) = (line for line in page_lines(frame, {}) if "Its claims" in line)
    assert where.endswith("Its claims were seen on A & B.")


def test_no_claim_of_the_published_book_misses_a_floor_without_a_reason():
    run, known = read_reference(), read_claims()
    chapters = {claim.chapter for claim in known.claims.values()}
    records = [r for n in sorted(chapters) if (r := run.record(n, "default"))]
    frame = audit(known, records, sections(ROOT))
    assert len(frame) == len(known.claims) + len(known.peers)
    assert frame[frame["state"] == "red"][["name", "missed"]].values.tolist() == []


def test_every_basis_is_used_and_shown_in_a_section():
    known, labels = read_claims(), sections(ROOT)
    assert {claim.rests_on for claim in known.claims.values()} == set(known.bases)
    texts = "".join(page.read_text() for page in ROOT.glob("notebooks/*.ipynb"))
    for name, basis in known.bases.items():
        assert basis.limiter == "nothing" or basis.evidence in labels, name
        published = not basis.each or re.search(rf'\b{basis.each}(\\":|=)', texts)
        assert published, f"{name}: no chapter publishes {basis.each}"
