"""How an Engine.IO session begins: which requests get one, and what the open packet promises."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import Any, Final

import orjson
from attrs import field, frozen

from .packets import PROTOCOL_VERSION, EngineError, Transport


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
        max_payload: bytes the client may send in one message, or on long-polling in one request.
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


class Refusal(IntEnum):
    """Why a request gets no session: the `code` of the answer's JSON. The numbers are the reference server's."""

    UNKNOWN_TRANSPORT = 0
    UNKNOWN_SID = 1
    BAD_HANDSHAKE_METHOD = 2
    BAD_REQUEST = 3
    FORBIDDEN = 4
    UNSUPPORTED_VERSION = 5


_MESSAGES: Final = {
    Refusal.UNKNOWN_TRANSPORT: "Transport unknown",
    Refusal.UNKNOWN_SID: "Session ID unknown",
    Refusal.BAD_HANDSHAKE_METHOD: "Bad handshake method",
    Refusal.BAD_REQUEST: "Bad request",
    Refusal.FORBIDDEN: "Forbidden",
    Refusal.UNSUPPORTED_VERSION: "Unsupported protocol version",
}


class HandshakeRefused(Exception):
    """A request that gets no session. A WebSocket's is refused in the same way, before any 101.

    Attributes:
        status: of the HTTP answer.
        body: the HTTP answer's JSON object.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(_MESSAGES[refusal])
        self.refusal = refusal
        self.status = 403 if refusal is Refusal.FORBIDDEN else 400
        self.body: dict[str, Any] = {"code": int(refusal), "message": _MESSAGES[refusal]}


def check_handshake(
    query: Mapping[str, str],
    *,
    method: str,
    is_websocket: bool,
    sessions: Mapping[str, Transport],
    origin: str | None = None,
    allowed_origins: Collection[str] | None = None,
    transports: Collection[str] = tuple(Transport),
) -> str | None:
    """Check a request under the Engine.IO path, in the reference server's order: transport, origin, sid, method,
    version.

    A WebSocket for a session that is on one already passes: it is opened, and then closed by `begin_upgrade`.

    Args:
        query: the decoded query string; what is not known is ignored.
        is_websocket: whether the request asks for a WebSocket.
        sessions: the sids of live sessions and the transport each is on.
        origin: the request's ``Origin``, which browsers send.
        allowed_origins: where not None, other origins than these are refused; ``*`` allows any.
        transports: what is served.

    Returns:
        the sid of the session that the request belongs to; None asks for a new one.

    Raises:
        HandshakeRefused
    """
    transport = query.get("transport")
    if transport not in transports:
        raise HandshakeRefused(Refusal.UNKNOWN_TRANSPORT)
    if origin is not None:
        if not origin.isascii() or not origin.isprintable():
            raise HandshakeRefused(Refusal.BAD_REQUEST)
        if allowed_origins is not None and "*" not in allowed_origins and origin not in allowed_origins:
            raise HandshakeRefused(Refusal.FORBIDDEN)
    sid = query.get("sid")
    if sid:
        if sid not in sessions:
            raise HandshakeRefused(Refusal.UNKNOWN_SID)
        if is_websocket != (transport == Transport.WEBSOCKET) or not (is_websocket or sessions[sid] == transport):
            raise HandshakeRefused(Refusal.BAD_REQUEST)
        return sid
    if method != "GET":
        raise HandshakeRefused(Refusal.BAD_HANDSHAKE_METHOD)
    if is_websocket != (transport == Transport.WEBSOCKET):
        raise HandshakeRefused(Refusal.BAD_REQUEST)
    if query.get("EIO") != PROTOCOL_VERSION:
        raise HandshakeRefused(Refusal.UNSUPPORTED_VERSION)
    return None
