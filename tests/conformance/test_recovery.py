"""Connection state recovery: what a client missed is sent again when it comes back.

What it missed is made here by a client that claims to have seen less than it did.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from attrs import define
from trio.testing import MockClock

from ..server.memory import Server
from .app import Options, serving
from .conftest import watched
from .sessions import TRANSPORTS, Polling, Session, connect, open_session, placeholder, receive_event, upgrade
from .wire import CLOSE, SOCKET, WebSocket, at_once, frame, http, settle, target


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    options = Options(ping_interval_ms=10_000, ping_timeout_ms=10_000, connect_timeout_ms=45_000, recovery=True)
    async with watched(options) as server:
        yield server


@define
class Joined:
    """A client in a namespace, what it got in its CONNECT answer, and the offset of its first event."""

    session: Session
    sid: str
    pid: str
    offset: str
    namespace: str = "/"


async def join(server: Server, transport: str, namespace: str = "/") -> Joined:
    session = await open_session(server, transport, SOCKET)
    answer, event = await connect(session, namespace)
    assert set(answer) == {"sid", "pid"}
    assert event[0] == {}
    assert isinstance(event[1], str)
    return Joined(session, answer["sid"], answer["pid"], event[1], namespace)


async def say(joined: Joined, *args: Any) -> str:
    """Let the server send an event; its offset."""
    await joined.session.send("42" + json.dumps(["message", *args]))
    head, event = await receive_event(joined.session)
    assert (head, event[: len(args) + 1], len(event)) == ("42", ["message-back", *args], len(args) + 2)
    assert isinstance(event[-1], str)
    return str(event[-1])


async def come_back(
    server: Server, pid: Any, offset: Any, transport: str = "websocket", namespace: str = "/", **auth: Any
) -> tuple[Session, list[Any], dict[str, Any]]:
    """A new connection; the events before its CONNECT answer, and the answer."""
    session = await open_session(server, transport, SOCKET)
    prefix = "" if namespace == "/" else namespace + ","
    await session.send(f"40{prefix}" + json.dumps({"pid": pid, "offset": offset, **auth}))
    events: list[Any] = []
    while True:
        head, payload = await receive_event(session)
        if head == f"40{prefix}":
            assert set(payload) == {"sid", "pid"}
            return session, events, payload
        assert head == f"42{prefix}"
        events.append(payload)


async def expect_recovered(server: Server, joined: Joined, events: list[Any]) -> Session:
    session, missed, answer = await come_back(server, joined.pid, joined.offset, namespace=joined.namespace)
    assert (answer["sid"], answer["pid"]) == (joined.sid, joined.pid)
    assert missed == events
    return session


async def expect_anew(server: Server, pid: Any, offset: Any, joined: Joined, namespace: str = "/") -> None:
    """A client with `pid` and `offset` is nobody that the server knows: it is not `joined`."""
    _, missed, answer = await come_back(server, pid, offset, namespace=namespace)
    assert missed == []
    assert answer["sid"] not in (joined.sid, joined.pid, pid)
    assert answer["pid"] not in (joined.sid, joined.pid, pid)


# ------------------------------------------------------------------------------------------------ offsets


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_each_event_ends_with_its_offset(autojump_clock: MockClock, server: Server, transport: str) -> None:
    joined = await join(server, transport)
    offsets = [joined.offset, await say(joined), await say(joined, 1, "two"), await say(joined, {"three": [3]})]
    assert len(set(offsets)) == 4


async def test_an_event_with_attachments_ends_with_its_offset(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    await joined.session.send("451-" + json.dumps(["message", placeholder(0)]), b"binary")
    _, event = await receive_event(joined.session)
    assert event[:2] == ["message-back", b"binary"]
    assert isinstance(event[2], str)


async def test_an_ack_has_no_offset(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    await joined.session.send('427["message-with-ack",1,"two"]')
    assert await joined.session.receive() == '437[1,"two"]'


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_it_can_be_switched_off(autojump_clock: MockClock, transport: str) -> None:
    async with serving(Options(ping_interval_ms=10_000, ping_timeout_ms=10_000, recovery=False)) as server:
        session = await open_session(server, transport, SOCKET)
        answer, event = await connect(session, "/", {"pid": "somebody", "offset": "something"})
        assert set(answer) == {"sid"}
        assert event == [{"pid": "somebody", "offset": "something"}]
        await session.send('42["message",1]')
        assert await session.receive() == '42["message-back",1]'


# ------------------------------------------------------------------------------------------------ pids


async def test_pids_are_secrets(autojump_clock: MockClock, server: Server) -> None:
    clients = [await join(server, transport) for transport in TRANSPORTS * 2]
    secrets = {client.pid for client in clients}
    public = {client.sid for client in clients} | {client.session.sid for client in clients}
    assert len(secrets) == 4
    assert not secrets & public
    assert min(len(pid) for pid in secrets) >= 16
    for client in clients:
        assert not any(part in client.pid for part in (client.sid, client.session.sid))


async def test_a_namespace_has_a_pid_of_its_own(autojump_clock: MockClock, server: Server) -> None:
    session = await open_session(server, "websocket", SOCKET)
    one, _ = await connect(session)
    other, _ = await connect(session, "/custom")
    assert one["pid"] != other["pid"]


# ------------------------------------------------------------------------------------------------ coming back


@pytest.mark.parametrize("back_on", TRANSPORTS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_missed_events_come_before_the_connect_answer(
    autojump_clock: MockClock, server: Server, transport: str, back_on: str
) -> None:
    joined = await join(server, transport)
    first, second = await say(joined, "first", {"a": 1}), await say(joined, "second")
    await joined.session.drop()
    session, missed, answer = await come_back(server, joined.pid, joined.offset, back_on)
    assert missed == [["message-back", "first", {"a": 1}, first], ["message-back", "second", second]]
    assert answer == {"sid": joined.sid, "pid": joined.pid}
    assert session.sid != joined.session.sid


async def test_only_what_was_missed_comes_again(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    await say(joined, "first")
    joined.offset = await say(joined, "second")
    third = await say(joined, "third")
    await joined.session.drop()
    await expect_recovered(server, joined, [["message-back", "third", third]])


async def test_nothing_was_missed(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    joined.offset = await say(joined, "all that there was")
    await joined.session.drop()
    await expect_recovered(server, joined, [])


async def test_what_a_lost_connection_did_not_carry_is_missed(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    await joined.session.send('42["message","answered to nobody"]')
    await settle()
    await joined.session.drop()
    _, missed, answer = await come_back(server, joined.pid, joined.offset)
    assert [event[:2] for event in missed] == [["message-back", "answered to nobody"]]
    assert answer["sid"] == joined.sid


async def test_missed_attachments_come_again(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    await joined.session.send("452-" + json.dumps(["message", placeholder(0), placeholder(1)]), b"one", b"two")
    _, event = await receive_event(joined.session)
    await joined.session.drop()
    await expect_recovered(server, joined, [event])
    assert event[1:3] == [b"one", b"two"]


async def test_acks_do_not_come_again(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    await joined.session.send('427["message-with-ack","x"]')
    assert await joined.session.receive() == '437["x"]'
    await joined.session.drop()
    await expect_recovered(server, joined, [])


async def test_a_client_goes_on_where_it_was(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    for _ in range(3):
        first = await say(joined, "first")
        await joined.session.drop()
        joined.session = await expect_recovered(server, joined, [["message-back", "first", first]])
        await settle()
        joined.offset = await last_offset(joined)


async def last_offset(joined: Joined) -> str:
    """Of what is sent now, after whatever was sent on joining."""
    await joined.session.send('42["message","mark"]')
    while (event := (await receive_event(joined.session))[1])[:2] != ["message-back", "mark"]:
        assert event[0] == "auth"
    return str(event[-1])


async def test_auth_is_sent_along(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    await joined.session.drop()
    _, _, answer = await come_back(server, joined.pid, joined.offset, token="123")
    assert answer == {"sid": joined.sid, "pid": joined.pid}


async def test_another_namespace_recovers_too(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket", "/custom")
    await joined.session.drop()
    await expect_recovered(server, joined, [])


async def test_clients_get_what_they_missed_and_not_what_others_did(autojump_clock: MockClock, server: Server) -> None:
    one, other = await join(server, "websocket"), await join(server, "websocket")
    mine, theirs = await say(one, "mine"), await say(other, "theirs")
    await one.session.drop()
    await other.session.drop()
    await expect_recovered(server, other, [["message-back", "theirs", theirs]])
    await expect_recovered(server, one, [["message-back", "mine", mine]])


# ------------------------------------------------------------------------------------------------ what is recoverable


async def drops(joined: Joined) -> None:
    await joined.session.drop()


async def closes_the_websocket(joined: Joined) -> None:
    assert isinstance(joined.session, WebSocket)
    await joined.session.send_bytes(frame(CLOSE, b"\x03\xe9"))
    await joined.session.closed()
    await joined.session.drop()


async def says_goodbye(joined: Joined) -> None:
    await joined.session.send("1")
    await joined.session.drop()


async def falls_silent(joined: Joined) -> None:
    await trio.sleep(20.1)
    await joined.session.closed()


RECOVERABLE: list[tuple[str, Callable[[Joined], Awaitable[None]]]] = [
    ("websocket", drops),
    ("polling", drops),
    ("websocket", closes_the_websocket),
    ("websocket", says_goodbye),
    ("polling", says_goodbye),
    ("websocket", falls_silent),
    ("polling", falls_silent),
]


@pytest.mark.parametrize(("transport", "end"), RECOVERABLE)
async def test_a_connection_that_was_lost_is_recovered(
    autojump_clock: MockClock, server: Server, transport: str, end: Callable[[Joined], Awaitable[None]]
) -> None:
    joined = await join(server, transport)
    missed = await say(joined, "missed")
    await end(joined)
    await settle()
    await expect_recovered(server, joined, [["message-back", "missed", missed]])


async def test_an_upgraded_connection_is_recovered(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "polling")
    assert isinstance(joined.session, Polling)
    joined.session = await upgrade(joined.session)
    await joined.session.send('42["message","missed"]')
    while (event := await joined.session.receive()) == "6":
        pass
    await joined.session.drop()
    await expect_recovered(server, joined, [json.loads(str(event)[2:])])


@pytest.mark.parametrize(
    "farewell", ["41", "42{}", "4abc", '42["message"', '42["disconnect"]', "40", '44{"message":"x"}', "4"]
)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_leaves_or_breaks_a_rule_begins_anew(
    autojump_clock: MockClock, server: Server, transport: str, farewell: str
) -> None:
    joined = await join(server, transport)
    await joined.session.send(farewell)
    if farewell != "41":
        with at_once():
            await joined.session.closed()
    await joined.session.drop()
    await expect_anew(server, joined.pid, joined.offset, joined)


async def test_who_leaves_one_namespace_is_recovered_in_the_other(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    answer, event = await connect(joined.session, "/custom")
    custom = Joined(joined.session, answer["sid"], answer["pid"], event[1], "/custom")
    await joined.session.send("41/custom,")
    missed = await say(joined, "missed")
    await joined.session.drop()
    await expect_anew(server, custom.pid, custom.offset, custom, "/custom")
    await expect_recovered(server, joined, [["message-back", "missed", missed]])


# ------------------------------------------------------------------------------------------------ who is not known


@pytest.mark.parametrize("pid", ["unknown", "", "é", "x" * 100_000, None, 7, ["pid"], {}])
async def test_an_unknown_pid_begins_anew(autojump_clock: MockClock, server: Server, pid: Any) -> None:
    joined = await join(server, "websocket")
    await joined.session.drop()
    await expect_anew(server, pid, joined.offset, joined)
    await expect_recovered(server, joined, [])  # which is still there for its owner


@pytest.mark.parametrize("offset", ["unknown", "", "-1", "é", "9" * 30, "9" * 10_000, None, 1, ["offset"], {}])
async def test_an_unknown_offset_begins_anew(autojump_clock: MockClock, server: Server, offset: Any) -> None:
    joined = await join(server, "websocket")
    await say(joined, "missed")
    await joined.session.drop()
    await expect_anew(server, joined.pid, offset, joined)


async def test_ids_that_are_no_secret_recover_nothing(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    await joined.session.drop()
    for public in (joined.sid, joined.session.sid):
        await expect_anew(server, public, joined.offset, joined)


async def test_a_pid_of_another_namespace_begins_anew(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    await joined.session.drop()
    await expect_anew(server, joined.pid, joined.offset, joined, "/custom")


async def test_a_lost_session_is_gone_for_engineio(autojump_clock: MockClock, server: Server) -> None:
    joined = await join(server, "websocket")
    await joined.session.drop()
    query = {"EIO": "4", "transport": "polling", "sid": joined.session.sid}
    assert (await http(server, "GET", target(SOCKET, query))).error == (400, 1, "Session ID unknown")
