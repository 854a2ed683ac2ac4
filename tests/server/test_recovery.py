"""Clients that lose their connection and come back, and those that do not, as the application sees them."""

from __future__ import annotations

import orjson
import trio
import trio.testing
from trio.testing import MockClock

from protocol.engineio import CloseReason
from sts_trio.server.sockets import SocketSettings

from .memory import serving
from .polling_client import Client, joined
from .recorder import Recorder

RECOVERY = SocketSettings(recovery_s=60)


async def test_the_application_does_not_notice_that_a_client_was_away(autojump_clock: MockClock) -> None:
    application = Recorder()
    async with serving(application, sockets=RECOVERY) as server:
        client = Client(server)
        state = await client.join()
        (peer,) = application.peers
        peer.emit("n", 1)
        offset = (await client.poll_event())[-1]
        await client.post(b"1")
        await trio.sleep(30)
        assert not peer.closed
        peer.emit("n", 2)

        drained = trio.Event()

        async def drain() -> None:
            await peer.drained()
            drained.set()

        server.nursery.start_soon(drain)
        await trio.testing.wait_all_tasks_blocked()
        assert not drained.is_set()

        back = Client(server)
        await back.open()
        await back.post(b"40" + orjson.dumps({"pid": state["pid"], "offset": offset}))
        missed, answer = (await back.poll()).body.split(b"\x1e")
        assert orjson.loads(missed[2:])[:2] == ["n", 2]
        assert orjson.loads(answer[2:]) == state
        await trio.testing.wait_all_tasks_blocked()
        assert drained.is_set()
        assert application.peers == [peer]
        assert application.gone == []


async def test_who_does_not_come_back_in_time_is_gone(autojump_clock: MockClock) -> None:
    async with joined(sockets=RECOVERY) as (client, application):
        await client.post(b"1")
        (peer,) = application.peers
        left = trio.current_time()
        await trio.sleep(59.9)
        assert application.gone == []
        await trio.sleep(0.2)
        assert [id for id, _ in application.gone] == [peer.id]
        assert peer.closed
        assert trio.current_time() - left < 61


async def test_a_stop_gives_up_who_is_away(autojump_clock: MockClock) -> None:
    async with joined(sockets=RECOVERY) as (client, application):
        await client.post(b"1")
        client.server.engine.drain()
        assert len(application.gone) == 1


async def test_an_application_may_close_who_is_away(autojump_clock: MockClock) -> None:
    async with joined(sockets=RECOVERY) as (client, application):
        await client.post(b"1")
        application.peers[0].close()
        assert [reason for _, reason in application.gone] == [CloseReason.SERVER_CLOSE]
        await trio.sleep(120)
        assert len(application.gone) == 1


async def test_who_was_sent_away_cannot_come_back(autojump_clock: MockClock) -> None:
    application = Recorder()
    async with serving(application, sockets=RECOVERY) as server:
        client = Client(server)
        state = await client.join()
        (peer,) = application.peers
        peer.emit("n")
        offset = (await client.poll_event())[-1]
        peer.close()
        back = await Client(server).join(orjson.dumps({"pid": state["pid"], "offset": offset}))
        assert back["sid"] != peer.id
        assert len(application.peers) == 2
        await client.post(b"1")  # its connection is lost before it has read why
        await trio.testing.wait_all_tasks_blocked()
        assert application.gone == [(peer.id, CloseReason.SERVER_CLOSE)]


async def test_who_is_lost_during_a_stop_is_gone(autojump_clock: MockClock) -> None:
    async with joined(sockets=RECOVERY) as (client, application):
        client.server.engine.drain()
        await client.post(b"1")
        await trio.testing.wait_all_tasks_blocked()
        assert len(application.gone) == 1


async def test_a_client_may_come_back_before_its_old_connection_is_known_to_be_dead(
    autojump_clock: MockClock,
) -> None:
    application = Recorder()
    async with serving(application, sockets=RECOVERY) as server:
        old = Client(server)
        state = await old.join()
        (peer,) = application.peers
        peer.emit("n", 1)
        offset = (await old.poll_event())[-1]
        peer.emit("n", 2)  # it never polls again
        back = Client(server)
        await back.open()
        await back.post(b"40" + orjson.dumps({"pid": state["pid"], "offset": offset}))
        assert b'["n",2,' in (await back.poll()).body
        assert (await old.poll()).status == 400
        assert application.gone == []
        peer.emit("n", 3)
        assert b'["n",3,' in (await back.poll()).body
