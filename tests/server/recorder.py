"""A worker that speaks in frames, and an application that notes what it is told."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from attrs import define, field, fields
from trio.testing import memory_stream_pair
from trio_websocket import ConnectionClosed, WebSocketConnection

from protocol.engineio import CloseReason
from sts_trio.server.application import Peer, Refusal
from sts_trio.server.connection import ConnectionSettings
from sts_trio.server.sockets import SocketSettings

from .memory import Pair, Server, serving

ids = itertools.count()


def new_id() -> str:
    return f"id-{next(ids)}"


@define
class Recorder:
    """An application that notes what it is told, echoes ``echo``, and does what a test tells it to."""

    peers: list[Peer] = field(factory=list)
    auths: list[dict[str, Any]] = field(factory=list)
    events: list[tuple[str, tuple[Any, ...]]] = field(factory=list)
    gone: list[tuple[str, CloseReason]] = field(factory=list)
    refusal: Refusal | None = None
    on_event: Callable[[Peer, str, tuple[Any, ...]], tuple[object, ...]] | None = None
    on_connect: Callable[[Peer], None] | None = None
    on_welcome: Callable[[Peer], None] | None = None

    def connected(self, peer: Peer, auth: dict[str, Any]) -> Refusal | None:
        self.auths.append(auth)
        if self.on_connect is not None:
            self.on_connect(peer)
        if self.refusal is None:
            self.peers.append(peer)
        return self.refusal

    def welcome(self, peer: Peer, auth: dict[str, Any]) -> None:
        if self.on_welcome is not None:
            self.on_welcome(peer)

    def received(self, peer: Peer, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        self.events.append((event, args))
        if self.on_event is not None:
            return self.on_event(peer, event, args)
        if event == "echo":
            peer.emit("echo", args[0])
        return ()

    def disconnected(self, peer: Peer, reason: CloseReason) -> None:
        self.gone.append((peer.id, reason))


@define
class Worker:
    """A client that speaks in frames, so that it can also say what no library would."""

    websocket: WebSocketConnection

    async def send(self, *frames: str | bytes) -> None:
        for frame in frames:
            await self.websocket.send_message(frame)

    async def frame(self) -> str | bytes:
        frame: str | bytes = await self.websocket.get_message()
        return frame

    async def open_packet(self) -> dict[str, Any]:
        frame = await self.frame()
        assert isinstance(frame, str)
        assert frame[0] == "0"
        packet: dict[str, Any] = orjson.loads(frame[1:])
        return packet

    async def join(self, auth: str = "") -> None:
        await self.open_packet()
        await self.send(f"40{auth}")
        answer = await self.frame()
        assert isinstance(answer, str)
        assert answer.startswith('40{"sid":')

    async def wait_closed(self) -> int | None:
        """Read until the server closes; the close code, None where the connection was cut."""
        try:
            while True:
                await self.websocket.get_message()
        except ConnectionClosed as closed:
            return None if closed.reason is None else int(closed.reason.code)


@define
class Scene:
    server: Server
    worker: Worker
    application: Recorder


@asynccontextmanager
async def connected(
    application: Recorder | None = None, *, pair: Pair = memory_stream_pair, **settings: Any
) -> AsyncIterator[Scene]:
    """`settings` of connections or of Socket.IO, whoever has them."""
    application = application or Recorder()
    settings["new_id"] = new_id
    of_connection, of_sockets = (
        cls(**{name: value for name, value in settings.items() if name in {a.name for a in fields(cls)}})
        for cls in (ConnectionSettings, SocketSettings)
    )
    async with serving(application, settings=of_connection, sockets=of_sockets) as server:
        worker = Worker(await server.websocket(pair=pair))
        yield Scene(server, worker, application)
