"""Samples and their encodings: decode, encode, resample, mix, fit, stretch.

Blocking, pure functions, to be run in a worker thread. Their arguments are never changed, but may be what is returned.

Samples are float32 in -1..1, shape ``(frames,)`` for mono or ``(frames, channels)``. A *frame* is one sample per
channel. Lengths are exact: a duration of `duration_ms` at a rate has `frame_count` frames, whatever a codec adds.
"""

from __future__ import annotations

from .decoding import decode
from .encoding import encode
from .samples import (
    AudioError,
    Samples,
    ToolKilled,
    fit,
    frame_count,
    resample,
    to_mono,
    trim_silence_end,
    with_channels,
)
from .stretching import Running, check_rubberband, stretch

__all__ = [
    "AudioError",
    "Running",
    "Samples",
    "ToolKilled",
    "check_rubberband",
    "decode",
    "encode",
    "fit",
    "frame_count",
    "resample",
    "stretch",
    "to_mono",
    "trim_silence_end",
    "with_channels",
]
