"""What is said in a line is what a rehearsal finds."""

from dataclasses import asdict

import numpy as np
import pytest

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
