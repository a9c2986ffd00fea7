"""A sweep of 64 points over chapter 4, killed half way and resumed.

Runs the same grid twice, with two workers: once whole; once killed with SIGKILL when
half of the points are recorded, and started again. Checks that no point is lost, that
none that was recorded is executed again, and that the totals are equal.

    python benchmarks/sweep_resume.py
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil
import yaml
from record import Record, command

LOADS = [0.7, 0.8, 0.9, 0.95, 0.99, 1.1, 1.3, 1.5]
GRID = {
    "profile": "smoke",
    "grid": {
        "headline_load, loads, trace_loads, robust_loads": [
            [x, [x], [x], [x]] for x in LOADS
        ],
        "transactions": [300],
        "trace_transactions": [200],
        "robust_transactions": [200],
    },
    "seeds": 8,
}


def sweeping(grid: Path, output: Path) -> list[str]:
    words = ["sweep", "4", str(grid), "--workers", "2", "--output", str(output)]
    return [sys.executable, "-m", "thesis_lib", *words, "--json"]


def sweep(grid: Path, output: Path) -> tuple[dict, float]:
    """Run a sweep to its end: its JSON, and its seconds."""
    start = time.perf_counter()
    done = subprocess.run(sweeping(grid, output), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout), time.perf_counter() - start


def kill_half_way(grid: Path, output: Path, half: int) -> tuple[float, int]:
    """Start a sweep and kill it at `half` records: seconds, processes of it left."""
    start = time.perf_counter()
    client = subprocess.Popen(sweeping(grid, output), stdout=subprocess.DEVNULL)
    while len(list(output.glob("points/*.json"))) < half:
        if client.poll() is not None:
            sys.exit("the sweep ended before it could be killed")
        time.sleep(0.05)
    family = psutil.Process(client.pid).children(recursive=True)
    client.send_signal(signal.SIGKILL)
    client.wait()
    seconds = time.perf_counter() - start
    return seconds, len(psutil.wait_procs(family, timeout=30)[1])


def totals(output: Path) -> pd.DataFrame:
    table = pd.read_parquet(output / "results.parquet")
    return table.filter(regex=r"^(parameter|number)\.|^key$|^point$")


def main(words: list[str] | None = None) -> None:
    """Run, kill, resume, compare, and keep the record."""
    record = Record(command(__doc__, "sweep_resume").parse_args(words).out)
    points = len(LOADS) * GRID["seeds"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grid = folder / "grid.yml"
        grid.write_text(yaml.safe_dump(GRID, sort_keys=False))
        whole, whole_s = sweep(grid, folder / "whole")
        killed_s, left = kill_half_way(grid, folder / "killed", points // 2)
        records = folder / "killed" / "points"
        kept = {path: path.read_bytes() for path in records.glob("*.json")}
        resumed, resumed_s = sweep(grid, folder / "killed")
        pd.testing.assert_frame_equal(
            totals(folder / "whole"), totals(folder / "killed"), check_exact=True
        )
        again, again_s = sweep(grid, folder / "killed")
        twice = sum(path.read_bytes() != content for path, content in kept.items())
    assert whole["executed"] == points
    assert resumed["executed"] + len(kept) == points
    found = {
        "points": points,
        "recorded_when_killed": len(kept),
        "processes_left": left,
        "executed_after": resumed["executed"],
        "executed_twice": twice,
        "lost": points - resumed["done"],
        "executed_the_third_time": again["executed"],
        "numbers_equal": True,  # asserted above, bit for bit
        "seconds": {
            "whole": whole_s,
            "until_killed": killed_s,
            "resumed": resumed_s,
            "nothing_to_do": again_s,
        },
    }
    print(json.dumps(found, indent=1))
    record.write(**found)


if __name__ == "__main__":
    main()
