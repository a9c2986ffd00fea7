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

import warnings
from typing import Any

import lazy_loader

# The stub beside this file says where each name lives; one is imported when it is used.
_attached, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_RENAMED = {
    "Cell": "SimulationConfig",
    "scenario_cell": "SimulationConfig.of_scenario",
    "trace_cell": "SimulationConfig.of_trace",
}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        return _attached(name)
    instead = f"thesis_lib.sequencer.{name} goes: call it {_RENAMED[name]}"
    warnings.warn(instead, FutureWarning, stacklevel=2)
    config = _attached("SimulationConfig")
    _, _, constructor = _RENAMED[name].partition(".")
    return getattr(config, constructor) if constructor else config
