from itertools import combinations

import numpy as np
import pytest

from thesis_lib.checks import InvalidInput
from thesis_lib.sequencer.bounds import (
    exclusive_keys,
    fewest_violations,
    kise_ibaraki_mine,
    moore_hodgson,
    pooled_cores,
)
from thesis_lib.sequencer.policies import POLICIES, policy
from thesis_lib.sequencer.simulate import simulate
from thesis_lib.sequencer.workload import SCENARIOS, at_rate, scenario


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


@pytest.mark.parametrize("seed", range(300))
def test_kise_ibaraki_mine_equals_exhaustive_search(seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 9))
    release = np.sort(random.integers(0, 12, n)).astype(float)
    service = random.integers(1, 9, n).astype(float)
    deadline = np.sort(release + random.integers(1, 14, n))
    if seed % 2:  # one objective for all
        deadline = release + random.integers(2, 14)
    on_time = kise_ibaraki_mine(release, service, deadline)
    assert on_time.sum() == most_on_time(release, service, deadline)
    assert feasible(np.flatnonzero(on_time), release, service, deadline)


@pytest.mark.parametrize("seed", range(100))
def test_moore_hodgson_equals_exhaustive_search(seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 9))
    service = random.integers(1, 9, n).astype(float)
    deadline = random.integers(1, 30, n).astype(float)
    order = np.argsort(deadline, kind="stable")
    service, deadline = service[order], deadline[order]
    on_time = moore_hodgson(service, deadline)
    zero = np.zeros(n)
    assert on_time.sum() == most_on_time(zero, service, deadline)
    assert feasible(np.flatnonzero(on_time), zero, service, deadline)
    assert on_time.sum() == kise_ibaraki_mine(zero, service, deadline).sum()


def test_disagreeing_deadlines_are_refused():
    with pytest.raises(InvalidInput, match="agreeable"):
        kise_ibaraki_mine([0.0, 1.0], [1.0, 1.0], [9.0, 3.0])


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
            cores=spec.cores,
            slo_s=spec.slo_s,
        )
        assert bound <= history.violated.sum(), rule


def test_locks_alone_bound_a_lock_bound_trace():
    trace = at_rate(scenario("C", 1_000, seed=3, warehouses=1), 4_000.0, seed=4)
    assert exclusive_keys(trace, slo_s=5e-3) > pooled_cores(trace, cores=64, slo_s=5e-3)
