"""Export counts of requests to Prometheus (`pip install prometheus-client`)."""

from collections.abc import Iterator
from typing import Any

from thesis_serve.admission.machine import LiveSequencer

_SAYS = {
    "arrived": "Requests that came",
    "started": "Requests that were given a worker",
    "on_time": "Requests that ended by their deadlines",
    "late": "Requests that ended after their deadlines",
    "refused": "Requests that were rejected",
    "full": "Requests that were rejected because the queue was full",
    "failed": "Requests that the service had no answer to",
    "left": "Requests whose clients went first",
}


class SequencerMetrics:
    """Export counters and gauges of `sequencer` to a Prometheus registry."""

    def __init__(self, sequencer: LiveSequencer) -> None:
        self.sequencer = sequencer

    def collect(self) -> Iterator[Any]:
        """Yield the metrics; a registry calls it on every scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        totals = self.sequencer.totals()
        for name, says in _SAYS.items():
            yield CounterMetricFamily(f"sequencer_{name}", says, value=totals[name])
        for name in ("running", "waiting"):
            says = f"Requests that are {name}"
            yield GaugeMetricFamily(f"sequencer_{name}", says, value=totals[name])
        failed = float(self.sequencer.fault is not None)
        says = "Whether the policy failed and requests are served in order of arrival"
        yield GaugeMetricFamily("sequencer_fault", says, value=failed)
        says = "About how long a request would wait that came now"
        wait_s = self.sequencer.wait_s()
        yield GaugeMetricFamily("sequencer_wait_seconds", says, value=wait_s)
