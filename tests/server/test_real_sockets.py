"""Real sockets, for what only a kernel does to a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, field

from protocol.engineio import CloseReason
from sts_trio.server.application import Peer, Refusal
from sts_trio.server.connection import ConnectionSettings

from .memory import Answer, read_answer, serving
from .test_door import HEALTH, WORKER

pytestmark = pytest.mark.slow


@define
class Flooding:
    """Floods who asks for it."""

    gone: CloseReason | None = None
    ended: trio.Event = field(factory=trio.Event)

    def connected(self, peer: Peer, auth: dict[str, Any]) -> Refusal | None:
        return None

    def welcome(self, peer: Peer, auth: dict[str, Any]) -> None:
        pass

    def received(self, peer: Peer, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        while not peer.closed:
            peer.emit("flood", "a" * 100_000)
        return ()

    def disconnected(self, peer: Peer, reason: CloseReason) -> None:
        self.gone = reason
        self.ended.set()


@asynccontextmanager
async def listening(application: Flooding, settings: ConnectionSettings | None = None) -> AsyncIterator[int]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with serving(application, settings=settings, listener=listener):
        with trio.fail_after(60):
            yield listener.socket.getsockname()[1]


async def exchange(port: int, request: bytes) -> Answer:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        return await read_answer(stream)


async def open_worker(port: int) -> trio.SocketStream:
    """A worker of a few bytes, which has joined."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(WORKER)
    await stream.receive_some()
    await say(stream, b"40")
    received = b""
    while b"40{" not in received:
        received += await stream.receive_some()
    return stream


async def say(stream: trio.SocketStream, text: bytes) -> None:
    await stream.send_all(b"\x81" + bytes([0x80 | len(text)]) + b"\0\0\0\0" + text)  # masked with zeros


async def test_plain_http_on_the_same_port() -> None:
    async with listening(Flooding()) as port:
        answer = await exchange(port, HEALTH)
        assert (answer.status, answer.json["status"]) == (200, "healthy")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1_000_000, 431),
        (b"POST /socket.io/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 1_000_000, 400),
        (WORKER + b"a" * 1_000_000, 400),
    ],
)
async def test_a_refusal_arrives_although_the_client_is_still_sending(request_bytes: bytes, status: int) -> None:
    """The kernel resets a connection that is closed with unread bytes, and a reset throws answers away."""
    async with listening(Flooding()) as port:
        assert (await exchange(port, request_bytes)).status == status


async def test_a_worker_that_stops_reading_is_disconnected_and_others_are_served() -> None:
    application = Flooding()
    async with (
        listening(application, ConnectionSettings(send_queue_bytes=4 * 2**20)) as port,
        await open_worker(port) as stream,
    ):
        await say(stream, b'42["flood"]')
        await application.ended.wait()
        assert application.gone is CloseReason.SLOW_READER
        assert (await exchange(port, HEALTH)).status == 200


async def test_a_worker_whose_connection_is_reset_is_gone() -> None:
    application = Flooding()
    async with listening(application) as port:
        stream = await open_worker(port)
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()
        await application.ended.wait()
        assert application.gone is CloseReason.TRANSPORT_CLOSE


async def test_too_large_a_message_is_answered_1009_while_it_is_still_coming() -> None:
    async with (
        listening(Flooding(), ConnectionSettings(max_message_bytes=100_000)) as port,
        await open_worker(port) as stream,
    ):
        await stream.send_all(b"\x81\xff" + (4_000_000).to_bytes(8, "big") + b"\0\0\0\0" + b"a" * 4_000_000)
        received = b""
        while data := await stream.receive_some():
            received += data
        assert received[:4] == b"\x88" + bytes([received[1]]) + (1009).to_bytes(2, "big")
