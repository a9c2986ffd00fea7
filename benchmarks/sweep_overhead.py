"""What a point of a sweep costs beside its own computing, and what workers gain.

The same notebooks are executed by papermill with a cold kernel, with a warm one, and,
for a small point of chapter 4, by a worker of Dask on top of that; in turn, so that a
busy minute meets all alike. Then the same sixteen points run on one and on two workers.

    python benchmarks/sweep_overhead.py [ROUNDS]
"""

import json
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
import papermill
import yaml
from record import Record, command, ratio, seconds_of, tell

from thesis_lib.book.execute import chapters, sweep, warm

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


def imports_of(number: str, folder: Path) -> Path:
    """A notebook that holds the imports of a chapter and nothing else."""
    (chapter,) = chapters.select([number])
    notebook = chapter.load()
    lines = chapters.code(notebook).splitlines()
    wanted = [line for line in lines if line.startswith(("import ", "from "))]
    v4 = nbformat.v4
    small = v4.new_notebook(
        cells=[v4.new_code_cell("\n".join(wanted))], metadata=notebook.metadata
    )
    path = folder / f"imports_{chapter.name}.ipynb"
    nbformat.write(small, path)
    return path


def execute(path: Path, manager: type | None) -> None:
    """Papermill alone, with a cold or a warm kernel."""
    papermill.execute_notebook(
        str(path),
        str(path.with_suffix(".out.ipynb")),
        kernel_name="python3",
        progress_bar=False,
        cwd=str(path.parent),
        extra_arguments=["--log-level=CRITICAL"],
        **({} if manager is None else {"kernel_manager_class": manager}),
    )


def overhead(rounds: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of each execution, by notebook and by way, a round at a time."""
    (chapter,) = chapters.select(["4"])
    (values,) = chapters.resolve([chapter], "smoke", SMALL).values()
    key = chapters.content_key(chapter, values)
    parts = {"imports of Part I": "4", "imports of Part II": "6"}
    paths = {name: imports_of(number, folder) for name, number in parts.items()}
    zygotes = {
        name: warm.Zygote(warm.imports(nbformat.read(path, 4).cells[0].source))
        for name, path in paths.items()
    }
    point = "small point of chapter 4"
    samples = {name: {"cold": [], "warm": []} for name in paths}
    samples[point] = {"cold": [], "warm": [], "Dask": []}
    output = folder / "point.ipynb"
    with sweep._connect(1, None) as client, sweep._kernels(chapter) as manager:
        task = sweep._task()

        def produce(kind):
            chapters.produce(chapter, values, "smoke", output, quiet, kind)

        def submit():
            future = client.submit(task, chapter.name, values, "smoke", key, pure=False)
            outcome = future.result()
            assert "record" in outcome, outcome["failed"]

        ways = {
            (name, "cold"): lambda path=path: execute(path, None)
            for name, path in paths.items()
        }
        for name, path in paths.items():
            forked = warm.kernel_manager(zygotes[name])
            ways[name, "warm"] = lambda path=path, kind=forked: execute(path, kind)
        ways[point, "cold"] = lambda: produce(None)
        ways[point, "warm"] = lambda: produce(manager)
        ways[point, "Dask"] = submit
        for action in ways.values():
            action()  # compiles, fills caches, measures the machine; not counted
        order = np.random.default_rng(0)
        for number in range(rounds):
            for index in order.permutation(len(ways)):
                (name, way), action = list(ways.items())[index]
                samples[name][way].append(seconds_of(action))
            tell(f"round {number + 1} of {rounds}")
    for zygote in zygotes.values():
        zygote.close()
    return samples


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
            tell(f"{workers} workers: {samples[str(workers)][-1]}")
    return samples


def main(words: list[str] | None = None) -> None:
    """Measure, print, and keep the record."""
    parser = command(__doc__, "sweep_overhead")
    parser.add_argument("rounds", nargs="?", type=int, default=12)
    given = parser.parse_args(words)
    record = Record(given.out)
    with tempfile.TemporaryDirectory() as name:
        samples = overhead(given.rounds, Path(name))
        workers = efficiency(max(2, given.rounds // 4), Path(name))
    summary = {
        name: {f"median {way} (s)": float(np.median(ways[way])) for way in ways}
        | {"cold over warm": ratio(ways["cold"], ways["warm"])}
        | (
            {"Dask over warm": ratio(ways["Dask"], ways["warm"])}
            if "Dask" in ways
            else {}
        )
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
