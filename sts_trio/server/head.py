"""The head of an HTTP request: read it, and refuse whatever two readers of it could understand differently.

One version (HTTP/1.1, and 1.0 for plain requests), one way to say how long the body is, one form of target, one
protocol to upgrade to; an upgrade has no body and nothing behind its head.
"""

from __future__ import annotations

import binascii
from typing import Final

import h11
import trio
from attrs import frozen

from .refused import Refused

HEAD_BYTES: Final = 16_384

_WEBSOCKET_HEADERS: Final = (b"upgrade", b"connection", b"sec-websocket-protocol", b"sec-websocket-extensions")


class ClientGone(Exception):
    """The client left before it asked for anything."""


@frozen
class Head:
    """A request, all bytes that were read, and whether it has a body or anything else behind its head."""

    request: h11.Request
    raw: bytes
    has_more: bool

    def values(self, name: bytes) -> list[bytes]:
        """What its headers of this name say, which is written in small letters."""
        return [value for key, value in self.request.headers if key == name]

    def options(self, name: bytes) -> list[bytes]:
        """The items of a header that is a list, in small letters."""
        return [option.strip() for option in b",".join(self.values(name)).lower().split(b",")]

    @property
    def is_chunked(self) -> bool:
        """Whether its body comes in chunks (RFC 9112, 7.1)."""
        return bool(self.values(b"transfer-encoding"))

    @property
    def wants_keep_alive(self) -> bool:
        """Whether the client may send another request on the connection (RFC 9112, 9.3)."""
        return self.request.http_version == b"1.1" and b"close" not in self.options(b"connection")


async def read_head(stream: trio.abc.ReceiveStream, unread: bytes) -> Head:
    """Read a request's head, of which `unread` may be the beginning, or more than that. Put a deadline on it.

    Raises:
        ClientGone
        Refused: it is too long, or no HTTP.
    """
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    raw = bytearray(unread)
    if unread:  # nothing would mean that the client has left
        parser.receive_data(unread)
    try:
        while (event := parser.next_event()) is h11.NEED_DATA:
            if len(raw) >= HEAD_BYTES:
                raise _too_long()
            data = await stream.receive_some(HEAD_BYTES - len(raw))
            raw += data
            parser.receive_data(bytes(data))
        if not isinstance(event, h11.Request):
            raise ClientGone
        if len(raw) - len(parser.trailing_data[0]) > HEAD_BYTES:
            raise _too_long()
        ended = not _has_body(event) and parser.next_event()
        return Head(event, bytes(raw), not ended or bool(parser.trailing_data[0]))
    except h11.RemoteProtocolError as error:
        raise Refused(error.error_status_hint, str(error)) from None
    except trio.BrokenResourceError:
        raise ClientGone from None


def _too_long() -> Refused:
    return Refused(431, f"request head over {HEAD_BYTES} bytes")


def _has_body(request: h11.Request) -> bool:
    framing = [value for name, value in request.headers if name in (b"content-length", b"transfer-encoding")]
    return framing not in ([], [b"0"])


def check_framing(head: Head) -> bool:
    """Enforce the rule of this module.

    Returns:
        whether the request asks for a WebSocket.

    Raises:
        Refused
    """
    request = head.request
    if request.http_version not in (b"1.0", b"1.1"):
        raise Refused(505, "HTTP/1.1 is spoken here")  # b"2.0" is the preface of HTTP/2
    if not request.target.startswith(b"/"):
        raise Refused(400, "the target must be a path")
    if head.values(b"transfer-encoding"):
        if head.values(b"content-length"):
            raise Refused(400, "Transfer-Encoding and Content-Length exclude each other")
        if request.http_version == b"1.0":
            raise Refused(400, "Transfer-Encoding needs HTTP/1.1")
    protocols = head.values(b"upgrade")
    if not protocols:
        return False
    if [protocol.lower() for protocol in protocols] != [b"websocket"]:
        raise Refused(400, "nothing but websocket can be upgraded to")
    if b"upgrade" not in head.options(b"connection"):
        raise Refused(400, "Upgrade without Connection: upgrade")
    if len(head.values(b"connection")) > 1:
        raise Refused(400, "an upgrade needs a single Connection header")  # another reader takes one of them
    if request.http_version == b"1.0":
        raise Refused(400, "an upgrade needs HTTP/1.1")
    if head.has_more:
        raise Refused(400, "nothing may follow the head of an upgrade")
    return True


def check_websocket(head: Head) -> None:
    """Check the handshake of a WebSocket (RFC 6455, 4.2.1), so that who answers it has nothing to refuse.

    Raises:
        Refused
    """
    if head.request.method != b"GET":
        raise Refused(405, "a WebSocket is opened with GET", {"allow": "GET"})
    for name in _WEBSOCKET_HEADERS:
        if not all(value.isascii() for value in head.values(name)):
            raise Refused(400, f"{name.decode()} must be ASCII")
    if head.values(b"sec-websocket-version") != [b"13"]:
        raise Refused(426, "WebSocket version 13 is required", {"sec-websocket-version": "13"})
    if not _is_websocket_key(head.values(b"sec-websocket-key")):
        raise Refused(400, "Sec-WebSocket-Key must be 16 bytes in base64")


def _is_websocket_key(values: list[bytes]) -> bool:
    try:
        return len(values) == 1 and len(binascii.a2b_base64(values[0], strict_mode=True)) == 16
    except binascii.Error:
        return False
