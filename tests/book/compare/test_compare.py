"""Laws of holding one run against another, and the command on made-up records."""

import json
import math
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from runs import CLAIMS_TEXT, NUMBERS, record
from typer.testing import CliRunner

from thesis_book.__main__ import app
from thesis_book.compare import present
from thesis_book.compare.comparison import (
    Quantity,
    Run,
    apart,
    compare,
    compare_named,
    read_reference,
)
from thesis_book.execute.claims import Claim, read_claims
from thesis_lib.common.errors import InvalidInput


def run(label, *records):
    return Run(label, records or (record("04_evaluation"), record("06_evaluation")))


@pytest.fixture
def claims(data):
    return read_claims().claims


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with claims and a reference run of profile smoke."""
    folder = tmp_path / "data"
    reference = folder / "reference" / "smoke"
    reference.mkdir(parents=True)
    (folder / "claims.yml").write_text(CLAIMS_TEXT)
    for chapter in NUMBERS:
        record(chapter).write(reference / f"{chapter}.json")
    monkeypatch.setenv("THESIS_DATA", str(folder))
    return folder


def words(compared):
    return {row.claim.key: row.word for row in compared.rows.itertuples()}


def one(compared, key):
    return next(row for row in compared.rows.itertuples() if row.claim.key == key)


# --- Laws ---------------------------------------------------------------------


def hold(claims, *records):
    """Another run of these records, or of the same, held against run `a`."""
    return compare([run("b", *records)], claims, run("a"))


def test_equal_runs_hold_in_everything(claims):
    compared = hold(claims)
    assert words(compared) == {
        "wins": "equal", "setting": "equal", "ppl": "agrees", "token_s": "as expected",
    }  # fmt: skip
    assert "bad" not in compared.states()
    assert one(compared, "wins").apart == Quantity(0)


def test_a_run_that_is_the_reference_is_told_from_one_that_equals_it(claims):
    again = replace(record("04_evaluation"), started="2026-12-01T00:00:00+00:00")
    sections = [
        present.run_section(hold(claims, *records), "b")
        for records in ((), (again, record("06_evaluation")), (again,))
    ]
    assert [section.text for section in sections[:2]] == [sections[0].text] * 2
    both, one_of_them, neither = (" ".join(section.notes) for section in sections)
    assert both.startswith("2 of its 2 chapters were not run again")
    assert one_of_them.startswith("1 of its 2 chapters")
    assert neither == "Chapter 6: not run, this run has no record of it."


@pytest.mark.parametrize(
    ("made", "key", "word"),
    [
        (record("04_evaluation", wins=math.nextafter(95.9, 0)), "wins", "DIFFERS"),
        (record("04_evaluation", setting="B"), "setting", "DIFFERS"),
        (record("06_evaluation", ppl=20.39), "ppl", "agrees"),
        (record("06_evaluation", ppl=20.41), "ppl", "DISAGREES"),
        (replace(record("04_evaluation"), numbers={}), "wins", "not published"),
        (record("06_evaluation"), "wins", "not run"),
    ],
)
def test_a_verdict_is_that_of_the_claims_kind(claims, made, key, word):
    compared = hold(claims, made)
    assert one(compared, key).word == word
    assert ("bad" in compared.states()) == (word not in ("agrees", "not run"))


def test_other_parameters_are_not_comparable_whatever_the_values(claims):
    other = replace(record("04_evaluation"), parameters={"seeds": 20, "profile": "x"})
    compared = hold(claims, other)
    verdict = one(compared, "wins")
    assert verdict.word == "not comparable"
    assert verdict.text == "parameters differ: seeds=20 instead of 6"
    assert set(compared.states()) == {"open"}
    other = replace(record("04_evaluation"), parameters=dict.fromkeys("abcde", 1))
    text = one(hold(claims, other), "wins").text
    assert text.endswith("c=1 instead of nothing and 3 more")


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (Quantity(20.0, 19.0, 21.5), Quantity(22.0, 20.0, 23.0)),
        (Quantity(1.0, 0.5, 4.0), Quantity(1.0, 0.5, 4.0)),
    ],
)
def test_the_interval_of_a_difference_changes_sign_when_runs_are_swapped(mine, theirs):
    there, back = apart(mine, theirs), apart(theirs, mine)
    assert (there.value, there.low, there.high) == (-back.value, -back.high, -back.low)
    assert there.low <= there.value <= there.high
    over, under = apart(mine, theirs, True), apart(theirs, mine, True)
    assert over.low == pytest.approx(1 / under.high, rel=1e-12)
    assert over.high == pytest.approx(1 / under.low, rel=1e-12)


def test_an_interval_needs_both_and_a_ratio_needs_positive_numbers():
    assert apart(Quantity(2, 1, 3), Quantity(1)) == Quantity(1)
    assert apart(Quantity("a"), Quantity(1.0)) is None
    assert apart(Quantity(2.0), Quantity(0.0), as_ratio=True) is None
    wide = Quantity(2.0, -1.0, 3.0)
    assert apart(wide, Quantity(1.0, 0.5, 2.0), as_ratio=True) == Quantity(2.0)


@pytest.mark.parametrize(
    ("token_s", "word"), [(0.2, "as expected"), (0.4, "UNEXPECTED")]
)
def test_a_time_on_a_disk_twice_as_fast_is_expected_at_half(claims, token_s, word):
    fast = record("06_evaluation", rate=2e9, token_s=token_s)
    compared = hold(claims, fast)
    held = one(compared, "token_s")
    assert held.expected == pytest.approx(0.5)
    assert held.apart.value == pytest.approx(token_s / 0.4)
    assert held.word == word
    assert "bad" not in compared.states()  # a time breaks nothing


def test_a_disk_read_in_another_way_predicts_nothing(claims):
    other = record("06_evaluation", rate=9e9)
    other = replace(other, machine=other.machine | {"drain_how": "buffered"})
    held = one(hold(claims, other), "token_s")
    assert held.expected is None
    assert held.word == "expected to differ"


def test_a_profile_without_a_reference_shows_values_and_no_verdict(claims):
    full = run("b", record("04_evaluation", "full"), record("06_evaluation", "full"))
    compared = compare([full], claims, read_reference())
    assert set(words(compared).values()) == {"no reference"}
    assert one(compared, "wins").value == Quantity(95.9, 95.3, 96.5)
    assert len(compared.machines) == 1
    assert present.summary(compared.rows).startswith("No claim")


def test_chapters_of_different_profiles_are_each_held_against_their_own(claims):
    mixed = run("b", record("04_evaluation"), record("06_evaluation", "full"))
    assert words(compare([mixed], claims, read_reference())) == {
        "wins": "equal", "setting": "equal", "ppl": "no reference",
        "token_s": "no reference",
    }  # fmt: skip


def test_no_claims_is_a_comparison_of_machines(claims):
    compared = compare([run("b")], {}, run("a"))
    assert [machine["run"] for machine in compared.machines] == ["a", "b"]
    assert present.summary(compared.of("b")).startswith("No claim")
    assert present.html_page(compared)
    assert present.book_lines(compared, "b", None)


def test_run_times_are_compared_over_the_chapters_that_can_be(claims):
    slow = replace(record("04_evaluation"), seconds=20.0)
    other = replace(record("06_evaluation"), seconds=70.0, parameters={"seeds": 7})
    compared = hold(claims, slow, other)
    assert compared.machines[0]["ratio"] is None
    assert compared.machines[1]["ratio"] == pytest.approx(2.0)
    assert compared.machines[1]["seconds"] == 90


@pytest.mark.parametrize(
    ("numbers", "factor", "counts"),
    [
        ({}, 1.5, ("3 claims are", "1 time is")),
        ({"ppl": 99.0, "token_s": 9.0}, 2.5, ("2 of 3 claims are", "0 of 1 time is")),
    ],
)
def test_first_page_counts_times_apart_with_their_factor(
    claims, numbers, factor, counts
):
    timed = claims | {"token_s": replace(claims["token_s"], factor=factor)}
    made = [record("04_evaluation"), record("06_evaluation", **numbers)]
    rows = compare([run("b", *made)], timed, run("a")).of("b")
    within = f"{counts[1]} within a factor of {factor} of the prediction"
    assert present.in_short(rows) == (
        f"**{counts[0]} equal to the reference or within tolerance; {within}**, on the "
        "machine that made this book."
    )
    times = rows[rows["kind"] == "time"]
    assert present.in_short(times).startswith(f"**{within}**")


# --- What is refused -----------------------------------------------------------


def test_runs_without_a_common_chapter_are_refused(claims):
    with pytest.raises(InvalidInput, match="a and b have no chapter in common"):
        compare([run("b", record("04_evaluation"))], claims,
                run("a", record("06_evaluation")))  # fmt: skip


def test_no_folder_no_records_twice_and_newer_records_are_refused(data, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InvalidInput, match="is no folder"):
        compare_named([str(tmp_path / "none")], {})
    with pytest.raises(InvalidInput, match="holds no record"):
        compare_named([str(empty)], {})
    with pytest.raises(InvalidInput, match="given twice"):
        compare_named(["reference", "reference"], {})
    (empty / "04_evaluation.json").write_text('{"version": 99}')
    with pytest.raises(InvalidInput, match="newer version"):
        compare_named([str(empty)], {})


# --- What people read ----------------------------------------------------------


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        (Quantity(95.9123, 95.2987, 96.4999), "95.9 (95.3 to 96.5)"),
        (Quantity(-25.07, -136.1, -12.7), "−25 (−136 to −13)"),
        (Quantity(0.0123456), "0.01235"),
        (Quantity(2535.2), "2,535"),
        (Quantity(13), "13"),
        (Quantity(-0.0), "0"),
        (Quantity(-0.3, -8.1, 7.5), "0 (−8 to 8)"),
        (Quantity("a word"), "a word"),
        (Quantity(1.4210854715202004e-14), "1.42 × 10⁻¹⁴"),
        (None, "–"),
    ],
)
def test_numbers_are_as_precise_as_their_interval(quantity, text):
    assert present.format_quantity(quantity) == text


def test_markdown_shows_text_as_it_is(claims):
    assert present.markdown("a|b *c* {d} <e> $f$") == (r"a\|b \*c\* \{d\} \<e\> \$f\$")


def test_a_narrow_terminal_never_cuts_a_verdict(claims):
    long = Claim(
        "wins", 4, "says " * 40, "%", "exact", "seeds", reference={"smoke": 95.9}
    )
    shown = StringIO()
    console = Console(file=shown, width=80)
    present.draw(compare([run("b")], {"wins": long}, run("a")), console)
    assert any(" equal " in line for line in shown.getvalue().splitlines())


# --- The command ----------------------------------------------------------------


@pytest.fixture
def folder(data, tmp_path):
    """A run of another machine, of the reference's values."""
    path = tmp_path / "theirs"
    path.mkdir()
    for chapter in NUMBERS:
        record(chapter, rate=2e9, token_s=0.2).write(path / f"{chapter}.json")
    return path


def thesis(*given):
    return CliRunner().invoke(app, [*map(str, given)])


def test_json_has_rows_and_machines_and_nothing_else_is_printed(folder):
    done = thesis("compare", folder, "--json", "--strict")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"rows", "machines"} <= result.keys()
    held = {row["claim"]: row["runs"][0] for row in result["rows"]}
    assert held["token_s"]["verdict"] == "as expected"
    assert held["token_s"]["ratio"]["value"] == pytest.approx(0.5)
    assert [m["run"] for m in result["machines"]] == ["reference", str(folder)]


def test_strict_ends_with_status_1_after_printing_what_differs(folder):
    record("04_evaluation", wins=1.0).write(folder / "04_evaluation.json")
    done = thesis("compare", folder, "--strict")
    assert done.exit_code == 1
    (told,) = [line for line in done.stdout.splitlines() if "DIFFERS" in line]
    assert "Wins of <bid-price>" in told
    assert told.index(" 1.0 ") < told.index(" 95.9 ")
    (head,) = [line for line in done.stdout.splitlines() if "Ch." in line][:1]
    assert head.index(str(folder)) < head.index(" reference ")
    assert thesis("compare", folder).exit_code == 0


def test_strict_refuses_a_run_in_which_nothing_can_be_held(folder):
    for chapter in NUMBERS:
        record(chapter, "full").write(folder / f"{chapter}.json")
    done = thesis("compare", folder, "--strict")
    assert done.exit_code == 2
    assert "found no claim that could be held" in done.stderr


def test_the_page_is_one_escaped_file_that_reaches_for_nothing(folder, tmp_path):
    page = tmp_path / "page.html"
    done = thesis("compare", folder, "--html", page)
    assert done.exit_code == 0, done.stderr
    text = page.read_text()
    assert "Wins of &lt;bid-price&gt;" in text
    assert "A &amp; B" in text
    assert "<bid-price>" not in text
    assert "<svg" in text
    for word in ("equal", "agrees", "as expected", "prefers-color-scheme: dark"):
        assert word in text
    for outside in ("<script", "<link", "src=", "@import", "url(http"):
        assert outside not in text


def test_a_page_that_cannot_be_written_is_refused(folder, tmp_path):
    done = thesis("compare", folder, "--html", tmp_path / "none" / "page.html")
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_several_runs_are_held_against_the_first(folder, data):
    done = thesis("compare", "reference", folder, data / "reference" / "smoke")
    assert done.exit_code == 0, done.stderr
    assert "2 of 2 exact claims are equal" in done.stdout


def shown(*runs, claims):
    out = StringIO()
    compared = compare(runs[1:], claims, runs[0])
    present.draw(compared, Console(file=out, width=500))
    return compared, out.getvalue()


def test_chapters_that_no_run_has_are_left_out(claims, data):
    made = run("Verdict", record("04_evaluation"))
    for reference in (read_reference(), run("Claim", record("04_evaluation"))):
        compared, text = shown(reference, made, claims=claims)
        assert {claim.chapter for claim in compared.rows["claim"]} == {4}
        assert ": not run" not in text
        (head,) = {line for line in text.splitlines() if line.startswith("Ch.")}
        assert head.split()[:5] == ["Ch.", "Claim", "Verdict", made.label,
                                    reference.label]  # fmt: skip


def test_reasons_that_nothing_was_compared_take_one_line_each(claims):
    other = replace(record("04_evaluation"), parameters={"seeds": 20, "profile": "x"})
    _, text = shown(run("a"), run("b", other), claims=claims)
    lines = [line.strip() for line in text.splitlines()]
    assert (
        "Chapter 4: not comparable, parameters differ: seeds=20 instead of 6." in lines
    )
    assert "Chapter 6: not run, this run has no record of it." in lines
    assert text.count("not run") == 1
    _, text = shown(run("a", record("04_evaluation")), run("b"), claims=claims)
    assert text.count("no reference") == 1
    assert "Chapter 6: no reference, a has none." in text
    book = compare([run("b", other)], claims, run("a"))
    assert "seeds=20 instead of 6" in "\n".join(present.book_lines(book, "b", None))


def test_times_in_doubt_are_named_without_the_ends_of_their_intervals():
    why = dict.fromkeys(("step_s", "step_s_low", "step_s_high", "step_s_n"), "busy")
    section = present.doubts_section({"04_evaluation": why})
    assert [*section.notes] == ["chapter 4, step_s: busy"]
