"""Measure how long commands take with empty caches, and with warm ones.

    python benchmarks/first_use.py [ROUNDS]

Each command runs twice in a new process: with an empty cache folder, then with what the
first run wrote there. `cpu_s` includes child processes.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from record import Point, Record, benchmark, checkout, show, tell, turns

EXAMPLE = "first example of the README"
COMMANDS = [
    EXAMPLE,
    'python -c "from transformers import LlamaForCausalLM"',
    "thesis plan llama-65b --device-memory 8GiB --weights nf4",
    "thesis simulate --scenario A --load 1.1 --policy fifo",
    "thesis simulate --scenario A --load 1.1 --policy bid-price",
    "thesis generate smollm2 --device-memory 96MiB --max-new-tokens 1 --prompt Once",
]


def words(command: str) -> list[str]:
    """Return the words of a command, or of Python with the code of the README."""
    if command == EXAMPLE:
        text = (checkout() / "README.md").read_text()
        return [sys.executable, "-c", text.split("```python")[1].split("```")[0]]
    program, *rest = shlex.split(command)
    return [str(Path(sys.executable).with_name(program)), *rest]


def seconds(command: str, cache: str) -> Point:
    """Run a command with its caches in `cache`; return wall and processor seconds."""
    caches = {"NUMBA_CACHE_DIR": f"{cache}/numba", "THESIS_CACHE": cache}
    before, begun = os.times(), time.perf_counter()
    subprocess.run(
        words(command), env=os.environ | caches, check=True, stdout=subprocess.DEVNULL
    )
    wall_s, after = time.perf_counter() - begun, os.times()
    return {"wall_s": wall_s, "cpu_s": sum(after[2:4]) - sum(before[2:4])}


@benchmark
def main(out: Path, rounds: int = 3) -> None:
    record, runs = Record(out), {}
    for number, command in turns(COMMANDS, rounds):
        tell(f"round {number + 1} of {rounds}: {command}")
        with tempfile.TemporaryDirectory() as cache:
            for use in ("first", "again"):
                runs.setdefault((command, use), []).append(seconds(command, cache))
    for command in COMMANDS:
        samples = {
            f"{use}_{clock}": [round(run[clock], 2) for run in runs[command, use]]
            for use, clock in product(("first", "again"), ("wall_s", "cpu_s"))
        }
        record.add({"command": command, **samples})
    record.write(rounds=rounds)
    show(record.points, "commit")
