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
from thesis_book.execute.claims import read_claims
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
    return dict(zip(compared.rows["claim"], compared.rows["verdict"], strict=True))


def one(compared, key):
    return next(row for row in compared.rows.itertuples() if row.claim == key)


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
    assert one(compared, "wins").difference == Quantity(0)


def disk(token_s, how="direct"):
    """A run on a disk twice as fast as that of the reference."""
    fast = record("06_evaluation", rate=2e9, token_s=token_s)
    return replace(fast, machine=fast.machine | {"drain_how": how})


def other(**parameters):
    return replace(record("04_evaluation"), parameters=parameters)


@pytest.mark.parametrize(
    ("made", "key", "verdict", "text"),
    [
        (
            record("04_evaluation", wins=math.nextafter(95.9, 0)),
            "wins", "DIFFERS", "95.89999999999999 is not 95.9",
        ),
        (record("04_evaluation", setting="B"), "setting", "DIFFERS", "'B' is not 'A'"),
        (record("06_evaluation", ppl=20.39), "ppl", "agrees", "2 % allowed: kernels"),
        (record("06_evaluation", ppl=20.41), "ppl", "DISAGREES", "2 % allowed: kernel"),
        (replace(record("04_evaluation"), numbers={}), "wins", "not published", ""),
        (record("06_evaluation"), "wins", "not run", "this run has no record of it"),
        (
            other(seeds=20, profile="x"), "wins", "not comparable",
            "parameters differ: seeds=20 instead of 6",
        ),
        (
            other(**dict.fromkeys("abcde", 1)), "wins", "not comparable",
            "b=1 instead of nothing, c=1 instead of nothing and 3 more",
        ),
        (disk(0.2), "token_s", "as expected", "0.50 times the reference; 0.50 expect"),
        (disk(0.4), "token_s", "UNEXPECTED", "1.00 times the reference; 0.50 expected"),
        (disk(0.4, "buffered"), "token_s", "expected to differ", "1.00 times the ref"),
    ],
)  # fmt: skip
def test_a_verdict_is_that_of_the_claims_kind(claims, made, key, verdict, text):
    compared = hold(claims, made)
    row = one(compared, key)
    assert row.verdict == verdict
    assert text in row.text
    broken = {"DIFFERS", "DISAGREES", "not published"}  # a time breaks nothing
    assert ("bad" in compared.states()) == (verdict in broken)


AGAIN = replace(record("04_evaluation"), started="2026-12-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("records", "note"),
    [
        ((), "2 of its 2 chapters were not run again: they are the"),
        ((AGAIN, record("06_evaluation")), "1 of its 2 chapters were not run again"),
        ((AGAIN,), "Chapter 6: not run, this run has no record of it."),
    ],
)
def test_reference_differs_from_a_run_that_equals_it(claims, records, note):
    section = present.run_section(hold(claims, *records), "b")
    (only,) = section.notes
    assert only.startswith(note)
    assert section.text.startswith("2 of 2 exact claims are equal bit for bit")


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


def test_chapters_are_each_held_against_the_reference_of_their_profile(claims):
    small, full = (record("04_evaluation", profile) for profile in ("smoke", "full"))
    large = record("06_evaluation", "full")
    compared = compare([run("b", small, large)], claims, read_reference())
    assert words(compared) == {
        "wins": "equal", "setting": "equal", "ppl": "no reference",
        "token_s": "no reference",
    }  # fmt: skip
    compared = compare([run("b", full, large)], claims, read_reference())
    assert set(words(compared).values()) == {"no reference"}
    assert one(compared, "wins").value == Quantity(95.9, 95.3, 96.5)
    assert len(compared.machines) == 1
    assert present.summary(compared.rows).startswith("No claim")


def test_no_claims_is_a_comparison_of_machines(claims):
    compared = compare([run("b")], {}, run("a"))
    assert [machine["run"] for machine in compared.machines] == ["a", "b"]
    assert present.summary(compared.of("b")).startswith("No claim")
    assert present.html_page(compared)
    assert present.book_lines(compared, "b", None)


def test_run_times_are_compared_over_the_chapters_that_can_be(claims):
    slow = replace(record("04_evaluation"), seconds=20.0)
    changed = replace(record("06_evaluation"), seconds=70.0, parameters={"seeds": 7})
    changed = replace(changed, started="2026-01-01T00:00:15")  # while the other runs
    machines = hold(claims, slow, changed).machines
    assert [machine["ratio"] for machine in machines] == [None, pytest.approx(2.0)]
    assert machines[1]["seconds"] == 15 + 70


@pytest.mark.parametrize(
    ("numbers", "factor", "of_claims", "of_times"),
    [
        ({}, 1.5, "3 claims are", "1 time is"),
        ({"ppl": 99.0, "token_s": 9.0}, 2.5, "2 of 3 claims are", "0 of 1 time is"),
    ],
)
def test_first_page_counts_times_apart_with_their_factor(
    claims, numbers, factor, of_claims, of_times
):
    timed = claims | {"token_s": replace(claims["token_s"], factor=factor)}
    made = [record("04_evaluation"), record("06_evaluation", **numbers)]
    rows = compare([run("b", *made)], timed, run("a")).of("b")
    within = f"{of_times} within a factor of {factor} of the prediction"
    assert present.in_short(rows) == (
        f"**{of_claims} equal to the reference or within tolerance; {within}**, on the "
        "machine that made this book."
    )
    times = rows[rows["kind"] == "time"]
    assert present.in_short(times).startswith(f"**{within}**")


# --- What is refused -----------------------------------------------------------


def test_runs_without_a_common_chapter_are_rejected(claims):
    with pytest.raises(InvalidInput, match="a and b have no chapter in common"):
        compare([run("b", record("04_evaluation"))], claims,
                run("a", record("06_evaluation")))  # fmt: skip


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["none"], "is no folder"),
        (["empty"], "holds no record"),
        (["reference", "reference"], "given twice"),
        (["newer"], "newer version"),
    ],
)
def test_no_folder_no_records_twice_and_newer_records_are_rejected(
    data, tmp_path, monkeypatch, names, message
):
    for name in ("empty", "newer"):
        (tmp_path / name).mkdir()
    (tmp_path / "newer" / "04_evaluation.json").write_text('{"version": 99}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=message):
        compare_named(names, {})


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


def test_markdown_shows_text_as_it_is():
    assert present.markdown("a|b *c* {d} <e> $f$") == r"a\|b \*c\* \{d\} \<e\> \$f\$"


def shown(*runs, claims, width=500):
    out = StringIO()
    compared = compare(runs[1:], claims, runs[0])
    present.draw(compared, Console(file=out, width=width))
    return compared, out.getvalue()


def test_a_narrow_terminal_never_cuts_a_verdict(claims):
    long = {"wins": replace(claims["wins"], says="says " * 40)}
    _, text = shown(run("a"), run("b"), claims=long, width=80)
    assert any(" equal " in line for line in text.splitlines())


# --- The command ----------------------------------------------------------------


@pytest.fixture
def folder(data, tmp_path):
    """A run of another machine, of the reference's values."""
    path = tmp_path / "theirs"
    path.mkdir()
    for chapter in NUMBERS:
        record(chapter, rate=2e9, token_s=0.2).write(path / f"{chapter}.json")
    return path


def thesis(*words, status=0):
    """Return what a command printed: to its output, and to its errors."""
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == status, done.stderr
    return done.stdout, done.stderr


def test_json_has_rows_and_machines_and_nothing_else_is_printed(folder):
    result = json.loads(thesis("compare", folder, "--json", "--strict")[0])
    assert {"rows", "machines"} <= result.keys()
    runs = {row["claim"]: row["runs"][0] for row in result["rows"]}
    assert runs["token_s"]["verdict"] == "as expected"
    assert runs["token_s"]["ratio"]["value"] == pytest.approx(0.5)
    assert runs["token_s"]["expected_ratio"] == pytest.approx(0.5)
    assert [m["run"] for m in result["machines"]] == ["reference", str(folder)]


def test_strict_ends_with_status_1_after_printing_what_differs(folder):
    record("04_evaluation", wins=1.0).write(folder / "04_evaluation.json")
    text, _ = thesis("compare", folder, "--strict", status=1)
    (line,) = [line for line in text.splitlines() if "DIFFERS" in line]
    assert "Wins of <bid-price>" in line
    assert line.index(" 1.0 ") < line.index(" 95.9 ")
    (head,) = [line for line in text.splitlines() if "Ch." in line][:1]
    assert head.index(str(folder)) < head.index(" reference ")
    thesis("compare", folder)


@pytest.mark.parametrize(
    ("profile", "options", "message"),
    [
        ("full", ["--strict"], "could not compare any claim"),
        ("smoke", ["--html", "none/page.html"], "cannot be written"),
    ],
)
def test_what_cannot_be_held_or_written_is_rejected(folder, profile, options, message):
    for chapter in NUMBERS:
        record(chapter, profile).write(folder / f"{chapter}.json")
    _, error = thesis("compare", folder, *options, status=2)
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_the_page_is_one_escaped_file_that_reaches_for_nothing(folder, tmp_path):
    page = tmp_path / "page.html"
    thesis("compare", folder, "--html", page)
    text = page.read_text()
    for part in (
        "Wins of &lt;bid-price&gt;", "A &amp; B", "<svg", "equal", "agrees",
        "as expected", "prefers-color-scheme: dark",
    ):  # fmt: skip
        assert part in text
    for outside in (
        "<bid-price>", "<script", "<link", "src=", "@import", "url(http",
    ):  # fmt: skip
        assert outside not in text


def test_several_runs_are_held_against_the_first(folder, data):
    text, _ = thesis("compare", "reference", folder, data / "reference" / "smoke")
    assert "2 of 2 exact claims are equal" in text


@pytest.mark.parametrize("committed", [True, False])
def test_chapters_that_no_run_has_are_left_out(claims, committed):
    made = run("Verdict", record("04_evaluation"))
    other = run("Claim", record("04_evaluation"))
    reference = read_reference() if committed else other
    compared, text = shown(reference, made, claims=claims)
    assert {*compared.rows["chapter"]} == {4}
    assert ": not run" not in text
    (head,) = {line for line in text.splitlines() if line.startswith("Ch.")}
    columns = ["Ch.", "Claim", "Verdict", "Verdict", reference.label]
    assert head.split()[:5] == columns


def test_reasons_that_nothing_was_compared_take_one_line_each(claims):
    differing = run("b", other(seeds=20, profile="x"))
    compared, text = shown(run("a"), differing, claims=claims)
    lines = [line.strip() for line in text.splitlines()]
    reason = "not comparable, parameters differ: seeds=20 instead of 6."
    assert f"Chapter 4: {reason}" in lines
    assert "Chapter 6: not run, this run has no record of it." in lines
    assert text.count("not run") == 1
    page = "\n".join(present.book_lines(compared, "b", None))
    assert "seeds=20 instead of 6" in page
    _, text = shown(run("a", record("04_evaluation")), run("b"), claims=claims)
    assert text.count("no reference") == 1
    assert "Chapter 6: no reference, a has none." in text


def test_times_in_doubt_are_named_without_the_ends_of_their_intervals():
    why = dict.fromkeys(("step_s", "step_s_low", "step_s_high", "step_s_n"), "busy")
    section = present.doubts_section({"04_evaluation": why})
    assert [*section.notes] == ["chapter 4, step_s: busy"]
