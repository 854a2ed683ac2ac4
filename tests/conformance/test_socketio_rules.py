"""What Socket.IO does not allow closes the connection at once, and harms nobody else.

The application of these tests pings each 10 s, so that no time-out can be what closed it.
"""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from ..server.memory import Server
from .sessions import TRANSPORTS, Session, connected, expect_alive, open_session
from .wire import SOCKET, Packet, at_once

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)

RESERVED = ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]
PLACEHOLDER = '{"_placeholder":true,"num":0}'


async def expect_close(session: Session) -> None:
    """The session closes at once, and nothing that it brought was answered."""
    with at_once():
        assert await session.closed() == []


NOT_ALLOWED: dict[str, list[Packet]] = {
    # packet types
    "type 7": ["47"],
    "type 9": ["49[]"],
    "a letter": ["4abc"],
    "no type": ["4"],
    "a minus": ["4-1"],
    # JSON
    "truncated": ['42["message","x"'],
    "truncated in a string": ['42["message","x'],
    "trailing": ['42["message","x"]x'],
    "two values": ['42["message"]["message"]'],
    "NaN": ['42["message",NaN]'],
    "Infinity": ['42["message",Infinity]'],
    "minus Infinity": ['42["message",-Infinity]'],
    "single quotes": ["42['message']"],
    "a trailing comma": ['42["message",]'],
    "a leading zero": ['42["message",01]'],
    "a bare word": ["42[message]"],
    "a control character": ['42["message","\n"]'],
    "text": ["42message"],
    # events
    "an object": ["42{}"],
    "an empty array": ["42[]"],
    "no payload": ["42"],
    "no payload but an id": ["421"],
    "null": ["42null"],
    "a string": ['42"message"'],
    "true": ["42true"],
    "name null": ["42[null]"],
    "name true": ["42[true]"],
    "name an object": ['42[{"message":1}]'],
    "name an array": ['42[["message"]]'],
    **{f"reserved: {name}": [f'42["{name}"]'] for name in RESERVED},
    **{f"reserved with an id: {name}": [f'427["{name}","x"]'] for name in RESERVED},
    "reserved with attachments": [f'451-["disconnect",{PLACEHOLDER}]', b"x"],
    "reserved with an escape": ['42["dis\\u0063onnect"]'],
    # ids
    "an id of letters": ['42abc["message-with-ack",1]'],
    "a negative id": ['42-1["message-with-ack",1]'],
    "a fractional id": ['421.5["message-with-ack",1]'],
    "an id with letters": ['421a["message-with-ack",1]'],
    "an id of other digits": ['42٣["message-with-ack",1]'],
    # acks
    "an ack that is an object": ["431{}"],
    "an ack that is a number": ["43[1"],
    # CONNECT and CONNECT_ERROR
    "a second CONNECT": ["40"],
    "a second CONNECT with auth": ['40{"token":"x"}'],
    "CONNECT_ERROR": ['44{"message":"x"}'],
    "CONNECT_ERROR of another namespace": ['44/custom,{"message":"x"}'],
    # namespaces that were not joined
    "an event elsewhere": ['42/custom,["message","x"]'],
    "an event nowhere": ['42/random,["message","x"]'],
    "an event with an id elsewhere": ['42/custom,1["message-with-ack","x"]'],
    "an ack elsewhere": ["43/custom,1[]"],
    "an event with attachments elsewhere": [f'451-/custom,["message",{PLACEHOLDER}]', b"x"],
    # attachments
    "no dash": [f'451["message",{PLACEHOLDER}]', b"x"],
    "no count": [f'45-["message",{PLACEHOLDER}]', b"x"],
    "neither": [f'45["message",{PLACEHOLDER}]', b"x"],
    "a negative count": [f'45-1-["message",{PLACEHOLDER}]', b"x"],
    "a fractional count": [f'451.5-["message",{PLACEHOLDER}]', b"x"],
    "a count of letters": [f'45a-["message",{PLACEHOLDER}]', b"x"],
    "a count in other words": [f'451e0-["message",{PLACEHOLDER}]', b"x"],
    "eleven attachments": ['4511-["message",' + ",".join([PLACEHOLDER] * 11) + "]"],
    "many attachments": ['45999999999999999999-["message"]'],
    "eleven attachments of an ack": ["4611-1[" + ",".join([PLACEHOLDER] * 11) + "]"],
    "a number out of range": ['451-["message",{"_placeholder":true,"num":1}]', b"x"],
    "a negative number": ['451-["message",{"_placeholder":true,"num":-1}]', b"x"],
    "a huge number": ['451-["message",{"_placeholder":true,"num":1e99}]', b"x"],
    "a number that is text": ['451-["message",{"_placeholder":true,"num":"0"}]', b"x"],
    "no number": ['451-["message",{"_placeholder":true}]', b"x"],
    "text while one is pending": [f'451-["message",{PLACEHOLDER}]', '42["message","x"]', b"x"],
    "another binary event while one is pending": [f'451-["message",{PLACEHOLDER}]'] * 2,
    "leaving while one is pending": [f'452-["message",{PLACEHOLDER}]', b"x", "41"],
    "binary of nothing": [b"x"],
    "one attachment too many, before an event": [f'451-["nobody listens",{PLACEHOLDER}]', b"x", b"x"],
}


@pytest.mark.parametrize("packets", NOT_ALLOWED.values(), ids=NOT_ALLOWED.keys())
async def test_what_is_not_allowed_closes_at_once(
    autojump_clock: MockClock, server: Server, transport: str, packets: list[Packet]
) -> None:
    session, other = await connected(server, transport), await connected(server)
    await session.send(*packets)
    await expect_close(session)
    await expect_alive(other)


BEFORE_CONNECT: dict[str, list[Packet]] = {
    "an event": ['42["message","x"]'],
    "an event with an id": ['421["message-with-ack","x"]'],
    "an event of another namespace": ['42/custom,["message","x"]'],
    "an ack": ["431[]"],
    "an event with attachments": [f'451-["message",{PLACEHOLDER}]', b"x"],
    "an ack with attachments": [f"461-1[{PLACEHOLDER}]", b"x"],
    "binary": [b"x"],
    "CONNECT_ERROR": ['44{"message":"x"}'],
    "an unknown type": ["4abc"],
    "broken JSON": ['40{"token":'],
}


@pytest.mark.parametrize("packets", BEFORE_CONNECT.values(), ids=BEFORE_CONNECT.keys())
async def test_nothing_goes_before_connect(
    autojump_clock: MockClock, server: Server, transport: str, packets: list[Packet]
) -> None:
    session = await open_session(server, transport, SOCKET)
    await session.send(*packets)
    await expect_close(session)


@pytest.mark.parametrize("namespace", ["", "/custom,"])
@pytest.mark.parametrize("auth", ["[]", '["token"]', '"token"', "null", "true", "{", "{}}", "{'a':1}"])
async def test_auth_must_be_an_object(
    autojump_clock: MockClock, server: Server, transport: str, namespace: str, auth: str
) -> None:
    session = await open_session(server, transport, SOCKET)
    await session.send(f"40{namespace}{auth}")
    await expect_close(session)


async def test_a_namespace_is_joined_once(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport, "/custom")
    await session.send("40/custom,")
    await expect_close(session)


async def test_an_extra_attachment_closes(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    await session.send(f'451-["nobody listens",{PLACEHOLDER}]', b"x")
    await expect_alive(session)
    await session.send(b"x")
    await expect_close(session)


# ------------------------------------------------------------------------------------------------ bounds


DEPTH = 100_000
DEEP = {
    "arrays": f'42["message",{"[" * DEPTH}{"]" * DEPTH}]',
    "objects": '42["message",' + '{"a":' * DEPTH + "1" + "}" * DEPTH + "]",
    "arrays that never end": f'42["message",{"[" * DEPTH}',
    "with an ack": f'421["message-with-ack",{"[" * DEPTH}{"]" * DEPTH}]',
    "an ack": f"431[{'[' * DEPTH}{']' * DEPTH}]",
    "a second CONNECT": '40{"a":' + "[" * DEPTH + "]" * DEPTH + "}",
    "with attachments": f'451-["message",{"[" * DEPTH}{PLACEHOLDER}{"]" * DEPTH}]',
}


@pytest.mark.parametrize("packet", DEEP.values(), ids=DEEP.keys())
async def test_nesting_is_bounded(autojump_clock: MockClock, server: Server, transport: str, packet: str) -> None:
    session, other = await connected(server, transport), await connected(server)
    await session.send(packet)
    await expect_close(session)
    await expect_alive(other)


async def test_nesting_of_auth_is_bounded(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session, other = await open_session(server, transport, SOCKET), await connected(server)
    await session.send('40{"a":' + "[" * DEPTH + "]" * DEPTH + "}")
    await expect_close(session)
    await expect_alive(other)


@pytest.mark.parametrize("digits", ["9" * 5_000, "-" + "9" * 5_000, "9" * 500_000], ids=["5000", "-5000", "500000"])
async def test_integers_are_bounded(autojump_clock: MockClock, server: Server, transport: str, digits: str) -> None:
    session, other = await connected(server, transport), await connected(server)
    await session.send(f'42["message",{digits}]')
    await expect_close(session)
    await expect_alive(other)


@pytest.mark.parametrize("depth", [2, 20])
async def test_ordinary_nesting_is_let_in(
    autojump_clock: MockClock, server: Server, transport: str, depth: int
) -> None:
    session = await connected(server, transport)
    nested = "[" * depth + "]" * depth
    await session.send(f'42["message",{nested}]')
    assert await session.receive() == f'42["message-back",{nested}]'
