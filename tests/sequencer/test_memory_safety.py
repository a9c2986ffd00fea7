"""Compiled code checks no index by itself; here it does."""

import os
import subprocess
import sys

RUN = """
from thesis_book.experiments.sequencer import scaling
from thesis_lib.sequencer.experiments import configuration, grid
from thesis_lib.sequencer.core.events import Delays
from thesis_lib.sequencer.policies.admission import BidPriceParameters
from thesis_lib.sequencer import SimulationConfig
for name, delays in (("A", Delays()), ("C", Delays(lag_s=5e-4))):
    cell = SimulationConfig.of_scenario(name, transactions=300, delays=delays)
    fair = BidPriceParameters(gap=0.05, groups=2)
    for params in (None, fair):
        grid.replicate(
            cell, {"bid-price": ("bid-price", params)}, [0.9, 1.5],
            configuration.noisy_estimate(), seeds=2, seed=1,
        )
cell = SimulationConfig.of_scenario("A", transactions=200)
scaling.weak_scaling(cell, ["bid-price"], [2], [0.2], 1.1, seeds=1, seed=2)
print("inside")
"""


def test_no_decision_reads_or_writes_beyond_its_arrays(tmp_path):
    checked = os.environ | {
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN], capture_output=True, text=True, env=checked
    )
    assert done.stdout == "inside\n", done.stderr
