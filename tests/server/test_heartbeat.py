"""A worker's connection on virtual time: pings to the millisecond, slow readers and dead ones, and other bounds."""

from __future__ import annotations

import pytest
import structlog.testing
import trio
import trio.testing
from trio.testing import MockClock, lockstep_stream_pair

from protocol.engineio import CloseReason
from sts_trio.server.websocket import PIECE

from .memory import SlowLink
from .recorder import connected

# -------------------------------------------------------------------------------------- heartbeat


async def test_a_ping_leaves_every_interval_after_the_last_answer(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        assert await scene.worker.frame() == "2"
        assert trio.current_time() == 25
        await trio.sleep(9.999)
        await scene.worker.send("3")
        assert await scene.worker.frame() == "2"
        assert trio.current_time() == pytest.approx(34.999 + 25, abs=1e-9)


async def test_a_worker_that_does_not_answer_a_ping_is_gone_to_the_millisecond(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        assert await scene.worker.frame() == "2"
        await trio.sleep(9.999)
        assert scene.application.gone == []
        await trio.sleep(0.001)
        assert await scene.worker.wait_closed() == 1006
        assert trio.current_time() == 35
    assert scene.application.gone == [(scene.application.peers[0].id, CloseReason.PING_TIMEOUT)]


async def test_an_answer_just_in_time_counts(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        for _ in range(10):
            assert await scene.worker.frame() == "2"
            await trio.sleep(9.999)
            await scene.worker.send("3")
        assert scene.application.gone == []


async def test_events_are_no_answer_to_a_ping(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        await trio.sleep(30)
        await scene.worker.send('42["x"]')
        await scene.worker.wait_closed()
        assert trio.current_time() == 35


async def test_a_ping_overtakes_what_a_slow_reader_has_not_read(autojump_clock: MockClock) -> None:
    async with connected(pair=lockstep_stream_pair) as scene:
        await scene.worker.join()
        peer = scene.application.peers[0]
        for number in range(10):
            peer.emit("n", number)
        await trio.sleep(26)  # trio-websocket holds one message, and one more is on its way
        frames = [await scene.worker.frame() for _ in range(6)]
        assert "2" in frames
        assert [frame for frame in frames if frame != "2"] == [f'42["n",{number}]' for number in range(5)]


async def test_a_worker_that_takes_long_for_a_message_has_its_time_for_the_ping_behind_it(
    autojump_clock: MockClock,
) -> None:
    async with connected(pair=lambda: SlowLink.pair(30_000)) as scene:
        await scene.worker.join()
        await trio.sleep(24 - trio.current_time())
        scene.application.peers[0].emit("slow", "a" * 900_000)
        assert len(await scene.worker.frame()) > 900_000
        assert trio.current_time() > 24 + 30
        assert await scene.worker.frame() == "2"
        pinged = trio.current_time()
        await trio.sleep(9)
        await scene.worker.send("3")
        assert await scene.worker.frame() == "2"
        assert trio.current_time() == pytest.approx(pinged + 9 + 25, abs=0.01)
        await scene.worker.wait_closed()
        assert trio.current_time() == pytest.approx(pinged + 9 + 25 + 10, abs=0.01)
    assert [reason for _, reason in scene.application.gone] == [CloseReason.PING_TIMEOUT]


async def test_what_is_sent_after_a_ping_gives_no_more_time_for_its_answer(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        peer = scene.application.peers[0]

        async def emit_every_second() -> None:
            while True:
                peer.emit("n", 1)
                await trio.sleep(1)

        scene.server.nursery.start_soon(emit_every_second)
        with trio.fail_after(60):
            await scene.worker.wait_closed()
        assert trio.current_time() == 35


async def test_who_takes_nothing_while_a_ping_waits_is_gone(autojump_clock: MockClock) -> None:
    async with connected(pair=lockstep_stream_pair) as scene:
        await scene.worker.join()
        for _ in range(3):  # trio-websocket holds one message, and reads one
            scene.application.peers[0].emit("large", "a" * PIECE)
        await scene.server.network.accepted[0].closed.wait()
        assert trio.current_time() == 35
    assert [reason for _, reason in scene.application.gone] == [CloseReason.PING_TIMEOUT]


# -------------------------------------------------------------------------------------- bounds


async def test_a_reader_too_slow_for_the_queue_is_disconnected_and_not_buffered_for(
    autojump_clock: MockClock,
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with connected(pair=lockstep_stream_pair, send_queue_bytes=1_000_000) as scene:
            await scene.worker.join()
            peer = scene.application.peers[0]
            emitted = 0
            while not peer.closed:
                peer.emit("x", "a" * 9_900)
                emitted += 1
                await trio.sleep(0.01)
            assert 95 <= emitted <= 105
            peer.emit("x", "nothing more")
            await scene.server.network.accepted[0].closed.wait()
            assert trio.current_time() < 5
            assert await scene.worker.wait_closed() == 1006  # no close frame: it would fall into a frame cut off
    assert scene.application.gone == [(peer.id, CloseReason.SLOW_READER)]
    [line] = [line for line in logs if line["event"] == "connection_closed"]
    assert (line["reason"], line["detail"].split()[1:]) == ("slow reader", ["bytes", "wait", "to", "be", "sent"])


async def test_small_frames_are_bounded_by_the_memory_they_take(autojump_clock: MockClock) -> None:
    async with connected(pair=lockstep_stream_pair, send_queue_bytes=100_000) as scene:
        await scene.worker.join()
        peer = scene.application.peers[0]
        emitted = 0
        while not peer.closed:
            peer.emit("x", 1)
            emitted += 1
        assert emitted < 2_000


async def test_what_was_sent_makes_room_for_more(autojump_clock: MockClock) -> None:
    async with connected(send_queue_bytes=100_000) as scene:
        await scene.worker.join()
        for _ in range(50):
            scene.application.peers[0].emit("x", "a" * 50_000)
            await scene.worker.frame()
        assert scene.application.gone == []


async def test_who_never_joins_is_disconnected_after_45_s(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.open_packet()
        await scene.worker.send("40/other,")
        await scene.worker.frame()
        await scene.worker.frame()
        await scene.worker.send("3")
        assert await scene.worker.wait_closed() == 1000
        assert trio.current_time() == 45


async def test_attachments_have_ten_seconds_from_the_packet_that_announced_them(autojump_clock: MockClock) -> None:
    placeholders = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}'
    async with connected() as scene:
        await scene.worker.join()
        await scene.worker.send(f'452-["x",{placeholders}]', b"0", b"1")
        await trio.sleep(5)
        await scene.worker.send(f'452-["x",{placeholders}]')
        await trio.sleep(9)
        await scene.worker.send(b"0")
        assert await scene.worker.wait_closed() == 1000
        assert trio.current_time() == 15
    assert scene.application.gone == [(scene.application.peers[0].id, CloseReason.ATTACHMENTS_TIMEOUT)]
