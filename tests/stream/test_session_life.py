"""How a stream pauses, ends, loses its worker and gets it back."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protocol.errors import ErrorCode
from sts_trio.config import Settings
from sts_trio.engines.base import EngineFailure, Transcript
from sts_trio.testing.engines import HANG, ScriptedAsr, ScriptedTts, Step, scripted_models, tone
from sts_trio.testing.memory import MemoryServer, MemoryWorker, memory_server
from sts_trio.testing.payloads import fragment, stream_init

from .helpers import numbers, opened, pcm, send, slow_asr


class SlowReader(MemoryWorker):
    async def drained(self) -> None:
        await trio.sleep(1)


async def back_on_a_slow_line(server: MemoryServer, worker: MemoryWorker) -> MemoryWorker:
    """`worker` loses its connection and is back at once, over one that takes a second for each result."""
    worker.disconnect()
    back = SlowReader(server.gateway, "back")
    assert back.connect() is None
    session_id = worker.got("stream:ready")[0]["session_id"]
    await back.say("stream:init", stream_init(resume={"session_id": session_id}))
    return back


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
    async with memory_server() as server:
        worker = await opened(server)
        await send(worker, 0, 1, 2)
        await worker.wait_for("fragment:processed", 3)
        back = await back_on_a_slow_line(server, worker)
        await send(back, 3)
        await back.say("stream:end", {"stream_id": "s"})
        await back.wait_for("stream:complete")
        assert numbers(back) == [0, 1, 2, 3]
        assert back.times("fragment:processed") == [1, 2, 3, 4]
        assert back.times("stream:complete") == [4]


async def test_a_result_too_large_to_be_kept_leaves_also_while_others_are_sent_again(autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(result_buffer_bytes=20_000)) as server:
        worker = await opened(server)
        await worker.say("fragment:data", fragment(0, duration_ms=100))
        await worker.wait_for("fragment:processed")
        back = await back_on_a_slow_line(server, worker)
        await back.say("fragment:data", fragment(1, duration_ms=10_000))
        await back.say("stream:end", {"stream_id": "s"})
        await back.wait_for("stream:complete")
        assert numbers(back) == [1]


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


async def test_what_is_acknowledged_before_it_was_sent_again_is_not_sent_again(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        await send(worker, 0, 1, 2)
        await worker.wait_for("fragment:processed", 3)
        back = await back_on_a_slow_line(server, worker)
        await back.say("fragment:ack", {"fragment_id": "f1", "status": "applied", "timestamp": 1})
        await back.say("stream:end", {"stream_id": "s"})
        await back.wait_for("stream:complete")
        assert numbers(back) == [0, 2]


async def test_a_stream_that_has_just_completed_is_not_taken_over(autojump_clock: MockClock) -> None:
    outcomes = set()
    for ticks in range(50):  # around the very moment
        async with memory_server() as server:
            old, new = await opened(server), server.worker("new")
            await send(old, 0)
            await old.wait_for("fragment:processed")
            await old.say("stream:end", {"stream_id": "s"})
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            session_id = old.got("stream:ready")[0]["session_id"]
            answer = await new.say("stream:init", stream_init(resume={"session_id": session_id}))
            await trio.sleep(1)
            events = [event for _, event, _ in new.received]
            outcomes.add(answer.get("code", "resumed"))
            assert events in (["stream:ready", "fragment:processed", "stream:complete"], ["error"]), ticks
    assert outcomes == {"resumed", "STREAM_NOT_FOUND"}


async def test_a_worker_whose_stream_has_completed_is_not_told_of_the_next_one(autojump_clock: MockClock) -> None:
    for ticks in range(50):
        async with memory_server() as server:
            old, new = await opened(server), server.worker("new")
            await old.say("stream:end", {"stream_id": "s"})
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            await new.say("stream:init", stream_init())
            await trio.sleep(1)
            assert len(old.got("stream:complete")) + len(old.got("error")) == 1, ticks


async def test_a_late_retry_is_sent_again_whatever_the_worker_says_it_has(autojump_clock: MockClock) -> None:
    steps = iter([Step(EngineFailure(ErrorCode.GPU_OOM, "full")), Step(Transcript("hello")), Step(Transcript("hello"))])
    async with memory_server(scripted_models(ScriptedAsr(script=lambda _: next(steps)))) as server:
        worker = await opened(server)
        session_id = worker.got("stream:ready")[0]["session_id"]
        await send(worker, 0, 1)
        await worker.wait_for("fragment:processed", 2)
        await send(worker, 0)
        worker.disconnect()
        await trio.sleep(1)
        back = server.worker("back")
        resume = {"session_id": session_id, "next_sequence_number": 2}  # it has a result of 0, but not of the retry
        await back.say("stream:init", stream_init(resume=resume))
        (retried,) = await back.wait_for("fragment:processed")
        assert (retried["sequence_number"], retried["status"], retried["metadata"]["late"]) == (0, "success", True)


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


async def test_a_grace_that_was_not_needed_costs_no_fragment_anything(autojump_clock: MockClock) -> None:
    """A call that began while the worker was away goes on past the end that the grace would have had."""
    async with memory_server(scripted_models(slow_asr(4)), Settings(resume_grace_s=5)) as server:
        worker = server.worker("first")
        wanted = stream_init(timeout_ms=20_000, max_inflight=1)
        session_id = (await worker.say("stream:init", wanted))["session_id"]
        await send(worker, 0, 1)
        await trio.sleep(1)
        worker.disconnect()
        await trio.sleep(4)
        again = server.worker("second")
        await again.say("stream:init", wanted | {"resume": {"session_id": session_id}})
        results = await again.wait_for("fragment:processed", 2)
        assert [result["status"] for result in results] == ["success", "success"]
        assert trio.current_time() == 8


async def test_what_is_refused_while_the_stream_is_abandoned_disturbs_nothing(autojump_clock: MockClock) -> None:
    """The number that was missing comes too late, when all that waited for it has just got its result."""
    settings = Settings(gap_timeout_ms=60_000)
    async with memory_server(scripted_models(), settings) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.wait_for("fragment:processed")
        await send(worker, 2)
        await trio.sleep(1)
        server.gateway.abandon()
        await send(worker, 1)
        await worker.wait_for("stream:complete")
        assert numbers(worker) == [0, 2]


async def test_that_it_may_go_on_is_told_again_to_who_comes_back(autojump_clock: MockClock) -> None:
    """It was told over a connection that was half dead: a worker that pauses when it is told would pause for ever."""
    async with memory_server(scripted_models(slow_asr(1))) as server:
        worker = server.worker("half dead")
        session_id = (await worker.say("stream:init", stream_init(max_inflight=1)))["session_id"]
        await send(worker, 0, 1, 2)
        await worker.wait_for("fragment:processed", 3)
        assert [event["action"] for event in worker.got("backpressure")] == ["slow_down", "pause", "none"]
        back = server.worker("back")
        await back.say("stream:init", stream_init(max_inflight=1, resume={"session_id": session_id}))
        assert [event["action"] for event in back.got("backpressure")] == ["none"]


async def test_no_connection_waits_for_the_one_before_it(autojump_clock: MockClock) -> None:
    """A connection that takes nothing any more, in the middle of what it gets again, loses the stream to the next."""

    class Stuck(MemoryWorker):
        async def drained(self) -> None:
            await trio.sleep_forever()

    async with memory_server() as server:
        worker = server.worker("first")
        session_id = (await worker.say("stream:init", stream_init()))["session_id"]
        await send(worker, 0, 1)
        await worker.wait_for("fragment:processed", 2)
        worker.disconnect()
        stuck = Stuck(server.gateway, "stuck")
        assert stuck.connect() is None
        resume = stream_init(resume={"session_id": session_id})
        await stuck.say("stream:init", resume)
        await trio.sleep(1)
        assert numbers(stuck) == []
        back = server.worker("back")
        await back.say("stream:init", resume)
        await send(back, 2)
        await back.wait_for("fragment:processed", 3)
        assert numbers(back) == [0, 1, 2]
        assert trio.current_time() == 1


async def test_what_is_abandoned_is_told_its_stage_and_has_the_fallback_that_is_ready(
    autojump_clock: MockClock,
) -> None:
    heard = iter([Step(Transcript("hello"))])
    asr = ScriptedAsr(script=lambda _: next(heard, Step(Transcript("hello"), HANG)))
    models = scripted_models(asr, tts=ScriptedTts(script=lambda _: Step(tone(1), HANG)))
    async with memory_server(models, Settings(fallback_mode="original")) as server:
        worker = await opened(server, max_inflight=2)
        await send(worker, 0, 1, 2)
        await worker.say("fragment:data", fragment(3, duration_ms=500))
        await trio.sleep(1)
        server.gateway.abandon()
        results = await worker.wait_for("fragment:processed", 4)
        assert [result["error"]["stage"] for result in results] == ["tts", "asr", "decode", "decode"]
        assert [pcm(result).any() for result in results[:3]] == [True, True, False]  # not begun: silence
        assert "dubbed_audio" not in results[3]  # of that length there is none yet
        assert results[3]["metadata"]["dubbed_duration_ms"] == 0


async def test_a_stream_that_has_completed_is_not_completed_again(autojump_clock: MockClock) -> None:
    """The time for draining may be over in the very moment in which the last stream completes."""
    async with memory_server() as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.wait_for("fragment:processed")
        await worker.say("stream:end", {"stream_id": "s"})
        while not worker.got("stream:complete"):
            await trio.lowlevel.checkpoint()
        server.gateway.abandon()
        await trio.sleep(1)
        assert len(worker.got("stream:complete")) == 1
