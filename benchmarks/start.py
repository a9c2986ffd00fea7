"""What people wait for before anything happens: commands that answer, and an import.

Each runs in a process of its own, in turn, beside a Python that does nothing. Ratios
are of medians to that, with the bootstrap interval of whole rounds.

    python benchmarks/start.py [ROUNDS]
"""

import subprocess
import sys
from functools import partial

import numpy as np
from record import Record, command, ratio, seconds_of, show

THESIS = ("-m", "thesis_lib")
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


def main(words: list[str] | None = None) -> None:
    """Measure, print, and keep the record."""
    given = command(__doc__, "start", rounds=15).parse_args(words)
    record = Record(given.out)
    samples: dict[str, list[float]] = {name: [] for name in STEPS}
    for number in range(given.rounds + 1):  # the first fills the page cache
        for name in STEPS if number % 2 else reversed(STEPS):
            seconds = seconds_of(partial(start, STEPS[name]))
            samples[name] += [seconds] if number else []
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
    record.write(rounds=given.rounds, rows=rows)


if __name__ == "__main__":
    main()
