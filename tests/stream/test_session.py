"""One stream from its worker's point of view: what comes back, acknowledgement and flow control, on virtual time."""

from __future__ import annotations

import numpy as np
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protocol.errors import ErrorCode
from sts_trio.config import Settings
from sts_trio.engines.base import EngineFailure, Transcript, Translation
from sts_trio.testing.engines import ScriptedAsr, ScriptedTranslation, ScriptedTts, Step, scripted_models, tone
from sts_trio.testing.memory import memory_server
from sts_trio.testing.payloads import fragment, stream_init

from .helpers import opened, pcm, send, slow_asr

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


async def test_after_a_failure_nothing_is_known_of_what_was_said_before(autojump_clock: MockClock) -> None:
    heard = iter((Transcript("one"), EngineFailure(ErrorCode.GPU_OOM, "no"), Transcript("three"), Transcript("four")))
    asr = ScriptedAsr(script=lambda _: Step(next(heard)))
    async with memory_server(scripted_models(asr)) as server:
        worker = await opened(server)
        for number in range(4):
            await send(worker, number)
            await worker.wait_for("fragment:processed", number + 1)
    assert [request.previous_text for request in asr.requests] == ["", "one", "", "three"]


async def test_what_was_said_before_a_hole_is_not_what_was_said_before(autojump_clock: MockClock) -> None:
    asr = ScriptedAsr()
    async with memory_server(scripted_models(asr)) as server:
        worker = await opened(server)
        await send(worker, 0)
        undecodable = fragment(1)
        undecodable["audio"] |= {"format": "wav"}
        await worker.say("fragment:data", undecodable)
        await send(worker, 2, 3)
        await worker.wait_for("fragment:processed", 4)
    assert [request.previous_text for request in asr.requests] == ["", "", "hello"]


async def test_who_of_several_translated_is_told(autojump_clock: MockClock) -> None:
    said = iter((Translation("uno", model="first"), Translation("dos", model="second"), Translation("tres")))
    translation = ScriptedTranslation(name="first,second", script=lambda _: Step(next(said)))
    async with memory_server(scripted_models(translation=translation)) as server:
        worker = await opened(server)
        await send(worker, 0, 1, 2)
        results = await worker.wait_for("fragment:processed", 3)
        assert [result["metadata"]["translation_model"] for result in results] == ["first", "second", "first,second"]
        value = server.metrics.registry.get_sample_value
        assert value("sts_translations_total", {"provider": "second"}) == 1


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


async def test_as_many_as_are_processed_at_once_are_never_queued(autojump_clock: MockClock) -> None:
    for ticks in range(20):  # between one fragment and the next
        async with memory_server(scripted_models(slow_asr(1))) as server:
            worker = await opened(server, max_inflight=3)
            for number in range(4):
                await send(worker, number)
                for _ in range(ticks):
                    await trio.lowlevel.checkpoint()
            positions = [ack["queue_position"] for ack in worker.got("fragment:ack")]
            assert positions == [0, 0, 0, 1], ticks


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


async def test_what_can_be_processed_at_once_is_never_refused(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1)), Settings(backpressure_critical=1)) as server:
        worker = await opened(server, max_inflight=3)
        await send(worker, 0, 1, 2, 3)
        assert [error["fragment_id"] for error in worker.got("error")] == ["f3"]


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
