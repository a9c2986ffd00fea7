"""Windows lie where their placement says, and inside of the text."""

import numpy as np
import pytest
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.evaluate.windows import cut_windows, read_windows


def starts(n, context, count, placement="spread", seed=0):
    """Where windows begin, of a text whose tokens say where they stand."""
    found = cut_windows(torch.arange(n), context, count, placement, seed)
    assert (found - found[:, :1] == torch.arange(context)).all()
    return found[:, 0].tolist()


@pytest.mark.parametrize(
    ("n", "context", "count", "spread", "grid"),
    [
        (100, 10, 4, [0, 30, 60, 90], [0, 20, 50, 70]),
        (105, 10, 4, [0, 31, 63, 95], [0, 20, 50, 70]),
        (25, 10, 9, [0, 15], [0, 10]),  # no more than fit
        (30, 10, None, [0, 10, 20], [0, 10, 20]),
        (10, 10, 1, [0], [0]),
    ],
)
def test_windows_are_placed_evenly(n, context, count, spread, grid):
    assert starts(n, context, count) == spread
    assert starts(n, context, count, "grid") == grid


def test_what_is_drawn_is_a_sample_of_whole_windows():
    drawn = starts(105, 10, 6, "drawn", 3)
    order = np.random.default_rng(3).permutation(10)
    assert drawn == [10 * place for place in order[:6]]
    assert sorted(starts(105, 10, 50, "drawn", 3)) == list(range(0, 100, 10))


def test_windows_from_anywhere_stay_within_the_text():
    found = starts(60, 10, 200, "anywhere", 7)
    draw = torch.Generator().manual_seed(7)
    assert found == torch.randint(0, 50, (200,), generator=draw).tolist()
    assert len(found) == 200
    assert max(found) < 50
    assert found != starts(60, 10, 200, "anywhere", 8)
    assert starts(10, 10, 2, "anywhere") == [0, 0]


def test_a_text_is_read_and_cut(tmp_path):
    class Characters:
        def __call__(self, text, **_):
            return {"input_ids": [ord(letter) for letter in text]}

    path = tmp_path / "text.txt"
    path.write_text("".join(chr(at) for at in range(40, 140)), encoding="utf-8")
    found = read_windows(Characters(), path, 10, 4) - 40
    assert found[:, 0].tolist() == [0, 30, 60, 90]
    with pytest.raises(InvalidInput, match="100 tokens: expected 101 at least"):
        read_windows(Characters(), path, 101)
    with pytest.raises(InvalidInput, match="does not exist"):
        read_windows(Characters(), tmp_path / "none.txt", 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 0}, "context=0 and count=None must be positive"),
        ({"context": 5, "count": 0}, "count=0 must be positive"),
        ({"context": 5, "placement": "evenly"}, "placement='evenly' is unknown"),
        ({"context": 11}, "10 tokens: expected 11 at least"),
    ],
)
def test_what_cannot_be_cut_is_rejected(options, words):
    with pytest.raises(InvalidInput, match=words):
        cut_windows(torch.arange(10), **options)
