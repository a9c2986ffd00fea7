"""A record of a benchmark says who made it, and goes on where it was stopped."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import record as module
from record import (
    Record,
    answering,
    benchmark,
    ratio,
    renew,
    turns,
)

from thesis_lib.common.errors import InvalidInput


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "record.json"


def told(path):
    return json.loads(path.read_text())


def test_it_says_who_made_it_and_what_was_found(path):
    Record(path, {"size": 3, "loads": (1, 2)}).write(rows=[1, 2])
    found = told(path)
    assert {"commit", "clean", "kernel", "machine", "versions", "date"} <= found.keys()
    assert found["settings"] == {"size": 3, "loads": [1, 2]}
    assert found["rows"] == [1, 2]
    assert [len(found["load_average"][end]) for end in ("start", "end")] == [3, 3]


def test_what_is_done_stays_done_and_each_point_has_its_commit(path):
    first = Record(path, {"size": 3}, ["points", "base"])
    first.content["base"] = 7
    first.add({"seed": 0, "found": 1.5})
    again = Record(path, {"size": 3}, ["points", "base"])
    assert again.content["base"] == 7
    assert again.find(seed=0) == {**first.points[0], "commit": first.content["commit"]}
    assert again.find(seed=1) is None
    again.add({"seed": 1})
    assert [point["seed"] for point in told(path)["points"]] == [0, 1]


def test_a_stop_in_the_middle_leaves_the_record_of_before(path, monkeypatch):
    made = Record(path, resume=["points"])
    made.add({"seed": 0})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        made.add({"seed": {1}})  # no JSON
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("part", ["commit", "machine"])
def test_a_record_of_elsewhere_is_gone_on_with_only_where_one_says_so(path, part):
    Record(path, {}, ["points"]).add({"seed": 0})
    found = told(path)
    path.write_text(json.dumps(found | {part: "another"}))
    with pytest.raises(InvalidInput, match=f"at another {part}, another: expected .*"):
        Record(path, {}, ["points"])
    again = Record(path, {}, ["points"], elsewhere=True)
    assert again.points == found["points"]
    assert again.content[part] == found[part]  # the one that writes now


def test_other_settings_are_rejected_everywhere(path):
    same = {"size": 3, "loads": (1, 2)}
    Record(path, same, ["points"]).write()
    assert Record(path, same, ["points"], elsewhere=True).content["settings"]
    with pytest.raises(InvalidInput, match=r"other settings, .*: 3.*expected .*: 4"):
        Record(path, {"size": 4}, ["points"], elsewhere=True)
    assert Record(path, {"size": 4}).content["settings"] == {"size": 4}  # made anew


def test_what_is_no_record_is_rejected_and_left_alone(path):
    path.parent.mkdir()
    path.write_text('{"points": [')
    with pytest.raises(
        InvalidInput, match=r"readable JSON: expected the record of a script"
    ):
        Record(path, resume=["points"])
    assert path.read_text() == '{"points": ['
    with pytest.raises(InvalidInput, match=r"expected one that ends in \.json"):
        Record(path.with_suffix(".txt"))


def test_a_part_is_renewed_alone(path):
    Record(path).write(cases=[{"a": 1}], other={"x": 1})
    before = told(path)
    renew(path, "other", x=2)
    assert told(path)["other"]["x"] == 2
    assert told(path)["other"]["commit"] == module.made_by()["commit"]
    assert told(path) | {"other": 0} == before | {"other": 0}


@dataclass(frozen=True, kw_only=True)
class Options:
    names: Annotated[list[str] | None, "of them"] = None
    dry_run: bool = False


def test_a_signature_is_a_command(tmp_path, capsys):
    heard = []

    @benchmark
    def main(out: Path, given: Options, rounds: int = 3, *, share: float = 0.5):
        """What the words say."""
        heard.append((out, given, rounds, share))
        if given.dry_run:
            raise InvalidInput("refused")

    main([])
    main(["7", "--share", "2", "--names", "a", "b", "--out", "x.json"])
    own = Path(module.checkout(), "data", "measurements", "test_record.json")
    assert heard == [
        (own, Options(), 3, 0.5),
        (Path("x.json"), Options(names=["a", "b"]), 7, 2.0),
    ]
    with pytest.raises(SystemExit, match="refused"):
        main(["--dry-run"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "of them" in capsys.readouterr().out


def test_a_linear_drift_adds_the_same_to_everyone():
    order = list(turns("abc", 4))
    assert [number for number, _ in order] == sorted([0, 1, 2, 3] * 3)
    for name in "abc":
        places = [i for i, (_, each) in enumerate(order) if each == name]
        assert sum(places) / 4 == (len(order) - 1) / 2


def test_a_ratio_of_medians_lies_in_its_interval():
    rng = np.random.default_rng(0)
    under = rng.uniform(1, 2, 40)
    found = ratio(3 * under * rng.uniform(0.9, 1.1, 40), under)
    assert found["ratio"] == pytest.approx(3, rel=0.1)
    assert 2.7 < found["low"] < found["ratio"] < found["high"] < 3.3
    assert (found["n"], found["interval"]) == (40, "order statistics")
    alone = {"ratio": 2, "low": 2, "high": 2, "n": 1, "interval": "range"}
    assert ratio([4.0], [2.0]) == alone


def count():
    """In a process of its own: how often it was asked before, and what it was told."""
    yield "ready"
    for number, _ in enumerate(sys.stdin):
        yield number, os.environ["TOLD"]


def fail():
    """A process that never gets ready."""
    raise InvalidInput("no")
    yield


def test_a_process_of_its_own_answers_as_often_as_it_is_asked():
    paths = [Path(module.__file__).parent, os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "TOLD": "x"}
    with answering(count, **environment) as ask:
        assert [ask(), ask()] == [[0, "x"], [1, "x"]]
    with (
        pytest.raises(SystemExit, match="did not start"),
        answering(fail, **environment),
    ):
        pass
