"""The optimum of a few transactions, by trying every log, and such transactions."""

from itertools import permutations

import numpy as np
from key_sets import conflict

from thesis_lib.sequencer.core.trace import KeySets, Trace


def fewest_by_trying(trace, cores, slo_s):
    """Every log of every subset, each entry dispatched as soon as it can start."""
    n = len(trace)
    deadline_s = trace.arrival_s + slo_s
    excluded = [[conflict(trace.keys, i, j) for j in range(n)] for i in range(n)]

    def all_on_time(log):
        cores_s, ran, now_s = [-np.inf] * cores, [], -np.inf
        for i in log:
            conflicts = [end_s for other, end_s in ran if excluded[i][other]]
            now_s = max([now_s, trace.arrival_s[i], min(cores_s), *conflicts])
            end_s = now_s + trace.service_s[i]
            if end_s > deadline_s[i]:
                return False
            cores_s[cores_s.index(min(cores_s))] = end_s
            ran.append((i, end_s))
        return True

    for size in range(n, 0, -1):
        if any(map(all_on_time, permutations(range(n), size))):
            return n - size
    return n


def tiny(seed, n=5):
    """Few transactions on few keys, in whole units of time."""
    random = np.random.default_rng(seed)
    shared, exclusive = [], []
    for _ in range(n):
        keys = random.permutation(3)[: random.integers(1, 3)].tolist()
        mode = random.random() < 0.6
        shared.append(keys[1:] if mode else keys)
        exclusive.append(keys[:1] if mode else [])
    arrival_s = np.sort(random.integers(0, 8, n)).astype(float)
    service_s = random.integers(1, 6, n).astype(float)
    trace = Trace.of_jobs(arrival_s, service_s, KeySets.from_lists(shared, exclusive))
    slo_s = float(random.integers(4, 8))
    if seed % 3 == 0:
        slo_s = random.integers(4, 10, n).astype(float)
    return trace, int(random.integers(1, 4)), slo_s
