"""What `benchmarks/beside.py` makes of its samples."""

import pytest
from benchmark import load

beside = load("beside")


def test_growth_is_against_the_same_way_alone_in_the_same_round():
    """The machine is twice as slow in the second round, which is nobody's growth."""
    factor = {"spinning": 10.0, "sleeping": 1.5}
    samples = [
        {"round": r, "way": way, "beside": n, "cpu_s": 1.0}
        | dict.fromkeys(beside.STEPS, 0.1 * 2**r * factor[way] ** n)
        for r in range(3)
        for n in beside.BESIDE
        for way in beside.WAYS
    ]
    rows = beside.summarise(samples)
    assert len(rows) == len(beside.WAYS) * len(beside.BESIDE) * len(beside.STEPS)
    for row in rows:
        expected = pytest.approx(factor[row["way"]] ** row["beside"])
        assert (row["grown"], row["low"], row["high"]) == (expected,) * 3
