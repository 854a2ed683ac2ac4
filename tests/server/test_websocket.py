"""What the server does beneath trio-websocket, seen by a client that reads raw frames."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, Ping, Pong, TextMessage

from sts_trio.server.websocket import LINGER_S, PIECE, AcceptedStream, WebSocketClosed, open_websocket

from .memory import FakeSocket, Pair, ServerEnd

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class RawClient:
    """The client's end, frame by frame."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.frames = Connection(ConnectionType.CLIENT)

    async def shake_hands(self) -> None:
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await self.stream.receive_some(1)
        assert answer.startswith(b"HTTP/1.1 101")

    async def read(self) -> list[Any]:
        """What comes until the server stops sending."""
        events: list[Any] = []
        while data := await self.stream.receive_some():
            self.frames.receive_data(bytes(data))
            events += self.frames.events()
        return events


def accept(pair: Pair) -> tuple[RawClient, ServerEnd, AcceptedStream]:
    client, server = pair()
    end = ServerEnd(server, FakeSocket())
    return RawClient(client), end, AcceptedStream(end, HANDSHAKE)  # type: ignore[arg-type]


async def test_no_frame_is_over_64_kib(autojump_clock: MockClock) -> None:
    client, _, stream = accept(memory_stream_pair)
    async with open_websocket(stream, max_message_bytes=100, handshake_timeout_s=5) as websocket:
        await client.shake_hands()
        await websocket.send("a" * (3 * PIECE + 1))
        await websocket.send("")
        await websocket.send(b"b" * PIECE)
        await stream.send_eof()
        frames: dict[int, int] = {}
        number = 0
        sizes: list[tuple[int, bool]] = []
        for event in await client.read():
            assert isinstance(event, Message)
            frames[number] = frames.get(number, 0) + len(event.data)
            if event.frame_finished:
                sizes.append((frames[number], event.message_finished))
                number += 1
    assert sizes == [(PIECE, False), (PIECE, False), (PIECE, False), (1, True), (0, True), (PIECE, True)]


async def test_a_pong_fits_between_the_frames_of_a_message(autojump_clock: MockClock) -> None:
    client, _, stream = accept(lockstep_stream_pair)

    async def serve() -> None:
        async with open_websocket(stream, max_message_bytes=100, handshake_timeout_s=5) as websocket:
            await websocket.send("a" * (20 * PIECE))
            await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await client.shake_hands()
        await client.stream.send_all(client.frames.send(Ping(b"!")))
        events = await client.read()
    ends = [type(event) for event in events if isinstance(event, Pong) or event.frame_finished]
    assert len(ends) == 21
    assert Pong in ends[:-1]


@pytest.mark.parametrize("cut_by", ["eof", "reset"])
async def test_a_client_that_leaves_during_the_handshake_is_no_crash(autojump_clock: MockClock, cut_by: str) -> None:
    client, _, stream = accept(lockstep_stream_pair)
    left = False
    if cut_by == "eof":
        await trio.aclose_forcefully(client.stream)
    try:
        async with trio.open_nursery() as nursery:
            if cut_by == "reset":
                nursery.start_soon(client.stream.aclose)
            async with open_websocket(stream, max_message_bytes=100, handshake_timeout_s=5):
                raise AssertionError("accepted")
    except* WebSocketClosed:
        left = True
    assert left


async def test_after_a_send_was_cancelled_no_close_frame_is_sent(autojump_clock: MockClock) -> None:
    client, end, stream = accept(lockstep_stream_pair)
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async with open_websocket(stream, max_message_bytes=100, handshake_timeout_s=5) as websocket:
                with trio.move_on_after(1):
                    await websocket.send("a" * 1000)
                assert stream.torn
                await websocket.close(1000)

        nursery.start_soon(serve)
        await client.shake_hands()
        await client.stream.receive_some(100)
        await end.closed.wait()
        assert trio.current_time() == 1
        assert await client.stream.receive_some() in (b"", b"a" * 904)


async def test_our_close_waits_a_bounded_time_for_the_peers(autojump_clock: MockClock) -> None:
    client, end, stream = accept(memory_stream_pair)
    async with open_websocket(stream, max_message_bytes=100, handshake_timeout_s=5) as websocket:
        await client.shake_hands()
        await websocket.close(1001)
        assert end.closed.is_set()
        assert trio.current_time() <= 4
        [event] = await client.read()
        assert isinstance(event, CloseConnection)
        assert event.code == 1001


async def test_a_handshake_that_is_none_times_out(autojump_clock: MockClock) -> None:
    """The door lets none through; trio-websocket would wait for ever."""
    _, server = memory_stream_pair()
    stream = AcceptedStream(ServerEnd(server, FakeSocket()), HANDSHAKE.replace(b"13", b"12"))  # type: ignore[arg-type]
    timed_out = False
    try:
        async with open_websocket(stream, max_message_bytes=100, handshake_timeout_s=5):
            raise AssertionError("accepted")
    except* WebSocketClosed:
        timed_out = True
    assert timed_out
    assert trio.current_time() == 5


async def test_a_ping_that_crosses_our_close_is_no_error(autojump_clock: MockClock) -> None:
    client, _, stream = accept(memory_stream_pair)
    async with open_websocket(stream, max_message_bytes=100, handshake_timeout_s=5) as websocket:
        await client.shake_hands()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.close, 1000)
            await trio.testing.wait_all_tasks_blocked()
            await client.stream.send_all(client.frames.send(Ping(b"late")))


async def test_closing_reads_what_is_unread_so_that_the_answer_is_not_lost(autojump_clock: MockClock) -> None:
    client, server = memory_stream_pair()
    end = ServerEnd(server, FakeSocket())
    stream = AcceptedStream(end, b"")  # type: ignore[arg-type]
    await client.send_all(b"more than was asked for")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.aclose)
        await trio.sleep(LINGER_S / 2)
        assert not end.closed.is_set()
        await client.send_all(b"still talking")
    assert end.closed.is_set()
    assert trio.current_time() == LINGER_S


async def test_the_head_is_read_again_in_any_portions(autojump_clock: MockClock) -> None:
    client, server = memory_stream_pair()
    stream = AcceptedStream(ServerEnd(server, FakeSocket()), b"head")  # type: ignore[arg-type]
    await client.send_all(b"body")
    assert [await stream.receive_some(3), await stream.receive_some(), await stream.receive_some(10)] == [
        b"hea",
        b"d",
        b"body",
    ]


def test_a_text_event_is_what_wsproto_calls_a_message() -> None:
    """The framing of outgoing messages leans on this public class."""
    frames = Connection(ConnectionType.SERVER)
    assert frames.send(TextMessage("ab", message_finished=False)) == b"\x01\x02ab"
    assert frames.send(TextMessage("c", message_finished=True)) == b"\x80\x01c"
