"""What XTTS speaks, made presentable: without the silence and noise around it, and its pieces put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from .base import Samples

FRAME_MS: Final = 10

RANGE_DB: Final = 40.0
"""What is quieter than the loudest frame by more than this is no speech: it is breath, or the vocoder's own noise."""

FLOOR: Final = 10 ** (-60 / 20)
"""What is quieter than this is silence, however quiet the rest is."""

STRAY_MS: Final = 50
STRAY_GAP_MS: Final = 250
"""A sound shorter than the first, further than the second from the rest, is a click: the pause within a plosive is half
as long, and the words of a phrase are nearer to each other or longer."""

FADE_MS: Final = 5


def trim(samples: Samples, sample_rate_hz: int) -> Samples:
    """`samples` from the first sound of speech to the last one, faded at both ends; empty where there is none."""
    frame = sample_rate_hz * FRAME_MS // 1_000
    padded = np.zeros(-(-len(samples) // frame) * frame, np.float32)
    padded[: len(samples)] = samples
    loudness = np.sqrt(np.mean(np.square(padded.reshape(-1, frame)), axis=1))
    loud = np.flatnonzero(loudness >= max(loudness.max(initial=0) * 10 ** (-RANGE_DB / 20), FLOOR))
    if not len(loud):
        return np.zeros(0, np.float32)
    apart = np.flatnonzero(np.diff(loud) > STRAY_GAP_MS // FRAME_MS) + 1
    runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(loud, apart)]
    longest = max(range(len(runs)), key=lambda index: runs[index][1] - runs[index][0])
    first = next(index for index, run in enumerate(runs) if not _is_stray(run) or index == longest)
    last = next(index for index in reversed(range(len(runs))) if not _is_stray(runs[index]) or index == longest)
    # A frame more at each end: a sound begins and ends more softly than it is.
    start, end = max(runs[first][0] - 1, 0) * frame, (runs[last][1] + 1) * frame
    speech = samples[start:end].copy()
    fade = min(sample_rate_hz * FADE_MS // 1_000, len(speech) // 2)
    if fade:
        ramp = np.linspace(0, 1, fade, dtype=np.float32)
        speech[:fade] *= ramp
        speech[-fade:] *= ramp[::-1]
    return speech


def join(parts: Sequence[Samples], pauses_ms: Sequence[float], sample_rate_hz: int) -> Samples:
    """`parts` in order, with the pause of each between it and the next; the last one's is left out.

    A part without a sound is left out with its pause; where there is no other, nothing is left.
    """
    joined = [np.zeros(0, np.float32)]
    pause_before_ms = 0.0
    for part, pause_ms in zip(parts, pauses_ms, strict=True):
        if len(part):
            joined += [np.zeros(round(pause_before_ms * sample_rate_hz / 1_000), np.float32), part]
            pause_before_ms = pause_ms
    return np.concatenate(joined)


def _is_stray(run: tuple[int, int]) -> bool:
    return (run[1] - run[0]) * FRAME_MS < STRAY_MS
