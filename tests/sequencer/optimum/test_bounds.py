from itertools import combinations

import numpy as np
import pytest
from exhaustive import fewest_by_trying, tiny

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import KeySets, Trace
from thesis_lib.sequencer.optimum.bounds import (
    exclusive_keys,
    fewest_violations,
    kise_ibaraki_mine,
    pooled_cores,
)
from thesis_lib.sequencer.policies.registry import POLICIES, policy
from thesis_lib.sequencer.simulator.simulator import SystemConfig, simulate
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import SCENARIOS, scenario


def feasible(jobs, release, service, deadline):
    """Agreeable: if any order works, the order of releases does."""
    end = 0.0
    for job in jobs:
        end = max(end, release[job]) + service[job]
        if end > deadline[job]:
            return False
    return True


def most_on_time(release, service, deadline):
    n = len(release)
    for size in range(n, 0, -1):
        if any(
            feasible(jobs, release, service, deadline)
            for jobs in combinations(range(n), size)
        ):
            return size
    return 0


@pytest.mark.parametrize("kind", ["mixed", "one objective", "all there"])
def test_kise_ibaraki_mine_equals_exhaustive_search(kind):
    for seed in range(130):
        random = np.random.default_rng(seed)
        n = int(random.integers(1, 9))
        release = np.sort(random.integers(0, 12, n)).astype(float)
        service = random.integers(1, 9, n).astype(float)
        deadline = np.sort(release + random.integers(1, 14, n))
        if kind == "one objective":
            deadline = release + random.integers(2, 14)
        elif kind == "all there":
            release = np.zeros(n)
        on_time = kise_ibaraki_mine(release, service, deadline)
        assert on_time.sum() == most_on_time(release, service, deadline), f"{seed=}"
        assert feasible(np.flatnonzero(on_time), release, service, deadline), f"{seed=}"


def test_disagreeing_deadlines_are_refused():
    with pytest.raises(InvalidInput, match="agreeable"):
        kise_ibaraki_mine(*np.array([[0.0, 1.0], [1.0, 1.0], [9.0, 3.0]]))


@pytest.mark.parametrize(("name", "load"), [("A", 0.99), ("B", 1.3), ("C", 1.5)])
def test_bounds_are_below_every_policy(name, load):
    spec = SCENARIOS[name]
    n = 1_500
    trace = at_rate(scenario(name, n, seed=11), load * 7_500, seed=12)
    bound = fewest_violations(trace, cores=spec.cores, slo_s=spec.slo_s)
    assert bound > 0 or load < 1
    for rule in POLICIES:
        history = simulate(
            trace,
            policy(rule, slo_s=spec.slo_s, cores=spec.cores),
            trace.service_s,  # even one that knows every service time
            SystemConfig(cores=spec.cores, slo_s=spec.slo_s),
        )
        assert bound <= history.violated.sum(), rule


def test_locks_alone_bound_a_lock_bound_trace():
    trace = at_rate(scenario("C", 1_000, seed=3, warehouses=1), 4_000.0, seed=4)
    assert exclusive_keys(trace, slo_s=5e-3) > pooled_cores(trace, cores=64, slo_s=5e-3)


def slow_kise_ibaraki_mine(release, service, deadline):
    """As published: try every job of the chain for the one to give up."""

    def end_of(chain):
        end = 0.0
        for job in chain:
            end = max(end, release[job]) + service[job]
        return end

    chain = []
    for job in range(len(release)):
        chain.append(job)
        if end_of(chain) > deadline[job]:
            without = [chain[:at] + chain[at + 1 :] for at in range(len(chain))]
            chain = min(without, key=end_of)
    return len(chain)


def test_the_tree_finds_what_trying_every_job_finds():
    for seed in range(40):
        random = np.random.default_rng(seed)
        n = 150
        release = np.sort(random.uniform(0, 100, n))
        service = random.lognormal(-0.2, 0.8, n) * random.choice([0.5, 1.0, 2.0])
        deadline = release + random.uniform(2, 15)
        on_time = kise_ibaraki_mine(release, service, deadline)
        assert feasible(np.flatnonzero(on_time), release, service, deadline), f"{seed=}"
        assert on_time.sum() == slow_kise_ibaraki_mine(release, service, deadline), (
            f"{seed=}"
        )


def test_relaxations_are_below_the_optimum_with_locks_and_cores():
    for seed in range(60):
        trace, cores, slo_s = tiny(seed)
        fewest = fewest_by_trying(trace, cores, slo_s)
        assert pooled_cores(trace, cores=cores, slo_s=slo_s) <= fewest, f"{seed=}"
        assert exclusive_keys(trace, slo_s=slo_s) <= fewest, f"{seed=}"
        if cores == 1 and (np.diff(trace.arrival_s + slo_s) >= 0).all():
            assert fewest_violations(trace, cores=cores, slo_s=slo_s) == fewest, (
                f"{seed=}"
            )


def test_objectives_that_disagree_are_relaxed_to_the_latest_deadline_so_far():
    arrival_s, none = np.array([0.0, 1.0, 2.0]), [[]] * 3
    service_s = np.array([1.0, 4.0, 1.0])
    trace = Trace.of_jobs(arrival_s, service_s, KeySets.from_lists(none, none))
    mixed_s = np.array([2.0, 6.0, 2.0])
    # The last is due at 4, behind one that is due at 7, and counts as due then.
    assert pooled_cores(trace, cores=1, slo_s=mixed_s) == 0
    assert pooled_cores(trace, cores=1, slo_s=2.0) == 1


def test_a_run_too_long_for_the_grid_is_refused():
    trace = Trace.of_jobs(
        np.array([0.0, 4e5]), np.ones(2), KeySets.from_lists([[]] * 2, [[]] * 2)
    )
    with pytest.raises(InvalidInput, match="in pieces"):
        pooled_cores(trace, cores=4, slo_s=1.0)
    with pytest.raises(InvalidInput, match="nine hours"):
        kise_ibaraki_mine(trace.arrival_s, trace.service_s, trace.arrival_s + 1)


@pytest.mark.parametrize(
    "slo_s", [0.0, -1.0, np.nan, np.inf, [0.01, 0.01], [[0.01] * 40], [0.01] * 39 + [0]]
)
def test_objectives_that_mean_nothing_are_refused(slo_s):
    with pytest.raises(InvalidInput, match="slo_s"):
        fewest_violations(scenario("A", 40, seed=1), cores=2, slo_s=slo_s)
