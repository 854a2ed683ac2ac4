"""One port for WebSockets and plain HTTP.

The door reads the head of a request, decides who serves it, and hands on a stream that replays what was read. So every
head is read twice: here, and by who serves it. The rule that keeps this safe:

    Whatever two readers of one request could understand differently is refused (`head`). A connection may carry one
    request after the other, but where one ends is decided once: who serves it is shown no byte of the next, and the
    door reads that one's head as it read the first.

Each connection has a task of its own, and whatever goes wrong in it is logged and ends there. `Admission` says how many
there are, and each has `HEAD_TIMEOUT_S`, a TLS handshake included, to say what it wants in at most `HEAD_BYTES`.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

import h11
import orjson
import structlog
import trio
from starlette.routing import Route

from protocol.engineio import Transport

from ..observe.metrics import Metrics
from .admission import Admission
from .connection import Connection
from .engine import EngineService, denied, format_address
from .exchange import KEEP_ALIVE_S, serve_request
from .head import HEAD_BYTES, ClientGone, Head, check_framing, check_websocket, read_head
from .http import create_app
from .polling import polling
from .refused import Refused
from .tls import PLAIN_ANSWER, Accepted, SpokenPlainly, TLSTransport, accept_tls
from .websocket import AcceptedStream

log = structlog.get_logger(__name__)

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
                await self._answer(transport, host, format_address(host, port))
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
        transport: Accepted = accepted
        deadline = trio.current_time() + HEAD_TIMEOUT_S
        unread: bytes | None = b""
        try:
            if self._tls is not None:
                transport = await _encrypt(accepted, self._tls, deadline, address)
            while unread is not None:
                head = await _read_head(transport, unread, deadline)
                stream = AcceptedStream(transport, head.raw)
                if check_framing(head):
                    engine, session = self._check_websocket(head)
                    connection = session or engine.open(Transport.WEBSOCKET, host, address)
                    await engine.serve_websocket(stream, connection, is_new=session is None)
                    return
                unread = await serve_request(
                    stream, self._app, keep_alive=head.wants_keep_alive, is_chunked=head.is_chunked
                )
                if unread is not None:
                    unread = await _wait_for_more(transport, unread)
                deadline = trio.current_time() + HEAD_TIMEOUT_S
        except ClientGone:
            return
        except Refused as refusal:
            log.debug("request_refused", address=address, status=refusal.status, body=refusal.body)
            await _refuse(transport, refusal)

    def _check_websocket(self, head: Head) -> tuple[EngineService, Connection | None]:
        """Everything about a WebSocket handshake that can be refused, before trio-websocket sees it.

        Returns:
            whose it is, and the session that wants to move to it.
        """
        path, _, query = head.request.target.partition(b"?")
        engine = self._engines.get(path.decode())
        if engine is None:
            raise Refused(404, HTTPStatus.NOT_FOUND.phrase)
        try:
            fields = dict(parse_qsl(query.decode(), keep_blank_values=True, max_num_fields=64))
        except ValueError:
            raise Refused(400, "query with too many fields") from None
        origins = head.values(b"origin")
        session = engine.check(
            fields,
            method=head.request.method.decode(),
            is_websocket=True,
            origin=origins[0].decode("latin-1") if origins else None,
        )
        check_websocket(head)
        return engine, session


async def _encrypt(accepted: trio.SocketStream, context: ssl.SSLContext, deadline: float, address: str) -> TLSTransport:
    try:
        with trio.fail_at(deadline):
            return await accept_tls(accepted, context)
    except SpokenPlainly:
        raise Refused(400, PLAIN_ANSWER, for_people=True) from None
    except (trio.TooSlowError, trio.BrokenResourceError) as error:
        log.debug("tls_handshake_failed", address=address, error=str(error.__cause__ or type(error).__name__))
        raise ClientGone from None


async def _read_head(transport: Accepted, unread: bytes, deadline: float) -> Head:
    try:
        with trio.fail_at(deadline):
            return await read_head(transport, unread)
    except trio.TooSlowError:
        raise Refused(408, f"no request within {HEAD_TIMEOUT_S:g} s") from None


async def _wait_for_more(transport: Accepted, unread: bytes) -> bytes | None:
    """The beginning of a connection's next request; None where it is closed, for there is none.

    Empty lines before a request are no request (RFC 9112, 2.2).
    """
    with trio.move_on_after(KEEP_ALIVE_S):
        while not (unread := unread.lstrip(b"\r\n")):
            try:
                data = await transport.receive_some(HEAD_BYTES)
            except trio.BrokenResourceError:
                raise ClientGone from None
            if not data:
                break
            unread = bytes(data)
    if not unread:
        await AcceptedStream(transport, b"").aclose()
    return unread or None


async def _refuse(transport: Accepted, refusal: Refused) -> None:
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
