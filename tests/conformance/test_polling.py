"""HTTP long-polling: what a GET and a POST carry, and what closes a session."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from ..server.memory import Server
from .app import Options, serving
from .sessions import RECORD_SEPARATOR, Polling, connected, expect_echo
from .wire import SOCKET, Request, WebSocket, at, at_once, begin, settle

PACKETS_PER_POLL = 16


async def expect_gone(session: Polling) -> None:
    """Neither a GET nor a POST finds the session any more."""
    with at_once():
        assert (await session.get()).error == (400, 1, "Session ID unknown")
        assert (await session.post("4x")).error == (400, 1, "Session ID unknown")


async def expect_released(held: Request) -> None:
    """The held GET ends, and says at most that this is the end."""
    with at_once():
        answer = await held.answer()
    assert answer.status == 200
    assert answer.text in ("1", "6")


# ------------------------------------------------------------------------------------------------ payloads


async def test_a_post_is_answered_ok_and_a_get_with_what_came(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    posted = await session.post("4hello")
    assert (posted.status, posted.body) == (200, b"ok")
    polled = await session.get()
    assert (polled.status, polled.text) == (200, "4hello")
    assert polled.headers["content-type"].lower() == "text/plain; charset=utf-8"
    assert polled.headers["cache-control"] == "no-store"


async def test_packets_are_joined_by_the_record_separator(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    assert (await session.post("4one\x1e4\x1e4three")).body == b"ok"
    assert (await session.get()).body == b"4one\x1e4\x1e4three"


async def test_binary_packets_are_base64_after_a_b(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    assert (await session.post("4hello\x1ebAQIDBA==\x1eb/+8=")).body == b"ok"
    assert (await session.get()).body == b"4hello\x1ebAQIDBA==\x1eb/+8="


async def test_text_is_utf_8(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    for content_type in ("text/plain;charset=UTF-8", "text/plain; charset=utf-8", "application/x-www-form-urlencoded"):
        assert (await session.post("4né €😀\x00\n", {"Content-Type": content_type})).body == b"ok"
        assert (await session.get()).body == "4né €😀\x00\n".encode()


async def test_a_get_is_held_until_there_is_something(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    held, began_at = await session.hold(), trio.current_time()
    await trio.sleep(5)
    await session.post("4hello")
    assert (await held.answer()).text == "4hello"
    assert trio.current_time() - began_at == at(5)


async def test_what_came_between_two_gets_waits_for_the_next(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    for number in range(3):
        await session.post(f"4{number}")
    assert (await session.get()).text == "40\x1e41\x1e42"


@pytest.mark.parametrize("get_first", [False, True])
async def test_a_poll_carries_16_packets_and_a_post_any_number(
    autojump_clock: MockClock, server: Server, get_first: bool
) -> None:
    session = await Polling.open(server)
    sent = [f"4{number}" if number % 3 else "bAQID" for number in range(2 * PACKETS_PER_POLL + 5)]
    held = await session.hold() if get_first else None
    assert (await session.post(RECORD_SEPARATOR.join(sent))).body == b"ok"
    polls = [(await held.answer()).text] if held else []
    while sum(len(poll.split(RECORD_SEPARATOR)) for poll in polls) < len(sent):
        with at_once():
            polls.append((await session.get()).text)
    assert RECORD_SEPARATOR.join(polls) == RECORD_SEPARATOR.join(sent)
    assert max(len(poll.split(RECORD_SEPARATOR)) for poll in polls) <= PACKETS_PER_POLL


async def test_a_ping_is_one_of_the_16(autojump_clock: MockClock, hasty_server: Server) -> None:
    session = await Polling.open(hasty_server)
    await session.post(RECORD_SEPARATOR.join(f"4{number}" for number in range(20)))
    await trio.sleep(0.35)
    polls = [(await session.get()).text.split(RECORD_SEPARATOR) for _ in range(2)]
    assert [len(poll) for poll in polls] == [PACKETS_PER_POLL, 5]
    assert sorted(polls[0] + polls[1]) == sorted(["2", *(f"4{number}" for number in range(20))])


# ------------------------------------------------------------------------------------------------ two at once


async def test_a_second_get_is_400_and_closes_the_session(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    held = await session.hold()
    assert (await session.get()).status == 400
    with at_once():
        answer = await held.answer()
    assert (answer.status, answer.text) == (200, "1")
    await expect_gone(session)


async def test_a_second_post_is_400_and_closes_the_session(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    held = await session.hold()
    first = await begin(server, "POST", session.target, b"4he", {"Content-Length": "6"})
    await settle()
    assert (await session.post("4second")).status == 400
    with at_once():
        answer = await held.answer()
    assert (answer.status, answer.text) == (200, "1")
    await expect_gone(session)
    await first.drop()


async def test_a_post_beside_a_held_get_is_no_overlap(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    for number in range(3):
        held = await session.hold()
        assert (await session.post(f"4{number}")).body == b"ok"
        assert (await held.answer()).text == f"4{number}"


async def test_a_client_that_drops_its_held_get_is_gone(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    held = await session.hold()
    await held.drop()
    await settle()
    await expect_gone(session)


# ------------------------------------------------------------------------------------------------ bad bodies


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("body", [b"4" + b"x" * 1_000, b"4" + "€".encode() * 334, b"4x\x1e" * 400])
async def test_an_oversize_post_is_413_and_the_session_survives(
    autojump_clock: MockClock, body: bytes, chunked: bool
) -> None:
    async with serving(Options(ping_interval_ms=10_000, ping_timeout_ms=10_000, max_payload=1_000)) as server:
        session = await Polling.open(server)
        held = await session.hold()
        if chunked:
            chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            answer = await session.post(chunk, {"Transfer-Encoding": "chunked"})
        else:
            answer = await session.post(body)
        assert answer.status == 413
        assert (await session.post(b"4" + b"x" * 999)).body == b"ok"
        assert (await held.answer()).text == "4" + "x" * 999


async def test_a_post_whose_length_says_too_much_is_413_before_it_comes(
    autojump_clock: MockClock, server: Server
) -> None:
    session = await Polling.open(server)
    request = await begin(server, "POST", session.target, b"4", {"Content-Length": "1000001"})
    await request.more(b"x" * 1_000_000)
    with at_once():
        assert (await request.answer()).status == 413
    await expect_echo(session)


BAD_BODIES = {
    "unknown type": b"abc",
    "type 7": b"7",
    "no packet": b"",
    "an empty packet between two": b"4a\x1e\x1e4b",
    "an empty packet at the end": b"4a\x1e",
    "bad after good": b"4a\x1exyz",
    "no UTF-8": b"4\xff",
    "UTF-8 cut short": b"4\xe2\x82",
    "an overlong form": b"4\xc0\xaf",
    "half a surrogate pair": b"4\xed\xa0\x80",
    "no UTF-8 in the second packet": b"4a\x1e4\x80",
    "no base64": b"b!!!!",
    "base64 cut short": b"bAQIDB",
    "base64 of one character": b"bA",
    "base64 that ends twice": b"bAQ==AQ==",
    "base64 beyond ASCII": "bAQIé".encode(),
}


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_bad_post_is_400_and_closes_the_session(
    autojump_clock: MockClock, server: Server, body: bytes, held: bool
) -> None:
    session = await Polling.open(server)
    get = await session.hold() if held else None
    with at_once():
        assert (await session.post(body)).status == 400
    if get:
        with at_once():
            answer = await get.answer()
        assert answer.status == 200
        assert answer.text.split(RECORD_SEPARATOR)[-1] in ("1", "6", "4a")
    await expect_gone(session)


@pytest.mark.parametrize("held", [False, True])
async def test_binary_bodies_are_of_an_older_protocol(autojump_clock: MockClock, server: Server, held: bool) -> None:
    session = await Polling.open(server)
    get = await session.hold() if held else None
    assert (await session.post("4hello", {"Content-Type": "application/octet-stream"})).status == 400
    if get:
        await expect_released(get)
    await expect_gone(session)


# ------------------------------------------------------------------------------------------------ closing


async def test_a_close_packet_releases_the_held_get(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    held = await session.hold()
    with at_once():
        assert (await session.post("1")).body == b"ok"
        answer = await held.answer()
    assert (answer.status, answer.text) == (200, "6")
    await expect_gone(session)


async def test_a_close_packet_without_a_held_get(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    assert (await session.post("1")).body == b"ok"
    await expect_gone(session)


async def test_nothing_is_read_after_a_close_packet(autojump_clock: MockClock, server: Server) -> None:
    session, other = await Polling.open(server), await WebSocket.open(server)
    with at_once():
        assert (await session.post("1\x1exyz")).status in (200, 400)
    await expect_gone(session)
    await expect_echo(other)


@pytest.mark.parametrize("held", [False, True])
async def test_a_ping_from_the_client_closes_the_session(autojump_clock: MockClock, server: Server, held: bool) -> None:
    session = await Polling.open(server)
    get = await session.hold() if held else None
    with at_once():
        await session.post("2")
    if get:
        await expect_released(get)
    await expect_gone(session)


async def test_a_pong_that_nobody_asked_for_is_ignored(autojump_clock: MockClock, server: Server) -> None:
    session = await Polling.open(server)
    assert (await session.post("3")).body == b"ok"
    await expect_echo(session)


@pytest.mark.parametrize("rule", ["42{}", "40", "4abc", '42["disconnect"]', "bAQID"])
async def test_a_broken_rule_of_socketio_releases_the_held_get(
    autojump_clock: MockClock, server: Server, rule: str
) -> None:
    session = await connected(server, "polling")
    assert isinstance(session, Polling)
    held = await session.hold()
    with at_once():
        await session.send(rule)
    await expect_released(held)
    await expect_gone(session)


async def test_a_ping_timeout_releases_the_held_get(autojump_clock: MockClock, hasty_server: Server) -> None:
    session, opened_at = await Polling.open(hasty_server), trio.current_time()
    assert (await session.get()).text == "2"
    held = await session.hold()
    answer = await held.answer()
    assert (answer.status, answer.text) == (200, "1")
    assert trio.current_time() - opened_at == at(0.5)
    await expect_gone(session)


async def test_a_connect_timeout_releases_the_held_get(autojump_clock: MockClock) -> None:
    async with serving(Options(ping_interval_ms=10_000, ping_timeout_ms=10_000)) as server:
        session, opened_at = await Polling.open(server, SOCKET), trio.current_time()
        held = await session.hold()
        assert (await held.answer()).text in ("1", "6")
        assert trio.current_time() - opened_at == at(1)
        await expect_gone(session)


async def test_sessions_do_not_share_what_happens_to_one(autojump_clock: MockClock, server: Server) -> None:
    one, other = await Polling.open(server), await Polling.open(server)
    held = await other.hold()
    await one.post("4mine")
    await one.post("abc")
    await expect_gone(one)
    await other.post("4theirs")
    assert (await held.answer()).text == "4theirs"


async def test_a_post_that_breaks_off_harms_nobody_else(autojump_clock: MockClock, server: Server) -> None:
    session, other = await Polling.open(server), await Polling.open(server)
    request = await begin(server, "POST", session.target, b"4he", {"Content-Length": "6"})
    await settle()
    await request.drop()
    await settle()
    await expect_echo(other)
