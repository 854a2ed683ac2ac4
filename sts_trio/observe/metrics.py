"""What Prometheus is told about the service.

One `Metrics` belongs to one server: it has a registry of its own, so that several servers can live in one process.
No label ever holds an id: labels are stages, codes, pools and states, whose number is fixed, and where the values are
known each series exists from the start (a counter that first appears at 1 hides its first increase from `rate()`).
"""

from __future__ import annotations

from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from protocol.engineio import CloseReason
from protocol.errors import ErrorCode, Stage

FRAGMENT_STATUSES: Final = ("success", "partial", "failed")
BACKPRESSURE_SEVERITIES: Final = ("low", "medium", "high")
REFUSALS: Final = (
    ErrorCode.STREAM_NOT_FOUND,
    ErrorCode.STREAM_PAUSED,
    ErrorCode.INVALID_FRAGMENT,
    ErrorCode.FRAGMENT_TOO_LARGE,
    ErrorCode.INVALID_SEQUENCE,
    ErrorCode.BACKPRESSURE_EXCEEDED,
)
"""The codes with which a fragment is refused before it is accepted (contract, "Errors")."""

CONNECTION_REFUSALS: Final = (
    "connections",
    "address_connections",
    "sessions",
    "address_sessions",
    "address_handshakes",
)
"""Why a client is not let in (`server.admission.Reason`)."""

_SECONDS: Final = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 30.0)
"""From one short model call to the longest deadline a worker may ask for, closest around a live fragment's budget."""

_WAIT_SECONDS: Final = (0.001, 0.005, 0.02, *_SECONDS)
_BATCH_SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 32)


class Metrics:
    """Every metric of one server, as prometheus_client objects. Times are in seconds.

    Attributes:
        gpu_utilization: the last sampled load in percent; None where there is no GPU.
    """

    def __init__(self) -> None:
        # Creation times would double the series for a value no query of ours reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self.gpu_utilization: int | None = None
        self._gpu_gauge: Gauge | None = None

        self.fragment_processing_seconds = Histogram(
            "sts_fragment_processing_seconds",
            "Time from a fragment's acceptance to its finished result.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.asr_duration_seconds = Histogram(
            "sts_asr_duration_seconds",
            "Time of the ASR stage, waiting for an instance included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.translation_duration_seconds = Histogram(
            "sts_translation_duration_seconds",
            "Time of the translation stage, waiting for an instance included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.tts_duration_seconds = Histogram(
            "sts_tts_duration_seconds",
            "Time of the TTS stage, waiting for an instance included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.fragments_in_flight = Gauge(
            "sts_fragments_in_flight", "Fragments accepted and not yet emitted, over all streams.", registry=registry
        )
        self.fragments_total = Counter("sts_fragments_total", "Results sent, by status.", ["status"], registry=registry)
        self.fragment_errors_total = Counter(
            "sts_fragment_errors_total",
            "Failures of accepted fragments, by where and why.",
            ["stage", "error_code"],
            registry=registry,
        )
        self.translations_total = Counter(
            "sts_translations_total",
            "Texts translated, by the provider that did it.",
            ["provider"],
            registry=registry,
        )
        self.fragments_refused_total = Counter(
            "sts_fragments_refused_total",
            "Fragments that were not accepted, by why.",
            ["error_code"],
            registry=registry,
        )

        self.streams_active = Gauge("sts_streams_active", "Streams that are open.", registry=registry)
        self.connections = Gauge("sts_connections", "Workers' Socket.IO connections.", registry=registry)
        self.connections_closed_total = Counter(
            "sts_connections_closed_total",
            "Socket.IO connections that ended, by why.",
            ["reason"],
            registry=registry,
        )
        self.connections_refused_total = Counter(
            "sts_connections_refused_total",
            "Connections, sessions and handshakes over a limit, by which one.",
            ["reason"],
            registry=registry,
        )
        self.backpressure_events_total = Counter(
            "sts_backpressure_events_total", "Backpressure events sent.", ["severity"], registry=registry
        )

        self.pool_queue_wait_seconds = Histogram(
            "sts_pool_queue_wait_seconds",
            "Time a request waited for a slot of its pool.",
            ["pool"],
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self.pool_busy_slots = Gauge(
            "sts_pool_busy_slots", "Slots of the pool that are working.", ["pool"], registry=registry
        )
        self.pool_batch_size = Histogram(
            "sts_pool_batch_size", "Requests per call.", ["pool"], buckets=_BATCH_SIZES, registry=registry
        )
        self.pool_abandoned_calls_total = Counter(
            "sts_pool_abandoned_calls_total", "Calls nobody waited for any more.", ["pool"], registry=registry
        )
        self.pool_hung_calls_total = Counter(
            "sts_pool_hung_calls_total", "Calls that were cancelled and did not end.", ["pool"], registry=registry
        )
        self.pool_hung_slots = Gauge(
            "sts_pool_hung_slots", "Slots of the pool that such a call holds at present.", ["pool"], registry=registry
        )

        for status in FRAGMENT_STATUSES:
            self.fragments_total.labels(status=status)
        for stage in Stage:
            for code in ErrorCode:
                self.fragment_errors_total.labels(stage=stage.value, error_code=code.value)
        for code in REFUSALS:
            self.fragments_refused_total.labels(error_code=code.value)
        for why in CloseReason:
            self.connections_closed_total.labels(reason=why.value)
        for reason in CONNECTION_REFUSALS:
            self.connections_refused_total.labels(reason=reason)
        for severity in BACKPRESSURE_SEVERITIES:
            self.backpressure_events_total.labels(severity=severity)

        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

    def set_gpu_utilization(self, percent: int) -> None:
        """Publish the load of the busiest GPU; the first call registers ``sts_gpu_utilization_percent``."""
        if self._gpu_gauge is None:
            self._gpu_gauge = Gauge(
                "sts_gpu_utilization_percent", "Load of the busiest GPU this service may use.", registry=self.registry
            )
        self._gpu_gauge.set(percent)
        self.gpu_utilization = percent

    def forget_gpu_utilization(self) -> None:
        """Stop publishing a load that is not known any more."""
        if self._gpu_gauge is not None:
            self.registry.unregister(self._gpu_gauge)
        self._gpu_gauge = self.gpu_utilization = None

    def render(self) -> tuple[bytes, str]:
        """The body of a scrape and its content type (Prometheus text format)."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
