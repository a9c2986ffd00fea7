"""The numbers and the table of the steps of the low-rank method."""

import numpy as np
import pytest

from thesis_book.tables import low_rank_steps

FIRST, SECOND = "sense_and_sensibility", "jargon"


def record(tokens=10):
    """Two calibration sets at one ratio, and one step at another, in two windows."""
    nats = {
        ("plain", 0): 9.0,
        ("whitened", 0): 4.0,
        ("whitened", 1): 4.4,
        ("allocated", 0): 3.3,
        ("allocated", 1): 3.3,
        ("sequential", 1): 3.2 + 0.3,
    }

    def windows(each):
        return [tokens * each / 2, tokens * each / 2]

    points = [
        {
            "seed": seed,
            "ratio": 0.8,
            "method": method,
            "nll": {FIRST: windows(each), SECOND: windows(2 * each)},
        }
        for (method, seed), each in nats.items()
    ]
    points.append({**points[1], "ratio": 0.5})
    return {
        "settings": {"context": 5, "evaluation_tokens": {FIRST: 10, SECOND: 10}},
        "dense": {"nll": {FIRST: [16.0, 16.0], SECOND: [32.0, 32.0]}},
        "points": points,
    }


def cell(table, text, ratio, step):
    (row,) = table[
        (table.text == text) & (table.ratio == ratio) & (table.step == step)
    ].itertuples()
    return row


def test_step_loss_is_relative_to_dense_and_to_whitening():
    table = low_rank_steps.curves(record())
    assert list(table.columns) == low_rank_steps.CURVES
    whitened = cell(table, "fiction", 0.8, "whitened")
    assert whitened.sets == 2
    assert whitened.perplexity == pytest.approx(np.exp(4.2))  # a geometric mean
    assert whitened.times == pytest.approx(np.exp(1.0))
    # Both windows of a set lose the same: the interval spans the two sets alone.
    assert whitened.low == pytest.approx(np.exp(0.8))
    assert whitened.high == pytest.approx(np.exp(1.2))
    assert whitened.left == 1
    allocated = cell(table, "fiction", 0.8, "+ allocation")
    assert allocated.left == pytest.approx(0.1)
    # Held against whitening on its own set only: 0.3 of 1.2 nats.
    assert cell(table, "fiction", 0.8, "+ sequential").left == pytest.approx(0.25)
    assert cell(table, "technical English", 0.5, "whitened").sets == 1


def test_words_of_one_ratio():
    table = low_rank_steps.curves(record())
    found = low_rank_steps.numbers(table, 0.8)
    assert found["dense"] == pytest.approx(np.exp(3.2))
    assert found["left_allocated"] == pytest.approx(10)
    assert found["other_left_allocated"] == pytest.approx(10)
    # of the two texts: the other one has its square
    assert found["plain_least"] == pytest.approx(np.exp(9.0 - 4.2))
    assert found["ratios"] == 2
    assert "refined" not in found
    shown = low_rank_steps.readable(table, 0.8)
    assert list(shown.index) == [
        "plain", "whitened", "+ allocation", "+ sequential",
    ]  # fmt: skip
    assert shown.loc["whitened", "fiction (times)"] == "2.72 (2.23 to 3.32)"
    assert shown.loc["+ allocation", "technical English, left (%)"] == "10"
