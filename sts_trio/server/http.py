"""Plain HTTP: the ASGI application, and hypercorn serving it on a connection the door accepted."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

import h11
import orjson
import trio
from attrs import asdict, frozen
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ..observe.metrics import Metrics
from .websocket import AcceptedStream

# -------------------------------------------------------------------------------------- application


class Status(StrEnum):
    """What a load balancer wants to know."""

    STARTING = "starting"
    HEALTHY = "healthy"
    DRAINING = "draining"


@frozen
class Health:
    """The state of the service. `engines` gives each stage's configured engine by name."""

    status: Status
    version: str
    engines: Mapping[str, str]
    active_streams: int
    uptime_s: float


def operations(health: Callable[[], Health], metrics: Metrics) -> list[Route]:
    """``GET /health``, which is 200 while healthy and 503 before and after, and ``GET /metrics``."""

    async def show_health(request: Request) -> Response:
        report = health()
        body = {"status": report.status} if report.status is Status.STARTING else asdict(report)
        return _json(body, 200 if report.status is Status.HEALTHY else 503)

    async def show_metrics(request: Request) -> Response:
        body, content_type = metrics.render()
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    return [Route("/health", show_health), Route("/metrics", show_metrics)]


def create_app(routes: Iterable[Route]) -> Starlette:
    """An ASGI application over `routes` that answers in JSON when it fails, too. WebSocket scopes are refused (403)."""
    return Starlette(routes=list(routes), exception_handlers={HTTPException: _show_refusal, Exception: _show_defect})


def _json(body: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(body), status, {"cache-control": "no-store", **(headers or {})}, media_type="application/json"
    )


async def _show_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, error.status_code, error.headers)


async def _show_defect(request: Request, error: Exception) -> Response:
    # Starlette raises it again afterwards, and hypercorn logs it with its traceback.
    return _json({"error": HTTPStatus.INTERNAL_SERVER_ERROR.phrase}, 500)


# -------------------------------------------------------------------------------------- server

WRITE_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 10.0

KEEP_ALIVE_S: Final = 5.0
"""How long a connection waits for its next request. Clients are told, so that they send none into its closing."""

KEEP_ALIVE: Final = (b"keep-alive", b"timeout=%d" % KEEP_ALIVE_S)
CLOSE: Final = (b"connection", b"close")

_CONFIG: Final = Config()
_CONFIG.errorlog = logging.getLogger("hypercorn.error")
_CONFIG.include_server_header = False


async def serve_http(stream: AcceptedStream, app: Starlette, *, keep_alive: bool) -> bytes | None:
    """Let hypercorn answer the one request on `stream`.

    hypercorn has no public way to serve a connection that somebody else accepted: this adapter is the only place that
    knows its insides, and a test holds it to them.

    Args:
        keep_alive: whether the client wants to send another request.

    Returns:
        what was read behind the request, where the connection can carry another; None where `stream` is closed.
    """
    request = _OneRequest(stream, keep_alive)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_abort_when_cancelled, request)
        with request.exchange:
            server = TCPServer(
                wrap_app(request.wrap(app), 0, "asgi"),
                _CONFIG,
                WorkerContext(None),
                ConnectionState({}),
                request,  # type: ignore[arg-type]
            )
            await server.run()
        nursery.cancel_scope.cancel()
    return request.unread if request.is_answered else None


async def _abort_when_cancelled(request: _OneRequest) -> None:
    """hypercorn shields its writes: only a socket that closes under one ends it."""
    try:
        await trio.sleep_forever()
    finally:
        if not request.is_answered:
            await request.stream.abort()


class _OneRequest:
    """`AcceptedStream` as hypercorn sees it: one request, of which no piece takes for ever, and nothing behind it.

    Once the request is read nothing is expected any more but the client's leaving, and for that it has all the time. A
    client may send its next request without waiting for the answer; hypercorn is not shown it.

    Attributes:
        exchange: what hypercorn runs in; cancelled when the answer is complete and the connection can be used again.
        is_answered: that has come to pass.
        unread: what came behind the request.
    """

    def __init__(self, stream: AcceptedStream, keep_alive: bool) -> None:
        self.stream = stream
        self.exchange = trio.CancelScope()
        self.is_answered = False
        self.unread = b""
        self._keep_alive = keep_alive
        self._parser = h11.Connection(h11.SERVER)
        self._is_read = False
        self._has_ended = False  # the client says no more, or the connection is closed
        self._is_head = False  # what is being sent is an answer's head, which waits for the first of the body
        self._head = b""
        self.socket = stream.socket
        if stream.encrypted:  # hypercorn then takes it for a trio.SSLStream, and tells the application https
            self.transport_stream = stream
            self.do_handshake = trio.lowlevel.checkpoint
            self.selected_alpn_protocol = lambda: "http/1.1"

    def wrap(self, app: Starlette) -> Any:
        """`app`, which says how it goes on with the connection, and when it is done with it."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_on(message: Message) -> None:
                self._is_head = message["type"] == "http.response.start"
                if self._is_head:
                    message["headers"] = [*message.get("headers", ()), KEEP_ALIVE if self._can_go_on else CLOSE]
                await send(message)

            await app(scope, receive, send_on)
            if self._can_go_on:
                self.is_answered = True
                self.exchange.cancel()

        return answer

    @property
    def _can_go_on(self) -> bool:
        return self._keep_alive and self._is_read and not self._has_ended

    async def send_eof(self) -> None:
        if not self.is_answered:
            self._has_ended = True
            await self.stream.send_eof()

    async def aclose(self) -> None:
        if not self.is_answered:
            self._has_ended = True
            await self.stream.aclose()

    async def receive_some(self, max_bytes: int) -> bytes:
        while not self._has_ended and (data := await self._receive(max_bytes)):
            if self._is_read:
                self.unread += data
            elif data := self._cut(bytes(data)):
                return bytes(data)
        self._has_ended = True  # or it had: another task closes the connection, and reads until the client does
        await trio.lowlevel.checkpoint()
        return b""

    async def _receive(self, max_bytes: int) -> bytes | bytearray:
        if self.unread:
            await trio.sleep_forever()  # until the answer is complete; the client waits for it, too
        try:
            with trio.fail_after(math.inf if self._is_read else READ_TIMEOUT_S):
                return await self.stream.receive_some(max_bytes)
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
        if self._is_head:  # one packet on the network rather than two
            self._head = data
            return
        try:
            with trio.fail_after(WRITE_TIMEOUT_S):
                await self.stream.send_all(data)
        except trio.TooSlowError:
            await self.stream.abort()  # whoever waits to hear from it need not wait any more
            raise trio.BrokenResourceError("the client does not read") from None
