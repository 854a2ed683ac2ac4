"""Socket.IO protocol v5: namespaces, events and acknowledgements over one Engine.IO connection, free of I/O.

The rule of each namespace, which `ServerSocket` and `ClientSocket` enforce from their ends:

    The client asks (CONNECT), the server accepts with a sid or refuses with a message. Events and acknowledgements flow
    only after the acceptance. Either side may leave (DISCONNECT); nobody answers that, what was still on its way is
    ignored, and the client may ask again. Whatever else a peer sends breaks the protocol, and the connection with it.

`receive` takes an Engine.IO message and returns events; every other method returns the messages to send, in order and
without others between them. After a `SocketError` the connection must be closed and the object dropped.

Source: https://socket.io/docs/v4/socket-io-protocol/ ("the protocol" below).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, TypeAlias

from attrs import define, field, frozen

from .packets import (
    DEFAULT_LIMITS,
    RESERVED_EVENTS,
    Decoder,
    Limits,
    Message,
    Packet,
    PacketType,
    SocketError,
    encode,
)

__all__ = [
    "DEFAULT_LIMITS",
    "INVALID_NAMESPACE",
    "AckReceived",
    "ClientSocket",
    "ConnectRefused",
    "ConnectRequested",
    "Connected",
    "Disconnected",
    "Event",
    "EventReceived",
    "Limits",
    "Message",
    "NotJoined",
    "ServerSocket",
    "SocketError",
]

INVALID_NAMESPACE: Final = "Invalid namespace"
"""The message that refuses a namespace which does not exist."""


class NotJoined(Exception):
    """Something was to be sent to a namespace that is not joined, or not any more."""

    def __init__(self, namespace: str) -> None:
        super().__init__(f"namespace {namespace} is not joined")
        self.namespace = namespace


# ----------------------------------------------------------------------------------------------- events


@frozen
class ConnectRequested:
    """Server side: the client wants to join; answer with `accept` or `reject`. No `auth` is ``{}``."""

    namespace: str
    auth: dict[str, Any]


@frozen
class Connected:
    """Client side: the server accepted."""

    namespace: str
    sid: str


@frozen
class ConnectRefused:
    """Client side: the server refused; `data` is whatever it gave with its message, or None."""

    namespace: str
    message: str
    data: Any = None


@frozen
class EventReceived:
    """The peer emitted an event; where `ack_id` is not None it expects one `ack` with it."""

    namespace: str
    name: str | int | float
    args: tuple[Any, ...]
    ack_id: str | None = None


@frozen
class AckReceived:
    """The peer acknowledged what `emit_with_ack` gave this id. Comes once at most for each."""

    namespace: str
    id: str
    args: tuple[Any, ...]


@frozen
class Disconnected:
    """The peer left the namespace. The connection goes on."""

    namespace: str


Event: TypeAlias = ConnectRequested | Connected | ConnectRefused | EventReceived | AckReceived | Disconnected

# ---------------------------------------------------------------------------------------------- sockets


class _Membership(Enum):
    CONNECTING = "connecting"
    REJOINING = "rejoining"  # client: connecting, while what the server sent before it saw us leave may still arrive
    JOINED = "joined"
    LEFT = "left"


@define
class _Namespace:
    membership: _Membership = _Membership.CONNECTING
    next_ack_id: int = 0  # never starts again: a late answer from before a new CONNECT must not match
    unanswered: dict[str, None] = field(factory=dict)  # in order of asking


class _Socket:
    """What both ends share once a namespace is joined."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._decoder = Decoder(limits)
        self._namespaces: dict[str, _Namespace] = {}
        self._connected = False

    @property
    def awaiting_attachments(self) -> bool:
        """Whether a packet's attachments are still to come: put a deadline on that."""
        return self._decoder.pending is not None

    @property
    def connected(self) -> bool:
        """Whether any namespace was ever joined: put a deadline on that (the reference server's is 45 s)."""
        return self._connected

    def is_joined(self, namespace: str) -> bool:
        """Whether events may be sent to `namespace`."""
        known = self._namespaces.get(namespace)
        return known is not None and known.membership is _Membership.JOINED

    def emit(self, namespace: str, name: str, *args: Any) -> list[Message]:
        """Send an event. Bytes anywhere in `args` travel as attachments.

        Raises:
            NotJoined: `namespace` is not joined.
            ValueError: the name is reserved, or the arguments cannot travel (see `packets.encode`).
        """
        return self._emit(namespace, name, args, None)

    def emit_with_ack(self, namespace: str, name: str, *args: Any) -> tuple[list[Message], str]:
        """Send an event and ask for an acknowledgement; the messages, and the id `AckReceived` will have.

        Raises:
            as `emit`.
        """
        known = self._joined(namespace)
        ack_id = str(known.next_ack_id)
        messages = self._emit(namespace, name, args, ack_id)
        known.next_ack_id += 1
        known.unanswered[ack_id] = None
        if len(known.unanswered) > self._limits.unanswered_acks:
            del known.unanswered[next(iter(known.unanswered))]
        return messages, ack_id

    def ack(self, namespace: str, ack_id: str, *args: Any) -> list[Message]:
        """Answer an event that asked for it.

        Raises:
            NotJoined: `namespace` is not joined.
            ValueError: the arguments cannot travel (see `packets.encode`).
        """
        self._joined(namespace)
        return self._encode(PacketType.ACK, namespace, list(args), ack_id)

    def disconnect(self, namespace: str) -> list[Message]:
        """Leave a namespace. The connection goes on.

        Raises:
            NotJoined: `namespace` is not joined.
        """
        self._leave(self._joined(namespace))
        return self._encode(PacketType.DISCONNECT, namespace)

    def _emit(self, namespace: str, name: str, args: tuple[Any, ...], ack_id: str | None) -> list[Message]:
        self._joined(namespace)
        if name in RESERVED_EVENTS:
            raise ValueError(f"reserved event name {name}")
        return self._encode(PacketType.EVENT, namespace, [name, *args], ack_id)

    def _encode(self, kind: PacketType, namespace: str, data: Any = None, ack_id: str | None = None) -> list[Message]:
        return encode(Packet(kind, namespace, data, ack_id), self._limits)

    def _joined(self, namespace: str) -> _Namespace:
        known = self._namespaces.get(namespace)
        if known is None or known.membership is not _Membership.JOINED:
            raise NotJoined(namespace)
        return known

    def _membership(self, namespace: str) -> _Membership | None:
        known = self._namespaces.get(namespace)
        return None if known is None else known.membership

    def _begin(self, namespace: str, membership: _Membership) -> None:
        self._namespaces.setdefault(namespace, _Namespace()).membership = membership

    def _join(self, namespace: str) -> None:
        self._namespaces[namespace].membership = _Membership.JOINED
        self._connected = True

    def _leave(self, known: _Namespace) -> None:
        known.membership = _Membership.LEFT
        known.unanswered.clear()

    def _next_packet(self, message: Message) -> Packet | None:
        """Decode, and check where a packet may come at all as soon as its text is there."""
        packet = self._decoder.feed(message)
        head = packet or self._decoder.pending
        if head is not None and head.type in (PacketType.EVENT, PacketType.ACK, PacketType.DISCONNECT):
            membership = self._membership(head.namespace)
            if membership is None or membership is _Membership.CONNECTING:
                raise SocketError(f"{head.type.name} before CONNECT was accepted")
        return packet

    def _receive_joined(self, packet: Packet) -> list[Event]:
        """Events, acknowledgements and the peer's leaving, which mean the same to both ends."""
        known = self._namespaces[packet.namespace]
        if known.membership is not _Membership.JOINED:
            return []
        match packet.type:
            case PacketType.EVENT:
                name, *args = packet.data
                return [EventReceived(packet.namespace, name, tuple(args), packet.id)]
            case PacketType.ACK if packet.id is not None and packet.id in known.unanswered:
                del known.unanswered[packet.id]
                return [AckReceived(packet.namespace, packet.id, tuple(packet.data))]
            case PacketType.DISCONNECT:
                self._leave(known)
                return [Disconnected(packet.namespace)]
        return []


class ServerSocket(_Socket):
    """The server's end."""

    def receive(self, message: Message) -> list[Event]:
        """Take one message of the client. An acknowledgement nobody asked for is ignored.

        Raises:
            SocketError: the client broke the protocol or a limit.
        """
        packet = self._next_packet(message)
        if packet is None:
            return []
        if packet.type is PacketType.CONNECT_ERROR:
            raise SocketError("CONNECT_ERROR from a client")
        if packet.type is not PacketType.CONNECT:
            return self._receive_joined(packet)
        if self._membership(packet.namespace) not in (None, _Membership.LEFT):
            raise SocketError("second CONNECT to a namespace")
        self._begin(packet.namespace, _Membership.CONNECTING)
        return [ConnectRequested(packet.namespace, packet.data or {})]

    def accept(self, namespace: str, sid: str) -> list[Message]:
        """Let the client in. `sid` names it in this namespace; it is not the Engine.IO sid, which is a secret.

        Raises:
            ValueError: no `ConnectRequested` for `namespace` is open.
        """
        self._requested(namespace)
        self._join(namespace)
        return self._encode(PacketType.CONNECT, namespace, {"sid": sid})

    def reject(self, namespace: str, message: str, data: Any = None) -> list[Message]:
        """Refuse the client: `INVALID_NAMESPACE` where there is none of that name. It may ask again.

        Raises:
            ValueError: no `ConnectRequested` for `namespace` is open.
        """
        self._requested(namespace)
        del self._namespaces[namespace]
        body = {"message": message} if data is None else {"message": message, "data": data}
        return self._encode(PacketType.CONNECT_ERROR, namespace, body)

    def _requested(self, namespace: str) -> None:
        if self._membership(namespace) is not _Membership.CONNECTING:
            raise ValueError(f"no request to join {namespace} is open")


class ClientSocket(_Socket):
    """The client's end."""

    def connect(self, namespace: str = "/", auth: Mapping[str, Any] | None = None) -> list[Message]:
        """Ask to join `namespace`; `Connected` or `ConnectRefused` answers.

        Raises:
            ValueError: it is joined or asked for already, or `auth` cannot travel.
        """
        before = self._membership(namespace)
        if before not in (None, _Membership.LEFT):
            raise ValueError(f"{namespace} is joined or asked for already")
        messages = self._encode(PacketType.CONNECT, namespace, None if auth is None else dict(auth))
        self._begin(namespace, _Membership.CONNECTING if before is None else _Membership.REJOINING)
        return messages

    def receive(self, message: Message) -> list[Event]:
        """Take one message of the server. An acknowledgement nobody asked for is ignored.

        Raises:
            SocketError: the server broke the protocol or a limit.
        """
        packet = self._next_packet(message)
        if packet is None:
            return []
        namespace, data = packet.namespace, packet.data
        if packet.type not in (PacketType.CONNECT, PacketType.CONNECT_ERROR):
            return self._receive_joined(packet)
        if self._membership(namespace) not in (_Membership.CONNECTING, _Membership.REJOINING):
            raise SocketError(f"{packet.type.name} that answers nothing")
        if packet.type is PacketType.CONNECT:
            sid = (data or {}).get("sid")
            if not isinstance(sid, str):
                raise SocketError("CONNECT without a sid")
            self._join(namespace)
            return [Connected(namespace, sid)]
        del self._namespaces[namespace]
        if isinstance(data, str):
            return [ConnectRefused(namespace, data)]
        reason = data.get("message")
        if not isinstance(reason, str):
            raise SocketError("CONNECT_ERROR without a message")
        return [ConnectRefused(namespace, reason, data.get("data"))]
