"""The engines of a scenario: scripted ones, whose scripts draw from the seed."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from protocol.errors import ErrorCode

from ...engines.base import (
    AsrRequest,
    EngineFailure,
    Speech,
    SpeechRequest,
    Transcript,
    Translation,
    TranslationRequest,
)
from ...engines.suite import Models
from ..engines import HANG, SPEECH_RATE_HZ, ScriptedAsr, ScriptedTranslation, ScriptedTts, Step
from .content import heard, spoken
from .scenario import SLOT_MS, EnginePlan, Scenario
from .trace import ScriptedDefect, Trace

Req = TypeVar("Req")
Res = TypeVar("Res")

FAILURES: Final = (ErrorCode.TEMPORARY_UNAVAILABLE, ErrorCode.NETWORK_ERROR, ErrorCode.RATE_LIMIT_EXCEEDED)
LENGTHS: Final = (0.3, 0.9, 1.1, 1.9, 3.0)
"""Of what is spoken at its natural speed, in slots; the last is too long at any speed."""

SAID: Final = ("", "hello", "hello world", "and now the weather")


def scenario_models(scenario: Scenario, trace: Trace, counts: Counter[str]) -> Models:
    """The three engines, as planned."""
    chances = {name: random.Random(f"{scenario.seed} {name}") for name in ("asr", "translation", "tts")}

    def transcribe(request: AsrRequest) -> Transcript:
        words = chances["asr"].choice(SAID)
        return Transcript(f"{heard(request.samples)} {words}" if words else "")

    def translate(request: TranslationRequest) -> Translation:
        return Translation(f"<{request.target_language}>{request.text}")

    def speak(request: SpeechRequest) -> Speech:
        # The same text is as long each time it is spoken, whatever the speed.
        natural_s = SLOT_MS / 1000 * LENGTHS[zlib.crc32(request.text.encode()) % len(LENGTHS)]
        return Speech(spoken(request.text, int(natural_s / request.rate * SPEECH_RATE_HZ)), SPEECH_RATE_HZ)

    def script(name: str, plan: EnginePlan, answer: Callable[[Req], Res]) -> Callable[[Req], Step[Res]]:
        chance = chances[name]

        def step(request: Req) -> Step[Res]:
            drawn, delay_s = chance.random(), chance.choice(plan.delays_s)
            for kind, share in (
                ("hangs", plan.hangs),
                ("exhaustions", plan.exhaustions),
                ("defects", plan.defects),
                ("failures", plan.failures),
            ):
                if drawn < share:
                    counts[f"{name} {kind}"] += 1
                    trace.add(name, kind)
                    return _mishap(kind, plan, answer(request), delay_s, chance)
                drawn -= share
            if plan.outage[0] <= trio.current_time() < plan.outage[1]:
                counts[f"{name} outages"] += 1
                trace.add(name, "is down", after_s=delay_s)
                return Step(EngineFailure(ErrorCode.TEMPORARY_UNAVAILABLE, "down"), delay_s)
            trace.add(name, "is called", answers_after_s=delay_s)
            return Step(answer(request), delay_s, plan.stubborn_s)

        return step

    return Models(
        ScriptedAsr(script=script("asr", scenario.asr, transcribe), max_batch=scenario.asr.max_batch),
        ScriptedTranslation(script=script("translation", scenario.translation, translate)),
        ScriptedTts(script=script("tts", scenario.tts, speak)),
    )


def _mishap(kind: str, plan: EnginePlan, answer: Res, delay_s: float, chance: random.Random) -> Step[Res]:
    match kind:
        case "hangs":
            return Step(answer, HANG, plan.stubborn_s)
        case "exhaustions":
            return Step(EngineFailure(ErrorCode.GPU_OOM, "out of memory"), delay_s)
        case "defects":
            return Step(ScriptedDefect("scripted"), delay_s)
        case _:
            return Step(EngineFailure(chance.choice(FAILURES), "scripted"), delay_s)
