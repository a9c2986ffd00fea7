"""A policy is learned in the simulator, and then runs like any other."""

import numpy as np
from environment import SequencerEnv, scored

from thesis_lib.sequencer import SimulationConfig, noisy_estimate, replicate

config = SimulationConfig.of_scenario("A", transactions=300)


def episode(seed):
    trace = config.arrange(config.make_trace(seed), load=1.5, seed=seed)
    return trace, noisy_estimate()(trace, seed)


def violations(weights, seed):
    (seen, _), over = env.reset(seed=seed), False
    while not over:
        seen, _, over, _, info = env.step((seen * weights).sum(axis=1))
    return info["history"].violated.sum()


env, mean = SequencerEnv(episode, cores=config.cores, slo_s=config.slo_s), np.zeros(5)
for seed in range(8):  # the cross-entropy method: each generation meets the same run
    tried = np.random.default_rng(seed).normal(mean, 0.8**seed, (16, 5))
    mean = tried[np.argsort([violations(w, seed) for w in tried])[:4]].mean(axis=0)
policies = {"learned": (scored(lambda seen: (seen * mean).sum(axis=1)), None)}
policies |= {name: (name, None) for name in ("fifo", "late-edf")}
runs = replicate(config, policies, [1.5], seeds=8, seed=2)
print(runs.groupby("policy")["violations"].mean().round(3).to_string())
