"""What both ends of a Socket.IO connection share: its namespaces once they are joined."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any, TypeAlias

from attrs import define, field, frozen

from .packets import DEFAULT_LIMITS, RESERVED_EVENTS, Decoder, Limits, Message, Packet, PacketType, SocketError, encode


class NotJoined(Exception):
    """Something was to be sent to a namespace that is not joined, or not any more."""

    def __init__(self, namespace: str) -> None:
        super().__init__(f"namespace {namespace} is not joined")
        self.namespace = namespace


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


Event: TypeAlias = EventReceived | AckReceived | Disconnected


def encode_event(
    namespace: str, name: str, args: Iterable[Any], *, ack_id: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> list[Message]:
    """The messages of an event, whether or not anybody is there to be sent it; see `Socket.emit`.

    Raises:
        ValueError: the name is reserved, or the arguments cannot travel (see `packets.encode`).
    """
    if name in RESERVED_EVENTS:
        raise ValueError(f"reserved event name {name}")
    return encode(Packet(PacketType.EVENT, namespace, [name, *args], ack_id), limits)


class Membership(Enum):
    CONNECTING = "connecting"
    REJOINING = "rejoining"  # client: connecting, while what the server sent before it saw us leave may still arrive
    RECOVERING = "recovering"  # client: connecting, while what we missed may arrive before the answer
    JOINED = "joined"
    LEFT = "left"


@define
class _Namespace:
    membership: Membership = Membership.CONNECTING
    next_ack_id: int = 0  # never starts again: a late answer from before a new CONNECT must not match
    unanswered: dict[str, None] = field(factory=dict)  # in order of asking


class Socket:
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
        return known is not None and known.membership is Membership.JOINED

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
        return encode_event(namespace, name, args, ack_id=ack_id, limits=self._limits)

    def _encode(self, kind: PacketType, namespace: str, data: Any = None, ack_id: str | None = None) -> list[Message]:
        return encode(Packet(kind, namespace, data, ack_id), self._limits)

    def _joined(self, namespace: str) -> _Namespace:
        known = self._namespaces.get(namespace)
        if known is None or known.membership is not Membership.JOINED:
            raise NotJoined(namespace)
        return known

    def _membership(self, namespace: str) -> Membership | None:
        known = self._namespaces.get(namespace)
        return None if known is None else known.membership

    def _begin(self, namespace: str, membership: Membership) -> None:
        self._namespaces.setdefault(namespace, _Namespace()).membership = membership

    def _join(self, namespace: str) -> None:
        self._namespaces[namespace].membership = Membership.JOINED
        self._connected = True

    def _leave(self, known: _Namespace) -> None:
        known.membership = Membership.LEFT
        known.unanswered.clear()

    def _next_packet(self, message: Message) -> Packet | None:
        """Decode, and check where a packet may come at all as soon as its text is there."""
        packet = self._decoder.feed(message)
        head = packet or self._decoder.pending
        if head is not None and head.type in (PacketType.EVENT, PacketType.ACK, PacketType.DISCONNECT):
            membership = self._membership(head.namespace)
            if membership is None or membership is Membership.CONNECTING:
                raise SocketError(f"{head.type.name} before CONNECT was accepted")
        return packet

    def _receive_joined(self, packet: Packet) -> list[Event]:
        """Events, acknowledgements and the peer's leaving, which mean the same to both ends."""
        known = self._namespaces[packet.namespace]
        may_take_events = known.membership in (Membership.JOINED, Membership.RECOVERING)
        if packet.type is PacketType.EVENT and may_take_events:
            name, *args = packet.data
            return [EventReceived(packet.namespace, name, tuple(args), packet.id)]
        if known.membership is not Membership.JOINED:
            return []
        match packet.type:
            case PacketType.ACK if packet.id is not None and packet.id in known.unanswered:
                del known.unanswered[packet.id]
                return [AckReceived(packet.namespace, packet.id, tuple(packet.data))]
            case PacketType.DISCONNECT:
                self._leave(known)
                return [Disconnected(packet.namespace)]
        return []
