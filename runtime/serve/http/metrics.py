"""What the server measures, for Prometheus."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from starflow.runtime.serve.batcher import BatchReport
from starflow.runtime.serve.served_model import ServedModel

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)


class _Waiting(Collector):
    """The length of each queue at the moment it is asked for."""

    def __init__(self, models: Callable[[], Mapping[str, ServedModel]]) -> None:
        self._models = models

    def collect(self) -> list[Metric]:
        family = GaugeMetricFamily("starflow_waiting_images", "Images in the queue", labels=["model"])
        for name, model in self._models().items():
            family.add_metric([name], model.waiting)
        return [family]


class Metrics:
    """The metrics of one server. `models` is asked whenever Prometheus comes."""

    def __init__(self, models: Callable[[], Mapping[str, ServedModel]]) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_Waiting(models))
        self._requests = Counter(
            "starflow_requests", "Answered requests by path and status", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "starflow_request_seconds", "Time of a request", ["path"], buckets=SECONDS, registry=registry
        )
        self._images = Counter("starflow_images", "Images made", ["model"], registry=registry)
        self._batches = Counter("starflow_batches", "Batches run", ["model"], registry=registry)
        self._fill = Histogram(
            "starflow_batch_fill",
            "Images in a batch as a part of what it holds",
            ["model"],
            buckets=(0.125, 0.25, 0.5, 0.75, 1.0),
            registry=registry,
        )
        self._waited = Histogram(
            "starflow_queue_seconds",
            "Time of an image in the queue",
            ["model"],
            buckets=(0.001, *SECONDS),
            registry=registry,
        )
        self._stage = Histogram(
            "starflow_stage_seconds", "Time of a batch by stage", ["model", "stage"], buckets=SECONDS, registry=registry
        )
        self._speed = Gauge(
            "starflow_batch_images_per_second", "Speed of the latest batch", ["model"], registry=registry
        )

    def on_batch(self, model: str, report: BatchReport) -> None:
        """Count a batch."""
        self._images.labels(model).inc(report.images)
        self._batches.labels(model).inc()
        self._fill.labels(model).observe(report.images / report.size)
        for seconds in report.waited:
            self._waited.labels(model).observe(seconds)
        self._stage.labels(model, "flow").observe(report.flow_seconds)
        self._stage.labels(model, "decode").observe(report.decode_seconds)
        self._speed.labels(model).set(report.images / max(report.flow_seconds + report.decode_seconds, 1e-9))

    def on_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request; `path` is a route's, so that clients cannot make up labels."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self._registry)
