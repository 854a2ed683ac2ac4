"""python-socketio's three clients behind one interface, so that what they do is told once."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

import socketio
from attrs import define, field

CONNECT_TIMEOUT_S: Final = 10
"""Unasked, `Client` and `AsyncClient` give a connection one second, which a busy machine can exceed."""

RECEIVE_TIMEOUT_S: Final = 45.0

OPTIONS: Final[dict[str, Any]] = {
    # Unasked, 5 s: a client whose POST takes longer on a busy machine goes on as if connected, and never sends again.
    "request_timeout": 20,
    # What a client gives up over is in the logs that are shown when a test fails.
    "engineio_logger": logging.getLogger("engineio"),
}

ConnectionRefused = socketio.exceptions.ConnectionError
Args = list[Any]


def as_args(returned: Any) -> Args:
    """The arguments of an ack: the library unpacks one and makes None of none."""
    return [] if returned is None else list(returned) if isinstance(returned, tuple) else [returned]


class Client(ABC):
    """What the clients have in common."""

    keeps_order = True
    """Handlers see events in the order of the wire."""
    has_handlers = True
    """For `connect_error` and `disconnect`, too."""

    @abstractmethod
    async def connect(self, url: str, namespaces: list[str], wait: bool = True, **options: Any) -> None: ...

    @abstractmethod
    async def emit(self, event: str, *each: Args) -> None:
        """One event for each list of arguments, without a pause."""

    @abstractmethod
    async def ask(self, event: str, *args: Any) -> Args:
        """How the server acknowledges an event."""

    @abstractmethod
    async def take_many(self, event: str, count: int, namespace: str = "/") -> list[Args]:
        """The next ones of their kind."""

    async def take(self, event: str, namespace: str = "/") -> Args:
        (args,) = await self.take_many(event, 1, namespace)
        return args

    @abstractmethod
    async def send_raw(self, text: str) -> None:
        """An Engine.IO message, which need not be a Socket.IO packet."""

    @abstractmethod
    async def disconnect(self) -> None: ...

    @property
    @abstractmethod
    def client(self) -> Any:
        """The `AsyncClient` or `Client` that does the work."""

    @property
    def sid(self) -> str | None:
        """None while it is not connected."""
        sid: str | None = self.client.get_sid()
        return sid

    @property
    def session(self) -> tuple[str, str]:
        """ID and transport of the Engine.IO session."""
        return self.client.eio.sid, self.client.transport()

    async def echo(self, *args: Any) -> Args:
        await self.emit("message", list(args))
        return await self.take("message-back")

    async def echoes(self, events: list[Args]) -> bool:
        """Whether all come back, in order where the client keeps it."""
        await self.emit("message", *events)
        back = await self.take_many("message-back", len(events))
        return back == events if self.keeps_order else sorted(back) == events


@define
class EventDriven(Client):
    """`AsyncClient` and `Client`, which call handlers."""

    client: Any
    _inbox: dict[tuple[str, str], asyncio.Queue[Args]] = field(factory=lambda: defaultdict(asyncio.Queue), init=False)

    def listen(self, namespaces: list[str]) -> None:
        for namespace in namespaces:
            for event in ("connect_error", "disconnect", "auth", "message-back", "farewell"):
                self.client.on(event, self._keep(namespace, event), namespace=namespace)

    def _keep(self, namespace: str, event: str) -> Callable[..., None]:
        loop, queue = asyncio.get_running_loop(), self._inbox[namespace, event]

        def keep(*args: Any) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, list(args))

        return keep

    async def take_many(self, event: str, count: int, namespace: str = "/") -> list[Args]:
        return [await self._inbox[namespace, event].get() for _ in range(count)]


class Async(EventDriven):
    """`AsyncClient`."""

    def __init__(self) -> None:
        super().__init__(socketio.AsyncClient(**OPTIONS))

    async def connect(self, url: str, namespaces: list[str], wait: bool = True, **options: Any) -> None:
        self.listen(namespaces)
        await self.client.connect(url, namespaces=namespaces, wait=wait, wait_timeout=CONNECT_TIMEOUT_S, **options)

    async def emit(self, event: str, *each: Args) -> None:
        for args in each:
            await self.client.emit(event, tuple(args))

    async def ask(self, event: str, *args: Any) -> Args:
        return as_args(await self.client.call(event, args))

    async def send_raw(self, text: str) -> None:
        await self.client.eio.send(text)

    async def disconnect(self) -> None:
        await self.client.disconnect()


class Threaded(EventDriven):
    """`Client`. It gives every message it receives a thread of its own, and these can overtake each other."""

    keeps_order = False

    def __init__(self) -> None:
        super().__init__(socketio.Client(**OPTIONS))

    async def connect(self, url: str, namespaces: list[str], wait: bool = True, **options: Any) -> None:
        self.listen(namespaces)
        await asyncio.to_thread(
            self.client.connect, url, namespaces=namespaces, wait=wait, wait_timeout=CONNECT_TIMEOUT_S, **options
        )

    async def emit(self, event: str, *each: Args) -> None:
        for args in each:
            self.client.emit(event, tuple(args))  # does not wait, it fills a queue

    async def ask(self, event: str, *args: Any) -> Args:
        return as_args(await asyncio.to_thread(self.client.call, event, args))

    async def send_raw(self, text: str) -> None:
        self.client.eio.send(text)

    async def disconnect(self) -> None:
        await asyncio.to_thread(self.client.disconnect)


class Simple(Client):
    """`SimpleClient`, a `Client` that is asked for events and has one namespace."""

    keeps_order = False
    has_handlers = False

    def __init__(self) -> None:
        self._simple = socketio.SimpleClient(**OPTIONS)

    @property
    def client(self) -> Any:
        return self._simple.client

    async def connect(self, url: str, namespaces: list[str], wait: bool = True, **options: Any) -> None:
        (namespace,) = namespaces
        await asyncio.to_thread(
            self._simple.connect, url, namespace=namespace, wait_timeout=CONNECT_TIMEOUT_S, **options
        )

    async def emit(self, event: str, *each: Args) -> None:
        def emit_all() -> None:
            for args in each:
                self._simple.emit(event, tuple(args))

        await asyncio.to_thread(emit_all)

    async def ask(self, event: str, *args: Any) -> Args:
        return as_args(await asyncio.to_thread(self._simple.call, event, args))

    async def take_many(self, event: str, count: int, namespace: str = "/") -> list[Args]:
        def receive() -> list[Args]:
            taken: list[Args] = []
            while len(taken) < count:
                name, *args = self._simple.receive(RECEIVE_TIMEOUT_S)
                if name == event:
                    taken.append(args)
            return taken

        return await asyncio.to_thread(receive)

    async def send_raw(self, text: str) -> None:
        self.client.eio.send(text)

    async def disconnect(self) -> None:
        await asyncio.to_thread(self._simple.disconnect)


CLIENTS: Final[dict[str, Callable[[], Client]]] = {"AsyncClient": Async, "Client": Threaded, "SimpleClient": Simple}
