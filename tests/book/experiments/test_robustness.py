from itertools import product

import numpy as np
import pandas as pd
import pytest

from thesis_book.experiments.sequencer import robustness
from thesis_book.experiments.sequencer.robustness import FlashCrowd
from thesis_lib.common import files
from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import Trace
from thesis_lib.sequencer.experiments import grid, metrics
from thesis_lib.sequencer.experiments.configuration import SimulationConfig
from thesis_lib.sequencer.workload.scenarios import Prices


def test_unchanged_estimates_give_what_replicate_gives():
    cell = SimulationConfig.of_scenario("A", transactions=600)
    given = {"seeds": 2, "seed": 4}
    runs = robustness.under_misestimation(
        cell, ["bid-price"], [1.1], ["none", "truth drifts to 2x"], **given
    )
    plain = grid.replicate(cell, ["fifo", "bid-price"], [1.1], **given)
    same, drifted = (
        runs[runs["misestimation"] == name] for name in ("none", "truth drifts to 2x")
    )
    for policy in ("fifo", "bid-price"):
        right, unchanged, worse = (
            metrics.column(of, policy, 1.1, "violations")
            for of in (plain, same, drifted)
        )
        np.testing.assert_array_equal(unchanged, right)
        assert (worse > right).all()


def cells_of(transactions):
    made = {
        f"{name} on {cores}": SimulationConfig.of_scenario(
            name, transactions=transactions, cores=cores
        )
        for name, cores in (("A", 8), ("A", 2), ("B", 8), ("B", 16), ("C", 16))
    }
    past = Trace.read(files.data_folder() / "traces" / "sqlite-tpcc-2w.parquet")
    return made | {"T": SimulationConfig.of_trace(past, transactions=transactions)}


def beyond_margin(cells, cases, seed):
    made = robustness.under_random_misestimation(
        cells, "bid-price", cases=cases, seed=seed
    )
    made["above"] = made["policy"] - made["fifo"]
    return made[made["above"] > robustness.NON_INFERIORITY_MARGIN].assign(seed=seed)


@pytest.mark.parametrize(
    ("transactions", "cases", "seed"),
    [
        (9_000, 12, 5),
        (12_000, 20, 3_220_279_229),  # some are right and wrong in one octave
    ],
)
def test_whatever_is_wrong_with_estimates_bid_price_ends_where_fifo_does(
    transactions, cases, seed
):
    beyond = beyond_margin(cells_of(transactions), cases=cases, seed=seed)
    assert beyond.empty, beyond


@pytest.mark.proof
def test_of_a_thousand_misestimations_of_a_fresh_seed_next_to_none_is_beyond():
    """One of 4,000 was seen beyond the margin, 0.34 points above FIFO."""
    cells = cells_of(12_000)
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    parts = [beyond_margin(cells, cases=20, seed=seed + part) for part in range(50)]
    beyond = pd.concat(parts)
    assert len(beyond) <= 2, beyond
    assert (beyond["above"] < 0.01).all(), beyond


def test_beyond_fifo_is_the_paired_difference_in_points():
    shares = {
        "fifo": [0.2, 0.4, 0.3], "late": [0.201, 0.401, 0.301],
        "worse": [0.2, 0.41, 0.3],
    }  # fmt: skip
    runs = pd.DataFrame(shares).melt(var_name="policy", value_name="violations")
    runs = runs.assign(misestimation="m", load=1.0, seed=[0, 1, 2] * 3)
    made = robustness.beyond_fifo(runs).set_index("policy")
    assert made.loc["late", "points"] == pytest.approx(0.1)
    assert made.loc["late", "high"] == pytest.approx(0.1)
    assert made.loc["late", "within"]
    assert made.loc["worse", "points"] == pytest.approx(1 / 3)
    assert not made.loc["worse", "within"]
    np.testing.assert_allclose(made["fifo"], 30)


def test_bursts_keep_the_mean_rate():
    arrival_s = robustness.bursty_arrivals(7_000.0, 200_000, np.random.default_rng(3))
    assert 200_000 / arrival_s[-1] == pytest.approx(7_000, rel=0.03)
    in_windows = np.bincount((arrival_s / 0.01).astype(int))[:-1]
    assert in_windows.var() > 3 * in_windows.mean()  # a Poisson process has 1


def test_a_crowd_is_as_large_as_it_says():
    crowd = FlashCrowd(times=1.6, begin_s=0.3, last_s=0.2)
    n = crowd.transactions(7_000.0, after_s=0.4)
    arrival_s = crowd.arrivals(7_000.0, n, np.random.default_rng(1))
    assert arrival_s[-1] == pytest.approx(crowd.end_s + 0.4, rel=0.05)
    inside = (arrival_s >= 0.3) & (arrival_s < 0.5)
    assert inside.sum() == pytest.approx(1.6 * 0.2 * 7_000, rel=0.1)


def test_a_crowd_troubles_its_own_time_and_windows_count_from_its_end():
    def through_a_crowd(transactions):
        cell = SimulationConfig.of_scenario("A", transactions=transactions)
        crowd = FlashCrowd(times=2.0, begin_s=0.1, last_s=0.1)
        return robustness.through_a_crowd(
            cell, crowd, ["fifo", "bid-price"], 0.8, window_s=0.02, seeds=2, seed=1
        )

    shares = through_a_crowd(3_000)
    assert shares.index[0] == pytest.approx(-0.2)
    assert 0.0 in shares.index
    assert shares.columns.tolist() == ["fifo", "bid-price"]
    during = (shares.index >= -0.06) & (shares.index < 0)
    assert (shares[during].mean() > shares[shares.index < -0.1].mean()).all()
    assert shares["bid-price"].sum() < shares["fifo"].sum()
    with pytest.raises(InvalidInput, match="more transactions"):
        through_a_crowd(500)


@pytest.mark.parametrize(
    ("after", "recovery_s"),
    [
        ([0.05] * 8, 0.0),
        ([0.5] * 4 + [0.058] * 4, 0.02),
        ([0.5] * 4 + [0.062] * 4, np.inf),
        ([0.5] * 2 + [0.0] + [0.5] + [0.0] * 4, 0.02),  # once by chance
        ([0.5] * 3 + [0.0] * 5, 0.01),
    ],
)
def test_recovery_is_the_first_window_back_at_the_level_before(after, recovery_s):
    crowd = FlashCrowd(times=2.0, begin_s=0.04, last_s=0.02)
    shares = pd.DataFrame({"x": [0.05] * 4 + after}, index=0.01 * np.arange(-6, 6))
    found = robustness.recovery_s(shares, crowd, "x")
    assert found == pytest.approx(recovery_s)


def test_a_verdict_names_the_worst():
    columns = ["misestimation", "load", "policy", "points", "low", "high", "within"]
    rows = [
        ("a", 0.9, "bid-price", -1.0, -2.0, 0.1, True),
        ("b", 1.1, "bid-price", 0.3, 0.1, 0.5, False),
        ("c", 1.1, "bid-price", 0.2, 0.2, 0.2, True),
        ("a", 1.1, "edf", 9.0, 9.0, 9.0, False),
    ]
    table = pd.DataFrame(rows, columns=columns).assign(n=20, interval="Student")
    assert robustness.verdict(table, "bid-price") == {
        "settings": 3, "within": 2, "misestimation": "b", "load": 1.1, "points": 0.3,
        "low": 0.1, "high": 0.5, "n": 20, "interval": "Student",
    }  # fmt: skip


def test_each_workload_has_its_skew_and_its_objectives():
    prices = Prices(4e-5, 6e-6, 1e-5, 1e-6)
    cells = robustness.workload_cells(prices, transactions=400, seed=2)
    typed = {name for name, cell in cells.items() if cell.objectives_s is not None}
    assert typed == {name for name in cells if "median" in name}
    calm, *_, hot = (cells[f"YCSB A, zipf {z:g}"] for z in robustness.ZIPF_EXPONENTS)
    assert calm.saturation_per_s > hot.saturation_per_s  # one lock, one at a time
    runs = grid.run_grid(
        {name: cells[name] for name in ("A", "TPC-C, 5 x median")}, "workload",
        policies=["fifo", "bid-price"], loads=[0.9, 1.2], seeds=2, seed=1,
    )  # fmt: skip
    table = robustness.by_workload(runs, 1.2)
    assert table.index.tolist() == ["A", "TPC-C, 5 x median"]
    numbers, policies = ("violations", "cost"), ("fifo", "bid-price")
    assert table.columns.tolist() == [*product(numbers, policies)]
    one = runs.query("workload == 'A' and load == 1.2 and policy == 'bid-price'")
    cost = table.loc["A", ("cost", "bid-price")]
    assert cost == pytest.approx(100 * one["cost"].mean())
    assert (table["cost"] <= table["violations"]).all(axis=None)


@pytest.mark.parametrize(
    ("names", "points"), [(["low"], 0.5), (["low", "high"], 2.0), (["none"], 0.0)]
)
def test_what_a_misestimation_adds_is_its_worst_against_good_estimates(names, points):
    percent = {
        ("none", 0.9): 1.0, ("none", 1.5): 10.0, ("low", 0.9): 1.5,
        ("low", 1.5): 9.0, ("high", 0.9): 0.5, ("high", 1.5): 12.0,
    }  # fmt: skip
    rows = [
        (*place, policy, times * share)
        for policy, times in (("bid-price", 1), ("other", 50))
        for place, share in percent.items()
    ]
    columns = ["misestimation", "load", "policy", "percent"]
    table = pd.DataFrame(rows, columns=columns)
    assert robustness.added(table, "bid-price", names) == pytest.approx(points)
