"""An application that refuses and disconnects: ``python -m tests.clients.application --port=0`` prints its address.

It is what the conformance application is in its namespace `/`, and besides: ``{"token": "wrong"}`` is refused;
``goodbye`` disconnects who sends it, after a ``farewell``; ``how did it leave`` is acknowledged with why the client of
a sid was disconnected, None while it is not. SIGTERM stops it in order.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

import trio

from protocol.engineio import CloseReason
from sts_trio.observe import logs
from sts_trio.observe.metrics import Metrics
from sts_trio.server.application import Peer, Refusal
from sts_trio.server.connection import ConnectionSettings
from sts_trio.server.door import Door
from sts_trio.server.engine import EngineService
from sts_trio.server.sockets import SocketService
from tests.conformance.app import unlimited


class Application:
    def __init__(self) -> None:
        self._reasons: dict[str, CloseReason] = {}

    def connected(self, peer: Peer, auth: dict[str, Any]) -> Refusal | None:
        return Refusal("no", {"code": "AUTH_FAILED"}) if auth.get("token") == "wrong" else None

    def welcome(self, peer: Peer, auth: dict[str, Any]) -> None:
        peer.emit("auth", auth)

    def received(self, peer: Peer, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        match event:
            case "message":
                peer.emit("message-back", *args)
            case "goodbye":
                peer.emit("farewell")
                peer.close()
            case "how did it leave":
                return (self._reasons.get(args[0]),)
        return ()

    def disconnected(self, peer: Peer, reason: CloseReason) -> None:
        self._reasons[peer.id] = reason


async def serve(port: int, settings: ConnectionSettings) -> None:
    metrics, admission = Metrics(), unlimited()
    service = EngineService(SocketService(Application()), settings=settings, metrics=metrics, admission=admission)
    door = Door([], {"/socket.io/": service}, metrics=metrics, admission=admission)
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=1_000)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            await nursery.start(door.serve, listeners)
            sys.stdout.write(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}\n")
            sys.stdout.flush()
            await anext(signals)
            await service.disconnect_all()
            nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.clients.application", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    logs.configure("WARNING", "console")
    # Pings so rare that no ping timeout can be what ended a connection.
    trio.run(serve, parser.parse_args().port, ConnectionSettings(ping_interval_s=25.0, ping_timeout_s=20.0))


if __name__ == "__main__":
    main()
