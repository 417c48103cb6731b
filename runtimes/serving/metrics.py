"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server; many threads may use them."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "detr_requests", "Requests for a prediction that are done, by HTTP status.", ["status"], registry=registry
        )
        self.in_progress = Gauge("detr_requests_in_progress", "Requests that hold a place.", registry=registry)
        self.queue = Gauge("detr_queue_length", "Pictures that wait for the model.", registry=registry)
        self.pictures = Counter("detr_pictures", "Pictures that the model has run on.", registry=registry)
        self.pixels = Counter("detr_pixels", "Pixels of these pictures.", registry=registry)
        self.batches = Histogram(
            "detr_batch_size", "Pictures of one run of the model.", registry=registry, buckets=_BATCH_SIZES
        )
        self.decoding = self._seconds("detr_decode_seconds", "Time to decode a picture.")
        self.waiting = self._seconds("detr_wait_seconds", "Time that a decoded picture waits for the model.")
        self.model = self._seconds("detr_model_seconds", "Time of one run of the model, with resizing and post-processing.")
        self.answering = self._seconds("detr_request_seconds", "Time from the head of a request to its result.")

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, registry=self._registry, buckets=_SECONDS)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
