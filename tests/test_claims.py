import math

import pytest

from thesis_lib.book.compare.comparison import read_reference
from thesis_lib.book.execute import claims, records
from thesis_lib.book.execute.claims import (
    Claim,
    judge,
    read_claims,
    report,
    store_references,
)
from thesis_lib.common.errors import InvalidInput

FILE = """
# The first line is a remark.
claims:
  share:
    chapter: 4
    says: A share
    unit: "%"
    kind: exact
    reference: {}
  quality: {chapter: 6, says: Q, unit: "", kind: tolerance, rtol: 0.02,
    why: kernels differ, reference: {smoke: 30.0}}
  step_s: {chapter: 6, says: T, unit: s, kind: time, follows: drain, factor: 2,
    reference: {smoke: 0.1}}
settings:
  - {text: "95 %", attribute: "thesis_lib.common.stats:LEVEL", factor: 100}
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    path = tmp_path / "claims.yml"
    path.write_text(FILE)
    monkeypatch.setenv("THESIS_DATA", str(tmp_path))
    monkeypatch.setattr(records, "_published", {})
    return path


def claim(kind, **options):
    return Claim(key="x", chapter=4, says="X", unit="s", kind=kind, **options)


def test_the_file_reads_as_claims_and_settings(path):
    found = read_claims(path)
    assert list(found.claims) == ["share", "quality", "step_s"]
    assert found.settings[0].factor == 100
    assert [c.key for c in found.of_chapter(6)] == ["quality", "step_s"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("kind: near", "kind='near' is unknown"),
        ("kind: exact, rtol: 0.1, why: w", "a tolerance, and nothing else"),
        ("kind: tolerance, rtol: 0.1", "has rtol in .* and why"),
        ("kind: tolerance, rtol: 2, why: w", "rtol in"),
        ("kind: time, follows: drain", "a factor above 1"),
        ("kind: time, follows: moon, factor: 2", "follows='moon'"),
        ("kind: exact, low: a", "low and high, or neither"),
        ("kind: exact, published: {value: 36}", "a value, a source and"),
        ("kind: exact, colour: red", "cannot be read as claims"),
    ],
)
def test_a_malformed_claim_is_refused_by_name(tmp_path, entry, message):
    path = tmp_path / "claims.yml"
    path.write_text(f"claims:\n  x: {{chapter: 1, says: s, unit: '', {entry}}}\n")
    with pytest.raises(InvalidInput, match=message):
        read_claims(path)


def test_an_exact_claim_sees_the_last_bit():
    assert judge(claim("exact"), 0.1, 0.1).word == "equal"
    verdict = judge(claim("exact"), math.nextafter(0.1, 1), 0.1)
    assert (verdict.word, verdict.good) == ("DIFFERS", False)
    assert judge(claim("exact"), "729ca2c2", "729ca2c2").good
    assert not judge(claim("exact"), "729ca2c2", "729ca2c3").good


def test_a_tolerance_is_relative_to_the_reference():
    near = claim("tolerance", rtol=0.01, why="w")
    assert judge(near, 30.29, 30.0).word == "agrees"
    assert judge(near, 30.31, 30.0).word == "DISAGREES"
    assert judge(near, -30.29, -30.0).good


@pytest.mark.parametrize(
    ("inverse", "value", "word"),
    [
        (False, 0.05, "as expected"),  # twice the disk, half the time
        (False, 0.1, "as expected"),  # at the edge of the factor
        (False, 0.11, "UNEXPECTED"),
        (False, 0.024, "UNEXPECTED"),
        (True, 0.2, "as expected"),  # twice the disk, twice the speed
        (True, 0.09, "UNEXPECTED"),
    ],
)
def test_a_time_follows_the_rate_of_the_machine(inverse, value, word):
    time = claim("time", follows="drain", factor=2, inverse=inverse)
    rates = ({"drain_bytes_per_s": 2e9}, {"drain_bytes_per_s": 1e9})
    assert judge(time, value, 0.1, rates).word == word


def test_a_time_without_a_rate_is_only_expected_to_differ():
    time = claim("time", follows="drain", factor=2)
    verdict = judge(time, 9.0, 0.1, ({"drain_bytes_per_s": None}, {}))
    assert (verdict.word, verdict.good) == ("expected to differ", True)


def test_what_is_missing_is_said():
    assert not judge(claim("exact"), None, 1.0).good
    assert judge(claim("exact"), 1.0, None).word == "no reference"


def test_references_are_stored_in_place_and_everything_else_stays(path):
    numbers = {"share": 0.1 + 0.2, "quality": 31.0, "step_s": 0.2}
    assert store_references(numbers, "smoke", path) == 3
    assert store_references(numbers, "smoke", path) == 0
    found = read_claims(path).claims
    assert {key: c.reference["smoke"] for key, c in found.items()} == numbers
    assert path.read_text().splitlines()[:3] == FILE.splitlines()[:3]
    assert store_references(numbers | {"share": 1}, "default", path) == 3
    assert read_claims(path).claims["share"].reference == {"smoke": 0.1 + 0.2,
                                                           "default": 1}  # fmt: skip


def test_a_claim_that_no_chapter_publishes_is_not_stored(path):
    with pytest.raises(InvalidInput, match="claim share is published by no chapter"):
        store_references({}, "smoke", path)
    assert path.read_text() == FILE


def test_a_chapter_reports_what_holds_and_names_what_does_not(path, monkeypatch):
    def with_numbers(**numbers):
        monkeypatch.setattr(records, "_published", numbers)

    store_references({"share": 0.3, "quality": 30.0, "step_s": 0.1}, "smoke", path)
    with_numbers(share=0.3)
    assert report(4, "smoke").splitlines() == [
        "exact claims that are equal: 1 of 1",
        "claims within their tolerance: 0 of 0",
    ]
    with_numbers(share=0.3000001)
    assert "0 of 1" in report(4, "smoke")
    assert "share DIFFERS: 0.3000001 is not 0.3" in report(4, "smoke")
    with_numbers(quality=30.1, step_s=9.0)  # times are not judged here
    assert "tolerance: 1 of 1" in report(6, "smoke")
    with_numbers()
    assert "quality not published" in report(6, "smoke")
    assert report(6, "custom") == "no reference values for profile 'custom'"


def test_a_chapter_depends_on_its_own_claims_of_its_own_profile(path):
    before = claims.claim_hash(6, "smoke"), claims.claim_hash(4, "smoke")
    store_references({"share": 1, "quality": 30.0, "step_s": 9.9}, "smoke", path)
    assert claims.claim_hash(6, "smoke") == before[0]
    assert claims.claim_hash(4, "smoke") != before[1]


@pytest.mark.parametrize("profile", ["smoke", "default"])
def test_the_reference_run_of_the_project_is_whole_and_says_what_its_claims_say(
    profile,
):
    known, reference = read_claims(), read_reference()
    for key, known_claim in known.claims.items():
        record = reference.record(known_claim.chapter, profile)
        assert record is not None
        assert record.profile == profile
        assert record.clean, f"{key}: the reference ran from uncommitted changes"
        assert known_claim.reference[profile] == record.numbers[key], key
