"""What people wait for before anything happens: commands that answer, and an import.

Each runs in a process of its own, in turn, beside a Python that does nothing. Ratios
are medians, over rounds, of the time over that.

    python benchmarks/start.py [ROUNDS]
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
from record import Record, benchmark, ratio, show, turns

from thesis_lib.common.provenance import seconds_of

THESIS = ("-m", "thesis_book")
STEPS = {
    "python -c pass": ("-c", "pass"),
    "thesis --help": (*THESIS, "--help"),
    "thesis cost": (*THESIS, "cost"),
    "thesis plan": (*THESIS, "plan", "llama-65b", "--device-memory", "8GiB"),
    "import thesis_lib.sequencer": ("-c", "import thesis_lib.sequencer"),
}
GOALS_S = {  # in seconds, as CONTRIBUTING.md has them
    "thesis --help": 0.5, "thesis cost": 1.5, "thesis plan": 1.5,
    "import thesis_lib.sequencer": 1.0,
}  # fmt: skip


def start(words: tuple[str, ...]) -> None:
    """A process of this Python with these words, which must succeed."""
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


@benchmark
def main(out: Path, rounds: int = 15) -> None:
    """Measure, print, and keep the record."""
    record = Record(out)
    samples: dict[str, list[float]] = {name: [] for name in STEPS}
    for number, name in turns(STEPS, rounds + 1):
        seconds = seconds_of(partial(start, STEPS[name]))
        samples[name] += [seconds] if number else []  # the first fills the page cache
    nothing = samples["python -c pass"]
    rows = [
        {
            "what": name,
            "median_s": float(np.median(seconds)),
            "goal_s": GOALS_S.get(name),
            "over_nothing": ratio(seconds, nothing),
            "seconds": seconds,
        }
        for name, seconds in samples.items()
    ]
    show(rows)
    record.write(rounds=rounds, rows=rows)
