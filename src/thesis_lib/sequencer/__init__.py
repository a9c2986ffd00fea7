"""Part I: a learned latency estimator and a sequencer before a deterministic database.

    from thesis_lib import sequencer

    config = sequencer.SimulationConfig.of_scenario("A", transactions=2_000)
    runs = sequencer.replicate(
        config, ["fifo", "bid-price"], [1.1], sequencer.noisy_estimate(), seeds=4,
        seed=1
    )
    sequencer.reduction(runs, "bid-price", 1.1)  # of violations, with its interval

The names exported here are stable; modules behind them may move.
"""

import lazy_loader

# The stub beside this file says where each name is; a name is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
