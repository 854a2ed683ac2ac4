"""Samples to encoded audio."""

from __future__ import annotations

import io
import wave
from typing import Final

import av
import numpy as np
import numpy.typing as npt

from .samples import Samples, resample

_AAC_RATES_HZ: Final = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000)
_AAC_BITS_PER_CHANNEL: Final = 64_000  # per second


def encode(samples: Samples, sample_rate_hz: int, format: str) -> bytes:
    """Encode as ``pcm_s16le``, ``wav`` (16 bit) or ``m4a`` (AAC in MP4), one or two channels; limited to -1..1.

    0 frames are no bytes in PCM, a header alone in wav, and no bytes in m4a: an MP4 cannot tell what codec it has
    no audio of. An m4a begins exactly where `samples` do (its edit list takes off the encoder's priming) and fills up
    its last AAC frame with silence; `decode` cuts that off. AAC has twelve rates from 8 to 96 kHz: audio at others is
    encoded at the next higher one, and the file says so.

    Raises:
        ValueError: samples that are not finite, or an unknown format.
    """
    if not np.isfinite(samples).all():
        raise ValueError("samples must be finite")
    samples = samples[:, np.newaxis] if samples.ndim == 1 else samples
    if format == "pcm_s16le":
        return _pcm(samples)
    if format == "wav":
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(samples.shape[1])
            writer.setsampwidth(2)
            writer.setframerate(sample_rate_hz)
            writer.writeframes(_pcm(samples))
        return file.getvalue()
    if format == "m4a":
        return _encode_m4a(samples, sample_rate_hz)
    raise ValueError(f"unknown format {format!r}")


def _pcm(samples: Samples) -> bytes:
    scaled = np.rint(samples * np.float32(32_768))  # the inverse of decoding: 16 bit in, the same 16 bit out
    integers: npt.NDArray[np.int16] = np.clip(scaled, -32_768, 32_767, out=scaled).astype("<i2")
    return integers.tobytes()


def _encode_m4a(samples: Samples, sample_rate_hz: int) -> bytes:
    if not len(samples):
        return b""
    rate = next(rate for rate in _AAC_RATES_HZ if rate >= sample_rate_hz)
    samples = resample(samples, sample_rate_hz, rate)
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    planes = np.ascontiguousarray(np.clip(samples, -1, 1).T)
    frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    file = io.BytesIO()
    # movie_timescale: the edit list to the sample; to the millisecond it would lose audio of less than one.
    with av.open(file, "w", format="ipod", options={"movie_timescale": str(rate)}) as container:
        # aac_coder: half the time of the default coder, at a better signal-to-noise ratio for speech.
        stream = container.add_stream("aac", rate=rate, layout=layout, options={"aac_coder": "fast"})
        stream.bit_rate = _AAC_BITS_PER_CHANNEL * samples.shape[1]
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()
