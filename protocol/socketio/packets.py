"""Socket.IO protocol v5: what one packet looks like, as text and the binary messages that belong to it.

    <type>[<number of attachments>-][<namespace>,][<acknowledgement id>][JSON]

Bytes anywhere in an event or acknowledgement travel as *attachments*: in their place the JSON holds
``{"_placeholder": true, "num": i}``, and the attachments follow in order as binary messages, which no other packet may
interrupt.

Source: https://socket.io/docs/v4/socket-io-protocol/ ("the protocol" below).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final, TypeAlias

import orjson
from attrs import define, field, frozen

Message: TypeAlias = str | bytes
"""One Engine.IO message: a packet as text, or one attachment."""

RESERVED_EVENTS: Final = frozenset(
    {"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}
)
"""Names that mean something to client and server libraries themselves, so that no peer may send them."""


class SocketError(Exception):
    """A rule that the peer broke: close the connection. The message names the rule."""


@frozen
class Limits:
    """How much of anything a packet or connection may hold. What may come in can also be sent back.

    Attributes:
        packet_bytes: text (in characters) and attachments of one packet together. Each message is bounded by the
            transport, but ten attachments would still be ten times that.
        attachments: of one packet. The reference parser's own limit: a client would refuse more.
        values: commas and opening brackets in a packet's JSON, within strings too. Each may become a Python object, so
            50 MB of ``{},`` would be 2 GB; a dubbing event has a few dozen.
        nesting: depth of arrays and objects, the packet's own array included. Whoever walks the data recursively,
            cattrs for one, must not run out of stack.
        namespace_characters: a namespace is kept, logged and sent back (and therefore printable, too).
        ack_id_digits: 20 hold any 64-bit counter.
        unanswered_acks: per namespace; the oldest is forgotten, since a peer need never answer.

    Integers need no limit of their own: orjson reads one beyond 64 bits as a float, as JavaScript does, and refuses
    one that no float can hold.
    """

    packet_bytes: int = 50 * 2**20
    attachments: int = 10
    values: int = 40_000
    nesting: int = 100
    namespace_characters: int = 256
    ack_id_digits: int = 20
    unanswered_acks: int = 1_000


DEFAULT_LIMITS: Final = Limits()

# ---------------------------------------------------------------------------------------------- packets


class PacketType(IntEnum):
    """The first digit of a packet's text."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3
    CONNECT_ERROR = 4
    BINARY_EVENT = 5  # only on the wire: an EVENT with attachments
    BINARY_ACK = 6  # only on the wire: an ACK with attachments


@frozen
class Packet:
    """One Socket.IO packet, attachments in place.

    Attributes:
        type: never one of the BINARY types; whether there are attachments shows in the data.
        namespace: starts with ``/``.
        data: CONNECT: an object or None; EVENT: ``[name, *arguments]``; ACK: ``[*arguments]``; CONNECT_ERROR: an object
            or a string; DISCONNECT: None.
        id: of the acknowledgement that is asked for or given: digits, kept as they came.
    """

    type: PacketType
    namespace: str = "/"
    data: Any = None
    id: str | None = None


def encode(packet: Packet, limits: Limits = DEFAULT_LIMITS) -> list[Message]:
    """The messages that carry `packet`: its text, then its attachments. The same bytes object travels once.

    Raises:
        ValueError: the namespace is not one, or the data cannot travel: too many attachments, nested too deep, or with
            a value JSON does not have (NaN and infinities too, which orjson would turn into null).
    """
    if not packet.namespace.startswith("/") or "," in packet.namespace or not packet.namespace.isprintable():
        raise ValueError(f"not a namespace: {packet.namespace!r}")
    head = str(packet.type.value)
    body = b""
    detacher = _Detacher(limits)
    if packet.data is not None:
        data = detacher.detach(packet.data, limits.nesting)
        try:
            body = orjson.dumps(data)
        except TypeError as error:
            raise ValueError(f"cannot be sent as JSON: {error}") from None
    attachments = detacher.attachments
    if attachments:
        if packet.type not in _BINARY_FORM:
            raise ValueError(f"{packet.type.name} cannot have attachments")
        if detacher.found_placeholder:
            raise ValueError("an object that reads as a placeholder cannot travel beside attachments")
        head = f"{_BINARY_FORM[packet.type]:d}{len(attachments)}-"
    if packet.namespace != "/":
        head += packet.namespace + ","
    if packet.id is not None:
        head += packet.id
    return [(head.encode() + body).decode(), *attachments]


@define
class _Detacher:
    """Copies data, leaving placeholders where bytes were."""

    limits: Limits
    attachments: list[bytes] = field(factory=list)
    found_placeholder: bool = False

    def detach(self, value: Any, levels: int) -> Any:
        """Copy `value`, in which arrays and objects may still nest `levels` deep."""
        if isinstance(value, bytes | bytearray | memoryview):
            return self._replace(bytes(value), levels)
        if isinstance(value, dict | list | tuple):
            if levels == 0:
                raise ValueError(f"nested more than {self.limits.nesting} deep")
            if not isinstance(value, dict):
                return [self.detach(item, levels - 1) for item in value]
            self.found_placeholder |= value.get("_placeholder") is True
            return {key: self.detach(item, levels - 1) for key, item in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"cannot be sent as JSON: {value}")
        return value

    def _replace(self, attachment: bytes, levels: int) -> dict[str, Any]:
        if levels == 0:
            raise ValueError(f"nested more than {self.limits.nesting} deep")
        for number, known in enumerate(self.attachments):
            if known is attachment:
                return {"_placeholder": True, "num": number}
        if len(self.attachments) == self.limits.attachments:
            raise ValueError(f"more than {self.limits.attachments} attachments")
        self.attachments.append(attachment)
        return {"_placeholder": True, "num": len(self.attachments) - 1}


class Decoder:
    """Turns the messages of one connection into packets: text, and for a packet with attachments the binary after it.

    After a `SocketError` it must not be used again.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._pending: _Pending | None = None

    @property
    def pending(self) -> Packet | None:
        """The packet whose attachments are still to come, with placeholders where they belong."""
        return None if self._pending is None else self._pending.packet

    def feed(self, message: Message) -> Packet | None:
        """Take one message; the packet that it completes, if it completes one.

        Raises:
            SocketError: the message breaks the protocol or a limit.
        """
        if isinstance(message, str):
            if self._pending is not None:
                raise SocketError("text while an attachment is pending")
            return self._feed_text(message)
        if self._pending is None:
            raise SocketError("binary message without a packet that announced it")
        return self._feed_attachment(self._pending, message)

    def _feed_text(self, text: str) -> Packet | None:
        limits = self._limits
        if len(text) > limits.packet_bytes:
            raise SocketError(f"packet over {limits.packet_bytes} bytes")
        head = _HEAD.match(text)
        if head is None:
            raise SocketError("unknown packet type")
        digit, count, namespace, ack_id = head.groups()
        wire_type = PacketType(int(digit))
        kind = _PLAIN_FORM.get(wire_type, wire_type)
        if (count is not None) != (wire_type in _PLAIN_FORM):
            raise SocketError("attachment count missing, malformed or out of place")
        expected = int(count or 0)
        if expected > limits.attachments:
            raise SocketError(f"more than {limits.attachments} attachments")
        if namespace is not None and (len(namespace) > limits.namespace_characters or not namespace.isprintable()):
            raise SocketError(f"namespace unprintable or of more than {limits.namespace_characters} characters")
        if len(ack_id) > limits.ack_id_digits:
            raise SocketError(f"acknowledgement id of more than {limits.ack_id_digits} digits")
        given = head.end() < len(text)
        # What a client says of itself may be sent on as an event's argument, one level deeper.
        nesting = limits.nesting - (kind is PacketType.CONNECT)
        data = _read_json(text, head.end(), limits, nesting) if given else None
        _check_data(kind, data, given=given)
        packet = Packet(kind, namespace or "/", data, ack_id or None)
        if wire_type is kind:
            return packet
        places = _find_places(data, expected)
        if expected == 0:
            return packet
        self._pending = _Pending(packet, places, expected, limits.packet_bytes - len(text))
        return None

    def _feed_attachment(self, pending: _Pending, attachment: bytes) -> Packet | None:
        pending.bytes_left -= len(attachment)
        if pending.bytes_left < 0:
            raise SocketError(f"packet over {self._limits.packet_bytes} bytes")
        pending.attachments.append(attachment)
        if len(pending.attachments) < pending.expected:
            return None
        for container, key, number in pending.places:
            container[key] = pending.attachments[number]
        self._pending = None
        return pending.packet


_Place: TypeAlias = tuple[Any, Any, int]
"""Where an attachment belongs: ``container[key]``, and its number."""


@define
class _Pending:
    packet: Packet
    places: list[_Place]
    expected: int
    bytes_left: int
    attachments: list[bytes] = field(factory=list)


_BINARY_FORM: Final = {PacketType.EVENT: PacketType.BINARY_EVENT, PacketType.ACK: PacketType.BINARY_ACK}
_PLAIN_FORM: Final = {binary: plain for plain, binary in _BINARY_FORM.items()}

# <type>[<attachments>-][<namespace>,][<id>]; the comma may be missing where nothing follows. Linear in the text.
_HEAD: Final = re.compile(r"([0-6])(?:([0-9]{1,9})-)?(?:(/[^,]*)(?:,|\Z))?([0-9]*)")


def _read_json(text: str, start: int, limits: Limits, nesting: int) -> Any:
    """Parse what begins at `start`: the number of values bounded before, the depth (orjson stops at 1024) afterwards.

    An event with few brackets needs no walk to know that it is not deep: a fragment's megabytes of base64 are searched
    for brackets and commas by C's memchr, and never looked at in Python. All of that is done on bytes: a single emoji
    makes each character of a string take four, and whatever is done to a character cost as much.
    """
    try:
        json = text.encode()
    except UnicodeEncodeError as error:
        raise SocketError(f"invalid JSON: {error.reason}") from None
    at = start if text.isascii() else len(text[:start].encode())
    brackets = _count(b"[{", json, at, limits.values)
    if brackets + _count(b",", json, at, limits.values - brackets) > limits.values:
        raise SocketError(f"more than {limits.values} values")
    try:
        data = orjson.loads(memoryview(json)[at:])
    except orjson.JSONDecodeError as error:
        raise SocketError(f"invalid JSON: {error}") from None
    if brackets > nesting:
        for depth, _ in _containers(data):
            if depth > nesting:
                raise SocketError(f"nested more than {nesting} deep")
    return data


def _count(characters: bytes, json: bytes, start: int, at_most: int) -> int:
    """How often any of `characters` is in `json` from `start` on; counting stops beyond `at_most`.

    `bytes.find` runs at ten times the speed of `bytes.count`, so this is the faster way where hits are rare.
    """
    hits = 0
    for character in characters:
        at = json.find(character, start)
        while at >= 0 and hits <= at_most:
            hits += 1
            at = json.find(character, at + 1)
    return hits


def _containers(data: Any) -> Iterator[tuple[int, Any]]:
    """Every array and object in `data` with its depth, the outermost being 1. Not recursive."""
    level = [data] if isinstance(data, dict | list) else []
    depth = 0
    while level:
        depth += 1
        below: list[Any] = []
        for container in level:
            yield depth, container
            items = container.values() if isinstance(container, dict) else container
            below += [item for item in items if isinstance(item, dict | list)]
        level = below


def _find_places(data: Any, expected: int) -> list[_Place]:
    """Where the attachments belong. Two places may share one attachment, and an attachment may have no place."""
    places: list[_Place] = []
    for _, container in _containers(data):
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            if isinstance(value, dict) and value.get("_placeholder") is True:
                number = value.get("num")
                if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < expected:
                    raise SocketError("placeholder without its attachment")
                places.append((container, key, number))
    return places


def _check_data(kind: PacketType, data: Any, *, given: bool) -> None:
    """Whether a packet of this type may carry this (the protocol, "Packet encoding")."""
    match kind:
        case PacketType.CONNECT:
            if given and not isinstance(data, dict):
                raise SocketError("CONNECT takes an object")
        case PacketType.DISCONNECT:
            if given:
                raise SocketError("DISCONNECT takes nothing")
        case PacketType.CONNECT_ERROR:
            if not isinstance(data, dict | str):
                raise SocketError("CONNECT_ERROR takes an object or a string")
        case PacketType.EVENT:
            if not isinstance(data, list) or not data:
                raise SocketError("EVENT takes an array that starts with its name")
            if isinstance(data[0], bool) or not isinstance(data[0], str | int | float):
                raise SocketError("an event's name must be a string or a number")
            if data[0] in RESERVED_EVENTS:
                raise SocketError(f"reserved event name {data[0]}")
        case PacketType.ACK:
            if not isinstance(data, list):
                raise SocketError("ACK takes an array")
