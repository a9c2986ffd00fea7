"""What a point of a sweep costs beside its own computing, and what workers gain.

A small point of chapter 4 is executed by papermill alone and by a worker of Dask; in
turn, so that a busy minute meets both alike. Then sixteen points run on one worker and
on two.

    python benchmarks/sweep_overhead.py [ROUNDS]
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import yaml

from thesis_lib.book.execute import chapters, sweep
from thesis_lib.common.files import write_whole
from thesis_lib.common.provenance import commit, identity, versions
from thesis_lib.common.stats import bootstrap

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


def quiet(*numbers):
    """Progress that nobody watches."""


def timed(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Ratio of medians with its 95 % bootstrap interval, rounds resampled whole."""
    a, b = np.array(over), np.array(under)
    ends = bootstrap(
        len(a), lambda rows: np.median(a[rows], axis=1) / np.median(b[rows], axis=1)
    )
    return {
        "ratio": float(np.median(a) / np.median(b)),
        "low": ends[0],
        "high": ends[1],
    }


def overhead(rounds: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of each execution, by notebook and by way, a round at a time."""
    (chapter,) = chapters.select(["4"])
    (values,) = chapters.resolve([chapter], "smoke", SMALL).values()
    key = chapters.content_key(chapter, values)
    output = folder / "point.ipynb"
    samples = {"cold": [], "Dask": []}
    with sweep._connect(1, None) as client:
        task = sweep._task()

        def submit():
            future = client.submit(task, chapter.name, values, "smoke", key, pure=False)
            outcome = future.result()
            assert "record" in outcome, outcome["failed"]

        ways = {
            "cold": lambda: chapters.produce(chapter, values, "smoke", output, quiet),
            "Dask": submit,
        }
        for action in ways.values():
            action()  # compiles, fills caches, measures the machine; not counted
        order = np.random.default_rng(0)
        for number in range(rounds):
            for way in order.permutation(list(ways)):
                samples[way].append(timed(ways[way]))
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return {"small point of chapter 4": samples}


def efficiency(rounds: int, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Seconds of sixteen points on one and on two workers, whole and first to last."""
    (chapter,) = chapters.select(["4"])
    path = folder / "sixteen.yml"
    path.write_text(yaml.safe_dump(SIXTEEN))
    grid = sweep.read_grid(path, chapter)
    samples: dict[str, list[dict[str, float]]] = {"1": [], "2": []}
    for number in range(rounds):
        for workers in (1, 2) if number % 2 else (2, 1):
            finished: list[float] = []
            start = time.perf_counter()

            def note(done, failed, running, total, finished=finished):
                assert failed == 0
                finished.append(time.perf_counter())

            sweep.run(
                grid, folder / f"out-{number}-{workers}", workers, None, True, note
            )
            # The first point of each worker waits for its imports; the later ones
            # show what a worker adds once it works.
            first, last = finished[1 + workers], finished[-1]
            samples[str(workers)].append(
                {
                    "whole_s": time.perf_counter() - start,
                    "points_s": (last - first) / (len(finished) - 2 - workers),
                }
            )
            print(f"{workers} workers: {samples[str(workers)][-1]}", file=sys.stderr)
    return samples


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    checkout = chapters.repository()
    load = psutil.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        samples = overhead(rounds, Path(name))
        workers = efficiency(max(2, rounds // 4), Path(name))
    summary = {
        name: {f"median {way} (s)": float(np.median(ways[way])) for way in ways}
        | {"Dask over cold": ratio(ways["Dask"], ways["cold"])}
        for name, ways in samples.items()
    }
    for field in ("whole_s", "points_s"):
        one, two = ([row[field] for row in workers[count]] for count in ("1", "2"))
        halves = ratio(one, [2 * value for value in two])
        summary[f"efficiency of 2 workers, {field}"] = halves
    report = {
        "summary": summary,
        "overhead_s": samples,
        "workers": workers,
        "rounds": rounds,
        "commit": commit(checkout)[0],
        "machine": identity(),
        "versions": versions(),
        "load_average": {"start": load, "end": psutil.getloadavg()},
        "note": "the client and its scheduler run on the same cores as the workers",
    }
    target = checkout / "data" / "measurements" / "sweep_overhead.json"
    target.parent.mkdir(exist_ok=True)
    write_whole(target, json.dumps(report, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
