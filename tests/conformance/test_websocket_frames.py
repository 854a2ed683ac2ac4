"""WebSocket frames: one packet per message, and what closes a connection at this level (RFC 6455)."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from ..server.memory import Server
from .app import Options, serving
from .sessions import Polling, connected, expect_alive, expect_echo, probe
from .wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    ENGINE,
    PING,
    PONG,
    SOCKET,
    TEXT,
    Frame,
    Packet,
    WebSocket,
    at_once,
    frame,
    http,
    settle,
    target,
)

PROTOCOL_ERROR, INVALID_DATA, TOO_BIG = 1002, 1007, 1009  # RFC 6455, 7.4.1
MAX_PAYLOAD = 1_000_000


async def expect_close(websocket: WebSocket, code: int) -> None:
    with at_once():
        closure = await websocket.closure()
    assert (closure.code, closure.packets) == (code, [])


async def expect_closed(server: Server, websocket: WebSocket) -> None:
    """The WebSocket closes, without a word, and its session is gone."""
    with at_once():
        assert await websocket.closed() == []
    await websocket.drop()
    query = {"EIO": "4", "transport": "polling", "sid": websocket.sid}
    assert (await http(server, "GET", target(ENGINE, query))).error == (400, 1, "Session ID unknown")


# ------------------------------------------------------------------------------------------------ packets


@pytest.mark.parametrize(
    "packets", [["4hello"], ["4", "4né €😀"], [b"\x01\x02\x03\x04"], ["4a", b"4", "4b", b"b", b"\x00" * 70_000]]
)
async def test_each_packet_is_one_message(autojump_clock: MockClock, server: Server, packets: list[Packet]) -> None:
    websocket = await WebSocket.open(server)
    await websocket.send(*packets)
    assert [await websocket.receive() for _ in packets] == packets


async def test_a_burst_keeps_its_order(autojump_clock: MockClock, server: Server) -> None:
    websocket = await WebSocket.open(server)
    packets = [f"4{number}" if number % 5 else b"%d" % number for number in range(500)]
    await websocket.send(*packets)
    assert [await websocket.receive() for _ in packets] == packets


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_a_message_may_come_in_fragments(autojump_clock: MockClock, server: Server, opcode: int) -> None:
    websocket = await WebSocket.open(server)
    message = "4né €😀".encode()
    await websocket.send_bytes(frame(opcode, message[:3], fin=False))  # in the midst of a character
    await websocket.send_bytes(frame(CONTINUATION, b"", fin=False))
    await websocket.send_bytes(frame(CONTINUATION, message[3:9], fin=False))
    await websocket.send_bytes(frame(CONTINUATION, message[9:]))
    assert await websocket.receive() == (message.decode() if opcode == TEXT else message)


async def test_a_frame_may_come_byte_by_byte(autojump_clock: MockClock, server: Server) -> None:
    websocket = await WebSocket.open(server)
    for byte in frame(TEXT, b"4hello"):
        await websocket.send_bytes(bytes([byte]))
        await settle()
    assert await websocket.receive() == "4hello"


@pytest.mark.parametrize("packet", ["abc", "7", "9x", " 4", "\x004"])
@pytest.mark.parametrize("path", [ENGINE, SOCKET])
async def test_a_packet_of_no_known_type_closes(
    autojump_clock: MockClock, server: Server, path: str, packet: str
) -> None:
    websocket = await WebSocket.open(server, path)
    await websocket.send(packet)
    await expect_closed(server, websocket)


@pytest.mark.parametrize("path", [ENGINE, SOCKET])
async def test_an_empty_text_frame_closes(autojump_clock: MockClock, server: Server, path: str) -> None:
    websocket = await WebSocket.open(server, path)
    await websocket.send_bytes(frame(TEXT))
    await expect_closed(server, websocket)


@pytest.mark.parametrize("path", [ENGINE, SOCKET])
async def test_a_close_packet_closes_at_once(autojump_clock: MockClock, server: Server, path: str) -> None:
    websocket = await WebSocket.open(server, path)
    await websocket.send("1")
    await expect_closed(server, websocket)


async def test_nothing_is_read_after_a_close_packet(autojump_clock: MockClock, server: Server) -> None:
    websocket = await WebSocket.open(server)
    await websocket.send("1", "4hello")
    await expect_closed(server, websocket)


async def test_a_close_frame_is_answered_and_ends_the_session(autojump_clock: MockClock, server: Server) -> None:
    websocket = await WebSocket.open(server)
    await websocket.send_bytes(frame(CLOSE, b"\x03\xe8"))
    await expect_close(websocket, 1000)
    await websocket.drop()
    query = {"EIO": "4", "transport": "polling", "sid": websocket.sid}
    assert (await http(server, "GET", target(ENGINE, query))).error == (400, 1, "Session ID unknown")


# ------------------------------------------------------------------------------------------------ control frames


async def test_a_ping_frame_is_answered_with_its_payload(autojump_clock: MockClock, server: Server) -> None:
    websocket = await WebSocket.open(server)
    for payload in (b"", b"are you there?", b"x" * 125):
        await websocket.send_bytes(frame(PING, payload))
        assert await websocket.frame() == Frame(PONG, payload, True, 0)
    await expect_echo(websocket)


async def test_a_pong_frame_that_nobody_asked_for_is_ignored(autojump_clock: MockClock, server: Server) -> None:
    websocket = await WebSocket.open(server)
    await websocket.send_bytes(frame(PONG, b"unasked"))
    await expect_echo(websocket)


async def test_control_frames_between_fragments_are_answered(autojump_clock: MockClock, server: Server) -> None:
    websocket = await WebSocket.open(server)
    await websocket.send_bytes(frame(TEXT, b"4hel", fin=False))
    await websocket.send_bytes(frame(PING, b"one"))
    with at_once():
        assert await websocket.frame() == Frame(PONG, b"one", True, 0)
    await websocket.send_bytes(frame(CONTINUATION, b"l", fin=False))
    await websocket.send_bytes(frame(PONG, b"") + frame(PING, b"two"))
    with at_once():
        assert await websocket.frame() == Frame(PONG, b"two", True, 0)
    await websocket.send_bytes(frame(CONTINUATION, b"o"))
    assert await websocket.receive() == "4hello"


async def test_a_close_frame_between_fragments_closes(autojump_clock: MockClock, server: Server) -> None:
    websocket = await WebSocket.open(server)
    await websocket.send_bytes(frame(TEXT, b"4hel", fin=False) + frame(CLOSE, b"\x03\xe8"))
    await expect_close(websocket, 1000)


# ------------------------------------------------------------------------------------------------ broken rules


BROKEN_FRAMES = {
    "unmasked": frame(TEXT, b"4hello", masked=False),
    "unmasked binary": frame(BINARY, b"hello", masked=False),
    "unmasked ping": frame(PING, b"", masked=False),
    "rsv1": frame(TEXT, b"4hello", rsv=4),
    "rsv2": frame(TEXT, b"4hello", rsv=2),
    "rsv3": frame(TEXT, b"4hello", rsv=1),
    "rsv1 of a control frame": frame(PING, b"", rsv=4),
    "rsv1 of a continuation": frame(TEXT, b"4hel", fin=False) + frame(CONTINUATION, b"lo", rsv=4),
    "long ping": frame(PING, b"x" * 126),
    "long pong": frame(PONG, b"x" * 126),
    "long close": frame(CLOSE, b"\x03\xe8" + b"x" * 124),
    "ping in fragments": frame(PING, b"a", fin=False),
    "close of one byte": frame(CLOSE, b"\x03"),
    "a continuation of nothing": frame(CONTINUATION, b"4hello"),
    "a message within another": frame(TEXT, b"4hel", fin=False) + frame(TEXT, b"4other"),
    **{f"opcode {opcode}": frame(opcode, b"4hello") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
}


@pytest.mark.parametrize("broken", BROKEN_FRAMES.values(), ids=BROKEN_FRAMES.keys())
@pytest.mark.parametrize("path", [ENGINE, SOCKET])
async def test_a_broken_frame_is_a_protocol_error(
    autojump_clock: MockClock, server: Server, path: str, broken: bytes
) -> None:
    websocket, other = await WebSocket.open(server, path), await WebSocket.open(server)
    await websocket.send_bytes(broken)
    await expect_close(websocket, PROTOCOL_ERROR)
    await expect_echo(other)


NO_UTF_8 = {
    "a byte that is none": b"4\xff",
    "cut short": b"4\xe2\x82",
    "an overlong form": b"4\xc0\xaf",
    "half a surrogate pair": b"4\xed\xa0\x80",
    "beyond Unicode": b"4\xf4\x90\x80\x80",
    "from the first byte": b"\x80",
}


@pytest.mark.parametrize("text", NO_UTF_8.values(), ids=NO_UTF_8.keys())
@pytest.mark.parametrize("fragments", [False, True])
@pytest.mark.parametrize("path", [ENGINE, SOCKET])
async def test_text_that_is_no_utf_8_is_invalid_data(
    autojump_clock: MockClock, server: Server, path: str, fragments: bool, text: bytes
) -> None:
    websocket = await WebSocket.open(server, path)
    if fragments:
        await websocket.send_bytes(frame(TEXT, text[:-1], fin=False) + frame(CONTINUATION, text[-1:]))
    else:
        await websocket.send_bytes(frame(TEXT, text))
    await expect_close(websocket, INVALID_DATA)


# ------------------------------------------------------------------------------------------------ size


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_a_message_may_have_the_whole_size(autojump_clock: MockClock, server: Server, opcode: int) -> None:
    websocket = await WebSocket.open(server)
    message = b"4" * MAX_PAYLOAD
    await websocket.send_bytes(frame(opcode, message))
    echoed = await websocket.receive()
    assert (echoed.encode() if isinstance(echoed, str) else echoed) == message


async def test_a_message_in_fragments_may_have_the_whole_size(autojump_clock: MockClock, server: Server) -> None:
    websocket = await WebSocket.open(server)
    await websocket.send_bytes(frame(BINARY, b"x" * 600_000, fin=False) + frame(CONTINUATION, b"x" * 400_000))
    assert await websocket.receive() == b"x" * MAX_PAYLOAD


OVER_SIZE = {
    "one frame of text": frame(TEXT, b"4" * (MAX_PAYLOAD + 1)),
    "one binary frame": frame(BINARY, b"4" * (MAX_PAYLOAD + 1)),
    "characters within, bytes beyond": frame(TEXT, b"4" + "€".encode() * (MAX_PAYLOAD // 3 + 1)),
    "a header": frame(BINARY, announced=MAX_PAYLOAD + 1),
    "a header of 4 GiB": frame(TEXT, announced=2**32),
    "a header of 8 EiB": frame(BINARY, announced=2**63 - 1),
    "fragments": frame(BINARY, b"4" * 600_000, fin=False) + frame(CONTINUATION, b"4" * 400_001),
    "fragments without an end": frame(TEXT, b"4" * 600_000, fin=False) + frame(CONTINUATION, b"4" * 400_001, fin=False),
    "a header after a fragment": frame(TEXT, b"4" * 600_000, fin=False) + frame(CONTINUATION, announced=400_001),
}


@pytest.mark.parametrize("message", OVER_SIZE.values(), ids=OVER_SIZE.keys())
@pytest.mark.parametrize("path", [ENGINE, SOCKET])
async def test_a_message_over_the_size_is_too_big(
    autojump_clock: MockClock, server: Server, path: str, message: bytes
) -> None:
    websocket, other = await WebSocket.open(server, path), await WebSocket.open(server)
    await websocket.send_bytes(message)
    await expect_close(websocket, TOO_BIG)
    await expect_echo(other)


@pytest.mark.parametrize("max_payload", [100, 5_000])
async def test_the_size_is_what_was_configured(autojump_clock: MockClock, max_payload: int) -> None:
    options = Options(ping_interval_ms=10_000, ping_timeout_ms=10_000, max_payload=max_payload)
    async with serving(options) as server:
        websocket = await WebSocket.open(server)
        await websocket.send("4" * max_payload)
        assert await websocket.receive() == "4" * max_payload
        await websocket.send_bytes(frame(TEXT, b"4" * (max_payload + 1)))
        await expect_close(websocket, TOO_BIG)


@pytest.mark.parametrize(
    ("broken", "code"),
    [(frame(TEXT, b"4\xff"), INVALID_DATA), (frame(3), PROTOCOL_ERROR), (frame(TEXT, announced=2_000_000), TOO_BIG)],
)
@pytest.mark.parametrize("upgraded", [False, True])
async def test_a_probing_websocket_is_no_exception(
    autojump_clock: MockClock, server: Server, broken: bytes, code: int, upgraded: bool
) -> None:
    session = await Polling.open(server)
    websocket = await probe(session)
    await websocket.send("2probe")
    assert await websocket.receive() == "3probe"
    if upgraded:
        await websocket.send("5", "4hello")
        while await websocket.receive() != "4hello":
            pass
    await websocket.send_bytes(broken)
    await expect_close(websocket, code)
    await websocket.drop()
    if upgraded:
        assert (await session.get()).error == (400, 1, "Session ID unknown")
    else:
        await expect_echo(session)


async def test_a_broken_frame_ends_one_client_only(autojump_clock: MockClock, server: Server) -> None:
    one, other = await connected(server), await connected(server)
    assert isinstance(one, WebSocket)
    await one.send_bytes(frame(TEXT, b'42["message","x"]', masked=False))
    await expect_close(one, PROTOCOL_ERROR)
    await expect_alive(other)
