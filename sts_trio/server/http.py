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

_CONFIG: Final = Config()
_CONFIG.keep_alive_max_requests = 0  # a later request on the connection would never be seen by the door
_CONFIG.errorlog = logging.getLogger("hypercorn.error")
_CONFIG.include_server_header = False


async def serve_http(stream: AcceptedStream, app: Starlette) -> None:
    """Let hypercorn answer the one request on `stream`, which is closed afterwards.

    hypercorn has no public way to serve a connection that somebody else accepted: this adapter is the only place that
    knows its insides, and a test holds it to them.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_abort_when_cancelled, stream)
        server = TCPServer(
            wrap_app(app, 0, "asgi"),  # type: ignore[arg-type]  # they spell ASGI's types differently
            _CONFIG,
            WorkerContext(None),
            ConnectionState({}),
            _OneRequest(stream),  # type: ignore[arg-type]
        )
        await server.run()
        nursery.cancel_scope.cancel()


async def _abort_when_cancelled(stream: AcceptedStream) -> None:
    """hypercorn shields its writes: only a socket that closes under one ends it."""
    try:
        await trio.sleep_forever()
    finally:
        await stream.abort()


class _OneRequest:
    """`AcceptedStream` as hypercorn sees it: it ends with the first request, and no piece of one takes for ever.

    Once the request is read nothing is expected any more but the client's leaving, and for that it has all the time.

    A client may send its next request without waiting for the answer. hypercorn would lose that answer; ours closes the
    connection, which tells the client to ask again (RFC 9112, 9.3.2).
    """

    def __init__(self, stream: AcceptedStream) -> None:
        self._stream = stream
        self._parser = h11.Connection(h11.SERVER)
        self._complete = False
        self.socket = stream.socket
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose
        if stream.encrypted:  # hypercorn then takes it for a trio.SSLStream, and tells the application https
            self.transport_stream = stream
            self.do_handshake = trio.lowlevel.checkpoint
            self.selected_alpn_protocol = lambda: "http/1.1"

    async def receive_some(self, max_bytes: int) -> bytes:
        while data := await self._receive(max_bytes):
            if data := self._cut(bytes(data)):
                return bytes(data)
        return b""

    async def _receive(self, max_bytes: int) -> bytes | bytearray:
        try:
            with trio.fail_after(math.inf if self._complete else READ_TIMEOUT_S):
                return await self._stream.receive_some(max_bytes)
        except trio.TooSlowError:
            raise trio.BrokenResourceError("the client does not send what it began") from None

    def _cut(self, data: bytes) -> bytes:
        """The part of `data` that belongs to the request. What is no HTTP is left for hypercorn to refuse."""
        if self._complete:
            return b""
        self._parser.receive_data(data)
        try:
            while not self._complete and (event := self._parser.next_event()) is not h11.NEED_DATA:
                self._complete = isinstance(event, h11.EndOfMessage)
        except h11.RemoteProtocolError:
            return data
        return data[: len(data) - len(self._parser.trailing_data[0])] if self._complete else data

    async def send_all(self, data: bytes) -> None:
        try:
            with trio.fail_after(WRITE_TIMEOUT_S):
                await self._stream.send_all(data)
        except trio.TooSlowError:
            await self._stream.abort()  # whoever waits to hear from it need not wait any more
            raise trio.BrokenResourceError("the client does not read") from None
