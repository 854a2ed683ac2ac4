"""An Engine.IO v4 session on its WebSocket: messages, order, and what closes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.engineio import (
    ClientConnection,
    Closed,
    CloseReason,
    ConnectionClosed,
    Frame,
    MessageReceived,
    ServerConnection,
)

from .engines import HANDSHAKE, OPEN, client, is_open, sent, server

End: TypeAlias = ServerConnection | ClientConnection
ends = pytest.mark.parametrize("make", [server, client])
Make: TypeAlias = Callable[[], End]


@ends
def test_messages_go_both_ways_as_they_are(make: Make) -> None:
    connection = make()
    assert connection.receive("4", 11.1) == [MessageReceived("")]
    assert connection.receive("4hello\x1e4", 11.1) == [MessageReceived("hello\x1e4")]
    assert connection.receive(b"\x04\x00", 11.1) == [MessageReceived(b"\x04\x00")]
    connection.send("hello\x1e4")
    connection.send(b"\x04\x00")
    assert sent(connection) == ["4hello\x1e4", b"\x04\x00"]
    assert not connection.is_closing


@ends
def test_frames_leave_one_at_a_time_in_order(make: Make) -> None:
    connection = make()
    unsent = [connection.has_unsent]
    connection.send("first")
    connection.send("second")
    unsent.append(connection.has_unsent)
    assert connection.next_frame() == "4first"
    assert connection.next_frame() is None
    connection.frame_sent(11.0)
    assert connection.next_frame() == "4second"
    unsent.append(connection.has_unsent)
    connection.frame_sent(11.0)
    unsent.append(connection.has_unsent)
    assert connection.next_frame() is None
    assert unsent == [False, True, True, False]
    connection.frame_sent(11.0)  # which changes nothing where none is on its way


@ends
@pytest.mark.parametrize("frame", ["", "7", "nonsense"])
def test_a_frame_that_is_no_packet_closes(make: Make, frame: str) -> None:
    connection = make()
    [event] = connection.receive(frame, 11.1)
    assert isinstance(event, Closed)
    assert event.reason is CloseReason.PARSE_ERROR
    assert event.detail
    assert connection.closed == event


@pytest.mark.parametrize("frame", ["2", "2probe"])
def test_a_ping_from_a_client_closes(frame: str) -> None:
    connection = server()
    assert connection.receive(frame, 10.1) == [Closed(CloseReason.PARSE_ERROR, "ping from a client")]
    assert connection.closed == Closed(CloseReason.PARSE_ERROR, "ping from a client")


def test_a_close_packet_closes_at_once() -> None:
    ours = server()
    ours.send("unsent")
    assert ours.receive("1", 10.1) == [Closed(CloseReason.CLIENT_CLOSE)]
    assert ours.closed == Closed(CloseReason.CLIENT_CLOSE)
    assert sent(ours) == []
    theirs = client()
    assert theirs.receive("1", 11.1) == [Closed(CloseReason.SERVER_CLOSE)]
    assert theirs.closed == Closed(CloseReason.SERVER_CLOSE)


@pytest.mark.parametrize("frame", ["0{}", "5", "6", "3", "3probe"])
def test_packets_without_a_meaning_on_an_open_websocket_are_ignored(frame: str) -> None:
    connection = server()
    assert connection.receive(frame, 10.1) == []
    assert is_open(connection)
    assert sent(connection) == []


@pytest.mark.parametrize("frame", ["3", "5", "6"])
def test_the_client_ignores_them_too(frame: str) -> None:
    connection = client()
    assert connection.receive(frame, 11.1) == []
    assert is_open(connection)


@ends
def test_nothing_is_taken_or_sent_after_the_end(make: Make) -> None:
    connection = make()
    connection.send("unsent")
    connection.close(CloseReason.TRANSPORT_CLOSE, "cut")
    connection.close(CloseReason.SHUTTING_DOWN)  # the first reason stands
    assert connection.closed == Closed(CloseReason.TRANSPORT_CLOSE, "cut")
    assert connection.is_closing
    assert connection.deadline == math.inf
    assert not connection.has_unsent
    assert connection.next_frame() is None
    assert connection.receive("4late", 12.0) == []
    assert connection.receive("", 12.0) == []
    connection.tick(99.0)
    assert connection.closed == Closed(CloseReason.TRANSPORT_CLOSE, "cut")
    with pytest.raises(ConnectionClosed, match=r"^the connection is closed: transport close$") as caught:
        connection.send("late")
    assert caught.value.reason is CloseReason.TRANSPORT_CLOSE


@given(st.lists(st.text(max_size=8) | st.binary(max_size=8) | st.sampled_from([OPEN, "1", "2", "3"]), max_size=12))
def test_whatever_arrives_the_only_answer_is_an_event(frames: list[Frame]) -> None:
    for connection in (ServerConnection(HANDSHAKE, 0.0), ClientConnection(0.0)):
        closed = False
        for now, frame in enumerate(frames):
            events = connection.receive(frame, float(now))
            assert not (closed and events), "something came after the end"
            closed = closed or any(isinstance(event, Closed) for event in events)
            assert closed == (connection.closed is not None)
