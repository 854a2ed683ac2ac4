"""The blocking audio work of a fragment as engines, so that the pool stays the only place that offloads.

Decoding, stretching and encoding load nothing and keep nothing between calls: an instance is a function.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Generic, TypeVar

import trio
from attrs import field, frozen

from protocol.dubbing import Audio
from protocol.errors import ErrorCode

from .. import audio
from ..audio import AudioError, Samples, ToolKilled
from .base import ASR_SAMPLE_RATE_HZ, EngineFailure, EngineUnavailable, Instance, Offload

Req = TypeVar("Req")
Res = TypeVar("Res")

_FADE_MS: Final = 10

_KILL_INTERVAL_S: Final = 0.05


@frozen
class FunctionEngine(Generic[Req, Res]):
    """A blocking function behind the engine interface: one offloaded call per request.

    An `AudioError` of the function is the failure of that one request, with `failure_code`; anything else it raises is
    a defect and propagates.

    Attributes:
        function: answers one request; runs in as many threads at once as the pool has slots.
    """

    name: str
    function: Callable[[Req], Res]
    failure_code: ErrorCode = ErrorCode.INTERNAL_ERROR
    max_batch: int = 1

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[Req, Res]]:
        """An instance: see `base.Engine.open`. Nothing is loaded."""

        async def answer(batch: Sequence[Req], /) -> Sequence[Res | EngineFailure]:
            return [await self._answer_one(offload, request) for request in batch]

        yield answer

    async def _answer_one(self, offload: Offload, request: Req) -> Res | EngineFailure:
        try:
            return await offload(self.function, request)
        except AudioError as error:
            return EngineFailure(self.failure_code, error.reason)


# ---------------------------------------------------------------------------------------------- decode


@frozen
class DecodeRequest:
    """A fragment's audio as it came."""

    audio: Audio = field(repr=False)


@frozen
class DecodedAudio:
    """A fragment's audio as samples.

    Attributes:
        samples: ``(frames, channels)``, exactly as long as the fragment declares, at its declared rate.
        speech: the same at 16 kHz mono, for ASR.
    """

    samples: Samples = field(eq=False, repr=False)
    sample_rate_hz: int
    speech: Samples = field(eq=False, repr=False)


def decoder() -> FunctionEngine[DecodeRequest, DecodedAudio]:
    """Decodes a fragment. Fails with INVALID_AUDIO_FORMAT where it is not what it says it is."""
    return FunctionEngine("decode", _decode, ErrorCode.INVALID_AUDIO_FORMAT)


def _decode(request: DecodeRequest) -> DecodedAudio:
    rate = request.audio.sample_rate_hz
    samples = audio.decode(request.audio)
    return DecodedAudio(samples, rate, audio.resample(audio.to_mono(samples), rate, ASR_SAMPLE_RATE_HZ))


# ---------------------------------------------------------------------------------------------- stretch


@frozen
class StretchRequest:
    """Mono `samples`, to be spoken `speed` times as fast at the same pitch."""

    samples: Samples = field(eq=False, repr=False)
    sample_rate_hz: int
    speed: float


def stretcher() -> FunctionEngine[StretchRequest, Samples]:
    """Changes the speed of speech; answers with round(frames / speed) mono frames.

    Raises:
        EngineUnavailable: the `rubberband` command is missing.
    """
    try:
        audio.check_rubberband()
    except AudioError as error:
        raise EngineUnavailable(error.reason) from None
    return _StretchEngine("stretch", _stretch, ErrorCode.TTS_SYNTHESIS_FAILED)


class _StretchEngine(FunctionEngine[StretchRequest, Samples]):
    """Ends the command when a call is cancelled: a thread that waits for it cannot be stopped in any other way."""

    async def _answer_one(self, offload: Offload, request: StretchRequest) -> Samples | EngineFailure:
        running = audio.Running()

        def work(request: StretchRequest) -> Samples:
            with running:
                return self.function(request)

        returned = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_kill_when_cancelled, running, returned)
            try:
                answer: Samples | EngineFailure = await offload(work, request)
            except ToolKilled as error:
                answer = EngineFailure(ErrorCode.TEMPORARY_UNAVAILABLE, error.reason)
            except AudioError as error:
                answer = EngineFailure(self.failure_code, error.reason)
            finally:
                returned.set()
        return answer


async def _kill_when_cancelled(running: audio.Running, returned: trio.Event) -> None:
    try:
        await returned.wait()
    finally:
        with trio.CancelScope(shield=True):
            while not returned.is_set():  # the thread may have yet to start the command
                running.kill()
                with trio.move_on_after(_KILL_INTERVAL_S):
                    await returned.wait()


def _stretch(request: StretchRequest) -> Samples:
    return audio.stretch(request.samples, request.sample_rate_hz, request.speed)


# ---------------------------------------------------------------------------------------------- encode


@frozen
class EncodeRequest:
    """Audio for a slot of `duration_ms`, to be encoded as the stream wants it.

    Attributes:
        samples: ``(frames,)`` or ``(frames, channels)`` at `sample_rate_hz`. Shorter than the slot it is padded with
            silence, longer it is cut with a fade; 0 frames are a slot of silence.
        format: ``pcm_s16le``, ``wav`` or ``m4a``.
    """

    samples: Samples = field(eq=False, repr=False)
    sample_rate_hz: int
    format: str
    output_rate_hz: int
    output_channels: int
    duration_ms: int


def encoder() -> FunctionEngine[EncodeRequest, bytes]:
    """Encodes exactly round(duration_ms x output_rate_hz / 1000) frames (contract, "Duration")."""
    return FunctionEngine("encode", _encode)


def _encode(request: EncodeRequest) -> bytes:
    rate = request.output_rate_hz
    samples = audio.resample(request.samples, request.sample_rate_hz, rate)
    frames = audio.frame_count(request.duration_ms, rate)
    samples = audio.fit(samples, frames, fade_frames=audio.frame_count(_FADE_MS, rate))
    return audio.encode(audio.with_channels(samples, request.output_channels), rate, request.format)
