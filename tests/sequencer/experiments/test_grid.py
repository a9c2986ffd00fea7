import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from processes import ended
from scipy.stats import ttest_1samp

from thesis_book.experiments.sequencer import scaling
from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.sequencer.core.trace import KeySets, Trace
from thesis_lib.sequencer.estimators.models import ESTIMATORS, cut_tail
from thesis_lib.sequencer.experiments import configuration, grid, live, metrics
from thesis_lib.sequencer.experiments.configuration import (
    SimulationConfig,
    SystemOptions,
)
from thesis_lib.sequencer.experiments.grid import Study
from thesis_lib.sequencer.policies.parameters import (
    AS_PUBLISHED,
    CORRECTED,
    Defects,
    LateBound,
)
from thesis_lib.sequencer.policies.registry import policy as named_policy
from thesis_lib.sequencer.simulator.simulator import SystemConfig, replay, simulate
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import (
    Prices,
    from_measured,
    priced,
    scenario,
)
from thesis_lib.sequencer.workload.tpcc import tpcc
from thesis_lib.sequencer.workload.transactions import Scale


def test_jain_is_one_for_equals_and_one_over_k_for_a_monopoly():
    assert metrics.jain(np.full(5, 0.3)) == pytest.approx(1.0)
    assert metrics.jain(np.array([1.0, 0, 0, 0])) == pytest.approx(0.25)
    assert metrics.jain(np.zeros(3)) == 1.0


@pytest.fixture(scope="module")
def halved():
    """A trace, and what happens to it where every other transaction is dropped."""
    trace = at_rate(scenario("A", 1_000, seed=1), 9_000.0, seed=2)
    log = np.arange(0, 1_000, 2)
    return trace, replay(trace, log, trace.arrival_s[log], cores=4, slo_s=4e-3)


def test_a_report_counts_what_happened(halved):
    trace, history = halved
    made = metrics.summarize(trace, history)
    assert made.arrived == 900
    assert made.dropped == 0.5
    assert made.violations == pytest.approx(made.late + made.dropped)
    assert made.violations == history.violated[100:].mean()
    assert made.goodput_per_s <= made.throughput_per_s
    kinds = np.array([made.violations_by_kind[k] for k in trace.kinds])
    share = np.bincount(trace.kind[100:]) / 900
    assert float(kinds @ share) == pytest.approx(made.violations)
    assert made.lenient == pytest.approx(made.late / (1 - made.dropped))
    late, latency_s = history.late[100:], history.latency_s[100:]
    busy_s = trace.service_s[100:] * ~history.dropped[100:]
    assert made.wasted == pytest.approx(busy_s[late].sum() / busy_s.sum())
    assert made.p99_s <= made.p999_s <= np.nanmax(history.latency_s)
    linear = np.clip(latency_s / 4e-3 - 1, 0, 1)  # and an answer that is none costs 1
    expected = np.where(np.isnan(latency_s), 1.0, linear).mean()
    assert made.cost == pytest.approx(expected)
    assert made.dropped <= made.cost <= made.violations
    none = np.empty(0)
    nothing = replay(trace, none.astype(int), none, cores=4, slo_s=4e-3)
    empty = metrics.summarize(trace, nothing)
    assert empty.wasted == 0.0
    assert np.isnan(empty.lenient)


@pytest.mark.parametrize("name", ["A", "C"])
def test_saturation_is_where_an_endless_backlog_drains(name):
    cell = SimulationConfig.of_scenario(name, transactions=100)
    trace = scenario(name, 20_000, seed=5)
    log = np.arange(len(trace))
    all_at_once = replay(trace, log, np.zeros(len(trace)), cores=cell.cores, slo_s=1.0)
    drained_per_s = len(trace) / all_at_once.finish_s.max()
    assert cell.saturation_per_s == pytest.approx(drained_per_s, rel=0.03)


def test_load_one_is_the_mean_of_independent_probes_within_its_interval():
    drawn = []

    def make(n, seed):
        drawn.append((n, seed))
        return scenario("A", n, seed)

    full = configuration.saturation(make, cores=8)
    assert len(set(drawn)) == len(drawn) == configuration.PROBES
    rates = [configuration.saturation_rate(scenario("A", *of), cores=8) for of in drawn]
    assert full.value == pytest.approx(np.mean(rates))
    assert min(rates) < full.low < full.value < full.high < max(rates)
    fresh = [
        configuration.saturation_rate(scenario("A", 20_000, s), cores=8)
        for s in range(9)
    ]
    stderr = np.std(fresh, ddof=1) * np.sqrt(1 / len(fresh) + 1 / len(rates))
    assert abs(np.mean(fresh) - full.value) < 4 * stderr
    cell = SimulationConfig.of_scenario("A", transactions=100)
    assert cell.saturation_per_s == full.value
    assert cell.saturation == full


def test_a_rate_that_is_kept_is_that_of_its_own_transactions(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_CACHE", str(tmp_path))
    monkeypatch.setattr(configuration, "PROBES", 2)
    of_scenario, of_trace = SimulationConfig.of_scenario, SimulationConfig.of_trace
    cases = [
        *(partial(of_scenario, "A", warehouses=warehouses) for warehouses in (4, None)),
        partial(of_scenario, "C", warehouses=1),
        *(
            partial(of_trace, scenario("B", n, seed=seed))
            for n, seed in ((300, 1), (300, 2), (400, 1))
        ),
    ]

    def measured():
        return [
            make(transactions=100, cores=cores).saturation
            for make in cases
            for cores in (2, 3)
        ]

    first = measured()
    assert len({full.value for full in first}) == len(first)
    monkeypatch.setattr(configuration, "saturation_rate", None)  # not asked again
    assert measured() == first


def test_a_paired_reduction_cancels_what_the_seeds_share():
    hard = np.random.default_rng(1).uniform(0.1, 0.9, 20)
    made = metrics.reduction_interval(0.64 * hard, hard)
    assert made.value == pytest.approx(0.36)
    assert made.low == pytest.approx(0.36)
    assert made.high == pytest.approx(0.36)
    assert metrics.reduction_interval(np.ones(3), np.zeros(3)).value == 0.0
    with pytest.raises(InvalidInput, match="pairs"):
        metrics.reduction_interval(np.ones(3), np.ones(4))


def test_replicates_are_paired_and_repeat():
    cell = SimulationConfig.of_scenario("A", transactions=600)
    first, second = (
        grid.replicate(cell, names, [1.1], seeds=2, seed=4, bound=True)
        for names in (["fifo", "drop"], ["drop", "fifo"])
    )
    order = ["policy", "seed"]
    pd.testing.assert_frame_equal(
        first.sort_values(order, ignore_index=True),
        second.sort_values(order, ignore_index=True),
        check_exact=True,
    )


def test_rows_are_the_same_for_any_number_of_processes(monkeypatch):
    """One process makes a seed's transactions once for all loads, two for each."""
    config = SimulationConfig.of_scenario("A", transactions=400)
    policies, loads = ["fifo", "bid-price"], [0.9, 1.1, 1.3]

    def runs(processes: int) -> pd.DataFrame:
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", str(processes))
        return grid.replicate(config, policies, loads, seeds=4, seed=4, bound=True)

    pd.testing.assert_frame_equal(runs(1), runs(2), check_exact=True)
    assert runs(1)["load"].to_list() == [x for x in loads for _ in range(3)] * 4


def test_a_grid_is_its_cases_and_a_label_is_a_policy_with_options():
    places = {
        cores: SimulationConfig.of_scenario("A", transactions=400, cores=cores)
        for cores in (8, 4)
    }
    given = {"loads": [0.9], "seeds": 2, "seed": 4}
    patient = "late-edf", LateBound(least_p=0.9)
    policies = {"fifo": ("fifo", None), "patient": patient}
    made = grid.run_grid(places, "cores", policies=policies, **given)
    assert made["cores"].to_list() == [8] * 4 + [4] * 4
    for cores, config in places.items():
        for label, policy in policies.items():
            alone = grid.replicate(config, {label: policy}, **given)
            at = made[(made["cores"] == cores) & (made["policy"] == label)]
            assert at["violations"].to_list() == alone["violations"].to_list()


def test_a_grid_keeps_its_order_and_names_the_point_that_fails(monkeypatch):
    def measure(at: int) -> list[dict]:
        require(at != 9, f"point {at} has no rows")
        return [{"at": at}]

    for processes in ("1", "2"):
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", processes)
        made = grid.run_points(measure, [(at,) for at in range(9)])
        assert made["at"].to_list() == list(range(9))
        with pytest.raises(InvalidInput, match="point 9 has no rows"):
            grid.run_points(measure, [(at,) for at in range(7, 12)])


def test_first_point_is_measured_by_the_parent_which_compiles_for_all(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    rows = grid.run_points(lambda at: [{"process": os.getpid()}], [(0,), (1,), (2,)])
    assert rows["process"][0] == os.getpid()
    assert os.getpid() not in set(rows["process"][1:])


def test_a_process_whose_memory_grows_costs_no_point_and_says_nothing(monkeypatch):
    """A page of the book may not print what joblib tells of its processes."""

    def measure(at: int) -> list[dict]:
        sys.kept = [*getattr(sys, "kept", []), b"1" * 200_000_000]  # type: ignore[attr-defined]
        time.sleep(0.6)
        return [{"at": at, "process": os.getpid()}]

    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    with warnings.catch_warnings(record=True) as told:
        made = grid.run_points(measure, [(at,) for at in range(10)])
    assert made["at"].to_list() == list(range(10))
    assert made["process"].nunique() > 2  # some were replaced
    assert [str(each.message) for each in told] == []


def test_processes_end_with_the_one_that_began_them(tmp_path, monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    code = """
import os, pathlib, time
from thesis_lib.sequencer.experiments.grid import run_points

def measure(at):
    if at == 0:  # the parent measures the first point itself
        return []
    pathlib.Path(str(os.getpid())).touch()
    time.sleep(600)

run_points(measure, [(at,) for at in range(3)])
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    while not (begun := [*tmp_path.iterdir()]):
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    assert ended([int(path.name) for path in begun])


def bursty(n=600, seed=3, origin_s=2.0**20):
    """Transactions that come ten at a time, from some instant of some clock on."""
    trace = scenario("A", n, seed)
    random = np.random.default_rng(seed)
    gaps_s = np.where(np.arange(n) % 10 == 0, random.integers(1, 9, n), 0) / 2.0**10
    return replace(trace, arrival_s=origin_s + np.cumsum(gaps_s))


BURSTY = bursty()
FEATURELESS = replace(BURSTY, features=np.empty((600, 0)), feature_names=())


def cell_of(policy, seeds=5, **given):
    """The result of a policy in a study, whose options may be those of its system."""
    system = {
        name: given.pop(name) for name in SystemOptions.__annotations__ if name in given
    }
    return grid.simulate_cell(policy, Study(**given, system=system), seeds=seeds)


@pytest.mark.parametrize(
    ("options", "estimator"),
    [
        *(
            ({"scenario": "A", "load": 1.1, "transactions": 500}, estimator)
            for estimator in ("noisy", "oracle", "constant", "linear")
        ),
        # They need no features.
        *(({"trace": FEATURELESS}, name) for name in ("noisy", "oracle", "constant")),
    ],
)
def test_a_cell_answers_what_the_command_promises(options, estimator):
    cell = cell_of("bid-price", estimator=estimator, seeds=2, **options)
    assert set(cell) >= {
        "violations", "violations_ci", "late", "dropped", "goodput_per_s",
        "throughput_per_s", "fifo_violations", "reduction", "reduction_ci",
        "lower_bound",
    }  # fmt: skip
    assert cell["lower_bound"] <= cell["violations"]
    assert cell["violations"] == pytest.approx(cell["late"] + cell["dropped"])
    low, high = cell["violations_ci"] or 2 * [cell["violations"]]
    assert low <= cell["violations"] <= high


@pytest.mark.parametrize("estimator", ["noisy", "linear"])
def test_a_bias_multiplies_what_every_estimator_says(estimator):
    given = {"scenario": "A", "load": 1.1, "seeds": 1, "transactions": 500}
    given["estimator"] = estimator
    plain, biased = (cell_of("sjf", bias=bias, **given) for bias in (1.0, 1024.0))
    assert plain == biased  # who is shorter than whom has not changed
    assert cell_of("late-edf", bias=1024.0, **given)["dropped"] == 1.0


def shares_of(names, load, transactions, seeds, seed):
    """Violations by policy and seed, in order of drawing."""
    config = SimulationConfig.of_scenario("A", transactions=transactions)
    runs = grid.replicate(config, names, [load], seeds=seeds, seed=seed)
    shares = runs.pivot_table(index="policy", columns="seed", values="violations")
    return shares[runs["seed"].unique()]


def test_a_policy_is_chosen_on_some_seeds_and_judged_on_the_others():
    names = ["fifo", "late-edf", "bid-price"]
    study = Study(scenario="A", load=1.2, transactions=400, seed=5)
    found = grid.compare_policies(names, study, seeds=2)
    shares = shares_of(names, 1.2, 400, seeds=4, seed=5)
    assert found["chosen"] == shares.iloc[:, :2].mean(axis=1).idxmin()
    judged = shares.iloc[:, 2:]
    more = judged - judged.loc[found["chosen"]]
    said = found["policies"]
    assert [each["policy"] for each in said] == [
        *judged.mean(axis=1).sort_values().index
    ]
    for each in said:
        name = each["policy"]
        assert each["violations"] == pytest.approx(judged.loc[name].mean())
        assert each["more"] == pytest.approx(more.loc[name].mean())
        assert each["more_ci"] == pytest.approx(  # a range, of so few
            (more.loc[name].min(), more.loc[name].max())
        )
        assert each["chosen_has"] == (None if name == found["chosen"] else "untold")


def test_policies_are_compared_jointly():
    names = ["fifo", "bid-price", "codel", "edf", "late-edf", "sjf"]
    study = Study(scenario="A", load=1.05, transactions=600, seed=3)
    found = grid.compare_policies(names, study, seeds=8)
    judged = shares_of(names, 1.05, 600, seeds=16, seed=3).iloc[:, 8:]
    more = judged.sub(judged.loc[found["chosen"]]).drop(found["chosen"])
    p = more.apply(lambda own: ttest_1samp(own, 0).pvalue, axis=1).sort_values()
    apart = (p <= 0.05 / np.arange(len(p), 0, -1)).cummin()
    assert {True, False} == {*apart}  # the case has both
    said = {each["policy"]: each["chosen_has"] for each in found["policies"]}
    assert said.pop(found["chosen"]) is None
    assert {name: side != "untold" for name, side in said.items()} == dict(apart)


@pytest.mark.parametrize(("estimator", "seeds"), [("oracle", 1), ("noisy", 3)])
def test_a_trace_is_one_sample_which_chooses_and_judges(estimator, seeds):
    study = Study(trace=BURSTY, estimator=estimator)
    found = grid.compare_policies(["fifo", "bid-price"], study, seeds=3)
    for each in found["policies"]:
        assert (each["seeds"], each["more_ci"]) == (seeds, None)
        alone = grid.simulate_cell(each["policy"], study, seeds=3)
        assert {key: each[key] for key in alone} == alone
    assert found["policies"][0]["policy"] == found["chosen"]
    with pytest.raises(InvalidInput, match="two or more"):
        grid.compare_policies(["fifo", "fifo"], study)


def test_crowded_numbers_are_the_extremes():
    cases = [
        {"load": load, "slo_s": 0.1, "decision_mean_us": took_us}
        for load, took_us in ((1.1, 2.0), (30.0, 5.0), (10.0, 3.0))
    ]
    made = scaling.crowded_numbers({"cases": cases})
    assert made == {
        "crowded_least_load": 1.1, "crowded_most_load": 30.0,
        "crowded_least_slo_ms": 100.0, "crowded_most_slo_ms": 100.0,
        "crowded_least_us": 2.0, "crowded_most_us": 5.0,
    }  # fmt: skip


# --- A trace of the user's own -------------------------------------------------


def summarized(trace, name, estimated_s, cores, slo_s):
    given = named_policy(name, slo_s=slo_s, cores=cores)
    history = simulate(
        trace, given, estimated_s, SystemConfig(cores=cores, slo_s=slo_s)
    )
    return metrics.summarize(trace, history)


@pytest.mark.parametrize("policy", ["fifo", "bid-price", "hybrid"])
def test_a_trace_is_replayed_with_the_arrivals_that_it_has(policy):
    trace = BURSTY
    said = cell_of(
        policy, trace=trace, estimator="oracle", cores=3, slo_s=8e-3, seeds=3
    )
    begun = replace(trace, arrival_s=trace.arrival_s - trace.arrival_s[0])
    expected = summarized(begun, policy, trace.service_s, 3, 8e-3)
    assert 0.01 < expected.violations < 0.99
    assert said["violations"] == expected.violations
    assert said["p999_s"] == pytest.approx(expected.p999_s, abs=1e-9)
    assert (said["arrivals"], said["transactions"]) == ("its own", len(trace))
    span_s = trace.arrival_s[-1] - trace.arrival_s[0]
    assert said["rate_per_s"] == pytest.approx((len(trace) - 1) / span_s)
    assert said["load"] == said["rate_per_s"] / said["saturation_per_s"]
    assert said["violations_ci"] is None  # one sample, and nothing drawn for it
    assert said["reduction_ci"] is None


def test_a_load_stretches_the_arrivals_of_a_trace_and_keeps_their_pattern():
    trace, before_s = BURSTY, np.diff(BURSTY.arrival_s)
    for load in (0.3, 1.7):
        cell, at = configuration.replay_config(trace, load)
        assert at == load
        for seed in (1, 2):
            arranged = cell.arrange(cell.make_trace(seed), load, seed)
            np.testing.assert_array_equal(arranged.service_s, trace.service_s)
            gaps_s = np.diff(arranged.arrival_s)
            factor = gaps_s.sum() / before_s.sum()
            np.testing.assert_allclose(gaps_s, factor * before_s, atol=1e-12)
            rate_per_s = load * cell.saturation_per_s
            assert 1 / gaps_s.mean() == pytest.approx(rate_per_s)
    given = {"trace": trace, "estimator": "noisy", "seeds": 2}
    own = cell_of("drop", **given)
    again = cell_of("drop", load=own["load"], **given)
    assert own["violations"] == pytest.approx(again["violations"], abs=2e-3)
    assert again["arrivals"] == "its own, stretched"
    assert len(own["violations_ci"]) == 2


@pytest.mark.parametrize("estimator", ["constant", "linear", "boosted"])
def test_an_estimator_is_judged_on_what_came_after_its_past(estimator):
    trace = at_rate(scenario("A", 1_000, seed=5), 3_600.0, seed=6)
    said = cell_of("bid-price", trace=trace, estimator=estimator, slo_s=9e-3)
    past, future = trace.split(0.5)
    estimated_s = configuration.learned_estimate(estimator, past)(future, 0)
    expected = summarized(future, "bid-price", estimated_s, 4, 9e-3)
    assert said["violations"] == expected.violations
    assert (said["fitted_on"], said["transactions"], said["seeds"]) == (500, 500, 1)


@pytest.mark.parametrize(
    ("trace", "options", "message"),
    [
        (None, {"load": 1.0}, "exactly one"),
        (None, {"scenario": "A"}, "no arrivals of its own: give the load"),
        (BURSTY, {"warehouses": 4}, "warehouses=4 belongs to a scenario"),
        (BURSTY, {"clients": 50}, "give the load that they would submit"),
        (BURSTY, {"transactions": 601}, "expected 1 to the 600"),
        (BURSTY, {"transactions": 301, "estimator": "constant"}, "1 to the 300"),
        (
            bursty(199),
            {"estimator": "boosted"},
            "199 transactions are too few for estimator 'boosted'.*at least 200",
        ),
        *(
            (FEATURELESS, {"estimator": name}, f"{name} estimator learns from features")
            for name in ("linear", "boosted", "sum-max")
        ),
        (replace(BURSTY, arrival_s=np.ones(600)), {}, "arrive at 1 s: expected arriv"),
        (replace(BURSTY, service_s=np.zeros(600)), {}, "take 0 s each in the mean: "),
        (
            replace(BURSTY, features=np.full((600, 3), 1e200)),
            {"estimator": "linear"},
            "row 0 of feature:is_payment is 1e.200: beyond",
        ),
        (at_rate(bursty(9), 9.0, 1), {}, "a report needs at least 10"),
        *(
            (None, {"scenario": "A", "load": 1.1, "bias": bias}, f"bias={bias:g}")
            for bias in (0.0, -1.0, np.inf, np.nan)
        ),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_rejected(trace, options, message):
    with pytest.raises(InvalidInput, match=message):
        cell_of(policy="drop", trace=trace, **options)


def any_trace(random):
    """A trace such as nobody would collect, but may write."""
    n = int(random.choice([1, 9, 12, 60, 210, 400, 700, 900]))
    features = int(random.integers(0, 4))
    scale = 10.0 ** random.choice([-300, -30, -6, -3, -3, -3, 0, 6, 12, 300])
    service_s = random.lognormal(0, 1, n) * 10.0 ** random.choice(
        [-300, -9, -3, -3, 12]
    )
    keys = [random.permutation(5)[: random.integers(0, 4)].tolist() for _ in range(n)]
    of = random.choice([1, 2**31, 2**50])
    known = random.standard_normal((n, features)) * 10.0 ** random.choice(
        [0, 0, 0, 25, 300]
    )
    return Trace(
        kinds=("one", "other"),
        kind=random.integers(0, 2, n),
        arrival_s=np.sort(random.choice([-1.0, 1.0]) * random.exponential(scale, n)),
        service_s=np.where(
            random.random(n) < random.choice([0, 0, 0, 0.3, 0.99]), 0.0, service_s
        ),
        features=known if random.random() < 0.7 else np.ones((n, features)),
        feature_names=tuple(f"f{k}" for k in range(features)),
        keys=KeySets.from_lists([[]] * n, [[of * key for key in row] for row in keys]),
        units_s=np.empty((n, 0)),
        unit_names=(),
    )


def replay_any(seed):
    """Simulate such a trace with random options; whether it was refused."""
    random = np.random.default_rng(seed)
    given = {
        "load": random.choice([None, 1e-3, 0.8, 1.2, 50.0]),
        "policy": str(random.choice(["fifo", "drop", "hybrid", "bid-price", "codel"])),
        "estimator": str(random.choice(ESTIMATORS)),
        "clients": random.choice([None, None, 20]),
        "transactions": random.choice([None, None, 50]),
        "seeds": 1,
    }
    try:
        said = cell_of(trace=any_trace(random), **given)
    except InvalidInput as refusal:
        return str(refusal)
    for name in ("violations", "fifo_violations", "reduction", "late", "dropped"):
        assert np.isfinite(said[name]), (seed, name)
    for name in ("load", "rate_per_s", "goodput_per_s", "throughput_per_s"):
        assert 0 <= said[name] < np.inf, (seed, name)
    return None


def test_any_trace_is_replayed_or_rejected():
    refusals = [replay_any(seed) for seed in range(40)]
    assert 4 < sum(refusal is None for refusal in refusals) < 36


@pytest.mark.proof
def test_so_are_many():
    for seed in range(1_000, 2_500):
        replay_any(seed)


def test_a_closed_loop_of_many_patient_clients_offers_its_load():
    cell = SimulationConfig.of_scenario("A", transactions=4_000, clients=2_000)
    runs = grid.replicate(cell, ["fifo"], [0.5], seeds=2, seed=1)
    offered_per_s = 0.5 * cell.saturation_per_s
    made_per_s = metrics.mean(runs, "fifo", 0.5, "throughput_per_s")
    assert made_per_s == pytest.approx(offered_per_s, rel=0.05)
    assert cell.think_time_s(np.inf) == 0.0
    with pytest.raises(InvalidInput, match="no lower bound"):
        grid.replicate(cell, ["fifo"], [0.5], seeds=1, seed=1, bound=True)


def test_an_ablation_changes_from_either_end_the_defect_that_it_names():
    cell = SimulationConfig.of_scenario("A", transactions=1_500)
    past = cell.make_trace(5)
    made = grid.ablation(
        cell, "hybrid", 1.1, estimator="linear", past=past, seeds=2, seed=3
    ).set_index(["from", "defect"])
    assert len(made) == 2 * (1 + len(Defects.names()))
    assert made.loc[("corrected", ""), "strict"] < made.loc[("described", ""), "strict"]
    for start, defects in {"described": AS_PUBLISHED, "corrected": CORRECTED}.items():
        for name in ("", *Defects.names()):
            other = replace(defects, **({name: start == "corrected"} if name else {}))
            learned = cut_tail(past) if other.cut_tail else past
            alone = grid.replicate(
                cell, {"hybrid": ("hybrid", other)}, [1.1],
                configuration.learned_estimate("linear", learned),
                seeds=2, seed=3,
            )  # fmt: skip
            row = made.loc[(start, name)]
            assert row["strict"] == 100 * alone["violations"].mean()
            assert row["lenient"] == 100 * alone["lenient"].mean()
            change = row["strict"] - made.loc[(start, ""), "strict"]
            assert row["strict_change"] == pytest.approx(change, abs=1e-9)
            assert row["strict_low"] <= row["strict_change"] + 1e-9
            assert row["strict_change"] <= row["strict_high"] + 1e-9
        assert len(made.loc[start, ["strict", "lenient"]].drop_duplicates()) > 3


def live_rows(measured, **columns):
    """Rows of live runs, of one engine and worker, policies a, b, c … in turn."""
    return pd.DataFrame(
        {
            "engine": "e",
            "workers": 1,
            "load": 1.0,
            "policy": list("abcdefgh"[: len(measured)]),
            "measured": measured,
        }
        | columns
    )


def test_near_is_within_a_point_or_15_percent_of_the_measured():
    measured, simulated = zip(
        (0.02, 0.0299), (0.02, 0.0301), (0.4, 0.459), (0.4, 0.461), (0.4, 0.341),
        strict=True,
    )  # fmt: skip
    table = live.beside_measured(live_rows(measured, simulated=simulated))
    assert table["near"].tolist() == [True, False, True, False, True]
    np.testing.assert_allclose(table["error"].iloc[0], 0.99)


def test_an_engine_is_held_against_itself_by_its_even_and_odd_repeats():
    runs = pd.concat(
        live_rows([share, 0.5], repeat=repeat)
        for repeat, share in enumerate([0.1, 0.2, 0.3, 0.2])
    )
    table = live.measured_again(runs)
    np.testing.assert_allclose(table["measured"], [20.0, 50.0])
    np.testing.assert_allclose(table["again"], [20.0, 50.0])
    paired = runs.assign(model=runs["measured"] + 0.01)  # a model one point too high
    for end in ("low", "error", "high"):
        np.testing.assert_allclose(live.beside_measured(paired, "model")[end], 1.0)
    once = live.beside_measured(runs.assign(model=0.2), "model")
    assert once["low"].iloc[0] < 0 < once["high"].iloc[0]
    other = live.measured_again(runs[runs["repeat"] < 2])
    np.testing.assert_allclose(other["again"], [20.0, 50.0])
    assert other["near"].tolist() == [False, True]
    with pytest.raises(InvalidInput, match="expected two repeats"):
        live.measured_again(runs[runs["repeat"] < 1])


def test_only_pairs_that_are_apart_have_an_order():
    # b and c are near each other; a lies below both, d above all.
    runs = live_rows([0.1, 0.50, 0.52, 0.9], simulated=[0.2, 0.60, 0.55, 0.58])
    ranked = live.ranked_alike(live.beside_measured(runs))
    assert ranked.loc[("e", 1), "pairs"] == 5
    assert ranked.loc[("e", 1), "alike"] == 4  # b is simulated above d


def test_rates_of_the_middleware_are_medians_over_rounds():
    found = {
        "transactions_per_s": {"threads": [1.0, 9.0, 2.0], "processes": [4.0] * 3},
        "open_loop_sustained_per_s": [3.0, 3.0, 5.0],
    }
    table = live.middleware_rates({"sqlite": {"1": found}})
    assert table.loc[("sqlite", 1)].to_dict() == {
        "threads": 2.0, "processes": 4.0, "open loop": 3.0,
    }  # fmt: skip


def test_a_span_is_from_the_worst_to_the_best_load_of_each_scenario():
    shares = {("fifo", 0.9): 0.2, ("fifo", 1.1): 0.5, ("x", 0.9): 0.3, ("x", 1.1): 0.1}
    runs = pd.DataFrame(
        [(policy, load, 0, share) for (policy, load), share in shares.items()],
        columns=["policy", "load", "seed", "violations"],
    )
    one = runs[runs["load"] == 1.1]
    found = metrics.spans({"A": runs, "B": one}, "x")
    assert found == pytest.approx(
        {"x_least_A": -50, "x_most_A": 80, "x_least_B": 80, "x_most_B": 80}
    )


def test_rates_are_in_percent_of_each_scenarios_saturation():
    runs = pd.DataFrame(
        {
            "policy": ["fifo", "fifo", "bid-price", "bid-price", "fifo"],
            "load": [1.1, 1.1, 1.1, 1.1, 0.9],
            "throughput_per_s": [90.0, 110.0, 120.0, 140.0, 900.0],
            "goodput_per_s": [10.0, 30.0, 110.0, 120.0, 800.0],
        }
    )
    made = metrics.rates({"A": runs, "C": runs}, {"A": 200.0, "C": 100.0}, 1.1)
    assert made.loc["fifo"].to_dict() == {
        ("A", "all"): 50.0,
        ("A", "on time"): 10.0,
        ("C", "all"): 100.0,
        ("C", "on time"): 20.0,
    }
    assert made.loc["bid-price", ("C", "all")] == 130.0


def test_a_sequencer_passes_one_over_its_work():
    cell = SimulationConfig.of_scenario("A", transactions=2_000)
    between_s = 1 / (0.9 * cell.saturation_per_s)
    runs = grid.against_sequencing(
        cell, ["fifo"], 0.9, [0.0, 0.1 * between_s, 2 * between_s], seeds=1, seed=3
    )
    free, light, heavy = runs["throughput_per_s"]
    assert light == pytest.approx(free, rel=0.01)
    assert heavy == pytest.approx(1 / (2 * between_s), rel=0.02)
    assert runs["sequencer_s"].tolist() == [0.0, 0.1 * between_s, 2 * between_s]


def test_the_cost_of_a_policy_is_its_worst_and_both_parts_have_to_meet_the_goal():
    rows = [
        ("drop", "compiled", 2.0, 9.0),
        ("drop", "compiled", 10.0, 25.0),
        ("edf", "compiled", 10.1, 20.0),
        ("sjf", "compiled", 2.0, 25.1),
    ]
    for policy, called_us in (("drop", 40.0), ("edf", 30.0), ("sjf", 20.0)):
        rows += [(policy, "called", called_us, 90.0)]
        rows += [(policy, "python", called_us + 40.0, 90.0)]
    columns = ["policy", "way", "both_mean_us", "both_p99_us"]
    cases = pd.DataFrame(rows, columns=columns)
    cases = cases.assign(
        decide_mean_us=cases["both_mean_us"] - 1, decide_p99_us=cases["both_p99_us"] - 1
    )
    made = scaling.decision_costs(cases)
    assert made["with estimate"].tolist() == [10.0, 10.1, 2.0]
    assert made["its p99"].tolist() == [24.0, 19.0, 24.1]
    assert made["called"].tolist() == [40.0, 30.0, 20.0]
    assert made["in Python"].tolist() == [80.0, 70.0, 60.0]
    assert made["meets the goal"].tolist() == [True, False, False]


def test_each_type_has_the_objective_of_its_own():
    cell = SimulationConfig.of_scenario("A", transactions=2_000).by_type(10)
    trace = cell.arrange(cell.make_trace(1), 0.9, 2)
    history = cell.history(trace, cell.policy("fifo"), trace.service_s, 0.9)
    slo_s = history.deadline_s - history.arrival_s
    for k, kind in enumerate(trace.kinds):
        own_s = slo_s[trace.kind == k]
        assert np.ptp(own_s) < 1e-9, kind
        median_s = np.median(trace.service_s[trace.kind == k])
        assert own_s[0] == pytest.approx(10 * median_s, rel=0.1)
    assert min(cell.objectives_s) < cell.slo_s < max(cell.objectives_s)
    runs = grid.replicate(cell, ["bid-price"], [1.3], seeds=1, seed=1, bound=True)
    assert metrics.mean(runs, "bound", 1.3) <= metrics.mean(runs, "bid-price", 1.3)


def test_a_type_that_is_rare_has_an_objective_in_the_shortest_traces():
    log = tpcc(300, Scale(warehouses=2), 5)
    past = priced(log, Prices(1e-4, 1e-6, 2e-6, 3e-6), 0.2, 5)
    for number in range(40):
        cell = SimulationConfig(
            make_trace=lambda seed, number=number: from_measured(
                past, 100, 1_000_003 * number + seed
            ),
            saturation_per_s=4_000.0, cores=4, slo_s=0.01,
        ).by_type(5)  # fmt: skip
        assert np.isfinite(cell.objectives_s).all(), number
        assert min(cell.objectives_s) < cell.slo_s < max(cell.objectives_s), number
