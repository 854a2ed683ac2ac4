"""What a worker and its server have agreed on, and whether a result is as agreed. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pybase64
from attrs import frozen

from protocol.errors import ErrorCode, Stage

TIMEOUT_GRACE_S: Final = 0.1
"""After a fragment's deadline, for its fallback audio."""

ROUNDING_MS: Final = 1


@frozen
class Terms:
    """What was agreed when the session began, and what its server is configured to.

    Attributes:
        critical: fragments in flight from which on the next is refused.
        gap_timeout_s: how long results wait for a missing number.
        kept_bytes: the server's budget for unacknowledged results.
        slot_ms, sample_rate_hz, channels: of the audio, which is PCM.
        slack_s: what the network may add to the time that anything takes.
        buffer_may_be_full: fragments may be refused for their bytes, too.
    """

    max_inflight: int
    timeout_s: float
    critical: int
    gap_timeout_s: float
    kept_bytes: int
    slot_ms: int
    sample_rate_hz: int = 8_000
    channels: int = 1
    slack_s: float = 0.0
    stream_id: str = "s"
    buffer_may_be_full: bool = False

    @property
    def slot_bytes(self) -> int:
        """Of a dubbed fragment, exactly (contract, "Duration")."""
        return round(self.slot_ms * self.sample_rate_hz / 1000) * 2 * self.channels

    @property
    def queue_rounds(self) -> int:
        """How many fragments one after the other a fragment waits for at the most, itself included."""
        return math.ceil(self.critical / self.max_inflight) + 1

    def faults(
        self, payload: Mapping[str, Any], number: int, metadata: Mapping[str, Any], *, draining: bool
    ) -> Iterator[str]:
        """What is wrong with a ``fragment:processed``: "Server to worker", "Errors", "Duration".

        Args:
            number, metadata: what was sent.
        """
        name, error, status = payload["fragment_id"], payload.get("error"), payload["status"]
        if payload["stream_id"] != self.stream_id:
            yield f"{name} is of the stream {payload['stream_id']}"
        if payload["sequence_number"] != number:
            yield f"{name} has the number {payload['sequence_number']}"
        if status not in ("success", "partial", "failed") or (status == "failed") != (error is not None):
            yield f"{name} is {status} with the error {error}"
        if any(payload["metadata"].get(key) != value for key, value in metadata.items()):
            yield f"{name} has the metadata {payload['metadata']}, and was sent with {metadata}"
        yield from self._late(payload)
        if error is not None:
            if error["stage"] not in tuple(Stage):
                yield f"{name}: {error['code']} of no stage"
            if error["retryable"] != ErrorCode(error["code"]).retryable:
                yield f"{name}: {error['code']} with retryable {error['retryable']}"
        audio = payload.get("dubbed_audio")
        if audio is not None:
            yield from self._wrong_audio(
                name, audio, has_words=status == "success" and payload["translated_text"] != ""
            )
        elif error is None or (_has_fallback(error) and not draining):
            yield f"{name} has no audio: {error}"

    def _late(self, payload: Mapping[str, Any]) -> Iterator[str]:
        name, took_ms, stages_ms = (
            payload["fragment_id"],
            payload["processing_time_ms"],
            payload["stage_timings"].values(),
        )
        most_ms = (self.timeout_s + TIMEOUT_GRACE_S) * 1000 + ROUNDING_MS
        if sum(stages_ms) > most_ms:
            yield f"{name} was {sum(stages_ms)} ms in its stages"
        if took_ms > self.queue_rounds * most_ms or min(took_ms, *stages_ms) < 0:
            yield f"{name} took {took_ms} ms"

    def _wrong_audio(self, name: str, audio: Mapping[str, Any], *, has_words: bool) -> Iterator[str]:
        kind = audio["format"], audio["sample_rate_hz"], audio["channels"], audio["duration_ms"]
        if kind != ("pcm_s16le", self.sample_rate_hz, self.channels, self.slot_ms):
            yield f"{name} has audio of another kind: {kind}"
        elif len(sound := _sound(audio)) != self.slot_bytes:
            yield f"{name} does not fill its slot: {len(sound)} bytes"
        elif has_words and not any(sound):
            yield f"{name} is silent, and has words"


def _has_fallback(error: Mapping[str, Any]) -> bool:
    """Whether a failure has something to play all the same ("Duration"; a deadline has, wherever it was met)."""
    return error["code"] == ErrorCode.TIMEOUT or error["stage"] in (Stage.TRANSLATION, Stage.TTS)


def _sound(audio: Mapping[str, Any]) -> bytes:
    """Audio as it was sent: text or an attachment."""
    if "data" in audio:
        attached: bytes = audio["data"]
        return attached
    return pybase64.b64decode(audio["data_base64"], validate=True)
