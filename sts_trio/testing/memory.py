"""A server without sockets: the gateway, the streams and the pools, over scripted engines and in-memory workers."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field

from protocol.engineio import CloseReason

from ..config import Settings
from ..engines.suite import EngineSuite, Models
from ..observe.metrics import Metrics
from ..server.application import Refusal
from ..server.gateway import Gateway
from ..stream.session import Identity
from .engines import inline_offload, scripted_models

VIRTUAL_HOUR_S = 3_600.0
"""No event of a test is further away: what does not come by then never comes."""


def counting_identity() -> Identity:
    """Ids that count up, and the clock of the test as wall clock."""
    numbers = itertools.count(1)
    return Identity(
        new_id=lambda: f"id-{next(numbers)}",
        new_secret=lambda: f"secret-{next(numbers)}",
        wall_ms=lambda: round(trio.current_time() * 1000),
    )


@define(eq=False)
class MemoryWorker:
    """A worker's connection as the gateway sees it (`server.application.Peer`), and what the worker received.

    Attributes:
        received: (time, event, payload) in the order in which they left.
    """

    gateway: Gateway
    id: str = "worker"
    namespace: str = "/"
    address: str = "memory"
    closed: bool = False
    received: list[tuple[float, str, dict[str, Any]]] = field(factory=list)
    _news: trio.Event = field(factory=trio.Event, init=False)

    def emit(self, event: str, *args: object) -> None:
        (payload,) = args
        assert isinstance(payload, dict)
        if not self.closed:
            self.received.append((trio.current_time(), event, payload))
            self._news.set()

    async def drained(self) -> None:
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.disconnect()

    def connect(self, token: str | None = None) -> Refusal | None:
        return self.gateway.connected(self, {} if token is None else {"token": token})

    def disconnect(self) -> None:
        """Lose the connection."""
        if not self.closed:
            self.closed = True
            self.gateway.disconnected(self, CloseReason.TRANSPORT_CLOSE)
            self._news.set()

    async def say(self, event: str, payload: object) -> Any:
        """Send an event; returns what an acknowledgement callback would get."""
        return next(iter(self.gateway.received(self, event, (payload,))), None)

    def got(self, event: str) -> list[dict[str, Any]]:
        """Payloads of every `event` received so far."""
        return [payload for _, name, payload in self.received if name == event]

    def times(self, event: str) -> list[float]:
        """When each `event` was received."""
        return [time for time, name, _ in self.received if name == event]

    async def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until `count` such events were received in all, and return them."""
        with trio.fail_after(VIRTUAL_HOUR_S):
            while len(self.got(event)) < count:
                if self.closed:
                    raise AssertionError(f"closed while waiting for {event}")
                self._news = trio.Event()
                await self._news.wait()
        return self.got(event)


@define(eq=False)
class MemoryServer:
    """What a test may look at. `worker` makes one more connection."""

    gateway: Gateway
    engines: EngineSuite
    metrics: Metrics

    def worker(self, id: str = "worker") -> MemoryWorker:
        worker = MemoryWorker(self.gateway, id)
        assert worker.connect() is None
        return worker

    @property
    def in_flight(self) -> float:
        """The gauge operators see."""
        value = self.metrics.registry.get_sample_value("sts_fragments_in_flight")
        assert value is not None
        return value


@asynccontextmanager
async def memory_server(models: Models | None = None, settings: Settings | None = None) -> AsyncIterator[MemoryServer]:
    """A ready server; leaving the context cancels everything."""
    settings = settings or Settings()
    metrics = Metrics()
    engines = EngineSuite.assemble(models or scripted_models(), settings, inline_offload, metrics)
    async with trio.open_nursery() as pools:
        await pools.start(engines.run)
        async with trio.open_nursery() as sessions:
            gateway = Gateway(settings=settings, metrics=metrics, identity=counting_identity(), sessions=sessions)
            gateway.open(engines)
            yield MemoryServer(gateway, engines, metrics)
            sessions.cancel_scope.cancel()
        pools.cancel_scope.cancel()
    for engine in (engines.models.asr, engines.models.translation, engines.models.tts):
        assert not getattr(engine, "overlapping_calls", 0), f"{engine.name}: an instance had two callers at once"
