"""Learning for systems, systems for learning: the package of a thesis that runs.

`thesis_lib.sequencer` is Part I (a learned latency estimator in front of a
deterministic database) and imports without torch; `thesis_lib.memory` is Part II
(a model larger than the device's memory).

OpenMP threads that wait for each other sleep here instead of spinning. If another
process needs a core, a spinning thread takes time from the thread that it waits for,
and a streamed token becomes many times slower (`benchmarks/beside.py`). OpenMP reads
its settings when torch loads it, so import this package first.
"""

import os
import sys
import warnings

__version__ = "0.1.0"

if "OMP_WAIT_POLICY" not in os.environ:
    if "torch" in sys.modules:
        warnings.warn(
            "torch was imported before thesis_lib, so its threads spin while they "
            "wait, and are slow beside other processes: import thesis_lib first, or "
            "set OMP_WAIT_POLICY=PASSIVE",
            stacklevel=2,
        )
    else:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # GNU's
        os.environ.setdefault("KMP_BLOCKTIME", "0")  # LLVM's and Intel's
