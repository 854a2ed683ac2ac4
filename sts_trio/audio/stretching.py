"""Speech at another speed and the same pitch, by the `rubberband` command."""

from __future__ import annotations

import shutil
import subprocess
from typing import Final

import numpy as np
import pyrubberband

from .samples import AudioError, Samples, cut_or_pad

SLOWEST: Final = 0.1
FASTEST: Final = 10.0
"""Speeds `stretch` takes: well beyond what the contract allows, within what Rubber Band does well."""


def check_rubberband() -> None:
    """Make sure that `stretch` can work.

    Raises:
        AudioError: the `rubberband` command is missing; the message names the package that has it.
    """
    if shutil.which("rubberband") is None:
        raise AudioError("the `rubberband` command is missing: apt install rubberband-cli")


def stretch(samples: Samples, sample_rate_hz: int, speed: float) -> Samples:
    """Mono `samples` spoken `speed` times as fast at the same pitch: exactly round(frames / speed), halves up.

    Rubber Band works on 16-bit files: samples are limited to -1..1 and quantised.

    Raises:
        AudioError: `rubberband` is missing or failed, or the samples are not numbers.
        ValueError: `speed` is outside of `SLOWEST`..`FASTEST`, or `samples` are not mono.
    """
    if not SLOWEST <= speed <= FASTEST:
        raise ValueError(f"speed must be from {SLOWEST} to {FASTEST}, got {speed}")
    if samples.ndim != 1:
        raise ValueError(f"mono samples expected, got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise AudioError("samples that are not numbers")
    limited = np.clip(samples, -1, 1)
    if not len(samples) or speed == 1.0:  # the command never returns from a file without samples
        return limited
    check_rubberband()
    try:
        stretched = pyrubberband.time_stretch(limited, sample_rate_hz, speed, rbargs={})  # it changes its rbargs
    except subprocess.CalledProcessError as error:
        raise AudioError(f"rubberband failed with exit status {error.returncode}") from error
    # A handful of samples comes back as a scalar or with a tail of noise.
    return cut_or_pad(np.atleast_1d(stretched), int(len(samples) / speed + 0.5))
