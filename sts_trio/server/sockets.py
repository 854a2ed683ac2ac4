"""Socket.IO for one application: namespaces, peers, and clients that come back (connection state recovery).

The application sees *peers*. A peer is one client in one namespace, from the CONNECT that was accepted to its end. With
recovery it outlives its connection: what is emitted while it is away is kept, and when its client comes back it gets
what it missed and the application need not know. Until then nobody can tell it from one that reads slowly.

**A stranger gets little.** Until it is let in a connection may send nothing large and be refused a few times only.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio
from attrs import frozen

from protocol import socketio
from protocol.engineio import Closed, CloseReason
from protocol.socketio.recovery import RecoveryLog, RecoveryRequest, RecoveryStore, is_recoverable

from .application import Application, Refusal
from .connection import Connection

log = structlog.get_logger(__name__)

REFUSALS: Final = 3
"""With the last of so many refused CONNECTs a connection that has joined no namespace is closed."""

LEAVE_S: Final = 1.0
"""A client that was sent away closes its connection itself within this time. Some read a close faster than the
DISCONNECT before it, and would come back."""


@frozen(kw_only=True)
class SocketSettings:
    """How Socket.IO behaves on every connection. The times are the reference server's.

    Attributes:
        namespaces: those that exist.
        limits: of packets.
        connect_timeout_s: from the handshake to the first namespace that is joined.
        attachments_timeout_s: from a packet's text to its last attachment.
        recovery_s: how long a client that has lost its connection may come back; 0: not at all, and then no event
            carries an offset.
        recovery_bytes: of events kept for each client.
        recovery_clients: that may be away at once.
        new_id: makes sids and pids; unguessable ones, except in a simulation.
    """

    namespaces: tuple[str, ...] = ("/",)
    limits: socketio.Limits = socketio.DEFAULT_LIMITS
    connect_timeout_s: float = 45.0
    attachments_timeout_s: float = 10.0
    recovery_s: float = 0.0
    recovery_bytes: int = 32 * 2**20
    recovery_clients: int = 512
    new_id: Callable[[], str] = lambda: secrets.token_urlsafe(15)


class SocketService:
    """What Socket.IO connections of one server share: the application, and the clients that can come back."""

    def __init__(self, application: Application, settings: SocketSettings | None = None) -> None:
        self.application = application
        self.settings = settings or SocketSettings()
        self._peers: dict[str, _Peer] = {}  # those that can come back, by pid
        self._away = RecoveryStore[_Peer](window_s=self.settings.recovery_s, max_clients=self.settings.recovery_clients)
        self._timer = trio.CancelScope()
        self._draining = False

    def receiver(self, connection: Connection) -> SocketConnection:
        """What speaks Socket.IO on a new connection."""
        return SocketConnection(connection, self)

    async def run(self) -> None:
        """Give up clients that have been away for too long."""
        while True:
            with trio.CancelScope(deadline=self._away.deadline) as self._timer:
                await trio.sleep_forever()
            self._give_up(self._away.expire(trio.current_time()))

    def drain(self) -> None:
        """From now on nobody can come back."""
        self._draining = True
        self._give_up(self._away.clear())

    def admit(self, peer: _Peer) -> None:
        """`peer` was let in."""
        if peer.pid is not None:
            self._peers[peer.pid] = peer

    def recover(self, namespace: str, auth: dict[str, Any]) -> tuple[_Peer, list[socketio.Message]] | None:
        """The peer that a client comes back as, and what it has missed; None where it has to begin anew.

        Its old connection may still seem to be alive: a client knows earlier than a server that a connection is lost.
        """
        request = RecoveryRequest.read(auth)
        peer = None if request is None else self._peers.get(request.pid)
        if request is None or peer is None or peer.log is None or peer.is_leaving or peer.namespace != namespace:
            return None
        missed = peer.log.since(request.offset)
        if self._away.take(request.pid) is not None:
            self._timer.deadline = self._away.deadline
            if missed is None:
                self._give_up([peer])
        return None if missed is None else (peer, missed)

    def lost(self, peer: _Peer, reason: CloseReason) -> None:
        """The connection of `peer` has ended."""
        if peer.is_leaving:
            self.end(peer, CloseReason.SERVER_CLOSE)
        elif peer.pid is not None and is_recoverable(reason) and not self._draining:
            peer.lost_because = reason
            self._give_up(self._away.keep(peer.pid, peer, trio.current_time()))
            self._timer.deadline = self._away.deadline
        else:
            self.end(peer, reason)

    def end(self, peer: _Peer, reason: CloseReason) -> None:
        """`peer` will not come back."""
        if peer.pid is not None:
            self._peers.pop(peer.pid, None)
            self._away.take(peer.pid)
        peer.end()
        try:
            self.application.disconnected(peer, reason)
        except Exception:  # its connection is gone already, and those of others go on
            log.exception("connection_crashed", address=peer.address)

    def _give_up(self, peers: list[_Peer]) -> None:
        for peer in peers:
            log.info("recovery_given_up", address=peer.address)
            self.end(peer, peer.lost_because)


class SocketConnection:
    """Socket.IO on one connection, which it is the receiver of."""

    def __init__(self, connection: Connection, service: SocketService) -> None:
        self.address = connection.address
        self._connection = connection
        self._service = service
        self._settings = service.settings
        self._socket = socketio.ServerSocket(service.settings.limits)
        self._peers: dict[str, _Peer] = {}  # by namespace
        self._refusals = 0
        self._connect_by = trio.current_time() + service.settings.connect_timeout_s
        self._attachments_by = math.inf
        self._leave_by = math.inf

    # ---------------------------------------------------------------- for the connection

    @property
    def deadline(self) -> float:
        return min(self._connect_by, self._attachments_by, self._leave_by)

    @property
    def trusts(self) -> bool:
        return self._socket.connected

    def received(self, message: socketio.Message) -> None:
        try:
            events = self._socket.receive(message)
        except socketio.SocketError as error:
            self._connection.abort(CloseReason.PARSE_ERROR, str(error))
            return
        if not self._socket.awaiting_attachments:
            self._attachments_by = math.inf
        elif self._attachments_by == math.inf:
            self._attachments_by = trio.current_time() + self._settings.attachments_timeout_s
        for event in events:
            match event:
                case socketio.ConnectRequested(namespace, auth):
                    self._admit(namespace, auth)
                case socketio.EventReceived(namespace, name, args, ack_id):
                    answer = self._service.application.received(self._peers[namespace], str(name), args)
                    if ack_id is not None and self._socket.is_joined(namespace):
                        self.send(self._socket.ack(namespace, ack_id, *answer))
                case socketio.Disconnected(namespace):
                    self._service.end(self._peers.pop(namespace), CloseReason.CLIENT_CLOSE)

    def tick(self, now: float) -> None:
        if now >= self._connect_by:
            self._connection.abort(CloseReason.CONNECT_TIMEOUT, "no namespace was joined")
        elif now >= self._attachments_by:
            self._connection.abort(CloseReason.ATTACHMENTS_TIMEOUT, "attachments did not come")
        elif now >= self._leave_by:
            self._leave_by = math.inf
            for namespace in [name for name, peer in self._peers.items() if peer.is_leaving]:
                self._service.end(self._peers.pop(namespace), CloseReason.SERVER_CLOSE)
            if not self._peers:
                self._connection.close(CloseReason.SERVER_CLOSE)

    def closed(self, why: Closed) -> None:
        for peer in list(self._peers.values()):
            peer.connection = None
            self._service.lost(peer, why.reason)
        self._peers.clear()

    # ---------------------------------------------------------------- for peers

    @property
    def is_closing(self) -> bool:
        return self._connection.is_closing

    @property
    def has_ended(self) -> bool:
        return self._connection.closed

    def emit(self, namespace: str, event: str, args: tuple[object, ...]) -> list[socketio.Message]:
        """Send an event; what was sent."""
        messages = self._socket.emit(namespace, event, *args)
        self.send(messages)
        return messages

    def send(self, messages: list[socketio.Message]) -> None:
        for message in messages:
            self._connection.send(message)

    async def drained(self) -> None:
        await self._connection.drained()

    def disconnect(self, namespace: str) -> None:
        """Leave the namespace, and close the connection where its client does not, unless it is in another one."""
        self._leave_by = trio.current_time() + LEAVE_S  # before it is sent: that has the deadline looked at
        self.send(self._socket.disconnect(namespace))

    def lose(self, namespace: str) -> None:
        """The client of `namespace` has come back over another connection: what this one is waiting for never comes."""
        del self._peers[namespace]
        self._connection.abort(CloseReason.TRANSPORT_CLOSE, "its client has come back")

    # ---------------------------------------------------------------- CONNECT

    def _admit(self, namespace: str, auth: dict[str, Any]) -> None:
        if namespace not in self._settings.namespaces:
            self.send(self._socket.reject(namespace, socketio.INVALID_NAMESPACE))
            self._count_refusal()
            return
        found = self._service.recover(namespace, auth)
        missed: list[socketio.Message] = []
        if found is not None:
            peer, missed = found
            peer.come_back(self)
            log.info("connection_recovered", address=self.address, missed=len(missed))
        else:
            peer = _Peer(namespace, self, self._service)
            refusal = self._service.application.connected(peer, auth)
            if refusal is not None:
                self._refuse(namespace, refusal)
                return
        self._service.admit(peer)
        if namespace in self._peers:  # it was sent away and comes back at once
            self._service.end(self._peers.pop(namespace), CloseReason.SERVER_CLOSE)
        self._peers[namespace] = peer
        self._connect_by = self._leave_by = math.inf
        self.send(self._socket.accept(namespace, peer.id, pid=peer.pid, missed=missed))
        self._service.application.welcome(peer, auth)

    def _refuse(self, namespace: str, refusal: Refusal) -> None:
        log.info("connection_refused", address=self.address, message=refusal.message, data=refusal.data)
        self.send(self._socket.reject(namespace, refusal.message, refusal.data))
        self._count_refusal()

    def _count_refusal(self) -> None:
        self._refusals += not self._socket.connected
        if self._refusals == REFUSALS:
            self._connection.close(CloseReason.SERVER_CLOSE)


class _Peer:
    """The `Peer` of one CONNECT, and of those that recovered it."""

    def __init__(self, namespace: str, connection: SocketConnection, service: SocketService) -> None:
        settings = service.settings
        self.id = settings.new_id()
        self.namespace = namespace
        self.address = connection.address
        self.connection: SocketConnection | None = connection  # None while it is away
        self.pid: str | None = None
        self.log: RecoveryLog | None = None
        self.lost_because = CloseReason.TRANSPORT_CLOSE
        if settings.recovery_s > 0:
            self.pid = settings.new_id()
            self.log = RecoveryLog(window_s=settings.recovery_s, max_bytes=settings.recovery_bytes)
        self._service = service
        self.is_leaving = False  # we have sent it away
        self._ended = False
        self._back = trio.Event()

    @property
    def closed(self) -> bool:
        if self.log is None and self.connection is not None and self.connection.is_closing:
            return True
        return self._ended or self.is_leaving

    def emit(self, event: str, *args: object) -> None:
        if self._ended or self.is_leaving:
            return
        if self.log is not None:
            args = (*args, self.log.next_offset())
        if self.connection is not None and not self.connection.is_closing:
            messages = self.connection.emit(self.namespace, event, args)
        elif self.log is not None:
            messages = socketio.encode_event(self.namespace, event, args, limits=self._service.settings.limits)
        else:
            return
        if self.log is not None:
            self.log.add(messages, trio.current_time())

    async def drained(self) -> None:
        while not self._ended:
            connection = self.connection
            if connection is None:
                await self._back.wait()
                continue
            await connection.drained()
            if connection is self.connection and (self.log is None or not connection.has_ended):
                return
            await trio.lowlevel.checkpoint()  # until it is known that the client is away

    def close(self) -> None:
        if self.connection is None:
            if not self._ended:
                self._service.end(self, CloseReason.SERVER_CLOSE)
        elif not self.closed:
            self.is_leaving = True
            self.connection.disconnect(self.namespace)

    def come_back(self, connection: SocketConnection) -> None:
        """Its client has a new connection."""
        if self.connection is not None:
            self.connection.lose(self.namespace)
        self.connection = connection
        self.address = connection.address
        self._back.set()
        self._back = trio.Event()

    def end(self) -> None:
        """Nothing is sent any more."""
        self._ended = True
        self.connection = None
        self._back.set()
