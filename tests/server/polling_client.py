"""A client that stays on long-polling, each request on a connection of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from attrs import define, field

from .memory import Answer, Server, serving
from .recorder import Recorder

TARGET = "/socket.io/?EIO=4&transport=polling"


def request(method: str, target: str, headers: str = "", body: bytes = b"", *, keep_alive: bool = False) -> bytes:
    connection = "keep-alive" if keep_alive else "close"
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{headers}\r\n".encode() + body


@define
class Client:
    """One session."""

    server: Server
    target: str = TARGET
    opened: dict[str, Any] = field(factory=dict)

    async def open(self) -> None:
        answer = await self.poll()
        assert answer.status == 200, answer
        self.opened = orjson.loads(answer.body[1:])
        self.target = f"{TARGET}&sid={self.opened['sid']}"

    async def join(self, auth: bytes = b"") -> dict[str, Any]:
        """Open a session and join; what CONNECT was answered with, behind what else was polled."""
        await self.open()
        assert (await self.post(b"40" + auth)).body == b"ok"
        answer = (await self.poll()).body.split(b"\x1e")[-1]
        assert answer.startswith(b"40{")
        accepted: dict[str, Any] = orjson.loads(answer[2:])
        return accepted

    async def poll_event(self) -> list[Any]:
        """The one event that is waiting: its name and arguments."""
        answer = (await self.poll()).body
        assert answer.startswith(b"42")
        event: list[Any] = orjson.loads(answer[2:])
        return event

    async def poll(self) -> Answer:
        return await self.server.request(request("GET", self.target))

    async def post(self, body: bytes) -> Answer:
        return await self.server.request(request("POST", self.target, body=body))


@asynccontextmanager
async def joined(**settings: Any) -> AsyncIterator[tuple[Client, Recorder]]:
    application = Recorder()
    async with serving(application, **settings) as server:
        client = Client(server)
        await client.join()
        yield client, application
