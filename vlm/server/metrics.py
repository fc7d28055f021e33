"""Figures of a running server, in Prometheus' text form."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from vlm.server.facts import RequestFacts
from vlm.server.worker import EngineWorker

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts what a server does; one registry each, so that several may live in a process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, worker: EngineWorker) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "vlm_requests",
            "HTTP requests by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "vlm_request_seconds",
            "From a request's head to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "vlm_first_token_seconds",
            "From a request's head to its first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "vlm_tokens", "Text tokens, read and written.", ["kind"], registry=registry
        )
        self._images = Counter("vlm_images", "Images in prompts.", registry=registry)
        gauges = {
            "vlm_answers_open": ("Places taken of those that run and wait.", "num_open"),
            "vlm_answers_running": ("Answers being generated.", "num_active"),
            "vlm_answers_waiting": ("Answers that wait for a slot.", "num_waiting"),
        }
        for name, (text, attribute) in gauges.items():
            gauge = Gauge(name, text, registry=registry)
            gauge.set_function(partial(_reading, worker, attribute))

    def add_request(self, route: str, status: int, seconds: float, facts: RequestFacts) -> None:
        """Count a request that has been answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if facts.first_token_s is not None:
            self._first_token.observe(facts.first_token_s)
        self._tokens.labels("prompt").inc(facts.prompt_tokens)
        self._tokens.labels("completion").inc(facts.completion_tokens)
        self._images.inc(facts.images)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)


def _reading(worker: EngineWorker, attribute: str) -> float:
    return float(getattr(worker, attribute))
