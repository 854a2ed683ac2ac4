"""Socket.IO: namespaces, events, acknowledgements and attachments, on both transports."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from ..server.memory import Server
from .sessions import TRANSPORTS, Polling, connect, connected, expect_alive, open_session, placeholder, receive_event
from .wire import SOCKET, Packet, at, at_once

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)


def event(*args: Any, head: str = "42") -> str:
    return head + json.dumps(args, ensure_ascii=False, separators=(",", ":"))


# ------------------------------------------------------------------------------------------------ CONNECT


@pytest.mark.parametrize("namespace", ["", "/custom,", "/custom", "/,", "/"])
async def test_connect_is_answered_before_any_event(
    autojump_clock: MockClock, server: Server, transport: str, namespace: str
) -> None:
    session = await open_session(server, transport, SOCKET)
    await session.send("40" + namespace)
    prefix = "/custom," if "custom" in namespace else ""  # the main namespace is left out
    answer = await session.receive()
    assert isinstance(answer, str)
    assert answer.startswith(f"40{prefix}{{")
    joined = json.loads(answer.removeprefix(f"40{prefix}"))
    assert set(joined) == {"sid"}
    assert isinstance(joined["sid"], str)
    assert joined["sid"] != session.sid
    assert await session.receive() == f'42{prefix}["auth",{{}}]'


@pytest.mark.parametrize("auth", [{}, {"token": "123"}, {"a": {"b": ["c", None, 1.5]}, "né": "€😀"}])
@pytest.mark.parametrize("namespace", ["/", "/custom"])
async def test_auth_is_an_object_that_the_server_sees(
    autojump_clock: MockClock, server: Server, transport: str, namespace: str, auth: dict[str, Any]
) -> None:
    session = await open_session(server, transport, SOCKET)
    assert (await connect(session, namespace, auth))[1] == [auth]


async def test_a_client_may_be_in_several_namespaces(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await open_session(server, transport, SOCKET)
    one, _ = await connect(session, "/custom")
    other, _ = await connect(session)
    assert one["sid"] != other["sid"]
    await expect_alive(session)


async def test_clients_have_ids_of_their_own(autojump_clock: MockClock, server: Server, transport: str) -> None:
    sessions = [await open_session(server, transport, SOCKET) for _ in range(5)]
    assert len({(await connect(session))[0]["sid"] for session in sessions}) == 5


@pytest.mark.parametrize("packet", ["40/random", "40/random,", '40/random,{"token":"123"}'])
async def test_an_unknown_namespace_is_refused_and_the_connection_goes_on(
    autojump_clock: MockClock, server: Server, transport: str, packet: str
) -> None:
    session = await open_session(server, transport, SOCKET)
    await session.send(packet)
    assert await session.receive() == '44/random,{"message":"Invalid namespace"}'
    await connect(session)
    await expect_alive(session)


# ------------------------------------------------------------------------------------------------ DISCONNECT


async def test_leaving_gets_no_reply_and_what_comes_after_is_ignored(
    autojump_clock: MockClock, server: Server, transport: str
) -> None:
    session, joined_at = await connected(server, transport), trio.current_time()
    await session.send("41", '42["message","late"]', '421["message-with-ack","late"]')
    assert await session.receive() == "2"
    assert trio.current_time() - joined_at == at(10)
    await session.send("3")
    await session.send('42["message","later"]')
    assert await session.receive() == "2"
    await session.send("3")


async def test_a_client_may_come_back_to_a_namespace(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await open_session(server, transport, SOCKET)
    sids = set()
    for _ in range(3):
        sids.add((await connect(session, "/", {"token": "again"}))[0]["sid"])
        await expect_alive(session)
        await session.send("41")
    assert len(sids) == 3


@pytest.mark.parametrize("leave", ["41/custom", "41/custom,"])
async def test_leaving_one_namespace_leaves_the_others(
    autojump_clock: MockClock, server: Server, transport: str, leave: str
) -> None:
    session = await connected(server, transport)
    await connect(session, "/custom")
    await session.send(leave, '42["message","message to main namespace"]')
    assert await session.receive() == '42["message-back","message to main namespace"]'
    await connect(session, "/custom")


# ------------------------------------------------------------------------------------------------ EVENT


ARGUMENTS: list[list[Any]] = [
    [],
    [1, "2", {"3": [True]}],
    [None, False, 0, -1, 1.5, "", [], {}],
    ["né €😀", '"\\\n\t\u2028', {"né": "\x00"}],
    [[[[[[[[[["ten deep"]]]]]]]]], {"a": {"b": {"c": {"d": {}}}}}],
    [9007199254740991, -9007199254740991, 1e300],
    ["x" * 100_000],
    [list(range(1_000))],
    [{"_placeholder": False, "num": 0}],
]


@pytest.mark.parametrize("args", ARGUMENTS, ids=range(len(ARGUMENTS)))
async def test_events_carry_any_json(
    autojump_clock: MockClock, server: Server, transport: str, args: list[Any]
) -> None:
    session = await connected(server, transport)
    await session.send(event("message", *args))
    assert await receive_event(session) == ("42", ["message-back", *args])


async def test_the_main_namespace_may_be_spelled_out(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    await session.send('42/,["message",1]')
    assert await session.receive() == '42["message-back",1]'


async def test_whitespace_is_json_too(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    await session.send('42[ "message" ,\n1 ]')
    assert await receive_event(session) == ("42", ["message-back", 1])


@pytest.mark.parametrize("packet", ['42["nobody listens"]', "42[1]", "42[0,1]", "42[1.5]", '42[""]'])
async def test_an_event_that_nobody_listens_to_is_ignored(
    autojump_clock: MockClock, server: Server, transport: str, packet: str
) -> None:
    session = await connected(server, transport)
    await session.send(packet)
    await expect_alive(session)


async def test_a_burst_of_events_keeps_its_order(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    await session.send(*(event("message", number) for number in range(500)))
    assert [(await receive_event(session))[1][1] for _ in range(500)] == list(range(500))


# ------------------------------------------------------------------------------------------------ ACK


@pytest.mark.parametrize("args", ARGUMENTS, ids=range(len(ARGUMENTS)))
async def test_acks_carry_any_json(autojump_clock: MockClock, server: Server, transport: str, args: list[Any]) -> None:
    session = await connected(server, transport)
    await session.send(event("message-with-ack", *args, head="42456"))
    assert await receive_event(session) == ("43456", args)


ACK_IDS = ["0", "7", "456", "9007199254740993", "18446744073709551615", "12345678901234567890", "007"]


@pytest.mark.parametrize("ack_id", ACK_IDS)
async def test_an_ack_id_comes_back_as_it_was(
    autojump_clock: MockClock, server: Server, transport: str, ack_id: str
) -> None:
    session = await connected(server, transport)
    await session.send(f'42{ack_id}["message-with-ack",1]')
    assert await session.receive() == f"43{ack_id}[1]"


@pytest.mark.parametrize("digits", [21, 400, 10_000])
async def test_an_ack_id_of_many_digits_comes_back_as_it_was_or_closes(
    autojump_clock: MockClock, server: Server, transport: str, digits: int
) -> None:
    session = await connected(server, transport)
    await session.send("42" + "9" * digits + '["message-with-ack",1]')
    with at_once():
        if isinstance(session, Polling):
            answer = await session.get()
            assert answer.status == 400 or answer.text in (f"43{'9' * digits}[1]", "1", "6")
        else:
            frame = await session.frame()
            assert frame is None or frame.opcode == 8 or frame.payload == b"43" + b"9" * digits + b"[1]"


ACKS_OF_NOTHING: list[list[Packet]] = [
    ["430[]"],
    ['43999["x"]'],
    ["4318446744073709551615[]"],
    ['461-999[{"_placeholder":true,"num":0}]', b"x"],
]


@pytest.mark.parametrize("packets", ACKS_OF_NOTHING)
async def test_an_unknown_ack_id_is_ignored(
    autojump_clock: MockClock, server: Server, transport: str, packets: list[Packet]
) -> None:
    session = await connected(server, transport)
    await session.send(*packets)
    await expect_alive(session)


# ------------------------------------------------------------------------------------------------ attachments


async def test_attachments_follow_their_event(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    packet = '452-["message",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]'
    await session.send(packet, b"\x01\x02\x03", b"\x04\x05\x06")
    received = [await session.receive() for _ in range(3)]
    assert received == [packet.replace("message", "message-back"), b"\x01\x02\x03", b"\x04\x05\x06"]


async def test_attachments_follow_their_ack(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    packet = '452-789["message-with-ack",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]'
    await session.send(packet, b"\x01\x02\x03", b"\x04\x05\x06")
    received = [await session.receive() for _ in range(3)]
    expected = '462-789[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]'
    assert received == [expected, b"\x01\x02\x03", b"\x04\x05\x06"]


async def test_attachments_may_be_anywhere_and_in_any_order(
    autojump_clock: MockClock, server: Server, transport: str
) -> None:
    session = await connected(server, transport)
    arg = {"deep": [{"second": placeholder(1)}, [placeholder(0)]], "text": "x"}
    await session.send(event("message", arg, head="452-"), b"one", b"two")
    assert (await receive_event(session))[1] == [
        "message-back",
        {"deep": [{"second": b"two"}, [b"one"]], "text": "x"},
    ]


@pytest.mark.parametrize("size", [1, 3, 70_000, 700_000])
async def test_attachments_of_any_size(autojump_clock: MockClock, server: Server, transport: str, size: int) -> None:
    session = await connected(server, transport)
    await session.send(event("message", placeholder(0), head="451-"), bytes(range(256)) * (size // 256 + 1))
    assert (await receive_event(session))[1][1] == bytes(range(256)) * (size // 256 + 1)


async def test_one_attachment_may_have_two_places(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    await session.send(event("message", placeholder(0), placeholder(0), head="451-"), b"twice")
    assert (await receive_event(session))[1] == ["message-back", b"twice", b"twice"]
    await expect_alive(session)


async def test_an_attachment_may_have_no_place(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    await session.send(event("message", placeholder(0), head="452-"), b"used", b"unused")
    assert (await receive_event(session))[1] == ["message-back", b"used"]
    await session.send(event("message", "no place at all", head="451-"), b"unused")
    assert (await receive_event(session))[1] == ["message-back", "no place at all"]
    await expect_alive(session)


async def test_ten_attachments_are_let_in(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    attachments = [bytes([number]) * 10 for number in range(10)]
    await session.send(event("message", *map(placeholder, range(10)), head="4510-"), *attachments)
    assert (await receive_event(session))[1] == ["message-back", *attachments]


async def test_attachments_may_take_a_while(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    await session.send(event("message", placeholder(0), placeholder(1), head="452-"))
    await trio.sleep(4.9)
    await session.send(b"late")
    await trio.sleep(4.9)
    await session.send(b"later")
    assert (await receive_event(session))[1] == ["message-back", b"late", b"later"]


@pytest.mark.parametrize("comes", [0, 1])
async def test_attachments_have_ten_seconds_together_however_well_pings_are_answered(
    autojump_clock: MockClock, hasty_server: Server, transport: str, comes: int
) -> None:
    session, began_at = await connected(hasty_server, transport), trio.current_time()
    await session.send(event("message", placeholder(0), placeholder(1), head="452-"))
    while trio.current_time() - began_at < 9.8:
        assert await session.receive() == "2"
        await session.send("3", *[b"one"] * comes)
        comes = 0
    assert await session.closed() == []
    assert trio.current_time() - began_at == at(10)


async def test_a_packet_may_be_followed_by_another_after_its_attachments(
    autojump_clock: MockClock, server: Server, transport: str
) -> None:
    session = await connected(server, transport)
    for number in range(20):
        await session.send(event("message", placeholder(0), head="451-"), b"%d" % number, event("message", number))
        assert (await receive_event(session))[1] == ["message-back", b"%d" % number]
        assert (await receive_event(session))[1] == ["message-back", number]
