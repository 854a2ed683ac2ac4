"""A media-service worker as existing ones are written: python-socketio's AsyncClient over a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import io
import subprocess
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import socketio

Pcm = npt.NDArray[np.int16]

TIMEOUT_S = 90.0


class Worker:
    """One connection; keeps everything it receives."""

    def __init__(self, port: int) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        self._url = f"http://127.0.0.1:{port}"
        self._client = socketio.AsyncClient()
        self._news = asyncio.Condition()
        self._client.on("*", self._take)

    async def _take(self, event: str, payload: dict[str, Any]) -> None:
        async with self._news:
            self.received.append((event, payload))
            self._news.notify_all()

    async def __aenter__(self) -> Worker:
        await self._client.connect(self._url, transports=["websocket"])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.disconnect()

    def got(self, event: str) -> list[dict[str, Any]]:
        return [payload for name, payload in self.received if name == event]

    async def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        async with asyncio.timeout(TIMEOUT_S), self._news:
            await self._news.wait_for(lambda: len(self.got(event)) >= count)
        return self.got(event)

    async def emit(self, event: str, payload: dict[str, Any]) -> None:
        await self._client.emit(event, payload)

    async def open(self, stream_id: str, **config: Any) -> None:
        """``stream:init`` as existing workers send it: 48 kHz stereo m4a, 6 s."""
        defaults = {
            "source_language": "en",
            "target_language": "es",
            "voice_profile": "default",
            "format": "m4a",
            "sample_rate_hz": 48_000,
            "channels": 2,
            "chunk_duration_ms": 6_000,
        }
        init = {
            "stream_id": stream_id,
            "worker_id": f"worker-{stream_id}",
            "config": defaults | config,
            "timeout_ms": 30_000,
        }
        await self.emit("stream:init", init)
        await self.wait_for("stream:ready")

    async def send(self, stream_id: str, number: int, audio: dict[str, Any], **extra: Any) -> None:
        body = {
            "fragment_id": f"{stream_id}-{number}",
            "stream_id": stream_id,
            "sequence_number": number,
            "timestamp": 1_700_000_000_000,
            "audio": audio,
        }
        await self.emit("fragment:data", body | extra)


def speak(text: str, rate_hz: int, channels: int) -> Pcm:
    """English that the embedded ASR understands, spoken by flite; shape ``(frames, channels)``."""
    wav = subprocess.run(
        ["flite", "-voice", "rms", "-t", text, "-o", "/dev/stdout"], check=True, capture_output=True, timeout=30
    ).stdout
    with av.open(io.BytesIO(wav), "r") as container:
        resampler = av.AudioResampler("s16", "stereo" if channels == 2 else "mono", rate_hz)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    joined = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
    return joined.reshape(-1, channels)


def pcm_audio(samples: Pcm, rate_hz: int) -> dict[str, Any]:
    return {
        "format": "pcm_s16le",
        "sample_rate_hz": rate_hz,
        "channels": samples.shape[1],
        "duration_ms": round(1000 * len(samples) / rate_hz),
        "data_base64": base64.b64encode(samples.tobytes()).decode(),
    }


def m4a_audio(samples: Pcm, rate_hz: int) -> dict[str, Any]:
    """AAC in MP4 as a segmenter writes it."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate_hz, layout="stereo" if samples.shape[1] == 2 else "mono")
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples.reshape(1, -1)), "s16", "stereo" if samples.shape[1] == 2 else "mono"
        )
        frame.sample_rate = rate_hz
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return pcm_audio(samples, rate_hz) | {"format": "m4a", "data_base64": base64.b64encode(file.getvalue()).decode()}


def dubbed(result: dict[str, Any]) -> bytes:
    return base64.b64decode(result["dubbed_audio"]["data_base64"])
