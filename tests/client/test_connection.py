"""One connection: what it says on its way in, and how long it lasts."""

from __future__ import annotations

import trio
import trio.testing
from trio.testing import MockClock

from protocol.dubbing import StreamInit
from sts_trio.client.connection import Address, Connection

from .fake_server import CONFIG, URL, FakeServer, Peer


async def test_a_pong_waits_its_turn_on_a_slow_uplink(autojump_clock: MockClock) -> None:
    """The ping that it answers has moved the moment at which the server counts as lost."""
    pongs: list[int] = []

    async def script(peer: Peer) -> None:
        peer.alive = False  # no pings but this one
        await peer.accept()
        await peer.receive_one(StreamInit)
        await trio.sleep(34)
        await peer.ping()
        with trio.move_on_after(9):
            await peer.receive()
        pongs.append(peer.pongs)

    async with trio.open_nursery() as nursery:
        uplink: list[trio.testing.MemorySendStream] = []

        async def open_stream() -> trio.abc.Stream:
            stream = await server.open_stream()
            assert isinstance(stream, trio.StapledStream)
            uplink.append(stream.send_stream)
            return stream

        async def slowly() -> None:
            uplink[0].send_all_hook = deliver
            await deliver()
            await trio.sleep(37)

        server = FakeServer(nursery, script)
        connection = Connection(Address.parse(URL), open_stream=open_stream)
        await nursery.start(connection.run)
        deliver = uplink[0].send_all_hook
        assert deliver is not None
        uplink[0].send_all_hook = slowly
        await connection.send(StreamInit("stream", "worker", CONFIG))
        await trio.sleep(50)
    assert pongs == [1]
