import numpy as np
import pandas as pd
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.experiments import metrics
from thesis_lib.sequencer.workload.scenarios import scenario


def test_the_constant_objective_follows_the_quantile():
    unloaded_s = np.arange(1, 101) / 100
    assert metrics.constant_objective_s(unloaded_s) == 2 * 0.96
    assert metrics.constant_objective_s(unloaded_s, 1.0, 1.0) == 1.0


def test_half_of_each_type_takes_at_most_its_objective_over_the_factor():
    trace = scenario("A", 4_001, seed=1)
    slo_s = metrics.type_objectives_s(trace, 5.0)
    for k in range(2):
        within = trace.service_s[trace.kind == k] <= slo_s[k] / 5
        assert abs(within.mean() - 0.5) < 1e-3
    one_type = trace.take(np.flatnonzero(trace.kind == 1))
    assert metrics.type_objectives_s(one_type, 5.0)[0] == np.inf


def test_a_cost_is_the_corners_of_its_line_and_late_or_not_is_its_limit():
    latency_s = np.array([0.0, 1.0, 1.5, 2.0, 3.0, 9.0])
    soft = metrics.linear_cost(latency_s, 1.0, 3.0)
    np.testing.assert_array_equal(soft, [0, 0, 0.25, 0.5, 1, 1])
    firm = metrics.step_cost(latency_s, 1.0)
    np.testing.assert_array_equal(firm, [0, 0, 1, 1, 1, 1])
    assert (soft <= firm).all()  # soft is never dearer than firm, and firm its limit
    nearly = metrics.linear_cost(latency_s, 1.0, 1.0 + 1e-9)
    np.testing.assert_array_equal(nearly, firm)


def test_a_tail_is_kept_by_its_share_and_a_drop_is_no_answer():
    latency_s = np.concatenate([np.arange(1.0, 101.0), [5.0, np.nan]])
    kind = np.repeat([0, 1], [100, 2])
    tails = metrics.tails_s(latency_s, kind, 3, quantile=0.9)
    assert (latency_s[:100] <= tails[0]).mean() >= 0.9
    assert (latency_s[:100] < tails[0]).mean() <= 0.91
    np.testing.assert_array_equal(tails[1:], [np.inf, np.inf])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: metrics.linear_cost(np.ones(2), 1.0, 1.0), "must be later"),
        (lambda: metrics.constant_objective_s(np.ones(2), 0.0), "factor=0"),
        (lambda: metrics.constant_objective_s(np.ones(2), 1.0, 0.0), "quantile=0"),
        (lambda: metrics.type_objectives_s(scenario("A", 4, 1), -1.0), "factor=-1"),
        (lambda: metrics.tails_s(np.ones(2), np.zeros(2), 1, 2.0), "quantile=2"),
    ],
)
def test_agreements_that_are_none_are_rejected(call, says):
    with pytest.raises(InvalidInput, match=says):
        call()


def runs_of(added, base=0.5):
    """Violations of policies that are `added` to `base`, an array with one a seed."""
    rows = [
        {"policy": name, "load": 1.1, "seed": seed, "violations": value}
        for name, values in added.items()
        for seed, value in enumerate(base + values)
    ]
    return pd.DataFrame(rows)


def test_policies_differ_beyond_what_their_number_explains():
    wobble = 0.01 * np.array([1, -1, 1, -1, 1, -1, 1, -1])
    added = {"a": 0 * wobble, "b": 0.4 + wobble, "c": -0.1 + wobble, "d": 5 * wobble}
    added["e"] = 0.009 + wobble  # whose own interval, alone, leaves zero out
    found = metrics.told_apart(runs_of(added), "a").set_index("policy")
    assert found["side"].to_dict() == {
        "b": "fewer", "c": "more", "d": "untold", "e": "untold"
    }  # fmt: skip
    points = {"b": -40, "c": 10, "d": 0, "e": -0.9}
    assert found["points"].to_dict() == pytest.approx(points, abs=1e-9)
    assert found.loc["e", "high"] < 0
    two = runs_of({name: added[name] for name in "ae"})
    assert metrics.told_apart(two, "a")["side"].tolist() == ["fewer"]
    few = runs_of({"a": np.zeros(3), "b": np.full(3, 0.4)}, 0.1 * np.arange(3))
    assert metrics.told_apart(few, "a")["side"].tolist() == ["untold"]
    with pytest.raises(InvalidInput, match="'a' alone"):
        metrics.told_apart(few.query("policy == 'a'"), "a")
