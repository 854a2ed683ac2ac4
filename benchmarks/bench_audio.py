"""What the audio work of one fragment costs: 6 s of speech at 48 kHz stereo, each format beside the others.

    python benchmarks/bench_audio.py [rounds]

Medians of single calls, one after the other in one thread, through the functions that the engines offload.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from protocol.dubbing import Audio
from sts_trio import audio
from sts_trio.audio import Samples
from sts_trio.engines.codec import DecodeRequest, EncodeRequest, StretchRequest, decoder, encoder, stretcher

T = TypeVar("T")

RATE, CHANNELS, DURATION_MS = 48_000, 2, 6_000
VOICE_RATE = 22_050
TEXT = (
    "El presidente anunció hoy nuevas medidas para la economía del país. "
    "Los mercados respondieron con calma durante toda la jornada, y la bolsa cerró sin grandes cambios."
)


def spoken() -> Samples:
    """Speech as the embedded voice makes it, 22,050 Hz mono."""
    command = ["espeak-ng", "-v", "es", "--stdin", "--stdout"]
    file = subprocess.run(command, input=TEXT.encode(), capture_output=True, check=True).stdout
    return np.frombuffer(file[44:], "<i2").astype(np.float32) / np.float32(32_768)


def median_ms(function: Callable[[T], object], request: T, rounds: int) -> float:
    """Median of `rounds` calls after one that warms up."""
    function(request)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function(request)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1_000


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    speech = audio.fit(spoken(), audio.frame_count(DURATION_MS, VOICE_RATE))
    decode, encode, stretch = decoder().function, encoder().function, stretcher().function

    formats = Table(title=f"{DURATION_MS / 1_000:g} s, {RATE} Hz, {CHANNELS} channels: median ms of {rounds}")
    for column in ("format", "kB", "decode (+ 16 kHz for ASR)", "encode (resampled, fitted)"):
        formats.add_column(column, justify="left" if column == "format" else "right")
    for format in ("pcm_s16le", "wav", "m4a"):
        wanted = EncodeRequest(speech, VOICE_RATE, format, RATE, CHANNELS, DURATION_MS)
        data = encode(wanted)
        given = DecodeRequest(Audio(format, RATE, CHANNELS, DURATION_MS, data))
        decode_ms, encode_ms = median_ms(decode, given, rounds), median_ms(encode, wanted, rounds)
        formats.add_row(format, f"{len(data) / 1_000:.0f}", f"{decode_ms:.1f}", f"{encode_ms:.1f}")

    stretches = Table(title=f"stretch {DURATION_MS / 1_000:g} s, {VOICE_RATE} Hz mono: median ms of {rounds}")
    stretches.add_column("speed")
    stretches.add_column("ms", justify="right")
    for speed in (0.8, 1.05, 1.25, 1.5, 2.0):
        request = StretchRequest(speech, VOICE_RATE, speed)
        stretches.add_row(f"{speed:g}", f"{median_ms(stretch, request, rounds):.1f}")

    console = Console()
    console.print(formats)
    console.print(stretches)


if __name__ == "__main__":
    main()
