"""A live measurement: paired with FIFO, counted as the simulator counts."""

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.engine.engine import make_log
from thesis_lib.sequencer.experiments.grid import Study, simulate_cell
from thesis_lib.sequencer.experiments.live import (
    WARM_UP,
    bench,
    estimate,
    fitted,
    run_live,
    serve,
)
from thesis_lib.sequencer.workload.arrivals import poisson_arrivals

N, BURST = 300, 300


@pytest.fixture(scope="module")
def ready():
    log = make_log("tpcc", BURST + 2 * (WARM_UP + N), 3)
    with bench("sqlite", log, BURST, workers=2) as ready:
        yield ready


def test_the_burst_is_measured_without_its_warm_up(ready):
    assert len(ready.past) == BURST - WARM_UP
    assert ready.saturation_per_s > 0
    assert ready.slo_s == 2 * np.quantile(ready.past.service_s, 0.95)


def test_rounds_run_different_requests(ready):
    first, second = ready.requests(0, N), ready.requests(1, N)
    assert first.transactions == ready.log.transactions[BURST : BURST + WARM_UP + N]
    assert second.transactions == ready.log.transactions[BURST + WARM_UP + N :]
    with pytest.raises(InvalidInput, match="round 2 of 300 transactions needs"):
        ready.requests(2, N)


@pytest.mark.parametrize("name", ["fifo", "hybrid-corrected", "bid-price"])
def test_a_live_run_counts_everyone_once(ready, name):
    log = ready.requests(0, N)
    arrival_s = poisson_arrivals(2_000.0, N, np.random.default_rng(0))
    estimated_s = estimate(fitted("linear", ready), log)
    assert (estimated_s > 0).all()
    live = run_live(
        ready, log, name, arrival_s, estimated_s, name=f"live-{name}", flush_s=1e-3
    )
    np.testing.assert_array_equal(live.history.arrival_s, arrival_s)
    np.testing.assert_allclose(live.history.deadline_s, arrival_s + ready.slo_s)
    committed = ~live.history.dropped
    assert sorted(live.history.log) == np.flatnonzero(committed).tolist()
    if name == "fifo":
        trace = live.trace
        assert (trace.service_s > 0).all()
        assert (trace.service_s <= live.history.latency_s).all()
        np.testing.assert_array_equal(trace.kind, log.kind[WARM_UP:])
    elif live.history.dropped.any():
        with pytest.raises(InvalidInput, match="take the trace of FIFO"):
            _ = live.trace


def test_serve_says_what_simulate_says():
    result = serve(policy="drop-corrected", load=0.5, seconds=0.2, rounds=2, burst=300,
                   estimator="constant", slo_s=0.05, fewest=60)  # fmt: skip
    keys = simulate_cell("fifo", Study(scenario="A", load=0.5, transactions=200)).keys()
    # saturation is measured by one closed loop here, and has no interval
    assert keys - {"seeds", "clients", "saturation_ci"} <= result.keys()
    assert result["rate_per_s"] == 0.5 * result["saturation_per_s"]
    assert result["violations"] == pytest.approx(result["late"] + result["dropped"])
    low, high = result["violations_ci"]
    assert 0 <= low <= result["violations"] <= high <= 1
    assert result["lower_bound"] <= result["fifo_violations"]


def test_a_slow_engine_is_given_the_time_that_the_fewest_transactions_take():
    result = serve(policy="fifo", load=0.5, seconds=1e-6, rounds=2, burst=300,
                   estimator="constant", slo_s=0.05, fewest=60)  # fmt: skip
    assert result["transactions"] == 60
    assert result["seconds"] == 2 * 60 / result["rate_per_s"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load": 0.0}, "load=0 must be positive"),
        ({"load": np.nan}, "load=nan must be positive"),
        ({"seconds": -1.0}, "seconds=-1 must be positive"),
        ({"rounds": 0}, "rounds=0: expected at least 1"),
        ({"workers": 0}, "workers=0: expected at least 1"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"flush_s": -1.0}, "flush_s=-1 must not be negative"),
        ({"slo_s": 0.0}, "slo_s=0.0 must be positive"),
        ({"policy": "fife"}, "policy='fife' is unknown: .*did you mean 'fifo'"),
        ({"estimator": "oracle"}, "'oracle' reads service times, which a live run"),
        ({"estimator": "boosting"}, "estimator='boosting' is unknown"),
        ({"engine": "duckdb"}, "engine='duckdb' is unknown"),
        ({"burst": 10}, "burst=10: expected more than 200"),
        ({"seconds": 1e-6}, "must have at least 50 transactions, got .*: serve longer"),
    ],
)
def test_serve_rejects(options, message):
    fine = {"policy": "fifo", "load": 0.5, "seconds": 0.2, "burst": 300}
    with pytest.raises(InvalidInput, match=message):
        serve(**(fine | options))
