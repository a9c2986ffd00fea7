from dataclasses import replace

import numpy as np
import pytest

from thesis_lib.checks import InvalidInput
from thesis_lib.sequencer.trace import KeySets, Trace
from thesis_lib.sequencer.workload import scenario


def traces_agree(a, b):
    assert a.kinds == b.kinds
    assert a.feature_names == b.feature_names
    assert a.unit_names == b.unit_names
    assert a.meta == b.meta
    assert a.measured.keys() == b.measured.keys()
    for name in ("kind", "arrival_s", "service_s", "features", "units_s"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("offsets", "keys", "exclusive"):
        np.testing.assert_array_equal(getattr(a.keys, name), getattr(b.keys, name))
    for name, column in a.measured.items():
        np.testing.assert_array_equal(column, b.measured[name])


def test_a_written_trace_reads_back_bit_for_bit(tmp_path):
    trace = scenario("A", 200, seed=1)
    trace = replace(trace, measured={"cpu_s": trace.service_s / 3})
    trace.write(tmp_path / "t.parquet")
    traces_agree(trace, Trace.read(tmp_path / "t.parquet"))
    assert [f.name for f in tmp_path.iterdir()] == ["t.parquet"]


def test_a_transaction_without_keys_survives(tmp_path):
    trace = scenario("A", 3, seed=1)
    empty = KeySets.from_lists([[], [4], []], [[], [7], []])
    replace(trace, keys=empty).write(tmp_path / "t.parquet")
    back = Trace.read(tmp_path / "t.parquet").keys
    np.testing.assert_array_equal(back.offsets, [0, 0, 2, 2])
    np.testing.assert_array_equal(back.keys, [4, 7])
    np.testing.assert_array_equal(back.exclusive, [False, True])


def test_a_missing_or_other_file_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidInput, match=r"none\.parquet does not exist"):
        Trace.read(tmp_path / "none.parquet")
    other = tmp_path / "other.parquet"
    other.write_bytes(b"not a table")
    with pytest.raises(InvalidInput, match="is not a trace"):
        Trace.read(other)
    scenario("A", 3, seed=1).frame().to_parquet(other)
    with pytest.raises(InvalidInput, match="is not a trace"):
        Trace.read(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrival_s": np.array([0.0, 2.0, 1.0])}, "sort the transactions"),
        ({"service_s": np.array([1.0, -1.0, 1.0])}, "service_s has a minimum of -1"),
        ({"service_s": np.array([1.0, np.nan, 1.0])}, "NaN"),
        ({"service_s": np.ones(2)}, "service_s has 2 entries: expected 3"),
        ({"kind": np.array([0, 1, 2])}, "past the 2 names"),
        ({"features": np.ones((3, 2))}, r"expected \(3, 3\)"),
        ({"measured": {"cpu_s": np.ones(4)}}, "cpu_s has 4 entries"),
    ],
)
def test_columns_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InvalidInput, match=message):
        replace(scenario("A", 3, seed=1), **change)


@pytest.mark.parametrize(
    ("offsets", "keys", "message"),
    [
        ([0, 2, 1], [3, 4], "offsets must rise"),
        ([0, 1], [3, 4], "offsets must rise"),
        ([0, 2], [3, 3], "lists key 3 twice"),
        ([0, 1], [-1], "keys has a minimum of -1"),
    ],
)
def test_key_sets_that_do_not_fit_are_refused(offsets, keys, message):
    with pytest.raises(InvalidInput, match=message):
        KeySets(np.array(offsets), np.array(keys), np.zeros(len(keys), bool))


def test_the_same_key_in_two_transactions_is_no_repetition():
    KeySets(np.array([0, 1, 2]), np.array([3, 3]), np.zeros(2, bool))


@pytest.mark.parametrize("seed", range(5))
def test_taking_rows_takes_their_keys(seed):
    keys = scenario("A", 40, seed).keys
    rows = np.random.default_rng(seed).permutation(40)[:17]
    taken = keys.take(rows)
    for new, old in enumerate(rows):
        a = slice(taken.offsets[new], taken.offsets[new + 1])
        b = slice(keys.offsets[old], keys.offsets[old + 1])
        np.testing.assert_array_equal(taken.keys[a], keys.keys[b])
        np.testing.assert_array_equal(taken.exclusive[a], keys.exclusive[b])


def test_a_split_is_the_past_and_then_the_future():
    trace = scenario("A", 100, seed=3)
    past, future = trace.split(0.7)
    assert (len(past), len(future)) == (70, 30)
    assert past.arrival_s[-1] <= future.arrival_s[0]
    np.testing.assert_array_equal(
        np.concatenate([past.service_s, future.service_s]), trace.service_s
    )


def test_a_batch_holds_no_service_time():
    trace = scenario("A", 10, seed=3)
    batch = trace.batch(np.array([2, 5]), np.array([1.0, 2.0]))
    assert set(batch.__slots__) == {
        "ids",
        "arrival_s",
        "deadline_s",
        "features",
        "keys",
    }
