"""What waits to be sent on an Engine.IO session: how much may, and how a session ends that has more to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from protocol.engineio import (
    ClientConnection,
    Closed,
    CloseReason,
    ConnectionClosed,
    Handshake,
    MessageReceived,
    ServerConnection,
    Transport,
)

from .engines import (
    HANDSHAKE,
    OPEN,
    POLLING_HANDSHAKE,
    answer,
    client,
    is_open,
    poll,
    polling_client,
    polling_server,
    sent,
    server,
)

LIMIT = 10_000
End: TypeAlias = ServerConnection | ClientConnection

# ------------------------------------------------------------------------------------------ its size


def ends(max_queue_bytes: int) -> list[End]:
    """Both ends on both transports, empty."""
    ours = [server(max_queue_bytes=max_queue_bytes), polling_server(max_queue_bytes=max_queue_bytes)]
    theirs = [ClientConnection(10.0, transport=kind, max_queue_bytes=max_queue_bytes) for kind in Transport]
    for connection in theirs:
        opening = "0" + HANDSHAKE.to_json()
        if connection.transport is Transport.WEBSOCKET:
            connection.receive(opening, 10.0)
        else:
            list(connection.receive_payload(opening, 10.0))
    return [*ours, *theirs]


def drain(connection: End) -> None:
    """Let everything leave."""
    while connection.has_unsent:
        if connection.transport is Transport.WEBSOCKET:
            sent(connection)
        elif isinstance(connection, ServerConnection):
            poll(connection)
        else:
            assert connection.next_payload()
            connection.payload_sent()


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind", [str, bytes])
def test_a_peer_that_reads_too_slowly_is_closed(number: int, kind: Callable[[], Any]) -> None:
    connection = ends(LIMIT)[number]
    message: str | bytes = b"x" * 1_000 if kind is bytes else "x" * 1_000
    for _ in range(9):
        connection.send(message)
    assert is_open(connection)
    connection.send(message)
    assert connection.closed is not None
    assert connection.closed.reason is CloseReason.SLOW_READER
    assert "bytes wait" in connection.closed.detail
    assert not connection.has_unsent  # and holds no memory any more


@pytest.mark.parametrize("number", range(4))
def test_a_great_many_empty_messages_are_bounded_too(number: int) -> None:
    connection = ends(LIMIT)[number]
    for _ in range(LIMIT // 40):  # an object takes more
        if connection.closed is None:
            connection.send("")
    assert connection.closed is not None


@pytest.mark.parametrize("number", range(4))
def test_what_has_left_takes_no_room(number: int) -> None:
    connection = ends(LIMIT)[number]
    for _ in range(20):
        connection.send(b"x" * 4_500)
        connection.send("x" * 4_500)
        drain(connection)
    assert is_open(connection)


@pytest.mark.parametrize("number", range(4))
def test_what_is_being_sent_still_takes_room_until_it_has_left(number: int) -> None:
    connection = ends(LIMIT)[number]
    if connection.transport is Transport.POLLING:
        return  # a payload is the carrier's once it is given out
    connection.send("x" * 6_000)
    assert connection.next_frame() is not None
    connection.send("x" * 6_000)
    assert connection.closed is not None


def test_one_message_over_the_limit_closes() -> None:
    connection = server(max_queue_bytes=LIMIT)
    connection.send(b"x" * LIMIT)
    assert connection.closed is not None
    assert connection.closed.reason is CloseReason.SLOW_READER
    with pytest.raises(ConnectionClosed):
        connection.send("more")


def test_a_frame_that_leaves_after_the_end_is_accounted_for() -> None:
    connection = server()
    connection.send("hello")
    assert connection.next_frame() == "4hello"
    connection.close(CloseReason.TRANSPORT_CLOSE)
    unsent = [connection.has_unsent]  # the frame is still on its way out
    connection.frame_sent(10.1)
    assert [*unsent, connection.has_unsent] == [True, False]
    assert connection.closed == Closed(CloseReason.TRANSPORT_CLOSE)


# ------------------------------------------------------------------------------------------ finishing


@pytest.mark.parametrize("make", [server, client])
def test_a_websocket_finishes_when_the_last_frame_has_left(make: Callable[[], End]) -> None:
    connection = make()
    connection.send("first")
    connection.send("last")
    connection.finish(CloseReason.SHUTTING_DOWN, by=12.0)
    assert connection.is_closing
    with pytest.raises(ConnectionClosed, match="shutting down"):
        connection.send("too late")
    assert connection.next_frame() == "4first"
    connection.frame_sent(11.1)
    assert connection.next_frame() == "4last"
    assert is_open(connection)
    connection.frame_sent(11.1)
    assert connection.closed == Closed(CloseReason.SHUTTING_DOWN)


@pytest.mark.parametrize("make", [server, client])
def test_a_websocket_with_nothing_to_send_finishes_at_once(make: Callable[[], End]) -> None:
    connection = make()
    connection.finish(CloseReason.SHUTTING_DOWN, by=12.0)
    assert connection.closed == Closed(CloseReason.SHUTTING_DOWN)


@pytest.mark.parametrize("make", [server, client, polling_server, polling_client])
def test_finishing_takes_no_longer_than_it_may(make: Callable[[], End]) -> None:
    connection = make()
    connection.send("nobody reads this")
    connection.finish(CloseReason.SHUTTING_DOWN, by=11.2)
    connection.finish(CloseReason.CLIENT_CLOSE, by=99.0)  # the first reason stands
    if isinstance(connection, ServerConnection):
        assert connection.deadline == pytest.approx(10.3)  # the heartbeat goes on
    else:
        assert connection.deadline == pytest.approx(11.2)
    connection.tick(11.199)
    assert is_open(connection)
    connection.tick(11.2)
    assert connection.closed == Closed(CloseReason.SHUTTING_DOWN, "not everything could be sent")


@pytest.mark.parametrize("make", [server, client])
def test_the_heartbeat_does_not_wait_for_a_session_that_finishes(make: Callable[[], End]) -> None:
    connection = make()
    connection.send("nobody reads this")
    connection.finish(CloseReason.SHUTTING_DOWN, by=99.0)
    connection.tick(10.3)
    connection.tick(11.5)
    assert connection.closed == Closed(CloseReason.PING_TIMEOUT)


def test_pings_are_answered_while_finishing() -> None:
    connection = client()
    connection.send("hello")
    connection.next_frame()
    connection.finish(CloseReason.CLIENT_CLOSE, by=20.0)
    connection.receive("2", 11.1)
    connection.frame_sent(11.2)
    assert sent(connection) == ["3"]
    assert connection.closed == Closed(CloseReason.CLIENT_CLOSE)


def test_messages_are_taken_while_finishing() -> None:
    connection = server()
    connection.send("hello")
    connection.finish(CloseReason.SHUTTING_DOWN, by=12.0)
    assert connection.receive("4still here", 10.1) == [MessageReceived("still here")]
    assert connection.receive("1", 10.1) == [Closed(CloseReason.CLIENT_CLOSE)]
    assert connection.closed == Closed(CloseReason.CLIENT_CLOSE)


def test_a_polling_server_says_goodbye_alone_after_the_last_packet() -> None:
    """JavaScript's client library reads a close packet before the messages around it."""
    connection = polling_server()
    connection.send("last")
    connection.finish(CloseReason.SERVER_CLOSE, by=12.0)
    assert poll(connection) == "4last"
    assert is_open(connection)
    assert poll(connection) == "1"
    assert connection.closed == Closed(CloseReason.SERVER_CLOSE)


def test_a_server_that_stops_sends_nobody_away() -> None:
    """Python's client library would not come back after a close packet."""
    connection = polling_server()
    connection.send("last")
    connection.finish(CloseReason.SHUTTING_DOWN, by=12.0)
    assert poll(connection) == "4last"
    assert poll(connection) == "6"
    assert connection.closed == Closed(CloseReason.SHUTTING_DOWN)


def test_a_poll_that_is_held_gets_the_goodbye_at_once() -> None:
    connection = polling_server()
    assert poll(connection) is None
    connection.finish(CloseReason.SERVER_CLOSE, by=12.0)
    assert answer(connection) == "1"
    assert connection.closed == Closed(CloseReason.SERVER_CLOSE)


def test_a_server_that_has_more_than_one_payload_says_goodbye_after_the_last() -> None:
    connection = polling_server()  # of 100 bytes
    connection.send("x" * 60)
    connection.send("y" * 60)
    connection.finish(CloseReason.SERVER_CLOSE, by=12.0)
    assert poll(connection) == "4" + "x" * 60
    assert poll(connection) == "4" + "y" * 60
    assert is_open(connection)
    assert poll(connection) == "1"


def test_a_polling_client_says_goodbye_alone_after_the_last_packet() -> None:
    connection = polling_client()
    connection.send("last")
    connection.finish(CloseReason.CLIENT_CLOSE, by=12.0)
    assert connection.next_payload() == "4last"
    assert connection.next_payload() is None
    assert is_open(connection)
    connection.payload_sent()
    assert connection.next_payload() == "1"
    assert connection.closed == Closed(CloseReason.CLIENT_CLOSE)
    assert connection.next_payload() is None


def test_a_goodbye_is_said_even_where_it_does_not_fit() -> None:
    connection = polling_client(Handshake("sid-1", max_payload=1))
    connection.finish(CloseReason.CLIENT_CLOSE, by=12.0)
    assert connection.next_payload() == "1"


def test_a_polling_client_waits_for_the_post_before() -> None:
    connection = polling_client()
    connection.send("first")
    assert connection.next_payload() == "4first"
    connection.finish(CloseReason.CLIENT_CLOSE, by=12.0)
    assert connection.next_payload() is None
    connection.payload_sent()
    assert connection.next_payload() == "1"


def test_a_session_that_finishes_while_it_moves_ends_on_the_websocket() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    connection.receive_probe("2probe")
    connection.send("last")
    connection.finish(CloseReason.SHUTTING_DOWN, by=12.0)
    assert poll(connection) == "6"
    assert is_open(connection)
    assert connection.receive_probe("5") is None
    assert sent(connection) == ["4last"]
    assert connection.closed == Closed(CloseReason.SHUTTING_DOWN)


def test_a_session_with_nothing_to_send_finishes_when_it_has_moved() -> None:
    ours = polling_server()
    ours.begin_upgrade()
    ours.receive_probe("2probe")
    ours.finish(CloseReason.SHUTTING_DOWN, by=12.0)
    assert ours.receive_probe("5") is None
    assert ours.closed == Closed(CloseReason.SHUTTING_DOWN)
    theirs = polling_client()
    theirs.begin_upgrade()
    theirs.receive_probe("3probe")
    theirs.finish(CloseReason.CLIENT_CLOSE, by=12.0)
    assert theirs.next_payload() is None
    assert theirs.finish_upgrade() == "5"
    assert theirs.closed == Closed(CloseReason.CLIENT_CLOSE)


def test_a_failed_upgrade_lets_a_session_finish_on_polling() -> None:
    ours = polling_server()
    ours.begin_upgrade()
    ours.receive_probe("2probe")
    ours.finish(CloseReason.SERVER_CLOSE, by=12.0)
    ours.abandon_upgrade()
    assert poll(ours) == "1"
    theirs = polling_client(Handshake("sid-1", ("websocket",)))
    theirs.begin_upgrade()
    theirs.receive_probe("3probe")
    theirs.finish(CloseReason.CLIENT_CLOSE, by=12.0)
    theirs.abandon_upgrade()
    assert theirs.next_payload() == "1"


def test_a_session_may_end_before_it_has_begun() -> None:
    ours = ServerConnection(HANDSHAKE, 10.0)
    ours.finish(CloseReason.SERVER_CLOSE, by=12.0)
    assert sent(ours) == [OPEN]
    assert ours.closed == Closed(CloseReason.SERVER_CLOSE)
    ours = ServerConnection(POLLING_HANDSHAKE, 10.0, transport=Transport.POLLING)
    ours.finish(CloseReason.SERVER_CLOSE, by=12.0)
    assert poll(ours) == "0" + POLLING_HANDSHAKE.to_json()
    assert poll(ours) == "1"


def test_a_session_that_finishes_waits_for_the_answer_that_is_leaving() -> None:
    connection = polling_server()
    connection.send("last")
    connection.begin_poll()
    payload = connection.next_payload()
    connection.finish(CloseReason.SERVER_CLOSE, by=20.0)
    connection.begin_poll()
    assert connection.next_payload() is None
    assert is_open(connection)
    connection.payload_sent(payload or "")
    assert answer(connection) == "1"
