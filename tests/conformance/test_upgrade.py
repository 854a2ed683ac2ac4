"""From long-polling to a WebSocket: the probe, what is held back in between, and what goes wrong on the way."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from ..server.memory import Server
from .app import Options, serving
from .sessions import (
    Polling,
    connect,
    connected,
    expect_alive,
    expect_echo,
    next_but_noop,
    probe,
    receive_event,
    upgrade,
)
from .wire import ENGINE, SOCKET, NoAnswer, Packet, Refused, WebSocket, at, at_once, settle, target


async def probing(session: Polling) -> WebSocket:
    """A WebSocket that has probed, and has not upgraded yet."""
    websocket = await probe(session)
    await websocket.send("2probe")
    assert await websocket.receive() == "3probe"
    return websocket


async def expect_polling(session: Polling) -> None:
    """The session is on long-polling as ever: its GETs are held, and answered with what comes."""
    held, asked_at = await session.hold(), trio.current_time()
    await trio.sleep(1)
    await session.post("4polled")
    assert (await held.answer()).text == "4polled"
    assert trio.current_time() - asked_at == at(1)


async def expect_no_websocket(server: Server, where: str) -> None:
    """It is refused, or closed as soon as it is open."""
    with at_once():
        try:
            websocket = await WebSocket.connect(server, where)
        except (Refused, NoAnswer):
            return
        await websocket.send("2probe")
        assert await websocket.closed() == []


# ------------------------------------------------------------------------------------------------ a good one


async def test_a_session_moves_to_a_websocket(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    websocket = await probing(session)
    with at_once():
        assert (await session.get()).text == "6"
    await websocket.send("5", "4hello", b"\x01\x02")
    assert await next_but_noop(websocket) == "4hello"
    assert await websocket.receive() == b"\x01\x02"


async def test_a_large_message_may_follow_the_upgrade_at_once(autojump_clock: MockClock, server: Server) -> None:
    """Clients send what they have queued behind it, and one read brings both."""
    session = await Polling.open(server)
    websocket = await probing(session)
    await websocket.send("5", "4" + "x" * 50_000)
    assert await next_but_noop(websocket) == "4" + "x" * 50_000


async def test_a_large_frame_before_the_upgrade_closes_only_the_websocket(
    autojump_clock: MockClock, server: Server
) -> None:
    session = await Polling.open(server)
    websocket = await probing(session)
    await websocket.send("5" + "x" * 2_000)
    with at_once():
        assert await websocket.closed() == []
    await expect_polling(session)


async def test_the_held_get_is_released_by_the_probe(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    held = await session.hold()
    websocket = await probe(session)
    await settle()
    await websocket.send("2probe")
    with at_once():
        answer = await held.answer()
    assert (answer.status, answer.text) == (200, "6")
    assert await websocket.receive() == "3probe"


async def test_every_get_until_the_upgrade_is_a_noop(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    websocket = await probing(session)
    for _ in range(3):
        with at_once():
            answer = await session.get()
        assert (answer.status, answer.text) == (200, "6")
    await websocket.send("5")
    await expect_echo(websocket)


async def test_what_is_queued_flows_on_the_websocket(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    websocket = await probing(session)
    await session.post("4one\x1ebAQID")
    await session.post("4two")
    assert (await session.get()).text == "6"
    await websocket.send("5")
    assert [await next_but_noop(websocket) for _ in range(3)] == ["4one", b"\x01\x02\x03", "4two"]
    await expect_echo(websocket)


async def test_more_than_a_poll_may_be_queued(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    packets = [f"4{number}" for number in range(50)]
    await session.send(*packets)
    first = (await session.get()).text.split("\x1e")
    websocket = await upgrade(session)
    assert first + [await next_but_noop(websocket) for _ in range(50 - len(first))] == packets


async def test_a_client_need_not_wait_for_the_answer_to_its_probe(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    websocket = await probe(session)
    await websocket.send("2probe", "5", "4hello")
    assert await websocket.receive() == "3probe"
    assert await next_but_noop(websocket) == "4hello"


async def test_a_binary_event_may_begin_on_one_transport_and_end_on_the_other(
    autojump_clock: MockClock, server: Server
) -> None:
    session = await connected(server, "polling")
    assert isinstance(session, Polling)
    await session.send('452-["message",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]', b"one")
    websocket = await upgrade(session)
    await websocket.send(b"two")
    while (packet := await websocket.receive()) == "6":
        pass
    assert str(packet).startswith('452-["message-back",')
    assert [await websocket.receive() for _ in range(2)] == [b"one", b"two"]


async def test_namespaces_stay_joined(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server, SOCKET)
    await connect(session)
    await connect(session, "/custom")
    websocket = await upgrade(session)
    await websocket.send('427["message-with-ack","a"]')
    while (packet := await websocket.receive()) == "6":
        pass
    assert packet == '437["a"]'
    await websocket.send("41/custom,")
    await connect(websocket, "/custom")


# ------------------------------------------------------------------------------------------------ afterwards


@pytest.mark.parametrize("path", [ENGINE, SOCKET])
async def test_requests_are_400_and_the_session_goes_on(autojump_clock: MockClock, server: Server, path: str) -> None:
    session = await Polling.open(server, path)
    websocket = await upgrade(session)
    assert (await session.get()).error == (400, 3, "Bad request")
    assert (await session.post("4x")).error == (400, 3, "Bad request")
    if path == ENGINE:
        await expect_echo(websocket)
    else:
        await websocket.send("40")
        assert str(await next_but_noop(websocket)).startswith('40{"sid"')


@pytest.mark.parametrize("upgraded", [False, True])
async def test_a_second_websocket_is_closed_and_the_first_goes_on(
    autojump_clock: MockClock, server: Server, upgraded: bool
) -> None:
    session = await Polling.open(server)
    websocket = await (upgrade(session) if upgraded else probing(session))
    query = {"EIO": "4", "transport": "websocket", "sid": session.sid}
    await expect_no_websocket(server, target(ENGINE, query))
    if not upgraded:
        await websocket.send("5")
    await expect_echo(websocket)


async def test_a_second_websocket_is_closed_before_the_first_has_probed(
    autojump_clock: MockClock, server: Server
) -> None:
    session = await Polling.open(server)
    websocket = await probe(session)
    await settle()
    await expect_no_websocket(server, target(ENGINE, {"EIO": "4", "transport": "websocket", "sid": session.sid}))
    await websocket.send("2probe")
    assert await websocket.receive() == "3probe"
    await websocket.send("5")
    await expect_echo(websocket)


async def test_a_session_that_began_on_a_websocket_has_no_other(autojump_clock: MockClock, server: Server) -> None:
    websocket = await WebSocket.open(server)
    await expect_no_websocket(server, target(ENGINE, {"EIO": "4", "transport": "websocket", "sid": websocket.sid}))
    await expect_echo(websocket)


# ------------------------------------------------------------------------------------------------ failures


ANYTHING_ELSE: list[Packet] = ["4hello", "2", "2other", "3", "3probe", "6", "0", "1", "abc", "", b"\x01\x02"]


@pytest.mark.parametrize("packet", ANYTHING_ELSE)
async def test_anything_but_a_probe_closes_only_the_websocket(
    autojump_clock: MockClock, server: Server, packet: Packet
) -> None:
    session = await Polling.open(server)
    websocket = await probe(session)
    await settle()
    await websocket.send(packet)
    with at_once():
        assert await websocket.closed() == []
    await expect_polling(session)


@pytest.mark.parametrize("packet", [packet for packet in ANYTHING_ELSE if packet != "6"])
async def test_anything_but_an_upgrade_closes_only_the_websocket(
    autojump_clock: MockClock, server: Server, packet: Packet
) -> None:
    session = await Polling.open(server)
    websocket = await probing(session)
    await websocket.send(packet)
    with at_once():
        assert await websocket.closed() == []
    await expect_polling(session)


@pytest.mark.parametrize("probed", [False, True])
async def test_a_websocket_that_breaks_off_leaves_long_polling_as_it_was(
    autojump_clock: MockClock, server: Server, probed: bool
) -> None:
    session = await Polling.open(server)
    websocket = await (probing(session) if probed else probe(session))
    await settle()
    await websocket.drop()
    await expect_polling(session)


async def test_a_failed_upgrade_can_be_tried_again(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    websocket = await probing(session)
    await websocket.send("4hello")
    await websocket.closed()
    await settle()
    await expect_echo(await upgrade(session))


async def test_what_was_queued_before_a_failed_upgrade_is_polled(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    websocket = await probing(session)
    await session.post("4one")
    await websocket.drop()
    assert (await session.get()).text == "4one"


@pytest.mark.parametrize("probed", [False, True])
async def test_an_upgrade_has_ten_seconds(autojump_clock: MockClock, probed: bool) -> None:
    async with serving(Options(ping_interval_ms=25_000, ping_timeout_ms=20_000)) as server:
        session = await Polling.open(server)
        websocket, opened_at = await (probing(session) if probed else probe(session)), trio.current_time()
        await trio.sleep(9.9)
        if probed:
            assert (await session.get()).text == "6"
        assert await websocket.closed() == []
        assert trio.current_time() - opened_at == at(10)
        await expect_polling(session)
        await expect_echo(await upgrade(session))


async def test_an_upgrade_in_time_is_not_timed_afterwards(autojump_clock: MockClock) -> None:
    async with serving(Options(ping_interval_ms=25_000, ping_timeout_ms=20_000)) as server:
        session = await Polling.open(server)
        websocket = await probing(session)
        await trio.sleep(9.9)
        await websocket.send("5")
        await trio.sleep(5)
        await expect_echo(websocket)


@pytest.mark.parametrize("probed", [False, True])
async def test_a_session_that_closes_takes_its_probing_websocket_along(
    autojump_clock: MockClock, server: Server, probed: bool
) -> None:
    session = await Polling.open(server)
    websocket = await (probing(session) if probed else probe(session))
    await settle()
    await session.post("1")
    with at_once():
        assert await websocket.closed() == []
        assert (await session.get()).error == (400, 1, "Session ID unknown")


async def test_the_session_ends_with_its_websocket(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    websocket = await upgrade(session)
    await websocket.drop()
    assert (await session.get()).error == (400, 1, "Session ID unknown")


async def test_an_upgrade_does_not_disturb_another_session(autojump_clock: MockClock, server: Server) -> None:
    session, other = await Polling.open(server), await connected(server, "polling")
    websocket = await upgrade(session)
    await expect_alive(other)
    await other.send('42["message","mine"]')
    await expect_echo(websocket)
    assert (await receive_event(other))[1] == ["message-back", "mine"]
