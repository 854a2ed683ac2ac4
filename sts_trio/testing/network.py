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

SERVER_PORT: Final = 8_000


@frozen
class Quality:
    """How good a line is, the same in both directions.

    Attributes:
        latency_s: from a byte's leaving to its arrival.
        bytes_per_s: what one direction carries.
    """

    latency_s: float = 0.0
    bytes_per_s: float = math.inf


@define(eq=False)
class _Direction:
    """Bytes on their way from one end to the other."""

    quality: Quality
    stalled: bool = False
    broken: bool = False
    ended: bool = False  # nothing more is sent
    reader_gone: bool = False
    unread: int = 0
    _pieces: deque[tuple[float, bytes]] = field(factory=deque)  # (when it arrives, what)
    _free_at: float = 0.0  # when the last piece has left
    _changes: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    def changed(self) -> None:
        self._changes.unpark_all()

    def break_off(self) -> None:
        self.broken = True
        self._pieces.clear()
        self.changed()

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        at = 0
        while True:
            if self.ended:
                raise trio.ClosedResourceError("this end has said that it sends no more")
            if self.broken or (self.reader_gone and not self.stalled):
                raise trio.BrokenResourceError("connection reset")
            room = WINDOW_BYTES - self.unread
            if room > 0:
                piece = bytes(data[at : at + room])
                at += len(piece)
                self._add(piece)
            if at >= len(data):
                return
            await self._changes.park()

    def _add(self, piece: bytes) -> None:
        self._free_at = max(self._free_at, trio.current_time()) + len(piece) / self.quality.bytes_per_s
        self._pieces.append((self._free_at + self.quality.latency_s, piece))
        self.unread += len(piece)
        self.changed()

    async def wait_for_room(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.unread >= WINDOW_BYTES and not (self.broken or self.ended or self.reader_gone):
            await self._changes.park()

    async def receive(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            if self.reader_gone:
                raise trio.ClosedResourceError("this end is closed")
            if self.broken:
                raise trio.BrokenResourceError("connection reset")
            arrives_at = self._pieces[0][0] if self._pieces else math.inf
            if not self.stalled:
                if arrives_at <= trio.current_time():
                    return self._take(max_bytes)
                if self.ended and not self._pieces:
                    return b""
            with trio.CancelScope(deadline=math.inf if self.stalled else arrives_at):
                await self._changes.park()

    def _take(self, max_bytes: int) -> bytes:
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
    """What is asked of a connection's socket: its addresses."""

    host: str
    port: int
    family: socket.AddressFamily = socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        return (self.host, self.port)

    def getsockname(self) -> tuple[str, int]:
        return ("192.0.2.1", SERVER_PORT)


class End(trio.abc.HalfCloseableStream):
    """One end of a line."""

    def __init__(self, outgoing: _Direction, incoming: _Direction, peer: _Socket) -> None:
        self.socket = peer
        self._outgoing = outgoing
        self._incoming = incoming
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check_open()
        await self._outgoing.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        self._check_open()
        await self._outgoing.wait_for_room()

    async def send_eof(self) -> None:
        self._check_open()
        await trio.lowlevel.checkpoint()
        self._outgoing.ended = True
        self._outgoing.changed()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._check_open()
        return await self._incoming.receive(max_bytes or WINDOW_BYTES)

    async def aclose(self) -> None:
        """Say that nothing more comes, and take nothing more: the other end's sends fail from now on."""
        if not self._closed:
            self._closed = True
            self._outgoing.ended = self._incoming.reader_gone = True
            self._outgoing.changed()
            self._incoming.changed()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this end is closed")


class Network(trio.abc.Listener[trio.SocketStream]):
    """What a server listens on (`Server.listen`) and workers connect to."""

    def __init__(self) -> None:
        self._arriving, self._accepted = trio.open_memory_channel[End](BACKLOG)
        self._ports = itertools.count(50_000)
        self._listening = False
        self.socket = _Socket("192.0.2.1", SERVER_PORT)

    async def listen(self, port: int, host: str) -> list[trio.SocketListener]:
        await trio.lowlevel.checkpoint()
        self._listening = True
        return [cast(trio.SocketListener, self)]

    async def accept(self) -> trio.SocketStream:
        return cast(trio.SocketStream, await self._accepted.receive())

    async def aclose(self) -> None:
        self._listening = False
        await trio.lowlevel.checkpoint()

    def connect(self, quality: Quality = Quality(), host: str = "192.0.2.7") -> tuple[Any, Line]:
        """A new connection: the client's end, and the line itself.

        Raises:
            ConnectionRefusedError: nobody listens, or far too many connect at once.
        """
        to_server, to_client = _Direction(quality), _Direction(quality)
        try:
            if not self._listening:
                raise trio.WouldBlock
            self._arriving.send_nowait(End(to_client, to_server, _Socket(host, next(self._ports))))
        except trio.WouldBlock:
            raise ConnectionRefusedError("nobody listens") from None
        return End(to_server, to_client, self.socket), Line(to_server, to_client)
