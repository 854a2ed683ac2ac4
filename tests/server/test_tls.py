"""TLS on the door's port: who gets through, who is told what, and that nothing is lost when a connection ends."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog.testing
import trio
import trio.testing
import trustme
from attrs import frozen
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair
from trio_websocket import wrap_client_stream

from sts_trio.config import ConfigError
from sts_trio.server import door
from sts_trio.server.admission import Admission, AdmissionLimits
from sts_trio.server.tls import PLAIN_ANSWER, SpokenPlainly, TLSTransport, accept_tls, server_context
from sts_trio.server.websocket import LINGER_S, AcceptedStream

from .memory import FakeSocket, Pair, Server, ServerEnd, read_answer, read_one_answer, serving
from .test_door import HEALTH, WORKER, Nobody, refused


@frozen
class Identity:
    """A server's certificate for this machine in files, and clients that trust it."""

    certificate: Path
    key: Path
    authority: trustme.CA

    @property
    def server(self) -> ssl.SSLContext:
        return server_context(self.certificate, self.key)

    @property
    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    @classmethod
    def make(cls, folder: Path) -> Identity:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return cls(certificate, key, authority)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.make(tmp_path_factory.mktemp("identity"))


def encrypted(stream: Any, context: ssl.SSLContext) -> trio.SSLStream[Any]:
    """A client that insists on close_notify: it takes an end without for a broken connection."""
    return trio.SSLStream(stream, context, server_hostname="localhost")


async def read_to_end(stream: Any) -> None:
    while await stream.receive_some():
        pass


def quiet(logs: list[Any]) -> bool:
    return {line["log_level"] for line in logs} <= {"debug", "info"}


# -------------------------------------------------------------------------------------- through the door


async def test_plain_http_is_answered_and_ended_with_close_notify(
    autojump_clock: MockClock, identity: Identity
) -> None:
    async with serving(Nobody(), tls=identity.server) as server:
        client = encrypted(server.network.connect(), identity.client)
        await client.send_all(HEALTH[:-2] + b"Connection: close\r\n\r\n")
        answer = await read_answer(client)  # until the end, which must be one
        assert (answer.status, answer.json["status"]) == (200, "healthy")
        assert client.version() in ("TLSv1.2", "TLSv1.3")
        await client.aclose()
        await server.network.accepted[0].closed.wait()
        assert trio.current_time() == 0


async def test_a_client_that_closes_as_soon_as_it_has_its_answer_has_it(
    autojump_clock: MockClock, identity: Identity
) -> None:
    """A session on long-polling goes on after each of its connections."""
    target = "/socket.io/?EIO=4&transport=polling"
    async with serving(Nobody(), tls=identity.server) as server:
        for number in range(3):
            client = encrypted(server.network.connect(lockstep_stream_pair), identity.client)
            await client.send_all(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer, _ = await read_one_answer(client)
            assert (number, answer.status) == (number, 200)
            await trio.aclose_forcefully(client)
            await trio.testing.wait_all_tasks_blocked()
            if number == 0:
                target += "&sid=" + orjson.loads(answer.body[1:])["sid"]
                await post(server, identity, target, b"40")
            if number == 1:
                assert answer.body.startswith(b"40{")
                await post(server, identity, target, b"41\x1e40")  # joins again: there is something to poll


async def post(server: Server, identity: Identity, target: str, body: bytes) -> None:
    client = encrypted(server.network.connect(), identity.client)
    await client.send_all(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    answer, _ = await read_one_answer(client)
    assert answer.body == b"ok"
    await trio.aclose_forcefully(client)
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_worker_is_served(autojump_clock: MockClock, identity: Identity, version: ssl.TLSVersion) -> None:
    context = identity.client
    context.maximum_version = context.minimum_version = version
    async with serving(Nobody(), tls=identity.server) as server:
        client = encrypted(server.network.connect(), context)
        worker = await wrap_client_stream(server.nursery, client, "x", "/socket.io/?EIO=4&transport=websocket")
        assert str(await worker.get_message()).startswith("0{")
        await worker.send_message("40")
        assert str(await worker.get_message()).startswith("40")
        await worker.aclose()
        await server.network.accepted[0].closed.wait()


@pytest.mark.parametrize(("offered", "agreed"), [(["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)])
async def test_only_http_1_1_is_agreed_to(
    autojump_clock: MockClock, identity: Identity, offered: list[str], agreed: str | None
) -> None:
    context = identity.client
    if offered:
        context.set_alpn_protocols(offered)
    async with serving(Nobody(), tls=identity.server) as server:
        client = encrypted(server.network.connect(), context)
        await client.do_handshake()
        assert client.selected_alpn_protocol() == agreed


async def test_plain_http_on_a_tls_port_is_told_so(autojump_clock: MockClock, identity: Identity) -> None:
    async with serving(Nobody(), tls=identity.server) as server:
        answer = await server.get("/health")
    assert (answer.status, answer.body.decode()) == (400, PLAIN_ANSWER)
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_a_client_that_stalls_is_closed_in_time_and_without_a_word(
    autojump_clock: MockClock, identity: Identity, said: bytes
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving(Nobody(), tls=identity.server) as server:
            client = server.network.connect()
            if said:
                await client.send_all(said)
            assert await client.receive_some() == b""
            assert trio.current_time() == door.HEAD_TIMEOUT_S
    assert [line["log_level"] for line in logs] == ["debug"]


async def test_handshake_and_head_share_the_time(autojump_clock: MockClock, identity: Identity) -> None:
    async with serving(Nobody(), tls=identity.server) as server:
        client = encrypted(server.network.connect(), identity.client)
        await trio.sleep(6)
        await client.do_handshake()
        answer = await read_answer(client)
        assert answer.status == 408
        assert trio.current_time() == door.HEAD_TIMEOUT_S


async def test_a_handshake_may_come_byte_by_byte(autojump_clock: MockClock, identity: Identity) -> None:
    client_end, server_end = memory_stream_pair()
    end = ServerEnd(server_end, FakeSocket())
    client = encrypted(Trickle(client_end), identity.client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        transport = await accept_tls(end, identity.server)  # type: ignore[arg-type]
    await client.send_all(b"hello")
    assert await transport.receive_some(1) == b"h"
    assert await transport.receive_some() == b"ello"


class Trickle(trio.abc.Stream):
    """Sends byte by byte."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def send_all(self, data: Any) -> None:
        for byte in bytes(data):
            await self._stream.send_all(bytes([byte]))
            await trio.sleep(0.001)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = await self._stream.receive_some(max_bytes)
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_a_handshake_that_fails_is_no_news_and_the_next_client_is_served(
    autojump_clock: MockClock, identity: Identity
) -> None:
    async def shake(server: Server, context: ssl.SSLContext) -> None:
        client = encrypted(server.network.connect(), context)
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)
        await trio.aclose_forcefully(client)

    too_old = identity.client
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        too_old.minimum_version = too_old.maximum_version = ssl.TLSVersion.TLSv1_1
    too_old.set_ciphers("ALL:@SECLEVEL=0")
    with structlog.testing.capture_logs() as logs:
        async with serving(Nobody(), tls=identity.server) as server:
            await shake(server, ssl.create_default_context())  # does not trust the certificate, and says so
            await shake(server, too_old)
            await server.network.connect().aclose()
            client = encrypted(server.network.connect(), identity.client)
            await client.send_all(HEALTH)
            assert (await read_answer(client)).status == 200
            assert trio.current_time() < door.HEAD_TIMEOUT_S
    assert quiet(logs)


@given(said=st.binary(max_size=200))
@settings(deadline=None, max_examples=30)
@pytest.mark.slow
def test_no_bytes_crash_a_tls_port(identity: Identity, said: bytes) -> None:
    async def main() -> None:
        async with serving(Nobody(), tls=identity.server) as server:
            for start in (b"\x16", b"\x16\x03\x01", b"\x16\x03\x03\x00\x10\x01"):
                client = server.network.connect()
                await client.send_all(start + said)
                await client.send_eof()
                await read_to_end(client)

    with structlog.testing.capture_logs() as logs:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert quiet(logs)


async def test_who_is_over_a_limit_costs_no_handshake(autojump_clock: MockClock, identity: Identity) -> None:
    admission = Admission(AdmissionLimits(connections=0))
    async with serving(Nobody(), admission=admission, tls=identity.server) as server:
        client = server.network.connect()
        await client.send_all(b"\x16")
        assert await client.receive_some() == b""
        assert trio.current_time() == 0
        assert refused(server, "connections") == 1


async def test_a_client_that_leaves_without_close_notify_is_no_crash(
    autojump_clock: MockClock, identity: Identity
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving(Nobody(), tls=identity.server) as server:
            for said in (b"", HEALTH[:9], WORKER):
                client = encrypted(server.network.connect(), identity.client)
                await client.do_handshake()
                await client.send_all(said)
                if said == WORKER:
                    assert (await client.receive_some()).startswith(b"HTTP/1.1 101")
                await client.transport_stream.aclose()
            await trio.sleep(5)
            assert all(end.closed.is_set() for end in server.network.accepted)
    assert quiet(logs)


async def test_cancelling_closes_encrypted_connections_in_no_time(
    autojump_clock: MockClock, identity: Identity
) -> None:
    async with serving(Nobody(), tls=identity.server) as server:
        client = encrypted(server.network.connect(), identity.client)
        await wrap_client_stream(server.nursery, client, "x", "/socket.io/?EIO=4&transport=websocket")
        half = encrypted(server.network.connect(), identity.client)
        await half.send_all(HEALTH[:10])
        server.network.connect()
        await trio.sleep(1)
    assert [end.closed.is_set() for end in server.network.accepted] == [True] * 3
    assert trio.current_time() == 1


# -------------------------------------------------------------------------------------- the stream


@asynccontextmanager
async def connected(
    identity: Identity, pair: Pair = memory_stream_pair
) -> AsyncIterator[tuple[trio.SSLStream[Any], ServerEnd, AcceptedStream]]:
    client_end, server_end = pair()
    end = ServerEnd(server_end, FakeSocket())
    client = encrypted(client_end, identity.client)
    transports: list[TLSTransport] = []

    async def accept() -> None:
        transports.append(await accept_tls(end, identity.server))  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await client.do_handshake()
    yield client, end, AcceptedStream(transports[0], b"head")


async def test_closing_sends_close_notify_and_waits_for_the_client(
    autojump_clock: MockClock, identity: Identity
) -> None:
    async with connected(identity) as (client, end, stream):
        assert stream.encrypted
        assert await stream.receive_some() == b"head"
        await client.send_all(b"more than was asked for")
        async with trio.open_nursery() as nursery:
            await stream.send_all(b"answer")
            nursery.start_soon(stream.aclose)
            await trio.sleep(LINGER_S / 2)
            assert not end.closed.is_set()
            await client.send_all(b"still talking")
            assert await client.receive_some() == b"answer"
            assert await client.receive_some() == b""
            assert await client.transport_stream.receive_some() == b""  # TCP's half, for clients that look there
            assert trio.current_time() == LINGER_S / 2
        assert end.closed.is_set()
        assert trio.current_time() == LINGER_S


async def test_closing_lasts_no_longer_than_the_client(autojump_clock: MockClock, identity: Identity) -> None:
    async with connected(identity) as (client, end, stream), trio.open_nursery() as nursery:
        nursery.start_soon(stream.aclose)
        await trio.sleep(LINGER_S / 2)
        await client.aclose()
        await end.closed.wait()
        assert trio.current_time() == LINGER_S / 2


async def test_closing_does_not_wait_for_a_client_that_reads_nothing(
    autojump_clock: MockClock, identity: Identity
) -> None:
    async with connected(identity, lockstep_stream_pair) as (_, end, stream):
        await stream.send_eof()  # as hypercorn does before
        assert trio.current_time() == LINGER_S
        await stream.aclose()
        assert end.closed.is_set()
        assert trio.current_time() == 2 * LINGER_S


async def test_after_a_send_was_cut_off_there_is_no_close_notify(autojump_clock: MockClock, identity: Identity) -> None:
    async with connected(identity, lockstep_stream_pair) as (client, end, stream):
        with trio.move_on_after(1):
            await stream.send_all(b"a" * 100_000)
        assert stream.torn
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.aclose)
            with pytest.raises(trio.BrokenResourceError):
                await read_to_end(client)
        assert end.closed.is_set()


async def test_an_abort_is_immediate_and_wakes_who_waits(autojump_clock: MockClock, identity: Identity) -> None:
    woken: list[str] = []
    async with connected(identity, lockstep_stream_pair) as (_, end, stream):
        await stream.receive_some()

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
            woken.append("reader")

        async def write() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"a")
            woken.append("writer")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            await stream.abort()
        assert sorted(woken) == ["reader", "writer"]
        assert end.closed.is_set()
        assert trio.current_time() == 0


async def test_what_is_no_tls_is_seen_by_its_first_byte(autojump_clock: MockClock, identity: Identity) -> None:
    client, server_end = memory_stream_pair()
    await client.send_all(b"G")
    with pytest.raises(SpokenPlainly):
        await accept_tls(ServerEnd(server_end, FakeSocket()), identity.server)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- certificate and key


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("missing.pem", "key.pem", "STS_TLS_CERT: cannot read .*missing.pem: No such file"),
        ("certificate.pem", "missing.pem", "STS_TLS_KEY: cannot read .*missing.pem: No such file"),
        (".", "key.pem", "STS_TLS_CERT: cannot read .*: Is a directory"),
        ("garbage", "key.pem", "STS_TLS_CERT: .*garbage holds no certificate in PEM format"),
        ("certificate.pem", "garbage", "STS_TLS_KEY: .*garbage holds no private key in PEM format"),
        ("key.pem", "certificate.pem", "STS_TLS_CERT: .*key.pem holds no certificate in PEM format"),
        ("damaged.pem", "key.pem", "STS_TLS_CERT: .*damaged.pem holds no certificate that can be read"),
        ("certificate.pem", "damaged_key.pem", "STS_TLS_KEY: .*damaged_key.pem cannot be used"),
        ("certificate.pem", "others_key.pem", "STS_TLS_KEY: .*others_key.pem is not the key of the certificate in"),
        ("certificate.pem", "encrypted_key.pem", "STS_TLS_KEY: .*encrypted_key.pem is encrypted"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, certificate: str, key: str, message: str) -> None:
    identity = Identity.make(tmp_path)
    (tmp_path / "garbage").write_bytes(b"\xff\x00 not PEM")
    (tmp_path / "others_key.pem").write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    for name, good in (("damaged.pem", identity.certificate), ("damaged_key.pem", identity.key)):
        lines = good.read_text().splitlines()
        (tmp_path / name).write_text("\n".join([lines[0], lines[1][:20], lines[-1]]) + "\n")
    private = load_pem_private_key(identity.key.read_bytes(), None)
    (tmp_path / "encrypted_key.pem").write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    with pytest.raises(ConfigError, match=message):
        server_context(tmp_path / certificate, tmp_path / key)
