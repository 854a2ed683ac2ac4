"""A stream's order: results, gaps, refused numbers, the same fragment again."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protocol.dubbing import Audio, FragmentData, payload
from protocol.errors import ErrorCode
from sts_trio.config import Settings
from sts_trio.engines.base import EngineFailure, Transcript, Translation, TranslationRequest
from sts_trio.testing.engines import ScriptedAsr, ScriptedTranslation, Step, scripted_models
from sts_trio.testing.memory import memory_server
from sts_trio.testing.payloads import fragment

from .helpers import numbers, opened, send, slow_asr

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
        assert warning["retryable"] is False
        assert worker.times("error") == [4]
        await send(worker, 1)
        assert worker.got("error")[1]["code"] == "INVALID_SEQUENCE"


@pytest.mark.parametrize("broken", [False, True])
async def test_what_waits_for_a_missing_number_holds_its_result_and_no_more(
    broken: bool, autojump_clock: MockClock
) -> None:
    def ten_seconds(number: int) -> dict[str, Any]:
        rate = 96_000
        audio = Audio("wav" if broken else "pcm_s16le", rate, 1, 10_000, bytes(10 * 2 * rate))
        return payload(FragmentData(f"f{number}", "s", number, 0, audio))

    async with memory_server() as server:
        worker = await opened(server)
        await worker.say("fragment:data", ten_seconds(0))
        await worker.wait_for("fragment:processed")
        tracemalloc.start()
        try:
            for number in range(2, 6):
                await worker.say("fragment:data", ten_seconds(number))
                await trio.sleep(0.1)
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert numbers(worker) == [0]
        # Of the 2 MB that came, and more on the way, a result has 160 kB in the stream's own kind of audio.
        assert held_bytes < 4 * 300_000


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
        await worker.say("stream:end", {"stream_id": "s"})
        (complete,) = await worker.wait_for("stream:complete")
        assert complete["total_fragments"] == complete["success_count"] == 3  # it had no result before


async def test_a_first_fragment_that_is_refused_holds_nobody_up_either(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        await worker.say("fragment:data", fragment(0) | {"timestamp": "today"})
        await send(worker, 1)
        await worker.wait_for("fragment:processed")
        await send(worker, 0)
        late = (await worker.wait_for("fragment:processed", 2))[-1]
        assert (late["sequence_number"], late["metadata"]["late"]) == (0, True)
        assert trio.current_time() == 0
        await worker.say("fragment:data", fragment(0, fragment_id="new"))  # before the stream's start is after the end
        assert worker.got("error")[-1]["code"] == "INVALID_SEQUENCE"


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


@pytest.mark.parametrize("outcome", [Transcript("hello"), EngineFailure(ErrorCode.ASR_FAILED, "no")])
async def test_a_finished_fragment_sent_again_gets_its_result_again(
    outcome: Transcript | EngineFailure, autojump_clock: MockClock
) -> None:
    """A success, and a failure that stays one."""
    asr = ScriptedAsr(script=lambda _: Step(outcome))
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


async def test_a_retry_waits_behind_what_waits_already(autojump_clock: MockClock) -> None:
    """A worker that sends its failures again and again still gets the results of what is live."""
    fails = itertools.chain([True], itertools.repeat(False))
    asr = ScriptedAsr(
        script=lambda _: Step(EngineFailure(ErrorCode.GPU_OOM, "full") if next(fails) else Transcript("hello"), 1.0)
    )
    async with memory_server(scripted_models(asr)) as server:
        worker = await opened(server, max_inflight=1)
        await send(worker, 0)
        await worker.wait_for("fragment:processed")
        await send(worker, 1, 2, 0, 3)
        acknowledged = [ack["queue_position"] for ack in worker.got("fragment:ack")[1:]]
        assert acknowledged == [0, 1, 2, 3]
        await worker.wait_for("fragment:processed", 5)
        assert numbers(worker) == [0, 1, 2, 0, 3]


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


async def test_what_the_worker_has_acknowledged_cannot_be_had_again(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.wait_for("fragment:processed")
        await worker.say("fragment:ack", {"fragment_id": "f0", "status": "applied", "timestamp": 1})
        await send(worker, 0)
        (refusal,) = worker.got("error")
        assert (refusal["code"], refusal["fragment_id"]) == ("INVALID_SEQUENCE", "f0")


async def test_what_is_in_flight_is_acknowledged_again_whatever_the_stream_takes(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1)), Settings(backpressure_critical=1)) as server:
        worker = await opened(server, max_inflight=1)
        await send(worker, 0, 0)  # there would be no room for another one
        for event in ("stream:pause", "stream:end"):
            await worker.say(event, {"stream_id": "s"})
            await send(worker, 0)
        assert len(worker.got("fragment:ack")) == 4
        assert worker.got("error") == []
        await worker.wait_for("stream:complete")
        assert numbers(worker) == [0]


async def test_a_retry_that_is_refused_may_come_again(autojump_clock: MockClock) -> None:
    steps: Iterator[Step[Transcript]] = iter([Step(EngineFailure(ErrorCode.GPU_OOM, "full"))])
    asr = ScriptedAsr(script=lambda _: next(steps, Step(Transcript("hello"), 1)))
    async with memory_server(scripted_models(asr)) as server:
        worker = await opened(server, max_inflight=1)
        await send(worker, 0)
        await worker.wait_for("fragment:processed")
        await send(worker, 1, 2, 3, 4, 0)  # as many as may be in flight, and one more
        assert [(error["code"], error["fragment_id"]) for error in worker.got("error")] == [
            ("BACKPRESSURE_EXCEEDED", "f0")
        ]
        await worker.wait_for("fragment:processed", 5)
        await send(worker, 0)
        retried = (await worker.wait_for("fragment:processed", 6))[-1]
        assert (retried["sequence_number"], retried["status"], retried["metadata"]["late"]) == (0, "success", True)
        assert numbers(worker) == [0, 1, 2, 3, 4, 0]


async def test_two_fragments_cannot_use_one_number(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1))) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.say("fragment:data", fragment(0, fragment_id="other"))
        (refusal,) = worker.got("error")
        assert (refusal["code"], refusal["fragment_id"]) == ("INVALID_SEQUENCE", "other")
