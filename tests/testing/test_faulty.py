"""Engines that go wrong as often as they are told."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from sts_trio.engines.base import ASR_SAMPLE_RATE_HZ, AsrRequest, EngineFailure, SpeechRequest, TranslationRequest
from sts_trio.offload import thread_offload
from sts_trio.testing.faulty import Faults, FaultyAsr, FaultyTranslation, FaultyTts
from sts_trio.testing.tones import pitch_hz, tone

SECOND = AsrRequest(tone(440, 1.0, ASR_SAMPLE_RATE_HZ), "en")


async def test_a_pitch_goes_all_the_way(autojump_clock: trio.testing.MockClock) -> None:
    faults, offload = Faults(speech=(1.1, 1.1)), thread_offload(1)
    async with (
        FaultyAsr(faults).open(offload) as hear,
        FaultyTranslation(faults).open(offload) as translate,
        FaultyTts(faults).open(offload) as speak,
    ):
        (heard,) = await hear([SECOND])
        assert not isinstance(heard, EngineFailure)
        assert heard.text.endswith("Hz for 1000 ms")
        (translated,) = await translate([TranslationRequest(heard.text, "en", "es")])
        assert not isinstance(translated, EngineFailure)
        (speech,) = await speak([SpeechRequest(translated.text, "es", "default", rate=1.1)])
    assert not isinstance(speech, EngineFailure)
    assert len(speech.samples) == speech.sample_rate_hz  # 1.1 times as long, and as fast
    assert pitch_hz(speech.samples, speech.sample_rate_hz) == pytest.approx(440, abs=8)


async def test_silence_is_heard_as_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with FaultyAsr(Faults()).open(thread_offload(1)) as hear:
        (heard,) = await hear([AsrRequest(0 * SECOND.samples, "en")])
        assert not isinstance(heard, EngineFailure)
        assert heard.text == ""


async def outcomes(faults: Faults, calls: int) -> list[str]:
    """What comes of each call that is given a minute."""
    seen = []
    async with FaultyAsr(faults).open(thread_offload(1)) as hear:
        for _ in range(calls):
            seen.append("hang")
            with trio.move_on_after(60):
                try:
                    await hear([SECOND])
                    seen[-1] = "answer"
                except EngineFailure as failure:
                    seen[-1] = failure.code
                except RuntimeError:
                    seen[-1] = "defect"
    return seen


async def test_faults_come_as_often_as_asked_for_and_from_the_seed(autojump_clock: trio.testing.MockClock) -> None:
    faults = Faults(seed=5, failures=0.2, hangs=0.1, defects=0.1)
    seen = await outcomes(faults, 300)
    counted = Counter(seen)
    assert counted["hang"] == pytest.approx(30, abs=15)
    assert counted["defect"] == pytest.approx(30, abs=15)
    assert counted["ASR_FAILED"] + counted["GPU_OOM"] == pytest.approx(60, abs=20)
    assert seen == await outcomes(faults, 300)
    assert seen != await outcomes(Faults(seed=6, failures=0.2, hangs=0.1, defects=0.1), 300)
