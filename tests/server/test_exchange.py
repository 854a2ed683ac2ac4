"""One request and its answer: whatever a client sends beside it or leaves unread, it ends and holds nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from trio.testing import MockClock

from protocol.engineio import CloseReason
from sts_trio.server.admission import Admission
from sts_trio.server.connection import ConnectionSettings
from sts_trio.server.exchange import WRITE_TIMEOUT_S

from .memory import SlowLink, read_answer, serving
from .polling_client import joined, request
from .recorder import Recorder
from .test_keep_alive import HEALTH, Client, post

OPEN = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100 + b"0\r\n\r\n"


async def answer_all(stream: Any) -> bytes:
    received = b""
    with trio.fail_after(60):
        while data := await stream.receive_some():
            received += data
    return received


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.0\r\n\r\nX",
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nX",
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + HEALTH * 5_000,
        b"POST /health HTTP/1.1\r\nHost: x\r\n" + CHUNKED,
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + CHUNKED,
        OPEN + CHUNKED,
        OPEN + CHUNKED[:-7],
    ],
    ids=["byte behind 1.0", "byte behind close", "flood behind close", "post", "get", "handshake", "unfinished"],
)
async def test_what_comes_beside_a_request_holds_nothing(autojump_clock: MockClock, request_bytes: bytes) -> None:
    admission = Admission()
    async with serving(Recorder(), admission=admission) as server:
        stream = server.network.connect()
        await stream.send_all(request_bytes)
        assert (await answer_all(stream)).startswith(b"HTTP/1.1 ")
        await trio.sleep(60)  # longer than a session without a client
        assert admission.connections == admission.sessions == 0
        await server.engine.disconnect_all()


async def test_after_a_defect_the_connection_goes_on(autojump_clock: MockClock) -> None:
    async def fail(request: Request) -> Response:
        raise RuntimeError("defect")

    with structlog.testing.capture_logs() as logs:
        async with serving(routes=[Route("/fail", fail)]) as server:
            client = Client(server.network.connect())
            for _ in range(2):
                answer = await client.ask(b"GET /fail HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (answer.status, answer.headers["keep-alive"]) == (500, "timeout=5")
            await trio.testing.wait_all_tasks_blocked()
            assert trio.current_time() == 0
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["request_crashed"] * 2


async def test_a_client_that_does_not_read_is_no_error(autojump_clock: MockClock) -> None:
    admission = Admission()
    with structlog.testing.capture_logs() as logs:
        async with serving(Recorder(), admission=admission) as server:
            stream = server.network.connect(trio.testing.lockstep_stream_pair)
            await stream.send_all(HEALTH)
            await trio.sleep(WRITE_TIMEOUT_S + 2)
            assert admission.connections == 0
    assert not [line for line in logs if line["log_level"] in ("warning", "error")]


async def test_an_empty_line_behind_a_request_is_none(autojump_clock: MockClock) -> None:
    """RFC 9112, 2.2."""
    async with serving(Recorder()) as server:
        client = Client(server.network.connect())
        assert (await client.ask(HEALTH + b"\r\n")).status == 200
        await trio.sleep(1)
        for piece in (b"\r", b"\n", b"\r\n"):
            await client.stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        assert (await client.ask(HEALTH)).status == 200


async def test_a_client_that_drops_an_answer_in_its_midst_is_gone(autojump_clock: MockClock) -> None:
    """Else the next poll would go on behind a hole."""
    async with joined() as (client, application):
        server = client.server
        application.peers[0].emit("big", "x" * 1_000_000)
        application.peers[0].emit("next")
        stream = server.network.connect(trio.testing.lockstep_stream_pair)
        await stream.send_all(request("GET", client.target, keep_alive=True))
        await stream.receive_some(100_000)
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [reason for _, reason in application.gone] == [CloseReason.TRANSPORT_CLOSE]


@pytest.mark.parametrize("behind", [b"", b"X", HEALTH])
async def test_a_client_that_drops_its_poll_is_gone_whatever_it_sent_ahead(
    autojump_clock: MockClock, behind: bytes
) -> None:
    async with joined() as (client, application):
        server = client.server
        stream = server.network.connect()
        await stream.send_all(request("GET", client.target, keep_alive=True) + behind)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [reason for _, reason in application.gone] == [CloseReason.TRANSPORT_CLOSE]
        assert trio.current_time() == 0


async def test_all_is_sent_when_the_answer_has_left_and_no_sooner(autojump_clock: MockClock) -> None:
    async with joined() as (client, application):
        server = client.server
        application.peers[0].emit("big", "x" * 1_000_000)
        slow = server.network.connect(lambda: SlowLink.pair(100_000))
        await slow.send_all(request("GET", client.target))
        server.nursery.start_soon(answer_all, slow)
        await trio.sleep(0.1)
        await application.peers[0].drained()
        assert trio.current_time() > 9


async def test_who_does_not_wait_for_an_answer_gets_no_second_one_beside_it(autojump_clock: MockClock) -> None:
    """Else one client could have the server hold many answers, each as large as all that may wait for it."""
    async with joined() as (client, application):
        server = client.server
        poll = request("GET", client.target)
        application.peers[0].emit("big", "x" * 200_000)
        slow = server.network.connect(lambda: SlowLink.pair(100_000))
        await slow.send_all(poll)
        await trio.sleep(0.5)
        application.peers[0].emit("next")
        beside = server.network.connect()
        await beside.send_all(poll)
        assert len((await read_answer(slow)).body) > 200_000
        finished = trio.current_time()
        assert finished > 1
        assert (await read_answer(beside)).body == b'42["next"]'


async def test_a_stop_waits_for_an_answer_that_is_being_sent(autojump_clock: MockClock) -> None:
    async with joined() as (client, application):
        server = client.server
        application.peers[0].emit("last", "x" * 200_000)
        stream = server.network.connect(lambda: SlowLink.pair(100_000))
        await stream.send_all(request("GET", client.target))
        await trio.sleep(0.5)
        started = trio.current_time()
        server.nursery.start_soon(server.engine.disconnect_all)
        answer = await read_answer(stream)
        assert len(answer.body) > 200_000
        assert trio.current_time() - started > 1


async def test_a_stop_does_not_wait_for_who_reads_for_ever(autojump_clock: MockClock) -> None:
    async with joined() as (client, application):
        server = client.server
        application.peers[0].emit("last", "x" * 2_000_000)
        stream = server.network.connect(lambda: SlowLink.pair(10_000))
        await stream.send_all(request("GET", client.target, keep_alive=True))
        server.nursery.start_soon(answer_all, stream)
        await trio.sleep(0.5)
        started = trio.current_time()
        await server.engine.disconnect_all()
        assert trio.current_time() - started < 6


async def test_a_stop_does_not_wait_for_who_has_stopped_reading(autojump_clock: MockClock) -> None:
    """hypercorn shields its writes."""
    async with joined() as (client, application):
        server = client.server
        application.peers[0].emit("last", "x" * 2_000_000)
        stream = server.network.connect(trio.testing.lockstep_stream_pair)
        await stream.send_all(request("GET", client.target, keep_alive=True))
        await trio.sleep(0.5)
        started = trio.current_time()
        await server.engine.disconnect_all()
        assert trio.current_time() - started < 6


async def test_a_ping_that_was_fetched_is_not_excused_by_a_slow_answer_after_it(autojump_clock: MockClock) -> None:
    settings = ConnectionSettings(ping_interval_s=5, ping_timeout_s=10)
    async with joined(settings=settings) as (client, application):
        server = client.server
        poll = request("GET", client.target)
        first = server.network.connect()
        await first.send_all(poll)
        assert (await read_answer(first)).body == b"2"
        fetched = trio.current_time()
        application.peers[0].emit("big", "x" * 1_000_000)
        slow = server.network.connect(lambda: SlowLink.pair(20_000))
        await slow.send_all(poll)
        with suppress(trio.BrokenResourceError):
            await answer_all(slow)
        assert [reason for _, reason in application.gone] == [CloseReason.PING_TIMEOUT]
        assert trio.current_time() - fetched < 25


async def test_a_head_behind_a_held_poll_has_the_same_limit(autojump_clock: MockClock) -> None:
    async with joined() as (poller, _):
        client = Client(poller.server.network.connect())
        await client.stream.send_all(request("GET", poller.target, keep_alive=True))
        await trio.testing.wait_all_tasks_blocked()
        await client.stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n")
        assert (await client.answer()).body == b"2"
        assert (await client.answer()).status == 431


async def test_an_unread_body_before_a_full_pipeline_ends(autojump_clock: MockClock) -> None:
    async def refuse(request: Request) -> Response:
        return Response(status_code=413)

    admission = Admission()
    async with serving(routes=[Route("/refuse", refuse, methods=["POST"])], admission=admission) as server:
        stream = server.network.connect()
        await stream.send_all(post(b"x" * 500_000, "/refuse")[:300_000])
        assert (await answer_all(stream)).startswith(b"HTTP/1.1 413")
        await trio.sleep(20)
        assert admission.connections == 0
