"""A WebSocket on a connection that the door accepted, and the stream under it.

trio-websocket reads, answers control frames and does the handshakes. What it does not do for us is here:

- *Messages are sent in pieces.* It sends a message as one frame, which copies it five times in one step: 5 ms for the
  1.6 MB of a dubbed fragment, in which nothing else runs. So messages leave as fragments of 64 KiB (RFC 6455, 5.4),
  framed by wsproto and written to the shared stream; its own pongs and close frames fall between them, as 5.5 allows.
- *No step takes many frames.* It handles what one read brought without letting anybody else run, and an empty frame
  costs as much as a large one. So it is given at most `FRAMES_PER_STEP` at a time, however small they are.
- *Messages are bounded before they come*, in bytes and in fragments, by what the frames' headers say.
- *Whoever breaks a rule learns which.* On a frame that cannot be read it hangs up without the close frame that 7.1.7
  asks for.
- *A frame that was cut off ends the connection.* After a cancelled send the peer takes whatever follows for the rest of
  that frame. The stream notices (`torn`), and then no close frame is sent.
- *Closing does not lose what was sent.* See `AcceptedStream.aclose`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio
from attrs import define, field, frozen
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.utilities import LocalProtocolError

from .tls import Accepted, TLSTransport

PIECE: Final = 2**16
"""Characters or bytes of a message per frame, and bytes per read."""

FRAMES_PER_STEP: Final = 128
"""What is read between two chances for others to run: about 2 ms of empty frames."""

FRAGMENTS_PER_MESSAGE: Final = 2**16
"""Fragments wait in memory for the last one, and an empty one takes its place there, too."""

LINGER_S: Final = 1.0
CLOSE_TIMEOUT_S: Final = 2.0

_LENGTH_BYTES: Final = {126: 2, 127: 8}  # of an extended length, by the header's short one (5.2)
_PROTOCOL_ERROR: Final = 1002  # close codes (RFC 6455, 7.4.1)
_INVALID_DATA: Final = 1007
_POLICY_VIOLATION: Final = 1008
_TOO_BIG: Final = 1009


class AcceptedStream(trio.abc.HalfCloseableStream):
    """A connection of which the first bytes, the request's head, were read already: they are read again first.

    Several tasks may send; each `send_all` is whole before the next begins.

    Attributes:
        torn: a send failed or was cancelled, so that the peer may have a part of it.
    """

    def __init__(self, transport: Accepted, head: bytes) -> None:
        self._transport = transport
        self._head = head
        self._sending = trio.StrictFIFOLock()
        self.torn = False

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket underneath, for those who ask it for addresses."""
        return self._transport.socket

    @property
    def encrypted(self) -> bool:
        """Whether the client spoke TLS."""
        return isinstance(self._transport, TLSTransport)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._head:
            await trio.lowlevel.checkpoint()
            piece, self._head = self._head[:max_bytes], b"" if max_bytes is None else self._head[max_bytes:]
            return piece
        return await self._transport.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._sending:
            try:
                await self._transport.send_all(data)
            except BaseException:
                self.torn = True
                raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._transport.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Say that no more comes, within `LINGER_S`: over TLS that is a message, too, and may find no reader."""
        with trio.move_on_after(LINGER_S):
            await self._transport.send_eof()

    async def aclose(self) -> None:
        """Close so that what we sent arrives.

        To close a socket with unread bytes resets the connection, and a reset throws away what the peer has not read
        yet: the very answer that says why we close. So say that we are done, then read until the peer is, too, for at
        most `LINGER_S` (RFC 9112, 9.6).
        """
        try:
            with trio.move_on_after(LINGER_S):
                await self._transport.send_eof()
                while await self._transport.receive_some(PIECE):
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except trio.BusyResourceError:
            pass  # another task reads or writes: nothing is left unread, or nothing can be said any more
        finally:
            await self._transport.aclose()

    async def abort(self) -> None:
        """Close at once; wakes whoever waits on this stream."""
        await trio.aclose_forcefully(self._transport)


@frozen
class Violation:
    """A rule that the peer broke, as the close frame and the log tell it."""

    code: int
    reason: str


@define
class FrameGauge:
    """Finds the frames in a stream of bytes by their headers (RFC 6455, 5.2). It judges nothing but sizes.

    Attributes:
        max_message_bytes: may change at any time.
        violation: set once a message is too large; nothing is taken after that.
    """

    max_message_bytes: int
    violation: Violation | None = None
    _header: bytearray = field(factory=bytearray)
    _skip: int = 0  # bytes until the next header: masking key and payload
    _message_bytes: int = 0
    _fragments: int = 0

    def take(self, data: bytes | bytearray, start: int) -> int:
        """Where the next piece of `data` ends: it begins at `start` and has the headers of `FRAMES_PER_STEP` frames."""
        at, frames = start, 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            if frames == FRAMES_PER_STEP:
                break
            self._header.append(data[at])
            at += 1
            if len(self._header) >= 2 and len(self._header) == 2 + _LENGTH_BYTES.get(self._header[1] & 127, 0):
                self._begin_frame()
                if self.violation is not None:
                    break
                frames += 1
        return at

    def _begin_frame(self) -> None:
        first, second = self._header[:2]
        length = int.from_bytes(self._header[2:]) if self._header[2:] else second & 127
        self._header.clear()
        self._skip = length + (4 if second & 128 else 0)
        if first & 8:  # a control frame: it may come between a message's fragments
            return
        self._message_bytes += length
        self._fragments += 1
        if self._message_bytes > self.max_message_bytes:
            self.violation = Violation(_TOO_BIG, f"message over {self.max_message_bytes} bytes")
        elif self._fragments > FRAGMENTS_PER_MESSAGE:
            self.violation = Violation(_POLICY_VIOLATION, f"message of over {FRAGMENTS_PER_MESSAGE} fragments")
        elif first & 128:  # its last fragment
            self._message_bytes = self._fragments = 0


class FrameStream(trio.abc.Stream):
    """An `AcceptedStream` as trio-websocket sees it.

    Closing it ends trio-websocket's part; `open_websocket` closes the connection, after the last word was said.

    Attributes:
        close_sent: a close frame went out.
    """

    def __init__(self, stream: AcceptedStream, gauge: FrameGauge) -> None:
        self._stream = stream
        self._gauge = gauge
        self._data: bytes | bytearray = b""
        self._taken = 0
        self._is_head = True
        self._closed = False
        self.close_sent = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """The request's head, then `FRAMES_PER_STEP` frames or less each time; always a checkpoint."""
        if self._closed:
            raise trio.ClosedResourceError
        if self._gauge.violation is not None:
            raise trio.BrokenResourceError(self._gauge.violation.reason)
        if self._is_head:
            self._is_head = False
            return await self._stream.receive_some(max_bytes)
        if self._taken == len(self._data):
            self._data, self._taken = await self._stream.receive_some(max_bytes), 0
        else:
            await trio.lowlevel.checkpoint()
        start, self._taken = self._taken, self._gauge.take(self._data, self._taken)
        return self._data[start : self._taken]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        self.close_sent = self.close_sent or data[:1] == b"\x88"  # it sends frame by frame
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()


class WebSocketClosed(Exception):
    """The WebSocket is closed or broken: nothing comes or goes any more. The message says why, for the log."""


class WebSocket:
    """An open WebSocket, server side. One task receives, one task sends."""

    def __init__(self, connection: WebSocketConnection, stream: AcceptedStream, gauge: FrameGauge) -> None:
        self._connection = connection
        self._stream = stream
        self._gauge = gauge
        self._frames = Connection(ConnectionType.SERVER)

    def limit(self, max_message_bytes: int) -> None:
        """From now on a message whose frames announce more closes the WebSocket with 1009."""
        self._gauge.max_message_bytes = max_message_bytes

    async def receive(self) -> str | bytes:
        """The next message.

        Raises:
            WebSocketClosed
        """
        try:
            message: str | bytes = await self._connection.get_message()
        except ConnectionClosed:
            raise self._closed() from None
        return message

    async def send(self, message: str | bytes, piece_sent: Callable[[], None] = lambda: None) -> None:
        """Send one message; returns when the kernel has all of it.

        Args:
            piece_sent: called after each piece of it.

        Raises:
            WebSocketClosed
        """
        size = len(message)
        for start in range(0, size or 1, PIECE):
            if self._connection.closed is not None:
                raise self._closed()
            piece, last = message[start : start + PIECE], start + PIECE >= size
            event = TextMessage(piece, True, last) if isinstance(piece, str) else BytesMessage(piece, True, last)
            try:
                await self._stream.send_all(self._frames.send(event))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise self._closed() from None
            piece_sent()

    @property
    def violation(self) -> Violation | None:
        """What the peer broke; else None."""
        why = self._connection.closed
        if self._gauge.violation is None and why is not None and why.code in (_PROTOCOL_ERROR, _INVALID_DATA):
            return Violation(why.code, why.reason or why.name)
        return self._gauge.violation

    def _closed(self) -> WebSocketClosed:
        violation, why = self.violation, self._connection.closed
        if violation is not None:
            return WebSocketClosed(f"{violation.code} {violation.reason}")
        return WebSocketClosed("broken" if why is None else f"{why.code} {why.reason or why.name}")

    async def close(self, code: int) -> None:
        """Close with a handshake where the peer takes part in one, within `CLOSE_TIMEOUT_S`.

        Args:
            code: RFC 6455, 7.4.1.
        """
        if self._stream.torn:
            await self._stream.abort()
            return
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            await self._connection.aclose(code)

    async def send_close(self, violation: Violation) -> None:
        """Say why without asking for an answer, within `CLOSE_TIMEOUT_S`; where that fails, the stream is torn."""
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # the peer may have left already
                await self._stream.send_all(self._frames.send(CloseConnection(violation.code, violation.reason)))


@asynccontextmanager
async def open_websocket(
    stream: AcceptedStream, *, max_message_bytes: int, handshake_timeout_s: float
) -> AsyncIterator[WebSocket]:
    """Answer a handshake with 101 and serve the WebSocket inside the context; leaving it ends everything.

    Args:
        stream: of which nothing but the handshake's head was read.
        max_message_bytes: a larger message closes the WebSocket with 1009; see `WebSocket.limit`.

    Raises:
        WebSocketClosed: in an exception group; the handshake did not come to its end. (Where it is a bad one,
            trio-websocket never returns.)
    """
    gauge = FrameGauge(max_message_bytes)
    frames = FrameStream(stream, gauge)
    websocket: WebSocket | None = None
    try:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(handshake_timeout_s) as handshake:
                request = await wrap_server_stream(
                    nursery,
                    frames,
                    max_message_size=sys.maxsize,  # the gauge says what is too large
                    receive_buffer_size=PIECE,
                )
                connection = await request.accept()
            if handshake.cancelled_caught:
                raise WebSocketClosed("handshake timed out")
            websocket = WebSocket(connection, stream, gauge)
            yield websocket
            nursery.cancel_scope.cancel()
    except* (ConnectionClosed, LocalProtocolError):
        # trio-websocket's reader answers control frames even where our close or the peer's got there first.
        if websocket is None:
            raise WebSocketClosed("handshake broken off") from None
    assert websocket is not None
    violation = websocket.violation
    if violation is not None and not frames.close_sent and not stream.torn:
        await websocket.send_close(violation)
    if stream.torn:
        await stream.abort()
    else:
        await stream.aclose()
