"""Several requests on one connection: each is answered as if it were alone, and none is read with another's bytes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from trio.testing import MockClock

from sts_trio.server.door import HEAD_TIMEOUT_S
from sts_trio.server.exchange import KEEP_ALIVE_S, READ_TIMEOUT_S
from sts_trio.server.head import HEAD_BYTES

from .memory import Answer, read_one_answer, serving
from .test_door import UPGRADE, Nobody

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def refuse(request: Request) -> Response:
    return Response(status_code=413)  # without a look at the body


ROUTES = [Route("/echo", echo, methods=["POST"]), Route("/refuse", refuse, methods=["POST"])]


def post(body: bytes, path: str = "/echo") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


class Client:
    """Reads one answer after the other from a connection."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._unread = b""

    async def ask(self, request: bytes) -> Answer:
        await self.stream.send_all(request)
        return await self.answer()

    async def answer(self) -> Answer:
        answer, self._unread = await read_one_answer(self.stream, self._unread)
        return answer

    async def is_closed(self) -> bool:
        return not self._unread and await self.stream.receive_some() == b""


async def test_a_connection_carries_one_request_after_the_other(autojump_clock: MockClock) -> None:
    async with serving(routes=ROUTES) as server:
        client = Client(server.network.connect())
        for number in range(3):
            answer = await client.ask(post(b"%d" % number))
            assert (answer.status, answer.body) == (200, b"%d" % number)
            assert answer.headers["keep-alive"] == "timeout=5"
            assert "connection" not in answer.headers
        chunked = await client.ask(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n")
        assert chunked.body == b"hello"
        assert (await client.ask(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")).status == 404
        assert len(server.network.accepted) == 1
        assert trio.current_time() == 0


async def test_a_websocket_may_follow_a_plain_request(autojump_clock: MockClock) -> None:
    """What a client library's pool of connections does."""
    async with serving(Nobody()) as server:
        client = Client(server.network.connect())
        opened = await client.ask(b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\n\r\n")
        sid = orjson.loads(opened.body[1:])["sid"].encode()
        target = b"/socket.io/?EIO=4&transport=websocket&sid=" + sid
        await client.stream.send_all(b"GET %s HTTP/1.1\r\n" % target + UPGRADE + b"\r\n")
        assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 101")
        assert len(server.network.accepted) == 1


async def test_requests_sent_at_once_are_answered_in_order(autojump_clock: MockClock) -> None:
    async with serving(routes=ROUTES) as server:
        client = Client(server.network.connect())
        await client.stream.send_all(b"".join(post(b"%d" % number) for number in range(50)))
        assert [(await client.answer()).body for _ in range(50)] == [b"%d" % number for number in range(50)]
        assert trio.current_time() == 0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_however_requests_are_cut_into_pieces_the_answers_are_the_same(pieces: list[int]) -> None:
    requests = post(b"one") + CHUNKED + b"3\r\ntwo\r\n0\r\n\r\n" + post(b"") + post(b"four" * 100)

    async def run() -> None:
        async with serving(routes=ROUTES) as server:
            client = Client(server.network.connect())
            rest = requests
            for size in pieces:
                await client.stream.send_all(rest[:size])
                rest = rest[size:]
                await trio.testing.wait_all_tasks_blocked()
                if not rest:
                    break
            if rest:
                await client.stream.send_all(rest)
            assert [(await client.answer()).body for _ in range(4)] == [b"one", b"two", b"", b"four" * 100]

    trio.run(run, clock=MockClock(autojump_threshold=0))


async def test_a_request_behind_a_held_poll_is_answered_after_it(autojump_clock: MockClock) -> None:
    async with serving(Nobody()) as server:
        client = Client(server.network.connect())
        target = b"/socket.io/?EIO=4&transport=polling"
        opened = await client.ask(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target)
        poll = b"GET %s&sid=%s HTTP/1.1\r\nHost: x\r\n\r\n" % (target, orjson.loads(opened.body[1:])["sid"].encode())
        await client.stream.send_all(poll + HEALTH)
        assert (await client.answer()).body == b"2"
        assert trio.current_time() == 25
        assert (await client.answer()).json["status"] == "healthy"
        assert trio.current_time() == 25


async def test_an_idle_connection_is_closed_as_it_was_told(autojump_clock: MockClock) -> None:
    async with serving() as server:
        client = Client(server.network.connect())
        await client.ask(HEALTH)
        await trio.sleep(KEEP_ALIVE_S - 0.1)
        await client.ask(HEALTH)
        answered = trio.current_time()
        assert await client.is_closed()
        assert trio.current_time() == pytest.approx(answered + KEEP_ALIVE_S)


async def test_a_client_that_leaves_between_requests_is_no_news(autojump_clock: MockClock) -> None:
    async with serving() as server:
        client = Client(server.network.connect())
        await client.ask(HEALTH)
        await client.stream.aclose()
        await server.network.accepted[0].closed.wait()
        assert trio.current_time() == 0


@pytest.mark.parametrize(
    "request_bytes",
    [b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: TE, close\r\n\r\n", b"GET /health HTTP/1.0\r\n\r\n"],
)
async def test_who_wants_no_more_is_closed_at_once(autojump_clock: MockClock, request_bytes: bytes) -> None:
    async with serving() as server:
        client = Client(server.network.connect())
        answer = await client.ask(request_bytes)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.is_closed()
        assert trio.current_time() == 0


async def test_a_body_nobody_read_ends_the_connection(autojump_clock: MockClock) -> None:
    """What is left of it must not be taken for a request."""
    async with serving(routes=ROUTES) as server:
        client = Client(server.network.connect())
        request = post(b"x" * 1_000_000 + HEALTH, "/refuse")
        answer = await client.ask(request[:1_000])
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        await client.stream.send_all(request[1_000:])
        assert await client.is_closed()


async def test_a_later_request_has_the_same_limits(autojump_clock: MockClock) -> None:
    async with serving(routes=ROUTES) as server:
        large = Client(server.network.connect())
        await large.ask(post(b"x"))
        assert (await large.ask(b"GET / HTTP/1.1\r\nX: " + b"a" * HEAD_BYTES)).status == 431
        assert await large.is_closed()

        bad = Client(server.network.connect())
        assert (await bad.ask(post(b"x") + b"no HTTP at all\r\n\r\n")).status == 200
        assert (await bad.answer()).status == 400
        assert await bad.is_closed()
        assert trio.current_time() == 0

        slow = Client(server.network.connect())
        await slow.ask(post(b"x"))
        assert (await slow.ask(b"GET /")).status == 408
        assert trio.current_time() == HEAD_TIMEOUT_S

        slower = Client(server.network.connect())
        await slower.ask(post(b"x"))
        await slower.stream.send_all(post(b"x" * 10)[:-1])
        while await slower.stream.receive_some():
            pass
        assert trio.current_time() == HEAD_TIMEOUT_S + READ_TIMEOUT_S


async def test_an_idle_connection_holds_up_no_stop(autojump_clock: MockClock) -> None:
    async with serving() as server:
        client = Client(server.network.connect())
        await client.ask(HEALTH)
    assert server.network.accepted[0].closed.is_set()
    assert trio.current_time() == 0
