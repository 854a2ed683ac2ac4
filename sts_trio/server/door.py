"""One port for WebSockets and plain HTTP.

The door reads the head of a request, decides who serves it, and hands on a stream that replays what was read. So every
head is read twice: here, and by who serves it. The rule that keeps this safe:

    Whatever two readers of one request could understand differently, the door refuses. One version (HTTP/1.1, and 1.0
    for plain requests), one way to say how long the body is, one form of target, one protocol to upgrade to; an upgrade
    has no body and nothing behind its head. A connection may carry one request after the other, but where one ends is
    decided once: who serves it is shown no byte of the next, and the door reads that one's head as it read the first.

Each connection has a task of its own, and whatever goes wrong in it is logged and ends there. `Admission` says how many
there are, and each has `HEAD_TIMEOUT_S`, a TLS handshake included, to say what it wants in at most `HEAD_BYTES`.
"""

from __future__ import annotations

import binascii
import ssl
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

import h11
import orjson
import structlog
import trio
from attrs import frozen
from starlette.routing import Route

from protocol.engineio import Transport

from ..observe.metrics import Metrics
from .admission import Admission
from .connection import Connection
from .engine import EngineService, denied
from .http import KEEP_ALIVE_S, create_app, serve_http
from .polling import polling
from .refused import Refused
from .tls import PLAIN_ANSWER, SpokenPlainly, TLSTransport, accept_tls
from .tls import Transport as Stream
from .websocket import AcceptedStream

log = structlog.get_logger(__name__)

HEAD_BYTES: Final = 16_384
HEAD_TIMEOUT_S: Final = 10.0
REFUSAL_TIMEOUT_S: Final = 2.0

TURNED_AWAY_AT_ONCE: Final = 64
"""Connections over the limit that are told so at the same time; the others are just closed."""


class Door:
    """Serves listeners: Engine.IO on its paths, all other HTTP by its routes.

    Args:
        routes: of plain HTTP.
        engines: by path. Whoever owns them runs them.
        admission: who may connect; the default limits where it is None.
        tls: for a port that speaks nothing else; see `tls.server_context`.
    """

    def __init__(
        self,
        routes: Iterable[Route],
        engines: Mapping[str, EngineService],
        *,
        metrics: Metrics,
        admission: Admission | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._app = create_app([*(polling(path, engine) for path, engine in engines.items()), *routes])
        self._engines = engines
        self._metrics = metrics
        self._admission = admission or Admission()
        self._tls = tls
        self._turned_away = 0

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[trio.SocketStream]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and serve until cancelled, which cuts every connection off; closes `listeners`.

        Where descriptors or memory run out it waits and goes on accepting (`trio.serve_listeners`).
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._serve, list(listeners))
            task_status.started()

    async def _serve(self, transport: trio.SocketStream) -> None:
        try:
            host, port = transport.socket.getpeername()[:2]
        except OSError:
            return  # it has left already
        try:
            denial = self._admission.admit_connection(host)
            if denial is not None:
                await self._turn_away(transport, denied(denial, host, self._metrics))
                return
            try:
                await self._answer(transport, host, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            finally:
                self._admission.release_connection(host)
        except* Exception:  # one connection's defect is not the others' end
            log.exception("connection_crashed")

    async def _turn_away(self, transport: trio.SocketStream, refused: Refused) -> None:
        if self._tls is not None or self._turned_away >= TURNED_AWAY_AT_ONCE:
            return  # an encrypted answer would cost what it is to save
        self._turned_away += 1
        try:
            await _refuse(transport, refused)
        finally:
            self._turned_away -= 1

    async def _answer(self, accepted: trio.SocketStream, host: str, address: str) -> None:
        transport: Stream = accepted
        deadline = trio.current_time() + HEAD_TIMEOUT_S
        unread: bytes | None = b""
        try:
            if self._tls is not None:
                transport = await _encrypt(accepted, self._tls, deadline, address)
            while unread is not None:
                head = await _read_head(transport, unread, deadline)
                if _check_framing(head):
                    engine, session = self._check_websocket(head.request)
                    connection = session or engine.open(Transport.WEBSOCKET, host, address)
                    stream = AcceptedStream(transport, head.raw)
                    await engine.serve_websocket(stream, connection, is_new=session is None)
                    return
                keep_alive = _wants_keep_alive(head.request)
                unread = await serve_http(AcceptedStream(transport, head.raw), self._app, keep_alive=keep_alive)
                if unread == b"":
                    unread = await _wait_for_more(transport)
                deadline = trio.current_time() + HEAD_TIMEOUT_S
        except _Gone:
            return
        except Refused as refusal:
            log.debug("request_refused", address=address, status=refusal.status, body=refusal.body)
            await _refuse(transport, refusal)

    def _check_websocket(self, request: h11.Request) -> tuple[EngineService, Connection | None]:
        """Everything about a WebSocket handshake that can be refused, before trio-websocket sees it.

        Returns:
            whose it is, and the session that wants to move to it.
        """
        path, _, query = request.target.partition(b"?")
        engine = self._engines.get(path.decode())
        if engine is None:
            raise Refused(404, HTTPStatus.NOT_FOUND.phrase)
        try:
            fields = dict(parse_qsl(query.decode(), keep_blank_values=True, max_num_fields=64))
        except ValueError:
            raise Refused(400, "query with too many fields") from None
        origins = _values(request, b"origin")
        session = engine.check(
            fields,
            method=request.method.decode(),
            is_websocket=True,
            origin=b", ".join(origins).decode("latin-1") if origins else None,
        )
        if _values(request, b"sec-websocket-version") != [b"13"]:
            raise Refused(426, "WebSocket version 13 is required", {"sec-websocket-version": "13"})
        if not _is_websocket_key(_values(request, b"sec-websocket-key")):
            raise Refused(400, "Sec-WebSocket-Key must be 16 bytes in base64")
        return engine, session


# -------------------------------------------------------------------------------------- the head of a request


class _Gone(Exception):
    """The client left before it asked for anything."""


@frozen
class _Head:
    """A request, all bytes that were read, and whether it has a body or anything else behind its head."""

    request: h11.Request
    raw: bytes
    has_more: bool


async def _encrypt(accepted: trio.SocketStream, context: ssl.SSLContext, deadline: float, address: str) -> TLSTransport:
    try:
        with trio.fail_at(deadline):
            return await accept_tls(accepted, context)
    except SpokenPlainly:
        raise Refused(400, PLAIN_ANSWER, for_people=True) from None
    except (trio.TooSlowError, trio.BrokenResourceError) as error:
        log.debug("tls_handshake_failed", address=address, error=str(error.__cause__ or type(error).__name__))
        raise _Gone from None


async def _wait_for_more(transport: Stream) -> bytes | None:
    """The beginning of a connection's next request; None where it is closed, for there is none."""
    data = b""
    with trio.move_on_after(KEEP_ALIVE_S):
        try:
            data = bytes(await transport.receive_some(HEAD_BYTES))
        except trio.BrokenResourceError:
            raise _Gone from None
    if not data:
        await AcceptedStream(transport, b"").aclose()
    return data or None


async def _read_head(transport: Stream, unread: bytes, deadline: float) -> _Head:
    """Read a request's head, of which `unread` may be the beginning, or more than that."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    raw = bytearray(unread)
    if unread:  # nothing would mean that the client has left
        parser.receive_data(unread)
    try:
        with trio.fail_at(deadline):
            while (event := parser.next_event()) is h11.NEED_DATA:
                if len(raw) >= HEAD_BYTES:
                    raise Refused(431, f"request head over {HEAD_BYTES} bytes")
                data = await transport.receive_some(HEAD_BYTES - len(raw))
                raw += data
                parser.receive_data(bytes(data))
        if not isinstance(event, h11.Request):
            raise _Gone
        ended = not _has_body(event) and parser.next_event()
        return _Head(event, bytes(raw), not ended or bool(parser.trailing_data[0]))
    except h11.RemoteProtocolError as error:
        raise Refused(error.error_status_hint, str(error)) from None
    except trio.BrokenResourceError:
        raise _Gone from None
    except trio.TooSlowError:
        raise Refused(408, f"no request within {HEAD_TIMEOUT_S:g} s") from None


def _check_framing(head: _Head) -> bool:
    """Enforce the rule of this module.

    Returns:
        whether the request asks for a WebSocket.

    Raises:
        Refused
    """
    request = head.request
    if request.http_version not in (b"1.0", b"1.1"):
        raise Refused(505, "HTTP/1.1 is spoken here")  # b"2.0" is the preface of HTTP/2
    if not request.target.startswith(b"/"):
        raise Refused(400, "the target must be a path")
    if _values(request, b"transfer-encoding"):
        if _values(request, b"content-length"):
            raise Refused(400, "Transfer-Encoding and Content-Length exclude each other")
        if request.http_version == b"1.0":
            raise Refused(400, "Transfer-Encoding needs HTTP/1.1")
    protocols = _values(request, b"upgrade")
    if not protocols:
        return False
    if [protocol.lower() for protocol in protocols] != [b"websocket"]:
        raise Refused(400, "nothing but websocket can be upgraded to")
    connection = b",".join(_values(request, b"connection")).lower().split(b",")
    if b"upgrade" not in [token.strip() for token in connection]:
        raise Refused(400, "Upgrade without Connection: upgrade")
    if request.http_version == b"1.0":
        raise Refused(400, "an upgrade needs HTTP/1.1")
    if head.has_more:
        raise Refused(400, "nothing may follow the head of an upgrade")
    return True


def _wants_keep_alive(request: h11.Request) -> bool:
    """Whether the client may send another request on the connection (RFC 9112, 9.3)."""
    options = b",".join(_values(request, b"connection")).lower().split(b",")
    return request.http_version == b"1.1" and b"close" not in [option.strip() for option in options]


def _has_body(request: h11.Request) -> bool:
    lengths = _values(request, b"content-length")
    return bool(_values(request, b"transfer-encoding")) or lengths not in ([], [b"0"])


def _values(request: h11.Request, name: bytes) -> list[bytes]:
    return [value for key, value in request.headers if key == name]


def _is_websocket_key(values: list[bytes]) -> bool:
    try:
        return len(values) == 1 and len(binascii.a2b_base64(values[0], strict_mode=True)) == 16
    except binascii.Error:
        return False


async def _refuse(transport: Stream, refusal: Refused) -> None:
    text = refusal.body if isinstance(refusal.body, str) else None
    body = orjson.dumps(refusal.body) if text is None else text.encode()
    response = h11.Response(
        status_code=refusal.status,
        reason=HTTPStatus(refusal.status).phrase,
        headers=[
            (b"content-type", b"application/json" if text is None else b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *((name.encode(), value.encode()) for name, value in refusal.headers.items()),
        ],
    )
    writer = h11.Connection(h11.SERVER)
    message = b"".join([writer.send(event) or b"" for event in (response, h11.Data(data=body), h11.EndOfMessage())])
    with trio.move_on_after(REFUSAL_TIMEOUT_S):
        try:
            await transport.send_all(message)
            await AcceptedStream(transport, b"").aclose()
        except trio.BrokenResourceError:
            pass  # it did not wait for the answer
