"""The Engine.IO sessions of one path: who gets one, over which transport, and that all of them end.

A session on long-polling outlives each of its requests, so every session has a task in the nursery of
`EngineService.run`. The tasks that carry it (a WebSocket's, a request's) belong to who accepted the connection they
came over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import structlog
import trio

from protocol.engineio import CloseReason, HandshakeRefused, Transport, check_handshake

from ..observe.metrics import Metrics
from .admission import Admission, Denial
from .connection import Connection, ConnectionSettings, Receiver
from .refused import Refused
from .websocket import AcceptedStream, WebSocketClosed, open_websocket

log = structlog.get_logger(__name__)

HANDSHAKE_TIMEOUT_S: Final = 10.0


class Service(Protocol):
    """What the connections of one path are for."""

    def receiver(self, connection: Connection) -> Receiver:
        """What takes the messages of a new connection."""
        ...

    async def run(self) -> None:
        """Whatever it does beside; cancelled at the end."""
        ...

    def drain(self) -> None:
        """Nobody new comes from now on, and connections end soon."""
        ...


class EngineService:
    """Engine.IO on one path.

    Args:
        origins: of browsers' pages that may connect, ``*`` for all; others are refused. Empty: no page is refused, but
            only those of our own origin can use long-polling, for no answer allows another to read it.
    """

    def __init__(
        self,
        service: Service,
        *,
        settings: ConnectionSettings,
        metrics: Metrics,
        admission: Admission,
        origins: Sequence[str] = (),
    ) -> None:
        self.origins = origins
        self._service = service
        self._settings = settings
        self._metrics = metrics
        self._admission = admission
        self._connections: dict[str, Connection] = {}
        self._nursery: trio.Nursery | None = None
        self._draining = False
        self._busy = 0  # sessions, and what still carries one
        self._idle = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the sessions' tasks until cancelled, which cuts them off."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._service.run)
            task_status.started()
            await trio.sleep_forever()

    def drain(self) -> None:
        """From now on refuse new sessions (503). Those that are open stay."""
        self._draining = True
        self._service.drain()

    async def disconnect_all(self) -> None:
        """Close every session once what is queued for it was sent, and return when all are gone.

        Takes at most the connections' `flush_timeout_s` and a closing handshake.
        """
        self.drain()
        for connection in list(self._connections.values()):
            connection.close(CloseReason.SHUTTING_DOWN)
        while self._busy:
            self._idle = trio.Event()
            await self._idle.wait()

    # ------------------------------------------------------------------------------------ handshake

    def check(
        self,
        query: Mapping[str, str],
        *,
        method: str,
        is_websocket: bool,
        origin: str | None,
    ) -> Connection | None:
        """The session that a request is for; None: it asks for a new one (`open`).

        Raises:
            Refused
        """
        connection = self._connections.get(query.get("sid", ""))
        if connection is not None and connection.closed:
            connection = None
        try:
            sid = check_handshake(
                query,
                method=method,
                is_websocket=is_websocket,
                sessions={} if connection is None else {connection.sid: connection.transport},
                origin=origin,
                allowed_origins=self.origins or None,
            )
        except HandshakeRefused as refused:
            raise refusal(refused) from None
        return None if sid is None else connection

    def open(self, transport: Transport, host: str, address: str) -> Connection:
        """Begin a session; somebody has to carry it.

        Args:
            host: the IP address that it is counted for.
            address: ``host:port``, for the log.

        Raises:
            Refused: there are too many, or they come too fast, or the server is about to stop.
        """
        assert self._nursery is not None, "run first"
        if self._draining:
            raise Refused(503, "shutting down")
        connection = Connection(transport, address, self._settings, self._service.receiver)
        denial = self._admission.admit_handshake(host, trio.current_time()) or self._admission.admit_session(host)
        if denial is not None:
            raise denied(denial, host, self._metrics)
        self._connections[connection.sid] = connection
        self._nursery.start_soon(self._live, connection, host)
        return connection

    async def _live(self, connection: Connection, host: str) -> None:
        with self.carrying():
            self._metrics.connections.inc()
            try:
                why = await connection.run()
                self._metrics.connections_closed_total.labels(reason=why.reason.value).inc()
            finally:
                del self._connections[connection.sid]
                self._admission.release_session(host)
                self._metrics.connections.dec()

    @contextmanager
    def carrying(self) -> Iterator[None]:
        """What is inside has to end before a stop is complete."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if self._busy == 0:
                self._idle.set()

    # ------------------------------------------------------------------------------------ WebSocket

    async def serve_websocket(self, stream: AcceptedStream, connection: Connection, *, is_new: bool) -> None:
        """Answer a WebSocket's handshake, which was checked, and serve it to its end.

        Args:
            is_new: `connection` begins on it; else its client wants to move to it.
        """
        try:
            async with open_websocket(
                stream, max_message_bytes=self._settings.max_message_bytes, handshake_timeout_s=HANDSHAKE_TIMEOUT_S
            ) as websocket:
                with self.carrying():
                    await (connection.serve_websocket(websocket) if is_new else connection.upgrade(websocket))
        except* WebSocketClosed:
            log.debug("handshake_not_completed", address=connection.address)
        finally:
            if is_new:
                connection.abort(CloseReason.TRANSPORT_CLOSE)


def refusal(refused: HandshakeRefused) -> Refused:
    """The answer to a request that the protocol refuses."""
    return Refused(refused.status, refused.body)


def format_address(host: str, port: int) -> str:
    """``host:port``, with the brackets of IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def denied(denial: Denial, host: str, metrics: Metrics) -> Refused:
    """The answer to somebody who is not let in, counted."""
    metrics.connections_refused_total.labels(reason=denial.reason.value).inc()
    log.debug("not_admitted", address=host, reason=denial.reason)
    return Refused(denial.status, denial.message, {"retry-after": str(denial.retry_after_s)})
