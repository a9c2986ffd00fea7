"""What is kept on the disk is what would be computed."""

from importlib import metadata

import numpy as np
import pytest

from thesis_lib.common import answers
from thesis_lib.common.answers import remembered
from thesis_lib.common.errors import InvalidInput


def test_a_question_is_computed_once_and_a_refusal_every_time(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_CACHE", str(tmp_path))
    asked = []

    @remembered
    def answer(number, text=None):
        asked.append(number)
        if number < 0:
            raise InvalidInput("negative")
        return {"half": number / 3, "text": text}

    for _ in range(2):
        assert answer(2, "a") == {"half": 2 / 3, "text": "a"}
        assert answer(2, "b") == {"half": 2 / 3, "text": "b"}
        with pytest.raises(InvalidInput, match="negative"):
            answer(-1)
    assert answer(np.int64(2), "a") == {"half": 2 / 3, "text": "a"}
    assert asked == [2, 2, -1, -1]
    for kept in (tmp_path / "answers").iterdir():
        kept.write_text("{")  # cut off
    assert answer(2, "a") == {"half": 2 / 3, "text": "a"}
    assert asked[-1] == 2


def test_where_nothing_can_be_written_all_is_computed_again(monkeypatch):
    monkeypatch.setenv("THESIS_CACHE", "/dev/null/cache")
    asked = []

    @remembered
    def answer(number):
        asked.append(number)
        return number

    assert [answer(1), answer(1)] == asked == [1, 1]


def test_an_absent_library_or_folder_of_data_is_another_circumstance(monkeypatch):
    version, known = metadata.version, answers._circumstances.__wrapped__()

    def absent(library):
        if library == "torch":
            raise metadata.PackageNotFoundError
        return version(library)

    monkeypatch.setattr(metadata, "version", absent)
    without = [each for each in known if not each.startswith("torch ")]
    assert answers._circumstances.__wrapped__() == without != known
    monkeypatch.setenv("THESIS_DATA", "/nowhere")
    assert len(answers._circumstances.__wrapped__()) == len(without) - 1
