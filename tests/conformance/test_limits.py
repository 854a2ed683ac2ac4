"""Limits that a client can run into; docs/limits.md has their reasons."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock, lockstep_stream_pair

from ..server.memory import Server
from .sessions import (
    TRANSPORTS,
    Polling,
    Session,
    connected,
    expect_alive,
    expect_echo,
    open_session,
    receive_event,
)
from .wire import BINARY, SOCKET, TEXT, WebSocket, at_once, frame

transports = pytest.mark.parametrize("transport", TRANSPORTS)


async def expect_close(session: Session) -> None:
    with at_once():
        assert await session.closed() == []


# ------------------------------------------------------------------------------------------------ packets


@pytest.mark.parametrize(("depth", "let_in"), [(99, True), (100, False)])
@transports
async def test_packets_are_100_deep_with_their_own_array(
    autojump_clock: MockClock, server: Server, transport: str, depth: int, let_in: bool
) -> None:
    session = await connected(server, transport)
    nested = "[" * depth + "]" * depth
    await session.send(f'42["message",{nested}]')
    if let_in:
        assert await session.receive() == f'42["message-back",{nested}]'
    else:
        await expect_close(session)


@transports
async def test_packets_have_not_too_many_values(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    await session.send('42["message",' + ",".join(["{}"] * 15_000) + "]")
    assert len((await receive_event(session))[1]) == 15_001
    await session.send('42["message",' + ",".join(["{}"] * 25_000) + "]")
    await expect_close(session)


@pytest.mark.parametrize(("characters", "let_in"), [(256, True), (257, False)])
@transports
async def test_names_of_namespaces_have_256_characters(
    autojump_clock: MockClock, server: Server, transport: str, characters: int, let_in: bool
) -> None:
    session = await open_session(server, transport, SOCKET)
    namespace = "/" + "x" * (characters - 1)
    await session.send(f"40{namespace},")
    if let_in:
        assert await session.receive() == f'44{namespace},{{"message":"Invalid namespace"}}'
    else:
        await expect_close(session)


@transports
async def test_ack_ids_of_more_than_20_digits_close(autojump_clock: MockClock, server: Server, transport: str) -> None:
    session = await connected(server, transport)
    await session.send("42" + "9" * 21 + '["message-with-ack",1]')
    await expect_close(session)


# ------------------------------------------------------------------------------------------------ slow readers


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TEXT, BINARY])
async def test_who_never_polls_is_closed_not_buffered_for(autojump_clock: MockClock, server: Server, kind: int) -> None:
    session, other = await Polling.open(server), await Polling.open(server)
    body = "4" + "x" * 999_999 if kind == TEXT else "b" + "AAAA" * 249_999
    posts = 0
    with trio.fail_after(9):  # within the first ping
        while (await session.post(body)).status == 200:
            posts += 1
            assert posts < 200
    assert posts > 10
    assert (await session.get()).error == (400, 1, "Session ID unknown")
    await expect_echo(other)


@frozen
class NarrowNetwork:
    """Connections that hold no byte: what one end sends waits until the other reads."""

    server: Server

    def connect(self) -> Any:
        return self.server.network.connect(lockstep_stream_pair)


@frozen
class NarrowServer:
    network: NarrowNetwork


@pytest.mark.slow
async def test_who_does_not_read_its_websocket_is_closed_not_buffered_for(
    autojump_clock: MockClock, server: Server
) -> None:
    websocket, other = await WebSocket.open(NarrowServer(NarrowNetwork(server))), await connected(server)
    message, sent = frame(BINARY, b"x" * 999_999), 0
    with trio.fail_after(9):
        try:
            while sent < 200:
                await websocket.stream.send_all(message)
                sent += 1
        except trio.BrokenResourceError:
            pass
    assert 10 < sent < 200
    await expect_alive(other)
