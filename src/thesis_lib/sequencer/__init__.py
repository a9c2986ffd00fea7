"""Part I: a learned latency estimator and a sequencer before a deterministic database.

    from thesis_lib import sequencer

    cell = sequencer.scenario_cell("A", transactions=2_000)
    runs = sequencer.replicate(
        cell, ["fifo", "ours"], [1.1], sequencer.noisy_estimate(), seeds=4, seed=1
    )
    sequencer.reduction(runs, "ours", 1.1)  # of violations, with its interval

The names of this page are those that last; everything else may move between rooms.
"""

import lazy_loader

# The stub beside this file says where each name lives; one is imported when it is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
