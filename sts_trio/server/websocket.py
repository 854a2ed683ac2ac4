"""A WebSocket on a connection that the door accepted, and the stream under it.

trio-websocket reads, answers control frames and does the handshakes. What it does not do for us is here:

- *Messages are sent in pieces.* It sends a message as one frame, which copies it five times in one step: 5 ms for the
  1.6 MB of a dubbed fragment, in which nothing else runs. So messages leave as fragments of 64 KiB (RFC 6455, 5.4),
  framed by wsproto and written to the shared stream; its own pongs and close frames fall between them, as 5.5 allows.
- *A frame that was cut off ends the connection.* After a cancelled send the peer takes whatever follows for the rest of
  that frame. The stream notices (`torn`), and then no close frame is sent.
- *Closing does not lose what was sent.* See `AcceptedStream.aclose`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, TextMessage
from wsproto.utilities import LocalProtocolError

PIECE: Final = 2**16
"""Characters or bytes of a message per frame, and bytes per read."""

LINGER_S: Final = 1.0
CLOSE_TIMEOUT_S: Final = 2.0


class AcceptedStream(trio.abc.HalfCloseableStream):
    """A connection of which the first bytes, the request's head, were read already: they are read again first.

    Several tasks may send; each `send_all` is whole before the next begins.

    Attributes:
        torn: a send failed or was cancelled, so that the peer may have a part of it.
    """

    def __init__(self, transport: trio.SocketStream, head: bytes) -> None:
        self._transport = transport
        self._head = head
        self._sending = trio.StrictFIFOLock()
        self.torn = False

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket underneath, for those who ask it for addresses."""
        return self._transport.socket

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


class WebSocketClosed(Exception):
    """The WebSocket is closed or broken: nothing comes or goes any more. The message says why, for the log."""


class WebSocket:
    """An open WebSocket, server side. One task receives, one task sends."""

    def __init__(self, connection: WebSocketConnection, stream: AcceptedStream) -> None:
        self._connection = connection
        self._stream = stream
        self._frames = Connection(ConnectionType.SERVER)

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

    async def send(self, message: str | bytes) -> None:
        """Send one message; returns when the kernel has all of it.

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

    def _closed(self) -> WebSocketClosed:
        why = self._connection.closed
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


@asynccontextmanager
async def open_websocket(
    stream: AcceptedStream, *, max_message_bytes: int, handshake_timeout_s: float
) -> AsyncIterator[WebSocket]:
    """Answer a handshake with 101 and serve the WebSocket inside the context; leaving it ends everything.

    Args:
        max_message_bytes: a larger message closes the WebSocket with 1009. Text is counted in characters.

    Raises:
        WebSocketClosed: in an exception group; the handshake did not come to its end. (Where it is a bad one,
            trio-websocket never returns.)
    """
    opened = False
    try:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(handshake_timeout_s) as handshake:
                request = await wrap_server_stream(
                    nursery, stream, max_message_size=max_message_bytes, receive_buffer_size=PIECE
                )
                connection = await request.accept()
            if handshake.cancelled_caught:
                raise WebSocketClosed("handshake timed out")
            opened = True
            yield WebSocket(connection, stream)
            nursery.cancel_scope.cancel()
    except* (ConnectionClosed, LocalProtocolError):
        # trio-websocket's reader answers control frames even where our close or the peer's got there first.
        if not opened:
            raise WebSocketClosed("handshake broken off") from None
    if not stream.torn:
        await stream.aclose()  # trio-websocket leaves it open after 1009
