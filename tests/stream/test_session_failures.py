"""What fails in a stream, and what its worker is told and played all the same."""

from __future__ import annotations

import io
import weakref
from typing import Any

import av
import numpy as np
import pybase64
import pytest
import structlog.testing
import trio
import trio.testing
from attrs import evolve
from trio.testing import MockClock

from protocol.errors import ErrorCode
from sts_trio import audio
from sts_trio.config import Settings
from sts_trio.engines.base import AsrRequest, EngineFailure, SpeechRequest, Transcript, Translation
from sts_trio.testing.engines import HANG, ScriptedAsr, ScriptedTranslation, ScriptedTts, Step, scripted_models, tone
from sts_trio.testing.memory import memory_server
from sts_trio.testing.payloads import fragment

from .helpers import opened, pcm, send, slow_asr


@pytest.mark.parametrize("stage", ["asr", "translation", "tts"])
async def test_a_failed_stage_is_named_and_fallback_audio_comes_along(stage: str, autojump_clock: MockClock) -> None:
    step: Step[Any] = Step(EngineFailure(ErrorCode.RATE_LIMIT_EXCEEDED, "slow down"))
    models = scripted_models(
        ScriptedAsr(script=lambda _: step) if stage == "asr" else None,
        ScriptedTranslation(script=lambda _: step) if stage == "translation" else None,
        ScriptedTts(script=lambda _: step) if stage == "tts" else None,
    )
    async with memory_server(models) as server:
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert result["status"] == "failed"
        assert result["error"] == {
            "code": "RATE_LIMIT_EXCEEDED",
            "message": "slow down",
            "stage": stage,
            "retryable": True,
        }
        assert len(pcm(result)) == 8_000


async def test_after_a_failure_no_further_stage_touches_a_fragment(autojump_clock: MockClock) -> None:
    asr = ScriptedAsr(script=lambda _: Step(EngineFailure(ErrorCode.ASR_FAILED, "no")))
    translation, tts = ScriptedTranslation(), ScriptedTts()
    async with memory_server(scripted_models(asr, translation, tts)) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.wait_for("fragment:processed")
        assert not translation.requests
        assert not tts.requests


async def test_a_defect_of_a_stage_itself_costs_one_fragment(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        with monkeypatch.context() as patch:
            patch.setattr("sts_trio.stream.duration.SlotFitter.plan", lambda *_: 1 / 0)
            await send(worker, 0)
            (result,) = await worker.wait_for("fragment:processed")
        assert (result["error"]["code"], result["error"]["stage"]) == ("INTERNAL_ERROR", "tts")
        await send(worker, 1)
        assert (await worker.wait_for("fragment:processed", 2))[1]["status"] == "success"


async def test_what_cannot_be_encoded_gets_the_fallback_and_says_nothing_of_speech(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        await trio.testing.wait_all_tasks_blocked()  # the silence is ready
        submit = server.engines.encode.submit

        async def fails_with_speech(request: Any, *, stream: str) -> bytes:
            if request.samples.size:
                raise EngineFailure(ErrorCode.INTERNAL_ERROR, "no")
            return await submit(request, stream=stream)

        object.__setattr__(server.engines.encode, "submit", fails_with_speech)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert result["error"]["stage"] == "encode"
        assert not pcm(result).any()
        assert result["metadata"]["speed_ratio"] == 1.0


async def test_a_fallback_that_takes_too_long_is_left_out(autojump_clock: MockClock) -> None:
    models = scripted_models(ScriptedAsr(script=lambda _: Step(Transcript("hello"), HANG)))
    async with memory_server(models) as server:
        worker = await opened(server, timeout_ms=1_000)
        await trio.testing.wait_all_tasks_blocked()

        async def hangs(request: Any, *, stream: str) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        object.__setattr__(server.engines.encode, "submit", hangs)
        await worker.say("fragment:data", fragment(0, duration_ms=500))
        (result,) = await worker.wait_for("fragment:processed")
        assert result["error"]["code"] == "TIMEOUT"
        assert "dubbed_audio" not in result
        assert 1 <= worker.times("fragment:processed")[0] < 1.1


async def test_a_fragment_that_cannot_be_decoded_fails_alone(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        garbage = fragment(0)
        garbage["audio"] |= {"format": "m4a", "data_base64": "AAAA"}
        await worker.say("fragment:data", garbage)
        await send(worker, 1)
        bad, good = await worker.wait_for("fragment:processed", 2)
        assert (bad["error"]["code"], bad["error"]["stage"]) == ("INVALID_AUDIO_FORMAT", "decode")
        assert good["status"] == "success"


async def test_a_defect_is_an_internal_error_that_shows_nothing_of_itself(autojump_clock: MockClock) -> None:
    def broken(request: AsrRequest) -> Step[Transcript]:
        return Step(ZeroDivisionError("secret detail"))

    async with memory_server(scripted_models(ScriptedAsr(script=broken))) as server:
        worker = await opened(server)
        with structlog.testing.capture_logs() as lines:
            await send(worker, 0)
            (result,) = await worker.wait_for("fragment:processed")
        assert result["error"]["code"] == "INTERNAL_ERROR"
        assert "secret" not in str(result)
        (logged,) = [line for line in lines if line["event"] == "internal_error"]
        assert logged["error_id"] in result["error"]["message"]  # which leads from one to the other
        assert logged["exc_info"]


@pytest.mark.parametrize("stage", ["asr", "translation", "tts"])
async def test_a_hanging_model_is_a_timeout_in_its_stage_at_the_deadline(stage: str, autojump_clock: MockClock) -> None:
    models = scripted_models(
        ScriptedAsr(script=lambda _: Step(Transcript("hello"), HANG if stage == "asr" else 0)),
        ScriptedTranslation(script=lambda _: Step(Translation("hola"), HANG if stage == "translation" else 0)),
        ScriptedTts(script=lambda _: Step(tone(1), HANG if stage == "tts" else 0)),
    )
    async with memory_server(models) as server:
        worker = await opened(server, timeout_ms=5_000)
        await send(worker, 0, 1, 2)
        results = await worker.wait_for("fragment:processed", 3)
        for result in results:
            assert (result["error"]["code"], result["error"]["stage"]) == ("TIMEOUT", stage)
            assert result["error"]["retryable"] is True
            assert len(pcm(result)) == 8_000
        assert all(5 <= time <= 5.1 for time in worker.times("fragment:processed"))


async def test_the_fallback_is_ready_before_it_is_needed(autojump_clock: MockClock) -> None:
    """An m4a takes longer to encode than there is time after a deadline."""
    models = scripted_models(ScriptedAsr(script=lambda _: Step(Transcript("hello"), HANG)))
    async with memory_server(models) as server:
        worker = await opened(server, format="m4a", timeout_ms=1_000)
        encoded: list[float] = []
        submit = server.engines.encode.submit

        async def slow_encode(request: Any, *, stream: str) -> bytes:
            encoded.append(trio.current_time())
            await trio.sleep(0.5)
            return await submit(request, stream=stream)

        object.__setattr__(server.engines.encode, "submit", slow_encode)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert result["error"]["code"] == "TIMEOUT"
        assert result["dubbed_audio"]["data_base64"]
        assert encoded == [0]


@pytest.mark.slow
async def test_the_original_stands_in_at_the_streams_own_length_rate_and_kind(autojump_clock: MockClock) -> None:
    models = scripted_models(ScriptedAsr(script=lambda _: Step(Transcript("hello"), HANG)))
    async with memory_server(models, Settings(fallback_mode="original")) as server:
        worker = await opened(server, format="m4a", sample_rate_hz=48_000, channels=2, timeout_ms=1_000)
        longer = audio.encode(np.full((17_600, 1), 0.25, np.float32), 16_000, "m4a")  # 1.1 s, 16 kHz mono
        body = fragment(0)
        body["audio"] |= {"format": "m4a", "sample_rate_hz": 48_000, "channels": 2}
        body["audio"]["data_base64"] = pybase64.b64encode(longer).decode()
        await worker.say("fragment:data", body)
        (result,) = await worker.wait_for("fragment:processed")
        assert result["error"]["code"] == "TIMEOUT"
        with av.open(io.BytesIO(pybase64.b64decode(result["dubbed_audio"]["data_base64"])), "r") as container:
            stream = container.streams.audio[0]
            assert (stream.rate, stream.channels) == (48_000, 2)
            frames = sum(frame.samples for frame in container.decode(stream))
            assert frames == pytest.approx(48_000, abs=1_100)  # AAC comes in frames of 1024


async def test_a_defect_in_the_fallback_costs_the_audio_and_nothing_else(autojump_clock: MockClock) -> None:
    models = scripted_models(ScriptedAsr(script=lambda _: Step(EngineFailure(ErrorCode.ASR_FAILED, "no"))))
    async with memory_server(models) as server:
        worker = await opened(server)
        await trio.testing.wait_all_tasks_blocked()

        async def broken(request: Any, *, stream: str) -> bytes:
            raise ZeroDivisionError

        object.__setattr__(server.engines.encode, "submit", broken)
        await worker.say("fragment:data", fragment(0, duration_ms=900))
        (result,) = await worker.wait_for("fragment:processed")
        assert result["error"]["code"] == "ASR_FAILED"
        assert "dubbed_audio" not in result


async def test_the_deadline_starts_with_processing_not_with_waiting(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(0.9))) as server:
        worker = await opened(server, max_inflight=1, timeout_ms=1_000)
        await send(worker, 0, 1, 2)
        results = await worker.wait_for("fragment:processed", 3)
        assert [result["status"] for result in results] == ["success"] * 3


async def test_speech_too_long_at_any_speed_is_a_duration_mismatch_and_spoken_once(autojump_clock: MockClock) -> None:
    tts = ScriptedTts(script=lambda request: Step(tone(2.5 / request.rate)))
    async with memory_server(scripted_models(tts=tts)) as server:
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert (result["error"]["code"], result["error"]["stage"]) == ("DURATION_MISMATCH_EXCEEDED", "tts")
        assert "2500 ms is still 25 % too long for 1000 ms" in result["error"]["message"]
        assert len(tts.requests) == 1


async def test_an_engine_that_does_not_keep_to_a_rate_is_not_held_in_memory_either(autojump_clock: MockClock) -> None:
    tts = ScriptedTts(script=lambda request: Step(tone(1.5 if request.rate == 1.0 else 60)))
    async with memory_server(scripted_models(tts=tts)) as server:
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert result["error"]["code"] == "DURATION_MISMATCH_EXCEEDED"


async def test_speech_that_is_spoken_again_is_let_go_of_first(autojump_clock: MockClock) -> None:
    spoken: list[weakref.ref[Any]] = []
    left: list[Any] = []

    def speak(request: SpeechRequest) -> Step[Any]:
        left.extend(samples() for samples in spoken)
        speech = tone(1.5 / request.rate)
        spoken.append(weakref.ref(speech.samples))
        return Step(speech)

    async with memory_server(scripted_models(tts=ScriptedTts(script=speak))) as server:
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert result["status"] == "success"
    assert left == [None]


async def test_speech_a_little_too_long_is_partial_with_a_warning(autojump_clock: MockClock) -> None:
    def long_speech(request: SpeechRequest) -> Step[Any]:
        return Step(tone(2.3 / request.rate))

    async with memory_server(scripted_models(tts=ScriptedTts(script=long_speech))) as server:
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert result["status"] == "partial"
        assert result["metadata"]["warnings"] == ["duration_variance_high"]
        assert result["metadata"]["duration_variance_percent"] == 15.0
        assert result["metadata"]["speed_ratio"] == 2.0
        assert len(pcm(result)) == 8_000


async def test_long_speech_is_spoken_faster(autojump_clock: MockClock) -> None:
    tts = ScriptedTts(script=lambda request: Step(tone(1.5 / request.rate)))
    async with memory_server(scripted_models(tts=tts)) as server:
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert result["status"] == "success"
        assert result["metadata"]["speed_ratio"] == pytest.approx(1.5, abs=0.001)
        assert [request.rate for request in tts.requests] == [1.0, 1.5]


async def test_at_another_rate_the_engine_goes_on_from_its_first_take(autojump_clock: MockClock) -> None:
    def speak(request: SpeechRequest) -> Step[Any]:
        return Step(evolve(tone(1.5 / request.rate), take=np.full(3, len(request.text), np.float32)))

    tts = ScriptedTts(script=speak)
    async with memory_server(scripted_models(tts=tts)) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.wait_for("fragment:processed")
    first, second = tts.requests
    assert first.take is None
    assert second.rate == 1.5
    assert second.take is not None
    assert second.take.tolist() == 3 * [len(first.text)]


async def test_what_the_engine_cannot_do_rubber_band_does(autojump_clock: MockClock) -> None:
    tts = ScriptedTts(script=lambda request: Step(tone(1.5 / request.rate)), rate_range=(1.0, 1.2))
    async with memory_server(scripted_models(tts=tts)) as server:
        stretched: list[float] = []

        async def stretch(request: Any, *, stream: str) -> Any:
            stretched.append(request.speed)
            return request.samples[: int(len(request.samples) / request.speed)]

        object.__setattr__(server.engines.stretch, "submit", stretch)
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert stretched == [pytest.approx(1.25, abs=0.01)]
        assert result["status"] == "success"
        assert result["metadata"]["speed_ratio"] == pytest.approx(1.5, abs=0.01)


async def test_silence_after_speech_does_not_count_as_speech(autojump_clock: MockClock) -> None:
    def trailing_silence(request: SpeechRequest) -> Step[Any]:
        spoken = tone(2.0 / request.rate)
        quiet = np.zeros(len(spoken.samples) // 2, np.float32)
        return Step(evolve(spoken, samples=np.concatenate([spoken.samples, quiet])))

    async with memory_server(scripted_models(tts=ScriptedTts(script=trailing_silence))) as server:
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert result["status"] == "success"
        assert result["metadata"]["speed_ratio"] == pytest.approx(2.0, abs=0.001)


async def test_what_cannot_be_written_in_utf_8_is_replaced_wherever_it_comes_from(autojump_clock: MockClock) -> None:
    said = iter((Translation("a\ud800b"), EngineFailure(ErrorCode.TRANSLATION_FAILED, "DeepL: \udfff")))
    translation = ScriptedTranslation(script=lambda _: Step(next(said)))
    asr = ScriptedAsr(script=lambda _: Step(Transcript("x\ud800")))
    async with memory_server(scripted_models(asr, translation)) as server:
        worker = await opened(server)
        await send(worker, 0, 1)
        one, other = await worker.wait_for("fragment:processed", 2)
    assert (one["transcript"], one["translated_text"]) == ("x?", "a?b")
    assert other["error"]["message"] == "DeepL: ?"
