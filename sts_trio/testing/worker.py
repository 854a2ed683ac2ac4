"""A worker that says what a test tells it to, right or wrong, over a WebSocket on any stream.

It speaks Engine.IO and Socket.IO as a client library does and knows nothing of dubbing: payloads are plain objects, as
they are on the wire. What a *well-behaved* worker is, is `sts_trio.client`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

import trio
from attrs import define, field
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, wrap_client_stream

from protocol.engineio import ClientConnection, Closed, MessageReceived, Opened
from protocol.socketio import ClientSocket, Connected, ConnectRefused, Disconnected, EventReceived, SocketError

RESOURCE: Final = "/socket.io/?EIO=4&transport=websocket"
HANDSHAKE_TIMEOUT_S: Final = 20.0
MAX_MESSAGE_CHARACTERS: Final = 64 * 2**20

Hear: TypeAlias = Callable[[str, dict[str, Any]], None]


class NotLetIn(Exception):
    """The connection ended, or was refused, before its namespace was joined."""


@define(eq=False)
class WireWorker:
    """One connection of a worker. `run` it once; it is joined when that has started.

    Args:
        hear: called with each event and its payload, as it comes.
        recover: the connection before, to come back to what it had (Socket.IO's connection state recovery).
        on_recovery: called where that was granted, before all that was missed is heard.

    Attributes:
        socket: the Socket.IO end.
        lost: the connection has ended, whoever ended it.
        recovered: that of `recover` goes on.
    """

    hear: Hear
    auth: Mapping[str, Any] | None = None
    recover: WireWorker | None = None
    on_recovery: Callable[[], None] = lambda: None
    socket: ClientSocket = field(init=False)
    lost: trio.Event = field(factory=trio.Event, init=False)
    recovered: bool = field(default=False, init=False)
    _engine: ClientConnection = field(init=False)
    _outgoing: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)
    _reading: trio.Event = field(factory=trio.Event, init=False)
    _missed: list[tuple[str, dict[str, Any]]] = field(factory=list, init=False)
    _joined: bool = field(default=False, init=False)
    _why_not: str = field(default="the connection ended", init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    def __attrs_post_init__(self) -> None:
        self.socket = ClientSocket(recovery=self.recover.socket.recovery if self.recover else None)
        self._engine = ClientConnection(trio.current_time(), HANDSHAKE_TIMEOUT_S)
        self._reading.set()

    async def run(
        self, stream: trio.abc.Stream, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Connect over `stream`, report as started when joined, and carry the connection to its end.

        Raises:
            NotLetIn
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                        websocket = await wrap_client_stream(
                            nursery,
                            stream,  # type: ignore[arg-type] # any stream will do
                            "server",
                            RESOURCE,
                            max_message_size=MAX_MESSAGE_CHARACTERS,
                            receive_buffer_size=2**16,
                        )
                        nursery.start_soon(self._write, websocket)
                        while not self._joined:
                            await self._take(websocket)
                    task_status.started()
                    while True:
                        await self._reading.wait()
                        await self._take(websocket)
        except* (ConnectionClosed, HandshakeError, trio.TooSlowError, trio.BrokenResourceError):
            pass  # it is lost
        finally:
            self.lost.set()
            await trio.aclose_forcefully(stream)
        if not self._joined:
            raise NotLetIn(self._why_not)

    def emit(self, event: str, payload: object) -> bool:
        """Queue an event; False where the connection is lost, or its namespace not joined yet."""
        if self.lost.is_set() or not self.socket.is_joined("/"):
            return False
        for message in self.socket.emit("/", event, payload):
            self._engine.send(message)
        self._outgoing.unpark_all()
        return True

    def send_garbage(self) -> None:
        """Send what is no Socket.IO packet."""
        self._engine.send("no packet begins like this")
        self._outgoing.unpark_all()

    def leave(self) -> None:
        """Close politely: DISCONNECT, when all that is queued was sent."""
        if not self.lost.is_set() and self.socket.is_joined("/"):
            for message in self.socket.disconnect("/"):
                self._engine.send(message)
            self._outgoing.unpark_all()

    def vanish(self) -> None:
        """End at once, as a process does that is killed."""
        self._scope.cancel()

    def stop_reading(self) -> None:
        """Take nothing more, beside the message that is waited for already: the network fills up."""
        self._reading = trio.Event()

    def go_on_reading(self) -> None:
        self._reading.set()

    async def _take(self, websocket: WebSocketConnection) -> None:
        frame = await websocket.get_message()
        for packet in self._engine.receive(frame, trio.current_time()):
            match packet:
                case Opened():
                    for message in self.socket.connect("/", self.auth):
                        self._engine.send(message)
                case MessageReceived(data):
                    self._take_message(data)
                case Closed():
                    self._scope.cancel()
        self._outgoing.unpark_all()  # a pong, for one

    def _take_message(self, data: str | bytes) -> None:
        try:
            events = self.socket.receive(data)
        except SocketError as error:
            raise AssertionError(f"the server breaks the protocol: {error}") from error
        for event in events:
            match event:
                case Connected(recovered=recovered):
                    self._joined, self.recovered = True, recovered
                    if recovered:
                        self.on_recovery()
                    for missed in self._missed:
                        self.hear(*missed)
                case ConnectRefused(message=message):
                    self._why_not = message
                    self._scope.cancel()
                case EventReceived(name=str(name), args=args):
                    if self._joined:
                        self.hear(name, args[0])
                    else:  # it comes before the word that it does
                        self._missed.append((name, args[0]))
                case Disconnected():
                    self._scope.cancel()

    async def _write(self, websocket: WebSocketConnection) -> None:
        with suppress(ConnectionClosed):  # what has come before that is still to be read
            while True:
                while (frame := self._engine.next_frame()) is not None:
                    await websocket.send_message(frame)
                    self._engine.frame_sent(trio.current_time())
                await self._outgoing.park()
