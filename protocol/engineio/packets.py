"""Engine.IO packets, as WebSocket messages and as the payloads of HTTP long-polling.

On a WebSocket each message is one packet: text behind its type's digit, or the bare bytes of a binary message. Over
HTTP a body holds several packets with `SEPARATOR` between them, binary ones as ``b`` and base64.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator
from enum import IntEnum, StrEnum
from typing import Final, TypeAlias

import pybase64
from attrs import frozen

PROTOCOL_VERSION: Final = "4"
"""The `EIO` of every handshake's query."""

SEPARATOR: Final = "\x1e"

Frame: TypeAlias = str | bytes
"""What one WebSocket message carries: one packet as text, or the bare bytes of a binary message."""


class Transport(StrEnum):
    """What carries a session, as it is called in a handshake's query."""

    POLLING = "polling"
    WEBSOCKET = "websocket"


class PacketType(IntEnum):
    """The first character of a packet's text."""

    OPEN = 0
    CLOSE = 1
    PING = 2
    PONG = 3
    MESSAGE = 4
    UPGRADE = 5
    NOOP = 6


class EngineError(Exception):
    """A rule that the peer broke; the message names it."""


@frozen
class Packet:
    """One Engine.IO packet. `data` is bytes only in a message."""

    type: PacketType
    data: str | bytes = ""


def encode_frame(packet: Packet) -> Frame:
    """The WebSocket message that carries `packet`.

    Raises:
        ValueError: binary data in anything but a message.
    """
    if isinstance(packet.data, bytes):
        if packet.type is not PacketType.MESSAGE:
            raise ValueError(f"only a message can be binary, not {packet.type.name}")
        return packet.data
    return f"{packet.type:d}{packet.data}"


def decode_frame(frame: Frame) -> Packet:
    """Read one WebSocket message.

    Raises:
        EngineError: an empty text, or one that does not start with a packet type.
    """
    if isinstance(frame, bytes):
        return Packet(PacketType.MESSAGE, frame)
    if not frame:
        raise EngineError("empty packet")
    kind = _TYPES.get(frame[0])
    if kind is None:
        raise EngineError("unknown packet type")
    return Packet(kind, frame[1:])


def encode_payload(packets: Iterable[Packet]) -> str:
    """The body of an HTTP request or response that carries `packets`."""
    return SEPARATOR.join(map(_encode_text, packets))


def decode_payload(payload: str) -> Iterator[Packet]:
    """Read the body of an HTTP request or response, one packet at a time: a body may hold millions of tiny ones.

    Raises:
        EngineError: when it comes to a packet that is none.
    """
    start = 0
    while True:
        end = payload.find(SEPARATOR, start)
        yield _decode_text(payload[start:] if end < 0 else payload[start:end])
        if end < 0:
            return
        start = end + 1


def says_goodbye(payload: bytes) -> bool:
    """Whether the last packet of an HTTP body is a close packet."""
    return payload == b"1" or payload.endswith(b"\x1e1")


def _encode_text(packet: Packet) -> str:
    frame = encode_frame(packet)
    return frame if isinstance(frame, str) else "b" + pybase64.b64encode_as_string(frame)


def _decode_text(text: str) -> Packet:
    if not text.startswith("b"):
        return decode_frame(text)
    try:
        return Packet(PacketType.MESSAGE, pybase64.b64decode(text[1:].encode("ascii"), validate=True))
    except (binascii.Error, UnicodeEncodeError):
        raise EngineError("invalid base64") from None


_TYPES: Final = {str(kind.value): kind for kind in PacketType}
