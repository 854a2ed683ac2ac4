"""The root of the server: who runs, and who stops first.

    root nursery
    |- signal watcher
    `- engine pools, GPU sampler
       `- doors, with one task per connection
          `- sessions, one task per stream

What is inside ends first. A stop (SIGTERM) lets the streams finish what is in flight within `DRAIN_TIMEOUT_S`, then
closes the connections, then the pools; a second one, or Ctrl-C, cuts that short. A model is the last to go, so that
nobody ever waits for one that is gone.

A thread in which a library hangs can be neither ended nor left alone: an interpreter that ends under it aborts. Where
one holds the end up, the process ends without its interpreter (`STUCK_AFTER_S`).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog
import trio
from attrs import define, field

from protocol.socketio import Limits

from .. import __version__
from ..config import Settings
from ..engines.pool import Pool
from ..engines.suite import EngineSuite, Models, threads_needed
from ..heap import keep_heap_small
from ..observe.gpu import sample_gpu
from ..observe.metrics import Metrics
from ..offload import Offload, thread_offload
from ..stream.session import Identity
from .admission import Admission, AdmissionLimits
from .connection import ConnectionSettings
from .door import Door
from .engine import EngineService
from .gateway import Gateway
from .http import Health, PoolHealth, Status, judge, operations
from .sockets import SocketService, SocketSettings
from .tls import server_context

log = structlog.get_logger(__name__)

GPU_SAMPLE_INTERVAL_S = 2.0
SOCKETIO_PATH = "/socket.io/"

STUCK_AFTER_S: Final = 15.0
"""What everything may take to end after it was told to. Child processes have 5 s to exit before they are killed and
5 s to be reaped, and who takes just that long does not hang; a call in a thread ends at its next check, which takes a
second or two, and connections that are cut off take less."""

Listeners = Sequence[trio.SocketListener]


def real_identity() -> Identity:
    """Random ids and the wall clock."""
    return Identity(
        new_id=lambda: str(uuid.uuid4()),
        new_secret=lambda: secrets.token_urlsafe(15),
        wall_ms=lambda: time.time_ns() // 1_000_000,
    )


async def listen_on_tcp(port: int, host: str) -> Listeners:
    """
    Raises:
        OSError: naming the port, which may be one of two.
    """
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


@define(eq=False)
class Server:
    """One server. `run` it once.

    Attributes:
        models: the engines; None until `run` has built those of the settings, where none are given.
        listen: makes the listeners of a port and host; what it makes need be no socket of the system.
        status: what /health says, unless a model hangs.
        port: where workers connect, once listening.
        stop: set it to make `run` drain and return.
        ending: set when everything was told to end: what has not soon, hangs.
    """

    settings: Settings
    models: Models | None = None
    metrics: Metrics = field(factory=Metrics)
    identity: Identity = field(factory=real_identity)
    offload: Offload | None = None
    listen: Callable[[int, str], Awaitable[Listeners]] = listen_on_tcp
    port: int = field(default=0, init=False)
    stop: trio.Event = field(factory=trio.Event, init=False)
    ending: trio.Event = field(factory=trio.Event, init=False)
    status: Status = field(default=Status.STARTING, init=False)
    _started_at: float = field(default=0.0, init=False)
    _gateway: Gateway | None = field(default=None, init=False)
    _engines: EngineSuite | None = field(default=None, init=False)

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, build and load the models, report the port when healthy, serve until `stop` and drain.

        Raises:
            ConfigError: the certificate or its key cannot be used.
            EngineUnavailable: a model cannot run here, or not be loaded.
            OSError: the port is taken.
        """
        settings = self.settings
        tls = server_context(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
        self._started_at = trio.current_time()
        offload = self.offload or thread_offload(threads_needed(settings))
        listeners = await self.listen(settings.port, settings.host)
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as pools:
            pools.start_soon(sample_gpu, self.metrics, offload, GPU_SAMPLE_INTERVAL_S)
            try:
                await self._serve(listeners, tls, offload, pools, task_status)
            finally:
                pools.cancel_scope.cancel()
                self.ending.set()
        log.info("stopped")

    async def _serve(
        self,
        listeners: Listeners,
        tls: ssl.SSLContext | None,
        offload: Offload,
        pools: trio.Nursery,
        task_status: trio.TaskStatus[int],
    ) -> None:
        """From the first connection to the last; the models go on in `pools`."""
        settings = self.settings
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as sessions:
                self._gateway = gateway = Gateway(
                    settings=settings, metrics=self.metrics, identity=self.identity, sessions=sessions
                )
                engine = await self._open_doors(connections, listeners, gateway, tls)
                log.info("listening", host=settings.host, port=self.port, tls=tls is not None)
                if self.models is None:
                    # It imports libraries, which takes seconds, and asks programs what they can do.
                    self.models = await offload(Models.build, settings)
                self._engines = engines = EngineSuite.assemble(self.models, settings, offload, self.metrics)
                for pool in engines.pools:
                    pools.start_soon(self._end_when_lost, pool, pools.cancel_scope)
                await pools.start(engines.run)
                gateway.open(engines)
                self.status = Status.HEALTHY
                log.info("healthy", engines=self._engine_names(), port=self.port)
                task_status.started(self.port)
                await self.stop.wait()
                await self._drain(gateway, engine)
                sessions.cancel_scope.cancel()
            await engine.disconnect_all()
            connections.cancel_scope.cancel()

    async def _open_doors(
        self, connections: trio.Nursery, listeners: Listeners, gateway: Gateway, tls: ssl.SSLContext | None
    ) -> EngineService:
        settings = self.settings
        pages = operations(self._health, self.metrics)
        other_port = settings.separate_metrics_port
        admission = Admission(
            AdmissionLimits(
                connections=settings.max_connections,
                connections_per_address=settings.max_connections_per_address,
                handshakes_per_s=settings.handshakes_per_s,
            )
        )
        engine = create_engine(gateway, settings, self.metrics, admission, self.identity.new_secret)
        await connections.start(engine.run)
        door = Door(
            [] if other_port is not None else pages,
            {SOCKETIO_PATH: engine},
            metrics=self.metrics,
            admission=admission,
            tls=tls,
        )
        await connections.start(door.serve, listeners)
        if other_port is not None:
            side_door = Door(pages, {}, metrics=self.metrics)
            await connections.start(side_door.serve, await self.listen(other_port, settings.host))
        return engine

    async def _end_when_lost(self, pool: Pool[Any, Any], scope: trio.CancelScope) -> None:
        """What it was lost to is raised when all slots have ended, and one may hang: also while others are loaded."""
        await pool.lost.wait()
        scope.cancel()
        self.ending.set()

    async def _drain(self, gateway: Gateway, engine: EngineService) -> None:
        log.info("draining", streams=gateway.active_streams, within_s=self.settings.drain_timeout_s)
        self.status = Status.DRAINING
        engine.drain()
        with trio.move_on_after(self.settings.drain_timeout_s) as scope:
            await gateway.drain()
        if scope.cancelled_caught:
            log.warning("drain_timed_out", streams=gateway.active_streams)
            gateway.abandon()

    @property
    def pools(self) -> Sequence[Pool[Any, Any]]:
        """Those of the engines; none before their models are built."""
        return self._engines.pools if self._engines else ()

    def _health(self) -> Health:
        pools = {pool.label: PoolHealth(pool.slots, pool.hung_slots) for pool in self.pools}
        return Health(
            status=judge(pools.values()) if self.status is Status.HEALTHY else self.status,
            version=__version__,
            engines=self._engine_names(),
            active_streams=self._gateway.active_streams if self._gateway else 0,
            uptime_s=round(trio.current_time() - self._started_at, 1),
            pools=pools,
        )

    def _engine_names(self) -> dict[str, str]:
        if self.models is None:
            return {}
        return {
            "asr": self.models.asr.name,
            "translation": self.models.translation.name,
            "tts": self.models.tts.name,
        }


def create_engine(
    gateway: Gateway, settings: Settings, metrics: Metrics, admission: Admission, new_secret: Callable[[], str]
) -> EngineService:
    """Socket.IO for the gateway, as it is configured."""
    sockets = SocketService(
        gateway,
        SocketSettings(
            limits=Limits(
                packet_bytes=settings.max_message_bytes,
                attachments=settings.max_attachments,
                nesting=settings.max_nesting,
                ack_id_digits=settings.max_ack_id_digits,
            ),
            connect_timeout_s=settings.connect_timeout_s,
            attachments_timeout_s=settings.attachments_timeout_s,
            recovery_s=settings.recovery_s,
            recovery_bytes=settings.recovery_bytes,
            recovery_clients=settings.max_connections,
            new_id=new_secret,
        ),
    )
    return EngineService(
        sockets,
        settings=ConnectionSettings(
            max_message_bytes=settings.max_message_bytes,
            send_queue_bytes=settings.send_queue_bytes,
            packets_per_poll=settings.max_packets_per_poll,
            ping_interval_s=settings.ping_interval_s,
            ping_timeout_s=settings.ping_timeout_s,
            upgrade_timeout_s=settings.upgrade_timeout_s,
            new_id=new_secret,
        ),
        metrics=metrics,
        admission=admission,
        origins=settings.cors_origins,
    )


async def serve(settings: Settings, models: Models | None = None, metrics: Metrics | None = None) -> bool:
    """Run a server until SIGTERM or SIGINT, then drain it. A second signal, or one while it starts, ends it at once.

    Where a model hangs the process ends without returning from here, with exit status 1: `STUCK_AFTER_S` after the
    models were told to end.

    Args:
        models, metrics: as `Server` has them; by default those of the settings, and new ones.

    Returns:
        Whether it stopped in order.

    Raises:
        ConfigError: the certificate or its key cannot be used.
        EngineUnavailable: a model cannot run here.
        OSError: the port is taken.
    """
    server = Server(settings, models, metrics or Metrics())
    in_order = False
    async with trio.open_nursery() as until_all_have_ended:
        until_all_have_ended.start_soon(_end_all_the_same, server)
        async with trio.open_nursery() as root:
            root.start_soon(keep_heap_small)
            await root.start(_watch_signals, server, root.cancel_scope)
            await server.run()
            in_order = True
            root.cancel_scope.cancel()
        until_all_have_ended.cancel_scope.cancel()
    return in_order


async def _end_all_the_same(server: Server) -> None:
    """End the process where a thread holds the end of the server up."""
    await server.ending.wait()
    await trio.sleep(STUCK_AFTER_S)
    unended = [pool.label for pool in server.pools if pool.open_slots]
    log.critical("stuck_at_exit", pools=unended, after_s=STUCK_AFTER_S)
    logging.shutdown()
    os._exit(1)


async def _watch_signals(server: Server, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("signal", name=signal.Signals(number).name)
            if server.stop.is_set() or server.status is Status.STARTING:
                scope.cancel()
                server.ending.set()
            server.stop.set()
