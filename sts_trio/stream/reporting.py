"""What is said about a finished fragment: its result to the worker, its figures to the operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import structlog
from attrs import field, frozen

from protocol.dubbing import FragmentError, FragmentProcessed, StageTimings
from protocol.errors import Stage

from ..engines.suite import Models
from ..observe.metrics import Metrics
from ..observe.throttle import Throttle
from .assets import AudioAsset, Fragment

OPTIONAL_KEYS: Final = frozenset({"gpu_utilization", "warnings", "late"})
"""Keys that say something by being there: a worker's own must not pass for ours."""

RESULTS_LOGGED_PER_S: Final = 20
"""Log lines about results of one stream. A live one has a result in six seconds."""

log = structlog.get_logger(__name__)


@frozen
class Reporter:
    """Makes results and keeps the metrics of one stream's fragments."""

    stream_id: str
    models: Models
    metrics: Metrics
    _throttle: Throttle = field(factory=lambda: Throttle(RESULTS_LOGGED_PER_S), init=False)

    def result(self, fragment: Fragment) -> FragmentProcessed:
        """The fragment's one ``fragment:processed``."""
        timings = fragment.timings_ms
        return FragmentProcessed(
            fragment_id=fragment.id,
            stream_id=self.stream_id,
            sequence_number=fragment.number,
            status=fragment.status,
            processing_time_ms=fragment.processing_time_ms,
            stage_timings=StageTimings(
                asr_ms=timings.get(Stage.ASR, 0),
                translation_ms=timings.get(Stage.TRANSLATION, 0),
                tts_ms=timings.get(Stage.TTS, 0),
            ),
            dubbed_audio=fragment.dubbed,
            transcript=fragment.transcript.transcript if fragment.transcript else None,
            translated_text=fragment.text.translated_text if fragment.text else None,
            error=fragment.error,
            metadata=self._metadata(fragment),
        )

    def lost(self, fragment_id: str, number: int, slot_ms: int, late: bool, error: FragmentError) -> FragmentProcessed:
        """What is told in place of a result that a defect of ours keeps from being told; it has nothing of it."""
        return FragmentProcessed(
            fragment_id=fragment_id,
            stream_id=self.stream_id,
            sequence_number=number,
            status="failed",
            processing_time_ms=0,
            stage_timings=StageTimings(),
            error=error,
            metadata=self._figures(self.models.translation.name, slot_ms) | ({"late": True} if late else {}),
        )

    def _metadata(self, fragment: Fragment) -> dict[str, Any]:
        """The worker's own keys as they came, then ours."""
        audio = fragment.audio if fragment.error is None else None
        metadata = {key: value for key, value in (fragment.data.metadata or {}).items() if key not in OPTIONAL_KEYS}
        metadata |= self._figures(
            self._translator(fragment),
            fragment.slot_ms,
            fragment.dubbed.duration_ms if fragment.dubbed else 0,
            audio,
            fragment.asset_ids,
        )
        if self.metrics.gpu_utilization is not None:
            metadata["gpu_utilization"] = self.metrics.gpu_utilization
        if audio is not None and audio.warning is not None:
            metadata["warnings"] = [audio.warning]
        if fragment.late:
            metadata["late"] = True
        return metadata

    def _figures(
        self,
        translator: str,
        slot_ms: int,
        dubbed_ms: int = 0,
        audio: AudioAsset | None = None,
        asset_ids: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The keys that every result has."""
        return {
            "asr_model": self.models.asr.name,
            "translation_model": translator,
            "tts_model": self.models.tts.name,
            "original_duration_ms": slot_ms,
            "dubbed_duration_ms": dubbed_ms,
            "duration_variance_percent": audio.variance_percent if audio else 0.0,
            "speed_ratio": audio.speed_ratio if audio else 1.0,
            "asset_ids": list(asset_ids),
        }

    def _translator(self, fragment: Fragment) -> str:
        return (fragment.text and fragment.text.model) or self.models.translation.name

    def record(self, fragment: Fragment) -> None:
        """Metrics and one log line."""
        metrics, timings = self.metrics, fragment.timings_ms
        if fragment.text and fragment.text.translated_text:
            metrics.translations_total.labels(self._translator(fragment)).inc()
        metrics.fragments_total.labels(fragment.status).inc()
        metrics.fragment_processing_seconds.observe(fragment.processing_time_ms / 1000)
        for stage, histogram in (
            (Stage.ASR, metrics.asr_duration_seconds),
            (Stage.TRANSLATION, metrics.translation_duration_seconds),
            (Stage.TTS, metrics.tts_duration_seconds),
        ):
            if stage in timings:
                histogram.observe(timings[stage] / 1000)
        error = fragment.error
        if error is not None:
            metrics.fragment_errors_total.labels(error.stage, error.code).inc()
        left_out = self._throttle.allow(self.stream_id, fragment.finished_at)
        if left_out is None:
            return
        log.info(
            "fragment_processed",
            fragment_id=fragment.id,
            sequence_number=fragment.number,
            status=fragment.status,
            processing_time_ms=fragment.processing_time_ms,
            stage_timings_ms={str(stage): spent for stage, spent in timings.items()},
            error_code=error and error.code,
            **({"lines_left_out": left_out} if left_out else {}),
        )
