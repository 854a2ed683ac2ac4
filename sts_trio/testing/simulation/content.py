"""Sound by which a fragment is known: what comes back with a result must be that fragment's, not its neighbour's.

Each fragment is a constant level of its own. The scripted ASR reads it and says it as a number, the translation keeps
the number, and the voice speaks it as that level again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pybase64

from ...engines.base import Samples

LEVELS: Final = 250
_STEP: Final = 100  # of a 16-bit sample, between two levels
_SAMPLES: Final = 2**15


def level_of(fragment_id: str) -> int:
    """The level that a fragment has."""
    return zlib.crc32(fragment_id.encode()) % LEVELS


def pcm(level: int, frames: int) -> bytes:
    """What a worker sends: 16-bit mono."""
    return np.full(frames, _STEP * (level + 1), "<i2").tobytes()


def heard(samples: Samples) -> int:
    """The level in decoded samples."""
    return round(float(samples[len(samples) // 2]) * _SAMPLES / _STEP) - 1


def spoken(text: str, frames: int) -> Samples:
    """Speech of a text that begins with a level, behind its language."""
    level = int(text.partition(">")[2].split()[0])
    return np.full(frames, _STEP * (level + 1) / _SAMPLES, np.float32)


def mistaken(payload: Mapping[str, Any]) -> Iterator[str]:
    """What in a result is another fragment's, or nobody's."""
    name, said, translated = payload["fragment_id"], payload.get("transcript"), payload.get("translated_text")
    level = level_of(name)
    if said and said.split()[0] != str(level):
        yield f"{name} said {level}, and has the transcript {said!r}"
    if translated and translated != f"<es>{said}":
        yield f"{name} has the translation {translated!r} of {said!r}"
    if (
        translated
        and payload["status"] == "success"
        and abs((dubbed := _dubbed(payload)) - _STEP * (level + 1)) > _STEP
    ):
        yield f"{name} said {level}, and sounds like {dubbed / _STEP - 1:.1f}"


def _dubbed(payload: Mapping[str, Any]) -> int:
    audio = payload["dubbed_audio"]
    data = audio["data"] if "data" in audio else pybase64.b64decode(audio["data_base64"])
    samples = np.frombuffer(data, "<i2")
    sounding = samples[samples > _STEP // 2]
    return int(np.median(sounding)) if sounding.size else 0  # not the mean: resampling rings at the edges
