"""The application that suites of the protocol are run against: an Engine.IO echo, and a Socket.IO application.

``/engine.io/`` sends every message back. ``/socket.io/`` has two namespaces; in both, who has joined is sent ``auth``
with the object of its CONNECT. In ``/``, ``message`` comes back as ``message-back`` with the same arguments, and
``message-with-ack`` is acknowledged with its own.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import frozen

from protocol.engineio import Closed, CloseReason
from sts_trio.observe.metrics import Metrics
from sts_trio.server.admission import Admission, AdmissionLimits
from sts_trio.server.application import Peer, Refusal
from sts_trio.server.connection import Connection, ConnectionSettings
from sts_trio.server.engine import EngineService, Service
from sts_trio.server.sockets import SocketService, SocketSettings
from tests.server import memory


@frozen(kw_only=True)
class Options:
    """The numbers of the handshake, and whether clients can recover what they missed (for two minutes)."""

    ping_interval_ms: int = 300
    ping_timeout_ms: int = 200
    max_payload: int = 1_000_000
    connect_timeout_ms: int = 1_000
    recovery: bool = False


class _Echo:
    """Engine.IO without Socket.IO."""

    deadline = math.inf
    trusts = True

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def received(self, message: str | bytes) -> None:
        self._connection.send(message)

    def tick(self, now: float) -> None: ...

    def closed(self, why: Closed) -> None: ...


class _Echoes:
    def receiver(self, connection: Connection) -> _Echo:
        return _Echo(connection)

    async def run(self) -> None:
        await trio.sleep_forever()

    def drain(self) -> None: ...


class _Application:
    def connected(self, peer: Peer, auth: dict[str, Any]) -> Refusal | None:
        return None

    def welcome(self, peer: Peer, auth: dict[str, Any]) -> None:
        peer.emit("auth", auth)

    def received(self, peer: Peer, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        if peer.namespace == "/" and event == "message":
            peer.emit("message-back", *args)
        return args if peer.namespace == "/" and event == "message-with-ack" else ()

    def disconnected(self, peer: Peer, reason: CloseReason) -> None: ...


def engines(options: Options, metrics: Metrics, admission: Admission) -> dict[str, EngineService]:
    """Both services by their paths."""
    settings = ConnectionSettings(
        max_message_bytes=options.max_payload,
        stranger_message_bytes=options.max_payload,  # suites expect no other limit
        ping_interval_s=options.ping_interval_ms / 1000,
        ping_timeout_s=options.ping_timeout_ms / 1000,
    )
    sockets = SocketService(
        _Application(),
        SocketSettings(
            namespaces=("/", "/custom"),
            connect_timeout_s=options.connect_timeout_ms / 1000,
            recovery_s=120.0 if options.recovery else 0.0,
        ),
    )
    services: dict[str, Service] = {"/engine.io/": _Echoes(), "/socket.io/": sockets}
    return {
        path: EngineService(service, settings=settings, metrics=metrics, admission=admission)
        for path, service in services.items()
    }


@asynccontextmanager
async def serving(options: Options | None = None) -> AsyncIterator[memory.Server]:
    """The application on a network in memory."""
    metrics, admission = Metrics(), unlimited()
    async with memory.serving(engines=engines(options or Options(), metrics, admission), metrics=metrics) as server:
        yield server


def unlimited() -> Admission:
    """Suites make a great many connections from one address."""
    return Admission(AdmissionLimits(connections=10_000, connections_per_address=10_000, handshakes_per_s=10_000.0))
