import subprocess

import pytest

from thesis_lib import results
from thesis_lib.checks import InvalidInput
from thesis_lib.results import Record


def record():
    return Record(
        chapter="03_x", profile="smoke", parameters={"seeds": 2}, key="k", commit="c",
        machine={"cpu": "x", "cores": 2}, versions={"numpy": "2"}, started="t",
        seconds=1.5, numbers={"a": 1.25},
    )  # fmt: skip


def test_a_record_reads_back_as_it_was(tmp_path):
    path = tmp_path / "r.json"
    record().write(path)
    assert Record.read(path) == record()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 99}', '{"version": 1}'])
def test_what_is_no_record_is_refused_by_name(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"r\.json is not a record"):
        Record.read(path)


def test_check_reports_agreement_and_disagreement():
    assert results.check("x", 1.04, 1.0, rtol=0.05) == "x: ok"
    assert results.check("x", 1.06, 1.0, rtol=0.05).startswith("x: 1.06 differs")
    with pytest.raises(InvalidInput):
        results.check("x", 1.0, 1.0, rtol=5)


def test_a_hash_of_files_sees_content_and_name(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    first = results.file_hash([a])
    a.write_text("2")
    assert results.file_hash([a]) != first
    a.write_text("1")
    assert results.file_hash([a]) == first
    a.rename(b)
    assert results.file_hash([b]) != first


def test_a_commit_is_marked_where_the_tree_has_changes(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True)

    assert results.commit(tmp_path) == "no repository"
    git("init", "-q")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-qm", "first")
    clean = results.commit(tmp_path)
    (tmp_path / "f").write_text("2")
    assert results.commit(tmp_path) == f"{clean}+changes"
