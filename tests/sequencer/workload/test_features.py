import numpy as np
import pytest
from key_sets import conflict

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import KeySets
from thesis_lib.sequencer.workload import features
from thesis_lib.sequencer.workload import transactions as txn
from thesis_lib.sequencer.workload.scenarios import scenario
from thesis_lib.sequencer.workload.tpcc import tpcc

SMALL = txn.Scale(warehouses=2, customers=60, items=200)


def column(table, name, names=features.DYNAMIC):
    return table[:, names.index(name)]


def schedule(seed, n=120):
    """Sequencing and commit times of a system with some twenty in flight."""
    rng = np.random.default_rng(seed)
    sequenced_s = np.cumsum(rng.exponential(1e-4, n))
    return sequenced_s, sequenced_s + rng.exponential(2e-3, n) + 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_dynamic_features_do_not_show_the_future(seed):
    log = tpcc(120, SMALL, seed)
    records = np.array([features.declared_records(t) for t in log.transactions], float)
    sequenced_s, finish_s = schedule(seed)
    before = features.dynamic_features(sequenced_s, finish_s, log.keys, records)
    rng = np.random.default_rng(seed + 100)
    for i in (0, 17, 60, 119):
        past = slice(0, i + 1)
        # Nor do the records of what has not committed, nor how much is to come.
        unseen = finish_s > sequenced_s[i]
        others = np.where(unseen[:, None], 99.0, records)
        unseen[i + 1 :] = True  # and whatever is ordered later
        other = finish_s.copy()
        later = np.maximum(sequenced_s, sequenced_s[i])[unseen]
        other[unseen] = later + rng.exponential(5e-3, unseen.sum()) + 1e-6
        keys = log.keys.take(np.arange(i + 1))
        after = features.dynamic_features(sequenced_s, other, log.keys, records)
        for made in (
            after,
            features.dynamic_features(sequenced_s, finish_s, log.keys, others),
            features.dynamic_features(
                sequenced_s[past], finish_s[past], keys, records[past]
            ),
        ):
            np.testing.assert_array_equal(made[past], before[past])
        assert i == 119 or not np.array_equal(after, before)  # the test can see


@pytest.mark.parametrize("seed", range(5))
def test_depth_is_the_longest_chain_of_uncommitted_conflicts(seed):
    log = tpcc(120, SMALL, seed)
    sequenced_s, finish_s = schedule(seed)
    conflicts = [[conflict(log.keys, i, j) for i in range(120)] for j in range(120)]
    # A real execution commits conflicting transactions in log order.
    for j in range(120):
        for i in range(j):
            if conflicts[j][i]:
                finish_s[j] = max(finish_s[j], finish_s[i] + 1e-6)
    table = features.dynamic_features(
        sequenced_s, finish_s, log.keys, np.zeros((120, 3))
    )
    for i in range(120):
        alive = [j for j in range(i) if finish_s[j] > sequenced_s[i]]
        depth = {}
        for j in [*alive, i]:
            before = [depth[p] + 1 for p in alive if p < j and conflicts[j][p]]
            depth[j] = max(before, default=0)
        assert column(table, "uncommitted")[i] == len(alive)
        assert column(table, "depth")[i] == depth[i]
        direct = sum(conflicts[i][j] for j in alive)
        first = column(table, "first_layer")[i]
        assert first <= direct
        assert (first == 0) == (direct == 0)


def test_first_layer_by_hand():
    # two readers of key 0, a writer of it, a reader of it, a stranger
    keys = KeySets.from_lists([[0], [0], [], [0], [1]], [[], [], [0], [], []])
    sequenced_s, finish_s = np.arange(5.0), np.full(5, 10.0)
    table = features.dynamic_features(sequenced_s, finish_s, keys, np.zeros((5, 3)))
    assert column(table, "first_layer").tolist() == [0, 0, 2, 1, 0]
    assert column(table, "depth").tolist() == [0, 0, 1, 2, 0]


def test_windows_count_what_committed_within_them():
    keys = KeySets.from_lists([[0], [1], [2], [3]], [[], [], [], []])
    sequenced_s = np.array([0.0, 1e-5, 2e-5, 1.0])
    finish_s = 1.0 - np.array([5e-5, 5e-4, 5e-3, -1.0])
    records = np.array([[1, 10, 100], [2, 20, 200], [4, 40, 400], [0, 0, 0]], float)
    row = features.dynamic_features(sequenced_s, finish_s, keys, records)[3]
    expected = [[1, 1, 10, 100], [2, 3, 30, 300], [3, 7, 70, 700]]
    np.testing.assert_array_equal(row[3:], np.ravel(expected))


def test_static_features_by_hand():
    log = tpcc(3_000, SMALL, 1)
    table = features.static_features(log)
    assert table.shape == (3_000, len(features.STATIC))
    np.testing.assert_array_equal(table[:, :5].argmax(axis=1), log.kind)
    np.testing.assert_array_equal(table[:, :5].sum(axis=1), 1)
    for row, t in zip(table, log.transactions, strict=True):
        known = dict(zip(features.STATIC, row, strict=True))
        if isinstance(t, txn.NewOrder):
            assert known["order_lines"] == len(t.lines)
            assert known["records_inserted"] == len(t.lines) + 2
        if isinstance(t, txn.Payment):
            assert known["by_name"] == (t.last_name is not None)
            assert known["files_written"] == len({t.warehouse, t.customer_warehouse})


def test_static_features_of_ycsb_by_hand():
    operations = [("read", 3), ("update", 8), ("modify", 3), ("read", 5), ("read", 5)]
    operations = tuple(txn.Operation(what, r, 0, 0) for what, r in operations)
    one_read = (txn.Operation("read", 4, 0, 0),)
    transactions = [txn.Ycsb(0, operations, 2), txn.Ycsb(1, one_read, None)]
    log = txn.Log.declare(txn.YcsbScale(2, 10), 0, transactions)
    table, names = features.static_features(log), features.static_names(log)
    first, second = (
        {name: value for name, value in zip(names, row, strict=True) if value}
        for row in table
    )
    assert first == {
        "is_ycsb_count": 1, "reads": 3, "updates": 1, "modifies": 1,
        "distinct_records": 3, "distinct_written": 2, "most_popular": 3,
        "files_written": 2, "records_read": 4, "records_updated": 3,
    }  # fmt: skip
    assert second == {
        "is_ycsb_read": 1, "reads": 1, "distinct_records": 1, "most_popular": 4,
        "records_read": 1,
    }  # fmt: skip


def test_a_coming_rollback_is_not_known():
    log = tpcc(3_000, SMALL, 1)
    table = features.static_features(log)
    for at, t in enumerate(log.transactions):
        if isinstance(t, txn.NewOrder) and t.lines[-1].item == SMALL.items:
            known = {line[:2] for line in t.lines}
            distinct = column(table, "distinct_stock", features.STATIC)[at]
            assert distinct == len(known)
            assert features.declared_records(t) == features.declared_records(
                txn.NewOrder(0, 0, 0, (txn.OrderLine(1, 0, 1),) * len(t.lines), 0)
            )


def test_choosing_features_keeps_their_columns():
    trace = scenario("A", 50, seed=0)
    chosen = features.with_features(trace, ("order_lines", "is_payment"))
    np.testing.assert_array_equal(chosen.features, trace.features[:, [2, 0]])
    with pytest.raises(InvalidInput, match="did you mean 'order_lines'"):
        features.with_features(trace, ("order_line",))
