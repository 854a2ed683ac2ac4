"""A network in memory, so that door, hypercorn and WebSockets run on virtual time.

Each connection is a pair of trio's in-memory streams; the server's end also has the few things that are asked of a
socket.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias, cast

import h11
import orjson
import trio
import trio.testing
from attrs import frozen
from starlette.routing import Route
from trio_websocket import WebSocketConnection, wrap_client_stream

from sts_trio.observe.metrics import Metrics
from sts_trio.server import http
from sts_trio.server.admission import Admission
from sts_trio.server.application import Application
from sts_trio.server.connection import ConnectionSettings
from sts_trio.server.door import Door
from sts_trio.server.engine import EngineService
from sts_trio.server.sockets import SocketService, SocketSettings

Pair: TypeAlias = Callable[[], tuple[Any, Any]]

SOCKETIO_PATH = "/socket.io/"
CLIENT_ADDRESS = "192.0.2.7:50000"


class FakeSocket:
    """The addresses of one connection."""

    family = socket.AF_INET

    def __init__(self, *, connected: bool = True, host: str = "192.0.2.7") -> None:
        self._connected = connected
        self._host = host

    def getpeername(self) -> tuple[str, int]:
        if not self._connected:
            raise OSError(errno.ENOTCONN, "not connected")
        return (self._host, 50_000)

    def getsockname(self) -> tuple[str, int]:
        return ("192.0.2.1", 8_000)


class ServerEnd(trio.abc.HalfCloseableStream):
    """The server's end of a connection in memory. `closed` tells when it was closed."""

    def __init__(self, stream: Any, fake_socket: FakeSocket) -> None:
        self._stream = stream
        self.socket = fake_socket
        self.closed = trio.Event()

    async def send_all(self, data: Any) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = await self._stream.receive_some(max_bytes)
        return data

    async def aclose(self) -> None:
        self.closed.set()
        await self._stream.aclose()


class SlowLink(trio.abc.Stream):
    """A client's end that takes what comes at `bytes_per_s`, and no byte ahead."""

    def __init__(self, stream: Any, bytes_per_s: int) -> None:
        self._stream = stream
        self._bytes_per_s = bytes_per_s

    @classmethod
    def pair(cls, bytes_per_s: int) -> tuple[SlowLink, Any]:
        client, server = trio.testing.lockstep_stream_pair()
        return cls(client, bytes_per_s), server

    async def send_all(self, data: Any) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = await self._stream.receive_some(max_bytes)
        await trio.sleep(len(data) / self._bytes_per_s)
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class Network(trio.abc.Listener[trio.SocketStream]):
    """A listener that tests connect to.

    Attributes:
        accepted: the server's ends, in order.
        failures: what the next accepts raise.
    """

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[ServerEnd](100)
        self.accepted: list[ServerEnd] = []
        self.failures: list[OSError] = []

    async def accept(self) -> trio.SocketStream:
        if self.failures:
            await trio.lowlevel.checkpoint()
            raise self.failures.pop(0)
        return cast(trio.SocketStream, await self._receive.receive())

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def connect(
        self,
        pair: Pair = trio.testing.memory_stream_pair,
        *,
        socket_connected: bool = True,
        host: str = "192.0.2.7",
    ) -> Any:
        """The client's end of a new connection: memory streams hold any amount, lockstep ones nothing at all."""
        client, server = pair()
        end = ServerEnd(server, FakeSocket(connected=socket_connected, host=host))
        self.accepted.append(end)
        self._send.send_nowait(end)
        return client


@frozen
class Answer:
    """An HTTP response, and whether the server closed the connection after it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@frozen
class Server:
    """A door on a network in memory."""

    network: Network
    door: Door
    engines: Mapping[str, EngineService]
    metrics: Metrics
    nursery: trio.Nursery

    @property
    def engine(self) -> EngineService:
        """Of /socket.io/."""
        return self.engines[SOCKETIO_PATH]

    async def request(self, *pieces: bytes, pause_s: float = 0.0) -> Answer:
        """Send `pieces` of a request on a new connection and read all until the server closes it."""
        stream = self.network.connect()
        for piece in pieces:
            with suppress(trio.BrokenResourceError):  # it may have been answered and closed already
                await stream.send_all(piece)
            await trio.sleep(pause_s)
        return await read_answer(stream)

    async def get(self, target: str) -> Answer:
        return await self.request(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    async def websocket(
        self,
        resource: str = "/socket.io/?EIO=4&transport=websocket",
        pair: Pair = trio.testing.memory_stream_pair,
    ) -> WebSocketConnection:
        stream = self.network.connect(pair)
        return await wrap_client_stream(self.nursery, stream, "x", resource)


async def read_answer(stream: Any) -> Answer:
    """The answer to the only request on a connection, which the server closes behind it."""
    answer, unread = await read_one_answer(stream)
    assert unread == b""
    await _expect_end(stream)
    return answer


async def read_one_answer(stream: Any, unread: bytes = b"") -> tuple[Answer, bytes]:
    """The next answer, of which `unread` is the beginning, and what was read behind it."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    if unread:  # nothing would mean that the server has closed
        parser.receive_data(unread)
    status, headers, body = 0, {}, b""
    while True:
        match event := parser.next_event():
            case h11.Response():
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            case h11.Data():
                body += event.data
            case h11.EndOfMessage():
                return Answer(status, headers, body), bytes(parser.trailing_data[0])
            case h11.NEED_DATA:
                parser.receive_data(await stream.receive_some())
            case _:
                raise AssertionError(f"no answer: {event}")


async def _expect_end(stream: Any) -> None:
    with trio.fail_after(60):
        assert await stream.receive_some() == b""


HEALTHY = http.Health(http.Status.HEALTHY, "1.0", {"asr": "scripted"}, 2, 12.5, {"asr": http.PoolHealth(2, 0)})


def socketio_engine(
    application: Application,
    metrics: Metrics,
    *,
    settings: ConnectionSettings | None = None,
    sockets: SocketSettings | None = None,
    admission: Admission | None = None,
    origins: Sequence[str] = (),
) -> EngineService:
    """Socket.IO for `application`."""
    return EngineService(
        SocketService(application, sockets),
        settings=settings or ConnectionSettings(),
        metrics=metrics,
        admission=admission or Admission(),
        origins=origins,
    )


@asynccontextmanager
async def serving(
    application: Application | None = None,
    *,
    routes: Iterable[Route] | None = None,
    engines: Mapping[str, EngineService] | None = None,
    metrics: Metrics | None = None,
    admission: Admission | None = None,
    tls: ssl.SSLContext | None = None,
    listener: trio.abc.Listener[Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Server]:
    """A running door; leaving the context cancels it.

    Args:
        application: behind Socket.IO at /socket.io/, with `settings` (see `socketio_engine`), where no `engines` are
        given. routes: /health and /metrics by default.
        listener: a network in memory by default.
    """
    metrics, network, admission = metrics or Metrics(), Network(), admission or Admission()
    if engines is None and application is not None:
        engines = {SOCKETIO_PATH: socketio_engine(application, metrics, admission=admission, **settings)}
    engines = engines or {}
    pages = http.operations(lambda: HEALTHY, metrics) if routes is None else routes
    door = Door(pages, engines, metrics=metrics, admission=admission, tls=tls)
    async with trio.open_nursery() as nursery:
        for engine in engines.values():
            await nursery.start(engine.run)
        await nursery.start(door.serve, [listener or network])
        yield Server(network, door, engines, metrics, nursery)
        nursery.cancel_scope.cancel()
