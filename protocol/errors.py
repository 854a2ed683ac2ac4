"""The error vocabulary of the dubbing contract: what can go wrong, where, and whether trying again can help."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """Where in the pipeline a fragment failed (contract, "Errors")."""

    DECODE = "decode"
    ASR = "asr"
    TRANSLATION = "translation"
    TTS = "tts"
    ENCODE = "encode"


class ErrorCode(StrEnum):
    """Every code a worker can be told (contract, "Errors")."""

    AUTH_FAILED = "AUTH_FAILED"
    INVALID_CONFIG = "INVALID_CONFIG"
    INVALID_VOICE_PROFILE = "INVALID_VOICE_PROFILE"
    UNSUPPORTED_LANGUAGE = "UNSUPPORTED_LANGUAGE"
    STREAM_NOT_FOUND = "STREAM_NOT_FOUND"
    STREAM_EXISTS = "STREAM_EXISTS"
    TOO_MANY_STREAMS = "TOO_MANY_STREAMS"
    STREAM_PAUSED = "STREAM_PAUSED"
    INVALID_FRAGMENT = "INVALID_FRAGMENT"
    FRAGMENT_TOO_LARGE = "FRAGMENT_TOO_LARGE"
    INVALID_SEQUENCE = "INVALID_SEQUENCE"
    SEQUENCE_GAP = "SEQUENCE_GAP"
    BACKPRESSURE_EXCEEDED = "BACKPRESSURE_EXCEEDED"
    INVALID_AUDIO_FORMAT = "INVALID_AUDIO_FORMAT"
    TIMEOUT = "TIMEOUT"
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    NETWORK_ERROR = "NETWORK_ERROR"
    TEMPORARY_UNAVAILABLE = "TEMPORARY_UNAVAILABLE"
    INVALID_TEXT = "INVALID_TEXT"
    ASR_FAILED = "ASR_FAILED"
    TRANSLATION_FAILED = "TRANSLATION_FAILED"
    TTS_SYNTHESIS_FAILED = "TTS_SYNTHESIS_FAILED"
    DURATION_MISMATCH_EXCEEDED = "DURATION_MISMATCH_EXCEEDED"
    GPU_OOM = "GPU_OOM"
    INTERNAL_ERROR = "INTERNAL_ERROR"

    @property
    def retryable(self) -> bool:
        """Whether the same request can succeed later without being changed."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        ErrorCode.TOO_MANY_STREAMS,
        ErrorCode.STREAM_PAUSED,
        ErrorCode.BACKPRESSURE_EXCEEDED,
        ErrorCode.TIMEOUT,
        ErrorCode.RATE_LIMIT_EXCEEDED,
        ErrorCode.NETWORK_ERROR,
        ErrorCode.TEMPORARY_UNAVAILABLE,
        ErrorCode.GPU_OOM,
        ErrorCode.INTERNAL_ERROR,
    }
)


class PayloadError(Exception):
    """A payload that breaks the contract, with what is needed to refuse it by name.

    Attributes:
        code: what the worker is told.
        field: dotted path of the field that is wrong, e.g. ``config.sample_rate_hz``; empty where it is none.
        reason: what is wrong with it.
    """

    def __init__(self, code: ErrorCode, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.code = code
        self.field = field
        self.reason = reason
