"""A TCP proxy that does to connections what networks do to them, each connection's fate from a seed.

    fates = seeded_fates(7, (Fate(), Fate(Ending.RESET, after_bytes=50_000), Fate(Ending.STALL, stall_s=math.inf)))
    async with open_proxy(server_port, fates) as proxy:
        ...  # connect to proxy.port

Bytes go through as they come until a connection has carried `after_bytes`, both ways together; then it ends as its fate
says. A cut falls on exactly that byte, so as a rule into the middle of a frame.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from enum import Enum, auto
from random import Random
from typing import Final

import trio
from attrs import define, evolve, field, frozen

PIECE_BYTES: Final = 65_536

_LINGER_0: Final = struct.pack("ii", 1, 0)  # with it, close() sends RST and forgets what is unsent (socket(7))


class Ending(Enum):
    """What becomes of a connection once it has carried its bytes."""

    NONE = auto()  # it goes on
    RESET = auto()  # RST to both sides
    CLOSE = auto()  # FIN to both sides
    STALL = auto()  # nothing more goes through, either way
    STALL_UP = auto()  # nothing more from the client to the server
    STALL_DOWN = auto()  # nothing more from the server to the client


@frozen
class Fate:
    """What a connection meets.

    Attributes:
        after_bytes: carried before it ends; 0: nothing ever goes through.
        stall_s: after a stall, what has waited goes through and the connection goes on. Infinite: half-open, neither
            side hears anything more, not even that the other one has closed.
        delay_s: that each piece comes later.
        bytes_per_s: of each direction.
    """

    ending: Ending = Ending.NONE
    after_bytes: int = 0
    stall_s: float = math.inf
    delay_s: float = 0.0
    bytes_per_s: float = math.inf


def seeded_fates(seed: int, choices: Sequence[Fate]) -> Callable[[], Fate]:
    """One of `choices` for each connection, with up to twice its `after_bytes`."""
    random = Random(seed)

    def draw() -> Fate:
        fate = random.choice(choices)
        return evolve(fate, after_bytes=random.randint(0, 2 * fate.after_bytes))

    return draw


@define(eq=False)
class Proxy:
    """Between clients and one server, both on this machine.

    Attributes:
        port: where clients connect.
        next_fate: asked for each connection.
        accepted: connections so far.
        ended: of these, by what ended them, one of the sides (NONE, RESET) or their fate.
    """

    port: int
    next_fate: Callable[[], Fate]
    accepted: int = field(default=0, init=False)
    ended: dict[Ending, int] = field(factory=lambda: dict.fromkeys(Ending, 0), init=False)
    _server_port: int = field(kw_only=True)
    _open: set[trio.CancelScope] = field(factory=set, init=False)

    def reset_all(self) -> None:
        """Cut every connection there is now."""
        for scope in self._open:
            scope.cancel()

    async def _carry(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        fate = self.next_fate()
        with trio.CancelScope() as scope:
            self._open.add(scope)
            server: trio.SocketStream | None = None
            link = _Link(fate)
            try:
                server = await trio.open_tcp_stream("127.0.0.1", self._server_port)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(link.pump, client, server, Ending.STALL_UP, nursery.cancel_scope)
                        nursery.start_soon(link.pump, server, client, Ending.STALL_DOWN, nursery.cancel_scope)
                finally:
                    self.ended[link.ended_by] += 1
                if link.ended_by is not Ending.RESET:
                    await server.aclose()
                    await client.aclose()
            except OSError:
                pass  # the server is not there: so the client is not served
            finally:
                self._open.discard(scope)
                for stream in filter(None, (client, server)):
                    _reset(stream)


@define(eq=False)
class _Link:
    """One connection: what it has carried, and how it ended."""

    fate: Fate
    ended_by: Ending = field(default=Ending.NONE, init=False)
    _carried: int = field(default=0, init=False)

    async def pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, stall: Ending, both: trio.CancelScope
    ) -> None:
        """Carry bytes one way until the connection ends; then end the other way, too."""
        fate = self.fate
        cuts = fate.ending in (Ending.RESET, Ending.CLOSE)
        stalls = fate.ending in (Ending.STALL, stall)
        try:
            while data := await source.receive_some(PIECE_BYTES):
                room = max(0, fate.after_bytes - self._carried) if cuts or stalls else math.inf
                if len(data) > room:
                    await self._send(sink, data[: int(room)])
                    self.ended_by = fate.ending
                    if cuts:
                        break
                    await trio.sleep(fate.stall_s)
                    data, stalls, self.ended_by = data[int(room) :], False, Ending.NONE
                await self._send(sink, data)
        except trio.BrokenResourceError:
            self.ended_by = Ending.RESET  # by one side, and so now for the other one
        both.cancel()

    async def _send(self, sink: trio.SocketStream, data: bytes | bytearray) -> None:
        self._carried += len(data)
        if (pause_s := self.fate.delay_s + len(data) / self.fate.bytes_per_s) > 0:
            await trio.sleep(pause_s)
        await sink.send_all(data)


def _reset(stream: trio.SocketStream) -> None:
    """Close at once, with RST; no effect on what is closed."""
    if stream.socket.fileno() >= 0:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        stream.socket.close()


@asynccontextmanager
async def open_proxy(server_port: int, next_fate: Callable[[], Fate] = Fate) -> AsyncIterator[Proxy]:
    """A proxy to a server on this machine; leaving the context resets all connections."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = Proxy(int(listener.socket.getsockname()[1]), next_fate, server_port=server_port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy._carry, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
