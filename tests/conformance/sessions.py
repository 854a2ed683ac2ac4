"""Sessions as a client sees them, with no rules of their own.

What a session sends and receives are *packets* of Engine.IO in their text form ("4hello", "2"), and `bytes` for
binary ones, whatever the transport. No answer is ever made up: pings are left to the tests.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Self, TypeAlias

from attrs import define, field

from .wire import (
    ENGINE,
    SOCKET,
    Answer,
    NoAnswer,
    Packet,
    Request,
    Server,
    WebSocket,
    at_once,
    begin,
    http,
    settle,
    target,
)

RECORD_SEPARATOR: Final = "\x1e"


@define
class Polling:
    """A session on HTTP long-polling."""

    server: Server
    path: str
    handshake: dict[str, Any]
    _received: deque[Packet] = field(factory=deque)

    @classmethod
    async def open(cls, server: Server, path: str = ENGINE) -> Self:
        answer = await http(server, "GET", target(path, {"EIO": "4", "transport": "polling"}))
        assert (answer.status, answer.text[:1]) == (200, "0")
        return cls(server, path, json.loads(answer.text[1:]))

    @property
    def sid(self) -> str:
        return str(self.handshake["sid"])

    @property
    def target(self) -> str:
        return target(self.path, {"EIO": "4", "transport": "polling", "sid": self.sid})

    async def get(self) -> Answer:
        return await http(self.server, "GET", self.target)

    async def hold(self) -> Request:
        """A GET that the server holds, for want of packets."""
        request = await begin(self.server, "GET", self.target)
        await settle()
        return request

    async def post(self, body: str | bytes, headers: Mapping[str, str] | None = None) -> Answer:
        return await http(self.server, "POST", self.target, body.encode() if isinstance(body, str) else body, headers)

    async def send(self, *packets: Packet) -> None:
        """All `packets` in one POST, whatever is answered."""
        with suppress(NoAnswer):
            await self.post(RECORD_SEPARATOR.join(_polled(packet) for packet in packets))

    async def receive(self) -> Packet:
        if not self._received:
            answer = await self.get()
            assert answer.status == 200, answer
            self._received += [_unpolled(packet) for packet in answer.text.split(RECORD_SEPARATOR)]
        return self._received.popleft()

    async def closed(self) -> list[Packet]:
        """Poll until the session is gone; what was received, without the close."""
        packets = list(self._received)
        while (answer := await self.get()).status == 200:
            packets += [_unpolled(packet) for packet in answer.text.split(RECORD_SEPARATOR)]
        assert answer.error == (400, 1, "Session ID unknown")
        return [packet for packet in packets if packet not in ("1", "6")]

    async def drop(self) -> None:
        """Lose the connection: the held GET breaks off."""
        await (await self.hold()).drop()
        await settle()


def _polled(packet: Packet) -> str:
    return packet if isinstance(packet, str) else "b" + b64encode(packet).decode()


def _unpolled(packet: str) -> Packet:
    return b64decode(packet[1:], validate=True) if packet.startswith("b") else packet


# ------------------------------------------------------------------------------------------------ both


Session: TypeAlias = Polling | WebSocket
TRANSPORTS: Final = ("polling", "websocket")


async def open_session(server: Server, transport: str, path: str = ENGINE) -> Session:
    return await (Polling if transport == "polling" else WebSocket).open(server, path)


async def probe(session: Polling) -> WebSocket:
    """A WebSocket for a session that is on long-polling. Nothing is sent on it yet."""
    query = {"EIO": "4", "transport": "websocket", "sid": session.sid}
    return await WebSocket.connect(session.server, target(session.path, query))


async def upgrade(session: Polling) -> WebSocket:
    """Move a session to a WebSocket, as clients do."""
    websocket = await probe(session)
    await websocket.send("2probe")
    assert await websocket.receive() == "3probe"
    await websocket.send("5")
    await settle()
    return websocket


async def next_but_noop(session: Session) -> Packet:
    """The next packet that says something: a noop may come after an upgrade."""
    while (packet := await session.receive()) == "6":
        pass
    return packet


# ------------------------------------------------------------------------------------------------ Socket.IO


_BINARY_EVENT = re.compile(r"4([56])(\d+)-(.*?)([\[{].*)", re.DOTALL)


async def connect(
    session: Session, namespace: str = "/", auth: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Any]:
    """Join a namespace; the CONNECT answer and the `auth` event's arguments."""
    prefix = "" if namespace == "/" else namespace + ","
    await session.send(f"40{prefix}" + ("" if auth is None else json.dumps(auth)))
    answer = await session.receive()
    assert isinstance(answer, str)
    assert answer.startswith("40" + prefix + "{"), answer
    head, event = await receive_event(session)
    assert (head, event[0]) == ("42" + prefix, "auth")
    return json.loads(answer[2 + len(prefix) :]), event[1:]


async def connected(server: Server, transport: str = "websocket", namespace: str = "/") -> Session:
    """A new session in a namespace."""
    session = await open_session(server, transport, SOCKET)
    await connect(session, namespace)
    return session


async def receive_event(session: Session) -> tuple[str, Any]:
    """The next event or ack, with attachments where their placeholders were; and what stood before the JSON.

    For a packet with attachments that is what would stand there without them: "42", "43/custom,12".
    """
    packet = await session.receive()
    assert isinstance(packet, str)
    if not (binary := _BINARY_EVENT.fullmatch(packet)):
        start = min(at for at in (packet.find("["), packet.find("{")) if at >= 0)
        return packet[:start], json.loads(packet[start:])
    kind, count, rest, payload = binary.groups()
    attachments = [await session.receive() for _ in range(int(count))]
    assert all(isinstance(attachment, bytes) for attachment in attachments)
    return f"4{int(kind) - 3}{rest}", _filled(json.loads(payload), attachments)


def _filled(value: Any, attachments: list[Packet]) -> Any:
    match value:
        case {"_placeholder": True, "num": number}:
            return attachments[number]
        case dict():
            return {key: _filled(item, attachments) for key, item in value.items()}
        case list():
            return [_filled(item, attachments) for item in value]
    return value


def placeholder(number: Any) -> dict[str, Any]:
    return {"_placeholder": True, "num": number}


async def expect_alive(session: Session) -> None:
    """The session is in its namespace still, and nothing came before the answer to this."""
    await session.send('42["message","still there?"]')
    with at_once():
        assert (await receive_event(session))[1][:2] == ["message-back", "still there?"]


async def expect_echo(session: Session, text: str = "still there?") -> None:
    """The Engine.IO session is open, and nothing came before the answer to this."""
    await session.send("4" + text)
    with at_once():
        assert await next_but_noop(session) == "4" + text
