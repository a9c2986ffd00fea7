import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from math import isqrt

import numpy as np
import pytest
import queueing
from key_sets import requests

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.workload import arrivals, scenarios
from thesis_lib.sequencer.workload import transactions as txn
from thesis_lib.sequencer.workload.tpcc import tpcc
from thesis_lib.sequencer.workload.ycsb import OPERATIONS, Zipf, ycsb

SMALL = txn.Scale(warehouses=3, customers=60, items=200)


def within(share, expected, n):
    """Four standard errors of a share observed on n draws."""
    return abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)


def test_poisson_gaps_are_exponential():
    gaps = np.diff(arrivals.poisson_arrivals(50.0, 40_000, np.random.default_rng(1)))
    stderr = 1 / 50 / np.sqrt(len(gaps))
    assert abs(gaps.mean() - 1 / 50) < 4 * stderr
    assert abs(gaps.std() - 1 / 50) < 8 * stderr  # mean = deviation
    assert within(np.mean(gaps > 1 / 50), np.exp(-1), len(gaps))


def test_another_rate_stretches_the_same_process():
    trace = scenarios.scenario("A", 500, seed=4)
    slow, fast = (arrivals.at_rate(trace, rate, seed=9) for rate in (10.0, 40.0))
    np.testing.assert_allclose(slow.arrival_s, 4 * fast.arrival_s, rtol=1e-12)
    np.testing.assert_array_equal(slow.service_s, fast.service_s)


RATES_PER_S, SOJOURNS_S = (300.0, 50.0), (0.2, 0.5)


def mmpp2(seed, rates_per_s=RATES_PER_S, n=75_000):
    random = np.random.default_rng(seed)
    return arrivals.mmpp2_arrivals(rates_per_s, SOJOURNS_S, n, random)


@pytest.mark.parametrize("rates_per_s", [RATES_PER_S, (0.0, 400.0)])
def test_modulated_arrivals_have_the_mean_and_dispersion_of_theory(rates_per_s):
    horizon_s = 200.0
    runs = [mmpp2(seed, rates_per_s) for seed in np.random.SeedSequence(5).spawn(80)]
    assert min(run[-1] for run in runs) > horizon_s  # or the last windows miss some
    for window_s in (0.05, 0.5, 5.0):
        mean = window_s * queueing.mmpp2_mean_rate(rates_per_s, SOJOURNS_S)
        expected = queueing.mmpp2_dispersion(rates_per_s, SOJOURNS_S, window_s)
        edges_s = np.linspace(0, horizon_s, round(horizon_s / window_s) + 1)
        counts = np.array([np.histogram(run, edges_s)[0] for run in runs])
        dispersions = ((counts - mean) ** 2).mean(axis=1) / mean
        for values, value in ((counts.mean(axis=1), mean), (dispersions, expected)):
            stderr = np.std(values, ddof=1) / np.sqrt(len(values))
            assert 4 * stderr < 0.12 * value
            assert abs(np.mean(values) - value) < 4 * stderr


def test_modulated_arrivals_begin_in_equilibrium():
    first = np.array([np.sum(mmpp2(seed, n=60) < 0.1) for seed in range(4_000)])
    mean = 0.1 * queueing.mmpp2_mean_rate(RATES_PER_S, SOJOURNS_S)
    assert abs(first.mean() - mean) < 4 * first.std() / np.sqrt(len(first))


def test_one_rate_is_no_modulation():
    plain = arrivals.poisson_arrivals(80.0, 5_000, np.random.default_rng(6))
    np.testing.assert_allclose(mmpp2(6, (80.0, 80.0), 5_000), plain, rtol=1e-12)
    limit = queueing.mmpp2_dispersion((80.0, 80.0), SOJOURNS_S, np.inf)
    assert limit == 1.0


def test_other_rates_keep_the_states_and_another_clock_the_process():
    random = np.random.default_rng
    slow, fast = mmpp2(4, (0.0, 50.0), 2_000), mmpp2(4, (0.0, 100.0), 2_000)
    assert (fast < slow).all()
    wide = arrivals.mmpp2_arrivals((30.0, 400.0), (0.5, 0.25), 2_000, random(7))
    tight = arrivals.mmpp2_arrivals((60.0, 800.0), (0.25, 0.125), 2_000, random(7))
    np.testing.assert_array_equal(wide, 2 * tight)


def crowd(seed, peak, n=20_000):
    random = np.random.default_rng(seed)
    return arrivals.flash_crowd_arrivals(90.0, peak, (60.0, 100.0), n, random)


def test_a_flash_crowd_changes_the_rate_and_nothing_before_it():
    calm, busy = crowd(1, 90.0), crowd(1, 150.0)
    plain = arrivals.poisson_arrivals(90.0, 20_000, np.random.default_rng(1))
    np.testing.assert_array_equal(busy[busy < 60], plain[plain < 60])
    np.testing.assert_allclose(calm, plain, rtol=1e-12)
    # The same arrivals, sooner: by what the crowd adds, 40 s of 60 more a second.
    after = busy >= 100
    np.testing.assert_allclose(plain[after] - busy[after], 40 * 60 / 90, rtol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.2, 0.4])
def test_noise_factors_have_mean_one(sigma):
    factors = scenarios.mean_one_lognormal(sigma, 200_000, np.random.default_rng(5))
    assert abs(factors.mean() - 1) <= 4 * factors.std() / np.sqrt(len(factors))
    assert abs(np.log(factors).std() - sigma) <= 0.005


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_scenario_follows_its_formula(name):
    n = 60_000
    trace = scenarios.scenario(name, n, seed=11)
    payment, lines = trace.kind == 0, trace.features[:, 2]
    base_s = np.where(payment, 0.5e-3, 0.4e-3 + 0.12e-3 * lines)
    factor = trace.service_s / base_s
    assert abs(factor.mean() - 1) < 4 * factor.std() / np.sqrt(n)
    assert abs(np.log(factor).std() - 0.4) < 0.01
    assert within(payment.mean(), 0.5, n)
    assert (lines[payment] == 0).all()
    for count in range(5, 16):
        assert within(np.mean(lines[~payment] == count), 1 / 11, (~payment).sum())
    warehouse, district = trace.keys.keys.reshape(n, 2).T
    warehouses = scenarios.SCENARIOS[name].warehouses
    assert set(warehouse) == set(range(warehouses))
    np.testing.assert_array_equal((district - warehouses) // txn.DISTRICTS, warehouse)
    modes = trace.keys.exclusive.reshape(n, 2)
    np.testing.assert_array_equal(modes[:, 0], payment)  # New-Order shares it
    assert modes[:, 1].all()


def test_resampling_keeps_rows_whole_and_in_order():
    trace = scenarios.scenario("C", 100, seed=2)
    again = scenarios.from_measured(trace, 250, seed=3)
    start = int(np.flatnonzero(trace.service_s == again.service_s[0])[0])
    rows = (start + np.arange(250)) % 100
    np.testing.assert_array_equal(again.service_s, trace.service_s[rows])
    np.testing.assert_array_equal(again.features, trace.features[rows])
    np.testing.assert_array_equal(again.keys.keys, trace.keys.take(rows).keys)
    assert again.measured == {}


# --- TPC-C -------------------------------------------------------------------


@pytest.fixture(scope="module")
def log():
    return tpcc(20_000, SMALL, seed=3)


@pytest.mark.parametrize("mix", txn.TPCC_MIXES)
def test_mix_has_its_shares(mix):
    log = tpcc(8_000, SMALL, seed=3, mix=mix)
    shares = np.bincount(log.kind, minlength=len(log.kinds)) / len(log)
    for share, expected in zip(shares, txn.TPCC_MIXES[mix], strict=True):
        assert within(share, expected, len(log))


def test_without_files_only_their_locks_go(log):
    rows, files = log.without_files(), set(SMALL.file_locks)
    assert rows.transactions == log.transactions
    for i in range(500):
        whole = requests(log.keys, i)
        left = {key: mode for key, mode in whole.items() if key not in files}
        assert requests(rows.keys, i) == left
    assert files < set(log.keys.keys)
    assert not files & set(rows.keys.keys)


def of_type(log, *kinds):
    return [t for t in log.transactions if isinstance(t, kinds)]


def test_a_log_has_the_rates_of_the_specification(log):
    orders, payments = of_type(log, txn.NewOrder), of_type(log, txn.Payment)
    named = of_type(log, txn.Payment, txn.OrderStatus)
    for flags, expected in (
        ([t.lines[-1].item == SMALL.items for t in orders], 0.01),
        ([t.warehouse != o.supply_warehouse for t in orders for o in t.lines], 0.01),
        ([t.warehouse != t.customer_warehouse for t in payments], 0.15),
        ([t.last_name is not None for t in named], 0.60),
    ):
        assert within(np.mean(flags), expected, len(flags))
    assert {len(t.lines) for t in orders} == set(range(5, 16))
    assert not any(line.item == SMALL.items for t in orders for line in t.lines[:-1])


def test_one_warehouse_has_nothing_remote():
    alone = tpcc(2_000, txn.Scale(1, 60, 200), seed=3)
    orders, payments = of_type(alone, txn.NewOrder), of_type(alone, txn.Payment)
    assert {line.supply_warehouse for t in orders for line in t.lines} == {0}
    assert {t.customer_warehouse for t in payments} == {0}


def test_the_same_seed_is_the_same_log():
    assert tpcc(300, SMALL, 8).transactions == tpcc(300, SMALL, 8).transactions
    assert tpcc(300, SMALL, 8).transactions != tpcc(300, SMALL, 9).transactions


def test_nurand_at_full_size_has_the_density_of_its_definition():
    # (U(0, 3) | U(0, 3)) counted by hand: 1, 3, 3, 9 of 16
    draw = txn.Draw("nurand")
    counts = Counter(draw.skewed(3, 4, 4, shift=0) for _ in range(32_000))
    for value, ways in enumerate((1, 3, 3, 9)):
        assert within(counts[value] / 32_000, ways / 16, 32_000)


def test_a_name_resolves_to_its_middle_bearer(log):
    names = [txn.customer_names(SMALL, 3, w) for w in range(SMALL.warehouses)]
    for t in of_type(log, txn.OrderStatus):
        if t.last_name is not None:
            bearers = sorted(
                (first, c)
                for c, (last, first) in enumerate(names[t.warehouse][t.district])
                if last == t.last_name
            )
            assert t.name_matches == len(bearers)
            assert t.customer == bearers[(len(bearers) + 1) // 2 - 1][1]
    assert txn.last_name(371) == "PRICALLYOUGHT"  # the example of clause 4.3.2.3


def test_every_lock_has_its_own_number():
    scale = SMALL
    W, D = range(scale.warehouses), range(txn.DISTRICTS)
    numbers = [scale.warehouse(w) for w in W] + [scale.file(w) for w in W]
    for lock in (scale.district, scale.orders, scale.customers_of):
        numbers += [lock(w, d) for w in W for d in D]
    numbers += [
        scale.customer(w, d, c) for w in W for d in D for c in range(scale.customers)
    ]
    numbers += [scale.stock(w, i) for w in W for i in range(scale.items + 1)]
    assert sorted(numbers) == list(range(len(numbers)))


def test_writers_of_one_file_exclude_each_other_and_readers_do_not_wait(log):
    for t in log.transactions[:2_000]:
        shared, exclusive = txn.declared_locks(SMALL, t)
        if isinstance(t, txn.OrderStatus | txn.StockLevel):
            assert exclusive == []
        else:
            assert SMALL.file(t.warehouse) in exclusive
        if isinstance(t, txn.Payment):
            assert SMALL.file(t.customer_warehouse) in exclusive
            row = SMALL.customer(t.customer_warehouse, t.customer_district, t.customer)
            assert row in exclusive
            group = SMALL.customers_of(t.customer_warehouse, t.customer_district)
            assert group in shared
        if isinstance(t, txn.Delivery):
            groups = {SMALL.customers_of(t.warehouse, d) for d in range(txn.DISTRICTS)}
            assert groups < set(exclusive)


def test_a_new_order_declares_its_rows_and_both_files():
    t = txn.NewOrder(0, 4, 9, (txn.OrderLine(7, 0, 1), txn.OrderLine(8, 2, 1)), 0)
    shared, exclusive = txn.declared_locks(SMALL, t)
    row, stock = (0, 4), {SMALL.stock(0, 7), SMALL.stock(2, 8)}
    whom = {SMALL.customers_of(*row), SMALL.customer(*row, 9)}
    assert set(shared) == {SMALL.warehouse(0)} | whom
    rows, files = {SMALL.district(*row), SMALL.orders(*row)}, {SMALL.file(0)}
    assert set(exclusive) == rows | stock | files | {SMALL.file(2)}
    # and a rollback as many, or the size of the set would give it away
    rollback = replace(t, lines=(t.lines[0], txn.OrderLine(SMALL.items, 2, 1)))
    assert [len(s) for s in txn.declared_locks(SMALL, rollback)] == [
        *(len(shared), len(exclusive))
    ]


# --- YCSB --------------------------------------------------------------------

RECORDS = txn.YcsbScale(files=3, records=50)


@pytest.mark.parametrize("theta", [0.0, 0.5, 0.99])
def test_zipf_has_the_probabilities_of_its_definition(theta):
    n, draws = 200, 40_000
    popularity, draw = Zipf(theta, n), txn.Draw(f"zipf {theta}")
    expected = np.arange(1.0, n + 1) ** -theta
    expected /= expected.sum()
    table = np.diff([0, *popularity.cumulative]) / popularity.cumulative[-1]
    np.testing.assert_allclose(table, expected, rtol=1e-7)
    counts = np.bincount([popularity.rank(draw) for _ in range(draws)], minlength=n)
    assert len(counts) == n
    # chi-square on n - 1 degrees of freedom: mean n - 1, variance 2 (n - 1)
    excess = ((counts - draws * expected) ** 2 / (draws * expected)).sum() - (n - 1)
    assert abs(excess) < 4 * np.sqrt(2 * (n - 1))


def test_zipf_weights_are_exact_integers():
    # 10^10 / sqrt(k), rounded without a floating-point number
    weights = np.diff([0, *Zipf(0.5, 3_000).cumulative])
    assert weights.tolist() == [
        (isqrt(4 * 10**20 // k) + 1) // 2 for k in range(1, 3_001)
    ]
    np.testing.assert_array_equal(np.diff([0, *Zipf(0.0, 40).cumulative]), 10**10)
    # A draw reaches every integer below.
    assert txn.ZIPF_UNIT * txn.ZIPF_LARGEST < 2**52


@pytest.mark.parametrize("mix", txn.YCSB_MIXES)
def test_ycsb_keeps_the_shares_it_is_given(mix):
    n, each, theta, hot = 3_000, OPERATIONS, 0.8, 0.25
    log = ycsb(n, RECORDS, 1, mix=mix, theta=theta, hot=hot)
    operations = [o for t in log.transactions for o in t.operations]
    assert len(operations) == n * each
    for what, share in zip(txn.OPERATIONS, txn.YCSB_MIXES[mix], strict=True):
        assert within(np.mean([o.what == what for o in operations]), share, n * each)
    counts = np.array([t.counter == RECORDS.files for t in log.transactions])
    assert within(counts.mean(), hot, n)
    partition = np.bincount([t.partition for t in log.transactions])
    assert len(partition) == RECORDS.files
    assert all(within(count / n, 1 / 3, n) for count in partition)
    popular = 1 / (np.arange(1.0, 51) ** -theta).sum()
    assert within(np.mean([o.record == 0 for o in operations]), popular, n * each)
    assert {o.field for o in operations} == set(range(txn.FIELDS))


def test_ycsb_declares_its_records_the_counter_and_the_files_it_writes():
    record, file = RECORDS.record, RECORDS.file
    both = [("read", 4), ("update", 7), ("modify", 4), ("read", 9), ("read", 9)]
    for partition, operations, counter, kind, shared, exclusive in (
        (1, both, None, "ycsb_write", [9], [record(1, 4), record(1, 7), file(1)]),
        (2, [("read", 4)], None, "ycsb_read", [4], []),
        (2, [("read", 4)], 3, "ycsb_count", [4], [RECORDS.counter, file(3)]),
    ):
        operations = (txn.Operation(what, at, 0, 0) for what, at in operations)
        t = txn.Ycsb(partition, tuple(operations), counter)
        locks = txn.declared_locks(RECORDS, t)
        assert t.kind == kind
        assert sorted(locks[0]) == [record(partition, at) for at in shared]
        assert sorted(locks[1]) == sorted(exclusive)
    numbers = [record(f, r) for f in range(3) for r in range(50)]
    numbers += [RECORDS.counter, *RECORDS.file_locks]
    assert sorted(numbers) == list(range(len(numbers)))


# --- Refusals ----------------------------------------------------------------

RNG = np.random.default_rng(0)
YCSB = txn.Ycsb(0, (txn.Operation("read", 1, 0, 0),), None)


@pytest.mark.parametrize(
    ("make", "arguments", "says"),
    [
        *(
            (arrivals.poisson_arrivals, (rate, 10, RNG), "must be positive")
            for rate in (0.0, -1.0, np.inf, np.nan)
        ),
        *(
            (arrivals.mmpp2_arrivals, (rates_per_s, sojourns_s, 10, RNG), says)
            for rates_per_s, sojourns_s, says in (
                ((0.0, 0.0), (1.0, 1.0), "not both zero"),
                ((-1.0, 2.0), (1.0, 1.0), "neither negative"),
                ((1.0, 2.0), (1.0, 0.0), "two positive"),
                ((1.0,), (1.0, 1.0), "expected two"),
            )
        ),
        *(
            (arrivals.flash_crowd_arrivals, (1, 2, span_s, 10, RNG), "beginning and an")
            for span_s in ((5.0, 4.0), (-1.0, 4.0), (0.0, np.inf))
        ),
        (scenarios.scenario, ("D", 10, 0), "expected one of A, B, C"),
        (tpcc, (10, SMALL, 3, "specs"), "did you mean 'spec'"),
        (txn.Scale, (0,), "warehouses=0"),
        (txn.Scale, (1, 0), "customers=0"),
        (txn.Scale, (1, 60, 0), "items=0"),
        (txn.YcsbScale, (0,), "files=0: expected"),
        (txn.YcsbScale, (1, 0), "records=0: expected"),
        (txn.YcsbScale, (1, 10**6), "records=1000000: expected"),
        (txn.declared_locks, (SMALL, YCSB), "ycsb_read is no transaction of TPC-C"),
        (
            txn.declared_locks,
            (RECORDS, txn.StockLevel(0, 1, 10)),
            "stock_level is no transaction of YCSB",
        ),
        *(
            (partial(ycsb, mix=mix), (5, RECORDS, 0), "expected one of A, B, C, F")
            for mix in ("", "D")
        ),
        *(
            (partial(ycsb, theta=theta), (5, RECORDS, 0), f"theta={theta}: ")
            for theta in (1.0, -0.1, float("nan"))
        ),
        *(
            (partial(ycsb, hot=hot), (5, RECORDS, 0), f"hot={hot}: expected a share")
            for hot in (1.5, float("nan"))
        ),
        (ycsb, (0, RECORDS, 0), "n=0 transactions: expected at least 1"),
    ],
)
def test_what_is_no_workload_is_rejected(make, arguments, says):
    with pytest.raises(InvalidInput, match=says):
        make(*arguments)


DIGEST = """
import hashlib
from thesis_lib.sequencer.experiments.configuration import noisy_estimate
import numpy as np
from thesis_lib.sequencer.workload.arrivals import (
    at_rate, flash_crowd_arrivals, mmpp2_arrivals
)
from thesis_lib.sequencer.workload.scenarios import scenario
from thesis_lib.sequencer.workload.transactions import YcsbScale
from thesis_lib.sequencer.workload.ycsb import ycsb
trace = at_rate(scenario("A", 4_000, seed=5), 5_000, seed=7)
made = (
    trace.arrival_s, trace.service_s, noisy_estimate(0.2)(trace, 3),
    mmpp2_arrivals((70.0, 500.0), (0.3, 0.1), 4_000, np.random.default_rng(1)),
    flash_crowd_arrivals(90.0, 150.0, (7.0, 11.0), 4_000, np.random.default_rng(2)),
)
print(hashlib.sha256(b"".join(column.tobytes() for column in made)).hexdigest())
log = ycsb(500, YcsbScale(2, 2_000), 1, theta=0.83)
print(hashlib.sha256(repr(log.transactions).encode()).hexdigest())
"""


def test_a_seed_gives_the_same_workload_on_another_processor():
    # What glibc and NumPy choose on a processor without wide or fused instructions.
    plain = {
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-c", DIGEST]
    first, second = (
        subprocess.check_output(command, env=os.environ | changed, text=True)
        for changed in ({}, plain)
    )
    assert first == second


def test_rounded_draws_keep_their_mean_and_add_up_in_any_order():
    draws = arrivals.on_grid(np.random.default_rng(3).exponential(1.0, 100_000))
    assert draws.sum() == draws[::-1].sum() == np.cumsum(draws)[-1]
    assert np.array_equal(arrivals.on_grid(draws), draws)
