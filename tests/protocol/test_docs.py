"""The examples of docs/protocol.md do what is said of them, among themselves and with python-socketio."""

from __future__ import annotations

import asyncio
import functools
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp.web
import pytest
import socketio
import trio
from trio_websocket import serve_websocket

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


BLOCKS = dict(re.findall(r"^```python (\w+)\.py\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def load(name: str) -> ModuleType:
    """The module that the example `name` is."""
    module = ModuleType(name)
    exec(compile(BLOCKS[name], f"docs/protocol.md: {name}.py", "exec"), module.__dict__)
    return module


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the others import is there."""
    assert set(BLOCKS) == {"carry", "server", "client"}
    monkeypatch.setitem(sys.modules, "carry", load("carry"))


def example(name: str) -> Callable[..., Awaitable[None]]:
    """What the example `name` is called for."""
    function: Callable[..., Awaitable[None]] = getattr(load(name), {"server": "serve", "client": "add"}[name])
    return function


async def started_server(nursery: trio.Nursery) -> str:
    """The WebSocket address of the example server, which runs until `nursery` is cancelled."""
    server = await nursery.start(serve_websocket, example("server"), "127.0.0.1", 0, None)
    return f"ws://127.0.0.1:{server.port}"


async def test_the_client_gets_its_sum_from_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            url = await started_server(nursery)
            await example("client")(url, 2, 3)
            nursery.cancel_scope.cancel()
    assert capsys.readouterr().out == "5\n"


async def test_the_server_serves_python_socketio() -> None:
    async def ask(url: str) -> list[Any]:
        client = socketio.AsyncClient()
        await client.connect(url, transports=["websocket"])
        answers = [await client.call("add", (number, number), timeout=5) for number in range(3)]
        await client.disconnect()
        return answers

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            url = await started_server(nursery)
            assert await trio.to_thread.run_sync(lambda: asyncio.run(ask(url))) == [0, 2, 4]
            nursery.cancel_scope.cancel()


async def test_the_server_refuses_what_it_does_not_serve() -> None:
    async def ask(url: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session:
            try:
                await session.ws_connect(f"{url}/socket.io/?EIO=3&transport=websocket")
            except aiohttp.WSServerHandshakeError as refusal:
                return refusal.status, refusal.message
        raise AssertionError("it was accepted")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            url = await started_server(nursery)
            status, _ = await trio.to_thread.run_sync(lambda: asyncio.run(ask(url)))
            assert status == 400
            nursery.cancel_scope.cancel()


async def test_the_client_gets_its_sum_from_python_socketio(capsys: pytest.CaptureFixture[str]) -> None:
    async def serve() -> None:
        server = socketio.AsyncServer(async_mode="aiohttp")
        server.on("add", lambda sid, *numbers: sum(numbers))
        application = aiohttp.web.Application()
        server.attach(application)
        runner = aiohttp.web.AppRunner(application)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        over = asyncio.Event()
        stop = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, over.set)
        trio.from_thread.run_sync(started.send_nowait, (f"ws://{host}:{port}", stop))
        await asyncio.wait_for(over.wait(), 10)
        await runner.cleanup()

    started, starting = trio.open_memory_channel[tuple[str, Callable[[], object]]](1)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: asyncio.run(serve()))
            url, stop = await starting.receive()
            try:
                await example("client")(url, 2, 3)
            finally:
                stop()
    assert capsys.readouterr().out == "5\n"
