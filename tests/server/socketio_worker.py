"""A worker made with python-socketio, run in a process of its own: it is an asyncio library.

Usage: python -m tests.server.socketio_worker URL. Prints what it saw as one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import socketio

BIG = "a" * 2_000_000
BURST = 500


async def run(url: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    client = socketio.AsyncClient()
    echoes: asyncio.Queue[Any] = asyncio.Queue()
    gone = asyncio.Event()

    async def on_echo(payload: Any) -> None:
        await echoes.put(payload)

    async def on_disconnect(reason: Any = None) -> None:
        gone.set()

    client.on("echo", on_echo)
    client.on("disconnect", on_disconnect)

    refusals: list[Any] = []
    refused = socketio.AsyncClient(reconnection=False)

    async def on_refusal(data: Any) -> None:
        refusals.append(data)

    refused.on("connect_error", on_refusal)
    try:
        await refused.connect(url, transports=["websocket"], auth={"token": "wrong"})
    except socketio.exceptions.ConnectionError:
        seen["refusal"] = refusals
    await refused.disconnect()

    await client.connect(url, transports=["websocket"], auth={"token": "right"})
    seen["sid"] = client.get_sid()

    await client.emit("echo", {"text": "ñ", "n": [1, 2.5, None]})
    seen["echo"] = await echoes.get()

    await client.emit("echo", {"data": b"\x00\xff", "more": [b"\x01" * 100_000]})
    binary = await echoes.get()
    seen["binary"] = [binary["data"].hex(), len(binary["more"][0])]

    seen["callback"] = await client.call("ask", {"n": 1}, timeout=10)
    seen["binary callback"] = (await client.call("ask", b"\x02\x03", timeout=10)).hex()

    await client.emit("echo", BIG)
    seen["big"] = await echoes.get() == BIG

    for number in range(BURST):
        await client.emit("echo", number)
    seen["burst"] = [await echoes.get() for _ in range(BURST)] == list(range(BURST))

    await client.emit("goodbye", {})
    await asyncio.wait_for(gone.wait(), 10)
    await asyncio.sleep(0.2)
    seen["comes back"] = client.connected
    await client.disconnect()
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(asyncio.wait_for(run(sys.argv[1]), 60))))  # noqa: T201 - its output
