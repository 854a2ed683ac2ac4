"""What was handled is not in memory any more, refused or taken, though nobody collects rings of objects.

Python's collector runs when there are many objects, not when they are large: megabytes must not wait for it.
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
import trio.testing

from protocol.dubbing import FragmentData, parse
from protocol.errors import PayloadError
from protocol.socketio import ServerSocket, SocketError
from sts_trio.server.application import Peer
from sts_trio.testing.memory import memory_server
from sts_trio.testing.payloads import fragment, stream_init

from .recorder import Recorder, connected

LARGE = 2**20


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def keeps_nothing() -> Iterator[None]:
    """What is done inside leaves less behind than one large message."""
    with no_collector():
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            yield
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < LARGE / 2


class Payload(dict[str, Any]):
    """A payload that can be watched, as a plain dict cannot."""


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"x": "x" * LARGE}},
        {"sequence_number": None},
        {"audio": {}},
        {"stream_id": "another"},
        {"audio": fragment(0, duration_ms=1)["audio"] | {"data_base64": "A" * (16 * LARGE)}},
        {"sequence_number": 0},
    ],
    ids=["metadata", "null", "no audio", "no stream", "too large", "number taken"],
)
async def test_the_gateway_keeps_nothing_of_what_it_refuses(
    autojump_clock: trio.testing.MockClock, change: dict[str, Any]
) -> None:
    async with memory_server() as server:
        worker = server.worker()
        await worker.say("stream:init", stream_init())
        await worker.say("fragment:data", fragment(0))
        await worker.wait_for("fragment:processed")
        body = Payload(fragment(1) | change)
        watched = weakref.ref(body)
        with no_collector():
            await worker.say("fragment:data", body)
            await worker.wait_for("error")
            del body
            assert watched() is None


async def test_a_connection_keeps_nothing_of_a_message_that_was_handled() -> None:
    def refuse(peer: Peer, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        try:
            parse(FragmentData, args)
        except PayloadError as error:
            peer.emit("error", str(error))
        return ()

    def message(characters: int) -> str:
        return "42" + orjson.dumps(["fragment:data", fragment(0, metadata={"x": "x" * characters})]).decode()

    application = Recorder(on_event=refuse)
    async with connected(application) as scene:
        await scene.worker.join()

        async def be_refused(characters: int) -> None:
            await scene.worker.send(message(characters))
            assert "metadata" in str(await scene.worker.frame())
            application.events.clear()
            await trio.testing.wait_all_tasks_blocked()

        await be_refused(70_000)
        with keeps_nothing():
            await be_refused(LARGE)


@pytest.mark.parametrize("text", ['2["x","{}"', "7{}", '2["connect","{}"]', '2["x","{}\ud800"]'])
def test_nothing_of_a_packet_that_breaks_a_rule_stays(text: str) -> None:
    def broken() -> None:
        socket = ServerSocket()
        socket.receive("0")
        socket.accept("/", "sid")
        try:
            socket.receive(text.replace("{}", "x" * LARGE))
        except SocketError:
            return
        pytest.fail("it was taken")

    broken()
    with keeps_nothing():
        for _ in range(3):
            broken()
