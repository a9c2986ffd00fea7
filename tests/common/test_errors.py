import os

import numpy as np
import pytest

from thesis_lib.common.errors import (
    InvalidInput,
    choice,
    open_regular,
    require_count,
    vector,
)


def test_an_unknown_choice_names_the_options_and_the_nearest():
    with pytest.raises(InvalidInput, match=r"fifo, drop.*did you mean 'drop'"):
        choice("policy", "dorp", ["fifo", "drop"])


@pytest.mark.parametrize(
    ("values", "dtype", "says"),
    [
        ([1.0, np.nan], np.float64, "row 1 of x is nan"),
        ([1.0, None], np.float64, "row 1 of x is nan"),
        (["a", "b"], np.float64, r"x holds .* expected (plain )?numbers"),
        ([{}, {}], np.float64, r"x holds .* expected (plain )?numbers"),
        ([np.inf], np.float64, "x"),
        ([0.5], np.int64, "x"),
        ([[1.0]], np.float64, "x"),
        (np.array([3], "m8[ms]"), np.float64, "x"),
        (np.array(["2026-01-01"], "M8[D]"), np.int64, "x"),
        ([1 + 1j], np.float64, "x"),
    ],
)
def test_a_vector_that_would_change_its_values_is_rejected(values, dtype, says):
    with pytest.raises(InvalidInput, match=says):
        vector("x", values, dtype)
    assert vector("x", [1.0, 2.0], np.int64).tolist() == [1, 2]


def test_a_count_is_whole_of_whatever_type():
    for good in (1, np.int64(2), np.uint8(3)):
        require_count("cores", good)
    require_count("seed", 0, 0)
    for bad in (0, -1, 1.5, 2.0, np.float64(1), np.array([1]), "1", None):
        with pytest.raises(InvalidInput, match=r"cores=.*: expected at least 1, a wh"):
            require_count("cores", bad)


def test_only_a_regular_file_is_opened_and_nobody_waits_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "device", "loop", ".", "absent"):
        with pytest.raises(OSError, match=r"regular|many|No such"):
            os.close(open_regular(tmp_path / name))
    (tmp_path / "file").write_text("{}")
    (tmp_path / "link").symlink_to("file")
    os.close(open_regular(tmp_path / "link"))
