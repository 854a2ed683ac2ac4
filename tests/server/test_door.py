"""The door: which requests it lets through, to whom, and that no connection harms another."""

from __future__ import annotations

import errno
from typing import Any

import h11
import orjson
import pytest
import structlog.testing
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, lockstep_stream_pair
from trio_websocket import ConnectionRejected

from sts_trio.server import door, engine
from sts_trio.server.admission import Admission, AdmissionLimits
from sts_trio.server.application import Peer, Refusal

from .memory import Server, read_answer, serving

KEY = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
UPGRADE = b"Host: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n" + KEY
WORKER = b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n" + UPGRADE + b"\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class Nobody:
    """An application that lets everybody in and says nothing."""

    def connected(self, peer: Peer, auth: dict[str, Any]) -> Refusal | None:
        return None

    def welcome(self, peer: Peer, auth: dict[str, Any]) -> None:
        pass

    def received(self, peer: Peer, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        return ()

    def disconnected(self, peer: Peer, reason: object) -> None:
        pass


# -------------------------------------------------------------------------------------- who serves what


async def test_the_same_port_serves_workers_and_plain_http(autojump_clock: MockClock) -> None:
    async with serving(Nobody()) as server:
        worker = await server.websocket()
        assert str(await worker.get_message()).startswith("0{")
        assert (await server.get("/health")).status == 200
        await worker.send_message("40")
        assert str(await worker.get_message()).startswith("40")


@pytest.mark.parametrize(
    ("query", "code", "message"),
    [
        ("EIO=4&transport=polling", 3, "Bad request"),
        ("EIO=4&transport=webtransport", 0, "Transport unknown"),
        ("EIO=4", 0, "Transport unknown"),
        ("EIO=4&transport=websocket&sid=unknown", 1, "Session ID unknown"),
        ("EIO=3&transport=websocket", 5, "Unsupported protocol version"),
        ("transport=websocket", 5, "Unsupported protocol version"),
    ],
)
async def test_a_bad_handshake_is_refused_before_any_101(
    autojump_clock: MockClock, query: str, code: int, message: str
) -> None:
    async with serving(Nobody()) as server:
        answer = await server.request(b"GET /socket.io/?%s HTTP/1.1\r\n%s\r\n" % (query.encode(), UPGRADE))
    assert (answer.status, answer.json) == (400, {"code": code, "message": message})
    assert answer.headers["content-type"] == "application/json"


async def test_a_websocket_library_sees_the_refusal(autojump_clock: MockClock) -> None:
    status = 0
    try:
        async with serving(Nobody()) as server:
            await server.websocket("/elsewhere")
    except* ConnectionRejected as group:
        [refused] = group.exceptions
        assert isinstance(refused, ConnectionRejected | ExceptionGroup)
        while isinstance(refused, ExceptionGroup):
            [refused] = refused.exceptions
        status = refused.status_code
    assert status == 404


async def test_an_upgrade_on_another_path_or_a_port_without_workers_is_404(autojump_clock: MockClock) -> None:
    async with serving(Nobody()) as server:
        for path in (b"/", b"/health", b"/socket.io", b"/socket.io/x"):
            answer = await server.request(b"GET %s?EIO=4&transport=websocket HTTP/1.1\r\n%s\r\n" % (path, UPGRADE))
            assert answer.status == 404
    async with serving(None) as server:
        assert (await server.request(WORKER)).status == 404


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Sec-WebSocket-Version: 12\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", 426),
        (b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", 426),
        (b"Sec-WebSocket-Version: 13\r\n", 400),
        (b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n", 400),
        (b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: not base64 at all!!!!!==\r\n", 400),
        (KEY + KEY, 426),
        (KEY + b"Sec-WebSocket-Protocol: \xff\r\n", 400),
        (KEY + b"Sec-WebSocket-Extensions: \xff\r\n", 400),
        (KEY + b"Connection: \xff\r\n", 400),
        (KEY + b"Connection: keep-alive\r\n", 400),
    ],
)
async def test_a_handshake_that_is_no_websocket_13_is_refused(
    autojump_clock: MockClock, header: bytes, status: int
) -> None:
    async with serving(Nobody()) as server:
        answer = await server.request(WORKER.replace(KEY, header))
    assert answer.status == status
    assert (answer.headers.get("sec-websocket-version") == "13") == (status == 426)


async def test_a_websocket_for_a_session_is_opened_with_get_too(autojump_clock: MockClock) -> None:
    async with serving(Nobody()) as server:
        opened = await server.get("/socket.io/?EIO=4&transport=polling")
        sid = orjson.loads(opened.body[1:])["sid"].encode()
        target = b"/socket.io/?EIO=4&transport=websocket&sid=" + sid
        answer = await server.request(b"POST %s HTTP/1.1\r\n%s\r\n" % (target, UPGRADE))
        assert (answer.status, answer.headers["allow"]) == (405, "GET")


# -------------------------------------------------------------------------------------- the head


@pytest.mark.parametrize("request_bytes", [HEALTH, WORKER])
async def test_a_head_may_come_byte_by_byte(autojump_clock: MockClock, request_bytes: bytes) -> None:
    async with serving(Nobody()) as server:
        stream = server.network.connect()
        for byte in request_bytes:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.01)
        answer = await stream.receive_some()
    assert answer.startswith(b"HTTP/1.1 200" if request_bytes is HEALTH else b"HTTP/1.1 101")


async def test_a_head_has_ten_seconds_in_all(autojump_clock: MockClock) -> None:
    async with serving(Nobody()) as server:
        stream = server.network.connect()
        for byte in HEALTH[:9]:
            await stream.send_all(bytes([byte]))
            await trio.sleep(1)
        answer = await read_answer(stream)
        assert answer.status == 408
        assert trio.current_time() == pytest.approx(10, abs=1.01)


async def test_a_connection_that_says_nothing_is_closed_after_ten_seconds(autojump_clock: MockClock) -> None:
    async with serving(Nobody()) as server:
        server.network.connect()
        await trio.sleep(9.99)
        assert not server.network.accepted[0].closed.is_set()
        await server.network.accepted[0].closed.wait()
        assert trio.current_time() <= 12


@pytest.mark.parametrize("size", [16_384, 16_385, 200_000])
async def test_a_head_is_at_most_16_kib(autojump_clock: MockClock, size: int) -> None:
    padding = size - len(HEALTH) - len(b"X: \r\n")
    head = HEALTH[:-2] + b"X: " + b"a" * padding + b"\r\n\r\n"
    assert len(head) == size
    async with serving(Nobody()) as server:
        assert (await server.request(head)).status == (200 if size <= 16_384 else 431)


async def test_who_leaves_without_a_word_is_no_news(autojump_clock: MockClock) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving(Nobody()) as server:
            await server.network.connect().aclose()
            server.network.connect(socket_connected=False)  # reset before it was served
            stream = server.network.connect()
            await stream.send_all(b"GET / HT")
            await stream.aclose()
            await trio.sleep(1)
            assert all(end.closed.is_set() for end in server.network.accepted)
    assert {line["log_level"] for line in logs} <= {"debug"}


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, id="HTTP/2 preface"),
        pytest.param(b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n", 505, id="HTTP/2.0"),
        pytest.param(b"GET /health HTTP/1.1\r\n\r\n", 400, id="no Host"),
        pytest.param(b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, id="two Hosts"),
        pytest.param(b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="absolute form"),
        pytest.param(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="authority form"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="asterisk form"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="TE and CL",
        ),
        pytest.param(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="TE in HTTP/1.0"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n", 501, id="other coding"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", 400, id="two lengths"
        ),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na", 400, id="signed length"),
        pytest.param(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, id="space before colon"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400, id="bare CR"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", 400, id="NUL"),
        pytest.param(
            b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            400,
            id="h2c",
        ),
        pytest.param(WORKER.replace(b"Upgrade: websocket", b"Upgrade: h2c, websocket"), 400, id="h2c or websocket"),
        pytest.param(
            WORKER.replace(b"Upgrade: websocket", b"Upgrade: websocket\r\nUpgrade: h2c"), 400, id="two upgrades"
        ),
        pytest.param(WORKER.replace(b"HTTP/1.1", b"HTTP/1.0"), 400, id="upgrade in HTTP/1.0"),
        pytest.param(WORKER.replace(b"Connection: keep-alive, Upgrade\r\n", b""), 400, id="upgrade without Connection"),
        pytest.param(WORKER[:-2] + b"Content-Length: 3\r\n\r\nabc", 400, id="upgrade with a body"),
        pytest.param(WORKER[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="upgrade in chunks"),
        pytest.param(WORKER + HEALTH, 400, id="request behind an upgrade"),
        pytest.param(WORKER + b"\x81\x80\x00\x00\x00\x00", 400, id="frame before the 101"),
        pytest.param(WORKER.replace(b"GET", b"POST"), 400, id="POST upgrade"),
    ],
)
async def test_whatever_can_be_read_in_two_ways_is_refused(
    autojump_clock: MockClock, request_bytes: bytes, status: int
) -> None:
    async with serving(Nobody()) as server:
        answer = await server.request(request_bytes)
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert "error" in answer.json or "code" in answer.json


@given(
    garbage=st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda method, target, version, headers: (
                b"%s %s HTTP/%s\r\n%s\r\n"
                % (method, target, version, b"".join(b"%s: %s\r\n" % header for header in headers))
            ),
            st.sampled_from([b"GET", b"POST", b"PRI", b"CONNECT", b"OPTIONS"]),
            st.sampled_from([b"/", b"*", b"/socket.io/?EIO=4&transport=websocket", b"http://x/", b"/%ff%00", b"//"]),
            st.sampled_from([b"1.0", b"1.1", b"2.0", b"0.9"]),
            st.lists(
                st.sampled_from(
                    [
                        (b"Host", b"x"),
                        (b"Upgrade", b"websocket"),
                        (b"Upgrade", b"h2c"),
                        (b"Connection", b"upgrade"),
                        (b"Content-Length", b"0"),
                        (b"Content-Length", b"5"),
                        (b"Transfer-Encoding", b"chunked"),
                        (b"Sec-WebSocket-Version", b"13"),
                        (b"Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
                        (b"Expect", b"100-continue"),
                        (b"HTTP2-Settings", b"AAMAAABkAAQAAP__"),
                    ]
                ),
                max_size=7,
            ),
        ),
    )
)
@settings(deadline=None)
@pytest.mark.slow
def test_no_request_harms_another_connection_or_makes_http_2(garbage: bytes) -> None:
    answer = b""

    async def main() -> None:
        nonlocal answer
        async with serving(Nobody()) as server:
            stream = server.network.connect()
            await stream.send_all(garbage)
            await stream.send_eof()
            while data := await stream.receive_some():
                answer += data
            assert (await server.get("/health")).status == 200

    with structlog.testing.capture_logs() as logs:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert not answer.startswith(b"HTTP/1.1 101") or b"websocket" in answer.lower()
    assert "connection_crashed" not in [line["event"] for line in logs]


# -------------------------------------------------------------------------------------- the door itself


async def test_one_connection_too_many_is_turned_away_and_makes_room_when_one_goes(autojump_clock: MockClock) -> None:
    async with serving(Nobody(), admission=Admission(AdmissionLimits(connections=2))) as server:
        worker = await server.websocket()
        idle = server.network.connect()
        await trio.testing.wait_all_tasks_blocked()
        answer = await server.get("/health")
        assert (answer.status, answer.json) == (503, {"error": "too many connections"})
        assert int(answer.headers["retry-after"]) > 0
        assert refused(server, "connections") == 1
        assert trio.current_time() == 0
        await idle.aclose()
        await worker.aclose()
        await trio.sleep(2)
        assert (await server.get("/health")).status == 200


async def test_an_address_has_its_share_of_connections_and_leaves_the_rest_to_others(autojump_clock: MockClock) -> None:
    async with serving(Nobody(), admission=Admission(AdmissionLimits(connections_per_address=2))) as server:
        for _ in range(2):
            server.network.connect()
        await trio.testing.wait_all_tasks_blocked()
        answer = await server.get("/health")
        assert (answer.status, answer.json) == (429, {"error": "too many connections from one address"})
        other = server.network.connect(host="192.0.2.8")
        await other.send_all(HEALTH)
        assert (await read_answer(other)).status == 200
        assert refused(server, "address_connections") == 1


async def test_of_many_that_are_turned_away_at_once_not_all_are_told(autojump_clock: MockClock) -> None:
    async with serving(Nobody(), admission=Admission(AdmissionLimits(connections=0))) as server:
        clients = [server.network.connect() for _ in range(door.TURNED_AWAY_AT_ONCE + 20)]
        await trio.testing.wait_all_tasks_blocked()  # nobody reads: each answer waits to be taken
        answers = [await client.receive_some() for client in clients]
        assert sum(answer.startswith(b"HTTP/1.1 503") for answer in answers) == door.TURNED_AWAY_AT_ONCE
        assert answers.count(b"") == 20
        await trio.sleep(door.REFUSAL_TIMEOUT_S)
        assert all(end.closed.is_set() for end in server.network.accepted)
        assert (await server.get("/health")).status == 503  # told again


async def test_handshakes_that_come_too_fast_are_told_when_to_come_back(autojump_clock: MockClock) -> None:
    limits = AdmissionLimits(handshakes_per_s=0.01, connections_per_address=2)
    async with serving(Nobody(), admission=Admission(limits)) as server:
        for _ in range(3):
            assert (await server.request(WORKER + b"x")).status == 400  # what is no handshake does not count
            await server.network.accepted[-1].closed.wait()
        for _ in range(2):
            worker = await server.websocket()
            await worker.aclose()
            await server.network.accepted[-1].closed.wait()
        answer = await server.request(WORKER)
        assert (answer.status, answer.json) == (429, {"error": "too many handshakes from one address"})
        assert refused(server, "address_handshakes") == 1
        wait_s = int(answer.headers["retry-after"])
        assert 95 <= wait_s <= 100
        await trio.sleep(wait_s)
        await server.websocket()


def refused(server: Server, reason: str) -> float | None:
    return server.metrics.registry.get_sample_value("sts_connections_refused_total", {"reason": reason})


async def test_running_out_of_descriptors_is_waited_out(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Nobody()) as server:
        server.network.failures += [OSError(errno.EMFILE, "too many"), OSError(errno.ENFILE, "too many")]
        assert (await server.get("/health")).status == 200  # accepted already: the failures come after it
        assert (await server.get("/health")).status == 200
    assert caplog.text.count("accept returned") == 2


async def test_a_client_that_never_reads_its_101_is_given_up(autojump_clock: MockClock) -> None:
    with structlog.testing.capture_logs() as logs:
        admission = Admission()
        async with serving(Nobody(), admission=admission) as server:
            stream = server.network.connect(lockstep_stream_pair)
            await stream.send_all(WORKER)
            await server.network.accepted[0].closed.wait()
            assert trio.current_time() <= engine.HANDSHAKE_TIMEOUT_S + 2
            await trio.testing.wait_all_tasks_blocked()
            assert admission.sessions == 0
    assert "connection_crashed" not in [line["event"] for line in logs]


async def test_a_client_that_never_reads_its_refusal_is_given_up(autojump_clock: MockClock) -> None:
    async with serving(Nobody()) as server:
        stream = server.network.connect(lockstep_stream_pair)
        await stream.send_all(b"GET * HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.network.accepted[0].closed.wait()
        assert trio.current_time() <= door.REFUSAL_TIMEOUT_S + 1


async def test_a_crash_is_logged_with_its_traceback_and_the_door_stays_open(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Nobody):
        def connected(self, peer: Peer, auth: dict[str, Any]) -> Refusal | None:
            raise ZeroDivisionError

    with structlog.testing.capture_logs(processors=[structlog.processors.format_exc_info]) as logs:
        async with serving(Broken()) as server:
            worker = await server.websocket()
            await worker.send_message("40")
            await server.network.accepted[0].closed.wait()
            assert (await server.get("/health")).status == 200
    [line] = [line for line in logs if line["event"] == "connection_crashed"]
    assert "ZeroDivisionError" in line["exception"]
    assert "in connected" in line["exception"]


async def test_cancelling_closes_every_connection_in_no_time(autojump_clock: MockClock) -> None:
    async with serving(Nobody()) as server:
        await server.websocket()
        half = server.network.connect()
        await half.send_all(HEALTH[:10])
        await trio.sleep(1)
    assert [end.closed.is_set() for end in server.network.accepted] == [True, True]
    assert trio.current_time() == 1


async def test_draining_refuses_workers_and_answers_http(autojump_clock: MockClock) -> None:
    async with serving(Nobody()) as server:
        worker = await server.websocket()
        await worker.get_message()
        server.engine.drain()
        assert (await server.request(WORKER)).status == 503
        assert (await server.get("/health")).status == 200
        await worker.send_message("40")
        assert str(await worker.get_message()).startswith("40")


async def test_a_worker_whose_handshake_crosses_the_shutdown_does_not_hold_it_up(autojump_clock: MockClock) -> None:
    async with serving(Nobody()) as server:
        slow = server.network.connect(lockstep_stream_pair)  # reads its 101 and no more: takes all the time it is given
        await slow.send_all(WORKER)
        assert (await slow.receive_some()).startswith(b"HTTP/1.1 101")
        late = server.network.connect(lockstep_stream_pair)
        await late.send_all(WORKER)
        await trio.testing.wait_all_tasks_blocked()  # its 101 is on its way

        async def finish_handshake() -> None:
            await trio.sleep(1)
            while await late.receive_some():
                pass

        server.nursery.start_soon(finish_handshake)
        await server.engine.disconnect_all()
        assert 1 < trio.current_time() <= 10


def test_h11_reads_a_head_as_the_door_takes_it_to() -> None:
    """`_read_head` leans on when h11 counts a head as too long and where it keeps what follows one."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=16)
    parser.receive_data(b"GET / HTTP/1.1\r\n")
    assert parser.next_event() is h11.NEED_DATA
    parser.receive_data(b"Host: x\r\n\r\nmore")
    assert isinstance(parser.next_event(), h11.Request)
    assert isinstance(parser.next_event(), h11.EndOfMessage)
    assert parser.trailing_data == (b"more", False)
