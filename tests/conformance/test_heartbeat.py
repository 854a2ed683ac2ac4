"""Pings and pongs, to the millisecond.

The application of these tests pings each 300 ms and wants its pong in 200 ms.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from ..server.memory import Server
from .app import Options, serving
from .sessions import TRANSPORTS, Polling, Session, connected, expect_echo, open_session, probe, upgrade
from .wire import CLOSE, ENGINE, SOCKET, WebSocket, at, at_once, settle

PATHS = (ENGINE, SOCKET)


async def ping(session: Session) -> float:
    """The next packet is a ping; when it came."""
    assert await session.receive() == "2"
    return trio.current_time()


async def closed(session: Session) -> float:
    """When the session closed; nothing but pings came before."""
    if isinstance(session, WebSocket):
        while (frame := await session.frame()) is not None and frame.opcode != CLOSE:
            assert frame.payload in (b"2", b"1")
    else:
        while (answer := await session.get()).status == 200:
            assert answer.text in ("2", "1", "6")
            if answer.text != "2":
                break
    return trio.current_time()


async def expect_closed(session: Session) -> None:
    """The session is closed already."""
    with at_once():
        if isinstance(session, WebSocket):
            await session.closed()
        else:
            assert (await session.get()).error == (400, 1, "Session ID unknown")


@pytest.mark.parametrize(("interval_ms", "timeout_ms"), [(300, 200), (1, 2_000), (25_000, 20_000)])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_session_without_pongs_is_pinged_once_and_closed(
    autojump_clock: MockClock, transport: str, interval_ms: int, timeout_ms: int
) -> None:
    options = Options(ping_interval_ms=interval_ms, ping_timeout_ms=timeout_ms, connect_timeout_ms=60_000)
    async with serving(options) as server:
        session, opened_at = await open_session(server, transport), trio.current_time()
        assert await ping(session) - opened_at == at(interval_ms / 1_000)
        assert await closed(session) - opened_at == at((interval_ms + timeout_ms) / 1_000)
        if isinstance(session, Polling):
            await expect_closed(session)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_interval_starts_again_when_the_pong_arrives(
    autojump_clock: MockClock, transport: str, path: str
) -> None:
    async with serving(Options(connect_timeout_ms=45_000)) as server:
        session, started_at = await open_session(server, transport, path), trio.current_time()
        for pong_after_s in (0.0, 0.12, 0.15, 0.0):
            assert await ping(session) - started_at == at(0.3)
            await trio.sleep(pong_after_s)
            await session.send("3")
            started_at = trio.current_time()


@pytest.mark.parametrize(("pong_after_s", "alive"), [(0.15, True), (0.25, False)])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_pong_counts_within_the_timeout(
    autojump_clock: MockClock, hasty_server: Server, transport: str, pong_after_s: float, alive: bool
) -> None:
    session = await open_session(hasty_server, transport)
    await ping(session)
    await trio.sleep(pong_after_s)
    await session.send("3")
    if alive:
        await expect_echo(session)
    else:
        await expect_closed(session)


@pytest.mark.parametrize(("pong_after_s", "alive"), [(0.199, True), (0.201, False)])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_pong_counts_to_the_last_millisecond(
    autojump_clock: MockClock, transport: str, pong_after_s: float, alive: bool
) -> None:
    async with serving(Options()) as server:
        session = await open_session(server, transport)
        await ping(session)
        await trio.sleep(pong_after_s)
        await session.send("3")
        if alive:
            await expect_echo(session)
        else:
            await expect_closed(session)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_other_packets_are_no_pong(autojump_clock: MockClock, hasty_server: Server, transport: str) -> None:
    session, opened_at = await open_session(hasty_server, transport), trio.current_time()
    await ping(session)
    await trio.sleep(0.1)
    await expect_echo(session)
    assert await closed(session) - opened_at == at(0.5)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_pong_that_nobody_asked_for_is_ignored(
    autojump_clock: MockClock, hasty_server: Server, transport: str
) -> None:
    session, opened_at = await open_session(hasty_server, transport), trio.current_time()
    await trio.sleep(0.1)
    await session.send("3")
    assert await ping(session) - opened_at == at(0.3)  # not 0.4: it started nothing again
    assert await closed(session) - opened_at == at(0.5)  # and it answered no later ping


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_second_pong_is_one_too_many_and_ignored(
    autojump_clock: MockClock, hasty_server: Server, transport: str
) -> None:
    session = await open_session(hasty_server, transport)
    answered_at = await ping(session)
    await session.send("3")
    await trio.sleep(0.1)
    await session.send("3", "3")
    assert await ping(session) - answered_at == at(0.3)
    assert await closed(session) - answered_at == at(0.5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_ping_of_the_client_closes(
    autojump_clock: MockClock, server: Server, transport: str, path: str
) -> None:
    session = await open_session(server, transport, path)
    with at_once():
        await session.send("2")
        assert await session.closed() == []


# ------------------------------------------------------------------------------------------------ between polls


async def test_the_timer_runs_while_no_get_is_pending(autojump_clock: MockClock, hasty_server: Server) -> None:
    session, opened_at = await Polling.open(hasty_server), trio.current_time()
    await trio.sleep(0.51)
    await expect_closed(session)
    assert trio.current_time() - opened_at == at(0.51)


async def test_a_ping_waits_for_a_late_get_and_its_time_runs(autojump_clock: MockClock, hasty_server: Server) -> None:
    session, opened_at = await Polling.open(hasty_server), trio.current_time()
    await trio.sleep(0.4)
    assert await ping(session) - opened_at == at(0.4)
    held = await session.hold()
    assert (await held.answer()).text == "1"
    assert trio.current_time() - opened_at == at(0.5)


async def test_a_pong_may_come_before_the_ping_was_fetched(autojump_clock: MockClock, hasty_server: Server) -> None:
    session, opened_at = await Polling.open(hasty_server), trio.current_time()
    await trio.sleep(0.4)
    await session.send("3")
    assert await ping(session) - opened_at == at(0.4)  # the first, which waited
    assert await ping(session) - opened_at == at(0.7)


async def test_a_held_get_is_answered_with_the_ping(autojump_clock: MockClock, hasty_server: Server) -> None:
    session, opened_at = await Polling.open(hasty_server), trio.current_time()
    held = await session.hold()
    assert (await held.answer()).text == "2"
    assert trio.current_time() - opened_at == at(0.3)


# ------------------------------------------------------------------------------------------------ upgrades, namespaces


async def test_pings_go_on_after_an_upgrade(autojump_clock: MockClock, hasty_server: Server) -> None:
    session, opened_at = await Polling.open(hasty_server), trio.current_time()
    await trio.sleep(0.1)
    websocket = await upgrade(session)
    await expect_echo(websocket)
    assert await ping(websocket) - opened_at == at(0.3)
    await websocket.send("3")
    assert await ping(websocket) - opened_at == at(0.6)
    assert await closed(websocket) - opened_at == at(0.8)


async def test_the_time_of_a_ping_runs_on_through_an_upgrade(autojump_clock: MockClock, hasty_server: Server) -> None:
    session, opened_at = await Polling.open(hasty_server), trio.current_time()
    assert await ping(session) - opened_at == at(0.3)
    websocket = await probe(session)
    await websocket.send("2probe")
    assert await websocket.receive() == "3probe"
    await websocket.send("5")
    assert await closed_but_noop(websocket) - opened_at == at(0.5)


async def closed_but_noop(websocket: WebSocket) -> float:
    while (frame := await websocket.frame()) is not None and frame.opcode != CLOSE:
        assert frame.payload in (b"6", b"1")
    return trio.current_time()


async def test_a_pong_counts_on_the_new_transport(autojump_clock: MockClock, hasty_server: Server) -> None:
    session, opened_at = await Polling.open(hasty_server), trio.current_time()
    await ping(session)
    websocket = await upgrade(session)
    await trio.sleep(0.1)
    await websocket.send("3")
    await settle()
    await expect_echo(websocket)
    assert await ping(websocket) - opened_at == at(0.7)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_pings_go_on_after_the_last_namespace_was_left(
    autojump_clock: MockClock, hasty_server: Server, transport: str
) -> None:
    session, opened_at = await connected(hasty_server, transport), trio.current_time()
    await session.send("41")
    for number in range(1, 5):
        assert await ping(session) - opened_at == at(0.3 * number)
        await session.send("3")
