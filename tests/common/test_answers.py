"""What is kept on the disk is what would be computed."""

from importlib import metadata

import pytest

from thesis_lib.common import answers
from thesis_lib.common.errors import InvalidInput


@pytest.fixture
def calls():
    return []


@pytest.fixture
def halve(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_CACHE", str(tmp_path))

    @answers.remembered
    def halve(number, text=None):
        calls.append(number)
        if number < 0:
            raise InvalidInput("negative")
        return {"half": number / 3, "text": text}

    return halve


def test_result_is_computed_once_and_error_raised_every_time(calls, halve):
    for _ in range(2):
        assert halve(2, "a") == {"half": 2 / 3, "text": "a"}
        assert halve(2, "b") == {"half": 2 / 3, "text": "b"}
        with pytest.raises(InvalidInput, match="negative"):
            halve(-1)
    assert calls == [2, 2, -1, -1]


@pytest.mark.filterwarnings("ignore:Exception while loading results")
def test_damaged_result_is_computed_again(tmp_path, calls, halve):
    halve(2)
    for result in tmp_path.rglob("*.pkl"):
        result.write_text("{")  # cut off
    assert halve(2) == {"half": 2 / 3, "text": None}
    assert calls == [2, 2]


def test_result_is_computed_again_with_another_library(monkeypatch, calls, halve):
    halve(2)
    version = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0" if name == "torch" else version(name)
    )
    answers._environment_hash.cache_clear()
    halve(2)
    answers._environment_hash.cache_clear()
    assert calls == [2, 2]


def test_result_is_computed_every_time_where_nothing_can_be_written(
    monkeypatch, calls, halve
):
    monkeypatch.setenv("THESIS_CACHE", "/dev/null/cache")
    assert halve(1) == halve(1)
    assert calls == [1, 1]
