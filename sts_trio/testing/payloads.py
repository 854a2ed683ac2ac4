"""What well-behaved workers send, for tests to take as it is or to spoil."""

from __future__ import annotations

from typing import Any

from protocol.dubbing import Audio, FragmentData, StreamConfig, StreamInit, payload


def stream_init(stream_id: str = "s", worker_id: str = "w", **changes: Any) -> dict[str, Any]:
    """A ``stream:init`` for 8 kHz mono PCM, English to Spanish; `changes` replace fields of it or of its config."""
    config = StreamConfig("en", "es", "default", 1_000, 8_000, 1, "pcm_s16le")
    body = payload(StreamInit(stream_id, worker_id, config))
    for name, value in changes.items():
        (body["config"] if name in body["config"] else body)[name] = value
    return body


def fragment(
    number: int,
    stream_id: str = "s",
    duration_ms: int = 1_000,
    *,
    sound: bytes | None = None,
    binary: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """A ``fragment:data`` that fits `stream_init`, of `duration_ms` of a quiet tone-free hum, or of `sound`.

    Args:
        binary: the sound travels as an attachment.
    """
    hum = b"\x10\x00" * (duration_ms * 8)
    audio = Audio("pcm_s16le", 8_000, 1, duration_ms, hum if sound is None else sound, binary)
    return payload(FragmentData(f"f{number}", stream_id, number, 1_700_000_000_000, audio)) | changes
