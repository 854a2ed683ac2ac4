"""HTTP long-polling: the GETs and POSTs of Engine.IO, as an ASGI endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Final

import orjson
import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from protocol.engineio import CloseReason, ConnectionClosed, HandshakeRefused, Refusal, Transport, TransportMisused

from .connection import Connection
from .engine import EngineService, format_address, refusal
from .exchange import READER, Reader
from .refused import Refused
from .websocket import PIECE

_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_NO_SESSION: Final = HandshakeRefused(Refusal.UNKNOWN_SID)
_BAD_REQUEST: Final = HandshakeRefused(Refusal.BAD_REQUEST)
_PREFLIGHT_MAX_AGE_S: Final = 600


def polling(path: str, engine: EngineService) -> Route:
    """The route of an Engine.IO path. Requests for a WebSocket never come here."""

    async def serve(request: Request) -> Response:
        cors = _cors(request, engine)
        if request.method == "OPTIONS" and "access-control-allow-origin" in cors:
            return Response(status_code=204, headers={**cors, **_preflight(request)})
        try:
            response = await _serve(request, engine)
        except Refused as refused:
            response = Response(orjson.dumps(refused.body), refused.status, refused.headers, "application/json")
        response.headers.update({"cache-control": "no-store", **cors})
        return response

    return Route(path, serve, methods=_METHODS)


async def _serve(request: Request, engine: EngineService) -> Response:
    origin = request.headers.get("origin")
    connection = engine.check(request.query_params, method=request.method, is_websocket=False, origin=origin)
    if connection is None:
        assert request.client is not None, "hypercorn knows the client"
        host, port = request.client
        connection = engine.open(Transport.POLLING, host, format_address(host, port))
    try:
        with engine.carrying():
            if request.method == "GET":
                return await _poll(request, connection, engine)
            if request.method == "POST":
                return await _post(request, connection)
    except TransportMisused:
        raise refusal(_BAD_REQUEST) from None
    except ConnectionClosed as closed:
        raise refusal(_BAD_REQUEST if closed.reason is CloseReason.PARSE_ERROR else _NO_SESSION) from None
    raise Refused(405, "GET polls and POST sends", {"allow": "GET, POST"})


async def _poll(request: Request, connection: Connection, engine: EngineService) -> Response:
    connection.begin_poll()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_with_client, request, connection)
        payload = await connection.poll()
        nursery.cancel_scope.cancel()
    return _Payload(payload, connection, engine)


async def _end_with_client(request: Request, connection: Connection) -> None:
    """A client that drops the poll it holds is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    connection.abort(CloseReason.TRANSPORT_CLOSE, "the poll was dropped")


class _Payload(Response):
    """A poll's answer, sent in pieces, so that a slow client is not taken for a dead one.

    A client that does not read all of it is gone: what it has missed is not sent again.
    """

    def __init__(self, payload: str, connection: Connection, engine: EngineService) -> None:
        super().__init__(payload, headers={"content-type": "text/plain; charset=UTF-8"})
        self._payload = payload
        self._connection = connection
        self._engine = engine
        self._is_sent = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader: Reader = scope[READER]
        try:
            with self._engine.carrying(), self._connection.while_sending():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, reader, nursery.cancel_scope)
                    await self._send(send)
                    self._is_sent = not reader.gone.is_set()
                    nursery.cancel_scope.cancel()
        finally:
            if self._is_sent:
                self._connection.payload_sent(self._payload)
            else:
                self._connection.abort(CloseReason.TRANSPORT_CLOSE, "a poll's answer was not read")

    async def _watch(self, reader: Reader, sending: trio.CancelScope) -> None:
        try:
            await reader.gone.wait()
            sending.cancel()
        finally:
            if not self._is_sent:
                await reader.drop()

    async def _send(self, send: Send) -> None:
        body = memoryview(self.body)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for at in range(0, len(body), PIECE):
            piece, more = bytes(body[at : at + PIECE]), at + PIECE < len(body)
            await send({"type": "http.response.body", "body": piece, "more_body": more})
            if more:
                self._connection.piece_sent()


async def _post(request: Request, connection: Connection) -> Response:
    with connection.post(request.headers.get("content-type", "")):
        body = b""
        with connection.while_alive():
            try:
                body = await _read_body(request, connection.max_message_bytes)
            except ClientDisconnect:
                connection.abort(CloseReason.TRANSPORT_CLOSE, "a POST was broken off")
        await connection.take_payload(body)
    return Response("ok", media_type="text/plain")


async def _read_body(request: Request, max_bytes: int) -> bytes:
    too_large = Refused(413, f"payload over {max_bytes} bytes")
    if int(request.headers.get("content-length", "0")) > max_bytes:
        raise too_large
    body = bytearray()
    async with aclosing(request.stream()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > max_bytes:
                raise too_large
    return bytes(body)


def _cors(request: Request, engine: EngineService) -> Mapping[str, str]:
    """What lets a browser's page of another origin read the answer
    (https://fetch.spec.whatwg.org/#http-cors-protocol).
    """
    origin = request.headers.get("origin")
    if "*" in engine.origins:
        return {"access-control-allow-origin": "*"}
    if engine.origins:
        allowed = {"access-control-allow-origin": origin} if origin and origin in engine.origins else {}
        return {"vary": "Origin", **allowed}
    return {}


def _preflight(request: Request) -> Mapping[str, str]:
    asked = request.headers.get("access-control-request-headers")
    return {
        "access-control-allow-methods": "GET, POST",
        "access-control-max-age": str(_PREFLIGHT_MAX_AGE_S),
        **({"access-control-allow-headers": asked} if asked else {}),
    }
