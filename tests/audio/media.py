"""Audio to test with, and audio as other programs would send it."""

from __future__ import annotations

import io

import av
import numpy as np
import soundfile

from protocol.dubbing import Audio
from sts_trio import audio
from sts_trio.audio import Samples

RATE = 48_000


def tone(duration_ms: int, rate: int = RATE, hz: float = 440.0, channels: int = 1) -> Samples:
    frames = np.arange(audio.frame_count(duration_ms, rate)) / rate
    return audio.with_channels((0.3 * np.sin(2 * np.pi * hz * frames)).astype(np.float32), channels)


def sweep(duration_ms: int, rate: int = RATE, channels: int = 1) -> Samples:
    """A tone that rises all the time: it correlates with itself at one shift only."""
    t = np.arange(audio.frame_count(duration_ms, rate)) / rate
    return audio.with_channels((0.4 * np.sin(2 * np.pi * (100 + 500 * t) * t)).astype(np.float32), channels)


def shift_between(one: Samples, other: Samples) -> int:
    """By how many frames `other` is later than `one`."""
    size = 2 * len(one)
    spectrum = np.fft.rfft(other[:, 0], size) * np.conj(np.fft.rfft(one[:, 0], size))
    peak = int(np.argmax(np.fft.irfft(spectrum)))
    return peak if peak < len(one) else peak - size


def pitch_of(samples: Samples, rate: int) -> float:
    return int(np.argmax(np.abs(np.fft.rfft(samples)))) * rate / len(samples)


def encoded(samples: Samples, container: str, codec: str = "aac", rate: int = RATE, **muxer: str) -> bytes:
    """What another program would send: `samples` through libav with its defaults."""
    file = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    with av.open(file, "w", format=container, options=muxer) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        planes = np.ascontiguousarray(samples.T)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    return file.getvalue()


def fragmented_mp4(samples: Samples) -> bytes:
    return encoded(samples, "mp4", movflags="empty_moov+default_base_moof+frag_keyframe")


def wav(samples: Samples, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def decode(data: bytes, format: str, duration_ms: int, rate: int = RATE, channels: int = 2) -> Samples:
    return audio.decode(Audio(format, rate, channels, duration_ms, data))
