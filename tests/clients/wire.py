"""The wire between a client and its server, for what happens to it from outside."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal
from urllib.parse import urlsplit

from attrs import define, field

CHUNK_BYTES: Final = 65_536
REQUEST: Final = re.compile(rb"(GET|POST) ")
POLL: Final = re.compile(rb"GET .*&sid=")


@define(eq=False)
class _Connection:
    """A client's, and the one to the server that it goes on in."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    websockets: bool
    request: bytes = b""
    waiting: bool = False
    silent: bool = False

    async def carry(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        try:
            while (data := await reader.read(CHUNK_BYTES)) and self._passes(data, to):
                if not self.silent:
                    to.write(data)
                    await to.drain()
        except OSError:
            pass  # one of the ends is gone, which is the same as that it says no more
        if not self.silent:
            to.close()

    def _passes(self, data: bytes, to: asyncio.StreamWriter) -> bool:
        self.waiting = to is self.server
        if self.waiting and REQUEST.match(data):
            self.request = data
            if not self.websockets and b"transport=websocket" in data:
                self.end()
                return False
        return True

    def end(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


@define
class Wire:
    """Passes connections on to a server, from `url` to `target`."""

    target: str
    websockets: bool
    """Whether they pass, too."""
    url: str = field(default="", init=False)
    _state: Literal["whole", "cut", "silent"] = field(default="whole", init=False)
    _connections: set[_Connection] = field(factory=set, init=False)
    _swallowed: set[asyncio.StreamWriter] = field(factory=set, init=False)
    _tasks: set[asyncio.Task[None] | None] = field(factory=set, init=False)

    async def accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        match self._state:
            case "cut":
                client.transport.abort()
            case "silent":
                self._swallowed.add(client)
            case "whole":
                self._tasks.add(asyncio.current_task())
                try:
                    server_reader, server = await asyncio.open_connection("127.0.0.1", urlsplit(self.target).port)
                except OSError:
                    client.transport.abort()
                    return
                connection = _Connection(client, server, self.websockets)
                self._connections.add(connection)
                await asyncio.gather(connection.carry(reader, server), connection.carry(server_reader, client))

    async def held(self) -> None:
        """Wait until the server holds a poll."""
        while not any(each.waiting and POLL.match(each.request) for each in self._connections):  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    def cut(self) -> None:
        """All connections end at once, those there are and, until it is mended, new ones."""
        self._state = "cut"
        for connection in self._connections:
            connection.end()
        for client in self._swallowed:
            client.transport.abort()
        self._connections.clear()

    async def end(self) -> None:
        self.cut()
        await asyncio.gather(*(task for task in self._tasks if task))

    def silence(self) -> None:
        """Nothing passes, not even an end, on the connections there are and, until it is mended, on new ones."""
        self._state = "silent"
        for connection in self._connections:
            connection.silent = True

    def mend(self) -> None:
        """New connections pass again."""
        self._state = "whole"


@asynccontextmanager
async def wire_to(target: str, *, websockets: bool = True) -> AsyncIterator[Wire]:
    wire = Wire(target, websockets)
    server = await asyncio.start_server(wire.accept, "127.0.0.1")
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.close()
        await wire.end()
