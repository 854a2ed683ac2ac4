"""Serve the conformance application on a port: ``python -m tests.conformance --port 3000``."""

from __future__ import annotations

import argparse
import sys

import trio

from sts_trio.observe import logs
from sts_trio.observe.metrics import Metrics
from sts_trio.server.door import Door

from .app import Options, engines, unlimited


async def serve(host: str, port: int, options: Options) -> None:
    metrics, admission = Metrics(), unlimited()
    services = engines(options, metrics, admission)
    door = Door([], services, metrics=metrics, admission=admission)
    listeners = await trio.open_tcp_listeners(port, host=host, backlog=1_000)
    async with trio.open_nursery() as nursery:
        for service in services.values():
            await nursery.start(service.run)
        await nursery.start(door.serve, listeners)
        sys.stdout.write(f"http://{host}:{listeners[0].socket.getsockname()[1]}\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000, help="0: any; the address is printed")
    parser.add_argument("--ping-interval-ms", type=int, default=300)
    parser.add_argument("--ping-timeout-ms", type=int, default=200)
    parser.add_argument("--max-payload", type=int, default=1_000_000, help="bytes of a message or request")
    parser.add_argument("--connect-timeout-ms", type=int, default=1_000)
    parser.add_argument("--recovery", action="store_true", help="connection state recovery")
    parser.add_argument("--log-level", default="WARNING")
    given = vars(parser.parse_args())
    host, port, log_level = given.pop("host"), given.pop("port"), given.pop("log_level")
    logs.configure(log_level, "console")
    trio.run(serve, host, port, Options(**given))


if __name__ == "__main__":
    main()
