"""The whole server on a network in memory: from WebSocket frames to results, on virtual time.

    async with virtual_server() as server:
        worker = await server.worker()
        await worker.say("stream:init", stream_init())
        await worker.say("fragment:data", fragment(0))
        (result,) = await worker.wait_for("fragment:processed")

All is real but the models, the sockets and the threads. `testing.memory` has the same without the wire: quicker, for
what begins at the gateway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from attrs import define, field

from ..config import Settings
from ..engines.suite import Models
from ..server.app import Server
from ..stream.session import Identity
from .engines import inline_offload, scripted_models
from .heard import Heard
from .leftovers import left_behind
from .memory import counting_identity
from .network import Line, Network, Quality
from .worker import WireWorker

STOPS_WITHIN_S: Final = 60.0
"""A server has stopped so long after the time it may drain: with what it flushes, and calls that end late."""


@define(eq=False)
class VirtualWorker(Heard):
    """A worker's connection, and what came over it.

    Attributes:
        wire: says and hears (`WireWorker`): to vanish, to leave, to read no more.
        line: what carries it (`Line`): to be cut and stalled.
    """

    wire: WireWorker
    line: Line

    async def say(self, event: str, payload: object) -> None:
        """Send an event. It is on its way when this returns, and may yet be lost.

        Raises:
            AssertionError: the connection is lost.
        """
        await trio.lowlevel.checkpoint()
        if not self.wire.emit(event, payload):
            raise AssertionError(f"there is no connection to send {event} over")


@define(eq=False)
class VirtualServer:
    """What a test may look at. `worker` makes one more connection."""

    server: Server
    network: Network
    _nursery: trio.Nursery
    _stopped: trio.Event = field(factory=trio.Event, init=False)

    async def worker(
        self,
        quality: Quality | None = None,
        *,
        auth: Mapping[str, Any] | None = None,
        recover: VirtualWorker | None = None,
    ) -> VirtualWorker:
        """Connect and join.

        Args:
            quality: of the line; by default nothing takes time on it.
            recover: the worker that was connected before, to come back to what it had (needs `Settings.recovery_s`).

        Raises:
            NotLetIn: the server does not want it.
            ConnectionRefusedError: the server is no more.
        """
        end, line = self.network.connect(quality or Quality())
        wire = WireWorker(lambda event, payload: worker._hear(event, payload), auth, recover.wire if recover else None)
        worker = VirtualWorker(wire, line)
        await self._nursery.start(self._carry, worker, end)
        return worker

    async def stop(self) -> None:
        """Do what SIGTERM does, and wait until it is done: drain, then end.

        Raises:
            trio.TooSlowError: the server does not stop.
        """
        self.server.stop.set()
        with trio.fail_after(self.server.settings.drain_timeout_s + STOPS_WITHIN_S):
            await self._stopped.wait()

    def left_behind(self) -> list[str]:
        """See `leftovers.left_behind`."""
        assert self.server.models is not None
        return left_behind(self.server.metrics, self.server.models)

    async def _run(self, *, task_status: trio.TaskStatus[int]) -> None:
        await self.server.run(task_status=task_status)
        self._stopped.set()

    async def _carry(self, worker: VirtualWorker, end: trio.abc.Stream, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await worker.wire.run(end, task_status=task_status)
        finally:
            worker._hear_the_end()


@asynccontextmanager
async def virtual_server(
    models: Models | None = None, settings: Settings | None = None, *, identity: Identity | None = None
) -> AsyncIterator[VirtualServer]:
    """A healthy server. Leaving the context stops it, as `VirtualServer.stop` does; nothing of it may be left then.

    Args:
        models: by default scripted ones that answer at once.
        identity: where ids and the wall clock come from; by default ids count up.

    Raises:
        AssertionError: something is left.
    """
    network = Network()
    server = Server(
        settings or Settings(),
        models or scripted_models(),
        identity=identity or counting_identity(),
        offload=inline_offload,
        listen=network.listen,
    )
    async with trio.open_nursery() as nursery:
        virtual = VirtualServer(server, network, nursery)
        await nursery.start(virtual._run)
        yield virtual
        await virtual.stop()
        nursery.cancel_scope.cancel()
    left = virtual.left_behind()
    assert not left, left
