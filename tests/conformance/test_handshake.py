"""How sessions open, and how requests are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import trio
from trio.testing import MockClock

from ..server.memory import Server
from .app import Options, serving
from .sessions import TRANSPORTS, Polling, Session, connect, connected, expect_alive, expect_echo, open_session
from .wire import ENGINE, SOCKET, UPGRADE, Refused, WebSocket, at, at_once, begin, http, target

PATHS = (ENGINE, SOCKET)
POLLING = {"EIO": "4", "transport": "polling"}
WEBSOCKET = {"EIO": "4", "transport": "websocket"}

UNKNOWN_TRANSPORT = (400, 0, "Transport unknown")
UNKNOWN_SID = (400, 1, "Session ID unknown")
BAD_METHOD = (400, 2, "Bad handshake method")
BAD_REQUEST = (400, 3, "Bad request")
UNSUPPORTED_VERSION = (400, 5, "Unsupported protocol version")


# ------------------------------------------------------------------------------------------------ open packets


@pytest.mark.parametrize("path", PATHS)
async def test_the_open_packet_on_polling(autojump_clock: MockClock, server: Server, path: str) -> None:
    answer = await http(server, "GET", target(path, POLLING))
    assert answer.status == 200
    assert answer.headers["content-type"].lower() == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text[0] == "0"
    handshake = json.loads(answer.text[1:])
    assert isinstance(handshake.pop("sid"), str)
    assert handshake == {
        "upgrades": ["websocket"],
        "pingInterval": 10_000,
        "pingTimeout": 10_000,
        "maxPayload": 1_000_000,
    }


@pytest.mark.parametrize("path", PATHS)
async def test_the_open_packet_on_a_websocket(autojump_clock: MockClock, server: Server, path: str) -> None:
    handshake = (await WebSocket.open(server, path)).handshake
    assert isinstance(handshake.pop("sid"), str)
    assert handshake == {"upgrades": [], "pingInterval": 10_000, "pingTimeout": 10_000, "maxPayload": 1_000_000}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_open_packet_says_what_was_configured(autojump_clock: MockClock, transport: str) -> None:
    async with serving(Options(ping_interval_ms=1_234, ping_timeout_ms=567, max_payload=89_012)) as server:
        handshake = (await open_session(server, transport)).handshake
    assert (handshake["pingInterval"], handshake["pingTimeout"], handshake["maxPayload"]) == (1_234, 567, 89_012)


async def test_each_session_has_an_id_of_its_own(autojump_clock: MockClock, server: Server) -> None:
    sessions = [await open_session(server, transport) for transport in TRANSPORTS * 3]
    assert len({session.sid for session in sessions}) == 6


@pytest.mark.parametrize("path", PATHS)
async def test_what_clients_put_in_the_query_against_caches_is_ignored(
    autojump_clock: MockClock, server: Server, path: str
) -> None:
    answer = await http(server, "GET", target(path, {**POLLING, "t": "Pq7x", "b64": "1"}))
    assert answer.status == 200
    session = Polling(server, path, json.loads(answer.text[1:]))
    await session.post("3")
    if path == ENGINE:
        query = {"t": "Pq7x.0", "b64": "1", **POLLING, "sid": session.sid}
        assert (await http(server, "POST", target(path, query), b"4hello")).body == b"ok"
        assert (await http(server, "GET", target(path, query))).body == b"4hello"
    await WebSocket.connect(server, target(path, {**WEBSOCKET, "t": "Pq7x.1", "b64": "1"}))


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("method", "query", "refusal"),
    [
        ("GET", {"EIO": "4"}, UNKNOWN_TRANSPORT),
        ("GET", {"EIO": "4", "transport": ""}, UNKNOWN_TRANSPORT),
        ("GET", {"EIO": "4", "transport": "abc"}, UNKNOWN_TRANSPORT),
        ("GET", {"EIO": "4", "transport": "webtransport"}, UNKNOWN_TRANSPORT),
        ("GET", {"EIO": "4", "transport": "Polling"}, UNKNOWN_TRANSPORT),
        ("GET", {**POLLING, "sid": "unknown"}, UNKNOWN_SID),
        ("POST", {**POLLING, "sid": "unknown"}, UNKNOWN_SID),
        ("GET", {**POLLING, "sid": "__proto__"}, UNKNOWN_SID),
        ("POST", POLLING, BAD_METHOD),
        ("PUT", POLLING, BAD_METHOD),
        ("DELETE", POLLING, BAD_METHOD),
        ("GET", WEBSOCKET, BAD_REQUEST),
        ("GET", {"transport": "polling"}, UNSUPPORTED_VERSION),
        ("GET", {"EIO": "", "transport": "polling"}, UNSUPPORTED_VERSION),
        ("GET", {"EIO": "3", "transport": "polling"}, UNSUPPORTED_VERSION),
        ("GET", {"EIO": "5", "transport": "polling"}, UNSUPPORTED_VERSION),
        ("GET", {"EIO": "abc", "transport": "polling"}, UNSUPPORTED_VERSION),
        # in which order it is looked: transport, sid and its transport, method, version
        ("GET", {"EIO": "4", "transport": "abc", "sid": "unknown"}, UNKNOWN_TRANSPORT),
        ("POST", {"EIO": "3", "transport": "abc"}, UNKNOWN_TRANSPORT),
        ("POST", {"EIO": "3", "transport": "polling", "sid": "unknown"}, UNKNOWN_SID),
        ("PUT", {**POLLING, "sid": "unknown"}, UNKNOWN_SID),
        ("POST", {"EIO": "3", "transport": "polling"}, BAD_METHOD),
    ],
)
@pytest.mark.parametrize("path", PATHS)
async def test_a_refusal_says_why(
    autojump_clock: MockClock,
    server: Server,
    path: str,
    method: str,
    query: Mapping[str, str],
    refusal: tuple[int, int, str],
) -> None:
    answer = await http(server, method, target(path, query), None if method == "GET" else b"")
    assert answer.error == refusal
    assert answer.headers["content-type"].startswith("application/json")


@pytest.mark.parametrize(
    ("query", "refusal"),
    [
        ({"EIO": "4"}, UNKNOWN_TRANSPORT),
        ({"EIO": "4", "transport": "abc"}, UNKNOWN_TRANSPORT),
        ({**WEBSOCKET, "sid": "unknown"}, UNKNOWN_SID),
        ({"transport": "websocket"}, UNSUPPORTED_VERSION),
        ({"EIO": "3", "transport": "websocket"}, UNSUPPORTED_VERSION),
        ({"EIO": "abc", "transport": "websocket"}, UNSUPPORTED_VERSION),
        ({"EIO": "3", "transport": "abc", "sid": "unknown"}, UNKNOWN_TRANSPORT),
        ({"EIO": "3", "transport": "websocket", "sid": "unknown"}, UNKNOWN_SID),
    ],
)
@pytest.mark.parametrize("path", PATHS)
async def test_a_websocket_is_refused_before_it_is_one(
    autojump_clock: MockClock, server: Server, path: str, query: Mapping[str, str], refusal: tuple[int, int, str]
) -> None:
    with pytest.raises(Refused) as refused:
        await WebSocket.connect(server, target(path, query))
    assert refused.value.answer.error == refusal


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_session_is_asked_for_by_its_own_transport_and_survives_other_requests(
    autojump_clock: MockClock, server: Server, method: str
) -> None:
    polling, websocket = await Polling.open(server), await WebSocket.open(server)
    body = None if method == "GET" else b"4x"
    as_websocket = target(ENGINE, {**WEBSOCKET, "sid": polling.sid})
    assert (await http(server, method, as_websocket, body)).error == BAD_REQUEST
    as_polling = target(ENGINE, {**POLLING, "sid": websocket.sid})
    assert (await http(server, method, as_polling, body)).error == BAD_REQUEST
    # this is looked at before the version
    as_polling = target(ENGINE, {"EIO": "3", "transport": "polling", "sid": websocket.sid})
    assert (await http(server, method, as_polling, body)).error == BAD_REQUEST
    await expect_echo(polling)
    await expect_echo(websocket)


async def test_a_session_of_one_path_is_unknown_on_the_other(autojump_clock: MockClock, server: Server) -> None:
    engine, socket = await Polling.open(server, ENGINE), await Polling.open(server, SOCKET)
    for session, other in ((engine, SOCKET), (socket, ENGINE)):
        assert (await http(server, "GET", target(other, {**POLLING, "sid": session.sid}))).error == UNKNOWN_SID


async def test_an_origin_with_control_characters_is_refused(autojump_clock: MockClock, server: Server) -> None:
    assert (await http(server, "GET", target(ENGINE, POLLING), None, {"Origin": "http://a\x01b"})).status == 400


async def test_a_websocket_request_with_another_method_is_no_websocket(
    autojump_clock: MockClock, server: Server
) -> None:
    request = await begin(server, "POST", target(ENGINE, WEBSOCKET), b"", UPGRADE)
    assert 400 <= (await request.answer()).status < 500


# ------------------------------------------------------------------------------------------------ time to CONNECT


async def answer_pings(session: Session) -> None:
    """Until the session is closed."""
    if isinstance(session, Polling):
        while (answer := await session.get()).status == 200:
            if "2" in answer.text:
                await session.send("3")
    else:
        while (frame := await session.frame()) is not None and frame.payload != b"1" and frame.opcode != 8:
            if frame.payload == b"2":
                await session.send("3")


@pytest.mark.parametrize(("connect_timeout_ms", "ping_interval_ms"), [(1_000, 300), (45_000, 10_000)])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_that_does_not_connect_is_closed_although_it_answers_pings(
    autojump_clock: MockClock, transport: str, connect_timeout_ms: int, ping_interval_ms: int
) -> None:
    async with serving(Options(connect_timeout_ms=connect_timeout_ms, ping_interval_ms=ping_interval_ms)) as server:
        session, opened_at = await open_session(server, transport, SOCKET), trio.current_time()
        await answer_pings(session)
        assert trio.current_time() - opened_at == at(connect_timeout_ms / 1_000)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_refused_connect_is_none(autojump_clock: MockClock, hasty_server: Server, transport: str) -> None:
    session, opened_at = await open_session(hasty_server, transport, SOCKET), trio.current_time()
    await session.send("40/random,")
    assert await session.receive() == '44/random,{"message":"Invalid namespace"}'
    await answer_pings(session)
    assert trio.current_time() - opened_at == at(1)


@pytest.mark.parametrize("connect_after_s", [0, 0.9])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_in_any_namespace_may_stay(
    autojump_clock: MockClock, transport: str, connect_after_s: float
) -> None:
    async with serving(Options(ping_interval_ms=10_000, ping_timeout_ms=10_000)) as server:
        session = await open_session(server, transport, SOCKET)
        await trio.sleep(connect_after_s)
        await connect(session, "/custom")
        await trio.sleep(3)
        await connect(session, "/")
        await expect_alive(session)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_left_its_namespace_is_not_closed_for_that(autojump_clock: MockClock, transport: str) -> None:
    async with serving(Options(ping_interval_ms=10_000, ping_timeout_ms=10_000)) as server:
        session = await connected(server, transport)
        await session.send("41")
        await trio.sleep(3)
        await connect(session)
        await expect_alive(session)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_echo_asks_for_no_connect(autojump_clock: MockClock, transport: str) -> None:
    async with serving(Options(ping_interval_ms=10_000, ping_timeout_ms=10_000)) as server:
        session = await open_session(server, transport)
        await trio.sleep(3)
        with at_once():
            await expect_echo(session)
