"""Configuration of a simulation: arrivals, estimates, cores and SLOs.

Load 1 is the rate at which FIFO saturates, measured on transactions of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypedDict, Unpack

import numpy as np

from thesis_lib.common.answers import remembered
from thesis_lib.common.errors import choice, require, require_count
from thesis_lib.common.stats import Interval, mean_interval
from thesis_lib.sequencer.core.events import Delays
from thesis_lib.sequencer.core.trace import F64, History, Trace, trace_hash
from thesis_lib.sequencer.estimators.models import ESTIMATORS, LEARNED, predict_all
from thesis_lib.sequencer.estimators.models import estimator as named_estimator
from thesis_lib.sequencer.estimators.saved import is_file, load_estimator
from thesis_lib.sequencer.experiments.metrics import (
    Report,
    counted,
    summarize,
    type_objectives_s,
)
from thesis_lib.sequencer.policies.parameters import Parameters
from thesis_lib.sequencer.policies.registry import OwnRule, Policy, rule_parameters
from thesis_lib.sequencer.policies.registry import policy as named_policy
from thesis_lib.sequencer.simulator.simulator import SystemConfig, replay, simulate
from thesis_lib.sequencer.workload.arrivals import poisson_arrivals
from thesis_lib.sequencer.workload.features import with_features
from thesis_lib.sequencer.workload.scenarios import (
    SCENARIOS,
    from_measured,
    mean_one_lognormal,
    scenario,
)

BACKLOG = 0.01  # share of a sustained run that its last queue takes to empty
PRECISION = 1e-3  # of a saturation rate, relative

PROBE_SEED = 999_998  # of the trace that objectives of types are taken from
PROBES_OF_TYPES = 100  # short traces in which a rare type is looked for
PAST_SEED = 777_777  # of the trace that a learned estimator is fitted on
MOST_NOISE = 10.0  # of a logarithm: estimates e^10 times too long are no estimates
NOISE = 0.2  # sigma of the logarithm of an estimate over the truth
PROBES, PROBE_TRANSACTIONS = 16, 20_000  # that a saturation rate is the mean of
SATURATION_SEED = 999_999


def saturation_rate(trace: Trace, *, cores: int) -> float:
    """The highest rate, per second, that FIFO with its locks sustains.

    The arrivals of `trace` are stretched. A rate is sustained if the queue built up
    by the last arrival takes less than BACKLOG of the run to empty; the largest such
    rate is found by bisection to a relative PRECISION.
    """
    require(len(trace) >= 100, f"{len(trace)} transactions: expected at least 100")
    require_count("cores", cores)
    unit_s = trace.arrival_s / trace.arrival_s[-1] * len(trace)  # one a second
    log = np.arange(len(trace))

    def sustained(rate_per_s: float) -> bool:
        arrival_s = unit_s / rate_per_s
        history = replay(trace, log, arrival_s, cores=cores, slo_s=1.0)
        return float(history.finish_s.max()) < (1 + BACKLOG) * arrival_s[-1]

    low, high = 0.0, 2 * cores / float(trace.service_s.mean())
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if sustained(middle) else (low, middle)
    return low


def saturation(
    make_trace: Callable[[int, int], Trace], *, cores: int, of: Sequence[Any] = ()
) -> Interval:
    """The saturation rate of a workload, per second, and its 95 % interval.

    `make_trace(n, seed)` draws transactions and arrivals. One probe of finite length
    differs from the next by its draws, so the rate is the mean `saturation_rate` of
    PROBES independent probes of PROBE_TRANSACTIONS each. Load 1 is this mean. Where
    `of` says, in what JSON knows, all that `make_trace` draws from, the rates are kept
    on the disk: they are the same until the package changes.
    """
    seeds = np.random.SeedSequence(SATURATION_SEED).generate_state(PROBES).tolist()

    def saturation_rates(cores: int, *_: Any) -> list[float]:
        return [
            saturation_rate(make_trace(PROBE_TRANSACTIONS, seed), cores=cores)
            for seed in seeds
        ]

    measure = remembered(saturation_rates) if of else saturation_rates
    return mean_interval(np.array(measure(cores, *of)))


def default_objective_s(past: Trace) -> float:
    """Twice the 95th percentile of the service time, which is the unloaded latency."""
    return 2 * float(np.quantile(past.service_s, 0.95))


Estimate = Callable[[Trace, int], F64]  # (trace, seed) -> (n,) seconds


def noisy_estimate(noise: float = NOISE, bias: float = 1.0) -> Estimate:
    """Return an estimate of known quality: the true time times lognormal noise.

    Args:
        noise: Sigma of the lognormal factor, whose mean is 1.
        bias: Constant factor.

    Returns:
        A function (trace, seed) to estimated service times (n,) in seconds.

    Example:
        >>> from thesis_lib.sequencer import noisy_estimate, scenario
        >>> trace = scenario("A", n=3, seed=2)
        >>> (noisy_estimate(noise=0.2, bias=2.0)(trace, 1) / trace.service_s).round(2)
        array([2.1 , 2.31, 2.09])
    """
    require(
        0 <= noise <= MOST_NOISE,
        f"noise={noise:g} must lie in [0, {MOST_NOISE:g}]: it is the standard "
        "deviation of a logarithm",
    )
    require(0 < bias < np.inf, f"bias={bias:g} must be positive and finite")
    noise = abs(noise)  # of a zero below zero

    def estimate(trace: Trace, seed: int) -> F64:
        rng = np.random.default_rng(seed)
        return trace.service_s * bias * mean_one_lognormal(noise, len(trace), rng)

    return estimate


NOISY = noisy_estimate()  # what policies are compared with where nothing else is said


def learned_estimate(name: str, past: Trace) -> Estimate:
    """Fit the estimator `name` on `past` and return an estimate for simulations.

    Returns:
        A function (trace, seed) to estimated service times (n,) in seconds.

    Example:
        >>> from thesis_lib.sequencer import learned_estimate, scenario
        >>> estimate = learned_estimate("linear", scenario("A", 500, seed=1))
        >>> (1e3 * estimate(scenario("A", 3, seed=2), 0)).round(2)  # milliseconds
        array([0.47, 0.47, 0.47])
    """
    model = named_estimator(name).fit(past)
    return lambda trace, seed: predict_all(model, trace)


def named_estimate(
    name: str, config: "SimulationConfig", noise: float = NOISE
) -> Estimate:
    """Return an estimator by name; a learned one is fitted on the trace of PAST_SEED.

    The name may be that of a file of `save_estimator`, which is fitted already, and is
    asked with those features of a trace that it knows. Raises InvalidInput for an
    unknown one.
    """
    if is_file(name):
        model = load_estimator(name)
        known = model.feature_names or ()

        def estimate(trace: Trace, seed: int) -> F64:
            shared = tuple(name for name in known if name in trace.feature_names)
            return predict_all(model, with_features(trace, shared))

        return estimate
    choice("estimator", name, ESTIMATORS)
    if name in LEARNED:
        return learned_estimate(name, config.make_trace(PAST_SEED))
    return noisy_estimate(0.0 if name == "oracle" else noise)


Arrivals = Callable[[float, int, np.random.Generator], F64]  # rate, n -> (n,) times


class SystemOptions(TypedDict, total=False):
    """Fields of a SimulationConfig that a scenario or a trace has defaults for."""

    cores: int
    slo_s: float
    batch_size: int
    flush_s: float
    delays: Delays
    clients: int | None
    constants: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig(SystemConfig):
    """Describe a simulation except for its load, policy and seed.

    Args:
        make_trace: Function from a seed to a trace.
        saturation_per_s: Transactions per second that correspond to load 1.
        arrivals: Function (rate, n, generator) to arrival times (n,) in seconds.
        objectives_s: SLO of each transaction type in seconds; `slo_s` then only sets
            the constants of policies.
        saturation: Measured saturation with its interval; None if not measured.
        constants: Constants by policy name that replace the shipped ones, which were
            tuned for scenario A.
        clients: Number of clients of a closed loop. Each thinks for
            `clients` / (load x saturation) seconds.

    The other arguments are those of `SystemConfig`.

    Example:
        >>> from thesis_lib.sequencer import SimulationConfig, scenario
        >>> config = SimulationConfig.of_scenario("A", transactions=500)
        >>> config.cores, config.slo_s, round(config.saturation_per_s)
        (8, 0.0125, 7581)
        >>> trace = config.arrange(config.make_trace(1), load=1.1, seed=2)  # Poisson
        >>> fifo = config.policy("fifo")
        >>> report = config.run(trace, fifo, trace.service_s, load=1.1)
        >>> round(report.violations, 3)
        0.289
        >>> past = scenario("A", 500, seed=1)  # or a recorded trace
        >>> config = SimulationConfig.of_trace(past, transactions=200, cores=4)
        >>> round(1e3 * config.slo_s, 2), round(config.saturation_per_s)
        (5.93, 3487)
    """

    make_trace: Callable[[int], Trace]  # seed -> transactions; arrivals are replaced
    saturation_per_s: float
    slo_s: float
    arrivals: Arrivals = poisson_arrivals
    objectives_s: tuple[float, ...] | None = None
    saturation: Interval | None = None
    constants: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        SystemConfig.__post_init__(self)
        for rule, constants in self.constants.items():
            rule_parameters(rule, constants)  # rejects names that it does not know

    def think_time_s(self, load: float) -> float:
        """Return a client's think time in a closed loop at this load; 0 at infinity."""
        require(load > 0, f"load={load:g}: expected a positive one for a closed loop")
        return (self.clients or 0) / (load * self.saturation_per_s)

    def policy(self, name: str | OwnRule, params: Parameters | None = None) -> Policy:
        """Return the policy of this name on this machine.

        Without `params` it has those of `constants`, and the shipped ones else.
        """
        if params is None and isinstance(name, str) and name in self.constants:
            params = rule_parameters(name, self.constants[name])
        return named_policy(
            name, slo_s=self.slo_s, cores=self.cores, lag_s=self.delays.lag_s,
            params=params,
        )  # fmt: skip

    def arrange(self, transactions: Trace, load: float, seed: int) -> Trace:
        """The transactions as they arrive at this load; unchanged in a closed loop.

        Raises InvalidInput where the last is so late that the objective is lost in the
        precision of its time.
        """
        if self.clients is not None:
            return transactions
        rate_per_s, rng = load * self.saturation_per_s, np.random.default_rng(seed)
        arrival_s = self.arrivals(rate_per_s, len(transactions), rng)
        require(
            arrival_s[-1] <= 2.0**40 * self.slo_s,
            f"arrivals go on until {arrival_s[-1]:g} s, where an objective of "
            f"{self.slo_s:g} s is lost in the precision of a time: expected seconds, "
            "and a higher load or fewer transactions",
        )
        return replace(transactions, arrival_s=arrival_s)

    def history(
        self, trace: Trace, policy: Policy, estimated_s: F64, load: float
    ) -> History:
        """Return the history of a trace from `arrange` under a policy."""
        slo_s = self.slo_s
        if self.objectives_s is not None:
            slo_s = np.array(self.objectives_s)[trace.kind]
        system = replace(self, slo_s=slo_s, think_s=self.think_time_s(load))
        return simulate(trace, policy, estimated_s, system)

    def run(
        self, trace: Trace, policy: Policy, estimated_s: F64, load: float
    ) -> Report:
        """Return the metrics of a policy on a trace from `arrange`."""
        return summarize(trace, self.history(trace, policy, estimated_s, load))

    def by_type(self, factor: float) -> Self:
        """The same with `factor` times its median service time as each type's SLA.

        The medians are of a trace of their own, which holds every type that this
        workload has; `slo_s` becomes the mean objective of its transactions.
        """
        seeds = range(PROBE_SEED, PROBE_SEED - PROBES_OF_TYPES, -1)
        probes = map(self.make_trace, seeds)
        whole = (p for p in probes if len(np.unique(p.kind)) == len(p.kinds))
        probe = next(whole, self.make_trace(PROBE_SEED))
        objectives_s = type_objectives_s(probe, factor)
        return replace(
            self,
            slo_s=float(objectives_s[probe.kind].mean()),
            objectives_s=tuple(objectives_s.tolist()),
        )

    @classmethod
    def of_scenario(
        cls, name: str, *, transactions: int, warehouses: int | None = None,
        **system: Unpack[SystemOptions],
    ) -> Self:  # fmt: skip
        """A reference scenario, its `saturation` measured on transactions of its own.

        `system` holds fields of SimulationConfig; cores and SLO are by default those of
        the scenario.
        """
        spec = SCENARIOS[choice("scenario", name, SCENARIOS)]
        system = {"cores": spec.cores, "slo_s": spec.slo_s, **system}
        full = saturation(
            lambda n, seed: scenario(name, n, seed, warehouses),
            cores=system["cores"],
            of=[name, warehouses],
        )
        return cls(
            make_trace=lambda seed: scenario(name, transactions, seed, warehouses),
            saturation_per_s=full.value,
            saturation=full,
            **system,
        )

    @classmethod
    def of_trace(
        cls, past: Trace, *, transactions: int, **system: Unpack[SystemOptions]
    ) -> Self:
        """A collected trace as the transactions of an open loop (scenario T).

        What a trace of a closed loop says of its arrivals is what the engine made of
        them, so here they are new: a Poisson process, a seed each. `system` holds
        fields of SimulationConfig; by default there are 4 cores, and the SLO is
        `default_objective_s`.
        """
        with np.errstate(over="ignore"):
            mean_s = float(past.service_s.mean()) if len(past) else 0.0
        require(
            1e-9 <= mean_s <= 1e9,
            f"the {len(past)} transactions take {mean_s:g} s each in the mean: "
            "expected a trace of service times in seconds",
        )
        system = {"cores": 4, "slo_s": default_objective_s(past), **system}
        require(
            system["slo_s"] > 0,
            "19 of 20 transactions take no time, so twice the 95th percentile of "
            "their service times is no objective: give one",
        )
        full = saturation(
            lambda n, seed: from_measured(past, n, seed),
            cores=system["cores"],
            of=["measured", trace_hash(replace(past, meta={}))],
        )
        return cls(
            make_trace=lambda seed: from_measured(past, transactions, seed),
            saturation_per_s=full.value,
            saturation=full,
            **system,
        )


def replay_config(
    judged: Trace, load: float | None = None, **system: Unpack[SystemOptions]
) -> tuple[SimulationConfig, float]:
    """A trace replayed with the arrivals that it has, and the load that they are.

    With a `load`, its inter-arrival times are all stretched by one factor, so that
    their mean is that of the load and their pattern stays. Load 1 is the saturation
    rate of the same transactions as a Poisson process. `system` as of `of_trace`; in
    a closed loop, where arrivals are not read, a load is needed. Raises InvalidInput
    for arrivals that have no rate.
    """
    config = SimulationConfig.of_trace(judged, transactions=len(judged), **system)
    since_s = judged.arrival_s - judged.arrival_s[0]
    own_per_s = np.inf
    if config.clients is None:
        rows = counted(len(judged))
        require(
            0 < since_s[-1] < np.inf and since_s[-1] > since_s[rows][0],
            f"the last {len(since_s[rows])} transactions of the trace all arrive at "
            f"{judged.arrival_s[-1]:g} s: expected arrivals that spread; a closed loop "
            "(clients) needs none",
        )
        own_per_s = (len(judged) - 1) / float(since_s[-1])
    else:
        require(
            load is not None,
            "clients of a closed loop arrive when they have their answers, not as the "
            "trace says: give the load that they would submit if those took no time",
        )

    def arrivals(rate_per_s: float, n: int, rng: np.random.Generator) -> F64:
        return since_s if load is None else since_s * (own_per_s / rate_per_s)

    at = own_per_s / config.saturation_per_s if load is None else load
    return replace(config, make_trace=lambda seed: judged, arrivals=arrivals), at
