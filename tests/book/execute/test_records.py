import json
from dataclasses import replace

import pytest

from thesis_book.execute import records
from thesis_book.execute.records import OldRecord, Record
from thesis_lib.common.errors import InvalidInput


def record():
    return Record(
        chapter="03_x", profile="smoke", parameters={"seeds": 2}, seeds={"seeds": 2},
        key="k", notebook_sha256="n", commit="c", clean=True, lock_sha256="l",
        machine={"cpu": "x", "cores": 2}, versions={"numpy": "2"}, started="t",
        precision="float64", seconds=1.5, peak_memory_bytes=1, load_average={},
        numbers={"a": 1.25},
    )  # fmt: skip


def test_a_record_reads_back_as_it_was(tmp_path):
    path = tmp_path / "r.json"
    record().write(path)
    assert Record.read(path) == record()


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"version": 2}', "\x00"])
def test_what_is_no_record_is_rejected_by_name(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"r\.json (is not|holds no) .*record"):
        Record.read(path)


def test_newer_record_is_rejected_and_older_one_is_recognised():
    with pytest.raises(InvalidInput, match=r"newer version.*nothing was changed"):
        Record.from_json('{"version": 99}', "r.json")
    with pytest.raises(OldRecord, match="record of version 1, expected 2"):
        Record.from_json('{"version": 1}', "r.json")


@pytest.mark.parametrize(
    "change",
    [{"seconds": "1.5"}, {"clean": 1}, {"numbers": []}, {"peak_memory_bytes": 1.5},
     {"surplus": 1}],
)  # fmt: skip
def test_a_field_of_another_type_and_an_unknown_one_are_rejected_by_name(change):
    content = json.loads(record().to_json()) | change
    with pytest.raises(InvalidInput, match=next(iter(change))):
        Record.from_json(json.dumps(content), "r.json")


def test_a_number_that_json_does_not_know_is_not_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(record(), numbers={"a": float("nan")}).to_json()


def test_a_number_that_is_not_finite_is_not_published():
    with pytest.raises(InvalidInput, match="expected a finite number"):
        records.publish(a=float("inf"))


def test_of_two_equal_names_the_last_is_published():
    records.publish({"a": 1, "b": 1}, {"a": 2}, b=3)
    assert [records.published()[name] for name in "ab"] == [2, 3]


def test_check_reports_agreement_and_disagreement():
    assert records.check("x", 1.04, 1.0, rtol=0.05) == "x: ok"
    assert records.check("x", 1.06, 1.0, rtol=0.05).startswith("x: 1.06 differs")
    with pytest.raises(InvalidInput):
        records.check("x", 1.0, 1.0, rtol=5)


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ((-1.3, -2.0, -0.6), (1.3, 0.6, 2.0, "more")),
        ((36, 30, 40), (36, 30, 40, "fewer")),
        ((-0.5, -1.0, 0.2), (0.5, -0.2, 1.0, "more")),
        ((0, -1, 1), (0, -1, 1, "fewer")),
    ],
)
def test_a_negative_reduction_is_published_as_more(ends, says):
    records.publish(dict(zip(("x", "x_low", "x_high"), ends, strict=True)))
    records.publish_change("x")
    names = ("x_by", "x_by_low", "x_by_high", "x_word")
    assert tuple(records.published()[name] for name in names) == says


def test_a_list_in_a_sentence_has_one_and():
    assert records.listed(["bfloat16", "int8", "NF4"]) == "bfloat16, int8 and NF4"
    assert records.listed(["bfloat16", "int8"]) == "bfloat16 and int8"
    assert (records.listed(["int8"]), records.listed([])) == ("int8", "none")
    assert records.listed(["a", "b"], {"a": "A"}) == "A and b"
