"""Two policies of one's own beside shipped ones: each is a function of a batch."""

import numpy as np

from thesis_lib.sequencer import SimulationConfig, replicate


def shortest_first(batch, forecast, now_s):
    """The shortest first; who is more likely late than on time is refused."""
    return batch.decide(forecast.service_s.argsort(), forecast.p_on_time < 0.5)


def adaptive_lifo(batch, forecast, now_s):
    """The newest first while the oldest waits long (Maurer, ACM Queue 2015)."""
    order = np.arange(len(batch))  # a batch is in order of arrival
    waited = (now_s - batch.arrival_s) / (batch.deadline_s - batch.arrival_s)
    if waited.max(initial=0) > 0.25:
        order = order[::-1]
    return batch.decide(order, waited >= 1)


if __name__ == "__main__":  # not run where the file only names a policy
    config = SimulationConfig.of_scenario("A", transactions=2_000)
    rules = {rule.__name__: (rule, None) for rule in (shortest_first, adaptive_lifo)}
    rules |= {name: (name, None) for name in ("fifo", "bid-price")}
    runs = replicate(config, rules, [1.1], seeds=4, seed=1)
    for policy, row in runs.groupby("policy").mean().iterrows():
        print(f"{policy:<15}{row['violations']:7.2%}")
