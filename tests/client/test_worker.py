"""How a well-behaved worker behaves, against a scripted server on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protocol.dubbing import FragmentData, FragmentProcessed, ResultAck, StreamEnd, StreamInit, payload
from protocol.errors import ErrorCode
from sts_trio.client import worker as worker_module
from sts_trio.client.connection import ConnectionLost, DubbingRefused, ServerUnreachable
from sts_trio.client.fragments import MAX_ATTEMPTS, MAX_REFUSALS
from sts_trio.client.worker import Stream, Worker, open_worker

from .fake_server import (
    CONFIG,
    URL,
    FakeServer,
    Gone,
    Peer,
    Script,
    acknowledged,
    backpressure,
    complete,
    dubbed,
    failed,
    gap_warning,
    ready,
    refused,
    taken,
    tone,
)

STREAM = Stream(config=CONFIG, stream_id="stream")


@asynccontextmanager
async def worker_on(*scripts: Script, token: str | None = None) -> AsyncIterator[tuple[Worker, FakeServer]]:
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery, *scripts)
        async with open_worker(URL, STREAM, token=token, open_stream=server.open_stream) as worker:
            yield worker, server
        nursery.cancel_scope.cancel()


async def dub(worker: Worker, fragments: int) -> list[FragmentProcessed]:
    """Send this many fragments and take all results."""
    results: list[FragmentProcessed] = []
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for number in range(fragments):
                await worker.send(tone(number))
            worker.end()

        nursery.start_soon(send)
        async for result in worker:
            results.append(result)  # noqa: PERF401 - an async comprehension would hide when each is taken
    return results


async def serve(peer: Peer) -> None:
    await peer.open()
    await peer.dub_rest()


# ---------------------------------------------------------------------------------------------- the plain way


async def test_every_fragment_comes_back_in_order(autojump_clock: MockClock) -> None:
    async with worker_on(serve) as (worker, _):
        results = await dub(worker, 5)
    assert [result.sequence_number for result in results] == [0, 1, 2, 3, 4]
    assert [result.dubbed_audio for result in results] == [tone(number) for number in range(5)]
    assert worker.complete == complete()


async def test_every_result_is_acknowledged_as_applied_before_the_stream_ends(autojump_clock: MockClock) -> None:
    async with worker_on(serve) as (worker, server):
        results = await dub(worker, 3)
    heard = server.peers[0].heard
    assert acknowledged(server.peers[0]) == [result.fragment_id for result in results]
    assert {event.status for event in heard if isinstance(event, ResultAck)} == {"applied"}
    assert isinstance(heard[-1], StreamEnd)
    assert server.peers[0].left_politely


async def test_it_introduces_itself(autojump_clock: MockClock) -> None:
    async with worker_on(serve, token="secret") as (worker, server):
        await dub(worker, 1)
    assert server.requests[0][b"x-stream-id"] == b"stream"
    assert server.requests[0][b"x-worker-id"] == b"sts-trio"
    assert server.peers[0].auth == {"token": "secret"}
    assert server.peers[0].heard[0] == StreamInit("stream", "sts-trio", CONFIG)


async def test_audio_travels_as_an_attachment_where_the_server_takes_those(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open(binary=True)
        await peer.dub_rest()

    async with worker_on(script) as (worker, server):
        (result,) = await dub(worker, 1)
    sent = next(event for event in server.peers[0].heard if isinstance(event, FragmentData))
    assert sent.audio.binary
    assert result.dubbed_audio is not None
    assert result.dubbed_audio.data == tone(0).data


async def test_no_more_than_max_inflight_are_on_their_way(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open(max_inflight=2)
        for _ in range(3):
            first, second = await peer.receive_one(FragmentData), await peer.receive_one(FragmentData)
            with trio.move_on_after(5):
                pytest.fail(f"a third fragment was sent: {await peer.receive_one(FragmentData)}")
            await peer.send(dubbed(first), dubbed(second))
        await peer.dub_rest()

    async with worker_on(script) as (worker, _):
        assert len(await dub(worker, 6)) == 6


async def test_a_result_counts_until_it_is_applied(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open(max_inflight=1)
        await peer.dub_rest()

    async with worker_on(script) as (worker, server):
        await worker.send(tone())
        await anext(worker)
        with trio.move_on_after(10) as waited:
            await worker.send(tone())
        assert waited.cancelled_caught
        assert acknowledged(server.peers[0]) == []


async def test_whoever_is_cancelled_has_taken_and_sent_nothing(autojump_clock: MockClock) -> None:
    async with worker_on(serve) as (worker, server):
        await worker.send(tone())
        await worker.send(tone())
        await trio.sleep(1)
        for step in (lambda: anext(worker), lambda: worker.send(tone())):
            with trio.CancelScope() as scope:
                scope.cancel()
                await step()
            assert scope.cancelled_caught
        assert (await anext(worker)).sequence_number == 0
        await trio.sleep(1)
        assert acknowledged(server.peers[0]) == []
        assert (await anext(worker)).sequence_number == 1
        assert await worker.send(tone()) == 2


async def test_pings_are_answered(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        fragment = await peer.receive_one(FragmentData)
        await trio.sleep(80)
        await peer.send(dubbed(fragment))
        await peer.dub_rest()

    async with worker_on(script) as (worker, server):
        assert len(await dub(worker, 1)) == 1
    assert server.peers[0].pongs == 3


# ---------------------------------------------------------------------------------------------- backpressure


async def test_a_pause_holds_fragments_back_until_recovery(autojump_clock: MockClock) -> None:
    sent_at: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.open(max_inflight=2)
        first = await peer.receive_one(FragmentData)
        await peer.receive_one(FragmentData)
        await peer.send(backpressure("pause"), dubbed(first))
        await peer.receive_one(ResultAck)
        with trio.move_on_after(30):
            pytest.fail(f"sent in spite of the pause: {await peer.receive_one(FragmentData)}")
        await peer.send(backpressure("none"))
        await peer.receive_one(FragmentData)
        sent_at.append(trio.current_time())
        raise Gone

    start = trio.current_time()
    async with worker_on(script, serve) as (worker, _):
        await dub(worker, 3)
    assert sent_at == [pytest.approx(start + 30, abs=0.1)]


async def test_slow_down_spaces_fragments_by_the_recommended_delay(autojump_clock: MockClock) -> None:
    times: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.open(max_inflight=2)
        await peer.send(backpressure("slow_down", delay_ms=3_000))
        while len(times) < 4:
            match await peer.receive():
                case FragmentData() as fragment:
                    times.append(trio.current_time())
                    await peer.send(dubbed(fragment))
        await peer.send(backpressure("none"))
        await peer.dub_rest()

    async with worker_on(script) as (worker, _):
        await trio.testing.wait_all_tasks_blocked()
        await dub(worker, 5)
    assert [b - a for a, b in pairwise(times)] == [pytest.approx(3)] * 3


# ---------------------------------------------------------------------------------------------- failures and refusals


async def test_a_failure_that_may_pass_is_tried_again_under_the_same_id(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        first = await peer.receive_one(FragmentData)
        await peer.send(failed(first, ErrorCode.TIMEOUT))
        second = await peer.receive_one(FragmentData)
        assert second == first
        await peer.send(dubbed(second))
        await peer.dub_rest()

    async with worker_on(script) as (worker, server):
        (result,) = await dub(worker, 1)
    assert result.status == "success"
    assert acknowledged(server.peers[0]) == [result.fragment_id]


async def test_after_a_few_attempts_a_failure_counts(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        for _ in range(MAX_ATTEMPTS):
            await peer.send(failed(await peer.receive_one(FragmentData), ErrorCode.TIMEOUT))
        await peer.dub_rest()

    async with worker_on(script) as (worker, _):
        (result,) = await dub(worker, 1)
    assert result.status == "failed"


async def test_a_failure_for_good_is_not_tried_again(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.send(failed(await peer.receive_one(FragmentData), ErrorCode.ASR_FAILED))
        await peer.receive_one(ResultAck)
        await peer.receive_one(StreamEnd)
        await peer.send(complete())

    async with worker_on(script) as (worker, _):
        (result,) = await dub(worker, 1)
    assert result.error is not None
    assert result.error.code is ErrorCode.ASR_FAILED


@pytest.mark.parametrize("code", [ErrorCode.BACKPRESSURE_EXCEEDED, ErrorCode.STREAM_PAUSED])
async def test_a_fragment_refused_for_now_is_sent_again(autojump_clock: MockClock, code: ErrorCode) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        for _ in range(MAX_REFUSALS):
            await peer.send(refused(code, (await peer.receive_one(FragmentData)).fragment_id))
        await peer.dub_rest()

    async with worker_on(script) as (worker, _):
        assert [result.status for result in await dub(worker, 1)] == ["success"]


async def test_a_fragment_refused_for_good_fails_and_the_next_one_does_not(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        first = await peer.receive_one(FragmentData)
        await peer.send(refused(ErrorCode.FRAGMENT_TOO_LARGE, first.fragment_id))
        await peer.dub_rest()

    async with worker_on(script) as (worker, _):
        results = await dub(worker, 2)
    assert [result.status for result in results] == ["failed", "success"]
    assert results[0].error is not None
    assert results[0].error.code is ErrorCode.FRAGMENT_TOO_LARGE


async def test_a_gap_is_a_warning_and_no_refusal(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        first = await peer.receive_one(FragmentData)
        await peer.send(gap_warning(), dubbed(first))
        await peer.dub_rest()

    async with worker_on(script) as (worker, server):
        assert [result.status for result in await dub(worker, 2)] == ["success", "success"]
    assert len(server.peers) == 1


async def test_a_server_that_refuses_for_ever_does_not_hold_us_for_ever(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        while True:
            event = await peer.receive()
            if isinstance(event, FragmentData):
                await peer.send(refused(ErrorCode.BACKPRESSURE_EXCEEDED, event.fragment_id))
            elif isinstance(event, StreamEnd):
                await peer.send(complete())

    async with worker_on(script) as (worker, _):
        (result,) = await dub(worker, 1)
    assert result.status == "failed"


# ---------------------------------------------------------------------------------------------- reconnecting


async def test_a_dropped_connection_is_resumed_and_what_had_no_result_is_sent_again(autojump_clock: MockClock) -> None:
    async def dropping(peer: Peer) -> None:
        await peer.open(max_inflight=3, session_id="s1")
        first = await peer.receive_one(FragmentData)
        await peer.receive_one(FragmentData)
        await peer.send(dubbed(first))
        await peer.receive_one(FragmentData)

    async def resuming(peer: Peer) -> None:
        init = await peer.open(max_inflight=3, session_id="s1")
        assert init.resume is not None
        assert (init.resume.session_id, init.resume.next_sequence_number) == ("s1", 1)
        await peer.dub_rest()

    async with worker_on(dropping, resuming) as (worker, server):
        results = await dub(worker, 5)
    assert [result.sequence_number for result in results] == [0, 1, 2, 3, 4]
    again = [event for event in server.peers[1].heard if isinstance(event, FragmentData)]
    assert [fragment.sequence_number for fragment in again] == [1, 2, 3, 4]
    assert [event for event in server.peers[0].heard if isinstance(event, FragmentData)][1:] == again[:2]


async def test_a_result_that_comes_twice_counts_once(autojump_clock: MockClock) -> None:
    kept: list[FragmentData] = []

    async def dropping(peer: Peer) -> None:
        await peer.open()
        kept.append(await peer.receive_one(FragmentData))
        await peer.send(dubbed(kept[0]))

    async def resuming(peer: Peer) -> None:
        await peer.open()
        await peer.send(dubbed(kept[0]))
        await peer.dub_rest()

    async with worker_on(dropping, resuming) as (worker, server):
        results = await dub(worker, 3)
    assert [result.sequence_number for result in results] == [0, 1, 2]
    assert kept[0].fragment_id in acknowledged(server.peers[1])


async def test_a_server_that_forgot_the_session_gets_a_new_one(autojump_clock: MockClock) -> None:
    async def dropping(peer: Peer) -> None:
        await peer.open(session_id="s1")
        await peer.receive_one(FragmentData)

    async def forgetful(peer: Peer) -> None:
        await peer.accept()
        assert (await peer.receive_one(StreamInit)).resume is not None
        await peer.send(refused(ErrorCode.STREAM_NOT_FOUND))
        assert (await peer.receive_one(StreamInit)).resume is None
        await peer.send(ready(session_id="s2"))
        await peer.dub_rest()

    async with worker_on(dropping, forgetful) as (worker, _):
        assert len(await dub(worker, 3)) == 3
        assert worker.ready.session_id == "s2"


async def test_a_new_session_gets_everything_at_once_and_the_lowest_number_first(autojump_clock: MockClock) -> None:
    """It starts with the number that it is sent first: one that came later would be refused for good."""

    async def dropping(peer: Peer) -> None:
        await peer.open(session_id="s1")
        first = await peer.receive_one(FragmentData)
        await peer.receive_one(FragmentData)
        await peer.send(failed(first, ErrorCode.TIMEOUT))
        await peer.receive_one(FragmentData)
        await peer.send(failed(first, ErrorCode.TIMEOUT))  # it waits for longer than the reconnection takes

    async def forgetful(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_one(StreamInit)
        await peer.send(refused(ErrorCode.STREAM_NOT_FOUND))
        await peer.receive_one(StreamInit)
        await peer.send(ready(session_id="s2"))
        await peer.dub_rest()

    async with worker_on(dropping, forgetful) as (worker, server):
        await dub(worker, 2)
    sent = [event.sequence_number for event in server.peers[1].heard if isinstance(event, FragmentData)]
    assert sent == [0, 1]


async def test_a_silent_server_is_left_and_tried_again(autojump_clock: MockClock) -> None:
    async def silent(peer: Peer) -> None:
        await peer.open()
        await trio.sleep_forever()

    async with worker_on(silent, serve) as (worker, server):
        start = trio.current_time()
        assert len(await dub(worker, 1)) == 1
        assert worker_module.PATIENCE_S <= trio.current_time() - start <= worker_module.PATIENCE_S + 2
    assert len(server.peers) == 2


async def test_a_server_without_pings_is_lost(autojump_clock: MockClock) -> None:
    async def dead(peer: Peer) -> None:
        peer.alive = False
        await peer.open()
        await trio.sleep_forever()

    async with worker_on(dead, serve) as (worker, _):
        start = trio.current_time()
        await dub(worker, 1)
        assert 35 <= trio.current_time() - start <= 37


async def test_after_a_few_reconnections_without_a_result_it_gives_up(autojump_clock: MockClock) -> None:
    async def dropping(peer: Peer) -> None:
        await peer.open()

    async with worker_on(*[dropping] * 20) as (worker, server):
        with pytest.raises(ConnectionLost, match=r"dubbing\.test"):
            await dub_unwrapped(worker)
    assert len(server.peers) == worker_module.MAX_RECONNECTS + 1


async def dub_unwrapped(worker: Worker) -> None:
    await worker.send(tone())
    async for _ in worker:
        pass


async def dropping_at_the_end(peer: Peer) -> None:
    """Dubs everything; its ``stream:complete`` is lost with the connection."""
    await peer.open()
    while not isinstance(event := await peer.receive(), StreamEnd):
        if isinstance(event, FragmentData):
            await peer.send(dubbed(event))


async def test_a_lost_completion_is_said_again_by_the_session(autojump_clock: MockClock) -> None:
    async def resuming(peer: Peer) -> None:
        assert (await peer.open()).resume is not None
        await peer.send(complete())
        await peer.receive()

    async with worker_on(dropping_at_the_end, resuming) as (worker, _):
        assert len(await dub(worker, 2)) == 2
    assert worker.complete == complete()


async def test_a_session_that_is_gone_after_everything_was_applied_has_lost_nothing(autojump_clock: MockClock) -> None:
    async def forgetful(peer: Peer) -> None:
        await peer.accept()
        assert (await peer.receive_one(StreamInit)).resume is not None
        await peer.send(refused(ErrorCode.STREAM_NOT_FOUND))
        pytest.fail(f"it wants more: {await peer.receive()}")

    async with worker_on(dropping_at_the_end, forgetful) as (worker, server):
        assert [result.status for result in await dub(worker, 2)] == ["success", "success"]
    assert worker.complete is None
    assert len(server.peers) == 2


async def test_a_session_that_is_gone_before_it_hears_of_its_end_has_lost_nothing(autojump_clock: MockClock) -> None:
    async def cancelled(peer: Peer) -> None:
        await dropping_at_the_end(peer)
        await peer.send(refused(ErrorCode.STREAM_NOT_FOUND))
        await peer.receive()

    async with worker_on(cancelled) as (worker, _):
        assert len(await dub(worker, 2)) == 2
    assert worker.complete is None


async def test_a_server_that_is_gone_after_everything_was_applied_fails_nothing(autojump_clock: MockClock) -> None:
    async with worker_on(dropping_at_the_end) as (worker, _):
        assert len(await dub(worker, 2)) == 2
    assert worker.complete is None


# ---------------------------------------------------------------------------------------------- no stream at all


async def test_no_server(autojump_clock: MockClock) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with worker_on():
            pytest.fail("there is no server")
    assert caught.group_contains(ServerUnreachable, match=r"http://dubbing\.test: connection refused")


async def test_a_wrong_token_is_refused(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.reject("wrong token", {"code": "AUTH_FAILED"})

    with pytest.raises(ExceptionGroup) as caught:
        async with worker_on(script):
            pytest.fail("it was let in")
    assert caught.group_contains(DubbingRefused, match="AUTH_FAILED: wrong token")


async def test_a_stream_the_server_does_not_want(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_one(StreamInit)
        await peer.send(refused(ErrorCode.UNSUPPORTED_LANGUAGE))

    with pytest.raises(ExceptionGroup) as caught:
        async with worker_on(script):
            pytest.fail("it was let in")
    assert caught.group_contains(DubbingRefused, match="UNSUPPORTED_LANGUAGE")


async def test_a_server_that_is_full_says_so_at_once(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_one(StreamInit)
        await peer.send(refused(ErrorCode.TOO_MANY_STREAMS))
        await trio.sleep_forever()

    start = trio.current_time()
    with pytest.raises(ExceptionGroup) as caught:
        async with worker_on(script):
            pytest.fail("it was let in")
    assert caught.group_contains(DubbingRefused, match="TOO_MANY_STREAMS")
    assert trio.current_time() - start < 1


async def test_a_server_that_says_nothing_at_all(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        async with worker_on(script):
            pytest.fail("it was let in")
    assert caught.group_contains(ServerUnreachable, match="no answer within 20 s")


async def test_a_server_that_breaks_the_contract_is_left_for_good(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        fragment = await peer.receive_one(FragmentData)
        await peer.send(dubbed(fragment, sequence_number="one"))
        await trio.sleep_forever()

    async with worker_on(script, serve) as (worker, server):
        with pytest.raises(ConnectionLost, match="sequence_number"):
            await dub_unwrapped(worker)
    assert len(server.peers) == 1


async def test_the_words_of_a_newer_server_end_no_programme(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open(max_inflight=3)
        news = {"error_id": "e", "message": "new", "severity": "notice", "retryable": False, "stream_id": "stream"}
        await peer.send_raw("error", {**news, "code": "VOICE_WILL_CHANGE"})
        first, second, third = [await peer.receive_one(FragmentData) for _ in range(3)]
        await peer.send_raw("error", {**news, "code": "TOO_LOUD", "fragment_id": first.fragment_id})
        body = payload(failed(second, ErrorCode.ASR_FAILED))
        body["error"] = {**body["error"], "code": "LIPS_UNREADABLE", "stage": "lip_sync"}
        await peer.send_raw("fragment:processed", body)
        await peer.send(dubbed(third))
        await peer.dub_rest()

    async with worker_on(script) as (worker, server):
        results = await dub(worker, 4)
    assert [result.status for result in results] == ["failed", "failed", "success", "success"]
    assert [result.error.message for result in results if result.error] == [
        "TOO_LOUD: new",
        "LIPS_UNREADABLE: a scripted failure",
    ]
    assert len(server.peers) == 1


async def test_a_stream_that_is_refused_in_new_words(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_one(StreamInit)
        error = {"error_id": "e", "code": "ACCOUNT_CLOSED", "message": "new", "severity": "error", "retryable": False}
        await peer.send_raw("error", error)
        await peer.receive()

    with pytest.raises(ExceptionGroup) as caught:
        async with worker_on(script):
            pytest.fail("it was let in")
    assert caught.group_contains(DubbingRefused, match="ACCOUNT_CLOSED: new")


async def test_a_result_is_of_the_fragment_that_its_id_names(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        first, second = await peer.receive_one(FragmentData), await peer.receive_one(FragmentData)
        await peer.send(dubbed(first, sequence_number=77), dubbed(second, sequence_number=0))
        await peer.dub_rest()

    async with worker_on(script) as (worker, _):
        results = await dub(worker, 2)
    assert [(result.sequence_number, result.dubbed_audio) for result in results] == [(0, tone(0)), (1, tone(1))]


async def test_an_error_of_the_user_arrives_as_it_is(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery, serve)
        with pytest.raises(ZeroDivisionError):
            async with open_worker(URL, STREAM, open_stream=server.open_stream):
                raise ZeroDivisionError


async def test_leaving_early_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.send(taken(await peer.receive_one(FragmentData)))
        await trio.sleep_forever()

    async with worker_on(script) as (worker, _):
        await worker.send(tone())
        await trio.testing.wait_all_tasks_blocked()
