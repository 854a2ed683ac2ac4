"""The heartbeat of Engine.IO v4, to the millisecond, from both ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.engineio import (
    ClientConnection,
    Closed,
    CloseReason,
    MessageReceived,
    ServerConnection,
    Transport,
)

from .engines import (
    HANDSHAKE,
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

# --------------------------------------------------------------------------------------------- the server


def test_the_server_pings_after_each_interval_and_the_interval_restarts_with_the_pong() -> None:
    connection = server()
    assert connection.deadline == pytest.approx(10.3)
    connection.tick(10.299)
    assert sent(connection) == []
    connection.tick(10.3)
    assert sent(connection, 10.3) == ["2"]
    assert connection.deadline == pytest.approx(10.5)
    assert connection.receive("3", 10.45) == []
    assert connection.deadline == pytest.approx(10.75)
    connection.tick(10.5)
    assert sent(connection) == []
    connection.tick(10.75)
    assert sent(connection) == ["2"]
    assert is_open(connection)


def test_a_client_that_does_not_answer_in_time_is_closed() -> None:
    connection = server()
    connection.tick(10.3)
    sent(connection, 10.3)
    connection.tick(10.499)
    assert is_open(connection)
    connection.tick(10.5)
    assert connection.closed == Closed(CloseReason.PING_TIMEOUT)
    assert connection.deadline == math.inf
    assert sent(connection) == []


@pytest.mark.parametrize(
    ("ticked", "answer_due"),
    [
        (10.3, 10.5),
        (10.31, 10.5),  # a little late: the answer is due a timeout after the ping was
        (10.4, 10.58),  # much: the client has nine tenths of the timeout all the same
        (99.0, 99.18),
    ],
)
def test_a_server_that_pings_late_does_not_make_the_client_pay_for_it(ticked: float, answer_due: float) -> None:
    connection = polling_server()
    connection.tick(ticked)
    assert connection.deadline == pytest.approx(answer_due)
    connection.tick(answer_due - 0.001)
    assert is_open(connection)
    connection.tick(answer_due + 0.001)
    assert connection.closed == Closed(CloseReason.PING_TIMEOUT)


def test_messages_do_not_stand_in_for_a_pong() -> None:
    connection = server()
    connection.tick(10.3)
    sent(connection, 10.3)
    assert connection.receive("4hello", 10.4) == [MessageReceived("hello")]
    connection.tick(10.5)
    assert connection.closed == Closed(CloseReason.PING_TIMEOUT)


def test_a_pong_nobody_waits_for_is_ignored() -> None:
    connection = server()
    assert connection.receive("3", 10.1) == []
    assert connection.deadline == pytest.approx(10.3)  # and puts nothing off
    connection.tick(10.3)
    sent(connection, 10.3)
    connection.receive("3", 10.4)
    connection.receive("3", 10.5)
    assert connection.deadline == pytest.approx(10.7)
    assert is_open(connection)


def test_the_ping_goes_before_what_waits() -> None:
    connection = server()
    connection.send("first")
    connection.send("second")
    connection.tick(10.3)
    assert sent(connection) == ["2", "4first", "4second"]


def test_while_a_slow_frame_leaves_the_answer_is_due_a_timeout_after_its_last_piece() -> None:
    connection = server()
    connection.send("a large message")
    assert connection.next_frame() == "4a large message"
    connection.piece_sent(10.2)
    assert connection.deadline == pytest.approx(10.3)  # without a ping it puts nothing off
    connection.tick(10.3)
    assert connection.next_frame() is None  # one at a time
    connection.piece_sent(10.4)
    assert connection.deadline == pytest.approx(10.6)
    connection.piece_sent(10.5)
    connection.frame_sent(10.5)
    assert connection.deadline == pytest.approx(10.7)
    assert connection.next_frame() == "2"
    connection.frame_sent(10.6)
    assert connection.deadline == pytest.approx(10.8)
    connection.send("more")
    connection.next_frame()
    connection.piece_sent(10.7)  # the ping has left: nothing puts the answer off any more
    connection.frame_sent(10.7)
    assert connection.deadline == pytest.approx(10.8)
    connection.tick(10.8)
    assert connection.closed == Closed(CloseReason.PING_TIMEOUT)


def test_a_peer_that_takes_no_piece_is_closed() -> None:
    connection = server()
    connection.send("a large message")
    connection.next_frame()
    connection.tick(10.3)
    connection.tick(10.5)
    assert connection.closed == Closed(CloseReason.PING_TIMEOUT)


def test_a_client_that_answers_before_the_ping_is_known_to_have_left_is_believed() -> None:
    connection = server()
    connection.tick(10.3)
    connection.next_frame()
    connection.receive("3", 10.31)
    connection.frame_sent(10.32)
    assert connection.deadline == pytest.approx(10.61)


def test_on_polling_the_ping_answers_the_held_poll() -> None:
    connection = polling_server()
    assert poll(connection) is None
    connection.tick(10.3)
    assert answer(connection, 10.35) == "2"
    assert connection.deadline == pytest.approx(10.5)  # a timeout after it was due, whenever it was fetched
    connection.begin_post()
    assert list(connection.receive_payload(b"3", 10.4)) == []
    assert connection.deadline == pytest.approx(10.7)


def test_on_polling_the_ping_goes_before_what_waits() -> None:
    connection = polling_server()
    connection.send("hello")
    connection.tick(10.3)
    assert poll(connection) == "2\x1e4hello"


def test_on_polling_a_payload_that_leaves_without_a_ping_puts_nothing_off() -> None:
    connection = polling_server()
    connection.tick(10.3)
    assert poll(connection, 10.4) == "2"
    connection.send("hello")
    assert poll(connection, 10.5) == "4hello"
    assert connection.deadline == pytest.approx(10.5)


def test_on_polling_a_client_that_fetches_its_ping_late_has_the_less_time_to_answer() -> None:
    connection = polling_server()
    connection.tick(10.3)
    assert poll(connection, 10.499) == "2"
    connection.tick(10.5)
    assert connection.closed == Closed(CloseReason.PING_TIMEOUT)


def test_on_polling_a_slow_payload_is_given_the_time_it_takes_to_leave() -> None:
    connection = polling_server()
    connection.send("a large message")
    connection.tick(10.3)
    connection.begin_poll()
    payload = connection.next_payload()
    assert payload == "2\x1e4a large message"
    connection.piece_sent(10.45)
    assert connection.deadline == pytest.approx(10.65)
    connection.payload_sent(payload)
    assert connection.deadline == pytest.approx(10.65)
    connection.piece_sent(10.64)  # of another payload: the ping has left
    assert connection.deadline == pytest.approx(10.65)


def test_the_heartbeat_goes_on_while_no_poll_is_held() -> None:
    connection = polling_server()
    connection.tick(10.3)
    assert connection.deadline == pytest.approx(10.5)
    connection.tick(10.5)
    assert connection.closed == Closed(CloseReason.PING_TIMEOUT)


def test_the_heartbeat_goes_on_across_an_upgrade() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    connection.receive_probe("2probe")
    connection.tick(10.3)
    assert poll(connection, 10.3) == "6"  # the ping waits, as all else
    assert connection.receive_probe("5") is None
    assert connection.deadline == pytest.approx(10.5)
    assert sent(connection, 10.4) == ["2"]
    assert connection.deadline == pytest.approx(10.6)
    connection.receive("3", 10.55)
    assert connection.deadline == pytest.approx(10.85)


def test_a_client_that_does_not_finish_its_upgrade_is_closed() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    connection.receive_probe("2probe")
    connection.tick(10.3)
    connection.tick(10.5)
    assert connection.closed == Closed(CloseReason.PING_TIMEOUT)


# --------------------------------------------------------------------------------------------- the client


def test_the_client_answers_pings_and_each_puts_the_deadline_off() -> None:
    connection = client()
    assert connection.deadline == pytest.approx(11.5)  # one interval and one timeout after the open packet
    assert connection.receive("2", 11.4) == []
    assert sent(connection) == ["3"]
    assert connection.deadline == pytest.approx(11.9)
    assert connection.receive("2x", 11.5) == []
    assert sent(connection) == ["3x"]
    assert connection.deadline == pytest.approx(12.0)


def test_the_client_answers_before_what_waits() -> None:
    connection = client()
    connection.send("hello")
    connection.receive("2", 11.4)
    assert sent(connection) == ["3", "4hello"]


def test_on_polling_the_client_answers_with_a_post() -> None:
    connection = polling_client()
    connection.send("hello")
    connection.begin_poll()
    assert list(connection.receive_payload("2", 11.4)) == []
    assert connection.next_payload() == "3\x1e4hello"
    assert connection.deadline == pytest.approx(11.9)


@pytest.mark.parametrize("make", [client, polling_client])
def test_the_client_gives_up_on_a_server_that_does_not_ping(make: Callable[[], ClientConnection]) -> None:
    connection = make()
    if connection.transport is Transport.WEBSOCKET:
        connection.receive("4hello", 11.4)  # does not stand in for a ping
    else:
        list(connection.receive_payload("4hello", 11.4))
    connection.tick(11.499)
    assert is_open(connection)
    connection.tick(11.5)
    assert connection.closed == Closed(CloseReason.PING_TIMEOUT)
    assert connection.deadline == math.inf


# ----------------------------------------------------------------------------------------------- together


@given(st.floats(0.0, 0.199), st.lists(st.text() | st.binary(), max_size=5))
def test_a_client_that_answers_in_time_is_never_closed(delay: float, messages: list[str | bytes]) -> None:
    ours, theirs = ServerConnection(HANDSHAKE, 0.0), ClientConnection(0.0)
    [opening] = sent(ours)
    theirs.receive(opening, 0.0)
    for message in messages:
        now = ours.deadline
        ours.tick(now)
        [ping] = sent(ours, now)
        assert theirs.receive(ping, now) == []
        [pong] = sent(theirs, now)
        assert ours.receive(pong, now + delay) == []
        ours.send(message)
        [frame] = sent(ours, now)
        assert theirs.receive(frame, now) == [MessageReceived(message)]
        theirs.send(message)
        [frame] = sent(theirs, now)
        assert ours.receive(frame, now + delay) == [MessageReceived(message)]
        theirs.tick(now + delay)
    assert ours.closed is theirs.closed is None


@given(st.lists(st.floats(0.0, 0.099), max_size=5))
def test_nor_is_one_on_polling(delays: list[float]) -> None:
    ours = ServerConnection(POLLING_HANDSHAKE, 0.0, transport=Transport.POLLING)
    theirs = ClientConnection(0.0, transport=Transport.POLLING)
    theirs.begin_poll()
    list(theirs.receive_payload(poll(ours, 0.0) or "", 0.0))
    for delay in delays:
        theirs.begin_poll()
        assert poll(ours) is None
        now = ours.deadline
        ours.tick(now)
        list(theirs.receive_payload(answer(ours, now) or "", now + delay))
        ours.begin_post()
        list(ours.receive_payload((theirs.next_payload() or "").encode(), now + 2 * delay))
        theirs.payload_sent()
        ours.tick(now + 2 * delay)
        theirs.tick(now + 2 * delay)
    assert ours.closed is theirs.closed is None
