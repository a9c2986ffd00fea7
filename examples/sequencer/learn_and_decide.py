"""An estimator learned from the first half of a real log drives the second half."""

from pathlib import Path

from thesis_lib.sequencer import SimulationConfig, Trace, learned_estimate

DATA = Path(__file__).parents[2] / "data"
past, coming = Trace.read(DATA / "traces" / "sqlite-tpcc-2w.parquet").split(0.5)
estimate = learned_estimate("linear", past)

config = SimulationConfig.of_trace(coming, transactions=2_000, cores=4)
trace = config.arrange(config.make_trace(1), load=1.1, seed=2)
for name in ("fifo", "bid-price"):
    report = config.run(trace, config.policy(name), estimate(trace, 0), load=1.1)
    print(
        f"{name}: {report.violations:.1%} late or dropped, {report.dropped:.1%} dropped"
    )
