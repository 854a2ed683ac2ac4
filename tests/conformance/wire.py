"""HTTP requests and WebSocket frames as they cross the wire, right or wrong.

All waits end after `PATIENCE_S`. Tests run on virtual time, so that this is no real time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol, Self, TypeAlias
from urllib.parse import urlencode

import h11
import pytest
import trio
from attrs import define, field, frozen
from trio.testing import wait_all_tasks_blocked

ENGINE: Final = "/engine.io/"
"""Where every message is echoed."""
SOCKET: Final = "/socket.io/"

PATIENCE_S = 120.0
TOLERANCE_S = 0.0005
"""What "to the millisecond" allows."""

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 0x1, 0x2, 0x8, 0x9, 0xA, 0x0
"""WebSocket opcodes (RFC 6455, 11.8)."""

Packet: TypeAlias = str | bytes


class Network(Protocol):
    """Where connections come from."""

    def connect(self) -> Any: ...


class Server(Protocol):
    """What is tested."""

    @property
    def network(self) -> Network: ...


class NoAnswer(Exception):
    """The server closed the connection instead of answering."""


async def settle() -> None:
    """Let the server do all that it can do without time passing."""
    await wait_all_tasks_blocked()


def at(seconds: float) -> Any:
    """A moment or a duration, to the millisecond."""
    return pytest.approx(seconds, abs=TOLERANCE_S)


@contextmanager
def at_once() -> Iterator[None]:
    """What is inside ends within a second, far less than any timer of the server that it is used with."""
    with trio.fail_after(1):
        yield


# ------------------------------------------------------------------------------------------------ HTTP


@frozen
class Answer:
    """An HTTP response. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, int, str]:
        """Status, code and message of a refusal."""
        assert set(self.json) == {"code", "message"}
        return self.status, self.json["code"], self.json["message"]


@frozen
class Request:
    """An HTTP request that was sent, or a part of it."""

    stream: Any

    async def more(self, data: bytes) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it may be answered and closed already
            await self.stream.send_all(data)

    async def answer(self) -> Answer:
        """Raises:
        NoAnswer: the server closed the connection.
        """
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        status, headers, body = 0, dict[str, str](), b""
        try:
            while True:
                match parser.next_event():
                    case h11.Response() as response:
                        status = response.status_code
                        headers = {name.decode(): value.decode() for name, value in response.headers}
                    case h11.Data() as data:
                        body += data.data
                    case h11.EndOfMessage():
                        return Answer(status, headers, body)
                    case h11.ConnectionClosed() | h11.PAUSED:
                        raise NoAnswer
                    case h11.NEED_DATA:
                        parser.receive_data(await _receive(self.stream))
        except h11.RemoteProtocolError:
            raise NoAnswer from None
        finally:
            await trio.aclose_forcefully(self.stream)

    async def drop(self) -> None:
        """Close the connection without waiting for the answer."""
        await trio.aclose_forcefully(self.stream)


def target(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}"


async def begin(
    server: Server, method: str, where: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Request:
    """Send a request. Its length is that of `body`, unless `headers` say otherwise."""
    fields = {"Host": "x", "Connection": "close", **(headers or {})}
    if body is not None and not {"Content-Length", "Transfer-Encoding"} & set(fields):
        fields["Content-Length"] = str(len(body))
    head = f"{method} {where} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    request = Request(server.network.connect())
    await request.more(head.encode("latin-1") + b"\r\n" + (body or b""))
    return request


async def http(
    server: Server, method: str, where: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send a request and wait for the answer."""
    return await (await begin(server, method, where, body, headers)).answer()


async def _receive(stream: Any) -> bytes:
    """What the server sends next, nothing once it has closed."""
    with trio.fail_after(PATIENCE_S):
        try:
            return bytes(await stream.receive_some(65_536))
        except trio.BrokenResourceError:
            return b""


# ------------------------------------------------------------------------------------------------ WebSocket


@frozen
class Frame:
    """A frame as it came (RFC 6455, 5.2)."""

    opcode: int
    payload: bytes
    fin: bool
    rsv: int

    @property
    def code(self) -> int | None:
        """Why a close frame closes."""
        assert self.opcode == CLOSE
        return int.from_bytes(self.payload[:2], "big") if self.payload else None


@frozen
class Refused(Exception):
    """A WebSocket that was answered by something else than 101."""

    answer: Answer


@frozen
class Closure:
    """How a WebSocket ended: the code of the close frame, where there was one, and the messages before it."""

    code: int | None
    packets: list[Packet]


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    announced: int | None = None,
) -> bytes:
    """A frame's bytes, right or wrong. `announced`: what the header says of the length, if that is something else."""
    length = len(payload) if announced is None else announced
    head = bytes([fin << 7 | rsv << 4 | opcode])
    mask_bit = masked << 7
    if length < 126:
        head += bytes([mask_bit | length])
    elif length < 2**16:
        head += bytes([mask_bit | 126]) + length.to_bytes(2, "big")
    else:
        head += bytes([mask_bit | 127]) + length.to_bytes(8, "big")
    if not masked:
        return head + payload
    key = b"\x5a\xa5\x0f\xf0"
    padded = key * (len(payload) // 4 + 1)
    number = int.from_bytes(payload, "big") ^ int.from_bytes(padded[: len(payload)], "big")
    return head + key + number.to_bytes(len(payload), "big")


UPGRADE: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@define
class WebSocket:
    """A session on a WebSocket; or a WebSocket that is to become one, which has no `sid` of its own."""

    stream: Any
    handshake: dict[str, Any] = field(factory=dict)
    _buffer: bytes = b""

    @classmethod
    async def connect(cls, server: Server, where: str, headers: Mapping[str, str] | None = None) -> Self:
        """Raises:
        Refused: there was an answer, but not 101.
        """
        request = await begin(server, "GET", where, None, {**UPGRADE, **(headers or {})})
        stream, head = request.stream, b""
        while b"\r\n\r\n" not in head:
            if not (data := await _receive(stream)):
                raise NoAnswer
            head += data
        if not head.startswith(b"HTTP/1.1 101 "):
            raise Refused(await Request(_Replayed(stream, head)).answer())
        return cls(stream, {}, head[head.index(b"\r\n\r\n") + 4 :])

    @classmethod
    async def open(cls, server: Server, path: str = ENGINE) -> Self:
        websocket = await cls.connect(server, target(path, {"EIO": "4", "transport": "websocket"}))
        opening = await websocket.receive()
        assert isinstance(opening, str)
        assert opening[0] == "0"
        websocket.handshake = json.loads(opening[1:])
        return websocket

    @property
    def sid(self) -> str:
        return str(self.handshake["sid"])

    async def send(self, *packets: Packet) -> None:
        """One frame for each packet."""
        for packet in packets:
            text = isinstance(packet, str)
            await self.send_bytes(frame(TEXT, packet.encode()) if text else frame(BINARY, packet))  # type: ignore

    async def send_bytes(self, data: bytes) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # the server may have closed already
            await self.stream.send_all(data)

    async def frame(self) -> Frame | None:
        """The next frame, None once the server has closed."""
        head = await self._exactly(2)
        if head is None:
            return None
        assert not head[1] & 0x80, "a server does not mask"
        length = head[1] & 0x7F
        if length >= 126:
            length = int.from_bytes(await self._exactly(2 if length == 126 else 8) or b"", "big")
        payload = await self._exactly(length)
        assert payload is not None, "the server closed in the midst of a frame"
        return Frame(head[0] & 0x0F, payload, bool(head[0] & 0x80), head[0] >> 4 & 0x07)

    async def receive(self) -> Packet:
        """The next message. Control frames are no part of a test that calls this."""
        frames = [await self.frame()]
        while frames[-1] is not None and not frames[-1].fin:
            frames.append(await self.frame())
        first, *more = frames
        assert first is not None, "the server closed"
        assert first.opcode in (TEXT, BINARY), first
        assert all(one is not None and one.opcode == CONTINUATION for one in more)
        payload = b"".join(one.payload for one in frames if one is not None)
        return payload.decode() if first.opcode == TEXT else payload

    async def closed(self) -> list[Packet]:
        """Read until the server closes; what was received, without the close."""
        return (await self.closure()).packets

    async def closure(self) -> Closure:
        """Read until the server closes."""
        packets: list[Packet] = []
        while (one := await self.frame()) is not None and one.opcode != CLOSE:
            packets.append(one.payload.decode() if one.opcode == TEXT else one.payload)
        return Closure(None if one is None else one.code, [packet for packet in packets if packet not in ("1", "6")])

    async def drop(self) -> None:
        """Lose the connection."""
        await trio.aclose_forcefully(self.stream)
        await settle()

    async def _exactly(self, length: int) -> bytes | None:
        while len(self._buffer) < length:
            if not (data := await _receive(self.stream)):
                return None
            self._buffer += data
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken


@define
class _Replayed:
    """A stream of which something was read already."""

    _stream: Any
    _data: bytes

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data, self._data = self._data, b""
        return data or bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()
