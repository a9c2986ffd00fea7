from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from thesis_book.experiments.sequencer import scaling
from thesis_book.experiments.sequencer.partitions import Exchange
from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.experiments.configuration import (
    SimulationConfig,
    noisy_estimate,
)
from thesis_lib.sequencer.experiments.grid import paired_seeds
from thesis_lib.sequencer.experiments.metrics import summarize
from thesis_lib.sequencer.policies.registry import policy
from thesis_lib.sequencer.simulator.simulator import SystemConfig, simulate
from thesis_lib.sequencer.workload.scenarios import SCENARIOS, scenario

SPEC = SCENARIOS["A"]


def cell(transactions, warehouses=10):
    mean_s = scenario("A", 20_000, 1, warehouses).service_s.mean()
    return SimulationConfig(
        make_trace=lambda seed: scenario("A", transactions, seed, warehouses),
        saturation_per_s=SPEC.cores / mean_s,
        cores=SPEC.cores,
        slo_s=SPEC.slo_s,
    )


@pytest.mark.parametrize("read_share", [0.0, 0.5, 1.0])
def test_where_nothing_conflicts_capacity_is_what_the_cores_allow(read_share):
    exchange = Exchange(read_share=read_share)
    runs = scaling.weak_scaling(
        cell(6_000, warehouses=50_000), ["fifo"], [1, 4], [0.0, 0.1, 0.3],
        scaling.OVERLOAD, seeds=2, seed=1, exchange=exchange,
    )  # fmt: skip
    made = scaling.capacities(runs, exchange)
    local = made[0.0, "fifo"]
    np.testing.assert_allclose(local, 100, rtol=0.02)
    for crossing in (0.1, 0.3):
        cores = made[crossing, "cores"]
        assert cores[4] == 100 / (1 + crossing * (1 - read_share))
        assert cores[1] == 100
        measured = 100 * made[crossing, "fifo"] / local
        np.testing.assert_allclose(measured, cores, rtol=0.015)


def test_locks_only_lower_it_and_more_crossing_more_so():
    runs = scaling.weak_scaling(
        cell(1_000), ["fifo"], [4], [0.0, 0.1, 0.3], scaling.OVERLOAD, seeds=3, seed=2
    )
    made = scaling.capacities(runs)
    shares = [0.0, 0.1, 0.3]
    measured = [made.loc[4, (share, "fifo")] for share in shares]
    assert measured == sorted(measured, reverse=True)
    for share, throughput in zip(shares[1:], measured[1:], strict=True):
        assert throughput < 0.95 * made.loc[4, (share, "cores")]


def test_one_partition_is_the_simulator_and_stands_for_every_share():
    made = cell(500)
    runs = scaling.weak_scaling(
        made, ["fifo", "bid-price"], [1, 2], [0.0, 0.1], 1.1, seeds=1, seed=3
    )
    alone = runs[runs["partitions"] == 1].drop(columns="crossing")
    zero, tenth = alone[:2], alone[2:]
    pd.testing.assert_frame_equal(
        zero.reset_index(drop=True), tenth.reset_index(drop=True)
    )
    trace_seed, _, estimate_seed = paired_seeds(3, 1)[0]
    one, arrivals, _ = paired_seeds(trace_seed, 1)[0]
    trace = made.arrange(made.make_trace(one), 1.1, arrivals)
    for name in ("fifo", "bid-price"):
        history = simulate(
            trace,
            policy(name, slo_s=SPEC.slo_s, cores=SPEC.cores),
            noisy_estimate()(trace, estimate_seed),
            SystemConfig(cores=SPEC.cores, slo_s=SPEC.slo_s),
        )
        expected = summarize(trace, history)
        row = zero[zero["policy"] == name].iloc[0]
        assert row["violations"] == expected.violations
        assert row["goodput"] == expected.goodput_per_s / made.saturation_per_s


def test_parts_aside_by_littles_law():
    # Two parts for each of what crosses, for `wait_s` each, in so many partitions.
    made, share = cell(3_000), 0.1
    runs = scaling.weak_scaling(made, ["bid-price"], [4], [share], 0.7, seeds=1, seed=4)
    row = runs.iloc[0]
    parts_per_s = 2 * share * 0.7 * made.saturation_per_s
    assert row["aside"] == pytest.approx(parts_per_s * row["wait_s"], rel=0.06)


def test_where_everything_is_dropped_nothing_stands_aside():
    hopeless = replace(cell(200), slo_s=1e-6)
    (row,) = scaling.weak_scaling(
        hopeless, ["late-edf"], [2], [0.5], 1.0, seeds=1, seed=4
    ).to_dict("records")  # fmt: skip
    assert row["violations"] == row["violations_crossing"] == 1
    assert row["throughput"] == row["wait_s"] == row["aside"] == 0


def measured(costs):
    """What `one_sequencer` makes of rates and costs by the cores, for one policy."""
    cases = [
        {"policy": "bid-price", "load": 1.1, "cores": cores, "rate_per_s": rate_per_s,
         "decide_mean_us": decide_us}
        for cores, (rate_per_s, decide_us) in costs.items()
    ]  # fmt: skip
    return scaling.one_sequencer(cases).xs(("bid-price", 1.1))


def test_a_sequencer_saturates_between_the_rates_around_it():
    # Cost in proportion to the cores: 1 us for each, so busy = 1e-6 x 100 x cores^2.
    busy = measured({cores: (100.0 * cores, float(cores)) for cores in (400, 10, 40)})
    np.testing.assert_allclose(busy["busy"], [0.01, 0.16, 16.0])
    assert scaling.decision_us(busy, 2_000.0) == pytest.approx(20.0)
    assert scaling.decision_us(busy, 20, "cores") == pytest.approx(20.0)
    assert scaling.saturated_at(busy) == pytest.approx(10_000.0)
    assert scaling.saturated_at(busy[busy["busy"] < 1]) == np.inf
    for says, *outside in (
        ("lies outside what was measured", 999.0),
        ("lies outside what was measured", 40_001.0),
        ("cores=401 lies outside", 401, "cores"),
    ):
        with pytest.raises(InvalidInput, match=says):
            scaling.decision_us(busy, *outside)


def test_behind_a_busy_sequencer_everything_is_late():
    # 20 us each let 50,000 a second through: enough for 8 cores, not for 64.
    rate_per_s = cell(10).saturation_per_s
    cells = [
        scaling.grown("A", times, transactions=400, saturation_per_s=rate_per_s)
        for times in (1, 8)
    ]
    assert cells[1].cores == 8 * SPEC.cores
    assert cells[1].saturation_per_s == 8 * rate_per_s
    trace = cells[1].make_trace(0)
    assert len(trace) == 3_200
    assert trace.keys.n_keys == 8 * 10 * 11
    busy = measured({cores: (1_000.0 * cores, 20.0) for cores in (1, 1_000)})
    # A machine is priced by its cores at any load, also one below those measured.
    made, idle = (
        scaling.behind_one_sequencer(cells, "bid-price", load, busy, seeds=2, seed=5)
        for load in (1.1, 0.01)
    )
    assert list(made.index) == [(8, 0), (8, 1), (64, 0), (64, 1)]
    assert (made["free"] < 0.05).all()
    assert (made.loc[8, "as measured"] < 0.05).all()
    assert (made.loc[64, "as measured"] > 0.2).all()
    assert (idle == 0).all(axis=None)


def test_one_machine_stands_beside_as_many_cores_in_partitions():
    runs = pd.DataFrame(
        {
            "partitions": [1, 1, 4, 4, 4, 4],
            "crossing": [0.0, 0.1, 0.0, 0.1, 0.1, 0.1],
            "policy": [*["bid-price"] * 4, "fifo", "bid-price"],
            "seed": [0, 0, 0, 0, 0, 1],
            "violations": [0.01, 0.01, 0.02, 0.05, 0.9, 0.07],
        }
    )
    machines = pd.DataFrame(
        {"free": [0.01, 0.02, 0.03], "as measured": [0.01, 0.7, 0.8]},
        pd.MultiIndex.from_tuples([(32, 0), (8, 0), (32, 1)], names=["cores", "seed"]),
    )
    table = scaling.one_or_many(machines, runs, "bid-price", 8)
    assert list(table.columns) == [
        "one sequencer, free",
        "one sequencer, as measured",
        "partitions, 0 % cross",
        "partitions, 10 % cross",
    ]
    np.testing.assert_allclose(table.loc[32, 0], [1.0, 1.0, 2.0, 5.0])
    np.testing.assert_allclose(table.loc[32, 1], [3.0, 80.0, np.nan, 7.0])
    np.testing.assert_allclose(table.loc[8, 0], [2.0, 70.0, 1.0, 1.0])
