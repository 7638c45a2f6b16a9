"""What Prometheus reads at /metrics: sums only, no name of a hub or site; a registry of its own per application."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_METHODS: Final = ("GET", "POST", "PUT", "DELETE")
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

_OF_STATUS: Final = (
    ("stored_messages", "hubline_stored_messages", "Messages ever stored."),
    ("stored_points", "hubline_stored_points", "Points ever stored."),
    ("duplicates_refused", "hubline_duplicates", "Messages that came again and were not stored again."),
    ("refused", "hubline_refused", "Messages that the contract does not allow."),
    ("dropped", "hubline_dropped", "Messages dropped for want of room; hubs send them again."),
)
"""Keys of the service's status that only grow, and what they are called here."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is true at the moment of a scrape; `status` is that of the service."""

    hubs: Mapping[str, int]
    tasks_open: int
    listeners: int
    status: Mapping[str, object]


class Metrics(Collector):
    """The metrics of one application."""

    def __init__(self) -> None:
        self._registry: Final = CollectorRegistry(auto_describe=False)
        self._snapshot = Snapshot({}, 0, 0, {})
        self._requests: Final = Counter(
            "hubline_api_requests", "Requests to the API.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds: Final = Histogram(
            "hubline_api_seconds", "Until the answer began.", ("route",), buckets=_SECONDS, registry=self._registry
        )
        self._registry.register(self)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is a template, so that there are only so many."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self, snapshot: Snapshot) -> bytes:
        """Return everything in Prometheus' text format."""
        self._snapshot = snapshot
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Return nothing: what `collect` yields has names of its own."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return what the snapshot says."""
        snapshot = self._snapshot
        hubs = GaugeMetricFamily("hubline_hubs", "Hubs by connection; hidden ones apart.", labels=("connection",))
        for connection, count in sorted(snapshot.hubs.items()):
            hubs.add_metric((connection,), count)
        yield hubs
        yield GaugeMetricFamily("hubline_tasks_open", "Targets of tasks that have not ended.", snapshot.tasks_open)
        yield GaugeMetricFamily("hubline_api_listeners", "Open streams of events.", snapshot.listeners)
        waiting = _number(snapshot.status.get("waiting"))
        yield GaugeMetricFamily("hubline_ingest_waiting", "Messages that wait for the database.", waiting)
        broker = 1.0 if snapshot.status.get("broker") == "up" else 0.0
        yield GaugeMetricFamily("hubline_broker_up", "Whether the service is connected to its broker.", broker)
        storage = 1.0 if snapshot.status.get("storage") == "ok" else 0.0
        yield GaugeMetricFamily("hubline_storage_ok", "Whether the database takes what comes.", storage)
        for key, name, text in _OF_STATUS:
            yield CounterMetricFamily(name, text, _number(snapshot.status.get(key)))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
