"""Speech at another speed and the same pitch, by the `rubberband` command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import pyrubberband
from attrs import define

from .samples import AudioError, Samples, ToolKilled, cut_or_pad

COMMAND: Final = "rubberband"

SLOWEST: Final = 0.1
FASTEST: Final = 10.0
"""Speeds `stretch` takes: well beyond what the contract allows, within what Rubber Band does well."""


@define
class Running:
    """A `stretch` in a thread, for whoever may have to end it from outside: pyrubberband knows no time limit.

    The thread works inside this context, and only then is there something to kill: threads are used again.
    """

    _thread_id: int | None = None

    def __enter__(self) -> None:
        self._thread_id = threading.get_native_id()

    def __exit__(self, *_: object) -> None:
        self._thread_id = None

    def kill(self) -> None:
        """End the command the thread waits for, if it does; its `stretch` fails. Linux only, elsewhere no effect."""
        with suppress(OSError):  # there is none, or it has just ended by itself
            for child in Path(f"/proc/self/task/{self._thread_id}/children").read_text().split():
                # The thread may have started other processes in its life.
                if Path(f"/proc/{child}/comm").read_text().strip() == COMMAND:
                    os.kill(int(child), signal.SIGKILL)


def check_rubberband() -> None:
    """Make sure that `stretch` can work.

    Raises:
        AudioError: the `rubberband` command is missing; the message names the package that has it.
    """
    if shutil.which(COMMAND) is None:
        raise AudioError("the `rubberband` command is missing: apt install rubberband-cli")


def stretch(samples: Samples, sample_rate_hz: int, speed: float) -> Samples:
    """Mono `samples` spoken `speed` times as fast at the same pitch: exactly round(frames / speed), halves up.

    Rubber Band works on 16-bit files: samples are limited to -1..1 and quantised.

    Raises:
        ToolKilled: somebody killed `rubberband`.
        AudioError: it is missing or failed, or the samples are not numbers.
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
        if error.returncode < 0:
            raise ToolKilled(f"rubberband was killed by signal {-error.returncode}") from error
        raise AudioError(f"rubberband failed with exit status {error.returncode}") from error
    except (OSError, RuntimeError) as error:  # what soundfile raises is a RuntimeError
        raise AudioError(f"the temporary files for rubberband cannot be used, is the disk full? ({error})") from error
    # A handful of samples comes back as a scalar or with a tail of noise.
    return cut_or_pad(np.atleast_1d(stretched), int(len(samples) / speed + 0.5))
