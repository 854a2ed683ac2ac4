"""Sound that can be told apart: tones, and the pitch of a sound. It imports only numpy: workers start quickly."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Tone: TypeAlias = NDArray[np.float32]

_WINDOW: Final = 4_096  # samples that a pitch is read from
_SILENCE: Final = 1e-3


def tone(pitch_hz: float, seconds: float, sample_rate_hz: int) -> Tone:
    """A sine at half volume, mono, shape ``(frames,)``."""
    time = np.arange(round(seconds * sample_rate_hz), dtype=np.float64) / sample_rate_hz
    return (0.5 * np.sin(2 * np.pi * pitch_hz * time)).astype(np.float32)


def pitch_hz(samples: Tone, sample_rate_hz: int) -> int:
    """The strongest frequency in the middle of mono `samples`, to about 4 Hz at 16 kHz; 0 for silence."""
    middle = max(0, (len(samples) - _WINDOW) // 2)
    window = samples[middle : middle + _WINDOW]
    if not window.size or np.abs(window).max() < _SILENCE:
        return 0
    spectrum = np.abs(np.fft.rfft(window * np.hanning(len(window)), _WINDOW))
    return round(int(spectrum.argmax()) * sample_rate_hz / _WINDOW)
