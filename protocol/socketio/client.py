"""The client's end of a Socket.IO connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from attrs import frozen

from . import sockets
from .packets import DEFAULT_LIMITS, Limits, Message, Packet, PacketType, SocketError
from .sockets import Membership, Socket


@frozen
class RecoveryState:
    """What a client needs to come back to a namespace: the secret `pid`, and the `offset` of the last event it has."""

    pid: str
    offset: str | None = None


@frozen
class Connected:
    """The server accepted; `recovered` tells whether as who we were, with all that we missed before this."""

    namespace: str
    sid: str
    recovered: bool = False


@frozen
class ConnectRefused:
    """Client side: the server refused; `data` is whatever it gave with its message, or None."""

    namespace: str
    message: str
    data: Any = None


Event: TypeAlias = Connected | ConnectRefused | sockets.Event


class ClientSocket(Socket):
    """The client's end.

    Args:
        recovery: `recovery` of a socket whose connection was lost, to come back to what it had.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, *, recovery: Mapping[str, RecoveryState] | None = None) -> None:
        super().__init__(limits)
        self._recovery = dict(recovery or {})

    @property
    def recovery(self) -> Mapping[str, RecoveryState]:
        """What the next connection needs to recover, by namespace: those that neither side has left."""
        return dict(self._recovery)

    def connect(self, namespace: str = "/", auth: Mapping[str, Any] | None = None) -> list[Message]:
        """Ask to join `namespace`; `Connected` or `ConnectRefused` answers.

        Raises:
            ValueError: it is joined or asked for already, or `auth` cannot travel.
        """
        before = self._membership(namespace)
        if before not in (None, Membership.LEFT):
            raise ValueError(f"{namespace} is joined or asked for already")
        state = self._recovery.get(namespace)
        if state is not None:
            proof = {"pid": state.pid} if state.offset is None else {"pid": state.pid, "offset": state.offset}
            auth = {**proof, **(auth or {})}
        messages = self._encode(PacketType.CONNECT, namespace, None if auth is None else dict(auth))
        if state is not None:
            self._begin(namespace, Membership.RECOVERING)
        else:
            self._begin(namespace, Membership.CONNECTING if before is None else Membership.REJOINING)
        return messages

    def disconnect(self, namespace: str) -> list[Message]:
        self._recovery.pop(namespace, None)
        return super().disconnect(namespace)

    def receive(self, message: Message) -> list[Event]:
        """Take one message of the server. An acknowledgement nobody asked for is ignored.

        An event's last argument may be the offset that recovery needs: it is left where it is, for only the server
        knows which events have one.

        Raises:
            SocketError: the server broke the protocol or a limit.
        """
        packet = self._next_packet(message)
        if packet is None:
            return []
        match packet.type:
            case PacketType.CONNECT | PacketType.CONNECT_ERROR:
                if self._membership(packet.namespace) in (None, Membership.JOINED, Membership.LEFT):
                    raise SocketError(f"{packet.type.name} that answers nothing")
                return [self._accepted(packet) if packet.type is PacketType.CONNECT else self._refused(packet)]
            case PacketType.EVENT if packet.id is None:
                self._remember_offset(packet)
            case PacketType.DISCONNECT:
                self._recovery.pop(packet.namespace, None)
        return [*self._receive_joined(packet)]

    def _accepted(self, packet: Packet) -> Connected:
        body = packet.data or {}
        sid, pid = body.get("sid"), body.get("pid")
        if not isinstance(sid, str):
            raise SocketError("CONNECT without a sid")
        before = self._recovery.pop(packet.namespace, None)
        recovered = before is not None and before.pid == pid
        if isinstance(pid, str):
            self._recovery[packet.namespace] = before if before is not None and recovered else RecoveryState(pid)
        self._join(packet.namespace)
        return Connected(packet.namespace, sid, recovered)

    def _refused(self, packet: Packet) -> ConnectRefused:
        del self._namespaces[packet.namespace]
        if isinstance(packet.data, str):
            return ConnectRefused(packet.namespace, packet.data)
        reason = packet.data.get("message")
        if not isinstance(reason, str):
            raise SocketError("CONNECT_ERROR without a message")
        return ConnectRefused(packet.namespace, reason, packet.data.get("data"))

    def _remember_offset(self, packet: Packet) -> None:
        state = self._recovery.get(packet.namespace)
        if state is not None and isinstance(packet.data[-1], str) and len(packet.data) > 1:
            self._recovery[packet.namespace] = RecoveryState(state.pid, packet.data[-1])
