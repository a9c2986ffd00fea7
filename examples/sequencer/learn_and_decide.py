"""An estimator learned from the first half of a real log drives the second half."""

from pathlib import Path

from thesis_lib.sequencer import (
    Trace,
    learned_estimate,
    policy,
    simulate,
    summarise,
    trace_cell,
)  # fmt: skip

DATA = Path(__file__).parents[2] / "data"
past, coming = Trace.read(DATA / "traces" / "sqlite-tpcc-2w.parquet").split(0.5)
estimate = learned_estimate("linear", past)

cell = trace_cell(coming, transactions=2_000, cores=4)
trace = cell.arrange(cell.make_trace(1), load=1.1, seed=2)
for name in ("fifo", "ours"):
    rule = policy(name, slo_s=cell.slo_s, cores=cell.cores)
    history = simulate(
        trace, rule, estimate(trace, 0), cores=cell.cores, slo_s=cell.slo_s
    )
    report = summarise(trace, history)
    print(
        f"{name}: {report.violations:.1%} late or dropped, {report.dropped:.1%} dropped"
    )
