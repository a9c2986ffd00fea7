"""Violations in front of the real engines, beside the simulator's on the same requests.

Every policy runs live on SQLite and on PostgreSQL at five loads, in turn on the same
requests at the same intended times. The simulator then gets these requests, the service
times that the run under FIFO measured, the same estimates, and what the middleware adds
as measured before the first run.

    python benchmarks/sim_to_real.py [REPEATS [TRANSACTIONS]]
"""

import json
import sys
from dataclasses import asdict

import numpy as np
import psutil

from thesis_lib import chapters
from thesis_lib.files import write_whole
from thesis_lib.machine import commit, identity, versions
from thesis_lib.sequencer.engine import ENGINES, make_log
from thesis_lib.sequencer.estimator import LatencyEstimator
from thesis_lib.sequencer.kernel import Delays
from thesis_lib.sequencer.middleware import as_delays, overheads
from thesis_lib.sequencer.pipeline import Scheduler, run_closed
from thesis_lib.sequencer.policies import policy
from thesis_lib.sequencer.report import summarise
from thesis_lib.sequencer.serve import (
    BATCH,
    CLIENTS,
    WARM_UP,
    Bench,
    bench,
    estimate,
    fitted,
    part,
    run_live,
)
from thesis_lib.sequencer.simulate import simulate
from thesis_lib.sequencer.workload import poisson_arrivals

POLICIES = ("fifo", "drop", "hybrid", "drop-fixed", "hybrid-fixed", "ours")
LOADS = (0.8, 0.9, 1.0, 1.1, 1.2)
QUIET = 0.2  # load at which hardly anybody meets
WORKERS, BURST, SEED = 2, 2_000, 0
BATCH_SIZE, FLUSH_S = 10, 1e-3


def measure_delays(
    ready: Bench, number: int, n: int, model: LatencyEstimator
) -> Delays:
    """What the middleware adds: a closed loop, and an open one at a load of QUIET."""
    burst = part(ready.log, 0, ready.burst)
    with Scheduler(ready.storage.copy("closed"), burst, ready.workers) as scheduler:
        run = run_closed(scheduler, len(burst), CLIENTS, BATCH)
    busy = overheads(run, burst.keys, WARM_UP)
    log = ready.requests(number, n)
    rng = np.random.default_rng(SEED)
    arrival_s = poisson_arrivals(QUIET * ready.saturation_per_s, n, rng)
    live = run_live(ready, log, "fifo", arrival_s, estimate(model, log), name="quiet")
    return as_delays(overheads(live.run, log.keys, WARM_UP), busy)


def measure_round(
    ready: Bench, model: LatencyEstimator, delays: Delays, number: int, n: int,
    load: float,
) -> list[dict]:  # fmt: skip
    """One repeat of every policy at one load: measured and simulated violations."""
    log = ready.requests(number, n)
    rng = np.random.default_rng([SEED, number])
    arrival_s = poisson_arrivals(load * ready.saturation_per_s, n, rng)
    estimated_s = estimate(model, log)
    lives = {}
    for name in POLICIES[:: -1 if number % 2 else 1]:
        lives[name] = run_live(
            ready, log, name, arrival_s, estimated_s, name=f"round{number}-{name}",
            batch_size=BATCH_SIZE, flush_s=FLUSH_S,
        )  # fmt: skip
    truth = lives["fifo"].trace
    rows = []
    for name in POLICIES:
        live = lives[name]
        simulated = simulate(
            truth,
            policy(name, slo_s=ready.slo_s, cores=ready.workers, lag_s=delays.lag_s),
            estimated_s[WARM_UP:], cores=ready.workers, slo_s=ready.slo_s,
            batch_size=BATCH_SIZE, flush_s=FLUSH_S, delays=delays,
        )  # fmt: skip
        served_s = (live.run.finish_s - live.run.start_s)[WARM_UP:]
        measured, expected = (
            summarise(truth, history) for history in (live.history, simulated)
        )
        rows.append(
            {
                "engine": ready.storage.engine,
                "load": load,
                "policy": name,
                "measured": measured.violations,
                "simulated": expected.violations,
                "measured_dropped": measured.dropped,
                "simulated_dropped": expected.dropped,
                "measured_p99_s": measured.p99_s,
                "simulated_p99_s": expected.p99_s,
                "service_s": float(np.nanmean(served_s)),
            }
        )
    return rows


def measure(engine: str, repeats: int, n: int) -> tuple[dict, list[dict]]:
    """What is known of one engine before the first run, and all its rounds."""
    rounds = repeats * len(LOADS)
    log = make_log("tpcc", BURST + (rounds + 1) * (WARM_UP + n), SEED)
    rows = []
    with bench(engine, log, BURST, WORKERS) as ready:
        model = fitted("boosted", ready)
        delays = measure_delays(ready, rounds, n, model)
        number = 0
        for repeat in range(repeats):
            for load in LOADS:
                found = measure_round(ready, model, delays, number, n, load)
                rows += [row | {"repeat": repeat} for row in found]
                number += 1
        about = {
            "saturation_per_s": ready.saturation_per_s,
            "slo_s": ready.slo_s,
            "burst_service_s": float(ready.past.service_s.mean()),
            "delays": asdict(delays),
        }
    return about, rows


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000
    before = psutil.getloadavg()
    engines, runs = {}, []
    for engine in ENGINES:
        engines[engine], rows = measure(engine, repeats, n)
        runs += rows
        print(f"measured {engine}: {engines[engine]}", file=sys.stderr)
    checkout = chapters.repository()
    report = {
        "runs": runs,
        "engines": engines,
        "workers": WORKERS,
        "transactions": n,
        "repeats": repeats,
        "batch_size": BATCH_SIZE,
        "flush_s": FLUSH_S,
        "commit": commit(checkout)[0],
        "machine": identity(),
        "versions": versions(),
        "load_average": {"start": before, "end": psutil.getloadavg()},
        "note": "violations as shares of the arrivals after the warm-up; the simulator "
        "takes the service times that the run under FIFO measured; the server of "
        "PostgreSQL shares the cores",
    }
    target = checkout / "data" / "measurements" / "sim_to_real.json"
    write_whole(target, json.dumps(report, indent=1) + "\n")
    for row in runs:
        print(
            f"{row['engine']:10} {row['load']:.1f} {row['repeat']} {row['policy']:13}"
            f" measured {100 * row['measured']:5.1f} %"
            f" simulated {100 * row['simulated']:5.1f} %"
        )


if __name__ == "__main__":
    main()
