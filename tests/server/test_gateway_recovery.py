"""Streams over connections that are recovered by Socket.IO, resumed by their workers, or both (`STS_RECOVERY_S`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock

from sts_trio.config import Settings
from sts_trio.engines.base import Transcript
from sts_trio.server.sockets import SocketSettings
from sts_trio.testing.engines import ScriptedAsr, Step, scripted_models
from sts_trio.testing.memory import memory_server
from sts_trio.testing.payloads import fragment, stream_init

from .memory import Server, serving
from .polling_client import Client

RECOVERY_S = 60.0


@define
class RecoveringWorker(Client):
    """A worker on long-polling, whose connection may be lost."""

    pid: str = ""
    offset: str = ""
    received: list[tuple[str, dict[str, Any]]] = field(factory=list)
    recovered: bool = False

    async def connect(self, before: RecoveringWorker | None = None) -> None:
        """Join; as who `before` was, where there is one."""
        await self.open()
        known = b"" if before is None else orjson.dumps({"pid": before.pid, "offset": before.offset})
        if before is not None:
            self.offset, self.received = before.offset, before.received
        await self.post(b"40" + known)
        while not self.pid:
            await self.read()
        self.recovered = before is not None and before.pid == self.pid

    async def say(self, event: str, body: object) -> None:
        assert (await self.post(b"42" + orjson.dumps([event, body]))).body == b"ok"

    async def read(self) -> None:
        """Poll once."""
        for packet in (await self.poll()).body.split(b"\x1e"):
            if packet.startswith(b"40"):
                self.pid = orjson.loads(packet[2:])["pid"]
            elif packet.startswith(b"42"):
                name, body, self.offset = orjson.loads(packet[2:])
                self.received.append((name, body))

    async def read_until(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        while len(self.got(event)) < count:
            await self.read()
        return self.got(event)

    async def lose(self) -> None:
        """The connection is gone; the worker may come back."""
        await self.post(b"1")

    def got(self, event: str) -> list[dict[str, Any]]:
        return [body for name, body in self.received if name == event]

    @property
    def numbers(self) -> list[int]:
        return [result["sequence_number"] for result in self.got("fragment:processed")]


@asynccontextmanager
async def dubbing(*, recovery_bytes: int = 2**24, **settings: Any) -> AsyncIterator[tuple[Server, Any]]:
    """The network, and the server behind it. A fragment takes a second."""
    models = scripted_models(ScriptedAsr(script=lambda _: Step(Transcript("hello"), 1)))
    sockets = SocketSettings(recovery_s=RECOVERY_S, recovery_bytes=recovery_bytes)
    async with (
        memory_server(models, Settings(**settings)) as server,
        serving(server.gateway, sockets=sockets) as network,
    ):
        yield network, server


async def lost_in_the_middle(network: Server) -> RecoveringWorker:
    """A worker that has the result of the first of four fragments when its connection goes."""
    worker = RecoveringWorker(network)
    await worker.connect()
    await worker.say("stream:init", stream_init())
    await worker.read_until("stream:ready")
    for number in range(4):
        await worker.say("fragment:data", fragment(number))
    await worker.read_until("fragment:processed")
    await worker.lose()
    return worker


async def test_over_a_recovered_connection_each_result_comes_once_and_in_order(autojump_clock: MockClock) -> None:
    async with dubbing() as (network, _):
        worker = await lost_in_the_middle(network)
        await trio.sleep(RECOVERY_S - 10)  # twice as long as a stream's own grace
        back = RecoveringWorker(network)
        await back.connect(worker)
        assert back.recovered
        await back.say("fragment:data", fragment(4))  # it need not know that it was away
        await back.say("stream:end", {"stream_id": "s"})
        await back.read_until("stream:complete")
        assert back.numbers == [0, 1, 2, 3, 4]
        assert len(back.got("stream:ready")) == 1
        assert back.got("error") == []


@pytest.mark.parametrize("says_what_it_has", [True, False])
async def test_who_is_recovered_and_resumes_as_well_gets_again_only_what_it_asks_for(
    says_what_it_has: bool, autojump_clock: MockClock
) -> None:
    async with dubbing() as (network, _):
        worker = await lost_in_the_middle(network)
        await trio.sleep(10)
        back = RecoveringWorker(network)
        await back.connect(worker)
        await back.read_until("fragment:processed", 4)
        resume = {"session_id": back.got("stream:ready")[0]["session_id"]}
        if says_what_it_has:
            resume["next_sequence_number"] = 4
        await back.say("stream:init", stream_init(resume=resume))
        await back.say("fragment:data", fragment(4))
        await back.say("stream:end", {"stream_id": "s"})
        await back.read_until("stream:complete")
        again = [] if says_what_it_has else [0, 1, 2, 3]  # all that it never acknowledged, in order
        assert back.numbers == [0, 1, 2, 3, *again, 4]
        assert back.got("error") == []


async def test_what_was_acknowledged_is_not_sent_again_however_one_comes_back(autojump_clock: MockClock) -> None:
    async with dubbing() as (network, _):
        worker = await lost_in_the_middle(network)
        back = RecoveringWorker(network)
        await back.connect(worker)
        await back.read_until("fragment:processed", 4)
        for number in range(3):
            await back.say("fragment:ack", {"fragment_id": f"f{number}", "status": "applied", "timestamp": 0})
        session_id = back.got("stream:ready")[0]["session_id"]
        await back.say("stream:init", stream_init(resume={"session_id": session_id}))
        await back.say("stream:end", {"stream_id": "s"})
        await back.read_until("stream:complete")
        assert back.numbers == [0, 1, 2, 3, 3]


async def test_what_cannot_be_recovered_any_more_can_be_resumed(autojump_clock: MockClock) -> None:
    """What was missed is more than was kept: the old peer is given up, and its streams wait for a resume."""
    async with dubbing(recovery_bytes=1_000) as (network, server):
        worker = await lost_in_the_middle(network)
        await trio.sleep(10)
        back = RecoveringWorker(network)
        await back.connect(worker)
        assert not back.recovered
        assert server.gateway.active_streams == 1
        session_id = back.got("stream:ready")[0]["session_id"]
        resume = {"session_id": session_id, "next_sequence_number": 1}
        await back.say("stream:init", stream_init(resume=resume))
        await back.read_until("fragment:processed", 4)
        assert back.numbers == [0, 1, 2, 3]


async def test_the_grace_of_a_stream_begins_when_its_connection_can_be_recovered_no_more(
    autojump_clock: MockClock,
) -> None:
    async with dubbing(resume_grace_s=5) as (network, server):
        worker = await lost_in_the_middle(network)
        await trio.sleep(RECOVERY_S + 4)
        assert server.gateway.active_streams == 1
        back = RecoveringWorker(network)
        await back.connect(worker)
        assert not back.recovered
        resume = {"session_id": back.got("stream:ready")[0]["session_id"], "next_sequence_number": 1}
        await back.say("stream:init", stream_init(resume=resume))
        await back.read_until("fragment:processed", 4)
        assert back.numbers == [0, 1, 2, 3]
        await back.lose()
        await trio.sleep(RECOVERY_S + 6)
        assert server.gateway.active_streams == 0


async def test_a_connection_recovered_before_its_loss_was_noticed_takes_its_streams_along(
    autojump_clock: MockClock,
) -> None:
    async with dubbing() as (network, server):
        worker = RecoveringWorker(network)
        await worker.connect()
        await worker.say("stream:init", stream_init())
        await worker.read_until("stream:ready")
        await worker.say("fragment:data", fragment(0))
        back = RecoveringWorker(network)
        await back.connect(worker)
        assert back.recovered
        await trio.sleep(5)
        await back.read_until("fragment:processed")
        assert (await worker.poll()).status == 400
        assert server.gateway.active_streams == 1
        await back.say("stream:end", {"stream_id": "s"})
        await back.read_until("stream:complete")
        assert back.numbers == [0]


async def test_who_starts_afresh_after_a_recovery_hears_nothing_of_the_old_stream(autojump_clock: MockClock) -> None:
    async with dubbing() as (network, server):
        worker = await lost_in_the_middle(network)
        back = RecoveringWorker(network)
        await back.connect(worker)
        before = len(back.numbers)
        await back.say("stream:init", stream_init())
        await back.say("fragment:data", fragment(7))
        await back.say("stream:end", {"stream_id": "s"})
        await back.read_until("stream:complete")
        assert back.numbers[before:] == [7]
        assert server.in_flight == 0
