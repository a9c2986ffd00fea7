import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from key_sets import no_keys, requests

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import MOST_KEYS, Batch, KeySets, Trace
from thesis_lib.sequencer.workload.scenarios import scenario


def traces_agree(a, b):
    for name in ("kinds", "feature_names", "unit_names", "meta"):
        assert getattr(a, name) == getattr(b, name)
    assert a.measured.keys() == b.measured.keys()
    for name in ("kind", "arrival_s", "service_s", "features", "units_s"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name, column in a.measured.items():
        np.testing.assert_array_equal(column, b.measured[name])
    key_sets_agree(a.keys, b.keys)


def key_sets_agree(a, b):
    for name in ("offsets", "keys", "exclusive"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


TRACE, THREE = (scenario("A", n, seed=1) for n in (12, 3))
WRITTEN = replace(TRACE, measured={"cpu_s": TRACE.service_s / 3})
FOREIGN = KeySets.from_lists([["w"]] * 12, [[f"d{key}"] for key in range(12)])


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"measured": {"worker": np.arange(12) % 3}},
        {"keys": KeySets.from_lists([[]] * 11 + [[4]], [[]] * 11 + [[7]])},
        {"keys": KeySets.from_lists([[]] * 12, [[2**40 + key] for key in range(12)])},
        {"keys": FOREIGN},
    ],
)
def test_written_trace_reads_back_bit_for_bit(change, tmp_path):
    trace = replace(WRITTEN, **change)
    trace.write(tmp_path / "t.parquet")
    traces_agree(trace, Trace.read(tmp_path / "t.parquet"))
    assert [f.name for f in tmp_path.iterdir()] == ["t.parquet"]


def test_missing_or_other_file_is_rejected_by_name(tmp_path):
    with pytest.raises(
        InvalidInput, match=r"none\.parquet is rejected: it does not exist"
    ):
        Trace.read(tmp_path / "none.parquet")
    other = tmp_path / "other.parquet"
    for write in (
        lambda: other.write_bytes(b"not a table"),
        lambda: pq.write_table(pa.table({"service_s": [1.0]}), other),
    ):
        write()
        with pytest.raises(InvalidInput, match="is not a trace"):
            Trace.read(other)
    with pytest.raises(InvalidInput, match="would be read as text"):
        WRITTEN.write(tmp_path / "trace.csv")


BATCH = Batch(
    ids=np.arange(2),
    arrival_s=np.array([1.0, 2.0]),
    deadline_s=np.array([3.0, np.inf]),
    features=np.zeros((2, 2)),
    keys=no_keys(2),
    feature_names=("a", "b"),
)


@pytest.mark.parametrize(
    ("of", "change", "message"),
    [
        (
            THREE,
            {"arrival_s": np.array([0.0, 2.0, 1.0])},
            "row 2 of arrival_s is 1.0: ",
        ),
        (THREE, {"service_s": np.ones(2)}, "service_s has 2 entries: expected 3"),
        (THREE, {"service_s": np.array(["1", "x", "2"])}, "expected plain numbers"),
        (THREE, {"kind": np.array([0, 0.5, 1])}, "row 1 of kind is 0.5: int64 cannot"),
        (THREE, {"kinds": ("order", "order")}, "a type has its name twice"),
        (THREE, {"features": np.ones((3, 2))}, r"expected \(3, 3\)"),
        (THREE, {"feature_names": ("a", "b", "a")}, "a feature has its name twice"),
        (THREE, {"keys": KeySets.from_lists([[]], [[1]])}, "1 key sets for 3 trans"),
        (THREE, {"measured": {"cpu_s": np.ones(4)}}, "cpu_s has 4 entries"),
        (
            BATCH,
            {"deadline_s": np.array([9.0, 2.0])},
            "row 1 of deadline_s is 2.0.*aft",
        ),
        (BATCH, {"deadline_s": np.array([np.nan, 9.0])}, "row 0 of deadline_s is nan"),
        (BATCH, {"deadline_s": np.array([9.0])}, "deadline_s has 1 rows for 2 ids"),
        (BATCH, {"features": np.array([[0, 1], [2, np.inf]])}, "row 1 of feature b is"),
        (BATCH, {"feature_names": ("a",)}, "shape .2, 2.: expected .2, 1."),
        (BATCH, {"keys": no_keys(1)}, "keys has 1 rows for 2 ids"),
    ],
)
def test_columns_that_do_not_fit_are_rejected(of, change, message):
    with pytest.raises(InvalidInput, match=message):
        replace(of, **change)


def key_sets(offsets, keys):
    return KeySets(np.array(offsets), np.array(keys), np.zeros(len(keys), bool))


@pytest.mark.parametrize(
    ("call", "argument", "message"),
    [
        *(
            (lambda rows: key_sets(*rows), rows, message)
            for rows, message in (
                (([0, 2, 1], [3, 4]), "offsets must rise"),
                (([0, 1], [3, 4]), "offsets must rise"),
                (([0, 0, 2], [3, 3]), "row 1 of keys lists 3 twice"),
                (([0, 2, 3], [0, 1, -1]), "row 1 of keys lists -1"),
                (([-1, 1], [3]), "row 0 of offsets is -1"),
            )
        ),
        *(
            (lambda key: KeySets.from_lists([[key], [1]], [[], []]), key, "keys")
            for key in (1.5, np.nan, 2**70, None, {})
        ),
        *(
            (rows.take, np.arange(12) > 5, r"rows hold bool.*np\.flatnonzero")
            for rows in (TRACE, TRACE.keys)
        ),
    ],
)
def test_key_sets_and_rows_that_do_not_fit_are_rejected(call, argument, message):
    with pytest.raises(InvalidInput, match=message):
        call(argument)


@pytest.mark.parametrize("seed", range(5))
def test_take_takes_the_keys_of_the_rows(seed):
    keys = scenario("A", 40, seed).keys
    rows = np.random.default_rng(seed).permutation(40)[:17]
    taken = keys.take(rows)
    assert [requests(taken, i) for i in range(17)] == [requests(keys, i) for i in rows]


def test_a_split_is_the_past_and_then_the_future():
    trace = scenario("A", 100, seed=3)
    past, future = trace.split(0.7)
    assert (len(past), len(future)) == (70, 30)
    assert past.arrival_s[-1] <= future.arrival_s[0]
    np.testing.assert_array_equal(
        np.concatenate([past.service_s, future.service_s]), trace.service_s
    )


def test_batch_has_no_service_time():
    batch = TRACE.batch(np.array([2, 5]), np.array([11.0, 12.0]))
    assert {name for name in batch.__slots__ if name.endswith("_s")} == {
        "arrival_s", "deadline_s",
    }  # fmt: skip


# --- Files that are not what was written --------------------------------------

FUZZ = settings(derandomize=True, deadline=None, max_examples=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    WRITTEN.write(folder / "whole.parquet")
    return folder


def with_values(folder, name, values, kind=None):
    """A copy of the whole file with other values in one column."""
    table = pq.read_table(folder / "whole.parquet")
    column = pa.array(values, kind or table[name].type)
    table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, folder / "values.parquet")
    return folder / "values.parquet"


def read_equal_or_refused(path):
    """What the refusal says, or nothing if the trace is what was written."""
    try:
        trace = Trace.read(path)
    except InvalidInput as refusal:
        said = str(refusal)
    else:
        traces_agree(trace, WRITTEN)
        return ""
    assert str(path) in said
    return said


@FUZZ
@given(data=st.data())
def test_altered_bytes_are_rejected_or_change_nothing(folder, data):
    content = (folder / "whole.parquet").read_bytes()
    altered = bytearray(content)
    places = st.integers(0, len(content) - 1)
    for at in data.draw(st.lists(places, min_size=1, max_size=6)):
        altered[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.none() | places)
    path = folder / "altered.parquet"
    path.write_bytes(bytes(altered[:cut]))
    read_equal_or_refused(path)


def test_every_altered_value_of_a_column_is_rejected(folder):
    table = pq.read_table(folder / "whole.parquet")
    for name in table.column_names:
        first, *others = table[name].to_pylist()
        other = first[::-1] if isinstance(first, list) else type(first)(0)
        if other != first:
            path = with_values(folder, name, [other, *others])
            assert "altered after" in read_equal_or_refused(path), name


OTHER_TYPES = [
    *(pa.string(), pa.float32(), pa.int8(), pa.null(), pa.int32(), pa.bool_()),
    pa.list_(pa.float64()),
]


@FUZZ
@given(data=st.data())
def test_altered_columns_are_rejected_by_name(folder, data):
    table = pq.read_table(folder / "whole.parquet")
    at = data.draw(st.integers(0, table.num_columns - 1))
    name = table.column_names[at]
    how = data.draw(st.sampled_from(["drop", "rename", "retype", "gap", "twice"]))
    path = folder / "columns.parquet"
    if how == "retype":
        kind = data.draw(st.sampled_from(OTHER_TYPES))
        path = with_values(folder, name, [None] * 12, kind)
    elif how == "gap":
        row = data.draw(st.integers(0, 11))
        values = table[name].to_pylist()
        values[row] = None
        path = with_values(folder, name, values)
    elif how == "drop":
        pq.write_table(table.remove_column(at), path)
    elif how == "twice":
        pq.write_table(table.append_column(name, table[name]), path)
    else:
        names = list(table.column_names)
        names[at] = data.draw(st.text(max_size=8) | st.sampled_from(names))
        pq.write_table(table.rename_columns(names), path)
    said = read_equal_or_refused(path)
    if how == "gap":
        assert f"row {row} of {name} is missing" in said
    elif how in ("retype", "twice"):
        assert f"column {name} " in said
    elif how == "drop":
        assert name in said or "altered" in said


POISON = {
    "kind": [-1, 2, 10**9],
    "arrival_s": [-1e9, np.nan, np.inf],
    "service_s": [-1e-9, np.nan, np.inf],
    "feature:order_lines": [np.nan, -np.inf],
    "unit:execute": [-1.0, np.nan],
    "measured:cpu_s": [np.nan, np.inf],
    "keys": [[-1, 3], [4, 4], [None, 1], [1], [1, 2, 3]],
    "exclusive": [[True], [None, True], []],
}


@FUZZ
@given(data=st.data())
def test_a_poisoned_value_is_named_by_row_and_column(folder, data):
    name = data.draw(st.sampled_from(sorted(POISON)))
    row = data.draw(st.integers(1, 11))
    values = pq.read_table(folder / "whole.parquet")[name].to_pylist()
    values[row] = data.draw(st.sampled_from(POISON[name]))
    said = read_equal_or_refused(with_values(folder, name, values))
    # Two lists that disagree are reported at the second; a late arrival below itself.
    column = "(keys|exclusive)" if name in ("keys", "exclusive") else name
    assert re.search(f"row {row} of {column} ", said), said


def with_header(path, **changes):
    """A copy of the trace at `path` with other entries in its header."""
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[b"thesis_trace"]) | changes
    metadata = {"thesis_trace": json.dumps(header)}
    path = path.with_name("header.parquet")
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has trace version 2: expected 1"),
        ({"version": None}, "has trace version None"),
        ({"kinds": ["payment"]}, "row . of kind is 1: there are 1 types"),
        ({"kinds": ["payment", "other"]}, "altered after"),
        ({"kinds": 3}, "is not a trace"),
        ({"kinds": "ab"}, "is not a trace"),
        ({"meta": {"scenario": "B"}}, "altered after"),
        ({"meta": [1]}, "is not a trace"),
        ({"sha255": "0"}, "unknown entries"),
    ],
)
def test_another_header_is_rejected(folder, changes, message):
    with pytest.raises(InvalidInput, match=message):
        Trace.read(with_header(folder / "whole.parquet", **changes))


def test_a_file_of_before_the_hash_is_read(folder):
    path = with_header(folder / "whole.parquet", sha256=None)
    traces_agree(Trace.read(path), WRITTEN)


def test_a_file_without_rows_is_rejected(folder):
    WRITTEN.take(np.arange(0)).write(folder / "empty.parquet")
    with pytest.raises(InvalidInput, match="no rows: collect some"):
        Trace.read(folder / "empty.parquet")


def test_a_failed_write_leaves_the_old_file(folder):
    path = folder / "whole.parquet"
    content = path.read_bytes()
    with pytest.raises(TypeError):
        replace(WRITTEN, meta={"machine": object()}).write(path)
    assert path.read_bytes() == content


# --- Keys of the user's own ----------------------------------------------------


def with_labels(folder, label, kind):
    """WRITTEN with other keys, as a file from elsewhere."""
    rows = pq.read_table(folder / "whole.parquet")["keys"].to_pylist()
    labels = [[label(key) for key in row] for row in rows]
    return with_header(with_values(folder, "keys", labels, kind), sha256=None)


LABELS = {
    "int8": (lambda key: key % 128, pa.list_(pa.int8())),
    "int64": (lambda key: 2**62 + 977 * key, pa.list_(pa.int64())),
    "of 2^31": (lambda key: 2**31 - 1 - key, pa.large_list(pa.int32())),
    "beyond int64": (lambda key: 2**64 - 1 - key, pa.list_(pa.uint64())),
    "string": ("warehouse {}".format, pa.list_(pa.string())),
    "not null": (str, pa.list_(pa.field("k", pa.string(), nullable=False))),
    "large string": ("{:x}".format, pa.large_list(pa.large_string())),
    "empty among them": (lambda key: "" if key == 3 else str(key), pa.list_(pa.utf8())),
}


@pytest.mark.parametrize("name", LABELS)
def test_keys_of_any_name_say_which_are_equal(name, folder):
    label, kind = LABELS[name]
    read = Trace.read(with_labels(folder, label, kind)).keys
    assert read.n_keys <= MOST_KEYS
    one_to_one = set(zip(WRITTEN.keys.keys.tolist(), read.keys.tolist(), strict=True))
    assert len(one_to_one) == len({old for old, _ in one_to_one})
    assert len(one_to_one) == len({new for _, new in one_to_one})
    np.testing.assert_array_equal(read.offsets, WRITTEN.keys.offsets)
    np.testing.assert_array_equal(read.exclusive, WRITTEN.keys.exclusive)


@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        (lambda key: key - 3, pa.list_(pa.int64()), "row . of keys lists -3: keys cou"),
        (lambda key: None, pa.list_(pa.string()), "row 0 of keys has an empty entry"),
        (float, pa.list_(pa.float64()), "lists of integers or strings"),
        (lambda key: b"k", pa.list_(pa.binary()), "lists of integers or strings"),
        (lambda key: "same", pa.list_(pa.string()), "row 0 of keys lists 'same' twice"),
    ],
)
def test_keys_that_name_nothing_are_rejected(label, kind, message, folder):
    with pytest.raises(InvalidInput, match=message):
        Trace.read(with_labels(folder, label, kind))


# --- Tables of text -------------------------------------------------------------
CSV = """\
feature:lines,writes,service_s,kind,arrival_s,reads,measured:cpu_s
3,stock:1 stock:2,0.25,order,1.5,item:7 stock:1,0.5
1,,0.5,pay,1.5,,0.25
2,7,0,order,2.75,item:7,1e-3
"""


def test_a_table_of_text_is_the_trace_that_it_says(tmp_path):
    path = tmp_path / "orders.csv"
    path.write_text(CSV)
    trace = Trace.read(path)
    assert trace.kinds == ("order", "pay")
    assert trace.kind.tolist() == [0, 1, 0]
    assert trace.arrival_s.tolist() == [1.5, 1.5, 2.75]
    assert trace.service_s.tolist() == [0.25, 0.5, 0.0]
    assert trace.feature_names == ("lines",)
    assert trace.features.tolist() == [[3], [1], [2]]
    assert trace.measured["cpu_s"].tolist() == [0.5, 0.25, 1e-3]
    shared = [["item:7"], [], ["item:7"]]
    exclusive = [["stock:1", "stock:2"], [], ["7"]]
    key_sets_agree(trace.keys, KeySets.from_lists(shared, exclusive))
    trace.write(tmp_path / "orders.parquet")
    traces_agree(trace, Trace.read(tmp_path / "orders.parquet"))


def test_a_table_of_two_columns_is_enough(tmp_path):
    path = tmp_path / "jobs.CSV"
    path.write_text("arrival_s,service_s\n1,2\n3,4\n")
    made = Trace.read(path)
    assert made.kinds == ("job",)
    assert len(made.keys.keys) == 0
    assert made.service_s.tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("0.25,order", "soon,order", "Row #2: .* invalid value 'soon'"),
        ("0.5,pay", ",pay", "row 1 of service_s is missing"),
        ("0.5,pay", "-0.5,pay", "row 1 of service_s is -0.5"),
        ("0.5,pay", "inf,pay", "row 1 of service_s is inf"),
        ("0.5,pay", "0.5,", "row 1 has no kind"),
        ("2.75", "1.25", "row 2 of arrival_s is 1.25: before the row above"),
        ("stock:1 stock:2", "stock:2 stock:2", "row 0 of keys lists 'stock:2' twice"),
        ("\n3,", "\nmany,", "Row #2: .* invalid value 'many'"),
        ("1,,0.5,pay,1.5,,0.25", "1,,0.5", "Row #3: Expected 7 columns, got 3"),
        ("service_s", "service_ms", "column service_ms is unknown: expected kind,"),
        ("reads", "keys", "column keys is unknown"),
        ("reads", "writes", "column writes is there 2 times"),
        ("arrival_s", "measured:a", "column arrival_s is missing"),
        (CSV[CSV.index("\n") + 1 :], "", "it has no rows"),
        (CSV, "", "it cannot be read as CSV with a header: Empty"),
    ],
)
def test_a_table_of_text_is_rejected_by_row_and_column(tmp_path, before, after, says):
    path = tmp_path / "orders.csv"
    assert before in CSV
    path.write_text(CSV.replace(before, after, 1))
    with pytest.raises(InvalidInput, match=rf"orders\.csv is rejected: .*{says}"):
        Trace.read(path)


def long_table(path, n=3_000):
    """A trace of n rows as text, and the same as Parquet in groups of 700."""
    lines = [f"{i},{i % 7 / 8},{'ab'[i % 2]},{i % 50}," + f"{i % 3}" for i in range(n)]
    head = "arrival_s,service_s,kind,writes,feature:size"
    (path / "long.csv").write_text("\n".join([head, *lines, ""]))
    whole = Trace.read(path / "long.csv")
    whole.write(path / "whole.parquet")
    table = pq.read_table(path / "whole.parquet")
    pq.write_table(table, path / "long.parquet", row_group_size=700)
    return whole


@pytest.mark.parametrize("file", ["long.csv", "long.parquet"])
def test_a_part_of_a_trace_is_the_part_of_the_whole(tmp_path, file):
    whole = long_table(tmp_path)
    for first, last in ((0, 1), (0, 3_000), (699, 702), (1_400, 2_100), (2_999, 3_000)):
        part = Trace.read(tmp_path / file, (first, last))
        expected = whole.take(np.arange(first, last))
        for name in ("arrival_s", "service_s", "features"):
            np.testing.assert_array_equal(getattr(part, name), getattr(expected, name))
        for of in (
            lambda trace: [trace.kinds[i] for i in trace.kind],
            lambda trace: trace.keys.keys[:, None] == trace.keys.keys[None],
        ):
            np.testing.assert_array_equal(of(part), of(expected))
        assert part.keys.exclusive.all()


@pytest.mark.parametrize("file", ["long.csv", "long.parquet"])
@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ((2_990, 3_001), "it has 3000 rows"),
        ((4_000, 4_001), "it has no row 4000"),
        ((5, 5), "rows=5:5: expected the first"),
        ((-1, 5), "rows=-1:5: expected the first"),
    ],
)
def test_rows_that_a_trace_has_not_are_rejected(tmp_path, file, rows, says):
    long_table(tmp_path)
    with pytest.raises(InvalidInput, match=says):
        Trace.read(tmp_path / file, rows)


def test_the_rest_of_a_trace_is_not_read(tmp_path):
    path, n = tmp_path / "long.csv", 300_000  # many blocks of a megabyte
    rows = "".join(f"{i},1\n" for i in range(n))
    path.write_text(f"arrival_s,service_s\n{rows}soon,1\n")
    assert Trace.read(path, (10, 20)).arrival_s.tolist() == [*range(10, 20)]
    with pytest.raises(InvalidInput, match=f"Row #{n + 2}: .* invalid value 'soon'"):
        Trace.read(path)
