"""What a sweep over chapter 4 costs beside its computing, and what a kill costs it.

A small point is executed by papermill alone and by a worker of Dask; in turn, so that a
busy minute meets both alike. Then sixteen points run on one worker and on two. That is
the record `sweep_overhead`. For `sweep_resume`, beside it, 64 points run with two
workers, once whole, and once killed with SIGKILL when half of them are recorded and
started again: no point may be lost, none that was recorded executed again, and the
totals must be equal.

    python benchmarks/sweeps.py [ROUNDS]
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import yaml
from record import Record, benchmark, ratio, tell, turns

from thesis_book.execute import chapters, sweep
from thesis_lib.common.provenance import seconds_of

SMALL = {
    "seeds": 1, "transactions": 300, "loads": [1.1], "headline_load": 1.1,
    "robust_loads": [1.1], "robust_transactions": 200, "trace_transactions": 200,
    "trace_loads": [1.1],
}  # fmt: skip
SIXTEEN = {
    "profile": "smoke",
    "grid": {name: [value] for name, value in SMALL.items()},
    "seeds": 16,
}
LOADS = [0.7, 0.8, 0.9, 0.95, 0.99, 1.1, 1.3, 1.5]
SIXTY_FOUR = {
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


def overhead(chapter: chapters.Chapter, rounds: int, folder: Path) -> dict[str, list]:
    """Seconds of each execution of a small point, by way, a round at a time."""
    (values,) = chapters.resolve([chapter], "smoke", SMALL).values()
    key = chapters.content_key(chapter, values)
    output = folder / "point.ipynb"
    with sweep.connect(1, None) as client:

        def alone() -> None:
            chapters.produce(chapter, values, "smoke", output, lambda *_: None)

        def submit() -> None:
            point = chapter.name, values, "smoke", key
            future = client.submit(sweep.execute_point, *point, pure=False)
            outcome = future.result()
            assert not outcome.error, outcome.error

        ways = {"cold": alone, "Dask": submit}
        samples: dict[str, list[float]] = {way: [] for way in ways}
        for number, way in turns(ways, rounds + 1):
            taken_s = seconds_of(ways[way])
            # The first round compiles and fills caches.
            samples[way] += [taken_s] if number else []
            tell(f"round {number} of {rounds}, {way}: {taken_s:.2f} s")
    return samples


def efficiency(chapter: chapters.Chapter, rounds: int, folder: Path) -> dict[str, list]:
    """Seconds of sixteen points on one and on two workers, whole and first to last."""
    path = folder / "sixteen.yml"
    path.write_text(yaml.safe_dump(SIXTEEN))
    grid = sweep.read_grid(path, chapter)
    samples: dict[str, list[dict[str, float]]] = {"1": [], "2": []}
    for number, workers in turns((2, 1), rounds):
        finished: list[float] = []
        start = time.perf_counter()

        def note(*_: int, at: list[float] = finished) -> None:
            at.append(time.perf_counter())

        output = folder / f"out-{number}-{workers}"
        results, _ = sweep.run(grid, output, workers, progress=note)
        assert not any(results["error"])
        # The first point of each worker waits for its imports; the later ones
        # show what a worker adds once it works.
        first, last = finished[workers], finished[-1]
        found = {
            "whole_s": time.perf_counter() - start,
            "points_s": (last - first) / (len(finished) - 1 - workers),
        }
        samples[str(workers)].append(found)
        tell(f"{workers} workers: {found}")
    return samples


def summarize(samples: dict[str, list], workers: dict[str, list]) -> dict[str, Any]:
    """Medians and ratios of what was measured."""
    point = {f"median {way} (s)": float(np.median(samples[way])) for way in samples}
    over = {"Dask over cold": ratio(samples["Dask"], samples["cold"])}
    summary: dict[str, Any] = {"small point of chapter 4": point | over}
    for part in ("whole_s", "points_s"):
        one, two = ([row[part] for row in workers[count]] for count in ("1", "2"))
        halves = ratio(one, [2 * value for value in two])
        summary[f"efficiency of 2 workers, {part}"] = halves
    return summary


def sweeping(grid: Path, output: Path) -> list[str]:
    """The command of a sweep."""
    words = ["sweep", "4", str(grid), "--workers", "2", "--output", str(output)]
    return [sys.executable, "-m", "thesis_book", *words, "--json"]


def run_sweep(grid: Path, output: Path) -> tuple[dict, float]:
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


def resume(folder: Path) -> dict[str, Any]:
    """Run, kill, run again, and once more with nothing to do; compare the totals."""
    grid, (one, other) = folder / "grid.yml", (folder / "whole", folder / "killed")
    grid.write_text(yaml.safe_dump(SIXTY_FOUR, sort_keys=False))
    whole, whole_s = run_sweep(grid, one)
    points = whole["executed"]
    killed_s, left = kill_half_way(grid, other, points // 2)
    kept = {path: path.read_bytes() for path in other.glob("points/*.json")}
    resumed, resumed_s = run_sweep(grid, other)
    tables = [pd.read_parquet(folder / "results.parquet") for folder in (one, other)]
    totals = [t.filter(regex=r"^(parameter|number)\.|^key$|^point$") for t in tables]
    pd.testing.assert_frame_equal(totals[0], totals[1], check_exact=True)
    again, again_s = run_sweep(grid, other)
    assert resumed["executed"] + len(kept) == points
    return {
        "points": points,
        "recorded_when_killed": len(kept),
        "processes_left": left,
        "executed_after": resumed["executed"],
        "executed_twice": sum(path.read_bytes() != kept[path] for path in kept),
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


@benchmark
def main(out: Path, rounds: int = 12) -> None:
    record, killed = Record(out), Record(out.with_name("sweep_resume.json"))
    (chapter,) = chapters.select(["4"])
    with tempfile.TemporaryDirectory() as name:
        samples = overhead(chapter, rounds, Path(name))
        workers = efficiency(chapter, max(2, rounds // 4), Path(name))
        summary = summarize(samples, workers)
        print(json.dumps(summary, indent=1))
        record.write(
            summary=summary,
            overhead_s={"small point of chapter 4": samples},
            workers=workers,
            rounds=rounds,
            note="the client and its scheduler run on the same cores as the workers",
        )
        found = resume(Path(name))
    print(json.dumps(found, indent=1))
    killed.write(**found)
