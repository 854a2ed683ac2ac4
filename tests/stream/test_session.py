"""One stream from its worker's point of view: every promise of the contract, on virtual time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pybase64
import pytest
import trio
import trio.testing
from attrs import evolve
from trio.testing import MockClock

from protocol.errors import ErrorCode
from sts_trio.config import Settings
from sts_trio.engines.base import AsrRequest, EngineFailure, SpeechRequest, Transcript, Translation, TranslationRequest
from sts_trio.testing.engines import HANG, ScriptedAsr, ScriptedTranslation, ScriptedTts, Step, scripted_models, tone
from sts_trio.testing.memory import MemoryServer, MemoryWorker, memory_server
from sts_trio.testing.payloads import fragment, stream_init


async def opened(server: MemoryServer, **changes: Any) -> MemoryWorker:
    worker = server.worker()
    await worker.say("stream:init", stream_init(**changes))
    await worker.wait_for("stream:ready")
    return worker


async def send(worker: MemoryWorker, *numbers: int) -> None:
    for number in numbers:
        await worker.say("fragment:data", fragment(number))


def numbers(worker: MemoryWorker) -> list[int]:
    return [result["sequence_number"] for result in worker.got("fragment:processed")]


def pcm(result: dict[str, Any]) -> Any:
    return np.frombuffer(pybase64.b64decode(result["dubbed_audio"]["data_base64"]), "<i2")


def slow_asr(seconds: float) -> ScriptedAsr:
    return ScriptedAsr(script=lambda _: Step(Transcript("hello"), seconds))


# ---------------------------------------------------------------- the happy path


async def test_a_fragment_comes_back_dubbed(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        await worker.say("fragment:data", fragment(0, metadata={"pts_ns": 12_345}))
        (result,) = await worker.wait_for("fragment:processed")
        assert result["status"] == "success"
        assert result["fragment_id"] == "f0"
        assert result["transcript"] == "hello"
        assert result["translated_text"] == "<es>hello"
        assert len(pcm(result)) == 8_000
        assert np.abs(pcm(result)).max() > 10_000
        metadata = result["metadata"]
        assert metadata["pts_ns"] == 12_345
        assert metadata["asr_model"] == "scripted-asr"
        assert metadata["asset_ids"] == ["transcript-f0-0", "translation-f0-0", "audio-f0-0"]
        assert metadata["original_duration_ms"] == metadata["dubbed_duration_ms"] == 1_000
        assert "error" not in result


async def test_stream_ready_says_what_the_server_can_do(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server, max_inflight=5)
        (ready,) = worker.got("stream:ready")
        assert ready["max_inflight"] == 5
        assert ready["session_id"]
        assert ready["capabilities"]["batch_processing"] is False
        assert ready["capabilities"]["async_delivery"] is True


async def test_stage_timings_are_the_stages_own(autojump_clock: MockClock) -> None:
    models = scripted_models(
        slow_asr(0.3),
        ScriptedTranslation(script=lambda _: Step(Translation("hola"), 0.05)),
        ScriptedTts(script=lambda _: Step(tone(1), 0.2)),
    )
    async with memory_server(models) as server:
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert result["stage_timings"] == {"asr_ms": 300, "translation_ms": 50, "tts_ms": 200}
        assert result["processing_time_ms"] == 550


async def test_a_fragment_without_speech_is_a_success_of_silence(autojump_clock: MockClock) -> None:
    models = scripted_models(ScriptedAsr(script=lambda _: Step(Transcript(""))))
    async with memory_server(models) as server:
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert (result["status"], result["transcript"]) == ("success", "")
        assert len(pcm(result)) == 8_000
        assert not pcm(result).any()


async def test_no_speech_gives_the_original_where_that_is_wanted(autojump_clock: MockClock) -> None:
    models = scripted_models(ScriptedAsr(script=lambda _: Step(Transcript(""))))
    async with memory_server(models, Settings(fallback_mode="original")) as server:
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert set(pcm(result)) == {16}


async def test_a_binary_fragment_comes_back_binary(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        body = fragment(0)
        body["audio"]["data"] = b"\x00\x00" * 8_000
        del body["audio"]["data_base64"]
        await worker.say("fragment:data", body)
        (result,) = await worker.wait_for("fragment:processed")
        assert len(result["dubbed_audio"]["data"]) == 16_000
        assert "data_base64" not in result["dubbed_audio"]


async def test_what_was_said_before_is_the_context_of_what_comes_next(autojump_clock: MockClock) -> None:
    heard = iter(("one", "", "three", "four"))
    asr = ScriptedAsr(script=lambda _: Step(Transcript(next(heard))))
    translation = ScriptedTranslation()
    async with memory_server(scripted_models(asr, translation)) as server:
        worker = await opened(server)
        for number in range(4):
            await send(worker, number)
            await worker.wait_for("fragment:processed", number + 1)
    assert [request.previous_text for request in asr.requests] == ["", "one", "", "three"]
    assert [(request.text, request.context) for request in translation.requests] == [
        ("one", ""),
        ("three", ""),
        ("four", "three"),
    ]


async def test_context_is_bounded(autojump_clock: MockClock) -> None:
    asr = ScriptedAsr(script=lambda _: Step(Transcript("word " * 1_000)))
    async with memory_server(scripted_models(asr)) as server:
        worker = await opened(server)
        await send(worker, 0, 1)
        await worker.wait_for("fragment:processed", 2)
        assert 0 < len(asr.requests[1].previous_text) <= 500


async def test_silence_is_as_long_as_each_fragment(autojump_clock: MockClock) -> None:
    models = scripted_models(ScriptedAsr(script=lambda _: Step(Transcript(""))))
    async with memory_server(models) as server:
        worker = await opened(server)
        for number, duration_ms in enumerate((1_000, 700, 1_000)):
            await worker.say("fragment:data", fragment(number, duration_ms=duration_ms))
        results = await worker.wait_for("fragment:processed", 3)
        assert [len(pcm(result)) for result in results] == [8_000, 5_600, 8_000]


async def test_operators_see_every_result(autojump_clock: MockClock) -> None:
    heard = iter([Step(Transcript("hello"), 0.2), Step(EngineFailure(ErrorCode.ASR_FAILED, "no"), 0.2)])
    async with memory_server(scripted_models(ScriptedAsr(script=lambda _: next(heard)))) as server:
        worker = await opened(server)
        await send(worker, 0)
        assert server.in_flight == 1
        await send(worker, 1)
        await worker.wait_for("fragment:processed", 2)

        def value(name: str, **labels: str) -> float | None:
            return server.metrics.registry.get_sample_value(name, labels)

        assert value("sts_fragments_total", status="success") == 1
        assert value("sts_fragments_total", status="failed") == 1
        assert value("sts_fragment_errors_total", stage="asr", error_code="ASR_FAILED") == 1
        assert value("sts_fragment_processing_seconds_count") == 2
        assert value("sts_asr_duration_seconds_sum") == pytest.approx(0.4)
        assert value("sts_translation_duration_seconds_count") == 1
        assert value("sts_tts_duration_seconds_count") == 1
        assert server.in_flight == 0


# ---------------------------------------------------------------- order


async def test_results_leave_in_order_whatever_finished_first(autojump_clock: MockClock) -> None:
    def by_text(request: TranslationRequest) -> Step[Translation]:
        return Step(Translation("hola"), 3 if request.text == "0" else 0.1)

    heard = iter("012")
    models = scripted_models(
        ScriptedAsr(script=lambda _: Step(Transcript(next(heard)))), ScriptedTranslation(script=by_text)
    )
    async with memory_server(models) as server:
        worker = await opened(server)
        await send(worker, 0, 1, 2)
        await worker.wait_for("fragment:processed", 3)
        assert numbers(worker) == [0, 1, 2]
        assert worker.times("fragment:processed") == [3, 3, 3]


async def test_fragments_sent_out_of_order_come_back_in_order(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(0.1))) as server:
        worker = await opened(server)
        await send(worker, 0, 2, 3, 1)
        await worker.wait_for("fragment:processed", 4)
        assert numbers(worker) == [0, 1, 2, 3]


async def test_of_what_waits_the_lowest_number_goes_first(autojump_clock: MockClock) -> None:
    asr = slow_asr(1)
    async with memory_server(scripted_models(asr)) as server:
        worker = await opened(server, max_inflight=1)
        await send(worker, 0)
        await trio.sleep(0.5)
        for number, length_ms in ((3, 300), (1, 100), (2, 200)):
            await worker.say("fragment:data", fragment(number, duration_ms=length_ms))
        await worker.wait_for("fragment:processed", 4)
        assert [len(request.samples) // 16 for request in asr.requests] == [1_000, 100, 200, 300]


async def test_later_fragments_never_hold_the_tokens_an_earlier_one_needs(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(0.1)), Settings(backpressure_critical=20)) as server:
        worker = await opened(server, max_inflight=2)
        await send(worker, 0, 2, 3, 4, 5)
        await trio.sleep(2)  # all are done but 1, which nobody sent, and hold no token
        assert numbers(worker) == [0]
        await send(worker, 1)
        await worker.wait_for("fragment:processed", 6)
        assert numbers(worker) == [0, 1, 2, 3, 4, 5]
        assert worker.times("fragment:processed")[-1] == pytest.approx(2.1)


async def test_a_missing_number_is_waited_for_and_then_given_up(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server, timeout_ms=4_000)
        await send(worker, 0, 2, 3)
        await worker.wait_for("fragment:processed", 3)
        assert numbers(worker) == [0, 2, 3]
        (warning,) = worker.got("error")
        assert (warning["code"], warning["severity"]) == ("SEQUENCE_GAP", "warning")
        assert warning["metadata"] == {"missing": [1]}
        assert worker.times("error") == [4]
        await send(worker, 1)
        assert worker.got("error")[1]["code"] == "INVALID_SEQUENCE"


async def test_a_missing_number_that_comes_in_time_stops_the_clock(autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(gap_timeout_ms=2_000)) as server:
        worker = await opened(server)
        await send(worker, 0, 2)
        await trio.sleep(1.9)
        await send(worker, 1)
        await worker.wait_for("fragment:processed", 3)
        await trio.sleep(10)
        assert worker.got("error") == []


async def test_waiting_for_several_gaps_does_not_add_up(autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(gap_timeout_ms=4_000, backpressure_critical=20)) as server:
        worker = await opened(server)
        await send(worker, 0, 2, 4, 6)
        await worker.wait_for("fragment:processed", 4)
        assert worker.times("fragment:processed") == [0, 4, 4, 4]
        assert [error["metadata"]["missing"] for error in worker.got("error")] == [[1], [3], [5]]


async def test_a_number_given_up_stays_given_up_whatever_is_refused(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server, timeout_ms=1_000)
        await send(worker, 0, 2)
        await worker.wait_for("fragment:processed", 2)
        await worker.say("stream:pause", {"stream_id": "s"})
        await send(worker, 1)
        await worker.say("stream:resume", {"stream_id": "s"})
        await send(worker, 1)
        assert [error["code"] for error in worker.got("error")] == ["SEQUENCE_GAP", "STREAM_PAUSED", "INVALID_SEQUENCE"]


async def test_a_refused_number_holds_nobody_up_and_its_retry_is_late(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        await send(worker, 0)
        broken = fragment(1)
        broken["audio"]["format"] = "mp3"
        await worker.say("fragment:data", broken)
        await send(worker, 2)
        await worker.wait_for("fragment:processed", 2)
        assert numbers(worker) == [0, 2]
        assert worker.times("fragment:processed")[-1] == 0
        await send(worker, 1)
        late = (await worker.wait_for("fragment:processed", 3))[-1]
        assert (late["sequence_number"], late["metadata"]["late"]) == (1, True)


# ---------------------------------------------------------------- acknowledgement and flow control


async def test_the_ack_leaves_in_the_same_tick_while_every_slot_is_busy(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(5)), Settings(asr_slots=1)) as server:
        worker = await opened(server)
        await send(worker, 0)
        await trio.sleep(1)
        ticks = 0

        async def count_ticks(*, task_status: trio.TaskStatus[None]) -> None:
            nonlocal ticks
            task_status.started()
            while True:
                await trio.lowlevel.checkpoint()
                ticks += 1

        async with trio.open_nursery() as nursery:
            await nursery.start(count_ticks)
            await send(worker, 1)
            assert ticks <= 1
            nursery.cancel_scope.cancel()
        ack = worker.got("fragment:ack")[1]
        assert (ack["fragment_id"], worker.times("fragment:ack")[1]) == ("f1", 1)


async def test_the_ack_says_where_in_the_queue_a_fragment_is(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1))) as server:
        worker = await opened(server, max_inflight=2)
        await send(worker, 0, 1, 2, 3)
        acks = [(ack["status"], ack["queue_position"]) for ack in worker.got("fragment:ack")]
        assert acks == [("processing", 0), ("processing", 0), ("queued", 1), ("queued", 2)]
        await worker.wait_for("fragment:processed", 4)
        await send(worker, 4)
        typical = worker.got("fragment:ack")[-1]["estimated_completion_ms"]
        assert 1_000 <= typical <= 2_000  # waiting for ASR, then ASR


async def test_backpressure_levels_and_recovery_are_the_contracts(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1)), Settings(asr_slots=1)) as server:
        worker = await opened(server, max_inflight=2, timeout_ms=30_000)
        await send(worker, *range(8))  # 2 x 3 + 1 = 7 is critical
        events = [
            (event["severity"], event["action"], event["current_inflight"], event["threshold_exceeded"])
            for event in worker.got("backpressure")
        ]
        assert events == [("medium", "slow_down", 3, "medium"), ("high", "pause", 5, "high")]
        (refusal,) = worker.got("error")
        assert (refusal["code"], refusal["fragment_id"], refusal["retryable"]) == ("BACKPRESSURE_EXCEEDED", "f7", True)
        await worker.wait_for("fragment:processed", 7)
        pause = worker.got("backpressure")[1]
        assert pause["queue_depth"] >= 3
        assert pause["recommended_delay_ms"] == 30_000 * 3 // 2  # three too many, two at a time, nothing known yet
        recovery = worker.got("backpressure")[-1]
        assert recovery["recommended_delay_ms"] == 0
        assert (recovery["severity"], recovery["action"], recovery["current_inflight"]) == ("low", "none", 1)
        assert recovery["threshold_exceeded"] is None
        assert worker.times("backpressure")[-1] == 6


async def test_max_inflight_is_never_exceeded(autojump_clock: MockClock) -> None:
    tts = ScriptedTts(script=lambda _: Step(tone(1), 1))
    async with memory_server(scripted_models(tts=tts), Settings(tts_slots=10)) as server:
        worker = await opened(server, max_inflight=3)
        await send(worker, *range(9))
        await worker.wait_for("fragment:processed", 9)
        assert tts.most_running == 3
        assert trio.current_time() == 3


async def test_one_streams_flood_does_not_delay_another(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1)), Settings(asr_slots=1)) as server:
        greedy = server.worker("greedy")
        await greedy.say("stream:init", stream_init("greedy", max_inflight=10, timeout_ms=30_000))
        for number in range(20):
            await greedy.say("fragment:data", fragment(number, "greedy"))
        modest = server.worker("modest")
        await modest.say("stream:init", stream_init("modest"))
        await trio.sleep(0.5)
        await modest.say("fragment:data", fragment(0, "modest"))
        await modest.wait_for("fragment:processed")
        assert trio.current_time() <= 2


# ---------------------------------------------------------------- failures


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
        assert worker.times("fragment:processed") == [1.1]


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
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert result["error"]["code"] == "INTERNAL_ERROR"
        assert "secret" not in str(result)


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


async def test_speech_too_long_at_any_speed_is_a_duration_mismatch(autojump_clock: MockClock) -> None:
    def long_speech(request: SpeechRequest) -> Step[Any]:
        return Step(tone(2.5 / request.rate))

    async with memory_server(scripted_models(tts=ScriptedTts(script=long_speech))) as server:
        worker = await opened(server)
        await send(worker, 0)
        (result,) = await worker.wait_for("fragment:processed")
        assert (result["error"]["code"], result["error"]["stage"]) == ("DURATION_MISMATCH_EXCEEDED", "tts")


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


# ---------------------------------------------------------------- the same fragment again


async def test_the_same_fragment_in_flight_is_acknowledged_again_and_processed_once(autojump_clock: MockClock) -> None:
    asr = slow_asr(1)
    async with memory_server(scripted_models(asr)) as server:
        worker = await opened(server)
        await send(worker, 0, 0)
        assert len(worker.got("fragment:ack")) == 2
        await trio.sleep(5)
        assert numbers(worker) == [0]
        assert len(asr.requests) == 1


async def test_a_finished_fragment_sent_again_gets_its_result_again(autojump_clock: MockClock) -> None:
    asr = ScriptedAsr()
    async with memory_server(scripted_models(asr)) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.wait_for("fragment:processed")
        await send(worker, 0)
        first, again = worker.got("fragment:processed")
        assert first == again
        assert len(asr.requests) == 1


async def test_a_retryable_failure_sent_again_is_processed_again_and_late(autojump_clock: MockClock) -> None:
    steps = iter([Step(EngineFailure(ErrorCode.GPU_OOM, "full")), Step(Transcript("hello")), Step(Transcript("hello"))])
    async with memory_server(scripted_models(ScriptedAsr(script=lambda _: next(steps)))) as server:
        worker = await opened(server)
        await send(worker, 0, 1)
        await worker.wait_for("fragment:processed", 2)
        await worker.say("fragment:ack", {"fragment_id": "f0", "status": "received", "timestamp": 1})
        await send(worker, 0)
        retried = (await worker.wait_for("fragment:processed", 3))[-1]
        assert (retried["sequence_number"], retried["status"], retried["metadata"]["late"]) == (0, "success", True)


async def test_a_retryable_failure_is_processed_again_while_its_result_is_kept(autojump_clock: MockClock) -> None:
    steps = iter([Step(EngineFailure(ErrorCode.GPU_OOM, "full")), Step(Transcript("hello"))])
    async with memory_server(scripted_models(ScriptedAsr(script=lambda _: next(steps)))) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.wait_for("fragment:processed")
        await send(worker, 0)
        assert (await worker.wait_for("fragment:processed", 2))[1]["status"] == "success"
        await worker.say("stream:end", {"stream_id": "s"})
        (complete,) = await worker.wait_for("stream:complete")
        assert (complete["total_fragments"], complete["failed_count"]) == (1, 1)  # first results count


async def test_two_fragments_cannot_use_one_number(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1))) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.say("fragment:data", fragment(0, fragment_id="other"))
        (refusal,) = worker.got("error")
        assert (refusal["code"], refusal["fragment_id"]) == ("INVALID_SEQUENCE", "other")


# ---------------------------------------------------------------- pause, end, disconnection


async def test_a_paused_stream_refuses_fragments_by_name_and_completes_what_is_in_flight(
    autojump_clock: MockClock,
) -> None:
    async with memory_server(scripted_models(slow_asr(1))) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.say("stream:pause", {"stream_id": "s", "reason": "ad break"})
        await send(worker, 1)
        (refusal,) = worker.got("error")
        assert (refusal["code"], refusal["fragment_id"], refusal["retryable"]) == ("STREAM_PAUSED", "f1", True)
        await worker.wait_for("fragment:processed")
        await worker.say("stream:resume", {"stream_id": "s"})
        await send(worker, 1, 2)
        await worker.wait_for("fragment:processed", 3)
        assert numbers(worker) == [0, 1, 2]


async def test_stream_end_completes_what_is_in_flight_then_closes(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1))) as server:
        worker = await opened(server)
        await send(worker, 0, 1, 2)
        await worker.say("stream:end", {"stream_id": "s"})
        (complete,) = await worker.wait_for("stream:complete")
        assert numbers(worker) == [0, 1, 2]
        assert worker.received[-1][1] == "stream:complete"
        assert complete["total_fragments"] == complete["success_count"] == 3
        assert complete["total_duration_ms"] == 3_000
        assert complete["statistics"] == {
            "success_count": 3,
            "partial_count": 0,
            "failed_count": 0,
            "avg_processing_time_ms": 2_000,
            "p95_processing_time_ms": 3_000,
        }
        await trio.sleep(4.9)
        closed_early = worker.closed
        await trio.sleep(0.2)
        assert (closed_early, worker.closed) == (False, True)
        assert server.gateway.active_streams == 0


async def test_a_gap_at_the_end_is_given_up_at_once(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        await send(worker, 0, 2)
        await worker.say("stream:end", {"stream_id": "s"})
        await worker.wait_for("stream:complete")
        assert numbers(worker) == [0, 2]
        assert worker.got("error")[0]["metadata"] == {"missing": [1]}
        assert trio.current_time() == 0


@pytest.mark.parametrize("event", ["stream:pause", "stream:resume"])
async def test_nothing_revives_a_stream_that_is_ending(event: str, autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1))) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.say("stream:end", {"stream_id": "s"})
        await worker.say(event, {"stream_id": "s"})
        await send(worker, 1)
        assert worker.got("error")[-1]["fragment_id"] == "f1"
        await worker.wait_for("stream:complete")


async def test_a_fragment_after_the_end_is_refused_by_name(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1))) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.say("stream:end", {"stream_id": "s"})
        await send(worker, 1)
        assert worker.got("error")[0]["fragment_id"] == "f1"
        await worker.wait_for("stream:complete")


async def test_a_worker_that_comes_back_in_time_gets_what_it_has_not_acknowledged(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1))) as server:
        worker = await opened(server)
        session_id = worker.got("stream:ready")[0]["session_id"]
        await send(worker, 0, 1, 2)
        await worker.wait_for("fragment:processed")
        await worker.say("fragment:ack", {"fragment_id": "f0", "status": "applied", "timestamp": 1})
        worker.disconnect()
        await trio.sleep(20)
        back = server.worker("back")
        await back.say("stream:init", stream_init(resume={"session_id": session_id}))
        await back.wait_for("fragment:processed", 2)
        assert numbers(back) == [1, 2]
        assert back.received[0][1] == "stream:ready"
        await send(back, 3)
        await back.wait_for("fragment:processed", 3)
        await back.say("stream:end", {"stream_id": "s"})
        assert (await back.wait_for("stream:complete"))[0]["total_fragments"] == 4


async def test_a_worker_that_was_told_to_pause_is_told_of_the_recovery_when_it_is_back(
    autojump_clock: MockClock,
) -> None:
    async with memory_server(scripted_models(slow_asr(1))) as server:
        worker = await opened(server, max_inflight=1)
        session_id = worker.got("stream:ready")[0]["session_id"]
        await send(worker, 0, 1, 2)
        assert worker.got("backpressure")[-1]["action"] == "pause"
        worker.disconnect()
        await trio.sleep(10)
        back = server.worker("back")
        await back.say("stream:init", stream_init(resume={"session_id": session_id}))
        assert [event["action"] for event in back.got("backpressure")] == ["none"]


async def test_what_is_sent_again_waits_for_the_connection_and_new_results_wait_behind_it(
    autojump_clock: MockClock,
) -> None:
    class SlowReader(MemoryWorker):
        async def drained(self) -> None:
            await trio.sleep(1)

    async with memory_server() as server:
        worker = await opened(server)
        session_id = worker.got("stream:ready")[0]["session_id"]
        await send(worker, 0, 1, 2)
        await worker.wait_for("fragment:processed", 3)
        worker.disconnect()
        back = SlowReader(server.gateway, "back")
        assert back.connect() is None
        await back.say("stream:init", stream_init(resume={"session_id": session_id}))
        await send(back, 3)
        await back.say("stream:end", {"stream_id": "s"})
        await back.wait_for("stream:complete")
        assert numbers(back) == [0, 1, 2, 3]
        assert back.times("fragment:processed") == [1, 2, 3, 4]
        assert back.times("stream:complete") == [4]


async def test_what_the_worker_says_it_has_is_not_sent_again(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        session_id = worker.got("stream:ready")[0]["session_id"]
        await send(worker, 0, 1, 2)
        await worker.wait_for("fragment:processed", 3)
        worker.disconnect()
        back = server.worker("back")
        resume = {"session_id": session_id, "next_sequence_number": 2}
        await back.say("stream:init", stream_init(resume=resume))
        await trio.sleep(1)
        assert numbers(back) == [2]


async def test_coming_back_stops_the_grace(autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(resume_grace_s=2)) as server:
        worker = await opened(server)
        session_id = worker.got("stream:ready")[0]["session_id"]
        worker.disconnect()
        back = server.worker("back")
        await back.say("stream:init", stream_init(resume={"session_id": session_id}))
        await trio.sleep(60)
        await send(back, 0)
        await back.wait_for("fragment:processed")


async def test_coming_back_in_the_moment_the_grace_ends_is_too_late(autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(resume_grace_s=2)) as server:
        worker = await opened(server)
        session_id = worker.got("stream:ready")[0]["session_id"]
        worker.disconnect()
        await trio.sleep(2)
        back = server.worker("back")
        await back.say("stream:init", stream_init(resume={"session_id": session_id}))
        assert [error["code"] for error in back.got("error")] == ["STREAM_NOT_FOUND"]


@pytest.mark.parametrize("stolen", [{"worker_id": "thief"}, {"resume": {"session_id": "guessed"}}])
async def test_a_session_cannot_be_stolen(stolen: dict[str, Any], autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        session_id = worker.got("stream:ready")[0]["session_id"]
        thief = server.worker("thief")
        await thief.say("stream:init", stream_init(**{"resume": {"session_id": session_id}} | stolen))
        assert [error["code"] for error in thief.got("error")] == ["STREAM_NOT_FOUND"]


async def test_a_stream_whose_worker_stays_away_is_cancelled_after_the_grace(autojump_clock: MockClock) -> None:
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello"), HANG))
    async with memory_server(scripted_models(asr), Settings(resume_grace_s=2)) as server:
        worker = await opened(server)
        await send(worker, 0, 1, 2, 3)
        worker.disconnect()
        await trio.sleep(1.9)
        assert server.gateway.active_streams == 1
        await trio.sleep(0.2)
        assert server.gateway.active_streams == 0
        assert server.in_flight == 0
        assert asr.running == 0


async def test_starting_afresh_cancels_the_old_stream(autojump_clock: MockClock) -> None:
    asr = slow_asr(5)
    async with memory_server(scripted_models(asr)) as server:
        worker = await opened(server)
        await send(worker, 0)
        await trio.sleep(1)
        await worker.say("stream:init", stream_init())
        await trio.testing.wait_all_tasks_blocked()
        assert asr.cancelled == 1
        await send(worker, 0)
        await worker.wait_for("fragment:processed")
        assert trio.current_time() == 6
        assert server.gateway.active_streams == 1


async def test_nothing_of_a_stream_is_left_behind(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1))) as server:
        for _ in range(3):
            worker = server.worker()
            await worker.say("stream:init", stream_init())
            await send(worker, 0, 1, 2, 3, 4)
            await trio.sleep(1.5)
            await worker.say("stream:end", {"stream_id": "s"})
            await worker.wait_for("stream:complete")
            await trio.sleep(6)
        assert server.in_flight == 0
        assert server.gateway.active_streams == 0
        assert server.metrics.registry.get_sample_value("sts_streams_active") == 0
