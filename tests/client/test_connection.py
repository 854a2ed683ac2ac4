"""One connection: what it says on its way in, and how long it lasts."""

from __future__ import annotations

import ssl
from contextlib import suppress

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protocol.dubbing import FragmentProcessed, ResultAck, ServerEvent, StreamComplete, StreamInit
from sts_trio.client.connection import Address, Connection, ConnectionLost, ServerUnreachable

from .fake_server import CONFIG, URL, FakeServer, Peer, complete, dubbed, fragment


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
            assert deliver is not None
            uplink[0].send_all_hook = deliver
            await deliver()
            await trio.sleep(37)

        server = FakeServer(nursery, script)
        connection = Connection(Address.parse(URL), open_stream=open_stream)
        await nursery.start(connection.run)
        deliver = uplink[0].send_all_hook
        uplink[0].send_all_hook = slowly
        await connection.send(StreamInit("stream", "worker", CONFIG))
        await trio.sleep(50)
    assert pongs == [1]


@pytest.mark.parametrize(
    ("url", "host"), [("http://[::1]:8000", b"[::1]:8000"), ("https://dubbing.test", b"dubbing.test:443")]
)
async def test_the_request_names_its_host(autojump_clock: MockClock, url: str, host: bytes) -> None:
    ours, theirs = trio.testing.memory_stream_pair()

    async def open_stream() -> trio.abc.Stream:
        return ours

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(Address.parse(url), open_stream=open_stream).run)
        request = bytes(await theirs.receive_some())
        nursery.cancel_scope.cancel()
    assert b"\r\nHost: " + host + b"\r\n" in request


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\n  <!doctype html>\r\n<p>" + b"a page" * 500, "HTTP 404 <!doctype html>"),
        (b"<html>" + b"x" * 3_000, f"HTTP 404 <html>{'x' * 93}…"),
        (b"\x1b[2Jno\x07 \xff", "HTTP 404 [2Jno \N{REPLACEMENT CHARACTER}"),
        (b"", "HTTP 404"),
    ],
)
async def test_of_the_page_of_another_kind_of_server_one_line_is_told(
    autojump_clock: MockClock, body: bytes, said: str
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()

    async def open_stream() -> trio.abc.Stream:
        return ours

    async def serve() -> None:
        await theirs.receive_some()
        head = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(body)
        await theirs.send_all(head + body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(ServerUnreachable) as caught:
            await Connection(Address.parse(URL), open_stream=open_stream).run()
    assert str(caught.value) == f"cannot connect to {URL}: {said}"
    assert not caught.value.nobody_listens


async def test_a_cancelled_tls_handshake_leaves_no_socket(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()

    async def open_ssl(host: str, port: int, **options: object) -> trio.SSLStream[trio.abc.Stream]:
        carrier: trio.abc.Stream = ours
        return trio.SSLStream(carrier, ssl.create_default_context(), server_hostname=host)

    monkeypatch.setattr(trio, "open_ssl_over_tcp_stream", open_ssl)
    with trio.move_on_after(1) as scope:
        await Address.parse("https://dubbing.test").open_stream()
    assert scope.cancelled_caught
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")
    await theirs.aclose()


async def test_what_has_come_is_read_although_the_server_has_closed(autojump_clock: MockClock) -> None:
    """A draining server completes the stream and closes, while its last results are still to be acknowledged."""
    heard: list[ServerEvent] = []

    async def script(peer: Peer) -> None:
        await peer.open()
        for number in range(5):
            await peer.send(dubbed(fragment(number)))
        await peer.send(complete())
        await peer.close()

    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery, script)
        connection = Connection(Address.parse(URL), open_stream=server.open_stream)
        await nursery.start(connection.run)
        await connection.send(StreamInit("stream", "worker", CONFIG))
        with suppress(ConnectionLost):
            while True:
                heard.append(await connection.receive())
                await trio.sleep(1)
                if isinstance(heard[-1], FragmentProcessed):
                    await connection.send(ResultAck(heard[-1].fragment_id, "applied"))
    assert [type(event) for event in heard].count(FragmentProcessed) == 5
    assert isinstance(heard[-1], StreamComplete)
