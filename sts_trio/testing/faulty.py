"""Engines that cost next to nothing and go wrong as often as they are told: for workers under test, and for load.

They work on whatever clock runs, the real one of a server process as well as a test's. What they say can be checked
from outside: the ASR hears the pitch of a fragment and how long it is, and the voice speaks a tone of that pitch. So a
worker that sends tones can tell by the transcript, and by the audio that comes back, whose result it has.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Final, Generic, TypeVar

import trio
from attrs import frozen

from protocol.errors import ErrorCode

from ..engines.base import (
    ASR_SAMPLE_RATE_HZ,
    AsrRequest,
    EngineFailure,
    Instance,
    Offload,
    Speech,
    SpeechRequest,
    Transcript,
    Translation,
    TranslationRequest,
    Voice,
    primary_subtag,
)
from ..engines.suite import Models
from .tones import pitch_hz, tone

Req = TypeVar("Req")
Res = TypeVar("Res")

SPEECH_RATE_HZ: Final = 24_000
RATE_RANGE: Final = (0.9, 1.2)  # narrow, so that Rubber Band has to stretch now and then

_HEARD: Final = re.compile(r"(\d+) Hz for (\d+) ms")


@frozen(kw_only=True)
class Faults:
    """What goes wrong, and how fast it is otherwise.

    Attributes:
        seed: of each engine's own sequence of delays and faults.
        delay_s: shortest and longest time of a call.
        speech: shortest and longest speech, relative to what was heard: over 1 it must be sped up.
        failures: share of calls that fail in a way the contract has a code for, retryable or not.
        hangs: share of calls that never end unless they are cancelled.
        defects: share of calls that raise what an engine never should.
    """

    seed: int = 0
    delay_s: tuple[float, float] = (0.02, 0.08)
    speech: tuple[float, float] = (0.8, 1.15)
    failures: float = 0.0
    hangs: float = 0.0
    defects: float = 0.0


class _Faulty(Generic[Req, Res]):
    """One engine; all its instances share its sequence of faults.

    Args:
        codes: of the failures.
    """

    max_batch: Final = 1
    gpu_memory_bytes: Final = 0

    def __init__(
        self, name: str, faults: Faults, codes: Sequence[ErrorCode], answer: Callable[[Req, Random], Res]
    ) -> None:
        self.name = name
        self._faults = faults
        self._codes = codes
        self._answer = answer
        self._random = Random(f"{name} {faults.seed}")

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[Req, Res]]:
        """An instance: see `engines.base.Engine.open`. Nothing is loaded."""
        await trio.lowlevel.checkpoint()
        yield self._call

    async def _call(self, batch: Sequence[Req], /) -> Sequence[Res | EngineFailure]:
        delay_s = self._random.uniform(*self._faults.delay_s)
        drawn = self._random.random()
        await trio.sleep(delay_s)
        if (drawn := drawn - self._faults.hangs) < 0:
            await trio.sleep_forever()
        if (drawn := drawn - self._faults.defects) < 0:
            raise RuntimeError(f"{self.name}: a defect, as asked for")
        if drawn < self._faults.failures:
            raise EngineFailure(self._random.choice(self._codes), f"{self.name}: a failure, as asked for")
        return [self._answer(request, self._random) for request in batch]


class FaultyAsr(_Faulty[AsrRequest, Transcript]):
    """Hears ``440 Hz for 1000 ms``, and nothing in silence."""

    def __init__(self, faults: Faults) -> None:
        super().__init__("faulty-asr", faults, (ErrorCode.ASR_FAILED, ErrorCode.GPU_OOM), _hear)

    def supports(self, language: str) -> bool:
        return True


class FaultyTranslation(_Faulty[TranslationRequest, Translation]):
    """Translates ``440 Hz for 1000 ms`` to ``<es> 440 Hz for 1000 ms``."""

    def __init__(self, faults: Faults) -> None:
        codes = (
            ErrorCode.TRANSLATION_FAILED,
            ErrorCode.RATE_LIMIT_EXCEEDED,
            ErrorCode.NETWORK_ERROR,
            ErrorCode.TEMPORARY_UNAVAILABLE,
        )
        super().__init__("faulty-translation", faults, codes, _translate)

    def supports(self, source: str, target: str) -> bool:
        return primary_subtag(source) != primary_subtag(target)


class FaultyTts(_Faulty[SpeechRequest, Speech]):
    """Speaks ``440 Hz for 1000 ms`` as a tone, about as long. Its only voice is ``default``."""

    rate_range = RATE_RANGE

    def __init__(self, faults: Faults) -> None:
        def speak(request: SpeechRequest, random: Random) -> Speech:
            return _speak(request, random.uniform(*faults.speech))

        super().__init__("faulty-tts", faults, (ErrorCode.TTS_SYNTHESIS_FAILED, ErrorCode.GPU_OOM), speak)

    def supports(self, language: str) -> bool:
        return True

    def has_voice(self, voice: str, language: str) -> bool:
        return voice == "default"

    def voices(self) -> Sequence[Voice]:
        return [Voice("default", ("en", "es", "de", "fr"), "a tone")]


def faulty_models(faults: Faults) -> Models:
    """All three."""
    return Models(FaultyAsr(faults), FaultyTranslation(faults), FaultyTts(faults))


def _hear(request: AsrRequest, _: Random) -> Transcript:
    pitch = pitch_hz(request.samples, ASR_SAMPLE_RATE_HZ)
    length_ms = round(1000 * len(request.samples) / ASR_SAMPLE_RATE_HZ)
    return Transcript(f"{pitch} Hz for {length_ms} ms" if pitch else "")


def _translate(request: TranslationRequest, _: Random) -> Translation:
    return Translation(f"<{request.target_language}> {request.text}")


def _speak(request: SpeechRequest, relative_length: float) -> Speech:
    heard = _HEARD.search(request.text)
    pitch, length_ms = (int(heard[1]), int(heard[2])) if heard else (440, 1_000)
    seconds = max(0.05, length_ms / 1000 * relative_length / request.rate)
    return Speech(tone(pitch, seconds, SPEECH_RATE_HZ), SPEECH_RATE_HZ)
