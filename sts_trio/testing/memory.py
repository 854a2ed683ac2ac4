"""A server without sockets: the gateway, the streams and the pools, over scripted engines and in-memory workers."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define

from protocol.engineio import CloseReason

from ..config import Settings
from ..engines.suite import EngineSuite, Models
from ..observe.metrics import Metrics
from ..server.application import Refusal
from ..server.gateway import Gateway
from ..stream.session import Identity
from .engines import inline_offload, scripted_models
from .heard import Heard
from .leftovers import left_behind


def counting_identity() -> Identity:
    """Ids that count up, and the clock of the test as wall clock."""
    numbers = itertools.count(1)
    return Identity(
        new_id=lambda: f"id-{next(numbers)}",
        new_secret=lambda: f"secret-{next(numbers)}",
        wall_ms=lambda: round(trio.current_time() * 1000),
    )


@define(eq=False)
class MemoryWorker(Heard):
    """A worker's connection as the gateway sees it (`server.application.Peer`), and what came over it."""

    gateway: Gateway
    id: str = "worker"
    namespace: str = "/"
    address: str = "memory"

    def emit(self, event: str, *args: object) -> None:
        """Take what the gateway sends."""
        (payload,) = args
        assert isinstance(payload, dict)
        if not self.closed:
            self._hear(event, payload)

    async def drained(self) -> None:
        """All that was sent has arrived already."""
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """What the gateway does to end the connection."""
        self.disconnect()

    def connect(self, token: str | None = None) -> Refusal | None:
        """Ask to be let in."""
        return self.gateway.connected(self, {} if token is None else {"token": token})

    def disconnect(self) -> None:
        """Lose the connection."""
        if not self.closed:
            self.closed = True
            self.gateway.disconnected(self, CloseReason.TRANSPORT_CLOSE)
            self._hear_the_end()

    async def say(self, event: str, payload: object) -> Any:
        """Send an event; returns what an acknowledgement callback would get."""
        return next(iter(self.gateway.received(self, event, (payload,))), None)


@define(eq=False)
class MemoryServer:
    """What a test may look at."""

    gateway: Gateway
    engines: EngineSuite
    metrics: Metrics

    def worker(self, id: str = "worker") -> MemoryWorker:
        """One more connection, let in."""
        worker = MemoryWorker(self.gateway, id)
        assert worker.connect() is None
        return worker

    @property
    def in_flight(self) -> float:
        """The gauge operators see."""
        value = self.metrics.registry.get_sample_value("sts_fragments_in_flight")
        assert value is not None
        return value

    def left_behind(self) -> list[str]:
        """See `leftovers.left_behind`."""
        return left_behind(self.metrics, self.engines.models)


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
