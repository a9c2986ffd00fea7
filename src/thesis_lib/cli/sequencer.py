"""Commands of Part I: record a trace, serve a workload, simulate policies."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thesis_lib.cli.common import Json, command, console, option, show
from thesis_lib.common import units
from thesis_lib.common.errors import Lost, choice, require

if TYPE_CHECKING:
    from thesis_lib.sequencer.experiments.configuration import SystemOptions

POLICY_HELP = (
    "Policy: fifo, drop, reorder, hybrid, drop-corrected, queue-cap, codel, edf, sjf, "
    "late-edf, late-sjf, least-slack, bid-price, …; or your own, as FILE.py:FUNCTION."
)

Processes = Annotated[int, typer.Option(help="Worker processes.")]


@dataclass(frozen=True)
class Database:
    """Options of the engine that runs transactions."""

    engine: Annotated[str, typer.Option(help="sqlite or postgresql.")] = "sqlite"
    dsn: str | None = option(
        None, "PostgreSQL server. Default: a temporary server on this machine."
    )


@dataclass(frozen=True)
class Workload:
    """Options of the transactions that an engine runs."""

    workload: Annotated[str, typer.Option(help="tpcc or ycsb.")] = "tpcc"
    mix: str | None = option(
        None, "Mix: spec or new-order/payment (tpcc); A, B, C or F (ycsb)."
    )
    zipf: float | None = option(None, "Skew of the keys of ycsb. Default: 0.99.")
    warehouses: int = option(2, "Number of warehouses or partitions, one file each.")


@dataclass(frozen=True)
class Collection:
    """Options of one collected trace."""

    replays: int = option(1, "Number of runs of the same log.")
    seed: int = option(0, "Seed of the data and the log.")
    estimator: Path | None = option(
        None, "File for an estimator, fitted on the trace and saved."
    )
    learn: str = option(
        "boosted", "Its model: constant, sum-max, linear, boosted or quantiles."
    )


@command
def collect(
    *,
    output: Annotated[Path, typer.Argument(metavar="OUT.parquet")],
    database: Database,
    transactions: int = option(20_000, "Length of the log (transactions)."),
    workers: Processes = 2,
    workload: Workload,
    collection: Collection,
    as_json: Json = False,
) -> None:
    """Record a trace of a workload on the deterministic engine.

    With --estimator, also fit an estimator of static features and save it for `serve`
    and `simulate`.
    """
    from thesis_lib.sequencer.core.trace_file import require_parquet
    from thesis_lib.sequencer.engine import engine as engine_
    from thesis_lib.sequencer.estimators.models import LEARNED
    from thesis_lib.sequencer.estimators.models import estimator as named_estimator
    from thesis_lib.sequencer.estimators.saved import save_estimator
    from thesis_lib.sequencer.workload.features import static_names, with_features

    estimator, learn = collection.estimator, collection.learn
    for file in (output, *([] if estimator is None else [estimator])):
        parent = file.parent
        require(parent.is_dir(), f"folder {parent} does not exist: create it first")
        require(not file.is_dir(), f"{file} is a folder: name a file")
    require_parquet(output)
    require(
        estimator is None or estimator.resolve() != output.resolve(),
        f"trace and estimator are to be one file, {output}: name two",
    )
    choice("learn", learn, LEARNED)
    clock = time.perf_counter()
    with console.status(f"running {workload.workload}"):
        log = engine_.make_log(
            workload.workload, transactions, collection.seed, mix=workload.mix,
            warehouses=workload.warehouses, zipf=workload.zipf,
        )  # fmt: skip
        trace = engine_.collect(
            database.engine, workers=workers, replays=collection.replays, log=log,
            dsn=database.dsn,
        )  # fmt: skip
    try:
        trace.write(output)
        if estimator is not None:
            past = with_features(trace, static_names(log))
            save_estimator(named_estimator(learn).fit(past), estimator)
    except OSError as error:
        raise Lost(
            f"{error.filename or output} cannot be written: {error.strerror}; make "
            "room or name another file, and collect it again"
        ) from error
    result = {
        "transactions": len(trace),
        "digest": trace.meta["digest"],
        "seconds": round(time.perf_counter() - clock, 1),
        "output": str(output),
        "estimator": None if estimator is None else str(estimator),
    }
    lines = [f"{len(trace)} transactions in {output}", f"state {trace.meta['digest']}"]
    if estimator is not None:
        lines.append(f"estimator {learn} in {estimator}")
    show(result, as_json, lines)


@dataclass(frozen=True)
class Rounds:
    """Options of the runs that compare a policy with FIFO."""

    estimator: str = option(
        "boosted",
        "Estimator: constant, sum-max, linear, boosted; or a file that `thesis "
        "collect --estimator` wrote.",
    )
    rounds: int = option(5, "Number of pairs of runs that share the measurement time.")
    workers: Processes = 2
    slo: str | None = option(
        None,
        "Target latency, such as 12.5ms. Default: twice the 95th percentile of the "
        "service times.",
    )
    batch: int = option(10, "Size that closes a batch (transactions).")
    flush: str = option("1ms", "Age that closes a batch.")


@command
def serve(
    *,
    policy: str = option(..., POLICY_HELP),
    load: float = option(..., "Arrival rate, as a share of FIFO's saturation rate."),
    seconds: float = option(..., "Measurement time of each policy (s)."),
    database: Database,
    runs: Rounds,
    workload: Workload,
    seed: int = option(0, "Seed of the data, the log and the arrivals."),
    as_json: Json = False,
) -> None:
    """Measure a policy against FIFO on the running engine.

    Load 1 is FIFO's saturation rate on this engine, measured first in a closed loop.
    """
    from thesis_lib.common.provenance import disturbances
    from thesis_lib.sequencer.experiments.live import serve as serve_

    slo_s = None if runs.slo is None else units.parse_duration(runs.slo)
    with console.status(f"serving {workload.workload}"):
        result = serve_(
            policy=policy, load=load, seconds=seconds, seed=seed,
            estimator=runs.estimator, rounds=runs.rounds, workers=runs.workers,
            slo_s=slo_s, batch_size=runs.batch,
            flush_s=units.parse_duration(runs.flush), **asdict(database),
            **asdict(workload),
        )  # fmt: skip
    low, high = result["reduction_ci"]
    lines = [
        f"violations {result['violations']:.2%} (FIFO {result['fifo_violations']:.2%},"
        f" lower bound {result['lower_bound']:.2%})",
        f"reduction   {result['reduction']:.1%}  [{low:.1%}, {high:.1%}]",
        f"late {result['late']:.2%}, dropped {result['dropped']:.2%}, "
        f"goodput {result['goodput_per_s']:.0f}/s of {result['rate_per_s']:.0f}/s; "
        f"saturation {result['saturation_per_s']:.0f}/s, SLO "
        f"{units.format_duration(result['slo_s'])}",
    ]
    result["disturbed"] = list(disturbances())
    lines += [f"unreliable: {why}" for why in result["disturbed"]]
    show(result, as_json, lines)


@dataclass(frozen=True)
class Question:
    """Options of the transactions, their estimates and their number."""

    scenario: str | None = option(None, "Scenario: A, B or C.")
    trace: Path | None = option(None, "Trace file, replayed with its own arrivals.")
    rows: str | None = option(
        None, "Rows of the trace to read, counted from 0: 1000000:1200000."
    )
    estimator: str = option(
        "noisy",
        "Estimator: noisy, boosted, …; or a file that `thesis collect --estimator` "
        "wrote. With a trace, a learned estimator is fitted on the first half, and "
        "the second half is replayed.",
    )
    noise: float = option(0.2, "Log-normal sigma of `noisy`.")
    bias: float = option(1.0, "Factor applied to every estimate.")
    seeds: int | None = option(
        None,
        "Number of paired seeds. Default: 5; to compare, 8 to choose and 8 to judge.",
    )
    seed: int = option(0, "Seed that the paired seeds are drawn from.")
    transactions: int | None = option(
        None, "Transactions for each seed. Default: 20,000; all of a trace."
    )
    warehouses: int | None = option(None, "Warehouses. Default: those of the scenario.")


@dataclass(frozen=True)
class Machine:
    """Options of the simulated sequencer and database."""

    cores: int | None = option(None, "Cores. Default: those of the scenario; 4.")
    slo: str | None = option(None, "Target latency, such as 12.5ms.")
    lag: str = option("0s", "Time from decision to dispatch, such as 0.5ms.")
    sequencing: str = option("0s", "Sequencer time for each transaction, such as 5us.")
    overhead: str = option("0s", "Worker time added to each service, such as 20us.")
    batch: int = option(10, "Size that closes a batch (transactions).")
    flush: str | None = option(None, "Age that closes a batch. Default: none.")
    clients: int | None = option(None, "Clients of a closed loop. Default: open loop.")

    def system(self) -> "SystemOptions":
        """Return the fields of a SimulationConfig that these options set."""
        from thesis_lib.sequencer.core.events import Delays

        delays_s = map(units.parse_duration, (self.lag, self.sequencing, self.overhead))
        system: SystemOptions = {
            "batch_size": self.batch,
            "clients": self.clients,
            "delays": Delays(*delays_s),
        }
        if self.cores is not None:
            system["cores"] = self.cores
        if self.slo is not None:
            system["slo_s"] = units.parse_duration(self.slo)
        if self.flush is not None:
            system["flush_s"] = units.parse_duration(self.flush)
        return system


@command
def simulate(
    *,
    policy: list[str] = option(..., f"{POLICY_HELP} Repeat it to compare."),
    load: list[float] = option(
        [],
        "Arrival rate, as a share of FIFO's saturation rate; repeatable. Default, "
        "of a trace: its own rate.",
    ),
    question: Question,
    machine: Machine,
    gap: float | None = option(
        None, "Largest gap between the violation rates of two types (bid-price)."
    ),
    as_json: Json = False,
) -> None:
    """Simulate policies at a load and compare them with FIFO."""
    from thesis_lib.sequencer.experiments.grid import (
        Study,
        compare_policies,
        simulate_cell,
    )

    require(
        gap is None or policy == ["bid-price"],
        "--gap is of one policy alone, bid-price: leave it out",
    )

    request = asdict(question)
    rows, seeds = request.pop("rows"), request.pop("seeds")
    request["rows"] = None if rows is None else units.parse_rows(rows)
    system = machine.system()

    def answer(load: float | None) -> tuple[dict, list[str]]:
        at = Study(load=load, system=system, **request)
        if len(policy) > 1:
            compared = compare_policies(policy, at, seeds=8 if seeds is None else seeds)
            return compared, _compared(**compared)
        most = math.inf if gap is None else gap
        result = simulate_cell(
            policy[0], at, seeds=5 if seeds is None else seeds, gap=most
        )
        return result, _simulated(result, question.estimator)

    with console.status("simulating"):
        answers = [answer(each) for each in load or [None]]
    if len(answers) == 1:
        show(answers[0][0], as_json, answers[0][1])
        return
    lines = [
        line
        for each, (_, summary) in zip(load, answers, strict=True)
        for line in (f"at a load of {each:g}:", *summary, "")
    ]
    show({"loads": [result for result, _ in answers]}, as_json, lines[:-1])


def _simulated(result: dict, estimator: str) -> list[str]:
    """Return the result of one policy as lines of text."""
    ends, bound = result["reduction_ci"], result["lower_bound"]
    learned = f", fitted on {result['fitted_on']} others" * (result["fitted_on"] > 0)
    return [
        f"violations {result['violations']:.2%} (FIFO {result['fifo_violations']:.2%}"
        + (")" if bound is None else f", lower bound {bound:.2%})"),
        f"reduction   {result['reduction']:.1%}"
        + ("" if ends is None else "  [{:.1%}, {:.1%}]".format(*ends)),
        f"load {result['load']:.3g} of {result['saturation_per_s']:.0f}/s, arrivals: "
        f"{result['arrivals']}; {result['transactions']} transactions, estimator "
        f"{estimator}{learned}",
        f"late {result['late']:.2%}, dropped {result['dropped']:.2%}, "
        f"goodput {result['goodput_per_s']:.0f}/s, "
        f"throughput {result['throughput_per_s']:.0f}/s",
    ]


def _compared(chosen: str, policies: list[dict]) -> list[str]:
    """Return one line for each policy, and a recommendation."""
    from thesis_lib.common.stats import LEAST

    wide = max(len(each["policy"]) for each in policies)
    seeds = policies[0]["seeds"]
    lines, alike, better = [], [], []
    for each in policies:
        name, ends, beside = each["policy"], each["more_ci"], ""
        if name != chosen:
            beside = f", {100 * each['more']:+.2f} points"
            if ends is not None:
                low, high = (100 * end for end in ends)
                kind = "range " * (seeds < LEAST)
                beside += f" [{kind}{low:+.2f}, {high:+.2f}]"
                alike += [name] * (each["chosen_has"] == "untold")
                better += [name] * (each["chosen_has"] == "more")
        lines.append(
            f"{name:{wide}}  violations {each['violations']:6.2%}{beside}; late "
            f"{each['late']:.2%}, dropped {each['dropped']:.2%}"
        )
    judged = f"was chosen on {seeds} seeds and judged on {seeds} others"
    if policies[0]["more_ci"] is None:
        judged = "has the fewest violations of this one sample"
    note = f", which do not tell it from {', '.join(alike)}" if alike else ""
    note += f"; there {', '.join(better)} did better" if better else ""
    bound = policies[0]["lower_bound"]
    least = "" if bound is None else f"; no policy has fewer than {bound:.2%}"
    constants = "; rules have the constants shipped, which were tuned for scenario A"
    return [*lines, f"take {chosen}: it {judged}{note}{least}{constants}"]
