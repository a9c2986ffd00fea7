"""Which policy suits a workload: some seeds choose, others judge."""

import numpy as np

from thesis_lib.sequencer.experiments.grid import Study, compare_policies

found = compare_policies(
    ["fifo", "codel", "queue-cap", "late-edf", "least-slack", "bid-price"],
    Study(scenario="A", transactions=2_000, load=1.1),
)  # fmt: skip
for each in found["policies"]:
    name, (low, high) = each["policy"], 100 * np.array(each["more_ci"])
    print(f"{name:<12}{each['violations']:7.2%}  {low:+.1f} to {high:+.1f}")
print("take", found["chosen"])
