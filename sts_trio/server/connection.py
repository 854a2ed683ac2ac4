"""One worker's connection: Engine.IO and Socket.IO over a WebSocket.

Three tasks share the sans-IO state machines of `protocol`, and end together:

- the *reader* takes one message after the other and hands events to the application, which it waits for;
- the *writer* is the only one that sends;
- the *timer* sleeps until something is due: a ping, its answer, the first CONNECT, missing attachments, our own close.

**What goes out never waits for the worker.** `Peer.emit` puts frames into a queue and returns. The queue is bounded in
bytes of memory; a worker that reads so slowly that it overflows is disconnected, not buffered for.

**A slow worker is not a dead one.** A ping overtakes what is queued, but not the message that is just being sent, and
at 100 kB/s one message can take longer than an answer may. So the answer's time starts anew with each piece of 64 KiB
that goes out before the ping, and for the last time with the ping itself.

**A stranger gets little.** Until it is let in a connection may send nothing large and be refused a few times only.
"""

from __future__ import annotations

import math
import secrets
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog
import trio
from attrs import frozen

from protocol import engineio, socketio
from protocol.engineio import CloseReason, Frame

from .websocket import WebSocket, WebSocketClosed

log = structlog.get_logger(__name__)

NAMESPACE: Final = "/"
"""The only one that is served."""

STRANGER_MESSAGE_BYTES: Final = 2**16
"""The largest message before the first namespace was joined: a CONNECT with its auth."""

REFUSALS: Final = 3
"""With the last of so many refused CONNECTs a connection is closed."""

_NORMAL: Final = 1000  # WebSocket close codes (RFC 6455, 7.4.1)
_GOING_AWAY: Final = 1001


class Peer(Protocol):
    """A worker that has joined, as the application sees it. It is a new peer when it leaves and joins again."""

    @property
    def id(self) -> str:
        """Its Socket.IO sid. No secret, unlike the connection's own Engine.IO sid."""
        ...

    @property
    def address(self) -> str:
        """``host:port`` at the other end of the socket."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it has left or will not be sent anything any more."""
        ...

    def emit(self, event: str, payload: object) -> None:
        """Queue an event; bytes in `payload` travel as attachments. Does nothing once `closed`.

        Raises:
            ValueError: `payload` cannot travel: not JSON and bytes, or over a limit.
            protocol.socketio.NotJoined: within `Application.connected`, before the worker was let in.
        """
        ...

    async def drained(self) -> None:
        """Wait until all that is queued for it was sent, or nothing will be sent any more."""
        ...

    def close(self) -> None:
        """Disconnect it when all that is queued was sent. Its client library will not come back by itself."""
        ...


@frozen
class Refusal:
    """Why a worker may not join (CONNECT_ERROR); `data` such as ``{"code": "AUTH_FAILED"}``."""

    message: str
    data: dict[str, Any] | None = None


class Application(Protocol):
    """Whom the events are for. Whatever it raises closes the one connection and is logged."""

    def connected(self, peer: Peer, auth: dict[str, Any]) -> Refusal | None:
        """Let `peer` in (None) or not. It can be sent events once this has returned."""
        ...

    async def received(self, peer: Peer, event: str, args: tuple[Any, ...]) -> object | None:
        """Take one event; they come in order, the next when this returns.

        Until it does, nothing is read from this worker, the answers to pings included: it must not take long.

        Returns:
            what the worker's callback gets, where it asked for one; None calls it without arguments.
        """
        ...

    def disconnected(self, peer: Peer, reason: CloseReason) -> None:
        """`peer`, once let in, is gone. Comes exactly once."""
        ...


@frozen(kw_only=True)
class ConnectionSettings:
    """How connections behave. The times are the reference server's, the heartbeat is the contract's.

    Attributes:
        max_message_bytes: a larger message ends the connection with 1009; see also `STRANGER_MESSAGE_BYTES`.
        send_queue_bytes: what may wait to be sent, as Python counts its memory.
        connect_timeout_s: from the handshake to the first namespace that is joined.
        attachments_timeout_s: from a packet's text to its last attachment.
        flush_timeout_s: from our close to the last queued frame.
        new_id: makes sids; unguessable ones, except in a simulation.
    """

    max_message_bytes: int = 50 * 2**20
    send_queue_bytes: int = 64 * 2**20
    ping_interval_s: float = 25.0
    ping_timeout_s: float = 10.0
    connect_timeout_s: float = 45.0
    attachments_timeout_s: float = 10.0
    flush_timeout_s: float = 5.0
    new_id: Callable[[], str] = lambda: secrets.token_urlsafe(15)


class Connection:
    """One connection, from the accepted WebSocket to its end. `run` it once."""

    def __init__(
        self, websocket: WebSocket, address: str, application: Application, settings: ConnectionSettings
    ) -> None:
        now = trio.current_time()
        handshake = engineio.Handshake(
            sid=settings.new_id(),
            ping_interval_ms=round(settings.ping_interval_s * 1000),
            ping_timeout_ms=round(settings.ping_timeout_s * 1000),
            max_payload=settings.max_message_bytes,
        )
        self.address = address
        self._websocket = websocket
        self._application = application
        self._settings = settings
        self._engine = engineio.ServerConnection(handshake, now)
        self._socket = socketio.ServerSocket(socketio.Limits(packet_bytes=settings.max_message_bytes))
        self._peer: _Peer | None = None
        self._refusals = 0
        self._detail = ""  # why it ended, for the log
        websocket.limit(min(settings.max_message_bytes, STRANGER_MESSAGE_BYTES))

        self._queue: deque[Frame] = deque()
        self._queued_bytes = 0  # of what is queued or being sent
        self._more_to_send = trio.Event()
        self._all_sent = trio.Event()
        self._unsent_ping: Frame | None = None

        self._closing: CloseReason | None = None  # set: only what is queued is still sent
        self._connect_by = now + settings.connect_timeout_s
        self._attachments_by = math.inf
        self._flush_by = math.inf
        self._timer = trio.CancelScope()
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Serve until either side ends it. What the application raises comes out, in an exception group."""
        self._enqueue(self._engine.open())
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._keep_time)
        finally:
            self._engine.close(CloseReason.TRANSPORT_CLOSE)
            self._queue.clear()
            self._all_sent.set()
            reason = self._engine.closed or CloseReason.TRANSPORT_CLOSE
            log.info("connection_closed", address=self.address, reason=reason, detail=self._detail)
            self._leave(reason)
        if reason not in (CloseReason.TRANSPORT_CLOSE, CloseReason.PING_TIMEOUT):
            await self._websocket.close(_GOING_AWAY if reason is CloseReason.SHUTTING_DOWN else _NORMAL)

    @property
    def closed(self) -> bool:
        """Whether anything put into the queue now would not be sent."""
        return self._closing is not None or self._engine.closed is not None

    def close(self, reason: CloseReason) -> None:
        """Send what is queued, within `flush_timeout_s`, then close. Without more, client libraries come back."""
        if not self.closed:
            self._closing = reason
            self._flush_by = trio.current_time() + self._settings.flush_timeout_s
            self._rearm()
            self._more_to_send.set()

    def _end(self, reason: CloseReason, detail: str = "") -> None:
        """End it now, unsent what is queued. The first reason stands."""
        self._engine.close(reason)
        if not self._scope.cancel_called:
            self._detail = detail
            self._scope.cancel()

    # ---------------------------------------------------------------------------------- reader

    async def _read(self) -> None:
        while True:
            try:
                frame = await self._websocket.receive()
            except WebSocketClosed as closed:
                self._end(CloseReason.TRANSPORT_CLOSE, str(closed))
                return
            for event in self._engine.receive(frame, trio.current_time()):
                match event:
                    case engineio.MessageReceived(message):
                        await self._take(message)
                    case engineio.Closed(reason, detail):
                        self._end(reason, detail)
            self._rearm()

    async def _take(self, message: socketio.Message) -> None:
        try:
            events = self._socket.receive(message)
        except socketio.SocketError as error:
            self._end(CloseReason.PARSE_ERROR, str(error))
            return
        for event in events:
            match event:
                case _ if self.closed:
                    return
                case socketio.ConnectRequested(namespace, auth):
                    self._admit(namespace, auth)
                case socketio.EventReceived(_, name, args, ack_id) if self._peer is not None:
                    answer = await self._application.received(self._peer, str(name), args)
                    if ack_id is not None and not self.closed:
                        self._send(self._socket.ack(NAMESPACE, ack_id, *(() if answer is None else (answer,))))
                case socketio.Disconnected():
                    self._leave(CloseReason.CLIENT_CLOSE)

    def _admit(self, namespace: str, auth: dict[str, Any]) -> None:
        if namespace != NAMESPACE:
            self._send(self._socket.reject(namespace, socketio.INVALID_NAMESPACE))
            return
        peer = _Peer(self._settings.new_id(), self)
        refusal = self._application.connected(peer, auth)
        if refusal is not None:
            log.info("connection_refused", address=self.address, message=refusal.message, data=refusal.data)
            self._send(self._socket.reject(namespace, refusal.message, refusal.data))
            self._refusals += 1
            if self._refusals == REFUSALS:
                self.close(CloseReason.SERVER_CLOSE)
            return
        self._peer = peer
        self._websocket.limit(self._settings.max_message_bytes)
        self._connect_by = math.inf
        self._send(self._socket.accept(namespace, peer.id))

    def _leave(self, reason: CloseReason) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.gone = True
            self._application.disconnected(peer, reason)

    # ---------------------------------------------------------------------------------- writer

    def emit(self, event: str, payload: object) -> None:
        self._send(self._socket.emit(NAMESPACE, event, payload))

    async def drained(self) -> None:
        await self._all_sent.wait()

    def disconnect(self) -> None:
        self._send(self._socket.disconnect(NAMESPACE))
        self.close(CloseReason.SERVER_CLOSE)

    def _send(self, messages: list[socketio.Message]) -> None:
        for message in messages:
            if not self.closed:
                self._enqueue(self._engine.send(message))

    def _enqueue(self, frame: Frame, *, first: bool = False) -> None:
        # Memory rather than length, so that a great many small frames are bounded too.
        self._queued_bytes += sys.getsizeof(frame)
        if self._queued_bytes > self._settings.send_queue_bytes:
            self._end(CloseReason.SERVER_CLOSE, f"reads too slowly: {self._queued_bytes} bytes wait to be sent")
            return
        if first:
            self._queue.appendleft(frame)
        else:
            self._queue.append(frame)
        if self._all_sent.is_set():
            self._all_sent = trio.Event()
        self._more_to_send.set()

    async def _write(self) -> None:
        while True:
            while self._queue:
                frame = self._queue.popleft()
                try:
                    await self._websocket.send(frame, self._piece_sent)
                except WebSocketClosed as closed:
                    self._end(CloseReason.TRANSPORT_CLOSE, str(closed))
                    return
                if frame is self._unsent_ping:
                    self._unsent_ping = None
                self._queued_bytes -= sys.getsizeof(frame)
            if self._closing is not None:
                self._end(self._closing)
                return
            self._all_sent.set()
            self._more_to_send = trio.Event()
            await self._more_to_send.wait()

    def _piece_sent(self) -> None:
        if self._unsent_ping is not None:
            self._engine.ping_moved(trio.current_time())
            self._rearm()

    # ---------------------------------------------------------------------------------- timer

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._next_deadline()) as self._timer:
                await trio.sleep_forever()
            self._do_what_is_due(trio.current_time())

    def _rearm(self) -> None:
        """To be called after whatever may have moved a deadline."""
        if not self._socket.awaiting_attachments:
            self._attachments_by = math.inf
        elif self._attachments_by == math.inf:
            self._attachments_by = trio.current_time() + self._settings.attachments_timeout_s
        self._timer.deadline = self._next_deadline()

    def _next_deadline(self) -> float:
        return min(self._engine.deadline, self._connect_by, self._attachments_by, self._flush_by)

    def _do_what_is_due(self, now: float) -> None:
        for ping in self._engine.tick(now):
            self._unsent_ping = ping
            self._enqueue(ping, first=True)
        if self._engine.closed is not None:
            self._end(self._engine.closed)
        elif now >= self._connect_by:
            self._end(CloseReason.CONNECT_TIMEOUT, "no namespace was joined")
        elif now >= self._attachments_by:
            self._end(CloseReason.ATTACHMENTS_TIMEOUT, "attachments did not come")
        elif now >= self._flush_by:
            self._end(self._closing or CloseReason.SERVER_CLOSE, "not everything could be sent")


class _Peer:
    """The `Peer` of one CONNECT."""

    def __init__(self, id: str, connection: Connection) -> None:
        self.id = id
        self.address = connection.address
        self.gone = False
        self._connection = connection

    @property
    def closed(self) -> bool:
        return self.gone or self._connection.closed

    def emit(self, event: str, payload: object) -> None:
        if not self.closed:
            self._connection.emit(event, payload)

    async def drained(self) -> None:
        await self._connection.drained()

    def close(self) -> None:
        if not self.closed:
            self._connection.disconnect()
