from functools import partial
from itertools import combinations

import numpy as np
import pytest
from exhaustive import fewest_by_trying, tiny
from key_sets import no_keys

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import Trace
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


def most_on_time(*jobs):
    """The size of the largest feasible subset, by trying all, largest first."""
    n = len(jobs[0])
    return next(
        size
        for size in range(n, -1, -1)
        if any(feasible(chosen, *jobs) for chosen in combinations(range(n), size))
    )


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
        jobs = release, service, deadline
        on_time = kise_ibaraki_mine(*jobs)
        assert on_time.sum() == most_on_time(*jobs), f"{seed=}"
        assert feasible(np.flatnonzero(on_time), *jobs), f"{seed=}"


@pytest.mark.parametrize(("name", "load"), [("A", 0.99), ("B", 1.3), ("C", 1.5)])
def test_bounds_are_below_every_policy(name, load):
    machine = {"cores": SCENARIOS[name].cores, "slo_s": SCENARIOS[name].slo_s}
    trace = at_rate(scenario(name, 1_500, seed=11), load * 7_500, seed=12)
    bound = fewest_violations(trace, **machine)
    assert bound > 0 or load < 1
    for rule in POLICIES:  # even of one that knows every service time
        given, system = policy(rule, **machine), SystemConfig(**machine)
        history = simulate(trace, given, trace.service_s, system)
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
            chain = list(min(combinations(chain, len(chain) - 1), key=end_of))
    return len(chain)


@pytest.mark.parametrize("seed", range(40))
def test_the_tree_finds_what_trying_every_job_finds(seed):
    random = np.random.default_rng(seed)
    release = np.sort(random.uniform(0, 100, 150))
    service = random.lognormal(-0.2, 0.8, 150) * random.choice([0.5, 1.0, 2.0])
    jobs = release, service, release + random.uniform(2, 15)
    on_time = kise_ibaraki_mine(*jobs)
    assert feasible(np.flatnonzero(on_time), *jobs)
    assert on_time.sum() == slow_kise_ibaraki_mine(*jobs)


@pytest.mark.parametrize("seed", range(60))
def test_relaxations_are_below_the_optimum_with_locks_and_cores(seed):
    trace, cores, slo_s = tiny(seed)
    fewest = fewest_by_trying(trace, cores, slo_s)
    assert pooled_cores(trace, cores=cores, slo_s=slo_s) <= fewest
    assert exclusive_keys(trace, slo_s=slo_s) <= fewest
    if cores == 1 and (np.diff(trace.arrival_s + slo_s) >= 0).all():
        assert fewest_violations(trace, cores=cores, slo_s=slo_s) == fewest


def test_objectives_that_disagree_are_relaxed_to_the_latest_deadline_so_far():
    service_s = np.array([1.0, 4.0, 1.0])
    trace = Trace.of_jobs(np.arange(3.0), service_s, no_keys(3))
    mixed_s = np.array([2.0, 6.0, 2.0])
    # The last is due at 4, behind one that is due at 7, and counts as due then.
    assert pooled_cores(trace, cores=1, slo_s=mixed_s) == 0
    assert pooled_cores(trace, cores=1, slo_s=2.0) == 1


TOO_LONG = Trace.of_jobs(np.array([0.0, 4e5]), np.ones(2), no_keys(2))
FORTY = scenario("A", 40, seed=1)


@pytest.mark.parametrize(
    ("says", "call"),
    [
        (
            "agreeable",
            lambda: kise_ibaraki_mine(*np.array([[0.0, 1.0], [1.0, 1.0], [9.0, 3.0]])),
        ),
        ("in pieces", lambda: pooled_cores(TOO_LONG, cores=4, slo_s=1.0)),
        (
            "nine hours",
            lambda: kise_ibaraki_mine(
                TOO_LONG.arrival_s, TOO_LONG.service_s, TOO_LONG.arrival_s + 1
            ),
        ),
        *(
            ("slo_s", partial(fewest_violations, FORTY, cores=2, slo_s=slo_s))
            for slo_s in (
                0.0, -1.0, np.nan, np.inf, [0.01] * 2, [[0.01] * 40], [0.01] * 39 + [0]
            )
        ),
    ],
)  # fmt: skip
def test_bounds_reject_disagreeing_deadlines_long_runs_and_objectives(says, call):
    with pytest.raises(InvalidInput, match=says):
        call()
