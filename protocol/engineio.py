"""Engine.IO protocol v4: packets, the handshake and the heartbeat, free of I/O.

Engine.IO turns a transport (a WebSocket; HTTP long-polling could be another) into an ordered channel of messages that
notices when the other side is gone. It has one rule that everything else hangs on:

    The server opens the session with its `Handshake`, then pings every ``pingInterval``; the client answers each ping
    within ``pingTimeout``. Whoever waits longer than that for the other closes. The interval starts again when the
    answer arrives. A peer that breaks a rule is closed at once, and after that nothing is taken or sent any more.

A connection object is fed frames and the time and answers with events and frames; whoever carries it moves the frames,
calls `tick` when `deadline` has come, and closes the transport when `closed` is set. Times are seconds of any monotonic
clock; what is on the wire is in ms, as the protocol has it.

Source: https://socket.io/docs/v4/engine-io-protocol/ ("the protocol" below).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from enum import IntEnum, StrEnum
from typing import Any, Final, TypeAlias

import orjson
from attrs import field, frozen

Frame: TypeAlias = str | bytes
"""What one WebSocket message carries: one packet as text, or the bare bytes of a binary message."""

PROTOCOL_VERSION: Final = "4"
"""The `EIO` of every handshake's query."""


class PacketType(IntEnum):
    """The first character of a text frame."""

    OPEN = 0
    CLOSE = 1
    PING = 2
    PONG = 3
    MESSAGE = 4
    UPGRADE = 5
    NOOP = 6


class CloseReason(StrEnum):
    """Why a connection ended."""

    TRANSPORT_CLOSE = "transport close"  # the WebSocket closed or broke
    PING_TIMEOUT = "ping timeout"  # a ping or its answer did not come in time
    OPEN_TIMEOUT = "open timeout"  # the server's open packet did not come in time
    CONNECT_TIMEOUT = "connect timeout"  # no Socket.IO namespace was joined in time
    ATTACHMENTS_TIMEOUT = "attachments timeout"  # a Socket.IO packet's attachments did not come in time
    CLIENT_CLOSE = "client close"  # the client said so
    SERVER_CLOSE = "server close"  # the server said so
    PARSE_ERROR = "parse error"  # the peer broke a rule
    SHUTTING_DOWN = "server shutting down"


class EngineError(Exception):
    """A rule that the peer broke; the message names it."""


class ConnectionClosed(Exception):
    """Something was to be sent on a connection that is closed already."""

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(f"the connection is closed: {reason}")
        self.reason = reason


# ---------------------------------------------------------------------------------------------- packets


@frozen
class Packet:
    """One Engine.IO packet. `data` is bytes only in a message."""

    type: PacketType
    data: str | bytes = ""


def encode_frame(packet: Packet) -> Frame:
    """The WebSocket message that carries `packet`: a binary message travels bare, all else behind its type's digit."""
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
        raise EngineError("empty frame")
    kind = _TYPES.get(frame[0])
    if kind is None:
        raise EngineError("unknown packet type")
    return Packet(kind, frame[1:])


_TYPES: Final = {str(kind.value): kind for kind in PacketType}

# -------------------------------------------------------------------------------------------- handshake


def _at_least(low: int) -> Any:
    def check(_: object, attribute: Any, value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{attribute.name} must be an integer of at least {low}")

    return check


@frozen
class Handshake:
    """What the open packet tells the client about its session.

    Attributes:
        sid: names the session; unguessable, for it is all that a polling request proves itself with.
        upgrades: transports the client may change to (none on a WebSocket).
        ping_interval_ms, ping_timeout_ms: the heartbeat's two times.
        max_payload: bytes the client may send in one message (on long-polling: in one request).
    """

    sid: str
    upgrades: tuple[str, ...] = ()
    ping_interval_ms: int = field(default=25_000, validator=_at_least(1))
    ping_timeout_ms: int = field(default=10_000, validator=_at_least(1))
    max_payload: int = field(default=50 * 2**20, validator=_at_least(1))

    def to_json(self) -> str:
        """The open packet's data."""
        return orjson.dumps(
            {
                "sid": self.sid,
                "upgrades": self.upgrades,
                "pingInterval": self.ping_interval_ms,
                "pingTimeout": self.ping_timeout_ms,
                "maxPayload": self.max_payload,
            }
        ).decode()

    @classmethod
    def from_json(cls, text: str) -> Handshake:
        """Read an open packet's data; fields that this version does not know are ignored.

        Raises:
            EngineError: not JSON, or a field is missing or of the wrong kind.
        """
        try:
            body = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise EngineError(f"open packet: {error}") from None
        if not isinstance(body, dict):
            raise EngineError("open packet: not an object")
        sid, upgrades = body.get("sid"), body.get("upgrades")
        if not isinstance(sid, str) or not sid:
            raise EngineError("open packet: sid must be a string")
        if not isinstance(upgrades, list) or not all(isinstance(name, str) for name in upgrades):
            raise EngineError("open packet: upgrades must be an array of strings")
        numbers: list[Any] = [body.get(key) for key in ("pingInterval", "pingTimeout", "maxPayload")]
        try:
            return cls(sid, tuple(upgrades), *numbers)
        except ValueError as error:
            raise EngineError(f"open packet: {error}") from None


class HandshakeRefused(Exception):
    """A request that gets no session.

    Attributes:
        status: of the HTTP answer. A WebSocket request is refused the same way, before any 101.
        code, message: what `body` tells the client.
    """

    def __init__(self, code: int, *, status: int = 400) -> None:
        super().__init__(_REFUSALS[code])
        self.status = status
        self.code = code
        self.message = _REFUSALS[code]

    @property
    def body(self) -> dict[str, Any]:
        """The HTTP answer's JSON object."""
        return {"code": self.code, "message": self.message}


UNKNOWN_TRANSPORT: Final = 0
UNKNOWN_SID: Final = 1
BAD_HANDSHAKE_METHOD: Final = 2
BAD_REQUEST: Final = 3
FORBIDDEN: Final = 4
UNSUPPORTED_VERSION: Final = 5
_REFUSALS: Final = {
    UNKNOWN_TRANSPORT: "Transport unknown",
    UNKNOWN_SID: "Session ID unknown",
    BAD_HANDSHAKE_METHOD: "Bad handshake method",
    BAD_REQUEST: "Bad request",
    FORBIDDEN: "Forbidden",
    UNSUPPORTED_VERSION: "Unsupported protocol version",
}


def check_handshake(
    query: Mapping[str, str],
    *,
    method: str,
    is_upgrade: bool,
    sessions: Mapping[str, str],
    transports: Collection[str] = ("websocket",),
) -> None:
    """Check a request under the Engine.IO path, in the reference server's order: transport, sid, method, version.

    Args:
        query: the decoded query string.
        is_upgrade: whether the request asks for a WebSocket.
        sessions: the sids of live sessions and the transport each is on.
        transports: what is served.

    Raises:
        HandshakeRefused: with the status and JSON to answer.
    """
    transport = query.get("transport")
    if transport not in transports:
        raise HandshakeRefused(UNKNOWN_TRANSPORT)
    sid = query.get("sid")
    if sid and sid not in sessions:
        raise HandshakeRefused(UNKNOWN_SID)
    if not sid and method != "GET":
        raise HandshakeRefused(BAD_HANDSHAKE_METHOD)
    if is_upgrade != (transport == "websocket"):
        raise HandshakeRefused(BAD_REQUEST)
    if sid:
        # A WebSocket may take over a session from another transport, never from a WebSocket.
        if sessions[sid] == "websocket" if is_upgrade else sessions[sid] != transport:
            raise HandshakeRefused(BAD_REQUEST)
    elif query.get("EIO") != PROTOCOL_VERSION:
        raise HandshakeRefused(UNSUPPORTED_VERSION)


# ------------------------------------------------------------------------------------------- connections


@frozen
class Opened:
    """Client side: the session is open."""

    handshake: Handshake


@frozen
class MessageReceived:
    """A message arrived, as text or binary as it was sent."""

    data: str | bytes


@frozen
class PingReceived:
    """Client side: the server wants a sign of life; send `pong` at once."""

    pong: Frame


@frozen
class Closed:
    """The peer ended the connection or broke a rule: close the transport. Always the last event.

    Attributes:
        detail: the broken rule, for the log.
    """

    reason: CloseReason
    detail: str = ""


Event: TypeAlias = Opened | MessageReceived | PingReceived | Closed


class _Connection:
    """What both sides share: being open or closed, and a time at which something must happen."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._closed: CloseReason | None = None

    @property
    def closed(self) -> CloseReason | None:
        """Why the connection ended; None while it lives."""
        return self._closed

    @property
    def deadline(self) -> float:
        """When `tick` must be called, in seconds; infinite once closed. Any other call may change it."""
        return self._deadline

    def close(self, reason: CloseReason) -> None:
        """End the connection from this side, or because the transport ended. The first reason stands."""
        if self._closed is None:
            self._closed = reason
            self._deadline = math.inf

    def send(self, message: str | bytes) -> Frame:
        """The frame that carries `message`.

        Raises:
            ConnectionClosed: nothing is sent any more.
        """
        if self._closed is not None:
            raise ConnectionClosed(self._closed)
        return encode_frame(Packet(PacketType.MESSAGE, message))

    def _close(self, reason: CloseReason, detail: str = "") -> list[Event]:
        self.close(reason)
        return [Closed(reason, detail)]


class ServerConnection(_Connection):
    """The server's end of one session.

    Args:
        handshake: what the session was promised.
        now: seconds; the first ping is due one interval later.
    """

    def __init__(self, handshake: Handshake, now: float) -> None:
        self.handshake = handshake
        self._interval = handshake.ping_interval_ms / 1000
        self._timeout = handshake.ping_timeout_ms / 1000
        self._awaiting_pong = False
        super().__init__(now + self._interval)

    def open(self) -> Frame:
        """The open packet: the first frame to send."""
        return encode_frame(Packet(PacketType.OPEN, self.handshake.to_json()))

    def receive(self, frame: Frame, now: float) -> list[Event]:
        """Take one frame of the client.

        A ping, which only servers send, ends the connection, as does a frame that is no packet. Packets that have no
        meaning on an open WebSocket session (open, upgrade, noop, a pong nobody waits for) are ignored, as the
        reference server does.
        """
        if self._closed is not None:
            return []
        try:
            packet = decode_frame(frame)
        except EngineError as error:
            return self._close(CloseReason.PARSE_ERROR, str(error))
        match packet.type:
            case PacketType.MESSAGE:
                return [MessageReceived(packet.data)]
            case PacketType.PONG if self._awaiting_pong:
                self._awaiting_pong = False
                self._deadline = now + self._interval
            case PacketType.PING:
                return self._close(CloseReason.PARSE_ERROR, "ping from a client")
            case PacketType.CLOSE:
                return self._close(CloseReason.CLIENT_CLOSE)
        return []

    def tick(self, now: float) -> list[Frame]:
        """Ping, or give up on a client that has not answered (then `closed` is set). Nothing before `deadline`."""
        if now < self._deadline:
            return []
        if self._awaiting_pong:
            self.close(CloseReason.PING_TIMEOUT)
            return []
        self._awaiting_pong = True
        self.ping_moved(now)
        return [encode_frame(Packet(PacketType.PING))]

    def ping_moved(self, now: float) -> None:
        """The ping, or a piece of what must be sent before it, has just been sent: the answer is due a timeout later.

        For transports that are slow: a client cannot answer what it was not sent yet. Without a ping it does nothing.
        """
        if self._awaiting_pong and self._closed is None:
            self._deadline = now + self._timeout


class ClientConnection(_Connection):
    """The client's end of one session.

    Args:
        now: seconds.
        open_timeout: seconds the server has for its open packet, from `now`.
    """

    def __init__(self, now: float, open_timeout: float = 20.0) -> None:
        self._handshake: Handshake | None = None
        super().__init__(now + open_timeout)

    @property
    def handshake(self) -> Handshake | None:
        """The server's promises, once its open packet was read."""
        return self._handshake

    def receive(self, frame: Frame, now: float) -> list[Event]:
        """Take one frame of the server. The first must be the open packet, and no other may be one."""
        if self._closed is not None:
            return []
        try:
            packet = decode_frame(frame)
            if self._handshake is None:
                if packet.type is not PacketType.OPEN or isinstance(packet.data, bytes):
                    raise EngineError("the first packet must be open")
                self._handshake = Handshake.from_json(packet.data)
                self._await_ping(self._handshake, now)
                return [Opened(self._handshake)]
        except EngineError as error:
            return self._close(CloseReason.PARSE_ERROR, str(error))
        match packet.type:
            case PacketType.MESSAGE:
                return [MessageReceived(packet.data)]
            case PacketType.PING:
                self._await_ping(self._handshake, now)
                return [PingReceived(encode_frame(Packet(PacketType.PONG, packet.data)))]
            case PacketType.OPEN:
                return self._close(CloseReason.PARSE_ERROR, "second open packet")
            case PacketType.CLOSE:
                return self._close(CloseReason.SERVER_CLOSE)
        return []

    def tick(self, now: float) -> list[Frame]:
        """Give up on a server that has been silent for too long (then `closed` is set). Nothing before `deadline`."""
        if now >= self._deadline:
            self.close(CloseReason.OPEN_TIMEOUT if self._handshake is None else CloseReason.PING_TIMEOUT)
        return []

    def _await_ping(self, handshake: Handshake, now: float) -> None:
        self._deadline = now + (handshake.ping_interval_ms + handshake.ping_timeout_ms) / 1000
