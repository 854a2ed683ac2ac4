"""What the server does beneath trio-websocket, seen by a client that reads raw frames."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, Ping, Pong, TextMessage

from sts_trio.server.websocket import (
    CLOSE_TIMEOUT_S,
    FRAGMENTS_PER_MESSAGE,
    FRAMES_PER_STEP,
    LINGER_S,
    PIECE,
    AcceptedStream,
    FrameGauge,
    WebSocket,
    WebSocketClosed,
    open_websocket,
)

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
    assert trio.current_time() == CLOSE_TIMEOUT_S + LINGER_S
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


# -------------------------------------------------------------------------------------- what comes in


def frame(first: int, payload: bytes = b"", *, masked: bool = True, announced: int | None = None) -> bytes:
    """A client's frame, byte by byte; `first` is FIN, reserved bits and opcode (RFC 6455, 5.2)."""
    size = len(payload) if announced is None else announced
    mask = 0x80 if masked else 0
    if size < 126:
        length = bytes([mask | size])
    elif size < 2**16:
        length = bytes([mask | 126]) + size.to_bytes(2)
    else:
        length = bytes([mask | 127]) + size.to_bytes(8)
    return bytes([first]) + length + (b"\0\0\0\0" if masked else b"") + payload


TEXT, BINARY, CONTINUATION, LAST, PONG = 0x81, 0x82, 0x00, 0x80, 0x8A


async def close_code(*frames: bytes, max_message_bytes: int = 1000) -> int | None:
    """What the server says in its close frame after it was sent `frames`; None where it just hangs up."""
    client, end, stream = accept(memory_stream_pair)
    async with open_websocket(stream, max_message_bytes=max_message_bytes, handshake_timeout_s=5) as websocket:
        await client.shake_hands()
        await client.stream.send_all(b"".join(frames) + b"and so on")
        with pytest.raises(WebSocketClosed) as closed:
            await receive_all(websocket)
    assert end.closed.is_set()
    closes = [event for event in await client.read() if isinstance(event, CloseConnection)]
    if not closes:
        return None
    [close] = closes
    assert str(closed.value).startswith(f"{int(close.code)} ")  # the log names it, too
    return int(close.code)


async def receive_all(websocket: WebSocket) -> None:
    while True:
        await websocket.receive()


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        pytest.param([frame(TEXT, b"\xff")], 1007, id="invalid UTF-8"),
        pytest.param([frame(0x01, b"\xc3"), frame(LAST, b"(")], 1007, id="invalid UTF-8 over two fragments"),
        pytest.param([frame(TEXT, b"\xc3")], 1007, id="UTF-8 cut off"),
        pytest.param([frame(TEXT, b"3", masked=False)], 1002, id="unmasked"),
        pytest.param([frame(0xC1, b"3")], 1002, id="reserved bit"),
        pytest.param([frame(0x83, b"3")], 1002, id="unknown opcode"),
        pytest.param([frame(0x8B)], 1002, id="unknown control opcode"),
        pytest.param([frame(0x89, b"a" * 126)], 1002, id="long ping"),
        pytest.param([frame(0x09, b"a")], 1002, id="ping in fragments"),
        pytest.param([frame(LAST, b"a")], 1002, id="continuation of nothing"),
        pytest.param([frame(0x01, b"a"), frame(TEXT, b"b")], 1002, id="message within a message"),
        pytest.param([frame(0x88, b"1")], 1002, id="half a close code"),
        pytest.param([frame(TEXT, b"a" * 1001)], 1009, id="too large"),
        pytest.param([frame(0x01, b"a" * 600), frame(LAST, b"a" * 401)], 1009, id="too large in all"),
        pytest.param([frame(BINARY, announced=2**40)], 1009, id="too large by its header"),
        pytest.param([frame(TEXT, "é".encode() * 501)], 1009, id="too many bytes, not characters"),
    ],
)
async def test_a_broken_rule_is_named_in_the_close_frame(
    autojump_clock: MockClock, frames: list[bytes], code: int
) -> None:
    assert await close_code(*frames) == code


async def test_a_close_of_the_peers_is_answered_once_whatever_it_says(autojump_clock: MockClock) -> None:
    client, _, stream = accept(memory_stream_pair)
    close = (1002).to_bytes(2)
    async with open_websocket(stream, max_message_bytes=100, handshake_timeout_s=5) as websocket:
        await client.shake_hands()
        await client.stream.send_all(frame(0x88, close))
        with pytest.raises(WebSocketClosed):
            await websocket.receive()
    answer = b""
    while data := await client.stream.receive_some():
        answer += data
    assert answer == b"\x88\x02" + close


async def test_a_message_is_taken_up_to_the_limit_however_it_is_cut(autojump_clock: MockClock) -> None:
    client, _, stream = accept(memory_stream_pair)
    async with open_websocket(stream, max_message_bytes=1000, handshake_timeout_s=5) as websocket:
        await client.shake_hands()
        whole = frame(TEXT, b"a" * 1000)
        parts = [frame(0x01, b"a" * 500), frame(0x89, b"!"), frame(CONTINUATION), frame(LAST, b"a" * 500)]
        await client.stream.send_all(whole + b"".join(parts))
        assert [await websocket.receive(), await websocket.receive()] == ["a" * 1000] * 2
        websocket.limit(1001)
        await client.stream.send_all(frame(TEXT, b"a" * 1001))
        assert await websocket.receive() == "a" * 1001
        websocket.limit(5)
        await client.stream.send_all(frame(TEXT, b"a" * 5) + frame(TEXT, b"a" * 6))
        assert await websocket.receive() == "aaaaa"
        with pytest.raises(WebSocketClosed, match="1009"):
            await websocket.receive()


@pytest.mark.slow
async def test_empty_fragments_do_not_pile_up_in_memory(autojump_clock: MockClock) -> None:
    fragments = frame(CONTINUATION) * (FRAGMENTS_PER_MESSAGE - 1)
    assert await close_code(frame(0x01) + fragments + frame(CONTINUATION)) == 1008
    assert await close_code(frame(0x01) + fragments[:-6] + frame(LAST) + frame(0x83)) == 1002


async def test_a_torn_stream_gets_no_close_frame(autojump_clock: MockClock) -> None:
    client, end, stream = accept(lockstep_stream_pair)

    async def serve() -> None:
        async with open_websocket(stream, max_message_bytes=100, handshake_timeout_s=5) as websocket:
            with trio.move_on_after(1):
                await websocket.send("a" * 1000)
            with pytest.raises(WebSocketClosed):
                await websocket.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await client.shake_hands()
        await client.stream.receive_some(100)
        await trio.sleep(2)
        await client.stream.send_all(frame(0x83))
        rest = b""
        while data := await client.stream.receive_some():
            rest += data
        assert rest in (b"", b"a" * 904)  # what the memory stream makes of the send that was cut off
        assert end.closed.is_set()


@pytest.mark.parametrize("flood", [frame(PONG), frame(CONTINUATION), frame(PONG, b"1234")])
async def test_others_run_between_any_few_frames(autojump_clock: MockClock, flood: bytes) -> None:
    client, _, stream = accept(memory_stream_pair)
    turns = 0

    async def bystander() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with open_websocket(stream, max_message_bytes=100, handshake_timeout_s=5) as websocket:
        await client.shake_hands()
        await client.stream.send_all(frame(0x01) + flood * (30 * FRAMES_PER_STEP) + frame(LAST, b"end"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bystander)
            assert await websocket.receive() == "end"
            assert turns >= 30
            nursery.cancel_scope.cancel()


@given(
    sizes=st.lists(st.sampled_from([0, 1, 125, 126, 300, 65_535, 65_536]), max_size=12),
    cuts=st.lists(st.integers(1, 70_000), max_size=12),
    small=st.integers(0, 3 * FRAMES_PER_STEP),
    masked=st.booleans(),
)
def test_no_piece_has_more_frames_than_a_step_takes_wherever_reads_are_cut(
    sizes: list[int], cuts: list[int], small: int, masked: bool
) -> None:
    data, starts = bytearray(), []
    for size in [0] * small + sizes:
        starts.append(len(data))
        data += frame(BINARY, b"\x8a" * size, masked=masked)
    gauge, at, pieces = FrameGauge(10**6), 0, 0
    for cut in [*cuts, len(data)]:
        read, taken = data[at : at + cut], 0
        while taken < len(read):
            end = gauge.take(read, taken)
            assert taken < end <= len(read)
            assert sum(at + taken <= start < at + end for start in starts) <= FRAMES_PER_STEP
            taken = end
            pieces += 1
        at += len(read)
    assert at == len(data)
    assert gauge.violation is None
    assert pieces <= len(cuts) + 1 + len(starts) // FRAMES_PER_STEP


# -------------------------------------------------------------------------------------- the stream beneath


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
