"""What `benchmarks/beside.py` makes of its samples."""

import pytest
from benchmark import load

beside = load("beside")


def samples(factor, speeds):
    """A round for each speed of the machine; `factor` is the growth by a process."""
    return [
        {"round": r, "way": way, "beside": n, "cpu_s": 1.0}
        | dict.fromkeys(beside.STEPS, 0.1 * speed * factor[way] ** n)
        for r, speed in enumerate(speeds)
        for n in beside.BESIDE
        for way in beside.WAYS
    ]


def test_interval_of_growth_holds_the_drift_between_rounds():
    """The machine is up to 1.2 times as slow in a round as in the one before."""
    factor = {"spinning": 10.0, "sleeping": 0.98}
    speeds = [1.0, 1.2, 1.1, 1.2] * 3
    for row in beside.summarize(samples(factor, speeds)):
        if row["beside"]:
            assert row["grown"] == pytest.approx(factor[row["way"]] ** row["beside"])
            assert row["low"] < row["grown"] < row["high"]
            drifts = row["low"] < 1 < row["high"]
            assert drifts == (row["way"] == "sleeping"), row
