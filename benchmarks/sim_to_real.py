"""Violations in front of the real engines, beside the simulator's on the same requests.

Every policy runs live on SQLite and on PostgreSQL at five loads, in turn on the same
requests at the same intended times; load one is the saturation of a closed loop just
before. The simulator gets the requests and the same estimates, and either what the run
itself measured (service times, and what the middleware added), or the service times of
the run under FIFO, which it can know without running the policy. Of a transaction that
the run dropped it gets FIFO's service time, in proportion.

    python benchmarks/sim_to_real.py [REPEATS [TRANSACTIONS]]
"""

from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from record import Record, benchmark, tell

from thesis_lib.sequencer.core.trace import F64, Trace
from thesis_lib.sequencer.engine.engine import ENGINES, make_log
from thesis_lib.sequencer.engine.overheads import as_delays, overheads
from thesis_lib.sequencer.estimators.models import LatencyEstimator
from thesis_lib.sequencer.experiments import live
from thesis_lib.sequencer.experiments.metrics import summarize
from thesis_lib.sequencer.policies.parameters import When
from thesis_lib.sequencer.policies.registry import policy
from thesis_lib.sequencer.simulator.simulator import SystemConfig, simulate
from thesis_lib.sequencer.workload.arrivals import poisson_arrivals

POLICIES = ("fifo", "drop", "hybrid", "drop-corrected", "hybrid-corrected", "bid-price")
LOADS = (0.8, 0.9, 1.0, 1.1, 1.2)
WORKERS = (1, 2)
SLO_S = 5e-3  # as in scenario B
BURST, SEED = 2_000, 0
BATCH_SIZE, FLUSH_S = 10, 1e-3


def served_s(lived: live.LiveRun) -> F64:
    """Service times behind the warm-up, (n,); NaN where the run dropped."""
    return (lived.run.finish_s - lived.run.start_s)[live.WARM_UP :]


def own_times(lived: live.LiveRun, fifo: Trace) -> Trace:
    """FIFO's trace with the service times of another run, FIFO's where it dropped."""
    own_s = served_s(lived)
    ran = ~np.isnan(own_s)
    pace = own_s[ran].sum() / fifo.service_s[ran].sum()
    return replace(fifo, service_s=np.where(ran, own_s, pace * fifo.service_s))


def measure_round(
    ready: live.Testbed, model: LatencyEstimator, number: int, n: int, load: float
) -> list[dict]:
    """One repeat of every policy at one load: measured and simulated violations."""
    log = ready.requests(number, n)
    rng = np.random.default_rng([SEED, number])
    burst = live.part(ready.log, 0, ready.burst)
    now = live.measure_burst(ready.storage, burst, ready.workers, f"now{number}")
    saturation_per_s = live.rate(now)
    arrival_s = poisson_arrivals(load * saturation_per_s, n, rng)
    estimated_s = live.estimate(model, log)
    lives = {}
    for name in POLICIES[:: -1 if number % 2 else 1]:
        lives[name] = live.run_live(
            ready, log, name, arrival_s, estimated_s, name=f"round{number}-{name}",
            batch_size=BATCH_SIZE, flush_s=FLUSH_S,
        )  # fmt: skip
    fifo = lives["fifo"].trace
    added = {
        name: overheads(one.run, log.keys, live.WARM_UP) for name, one in lives.items()
    }
    rows = []
    for name in POLICIES:
        lived = lives[name]
        rule = policy(
            name, slo_s=ready.slo_s, cores=ready.workers, lag_s=ready.delays.lag_s
        )
        late = rule.when is When.ARRIVAL_AND_COMMIT
        own = as_delays(ready.quiet, added[name], late)
        cases = {
            "simulated": (own_times(lived, fifo), own),
            "foretold": (fifo, own if late else as_delays(ready.quiet, added["fifo"])),
        }
        measured = summarize(fifo, lived.history)
        row = {
            "engine": ready.storage.engine,
            "workers": ready.workers,
            "load": load,
            "policy": name,
            "saturation_per_s": saturation_per_s,
            "measured": measured.violations,
            "measured_dropped": measured.dropped,
            "measured_p99_s": measured.p99_s,
            "delays": asdict(own),
            "service_s": float(np.nanmean(served_s(lived))),
        }
        for case, (trace, delays) in cases.items():
            history = simulate(
                trace, rule, estimated_s[live.WARM_UP:],
                SystemConfig(
                    cores=ready.workers, slo_s=ready.slo_s, batch_size=BATCH_SIZE,
                    flush_s=FLUSH_S, delays=delays, believed=ready.delays,
                ),
            )  # fmt: skip
            found = summarize(trace, history)
            row |= {
                case: found.violations,
                f"{case}_dropped": found.dropped,
                f"{case}_p99_s": found.p99_s,
            }
        rows.append(row)
    return rows


def measure(engine: str, workers: int, repeats: int, n: int) -> tuple[dict, list[dict]]:
    """What is known of one engine before the first run, and all its rounds."""
    rounds = repeats * len(LOADS)
    log = make_log("tpcc", BURST + rounds * (live.WARM_UP + n), SEED)
    rows = []
    with live.bench(engine, log, BURST, workers, slo_s=SLO_S) as ready:
        model = live.fitted("boosted", ready)
        for number in range(rounds):
            repeat, at = divmod(number, len(LOADS))
            found = measure_round(ready, model, number, n, LOADS[at])
            rows += [row | {"repeat": repeat} for row in found]
        about = {
            "engine": engine,
            "workers": workers,
            "saturation_per_s": ready.saturation_per_s,
            "service_s": float(ready.past.service_s.mean()),
            "quiet": asdict(ready.quiet),
            "busy": asdict(ready.busy),
            "delays": asdict(ready.delays),
        }
    return about, rows


@benchmark
def main(out: Path, repeats: int = 6, transactions: int = 1_500) -> None:
    record, benches, runs = Record(out), [], []
    for workers, engine in product(WORKERS, ENGINES):
        about, rows = measure(engine, workers, repeats, transactions)
        benches.append(about)
        runs += rows
        tell(f"measured {about}")
    record.write(
        runs=runs,
        benches=benches,
        slo_s=SLO_S,
        transactions=transactions,
        repeats=repeats,
        batch_size=BATCH_SIZE,
        flush_s=FLUSH_S,
        note="violations as shares of the arrivals after the warm-up; the server of "
        "PostgreSQL shares the cores",
    )
    table = pd.DataFrame(runs)
    for model in ("simulated", "foretold"):
        beside = live.beside_measured(table, model)
        print(beside.round(1).to_string())
        print(
            beside.groupby(live.PLACE[:2])["near"].sum(),
            live.ranked_alike(beside, model),
        )
    if repeats > 1:
        print(live.measured_again(table).groupby(live.PLACE[:2])["near"].sum())
