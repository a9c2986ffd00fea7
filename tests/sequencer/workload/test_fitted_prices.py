from dataclasses import replace

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.workload.features import RECORDS, columns
from thesis_lib.sequencer.workload.scenarios import Prices, fit_prices, priced
from thesis_lib.sequencer.workload.tpcc import tpcc
from thesis_lib.sequencer.workload.transactions import Scale, YcsbScale
from thesis_lib.sequencer.workload.ycsb import ycsb

PRICES = Prices(4e-5, 6e-6, 1.2e-5, 2e-6)


def test_a_fit_finds_the_prices_that_made_the_times():
    trace = priced(tpcc(800, Scale(), seed=1), PRICES, sigma=0.0, seed=2)
    found = fit_prices(trace)
    for name in ("transaction_s", "read_s", "update_s", "insert_s"):
        assert getattr(found, name) == pytest.approx(getattr(PRICES, name), abs=2e-7)


def test_noise_leaves_the_mean_price():
    log = ycsb(4_000, YcsbScale(), seed=1)
    exact, noisy = (priced(log, PRICES, sigma, seed=2) for sigma in (0.0, 0.4))
    records = exact.features[:, columns(exact, RECORDS)]
    np.testing.assert_allclose(exact.service_s, PRICES.service_s(records))
    ratio = noisy.service_s / exact.service_s
    assert np.log(ratio).std() == pytest.approx(0.4, rel=0.05)
    assert ratio.mean() == pytest.approx(1.0, abs=0.03)


def test_rows_alone_are_locked():
    log = tpcc(50, Scale(warehouses=3), seed=1)
    trace = priced(log, PRICES, sigma=0.0, seed=2)
    assert not set(trace.keys.keys) & set(log.scale.file_locks)
    assert len(trace.keys) == 50


def test_what_has_no_price_is_rejected():
    log = tpcc(20, Scale(), seed=1)
    trace = priced(log, PRICES, sigma=0.0, seed=2)
    names = tuple(f"x{i}" for i in range(len(trace.feature_names)))
    for says, call, arguments in (
        ("without a price", priced, (log, Prices(0.0, 0.0, 1e-5, 0.0), 0.0, 2)),
        ("sigma=-1", priced, (log, PRICES, -1.0, 2)),
        ("collect one first", fit_prices, (trace.take(np.empty(0, np.int64)),)),
        ("feature", fit_prices, (replace(trace, feature_names=names),)),
    ):
        with pytest.raises(InvalidInput, match=says):
            call(*arguments)
