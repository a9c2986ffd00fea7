"""What is said in a line is what a rehearsal finds, and what it found is kept."""

from dataclasses import asdict

import numpy as np
import pytest

from thesis_lib.common.answers import remembered
from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.model.shape import Shape
from thesis_lib.memory.model.spec import geometries, geometry
from thesis_lib.memory.offload import footprint


@pytest.mark.parametrize("name", geometries())
def test_one_token_takes_what_its_rehearsal_finds(name):
    spec = geometry(name)
    draw = np.random.default_rng([*name.encode()])
    for longest in (3, spec.most_positions):  # each worst moment, of two
        shape = Shape(int(draw.integers(1, 20)), int(draw.integers(1, longest)))
        rehearsed = footprint._rehearsed(asdict(spec), asdict(shape), "dense")
        assert asdict(footprint.geometry_footprint(spec, shape, "dense")) == rehearsed


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
    assert asked == [2, 2, -1, -1]
    for kept in (tmp_path / "answers").iterdir():
        kept.write_text("{")  # cut off
    assert answer(2, "a") == {"half": 2 / 3, "text": "a"}
    assert asked[-1] == 2
