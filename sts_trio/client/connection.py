"""One Socket.IO connection to a dubbing server: the `protocol` package's client side over a trio-websocket.

One nursery owns the connection's three tasks. The *reader* turns frames into events and waits whenever nobody takes
them. The *writer* is the only task that sends: a send that is cancelled halfway would leave a broken frame behind. The
*timer* gives up when the server's pings stop.

Nothing is buffered here: whoever calls `send` waits for the writer, and the reader waits for whoever calls `receive`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import trio
import trio_websocket
import wsproto
from attrs import frozen

from protocol.dubbing import SERVER_EVENTS, ServerEvent, WorkerEvent, parse, payload
from protocol.engineio import ClientConnection, Closed, CloseReason, MessageReceived, Opened
from protocol.errors import ErrorCode, PayloadError
from protocol.socketio import (
    ClientSocket,
    Connected,
    ConnectRefused,
    Disconnected,
    EventReceived,
    Message,
    SocketError,
)
from protocol.socketio.client import Event as SocketEvent

from .newer import in_known_words

CONNECT_TIMEOUT_S: Final = 20.0
"""For all that comes before the first event: TCP, TLS, WebSocket, Engine.IO and Socket.IO."""

_CLOSE_TIMEOUT_S: Final = 2.0
_MAX_MESSAGE_CHARACTERS: Final = 64 * 2**20  # over what a server may send by default, 50 MiB
_LONGEST_PAGE: Final = 4_096  # bytes that are looked at
_LONGEST_LINE: Final = 100  # characters that are shown
_RECEIVE_BYTES: Final = 65_536  # trio-websocket's default of 4 KiB costs three times the CPU

OpenStream: TypeAlias = Callable[[], Awaitable[trio.abc.Stream]]


class DubbingError(Exception):
    """A programme cannot be dubbed, or not any further.

    Attributes:
        retryable: whether a new connection can help.
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class ServerUnreachable(DubbingError):
    """There is no dubbing server at the URL, or it cannot be talked to; the message names the URL.

    Attributes:
        nobody_listens: the machine is there, and has no server of any kind at this port.
    """

    def __init__(self, url: str, reason: str, *, nobody_listens: bool = False) -> None:
        super().__init__(f"cannot connect to {url}: {reason}", retryable=True)
        self.nobody_listens = nobody_listens


class ConnectionLost(DubbingError):
    """The connection ended in the middle; the message says why."""

    def __init__(self, url: str, reason: str, *, retryable: bool = True) -> None:
        super().__init__(f"lost the connection to {url}: {reason}", retryable=retryable)


class DubbingRefused(DubbingError):
    """The server does not want this stream.

    Attributes:
        code: why, in the contract's words; a server may use codes this client does not know.
        retryable: by default what the contract says of the code.
    """

    def __init__(self, code: str, message: str, *, retryable: bool | None = None) -> None:
        if retryable is None:
            retryable = code in tuple(ErrorCode) and ErrorCode(code).retryable
        super().__init__(f"{code}: {message}", retryable=retryable)
        self.code = code


def first_failure(group: BaseExceptionGroup[DubbingError]) -> DubbingError:
    """Of what several tasks saw of the same end, the one that says most: a refusal."""
    errors = [first_failure(error) if isinstance(error, BaseExceptionGroup) else error for error in group.exceptions]
    return next((error for error in errors if isinstance(error, DubbingRefused)), errors[0])


@frozen
class Address:
    """Where a server listens.

    Attributes:
        resource: the path and query of the WebSocket's request.
    """

    url: str
    host: str
    port: int
    tls: bool
    resource: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read ``http://host:port``; https, ws and wss too, and a path before ``/socket.io/`` where a proxy adds one.

        Raises:
            ValueError: no such URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
            raise ValueError(f"not a server's URL, such as http://localhost:8000: {url}")
        tls = parts.scheme in ("https", "wss")
        port = parts.port or (443 if tls else 80)
        return cls(url, parts.hostname, port, tls, f"{parts.path.rstrip('/')}/socket.io/?EIO=4&transport=websocket")

    @property
    def authority(self) -> str:
        """Host and port as a request names them (RFC 9110, 7.2): IPv6 addresses in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def open_stream(self) -> trio.abc.Stream:
        """A TCP connection, encrypted where the URL asks for it.

        Raises:
            OSError: nobody answers, or not with a certificate that can be trusted.
        """
        if not self.tls:
            return await trio.open_tcp_stream(self.host, self.port)
        context = ssl.create_default_context()
        stream = await trio.open_ssl_over_tcp_stream(self.host, self.port, ssl_context=context, https_compatible=True)
        try:
            await stream.do_handshake()
        except BaseException as error:  # a cancellation, too, must not leave the socket behind
            await trio.aclose_forcefully(stream)
            if isinstance(error, trio.BrokenResourceError):
                raise OSError(str(error.__cause__ or error)) from None
            raise
        return stream


class Connection:
    """A joined connection, for as long as its `run` runs.

    Args:
        token: what a server with `STS_API_KEY` wants to see.
        headers: of the WebSocket's request.
        open_stream: what carries the WebSocket; by default a connection to `address`.
    """

    def __init__(
        self,
        address: Address,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        open_stream: OpenStream | None = None,
    ) -> None:
        self._address = address
        self._auth = None if token is None else {"token": token}
        self._headers = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        self._open_stream = open_stream or address.open_stream
        self._engine = ClientConnection(trio.current_time(), CONNECT_TIMEOUT_S)
        self._socket = ClientSocket()
        self._sending = trio.StrictFIFOLock()
        self._changes = trio.lowlevel.ParkingLot()  # whoever waits for something to send, or for it to be sent
        self._timer = trio.CancelScope()
        self._from_reader, self._incoming = trio.open_memory_channel[ServerEvent](0)
        self._tasks = trio.CancelScope()
        self._lost: ConnectionLost | None = None
        self._ended = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, report as started once joined, and carry the connection until it ends or `close` is called.

        What ends it later is not raised here but where it matters, in `send` and `receive`.

        Raises:
            ServerUnreachable: it could not be connected.
            DubbingRefused: the server does not let us in.
        """
        started = False
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S) as patience:
                stream = await self._open_stream()
                try:
                    async with trio.open_nursery() as websocket_tasks:
                        websocket = await trio_websocket.wrap_client_stream(
                            websocket_tasks,
                            stream,  # type: ignore[arg-type] # it asks for a socket but any stream will do
                            self._address.authority,
                            self._address.resource,
                            extra_headers=self._headers,
                            max_message_size=_MAX_MESSAGE_CHARACTERS,
                            receive_buffer_size=_RECEIVE_BYTES,
                        )
                        await self._join(websocket)
                        patience.deadline = float("inf")
                        started = True
                        task_status.started()
                        await self._carry(websocket)
                        with trio.move_on_after(_CLOSE_TIMEOUT_S):
                            await websocket.aclose()
                        websocket_tasks.cancel_scope.cancel()
                finally:
                    await trio.aclose_forcefully(stream)
        except trio.TooSlowError:
            raise ServerUnreachable(self._address.url, f"no answer within {CONNECT_TIMEOUT_S:.0f} s") from None
        except OSError as error:
            cause = _cause(error)
            refused = isinstance(cause, ConnectionRefusedError)
            raise ServerUnreachable(self._address.url, _reason(cause), nobody_listens=refused) from None
        except BaseExceptionGroup as group:
            if started:
                _, others = group.split(_WEBSOCKET_ERRORS)
                if others is not None:
                    raise others from None
                self._lose("it was closed")
            else:
                self._raise_refusal(group)
        finally:
            self._lose("it was closed")
            self._from_reader.close()
            self._ended.set()

    def _raise_refusal(self, group: BaseExceptionGroup[BaseException]) -> None:
        """What went wrong before the connection stood, as one exception."""
        for error in group.exceptions:
            if isinstance(error, trio_websocket.ConnectionRejected):
                said = _first_line(error.body or b"")
                raise ServerUnreachable(self._address.url, f"HTTP {error.status_code} {said}".strip()) from None
            if isinstance(error, DubbingError):
                raise error from None
            if isinstance(error, _WEBSOCKET_ERRORS):
                raise ServerUnreachable(self._address.url, "the server closed the connection") from None
        raise group

    async def send(self, event: WorkerEvent) -> None:
        """Send an event; returns once its first byte is about to leave.

        Raises:
            ConnectionLost: it cannot be sent any more.
        """
        async with self._sending:
            await self._all_sent()
            if self._lost is not None:
                raise self._lost
            self._queue(self._socket.emit("/", event.event, payload(event)))

    async def receive(self) -> ServerEvent:
        """The server's next event.

        Raises:
            ConnectionLost: there will be none.
        """
        try:
            return await self._incoming.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self._why() from None

    async def close(self) -> None:
        """Leave politely, in a bounded time; `run` has returned when this does."""
        with trio.move_on_after(_CLOSE_TIMEOUT_S):
            async with self._sending:
                await self._all_sent()
                if self._lost is None and self._socket.is_joined("/"):
                    self._queue(self._socket.disconnect("/"))
                    await self._all_sent()
        self._lose("it was closed")
        await self._ended.wait()

    # ------------------------------------------------------------------------------------------ tasks

    async def _join(self, websocket: trio_websocket.WebSocketConnection) -> None:
        """Engine.IO's open packet, then our CONNECT and its answer."""
        while True:
            for event in await self._receive(websocket):
                match event:
                    case Opened():
                        self._queue(self._socket.connect("/", self._auth))
                    case Connected():
                        return
                    case ConnectRefused():
                        data = event.data if isinstance(event.data, dict) else {}
                        raise DubbingRefused(str(data.get("code", "refused")), event.message)
                    case Closed():
                        raise ServerUnreachable(self._address.url, event.detail or event.reason)
            await self._send_queued(websocket)

    async def _carry(self, websocket: trio_websocket.WebSocketConnection) -> None:
        with self._tasks:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, websocket)
                nursery.start_soon(self._write, websocket)
                nursery.start_soon(self._keep_time)

    async def _read(self, websocket: trio_websocket.WebSocketConnection) -> None:
        try:
            while True:
                for event in await self._receive(websocket):
                    match event:
                        case EventReceived(name=str(name), args=args) if name in SERVER_EVENTS:
                            if (known := in_known_words(name, args)) is not None:
                                await self._from_reader.send(parse(SERVER_EVENTS[name], known))
                        case Closed():
                            return self._lose(event.detail or event.reason)
                        case Disconnected():
                            return self._lose("the server ended it")
        except trio_websocket.ConnectionClosed:
            self._lose(CloseReason.TRANSPORT_CLOSE)
        except PayloadError as error:
            self._lose(f"the server breaks the contract: {error}", retryable=False)

    async def _receive(self, websocket: trio_websocket.WebSocketConnection) -> list[Opened | Closed | SocketEvent]:
        """What the next frame means; a broken rule is a `Closed`."""
        events: list[Opened | Closed | SocketEvent] = []
        for event in self._engine.receive(await websocket.get_message(), trio.current_time()):
            if isinstance(event, MessageReceived):
                try:
                    events += self._socket.receive(event.data)
                except SocketError as error:
                    events.append(Closed(CloseReason.PARSE_ERROR, str(error)))
            else:
                events.append(event)
        self._changed()  # a pong may be to be sent
        return events

    async def _write(self, websocket: trio_websocket.WebSocketConnection) -> None:
        try:
            while True:
                await self._send_queued(websocket)
                await self._changes.park()
        except trio_websocket.ConnectionClosed:
            await self._write_nowhere()

    async def _write_nowhere(self) -> None:
        """The connection is closed, and what has come before may not be read yet: its end is the reader's to tell."""
        while True:
            self._engine.frame_sent(trio.current_time())
            self._changes.unpark_all()
            while self._engine.next_frame() is None:
                await self._changes.park()

    async def _send_queued(self, websocket: trio_websocket.WebSocketConnection) -> None:
        while (frame := self._engine.next_frame()) is not None:
            await websocket.send_message(frame)
            self._engine.frame_sent(trio.current_time())
            self._changes.unpark_all()

    async def _keep_time(self) -> None:
        while self._engine.closed is None:
            with trio.CancelScope(deadline=self._engine.deadline) as self._timer:
                await trio.sleep_forever()
            self._engine.tick(trio.current_time())
        self._lose(self._engine.closed.reason)

    def _queue(self, messages: list[Message]) -> None:
        for message in messages:
            self._engine.send(message)
        self._changed()

    def _changed(self) -> None:
        self._timer.deadline = self._engine.deadline
        self._changes.unpark_all()

    async def _all_sent(self) -> None:
        """Wait until nothing waits to be sent, or nothing will be sent any more."""
        while self._lost is None and self._engine.has_unsent:
            await self._changes.park()

    # ------------------------------------------------------------------------------------------ its end

    def _lose(self, reason: str, *, retryable: bool = True) -> None:
        """End the connection: its tasks stop, then `run` tells whoever waits in `send` or `receive`.

        The first reason stands.
        """
        if self._lost is None:
            self._lost = ConnectionLost(self._address.url, reason, retryable=retryable)
            self._engine.close(CloseReason.TRANSPORT_CLOSE)
            self._changed()
            self._tasks.cancel()

    def _why(self) -> ConnectionLost:
        assert self._lost is not None, "channels are closed after _lose only"
        return self._lost


_WEBSOCKET_ERRORS: Final = (
    trio_websocket.ConnectionClosed,
    trio_websocket.HandshakeError,
    wsproto.utilities.ProtocolError,
)


def _cause(error: OSError) -> BaseException:
    """trio reports every address it tried; what people need is why."""
    return error.__cause__.exceptions[-1] if isinstance(error.__cause__, BaseExceptionGroup) else error


def _reason(cause: BaseException) -> str:
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
        return os.strerror(cause.errno)
    return str(getattr(cause, "strerror", None) or cause)  # of an unknown host, for one


def _first_line(body: bytes) -> str:
    """Of what a server said that may be none of ours: it may have sent a whole page, or what a terminal would obey."""
    lines = (line.strip() for line in body[:_LONGEST_PAGE].decode(errors="replace").splitlines())
    line = "".join(character for character in next(filter(None, lines), "") if character.isprintable())
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 1]}…"
