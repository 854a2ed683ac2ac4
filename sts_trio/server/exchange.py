"""One HTTP request and its answer: hypercorn on a connection that the door accepted, for as long as one exchange takes.

hypercorn has no public way to serve a connection that somebody else accepted. This adapter is the only place that knows
its insides, and a test holds it to them. What it knows:

- hypercorn reads on while the application works, and so hears of a client that leaves. Nothing is expected any more,
  and for that the client has all the time; but it is shown no byte that belongs to the next request.
- It hands the application what it reads through a queue of ten pieces, and waits where that is full, also when it
  closes. So what the application does not read of a request is read and thrown away once the answer has begun.
- It shields its writes: only a socket that closes under one ends it.
- It closes the connection as it sees fit. It may not: the exchange ends when the application has answered, and then
  who called knows whether the connection is still good.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

import h11
import structlog
import trio
from attrs import frozen
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .websocket import AcceptedStream

log = structlog.get_logger(__name__)

WRITE_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 10.0
KEEP_ALIVE_S: Final = 5.0
"""How long a connection waits for its next request. Clients are told, so that they send none into its closing."""

CHUNKED_BYTES: Final = 4_096
"""What is read at a time of a body in chunks: each of them costs as much as a large one."""

PIPELINED_BYTES: Final = 2**16
"""What is read behind a request while it is answered."""

READER: Final = "sts.reader"
"""Where an application finds, in its scope, the `Reader` of its answer."""

_KEEP_ALIVE: Final = (b"keep-alive", b"timeout=%d" % KEEP_ALIVE_S)
_CLOSE: Final = (b"connection", b"close")

_CONFIG: Final = Config()
_CONFIG.errorlog = logging.getLogger("hypercorn.error")
_CONFIG.include_server_header = False


@frozen
class Reader:
    """Who reads the answer.

    Attributes:
        gone: set where nobody reads it any more, once it has begun; before, the application is told by
            ``http.disconnect``.
        drop: end the connection at once, also where a write hangs: hypercorn shields that from being cancelled.
    """

    gone: trio.Event
    drop: Callable[[], Awaitable[None]]


async def serve_request(stream: AcceptedStream, app: ASGIApp, *, keep_alive: bool, is_chunked: bool) -> bytes | None:
    """Let hypercorn answer the one request on `stream`.

    Args:
        keep_alive: whether the client wants to send another request.
        is_chunked: whether the body of this one comes in chunks.

    Returns:
        what was read behind the request, where the connection can carry another; None where `stream` is closed.
    """
    exchange = _Exchange(stream, app, keep_alive, is_chunked)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_abort_when_cancelled, stream, exchange)
        with exchange.scope:
            server = TCPServer(
                wrap_app(exchange.answer, 0, "asgi"),  # type: ignore[arg-type]  # they spell ASGI's types differently
                _CONFIG,
                WorkerContext(None),
                ConnectionState({}),
                exchange,  # type: ignore[arg-type]
            )
            await server.run()
        if not exchange.can_go_on:
            await stream.aclose()
        nursery.cancel_scope.cancel()
    return exchange.unread if exchange.can_go_on else None


async def _abort_when_cancelled(stream: AcceptedStream, exchange: _Exchange) -> None:
    try:
        await trio.sleep_forever()
    finally:
        if not exchange.can_go_on:
            await stream.abort()


class _Exchange:
    """The stream that hypercorn sees, and the application that it calls.

    Attributes:
        scope: what hypercorn runs in; it ends with the answer.
        unread: what came behind the request.
    """

    def __init__(self, stream: AcceptedStream, app: ASGIApp, keep_alive: bool, is_chunked: bool) -> None:
        self.scope = trio.CancelScope()
        self.unread = b""
        self._stream = stream
        self._app = app
        self._keep_alive = keep_alive
        self._is_chunked = is_chunked
        self._parser = h11.Connection(h11.SERVER)
        self._is_read = False
        self._is_answering = False
        self._is_ending = False  # the last of the answer is being sent
        self._is_answered = False
        self._client_gone = trio.Event()
        self._is_closed = False  # nothing comes or goes any more
        self._holds_head = False  # what is being sent is an answer's head, which waits for the first of the body
        self._head = b""
        self.socket = stream.socket
        if stream.encrypted:  # hypercorn then takes it for a trio.SSLStream, and tells the application https
            self.transport_stream = stream
            self.do_handshake = trio.lowlevel.checkpoint
            self.selected_alpn_protocol = lambda: "http/1.1"

    @property
    def can_go_on(self) -> bool:
        """Whether the answer is complete, and the connection good for another request."""
        return self._is_answered and self._may_go_on

    @property
    def _may_go_on(self) -> bool:
        return self._keep_alive and self._is_read and not self._is_closed

    # ---------------------------------------------------------------- the application

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, with the fate of the connection in its answer."""
        self._is_answering = True
        scope[READER] = Reader(self._client_gone, self._stream.abort)
        try:
            async with trio.open_nursery() as nursery:

                async def send_on(message: Message) -> None:
                    self._holds_head = message["type"] == "http.response.start"
                    if self._holds_head:
                        nursery.start_soon(self._drain, receive)
                        message["headers"] = [*message.get("headers", ()), _KEEP_ALIVE if self._may_go_on else _CLOSE]
                    is_last = not self._holds_head and not message.get("more_body", False)
                    self._is_ending = is_last
                    await send(message)
                    self._is_answered = is_last

                try:
                    await self._app(scope, receive, send_on)
                except Exception:  # the client has its 500 from the application's own handler
                    log.exception("request_crashed", path=scope.get("path"))
                nursery.cancel_scope.cancel()
        finally:
            self._is_answering = False
            self.scope.cancel()

    async def _drain(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._is_ending:  # else it only tells that the answer is complete
            self._client_gone.set()

    # ---------------------------------------------------------------- the stream

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """hypercorn is done with the connection, or refuses what it has read without asking the application."""
        self._is_closed = True
        if not self._is_answering:
            self.scope.cancel()
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int) -> bytes:
        if self._is_chunked:
            max_bytes = min(max_bytes, CHUNKED_BYTES)
        while not self._is_closed and (data := await self._receive(max_bytes)):
            if self._is_read:
                self.unread += data
            elif data := self._cut(bytes(data)):
                return bytes(data)
        self._is_closed = True
        await trio.lowlevel.checkpoint()
        return b""

    async def _receive(self, max_bytes: int) -> bytes | bytearray:
        if len(self.unread) >= PIPELINED_BYTES:
            await trio.sleep_forever()  # until the exchange ends; the client waits for that, too
        try:
            with trio.fail_after(math.inf if self._is_read else READ_TIMEOUT_S):
                return await self._stream.receive_some(max_bytes)
        except trio.TooSlowError:
            raise trio.BrokenResourceError("the client does not send what it began") from None

    def _cut(self, data: bytes) -> bytes:
        """The part of `data` that belongs to the request. What is no HTTP is left for hypercorn to refuse."""
        self._parser.receive_data(data)
        try:
            while not self._is_read and (event := self._parser.next_event()) is not h11.NEED_DATA:
                self._is_read = isinstance(event, h11.EndOfMessage)
        except h11.RemoteProtocolError:
            return data
        if not self._is_read:
            return data
        self.unread = bytes(self._parser.trailing_data[0])
        return data[: len(data) - len(self.unread)]

    async def send_all(self, data: bytes) -> None:
        data, self._head = self._head + data, b""
        if self._holds_head:  # one packet on the network rather than two
            self._head = data
            return
        if not data:  # the end of an answer that has left; the client may have closed by now
            return
        try:
            with trio.fail_after(WRITE_TIMEOUT_S):
                await self._stream.send_all(data)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
            self._is_closed = True
            self._client_gone.set()
            await self._stream.abort()  # whoever waits to hear from it need not wait any more
            raise trio.BrokenResourceError("the client does not read") from None
