"""python-socketio's clients, unmodified, doing all that a worker does, in every way they can connect.

Usage: ``python -m tests.clients.python_scenarios URLS``, a JSON object of the servers' URLs. When the clients that are
to see their server stop have connected it prints "connected"; in the end, as one JSON object,
``{client: {transport: {scenario: what it saw}}}``. A scenario that fails says so under "error", next to what it had
seen.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from attrs import define, field

from .python_clients import CLIENTS, Client, ConnectionRefused
from .wire import Wire, wire_to

TRANSPORTS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "polling": {"transports": ["polling"]},
    "websocket": {"transports": ["websocket"]},
}
SCENARIO_TIMEOUT_S: Final = 40.0
FORGET_TIMEOUT_S: Final = 15.0
"""Far from the ping timeout of a calm server."""
ARRIVES_S: Final = 0.5
"""Until the server has surely read what was sent to it."""
RECONNECTION_S: Final = 2.0
"""Over the library's first attempt to connect again."""
IDLE_S: Final = 7.0
BURST: Final = 500


@define
class Scene:
    """A kind of client, a way of connecting, and what is seen."""

    make: Callable[[], Client]
    way: dict[str, Any]
    urls: dict[str, str]
    connected: Callable[[], None]
    """To be called by a client that is to see its server stop."""
    seen: dict[str, Any] = field(factory=dict)

    @asynccontextmanager
    async def open(self, url: str, *namespaces: str, **options: Any) -> AsyncIterator[Client]:
        client = self.make()
        await client.connect(url, list(namespaces or "/"), **self.way, **options)
        try:
            yield client
        finally:
            await client.disconnect()


async def ask_about(url: str, sid: str, transport: str) -> int | None:
    """What the server says of an Engine.IO session when asked in a way that does it no harm, over the transport it is
    not on: 3 (bad request) of a live one, 1 (session ID unknown) of one that has ended."""
    query = {"EIO": "4", "transport": "websocket" if transport == "polling" else "polling", "sid": sid}
    async with aiohttp.ClientSession() as http, http.get(f"{url}/socket.io/", params=query) as answer:
        code: int | None = (await answer.json(content_type=None))["code"]
        return code


async def forgets(url: str, session: tuple[str, str]) -> bool:
    async with asyncio.timeout(FORGET_TIMEOUT_S):
        while await ask_about(url, *session) != 1:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    return True


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the library has no event of it that all its clients share
        await asyncio.sleep(0.02)


async def conversation(scene: Scene) -> None:
    seen, calm = scene.seen, scene.urls["calm"]
    async with scene.open(calm, auth={"token": "right", "n": [1, 2.5, None]}) as client:
        session = client.session
        seen["transport"] = session[1]
        seen["auth"] = await client.take("auth")
        seen["burst"] = await client.echoes([[n] for n in range(BURST)])
        seen["own sid"] = bool(client.sid) and client.sid != session[0]

        seen["echo"] = await client.echo("ñ ☃ 𝄞 \u2028", {"a": [1, 2.5, None, True]}, [])
        seen["echo of nothing"] = await client.echo()
        seen["ack"] = await client.ask("message-with-ack", {"n": 1}, "two")
        seen["ack of nothing"] = await client.ask("message-with-ack")
        answers = await asyncio.gather(*(client.ask("message-with-ack", n) for n in range(50)))
        seen["acks at once"] = answers == [[n] for n in range(50)]

        data = bytes(range(256))
        text, got = await client.echo("mixed", {"data": data, "more": [b"", b"\1" * 100_000]})
        seen["binary"] = [text, got["data"] == data, len(got["more"][0]), got["more"][1] == b"\1" * 100_000]
        ((binary, text),) = await client.ask("message-with-ack", [b"\2\3", "and text"])
        seen["binary ack"] = [binary.hex(), text]

        mixed = [[n if n % 2 else bytes([n])] for n in range(60)]
        if client.keeps_order:
            seen["mixed burst"] = await client.echoes(mixed)
        else:  # its threads give attachments to the wrong event when several come at once
            seen["mixed burst"] = all([await client.echoes([args]) for args in mixed])

        # Only one: the library puts all it has to say into one POST, whatever the server takes.
        seen["big"] = await client.echoes([["a" * 900_000]])
        seen["big binary"] = await client.echo(data * 2_700) == [data * 2_700]
        seen["alive in between"] = client.session == session and await ask_about(calm, *session) == 3
    seen["server notices the end"] = await forgets(calm, session)


async def short_visit(scene: Scene) -> None:
    """Gone again before anything is said."""
    calm = scene.urls["calm"]
    async with scene.open(calm) as client:
        session = client.session
    scene.seen["server notices the end"] = await forgets(calm, session)
    async with scene.open(calm) as client:
        scene.seen["auth of none"] = await client.take("auth")


async def namespaces(scene: Scene) -> None:
    seen, calm = scene.seen, scene.urls["calm"]
    if scene.make is CLIENTS["SimpleClient"]:  # has one
        async with scene.open(calm, "/custom", auth={"of": "all"}) as client:
            seen["auth of the second"] = await client.take("auth")
        return
    async with scene.open(calm, "/", "/custom", "/nowhere", wait=False, auth={"of": "all"}) as client:
        seen["auth"] = await client.take("auth")
        seen["auth of the second"] = await client.take("auth", "/custom")
        (error,) = await client.take("connect_error", "/nowhere")
        seen["refusal"] = error["message"]
        seen["sids differ"] = client.sid != client.client.get_sid("/custom")
        seen["echo"] = await client.echo("still there")


async def refused(scene: Scene) -> None:
    client = scene.make()
    try:
        await client.connect(scene.urls["calm"], ["/nowhere"], **scene.way)
    except ConnectionRefused as error:
        scene.seen["refusal"] = str(error)
    await client.connect(scene.urls["calm"], ["/"], **scene.way)
    scene.seen["echo"] = await client.echo("let in elsewhere")
    await client.disconnect()
    try:
        await client.connect(scene.urls["calm"], ["/"], socketio_path="elsewhere", **scene.way)
    except ConnectionRefused:
        scene.seen["wrong path"] = "refused"
    await client.disconnect()


async def sent_away(scene: Scene) -> None:
    """Refused with a reason, and let in after all; then sent away, which is not for the library to undo."""
    seen, strict = scene.seen, scene.urls["strict"]
    client = scene.make()
    try:
        await client.connect(strict, ["/"], auth={"token": "wrong"}, **scene.way)
    except ConnectionRefused as error:
        # `SimpleClient` tells no more.
        seen["refusal"] = (await client.take("connect_error"))[0] if client.has_handlers else str(error)
    await client.connect(strict, ["/"], auth={"token": "right"}, **scene.way)
    seen["auth let in"] = await client.take("auth")

    sid, session = client.sid, client.session
    assert sid is not None
    await client.emit("goodbye", [])
    seen["farewell came first"] = await client.take("farewell") == []
    if client.has_handlers:
        (seen["reason here"],) = await client.take("disconnect")
    await until(lambda: client.sid is None)
    seen["server forgets"] = await forgets(strict, session)
    await asyncio.sleep(RECONNECTION_S)
    seen["comes back by itself"] = client.sid is not None
    await client.disconnect()
    async with scene.open(strict, auth={"token": "right"}) as again:
        seen["auth of a new beginning"] = await again.take("auth")
        seen["reason there"] = await left(again, sid)
        async with scene.open(strict) as other:
            sid = other.sid
            assert sid is not None
        seen["reason there when it leaves itself"] = await left(again, sid)


async def left(client: Client, sid: str) -> Any:
    while (answer := await client.ask("how did it leave", sid)) == []:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.02)
    return answer[0]


@asynccontextmanager
async def comes_back(scene: Scene, url: str, server: str | None, *, told: bool = False) -> AsyncIterator[Client]:
    """What is inside breaks the connection of the client. Its library notices, so does the server, and the library
    connects again by itself.

    Args:
        url: what the client connects to.
        server: what must forget the client's session; None where it is gone.
        told: the server closes the session. On long-polling the library takes that for the wish that it stays away, but
            does not if it learns it from an answer that its POST gets first. So it only has to be told.
    """
    seen = scene.seen
    async with scene.open(url, auth={"token": "right"}) as client:
        sid, session = client.sid, client.session
        seen["auth"] = await client.take("auth")
        seen["before"] = await client.echo("before")
        yield client
        await until(lambda: client.sid != sid)
        seen["server forgets"] = server is None or await forgets(server, session)
        if told and session[1] == "polling":
            return
        await until(lambda: client.sid not in (None, sid))
        seen["new session"] = client.session[0] != session[0]
        seen["auth again"] = await client.take("auth")
        seen["after"] = await client.echo("after")


async def settled(wire: Wire, client: Client) -> None:
    """On long-polling the server notices by the poll that it holds."""
    if client.session[1] == "polling":
        await wire.held()
    await asyncio.sleep(ARRIVES_S)


async def cut(scene: Scene) -> None:
    calm = scene.urls["calm"]
    async with wire_to(calm) as wire, comes_back(scene, wire.url, calm) as client:
        await settled(wire, client)
        wire.cut()
        await until(lambda: client.sid is None)
        wire.mend()


async def silent_wire(scene: Scene) -> None:
    lively = scene.urls["lively"]
    async with wire_to(lively) as wire, comes_back(scene, wire.url, lively) as client:
        await settled(wire, client)
        wire.silence()
        await until(lambda: client.sid is None)
        wire.mend()


async def closed_by_server(scene: Scene) -> None:
    async with comes_back(scene, scene.urls["calm"], scene.urls["calm"], told=True) as client:
        await client.send_raw("not a packet")


async def too_large(scene: Scene) -> None:
    """Of what is too large for the server only the sender has to suffer, and not for long."""
    async with comes_back(scene, scene.urls["lively"], scene.urls["lively"], told=True) as client:
        await client.emit("message", ["a" * 1_100_000])


async def server_restart(scene: Scene) -> None:
    async with comes_back(scene, scene.urls["restarting"], None, told=True):
        scene.connected()


async def no_websockets(scene: Scene) -> None:
    """Where something between the two lets no WebSocket through, all goes on over long-polling."""
    if scene.way:
        return
    async with wire_to(scene.urls["calm"], websockets=False) as wire, scene.open(wire.url) as client:
        scene.seen["burst"] = await client.echoes([[n] for n in range(BURST)])
        scene.seen["transport"] = client.session[1]
        scene.seen["echo"] = await client.echo("still there")


async def idle(scene: Scene) -> None:
    async with scene.open(scene.urls["lively"]) as client:
        sid = client.sid
        await asyncio.sleep(IDLE_S)
        scene.seen["stays"] = client.sid == sid
        scene.seen["echo"] = await client.echo("still there")


Scenario = Callable[[Scene], Awaitable[None]]

SCENARIOS: Final[tuple[tuple[Scenario, ...], ...]] = (
    (conversation, no_websockets),
    (short_visit, namespaces, refused, sent_away, cut, closed_by_server, too_large, silent_wire, server_restart, idle),
)
"""Those that keep the machine busy come before those that mostly wait, and would wait too long then."""


async def play(scenario: Scenario, scene: Scene) -> dict[str, Any]:
    try:
        async with asyncio.timeout(SCENARIO_TIMEOUT_S):
            await scenario(scene)
    except Exception:  # noqa: BLE001 - whatever it is, it is told, and the others go on
        scene.seen["error"] = traceback.format_exc()
    return scene.seen


async def main(urls: dict[str, str]) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(100))
    missing = len(CLIENTS) * len(TRANSPORTS)

    def connected() -> None:
        nonlocal missing
        missing -= 1
        if missing == 0:
            print("connected", flush=True)  # noqa: T201

    seen: dict[str, dict[str, dict[str, Any]]] = {client: {way: {} for way in TRANSPORTS} for client in CLIENTS}

    async def play_one(scenario: Scenario, client: str, transport: str) -> None:
        scene = Scene(CLIENTS[client], TRANSPORTS[transport], urls, connected)
        seen[client][transport][scenario.__name__] = await play(scenario, scene)

    for scenarios in SCENARIOS:
        async with asyncio.TaskGroup() as tasks:
            for scenario, client, transport in itertools.product(scenarios, CLIENTS, TRANSPORTS):
                tasks.create_task(play_one(scenario, client, transport))
    print(json.dumps(seen), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
