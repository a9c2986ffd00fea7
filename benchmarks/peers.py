"""Every comparison with a peer once more, small: how many times faster, in turn.

SimPy, scikit-learn's single prediction, codecs of bf16 weights, and what streams a
model that does not fit, side by side on this machine: ratios travel where seconds do
not. With `--against` an earlier record, a ratio that has fallen by more than its
interval is named, and the command ends with a status.

    pip install -e .[peers,codecs]
    python benchmarks/peers.py [--help]

A quarter of an hour, and 4 GB of disk. A peer that is not installed is told.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import lossless
import predict
import simulator
import streaming
from record import Point, Record, benchmark, ratio, show, tell

from thesis_lib.common.errors import choice
from thesis_lib.common.files import cache_folder, read_record
from thesis_lib.common.units import MiB

Ratios = dict[str, dict[str, float]]  # of each peer, as `record.ratio` has it
STREAMED = "streamed,accelerate,mmap,airllm"


def simulated() -> Ratios:
    """Processor time of a simulation in SimPy, over ours."""
    rounds = simulator.against_simpy("A", 0.9)["rounds"]
    return _over("thesis_lib", dict.fromkeys(simulator.PEERS, rounds), "cpu_s")


def predicted() -> Ratios:
    """Processor time of one prediction in scikit-learn, over the flat trees."""
    with tempfile.TemporaryDirectory() as scratch:
        predict.main(["--out", f"{scratch}/predict.json"])
        found = read_record("predict", Path(scratch)) or {}
    return _over("flat", dict.fromkeys(predict.PEERS, found["rounds"]), "cpu_us")


def _over(ours: str, peers: Mapping[str, Any], clock: str) -> Ratios:
    return {
        peer: ratio([r[peer][clock] for r in rounds], [r[ours][clock] for r in rounds])
        for peer, rounds in peers.items()
    }


def decoded() -> Ratios:
    """Seconds of decoding a layer of SmolLM2 on one thread, over the exponent code."""
    codecs = {name: made() for name, made in lossless.CODECS.items()}
    rows = lossless.compare_codecs(codecs, 64 * MiB, MiB, rounds=9)
    seconds = {
        row["codec"]: row["seconds"]
        for row in rows
        if (row["weights"], row["threads"]) == ("SmolLM2", 1)
    }
    ours = seconds.pop("exponent code")
    return {codec: ratio(taken, ours) for codec, taken in seconds.items()}


def streamed() -> Ratios:
    """Seconds of a token in the same limit of memory, over the streamed model."""
    with tempfile.TemporaryDirectory(dir=cache_folder("benchmarks")) as work:
        words = f"--layers 8 --steps 5 --systems {STREAMED} --work {work}"
        streaming.main([*words.split(), "--out", f"{work}/streaming.json"])
        found = read_record("streaming", Path(work)) or {}
    systems = found["summary"]["systems"]
    faster = {s: each.get("streamed_is_faster") for s, each in systems.items()}
    return {s: {"ratio": f["times"], **f} for s, f in faster.items() if f}


COMPARISONS: dict[str, tuple[Callable[[], Ratios], str, str]] = {
    "simulation": (simulated, "simpy", ""),
    "one prediction": (predicted, "sklearn", ""),
    "decoding": (decoded, "zipnn", "codecs"),
    "streaming": (streamed, "airllm", "peers"),
}


def judged(now: Point, was: Point | None) -> str:
    """What became of a ratio, in a word."""
    if was is None:
        return "new"
    return "FALLEN" if now["high"] < was["low"] else "holds"


@benchmark
def main(
    out: Path,
    *,
    only: Annotated[str, "comparisons, separated by ;; all by default"] = "",
    against: Annotated[Path | None, "a record that this one is held against"] = None,
) -> None:
    """Compare, keep the record, and hold it against an earlier one."""
    before: Point = {}
    if against is not None:
        before = read_record(against.stem, against.parent) or {}
        if not before:
            tell(f"nothing is held against {against}, which is missing or empty")
    record = Record(out)
    for name in only.split(";") if only else COMPARISONS:
        compare, package, extra = COMPARISONS[choice("--only", name, COMPARISONS)]
        if find_spec(package) is None:
            tell(
                f"{name}: not compared, {package} is missing: pip install -e .[{extra}]"
            )
            continue
        for peer, found in compare().items():
            record.add({"what": name, "peer": peer, **found})
    known = {(p["what"], p["peer"]): p for p in before.get("points", [])}
    rows = []
    for point in record.points:
        was = known.get((point["what"], point["peer"]))
        rows.append(
            {key: point[key] for key in ("what", "peer", "ratio", "low", "high")}
            | ({"was": was["ratio"], "was at least": was["low"]} if was else {})
            | {"verdict": judged(point, was)}
        )
    show(rows)
    if fallen := [
        f"{r['what']}, {r['peer']}" for r in rows if r["verdict"] == "FALLEN"
    ]:
        sys.exit(f"slower against its peers than recorded: {'; '.join(fallen)}")
