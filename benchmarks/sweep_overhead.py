"""What a point of a sweep costs beside its own computing, and what workers gain.

A small point of chapter 4 is executed by papermill alone and by a worker of Dask; in
turn, so that a busy minute meets both alike. Then sixteen points run on one worker and
on two.

    python benchmarks/sweep_overhead.py [ROUNDS]
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from record import Record, command, ratio, seconds_of, tell

from thesis_lib.book.execute import chapters, sweep

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
                samples[way].append(seconds_of(ways[way]))
            tell(f"round {number + 1} of {rounds}")
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

            def note(done, failed, total, finished=finished):
                assert failed == 0
                finished.append(time.perf_counter())

            sweep.run(
                grid, folder / f"out-{number}-{workers}", workers, None, True, note
            )
            # The first point of each worker waits for its imports; the later ones
            # show what a worker adds once it works.
            first, last = finished[workers], finished[-1]
            samples[str(workers)].append(
                {
                    "whole_s": time.perf_counter() - start,
                    "points_s": (last - first) / (len(finished) - 1 - workers),
                }
            )
            tell(f"{workers} workers: {samples[str(workers)][-1]}")
    return samples


def main(words: list[str] | None = None) -> None:
    """Measure, print, and keep the record."""
    given = command(__doc__, "sweep_overhead", rounds=12).parse_args(words)
    record = Record(given.out)
    with tempfile.TemporaryDirectory() as name:
        samples = overhead(given.rounds, Path(name))
        workers = efficiency(max(2, given.rounds // 4), Path(name))
    summary = {
        name: {f"median {way} (s)": float(np.median(ways[way])) for way in ways}
        | {"Dask over cold": ratio(ways["Dask"], ways["cold"])}
        for name, ways in samples.items()
    }
    for field in ("whole_s", "points_s"):
        one, two = ([row[field] for row in workers[count]] for count in ("1", "2"))
        halves = ratio(one, [2 * value for value in two])
        summary[f"efficiency of 2 workers, {field}"] = halves
    print(json.dumps(summary, indent=1))
    record.write(
        summary=summary,
        overhead_s=samples,
        workers=workers,
        rounds=given.rounds,
        note="the client and its scheduler run on the same cores as the workers",
    )


if __name__ == "__main__":
    main()
