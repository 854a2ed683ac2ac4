"""Engines that do what a script says, on the clock of the test, and an offload that needs no thread.

A script is a function from a request to what happens: seconds to sleep, then a result or a failure. The engines keep
what they were asked, how many calls ran at once, and whether an instance ever had two callers, which the pool promises
never to happen.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import numpy as np
import trio
from attrs import define, field, frozen

from ..engines.base import (
    AsrEngine,
    AsrRequest,
    EngineFailure,
    Instance,
    Offload,
    Speech,
    SpeechRequest,
    Transcript,
    Translation,
    TranslationEngine,
    TranslationRequest,
    TtsEngine,
    Voice,
)
from ..engines.suite import Models

Req = TypeVar("Req")
Res = TypeVar("Res")
T = TypeVar("T")

HANG = math.inf
"""A delay that never ends: the call returns when it is cancelled, and not before."""

SPEECH_RATE_HZ = 16_000


async def inline_offload(function: Callable[..., T], /, *args: object) -> T:
    """Run a blocking function at once in the event loop: under virtual time no thread may run."""
    await trio.lowlevel.checkpoint()
    return function(*args)


@frozen
class Step(Generic[Res]):
    """What one request meets: `delay_s` of the clock, then `outcome`; an exception is raised.

    Attributes:
        linger_s: a call that is cancelled ends only so much later, as one in a thread does that looks seldom.
    """

    outcome: Res | EngineFailure | Exception
    delay_s: float = 0.0
    linger_s: float = 0.0


@define(eq=False)
class ScriptedEngine(Generic[Req, Res]):
    """An engine whose every answer is scripted.

    Attributes:
        requests: every request an instance was called with, in order.
        running, most_running: calls at present, and at most so far, over all instances.
        cancelled: calls that were cancelled.
        overlapping_calls: calls of an instance that was still busy with another; there must be none.
    """

    name: str
    script: Callable[[Req], Step[Res]]
    max_batch: int = 1
    gpu_memory_bytes: int = 0
    load_s: float = 0.0
    requests: list[Req] = field(factory=list, init=False)
    batches: list[int] = field(factory=list, init=False)
    running: int = field(default=0, init=False)
    most_running: int = field(default=0, init=False)
    cancelled: int = field(default=0, init=False)
    open_instances: int = field(default=0, init=False)
    overlapping_calls: int = field(default=0, init=False)

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[Req, Res]]:
        await trio.sleep(self.load_s)
        busy = False

        async def call(batch: Sequence[Req], /) -> Sequence[Res | EngineFailure]:
            nonlocal busy
            self.overlapping_calls += busy
            busy = True
            try:
                return await self._call(batch)
            finally:
                busy = False

        self.open_instances += 1
        try:
            yield call
        finally:
            self.open_instances -= 1

    async def _call(self, batch: Sequence[Req]) -> Sequence[Res | EngineFailure]:
        self.requests.extend(batch)
        self.batches.append(len(batch))
        steps = [self.script(request) for request in batch]
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await trio.sleep(max(step.delay_s for step in steps))
        except trio.Cancelled:
            self.cancelled += 1
            with trio.CancelScope(shield=True):
                await trio.sleep(max(step.linger_s for step in steps))
            raise
        finally:
            self.running -= 1
        outcomes: list[Res | EngineFailure] = []
        for step in steps:
            if isinstance(step.outcome, Exception) and not isinstance(step.outcome, EngineFailure):
                raise step.outcome
            outcomes.append(step.outcome)
        return outcomes


@define(eq=False)
class ScriptedAsr(ScriptedEngine[AsrRequest, Transcript]):
    """Hears ``hello`` in everything, at once, unless a script says otherwise."""

    name: str = "scripted-asr"
    script: Callable[[AsrRequest], Step[Transcript]] = lambda _: Step(Transcript("hello"))

    def supports(self, language: str) -> bool:
        return language in ("en", "fr")


@define(eq=False)
class ScriptedTranslation(ScriptedEngine[TranslationRequest, Translation]):
    """Translates ``hello`` to ``<es>hello``, at once, unless a script says otherwise."""

    name: str = "scripted-translation"
    script: Callable[[TranslationRequest], Step[Translation]] = lambda request: Step(
        Translation(f"<{request.target_language}>{request.text}")
    )

    def supports(self, source: str, target: str) -> bool:
        return source != target


@define(eq=False)
class ScriptedTts(ScriptedEngine[SpeechRequest, Speech]):
    """Speaks one second of tone, at once, unless a script says otherwise."""

    name: str = "scripted-tts"
    script: Callable[[SpeechRequest], Step[Speech]] = lambda request: Step(tone(1.0 / request.rate))
    rate_range: tuple[float, float] = (0.8, 2.0)  # so that no test needs the rubberband command

    def supports(self, language: str) -> bool:
        return language in ("es", "de")

    def has_voice(self, voice: str, language: str) -> bool:
        return voice == "default"

    def voices(self) -> Sequence[Voice]:
        return [Voice("default", ("de", "es"))]


def tone(seconds: float) -> Speech:
    """Something to hear: 440 Hz at half volume."""
    time = np.arange(round(seconds * SPEECH_RATE_HZ)) / SPEECH_RATE_HZ
    return Speech((0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32), SPEECH_RATE_HZ)


def scripted_models(
    asr: AsrEngine | None = None,
    translation: TranslationEngine | None = None,
    tts: TtsEngine | None = None,
) -> Models:
    """Three engines that answer at once, or those given: scripted in another way, or somebody's own."""
    return Models(asr or ScriptedAsr(), translation or ScriptedTranslation(), tts or ScriptedTts())
