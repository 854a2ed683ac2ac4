"""One port for WebSockets and plain HTTP.

The door reads the head of a connection's first and only request, decides who serves it, and hands on a stream that
replays what was read. So every head is read twice: here, and by who serves it. The rule that keeps this safe:

    Whatever two readers of one request could understand differently, the door refuses. One version (HTTP/1.1, and 1.0
    for plain requests), one way to say how long the body is, one form of target, one protocol to upgrade to; an upgrade
    has no body and nothing behind its head. A connection carries one request.

Each connection has a task of its own, and whatever goes wrong in it is logged and ends there. `Admission` says how many
there are, and each has `HEAD_TIMEOUT_S`, a TLS handshake included, to say what it wants in at most `HEAD_BYTES`.
"""

from __future__ import annotations

import binascii
import ssl
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

import h11
import orjson
import structlog
import trio
from attrs import frozen
from starlette.applications import Starlette

from protocol.engineio import CloseReason, HandshakeRefused, check_handshake

from ..observe.metrics import Metrics
from .admission import Admission, Denial
from .connection import Application, Connection, ConnectionSettings
from .http import SOCKETIO_PATH, serve_http
from .tls import PLAIN_ANSWER, SpokenPlainly, TLSTransport, Transport, accept_tls
from .websocket import AcceptedStream, WebSocketClosed, open_websocket

log = structlog.get_logger(__name__)

HEAD_BYTES: Final = 16_384
HEAD_TIMEOUT_S: Final = 10.0
HANDSHAKE_TIMEOUT_S: Final = 10.0
REFUSAL_TIMEOUT_S: Final = 2.0

TURNED_AWAY_AT_ONCE: Final = 64
"""Connections over the limit that are told so at the same time; the others are just closed."""


class Door:
    """Serves listeners: Engine.IO WebSockets to the application, all other HTTP to the ASGI application.

    Args:
        http_app: answers plain HTTP.
        application: whom workers talk to; None where this port takes none.
        settings: of the workers' connections.
        admission: who may connect; the default limits where it is None.
        tls: for a port that speaks nothing else; see `tls.server_context`.
    """

    def __init__(
        self,
        http_app: Starlette,
        application: Application | None,
        *,
        metrics: Metrics,
        settings: ConnectionSettings | None = None,
        admission: Admission | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._http_app = http_app
        self._application = application
        self._metrics = metrics
        self._settings = settings or ConnectionSettings()
        self._admission = admission or Admission()
        self._tls = tls
        self._turned_away = 0
        self._workers: set[Connection] = set()
        self._worker_gone = trio.Event()
        self._draining = False

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

    def drain(self) -> None:
        """From now on refuse new workers (503). Those connected stay, and plain HTTP is still answered."""
        self._draining = True

    async def disconnect_workers(self) -> None:
        """Close every worker's connection once what is queued for it was sent, and return when all are gone.

        Takes at most the connections' `flush_timeout_s` and a closing handshake.
        """
        self.drain()
        for connection in self._workers:
            connection.close(CloseReason.SHUTTING_DOWN)
        while self._workers:
            self._worker_gone = trio.Event()
            await self._worker_gone.wait()

    async def _serve(self, transport: trio.SocketStream) -> None:
        try:
            host, port = transport.socket.getpeername()[:2]
        except OSError:
            return  # it has left already
        try:
            denial = self._admission.admit_connection(host)
            if denial is not None:
                await self._turn_away(transport, self._denied(denial, host))
                return
            try:
                await self._answer(transport, host, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            finally:
                self._admission.release_connection(host)
        except* Exception:  # one connection's defect is not the others' end
            log.exception("connection_crashed")

    async def _turn_away(self, transport: trio.SocketStream, refusal: Refused) -> None:
        if self._tls is not None or self._turned_away >= TURNED_AWAY_AT_ONCE:
            return  # an encrypted answer would cost what it is to save
        self._turned_away += 1
        try:
            await _refuse(transport, refusal)
        finally:
            self._turned_away -= 1

    def _denied(self, denial: Denial, host: str) -> Refused:
        self._metrics.connections_refused_total.labels(reason=denial.reason.value).inc()
        log.debug("not_admitted", address=host, reason=denial.reason)
        return Refused(denial.status, denial.message, [(b"retry-after", str(denial.retry_after_s).encode())])

    async def _answer(self, accepted: trio.SocketStream, host: str, address: str) -> None:
        transport: Transport = accepted
        deadline = trio.current_time() + HEAD_TIMEOUT_S
        try:
            if self._tls is not None:
                transport = await _encrypt(accepted, self._tls, deadline, address)
            with trio.fail_at(deadline):
                head = await _read_head(transport)
            is_upgrade = _check_framing(head)
            if is_upgrade:
                self._check_worker(head.request, host)
        except _Gone:
            return
        except trio.TooSlowError:
            await _refuse(transport, Refused(408, f"no request within {HEAD_TIMEOUT_S:g} s"))
            return
        except Refused as refusal:
            log.debug("request_refused", address=address, status=refusal.status, body=refusal.body)
            await _refuse(transport, refusal)
            return
        stream = AcceptedStream(transport, head.raw)
        if is_upgrade:
            await self._serve_worker(stream, address)
        else:
            await serve_http(stream, self._http_app)

    def _check_worker(self, request: h11.Request, host: str) -> None:
        """Everything about a WebSocket handshake that can be refused, before trio-websocket sees it."""
        path, _, query = request.target.partition(b"?")
        if self._application is None or path.decode() != SOCKETIO_PATH:
            raise Refused(404, HTTPStatus.NOT_FOUND.phrase)
        if self._draining:
            raise Refused(503, "shutting down")
        try:
            fields = dict(parse_qsl(query.decode(), keep_blank_values=True, max_num_fields=64))
            check_handshake(fields, method=request.method.decode(), is_upgrade=True, sessions={})
        except HandshakeRefused as refusal:
            raise Refused(refusal.status, refusal.body) from None
        except ValueError:
            raise Refused(400, "query with too many fields") from None
        if _values(request, b"sec-websocket-version") != [b"13"]:
            raise Refused(426, "WebSocket version 13 is required", [(b"sec-websocket-version", b"13")])
        if not _is_websocket_key(_values(request, b"sec-websocket-key")):
            raise Refused(400, "Sec-WebSocket-Key must be 16 bytes in base64")
        denial = self._admission.admit_handshake(host, trio.current_time())
        if denial is not None:
            raise self._denied(denial, host)

    async def _serve_worker(self, stream: AcceptedStream, address: str) -> None:
        assert self._application is not None
        try:
            async with open_websocket(
                stream, max_message_bytes=self._settings.max_message_bytes, handshake_timeout_s=HANDSHAKE_TIMEOUT_S
            ) as websocket:
                connection = Connection(websocket, address, self._application, self._settings)
                self._workers.add(connection)
                self._metrics.connections.inc()
                if self._draining:  # it came in just before
                    connection.close(CloseReason.SHUTTING_DOWN)
                try:
                    await connection.run()
                finally:
                    self._metrics.connections.dec()
                    self._workers.discard(connection)
                    self._worker_gone.set()
        except* WebSocketClosed:
            log.debug("handshake_not_completed", address=address)


# -------------------------------------------------------------------------------------- the head of a request


class Refused(Exception):
    """A request that nobody serves.

    Attributes:
        body: what the client is told: JSON; text goes into an ``error``, unless it is for people.
    """

    def __init__(
        self,
        status: int,
        body: str | dict[str, Any],
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        for_people: bool = False,
    ) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = {"error": body} if isinstance(body, str) and not for_people else body
        self.headers = list(headers)


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


async def _read_head(transport: Transport) -> _Head:
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    raw = bytearray()
    try:
        while (event := parser.next_event()) is h11.NEED_DATA:
            if len(raw) == HEAD_BYTES:
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


async def _refuse(transport: Transport, refusal: Refused) -> None:
    text = refusal.body if isinstance(refusal.body, str) else None
    body = orjson.dumps(refusal.body) if text is None else text.encode()
    response = h11.Response(
        status_code=refusal.status,
        reason=HTTPStatus(refusal.status).phrase,
        headers=[
            (b"content-type", b"application/json" if text is None else b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *refusal.headers,
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
