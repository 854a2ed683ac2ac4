"""What samples are, and what can be done with them short of encoding: length, rate, channels.

Nothing is changed in place. Where nothing is to be done, what is returned can be the argument itself or a view of it.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import soxr

Samples: TypeAlias = npt.NDArray[np.float32]
"""float32 in -1..1: shape ``(frames,)`` for mono, or ``(frames, channels)``."""


class AudioError(Exception):
    """Audio that cannot be used, or a tool that cannot use it.

    Attributes:
        reason: what is wrong, for the worker and the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ToolKilled(AudioError):
    """A tool was ended from outside, as when memory is short: the same may work the next time."""


def frame_count(duration_ms: int, sample_rate_hz: int) -> int:
    """Frames in `duration_ms`: round(duration_ms x rate / 1000) (contract, "Duration").

    Halves go up (5 ms at 44.1 kHz are 221 frames), as in every other language's round; Python's goes to even.
    """
    return half_up(duration_ms * sample_rate_hz, 1_000)


def fit(samples: Samples, frames: int, fade_frames: int = 480) -> Samples:
    """Exactly `frames` frames: padded with silence, or cut with a fade-out over the last `fade_frames` of them.

    Args:
        fade_frames: 10 ms at 48 kHz by default; enough that a cut in a vowel does not click.
    """
    fitted = cut_or_pad(samples, frames)
    if len(samples) > frames and (fade := min(fade_frames, frames)):
        fitted = fitted.copy()
        ramp = np.linspace(1, 0, fade, dtype=np.float32)
        fitted[-fade:] *= ramp if fitted.ndim == 1 else ramp[:, np.newaxis]
    return fitted


def trim_silence_end(samples: Samples, sample_rate_hz: int, threshold: float = 0.003) -> Samples:
    """`samples` up to 10 ms after the last one whose amplitude reaches `threshold` (default: -50 dB)."""
    amplitude = np.abs(samples) if samples.ndim == 1 else np.abs(samples).max(axis=1)
    loud = np.flatnonzero(amplitude >= threshold)
    end = int(loud[-1]) + 1 + frame_count(10, sample_rate_hz) if len(loud) else 0
    return samples[:end]


def resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """The same audio at another rate: exactly round(frames x to_hz / from_hz) frames, halves up."""
    if from_hz == to_hz:
        return samples
    frames = half_up(len(samples) * to_hz, from_hz)
    if not len(samples) or not frames:
        return np.zeros((frames, *samples.shape[1:]), np.float32)
    resampled: Samples = soxr.resample(np.ascontiguousarray(samples), from_hz, to_hz)
    return cut_or_pad(resampled, frames)


def to_mono(samples: Samples) -> Samples:
    """The mean of all channels, shape ``(frames,)``."""
    if samples.ndim == 1:
        return samples
    if samples.shape[1] == 1:
        return samples[:, 0]
    channels = samples.shape[1]
    mean: Samples = samples @ np.full(channels, 1 / channels, np.float32)  # several times as fast as .mean(axis=1)
    return mean


def with_channels(samples: Samples, channels: int) -> Samples:
    """Shape ``(frames, channels)``: as they are where the number is right, else the mean of all in each channel."""
    if samples.ndim == 2 and samples.shape[1] == channels:
        return samples
    return np.repeat(to_mono(samples)[:, np.newaxis], channels, axis=1)


def half_up(numerator: int, denominator: int) -> int:
    """The integer nearest to `numerator` / `denominator`, the higher of two that are as near."""
    return (2 * numerator + denominator) // (2 * denominator)


def cut_or_pad(samples: Samples, frames: int) -> Samples:
    """Exactly `frames` frames: the rest cut off as it is, or silence added at the end."""
    if len(samples) >= frames:
        return samples[:frames]
    padded = np.zeros((frames, *samples.shape[1:]), np.float32)
    padded[: len(samples)] = samples
    return padded
