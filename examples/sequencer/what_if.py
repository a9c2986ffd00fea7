"""What would another policy have done? Try it on the log of a service behind FIFO.

    python examples/sequencer/what_if.py decisions.jsonl bid-price

In a log in which no request was rejected the service time of every request is known.
"""

import sys
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

from thesis_lib.common.errors import require
from thesis_lib.sequencer.policies.registry import OwnRule
from thesis_serve import LiveSequencer
from thesis_serve.admission.estimator import ServiceEstimator
from thesis_serve.admission.log import is_as_logged, retell
from thesis_serve.admission.machine import Counts

END, FAIL, LEAVE, ARRIVE = range(4)  # what happens, in this order at one time


def what_if(
    path: Path | str, policy: str | OwnRule, estimator: ServiceEstimator | None = None
) -> Counts:
    """Count what another `policy` would have done with the requests of a log.

    The policy sees the arrivals of the log; ends follow from its own starts and the
    service times of the log. A request that left before service leaves at the same
    time; if it starts earlier, it takes the mean of its kind. Failures, and clients
    that left during service, repeat after the same service time. Requests that had not
    ended are left out. Estimates are learned again, by `estimator` if it is given.
    Service times stay, so record the log with the same number of workers and the same
    load. Raises InvalidInput for a file that is no log or does not replay, for a log
    with rejected requests, whose service times are unknown, for a policy that fails,
    and for one that needs a batch timer if the log has no `flush_s`.
    """
    past, settings = _past(Path(path))
    options = {key: settings[key] for key in settings.keys() - {"policy", "own"}}
    live = LiveSequencer(policy, estimator=estimator, **options)
    events = [(request.arrived_s, ARRIVE, n) for n, request in enumerate(past)]
    events += [(r.left_s, LEAVE, n) for n, r in enumerate(past) if r.left_s < inf]
    heapify(events)
    while events or live.next_look_s < inf:
        if not events or live.next_look_s < events[0][0]:
            now_s = live.next_look_s
            made = live.look(now_s)
        else:
            now_s, what, number = heappop(events)
            if what == ARRIVE:
                made = live.arrive(number, now_s, **past[number].about)
            elif number not in live:
                continue
            elif what == LEAVE:
                made = live.leave(number, now_s)
            else:
                made = live.end(number, now_s, failed=what == FAIL)
        for begun in made.started:
            if past[begun].took_s < inf:
                over_s = now_s + past[begun].took_s
                heappush(events, (over_s, past[begun].how, begun))
    require(live.fault is None, live.fault or "")
    return live.counts


@dataclass(slots=True)
class _Request:
    """What a log says of a request; what it does not say is infinite."""

    arrived_s: float
    about: dict[str, Any]
    started_s: float = inf
    took_s: float = inf
    left_s: float = inf  # before it started
    how: int = END  # it ended; or FAIL, or LEAVE: its client left while it ran


def _past(path: Path) -> tuple[list[_Request], dict[str, Any]]:
    """The requests of a log that have ended or left, by arrival, and its settings."""
    requests: list[_Request] = []
    here: dict[int, _Request] = {}
    settings: dict[str, Any] = {}
    for line, entry, made, live in retell(path, None):
        settings, now_s = live.settings(), live.now_s
        require(
            is_as_logged(entry, made),
            f"{path}, line {line}: a replay decides otherwise, so starts and ends "
            "cannot be believed: expected a log as it was written",
        )
        require(
            not made.refused,
            f"{path}, line {line}: requests {made.refused} were refused, and nobody "
            "knows how long they would have taken: expected a log in which all were "
            "served, as of `fifo` with `most_waiting` out of reach",
        )
        if "arrive" in entry:
            about = {key: entry[key] for key in ("kind", "features", "slo_s")}
            requests.append(_Request(now_s, about))
            here[entry["arrive"]] = requests[-1]
        elif "look" not in entry:
            over = here.pop(entry["end" if "end" in entry else "leave"])
            if over.started_s < inf:
                over.took_s = now_s - over.started_s
                ended = FAIL if entry.get("failed") else END
                over.how = LEAVE if "leave" in entry else ended
            else:
                over.left_s = now_s
        for number in made.started:
            here[number].started_s = now_s
    require(len(requests) > 0, f"{path} holds no request: expected one that was served")
    past = [r for r in requests if min(r.took_s, r.left_s) < inf]
    kinds: dict[str, list[float]] = {}
    for request in past:
        if request.took_s < inf and request.how == END:
            kinds.setdefault(request.about["kind"], []).append(request.took_s)
    for request in past:
        if request.took_s == inf and request.about["kind"] in kinds:
            request.took_s = fmean(kinds[request.about["kind"]])
    return past, settings


if __name__ == "__main__":
    print(what_if(*sys.argv[1:]))
