"""A network in memory with the faults of a real one, on virtual time.

A `Network` is what a server listens on and what workers connect to. Each connection is a `Line` of two directions.
Either takes time (`latency_s`, `bytes_per_s`), holds a bounded number of bytes like TCP's windows do, and can go wrong
in the ways connections do:

* `Line.cut`: both ends are told at once (a reset); what was on the way is lost, also the second half of a message.
* `Line.stall`: nothing passes, nobody is told; until `Line.go_on`, or for ever: a connection that is half open.
* a `send_all` that waits: the other end reads slowly or not at all.

TCP's promises stand: what arrives is whole, in order, and once; a graceful close arrives after all that was sent.
"""

from __future__ import annotations

import errno
import itertools
import math
import socket
from collections import deque
from typing import Any, Final, cast

import trio
from attrs import define, field, frozen

WINDOW_BYTES: Final = 2**18
"""What one direction holds: sent, and not read yet."""

BACKLOG: Final = 128
"""Connections that were made and not accepted yet."""

SERVER_ADDRESS: Final = ("192.0.2.1", 8_000)
FIRST_CLIENT_PORT: Final = 50_000


@frozen
class Quality:
    """How good a line is, the same in both directions.

    Attributes:
        latency_s: from a byte's leaving to its arrival.
        bytes_per_s: what one direction carries; what is sent at once, as far as it finds room, arrives at once, with
            its last byte.
    """

    latency_s: float = 0.0
    bytes_per_s: float = math.inf


@define
class _ForOneTask:
    """What two tasks may not do at once, as with a socket: their bytes would be mixed."""

    doing: str
    _is_taken: bool = False

    def __enter__(self) -> None:
        if self._is_taken:
            raise trio.BusyResourceError(f"another task is {self.doing} already")
        self._is_taken = True

    def __exit__(self, *_: object) -> None:
        self._is_taken = False


@define(eq=False)
class _Direction:
    """Bytes on their way from one end to the other."""

    quality: Quality
    stalled: bool = False
    broken: bool = False
    reader_gone: bool = False
    unread: int = 0
    _pieces: deque[tuple[float, bytes]] = field(factory=deque)  # (when it arrives, what)
    _free_at: float = 0.0  # when the last piece has left
    _ends_at: float = math.inf  # when the word arrives that nothing more comes
    _sender: _ForOneTask = field(factory=lambda: _ForOneTask("sending"))
    _receiver: _ForOneTask = field(factory=lambda: _ForOneTask("receiving"))
    _changes: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    def changed(self) -> None:
        self._changes.unpark_all()

    def break_off(self) -> None:
        self.broken = True
        self._pieces.clear()
        self.changed()

    def end(self) -> None:
        """Nothing more is sent."""
        if not self._has_ended:
            self._ends_at = self._leaves_at + self.quality.latency_s
            self.changed()

    async def send_end(self) -> None:
        with self._sender:
            await trio.lowlevel.checkpoint()
            self._check_unbroken()
            self.end()

    async def send(self, data: bytes) -> None:
        with self._sender:
            await trio.lowlevel.checkpoint()
            at = 0
            while True:
                self._check_not_ended()
                self._check_unbroken()
                if piece := data[at : at + WINDOW_BYTES - self.unread]:
                    at += len(piece)
                    self._add(piece)
                if at >= len(data):
                    return
                await self._changes.park()

    async def wait_for_room(self) -> None:
        with self._sender:
            await trio.lowlevel.checkpoint()
            while True:
                self._check_not_ended()
                self._check_unbroken()
                if self.unread < WINDOW_BYTES:
                    return
                await self._changes.park()

    @property
    def _has_ended(self) -> bool:
        return self._ends_at < math.inf

    @property
    def _leaves_at(self) -> float:
        """When the next byte can."""
        return max(self._free_at, trio.current_time())

    def _check_not_ended(self) -> None:
        if self._has_ended:
            raise trio.ClosedResourceError("this end has said that it sends no more")

    def _check_unbroken(self) -> None:
        if self.broken or (self.reader_gone and not self.stalled):
            raise trio.BrokenResourceError("connection reset")

    def _add(self, piece: bytes) -> None:
        self._free_at = self._leaves_at + len(piece) / self.quality.bytes_per_s
        self._pieces.append((self._free_at + self.quality.latency_s, piece))
        self.unread += len(piece)
        self.changed()

    async def receive(self, max_bytes: int) -> bytes:
        with self._receiver:
            await trio.lowlevel.checkpoint()
            while True:
                if self.reader_gone:
                    raise trio.ClosedResourceError("this end is closed")
                if self.broken:
                    raise trio.BrokenResourceError("connection reset")
                arrives_at = math.inf if self.stalled else self._pieces[0][0] if self._pieces else self._ends_at
                if arrives_at <= trio.current_time():
                    return self._take(max_bytes)
                with trio.CancelScope(deadline=arrives_at):
                    await self._changes.park()

    def _take(self, max_bytes: int) -> bytes:
        """What has arrived; nothing where all has, and nothing more comes."""
        taken = bytearray()
        while self._pieces and self._pieces[0][0] <= trio.current_time() and len(taken) < max_bytes:
            arrived_at, piece = self._pieces.popleft()
            room = max_bytes - len(taken)
            if len(piece) > room:
                self._pieces.appendleft((arrived_at, piece[room:]))
            taken += piece[:room]
        self.unread -= len(taken)
        self.changed()
        return bytes(taken)


@define(eq=False)
class Line:
    """One connection, as the one who breaks it sees it."""

    _to_server: _Direction
    _to_client: _Direction

    @property
    def directions(self) -> tuple[_Direction, _Direction]:
        return self._to_server, self._to_client

    def cut(self) -> None:
        """Reset it: both ends are told, and what was on its way is lost."""
        for direction in self.directions:
            direction.break_off()

    def stall(self) -> None:
        """Let nothing pass from now on, and tell nobody."""
        self._set_stalled(True)

    def go_on(self) -> None:
        """End a stall: what was sent meanwhile arrives."""
        self._set_stalled(False)

    def _set_stalled(self, stalled: bool) -> None:
        for direction in self.directions:
            direction.stalled = stalled
            direction.changed()


@frozen
class _Socket:
    """What is asked of a connection's socket: its addresses, each a host and a port."""

    name: tuple[str, int]
    peer: tuple[str, int]
    family: socket.AddressFamily = socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        return self.peer

    def getsockname(self) -> tuple[str, int]:
        return self.name


class End(trio.abc.HalfCloseableStream):
    """One end of a line."""

    def __init__(self, outgoing: _Direction, incoming: _Direction, socket: _Socket) -> None:
        self.socket = socket
        self._outgoing = outgoing
        self._incoming = incoming

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._outgoing.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await self._outgoing.wait_for_room()

    async def send_eof(self) -> None:
        """Say that nothing more comes; twice is as good as once."""
        if self._incoming.reader_gone:
            raise trio.ClosedResourceError("this end is closed")
        await self._outgoing.send_end()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is None:
            max_bytes = WINDOW_BYTES
        if not isinstance(max_bytes, int):
            raise TypeError("max_bytes must be an integer")
        if max_bytes < 1:
            raise ValueError("max_bytes must be positive")
        return await self._incoming.receive(max_bytes)

    async def aclose(self) -> None:
        """Say that nothing more comes, and take nothing more: the other end's sends fail from now on."""
        self._outgoing.end()
        self._incoming.reader_gone = True
        self._incoming.changed()
        await trio.lowlevel.checkpoint()


class Network(trio.abc.Listener[trio.SocketStream]):
    """What a server listens on (`Server.listen`), on one port, and workers connect to."""

    def __init__(self) -> None:
        self._ports = itertools.count(FIRST_CLIENT_PORT)
        self._arriving, self._accepted = trio.open_memory_channel[tuple[End, Line]](BACKLOG)
        self._accepted.close()  # nobody listens yet
        self.socket = _Socket(SERVER_ADDRESS, SERVER_ADDRESS)

    async def listen(self, port: int, host: str) -> list[trio.SocketListener]:
        """Listen, whatever the port and the host.

        Raises:
            OSError: somebody listens already.
        """
        await trio.lowlevel.checkpoint()
        if self._is_open:
            raise OSError(errno.EADDRINUSE, "a network has one port, and a server listens on it")
        self._arriving, self._accepted = trio.open_memory_channel[tuple[End, Line]](BACKLOG)
        return [cast(trio.SocketListener, self)]

    async def accept(self) -> trio.SocketStream:
        end, _ = await self._accepted.receive()
        return cast(trio.SocketStream, end)

    async def aclose(self) -> None:
        """Listen no more; connections that were not accepted are reset."""
        while self._is_open and self._accepted.statistics().current_buffer_used:
            self._accepted.receive_nowait()[1].cut()
        self._accepted.close()
        await trio.lowlevel.checkpoint()

    def connect(self, quality: Quality = Quality(), host: str = "192.0.2.7") -> tuple[Any, Line]:
        """A new connection: the client's end, and the line itself.

        Raises:
            ConnectionRefusedError: nobody listens, or far too many connect at once.
        """
        to_server, to_client = _Direction(quality), _Direction(quality)
        line, client = Line(to_server, to_client), (host, next(self._ports))
        try:
            self._arriving.send_nowait((End(to_client, to_server, _Socket(SERVER_ADDRESS, client)), line))
        except trio.BrokenResourceError:
            raise ConnectionRefusedError("nobody listens") from None
        except trio.WouldBlock:
            raise ConnectionRefusedError(f"{BACKLOG} connections wait to be accepted") from None
        return End(to_server, to_client, _Socket(client, SERVER_ADDRESS)), line

    @property
    def _is_open(self) -> bool:
        return self._arriving.statistics().open_receive_channels > 0
