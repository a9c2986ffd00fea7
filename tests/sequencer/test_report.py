import numpy as np
import pytest

from thesis_lib.checks import InvalidInput
from thesis_lib.sequencer import report
from thesis_lib.sequencer.simulate import replay
from thesis_lib.sequencer.workload import at_rate, scenario


def test_jain_is_one_for_equals_and_one_over_k_for_a_monopoly():
    assert report.jain(np.full(5, 0.3)) == pytest.approx(1.0)
    assert report.jain(np.array([1.0, 0, 0, 0])) == pytest.approx(0.25)
    assert report.jain(np.zeros(3)) == 1.0


def test_a_report_counts_what_happened():
    trace = at_rate(scenario("A", 1_000, seed=1), 9_000.0, seed=2)
    log = np.arange(0, 1_000, 2)  # every other one is dropped
    history = replay(trace, log, trace.arrival_s[log], cores=4, slo_s=4e-3)
    made = report.summarise(trace, history)
    assert made.arrived == 900
    assert made.dropped == 0.5
    assert made.violations == pytest.approx(made.late + made.dropped)
    assert made.violations == history.violated[100:].mean()
    assert made.goodput_per_s <= made.throughput_per_s
    kinds = np.array([made.violations_by_kind[k] for k in trace.kinds])
    share = np.bincount(trace.kind[100:]) / 900
    assert float(kinds @ share) == pytest.approx(made.violations)


@pytest.mark.parametrize("name", ["A", "C"])
def test_saturation_is_where_an_endless_backlog_drains(name):
    cell = report.scenario_cell(name, transactions=100)
    trace = scenario(name, 20_000, seed=5)
    log = np.arange(len(trace))
    all_at_once = replay(trace, log, np.zeros(len(trace)), cores=cell.cores, slo_s=1.0)
    drained_per_s = len(trace) / all_at_once.finish_s.max()
    assert cell.saturation_per_s == pytest.approx(drained_per_s, rel=0.03)


def test_a_paired_reduction_cancels_what_the_seeds_share():
    hard = np.random.default_rng(1).uniform(0.1, 0.9, 20)
    made = report.reduction_interval(0.64 * hard, hard)
    assert made.value == pytest.approx(0.36)
    assert made.low == pytest.approx(0.36)
    assert made.high == pytest.approx(0.36)
    assert report.reduction_interval(np.ones(3), np.zeros(3)).value == 0.0
    with pytest.raises(InvalidInput, match="pairs"):
        report.reduction_interval(np.ones(3), np.ones(4))


def test_replicates_are_paired_and_repeat():
    cell = report.scenario_cell("A", transactions=600)
    estimate = report.noisy_estimate()
    again = [
        report.replicate(cell, names, [1.1], estimate, seeds=2, seed=4, bound=True)
        for names in (["fifo", "drop"], ["drop", "fifo"])
    ]
    for name in ("fifo", "drop", "bound"):
        first, second = (report.column(runs, name, 1.1, "violations") for runs in again)
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("estimator", ["noisy", "oracle", "constant", "linear"])
def test_a_cell_answers_what_the_command_promises(estimator):
    cell = report.simulate_cell(
        scenario="A", load=1.1, policy="ours", estimator=estimator,
        seeds=2, transactions=500,
    )  # fmt: skip
    assert set(cell) >= {
        "violations", "violations_ci", "late", "dropped", "goodput_per_s",
        "throughput_per_s", "fifo_violations", "reduction", "reduction_ci",
        "lower_bound",
    }  # fmt: skip
    assert cell["lower_bound"] <= cell["violations"]
    assert cell["violations"] == pytest.approx(cell["late"] + cell["dropped"])
    assert cell["violations_ci"][0] <= cell["violations"] <= cell["violations_ci"][1]


def test_a_cell_of_a_trace_needs_no_scenario():
    cell = report.simulate_cell(
        trace=scenario("A", 2_000, seed=1), load=0.9, policy="drop", seeds=2,
        transactions=500,
    )  # fmt: skip
    assert 0 <= cell["violations"] <= 1
    with pytest.raises(InvalidInput, match="exactly one"):
        report.simulate_cell(load=1.0, policy="drop")
