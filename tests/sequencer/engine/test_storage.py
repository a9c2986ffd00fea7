"""The same log leaves the same state in every database, and it is the right one."""

from contextlib import closing
from dataclasses import replace
from functools import cache
from time import perf_counter

import pandas as pd
import pytest
from serial_execution import execute_serially

from thesis_lib.sequencer.engine.sqlite import SQLite
from thesis_lib.sequencer.engine.storage import (
    FIELD,
    TABLES,
    UNITS,
    Stale,
    canonical_digest,
    initial_rows,
)
from thesis_lib.sequencer.workload import transactions as txn
from thesis_lib.sequencer.workload.tpcc import tpcc
from thesis_lib.sequencer.workload.ycsb import ycsb

SMALL, RECORDS = txn.Scale(warehouses=2, customers=60, items=100), txn.YcsbScale(2, 400)
SEED = 4
LOGS = {
    "tpcc": tpcc(600, SMALL, SEED),
    "new-order/payment": tpcc(200, SMALL, SEED, mix="new-order/payment"),
    "ycsb A": ycsb(150, RECORDS, SEED, mix="A", hot=0.2),
    "ycsb F": ycsb(150, RECORDS, SEED, mix="F", hot=0.2, theta=0.5),
}
ENGINES = ["sqlite", "postgresql"]


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    """A function from engine and scale to a database with its first state."""
    postgres = pytest.importorskip("thesis_lib.sequencer.engine.postgres")
    folder = tmp_path_factory.mktemp("databases")
    with postgres.postgres_database() as empty:

        @cache
        def loaded(engine, scale):
            name = f"{type(scale).__name__}_{scale.partitions}".lower()
            storage = SQLite(folder / name)
            if engine == "postgresql":
                storage = replace(empty, database=f"{empty.database}_{name}")
            storage.load(scale, SEED)
            return storage

        yield loaded


@pytest.fixture(scope="module")
def serial(databases):
    """A function from engine and log to a database in which that log was run."""

    @cache
    def run(engine, name):
        number = list(LOGS).index(name)
        copy = databases(engine, LOGS[name].scale).copy(f"serial{number}")
        execute_serially(copy, LOGS[name])
        return copy

    return run


def rows(storage, table):
    """The rows of a table, the partition in the column `w`."""
    names = [column.split()[0] for column in TABLES[table].columns.split(", ")]
    query = f"SELECT * FROM {table}"
    with closing(storage.session()) as session:
        if isinstance(storage, SQLite):
            found = [(w, *r) for w, db in enumerate(session.files)
                     for r in db.execute(query)]  # fmt: skip
        else:
            found = session.connection.execute(query).fetchall()
    return pd.DataFrame(found, columns=["w", *names])


def change(storage, statement):
    """Execute a statement behind the engine's back, in the only warehouse."""
    with closing(storage.session()) as session:
        if isinstance(storage, SQLite):
            session.files[0].execute(statement)
        else:
            session.connection.execute(statement)


# --- Equal states ------------------------------------------------------------


@pytest.mark.parametrize("scale", [SMALL, RECORDS], ids=["tpcc", "ycsb"])
def test_loading_is_a_function_of_the_seed(databases, tmp_path, scale):
    first, second = (databases(engine, scale).digest() for engine in ENGINES)
    assert first == second
    other = SQLite(tmp_path / "other")
    other.load(scale, SEED + 1)
    assert other.digest() != first


def test_the_digest_sees_every_value_its_place_and_its_table():
    state = {"orders": [(0, 1, "a"), (0, 2, None)], "item": [(0, 1, "a")]}

    def digest(**changed):
        return canonical_digest(lambda table: (state | changed).get(table, []))

    others = [
        digest(orders=[(0, 1, "a"), (0, 2, "None")]),
        digest(orders=[(0, 1, "a"), (1, 2, None)]),
        digest(orders=[(0, 1, "a")]),
        digest(orders=[(0, 1, "a")], item=[(0, 2, None), (0, 1, "a")]),
        digest(orders=[(0, "1", "a"), (0, 2, None)]),
    ]
    assert len({digest(), *others}) == 1 + len(others)
    assert digest() == digest()


@pytest.mark.parametrize("name", LOGS)
def test_a_log_leaves_the_same_state_in_every_database(databases, serial, name):
    first, second = (serial(engine, name).digest() for engine in ENGINES)
    assert first == second
    for engine in ENGINES:  # and the original of the copy is untouched
        assert databases(engine, LOGS[name].scale).digest() != first


@pytest.mark.parametrize("name", ["tpcc", "ycsb A", "ycsb F"])
def test_another_order_is_another_state(databases, serial, engine, name):
    log = LOGS[name]
    copy = databases(engine, log.scale).copy(f"backwards{name[-1]}")
    execute_serially(copy, replace(log, transactions=log.transactions[::-1]))
    assert copy.digest() != serial(engine, name).digest()


# --- The right state ---------------------------------------------------------


def test_the_consistency_conditions_of_tpcc(serial, engine):
    storage = serial(engine, "tpcc")
    warehouse, district, orders, opened, lines = (
        rows(storage, table)
        for table in ("warehouse", "district", "orders", "new_order", "order_line")
    )
    orders = orders.rename(columns={"o_d_id": "d", "o_id": "o"})
    opened = opened.rename(columns={"no_d_id": "d", "no_o_id": "o"})
    lines = lines.rename(columns={"ol_d_id": "d", "ol_o_id": "o"})
    district = district.rename(columns={"d_id": "d"}).set_index(["w", "d"]).sort_index()
    by_district = orders.groupby(["w", "d"])

    paid = district.d_ytd.groupby("w").sum()  # clause 3.3.2.1, and so on
    assert (warehouse.set_index("w").w_ytd.sort_index() == paid).all()
    assert (district.d_next_o_id - 1 == by_district.o.max()).all()
    numbers = opened.groupby(["w", "d"]).o
    assert (numbers.max() - numbers.min() + 1 == numbers.count()).all()
    counts = lines.groupby(["w", "d"]).size()
    assert (by_district.o_ol_cnt.sum() == counts).all()
    one = ["w", "d", "o"]
    is_open = pd.MultiIndex.from_frame(orders[one]).isin(
        pd.MultiIndex.from_frame(opened)
    )
    assert (orders.o_carrier_id.isna() == is_open).all()
    assert (
        orders.set_index(one).o_ol_cnt.sort_index() == lines.groupby(one).size()
    ).all()
    both = lines.merge(orders, on=one)
    assert len(both) == len(lines)
    assert (both.ol_delivery.isna() == both.o_carrier_id.isna()).all()


@pytest.mark.parametrize("name", ["ycsb A", "ycsb F"])
def test_ycsb_does_what_a_dictionary_does(serial, engine, name):
    state = {
        (f, r): [text[i : i + FIELD] for i in range(0, len(text), FIELD)]
        for f in range(RECORDS.files)
        for r, text in initial_rows(RECORDS, SEED, f)["usertable"]
    }
    for t in LOGS[name].transactions:
        for what, record, field, value in t.operations:
            fields, new = state[t.partition, record], f"{value:010d}"
            if what == "update":
                fields[field] = new * 10
            elif what == "modify":
                fields[field] = (new + fields[field])[:FIELD]
    expected = [[*key, "".join(fields)] for key, fields in state.items()]
    found = rows(serial(engine, name), "usertable").values.tolist()
    assert sorted(found) == sorted(expected)
    counted = sum(t.counter is not None for t in LOGS[name].transactions)
    assert counted > 0
    counter = rows(serial(engine, name), "counter").values.tolist()
    assert counter == [[RECORDS.files, 0, counted]]


def test_an_item_ordered_twice_leaves_the_stock_twice(databases, engine):
    copy = databases(engine, SMALL).copy("twice")
    lines = txn.OrderLine(3, 1, 2), txn.OrderLine(3, 1, 5)
    with closing(copy.session()) as session:
        session.run(txn.NewOrder(0, 1, 2, lines, 0))
    stock = rows(copy, "stock").set_index(["w", "s_i_id"]).loc[(1, 3)]
    assert (stock.s_ytd, stock.s_order_cnt, stock.s_remote_cnt) == (7, 2, 2)
    left = {i: q for i, q, *_ in initial_rows(SMALL, SEED, 1)["stock"]}[3]
    for quantity in (2, 5):  # clause 2.4.2.2
        left = left - quantity if left >= quantity + 10 else left - quantity + 91
    assert stock.s_quantity == left


# --- Sessions ----------------------------------------------------------------


def test_units_fit_in_the_time_of_the_transaction(databases, engine):
    copy = databases(engine, SMALL).copy("timed")
    with closing(copy.session()) as session:
        for t in LOGS["tpcc"].transactions[:60]:
            start_s = perf_counter()
            session.run(t)
            taken_s = perf_counter() - start_s
            assert len(session.units_s) == len(UNITS)
            assert min(session.units_s) >= 0
            assert 0 < sum(session.units_s) <= taken_s


def test_unknown_name_is_stale(databases, engine):
    with closing(databases(engine, SMALL).session()) as session:
        for t in (
            txn.OrderStatus(0, 1, 7, "NOBODY", 1),
            txn.Payment(0, 1, 0, 1, 7, "NOBODY", 1, 100, 0),
        ):
            with pytest.raises(Stale, match=r"means nobody, the log says 7: declare"):
                session.run(t)


def test_every_replica_finds_the_same_transaction_stale(databases, engine):
    # No transaction renames a customer, so we do, after the log was declared.
    alone = txn.Scale(1, 60, 100)
    log = tpcc(300, alone, SEED)
    named = next(
        t for t in log.transactions if isinstance(t, txn.Payment) and t.name_matches > 1
    )
    bearers = sorted(
        (first, c)
        for d, c, last, first, *_ in initial_rows(alone, SEED, 0)["customer"]
        if (d, last) == (named.customer_district, named.last_name)
        and c != named.customer
    )
    again = replace(named, customer=bearers[(len(bearers) - 1) // 2][1])
    asked = txn.OrderStatus(
        0, named.customer_district, named.customer, named.last_name, named.name_matches
    )
    states = []
    for replica in ("first", "second"):
        copy = databases(engine, alone).copy(replica)
        change(
            copy,
            "UPDATE customer SET c_last = 'RENAMED' WHERE "
            f"c_d_id = {named.customer_district} AND c_id = {named.customer}",
        )
        before = copy.digest()
        with closing(copy.session()) as session:
            for t in (named, asked):
                with pytest.raises(Stale, match="declare the transaction again"):
                    session.run(t)
            assert copy.digest() == before  # aborted, and the session still serves
            assert session.run(again)
        states.append(copy.digest())
    assert states[0] == states[1] != before
