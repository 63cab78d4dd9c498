"""What the server measures, for Prometheus."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from starflow.runtime.serve.batcher import BatchReport
from starflow.runtime.serve.served_model import ServedModel

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)


class _OfModels(Collector):
    """What each model says at the moment it is asked: the length of its queue, and how fast its memory is."""

    def __init__(self, models: Callable[[], Mapping[str, ServedModel]]) -> None:
        self._models = models

    def collect(self) -> list[Metric]:
        waiting = GaugeMetricFamily("starflow_waiting_images", "Images in the queue", labels=["model"])
        bandwidth = GaugeMetricFamily(
            "starflow_memory_bandwidth_bytes_per_second",
            "Memory bandwidth of one sampler, measured at the start",
            labels=["model"],
        )
        for name, model in self._models().items():
            waiting.add_metric([name], model.waiting)
            if model.bandwidth:
                bandwidth.add_metric([name], model.bandwidth)
        return [waiting, bandwidth]


class Metrics:
    """The metrics of one server. `models` is asked whenever Prometheus comes."""

    def __init__(self, models: Callable[[], Mapping[str, ServedModel]]) -> None:
        self._models = models
        self._registry = registry = CollectorRegistry()
        registry.register(_OfModels(models))
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
        self._read = Counter(
            "starflow_flow_read_bytes",
            "Bytes of weights and caches that the flow had to read",
            ["model"],
            registry=registry,
        )
        self._bandwidth_percent = Gauge(
            "starflow_memory_bandwidth_percent",
            "Share of the memory bandwidth that the flow of the latest batch used",
            ["model"],
            registry=registry,
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
        self._read.labels(model).inc(report.read_bytes)
        if bandwidth := self._models()[model].bandwidth:
            floor_seconds = report.read_bytes / bandwidth
            self._bandwidth_percent.labels(model).set(100 * floor_seconds / max(report.flow_seconds, 1e-9))

    def on_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request; `path` is a route's, so that clients cannot make up labels."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self._registry)
