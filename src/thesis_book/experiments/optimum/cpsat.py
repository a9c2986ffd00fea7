"""The offline optimum of a short window by CP-SAT, proven or bounded."""

from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from thesis_book.experiments.optimum.local_search import _problem, _start_early, search
from thesis_lib.sequencer.core.trace import F64, History, KeySets, Trace
from thesis_lib.sequencer.optimum.bounds import ticks
from thesis_lib.sequencer.simulator.simulator import replay

LARGEST = 40  # transactions of a window
SPAN = 16  # a window has at most 2^16 ticks: CP-SAT may move a start tick by tick


@dataclass(frozen=True, slots=True)
class Window:
    """The best schedule found for a window, and what no schedule can fall below."""

    history: History
    bound: int  # violations, proven

    @property
    def violations(self) -> int:
        """Late + dropped of the best schedule found."""
        return int(self.history.violated.sum())


def solve(
    trace: Trace, *, cores: int, slo_s: float | F64, effort: float = 10.0, seed: int = 0
) -> Window:
    """The fewest violations of a few transactions that find the database idle.

    A model of the whole problem for CP-SAT: each transaction may have an interval from
    start to commit; so many overlap as there are cores, and at each key one exclusive
    or any number of shared ones. Times are ticks of at most a 2^15th of the window,
    releases and services rounded down and deadlines up, so that the proven bound is one
    of the true problem too; the schedule is replayed with the true times, and what
    rounding made late is dropped and counts. It begins with the schedule of `search`.
    `effort` is a limit in CP-SAT's deterministic seconds, of one thread, so that the
    result is the same on every machine. For LARGEST transactions at most.
    """
    n = len(trace)
    first = search(trace, cores=cores, slo_s=slo_s, seed=seed)
    since_s = trace.arrival_s - trace.arrival_s[0]
    power = SPAN - int(np.frexp((since_s + slo_s).max())[1])
    release = ticks(since_s, power=power).tolist()
    service = ticks(trace.service_s, power=power).tolist()
    due = ticks(since_s + slo_s, up=True, power=power).tolist()
    model, starts, present = _model(trace.keys, cores, release, service, due)
    for i in range(n):
        model.add_hint(present[i], not first.violated[i])
        if not first.violated[i]:
            began_s = first.start_s[i : i + 1] - trace.arrival_s[0]
            begin = int(ticks(began_s, power=power)[0])
            latest = max(release[i], due[i] - service[i])
            model.add_hint(starts[i], min(max(begin, release[i]), latest))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    solver.parameters.linearization_level = 2
    solver.parameters.max_deterministic_time = effort
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Window(first, 0)  # it ended before it knew anything: nothing is proven
    bound = n - int(np.floor(solver.best_objective_bound + 1e-6))
    log = np.array([i for i in range(n) if solver.boolean_value(present[i])], np.int64)
    log = log[np.argsort([solver.value(starts[i]) for i in log], kind="stable")]
    jobs, locks = _problem(trace, slo_s)
    start_s = np.full(n, np.nan)
    _start_early(jobs, locks, cores, log, start_s)
    log = log[~np.isnan(start_s[log])]
    schedule = replay(trace, log, start_s[log], cores=cores, slo_s=slo_s)
    return Window(min(schedule, first, key=lambda h: h.violated.sum()), bound)


def _model(
    keys: KeySets, cores: int, release: list[int], service: list[int], due: list[int]
) -> tuple[cp_model.CpModel, list[cp_model.IntVar], list[cp_model.IntVar]]:
    """The problem in ticks; of each transaction its start, and if it is on time."""
    model = cp_model.CpModel()
    starts, present, intervals = [], [], []
    for i in range(len(keys)):
        latest = max(release[i], due[i] - service[i])
        start = model.new_int_var(release[i], latest, f"start {i}")
        on_time = model.new_bool_var(f"on time {i}")
        if release[i] + service[i] > due[i]:
            model.add(on_time == 0)
        intervals.append(
            model.new_optional_fixed_size_interval_var(
                start, service[i], on_time, f"run {i}"
            )
        )
        starts.append(start)
        present.append(on_time)
    model.add_cumulative(intervals, [1] * len(keys), cores)
    owner = keys.owner
    for key in np.unique(keys.keys[keys.exclusive]):
        at = np.flatnonzero(keys.keys == key)
        held = [intervals[i] for i in owner[at]]
        room = max(1, int((~keys.exclusive[at]).sum()))
        modes = np.where(keys.exclusive[at], room, 1)
        model.add_cumulative(held, modes.tolist(), room)
    model.maximize(sum(present))
    return model, starts, present
