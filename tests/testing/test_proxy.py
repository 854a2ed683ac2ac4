"""What a proxy does to a connection, byte for byte, over real sockets of this machine."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from sts_trio.testing.proxy import Ending, Fate, Proxy, open_proxy, seeded_fates

SILENCE_S = 0.05
"""What has not come through a socket of this machine by then does not come."""


Handler = Callable[[trio.SocketStream], Awaitable[None]]


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


@asynccontextmanager
async def through(fate: Fate, server: Handler = echo) -> AsyncIterator[tuple[Proxy, trio.SocketStream]]:
    """A client, behind a proxy to a server."""

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # the proxy has reset it
            await server(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        async with (
            open_proxy(listener.socket.getsockname()[1], lambda: fate) as proxy,
            await trio.open_tcp_stream("127.0.0.1", proxy.port) as client,
        ):
            yield proxy, client
        nursery.cancel_scope.cancel()


async def receive(stream: trio.SocketStream, count: int) -> bytes:
    """`count` bytes, or what there is of them."""
    data = b""
    with trio.move_on_after(SILENCE_S):
        while len(data) < count and (more := await stream.receive_some(count - len(data))):
            data += more
    return data


async def test_without_an_ending_everything_goes_through() -> None:
    async with through(Fate()) as (proxy, client):
        await client.send_all(b"x" * 200_000)
        assert await receive(client, 200_000) == b"x" * 200_000
        assert proxy.accepted == 1


async def test_a_close_cuts_at_its_byte() -> None:
    async with through(Fate(Ending.CLOSE, after_bytes=150)) as (proxy, client):
        await client.send_all(b"x" * 100)
        with trio.fail_after(1):
            assert b"".join([data async for data in client]) == b"x" * 50  # there are 100, back come 50
        assert proxy.ended[Ending.CLOSE] == 1


async def test_a_reset_is_one() -> None:
    async with through(Fate(Ending.RESET, after_bytes=10)) as (_, client):
        await client.send_all(b"x" * 100)
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(1):
            await client.receive_some()


async def test_a_stall_ends() -> None:
    async with through(Fate(Ending.STALL, after_bytes=100, stall_s=3 * SILENCE_S)) as (_, client):
        await client.send_all(b"x" * 100)
        assert await receive(client, 100) == b""
        with trio.fail_after(1):
            assert await client.receive_some() == b"x" * 100


@pytest.mark.parametrize("ending", [Ending.STALL_UP, Ending.STALL_DOWN])
async def test_one_way_can_stall_alone(ending: Ending) -> None:
    """After 45 bytes, of which 40 went down and 5 up."""
    received = bytearray()

    async def server(stream: trio.SocketStream) -> None:
        await stream.send_all(b"d" * 40)
        await trio.sleep(SILENCE_S)
        await stream.send_all(b"d" * 40)
        async for data in stream:
            received.extend(data)

    async with through(Fate(ending, after_bytes=45), server) as (_, client):
        down = await receive(client, 40)
        await client.send_all(b"u" * 10)
        await trio.sleep(2 * SILENCE_S)
        down += await receive(client, 40)
    assert (len(received), len(down)) == ((5, 80) if ending is Ending.STALL_UP else (10, 40))


async def test_half_open_is_for_ever_and_nobody_is_told() -> None:
    async with through(Fate(Ending.STALL, stall_s=math.inf)) as (proxy, client):
        await client.send_all(b"x")
        assert await receive(client, 1) == b""
        proxy.reset_all()
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(1):
            await client.receive_some()


def test_a_seed_is_a_sequence_of_fates() -> None:
    choices = [Fate(Ending.RESET, after_bytes=1_000), Fate(Ending.CLOSE, after_bytes=1_000)]
    first, second, other = (seeded_fates(seed, choices) for seed in (1, 1, 2))
    drawn = [first() for _ in range(20)]
    assert drawn == [second() for _ in range(20)] != [other() for _ in range(20)]
    assert {fate.ending for fate in drawn} == {Ending.RESET, Ending.CLOSE}
    assert max(fate.after_bytes for fate in drawn) <= 2_000
