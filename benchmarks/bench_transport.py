"""What a fragment's way over the wire costs: an echo of 1.6 MB of base64, our server beside python-socketio's, over a
WebSocket and over HTTP long-polling.

    python benchmarks/bench_transport.py [rounds]

Every server runs in a process of its own and does the same: one Socket.IO event in, its payload out in another. The
client is the same for all: aiohttp, with frames made beforehand. Servers take turns, round by round, so that whatever
else the machine does hits all of them; a figure is the median of the rounds. *Beside it* is how long a small event's
echo takes on a second connection while the large ones go to and fro: how long the server's loop is held up. The last
two columns are echoes by long-polling, large and small. Linux only (/proc).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import socketio
import trio
from attrs import define, field
from rich.console import Console
from rich.table import Table

PAYLOAD_CHARACTERS = 1_600_000
MESSAGES_PER_ROUND = 10
POLLING_TIMEOUT_S = 10.0
MEGABYTES_PER_ROUND = 2 * MESSAGES_PER_ROUND * PAYLOAD_CHARACTERS / 1e6  # in and out

# -------------------------------------------------------------------------------------- servers


class OrJson:
    """orjson with the interface python-socketio wants of a JSON module."""

    loads = staticmethod(orjson.loads)

    @staticmethod
    def dumps(value: Any, **_: Any) -> str:
        return orjson.dumps(value).decode()


async def serve_ours() -> None:
    from protocol.engineio import CloseReason
    from sts_trio.observe.metrics import Metrics
    from sts_trio.server.admission import Admission
    from sts_trio.server.application import Peer, Refusal
    from sts_trio.server.connection import ConnectionSettings
    from sts_trio.server.door import Door
    from sts_trio.server.engine import EngineService
    from sts_trio.server.sockets import SocketService

    class Echo:
        def connected(self, peer: Peer, auth: dict[str, Any]) -> Refusal | None:
            return None

        def welcome(self, peer: Peer, auth: dict[str, Any]) -> None:
            pass

        def received(self, peer: Peer, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
            peer.emit("echo", args[0])
            return ()

        def disconnected(self, peer: Peer, reason: CloseReason) -> None:
            pass

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    announce(listeners[0].socket.getsockname()[1])
    metrics = Metrics()
    engine = EngineService(SocketService(Echo()), settings=ConnectionSettings(), metrics=metrics, admission=Admission())
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        await Door([], {"/socket.io/": engine}, metrics=metrics).serve(listeners)


def python_socketio(mode: str, json: Any) -> socketio.AsyncServer:
    server = socketio.AsyncServer(async_mode=mode, max_http_buffer_size=50 * 2**20, json=json)

    async def echo(sid: str, payload: Any) -> None:
        await server.emit("echo", payload, to=sid)

    server.on("echo", echo)
    return server


async def serve_aiohttp(json: Any) -> None:
    from aiohttp import web

    app = web.Application()
    python_socketio("aiohttp", json).attach(app)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    announce(runner.addresses[0][1])
    await asyncio.Event().wait()


async def serve_hypercorn(json: Any) -> None:
    import socket

    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listener = socket.create_server(("127.0.0.1", 0))
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.errorlog = None
    config.websocket_max_message_size = 50 * 2**20
    announce(listener.getsockname()[1])
    await serve(socketio.ASGIApp(python_socketio("asgi", json)), config)


async def serve_uvicorn(json: Any) -> None:
    import socket

    uvicorn = importlib.import_module("uvicorn")  # no dependency of ours
    listener = socket.create_server(("127.0.0.1", 0))
    app = socketio.ASGIApp(python_socketio("asgi", json))
    announce(listener.getsockname()[1])
    await uvicorn.Server(uvicorn.Config(app, log_level="error", ws_max_size=50 * 2**20)).serve([listener])


def announce(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


SERVERS = {
    "uvicorn": serve_uvicorn,
    "hypercorn": serve_hypercorn,
    "aiohttp": serve_aiohttp,
}

# -------------------------------------------------------------------------------------- client


@define
class Server:
    name: str
    process: subprocess.Popen[bytes]
    port: int
    seconds: list[float] = field(factory=list)  # per round
    cpu_seconds: list[float] = field(factory=list)
    small_seconds: list[float] = field(factory=list)  # per small event
    poll_seconds: list[float] = field(factory=list)  # per large echo by long-polling
    small_poll_seconds: list[float] = field(factory=list)  # per small echo by long-polling

    def cpu(self) -> float:
        """Processor time of all its threads so far."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def join(session: aiohttp.ClientSession, port: int) -> aiohttp.ClientWebSocketResponse:
    websocket = await session.ws_connect(
        f"http://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket", max_msg_size=0, compress=0
    )
    await websocket.receive_str()
    await websocket.send_str("40")
    await websocket.receive_str()
    return websocket


async def echo(websocket: aiohttp.ClientWebSocketResponse, message: str) -> None:
    await websocket.send_str(message)
    while (answer := await websocket.receive_str()) == "2":
        await websocket.send_str("3")
    assert len(answer) == len(message)


async def run_round(server: Server, session: aiohttp.ClientSession, message: str) -> None:
    large, small = await join(session, server.port), await join(session, server.port)
    await echo(large, message)
    done = False

    async def beside() -> None:
        while not done:
            started = time.perf_counter()
            await echo(small, '42["echo",{"n":1}]')
            server.small_seconds.append(time.perf_counter() - started)
            await asyncio.sleep(0.001)

    task = asyncio.create_task(beside())
    started, cpu = time.perf_counter(), server.cpu()
    for _ in range(MESSAGES_PER_ROUND):
        await echo(large, message)
    server.seconds.append(time.perf_counter() - started)
    server.cpu_seconds.append(server.cpu() - cpu)
    done = True
    await task
    await large.close()
    await small.close()


async def poll_round(server: Server, session: aiohttp.ClientSession, message: str) -> None:
    """The same by long-polling: a POST takes the event, the next poll's answer brings it back."""
    url = f"http://127.0.0.1:{server.port}/socket.io/?EIO=4&transport=polling"

    async def poll() -> str:
        async with session.get(url) as response:
            assert response.status == 200, response
            return await response.text()

    async def send(body: str) -> None:
        async with session.post(url, data=body) as response:
            assert await response.text() in ("ok", "OK"), response

    async def echo_of(body: str) -> None:
        held = asyncio.create_task(poll())
        await send(body)
        while (answer := await held) == "2":
            held = asyncio.create_task(poll())
            await send("3")
        assert len(answer) == len(body)

    url += f"&sid={orjson.loads((await poll())[1:])['sid']}"
    await send("40")
    await poll()
    await echo_of(message)
    started = time.perf_counter()
    for _ in range(MESSAGES_PER_ROUND):
        await echo_of(message)
    server.poll_seconds.append((time.perf_counter() - started) / MESSAGES_PER_ROUND)
    small = '42["echo",{"n":1}]'
    for _ in range(10 * MESSAGES_PER_ROUND):
        started = time.perf_counter()
        await echo_of(small)
        server.small_poll_seconds.append(time.perf_counter() - started)
    await send("1")


async def measure(servers: list[Server], rounds: int) -> None:
    message = f'42["echo",{{"data_base64":"{"A" * PAYLOAD_CHARACTERS}"}}]'
    async with aiohttp.ClientSession() as session:
        for _ in range(rounds):
            for server in servers:
                await run_round(server, session, message)
                with suppress(TimeoutError):  # python-socketio loses large POSTs on some servers
                    await asyncio.wait_for(poll_round(server, session, message), POLLING_TIMEOUT_S)


def start(name: str, *arguments: str) -> Server:
    process = subprocess.Popen([sys.executable, __file__, "--serve", *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    return Server(name, process, int(process.stdout.readline()))


def main(rounds: int) -> None:
    console = Console()
    available = [name for name in SERVERS if importlib.util.find_spec(name)]
    if "uvicorn" not in available:
        console.print("uvicorn is not installed: python-socketio is measured on what is there.")
    with ExitStack() as stack:
        servers = []
        for name in available:
            servers.append(start(f"{name}", name, "json"))
            servers.append(start(f"{name}, orjson", name, "orjson"))
        servers.append(start("sts_trio", "ours"))
        for server in servers:
            stack.enter_context(server.process)
            stack.callback(server.process.kill)
        asyncio.run(measure(servers, rounds))

    table = Table(
        title=f"Echo of {PAYLOAD_CHARACTERS / 1e6:g} MB: medians of {rounds} rounds of {MESSAGES_PER_ROUND}",
        caption="all but sts_trio: python-socketio on that server",
    )
    columns = (
        "server",
        "ms/echo",
        "ratio",
        "CPU ms/MB",
        "ratio",
        "beside it, ms",
        "95 %, ms",
        "polling, ms",
        "small, ms",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "server" else "right")
    reference = servers[0]
    for server in servers:
        seconds, cpu = statistics.median(server.seconds), statistics.median(server.cpu_seconds)
        small = statistics.quantiles(server.small_seconds, n=20)
        table.add_row(
            server.name,
            f"{seconds / MESSAGES_PER_ROUND * 1000:.1f}",
            f"{seconds / statistics.median(reference.seconds):.2f}",
            f"{cpu / MEGABYTES_PER_ROUND * 1000:.2f}",
            f"{cpu / statistics.median(reference.cpu_seconds):.2f}",
            f"{small[9] * 1000:.1f}",
            f"{small[18] * 1000:.1f}",
            *(
                f"{statistics.median(times) * 1000:.1f}" if times else "fails"
                for times in (server.poll_seconds, server.small_poll_seconds)
            ),
        )
    console.print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        if sys.argv[2] == "ours":
            trio.run(serve_ours)
        else:
            asyncio.run(SERVERS[sys.argv[2]](OrJson if sys.argv[3] == "orjson" else None))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
