"""How many transactions miss their deadline under four policies, and how few must."""

from thesis_lib.sequencer import (
    SimulationConfig,
    noisy_estimate,
    reduction,
    replicate,
)  # fmt: skip

LOAD = 1.1  # of the rate at which first come, first served saturates
config = SimulationConfig.of_scenario("A", transactions=2_000)
policies = ["fifo", "codel", "hybrid-corrected", "bid-price"]
runs = replicate(
    config, policies, [LOAD], noisy_estimate(), seeds=4, seed=1, bound=True
)

for policy, share in runs.groupby("policy", sort=False)["violations"].mean().items():
    print(f"{policy:<18}{share:7.2%}")
fewer = reduction(runs, "bid-price", LOAD)
print(
    f"{policies[-1]}: {fewer.value:.1%} fewer than FIFO "
    f"({fewer.low:.1%} to {fewer.high:.1%})"
)
