"""Whatever hangs, in whatever stage: a result with something to play, 100 ms after the deadline at the latest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from sts_trio.engines import codec
from sts_trio.engines.base import Samples, Transcript, Translation
from sts_trio.engines.codec import EncodeRequest, StretchRequest
from sts_trio.engines.suite import Models
from sts_trio.testing.engines import (
    HANG,
    ScriptedAsr,
    ScriptedEngine,
    ScriptedTranslation,
    ScriptedTts,
    Step,
    scripted_models,
    tone,
)
from sts_trio.testing.memory import memory_server
from sts_trio.testing.payloads import fragment

from .helpers import opened, pcm

DEAF_S = 600.0
"""After a cancel a call goes on, as one in a thread does that never looks up."""

STAGES = {
    "decode": "decode",
    "asr": "asr",
    "translation": "translation",
    "tts": "tts",
    "stretch": "tts",
    "encode": "encode",
}
"""What hangs, and the stage that is told."""


def silence(request: EncodeRequest) -> bytes:
    return bytes(2 * request.duration_ms * request.output_rate_hz // 1000)


@contextmanager
def hanging(what: str, linger_s: float, patch: pytest.MonkeyPatch) -> Iterator[Models]:
    """Engines of which one hangs in every call; the encoder in those for speech."""

    def step(name: str, outcome: Any) -> Step[Any]:
        return Step(outcome, HANG, linger_s) if name == what else Step(outcome)

    def encode(request: EncodeRequest) -> Step[bytes]:
        return step("encode" if request.samples.size else "silence", silence(request))

    def stretch(request: StretchRequest) -> Step[Samples]:
        return step("stretch", request.samples[: int(len(request.samples) / request.speed)])

    if what == "decode":
        patch.setattr(codec, "decoder", lambda: ScriptedEngine("decode", lambda _: step("decode", None)))
    if what == "encode":
        patch.setattr(codec, "encoder", lambda: ScriptedEngine("encode", encode))
    patch.setattr(codec, "stretcher", lambda: ScriptedEngine("stretch", stretch))
    yield scripted_models(
        ScriptedAsr(script=lambda _: step("asr", Transcript("hello"))),
        ScriptedTranslation(script=lambda _: step("translation", Translation("hola"))),
        ScriptedTts(script=lambda _: step("tts", tone(1)), rate_range=(1.0, 1.0)),
    )


@pytest.mark.parametrize("linger_s", [0, DEAF_S])
@pytest.mark.parametrize("what", STAGES)
async def test_a_hang_is_told_in_time_with_audio_of_the_fragments_own_length(
    what: str, linger_s: float, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = 600, 700, 800  # and none of them is the stream's
    with hanging(what, linger_s, monkeypatch) as models:
        async with memory_server(models) as server:
            worker = await opened(server, timeout_ms=2_000)
            for number, duration_ms in enumerate(lengths):
                await worker.say("fragment:data", fragment(number, duration_ms=duration_ms))
            results = await worker.wait_for("fragment:processed", 3)
            assert [len(pcm(result)) for result in results] == [8 * duration_ms for duration_ms in lengths]
            for result in results:
                assert (result["error"]["code"], result["error"]["stage"]) == ("TIMEOUT", STAGES[what])
            assert all(2 <= time <= 2.1 for time in worker.times("fragment:processed"))


@pytest.mark.parametrize("what", STAGES)
async def test_a_pool_that_hangs_for_good_costs_later_fragments_no_time(
    what: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging(what, DEAF_S, monkeypatch) as models, structlog.testing.capture_logs() as lines:
        async with memory_server(models) as server:
            worker = await opened(server, max_inflight=10, timeout_ms=2_000)
            for number in range(10):
                await worker.say("fragment:data", fragment(number, duration_ms=800))
            await worker.wait_for("fragment:processed", 10)
            await trio.sleep_until(60)
            await worker.say("fragment:data", fragment(10, duration_ms=800))
            result = (await worker.wait_for("fragment:processed", 11))[10]
            assert worker.times("fragment:processed")[10] == 60
            assert (result["error"]["code"], result["error"]["stage"]) == ("TEMPORARY_UNAVAILABLE", STAGES[what])
            assert result["error"]["retryable"] is True
            assert len(pcm(result)) == 8 * 800
            (pool,) = (pool for pool in server.engines.pools if pool.label == what)
            assert pool.hung_slots == pool.slots
            hung = [line for line in lines if line["event"] == "slot_hung"]
            assert [line["pool"] for line in hung] == [what] * pool.slots


async def test_silence_takes_longer_to_encode_than_there_is_time_after_a_deadline(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a minute of m4a does."""
    made: list[int] = []

    def script(request: EncodeRequest) -> Step[bytes]:
        made.append(request.duration_ms)
        return Step(silence(request), 0.3)

    monkeypatch.setattr(codec, "encoder", lambda: ScriptedEngine("encode", script))
    models = scripted_models(ScriptedAsr(script=lambda _: Step(Transcript("hello"), HANG)))
    async with memory_server(models) as server:
        worker = await opened(server, timeout_ms=1_000)
        for number in range(3):
            await worker.say("fragment:data", fragment(number, duration_ms=5_000))
        results = await worker.wait_for("fragment:processed", 3)
        assert [len(pcm(result)) for result in results] == [40_000] * 3
        assert all(1 <= time <= 1.1 for time in worker.times("fragment:processed"))
    assert made == [5_000]  # the length that is needed, and once


async def test_silence_that_hangs_is_tried_again_and_holds_up_no_fragment(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def script(request: EncodeRequest) -> Step[bytes]:
        nonlocal tries
        if request.samples.size:
            return Step(silence(request))
        tries += 1
        return Step(silence(request), HANG if tries == 1 else 0)

    monkeypatch.setattr(codec, "encoder", lambda: ScriptedEngine("encode", script))
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello" if trio.current_time() < 5 else "")))
    async with memory_server(scripted_models(asr)) as server:
        worker = await opened(server, timeout_ms=1_000)
        await worker.say("fragment:data", fragment(0))
        (result,) = await worker.wait_for("fragment:processed")
        assert result["status"] == "success"
        assert trio.current_time() < 0.1
        await trio.sleep_until(10)
        await worker.say("fragment:data", fragment(1))
        assert len(pcm((await worker.wait_for("fragment:processed", 2))[1])) == 8_000
        assert trio.current_time() == 10
        assert tries == 2


async def test_a_stream_ends_without_waiting_for_silence_that_nobody_needs_any_more(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(request: EncodeRequest) -> Step[bytes]:
        return Step(silence(request), 0 if request.samples.size else HANG)

    monkeypatch.setattr(codec, "encoder", lambda: ScriptedEngine("encode", script))
    async with memory_server() as server:
        worker = await opened(server, timeout_ms=30_000)
        await worker.say("fragment:data", fragment(0, duration_ms=700))
        await worker.wait_for("fragment:processed")
        await worker.say("stream:end", {"stream_id": "s"})
        await worker.wait_for("stream:complete")
        assert trio.current_time() <= 2


async def test_a_defect_in_the_silence_costs_the_audio_and_nothing_else(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(request: EncodeRequest) -> Step[bytes]:
        return Step(silence(request) if request.samples.size else ZeroDivisionError())

    monkeypatch.setattr(codec, "encoder", lambda: ScriptedEngine("encode", script))
    async with memory_server() as server:
        worker = await opened(server)
        await worker.say("fragment:data", fragment(0, duration_ms=700))
        (result,) = await worker.wait_for("fragment:processed")
        assert result["status"] == "success"
