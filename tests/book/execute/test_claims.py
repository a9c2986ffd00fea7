"""Claims: what each kind demands, where references stand, what is refused by name."""

import math
from dataclasses import replace

import pytest
from runs import record

from thesis_book.compare.comparison import read_reference
from thesis_book.execute import chapters, claims, records
from thesis_book.execute.claims import (
    Claim,
    expected_ratio,
    judge,
    read_claims,
    report,
    store_references,
)
from thesis_lib.common.errors import InvalidInput

FILE = """
bases:
  seeds: {n: seeds, of: seeds, limiter: noise, evidence: sec-shown}
claims:
  share:
    chapter: 4
    says: A share
    unit: "%"
    kind: exact
    rests_on: seeds
  quality: {chapter: 6, says: Q, unit: "", kind: tolerance, rtol: 0.02,
    why: kernels differ, rests_on: seeds}
  step_s: {chapter: 6, says: T, unit: s, kind: time, follows: drain, factor: 2,
    rests_on: seeds}
settings:
  - {text: "95 %", attribute: "thesis_lib.common.stats:LEVEL", factor: 100}
"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    (tmp_path / "claims.yml").write_text(FILE)
    monkeypatch.setenv("THESIS_DATA", str(tmp_path))
    monkeypatch.setattr(records, "_published", {})
    return tmp_path


def made(share, quality, step_s, profile="smoke", **more):
    """A run of both chapters that publishes these numbers."""
    return [
        record("04_evaluation", profile, share=share),
        record("06_evaluation", profile, quality=quality, step_s=step_s, **more),
    ]


def claim(kind, **options):
    return Claim("x", 4, "X", "s", kind, "seeds", **options)


def test_the_file_reads_as_claims_and_settings(data):
    found = read_claims()
    assert list(found.claims) == ["share", "quality", "step_s"]
    assert found.settings[0].factor == 100
    assert [c.key for c in found.of_chapter(6)] == ["quality", "step_s"]
    assert all(c.reference == {} for c in found.claims.values())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("kind: near", "x.kind: .*'exact', 'record', 'tolerance' or 'time'"),
        ("kind: exact, rtol: 0.1, why: w", "a tolerance, and nothing else"),
        ("kind: tolerance, rtol: 0.1", "has rtol in .* and why"),
        ("kind: tolerance, rtol: 2, why: w", "rtol in"),
        ("kind: time, follows: drain", "a factor above 1"),
        ("kind: time, follows: moon, factor: 2", "follows: .*'drain' or 'compute'"),
        ("kind: exact, published: {value: 36}", "a value, a source and"),
        ("kind: exact, colour: red", "x.colour: "),
        ("kind: exact, reference: {smoke: 1}", "in the records of reference/ alone"),
        ("kind: exact, rests_on: moon", "rests_on='moon' is unknown: .*seeds"),
    ],
)
def test_a_malformed_claim_is_rejected_by_name(data, entry, message):
    entry += "" if "rests_on" in entry else ", rests_on: seeds"
    text = f"claims:\n  x: {{chapter: 1, says: s, unit: '', {entry}}}\n"
    (data / "claims.yml").write_text(FILE.partition("claims:")[0] + text)
    with pytest.raises(InvalidInput, match=message):
        read_claims()


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        ("{n: 3, of: seeds, evidence: s}", "bases.x.limiter"),
        ("{n: 3, of: seeds, limiter: moon, evidence: s}", "bases.x.limiter: .*'noise'"),
        ("{n: 3, limiter: noise, evidence: s}", "bases.x.of"),
    ],
)
def test_a_basis_says_how_many_and_what_limits_them(data, basis, message):
    (data / "claims.yml").write_text(f"bases: {{x: {basis}}}\nclaims: {{}}\n")
    with pytest.raises(InvalidInput, match=message):
        read_claims()


@pytest.mark.parametrize("text", ["", "[1]", "claims: [1]", "claims: {x: 1}", "x: ["])
def test_what_is_no_file_of_claims_is_rejected(data, text):
    (data / "claims.yml").write_text(text)
    with pytest.raises(InvalidInput, match=r"claims\.yml cannot be read as claims"):
        read_claims()


def test_an_exact_claim_sees_the_last_bit():
    assert judge(claim("exact"), 0.1, 0.1).word == "equal"
    verdict = judge(claim("exact"), math.nextafter(0.1, 1), 0.1)
    assert (verdict.word, verdict.good) == ("DIFFERS", False)
    assert judge(claim("exact"), "729ca2c2", "729ca2c2").good
    assert not judge(claim("exact"), "729ca2c2", "729ca2c3").good
    assert not judge(claim("record"), 0.1, math.nextafter(0.1, 1)).good


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
    assert judge(time, value, 0.1, expected_ratio(time, *rates)).word == word


def test_a_time_without_a_rate_is_only_expected_to_differ():
    time = claim("time", follows="drain", factor=2)
    expected = expected_ratio(time, {"drain_bytes_per_s": None}, {})
    verdict = judge(time, 9.0, 0.1, expected)
    assert (verdict.word, verdict.good) == ("expected to differ", True)


def test_missing_parts_are_reported():
    assert not judge(claim("exact"), None, 1.0).good
    assert judge(claim("exact"), 1.0, None).word == "no reference"


def test_a_run_becomes_the_reference_of_its_profile_bit_for_bit(data):
    numbers = {"share": 0.1 + 0.2, "quality": 31.0, "step_s": 0.2}
    assert store_references(made(**numbers), "smoke") == 3
    assert store_references(made(**numbers), "smoke") == 0
    found = read_claims().claims
    assert {key: c.reference["smoke"] for key, c in found.items()} == numbers
    later = numbers | {"share": 1}
    assert store_references(made(**later, profile="default"), "default") == 3
    assert read_claims().claims["share"].reference == {
        "smoke": 0.1 + 0.2, "default": 1,
    }  # fmt: skip
    assert (data / "claims.yml").read_text() == FILE


def test_a_claim_that_changes_leaves_a_line_of_history(data):
    path = data / "reference" / "smoke" / "history.csv"
    numbers = {"share": 1, "quality": 31.0, "step_s": 0.2}
    store_references(made(**numbers), "smoke")
    assert claims.read_history(path) == []
    store_references(made(share=2, quality=31.01, step_s=9.0), "smoke")
    store_references(made(share=3, quality=32.0, step_s=9.0), "smoke")
    found = claims.read_history(path)
    assert [(c.claim, c.was, c.now) for c in found] == [
        ("share", 1, 2), ("share", 2, 3), ("quality", 31.01, 32.0),
    ]  # fmt: skip
    assert {(c.commit, c.date) for c in found} == {("c0ffee", "2026-01-01")}
    kept, same = path.read_text(), made(share=3, quality=32.0, step_s=9.0)
    same[1].numbers["share"] = 7  # of another chapter: another number of this name
    store_references(same, "smoke")
    assert path.read_text() == kept
    path.write_text("claim,was\n")
    with pytest.raises(InvalidInput, match="expected columns date, commit, claim"):
        claims.read_history(path)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ([], "claim quality, share, step_s is published by no chapter"),
        (made(1, 30.0, 0.1, disturbed="step_s"), "step_s of 06_.* cannot become"),
        (made(1, 30.0, 0.1, profile="default"), "expected those of 'smoke'"),
        (
            [replace(r, parameters={"profile": "custom"}) for r in made(1, 30.0, 0.1)],
            "ran with the parameters of 'custom'",
        ),
    ],
    ids=["not published", "disturbed", "another profile", "other parameters"],
)
def test_a_run_that_cannot_be_the_reference_stores_nothing(data, run, message):
    with pytest.raises(InvalidInput, match=message):
        store_references(run, "smoke")
    assert not (data / "reference").exists()


@pytest.mark.parametrize("profile", ["smoke", "default"])
def test_the_reference_has_the_parameters_that_its_profile_sets(profile):
    """Or a book of that profile would say of its numbers that none is comparable."""
    stored = {
        record.chapter: record.parameters
        for record in read_reference().records
        if record.profile == profile
    }
    assert stored == chapters.resolve(chapters.chapters(), profile, {})


def test_a_chapter_reports_what_holds_and_names_what_does_not(data, monkeypatch):
    def with_numbers(**numbers):
        monkeypatch.setattr(records, "_published", numbers)

    store_references(made(share=0.3, quality=30.0, step_s=0.1), "smoke")
    with_numbers(share=0.3)
    assert report(4, "smoke").splitlines() == [
        "exact claims that are equal: 1 of 1",
    ]
    with_numbers(share=0.3000001)
    assert "0 of 1" in report(4, "smoke")
    assert "share DIFFERS: 0.3000001 is not 0.3" in report(4, "smoke")
    with_numbers(quality=30.1, step_s=9.0)  # times are not judged here
    assert "tolerance: 1 of 1" in report(6, "smoke")
    with_numbers()
    assert "quality not published" in report(6, "smoke")
    assert report(6, "custom") == "no reference values for profile 'custom'"


def test_a_chapter_depends_on_its_own_claims_of_its_own_profile(data):
    store_references(made(share=0, quality=30.0, step_s=9.0), "smoke")
    before = claims.claim_hash(6, "smoke"), claims.claim_hash(4, "smoke")
    store_references(made(share=1, quality=30.0, step_s=9.9), "smoke")
    assert claims.claim_hash(6, "smoke") == before[0]
    assert claims.claim_hash(4, "smoke") != before[1]


@pytest.mark.parametrize("profile", ["smoke", "default"])
def test_the_reference_run_of_the_project_is_whole_and_clean(profile):
    reference = read_reference()
    for key, known in read_claims().claims.items():
        found = reference.record(known.chapter, profile)
        assert found is not None
        assert found.clean, f"{key}: the reference ran from uncommitted changes"
        assert key in found.numbers


@pytest.mark.parametrize(
    ("share", "text"), [(0.997, "100 %"), (12.4, "1240 %"), (0.0123, "1.2 %")]
)
def test_a_share_is_no_power_of_ten(share, text):
    assert claims.percent(share) == text
