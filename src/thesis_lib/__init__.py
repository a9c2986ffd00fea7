"""Learning for systems, systems for learning: the package of a thesis that runs.

`thesis_lib.sequencer` is Part I (a learned latency estimator in front of a
deterministic database) and imports without torch; `thesis_lib.memory` is Part II
(a model larger than the device's memory).
"""

__version__ = "0.1.0"
